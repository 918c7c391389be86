"""Which classes of a data set need more images, how many, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
        low, high: 95% bootstrap interval of the need, shape (C,).
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
        options = {"temperature": temperature, "floor": floor}
        try:
            need = allocation.class_allocation(means, **options)
        except ValueError as error:
            raise UserError(str(error)) from error
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
) -> pd.DataFrame:
    """Held-out loss and error of every class when less of the data is learned from.

    Eq. 3 says which class is worst off, not how much more data would help it. The
    slope of this curve does, as far as it can be extrapolated.

    Returns:
        One line per class and fraction: class, fraction, images, loss, error.
    """
    if not fractions or min(fractions) <= 0 or max(fractions) > 1:
        raise UserError("fractions of a learning curve lie above 0 and at most at 1")
    lines: list[dict[str, Any]] = []
    learned = splits.class_counts.cpu() * (folds - 1) / folds
    for fraction in sorted(fractions):
        predicted = cross_validated(
            splits, spec, folds=folds, fraction=fraction, device=device
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


def read_predictions(file: Path) -> tuple[Predictions, tuple[str, ...]]:
    """Predictions from a CSV with a column `label` and one column `p:CLASS` a class.

    This is what `needsaug predict` writes for a folder of class folders; any other
    model may have made it.

    Raises:
        UserError: if a column is missing, a label is unknown, or the probabilities
            of a line are no probabilities.
    """
    try:
        frame = pd.read_csv(file, dtype={"label": str})
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as CSV: {error}") from error
    columns = [name for name in frame.columns if name.startswith("p:")]
    if "label" not in frame or len(columns) < 2:
        raise UserError(
            f"{file} needs a column `label` and a column `p:CLASS` for each of at "
            f"least two classes; it has {', '.join(frame.columns)}"
        )
    names = tuple(name.removeprefix("p:") for name in columns)
    unknown = sorted(set(frame["label"].astype(str)) - set(names))
    if unknown:
        raise UserError(
            f"{file}: no column p:{unknown[0]} for the label {unknown[0]!r}; the "
            f"classes are {', '.join(names)}"
        )
    shares = torch.from_numpy(frame[columns].to_numpy(dtype=np.float64, copy=True))
    off = (
        ((shares.sum(1) - 1).abs() > 1e-3) | (shares < 0).any(1) | shares.isnan().any(1)
    )
    if bool(off.any()):
        line = int(off.nonzero()[0]) + 2
        raise UserError(f"{file}, line {line}: the p: columns don't add up to 1")
    labels = torch.tensor([names.index(label) for label in frame["label"]])
    # A probability of 0 for the true class would make the loss infinite.
    return Predictions(shares.clamp(min=1e-12).log().float(), labels), names
