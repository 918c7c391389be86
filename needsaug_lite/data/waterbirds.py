"""Waterbirds: birds on land and on water, as images or as features of a network."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from needsaug_lite.data.folders import OnDisk
from needsaug_lite.data.groups import balanced_meta
from needsaug_lite.data.splits import Examples, InMemory, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.files import atomic_path

# As WILDS unpacks it, and as the archive of the authors is packed.
FOLDERS = ("waterbirds_v1.0", "waterbird_complete95_forest2water2")
FEATURES = "waterbirds_features.npz"
CLASS_NAMES = ("landbird", "waterbird")
PLACES = ("land", "water")
PARTS = ("train", "val", "test")  # in the order of the column `split`
# Images of the groups 2 y + place in each part, as published.
GROUP_COUNTS = {
    "train": (3498, 184, 56, 1057),
    "val": (467, 466, 133, 133),
    "test": (2255, 2255, 642, 642),
}
_CODES = {"y": 2, "place": 2, "split": 3}
EXTRACT = "python data_scripts/extract_waterbirds_features.py"


def read(name: str, root: Path, image_size: int | None = None) -> Splits:
    """Waterbirds in its published parts; `meta` is empty.

        group = 2 y + place,   y = 1[waterbird],   place = 1[water]

    Args:
        name: waterbirds (images, decoded when they are needed) or
            waterbirds_features (float32 of shape (N, D, 1, 1)).
        root: folder that holds one of `FOLDERS`, or the file `FEATURES`.
        image_size: height and width of the images, default 224 pixels.

    Raises:
        UserError: if files are missing or hold something else.

    Source: Sagawa et al. 2020; the code of groups is that of WILDS.
    """
    facts: dict[str, Any] = {"name": name}
    if name == "waterbirds":
        folder = find(root)
        parts = _image_parts(folder, image_size or 224)
        facts["folder"] = folder.name
    else:
        parts, source = read_features(root / FEATURES)
        facts |= source
    none = parts["train"].subset(torch.arange(0))
    return Splits(parts["train"], parts["val"], none, parts["test"], CLASS_NAMES, facts)


def with_meta(splits: Splits, meta_per_class: int, seed: int) -> Splits:
    """Take `meta_per_class` images of each class, half on each place, out of val."""
    if not meta_per_class:
        return splits
    meta, val = balanced_meta(splits.val, meta_per_class, seed, "place")
    return Splits(
        splits.train, val, meta, splits.test, splits.class_names, splits.provenance
    )


def find(root: Path) -> Path:
    """The folder with the images below `root`.

    Raises:
        UserError: if there is none: where it was looked for, and how to get it.
    """
    for folder in FOLDERS:
        if (root / folder / "metadata.csv").is_file():
            return root / folder
    raise UserError(
        f"waterbirds isn't there: {root} holds no {' or '.join(FOLDERS)} with a "
        "metadata.csv; run `needsaug data fetch waterbirds` or point --root to the "
        "folder above it"
    )


def metadata(folder: Path) -> pd.DataFrame:
    """One row per image: img_filename, y, place and split, all checked.

    Raises:
        UserError: if the file can't be read, lacks a column or holds other codes.
    """
    file = folder / "metadata.csv"
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{file} can't be read as a table ({error})") from error
    missing = [name for name in ("img_filename", *_CODES) if name not in table.columns]
    if missing:
        raise UserError(f"{file} lacks the column {', '.join(missing)}")
    for name, size in _CODES.items():
        wrong = ~table[name].isin(range(size))
        if wrong.any():
            line = int(wrong.to_numpy().argmax())
            raise UserError(
                f"{file}: {name} is {table[name].iloc[line]} in line {line + 2}; it is "
                f"a whole number from 0 to {size - 1}"
            )
    return table


def image_files(folder: Path) -> dict[str, tuple[tuple[Path, ...], Tensor, Tensor]]:
    """Files, labels and groups of every part, in the order of the table.

    Raises:
        UserError: if an image is missing or a part is empty.
    """
    table, found = metadata(folder), {}
    for code, part in enumerate(PARTS):
        rows = table[table["split"] == code]
        if rows.empty:
            raise UserError(f"{folder / 'metadata.csv'} has no image of split {code}")
        paths = tuple(folder / str(name) for name in rows["img_filename"])
        lost = [path for path in paths if not path.is_file()]
        if lost:
            raise UserError(
                f"{len(lost)} of {len(paths)} {part} images are missing, the first is "
                f"{lost[0]}; unpack the archive again"
            )
        labels = torch.from_numpy(rows["y"].to_numpy(np.int64, copy=True))
        places = torch.from_numpy(rows["place"].to_numpy(np.int64, copy=True))
        found[part] = (paths, labels, 2 * labels + places)
    return found


def _image_parts(folder: Path, size: int) -> dict[str, Examples]:
    return {
        part: Examples(OnDisk(paths, 3, size), labels, groups)
        for part, (paths, labels, groups) in image_files(folder).items()
    }


def check_published(folder: Path) -> None:
    """Refuse a folder that hasn't the published number of images of each group.

    No checksum of the archive is published; this is the check that there is.

    Raises:
        UserError: naming the part and both numbers.
    """
    for part, (_, _, groups) in image_files(folder).items():
        counts = tuple(torch.bincount(groups, minlength=4).tolist())
        if counts != GROUP_COUNTS[part]:
            raise UserError(
                f"{folder.name} has {counts} {part} images of the four groups, but "
                f"{GROUP_COUNTS[part]} are published: it is another version; delete "
                "the archive and fetch it again"
            )


def write_features(
    file: Path, parts: dict[str, tuple[Tensor, Tensor, Tensor]], source: dict[str, str]
) -> None:
    """Write features, labels and groups of every part in one atomic step.

    Args:
        file: the .npz file to make.
        parts: for train, val and test: float32 (N, D), int64 (N,), int64 (N,).
        source: where the features come from, plain text by name.
    """
    arrays = {"source": np.array(json.dumps(source, sort_keys=True))}
    for part in PARTS:
        for letter, tensor in zip("xyg", parts[part], strict=True):
            arrays[f"{letter}_{part}"] = tensor.cpu().numpy()
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def read_features(file: Path) -> tuple[dict[str, Examples], dict[str, Any]]:
    """The parts of a file of features, and what it says about their source.

    Raises:
        UserError: if the file is missing or damaged, or an array has another form.
    """
    if not file.is_file():
        raise UserError(
            f"{file} is missing; make it from the images with `{EXTRACT}`, or point "
            "--root to its folder"
        )
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        source = json.loads(str(arrays.get("source", "{}")))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} can't be read ({error}); delete it and run `{EXTRACT}`"
        ) from error
    needed = [f"{letter}_{part}" for part in PARTS for letter in "xyg"]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise UserError(
            f"{file} lacks {', '.join(missing)}; it needs the arrays "
            f"{', '.join(needed)}"
        )
    parts = {part: _feature_part(file, arrays, part) for part in PARTS}
    lengths = {part: examples.images.shape[0] for part, examples in parts.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{file}: the features have different lengths, {lengths}")
    return parts, {"features_from": source}


def _feature_part(file: Path, arrays: dict[str, np.ndarray], part: str) -> Examples:
    x, y, g = (arrays[f"{letter}_{part}"] for letter in "xyg")
    if x.ndim != 2 or x.dtype != np.float32 or not np.isfinite(x).all():
        raise UserError(
            f"{file}: x_{part} is {x.dtype} of shape {x.shape}; it holds finite "
            "float32 of shape (images, features)"
        )
    whole = all(np.issubdtype(codes.dtype, np.integer) for codes in (y, g))
    if not whole or not (y.shape == g.shape == (len(x),)) or not len(x):
        raise UserError(
            f"{file}: y_{part} and g_{part} need one whole number for each of the "
            f"{len(x)} rows of x_{part}, at least one"
        )
    if (g < 0).any() or (g > 3).any() or (g // 2 != y).any():
        raise UserError(
            f"{file}: g_{part} must be 2 y + place, with y from y_{part} and place 0 "
            "(land) or 1 (water)"
        )
    pixels = torch.from_numpy(x)[:, :, None, None]
    labels, groups = (torch.from_numpy(codes.astype(np.int64)) for codes in (y, g))
    return Examples(InMemory(pixels), labels, groups)
