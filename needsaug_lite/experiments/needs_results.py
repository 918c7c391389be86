"""The numbers of needs_aware's tables from rows, in one place for book and chapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from needsaug_lite.experiments import comparisons
from needsaug_lite.experiments.comparisons import Interval, interval
from needsaug_lite.experiments.needs_allocation import (
    Allocation,
    Before,
    accuracy_before,
    allocation,
    allocation_correlations,
    correlation_table,
    correlations,
    of_method,
)
from needsaug_lite.experiments.needs_paths import (
    path_history,
    path_shares,
    path_table,
    scientific,
)
from needsaug_lite.experiments.records import Record

__all__ = [
    "Allocation",
    "Before",
    "allocation",
    "allocation_correlations",
    "calibration_table",
    "gain_correlations",
    "gain_table",
    "judges",
    "path_history",
    "path_shares",
    "path_table",
    "quality_changes",
    "quality_table",
    "scientific",
]


def quality_table(records: Sequence[Record]) -> pd.DataFrame:
    """Table 9's numbers of each generator: as pretrained, and as a method left it.

    Returns:
        images of, n (different generators), Fréchet and score (inception-style) with
        95% intervals as text; empty without generators. See `judges` for who judged.
    """
    lines: dict[str, dict[Any, dict[str, float]]] = {}
    for (label, setting), rows in comparisons.groups(records).items():
        for row in rows:
            made = row.metrics.get("generator", {})
            if "uniform" in made:
                title = f"{made['label']}, pretrained"
                lines.setdefault(title, {}).setdefault(made["name"], made["uniform"])
            if "trained" in made:
                title = f"{label} {setting}".strip()
                lines.setdefault(title, {})[row.run_id] = made["trained"]
    # The pretrained ones first, each kind once.
    titles = sorted(lines, key=lambda title: not title.endswith(", pretrained"))
    return pd.DataFrame(
        [
            {
                "images of": title,
                "n": len(lines[title]),
                "Fréchet": _of_all(lines[title], "frechet_distance").text(1, 2),
                "score": _of_all(lines[title], "inception_style_score").text(1, 2),
            }
            for title in titles
        ]
    )


def quality_changes(
    records: Sequence[Record],
    method: str = "needs_aware",
    score: str = "frechet_distance",
) -> dict[int, float]:
    """A score of the generator that a method left, less that of the pretrained one.

    Returns:
        One number by seed; seeds without both scores are left out.
    """
    made = {
        row.spec.seed: row.metrics.get("generator", {})
        for row in of_method(records, method)
    }
    return {
        seed: float(one["trained"][score] - one["uniform"][score])
        for seed, one in made.items()
        if "trained" in one and "uniform" in one
    }


def judges(records: Sequence[Record]) -> str:
    """Who judged the generated images of these rows; "" if nobody did."""
    made = [row.metrics.get("generator", {}) for row in records]
    return "; ".join(sorted({one["judge"] for one in made if "judge" in one}))


def calibration_table(records: Sequence[Record]) -> pd.DataFrame:
    """Table 11's numbers by method: ECE and accuracy, smallest ECE first.

    Returns:
        method, seeds, ECE and accuracy, in percent with 95% intervals as text.
    """
    if not records:
        return pd.DataFrame()
    found = comparisons.summary(records, ("ece", "top1"))
    names = {"ece": "ECE", "top1": "accuracy"}
    return found.iloc[::-1].reset_index(drop=True).rename(columns=names)


def gain_correlations(
    records: Sequence[Record],
    method: str = "needs_aware",
    *,
    before: Before = "first",
    score: str = "class_inception",
) -> dict[int, float]:
    """Correlation over classes of image quality with gain in accuracy, by seed.

    r_s = corr_c( score of the images of class c,  accuracy after - before of class c )

    Args:
        records, method, before: see `allocation`.
        score: "class_inception" as in the paper, or "class_agreement", of the generator
            that the method left, or was given where it trains none.

    Returns:
        r by seed; seeds without it, or where one side is constant, are left out.

    Source: needs_aware App. D.
    """
    found = {}
    for row in of_method(records, method):
        made = row.metrics.get("generator", {})
        quality = made.get("trained", made.get("uniform", {})).get(score)
        accuracies = accuracy_before(row, records, before)
        if quality is None or accuracies is None:
            continue
        gain = np.array(row.metrics["per_class"], dtype=float) - accuracies
        for r in correlations([np.array(quality, dtype=float)], [gain]):
            found[row.spec.seed] = r
    return found


def gain_table(
    records: Sequence[Record],
    methods: Sequence[str] = ("needs_aware", "separate", "sequential"),
    *,
    before: Before = "first",
) -> pd.DataFrame:
    """Method, seeds and the mean of `gain_correlations` with its interval, as text."""
    found = {
        m: list(gain_correlations(records, m, before=before).values()) for m in methods
    }
    return correlation_table(found)


def _of_all(scores: dict[Any, dict[str, float]], name: str) -> Interval:
    return interval([one[name] for one in scores.values()])
