"""How long the runs of a grid are going to take, from rows that were measured before.

A run takes as long as the rows most like it took. Where they differ in length, time is
taken as proportional to epochs times training images.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from needsaug_lite.experiments.ingredients import DataSpec, ModelSpec
from needsaug_lite.experiments.spec import Spec

# Of `_likenesses`: those whose rows have the run's data, network and length.
_SAME_LENGTH = 2
_USUAL_DATA = DataSpec().model_dump(mode="json")
_USUAL_MODEL = ModelSpec().model_dump(mode="json")


@dataclass(frozen=True)
class Estimate:
    """Training time of the pending runs, and what it rests on.

    Attributes:
        seconds: of all runs that it could be told of, one after another.
        longest: seconds of the longest run.
        rows: earlier rows that were used.
        alike: runs with a row of their method, data, network and epochs.
        scaled: runs whose rows differ in epochs or data.
        unknown: runs that no row is like; they aren't in `seconds`.
    """

    seconds: float
    longest: float
    rows: int
    alike: int
    scaled: int
    unknown: int

    def side_by_side(self, places: int) -> float:
        """Seconds with so many runs at a time: never less than the longest run."""
        return max(self.seconds / places, self.longest)

    def said(self, places: int | None) -> list[str]:
        """The estimate in lines; `places` None: on a cluster, where nobody knows."""
        if not self.rows:
            return ["time: unknown, no earlier row is like these runs"]
        line = f"time: about {duration(self.seconds)} of training in all"
        if places is not None and places > 1:
            parallel = duration(self.side_by_side(places))
            line += f", {parallel} with {places} runs side by side"
        known = self.alike + self.scaled
        lines = [line, f"  from {self.rows} rows, for {known} runs"]
        if self.scaled:
            lines[1] += f" ({self.scaled} of them scaled by epochs and images)"
        if self.unknown:
            lines.append(
                f"  {self.unknown} runs have no earlier row like them and aren't in it"
            )
        return lines


@dataclass(frozen=True)
class _Timing:
    """What a row, or a planned run, has to do with time."""

    likenesses: tuple[str, ...]
    data: str
    epochs: int
    seconds: float = 0.0
    images: float = 0.0


def estimate(pending: Sequence[Spec], results: Path, device: str) -> Estimate:
    """Time of training of the pending runs.

    For every run, the mean over its most similar rows of
    seconds x (epochs / epochs of the row) x (images / images of the row).

    Args:
        pending: the runs to come.
        results: folder of the rows, of all experiments.
        device: where the runs are going to train; a row of a CPU tells nothing about a
            GPU.

    Returns:
        The estimate; rows that can't be read are left out.
    """
    rows = list(_timings(results, on_cpu=device.startswith("cpu")))
    alike: dict[str, list[_Timing]] = defaultdict(list)
    counts: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        counts[row.data].append(row.images)
        for key in row.likenesses:
            alike[key].append(row)
    found: list[float] = []
    used: set[int] = set()
    scaled = 0
    for spec in pending:
        run = _planned(spec, counts)
        level, chosen = _most_alike(run, alike)
        if chosen:
            found.append(fmean(_seconds(run, row) for row in chosen))
            used.update(id(row) for row in chosen)
            scaled += level >= _SAME_LENGTH
    return Estimate(
        seconds=sum(found),
        longest=max(found, default=0.0),
        rows=len(used),
        alike=len(found) - scaled,
        scaled=scaled,
        unknown=len(pending) - len(found),
    )


def duration(seconds: float) -> str:
    """A time in the two largest of its units: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def _seconds(run: _Timing, row: _Timing) -> float:
    """Seconds of a row at the length of the run, as far as its images are known."""
    images = run.images / row.images if run.images else 1.0
    return row.seconds * run.epochs / row.epochs * images


def _most_alike(
    run: _Timing, alike: Mapping[str, list[_Timing]]
) -> tuple[int, list[_Timing]]:
    """The rows that share most with the run, and how far down they were found."""
    last = len(run.likenesses) - 1
    for level, key in enumerate(run.likenesses):
        # Other data tell nothing as long as nobody knows how many images these are.
        if key in alike and (level < last or run.images):
            return level, alike[key]
    return last, []


def _timings(results: Path, *, on_cpu: bool) -> Iterable[_Timing]:
    for file in sorted(results.glob("*/*.json")):
        try:
            # Thousands of rows: a whole check of each would take minutes.
            row = json.loads(file.read_text(encoding="utf-8"))
            timing = _timing(
                row["spec"], row["seconds"], float(sum(row["class_counts"]))
            )
            same_kind = str(row["device"]).startswith("cpu") == on_cpu
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if same_kind and timing.seconds > 0 and timing.images > 0:
            yield timing


def _planned(spec: Spec, counts: Mapping[str, list[float]]) -> _Timing:
    run = _timing(spec.model_dump(mode="json"), 0.0, 0.0)
    images = fmean(counts[run.data]) if run.data in counts else 0.0
    return _Timing(run.likenesses, run.data, run.epochs, images=images)


def _timing(spec: Mapping[str, Any], seconds: float, images: float) -> _Timing:
    # An old row lacks the options that came later; they had the default's effect.
    data = {**_USUAL_DATA, **spec["data"], "seed": None}
    model = {**_USUAL_MODEL, **spec["model"]}
    parts = ("hyperparameters", "features", "generator")
    rest = [spec.get(name) for name in parts]
    method, epochs, name = spec["method"], int(spec["epochs"]), data["name"]
    return _Timing(
        likenesses=tuple(
            json.dumps(shared, sort_keys=True)
            for shared in (
                [method, data, model, epochs, rest],
                [method, data, model, epochs],
                [method, name, model, epochs],
                [method, name, model],
                [method, model],
            )
        ),
        data=json.dumps(data, sort_keys=True),
        epochs=epochs,
        seconds=float(seconds),
        images=images,
    )
