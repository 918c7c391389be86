"""Verdicts on what chapter 16 announces about methods side by side, from rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from needsaug_lite.experiments import comparisons, hypotheses
from needsaug_lite.experiments.comparisons import Interval
from needsaug_lite.experiments.hypotheses import SUPPORTED
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.side_by_side import (
    NOT_MEASURED,
    REFERENCE,
    Compared,
    Ground,
    Rows,
    by_method,
    sees,
    verdict,
)

Value = Callable[[Record], float]


def over_all(
    rows: Rows, questions: Mapping[str, Sequence[str]], value: Value
) -> dict[str, Compared]:
    """Is a method better than each of its rivals?

    A method that beats all of its rivals beats the best of them, without a choice of
    the best on the test images. Where it is above all of them on average, its p-value
    is the largest among them (an intersection-union test); otherwise that of the rival
    farthest above it, times the number of rivals. The difference is that to the
    strongest rival; Holm's correction is for the number of questions.

    Args:
        rows: by method.
        questions: rivals by method. Rivals without rows are left out, and methods
            without rows, or with none of their rivals', have no answer.
        value: the number to compare.
    """
    nearest: dict[str, comparisons.Paired] = {}
    p_of: dict[str, float] = {}
    for name, rivals in questions.items():
        own = rows.get(name, ())
        seeds = {record.spec.seed for record in own}
        found = [
            comparisons.paired(own, rows[rival], value)
            for rival in rivals
            if not seeds.isdisjoint(record.spec.seed for record in rows.get(rival, ()))
        ]
        if not found:
            continue
        near = min(found, key=lambda one: one.difference.mean)
        nearest[name] = near
        if near.difference.mean > 0:
            p_of[name] = max(one.p_value for one in found)
        else:  # below at least one of several
            p_of[name] = min(1.0, len(found) * near.p_value)
    p_values = [p_of.get(name, 1.0) for name in questions]
    corrected = dict(zip(questions, comparisons.holm(p_values), strict=True))
    return {
        name: Compared(
            one.difference,
            p_of[name],
            corrected[name],
            verdict(one.difference, corrected[name]),
        )
        for name, one in nearest.items()
    }


def in_words(found: Mapping[str, Compared], names: Sequence[str]) -> str:
    """What comparisons say of "each of these methods is higher"."""
    if not any(name in found for name in names):
        return NOT_MEASURED
    verdicts = [found[name].verdict if name in found else "" for name in names]
    higher = verdicts.count("higher")
    against = verdicts.count("lower") + verdicts.count("no difference shown")
    words = ("higher", "no difference shown", "lower")
    parts = [f"{word} in {verdicts.count(word)}" for word in words]
    few = sum(text.startswith("no claim") for text in verdicts)
    parts += [f"too few seeds in {few}"] if few else []
    parts += [f"not measured in {verdicts.count('')}"] if "" in verdicts else []
    if higher == len(names):
        return SUPPORTED
    told = f"{', '.join(parts)} of {len(names)}"
    return f"not supported: {told}" if against else f"no verdict: {told}"


def apart_less_joined(rows: Rows, value: Value) -> list[float]:
    """Mean over methods that hold meta images apart, less that of those that join.

    Plain cross-entropy, which sees fewer images, and the reference, which is no method
    against the bias, are left out; so are methods that lack a seed.

    Returns:
        One number for each seed that all counted methods have; none without both
        kinds.
    """
    kinds: dict[str, list[dict[int, float]]] = {"apart": [], "joined": []}
    counted = {name: own for name, own in rows.items() if name != REFERENCE and own}
    most = max((len(own) for own in counted.values()), default=0)
    for name, own in counted.items():
        kind = sees(name, own[0])
        if kind in kinds and len(own) == most:
            kinds[kind].append({row.spec.seed: value(row) for row in own})
    if not kinds["apart"] or not kinds["joined"]:
        return []
    every = [set(one) for kind in kinds.values() for one in kind]
    return [
        float(
            np.mean([one[seed] for one in kinds["apart"]])
            - np.mean([one[seed] for one in kinds["joined"]])
        )
        for seed in sorted(set.intersection(*every))
    ]


def lead(rows: Rows, value: Value) -> tuple[str, Interval]:
    """Verdict on "methods that hold clean meta images apart lead", and the number."""
    numbers = apart_less_joined(rows, value)
    frame = hypotheses.above_zero({"apart less joined": numbers})
    return hypotheses.answer(frame), comparisons.interval(numbers)


def no_help(found: Mapping[str, Compared], names: Sequence[str]) -> str:
    """What comparisons say of "none of these methods helps".

    A difference that isn't shown is no proof that there is none, so the verdict names
    the largest gain that the intervals leave possible.
    """
    there = [found[name] for name in names if name in found]
    if not there:
        return NOT_MEASURED
    helped = sum(one.verdict == "higher" for one in there)
    if helped:
        return f"not supported: higher in {helped} of {len(there)}"
    if any(one.difference.seeds < comparisons.MINIMUM_PAIRS for one in there):
        return "no verdict: too few seeds"
    most = max(one.difference.high for one in there)
    gain = hypotheses.points(Interval(most, np.nan, np.nan, 1))
    return f"nothing against it in {len(there)}; gains up to {gain} points not excluded"


@dataclass(frozen=True)
class CostAndScore:
    """Cost and mean score of the methods of a ground.

    Attributes:
        names: cheapest first.
        costs: time in trainings of the reference.
        scores: mean over seeds.
        correlation: Spearman's, NaN for fewer than three methods.
    """

    names: tuple[str, ...]
    costs: tuple[float, ...]
    scores: tuple[float, ...]
    correlation: float

    @property
    def dearest_is_best(self) -> bool:
        """Whether the most expensive method has the highest mean."""
        return self.scores[-1] == max(self.scores)


def cost_and_score(
    records: Sequence[Record], ground: Ground, costs: Mapping[str, float]
) -> CostAndScore | None:
    """Cost beside score; None for fewer than three methods that have both."""
    rows = by_method(records, ground.experiment)
    names = sorted((n for n in rows if n in costs), key=lambda name: costs[name])
    if len(names) < 3:
        return None
    scores = [float(np.mean([ground.value(row) for row in rows[n]])) for n in names]
    paid = [costs[name] for name in names]
    found = stats.spearmanr(paid, scores).statistic
    return CostAndScore(tuple(names), tuple(paid), tuple(scores), float(found))
