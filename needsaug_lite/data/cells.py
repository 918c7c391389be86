"""The cells (class, attribute) that a fairness objective looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from needsaug_lite.data.splits import Examples, Splits
from needsaug_lite.errors import UserError


@dataclass(frozen=True)
class Cells:
    """How group numbers are read as pairs of a class and an attribute.

    An attribute is what a paper calls the group of an image: its background, its
    colour. Images without groups have one attribute, and a cell is a class.

    Attributes:
        classes: C.
        attributes: A.
        attribute_of_group: attribute of every group number, int64, shape (numbers,);
            None where images have no groups.
    """

    classes: int
    attributes: int
    attribute_of_group: Tensor | None = None

    @classmethod
    def of(cls, splits: Splits, *, grouped: bool = True) -> Cells:
        """Read the code of the group numbers from the training images.

        Two codes are in use: label * A + attribute, and attribute * C + label.

        Args:
            splits: `train` says how groups are coded.
            grouped: False takes classes for cells although there are groups.

        Raises:
            UserError: if the training images have groups in another code.
        """
        classes, train = splits.num_classes, splits.train
        if train.groups is None or not grouped:
            return cls(classes, 1)
        groups, labels = train.groups, train.labels
        attributes = -(-(int(groups.max()) + 1) // classes)
        numbers = torch.arange(classes * attributes, device=groups.device)
        if bool((groups // attributes == labels).all()):
            return cls(classes, attributes, numbers % attributes)
        if bool((groups % classes == labels).all()):
            return cls(classes, attributes, numbers // classes)
        raise UserError(
            "the group numbers aren't pairs of class and attribute: give label * A + "
            "attribute for A attributes, or attribute * C + label for C classes"
        )

    @property
    def shape(self) -> tuple[int, int]:
        """C, A."""
        return self.classes, self.attributes

    def attribute(self, groups: Tensor | None, labels: Tensor) -> Tensor:
        """Attribute of every image, int64, shape (B,)."""
        if self.attribute_of_group is None:
            return torch.zeros_like(labels)
        assert groups is not None
        return self.attribute_of_group[groups]

    def number(self, labels: Tensor, groups: Tensor | None) -> Tensor:
        """Cell label * A + attribute of every image, int64, shape (B,)."""
        return labels * self.attributes + self.attribute(groups, labels)

    def counts(self, examples: Examples) -> Tensor:
        """Images in every cell, int64, shape (C, A)."""
        cells = self.number(examples.labels, examples.groups)
        found = torch.bincount(cells, minlength=self.classes * self.attributes)
        return found.view(self.shape)
