"""Methods with meta images on the digits, small, and in float64 with a linear model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from needsaug_lite import data, models, training
from needsaug_lite.data import Batch, Splits
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.methods.baselines.two_phase import TwoPhase
from needsaug_lite.methods.meta_iada import MetaIADA
from needsaug_lite.models import Classifier
from needsaug_lite.statistics import ClassCovariance
from needsaug_lite.training import Optimisation

LR = 0.3
S = TypeVar("S", bound=Supervised)
T = TypeVar("T", bound=TwoPhase)


def load(seed: int = 0, **options: float) -> Splits:
    options = {"n_max": 40, "imbalance": 10, "meta_per_class": 5, **options}
    return data.load("digits", seed=seed, **options)


def make(
    kind: Callable[..., S],
    splits: Splits | None = None,
    *,
    seed: int = 0,
    batch_size: int = 32,
    **settings: Any,
) -> S:
    """A method with a small network with batch norm."""
    splits = splits or load(seed).without_true_labels()
    torch.manual_seed(seed)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    optimisation = Optimisation(lr=0.05, batch_size=batch_size)
    return kind(model, splits, optimisation=optimisation, seed=seed, **settings)


def in_float64(method: T, network: nn.Module | None = None) -> T:
    """Networks and what is learned in float64, moments of all training images."""
    method.model.double()
    if network is not None:
        network.double()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)
    if hasattr(method, "moments"):
        old = method.moments
        classes, size = old.mean.shape
        method.moments = ClassCovariance(
            classes, size, diagonal=old.diagonal, dtype=torch.float64
        )
        method.class_prior = method.class_prior.double()
        method.model.eval()
        for batch in map(doubled, method.batches.epoch(7)):
            method.moments.update(method.model.features(batch.images), batch.labels)
        method.model.train()
    if isinstance(method, MetaIADA):
        method.epsilon = method.epsilon.double()
    return method


def linear(kind: Callable[..., T], seed: int = 0, **settings: Any) -> T:
    """A linear model of 64 pixels, its loss at a learning rate of 0.3."""
    torch.manual_seed(seed)
    model = Classifier(nn.Flatten(), 64, nn.Linear(64, 10))
    optimisation = Optimisation(lr=LR, batch_size=32)
    method = kind(model, load(seed), optimisation=optimisation, **settings)
    return in_float64(method, getattr(method, "network", None))


def doubled(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.double())


def batches_of(method: TwoPhase) -> tuple[Batch, Batch]:
    """A training batch and a meta batch in float64."""
    return doubled(next(method.batches.epoch(0))), doubled(next(method.meta))


def meta_after_step(
    inner: Tensor, weight: Tensor, bias: Tensor, clean: Batch, *, graph: bool = True
) -> Tensor:
    """Meta loss of a linear model after one plain step on `inner`, as one graph."""
    slopes = torch.autograd.grad(inner, [weight, bias], create_graph=graph)
    moved = weight - LR * slopes[0], bias - LR * slopes[1]
    return cross_entropy(clean.images.flatten(1) @ moved[0].T + moved[1], clean.labels)


def flat(state: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors of a state, by their path."""
    if isinstance(state, Tensor):
        return {name: state}
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(state, Mapping):
        pairs = state.items()
    elif isinstance(state, list):
        pairs = enumerate(state)
    found: dict[str, Tensor] = {}
    for key, value in pairs:
        found |= flat(value, f"{name}/{key}")
    return found


def assert_same(one: training.Method, other: training.Method, part: str = "") -> None:
    """Every tensor of two states (whose path starts with `part`) bit for bit."""
    first, second = flat(one.state_dict()), flat(other.state_dict())
    names = [name for name in first if name.startswith(part)]
    assert names
    for name in names:
        torch.testing.assert_close(
            first[name], second[name], rtol=0, atol=0, equal_nan=True, msg=name
        )


class Stopped(Exception):  # noqa: N818
    pass


def fit_in_two(make_one: Callable[[], S], epochs: int, after: int, file: Path) -> S:
    """Killed in epoch `after` and resumed by a new object."""

    def stop(epoch: int, method: training.Method) -> dict[str, float]:
        if epoch == after:
            raise Stopped
        return {}

    with pytest.raises(Stopped):
        training.fit(make_one(), epochs, checkpoint=file, on_epoch=stop)
    second = make_one()
    history = training.fit(second, epochs, checkpoint=file, resume=True)
    assert len(history.rows) == epochs
    return second
