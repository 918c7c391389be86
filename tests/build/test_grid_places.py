"""Runs side by side: every core, and never more on a GPU than asked for."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.grids import GRID, Bench

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import grid_job
from needsaug_lite.experiments.grid_places import Places, local_places


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks of GPUs lie here, and not where a grid of this machine has them."""
    (tmp_path / "locks").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "locks"))
    return tmp_path


def most_at_once(spans: list[tuple[str, float, float]]) -> int:
    return max(
        sum(start <= moment < end for _, start, end in spans) for _, moment, _ in spans
    )


@pytest.mark.slow
@pytest.mark.parametrize("runs_per_gpu", [1, 2])
def test_runs_fill_all_gpus_and_share_none_beyond_what_is_asked(
    own_folder: Path, runs_per_gpu: int
) -> None:
    bench = Bench(own_folder, GRID | {"seeds": "0-3"})
    (own_folder / "slow").write_text("2")
    report = bench.run(
        cores=None, device="cuda", gpus=("3", "GPU-7"), runs_per_gpu=runs_per_gpu
    )
    assert report.exit_code == 0
    spans = bench.spans()
    assert len(spans) == 8
    for gpu in ("3", "GPU-7"):
        assert most_at_once([s for s in spans if s[0] == gpu]) == runs_per_gpu
    assert most_at_once(spans) == 2 * runs_per_gpu
    assert set(Counter(gpu for gpu, _, _ in spans)) == {"3", "GPU-7"}


def test_a_run_whose_driver_is_gone_keeps_its_gpu(own_folder: Path) -> None:
    order = own_folder / "order"
    note = f"import time; open({str(order)!r}, 'a').write(NAME); time.sleep(SECONDS); "
    note += f"open({str(order)!r}, 'a').write(NAME)"

    def start(name: str, seconds: float) -> subprocess.Popen[bytes]:
        code = note.replace("NAME", repr(name)).replace("SECONDS", str(seconds))
        job = [sys.executable, "-P", grid_job.__file__, "--gpus", "0"]
        job += [str(own_folder / f"{name}.lock"), sys.executable, "-c", code]
        # As of Snakemake: a shell between the driver and the job, which is killed.
        return subprocess.Popen(["sh", "-c", '"$@" & wait', "sh", *job])

    first = start("a", 3)
    deadline = time.monotonic() + 20
    while not order.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert start("b", 0).wait(timeout=30) == 0
    assert order.read_text() == "aabb"


def test_by_default_every_core_or_one_run_a_gpu() -> None:
    assert local_places("cpu").count == len(os.sched_getaffinity(0))
    assert local_places("cpu", cores=7) == Places(7)
    assert local_places("cuda", gpus="012") == Places(3, ("0", "1", "2"))
    assert local_places("cuda", None, 4, "01").count == 8
    assert local_places("cuda", 3, 4, "01").count == 3
    assert local_places("cuda", 9, 1, "01").count == 2
    assert local_places("cuda:1", gpus="01") == Places(1, ("1",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cpu", 0), "--cores 0"),
        (("cuda", None, 0, "0"), "--runs-per-gpu 0"),
        (("cpu", None, 2), "needs --device cuda"),
        (("cuda:2", None, 1, "01"), "no GPU cuda:2; found: 2"),
        (("cuda", None, 1, ""), "no GPU was found"),
    ],
)
def test_places_that_are_not_there_are_refused(arguments, message: str) -> None:
    with pytest.raises(UserError, match=message):
        local_places(*arguments)


def test_on_a_cluster_gpus_are_left_to_the_scheduler(own_folder: Path) -> None:
    bench = Bench(own_folder)
    with pytest.raises(UserError, match="no Snakemake profile"):
        bench.run(profile=own_folder)
    with pytest.raises(UserError, match="on a cluster its scheduler"):
        bench.run(device="cuda", runs_per_gpu=2, snakemake_arguments=["--profile=x"])
    report = bench.run(dry_run=True, device="cuda", snakemake_arguments=["--profile=x"])
    assert report.places is None


def test_a_file_system_without_locks_is_named(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = r"no locks \(flock\)"
    with (
        pytest.raises(OSError, match=message) as caught,
        grid_job.hold(own_folder / "x", ""),
    ):
        pass
    assert caught.value.filename == str(own_folder / "x")
