"""The tables of what an architecture search costs, from `make bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from needsaug_lite.experiments.measurements import conditions, escaped, rendered
from needsaug_lite.experiments.search_results import (
    REFERENCE,
    printed_days,
    short_label,
)

MISSING = "An architecture search has not been measured yet: `make bench` does it.\n"
# What every time and every memory is divided by.
UNIT = REFERENCE
# Largest times of a search that this library aims at, in searches of `UNIT`.
GOALS = {"needs_aware_search": 1.4, "needs_aware_search_reduced": 1.1}
_HEAD = "| search | time / PC-DARTS | goal | paper | memory |"
_RULE = "|---|---:|---:|---:|---:|"
_STEP_HEAD = "| step | warm-up | later | passes |"
_STEP_RULE = "|---|---:|---:|---:|"


def search_time(
    warm_up: Any, moving: Any, *, warm_up_share: float, halved: bool
) -> Any:
    """Time of a whole search, in steps of its usual length.

    t = ℓ (s t_w + (1 - s) t_m),   ℓ = 1/2 for a search that is halved, else 1

    Args:
        warm_up: t_w, of a step with the architecture at rest, seconds.
        moving: t_m, of a step when it learns, mean over a period of its updates.
        warm_up_share: s.
        halved: the search has half of the epochs (needs_aware Sec. 3.2).
    """
    mean = warm_up_share * warm_up + (1 - warm_up_share) * moving
    return mean / 2 if halved else mean


def architecture_search_tables(measurements: Path) -> str:
    """Two Markdown tables for each problem, and how it was measured.

    Args:
        measurements: JSON written by the benchmark: "runs", the provenance by problem,
            and "rows", one for each problem and method, that of PC-DARTS among them.

    Returns:
        Markdown; a sentence that nothing was measured if the file is missing.

    Raises:
        UserError: if the file is not what the benchmark writes.
    """

    def render(found: Any) -> str:
        problems = dict.fromkeys(row["problem"] for row in found["rows"])
        parts = []
        for name in problems:
            rows = [row for row in found["rows"] if row["problem"] == name]
            parts += [_problem(name, rows), _run(found["runs"][name])]
        return "\n\n".join([*parts, _printed()]) + "\n" if parts else ""

    return rendered(measurements, MISSING, render)


def _problem(name: str, rows: list[Mapping[str, Any]]) -> str:
    unit = next(row for row in rows if row["name"] == UNIT)
    rests, moves = (unit["milliseconds"][when] for when in ("warm_up", "moving"))
    title = (
        f"**{escaped(name)}**: PC-DARTS takes {rests:.0f} ms a step in its warm-up, "
        f"{moves:.0f} ms after it, and {unit['peak_bytes'] / 2**20:.0f} MiB."
    )
    days = printed_days()
    searches = [_search(row, unit, days) for row in rows if row is not unit]
    steps = [_step(row) for row in rows]
    return "\n".join(
        [title, "", _HEAD, _RULE, *searches, "", _STEP_HEAD, _STEP_RULE, *steps]
    )


def _search(
    row: Mapping[str, Any], unit: Mapping[str, Any], days: Mapping[str, float]
) -> str:
    name, time = row["name"], row["search"]
    printed = f"{days[name] / days[UNIT]:.2f}" if name in days else "–"
    return _cells(
        _label(row),
        f"{time['ratio']:.2f} [{time['low']:.2f},\u00a0{time['high']:.2f}]",
        f"{GOALS[name]:.1f}" if name in GOALS else "–",
        printed,
        f"{row['peak_bytes'] / unit['peak_bytes']:.2f}",
    )


def _step(row: Mapping[str, Any]) -> str:
    step, passes = row["step"], row["passes"]
    return _cells(
        _label(row),
        f"{step['warm_up']:.2f}",
        f"{step['moving']:.2f}",
        f"{passes['warm_up']:.3g}, {passes['moving']:.3g}",
    )


def _cells(*texts: str) -> str:
    return "| " + " | ".join(texts) + " |"


def _label(row: Mapping[str, Any]) -> str:
    route = row["settings"].get("route", "").replace("_", "-")
    return escaped(", ".join(filter(None, [short_label(row["method"]), route])))


def _run(run: Mapping[str, Any]) -> str:
    made = run["pretraining"]
    share = (
        f"Pretraining the generator, {made['milliseconds']:.0f} ms a step, is in none "
        f"of these times: the {made['steps']:,} steps before the book's rows take "
        f"{made['searches']:.2f} times as long as a search of PC-DARTS of "
        f"{made['search_steps']:,} steps."
    )
    return f"{share} {conditions(run)}"


def _printed() -> str:
    days = printed_days()
    ours = "needs_aware_search", "needs_aware_search_reduced"
    shown = " and ".join(f"{days[name]:g} / {days[UNIT]:g}" for name in ours)
    return (
        f"*paper*: GPU days of needs\\_aware Table 10 over those of PC-DARTS, {shown}: "
        "whole searches on ImageNet."
    )
