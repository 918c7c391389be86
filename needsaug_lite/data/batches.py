"""Batches made on the device, in an order that a seed fixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from needsaug_lite.data.splits import Examples, Splits, generator
from needsaug_lite.data.team import ALONE, Team
from needsaug_lite.errors import UserError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
_ORDER, _AUGMENT, _SAMPLE_FOR_MOMENTS = 101, 102, 103


@dataclass(frozen=True)
class Whole:
    """What every process of a team knows of the batch that they share out.

    Attributes:
        labels, index: of all its images; see `Batch`.
        team: the processes.
    """

    labels: Tensor
    index: Tensor
    team: Team


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        images: float32, normalised, shape (B, C, H, W).
        labels: int64, shape (B,).
        groups: int64, shape (B,), or None.
        index: position of each image in its part, int64, shape (B,); what a method
            remembers of a sample is stored under it.
        whole: the batch that this is one process's part of; None if this is all.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor | None
    index: Tensor
    whole: Whole | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def all_labels(self) -> Tensor:
        """Labels of the whole batch."""
        return self.labels if self.whole is None else self.whole.labels

    @property
    def all_index(self) -> Tensor:
        """Positions of the images of the whole batch."""
        return self.index if self.whole is None else self.whole.index

    def share(self, mean: Tensor) -> Tensor:
        """A mean over these images, weighted for the mean over the processes.

        With n of the B images here, N n / B times the mean: parts may differ in size.
        """
        if self.whole is None:
            return mean
        if len(self) == 0:
            # A mean of nothing; its graph goes on, as the others wait for its sums.
            mean = mean.nan_to_num()
        return mean * (self.whole.team.size * len(self) / len(self.all_labels))

    def together(self, own: Tensor) -> Tensor:
        """Values of the whole batch from those of these images, without a graph."""
        if self.whole is None:
            return own.detach()
        return self.whole.team.gathered(own, len(self.all_labels))

    def own(self, values: Tensor) -> Tensor:
        """Those of these images among values of the whole batch."""
        if self.whole is None:
            return values
        return values[self.whole.team.part(len(self.all_labels))]


@dataclass(frozen=True)
class Normalisation:
    """Pixels from 0..255 to zero mean and unit deviation per channel.

    Features, which are floating-point numbers in place of pixels, are standardised
    one by one and not divided by 255.

    Attributes:
        mean, std: of pixels divided by 255, or of features, one number per channel;
            the deviation of a feature that never changes is infinite, so that it
            becomes 0 on every image.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Bytes, or features, of shape (B, C, H, W) to float32 of the same shape."""
        if pixels.shape[1] != len(self.mean):
            raise UserError(
                f"images with {pixels.shape[1]} channel(s) meet a normalisation for "
                f"{len(self.mean)}; load the data with channels={len(self.mean)}, "
                "which repeats grey images, or use the moments of the data"
            )
        mean, std = _moments(self, pixels.device)
        scaled: Tensor = (_unit(pixels.to(torch.float32), pixels) - mean) / std
        return scaled

    def inverse(self, images: Tensor) -> Tensor:
        """Normalised bytes to floats in [0, 1], multiples of 1/255 exactly.

        Only for images that came from bytes: other values move to the nearest byte.
        Shape (B, C, H, W).
        """
        mean, std = _moments(self, images.device)
        bytes_: Tensor = (255 * (images * std + mean)).round().clamp(0, 255)
        return bytes_ / 255

    def from_unit(self, images: Tensor) -> Tensor:
        """Normalise floats in [0, 1], shape (B, C, H, W); their derivative passes."""
        mean, std = _moments(self, images.device)
        scaled: Tensor = (images - mean) / std
        return scaled

    @classmethod
    def of(cls, splits: Splits, at_most: int = 10_000) -> Normalisation:
        """Moments of (up to `at_most`) training images."""
        count = len(splits.train)
        draw = generator(_SAMPLE_FOR_MOMENTS)
        index = torch.randperm(count, generator=draw)[:at_most].sort().values
        sums = torch.zeros(2, splits.image_shape[0], dtype=torch.float64)
        for pixels in splits.train.images.stream(index.split(500)):
            scaled = _unit(pixels.double().cpu(), pixels)
            sums += torch.stack([scaled.sum((0, 2, 3)), (scaled**2).sum((0, 2, 3))])
        _, height, width = splits.image_shape
        mean, square = sums / (len(index) * height * width)
        variance = square - mean**2
        if pixels.is_floating_point():
            # Features have no scale of their own: "constant" is relative to their size.
            std = variance.sqrt().masked_fill(variance <= 1e-10 * square, torch.inf)
        else:
            std = variance.clamp(min=1e-12).sqrt().clamp(min=1e-3)
        return cls(tuple(mean.tolist()), tuple(std.tolist()))


def _unit(numbers: Tensor, pixels: Tensor) -> Tensor:
    """The numbers themselves for features, divided by 255 for bytes."""
    return numbers if pixels.is_floating_point() else numbers / 255


@cache
def _moments(moments: Normalisation, device: torch.device) -> Tensor:
    """Mean and deviation on a device, shape (2, 1, C, 1, 1); moved once."""
    both = torch.tensor([moments.mean, moments.std], device=device)
    return both.view(2, 1, -1, 1, 1)


#: Mean and deviation per channel of ImageNet, which pretrained networks expect.
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Batches:
    """Shuffled, augmented, normalised batches of one part of the data.

    What epoch e holds depends on (seed, e) alone, and the augmentation of its step
    s on (seed, e, s, view): a run that resumes sees what it would have seen.

    Attributes:
        team: processes that share out every batch; each is handed its part.
    """

    team: Team = ALONE

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        normalisation: Normalisation,
        *,
        augment: Augmentation | None = None,
        seed: int = 0,
        shuffle: bool = True,
        class_weights: Tensor | None = None,
        view: int = 0,
    ) -> None:
        """Describe the batches; nothing is read yet.

        Args:
            examples: the images to go through.
            batch_size: images per batch; the last batch may be smaller.
            normalisation: from bytes to floats.
            augment: random change of a uint8 batch, or None.
            seed: fixes order and augmentation.
            shuffle: False keeps the order of `examples`.
            class_weights: if given, an epoch draws as many images as there are,
                with replacement, image i in proportion to class_weights[y_i];
                shape (C,).
            view: batches that differ in this number alone hold the same images,
                augmented differently.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1")
        if len(examples) == 0:
            raise UserError(
                "this part of the data is empty; hold images out for it with "
                "val_per_class or meta_per_class"
            )
        if class_weights is not None:
            used = class_weights.cpu()[: int(examples.labels.max()) + 1]
            fits = len(used) == int(examples.labels.max()) + 1
            if not (fits and bool(used.isfinite().all()) and bool((used >= 0).all())):
                raise UserError(
                    "class_weights needs one finite number of at least 0 per class, "
                    f"not {class_weights.tolist()}"
                )
            if float(used[examples.labels.cpu()].sum()) == 0:
                raise UserError("class_weights is 0 for every image of this part")
        self.examples = examples
        self.batch_size = batch_size
        self.normalisation = normalisation
        self.augment = augment
        self.seed = seed
        self.shuffle = shuffle
        self.class_weights = class_weights
        self.view = view

    def __len__(self) -> int:
        return len(self._sizes())

    def _sizes(self) -> list[int]:
        """Images of every batch. A lone last image joins the batch before it.

        Batch norm can't train on one image whose features have one pixel.
        """
        full, rest = divmod(len(self.examples), self.batch_size)
        if rest == 1 and full and self.shuffle:
            return [self.batch_size] * (full - 1) + [self.batch_size + 1]
        return [self.batch_size] * full + ([rest] if rest else [])

    def order(self, epoch: int) -> Tensor:
        """Positions in the order of epoch `epoch`, shape (N,)."""
        count = len(self.examples)
        if not self.shuffle:
            return torch.arange(count)
        draw = generator(self.seed, _ORDER, epoch)
        if self.class_weights is None:
            return torch.randperm(count, generator=draw)
        weights = self.class_weights.cpu()[self.examples.labels.cpu()]
        # Inverse of the distribution function: torch.multinomial stops at 2^24.
        edges = weights.double().cumsum(0)
        points = torch.rand(count, generator=draw, dtype=torch.float64) * edges[-1]
        return torch.searchsorted(edges, points, right=True).clamp(max=count - 1)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""
        part = self.examples
        device = part.labels.device
        order = self.order(epoch)
        chunks = [self._read(chunk) for chunk in order.split(self._sizes())]
        # One transfer an epoch: a step must not wait for the device.
        indices = order.to(device).split(self._sizes())
        for step, pixels in enumerate(part.images.stream(chunks)):
            on_device = pixels.to(device, non_blocking=True)
            if self.augment is not None:
                view = (self.view,) if self.view else ()
                draw = generator(self.seed, _AUGMENT, epoch, step, *view)
                on_device = self.augment(on_device, draw)
            yield self._batch(on_device, indices[step])

    def _read(self, chunk: Tensor) -> Tensor:
        """Positions of the images that this process reads of a batch.

        All of them where they are augmented: it draws for the batch as one. So too
        where its part may be empty.
        """
        if self.augment is not None or len(chunk) < self.team.size:
            return chunk
        return chunk[self.team.part(len(chunk))]

    def _batch(self, pixels: Tensor, index: Tensor) -> Batch:
        """The part of this process, from what it has read of the batch at `index`."""
        part = self.examples
        own = self.team.part(len(index))
        if len(pixels) == len(index):
            pixels = pixels[own]
        whole = None
        if self.team.size > 1:
            whole = Whole(part.labels[index], index, self.team)
            index = index[own]
        groups = None if part.groups is None else part.groups[index]
        images = self.normalisation(pixels)
        return Batch(images, part.labels[index], groups, index, whole)
