"""Verdicts on a paper's claims: a method and its rivals, numbers within rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from needsaug_lite.experiments import comparisons, registry
from needsaug_lite.experiments.comparisons import Interval
from needsaug_lite.experiments.records import Record

SUPPORTED = "supported"
NOT_MEASURED = "not measured"


class Case(NamedTuple):
    """One comparison: what it is called, its rows, and the number to compare."""

    title: str
    records: Sequence[Record]
    metric: str = "balanced_accuracy"


def of_data(records: Sequence[Record], **settings: object) -> list[Record]:
    """Rows whose data have the given settings, e.g. noise=0.4."""
    return [
        record
        for record in records
        if all(getattr(record.spec.data, k) == v for k, v in settings.items())
    ]


def with_hyperparameters(
    records: Sequence[Record], method: str, **values: object
) -> list[Record]:
    """Rows of a method with the given hyperparameters."""
    return [
        record
        for record in records
        if record.spec.method == method
        and all(record.spec.hyperparameters.get(k) == v for k, v in values.items())
    ]


def over_rivals(cases: Sequence[Case], method: str) -> pd.DataFrame:
    """A method less each of its rivals, on the seeds that both have.

    Args:
        cases: the rows of each hold the method and its rivals in one setting each.
        method: name of the method.

    Returns:
        One line per case and rival with the columns case, rival, difference (an
        `Interval`), p_value (Wilcoxon), nonzero (seeds whose difference isn't 0),
        repeats, holm (p_value corrected for all lines that repeat no other), verdict,
        which follows the corrected value, and alone, which follows p_value. A rival
        whose number equals that of an earlier rival of the case in every seed repeats
        it: `repeats` has its label, and "" otherwise. Empty if nothing can be compared.
    """
    lines: list[dict[str, Any]] = []
    for case in cases:
        mine = [record for record in case.records if record.spec.method == method]
        seeds = {record.spec.seed for record in mine}
        seen: dict[tuple[tuple[int, float], ...], str] = {}
        rivals = sorted({record.spec.method for record in case.records} - {method})
        for rival in rivals:
            theirs = [r for r in case.records if r.spec.method == rival]
            if seeds.isdisjoint(record.spec.seed for record in theirs):
                continue
            number = partial(_number, case.metric)
            found = comparisons.paired(mine, theirs, number)
            label = registry.entry(rival).label
            own = {record.spec.seed: number(record) for record in mine}
            values = tuple(sorted((r.spec.seed, number(r)) for r in theirs))
            differ = sum(value != own[seed] for seed, value in values if seed in own)
            lines.append(
                {
                    "case": case.title,
                    "rival": label,
                    "difference": found.difference,
                    "p_value": found.p_value,
                    "nonzero": differ,
                    "repeats": seen.get(values, ""),
                }
            )
            seen.setdefault(values, label)
    return _corrected(lines)


def above_zero(numbers: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Is a number above zero? One number for each seed, and several questions.

    Args:
        numbers: the values of every question, one for each seed; none: left out.

    Returns:
        The columns of `over_rivals` without rival, and "higher" or "lower" than zero.
        With k numbers that aren't 0 no p_value can be below 2 / 2**k.
    """
    lines: list[dict[str, Any]] = []
    for title, values in numbers.items():
        if len(values) == 0:
            continue
        nonzero = sum(value != 0 for value in values)
        lines.append(
            {
                "case": title,
                "difference": comparisons.interval(values),
                "p_value": float(stats.wilcoxon(values).pvalue) if nonzero else 1.0,
                "nonzero": nonzero,
                "repeats": "",
            }
        )
    return _corrected(lines)


def answer(frame: pd.DataFrame, column: str = "verdict") -> str:
    """What the lines of `over_rivals` or `above_zero` say of "it is higher".

    Args:
        frame: a line that repeats another isn't counted.
        column: "verdict" for the corrected values. "alone" for those of every line by
            itself, which keep the level where all of them must hold (an
            intersection-union test).

    Returns:
        "supported" if every line is "higher", and "not measured" if there is no line.
        A line that has enough seeds and isn't "higher" is enough for "not supported",
        with the numbers of lines; "no verdict" if the only others have too few seeds.
    """
    if frame.empty:
        return NOT_MEASURED
    frame = frame[frame["repeats"] == ""]
    verdicts = frame[column].map(lambda text: text.partition(":")[0]).tolist()
    words = ("higher", "no difference shown", "lower")
    against = [word for word in verdicts if word in words[1:]]
    few = len(verdicts) - len(against) - verdicts.count("higher")
    if not against:
        if few == 0:
            return SUPPORTED
        return f"no verdict: too few seeds in {few} of {len(frame)} comparisons"
    parts = [f"{word} in {verdicts.count(word)}" for word in words]
    if few:
        parts.append(f"too few seeds in {few}")
    return f"not supported: {', '.join(parts)} of {len(frame)} comparisons"


def tail_minus_head(record: Record, name: str) -> float:
    """Mean of a number per class over the rarest third, less that of the largest.

    Args:
        record: a row whose metrics hold one number per class under `name`.
        name: such as "adversarial_per_class"; classes without a number are left out.
    """
    values = np.array(record.metrics[name], dtype=float)
    order = np.argsort(-np.array(record.class_counts), kind="stable")
    third = max(1, len(order) // 3)
    tail, head = values[order[-third:]], values[order[:third]]
    return float(np.nanmean(tail) - np.nanmean(head))


def points(spread: Interval, scale: float = 100.0) -> str:
    """Like "+1.0 ± 0.6": a difference, in points, with its 95% interval."""
    text = spread.text(scale)
    if spread.seeds == 0:
        return text
    return text.replace("-", "−") if spread.mean < 0 else f"+{text}"


def _number(metric: str, record: Record) -> float:
    return float(record.metrics[metric])


def _corrected(lines: list[dict[str, Any]]) -> pd.DataFrame:
    new = [line for line in lines if not line["repeats"]]
    corrected = comparisons.holm([line["p_value"] for line in new])
    by_name = {
        (line["case"], line.get("rival")): p_value
        for line, p_value in zip(new, corrected, strict=True)
    }
    for line in lines:
        name = line["repeats"] or line.get("rival")
        line["holm"] = by_name[line["case"], name]
        line["verdict"] = _verdict(line["difference"], line["holm"])
        line["alone"] = _verdict(line["difference"], line["p_value"])
    return pd.DataFrame(lines)


def _verdict(spread: Interval, p_value: float) -> str:
    """The words of `comparisons.against`."""
    if spread.seeds < comparisons.MINIMUM_PAIRS:
        return f"no claim: {spread.seeds} seeds"
    if p_value >= 1 - comparisons.CONFIDENCE:
        return "no difference shown"
    return "higher" if spread.mean > 0 else "lower"
