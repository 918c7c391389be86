"""The reader's own images: a folder of class folders."""

from __future__ import annotations

import hashlib
import struct
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
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def decode(path: Path, channels: int, size: int) -> Tensor:
    """One image, its shorter side scaled to `size`, cropped to the centre square.

    Returns:
        uint8 tensor of shape (channels, size, size).

    Raises:
        UserError: if the file can't be decoded.
    """
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(_on_white(_eight_bit(picture)))
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


def _on_white(picture: Image.Image) -> Image.Image:
    """Transparent pixels as white, not as the colour that hides behind them."""
    if not picture.has_transparency_data:
        return picture
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


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

    def joined(self, other: OnDisk) -> OnDisk:
        """These images followed by others of the same shape."""
        both = self.paths + other.paths
        return OnDisk(both, self.channels, self.size, self.workers)

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


def readable(path: Path) -> bool:
    """True if the file can be read as an image."""
    return _probe(path) is None
