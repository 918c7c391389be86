"""Two classifiers that share a part, A, which held-out images train."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from needsaug_lite import losses, metrics
from needsaug_lite.allocation import class_allocation, mean_per_class
from needsaug_lite.data import (
    Batch,
    Examples,
    Normalisation,
    Splits,
    StratifiedBatches,
    divide,
)
from needsaug_lite.errors import UserError
from needsaug_lite.methods.endless import Endless
from needsaug_lite.models import Classifier, features_with, unrecorded

# Held-out images of each class from which its need is estimated in a meta update.
NEEDS_PER_CLASS = 5
# Keeps Eq. 3 defined where a class, or every class, has no loss (errata N12).
SMALLEST_NEED = 1e-8

Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class Place:
    """What of a classifier is A; the rest of its parameters is W.

    Attributes:
        prefix: name of the module whose parameters A is.
        own_moments: held-out images are normalised by their own moments in batch norm,
            as in training; False: by the running ones, as in evaluation.
    """

    prefix: str
    own_moments: bool = False

    def part(self, model: Classifier) -> nn.Module:
        """The module that A is the parameters of."""
        return model.get_submodule(self.prefix)

    def weights(self, model: Classifier) -> dict[str, Tensor]:
        """W by the names of the classifier."""
        start = f"{self.prefix}."
        named = model.named_parameters()
        return {name: value for name, value in named if not name.startswith(start)}

    def whole(self, weights: Params, part: Params) -> dict[str, Tensor]:
        """W and a copy of A, both by the names of the classifier."""
        added = {f"{self.prefix}.{name}": value for name, value in part.items()}
        return {**weights, **added}


# "The shared weight parameters of the last two layers", needs_aware Sec. 4.1.
HEAD = Place("head")
# "The shared learnable architecture", Sec. 4.2; moments as in DARTS.
ARCHITECTURE = Place("backbone.architecture", own_moments=True)


def first_classifier(model: Classifier, *, tied: bool) -> Classifier:
    """W1 beside W2: the same head A, and an encoder of its own.

    Both encoders start from the same weights. Tied, W1 is the encoder of W2 and a
    linear layer after it, which starts as the identity.

    Args:
        model: W2 and A.
        tied: share the encoder too (errata N6).
    """
    if not tied:
        return Classifier(deepcopy(model.backbone), model.feature_dim, model.head)
    neck = nn.Linear(model.feature_dim, model.feature_dim)
    nn.init.eye_(neck.weight)
    nn.init.zeros_(neck.bias)
    place = next(model.parameters()).device
    body = nn.Sequential(model.backbone, neck.to(place))
    return Classifier(body, model.feature_dim, model.head)


def neck(first: Classifier) -> nn.Module:
    """The layer that W1 has for itself where the encoder is shared."""
    return cast(nn.Sequential, first.backbone)[1]


def head_weight(model: Classifier) -> nn.Parameter:
    """A without its offsets, shape (C, D)."""
    return cast(nn.Parameter, model.head.weight)


def encoder(model: Classifier) -> dict[str, Tensor]:
    """Weights of the encoder by name, as `features_with` takes them."""
    return {f"backbone.{n}": p for n, p in model.backbone.named_parameters()}


def copies(head: nn.Module, roles: tuple[str, ...]) -> dict[str, Tensor]:
    """A once for every place in which it appears: "role.name" -> a copy, no graph.

    The gradient by each copy is what flows through that place; their sum is dA.
    """
    return {
        f"{role}.{name}": value.detach().clone()
        for role in roles
        for name, value in head.named_parameters()
    }


def by_role(h: Params, role: str) -> dict[str, Tensor]:
    """The copy of A of one place, by the names of the head."""
    prefix = f"{role}."
    return {n.removeprefix(prefix): v for n, v in h.items() if n.startswith(prefix)}


def features(model: Classifier, params: Params, images: Tensor) -> Tensor:
    """Features (B, D) under given weights, batch norm as in training.

    Nothing is recorded: a tied W1 is judged by the moments that W2 has here.
    """
    model.train()
    with unrecorded(model):
        return features_with(model, params, images)


def logits(model: Classifier, params: Params, found: Tensor) -> Tensor:
    """Logits (B, C) of features under given weights of the head."""
    start = "head."
    chosen = {
        name.removeprefix(start): value
        for name, value in params.items()
        if name.startswith(start)
    }
    scores: Tensor = functional_call(model.head, chosen, (found,))
    return scores


def held_out_logits(
    model: Classifier, params: Params, images: Tensor, *, own_moments: bool
) -> Tensor:
    """Logits (B, C) of held-out images; see `Place` for batch norm."""
    if own_moments:
        return logits(model, params, features(model, params, images))
    model.eval()
    return logits(model, params, features_with(model, params, images))


def decay(params: Params, weight: float) -> Tensor:
    """½ weight ‖W‖², as SGD's weight decay."""
    return 0.5 * weight * torch.stack([p.square().sum() for p in params.values()]).sum()


class HeldOut:
    """D_val in two halves: one that needs are measured on, one that A learns from.

    Attributes:
        needs: images of the first half.
    """

    def __init__(
        self,
        splits: Splits,
        batch_size: int,
        normalisation: Normalisation,
        *,
        separate: bool,
        seed: int,
        steps: int,
    ) -> None:
        """Divide the meta images, class by class.

        Args:
            splits: `meta` is D_val.
            batch_size: most images of a batch for A.
            normalisation: that of the training images.
            separate: False takes all images for both.
            seed: of the division and of the order.
            steps: of an epoch.

        Raises:
            UserError: if a class has too few meta images.
        """
        counts = splits.meta.labels.bincount(minlength=splits.num_classes)
        least = 2 if separate else 1
        if len(splits.meta) == 0 or int(counts.min()) < least:
            raise UserError(
                f"needs are measured on held-out images, at least {least} of every "
                f"class, and class {int(counts.argmin())} has {int(counts.min())}; "
                "hold some out with meta_per_class, for example 10"
            )
        self.needs = learned = splits.meta
        if separate:
            labels = splits.meta.labels
            self.needs, learned = divide(splits.meta, 0.5, labels, seed=seed)
        per_class = min(
            NEEDS_PER_CLASS,
            int(self.needs.labels.bincount(minlength=splits.num_classes).min()),
        )
        strata = StratifiedBatches(
            self.needs,
            self.needs.labels,
            per_class * splits.num_classes,
            normalisation,
            seed=seed,
        )
        size = min(batch_size, len(learned))
        order = StratifiedBatches(
            learned, learned.labels, size, normalisation, seed=seed
        )
        self._needs = Endless(strata, steps)
        self._learned = Endless(order, steps)
        self.num_classes = splits.num_classes

    def begin_epoch(self, epoch: int) -> None:
        """Start the batches of an epoch."""
        self._needs.begin_epoch(epoch)
        self._learned.begin_epoch(epoch)

    def next_needs(self) -> Batch:
        """Equally many images of every class, in the order of the classes."""
        return next(self._needs)

    def next_learned(self) -> Batch:
        """Images for A, equally many of every class."""
        return next(self._learned)


def measured_shares(
    model: Classifier, examples: Examples, normalisation: Normalisation
) -> tuple[Tensor, Tensor]:
    """Shares p of the budget (C,): by validation losses (Eq. 3), and by error rates.

    Args:
        model: W1 and A.
        examples: held-out images of every class.
        normalisation: that of the training images.
    """
    found = metrics.predict_all(model, examples, normalisation)
    scores, labels = found.logits, found.labels
    each = losses.cross_entropy(scores, labels, reduction="none")
    wrong = (scores.argmax(1) != labels).to(each.dtype)
    needs = (mean_per_class(one, labels, scores.shape[1]) for one in (each, wrong))
    place = examples.labels.device
    by_loss, by_error = (class_allocation(n + SMALLEST_NEED).to(place) for n in needs)
    return by_loss, by_error


def class_losses(scores: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean cross-entropy of each class, of equally many images in class order, (C,)."""
    each = losses.cross_entropy(scores, labels, reduction="none")
    return each.view(num_classes, -1).mean(1)
