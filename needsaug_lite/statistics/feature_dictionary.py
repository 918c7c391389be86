"""All features of every class, from which some are drawn at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from needsaug_lite.data import Batches, Examples, Normalisation
from needsaug_lite.data.batches import Augmentation
from needsaug_lite.data.splits import on_device
from needsaug_lite.errors import UserError
from needsaug_lite.files import atomic_path


class FeatureDictionary:
    """The features of N images, class after class, and an even draw among them.

    Labels, counts and positions stay on the CPU, where the draws are made; the features
    lie on any device, or in a file that is read where it is touched.

    Attributes:
        features: float32, shape (N, D), those of class 0 first.
        counts: n_c, features of each class, int64, shape (C,).
        starts: row of the first feature of each class, int64, shape (C,).
        order: position among the training images of each row, int64, shape (N,).

    Source: facog Sec. 3.2. The paper's L_c has N_s columns; we keep all n_c and draw
    N_s of them at every step (errata F3).
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        """Sort features by class.

        Args:
            features: shape (N, D), in the order of the training images.
            labels: int64, shape (N,).
            num_classes: C.

        Raises:
            UserError: if a class has no feature.
        """
        self._place(labels, num_classes)
        self.features = features[self.order.to(features.device)]

    def _place(self, labels: Tensor, num_classes: int) -> None:
        own = labels.cpu()
        self.counts = torch.bincount(own, minlength=num_classes)
        if not bool((self.counts > 0).all()):
            missing = int(self.counts.argmin())
            raise UserError(
                f"class {missing} has no training image, so that nothing can be made "
                "of its features; leave the class out or add an image"
            )
        self.starts = self.counts.cumsum(0) - self.counts
        self.order = own.argsort(stable=True)

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        extract: Callable[[Tensor], Tensor],
        examples: Examples,
        normalisation: Normalisation,
        num_classes: int,
        *,
        augment: Augmentation | None = None,
        seed: int = 0,
        epoch: int = 0,
        file: Path | None = None,
        batch_size: int = 500,
    ) -> FeatureDictionary:
        """Send every image through a network once.

        Args:
            extract: from normalised images (B, channels, H, W) to features (B, D), in
                evaluation mode.
            examples: the training images.
            normalisation: from bytes to floats.
            num_classes: C.
            augment: random change of the images before, or None.
            seed, epoch: fix the augmentation.
            file: where to keep the features as a NumPy array that is never read as a
                whole; None keeps them in memory, on the device of the images.
            batch_size: images at a time.

        Raises:
            UserError: if a class has no image.
        """
        found = cls.__new__(cls)
        found._place(examples.labels, num_classes)
        ordered = Batches(
            examples.subset(found.order),
            batch_size,
            normalisation,
            augment=augment,
            seed=seed,
            shuffle=False,
        )
        parts = (extract(batch.images) for batch in ordered.epoch(epoch))
        if file is None:
            found.features = torch.cat(list(parts))
            return found
        with atomic_path(file) as temporary:
            _write(temporary, parts, len(examples))
        return cls.from_file(file, examples.labels, num_classes)

    @classmethod
    def from_file(
        cls, file: Path, labels: Tensor, num_classes: int
    ) -> FeatureDictionary:
        """Features that `of` has kept in a file.

        Args:
            file: a NumPy array of shape (N, D), float32, class after class.
            labels: of the N training images, in their order, int64, shape (N,).
            num_classes: C.

        Raises:
            UserError: if a class has no image, or the file holds another number of
                features than there are labels.
        """
        found = cls.__new__(cls)
        found._place(labels, num_classes)
        # "c" because torch wants an array that can be written; the file never is.
        table = np.load(file, mmap_mode="c")
        if len(table) != len(labels):
            raise UserError(
                f"{file} holds {len(table):,} features for {len(labels):,} images; "
                "delete it and make it anew"
            )
        found.features = torch.from_numpy(table)
        return found

    def __len__(self) -> int:
        return len(self.order)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.counts)

    @property
    def labels(self) -> Tensor:
        """Class of each row, int64, shape (N,), on the CPU."""
        return torch.arange(self.num_classes).repeat_interleave(self.counts)

    def rows(self, labels: Tensor, slots: int, draw: torch.Generator) -> Tensor:
        """Rows of `slots` features for each label.

        Without replacement where the class has as many, otherwise with replacement;
        every order of the slots is as likely. There is no loop over classes or labels.

        Args:
            labels: int64, shape (B,), on the CPU.
            slots: S, at least 1.
            draw: a CPU generator.

        Returns:
            Rows of `features`, int64, shape (B, S), on the CPU.
        """
        count = self.counts[labels][:, None]  # (B, 1)
        uniform = torch.rand(len(labels), slots, generator=draw, dtype=torch.float64)
        # Slot s is the k-th of the count - s members that are still free ...
        free = (count - torch.arange(slots)).clamp(min=1)
        member = torch.minimum((uniform * free).long(), free - 1)
        # ... and counting past the taken ones, from the lowest up, turns k into it.
        for slot in range(1, slots):
            taken = member[:, :slot].sort(1).values
            for earlier in taken.unbind(1):
                member[:, slot] += member[:, slot] >= earlier
        again = torch.minimum((uniform * count).long(), count - 1)
        member = torch.where(count >= slots, member, again)
        return self.starts[labels][:, None] + member

    def sample(
        self,
        labels: Tensor,
        slots: int,
        draw: torch.Generator,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Features of `slots` random images for each label.

        Args:
            labels: int64, shape (B,), on the CPU.
            slots: S, at least 1.
            draw: a CPU generator; see `rows`.
            device: where to; default: where the features are.

        Returns:
            Shape (B, S, D).
        """
        rows = self.rows(labels, slots, draw)
        return self.take(rows, device)

    def take(self, rows: Tensor, device: torch.device | str | None = None) -> Tensor:
        """Features at given rows, of shape (..., D) for rows (...)."""
        place = torch.device(device or self.features.device)
        if self.features.device.type == "cpu":
            return on_device(self.features[rows.cpu()], place)
        return self.features[on_device(rows, self.features.device)].to(place)


def _write(file: Path, parts: Iterable[Tensor], count: int) -> None:
    """Write `count` rows as they come, as one array of the .npy format."""
    coming = iter(parts)
    first = next(coming)
    shape = (count, first.shape[1])
    table = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    start = 0
    for part in chain([first], coming):
        table[start : start + len(part)] = part.cpu().numpy()
        start += len(part)
    table.flush()
