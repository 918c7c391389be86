"""The last layer of a classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from needsaug_lite.errors import UserError


class CosineHead(nn.Module):
    """Scaled cosine between the features and one direction per class.

    f_c(h) = s * <h, w_c> / (||h|| ||w_c||)

    Args:
        feature_dim: D.
        num_classes: C.
        scale: s, at most which a logit can be.

    Source: the normalised layer of Cao et al. 2019, with the scale of its loss.
    """

    def __init__(self, feature_dim: int, num_classes: int, scale: float = 30.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        cosines = linear(normalize(features), normalize(self.weight))
        return self.scale * cosines


def two_layers(feature_dim: int, outputs: int) -> nn.Sequential:
    """Two fully connected layers with a rectifier between them, D wide.

    Args:
        feature_dim: D.
        outputs: of the second layer.

    Returns:
        The layers.

    Source: facog Sec. 3.2, for its classifier and its projection; the width is our
    choice.
    """
    return nn.Sequential(
        nn.Linear(feature_dim, feature_dim),
        nn.ReLU(),
        nn.Linear(feature_dim, outputs),
    )


def make_head(kind: str, feature_dim: int, num_classes: int) -> nn.Module:
    """A head from D features to C logits.

    Args:
        kind: "linear", "cosine" or "two_layers".
        feature_dim: D.
        num_classes: C.

    Returns:
        The head.
    """
    if kind == "linear":
        return nn.Linear(feature_dim, num_classes)
    if kind == "cosine":
        return CosineHead(feature_dim, num_classes)
    if kind == "two_layers":
        return two_layers(feature_dim, num_classes)
    raise UserError(f"unknown head {kind!r}; use linear, cosine or two_layers")
