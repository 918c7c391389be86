"""Means with intervals, and paired comparisons over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import registry
from needsaug_lite.experiments.records import Record

MINIMUM_PAIRS = 10
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval (Student's t) over seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def text(self, scale: float = 100.0, digits: int = 1) -> str:
        """Like "71.3 ± 0.8", in percent; "-" where nothing was measured."""
        if self.seeds == 0:
            return "–"
        half = (self.high - self.low) / 2
        mean = f"{scale * self.mean:.{digits}f}"
        return mean if np.isnan(half) else f"{mean} ± {scale * half:.{digits}f}"


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95% interval of independent values; one value has no interval."""
    sample = np.asarray(values, dtype=float)
    count = len(sample)
    if count < 2:
        mean = float(sample[0]) if count else float("nan")
        return Interval(mean, float("nan"), float("nan"), count)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * stats.sem(sample)
    mean = float(sample.mean())
    return Interval(mean, mean - float(half), mean + float(half), count)


def label(record: Record) -> str:
    """Name of a record's method in tables."""
    return registry.entry(record.spec.method).label


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One line per row: method, seed, scalar metrics, seconds, memory, profile."""
    lines = []
    for record in records:
        scalars = {k: v for k, v in record.metrics.items() if not isinstance(v, list)}
        line: dict[str, Any] = {
            "experiment": record.spec.experiment,
            "profile": record.spec.profile,
            "method": label(record),
            "seed": record.spec.seed,
            **scalars,
            "seconds": record.seconds,
            "peak_memory_mib": record.peak_memory_mib,
        }
        lines.append(line)
    return pd.DataFrame(lines)


def summary(
    records: Sequence[Record], columns: Sequence[str] = ("balanced_accuracy",)
) -> pd.DataFrame:
    """Per method and setting: number of seeds, mean ± half-width of each column.

    Values are in percent; lines are sorted by the first column, best first. A setting
    is named behind the method where the rows differ in more than method and seed.
    """
    lines = []
    for (method, setting), group in groups(records).items():
        table = frame(group)
        line: dict[str, Any] = {"method": f"{method} {setting}".strip()}
        line["seeds"] = len(group)
        line["_order"] = table[columns[0]].mean()
        for column in columns:
            line[column] = interval(table[column].dropna().tolist()).text()
        lines.append(line)
    ordered = pd.DataFrame(lines).sort_values("_order", ascending=False)
    return ordered.drop(columns="_order").reset_index(drop=True)


def groups(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Rows by method and setting.

    Returns:
        Rows under (label, setting). The setting names hyperparameters that aren't the
        method's defaults, and whatever else differs among the given rows, like
        "(factor 0.1)"; it is "" where there is nothing to name.
    """
    plain = [_setting(record) for record in records]
    varied = sorted(
        name
        for name in {name for values in plain for name in values}
        if len({json.dumps(values[name]) for values in plain if name in values}) > 1
    )
    if "data.kept" in varied:
        # The shares bring a length and a number of meta images with them.
        by_share = [
            name for name in ("data.meta_per_class", "epochs") if name in varied
        ]
        follow = [name for name in by_share if _follows(name, "data.kept", plain)]
        varied = [name for name in varied if name not in follow]
    found: dict[tuple[str, str], list[Record]] = {}
    for record, values in zip(records, plain, strict=True):
        shown = [name for name in varied if name in values]
        named = {name.rpartition(".")[2]: values[name] for name in shown}
        text = ", ".join(f"{k} {v}" for k, v in {**_chosen(record), **named}.items())
        setting = f"({text})" if text else ""
        found.setdefault((label(record), setting), []).append(record)
    return found


def _setting(record: Record) -> dict[str, Any]:
    """What a row's run was told beside method and seed, by dotted names."""
    unlike = {"seed", "deviations", "experiment", "method", "hyperparameters"}
    values = record.spec.model_dump(mode="json", exclude=unlike)
    generator = values.pop("generator")
    # A method without generated images says nothing about generators.
    made = {} if generator is None else {"generator": generator["kind"]}
    own = {} if generator is None else dotted(generator["hyperparameters"])
    named = {f"{generator['kind']} {name}": v for name, v in own.items()} if own else {}
    return {**dotted(values), **made, **named}


def _follows(name: str, leader: str, settings: Sequence[dict[str, Any]]) -> bool:
    """Whether each value of `leader` has one value of `name` beside it."""
    pairs = {(json.dumps(one[leader]), json.dumps(one[name])) for one in settings}
    return len(pairs) == len({lead for lead, _ in pairs})


def _chosen(record: Record) -> dict[str, Any]:
    """Hyperparameters of a row that aren't its method's defaults, like "phase2 lr"."""
    defaults = registry.hyperparameters(record.spec.method)().model_dump(mode="json")
    usual, values = dotted(defaults), dotted(record.spec.hyperparameters)
    chosen = {name: v for name, v in values.items() if v != usual.get(name)}
    return {name.replace(".", " "): value for name, value in chosen.items()}


def dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names, like {"phase1.share": 0.8}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


@dataclass(frozen=True)
class Paired:
    """Differences a - b on the same seeds.

    Attributes:
        difference: mean with 95% interval.
        p_value: two-sided Wilcoxon signed-rank test.
        verdict: in words; no claim below ten pairs.
    """

    difference: Interval
    p_value: float
    verdict: str


def paired(
    a: Sequence[Record],
    b: Sequence[Record],
    metric: Callable[[Record], float] = lambda r: float(r.metrics["balanced_accuracy"]),
) -> Paired:
    """Compare two methods on the seeds that both have.

    Raises:
        UserError: if they share no seed, a seed stands twice on one side (rows of
            several settings), or a shared seed saw different data.
    """
    for side in (a, b):
        seeds = [record.spec.seed for record in side]
        if len(set(seeds)) < len(seeds):
            raise UserError(
                "one side holds several rows with the same seed: pick one setting, "
                "seeds of different settings aren't independent pairs"
            )
    by_seed = {record.spec.seed: record for record in b}
    pairs = [(r, by_seed[r.spec.seed]) for r in a if r.spec.seed in by_seed]
    if not pairs:
        raise UserError("these two methods have no seed in common")
    for one, other in pairs:
        if one.data_checksum != other.data_checksum:
            raise UserError(f"seed {one.spec.seed} of the two saw different data")
    differences = [metric(one) - metric(other) for one, other in pairs]
    spread = interval(differences)
    nonzero = any(difference != 0 for difference in differences)
    p_value = float(stats.wilcoxon(differences).pvalue) if nonzero else 1.0
    return Paired(spread, p_value, _verdict(spread, p_value))


def _verdict(spread: Interval, p_value: float) -> str:
    if spread.seeds < MINIMUM_PAIRS:
        return f"no claim: {spread.seeds} paired seeds, at least {MINIMUM_PAIRS} needed"
    if p_value >= 1 - CONFIDENCE:
        return "no difference shown"
    return "higher" if spread.mean > 0 else "lower"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for asking several questions at once.

    With p_(1) <= ... <= p_(m), the corrected p_(i) is the largest of
    min(1, (m - j + 1) p_(j)) over j <= i; below 0.05 it keeps the chance of any
    false claim among the m below 5%.

    Args:
        p_values: one per question, in any order.

    Returns:
        Corrected values in the order given, none smaller than before.

    Source: Holm 1979.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        factor = len(p_values) - rank
        largest = max(largest, min(1.0, factor * p_values[place]))
        corrected[place] = largest
    return corrected


def against(
    records: Sequence[Record],
    reference: str = "cross_entropy",
    metric: Callable[[Record], float] = lambda r: float(r.metrics["balanced_accuracy"]),
) -> pd.DataFrame:
    """Every method minus a reference method, on the seeds that both have.

    Args:
        records: rows of one experiment.
        reference: name of the method that the others are compared with.
        metric: the number to compare, a share in [0, 1].

    Returns:
        One line per other method, largest difference first, with the columns method,
        pairs, difference (an `Interval`), p_value (Wilcoxon), holm (p_value corrected
        for the number of methods) and verdict, which follows the corrected value.
        Empty if no method shares a seed with the reference.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.spec.method, []).append(record)
    base = groups.pop(reference, [])
    if not base or not groups:
        return pd.DataFrame()
    seeds = {record.spec.seed for record in base}
    compared = {
        name: paired(rows, base, metric)
        for name, rows in groups.items()
        if not seeds.isdisjoint(record.spec.seed for record in rows)
    }
    corrected = holm([result.p_value for result in compared.values()])
    ranked = sorted(
        zip(compared.items(), corrected, strict=True),
        key=lambda item: -item[0][1].difference.mean,
    )
    return pd.DataFrame(
        [
            {
                "method": registry.entry(name).label,
                "pairs": result.difference.seeds,
                "difference": result.difference,
                "p_value": result.p_value,
                "holm": p_value,
                "verdict": _verdict(result.difference, p_value),
            }
            for (name, result), p_value in ranked
        ]
    )
