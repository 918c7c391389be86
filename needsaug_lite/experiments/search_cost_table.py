"""The table of what a search for a loss costs, from `make bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from needsaug_lite.experiments.measurements import conditions, escaped, rendered

MISSING = "The cost of a search has not been measured yet: `make bench` does it.\n"
_HEAD = (
    "| method | batches for a hypergradient | time, in plain trainings | "
    "balanced error, % | less than plain training, points |"
)
_RULE = "|---|---:|---:|---:|---:|"


def search_cost_table(measurements: Path) -> str:
    """One Markdown table with a line for each method, and how it was measured.

    Args:
        measurements: JSON written by the benchmark: "runs", the provenance by problem,
            and "rows".

    Returns:
        Markdown; a sentence that nothing was measured if the file is missing.

    Raises:
        UserError: if the file is not what the benchmark writes.
    """

    def render(found: Any) -> str:
        if not found["rows"]:
            return ""
        lines = [_HEAD, _RULE, *map(_line, found["rows"])]
        problems = dict.fromkeys(row["problem"] for row in found["rows"])
        notes = [f"{name}: {conditions(found['runs'][name])}" for name in problems]
        return "\n\n".join(["\n".join(lines), *notes]) + "\n"

    return rendered(measurements, MISSING, render)


def _line(row: Mapping[str, Any]) -> str:
    batches = row["batches"]
    gain = row["gain"]
    cells = [
        escaped(row["method"]),
        "–" if batches is None else f"{batches} + {batches}",
        f"{row['ratio']:.2f} [{row['low']:.2f},\u00a0{row['high']:.2f}]",
        f"{100 * row['error']:.1f}",
        "–"
        if gain is None
        else f"{100 * gain:+.1f} ± {100 * row['half_width']:.1f}".replace("-", "−"),
    ]
    return "| " + " | ".join(cells) + " |"
