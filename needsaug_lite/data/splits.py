"""Images with labels, and the four parts that an experiment uses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from needsaug_lite.errors import UserError


class Images(Protocol):
    """A list of images of one shape, in memory or on disk."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""

    def __len__(self) -> int: ...

    def subset(self, index: Tensor) -> Images:
        """The images at `index`, shape (n,), in that order; repeats are allowed."""

    def joined(self, other: Any) -> Images:
        """These images followed by others of the same kind and shape."""

    def stream(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """One tensor (B, C, H, W) for each tensor of indices in `chunks`.

        Bytes, or float32 where the "images" are features.
        """

    def fingerprint(self) -> bytes:
        """Bytes that change when an image changes."""

    def to(self, device: torch.device | str) -> Images:
        """The same images, on `device` if they are held in memory."""


@dataclass(frozen=True)
class InMemory:
    """Images as one tensor.

    Attributes:
        pixels: uint8, shape (N, C, H, W). Features that a network made of images
            take the same place: float32, shape (N, D, 1, 1).
    """

    pixels: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, index: Tensor) -> InMemory:
        """The images at `index`."""
        return InMemory(self.pixels[index.to(self.pixels.device)])

    def joined(self, other: InMemory) -> InMemory:
        """These images followed by others of the same shape."""
        return InMemory(torch.cat([self.pixels, other.pixels]))

    def stream(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """One tensor (B, C, H, W) per tensor of indices."""
        # One transfer for all chunks: a step must not wait for the device.
        order = torch.cat(list(chunks)).to(self.pixels.device)
        for index in order.split([len(chunk) for chunk in chunks]):
            yield self.pixels[index]

    def fingerprint(self) -> bytes:
        """All pixels."""
        return self.pixels.cpu().contiguous().numpy().tobytes()

    def to(self, device: torch.device | str) -> InMemory:
        """The same images on `device`."""
        return InMemory(self.pixels.to(device))


@dataclass(frozen=True)
class Examples:
    """Images with their labels and, where the data has them, group numbers.

    Attributes:
        images: N images of one shape.
        labels: class of each image, int64, shape (N,).
        groups: group of each image, int64, shape (N,), or None.
        true_labels: the labels before `bias.label_noise`, int64, shape (N,), or None.
            Only an evaluation may look at them: batches don't carry them, no checksum
            contains them, and the runner hands a method splits without them.
    """

    images: Images
    labels: Tensor
    groups: Tensor | None = None
    true_labels: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise UserError(
                f"{len(self.images)} images but {len(self.labels)} labels: every "
                "image needs exactly one label"
            )
        true = self.true_labels
        if true is not None and true.shape != self.labels.shape:
            raise UserError(
                f"{len(true)} true labels but {len(self.labels)} labels: give one true "
                "label for every image, or none at all"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> Examples:
        """The examples at `index`, shape (n,), in that order."""
        where = index.to(self.labels.device)
        groups = None if self.groups is None else self.groups[where]
        true = None if self.true_labels is None else self.true_labels[where]
        return Examples(self.images.subset(index), self.labels[where], groups, true)

    def joined(self, other: Examples) -> Examples:
        """These examples followed by those of `other`; groups are dropped.

        Where only one of the two knows its true labels, the other's labels count as
        right.
        """
        images = self.images.joined(other.images)
        labels = torch.cat([self.labels, other.labels])
        true = None
        if self.true_labels is not None or other.true_labels is not None:
            both = (self, other)
            found = [e.labels if e.true_labels is None else e.true_labels for e in both]
            true = torch.cat(found)
        return Examples(images, labels, true_labels=true)

    @property
    def mislabelled(self) -> Tensor | None:
        """True where a label is wrong, bool, shape (N,); None if nobody knows."""
        return None if self.true_labels is None else self.labels != self.true_labels

    def without_true_labels(self) -> Examples:
        """The same examples as somebody sees them who has to learn from them."""
        return replace(self, true_labels=None)

    def counts(self, num_classes: int) -> Tensor:
        """Number of examples of each class, int64, shape (num_classes,)."""
        return torch.bincount(self.labels, minlength=num_classes)

    def checksum(self) -> str:
        """SHA-256 over images, labels and groups."""
        total = hashlib.sha256()
        self.update(total)
        return total.hexdigest()

    def update(self, total: Any) -> None:
        """Add images, labels and groups to a running hash."""
        total.update(self.images.fingerprint())
        total.update(self.labels.cpu().numpy().tobytes())
        if self.groups is not None:
            total.update(self.groups.cpu().numpy().tobytes())

    def to(self, device: torch.device | str) -> Examples:
        """The same examples with everything that is in memory on `device`."""
        labels = self.labels.to(device)
        groups = None if self.groups is None else self.groups.to(device)
        true = None if self.true_labels is None else self.true_labels.to(device)
        return Examples(self.images.to(device), labels, groups, true)


@dataclass(frozen=True)
class Splits:
    """The four parts of a data set, and where they come from.

    `train` fits the weights, `meta` (or `val`) fits what is learned one level up,
    `val` chooses settings, `test` is looked at once. `val` and `meta` are taken
    from the published training images before any tail or noise is made; they are
    empty unless asked for.

    Attributes:
        train, val, meta, test: the parts.
        class_names: C names, in the order of the class numbers.
        provenance: data set and every change that was made to it.
    """

    train: Examples
    val: Examples
    meta: Examples
    test: Examples
    class_names: tuple[str, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return self.train.images.shape

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class, int64, shape (C,)."""
        return self.train.counts(self.num_classes)

    @property
    def class_prior(self) -> Tensor:
        """Share of each class among the training images, float32, shape (C,)."""
        counts = self.class_counts
        return counts / counts.sum()

    def to(self, device: torch.device | str) -> Splits:
        """The same splits with everything that is in memory on `device`."""
        parts = {part: getattr(self, part).to(device) for part in PARTS}
        return replace(self, **parts)

    def without_true_labels(self) -> Splits:
        """The same splits as a method may see them."""
        parts = {part: getattr(self, part).without_true_labels() for part in PARTS}
        return replace(self, **parts)

    def checksum(self) -> str:
        """SHA-256 over images, labels and groups of all four parts.

        True labels are no part of it: nothing that is trained depends on them.
        """
        total = hashlib.sha256()
        for part in PARTS:
            examples: Examples = getattr(self, part)
            total.update(part.encode())
            examples.update(total)
        return total.hexdigest()


PARTS = ("train", "val", "meta", "test")


def undivided(splits: Splits) -> Splits:
    """All images in `train`, if the test part was only split off by `load`.

    For questions about the data themselves, which need no test part. A test part that
    the user or the publisher made stays apart.

    Args:
        splits: as `load` gives them, without held-out parts.

    Returns:
        The same splits, or splits with all images in `train`.
    """
    if not splits.provenance.get("split_here"):
        return splits
    return replace(splits, train=splits.train.joined(splits.test))


def with_meta(splits: Splits) -> Splits:
    """The meta images as part of the training images; no meta images are left.

    For methods that learn nothing one level up: they have then seen the images that
    the others learn from.

    Args:
        splits: the data; their `val` and `test` stay as they are.

    Returns:
        Splits with the meta images behind the training images.
    """
    return replace(
        splits,
        train=splits.train.joined(splits.meta),
        meta=splits.meta.subset(torch.zeros(0, dtype=torch.long)),
    )


def on_device(draws: Tensor, device: torch.device) -> Tensor:
    """Random numbers drawn on the CPU, moved without waiting for the device."""
    if device.type != "cuda":
        return draws.to(device)
    return draws.pin_memory().to(device, non_blocking=True)


def generator(*entropy: int) -> torch.Generator:
    """A CPU random generator that depends on all the given whole numbers.

    Draws are made on the CPU and moved, so that every device sees the same ones.

    Args:
        entropy: whole numbers, at least 0; another order is another generator.

    Returns:
        The generator.
    """
    if min(entropy, default=0) < 0:
        raise UserError(f"seeds are whole numbers of at least 0, not {min(entropy)}")
    # SeedSequence pads with zeros: without the length, (5,) and (5, 0) were the same.
    sequence = np.random.SeedSequence((len(entropy), *entropy))
    state = sequence.generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
