"""Mean ranks with the difference that tells them apart, and cost beside accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from needsaug_lite.experiments.comparisons import Interval
from needsaug_lite.experiments.pareto import front
from needsaug_lite.plots import style

# Narrow enough that the text stays readable on a phone.
WIDTH = 5.2
_ROW = 0.3  # inches of height for one method


def critical_difference(
    methods: Sequence[str],
    mean_ranks: Sequence[float],
    difference: float,
    joined: Sequence[tuple[int, int]],
) -> Figure:
    """Which methods rank alike?

    Args:
        methods: k names, best first; drawn from top to bottom.
        mean_ranks: k numbers between 1 and k, ascending.
        difference: drawn as a bar of its length.
        joined: first and last place of every group that isn't told apart, drawn as a
            vertical line beside its methods.

    Returns:
        One panel.
    """
    places = np.arange(len(methods))
    right = len(methods) + 0.4
    step = 0.05 * len(methods)
    with style.look():
        figure, axes = pyplot.subplots(figsize=(WIDTH, 1.5 + _ROW * len(methods)))
        axes.plot(mean_ranks, places, "o", color=style.BLUE, markersize=6)
        for number, (first, last) in enumerate(joined):
            axes.plot(
                [right + step * number] * 2, [first - 0.2, last + 0.2],
                color=style.RED, lw=3, solid_capstyle="butt",
            )  # fmt: skip
        top = -1.0
        axes.plot([1, 1 + difference], [top, top], color=style.BLACK, marker="|")
        axes.text(
            1 + difference + step, top, f"CD {difference:.2f}", va="center", fontsize=10
        )
        axes.set_yticks(places, list(methods))
        axes.set(
            xlabel="mean rank, 1 is best",
            xlim=(0.7, right + step * max(1, len(joined))),
            ylim=(len(methods) - 0.5, -1.6),
        )
        axes.set_xticks(range(1, len(methods) + 1, 1 if len(methods) < 9 else 2))
        axes.grid(visible=False, axis="y")
    return figure


def cost_front(
    methods: Sequence[str],
    costs: Sequence[float],
    scores: Sequence[Interval],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """What does a more expensive method buy?

    Args:
        methods: k names, numbered from 1 in the figure.
        costs: k positive numbers, on a logarithmic axis.
        scores: mean and interval, shares, drawn in percent.
        xlabel: name of the horizontal axis.
        ylabel: name of the vertical axis.

    Returns:
        A numbered point for each method; methods that no other one beats in both
        numbers are filled and joined by steps.
    """
    paid = np.asarray(costs, dtype=float)
    percent = 100 * np.array([score.mean for score in scores])
    half = 50 * np.array([score.high - score.low for score in scores])
    best = front(np.column_stack([paid, -percent]))
    with style.look():
        height = 3.4 + 0.19 * -(-len(methods) // 2)
        figure, axes = pyplot.subplots(figsize=(WIDTH, height))
        axes.errorbar(
            paid, percent, np.nan_to_num(half), fmt="none", ecolor="#999999", capsize=2
        )
        order = np.flatnonzero(best)[np.argsort(paid[best])]
        axes.step(paid[order], percent[order], where="post", color=style.BLUE, lw=1.2)
        for place, name in enumerate(methods):
            fill = style.BLUE if best[place] else "white"
            axes.plot(
                paid[place], percent[place], "o", markersize=13,
                markerfacecolor=fill, markeredgecolor=style.BLUE,
                label=f"{place + 1}  {name}",
            )  # fmt: skip
            axes.text(
                paid[place], percent[place], str(place + 1),
                ha="center", va="center_baseline", fontsize=8.5,
                color="white" if best[place] else style.BLACK,
            )  # fmt: skip
        _plain_log(axes)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside upper center", ncols=2, fontsize=9.5,
            handlelength=0, handletextpad=0, markerscale=0, columnspacing=1.5,
        )  # fmt: skip
    return figure


def _plain_log(axes: Axes) -> None:
    """A logarithmic axis with plain numbers: 1, 2, 5, 10, ..."""
    axes.set_xscale("log")
    axes.margins(0.08)
    low, high = axes.get_xlim()
    round_ones = [m * 10.0**e for e in range(-2, 5) for m in (1, 2, 5)]
    axes.set_xticks([step for step in round_ones if low <= step <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
