"""The work folder of a grid: its plan, its one driver, and Snakemake in it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from needsaug_lite.experiments import grid_job
from needsaug_lite.experiments.grid_places import Places
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.files import write_text

logger = logging.getLogger(__name__)

SNAKEFILE = Path(__file__).with_name("grid.smk")
_EMPTY_PLAN: dict[str, Any] = {
    "pending": [],
    **dict.fromkeys(("job", "command", "caller", "work"), ""),
}


def write_plan(
    work: Path, pending: Sequence[Spec], command: Sequence[str], places: Places | None
) -> None:
    """Write the specs, and forget every earlier note that a run is done.

    Args:
        work: the work folder.
        pending: the runs to come.
        command: what runs one spec.
        places: of this machine; None: a cluster's scheduler hands out its GPUs.
    """
    shutil.rmtree(work / "done", ignore_errors=True)
    for folder in ("specs", "logs", "locks", "done"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    # Whole files at any time: jobs that a killed driver left in a queue read them.
    for spec in pending:
        write_text(work / "specs" / f"{spec.run_id}.json", spec.model_dump_json())
    # As a file, not as a module: the lock needs nothing of the library.
    job = [sys.executable, "-P", grid_job.__file__]
    if places is not None and places.gpus:
        job += ["--gpus", ",".join(places.gpus)]
        job += ["--runs-per-gpu", str(places.runs_per_gpu)]
    plan = {
        "pending": [spec.run_id for spec in pending],
        "job": shlex.join(job),
        "command": shlex.join(command),
        "caller": shlex.quote(str(Path.cwd())),
        "work": shlex.quote(str(work)),
    }
    write_text(work / "plan.json", json.dumps(plan, indent=1))


@contextmanager
def driver(work: Path) -> Iterator[int]:
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
            call_snakemake(work, ["--cores", "1", "--unlock", "--quiet", "all"], lock)
        yield lock


def call_snakemake(work: Path, arguments: Sequence[str], lock: int) -> None:
    """Call Snakemake in the work folder; what it did is read from the rows.

    Snakemake inherits the driver's lock: if only this process is killed, the folder
    stays locked for as long as Snakemake lives.
    """
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    call = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    call += ["--directory", str(work), "--rerun-incomplete", "--quiet", "host"]
    if not (work / "plan.json").exists():
        write_text(work / "plan.json", json.dumps(_EMPTY_PLAN))
    command = [*call, *arguments]
    with subprocess.Popen(command, env=environment, pass_fds=(lock,)) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            # It has heard the same Ctrl-C, and needs time to cancel a cluster's jobs.
            process.wait()
            raise
