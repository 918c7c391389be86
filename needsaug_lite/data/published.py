"""Readers for the published files of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100.

Every file is checked against the MD5 that torchvision publishes before it is read;
a pickle is never opened unless its checksum is right.
"""

from __future__ import annotations

import gzip
import pickle
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from needsaug_lite import _torchvision  # noqa: F401
from needsaug_lite.errors import UserError
from needsaug_lite.files import digest

from torchvision import datasets  # isort: skip

Arrays = tuple[Tensor, Tensor]
_IDX_IMAGES, _IDX_LABELS = 2051, 2049


@dataclass(frozen=True)
class Idx:
    """Files of the MNIST family: gzipped arrays of bytes."""

    dataset: Any

    @property
    def folder(self) -> str:
        """Folder below the root."""
        return f"{self.dataset.__name__}/raw"

    @property
    def md5(self) -> dict[str, str]:
        """MD5 of every file."""
        return dict(self.dataset.resources)

    def read(self, folder: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
        """Training arrays, test arrays and class names."""
        names = tuple(label.split(" - ")[0] for label in self.dataset.classes)
        return _read_idx_pair(folder, "train"), _read_idx_pair(folder, "t10k"), names


@dataclass(frozen=True)
class Cifar:
    """Files of the CIFAR family: pickled dictionaries of bytes."""

    dataset: Any
    label_key: str

    @property
    def folder(self) -> str:
        """Folder below the root."""
        return str(self.dataset.base_folder)

    @property
    def md5(self) -> dict[str, str]:
        """MD5 of every file."""
        meta = self.dataset.meta
        parts = [*self.dataset.train_list, *self.dataset.test_list]
        return dict(parts) | {meta["filename"]: meta["md5"]}

    def read(self, folder: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
        """Training arrays, test arrays and class names."""
        meta = self.dataset.meta
        names = tuple(read_pickle(folder / meta["filename"])[meta["key"]])
        train, test = (
            _read_cifar([folder / file for file, _ in files], self.label_key)
            for files in (self.dataset.train_list, self.dataset.test_list)
        )
        return train, test, names


SOURCES: dict[str, Idx | Cifar] = {
    "mnist": Idx(datasets.MNIST),
    "fashion_mnist": Idx(datasets.FashionMNIST),
    "cifar10": Cifar(datasets.CIFAR10, "labels"),
    "cifar100": Cifar(datasets.CIFAR100, "fine_labels"),
}


def load_published(name: str, root: Path) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Training arrays, test arrays and class names of a published data set.

    Args:
        name: mnist, fashion_mnist, cifar10 or cifar100.
        root: torchvision-style root folder.

    Returns:
        (images, labels) for training, the same for testing; images are uint8 of
        shape (N, C, H, W); and the class names.

    Raises:
        UserError: if a file is missing, has a wrong checksum or is truncated.
    """
    source = SOURCES[name]
    folder = root / source.folder
    for file, md5 in source.md5.items():
        verify(folder / file, md5, name)
    return source.read(folder)


def verify(path: Path, md5: str, name: str) -> None:
    """Refuse a file that is missing or isn't the published one.

    Raises:
        UserError: naming the file, the two checksums and the command that mends it.
    """
    mend = f"run `needsaug data fetch {name}` or point --root to the folder above it"
    if not path.is_file():
        raise UserError(f"{path} is missing; {mend}")
    found = digest(path, "md5")
    if found != md5:
        raise UserError(
            f"{path} has MD5 {found}, but the published file has {md5}: it is "
            f"damaged or another version. Delete it and {mend}"
        )


def _read_idx_pair(folder: Path, part: str) -> Arrays:
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", _IDX_IMAGES)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", _IDX_LABELS)
    return images.unsqueeze(1), labels.to(torch.int64)


def read_idx(path: Path, magic: int) -> Tensor:
    """A gzipped IDX file of unsigned bytes as a uint8 tensor.

    Raises:
        UserError: if the gzip stream is truncated or the header is another one.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"{path} can't be unpacked ({error}): it is truncated or no gzip file. "
            "Delete it and fetch it again"
        ) from error
    axes = magic % 256
    header = (
        np.frombuffer(raw, ">i4", count=1 + axes) if len(raw) >= 4 + 4 * axes else [0]
    )
    shape = tuple(int(size) for size in header[1:])
    if int(header[0]) != magic or len(raw) != 4 + 4 * axes + int(np.prod(shape)):
        raise UserError(f"{path} is no IDX file with {axes} axes of bytes")
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * axes)
    return torch.from_numpy(data.reshape(shape).copy())


def _read_cifar(files: list[Path], label_key: str) -> Arrays:
    parts = [read_pickle(file) for file in files]
    pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([part[label_key] for part in parts])
    return torch.from_numpy(pixels), torch.from_numpy(labels).to(torch.int64)


def read_pickle(path: Path) -> dict[str, Any]:
    """One file of the Python version of CIFAR.

    Raises:
        UserError: if the pickle is truncated.
    """
    try:
        with path.open("rb") as stream:
            content: dict[str, Any] = pickle.load(stream, encoding="latin1")
    except (EOFError, pickle.UnpicklingError, KeyError) as error:
        raise UserError(
            f"{path} can't be read ({error or 'it ends early'}): it is truncated. "
            "Delete it and fetch it again"
        ) from error
    return content
