"""A discriminator of cells sees what a classifier sees."""

from __future__ import annotations

from typing import Any

import torch
from torch.testing import assert_close

from needsaug_lite import models
from needsaug_lite.data import Normalisation
from needsaug_lite.models.cell_discriminator import CellDiscriminator

NORMAL = Normalisation((0.3,), (0.2,))


def judge() -> tuple[CellDiscriminator, Any]:
    torch.manual_seed(0)
    made = models.build("supernet", (1, 8, 8), 3, width=4, cells=3, nodes=1)
    body: Any = made.backbone
    return CellDiscriminator(body, 3, NORMAL.from_unit).double().eval(), body


def test_its_features_are_those_of_the_same_image_in_a_classifier() -> None:
    """Images come in [-1, 1], and a classifier takes normalised ones of [0, 1]."""
    one, body = judge()
    unit = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    expected = body((unit - 0.3) / 0.2)
    assert_close(one.features(2 * unit - 1), expected, rtol=1e-5, atol=1e-6)


def test_a_score_is_linear_in_the_features_with_a_vector_for_each_class() -> None:
    """D(x, y) = wᵀh(x) + b + v_yᵀh(x)."""
    one, _ = judge()
    images = 2 * torch.rand(6, 1, 8, 8, dtype=torch.float64) - 1
    labels = torch.arange(6) % 3
    found = one.features(images)
    w, b, v = one.head.weight[0], one.head.bias, one.projection.weight
    expected = found @ w + b + (found * v[labels]).sum(1)
    assert_close(one(images, labels), expected, rtol=1e-12, atol=1e-12)
