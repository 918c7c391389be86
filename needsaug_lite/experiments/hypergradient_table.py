"""The table of hypergradient estimators beside other libraries, from `make bench`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from needsaug_lite.errors import UserError

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
    if not measurements.exists():
        return MISSING
    try:
        found = json.loads(measurements.read_text(encoding="utf-8"))
        rows, runs = found["rows"], found["runs"]
        names = list(dict.fromkeys(row["network"] for row in rows))
        chosen = [n for n in names if networks is None or n in networks]
        parts = [
            _network(name, runs[name], [r for r in rows if r["network"] == name])
            for name in chosen
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{measurements} is not a file that `make bench` has written ({error!r}); "
            "delete it and run `make bench` again"
        ) from error
    return "\n\n".join(parts) + "\n" if parts else MISSING


def _network(
    name: str, run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> str:
    first = rows[0]
    versions = ", ".join(f"{who} {number}" for who, number in run["versions"].items())
    threads = "one thread" if run["threads"] == 1 else f"{run['threads']} threads"
    parts = [
        f"**{NETWORKS.get(name, _escaped(name))}**, batch {run['batch']}. A plain "
        f"training step takes {first['plain_milliseconds']:.3g} ms and "
        f"{first['plain_memory']:.1f} × the parameters in memory. {run['rounds']} "
        f"rounds on {_escaped(run['processor'])}, {threads}, {run['date'][:10]}; "
        f"{versions}."
    ]
    for estimator in dict.fromkeys(row["estimator"] for row in rows):
        same = [row for row in rows if row["estimator"] == estimator]
        title = f"*{_escaped(estimator[:1].upper() + estimator[1:])}*"
        parts.append("\n".join([title, "", _HEAD, _RULE, *map(_line, same)]))
    return "\n\n".join(parts)


def _line(row: Mapping[str, Any]) -> str:
    time = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    cells = [time, f"{row['memory']:.1f}", f"{row['relative_error']:.1e}"]
    return f"| {_escaped(row['route'])} | " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_").replace("\n", " ")
