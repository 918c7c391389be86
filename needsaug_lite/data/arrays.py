"""The reader's own arrays: one .npz file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from needsaug_lite.data.splits import Examples, InMemory
from needsaug_lite.errors import UserError


def read_npz(path: Path) -> tuple[Examples, Examples, tuple[str, ...]]:
    """Training and test examples and class names of one .npz file.

    The file holds x_train, y_train, x_test, y_test and, if you like, class_names.
    Images are uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3.

    Raises:
        UserError: if an array is missing, has another type or shape, or a label is
            outside 0..C-1.
    """
    try:
        with zipfile.ZipFile(path):  # an .npz is a zip; np.load takes other files too
            pass
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"{path} can't be read as an .npz file ({error}); write it again with "
            "numpy.savez, or check the path"
        ) from error
    needed = ["x_train", "y_train", "x_test", "y_test"]
    missing = [key for key in needed if key not in arrays]
    if missing:
        raise UserError(
            f"{path} lacks {', '.join(missing)}; it needs the arrays "
            f"{', '.join(needed)}"
        )
    names = _npz_class_names(arrays, path)
    train = _npz_examples(arrays, "train", len(names), path)
    test = _npz_examples(arrays, "test", len(names), path)
    if train.images.shape != test.images.shape:
        raise UserError(
            f"{path}: training images have (channels, height, width) "
            f"{train.images.shape}, test images {test.images.shape}; bring all to one"
        )
    return train, test, names


def _npz_class_names(arrays: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    labels = arrays["y_train"]
    if not np.issubdtype(labels.dtype, np.integer) or labels.size == 0:
        raise UserError(f"{path}: y_train must hold whole numbers, one per image")
    if "class_names" in arrays:
        names = tuple(str(name) for name in arrays["class_names"].reshape(-1))
    else:
        names = tuple(str(label) for label in range(int(labels.max()) + 1))
    if len(names) < 2:
        raise UserError(
            f"{path} holds {len(names)} class(es); a classifier needs at least two, "
            "numbered from 0 in y_train"
        )
    return names


def _npz_examples(
    arrays: dict[str, np.ndarray], part: str, num_classes: int, path: Path
) -> Examples:
    pixels, labels = arrays[f"x_{part}"], arrays[f"y_{part}"].reshape(-1)
    if pixels.dtype != np.uint8:
        raise UserError(
            f"{path}: x_{part} is {pixels.dtype}; store pixels as uint8 from 0 to 255"
        )
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[-1] in (1, 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise UserError(
            f"{path}: x_{part} has shape {arrays[f'x_{part}'].shape}; give (N, H, W), "
            "(N, H, W, C) or (N, C, H, W) with C 1 or 3"
        )
    if len(pixels) != len(labels):
        raise UserError(
            f"{path}: x_{part} holds {len(pixels)} images, but y_{part} "
            f"{len(labels)} labels; every image needs one class number"
        )
    check_labels(labels, num_classes, f"{path}: y_{part}")
    tensor = torch.from_numpy(np.ascontiguousarray(pixels))
    return Examples(InMemory(tensor), torch.from_numpy(labels.astype(np.int64)))


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Refuse labels that are no whole numbers or lie outside 0..C-1.

    Raises:
        UserError: naming the first bad label and its position.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{where} is {labels.dtype}; labels are whole numbers")
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise UserError(
            f"{where}: {len(bad)} labels lie outside 0..{num_classes - 1}, the first "
            f"is {labels[bad[0]]} at position {bad[0]}; number the classes from 0"
        )
