"""How generated images enter a step, and which generator fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le

from needsaug_lite.data import Splits, generator
from needsaug_lite.errors import UserError
from needsaug_lite.models import Generator


@dataclass(frozen=True)
class SyntheticSettings:
    """How many generated images there are in a step, and how much they count.

    Attributes:
        strength: λ, weight of their loss.
        batch_size: B_p, generated images in a step.
        operations: N of RandAugment, operations one after the other.
        magnitude: M of RandAugment, as a share of the largest.

    Source: mgr Sec. 4.1: λ from 0.1 to 1 by validation, B_p = 64; N and M aren't
    given, these are RandAugment's usual N = 2 and M = 10 of 30 (errata M9).
    """

    strength: Annotated[float, Ge(0)] = 1.0
    batch_size: Annotated[int, Ge(2)] = 64
    operations: Annotated[int, Ge(1)] = 2
    magnitude: Annotated[float, Ge(0), Le(1)] = 1 / 3


SYNTHETIC = SyntheticSettings()


def check_generator(source: Generator, splits: Splits) -> None:
    """Refuse a generator that doesn't fit the data.

    Raises:
        UserError: if it makes other classes, or images of another shape.
    """
    if source.conditional and source.num_classes != splits.num_classes:
        raise UserError(
            f"the generator makes {source.num_classes} classes, the data have "
            f"{splits.num_classes}; train one on these data"
        )
    device = splits.train.labels.device
    draw = generator(0)
    with torch.no_grad():
        one = source.eval().sample(
            source.noise(1, draw).to(device), source.labels(1, draw).to(device)
        )
    if one.shape[1:] != splits.image_shape:
        raise UserError(
            f"the generator makes images of shape {tuple(one.shape[1:])}, the data are "
            f"{splits.image_shape} (channels, height, width)"
        )
