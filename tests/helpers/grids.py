"""A grid whose runs are stand-ins that take no time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from needsaug_lite.experiments.grid import GridReport, expand, run_grid
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.spec import Spec

# Stands in for `needsaug run`: copies a prepared row, notes that it was called, when
# and on which GPU, and fails or sleeps where the test wants it.
STUB = """
import json, os, pathlib, sys, time
import argparse
p = argparse.ArgumentParser()
for name in ("--spec", "--results", "--device", "--root"):
    p.add_argument(name)
o = p.parse_args()
start = time.time()
here = pathlib.Path(__file__).parent
run_id = pathlib.Path(o.spec).stem
row = next(here.glob(f"rows/*/{run_id}.json"))
target = pathlib.Path(o.results) / row.parent.name / row.name
if target.exists():
    sys.exit(0)
with (here / "calls").open("a") as calls:
    calls.write(run_id + "\\n")
if (here / "slow").exists():
    time.sleep(float((here / "slow").read_text()))
if (here / f"fail_{run_id}").exists():
    print("it broke on purpose")
    sys.exit(1)
target.parent.mkdir(parents=True, exist_ok=True)
partial = target.with_suffix(".part")
partial.write_text(row.read_text())
os.replace(partial, target)
gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
with (here / "spans").open("a") as spans:
    spans.write(f"{gpu} {start} {time.time()}\\n")
"""
GRID: dict[str, Any] = {
    "experiment": "long_tail",
    "profile": "lite",
    "base": {"data": {"name": "digits", "imbalance": 20}, "epochs": 2},
    "runs": [{"method": "cross_entropy"}, {"method": "ldam"}],
    "seeds": "0-1",
}


def record(
    spec: Spec, *, seconds: float = 0.0, images: int = 1, device: str = "cpu"
) -> Record:
    return Record(
        run_id=spec.run_id,
        method_version=spec.method_version,
        spec=spec,
        metrics={},
        class_counts=[images],
        history=[],
        seconds=seconds,
        peak_memory_mib=0.0,
        threads=1,
        device=device,
        data_checksum="",
        versions={},
        python="",
        code_version="",
        created="",
    )


class Bench:
    """A grid file, prepared rows and a stand-in for the command."""

    def __init__(self, folder: Path, grid: dict[str, Any] = GRID) -> None:
        self.folder = folder
        self.specs = expand(grid)
        self.results = folder / "results"
        self.file = folder / "grid.yaml"
        self.file.write_text(yaml.safe_dump(grid))
        (folder / "stub.py").write_text(STUB)
        for spec in self.specs:
            record(spec).save(folder / "rows")

    def run(self, **options: Any) -> GridReport:
        return run_grid(
            self.file,
            self.results,
            work=self.folder / "work",
            command=(sys.executable, str(self.folder / "stub.py")),
            **{"cores": 2, **options},
        )

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().split() if file.exists() else []

    def spans(self) -> list[tuple[str, float, float]]:
        """GPU, start and end of every run that has ended."""
        lines = (self.folder / "spans").read_text().splitlines()
        parts = [line.split() for line in lines]
        return [(gpu, float(start), float(end)) for gpu, start, end in parts]

    def rows(self) -> set[str]:
        return {row.stem for row in self.results.rglob("*.json")}
