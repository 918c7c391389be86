"""Measured rows in their file, with the machine and the versions they come from."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from needsaug_lite.files import write_text

MEASUREMENTS = Path(__file__).parents[2] / "book/measurements"


def provenance(packages: Mapping[str, str], rounds: int, **more: Any) -> dict[str, Any]:
    """Where and when; `packages` are distributions by the name in the table."""
    versions = {"torch": str(torch.__version__)}
    for who, package in packages.items():
        try:
            versions[who] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        **more,
        "rounds": rounds,
    }


def processor() -> str:
    """The CPU's name; on Linux platform.processor() knows only its architecture."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def record(
    target: Path,
    key: str,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    run: Mapping[str, Any],
) -> None:
    """Put rows with `name` under `key` in place of the earlier ones."""
    old = (
        json.loads(target.read_text()) if target.exists() else {"runs": {}, "rows": []}
    )
    kept = [row for row in old["rows"] if row[key] != name]
    found = {"runs": {**old["runs"], name: run}, "rows": [*kept, *rows]}
    write_text(target, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
