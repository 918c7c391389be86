"""Figures about the needs of classes: shares, sizes, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from needsaug_lite.plots import style

# Wide enough for ten classes, narrow enough that a phone shows letters of 10 pixels.
WIDTH = 5.2
_ROW = 0.34  # inches of height for one class
_NAMED = 5  # lines of a learning curve that get a colour and a name
_DASHES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 3))]
_GREY = "#999999"


def needs_figure(table: pd.DataFrame) -> Figure:
    """How sure is each class's need, and is it what the class's size would give?

    Args:
        table: of `experiments.needs.NeedsReport.table()`: class, images, need, low,
            high; shares in [0, 1]. The first line is drawn at the top.

    Returns:
        Bars of the need with its interval, and a diamond at the share in proportion
        to 1/n.
    """
    rows = np.arange(len(table))
    need, low, high = (100 * table[c].to_numpy(float) for c in ("need", "low", "high"))
    by_size = 1 / table["images"].to_numpy(float)
    by_size *= 100 / by_size.sum()
    sizes = zip(table["class"], table["images"], strict=True)
    with style.look():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 1.4 + _ROW * len(table)))
        axes.barh(rows, need, color=style.SKY, height=0.66, label="need (Eq. 3)")
        bars = {"xerr": _reach(need, low, high), "label": "95% interval"}
        axes.errorbar(need, rows, fmt="none", ecolor=style.BLUE, capsize=3, **bars)
        axes.plot(by_size, rows, "D", color=style.RED, label="share by 1/n")
        axes.set_yticks(rows, [f"{name} (n={size:,})" for name, size in sizes])
        axes.invert_yaxis()
        axes.set(xlabel="share of the budget, %", xlim=(0, None))
        axes.grid(visible=False, axis="y")
        _legend_above(figure, axes, columns=3)
    return figure


def counts_and_accuracy(
    names: Sequence[str],
    counts: Sequence[float],
    accuracy: Sequence[float],
    interval: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """Does accuracy follow class size?

    Args:
        names: C class names.
        counts: training images per class.
        accuracy: per class, percent.
        interval: lower and upper end for every accuracy, percent; None draws none.

    Returns:
        One named point per class, sizes on a logarithmic axis.
    """
    with style.look():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 3.8))
        axes.plot(counts, accuracy, "o", color=style.BLUE)
        low, high = interval or (accuracy, accuracy)
        reach = _reach(accuracy, low, high)
        axes.errorbar(counts, accuracy, reach, fmt="none", ecolor=style.BLUE, capsize=3)
        middle: dict[str, Any] = {"textcoords": "offset points", "ha": "center"}
        for number, name in enumerate(names):  # beyond the interval, by turns
            end, beside = (low, (0, -15)) if number % 2 else (high, (0, 6))
            point = counts[number], end[number]
            axes.annotate(name, point, beside, fontsize=9, **middle)
        axes.margins(0.12)
        _log_counts(axes)
        axes.set(xlabel="training images of the class", ylabel="accuracy, %")
    return figure


def shares_figure(
    names: Sequence[str], shares: Mapping[str, Sequence[float]], ylabel: str
) -> Figure:
    """How do several rules divide one budget?

    Args:
        names: C class names, in the order of the axis.
        shares: for every rule its C shares in [0, 1]; at most seven rules.
        ylabel: name of the axis; the values are drawn in percent.

    Returns:
        One line with its own marker, dashes and colour per rule.
    """
    with style.look():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 3.8))
        for number, (rule, values) in enumerate(shares.items()):
            percent = 100 * np.asarray(values, dtype=float)
            axes.plot(range(len(names)), percent, label=rule, **_mark(number))
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set(ylabel=ylabel, ylim=(0, None))
        axes.grid(visible=False, axis="x")
        _legend_above(figure, axes, columns=2)
    return figure


def learning_curve_figure(curve: pd.DataFrame, value: str = "loss") -> Figure:
    """How fast does each class's held-out loss fall as images are added?

    Args:
        curve: of `experiments.needs.learning_curve`: class, images, loss, error.
        value: column to draw, "loss" or "error".

    Returns:
        One line per class over the images learned from; the classes with the
        highest last value have a colour, a marker and a name, the others are grey.
    """
    curve = curve.sort_values("images")
    last = curve.groupby("class")[value].last().sort_values(ascending=False)
    lines = dict(list(curve.groupby("class")))
    with style.look():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 4.0))
        for number, name in enumerate(last.index):
            own, named = lines[name], number < _NAMED
            label = str(name) if named else "others" if number == _NAMED else None
            how = _mark(number) if named else {"color": _GREY, "linewidth": 1}
            axes.plot(own["images"], own[value], label=label, **how)
        _log_counts(axes)
        unit = "loss, nats" if value == "loss" else "error, share"
        axes.set(xlabel="images of the class learned from", ylabel=f"held-out {unit}")
        axes.set_ylim(0, None)
        _legend_above(figure, axes, columns=3)
    return figure


def effects_figure(
    names: Sequence[str],
    effects: Sequence[float],
    interval: tuple[Sequence[float], Sequence[float]],
    xlabel: str,
) -> Figure:
    """Which classes do better or worse than their size says?

    Args:
        names: C class names; the highest effect is drawn at the top.
        effects: one number per class, in the unit of `xlabel`.
        interval: lower and upper end for every effect.
        xlabel: name of the axis, with its unit.
    """
    values = [np.asarray(v, dtype=float) for v in (effects, *interval)]
    order = np.argsort(-values[0])
    rows = np.arange(len(names))
    with style.look():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 1.0 + _ROW * len(names)))
        axes.axvline(0, color=style.BLACK, linewidth=1)
        middle, low, high = (v[order] for v in values)
        reach = _reach(middle, low, high)
        axes.errorbar(middle, rows, xerr=reach, fmt="o", color=style.BLUE, capsize=3)
        axes.set_yticks(rows, [names[i] for i in order])
        axes.invert_yaxis()
        axes.set(xlabel=xlabel)
    return figure


def _reach(middle: Any, low: Any, high: Any) -> Any:
    """Lengths for error bars; a percentile interval need not hold the estimate."""
    return np.clip([np.subtract(middle, low), np.subtract(high, middle)], 0, None)


def _mark(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line with this number."""
    colour, marker = style.PALETTE[number], style.MARKERS[number]
    dashes = _DASHES[number]
    return {"color": colour, "marker": marker, "ls": dashes, "markersize": 5}


def _legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    """A legend over the axes, where it hides no point and a phone shows it whole."""
    lines, names = axes.get_legend_handles_labels()
    options: dict[str, Any] = {"loc": "outside upper center", "fontsize": 9.5}
    figure.legend(lines, names, ncols=columns, **options)


def _log_counts(axes: Axes) -> None:
    """A logarithmic axis of counts with plain numbers: 1, 2, 5, 10, ..."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    round_ones = [m * 10.0**e for e in range(7) for m in (1, 2, 5)]
    steps = [step for step in round_ones if low <= step <= high]
    axes.set_xticks(steps if len(steps) <= 7 else steps[:: len(steps) // 4])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
