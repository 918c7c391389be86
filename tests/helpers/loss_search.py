"""A small convex two-level problem for methods that search for a loss, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.meta_methods import doubled
from needsaug_lite import data
from needsaug_lite.data import Batch, Splits
from needsaug_lite.methods.autobalance import AutoBalance
from needsaug_lite.models import Classifier
from needsaug_lite.training import Optimisation

DECAY, RATE, PIXELS = 0.05, 0.4, 4


class Untouchable:
    """A part of the data that no method may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} of a part that isn't for training was read")


def only_train(splits: Splits) -> Splits:
    """The same training images; whoever looks at another part is caught."""
    away: Any = Untouchable()
    return replace(splits, val=away, meta=away, test=away)


def blobs(attributes: int = 1, sizes: Sequence[int] = (30, 15, 8)) -> Splits:
    """Overlapping clouds of 2 x 2 pixels; groups label * A + attribute for A > 1."""
    draw = data.generator(3)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centres = 128 + 40 * torch.randn(len(sizes), PIXELS, generator=draw)
    side = (torch.rand(len(labels), generator=draw) < 0.3).long() % attributes
    pixels = centres[labels] + 40 * torch.randn(len(labels), PIXELS, generator=draw)
    pixels += 25 * side[:, None] * torch.tensor([1.0, -1.0, 0.0, 1.0])
    images = data.InMemory(pixels.clamp(0, 255).to(torch.uint8).view(-1, 1, 2, 2))
    groups = labels * attributes + side if attributes > 1 else None
    train = data.Examples(images, labels, groups)
    away: Any = Untouchable()
    names = tuple(f"class {number}" for number in range(len(sizes)))
    return Splits(train, away, away, away, names)


def convex(
    kind: type[AutoBalance] = AutoBalance, *, attributes: int = 1, **settings: Any
) -> Any:
    """A linear model on the clouds, α away from where it starts, all in float64."""
    splits = blobs(attributes)
    torch.manual_seed(0)
    model = Classifier(nn.Flatten(), PIXELS, nn.Linear(PIXELS, splits.num_classes))
    optimisation = Optimisation(
        lr=RATE, momentum=0.0, weight_decay=DECAY, batch_size=60, warmup=0.0
    )
    settings.setdefault("grouped", attributes > 1)
    method = kind(
        model, splits, validation_share=0.4, optimisation=optimisation, **settings
    )
    model.double()
    space = method.space
    for name in ("searching", "interpolating", "log_prior", "additive", "class_weight"):
        table = getattr(space, name)
        setattr(space, name, None if table is None else table.double())
    draw = data.generator(11)
    for value in method.hparams.values():
        noise = torch.randn(value.shape, generator=draw, dtype=torch.float64)
        value.data = value.data.double() + 0.4 * noise
    method.alpha = space.detached()
    return method


def batches_of(method: AutoBalance) -> tuple[Batch, Batch]:
    """All images of the larger part, and a stratified batch of the smaller one."""
    (whole,) = method.search_batches.epoch(0)
    return doubled(whole), doubled(next(method.strata.epoch(0)))


def tables(
    method: AutoBalance, hparams: Mapping[str, Tensor], initial: str, cluster: int
) -> tuple[Tensor, Tensor, Tensor]:
    """w, l and Δ of every class and attribute by the definitions, shape (C, A)."""
    counts = method.cells.counts(method.batches.examples).double()
    classes, attributes = counts.shape
    prior = counts / counts.sum(0)
    w, shift = torch.ones_like(counts), torch.zeros_like(counts)
    factor = torch.ones_like(counts)
    if initial == "balanced_ce":
        w = counts.sum() / (counts * classes * attributes)
    if initial == "la":
        shift = prior.log()
        w = (counts.sum() / (attributes * counts.sum(0))).expand_as(counts)
    # The classes of the clouds are in the order of their sizes.
    member = torch.arange(classes) // cluster
    if "tau" in hparams:
        shift = hparams["tau"] * prior.log()
    if "additive" in hparams:
        shift = hparams["additive"][member]
    if "multiplicative" in hparams:
        factor = 1 / (1 + torch.exp(-hparams["multiplicative"][member]))
    return w, shift, factor


def train_loss(
    theta: Tensor, images: Tensor, batch: Batch, found: Sequence[Tensor]
) -> Tensor:
    """Eq. 4.2 sample by sample plus weight decay; θ = (weights, biases) in a row."""
    w, shift, factor = found
    classes, attributes = w.shape
    weight = theta[: classes * PIXELS].view(classes, PIXELS)
    logits = images.flatten(1) @ weight.T + theta[classes * PIXELS :]
    total = torch.zeros((), dtype=theta.dtype)
    for i, label in enumerate(batch.labels.tolist()):
        side = 0 if batch.groups is None else int(batch.groups[i]) % attributes
        z = factor[:, side] * logits[i] + shift[:, side]
        total = total - w[label, side] * (z[label] - z.logsumexp(0))
    return total / len(batch) + 0.5 * DECAY * theta.square().sum()


def fair_loss(
    theta: Tensor, batch: Batch, shares: Tensor, goal: str, fairness: float
) -> Tensor:
    """The blend from the means of the cells, one after the other."""
    classes, attributes = shares.shape
    weight = theta[: classes * PIXELS].view(classes, PIXELS)
    logits = batch.images.flatten(1) @ weight.T + theta[classes * PIXELS :]
    each = logits.logsumexp(1) - logits[torch.arange(len(batch)), batch.labels]
    side = torch.zeros_like(batch.labels)
    if batch.groups is not None:
        side = batch.groups % attributes
    risk = torch.stack(
        [
            torch.stack(
                [
                    each[(batch.labels == k) & (side == j)].mean()
                    for j in range(attributes)
                ]
            )
            for k in range(classes)
        ]
    )
    target = risk.mean()
    if goal == "deo":
        target = (risk[:, 0] - risk[:, 1]).abs().sum()
    plain = (shares / shares.sum() * risk).sum()
    return (1 - fairness) * plain + fairness * target


def minimiser(
    images: Tensor, batch: Batch, found: Sequence[Tensor], theta: Tensor | None = None
) -> Tensor:
    """argmin_θ of the training loss by Newton's method with halved steps."""
    size = found[0].shape[0] * (PIXELS + 1)
    theta = torch.zeros(size, dtype=torch.float64) if theta is None else theta

    def loss(point: Tensor) -> Tensor:
        return train_loss(point, images, batch, found)

    for _ in range(40):
        slope = torch.func.grad(loss)(theta)
        if slope.norm() < 1e-13:
            break
        step = torch.linalg.solve(torch.func.hessian(loss)(theta), slope)
        size_ = 1.0
        while size_ > 1e-6 and loss(theta - size_ * step) > loss(theta) + 1e-12:
            size_ /= 2
        theta = theta - size_ * step
    assert torch.func.grad(loss)(theta).norm() < 1e-11
    return theta.detach()


def put(method: AutoBalance, theta: Tensor) -> None:
    """Hand θ to the model."""
    weight, bias = method.model.parameters()
    with torch.no_grad():
        weight.copy_(theta[: weight.numel()].view_as(weight))
        bias.copy_(theta[weight.numel() :])


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}
        return func(*args, **(kwargs or {}))
