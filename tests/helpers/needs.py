"""Methods with a budget and a small GAN, on the digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from helpers.meta_methods import load
from needsaug_lite import models
from needsaug_lite.data import Splits
from needsaug_lite.methods.generation.adversarial import BigGAN
from needsaug_lite.training import Optimisation

EPOCHS = 3


def small(**options: float) -> Splits:
    """Ten classes of 24 to 6 images, and six held-out ones of each."""
    given: dict[str, Any] = {"n_max": 24, "imbalance": 4, "meta_per_class": 6}
    return load(**{**given, **options}).without_true_labels()


def gan(splits: Splits, kind: Any = BigGAN, *, seed: int = 0, **settings: Any) -> Any:
    """A GAN that nobody has trained; its class vectors have the shape (10, 8)."""
    torch.manual_seed(seed)
    given = {"width": 8, "latent_dim": 6, "batch_size": 16, **settings}
    return kind(splits, seed=seed, **given)


def make(
    kind: Callable[..., Any],
    splits: Splits | None = None,
    *,
    seed: int = 0,
    source: Any = None,
    optimisation: Any = None,
    **settings: Any,
) -> Any:
    """A method with eight features, prepared for `EPOCHS` epochs."""
    splits = splits or small()
    if getattr(kind, "needs_adversary", False):
        settings["gan"] = source or gan(splits)
    else:
        settings["generator"] = (source or gan(splits)).generator
    torch.manual_seed(seed)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    rates = {"lr": 0.05, "batch_size": 32, "warmup": 0, **(optimisation or {})}
    method = kind(
        model, splits, optimisation=Optimisation(**rates), seed=seed, **settings
    )
    method.stages(EPOCHS)
    return method


def steps(method: Any, count: int, epoch: int = 0) -> list[Any]:
    """The first steps of an epoch, and what they log."""
    method.begin_epoch(epoch)
    batches = method.batches.epoch(epoch)
    return [method.step(next(batches)) for _ in range(count)]


def weights(module: Any) -> dict[str, Tensor]:
    """Copies of the parameters, without buffers."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether all are equal bit for bit."""
    return one.keys() == other.keys() and all(t.equal(other[n]) for n, t in one.items())
