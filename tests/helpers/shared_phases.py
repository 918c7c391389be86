"""Small runs of methods that begin with contrast and go on with more features."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from needsaug_lite import data, models
from needsaug_lite.augment import StandardAugmentation
from needsaug_lite.data import Splits, generator
from needsaug_lite.experiments import registry
from needsaug_lite.training import Optimisation

SOURCES = (
    "facog",
    "feature_copy",
    "feature_dirichlet",
    "feature_smote",
    "feature_gan",
    "gamo",
    "gamo_without_d",
)
ADVERSARIAL = ("facog", "feature_gan", "gamo", "gamo_without_d")
CROP = StandardAugmentation(crop=1)


def tail(imbalance: float = 20) -> Splits:
    """Digits with a long tail."""
    return data.load("digits", imbalance=imbalance, seed=0)


def make(
    name: str,
    *,
    splits: Splits | None = None,
    backbone: str = "convnet",
    augment: StandardAugmentation = CROP,
    optimisation: Mapping[str, Any] | None = None,
    seed: int = 0,
    **hyperparameters: Any,
) -> Any:
    """A method by its name in the registry."""
    splits = splits or tail()
    entry = registry.entry(name)
    kind = entry.load()
    torch.manual_seed(seed)
    model = models.build(
        backbone, splits.image_shape, splits.num_classes, width=4, head=kind.head
    )
    settings = {"batch_size": 64, "lr": 0.1, **(optimisation or {})}
    return kind(
        model,
        splits,
        optimisation=Optimisation(**settings),
        augment=augment,
        seed=seed,
        **registry.arguments(name, hyperparameters),
        **entry.fixed,
    )


def at_second_phase(name: str, **settings: Any) -> Any:
    """A method whose second phase begins, with a backbone that nobody trained."""
    method = make(name, **settings)
    method.stages(10)
    method.begin_oversampling_epoch(0)
    return method


def restarted(method: Any, number: int = 0) -> Any:
    """The method with the draws of one epoch from their beginning."""
    method.draw = generator(77, number)
    return method


def parts(method: Any) -> dict[str, dict[str, Tensor]]:
    """A copy of all numbers of the networks of a method, by network."""
    networks = {
        "backbone": method.model.backbone,
        "head": method.model.head,
        "projection": method.projection,
        **getattr(method, "source_networks", dict)(),
    }
    return {
        name: copy.deepcopy(network.state_dict())
        for name, network in networks.items()
        if isinstance(network, nn.Module)
    }


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts agree bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Names of the networks that differ."""
    return {name for name in before if not same(before[name], after[name])}


def literal_contrast(
    anchors: Tensor, others: Tensor, labels: Tensor, other_labels: Tensor, tau: float
) -> Tensor:
    """Mean contrast of anchors among themselves and others, term by term."""
    points = torch.cat([anchors, others])
    points = points / points.norm(dim=1, keepdim=True)
    names = torch.cat([labels, other_labels]).tolist()
    terms = []
    for i in range(len(anchors)):
        rest = [a for a in range(len(points)) if a != i]
        total = sum((points[i] @ points[a] / tau).exp() for a in rest)
        own = [a for a in rest if names[a] == names[i]]
        if own:
            shares = [(points[i] @ points[p] / tau).exp() / total for p in own]
            terms.append(-torch.stack(shares).log().mean())
    return torch.stack(terms).mean()
