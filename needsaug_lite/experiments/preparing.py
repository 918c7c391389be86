"""From a spec to everything that a run needs before its first step."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from needsaug_lite import data, models, training
from needsaug_lite.data import Normalisation, Splits
from needsaug_lite.data.team import ALONE, Team
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import registry
from needsaug_lite.experiments.features import frozen_features
from needsaug_lite.experiments.generators import TrainedGenerator, trained_generator
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.experiments.supernets import build_options
from needsaug_lite.models import Classifier


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, on its device, before the first step.

    `generator` stays as it was handed in: where a method goes on training it, with its
    discriminator, it is a copy. `model` is what the method starts from; what it has
    trained is `method.model`, which is another network where it searched for one.
    """

    splits: Splits
    normalisation: Normalisation
    model: Classifier
    method: training.Method
    generator: TrainedGenerator | None = None


def prepare(
    spec: Spec,
    root: Path | None = None,
    device: str | torch.device = "cpu",
    team: Team = ALONE,
) -> Prepared:
    """Load the data, build the network from the seed, and make the method.

    Features are made on the CPU, so that no device changes them, and kept in the
    folder `features` beside the published data sets; generators are trained on
    `device` and kept in the folder `generators`.

    Args:
        spec: the run.
        root: folder of the published data sets; see `data.default_root`.
        device: where tensors live.
        team: processes that share out the batches; each of them calls this.

    Raises:
        UserError: if the method can't be shared out.
    """
    if team.size > 1:
        _require_shareable(spec.method)
    splits = spec.load_data(root)
    if spec.features is not None:
        cache = data.default_root(root) / "features"
        splits = frozen_features(splits, spec.features, seed=spec.seed, cache=cache)
    kept = None
    if spec.generator is not None:
        kept = data.default_root(root) / "generators"
    ready = prepare_with(splits.to(device), spec, kept)
    training.share_out(ready.method, team)
    return ready


def _require_shareable(method: str) -> None:
    """Refuse before any data are read."""
    if training.shareable(registry.entry(method).load()):
        return
    known = [
        name for name, one in registry.METHODS.items() if training.shareable(one.load())
    ]
    raise UserError(
        f"{method} runs in one process: it can't be shared out. Leave out torchrun, or "
        f"use one of {', '.join(known)}"
    )


def prepare_with(splits: Splits, spec: Spec, cache: Path | None = None) -> Prepared:
    """Network and method of a spec for data that are at hand, on their device.

    The method gets the splits without true labels; the evaluation keeps them.

    Args:
        splits: the data.
        spec: the run.
        cache: folder of trained generators; None trains one if it is needed.
    """
    chosen = registry.entry(spec.method)
    method_class = chosen.load()
    torch.manual_seed(spec.seed)
    model = models.build(
        spec.model.backbone,
        splits.image_shape,
        splits.num_classes,
        width=spec.model.width,
        feature_dim=spec.model.feature_dim,
        head=method_class.head,
        weights=spec.model.weights,
        **build_options(spec.model, spec.method),
    ).to(splits.train.labels.device)
    made = None
    handed: dict[str, Any] = {}
    if spec.generator is not None:
        whole = getattr(method_class, "needs_adversary", False)
        made = trained_generator(
            splits, spec.generator, seed=spec.data_seed, cache=cache, whole=whole
        )
        if whole:
            handed["gan"] = made.trainer
            # The method trains on: what it was given is judged too, afterwards.
            made = replace(made, generator=deepcopy(made.generator))
        else:
            handed["generator"] = made.generator
        torch.manual_seed(spec.seed)  # the method draws its own weights from here
    normalisation = data.IMAGENET if spec.model.weights else Normalisation.of(splits)
    seen = splits.without_true_labels()
    method = method_class(
        model,
        seen if spec.learn_from == "train" else data.with_meta(seen),
        optimisation=spec.optimisation,
        augment=spec.augment,
        normalisation=normalisation,
        seed=spec.seed,
        **registry.arguments(spec.method, spec.hyperparameters),
        **chosen.fixed,
        **handed,
    )
    return Prepared(splits, normalisation, model, method, made)
