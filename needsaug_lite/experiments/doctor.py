"""What is installed, which device and data are there, and what would run."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

import needsaug_lite
from needsaug_lite.data import waterbirds
from needsaug_lite.data.published import SOURCES, verify
from needsaug_lite.data.sources import default_root
from needsaug_lite.errors import UserError

_PACKAGES = (
    "torch",
    "torchvision",
    "torchmetrics",
    "numpy",
    "pandas",
    "scikit-learn",
    "matplotlib",
    "seaborn",
    "jupyter-book",
    "papermill",
    "snakemake",
    "umap-learn",
    "kornia",
)
_BOOK = ("jupyter_book", "papermill", "snakemake")


def examine(root: Path | str | None = None) -> list[str]:
    """A report in lines: versions, device, data, and what would run here."""
    lines = [f"needsaug_lite {needsaug_lite.__version__}"]
    lines += [f"  {name} {_version(name)}" for name in _PACKAGES]
    lines += ["device", *device_lines(), "data", *data_lines(root), "what would run"]
    return lines + _plan()


def device_lines() -> list[str]:
    """CPU threads, and every GPU that torch sees."""
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    lines = [f"  cpu: {threads}"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        lines.append(f"  cuda:{index}: {properties.name}, {memory:.0f} GiB")
    return lines


def data_lines(root: Path | str | None = None) -> list[str]:
    """Every data set: bundled, verified, incomplete, damaged or absent."""
    place = default_root(root)
    lines = [f"  root: {place}", "  digits: bundled with scikit-learn"]
    lines += [f"  {name}: {_state(name, place)}" for name in SOURCES]
    return lines + _waterbirds_lines(place)


def _state(name: str, root: Path) -> str:
    source = SOURCES[name]
    folder = root / source.folder
    missing = [file for file in source.md5 if not (folder / file).is_file()]
    if len(missing) == len(source.md5):
        return f"absent (`needsaug data fetch {name}`)"
    if missing:
        return f"incomplete: {', '.join(missing)} missing in {folder}"
    try:
        for file, md5 in source.md5.items():
            verify(folder / file, md5, name)
    except UserError as error:
        return f"damaged: {error}"
    return f"verified in {folder}"


def _waterbirds_lines(root: Path) -> list[str]:
    try:
        images = f"in {waterbirds.find(root)} (no checksum is published)"
    except UserError:
        images = "absent (`needsaug data fetch waterbirds`)"
    file = root / waterbirds.FEATURES
    made = f"in {file}" if file.is_file() else f"absent (`{waterbirds.EXTRACT}`)"
    return [f"  waterbirds: {images}", f"  waterbirds_features: {made}"]


def _plan() -> list[str]:
    book = all(find_spec(name) for name in _BOOK)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    gpu = torch.cuda.is_available()
    return [
        f"  make book: {'yes' if book else 'no, install needsaug-lite[book]'}",
        f"  browser test: {'yes' if browser else 'skipped, no Chromium found'}",
        f"  full profile: {'yes' if gpu else 'no GPU; use lite or reduced'}",
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
