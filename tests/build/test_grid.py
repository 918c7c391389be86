"""A grid computes each missing row once, loses none, and survives interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.grids import GRID, Bench, record
from hypothesis import given
from hypothesis import strategies as st

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.grid import expand, merged, seeds
from needsaug_lite.experiments.grid_report import SHOWN
from needsaug_lite.experiments.records import row_path


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_expansion_is_the_product_in_the_order_of_the_file() -> None:
    grid = GRID | {"settings": [{"epochs": 1}, {"data": {"imbalance": 5}}]}
    specs = expand(grid)
    found = [(s.method, s.epochs, s.data.imbalance, s.seed) for s in specs]
    assert found == [
        (method, *setting, seed)
        for method in ("cross_entropy", "ldam")
        for setting in ((1, 20), (2, 5))
        for seed in (0, 1)
    ]
    assert {s.experiment for s in specs} == {"long_tail"}
    assert {s.data.name for s in specs} == {"digits"}, "nested values are merged"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [1]}, "unknown keys in the grid: sedes"),
        ({"seeds": None}, "needs a value for `seeds`"),
        ({"seeds": [1, 1]}, "two runs of the grid are the same"),
        ({"seeds": "4-2"}, "empty range"),
        ({"seeds": "a-b"}, "expected a list or a range"),
        ({"runs": [{"method": "ldam"}] * 2}, "two runs of the grid are the same"),
        ({"runs": [{"metod": "ldam"}]}, r"metod: unknown name"),
        ({"runs": [{"method": "no_such_method"}]}, "unknown method"),
        ({"runs": ["ldam"]}, "partial spec"),
    ],
)
def test_a_wrong_grid_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(GRID | change)


@given(st.integers(0, 50), st.integers(0, 20))
def test_a_range_of_seeds_holds_both_ends(first: int, more: int) -> None:
    last = first + more
    assert seeds(f"{first}-{last}") == list(range(first, last + 1))
    assert seeds(f"{first}, {last}") == [first, last]


nested = st.recursive(
    st.integers(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
).filter(lambda value: isinstance(value, dict))


@given(nested, nested, nested)
def test_merging_keeps_its_parts_and_is_associative(
    one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]
) -> None:
    assert merged(one, one) == one
    assert merged(one, {}) == one == merged({}, one)
    for key, value in two.items():
        if not isinstance(value, dict):
            assert merged(one, two)[key] == value
    assert set(merged(one, two, three)) == set(one) | set(two) | set(three)


def test_a_wrong_row_stops_everything_and_stays(bench: Bench) -> None:
    row = row_path(bench.specs[0], bench.results)
    row.parent.mkdir(parents=True)
    for text in (
        '{"run_id": "x"}',
        "half a r",
        record(bench.specs[1]).model_dump_json(),
    ):
        row.write_text(text)
        with pytest.raises(UserError, match=row.name):
            bench.run()
        assert row.read_text() == text
    assert bench.calls() == []


def test_a_dry_run_runs_nothing(bench: Bench) -> None:
    report = bench.run(dry_run=True)
    assert [s.run_id for s in report.planned] == [s.run_id for s in bench.specs]
    assert report.exit_code == 0
    assert bench.calls() == []
    assert f"{len(bench.specs)} runs: 0 rows stand" in report.summary()


def test_a_dry_run_lists_some_runs_or_all(tmp_path: Path) -> None:
    bench = Bench(tmp_path, GRID | {"seeds": f"0-{SHOWN - 1}"})
    report = bench.run(dry_run=True)
    named = [s for s in bench.specs if s.run_id in report.summary()]
    assert named == bench.specs[:SHOWN]
    assert f"... and {SHOWN} more (--all" in report.summary()
    listed = report.summary(every_run=True)
    assert all(s.run_id in listed for s in bench.specs)
    assert "more" not in listed


@pytest.mark.slow
def test_rows_are_computed_once_and_failures_are_listed(bench: Bench) -> None:
    present, broken = bench.specs[0], bench.specs[1]
    record(present).save(bench.results)
    row = row_path(present, bench.results)
    before = (row.read_text(), row.stat().st_mtime_ns)
    (bench.folder / f"fail_{broken.run_id}").touch()

    report = bench.run(keep_going=True)
    assert report.exit_code == 1
    assert (report.present, report.computed) == (1, 2)
    assert [f.spec.run_id for f in report.failed] == [broken.run_id]
    assert "it broke on purpose" in report.failed[0].log.read_text()
    assert str(report.failed[0].log) in report.summary()
    assert sorted(bench.calls()) == sorted(s.run_id for s in bench.specs[1:])
    assert bench.rows() == {s.run_id for s in bench.specs} - {broken.run_id}

    # The same call again fails again. Mended, it computes what is missing only: that
    # run, and a row that someone has removed.
    assert bench.run(keep_going=True).exit_code == 1
    (bench.folder / f"fail_{broken.run_id}").unlink()
    removed = bench.specs[2]
    row_path(removed, bench.results).unlink()
    report = bench.run()
    assert (report.exit_code, report.computed) == (0, 2)
    assert bench.rows() == {s.run_id for s in bench.specs}
    counts = [bench.calls().count(s.run_id) for s in bench.specs]
    assert counts == [0, 3, 2, 1]
    assert (row.read_text(), row.stat().st_mtime_ns) == before


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "snakemake"])
def test_a_killed_grid_goes_on_without_doing_a_run_twice(
    bench: Bench, victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    (bench.folder / "slow").write_text("3")
    arguments = json.dumps(
        {
            "file": str(bench.file),
            "results": str(bench.results),
            "work": str(bench.folder / "work"),
            "stub": str(bench.folder / "stub.py"),
        }
    )
    code = f"""
import json, sys
from pathlib import Path
from needsaug_lite.experiments.grid import run_grid
a = json.loads({arguments!r})
run_grid(Path(a["file"]), Path(a["results"]), cores=2, work=Path(a["work"]),
         command=(sys.executable, a["stub"]))
"""
    driver = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    deadline = time.monotonic() + 300
    while len(bench.calls()) < 2:
        assert time.monotonic() < deadline, "the grid did not start"
        time.sleep(0.1)
    if victim == "snakemake":
        os.kill(_child(driver.pid), signal.SIGKILL)
    driver.kill()
    driver.wait()

    report = bench.run()
    assert report.exit_code == 0
    assert bench.rows() == {s.run_id for s in bench.specs}
    assert sorted(bench.calls()) == sorted(s.run_id for s in bench.specs)
    word = "was killed" if victim == "snakemake" else "still works on"
    assert word in caplog.text


def _child(pid: int) -> int:
    listing = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in listing.stdout.splitlines() if "snakemake" in line]
    return int(lines[0].split()[0])
