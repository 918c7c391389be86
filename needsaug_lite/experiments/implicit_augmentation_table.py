"""The table of the IADA loss beside its literal formula, from `make bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from needsaug_lite.experiments.measurements import conditions, escaped, rendered

MISSING = "The IADA loss has not been measured yet: `make bench` does it.\n"
_HEAD = (
    "| Σ | N×C×D | gradient to Σ | × faster | milliseconds, literal | × leaner | "
    "megabytes, literal |"
)
_RULE = "|---|---:|---|---:|---:|---:|---:|"


def implicit_augmentation_table(
    measurements: Path, problems: Sequence[str] | None = None
) -> str:
    """One Markdown table, a line for each problem, and how they were measured.

    Args:
        measurements: JSON written by the benchmark: "runs", the provenance by problem,
            and "rows".
        problems: those to show; default all.

    Returns:
        Markdown; a sentence that nothing was measured if the file is missing.

    Raises:
        UserError: if the file is not what the benchmark writes.
    """

    def render(found: Any) -> str:
        rows = [
            row
            for row in found["rows"]
            if problems is None or row["problem"] in problems
        ]
        if not rows:
            return ""
        made: dict[str, list[str]] = {}
        for row in rows:
            run = conditions(found["runs"][row["problem"]])
            made.setdefault(run, []).append(_size(row))
        notes = [f"{', '.join(dict.fromkeys(who))}: {run}" for run, who in made.items()]
        table = "\n".join([_HEAD, _RULE, *map(_line, rows)])
        largest = max(row["relative_difference"] for row in rows)
        agreement = f"Largest relative difference of the two: {largest:.0e}."
        return "\n\n".join([table, agreement, *notes]) + "\n"

    return rendered(measurements, MISSING, render)


def _size(row: Mapping[str, Any]) -> str:
    return f"{row['samples']}×{row['classes']}×{row['features']}"


def _number(value: float) -> str:
    """Three digits, and no powers of ten in a table."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _line(row: Mapping[str, Any]) -> str:
    cells = [
        escaped(row["covariance"]),
        _size(row),
        "yes" if row["covariance_gradient"] else "no",
        # Not broken over lines.
        f"{row['faster']:.3g} [{row['low']:.3g},\u00a0{row['high']:.3g}]",
        f"{_number(row['milliseconds'])}, {_number(row['literal_milliseconds'])}",
        f"{row['leaner']:.3g}",
        f"{_number(row['megabytes'])}, {_number(row['literal_megabytes'])}",
    ]
    return "| " + " | ".join(cells) + " |"
