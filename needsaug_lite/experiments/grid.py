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
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.grid_estimate import estimate
from needsaug_lite.experiments.grid_folder import call_snakemake, driver, write_plan
from needsaug_lite.experiments.grid_places import Places, local_places
from needsaug_lite.experiments.grid_report import FailedRun, GridReport
from needsaug_lite.experiments.records import read_record, row_path
from needsaug_lite.experiments.spec import Spec

KEYS = ("experiment", "profile", "deviations", "base", "runs", "settings", "seeds")
RUN = (sys.executable, "-c", "from needsaug_lite.cli import main; main()", "run")
# Snakemake's arguments that send runs to other machines.
_ELSEWHERE = ("--executor", "-e", "--profile", "--workflow-profile")


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
    cores: int | None = None,
    keep_going: bool = False,
    dry_run: bool = False,
    device: str = "cpu",
    *,
    runs_per_gpu: int = 1,
    gpus: Sequence[str] | None = None,
    profile: Path | None = None,
    starts: Path | None = None,
    work: Path | None = None,
    snakemake_arguments: Sequence[str] = (),
    command: Sequence[str] = RUN,
) -> GridReport:
    """Compute the rows of a grid that do not stand yet.

    It can be called again after any interruption. A run that an interrupted call left
    behind, on this machine or in a cluster's queue, is waited for, not started twice.

    Args:
        file: the grid file (YAML).
        results: folder of the rows, `<results>/<experiment>/<run_id>.json`.
        root: folder of the data sets, handed on to the runs.
        cores: how many runs go side by side; None: every core of this machine, one
            run a GPU, or what the profile says.
        keep_going: finish the other runs after one has failed.
        dry_run: only report what would run, and how long it may take.
        device: handed on to the runs; with "cuda" every run gets a GPU of its own.
        runs_per_gpu: how many runs share a GPU of this machine.
        gpus: what CUDA_VISIBLE_DEVICES calls them; None: those that torch sees.
        profile: folder of a Snakemake profile, for a cluster. Its scheduler hands out
            the GPUs.
        starts: folder of first phases that methods share, handed on to the runs.
        work: folder for specs, logs and Snakemake's notes; `.grid/<name>` by default.
        snakemake_arguments: further arguments.
        command: what runs one spec.

    Returns:
        The report; its `exit_code` is 1 if a row is missing.

    Raises:
        UserError: if the grid, an existing row or an option is wrong; then nothing has
            run.
    """
    specs = expand(_read(file))
    arguments = [*_profile_arguments(profile), *snakemake_arguments]
    places = _places(arguments, device, cores, runs_per_gpu, gpus)
    results = results.resolve()
    pending = [s for s in specs if not row_stands(s, results)]
    present = len(specs) - len(pending)
    if dry_run:
        return GridReport(
            present,
            0,
            planned=tuple(pending),
            estimate=estimate(pending, results, device),
            places=places.count if places else None,
        )
    if not pending:
        return GridReport(present, 0)
    if places is not None or cores is not None:
        arguments = ["--cores", str(places.count if places else cores), *arguments]
    arguments += ["--keep-going"] if keep_going else []
    work = (work or _work_folder(file, results)).resolve()
    options = ["--results", str(results), "--device", _device(device, places)]
    options += ["--root", str(root.resolve())] if root else []
    options += ["--starts", str(starts.resolve())] if starts else []
    with driver(work) as lock:
        # An earlier driver may have finished some of them while we waited.
        pending = [s for s in pending if not row_stands(s, results)]
        write_plan(work, pending, [*command, *options], places)
        call_snakemake(work, arguments, lock)
    missing = [s for s in pending if not row_stands(s, results)]
    failed = tuple(FailedRun(s, work / "logs" / f"{s.run_id}.log") for s in missing)
    return GridReport(present, len(specs) - present - len(missing), failed)


def _profile_arguments(profile: Path | None) -> list[str]:
    if profile is None:
        return []
    if not any(profile.glob("config*.yaml")):
        raise UserError(
            f"{profile} is no Snakemake profile: expected a folder with a config.yaml, "
            "e.g. nbs/cluster/slurm"
        )
    return ["--profile", str(profile.resolve())]


def _places(
    arguments: Sequence[str],
    device: str,
    cores: int | None,
    runs_per_gpu: int,
    gpus: Sequence[str] | None,
) -> Places | None:
    """Room on this machine, or None if the runs go to others."""
    if not any(argument.split("=")[0] in _ELSEWHERE for argument in arguments):
        return local_places(device, cores, runs_per_gpu, gpus)
    if runs_per_gpu > 1:
        raise UserError(
            "--runs-per-gpu works on one machine; on a cluster its scheduler divides "
            "the GPUs, see the profile"
        )
    return None


def _device(device: str, places: Places | None) -> str:
    # With a GPU of its own, a run sees that one only.
    return "cuda" if places is not None and places.gpus else device


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


def _work_folder(file: Path, results: Path) -> Path:
    # Two grids of one name with different rows must not share their notes.
    name = hashlib.sha256(f"{file.resolve()}\n{results}".encode()).hexdigest()[:8]
    return Path(".grid") / f"{file.stem}-{name}"
