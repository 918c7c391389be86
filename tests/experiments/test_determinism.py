"""The same seed on the same machine gives the same row, bit for bit, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.quick import quick_generator

SPECS: list[dict[str, Any]] = [
    {"method": "cross_entropy", "augment": {"crop": 1, "flip": True}},
    {"method": "meta_iada"},
    {"method": "autobalance"},
    {"method": "facog"},
    {"method": "mgr"},
    {"method": "needs_aware"},
]
RUN = """
import json, sys
from needsaug_lite.experiments import Spec, run

for values in json.load(sys.stdin):
    record = run(Spec.checked(values))
    print(json.dumps([record.metrics, record.history, record.data_checksum]))
"""


def spec(values: dict[str, Any]) -> dict[str, Any]:
    common = {
        "profile": "smoke",
        "data": {"n_max": 30, "imbalance": 5, "meta_per_class": 5},
        "model": {"width": 4},
        "optimisation": {"batch_size": 32},
        "epochs": 2,
        "seed": 3,
    }
    return {**common, **quick_generator(values["method"]), **values}


def without_times(value: Any) -> Any:
    """What a run measured, but for how long it took."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "seconds" not in k}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def start(specs: list[dict[str, Any]], folder: Path) -> list[Any]:
    """Rows of a process of its own, which finds nothing that another one left."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NEEDSAUG_DATA": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(specs),
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [without_times(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    specs = [spec(values) for values in SPECS]
    place = tmp_path_factory.mktemp("twice")
    one, other = (start(specs, place / name) for name in ("one", "other"))
    return one, other


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(SPECS)), ids=lambda i: SPECS[i]["method"])
def test_two_processes_agree_in_every_bit(
    place: int, twice: tuple[list[Any], list[Any]]
) -> None:
    one, other = (rows[place] for rows in twice)
    assert len(one[1]) >= 2  # epochs of all stages
    assert one == other
