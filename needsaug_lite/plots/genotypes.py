"""The cells that an architecture search found, drawn as graphs."""

from __future__ import annotations

from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from needsaug_lite.models.genotype import Choice, Genotype
from needsaug_lite.plots import style

WIDTH = 5.2  # inches: a phone shows letters of 9 pixels
_ROW = 0.42  # inches of height for one node
SHORT = {
    "max_pool_3x3": "max 3",
    "avg_pool_3x3": "avg 3",
    "skip_connect": "skip",
    "sep_conv_3x3": "sep 3",
    "sep_conv_5x5": "sep 5",
    "dil_conv_3x3": "dil 3",
    "dil_conv_5x5": "dil 5",
}
_COLOURS = {
    "max": style.ORANGE,
    "avg": style.ORANGE,
    "skip": style.RED,
    "sep": style.BLUE,
    "dil": style.GREEN,
}
_LINE = "#999999"


def draw(genotype: Genotype) -> Figure:
    """Which two operations make each node, and on what?

    Args:
        genotype: of n nodes.

    Returns:
        The normal cell above the reduction cell. Each state is a column: the outputs
        of the two cells before, c_{k-2} and c_{k-1}, then nodes 0 to n - 1. In the row
        of a node, two boxes stand in the columns of its inputs and name the operation;
        lines lead from them to the node. The output of a cell is all of its nodes.
    """
    height = 2 * (0.95 + _ROW * genotype.nodes)
    with style.look():
        figure, panels = pyplot.subplots(2, 1, figsize=(WIDTH, height))
        for axes, cell, title in zip(
            panels,
            (genotype.normal, genotype.reduce),
            ("normal cell", "reduction cell"),
            strict=True,
        ):
            _cell(axes, cell)
            axes.set_title(title, fontsize=11, loc="left")
    return figure


def _cell(axes: Axes, cell: tuple[Choice, ...]) -> None:
    """One cell: time runs down, states from left to right."""
    nodes = len(cell) // 2
    last_use = {source: place // 2 for place, (_, source) in enumerate(cell)}
    for state, row in last_use.items():  # from where the state is made to its last use
        axes.plot(
            [state, state], [max(state - 2, -1), row], color=_LINE, lw=1, zorder=1
        )
    for place, (name, source) in enumerate(cell):
        row = place // 2
        axes.annotate(
            "",
            (row + 1.78, row),
            (source, row),
            arrowprops={"arrowstyle": "-|>", "color": _LINE, "lw": 1.2},
            zorder=1,
        )
        short = SHORT[name]
        colour = _COLOURS[short.split()[0]]
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": colour}
        middle: dict[str, Any] = {"ha": "center", "va": "center"}
        axes.text(source, row, short, **middle, fontsize=9.5, bbox=box, zorder=3)
    names = [(0, -1, "$c_{k-2}$"), (1, -1, "$c_{k-1}$")]
    names += [(node + 2, node, str(node)) for node in range(nodes)]
    for column, row, name in names:
        ring = {"boxstyle": "circle,pad=0.3", "facecolor": style.BLACK}
        fill: dict[str, Any] = {"color": "white", "bbox": ring} if column > 1 else {}
        axes.text(
            column, row, name, ha="center", va="center", fontsize=10, zorder=3, **fill
        )
    axes.set(xlim=(-0.5, nodes + 1.5), ylim=(nodes - 0.4, -1.5))
    axes.axis("off")
