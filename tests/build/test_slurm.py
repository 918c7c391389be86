"""Grids on a real Slurm of one node: cancelled jobs, killed controllers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import slurm

from needsaug_lite.experiments.grid import expand

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing()),
]
PROFILE = Path(__file__).parents[2] / "nbs/cluster/slurm"
# The committed profile, in a hurry and for a small machine.
HURRY = ["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "10"]
HURRY += ["--default-resources", "runtime=30", "mem_mb=500"]
GRID: dict[str, Any] = {
    "experiment": "queue",
    "profile": "smoke",
    "base": {"epochs": 1, "model": {"width": 4}},
    "runs": [{"method": "cross_entropy"}, {"method": "ldam"}],
    "seeds": "0-1",
}
# Seconds, for a machine with much else to do; an idle one needs about a tenth.
PATIENCE = 600

# `needsaug run`, with notes of when it began and whether its row stood by then. All but
# the first run wait for a file, so that the test knows what goes on when it kills.
NOTED_RUN = """
import pathlib, subprocess, sys, time
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
run_id = pathlib.Path(words[words.index("--spec") + 1]).stem
def note(event):
    with (here / "notes").open("a") as notes:
        notes.write(f"{event} {run_id}\\n")
stood = any(here.glob(f"rows/*/{run_id}.json"))
note("stood" if stood else "began")
try:
    with (here / "first").open("x") as first:
        first.write(run_id)
except FileExistsError:
    pass
deadline = time.monotonic() + 600
while run_id != (here / "first").read_text() and not (here / "go").exists():
    if time.monotonic() > deadline:
        sys.exit("nobody let it go on")
    time.sleep(0.1)
call = [sys.executable, "-m", "needsaug_lite.cli", "run", *words]
code = subprocess.run(call, timeout=600).returncode
note("ended")
sys.exit(code)
"""
DRIVER = """
import json, sys
from pathlib import Path
from needsaug_lite.experiments.grid import run_grid
folder, profile, *further = sys.argv[1:]
here = Path(folder)
report = run_grid(
    here / "grid.yaml", here / "rows", profile=Path(profile), work=here / "work",
    snakemake_arguments=further, command=(sys.executable, str(here / "noted_run.py")),
)
print(report.summary())
sys.exit(report.exit_code)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of a grid, on a machine with a queue."""
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    with slurm.one_node():
        yield tmp_path


def start(folder: Path, *call: str) -> subprocess.Popen[str]:
    """Start a controller in a process group of its own; its words go to a file."""
    with (folder / "said").open("a") as said:
        return subprocess.Popen(
            [sys.executable, *call],
            cwd=folder,
            start_new_session=True,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
        )


def end(folder: Path, controller: subprocess.Popen[str]) -> str:
    """Wait for a controller that is expected to succeed; what was said so far."""
    try:
        code = controller.wait(timeout=PATIENCE)
    finally:
        if controller.poll() is None:
            os.killpg(controller.pid, signal.SIGKILL)
            controller.wait(timeout=10)
    said = (folder / "said").read_text()
    assert code == 0, said
    return said


def until(condition: Callable[[], object], folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        said = (folder / "said").read_text()
        assert time.monotonic() < deadline, f"{said}\n{slurm.jobs()}"
        time.sleep(0.2)


def rows(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every row, by its name."""
    return {
        file.stem: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in (folder / "rows").rglob("*.json")
    }


def test_a_grid_finishes_also_if_a_job_is_cancelled(folder: Path) -> None:
    grid = ("-m", "needsaug_lite.cli", "grid", "grid.yaml", "--results", "rows")
    controller = start(folder, *grid, "--profile", str(PROFILE), "--", *HURRY)
    try:
        until(lambda: slurm.jobs("running"), folder)
        victim, (comment, _) = next(iter(slurm.jobs("running").items()))
        subprocess.run(["scancel", victim], timeout=30, check=True)
    finally:
        said = end(folder, controller)
    assert "4 are new" in said
    found = rows(folder)
    assert set(found) == {spec.run_id for spec in expand(GRID)}
    for content, _ in found.values():
        assert "balanced_accuracy" in json.loads(content)["metrics"]
    states = [state for word, state in slurm.jobs().values() if word == comment]
    assert sorted(states) == ["CANCELLED", "COMPLETED"]

    # Where the rows were computed makes no difference: nothing is left to do here.
    said = end(folder, start(folder, *grid))
    assert said.splitlines()[-1] == "4 rows were there, 0 are new"
    assert rows(folder) == found


def test_a_killed_controller_is_called_again(folder: Path) -> None:
    specs = expand(GRID)
    (folder / "noted_run.py").write_text(NOTED_RUN)
    (folder / "drive.py").write_text(DRIVER)
    (folder / "notes").touch()
    call = ("drive.py", str(folder), str(PROFILE), *HURRY)
    controller = start(folder, *call)
    try:
        until(lambda: (folder / "notes").read_text().count("began") == 3, folder)
        until(lambda: rows(folder), folder)
    finally:
        os.killpg(controller.pid, signal.SIGKILL)
        controller.wait(timeout=10)
    before = rows(folder)
    assert set(before) == {(folder / "first").read_text()}
    left = slurm.jobs("running,pending")
    assert len(left) == 3, "two runs go on without a controller, one is in the queue"

    controller = start(folder, *call)
    try:
        until(lambda: set(slurm.jobs("running,pending")) - set(left), folder)
        (folder / "go").touch()
    finally:
        said = end(folder, controller)
    assert "An earlier call" in said
    assert "was killed" in said
    # A job of the first call may find that the second has computed its run, and end.
    until(lambda: not slurm.jobs("running,pending"), folder)
    after = rows(folder)
    assert set(after) == {spec.run_id for spec in specs}
    assert before.items() <= after.items(), "a finished row isn't touched"

    notes = [line.split() for line in (folder / "notes").read_text().splitlines()]
    for spec in specs:
        events = [event for event, run_id in notes if run_id == spec.run_id]
        assert events.count("began") == 1, f"{spec.run_id} was computed once: {events}"
        assert set(events[1::2]) == {"ended"}, f"one at a time: {events}"
        assert len(events) % 2 == 0
