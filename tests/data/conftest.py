"""Small data sets whose pixels say which image they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from needsaug_lite.data import Examples, InMemory, Splits


def numbered(labels: Tensor, first: int = 0) -> Examples:
    """Images of shape (1, 1, 3) whose bytes spell first, first + 1, ..."""
    number = torch.arange(first, first + len(labels))
    digits = torch.stack([number // 65536, number // 256 % 256, number % 256], 1)
    return Examples(InMemory(digits.to(torch.uint8).view(-1, 1, 1, 3)), labels)


def numbers_of(examples: Examples) -> Tensor:
    """The numbers that `numbered` wrote, shape (N,)."""
    assert isinstance(examples.images, InMemory)
    weights = torch.tensor([65536, 256, 1])
    return (examples.images.pixels.view(-1, 3).long() * weights).sum(1)


@pytest.fixture
def make_splits() -> Callable[[Sequence[int]], Splits]:
    """Splits with the given training images per class, in a mixed order."""

    def make(counts: Sequence[int]) -> Splits:
        labels = torch.repeat_interleave(
            torch.arange(len(counts)), torch.tensor(list(counts))
        )
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
        labels = labels[order]
        few = torch.arange(len(counts))
        parts = [numbered(few, 1_000_000 + 100_000 * i) for i in range(3)]
        names = tuple(f"class {i}" for i in range(len(counts)))
        return Splits(numbered(labels), *parts, names)

    return make


@pytest.fixture
def numbers() -> Callable[[Examples], Tensor]:
    return numbers_of
