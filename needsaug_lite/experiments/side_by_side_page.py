"""Which method when: the table of the book's page, from rows and measured costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from needsaug_lite.experiments import comparisons
from needsaug_lite.experiments.comparisons import Interval
from needsaug_lite.experiments.markdown_tables import markdown
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.side_by_side import (
    GROUNDS,
    NOT_MEASURED,
    REFERENCE,
    Ground,
    by_method,
    compare,
    label,
)
from needsaug_lite.experiments.side_by_side_cost import FILE, costs, measured
from needsaug_lite.experiments.side_by_side_tables import spread_of

# An experiment of chapter 11 with methods of its own.
FEW = Ground(
    "fashion_mnist_kept",
    "Fashion-MNIST, 25 images of each class",
    "few",
    "few images of every class",
)
FEW_KEPT, FEW_STRENGTH = 0.1, 0.1
EXPERIMENTS = tuple(ground.experiment for ground in (*GROUNDS, FEW))
CLEAN, SIZES, GENERATOR = "clean images held apart", "class sizes", "a generator"
NEEDS = {
    REFERENCE: "clean images joined",
    "logit_adjustment": SIZES,
    "ldam_drw": SIZES,
    "resampling": SIZES,
    "meta_weight_net": CLEAN,
    "meta_iada": CLEAN,
    "autobalance": "a fifth held back for its search",
    "mgr": f"{CLEAN}, {GENERATOR}",
    "needs_aware": f"{CLEAN}, {GENERATOR}",
    "needs_aware_reduced": f"{CLEAN}, {GENERATOR}",
    "pcr": GENERATOR,
    "gda": GENERATOR,
}


@dataclass(frozen=True)
class Choice:
    """What the rows of a ground advise.

    Attributes:
        ground: the ground.
        seeds: of its best method.
        best: the method with the highest mean; None without rows.
        score: of the best.
        close: methods that aren't shown worse than the best, itself included.
        cheapest: the cheapest of them, or the only one; None where no cost is known
            or the seeds are too few.
        loss: the cheapest less the best.
    """

    ground: Ground
    seeds: int = 0
    best: str | None = None
    score: Interval | None = None
    close: tuple[str, ...] = ()
    cheapest: str | None = None
    loss: Interval | None = None


def choose(
    records: Sequence[Record], ground: Ground, paid: Mapping[str, float]
) -> Choice:
    """The best method of a ground, and the cheapest that isn't shown worse.

    "Shown worse" is a paired Wilcoxon test against the best with Holm's correction
    for all other methods; without ten pairs nothing is shown and nothing advised.
    Methods with fewer seeds than others are left out.

    Args:
        records: rows of any experiments.
        ground: where.
        paid: time by method, in trainings of the reference.
    """
    rows = by_method(records, ground.experiment)
    most = max((len(own) for own in rows.values()), default=0)
    rows = {name: own for name, own in rows.items() if len(own) == most}
    if not rows:
        return Choice(ground)
    best = max(rows, key=lambda name: spread_of(rows[name], ground.score).mean)
    score = spread_of(rows[best], ground.score)
    if most < comparisons.MINIMUM_PAIRS:
        return Choice(ground, most, best, score)
    others = compare(rows, ground.value, reference=best, announced=())
    close = (best, *(n for n, one in others.items() if one.verdict != "lower"))
    priced = [name for name in close if name in paid]
    alone = best if close == (best,) else None  # nothing to weigh against a cost
    cheapest = min(priced, key=lambda name: paid[name], default=alone)
    loss = None if cheapest in (None, best) else others[str(cheapest)].difference
    return Choice(ground, most, best, score, close, cheapest, loss)


def few_images(records: Sequence[Record]) -> list[Record]:
    """Rows of `FEW`, each method with one setting, and all rows of other experiments.

    Of a method that was run with several weights of the generated images, the rows
    with `FEW_STRENGTH` stay.
    """

    def stays(row: Record) -> bool:
        made = row.spec.hyperparameters.get("synthetic", {})
        return (
            row.spec.data.kept == FEW_KEPT
            and made.get("strength", FEW_STRENGTH) == FEW_STRENGTH
        )

    return [r for r in records if r.spec.experiment != FEW.experiment or stays(r)]


def choice_table(found: Sequence[Choice], paid: Mapping[str, float]) -> pd.DataFrame:
    """Fault, what to take with its cost and needs, and the best mean, as text."""
    return pd.DataFrame([_line(one, paid) for one in found])


def which_method_when(records: Sequence[Record], measurements: Path) -> str:
    """The generated part of the page: one table, and a line on each ground.

    Args:
        records: rows of any experiments.
        measurements: folder of what `make bench` has written.
    """
    paid = costs(measured(measurements / FILE))
    kept = few_images(records)
    found = [choose(kept, ground, paid) for ground in (*GROUNDS, FEW)]
    parts = [markdown(choice_table(found, paid))]
    if not paid:
        parts.append(
            "Costs have not been measured yet, so no method is called the cheapest."
        )
    parts.append("\n".join(f"- {_sentence(one)}" for one in found))
    return "\n\n".join(parts) + "\n"


def _line(one: Choice, paid: Mapping[str, float]) -> dict[str, str]:
    take = best = NOT_MEASURED
    if one.best and one.score:
        best = f"{label(one.best)}, {100 * one.score.mean:.1f}%"
        take = f"no claim: {one.seeds} seeds"
    if one.close:
        take = "cost not measured"
    if one.cheapest:
        cost, needs = paid.get(one.cheapest), NEEDS.get(one.cheapest)
        take = label(one.cheapest) + (f", {cost:.1f} ×" if cost else "")
        take += f"; needs {needs}" if needs else ""
    return {"fault": one.ground.bias, "take": take, "best mean": best}


def _sentence(one: Choice) -> str:
    """What lies behind a line of the table."""
    name = f"**{one.ground.bias}** ({one.ground.title})"
    if not one.best or not one.score:
        return f"{name}: {NOT_MEASURED}."
    if not one.close:
        return (
            f"{name}: {one.seeds} seeds, and at least {comparisons.MINIMUM_PAIRS} are "
            f"needed to call a method worse; the highest mean has {label(one.best)}."
        )
    told = f"{name}, {one.seeds} seeds: {label(one.best)} has {one.score.text()}%; "
    near = ", ".join(label(other) for other in one.close if other != one.best)
    told += f"not shown worse: {near}" if near else "every other one is shown worse"
    if one.cheapest and one.loss:
        gap = one.loss.text().replace("-", "−")
        told += f"; {label(one.cheapest)} less {label(one.best)} is {gap} points"
    return told + "."
