"""Two-level problems in float64 whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.bilevel import Smooth


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Small problems in float64; a second thread would only spin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture
def smooth() -> Smooth:
    return Smooth(torch.Generator().manual_seed(3))
