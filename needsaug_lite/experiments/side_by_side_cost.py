"""Time and memory of the methods side by side, from `make bench`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from needsaug_lite.experiments.measurements import conditions, escaped, rendered
from needsaug_lite.experiments.side_by_side import REFERENCE, label

MISSING = (
    "Time and memory side by side have not been measured yet: `make bench` does it.\n"
)
FILE = "side_by_side.json"


def cost_tables(measurements: Path) -> str:
    """One Markdown table for each problem, and how it was measured.

    Args:
        measurements: JSON written by the benchmark: "runs", the provenance by problem,
            and "rows", one for each problem and method.

    Returns:
        Markdown; a sentence that nothing was measured if the file is missing.

    Raises:
        UserError: if the file is not what the benchmark writes.
    """

    def render(found: Any) -> str:
        parts = []
        for problem in dict.fromkeys(row["problem"] for row in found["rows"]):
            rows = [row for row in found["rows"] if row["problem"] == problem]
            lines = ["| method | time | gen. | MiB |", "|---|---:|---:|---:|"]
            cells = [map(escaped, _cells(row)) for row in rows]
            lines += ["| " + " | ".join(line) + " |" for line in cells]
            parts.append(
                "\n".join([f"**{escaped(problem)}**", "", *lines])
                + "\n\n"
                + conditions(found["runs"][problem])
            )
        return "\n\n".join(parts) + "\n" if parts else ""

    return rendered(measurements, MISSING, render)


def cost_frame(rows: list[Mapping[str, Any]]) -> pd.DataFrame:
    """Method, time in trainings of the reference, generator, MiB, as text."""
    names = ("method", "time", "gen.", "MiB")
    return pd.DataFrame([dict(zip(names, _cells(row), strict=True)) for row in rows])


def measured(measurements: Path) -> list[Mapping[str, Any]]:
    """The rows of the largest problem that was measured; none without a file."""
    if not measurements.exists():
        return []
    rows: list[Mapping[str, Any]] = json.loads(measurements.read_text("utf-8"))["rows"]
    problems = dict.fromkeys(row["problem"] for row in rows)
    seconds = {
        problem: max(row["seconds"] for row in rows if row["problem"] == problem)
        for problem in problems
    }
    largest = max(seconds, key=lambda problem: seconds[problem], default="")
    return [row for row in rows if row["problem"] == largest]


def costs(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    """Whole time by method, generator included, in trainings of the reference."""
    return {row["method"]: row["ratio"] + (row["generator"] or 0.0) for row in rows}


def _cells(row: Mapping[str, Any]) -> list[str]:
    ratio = f"{row['ratio']:.2f} [{row['low']:.2f},\u00a0{row['high']:.2f}]"
    made = row["generator"]
    return [
        label(row["method"]),
        "1" if row["method"] == REFERENCE else ratio,
        "–" if made is None else f"+{made:.1f}",
        f"{row['peak_bytes'] / 2**20:.0f}",
    ]
