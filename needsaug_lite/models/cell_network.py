"""The network of a genotype, trained from scratch to see what a search is worth."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from needsaug_lite.errors import UserError
from needsaug_lite.models.cell_operations import (
    check_side,
    check_sizes,
    operation,
    preparation,
    reductions,
    stem,
)
from needsaug_lite.models.genotype import Genotype


def drop_paths(maps: Tensor, probability: float) -> Tensor:
    """Zeros in place of whole samples, the others scaled up so that the mean stays.

    x ↦ x b / (1 - p),   b ~ Bernoulli(1 - p), one for each sample

    Args:
        maps: x, shape (B, C, H, W).
        probability: p, at least 0 and below 1; at 0, nothing is drawn.
    """
    if probability == 0:
        return maps
    keep = torch.empty_like(maps[:, :1, :1, :1]).bernoulli_(1 - probability)
    return maps * (keep / (1 - probability))


class Cell(nn.Module):
    """A cell of a genotype.

    s_j = o(s_i) + o'(s_i'),   out = (s_2, s_3, ...)

    Args:
        genotype: gives the choices.
        before: channels of the outputs of the cell before the last, and of the last.
        channels: C of each node.
        halve: a reduction cell.
        halved: the last cell was one.
    """

    def __init__(
        self,
        genotype: Genotype,
        before: tuple[int, int],
        channels: int,
        *,
        halve: bool,
        halved: bool,
    ) -> None:
        super().__init__()
        self.first = preparation(before[0], channels, halve=halved, affine=True)
        self.second = preparation(before[1], channels, halve=False, affine=True)
        choices = genotype.reduce if halve else genotype.normal
        self.inputs = [source for _, source in choices]
        self.operations = nn.ModuleList(
            operation(name, channels, 2 if halve and i < 2 else 1, affine=True)
            for name, i in choices
        )

    def forward(
        self, before: Tensor, last: Tensor, drop_probability: float = 0
    ) -> Tensor:
        """Maps (B, nodes * C, H', W'); paths are dropped unless they are identities."""
        states = [self.first(before), self.second(last)]
        parts = []
        for source, layer in zip(self.inputs, self.operations, strict=True):
            found = layer(states[source])
            if not isinstance(layer, nn.Identity):
                found = drop_paths(found, drop_probability)
            parts.append(found)
            if len(parts) == 2:
                states.append(parts[0] + parts[1])
                parts = []
        return torch.cat(states[2:], 1)


def auxiliary_head(channels: int, classes: int) -> nn.Sequential:
    """Logits (B, classes) of maps in the middle of a network.

    ReLU, average to 2 x 2, 1 x 1 convolution to 128, 2 x 2 convolution to 768, linear.
    DARTS averages 5 x 5 windows of maps of 8 x 8 pixels, which leaves the same 2 x 2;
    the adaptive average also takes smaller maps, down to one pixel.
    """
    return nn.Sequential(
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(channels, 128, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 768, 2, bias=False),
        nn.BatchNorm2d(768),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, classes),
    )


class CellNetwork(nn.Module):
    """Features of images by the cells of a genotype.

    Args:
        channels: of the images.
        genotype: of all normal and all reduction cells.
        width: C of the first cells; the stem has 3 C channels.
        cells: how many; those after 1/3 and 2/3 halve the side and double C.
        halvings: of the side in the stem, 0, 1 or 2.
        classes: of the auxiliary head, after the cell at 2/3; None builds none.

    Attributes:
        feature_dim: D, nodes times C of the last cell.
        drop_probability: of a path in training, at least 0 and below 1.

    Raises:
        UserError: for sizes that don't fit.

    Source: Liu et al. 2019 (DARTS), App. A.2; its code.
    """

    def __init__(
        self,
        channels: int,
        genotype: Genotype,
        *,
        width: int,
        cells: int,
        halvings: int = 0,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(width, cells, halvings)
        self.genotype, self.width, self.halvings = genotype, width, halvings
        self.drop_probability = 0.0
        self.stem = stem(channels, 3 * width, halvings)
        halving = reductions(cells)
        widths = [width * 2 ** sum(n >= h for h in halving) for n in range(cells)]
        outputs = [3 * width, 3 * width, *(genotype.nodes * w for w in widths)]
        self.cells = nn.ModuleList(
            Cell(
                genotype,
                before,
                widths[number],
                halve=number in halving,
                halved=number - 1 in halving,
            )
            for number, before in enumerate(pairwise(outputs[:-1]))
        )
        self.feature_dim = outputs[-1]
        self.middle = 2 * cells // 3
        self.auxiliary = (
            None
            if classes is None
            else auxiliary_head(outputs[2 + self.middle], classes)
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What it was built from, but for the images and classes, for a file."""
        return {
            "genotype": self.genotype.as_lists(),
            "width": self.width,
            "cells": len(self.cells),
            "halvings": self.halvings,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, channels, H, W).

        Raises:
            UserError: if the images are too small for the halvings.
        """
        return self._features(images)[0]

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D), and the logits (B, classes) of the auxiliary head.

        Raises:
            UserError: if the images are too small, or no auxiliary head was built.
        """
        if self.auxiliary is None:
            raise UserError("this network has no auxiliary head; build it with classes")
        features, middle = self._features(images)
        return features, self.auxiliary(middle)

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and the maps after the cell at 2/3."""
        check_side(images, len(self.cells), self.halvings)
        probability = self.drop_probability if self.training else 0.0
        before = maps = middle = self.stem(images)
        for number, cell in enumerate(self.cells):
            before, maps = maps, cell(before, maps, probability)
            if number == self.middle:
                middle = maps
        return maps.mean((2, 3)), middle
