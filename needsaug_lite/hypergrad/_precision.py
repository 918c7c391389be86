"""Finite differences need every bit: no half precision, no TF32, no autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._variables import Variables


def require_precision(weights: Variables) -> None:
    """Refuse parameters whose rounding would drown a difference."""
    for name in weights.free:
        dtype = weights.tensors[name].dtype
        if dtype not in (torch.float32, torch.float64):
            raise UserError(
                f"params[{name!r}] is {dtype}; a finite difference needs float32 or "
                "float64. Keep the parameters in float32, or use hypergrad.unrolled"
            )


@contextmanager
def full_precision(tensors: list[Tensor]) -> Iterator[None]:
    """Matrix products and convolutions without TF32 or bfloat16, and no autocast."""
    backends: Any = torch.backends  # its stubs lack some of these
    places = [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    ]
    before = [place.fp32_precision for place in places]
    changed = [
        (place, value)
        for place, value in zip(places, before, strict=True)
        if value not in ("none", "ieee")
    ]
    kinds = {tensor.device.type for tensor in tensors}
    try:
        for place, _ in changed:
            place.fp32_precision = "ieee"
        with _no_autocast(sorted(kinds)):
            yield
    finally:
        for place, value in changed:
            # What was inherited stays so: "none" reads as the value of the parent.
            place.fp32_precision = "none"
            if place.fp32_precision != value:
                place.fp32_precision = value


@contextmanager
def _no_autocast(kinds: list[str]) -> Iterator[None]:
    if not kinds:
        yield
        return
    with torch.autocast(kinds[0], enabled=False), _no_autocast(kinds[1:]):
        yield
