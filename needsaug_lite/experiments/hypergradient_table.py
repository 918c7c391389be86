"""The table of hypergradient estimators beside other libraries, from `make bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from needsaug_lite.experiments.measurements import conditions, escaped, rendered

MISSING = (
    "The hypergradient estimators have not been measured yet: `make bench` does it.\n"
)
NETWORKS = {"mlp": "MLP 784-500-200-10", "resnet32": "ResNet-32, 3 × 32 × 32"}
_RULE = "|---|---:|---:|---:|"
_HEAD = "| route | × training step | memory × parameters | relative error |"


def hypergradient_tables(
    measurements: Path, networks: Sequence[str] | None = None
) -> str:
    """One Markdown table for each network and estimator.

    Args:
        measurements: JSON written by the benchmark: "runs", the provenance by network,
            and "rows".
        networks: those to show; default all.

    Returns:
        Markdown; a sentence that nothing was measured if the file is missing.

    Raises:
        UserError: if the file is not what the benchmark writes.
    """

    def render(found: Any) -> str:
        rows, runs = found["rows"], found["runs"]
        names = list(dict.fromkeys(row["network"] for row in rows))
        parts = [
            _network(name, runs[name], [r for r in rows if r["network"] == name])
            for name in names
            if networks is None or name in networks
        ]
        return "\n\n".join(parts) + "\n" if parts else ""

    return rendered(measurements, MISSING, render)


def _network(
    name: str, run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> str:
    first = rows[0]
    parts = [
        f"**{NETWORKS.get(name, escaped(name))}**, batch {run['batch']}. A plain "
        f"training step takes {first['plain_milliseconds']:.3g} ms and "
        f"{first['plain_memory']:.1f} × the parameters in memory. {conditions(run)}"
    ]
    for estimator in dict.fromkeys(row["estimator"] for row in rows):
        same = [row for row in rows if row["estimator"] == estimator]
        title = f"*{escaped(estimator[:1].upper() + estimator[1:])}*"
        parts.append("\n".join([title, "", _HEAD, _RULE, *map(_line, same)]))
    return "\n\n".join(parts)


def _line(row: Mapping[str, Any]) -> str:
    time = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    cells = [time, f"{row['memory']:.1f}", f"{row['relative_error']:.1e}"]
    return f"| {escaped(row['route'])} | " + " | ".join(cells) + " |"
