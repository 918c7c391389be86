"""Rank figures name every method and join those that aren't told apart."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot

from needsaug_lite.experiments.comparisons import Interval
from needsaug_lite.plots import ranks, style


def test_every_method_stands_at_its_rank() -> None:
    means = [1.2, 2.0, 2.8]
    figure = ranks.critical_difference(["A", "B", "C"], means, 1.5, [(0, 1), (1, 2)])
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["A", "B", "C"]
    assert axes.lines[0].get_xdata().tolist() == means
    upright = [line.get_ydata() for line in axes.lines if line.get_color() == style.RED]
    assert [(round(y[0] + 0.2), round(y[1] - 0.2)) for y in upright] == [(0, 1), (1, 2)]
    bar = axes.lines[-1].get_xdata()
    assert np.isclose(bar[1] - bar[0], 1.5)
    pyplot.close(figure)


def test_only_the_front_is_filled() -> None:
    scores = [Interval(s, s - 0.01, s + 0.01, 10) for s in (0.7, 0.8, 0.75)]
    figure = ranks.cost_front(["A", "B", "C"], [1.0, 2.0, 4.0], scores, "x", "y")
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    filled = [line.get_markerfacecolor() == style.BLUE for line in marks]
    assert filled == [True, True, False]
    assert figure.axes[0].get_xscale() == "log"
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["1  A", "2  B", "3  C"]
    pyplot.close(figure)
