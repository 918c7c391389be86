"""Methods beside each other: class by class, as intervals, and while they train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from needsaug_lite.experiments.comparisons import Interval
from needsaug_lite.plots import style

# Narrow enough that the text stays readable on a phone.
WIDTH = 5.2
PerClass = Sequence[Sequence[float]]
Rows = Sequence[Mapping[str, Any]]


def per_class_accuracy(accuracies: Mapping[str, PerClass], counts: PerClass) -> Figure:
    """Accuracy of every class, largest class on the left, one line per method.

    Args:
        accuracies: per method, one list of C accuracies in [0, 1] per seed; the
            line is their mean and the bar reaches from the lowest to the highest.
        counts: training images per class, one list of C numbers per seed; classes
            are put in order of size within each seed.

    Returns:
        One panel, accuracy in percent.

    Raises:
        ValueError: if a method has another number of seeds or classes than `counts`.
    """
    sizes = np.asarray(counts)
    # Stable, so that classes of one size keep their order.
    order = np.argsort(-sizes, axis=1, kind="stable")
    images = np.take_along_axis(sizes, order, axis=1).mean(0)
    middle = np.arange(len(images))
    with style.look():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 3.6))
        looks = zip(_offsets(len(accuracies)), _looks(), strict=False)
        for (name, values), (offset, (colour, marker, line)) in zip(
            accuracies.items(), looks, strict=False
        ):
            percent = 100 * np.asarray(values, dtype=float)
            if percent.shape != sizes.shape:
                raise ValueError(
                    f"{name} has accuracies of shape {percent.shape}, the counts have "
                    f"{sizes.shape}: give one list per seed, one number per class"
                )
            ordered = np.take_along_axis(percent, order, axis=1)
            mean = ordered.mean(0)
            span = np.stack([mean - ordered.min(0), ordered.max(0) - mean])
            axes.errorbar(
                middle + offset, mean, span, color=colour, marker=marker, ls=line,
                label=name, markersize=5, linewidth=1.4, elinewidth=1,
            )  # fmt: skip
        axes.set(
            xlabel="training images of the class",
            ylabel="accuracy on the class, %",
            xticks=_some(middle),
            xticklabels=[f"{images[place]:.0f}" for place in _some(middle)],
        )
        _legend_above(figure, len(accuracies))
    return figure


def method_intervals(
    intervals: Mapping[str, Interval],
    label: str,
    *,
    reference: float | None = None,
    published: Mapping[str, float] | None = None,
    published_label: str = "published",
    scale: float = 100.0,
) -> Figure:
    """Mean and 95% interval of every method, one below the other.

    Args:
        intervals: by the method's name, in order from top to bottom.
        label: of the horizontal axis.
        reference: where a dashed line is drawn, e.g. 0 for differences.
        published: numbers of the papers by the same names, drawn hollow.
        published_label: what the legend calls them.
        scale: what the numbers are multiplied with, 100 for percent.

    Returns:
        One panel.
    """
    printed = published or {}
    with style.look():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 1.4 + 0.36 * len(intervals)))
        for row, (name, spread) in enumerate(intervals.items()):
            half = np.nan_to_num(spread.high - spread.mean)
            axes.errorbar(
                scale * spread.mean, row, xerr=scale * half, fmt="o",
                color=style.BLUE, capsize=3, label="measured here, 95%",
            )  # fmt: skip
            if name in printed:
                axes.plot(
                    scale * printed[name], row, "D", markerfacecolor="none",
                    color=style.RED, label=published_label,
                )  # fmt: skip
        if reference is not None:
            axes.axvline(scale * reference, color=style.BLACK, ls="--", lw=1)
        axes.set(xlabel=label, ylim=(len(intervals) - 0.4, -0.6))
        axes.set_yticks(range(len(intervals)), list(intervals))
        axes.grid(visible=False, axis="y")
        if printed:
            handles, names = axes.get_legend_handles_labels()
            unique = dict(zip(names, handles, strict=True))
            figure.legend(
                unique.values(), unique.keys(), loc="outside upper center", ncols=2
            )
    return figure


def training_curves(histories: Mapping[str, Rows]) -> Figure:
    """Mean loss and accuracy of every epoch on the training images.

    Args:
        histories: by the method's name, the rows of `training.History` or of a
            record: dicts with "epoch", "loss" and perhaps "accuracy".

    Returns:
        Loss (logarithmic) above, accuracy in percent below; the lower panel is left
        out where no method logs an accuracy.
    """
    columns = [("loss", "training loss, nats", 1.0), ("accuracy", "accuracy, %", 100.0)]
    logged = [
        column
        for column in columns
        if any(column[0] in row for rows in histories.values() for row in rows)
    ]
    with style.look():
        figure, panels = pyplot.subplots(
            len(logged), sharex=True, squeeze=False, figsize=(WIDTH, 2.3 * len(logged))
        )
        for axes, (column, label, scale) in zip(panels[:, 0], logged, strict=True):
            for (name, rows), (colour, marker, line) in zip(
                histories.items(), _looks(), strict=False
            ):
                seen = [row for row in rows if column in row]
                axes.plot(
                    [row["epoch"] + 1 for row in seen],
                    [scale * row[column] for row in seen],
                    color=colour, marker=marker, ls=line, label=name,
                    markevery=max(1, len(seen) // 8), markersize=4, linewidth=1.4,
                )  # fmt: skip
            axes.set_ylabel(label)
        panels[0, 0].set_yscale("log")
        panels[-1, 0].set_xlabel("epoch")
        _legend_above(figure, len(histories))
    return figure


def _looks() -> Any:
    """Colour, marker and line, changing together."""
    return zip(
        cycle(style.PALETTE), cycle(style.MARKERS), cycle(["-", "--", "-.", ":"]),
        strict=False,
    )  # fmt: skip


def _offsets(count: int) -> list[float]:
    """Small shifts, so that bars of several methods don't hide each other."""
    return [0.09 * (place - (count - 1) / 2) for place in range(count)]


def _some(places: Any, at_most: int = 12) -> Any:
    """Every place, or so many that their labels don't touch."""
    return places[:: -(-len(places) // at_most)]


def _legend_above(figure: Figure, count: int) -> None:
    handles, names = figure.axes[0].get_legend_handles_labels()
    columns = 2 if count == 4 else min(count, 3)
    figure.legend(
        handles, names, loc="outside upper center", ncols=columns, fontsize=10
    )
