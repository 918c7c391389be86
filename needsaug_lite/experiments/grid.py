"""Many runs from one small file: methods x settings x seeds, through Snakemake.

    experiment: long_tail
    profile: reduced
    deviations: ["width 16 instead of ResNet-32"]
    base: {data: {name: fashion_mnist, imbalance: 100}}
    runs:
      - {method: cross_entropy}
      - {method: ldam, hyperparameters: {max_margin: 0.5}}
    settings:                      # optional; every run is combined with every setting
      - {data: {imbalance: 10}}
      - {data: {imbalance: 100}}
    seeds: 0-9

Each run is a process of its own that writes its row in one step. Rows are never outputs
of the workflow: whether a row stands is read from the row itself, so that no scheduler
can delete one or take an old time for a change.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import grid_job
from needsaug_lite.experiments.records import read_record, row_path
from needsaug_lite.experiments.spec import Spec

logger = logging.getLogger(__name__)

KEYS = ("experiment", "profile", "deviations", "base", "runs", "settings", "seeds")
RUN = (sys.executable, "-c", "from needsaug_lite.cli import main; main()", "run")
_EMPTY_PLAN: dict[str, Any] = {
    "pending": [],
    **dict.fromkeys(("job", "command", "caller", "work"), ""),
}
SNAKEFILE = Path(__file__).with_name("grid.smk")


@dataclass(frozen=True)
class FailedRun:
    """A run without a row after the grid has ended, and where its output went."""

    spec: Spec
    log: Path


@dataclass(frozen=True)
class GridReport:
    """What a call of the grid found and did."""

    present: int
    computed: int
    failed: tuple[FailedRun, ...] = ()
    planned: tuple[Spec, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 if every row stands (or nothing was to be run), else 1."""
        return 1 if self.failed else 0

    def summary(self) -> str:
        """The report in a few lines, failed runs with their logs last."""
        lines = [f"{self.present} rows were there, {self.computed} are new"]
        lines += [f"would run {s.run_id}: {_describe(s)}" for s in self.planned]
        lines += [
            f"FAILED {f.spec.run_id}: {_describe(f.spec)}; log: {f.log}"
            for f in self.failed
        ]
        if self.failed:
            lines.append(f"{len(self.failed)} runs failed or were not started")
        return "\n".join(lines)


def expand(grid: Mapping[str, Any]) -> list[Spec]:
    """All runs of a grid, in the order of the file: run, then setting, then seed.

    Args:
        grid: the content of a grid file.

    Returns:
        One validated spec per run.

    Raises:
        UserError: if a key is unknown or missing, a spec is invalid, or two runs are
            the same.
    """
    unknown = sorted(str(key) for key in set(grid) - set(KEYS))
    if unknown:
        raise UserError(
            f"unknown keys in the grid: {', '.join(unknown)}; known: {', '.join(KEYS)}"
        )
    for key in ("experiment", "runs", "seeds"):
        if grid.get(key) in (None, "", []):
            raise UserError(f"the grid needs a value for `{key}`")
    for key in ("runs", "settings"):
        if not isinstance(grid.get(key, []), list | tuple | None):
            raise UserError(f"`{key}` of the grid must be a list, not {grid[key]!r}")
    if not isinstance(grid.get("base", {}), Mapping | None):
        raise UserError(f"`base` of the grid must be names with values: {grid['base']}")
    shared = {k: grid[k] for k in ("experiment", "profile", "deviations") if k in grid}
    specs: dict[str, Spec] = {}
    for run, setting, seed in _combinations(grid):
        partial = merged(grid.get("base") or {}, run, setting, shared, {"seed": seed})
        where = f"run {dict(run)} with setting {dict(setting)} and seed {seed}"
        spec = Spec.checked(partial, where)
        if spec.run_id in specs:
            raise UserError(
                f"two runs of the grid are the same ({spec.run_id}): "
                f"{json.dumps(partial, default=str)}"
            )
        specs[spec.run_id] = spec
    return list(specs.values())


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings, later ones first in rank; nested mappings are merged too."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            old = result.get(key)
            if isinstance(old, Mapping) and isinstance(value, Mapping):
                result[key] = merged(old, value)
            else:
                result[key] = copy.deepcopy(value)
    return result


def seeds(text: int | str | Sequence[int]) -> list[int]:
    """`[0, 3]`, `7`, `"0-9"` or `"0-4, 7"` as a list of seeds."""
    if isinstance(text, int):
        return [text]
    if not isinstance(text, str):
        given: list[Any] = list(text) if isinstance(text, Sequence) else [text]
        if all(isinstance(number, int) for number in given):
            return given
        raise UserError(f"seeds: expected a list or a range such as 0-9, not {text!r}")
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdigit() and (last.isdigit() or not dash)):
            raise UserError(
                f"seeds: expected a list or a range such as 0-9, not {text}"
            )
        numbers += range(int(first), int(last or first) + 1)
    if not numbers:
        raise UserError(f"seeds: {text} is an empty range")
    return numbers


def row_stands(spec: Spec, results: Path) -> bool:
    """True if the row of this spec exists and is what its name says.

    Raises:
        UserError: if the file is not that row; it is left alone.
    """
    row = row_path(spec, results)
    return row.is_file() and bool(read_record(row))


def run_grid(
    file: Path,
    results: Path,
    root: Path | None = None,
    cores: int = 1,
    keep_going: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    *,
    starts: Path | None = None,
    work: Path | None = None,
    snakemake_arguments: Sequence[str] = (),
    command: Sequence[str] = RUN,
) -> GridReport:
    """Compute the rows of a grid that do not stand yet.

    It can be called again after any interruption. A run that an interrupted call left
    behind is waited for, not started twice.

    Args:
        file: the grid file (YAML).
        results: folder of the rows, `<results>/<experiment>/<run_id>.json`.
        root: folder of the data sets, handed on to the runs.
        cores: how many runs go side by side.
        keep_going: finish the other runs after one has failed.
        dry_run: only report what would run.
        device: handed on to the runs.
        starts: folder of first phases that methods share, handed on to the runs.
        work: folder for specs, logs and Snakemake's notes; `.grid/<name>` by default.
        snakemake_arguments: further arguments, e.g. `--profile` of a cluster.
        command: what runs one spec.

    Returns:
        The report; its `exit_code` is 1 if a row is missing.

    Raises:
        UserError: if the grid or an existing row is wrong; then nothing has run.
    """
    specs = expand(_read(file))
    results = results.resolve()
    pending = [s for s in specs if not row_stands(s, results)]
    present = len(specs) - len(pending)
    if dry_run or not pending:
        return GridReport(present, 0, planned=tuple(pending))
    work = (work or _work_folder(file, results)).resolve()
    options = ["--results", str(results), "--device", device]
    options += ["--root", str(root.resolve())] if root else []
    options += ["--starts", str(starts.resolve())] if starts else []
    with _driver(work) as lock:
        # An earlier driver may have finished some of them while we waited.
        pending = [s for s in pending if not row_stands(s, results)]
        _write_plan(work, pending, [*command, *options])
        arguments = ["--cores", str(cores), *snakemake_arguments]
        arguments += ["--keep-going"] if keep_going else []
        _snakemake(work, arguments, lock)
    missing = [s for s in pending if not row_stands(s, results)]
    failed = tuple(FailedRun(s, work / "logs" / f"{s.run_id}.log") for s in missing)
    return GridReport(present, len(specs) - present - len(missing), failed)


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise UserError(f"there is no grid file {file}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: expected the keys {', '.join(KEYS)}")
    return content


def _combinations(grid: Mapping[str, Any]) -> Iterator[tuple[Any, Any, int]]:
    for run in grid["runs"]:
        for setting in grid.get("settings") or [{}]:
            for part in (run, setting):
                if not isinstance(part, Mapping):
                    raise UserError(f"expected a partial spec, not {part!r}")
            for seed in seeds(grid["seeds"]):
                yield run, setting, seed


def _describe(spec: Spec) -> str:
    chosen = spec.hyperparameters or ""
    return f"{spec.method} {chosen} on {spec.data.name}, seed {spec.seed}"


def _work_folder(file: Path, results: Path) -> Path:
    # Two grids of one name with different rows must not share their notes.
    name = hashlib.sha256(f"{file.resolve()}\n{results}".encode()).hexdigest()[:8]
    return Path(".grid") / f"{file.stem}-{name}"


def _write_plan(work: Path, pending: Sequence[Spec], command: Sequence[str]) -> None:
    """Write the specs, and forget every earlier note that a run is done."""
    shutil.rmtree(work / "done", ignore_errors=True)
    for folder in ("specs", "logs", "locks", "done"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    for spec in pending:
        (work / "specs" / f"{spec.run_id}.json").write_text(spec.model_dump_json())
    # As a file, not as a module: the lock needs nothing of the library.
    job = [sys.executable, "-P", grid_job.__file__]
    plan = {
        "pending": [spec.run_id for spec in pending],
        "job": shlex.join(job),
        "command": shlex.join(command),
        "caller": shlex.quote(str(Path.cwd())),
        "work": shlex.quote(str(work)),
    }
    (work / "plan.json").write_text(json.dumps(plan, indent=1))


@contextmanager
def _driver(work: Path) -> Iterator[int]:
    """Be the only driver of a work folder; clear up after one that was killed."""
    work.mkdir(parents=True, exist_ok=True)
    with grid_job.hold(work / "driver.lock", wait_message=(
        f"An earlier call still works on {work}; waiting for it to end"
    )) as lock:  # fmt: skip
        if any((work / ".snakemake" / "locks").glob("*")):
            logger.warning(
                "An earlier call on %s was killed: its lock is removed, its unfinished "
                "runs are repeated, runs still going are waited for",
                work,
            )
            _snakemake(work, ["--cores", "1", "--unlock", "--quiet", "all"], lock)
        yield lock


def _snakemake(work: Path, arguments: Sequence[str], lock: int) -> None:
    """Call Snakemake in the work folder; what it did is read from the rows.

    Snakemake inherits the driver's lock: if only this process is killed, the folder
    stays locked for as long as Snakemake lives.
    """
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    call = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    call += ["--directory", str(work), "--rerun-incomplete", "--quiet", "host"]
    if not (work / "plan.json").exists():
        (work / "plan.json").write_text(json.dumps(_EMPTY_PLAN))
    subprocess.run([*call, *arguments], env=environment, pass_fds=(lock,), check=False)
