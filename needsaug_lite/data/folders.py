"""The reader's own images: a folder of class folders, or one .npz file."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from needsaug_lite.data.splits import Examples, Images, InMemory
from needsaug_lite.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
# Above this many decoded bytes a folder is streamed instead of held in memory.
MEMORY_LIMIT = 256 * 2**20
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def decode(path: Path, channels: int, size: int) -> Tensor:
    """One image, its shorter side scaled to `size`, cropped to the centre square.

    Returns:
        uint8 tensor of shape (channels, size, size).

    Raises:
        UserError: if the file can't be decoded.
    """
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(_eight_bit(picture))
            square = ImageOps.fit(
                upright.convert("L" if channels == 1 else "RGB"),
                (size, size),
                Image.Resampling.BILINEAR,
            )
    except _UNREADABLE as error:
        raise UserError(
            f"{path} can't be read as an image ({error}); mend or remove it, or pass "
            "--skip-broken to leave such files out"
        ) from error
    pixels = torch.from_numpy(np.array(square))
    return pixels.reshape(size, size, channels).permute(2, 0, 1).contiguous()


def _eight_bit(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits per channel; Pillow alone would cut 16 bits at 255."""
    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no fixed range; save it with 8 or 16 bit")
    return picture


@dataclass(frozen=True)
class _Decoded(Dataset[Tensor]):
    paths: tuple[Path, ...]
    channels: int
    size: int

    def __getitem__(self, index: int) -> Tensor:
        return decode(self.paths[index], self.channels, self.size)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class OnDisk:
    """Images that are decoded when they are needed, by worker processes."""

    paths: tuple[Path, ...]
    channels: int
    size: int
    workers: int = 2

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.size, self.size

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, index: Tensor) -> OnDisk:
        """The images at `index`."""
        chosen = tuple(self.paths[i] for i in index.tolist())
        return OnDisk(chosen, self.channels, self.size, self.workers)

    def stream(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """One uint8 tensor (B, C, H, W) per tensor of indices."""
        decoded = _Decoded(self.paths, self.channels, self.size)
        batches = [chunk.tolist() for chunk in chunks]
        yield from DataLoader(
            decoded,
            batch_sampler=batches,
            num_workers=self.workers,
            # Without it the loader draws a seed from torch's global generator.
            generator=torch.Generator(),
        )

    def fingerprint(self) -> bytes:
        """Names and sizes: reading 100,000 images for a checksum takes too long."""
        lines = [f"{p.parent.name}/{p.name} {p.stat().st_size}" for p in self.paths]
        return hashlib.sha256("\n".join(lines).encode()).digest()

    def to(self, device: torch.device | str) -> OnDisk:
        """Images on disk stay where they are."""
        return self


def class_folders(folder: Path) -> list[Path]:
    """The class folders inside `folder`, sorted by name.

    Raises:
        UserError: if the folder is missing or holds fewer than two classes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a folder of class folders")
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if len(classes) < 2:
        found = classes[0].name if classes else "none"
        raise UserError(
            f"{folder} holds {len(classes)} class folder(s) ({found}); put the images "
            "of every class into a folder of its own, at least two"
        )
    return classes


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def read_folder(
    folder: Path,
    class_names: Sequence[str],
    size: int,
    channels: int,
    skip_broken: bool = False,
) -> tuple[Examples, list[Path]]:
    """The images of a folder of class folders.

    Args:
        class_names: folder names in the order of their class numbers.
        size: height and width after scaling and cropping, pixels.
        channels: 1 (grey) or 3 (colour).
        skip_broken: leave unreadable files out instead of refusing the folder.

    Returns:
        The examples (in memory if they fit, else streamed) and the files left out.

    Raises:
        UserError: for a class without images, or unreadable files.
    """
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        files = sorted(p for p in (folder / name).rglob("*") if _is_image(p))
        paths += files
        labels += [label] * len(files)
    in_memory = len(paths) * channels * size * size <= MEMORY_LIMIT
    check = partial(_try_decode, channels=channels, size=size) if in_memory else _probe
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(check, paths))
    good = [i for i, r in enumerate(results) if not isinstance(r, UserError)]
    broken = [paths[i] for i, r in enumerate(results) if isinstance(r, UserError)]
    if broken and not skip_broken:
        shown = "\n  ".join(str(path) for path in broken[:10])
        more = f"\n  and {len(broken) - 10} more" if len(broken) > 10 else ""
        raise UserError(
            f"{len(broken)} of {len(paths)} files in {folder} can't be read as "
            f"images:\n  {shown}{more}\nMend or remove them, or pass --skip-broken"
        )
    chosen = torch.tensor([labels[i] for i in good], dtype=torch.int64)
    counts = torch.bincount(chosen, minlength=len(class_names))
    for name, count in zip(class_names, counts.tolist(), strict=True):
        if count == 0:
            raise UserError(f"{folder / name} holds no readable image")
    images: Images
    if in_memory:
        images = InMemory(torch.stack([r for r in results if isinstance(r, Tensor)]))
    else:
        images = OnDisk(tuple(paths[i] for i in good), channels, size)
    return Examples(images, chosen), broken


def _try_decode(path: Path, channels: int, size: int) -> Tensor | UserError:
    try:
        return decode(path, channels, size)
    except UserError as error:
        return error


def _probe(path: Path) -> UserError | None:
    """Decode once and forget: Pillow's `verify` accepts truncated files."""
    try:
        with Image.open(path) as picture:
            picture.draft("L", (1, 1))  # JPEG: at an eighth of its size, for speed
            _eight_bit(picture).load()
    except _UNREADABLE as error:
        return UserError(str(error))
    return None


def guess_channels(folder: Path) -> int:
    """1 if the first images of every class are grey, else 3."""
    for class_folder in class_folders(folder):
        files = (p for p in sorted(class_folder.rglob("*")) if _is_image(p))
        for path in islice(files, 5):
            try:
                with Image.open(path) as picture:
                    if picture.mode not in ("1", "L", "LA", "I", "I;16", "F"):
                        return 3
            except _UNREADABLE:
                continue
    return 1


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
    except (*_UNREADABLE, KeyError, zipfile.BadZipFile, zlib.error) as error:
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
