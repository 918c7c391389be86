"""The tables of FACoG's second phase, from `make bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from needsaug_lite.experiments.measurements import conditions, rendered

MISSING = "A step of FACoG has not been measured yet: `make bench` does it.\n"
STEP, DICTIONARY = "step", "dictionary"
_STEP_HEAD = "| N_s | step, ms | its three passes alone, ms | step / passes |"
_DICTIONARY_HEAD = (
    "| features | on disk, GB | own memory, MB | a draw, ms | × a draw from memory |"
)


def feature_mixing_table(measurements: Path) -> str:
    """A table of the step and one of the dictionary in a file, and their conditions.

    Args:
        measurements: JSON written by the benchmark: "runs", the provenance by part,
            and "rows", each with its `part`.

    Returns:
        Markdown; a sentence that nothing was measured if the file is missing.

    Raises:
        UserError: if the file is not what the benchmark writes.
    """

    def render(found: Any) -> str:
        parts = []
        for name, head, line in (
            (STEP, _STEP_HEAD, _step),
            (DICTIONARY, _DICTIONARY_HEAD, _dictionary),
        ):
            rows = [row for row in found["rows"] if row["part"] == name]
            if rows:
                rule = "|" + "---:|" * (head.count("|") - 1)
                parts.append("\n".join([head, rule, *map(line, rows)]))
                parts.append(conditions(found["runs"][name]))
        return "\n\n".join(parts) + "\n" if parts else ""

    return rendered(measurements, MISSING, render)


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f} [{row['low']:.2f},\u00a0{row['high']:.2f}]"


def _step(row: Mapping[str, Any]) -> str:
    cells = (
        f"{row['slots']}",
        f"{row['milliseconds']:.2f}",
        f"{row['passes_milliseconds']:.2f}",
        _interval(row),
    )
    return "| " + " | ".join(cells) + " |"


def _dictionary(row: Mapping[str, Any]) -> str:
    cells = (
        f"{row['count']:,} × {row['dim']:,}",
        f"{row['gigabytes']:.1f}",
        f"{row['own_megabytes']:.0f}",
        f"{row['milliseconds']:.2f}",
        _interval(row),
    )
    return "| " + " | ".join(cells) + " |"
