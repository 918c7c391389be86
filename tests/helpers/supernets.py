"""Searches of the smallest cells there are, on the digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from helpers.needs import gan, small
from needsaug_lite import models, training
from needsaug_lite.data import Batch, Splits
from needsaug_lite.methods.search.settings import EvaluationSettings, SearchSettings
from needsaug_lite.models import Classifier, unrecorded
from needsaug_lite.models.genotype import Genotype
from needsaug_lite.training import Optimisation

OPERATIONS = ("none", "skip_connect", "avg_pool_3x3", "dil_conv_3x3")
# Three epochs: one of warm-up, and two in which A learns.
SEARCH = SearchSettings(length=1.0, warm_up=0.3, weight_decay=0.01)
EVALUATION = EvaluationSettings(auxiliary=0.0)
EPOCHS = 3
CELLS = Genotype(
    (("skip_connect", 0), ("dil_conv_3x3", 1)),
    (("avg_pool_3x3", 0), ("dil_conv_3x3", 1)),
)
Params = Mapping[str, Tensor]


def supernet(splits: Splits, seed: int = 0, **options: Any) -> Classifier:
    """Three cells of one node, with α and β far from uniform."""
    torch.manual_seed(seed)
    given = {"width": 4, "cells": 3, "nodes": 1, "partial": 2, "operations": OPERATIONS}
    found = models.build("supernet", splits.image_shape, 10, **{**given, **options})
    body: Any = found.backbone
    with torch.no_grad():
        for value in body.architecture.parameters():
            value.normal_(0, 0.5)
    return found


def search(
    kind: Any,
    splits: Splits | None = None,
    *,
    seed: int = 0,
    source: Any = None,
    epochs: int = EPOCHS,
    model: Mapping[str, Any] | None = None,
    optimisation: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A search, prepared for a number of epochs."""
    splits = splits or small()
    if getattr(kind, "needs_adversary", False):
        settings["gan"] = source or gan(splits)
    if getattr(kind, "needs_generator", False):
        settings["generator"] = (source or gan(splits)).generator
    rates = {"lr": 0.05, "batch_size": 32, "warmup": 0.0, **(optimisation or {})}
    method = kind(
        supernet(splits, seed, **(model or {})),
        splits,
        optimisation=Optimisation(**rates),
        seed=seed,
        **{"search": SEARCH, "evaluation": EVALUATION, **settings},
    )
    method.stages(epochs)
    return method


def begin(method: Any, epoch: int = 0) -> list[Batch]:
    """Begin an epoch of the search; its batches."""
    method.begin_search_epoch(epoch)
    return list(method.searcher.batches.epoch(epoch))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers."""
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def leaves(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters, leaves of a graph."""
    named = module.named_parameters()
    return {n: p.detach().clone().requires_grad_() for n, p in named}


def scores(model: nn.Module, params: Params, images: Tensor) -> Tensor:
    """Logits in training mode under given weights; the model stays as it is."""
    model.train()
    with unrecorded(model):
        found: Tensor = functional_call(model, dict(params), (images,))
    return found


def stepped(loss: Tensor, params: Params, lr: float) -> dict[str, Tensor]:
    """One plain step, with its graph."""
    slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    pairs = zip(params.items(), slopes, strict=True)
    return {name: value - lr * slope for (name, value), slope in pairs}


def halves(params: Params) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights, and A, by the names of the classifier."""
    start = "backbone.architecture."
    part = {n: v for n, v in params.items() if n.startswith(start)}
    return {n: v for n, v in params.items() if n not in part}, part


def penalty(params: Params, weight: float) -> Tensor:
    """What weight decay adds to a loss."""
    squares = torch.stack([p.square().sum() for p in params.values()])
    return weight / 2 * squares.sum()


def doubled(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.double())


def flat(params: Params) -> Tensor:
    return torch.cat([value.reshape(-1) for value in params.values()])


def error(found: Params, truth: Params) -> float:
    """Relative, of tensors in the same order."""
    return float((flat(found) - flat(truth)).norm() / flat(truth).norm())


def held(optimiser: Any) -> set[int]:
    """What an optimiser moves."""
    return {id(p) for group in optimiser.param_groups for p in group["params"]}


class Stopped(Exception):  # noqa: N818
    pass


def killed(make: Callable[[], Any], epochs: int, after: int, file: Path) -> Any:
    """A run killed in epoch `after` of all its stages, and resumed by a new object."""

    def stop(epoch: int, method: training.Method) -> dict[str, float]:
        if epoch == after:
            raise Stopped
        return {}

    with pytest.raises(Stopped):
        training.fit(make(), epochs, checkpoint=file, on_epoch=stop)
    second = make()
    training.fit(second, epochs, checkpoint=file, resume=True)
    return second
