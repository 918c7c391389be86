"""The tables of what a step of needs-aware generation costs, from `make bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from needsaug_lite.experiments import registry
from needsaug_lite.experiments.measurements import conditions, escaped, rendered
from needsaug_lite.experiments.paper_tables import paper_results

MISSING = (
    "A step of needs-aware generation has not been measured yet: `make bench` does "
    "it.\n"
)
# What every time and every memory is divided by.
UNIT = "mtl"
# Largest times of a step that this library aims at, in steps of `UNIT`.
GOALS = {"needs_aware": 3.0, "needs_aware_reduced": 1.3}
# Lines of Table 10.
_PRINTED = {
    "needs_aware": "needs-aware (ours): Original",
    "needs_aware_reduced": "needs-aware (ours): Reduce",
}
_PRINTED_UNIT = "Pcdarts"
_HEAD = "| method | time / MTL | goal | paper | memory / MTL |"
_RULE = "|---|---:|---:|---:|---:|"


def needs_aware_table(measurements: Path) -> str:
    """One Markdown table for each problem, and how it was measured.

    Args:
        measurements: JSON written by the benchmark: "runs", the provenance by problem,
            and "rows", one for each problem and method, that of MTL among them.

    Returns:
        Markdown; a sentence that nothing was measured if the file is missing.

    Raises:
        UserError: if the file is not what the benchmark writes.
    """

    def render(found: Any) -> str:
        problems = dict.fromkeys(row["problem"] for row in found["rows"])
        parts = [
            _problem(name, [r for r in found["rows"] if r["problem"] == name])
            + "\n\n"
            + conditions(found["runs"][name])
            for name in problems
        ]
        return "\n\n".join([*parts, _printed()]) + "\n" if parts else ""

    return rendered(measurements, MISSING, render)


def paper_days() -> dict[str, float]:
    """GPU days of Table 10 by name of method, and those of PC-DARTS under `UNIT`."""
    table = paper_results("needs_aware", "T10")
    days = table[table["metric"] == "gpu_days"].set_index("method")["value"]
    names = {**_PRINTED, UNIT: _PRINTED_UNIT}
    return {name: float(days[printed]) for name, printed in names.items()}


def _problem(name: str, rows: list[Mapping[str, Any]]) -> str:
    by_method = {row["method"]: row for row in rows}
    unit = by_method[UNIT]
    size = unit["peak_bytes"] / 2**20
    title = (
        f"**{escaped(name)}**: MTL takes {unit['milliseconds']:.1f} ms a step and "
        f"{size:.1f} MiB."
    )
    days = paper_days()
    lines = [
        _line(row, row["peak_bytes"] / unit["peak_bytes"], days)
        for method, row in by_method.items()
        if method != UNIT
    ]
    return "\n".join([title, "", _HEAD, _RULE, *lines])


def _line(row: Mapping[str, Any], memory: float, days: Mapping[str, float]) -> str:
    method, time = row["method"], row["time"]
    cells = [
        escaped(registry.entry(method).label),
        f"{time['ratio']:.2f} [{time['low']:.2f},\u00a0{time['high']:.2f}]",
        f"{GOALS[method]:.1f}" if method in GOALS else "–",
        f"{days[method] / days[UNIT]:.2f}" if method in days else "–",
        f"{memory:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _printed() -> str:
    days = paper_days()
    return (
        "*paper*: GPU days of needs_aware Table 10 over those of PC-DARTS alone, "
        f"{days['needs_aware']:g} / {days[UNIT]:g} and "
        f"{days['needs_aware_reduced']:g} / {days[UNIT]:g}: whole searches for "
        "networks on ImageNet, beside another baseline than ours."
    ).replace("needs_aware Table", "needs\\_aware Table")
