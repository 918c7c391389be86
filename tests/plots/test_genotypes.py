"""Drawn genotypes name every choice once, and fit on their figure."""

from __future__ import annotations

import pytest
import torch
from matplotlib import pyplot

from needsaug_lite.models import Space
from needsaug_lite.models.cell_operations import OPERATIONS
from needsaug_lite.models.genotype import random_genotype
from needsaug_lite.plots.genotypes import SHORT, draw


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_every_choice_stands_at_its_node_and_input(nodes: int) -> None:
    genotype = random_genotype(Space(nodes), torch.Generator().manual_seed(0))
    figure = draw(genotype)
    for axes, cell in zip(figure.axes, (genotype.normal, genotype.reduce), strict=True):
        shown = [
            (text.get_text(), *text.get_position())
            for text in axes.texts
            if text.get_text() in SHORT.values()
        ]
        wanted = [
            (SHORT[op], source, place // 2) for place, (op, source) in enumerate(cell)
        ]
        assert shown == wanted
        names = {t.get_text() for t in axes.texts} - {"", *SHORT.values()}
        assert names == {"$c_{k-2}$", "$c_{k-1}$", *map(str, range(nodes))}
    pyplot.close(figure)


def test_no_text_covers_another() -> None:
    figure = draw(random_genotype(Space(4), torch.Generator().manual_seed(1)))
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [t.get_window_extent() for t in axes.texts if t.get_text()]
        pairs = [(a, b) for n, a in enumerate(boxes) for b in boxes[:n]]
        assert not any(a.overlaps(b) for a, b in pairs)
        assert all(figure.bbox.contains(*box.min) for box in boxes)
        assert all(figure.bbox.contains(*box.max) for box in boxes)
    pyplot.close(figure)


def test_every_operation_has_a_short_name() -> None:
    assert set(SHORT) == set(OPERATIONS) - {"none"}
    assert len(set(SHORT.values())) == len(SHORT)
