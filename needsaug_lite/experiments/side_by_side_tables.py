"""The tables of the methods side by side."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from needsaug_lite.experiments import comparisons, ranks
from needsaug_lite.experiments.comparisons import Interval, interval
from needsaug_lite.experiments.hypotheses import points
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.side_by_side import (
    COMBINATIONS,
    COMBINED,
    CONTROLS,
    GROUNDS,
    LONG_TAIL,
    METHODS,
    NOT_MEASURED,
    REFERENCE,
    Ground,
    by_method,
    compare,
    label,
    sees,
    verdict,
)

SCORES = {
    "balanced_accuracy": "bal. acc.",
    "few": "few",
    "geometric_mean": "GM",
    "worst_group_accuracy": "worst group",
    "ece": "ECE",
}


def score_table(records: Sequence[Record], ground: Ground) -> pd.DataFrame:
    """What each method reached on a ground, best mean first.

    Returns:
        method, sees, n (seeds), the ground's score with its 95% interval and the means
        of those beside it, in percent, as text; announced methods without rows say so.
    """
    rows = by_method(records, ground.experiment)
    lines = []
    for name in dict.fromkeys((REFERENCE, *METHODS, *rows)):
        own = list(rows.get(name, ()))
        line: dict[str, str] = {
            "method": label(name),
            "sees": sees(name, own[0] if own else None),
            "n": str(len(own)),
        }
        main = spread_of(own, ground.score).text() if own else NOT_MEASURED
        line[SCORES[ground.score]] = main
        for metric in ground.beside:
            mean = spread_of(own, metric).mean
            line[SCORES[metric]] = f"{100 * mean:.1f}" if mean == mean else "–"
        lines.append((_mean(own, ground.score), line))
    lines.sort(key=lambda pair: -pair[0])
    return pd.DataFrame([line for _, line in lines])


def difference_table(
    records: Sequence[Record],
    ground: Ground,
    *,
    reference: str = REFERENCE,
    announced: Sequence[str] = METHODS,
) -> pd.DataFrame:
    """Each method less the reference on a ground, largest difference first.

    Returns:
        method, n (pairs), difference in points with its 95% interval, Holm p and
        verdict, as text; announced methods without pairs say so.
    """
    rows = by_method(records, ground.experiment)
    found = compare(rows, ground.value, reference=reference, announced=announced)
    ordered = sorted(found.items(), key=lambda item: -item[1].difference.mean)
    lines = [
        {
            "method": label(name),
            "n": str(one.difference.seeds),
            "points": points(one.difference),
            "Holm p": p_text(one.holm),
            "verdict": one.verdict,
        }
        for name, one in ordered
    ]
    missing = [
        {
            "method": label(name),
            "n": "0",
            "points": "–",
            "Holm p": "–",
            "verdict": NOT_MEASURED,
        }
        for name in dict.fromkeys((*announced, *rows))
        if name not in found and name != reference
    ]
    return pd.DataFrame(lines + missing)


def rank_table(
    records: Sequence[Record], grounds: Sequence[Ground] = GROUNDS
) -> pd.DataFrame:
    """Mean rank of each method on each ground, 1 for the best.

    Ranks of two grounds can be compared only where both rank the same methods; the
    last line says how many they are.

    Returns:
        method and a column for each ground, as text, by the mean of the shares of
        methods that rank better; "–" where a method isn't ranked.
    """
    found = {
        ground: ranks.ranking(by_method(records, ground.experiment), ground.value)
        for ground in grounds
    }
    names = dict.fromkeys((REFERENCE, *METHODS))
    for one in found.values():
        names |= dict.fromkeys(one.methods if one else ())
    lines = []
    for name in names:
        line, shares = {"method": label(name)}, []
        for ground, one in found.items():
            line[ground.short] = "–"
            if one and name in one.methods:
                rank = float(one.mean_ranks[one.methods.index(name)])
                line[ground.short] = f"{rank:.1f}"
                shares.append((rank - 1) / (len(one.methods) - 1))
        order = sum(shares) / len(shares) if shares else float("inf")
        lines.append((order, line))
    table = [line for _, line in sorted(lines, key=lambda pair: pair[0])]
    for word in ("methods", "seeds"):
        last = {"method": f"{word} ranked"}
        for ground, one in found.items():
            last[ground.short] = str(len(getattr(one, word))) if one else "0"
        table.append(last)
    return pd.DataFrame(table)


def combined_rows(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Rows of the combinations, and of all methods on the ground that they share."""
    parents = by_method(records, LONG_TAIL.experiment)
    return parents | by_method(records, COMBINATIONS)


def combination_table(records: Sequence[Record]) -> pd.DataFrame:
    """Each combination less its parents and its control, p corrected for all lines.

    Returns:
        method, less, n (pairs), points with the 95% interval, Holm p and verdict,
        as text.
    """
    rows = combined_rows(records)
    pairs = [
        (name, other)
        for name, parents in COMBINED.items()
        for other in (*parents, *CONTROLS.get(name, ()))
    ]
    found = {
        (name, other): compare(
            {name: rows[name], other: rows[other]},
            LONG_TAIL.value,
            reference=other,
            announced=(),
        ).get(name)
        for name, other in pairs
        if name in rows and other in rows
    }
    p_values = [one.p_value if (one := found.get(pair)) else 1.0 for pair in pairs]
    lines = []
    for (name, other), p_value in zip(pairs, comparisons.holm(p_values), strict=True):
        one = found.get((name, other))
        lines.append(
            {
                "method": label(name),
                "less": label(other),
                "n": str(one.difference.seeds if one else 0),
                "points": points(one.difference) if one else "–",
                "Holm p": p_text(p_value) if one else "–",
                "verdict": verdict(one.difference, p_value) if one else NOT_MEASURED,
            }
        )
    return pd.DataFrame(lines)


def spread_of(rows: Sequence[Record], metric: str) -> Interval:
    """Mean and interval of a metric; rows without it are left out."""
    values = [row.metrics.get(metric) for row in rows]
    return interval([float(value) for value in values if value is not None])


def p_text(p_value: float) -> str:
    """Three decimals."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _mean(rows: Sequence[Record], metric: str) -> float:
    mean = spread_of(rows, metric).mean
    return mean if mean == mean else float("-inf")
