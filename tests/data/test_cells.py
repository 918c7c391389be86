"""How group numbers are read as pairs of a class and an attribute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from needsaug_lite.data import Cells, Examples, InMemory, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.loss_design import LossDesign

SHAPES = [(2, 2), (2, 3), (3, 2), (4, 5), (10, 6)]


def part(labels: Tensor, groups: Tensor | None) -> Examples:
    pixels = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    return Examples(InMemory(pixels), labels, groups)


def splits_of(labels: Tensor, groups: Tensor | None, classes: int) -> Splits:
    train = part(labels, groups)
    names = tuple(f"class {k}" for k in range(classes))
    return Splits(train, train, train, train, names)


def pairs(classes: int, attributes: int) -> tuple[Tensor, Tensor]:
    """Classes and attributes in which cell (k, j) has 1 + k + 2 j images."""
    k, j = torch.meshgrid(
        torch.arange(classes), torch.arange(attributes), indexing="ij"
    )
    sizes = (1 + k + 2 * j).flatten()
    order = torch.randperm(int(sizes.sum()))
    return (
        k.flatten().repeat_interleave(sizes)[order],
        j.flatten().repeat_interleave(sizes)[order],
    )


@pytest.mark.parametrize(("classes", "attributes"), SHAPES)
@pytest.mark.parametrize("code", ["class first", "attribute first"])
def test_both_codes_give_the_same_cells(
    classes: int, attributes: int, code: str
) -> None:
    k, j = pairs(classes, attributes)
    groups = k * attributes + j if code == "class first" else j * classes + k
    splits = splits_of(k, groups, classes)
    cells = Cells.of(splits)
    assert cells.shape == (classes, attributes)
    assert torch.equal(cells.attribute(groups, k), j)
    assert torch.equal(cells.number(k, groups), k * attributes + j)
    counts = cells.counts(splits.train)
    sizes = 1 + torch.arange(classes)[:, None] + 2 * torch.arange(attributes)
    assert torch.equal(counts, sizes)


@pytest.mark.parametrize("groups", [None, torch.tensor([5, 0, 9, 9])])
def test_without_groups_a_cell_is_a_class(groups: Tensor | None) -> None:
    """Groups that aren't asked for may be in any code."""
    labels = torch.tensor([2, 0, 1, 2])
    splits = splits_of(labels, groups, 4)
    cells = Cells.of(splits, grouped=False)
    assert cells.shape == (4, 1)
    assert torch.equal(cells.number(labels, groups), labels)
    assert not cells.attribute(groups, labels).any()
    assert cells.counts(splits.train).tolist() == [[1], [1], [2], [0]]
    if groups is None:
        assert Cells.of(splits) == cells


def test_groups_that_are_classes_are_one_attribute() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    cells = Cells.of(splits_of(labels, labels, 3))
    assert cells.shape == (3, 1)
    assert torch.equal(cells.number(labels, labels), labels)


def test_other_codes_are_refused() -> None:
    k, j = pairs(3, 2)
    shuffled = torch.tensor([4, 1, 0, 5, 2, 3])[k * 2 + j]
    for groups in (shuffled, k * 2 + j + 1, j):
        with pytest.raises(UserError, match=r"label \* A \+ attribute"):
            Cells.of(splits_of(k, groups, 3))


@pytest.mark.parametrize(("classes", "attributes"), SHAPES[:3])
def test_what_fits_both_codes_leaves_cells_empty(classes: int, attributes: int) -> None:
    """Where the reading is a guess, a loss with parameters for cells refuses it."""
    numbers = torch.arange(classes * attributes)
    for chosen in range(1, 2 ** len(numbers)):
        groups = numbers[(chosen >> numbers) & 1 == 1]
        first, second = groups // attributes, groups % classes
        if not torch.equal(first, second):
            continue
        counts = Cells.of(splits_of(first, groups, classes)).counts(part(first, groups))
        assert int(counts.min()) == 0
        with pytest.raises(UserError, match="images of each"):
            LossDesign(counts)


def test_empty_cells_are_counted_as_zero() -> None:
    labels, groups = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 3])
    splits = splits_of(labels, groups, 2)
    assert Cells.of(splits).counts(splits.train).tolist() == [[1, 1], [0, 1]]
