"""One number of a paper, and which rows stand beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from needsaug_lite.data.groups import WATERBIRDS
from needsaug_lite.experiments.facog_table import same_setting
from needsaug_lite.experiments.ingredients import DataSpec
from needsaug_lite.experiments.paper_map import Counterpart, Table, paper_map
from needsaug_lite.experiments.paper_measures import Measure, measure_of
from needsaug_lite.experiments.records import Record, full_rows
from needsaug_lite.experiments.spec import Spec

Rows = Sequence[Record]
MEASURED, NOT_MEASURED = "measured", "not measured"
OUT_OF_REACH, NOT_COMPARABLE, NOT_HERE = "out of reach", "not comparable", "not here"
ANOTHER = "a method of another paper that this library doesn't hold"
# What a paper's generator is here.
_GENERATORS = {
    "none": None,
    "vcgan": "cgan",
    "acgan": "acgan",
    "biggan": "biggan",
    "FastGAN": "unconditional",
    "BigGAN": "biggan",
    "StyleGAN2-ADA": "cgan",
    "EDM": "edm",
}
_PLAIN_DATA = {"cifar10": "cifar10", "cifar100": "cifar100"}
# Imbalances with fewer images in a class differ in whole images.
_SAME = 0.01


@dataclass(frozen=True)
class Beside:
    """What stands beside one number of a paper.

    Attributes:
        line: the number, one line of `paper_results`.
        setting: its setting by name.
        state: MEASURED if there are full rows, else why there are none: NOT_MEASURED,
            OUT_OF_REACH, NOT_COMPARABLE or NOT_HERE.
        reason: of that, in words; "" where nothing is in the way.
        gap: why there can be no nearest rows, or NOT_MEASURED.
        measure: what number of a row it is; None where rows have none.
        full, nearest: rows of all seeds of one setting.
    """

    line: Mapping[str, Any]
    setting: Mapping[str, str]
    state: str
    reason: str
    gap: str
    measure: Measure | None
    full: Rows
    nearest: Rows


def by_setting(records: Iterable[Record]) -> list[Rows]:
    """Rows on test images, those of one setting together."""
    groups: dict[str, list[Record]] = {}
    for row in records:
        if row.spec.evaluate_on == "test":
            settings = row.spec.model_dump(mode="json", exclude={"seed", "deviations"})
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(row)
    return list(groups.values())


def beside(line: Mapping[str, Any], groups: Sequence[Rows]) -> Beside:
    """What stands beside one number of a paper.

    Args:
        line: one line of `paper_results`.
        groups: rows of any experiments and profiles, see `by_setting`.
    """
    declared = paper_map()
    paper = declared.papers[str(line["paper"])]
    table = paper.tables[str(line["table"])]
    method, setting = str(line["method"]), settings_of(line)
    meaning = paper.meaning(str(line["table"]), method)
    measure: Measure | str = table.reason(
        "not_comparable", method, setting
    ) or measure_of(line, setting)
    gap, reason = _gap(measure, meaning)
    unreachable = declared.data.get(str(line["dataset"]), "")
    if not unreachable and gap == NOT_MEASURED:
        unreachable = table.reason("out_of_reach", method, setting)
    state, reason = (OUT_OF_REACH, unreachable) if unreachable else (gap, reason)
    if isinstance(measure, str):
        return Beside(line, setting, state, reason, gap, None, [], [])
    if not isinstance(meaning, Counterpart):
        return Beside(line, setting, state, reason, gap, measure, [], [])
    full = measure.having(our_full_rows(line, groups))
    near = measure.having(_nearest_rows(line, table, meaning, groups))
    if full:
        state, reason = MEASURED, ""
    if measure.own_data:
        gap = NOT_COMPARABLE
    return Beside(line, setting, state, reason, gap, measure, full, near)


def _gap(measure: Measure | str, meaning: Counterpart | str | None) -> tuple[str, str]:
    """Why no row at all can stand beside a number, and the reason in words."""
    if isinstance(measure, str):
        return NOT_COMPARABLE, measure
    if not isinstance(meaning, Counterpart):
        return NOT_HERE, meaning or ANOTHER
    return NOT_MEASURED, ""


def settings_of(line: Mapping[str, Any], more: str = "") -> dict[str, str]:
    """The setting of a number by name; `more` fills in what it leaves open."""
    texts = [text for text in (more, line["setting"]) if isinstance(text, str)]
    parts = [part.partition("=") for text in texts for part in text.split(";") if part]
    return {name: value for name, _, value in parts}


def our_full_rows(line: Mapping[str, Any], groups: Sequence[Rows]) -> Rows:
    """Full rows of the same method on the same data in the same setting.

    Rows of the table's own grids come first, then those of experiments that no table
    names; what follows the recipe of another table's grid is left out.

    Args:
        line: one line of `paper_results`.
        groups: rows of any experiments and profiles, see `by_setting`.
    """
    declared = paper_map()
    paper, name = declared.papers[str(line["paper"])], str(line["table"])
    table, setting = paper.tables[name], settings_of(line)
    meaning = paper.meaning(name, str(line["method"]))
    if not isinstance(meaning, Counterpart):
        return []
    # Of several methods the first is the paper's own.
    own = meaning.model_copy(update={"method": meaning.method[:1]})
    fitting = [
        rows
        for rows in groups
        if full_rows(rows[:1])
        and own.fits(rows[0].spec)
        and same_data(str(line["dataset"]), rows[0].spec.data)
        and distance(setting, rows[0].spec) < _SAME
        and (line["paper"] != "facog" or same_setting(line, rows[0]))
    ]
    places = {experiment: place for place, experiment in enumerate(table.full)}
    for rows in fitting:
        experiment = rows[0].spec.experiment
        if not declared.tables_with(experiment):
            places[experiment] = len(table.full)
    return _best(fitting, places, setting, own)


def _nearest_rows(
    line: Mapping[str, Any],
    table: Table,
    meaning: Counterpart,
    groups: Sequence[Rows],
) -> Rows:
    """Rows that are not full, of the same method, on the nearest data that have any."""
    setting = settings_of(line, table.at)
    near = table.nearest_to(str(line["dataset"]))
    places = {experiment: place for place, experiment in enumerate(near)}
    fitting = [
        rows
        for rows in groups
        if rows[0].spec.experiment in places
        and rows[0].spec.profile in ("lite", "reduced")
        and meaning.fits(rows[0].spec)
    ]
    return _best(fitting, places, setting, meaning)


def _best(
    groups: Sequence[Rows],
    places: Mapping[str, int],
    setting: Mapping[str, str],
    meaning: Counterpart,
) -> Rows:
    """The rows of the one setting that comes nearest.

    First the experiment decides, then how far the data's setting is, then how many
    hyperparameters are neither asked for nor the default, then the number of seeds.
    """

    def far(rows: Rows) -> tuple[float, ...]:
        spec = rows[0].spec
        away, unlike = distance(setting, spec), meaning.unlike(spec)
        return places[spec.experiment], away, unlike, -len(rows)

    possible = [
        rows
        for rows in groups
        if rows[0].spec.experiment in places
        and distance(setting, rows[0].spec) < math.inf
    ]
    return min(possible, key=far, default=[])


def same_data(dataset: str, data: DataSpec) -> bool:
    """Whether settings of data name a paper's data set, whatever its imbalance."""
    if dataset == "cmnist":
        return data.name == "mnist" and data.colour
    if dataset == "waterbirds":
        return data.name in WATERBIRDS
    name, _, bias = dataset.rpartition("_")
    if bias == "lt" and name in ("mnist", "fashion_mnist"):
        return data.name == name and data.gamo
    whole = data.kept is None and data.attribute_imbalance is None
    named = data.name == _PLAIN_DATA.get(name if bias in ("lt", "noisy") else dataset)
    return named and whole and (data.noise > 0) == (bias == "noisy")


def distance(setting: Mapping[str, str], spec: Spec) -> float:
    """How far a run is from a number's setting; infinite if it can't stand for it."""
    return sum(
        _DISTANCES[name](value, spec)
        for name, value in setting.items()
        if name in _DISTANCES
    )


def _imbalance(value: str, spec: Spec) -> float:
    data = spec.data
    own = data.imbalance
    if data.counts is not None:
        own = max(data.counts) / min(data.counts)
    return 10.0 if own is None else abs(math.log(own / float(value)))


def _noise_kind(value: str, spec: Spec) -> float:
    return _unless(spec.data.noise > 0 and spec.data.noise_kind == value)


def _generator(value: str, spec: Spec) -> float:
    kind = None if spec.generator is None else spec.generator.kind
    return _unless(value in _GENERATORS and kind == _GENERATORS[value])


def _protocol(value: str, spec: Spec) -> float:
    return _unless((value == "alt") == (spec.data.imbalance is None))


def _phase1(name: str) -> Callable[[str, Spec], float]:
    def away(value: str, spec: Spec) -> float:
        given = spec.hyperparameters.get("phase1", {})
        return _unless(bool(given.get(name)) == (value == "1"))

    return away


def _unless(equal: bool) -> float:
    return 0.0 if equal else math.inf


# Settings that aren't here say which number of a row is meant, not which row.
_DISTANCES: dict[str, Callable[[str, Spec], float]] = {
    "imbalance": _imbalance,
    "fraction": lambda value, spec: abs((spec.data.kept or 1.0) - float(value)),
    "ratio": lambda value, spec: abs(spec.data.noise - float(value)),
    "noise": _noise_kind,
    "cgan": _generator,
    "generator": _generator,
    "augmentation": lambda value, spec: _unless(
        (spec.augment.policy or "none") == value
    ),
    "protocol": _protocol,
    "rew": _phase1("reweight"),
    "aug": _phase1("strong_views"),
}
