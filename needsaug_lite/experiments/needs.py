"""Which classes of a data set need more images, how many, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from needsaug_lite import allocation, metrics, training
from needsaug_lite.data import Batches, Splits, generator
from needsaug_lite.data.bias import take_per_class
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import runner
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.metrics import Predictions

By = Literal["loss", "error"]
COLUMNS = ("class", "images", "loss", "error", "need", "low", "high", "budget")
_BOOTSTRAP, _SUBSAMPLE = 201, 202


@dataclass(frozen=True)
class NeedsReport:
    """The needs of all classes.

    Attributes:
        class_names: C names.
        images: training images per class, shape (C,).
        losses: mean held-out cross-entropy per class, nats, shape (C,).
        errors: share of held-out images that are wrong, shape (C,).
        need: p(s = c) of needs_aware Eq. 3, shape (C,).
        low, high: 95% bootstrap interval of the need, shape (C,): other held-out
            images, the same networks. Another training may move a need further.
        budget: images to add per class, adding up to the whole budget, shape (C,).
        by: what the need was measured by.
    """

    class_names: tuple[str, ...]
    images: Tensor
    losses: Tensor
    errors: Tensor
    need: Tensor
    low: Tensor
    high: Tensor
    budget: Tensor
    by: By

    @classmethod
    def from_predictions(
        cls,
        predictions: Predictions,
        class_names: Sequence[str],
        counts: Tensor,
        *,
        budget: int,
        temperature: float = 1.0,
        floor: float = 0.0,
        by: By = "loss",
        repeats: int = 1000,
        seed: int = 0,
    ) -> NeedsReport:
        """Measure needs on predictions that no image of their own was trained on.

        Args:
            predictions: logits (or log-probabilities) of N held-out images.
            class_names: C names.
            counts: training images per class, shape (C,).
            budget: M, images to divide.
            temperature, floor: see `allocation.class_allocation`.
            by: "loss" as in Eq. 3, or "error".
            repeats: bootstrap samples.

        Raises:
            UserError: if a class has no held-out image.
        """
        labels, number = predictions.labels, len(class_names)
        losses = allocation.mean_per_class(predictions.losses, labels, number)
        errors = allocation.mean_per_class(predictions.errors, labels, number)
        values = predictions.losses if by == "loss" else predictions.errors
        means = losses if by == "loss" else errors
        check_options(number, budget, temperature, floor)
        options = {"temperature": temperature, "floor": floor}
        need = allocation.class_allocation(means, **options)
        samples = allocation.bootstrap_allocations(
            values,
            labels,
            number,
            repeats=repeats,
            draw=generator(seed, _BOOTSTRAP),
            **options,
        )
        low, high = samples.quantile(torch.tensor([0.025, 0.975]), dim=0)
        shares = allocation.split_budget(need, budget)
        names = tuple(class_names)
        return cls(names, counts.cpu(), losses, errors, need, low, high, shares, by)

    def table(self) -> pd.DataFrame:
        """One line per class, neediest first; columns as in `COLUMNS`."""
        columns = (
            self.class_names,
            self.images,
            self.losses,
            self.errors,
            self.need,
            self.low,
            self.high,
            self.budget,
        )
        plain = [c.tolist() if isinstance(c, Tensor) else list(c) for c in columns]
        frame = pd.DataFrame(dict(zip(COLUMNS, plain, strict=True)))
        return frame.sort_values("need", ascending=False, ignore_index=True)

    def to_json(self) -> str:
        """The table as JSON, with what the need was measured by."""
        lines = json.loads(self.table().to_json(orient="records"))
        content = {"by": self.by, "budget": int(self.budget.sum()), "classes": lines}
        return json.dumps(content, indent=1) + "\n"


def check_options(
    num_classes: int, budget: int, temperature: float, floor: float
) -> None:
    """Refuse impossible options before anything is trained.

    Raises:
        UserError: naming the option and what it may be.
    """
    if budget > 10**12:
        raise UserError(f"the budget is {budget} images; at most 10^12 are divided")
    try:
        shares = allocation.class_allocation(
            torch.ones(num_classes), temperature=temperature, floor=floor
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    allocation.split_budget(shares, budget)


def cross_validated(
    splits: Splits,
    spec: Spec,
    *,
    folds: int = 3,
    fraction: float = 1.0,
    device: str = "cpu",
    progress: bool | None = None,
) -> Predictions:
    """Predictions for every training image by a network that never saw it.

    The training part is divided into stratified folds; for each fold a network is
    trained on the others. The test part isn't touched.

    Args:
        splits: its `train` is used.
        spec: network, optimisation, method and length; its data are ignored.
        folds: each class needs at least this many images.
        fraction: share of every class's training images to learn from, for a
            learning curve; at least one image per class stays.

    Raises:
        UserError: if a class has fewer images than there are folds.
    """
    labels = splits.train.labels.cpu()
    smallest = int(splits.class_counts.min())
    if folds < 2 or folds > smallest:
        name = splits.class_names[int(splits.class_counts.argmin())]
        raise UserError(
            f"class {name!r} has {smallest} images and {folds} folds were asked for; "
            f"use at least 2 folds and at most as many as the smallest class has images"
        )
    dealer = StratifiedKFold(folds, shuffle=True, random_state=spec.seed)
    logits = torch.empty(len(labels), splits.num_classes)
    for fold, (learn, hold) in enumerate(dealer.split(np.zeros(len(labels)), labels)):
        index = torch.from_numpy(learn)
        if fraction < 1:
            index = _thinned(index, labels, splits.num_classes, fraction, spec, fold)
        part = replace(splits, train=splits.train.subset(index))
        ready = runner.prepare_with(part.to(device), spec)
        training.fit(ready.method, spec.epochs, progress=progress)
        held_out = splits.train.subset(torch.from_numpy(hold)).to(device)
        batches = Batches(held_out, 500, ready.normalisation, shuffle=False)
        predicted = metrics.predict(ready.method.model, batches.epoch(0))
        logits[torch.from_numpy(hold)] = predicted.logits
    return Predictions(logits, labels)


def _thinned(
    index: Tensor,
    labels: Tensor,
    num_classes: int,
    fraction: float,
    spec: Spec,
    fold: int,
) -> Tensor:
    own = labels[index]
    counts = torch.bincount(own, minlength=num_classes)
    wanted = (counts * fraction).round().long().clamp(min=1)
    draw = generator(spec.seed, _SUBSAMPLE, fold)
    chosen, _ = take_per_class(own, wanted.tolist(), num_classes, draw)
    return index[chosen]


def learning_curve(
    splits: Splits,
    spec: Spec,
    fractions: Sequence[float] = (0.25, 0.5, 1.0),
    *,
    folds: int = 3,
    device: str = "cpu",
    known: Predictions | None = None,
) -> pd.DataFrame:
    """Held-out loss and error of every class when less of the data is learned from.

    Eq. 3 says which class is worst off, not how much more data would help it. The
    slope of this curve does, as far as it can be extrapolated.

    Args:
        splits, spec, folds, device: see `cross_validated`.
        fractions: shares of the images to learn from, above 0 and at most 1; a
            smaller share gets more epochs, so that the number of steps stays.
        known: predictions of `cross_validated` with all images, if at hand.

    Returns:
        One line per class and fraction: class, fraction, images, loss, error.
    """
    if not fractions or min(fractions) <= 0 or max(fractions) > 1:
        raise UserError("fractions of a learning curve lie above 0 and at most at 1")
    lines: list[dict[str, Any]] = []
    learned = splits.class_counts.cpu() * (folds - 1) / folds
    for fraction in sorted(fractions):
        if fraction == 1 and known is not None:
            predicted = known
        else:
            # As many steps as with all images: the data differ, not the training.
            longer = spec.model_copy(update={"epochs": round(spec.epochs / fraction)})
            predicted = cross_validated(
                splits, longer, folds=folds, fraction=fraction, device=device
            )
        number = splits.num_classes
        losses = allocation.mean_per_class(predicted.losses, predicted.labels, number)
        errors = allocation.mean_per_class(predicted.errors, predicted.labels, number)
        for label, name in enumerate(splits.class_names):
            lines.append(
                {
                    "class": name,
                    "fraction": fraction,
                    "images": max(1, round(float(learned[label]) * fraction)),
                    "loss": float(losses[label]),
                    "error": float(errors[label]),
                }
            )
    return pd.DataFrame(lines)


def gain_per_doubling(curve: pd.DataFrame) -> pd.Series[float]:
    """Fall of the held-out loss, in nats, for twice the images, per class.

    The slope of a least-squares line of the loss over log2 of the images.
    """

    def slope(group: pd.DataFrame) -> float:
        doublings = np.log2(group["images"].to_numpy(dtype=float))
        if np.ptp(doublings) == 0:
            return float("nan")
        return -float(np.polyfit(doublings, group["loss"].to_numpy(), 1)[0])

    gains = {str(name): slope(group) for name, group in curve.groupby("class")}
    return pd.Series(gains, name="gain_per_doubling")
