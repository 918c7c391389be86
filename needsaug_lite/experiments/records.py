"""Rows: what a run gave, with everything needed to doubt it."""

from __future__ import annotations

import json
import logging
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

import needsaug_lite
from needsaug_lite.errors import UserError
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.experiments.stale import (
    DataCheck,
    StaleRow,
    StaleRowError,
    code_reason,
    data_key,
    disagreeing,
    in_words,
    settings_reason,
    stale_row,
)
from needsaug_lite.files import write_text

_log = logging.getLogger(__name__)
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
        threads: CPU threads of torch, in each process.
        data_checksum: SHA-256 of the very images and labels; of frozen features, that
            of the images that they were made of.
        versions, python, device, code_version, created: provenance.
        weights_sha256: of the file with weights to start from, if there was one.
        processes: how many shared out the batches; memory and device are of the first.
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
    processes: int = 1

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


class Rows(NamedTuple):
    """Rows below a folder: those that count, those that don't, and open questions.

    `unchecked` tells of standing rows whose data aren't at hand: how many, by reason.
    """

    standing: list[Record]
    stale: list[StaleRow]
    unchecked: dict[str, int]


def read_record(file: Path) -> Record:
    """One row, checked: the name must be the hash of the spec inside.

    The data aren't compared; see `read_rows`.

    Raises:
        UserError: if the file is no row, or isn't the row that its name says. Of it
            StaleRowError, if the row is sound and its settings or the code that they
            name are others now.
    """
    try:
        text = file.read_text(encoding="utf-8")
        record = Record.model_validate_json(text)
    except ValidationError as error:
        raise _refused(file, text, error) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no readable row: {error}") from error
    _check_name(file, record.run_id)
    reason = code_reason(record.spec, record.run_id, record.method_version)
    if reason is not None:
        raise StaleRowError(stale_row(file, dict(record.spec), reason))
    return record


def _refused(file: Path, text: str, error: ValidationError) -> UserError:
    """The error for a file that holds no record: a stale row if it once was one."""
    if all(problem["loc"][:1] == ("spec",) for problem in error.errors()):
        content = json.loads(text)
        settings = content.get("spec")
        if isinstance(settings, dict):
            _check_name(file, content["run_id"])
            reason = settings_reason(settings)
            if reason is not None:
                return StaleRowError(stale_row(file, settings, reason))
    return UserError(f"{file} is no readable row: {error}")


def _check_name(file: Path, run_id: str) -> None:
    if run_id != file.stem:
        raise UserError(f"{file} holds the row of run {run_id}")


def read_rows(
    results: Path | str = Path("book/results"),
    experiment: str | None = None,
    *,
    root: Path | None = None,
) -> Rows:
    """All rows below a results folder or those of one experiment, stale ones apart.

    A row is stale if its settings can't be run any more, if another version of the code
    made it, or if its data are others now: by their checksum where they are at hand,
    else by another row with the same settings of data and the same seed.

    Args:
        results, experiment: which rows.
        root: folder of the published data sets to compare with; None: only data that
            come with a package are compared.

    Raises:
        UserError: if a file there is damaged or misnamed.
    """
    check = DataCheck(root)
    found: list[tuple[Path, Record]] = []
    stale: list[StaleRow] = []
    for file in sorted(Path(results).glob(f"{experiment or '*'}/*.json")):
        try:
            record = read_record(file)
        except StaleRowError as error:
            stale.append(error.row)
            continue
        reason = check.reason(record.spec, record.data_checksum)
        if reason is None:
            found.append((file, record))
        else:
            stale.append(stale_row(file, dict(record.spec), reason))
    split = disagreeing((one.spec, one.data_checksum) for _, one in found)
    standing = []
    for file, record in found:
        if data_key(record.spec) in split:
            reason = "rows with the same data and seed hold different checksums"
            stale.append(stale_row(file, dict(record.spec), reason))
        else:
            standing.append(record)
    return Rows(standing, stale, dict(check.unchecked))


def load_records(
    results: Path | str = Path("book/results"), experiment: str | None = None
) -> list[Record]:
    """The rows below a results folder, or of one experiment, that stand.

    Stale rows are left out, with a warning that says how many and why; `read_rows`
    returns them.

    Args:
        results: folder of the rows.
        experiment: only the rows of this one.

    Returns:
        The rows.

    Raises:
        UserError: if a file there is damaged or misnamed.
    """
    rows = read_rows(results, experiment)
    for line in in_words(rows.stale):
        _log.warning("%s: %s; not counted", experiment or results, line)
    return rows.standing


def full_rows(records: Iterable[Record]) -> list[Record]:
    """Rows that may stand beside a paper's number: full, and on test images."""
    return [
        record
        for record in records
        if record.spec.profile == "full" and record.spec.evaluate_on == "test"
    ]


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
