"""Attributes of images: clusters within each class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from needsaug_lite.data.splits import Examples, Images, Splits
from needsaug_lite.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Features = NDArray[np.float64]

FIT_AT_MOST = 1_000  # training images of a class that its clusters are fitted to
_COMPONENTS = 50
_PCA_AT_MOST = 10_000
_CHUNK = 2_000
_STATE = 0  # attributes belong to the data: they don't change with a seed


def attribute_groups(
    splits: Splits, attributes: int, features: tuple[Tensor, Tensor] | None = None
) -> Splits:
    """Give every training and test image a group: its class and an attribute of it.

    group = label * attributes + attribute,   attribute in 0 .. attributes - 1

    The attributes of a class are clusters of its training images, found by k-means
    on at most 1,000 of them, evenly spaced; all others, and the test images, get the
    nearest cluster. Attribute 0 is the largest cluster. Nothing is random: the same
    images have the same attributes.

    Tang et al. cluster the features of a network that was trained on ImageNet. No
    such network is assumed here: unless `features` are handed in, the clusters are
    those of the first 50 principal components of the pixels, which is our choice.
    Such attributes say where an image is bright, not what it shows.

    Args:
        splits: `val` and `meta` must be empty.
        attributes: A, clusters of each class, at least 2.
        features: what to cluster instead of pixels, of the training images (N, D)
            and of the test images (M, D), in their order.

    Returns:
        The same images with groups.

    Raises:
        UserError: if a class has too few different images for its clusters, or the
            features don't fit the images.

    Source: Tang et al. 2022, "Invariant feature learning for generalized long-tailed
    classification", as used in meta_iada Sec. 5.2 (six groups per class).
    """
    if attributes < 2:
        raise UserError(f"attributes is {attributes}; divide a class into 2 or more")
    if len(splits.val) or len(splits.meta):
        raise UserError(
            "attributes are found before val and meta are held out; give "
            "val_per_class and meta_per_class to attribute_tail instead"
        )
    train, test = splits.train, splits.test
    both = _principal_components(splits) if features is None else _checked(*features)
    have, given = (len(train), len(test)), (len(both[0]), len(both[1]))
    if have != given:
        raise UserError(
            f"features of {given[0]} training and {given[1]} test images were given, "
            f"but there are {have[0]} and {have[1]} images; give a row for every image"
        )
    groups = [torch.empty(len(part), dtype=torch.int64) for part in (train, test)]
    labels = [part.labels.cpu() for part in (train, test)]
    for label, name in enumerate(splits.class_names):
        places = [torch.nonzero(own == label).flatten() for own in labels]
        rows = [x[at.numpy()] for x, at in zip(both, places, strict=True)]
        found = _attributes(rows, attributes, name)
        for group, at, attribute in zip(groups, places, found, strict=True):
            group[at] = label * attributes + attribute
    return replace(
        splits, train=_grouped(train, groups[0]), test=_grouped(test, groups[1])
    )


def _grouped(part: Examples, groups: Tensor) -> Examples:
    return replace(part, groups=groups.to(part.labels.device))


def _attributes(rows: Sequence[Features], attributes: int, name: str) -> list[Tensor]:
    """Attributes of the training and of the test images of one class."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    train = rows[0]
    if len(train) < attributes:
        raise UserError(
            f"class {name!r} has {len(train)} training images, which can't be "
            f"divided into {attributes} attributes; ask for fewer attributes"
        )
    means = KMeans(attributes, n_init=10, random_state=_STATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            means.fit(train[_spread(len(train), FIT_AT_MOST)])
        except ConvergenceWarning:
            raise UserError(
                f"class {name!r} has fewer than {attributes} different images; ask "
                "for fewer attributes"
            ) from None
    clusters = torch.from_numpy(means.predict(train)).long()
    sizes = torch.bincount(clusters, minlength=attributes)
    rank = torch.empty_like(sizes)
    rank[sizes.argsort(descending=True, stable=True)] = torch.arange(attributes)
    if not len(rows[1]):
        return [rank[clusters], torch.empty(0, dtype=torch.int64)]
    return [rank[clusters], rank[torch.from_numpy(means.predict(rows[1])).long()]]


def _spread(count: int, at_most: int) -> NDArray[np.int64]:
    """Up to `at_most` positions among `count`, evenly spaced."""
    return np.arange(min(count, at_most), dtype=np.int64) * count // min(count, at_most)


def _principal_components(splits: Splits) -> tuple[Features, Features]:
    """Up to 50 principal components of the pixels of training and test images."""
    from sklearn.decomposition import PCA

    train, test = splits.train.images, splits.test.images
    chosen = torch.from_numpy(_spread(len(train), _PCA_AT_MOST))
    pixels = np.concatenate(list(_flat(train, chosen)))
    # float64: rounding shouldn't move an image to another cluster.
    projection = PCA(min(_COMPONENTS, *pixels.shape), random_state=_STATE).fit(pixels)

    def project(images: Images) -> Features:
        chunks = _flat(images, torch.arange(len(images)))
        empty = np.empty((0, projection.n_components_))
        return np.concatenate([empty, *map(projection.transform, chunks)])

    return project(train), project(test)


def _flat(images: Images, index: Tensor) -> Any:
    """Pixels in [0, 1] of the images at `index`, in pieces of shape (B, CHW)."""
    if len(index):
        for pixels in images.stream(index.split(_CHUNK)):
            yield pixels.cpu().flatten(1).double().numpy() / 255


def _checked(train: Tensor, test: Tensor) -> tuple[Features, Features]:
    """Features from the caller as arrays."""
    for part in (train, test):
        if part.ndim != 2 or not bool(part.isfinite().all()):
            raise UserError(
                "features need one row of finite numbers for every image, shape "
                f"(images, features), not {tuple(part.shape)}"
            )
    if train.shape[1] != test.shape[1]:
        raise UserError(
            f"the training features have {train.shape[1]} columns and those of the "
            f"test images {test.shape[1]}; take both from the same network"
        )
    return train.detach().cpu().double().numpy(), test.detach().cpu().double().numpy()
