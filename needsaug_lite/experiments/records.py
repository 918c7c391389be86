"""Rows: what a run gave, with everything needed to doubt it."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

import needsaug_lite
from needsaug_lite.errors import UserError
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.files import write_text

_MEASURED = ("metrics", "history", "seconds", "peak_memory_mib")
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "torchmetrics")


class Record(BaseModel):
    """One row.

    Attributes:
        run_id: hash of the spec; also the file's name.
        spec: the settings.
        metrics: of the part named by `spec.evaluate_on`; see
            `metrics.from_predictions`.
        class_counts: training images per class.
        history: one row per epoch.
        seconds: wall time of the training epochs.
        peak_memory_mib: of the process (CPU) or of torch on the device (GPU).
        threads: CPU threads of torch.
        data_checksum: SHA-256 of the very images and labels; of frozen features, that
            of the images that they were made of.
        versions, python, device, code_version, created: provenance.
        weights_sha256: of the file with weights to start from, if there was one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    method_version: int
    spec: Spec
    metrics: dict[str, Any]
    class_counts: list[int]
    history: list[dict[str, Any]]
    seconds: float
    peak_memory_mib: float
    threads: int
    device: str
    data_checksum: str
    versions: dict[str, str]
    python: str
    code_version: str
    created: str
    weights_sha256: str | None = None

    def path(self, results: Path) -> Path:
        """Where the row lies below the results folder."""
        return row_path(self.spec, results)

    def save(self, results: Path) -> Path:
        """Write the row in one atomic step and return its path."""
        target = self.path(results)
        content = json.loads(self.model_dump_json())
        # The spec stays exact: the row's name is its hash.
        for name in _MEASURED:
            content[name] = _rounded(content[name])
        write_text(target, json.dumps(content, indent=1) + "\n")
        return target


def row_path(spec: Spec, results: Path) -> Path:
    """Path of a run's row: results / experiment / run id."""
    return results / spec.experiment / f"{spec.run_id}.json"


def read_record(file: Path) -> Record:
    """One row, checked: the name must be the hash of the spec inside.

    Raises:
        UserError: if the file is no row, or isn't the row that its name says.
    """
    try:
        record = Record.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, ValueError) as error:
        raise UserError(f"{file} is no readable row: {error}") from error
    if record.run_id != file.stem:
        raise UserError(f"{file} holds the row of run {record.run_id}")
    if record.spec.run_id != record.run_id:
        raise UserError(
            f"{file}: the settings inside have the hash {record.spec.run_id}. The row "
            "was edited, or comes from another version of the method; run it again"
        )
    return record


def load_records(
    results: Path | str = Path("book/results"), experiment: str | None = None
) -> list[Record]:
    """All rows below a results folder, or those of one experiment.

    Raises:
        UserError: if a file there is no valid row.
    """
    pattern = f"{experiment or '*'}/*.json"
    files = sorted(Path(results).glob(pattern))
    return [read_record(file) for file in files]


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu ({platform.machine()})"


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far: torch's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)


@cache
def provenance() -> dict[str, Any]:
    """Versions of packages, of Python and of this code."""
    return {
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "code_version": _code_version(),
    }


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _code_version() -> str:
    """Package version, and the commit where the code lies in a git checkout."""
    here = Path(needsaug_lite.__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
    dirty = ["git", "-C", str(here), "status", "--porcelain", "--", str(here)]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True)
        changes = subprocess.run(dirty, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return needsaug_lite.__version__
    mark = "+changes" if changes.stdout.strip() else ""
    return f"{needsaug_lite.__version__} {commit.stdout.strip()}{mark}"


def _rounded(value: Any) -> Any:
    """Numbers to seven digits: rows stay small and lose nothing that is measured."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_rounded(item) for item in value]
    return value
