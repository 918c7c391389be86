"""The table of what a step of MGR costs, from `make bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from needsaug_lite.experiments.measurements import conditions, escaped, rendered

MISSING = "A step of MGR has not been measured yet: `make bench` does it.\n"
# Hours of mgr Table 4: the second-order route over the finite difference.
PAPER_RATIO = 6.55 / 5.79
_HEAD = (
    "| network, images | plain step, ms | PCR / plain | MGR / PCR | "
    "second order / finite difference |"
)
_RULE = "|---|---:|---:|---:|---:|"


def meta_sampling_table(measurements: Path) -> str:
    """One Markdown table with a line for each problem, and how it was measured.

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
        paper = f"| mgr Table 4, training time | – | – | – | {PAPER_RATIO:.2f} |"
        lines = [_HEAD, _RULE, *map(_line, found["rows"]), paper]
        notes = [
            f"{row['problem']}: {conditions(found['runs'][row['problem']])}"
            for row in found["rows"]
        ]
        return "\n\n".join(["\n".join(lines), *notes]) + "\n"

    return rendered(measurements, MISSING, render)


def _line(row: Mapping[str, Any]) -> str:
    ratios = (row["pcr"], row["mgr"], row["second_order"])
    cells = [
        escaped(row["problem"]),
        f"{row['milliseconds']:.1f}",
        *(f"{r['ratio']:.2f} [{r['low']:.2f},\u00a0{r['high']:.2f}]" for r in ratios),
    ]
    return "| " + " | ".join(cells) + " |"
