"""Bytes and floats of pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def as_floats(images: Tensor) -> Tensor:
    """Bytes as floats in [0, 1]."""
    return images.to(torch.float32) / 255


def as_bytes(images: Tensor) -> Tensor:
    """Floats in [0, 1] to the nearest byte."""
    return (255 * images).round().clamp(0, 255).to(torch.uint8)
