"""Predictions whose errors depend on the attribute."""

from __future__ import annotations

import pytest
import torch

from needsaug_lite.metrics import Predictions


@pytest.fixture
def grouped_predictions() -> Predictions:
    """Four classes; how often they are right depends on the attribute."""
    count, attributes = 600, 3
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(count, 4, generator=draw)
    labels = torch.randint(4, (count,), generator=draw)
    attribute = torch.randint(attributes, (count,), generator=draw)
    logits[torch.arange(count), labels] += 2.0 - 0.9 * attribute
    return Predictions(logits, labels, labels * attributes + attribute)
