"""The numbers of needs_aware's tables of architecture search, from rows."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from needsaug_lite.experiments.comparisons import interval
from needsaug_lite.experiments.paper_tables import paper_results
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.search_cells import (
    METHODS,
    REFERENCE,
    agreement_across_seeds,
    agreement_table,
    agreements_with,
    chance,
    genotypes,
    is_reduced,
    operation_shares,
    operation_table,
    preference_history,
    rows_of,
    short_label,
)

__all__ = [
    "METHODS",
    "REFERENCE",
    "agreement_across_seeds",
    "agreement_table",
    "agreements_with",
    "chance",
    "cost_ratios",
    "cost_table",
    "error",
    "error_table",
    "genotypes",
    "is_reduced",
    "operation_shares",
    "operation_table",
    "parameters",
    "preference_history",
    "printed_days",
    "printed_errors",
    "reduction_table",
    "rows_of",
    "search_seconds",
    "short_label",
    "size_table",
]

# Table and line with the top-1 error on ImageNet.
_PRINTED = {
    "pc_darts": ("T5", "Pcdarts"),
    "equal_search": ("T5", "Equal-pcdarts"),
    "separate_search": ("T5", "Separate-pcdarts"),
    "mtl_search": ("T5", "MTL-pcdarts"),
    "needs_aware_search": ("T5", "needs-aware (ours)-pcdarts"),
    "needs_aware_search_reduced": ("T10", "needs-aware (ours): Reduce"),
}
# Lines of Table 10 with a time.
_TIMED = {
    "pc_darts": "Pcdarts",
    "needs_aware_search": "needs-aware (ours): Original",
    "needs_aware_search_reduced": "needs-aware (ours): Reduce",
}
# Lines of Table 12: the usual cost, and the reduced one.
_REDUCED = ("Darts", "Darts + Cost Reduction")


def error(row: Record) -> float:
    """Top-1 error of the network of the found cells, in percent."""
    return 100 * (1 - float(row.metrics["top1"]))


def search_seconds(row: Record) -> float:
    """Time of the search, without that of the evaluation; 0 for cells as drawn."""
    return float(row.metrics["stage_seconds"].get("search", 0.0))


def parameters(row: Record) -> int:
    """Weights of the network of the found cells, without head."""
    return int(row.metrics["architecture"]["parameters"])


def printed_errors() -> dict[str, float]:
    """Top-1 errors on ImageNet of Tables 5 and 10, in percent, by name of method."""
    return {
        method: _printed(table, "error_pct", setting="topk=1")[line]
        for method, (table, line) in _PRINTED.items()
    }


def printed_days() -> dict[str, float]:
    """GPU days of Table 10 by name of method."""
    days = _printed("T10", "gpu_days")
    return {method: days[line] for method, line in _TIMED.items()}


def error_table(
    records: Sequence[Record], methods: Sequence[str] = METHODS
) -> pd.DataFrame:
    """Table 5: errors of the networks that were found, in percent.

    Returns:
        method, n (seeds), error with its 95% interval, and the paper's top-1 error on
        ImageNet, as text; a cell is empty where there is no row, or nothing printed.
    """
    beside = printed_errors()
    lines = []
    for method in methods:
        values = [error(row) for row in rows_of(records, method)]
        lines.append(
            {
                "method": short_label(method),
                "n": str(len(values) or ""),
                "error": _text(values),
                "ImageNet": f"{beside[method]:.1f}" if method in beside else "",
            }
        )
    return pd.DataFrame(lines)


def size_table(
    records: Sequence[Record], methods: Sequence[str] = METHODS
) -> pd.DataFrame:
    """What the networks of `error_table` are made of, and what they took.

    Returns:
        method, parameters in thousands and search in seconds, means with 95% intervals
        as text; – for cells that are drawn without a search.
    """
    lines = []
    for method in methods:
        rows = rows_of(records, method)
        seconds = [search_seconds(row) for row in rows]
        lines.append(
            {
                "method": short_label(method),
                "parameters, k": _text([parameters(row) / 1000 for row in rows]),
                "search, s": _text(seconds, 0) if any(seconds) else "–" * bool(rows),
            }
        )
    return pd.DataFrame(lines)


def cost_ratios(
    records: Sequence[Record],
    method: str,
    *,
    reference: str = REFERENCE,
    reduced: bool = False,
) -> dict[int, float]:
    """Time of a search over that of another with the same seed, images and device.

    Args:
        records, method, reduced: see `rows_of`.
        reference: what is divided by, without reductions.

    Returns:
        Ratios by seed; seeds without a search on both sides are left out.
    """
    beside = {row.spec.seed: row for row in rows_of(records, reference)}
    return {
        row.spec.seed: search_seconds(row) / search_seconds(other)
        for row in rows_of(records, method, reduced=reduced)
        if (other := beside.get(row.spec.seed)) is not None
        and _place(row) == _place(other)
        and search_seconds(row)
        and search_seconds(other)
    }


def cost_table(
    records: Sequence[Record], methods: Sequence[str] = METHODS
) -> pd.DataFrame:
    """Table 10: time of a search over that of PC-DARTS, paired by seed.

    Returns:
        method, n (seeds), time with its 95% interval, and the paper's, as text;
        PC-DARTS and cells that are drawn without a search are left out.
    """
    days = printed_days()
    lines = []
    for method in methods:
        if method in (REFERENCE, "random_architecture"):
            continue
        values = list(cost_ratios(records, method).values())
        printed = f"{days[method] / days[REFERENCE]:.2f}" if method in days else ""
        lines.append(
            {
                "method": short_label(method),
                "n": str(len(values) or ""),
                "time / PC-DARTS": _text(values, 2),
                "paper": printed,
            }
        )
    return pd.DataFrame(lines)


def reduction_table(records: Sequence[Record], method: str = "darts") -> pd.DataFrame:
    """Table 12: the cost reductions of needs_aware Sec. 3.2 on a search without levels.

    Returns:
        Two lines, error in percent and time over that without reductions, with columns
        for the usual search and the reduced one, as text; for DARTS two more for what
        the paper prints. Empty cells where no row is.
    """
    names = short_label(method), "reduced"
    errors, times = [], []
    for reduced in (False, True):
        rows = rows_of(records, method, reduced=reduced)
        ratios = cost_ratios(records, method, reference=method, reduced=reduced)
        errors.append(_text([error(row) for row in rows]))
        times.append(_text(list(ratios.values()), 2) if reduced else "1" * bool(rows))
    lines = {"error": errors, "time": times}
    if method == "darts":
        lines |= _printed_reduction()
    return pd.DataFrame(
        [
            {"of the search": what, **dict(zip(names, texts, strict=True))}
            for what, texts in lines.items()
        ]
    )


def _printed_reduction() -> dict[str, list[str]]:
    errors = paper_results("needs_aware", "T12", "cifar100").set_index("method")
    days = _printed("T12", "gpu_days")
    both = [errors.loc[line] for line in _REDUCED]
    return {
        "CIFAR-100, paper": [f"{one['value']:.2f} ± {one['std']:.2f}" for one in both],
        "time, paper": ["1", f"{days[_REDUCED[1]] / days[_REDUCED[0]]:.2f}"],
    }


def _printed(table: str, metric: str, setting: str | None = None) -> dict[str, float]:
    numbers = paper_results("needs_aware", table)
    numbers = numbers[numbers["metric"] == metric]
    if setting is not None:
        numbers = numbers[numbers["setting"] == setting]
    named = zip(numbers["method"], numbers["value"], strict=True)
    return {str(line): float(value) for line, value in named}


def _place(row: Record) -> tuple[str, str, int]:
    return row.data_checksum, row.device, row.threads


def _text(values: Sequence[float], digits: int = 1) -> str:
    return interval(values).text(1, digits) if len(values) else ""
