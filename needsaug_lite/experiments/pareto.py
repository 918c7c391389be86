"""How good a choice of trade-offs between accuracy and fairness a method offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import moocore
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.records import Record

ERROR = "error"
# The worst point that still counts, of every plane: its measure, then the error E(f)
# and the measure there. A coin has the error 1/2; the DEO of two classes is at most 2,
# and one is half of it.
REFERENCE: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"deo": (0.5, 1.0), "group_balanced_error": (0.5, 0.5)}
)


def front(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point dominates, both coordinates minimised.

    p dominates q if it is nowhere larger and somewhere smaller; equal points don't
    dominate each other.

    Args:
        points: shape (N, 2).

    Returns:
        True on the front, shape (N,).

    Raises:
        UserError: if a point isn't two finite numbers.
    """
    pairs = _checked(points)
    if len(pairs) == 0:
        return np.zeros(0, dtype=bool)
    mask = moocore.is_nondominated(pairs, keep_weakly=True)
    return np.asarray(mask, dtype=bool)


def hypervolume(points: ArrayLike, reference: tuple[float, float]) -> float:
    """Area between a front and a reference point, larger for a better front.

    HV = area of { z : p <= z <= r for a point p }

    Args:
        points: shape (N, 2), both coordinates minimised; what isn't below the
            reference in both adds nothing.
        reference: r, the worst point that counts.

    Returns:
        The area, 0 without a point below r.

    Raises:
        UserError: if a point, or the reference, isn't two finite numbers.

    Source: Zitzler and Thiele 1999, computed by moocore.
    """
    pairs, worst = _checked(points), _checked([reference])
    if len(pairs) == 0:
        return 0.0
    return float(moocore.hypervolume(pairs, ref=worst[0]))


def trade_offs(records: Sequence[Record]) -> pd.DataFrame:
    """What each run reached: the error, and two measures of unfairness.

    error = 1 - adjusted_accuracy, cells of class and group weighted by their shares in
    training; group_balanced_error = 1 - average_group_accuracy; and deo.

    Args:
        records: rows of one method that differ in seed and λ ("fairness") alone.

    Returns:
        Columns seed, fairness, error, deo, group_balanced_error; sorted by the first
        two.

    Raises:
        UserError: if there are no rows, the rows differ in more, two have the same seed
            and λ, or a row has no λ or none of these metrics.
    """
    lines = [_line(record) for record in records]
    settings = {_other_settings(record) for record in records}
    if len(settings) != 1:
        raise UserError(
            f"trade-offs need rows of one method that differ in seed and λ alone, and "
            f"these have {len(settings)} different settings; pick those of one"
        )
    table = pd.DataFrame(lines).sort_values(["seed", "fairness"], ignore_index=True)
    twice = table[table.duplicated(["seed", "fairness"])]
    if len(twice):
        seed, value = twice.iloc[0][["seed", "fairness"]]
        raise UserError(f"there are two rows with seed {seed:.0f} and λ {value:g}")
    return table


def hypervolumes(
    records: Sequence[Record],
    reference: Mapping[str, tuple[float, float]] = REFERENCE,
) -> pd.DataFrame:
    """Area under the reference point that the runs of each seed dominate.

    One number for a whole trade-off, so that methods can be compared seed by seed. It
    grows with the number of λ: compare methods with equally many.

    Args:
        records: see `trade_offs`; every seed has the same values of λ.
        reference: of every plane; keep it, or no two numbers can be compared.

    Returns:
        One line per seed: seed, points (number of λ), and one column per plane, named
        after the measure that stands against the error.

    Raises:
        UserError: see `trade_offs`, or if a seed lacks a λ that another one has.
    """
    table = trade_offs(records)
    wanted = set(table["fairness"])
    lines = []
    for seed, rows in table.groupby("seed"):
        missing = sorted(wanted - set(rows["fairness"]))
        if missing:
            raise UserError(
                f"seed {seed} has no row for λ in {missing}, which other seeds have; "
                "run it, or leave the seed or the λ out"
            )
        areas = {
            measure: hypervolume(rows[[ERROR, measure]].to_numpy(), worst)
            for measure, worst in reference.items()
        }
        lines.append({"seed": seed, "points": len(rows), **areas})
    return pd.DataFrame(lines)


def mean_curve(records: Sequence[Record]) -> pd.DataFrame:
    """The trade-off as a curve: means over the seeds for each λ.

    Args:
        records: see `trade_offs`.

    Returns:
        One line per λ, ascending: fairness, seeds (their number), and the means error,
        deo, group_balanced_error.

    Raises:
        UserError: see `trade_offs`.
    """
    by_strength = trade_offs(records).groupby("fairness")
    means = by_strength[[ERROR, *REFERENCE]].mean()
    means.insert(0, "seeds", by_strength.size())
    return means.reset_index()


def _line(record: Record) -> dict[str, float]:
    strength = record.spec.hyperparameters.get("fairness")
    if strength is None:
        raise UserError(
            f"{record.spec.method} has no λ: a trade-off needs rows of a method with "
            'the hyperparameter "fairness"'
        )
    metrics = record.metrics
    needed = ("adjusted_accuracy", "deo", "average_group_accuracy")
    missing = [name for name in needed if metrics.get(name) is None]
    if missing:
        raise UserError(
            f"the row {record.run_id} lacks {', '.join(missing)}: run it on images "
            "with classes in groups of two attributes"
        )
    return {
        "seed": record.spec.seed,
        "fairness": float(strength),
        ERROR: 1 - metrics["adjusted_accuracy"],
        "deo": metrics["deo"],
        "group_balanced_error": 1 - metrics["average_group_accuracy"],
    }


def _other_settings(record: Record) -> str:
    """Everything but experiment, seed, λ and remarks, as text to compare."""
    hyperparameters = {**record.spec.hyperparameters, "fairness": None}
    changed: dict[str, Any] = {"experiment": "", "seed": 0, "deviations": ()}
    changed["hyperparameters"] = hyperparameters
    return record.spec.model_copy(update=changed).model_dump_json()


def _checked(points: ArrayLike) -> NDArray[np.float64]:
    pairs = np.asarray(points, dtype=np.float64)
    if pairs.size == 0:
        return pairs.reshape(0, 2)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.isfinite(pairs).all():
        raise UserError(
            f"points are pairs of finite numbers, shape (N, 2), not {pairs.tolist()}"
        )
    return pairs
