"""Trials on validation images, what was chosen by them, and whether rows keep to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import pandas as pd

from needsaug_lite.experiments.comparisons import Interval, dotted, interval
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.side_by_side import (
    LONG_TAIL,
    REFERENCE,
    TUNING,
    label,
    name_of,
    name_of_spec,
)
from needsaug_lite.experiments.spec import Spec

_REMARKS = {"experiment", "profile", "seed", "evaluate_on", "deviations", "method"}
_RATE = "optimisation.lr"


@dataclass(frozen=True)
class Trial:
    """One setting of a method on development seeds.

    Attributes:
        method: its name.
        settings: what differs among the trials of the method, by dotted names.
        score: balanced accuracy on validation images.
        seeds: the development seeds.
        chosen: whether its mean is the best of the method's trials; of equal ones the
            first is chosen.
        published: whether it has the paper's constants.
    """

    method: str
    settings: Mapping[str, Any]
    score: Interval
    seeds: tuple[int, ...]
    chosen: bool = False
    published: bool = False


def trials(records: Sequence[Record], order: Sequence[Spec] = ()) -> list[Trial]:
    """All trials, by method.

    Args:
        records: rows; those of other experiments are left out.
        order: the specs of the grid, in its order: the first trial of each method is
            the one with published constants. Without it none is marked.
    """
    rows = [row for row in records if row.spec.experiment == TUNING]
    told = {_text(spec): place for place, spec in reversed(list(enumerate(order)))}
    by_method: dict[str, dict[str, list[Record]]] = {}
    for row in rows:
        own = by_method.setdefault(name_of(row), {})
        own.setdefault(_text(row.spec), []).append(row)
    found: list[Trial] = []
    for method, own in by_method.items():
        texts = sorted(own, key=lambda text: told.get(text, len(told)))
        published = _first(method, order)
        flat = {text: dotted(json.loads(text)) for text in texts}
        varied = _varied(list(flat.values()))
        scores = {text: _score(own[text]) for text in texts}
        best = max(texts, key=lambda text: scores[text].mean)
        found += [
            Trial(
                method,
                {name: flat[text].get(name) for name in varied},
                scores[text],
                tuple(sorted(row.spec.seed for row in own[text])),
                chosen=text == best,
                published=text == published,
            )
            for text in texts
        ]
    return found


def trial_table(found: Sequence[Trial]) -> pd.DataFrame:
    """Method, setting, n, validation accuracy in percent, and marks, as text."""
    return pd.DataFrame(
        {
            "method": label(one.method),
            "setting": setting_text(one.settings),
            "n": str(len(one.seeds)),
            "val, %": f"{100 * one.score.mean:.1f}",
            "": " ".join(
                word
                for word, holds in (("P", one.published), ("✓", one.chosen))
                if holds
            ),
        }
        for one in found
    )


def setting_text(settings: Mapping[str, Any]) -> str:
    """Like "factor 0.1, max_margin 0.5"; "–" where nothing varies."""
    parts = [f"{name.rpartition('.')[2]} {value}" for name, value in settings.items()]
    return ", ".join(parts) or "–"


def faults(found: Sequence[Trial], records: Sequence[Record]) -> list[str]:
    """What breaks the rule "equally many trials, the best on validation is used".

    A ground with a recipe of its own has another learning rate: there that of a method
    is the chosen multiple of the reference's.

    Args:
        found: the trials.
        records: rows on test images of any grounds; methods without trials, like
            controls, are left alone.

    Returns:
        Sentences; none if all is well.
    """
    said = []
    counts = {m: sum(t.method == m for t in found) for m in {t.method for t in found}}
    if len(set(counts.values())) > 1:
        said.append(f"methods have different numbers of trials: {counts}")
    if len({one.seeds for one in found}) > 1:
        said.append("trials have different development seeds")
    reporting = {row.spec.seed for row in records}
    if reporting & {seed for one in found for seed in one.seeds}:
        said.append("a development seed is a reporting seed, too")
    chosen = {one.method: one.settings for one in found if one.chosen}
    scales = _rate_scales(chosen.get(REFERENCE, {}), records)
    for row in records:
        wanted = chosen.get(name_of(row), {})
        used = dotted(json.loads(_text(row.spec)))
        scale = scales.get(row.spec.experiment, 1.0)
        for name, value in wanted.items():
            expected = value * scale if name == _RATE else value
            if not _same(used.get(name), expected):
                said.append(
                    f"{row.spec.experiment}, {row.run_id}: {name_of(row)} has {name} "
                    f"{used.get(name)}, the best trial {value}"
                    + (f" times {scale:g}" if name == _RATE and scale != 1 else "")
                )
    return said


def _rate_scales(
    reference: Mapping[str, Any], records: Sequence[Record]
) -> dict[str, float]:
    """By experiment, the reference's learning rate over the one chosen for it."""
    if _RATE not in reference:
        return {}
    return {
        row.spec.experiment: row.spec.optimisation.lr / reference[_RATE]
        for row in records
        if name_of(row) == REFERENCE and row.spec.experiment != LONG_TAIL.experiment
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other)
    return bool(one == other)


def _first(method: str, order: Sequence[Spec]) -> str | None:
    own = [spec for spec in order if name_of_spec(spec) == method]
    return _text(own[0]) if own else None


def _score(rows: Sequence[Record]) -> Interval:
    return interval([float(row.metrics["balanced_accuracy"]) for row in rows])


def _text(spec: Spec) -> str:
    return json.dumps(spec.model_dump(mode="json", exclude=_REMARKS), sort_keys=True)


def _varied(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = {name for one in settings for name in one}
    return sorted(
        name
        for name in names
        if len({json.dumps(one.get(name)) for one in settings}) > 1
    )
