"""What a budget of generated images went to, by class, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import registry
from needsaug_lite.experiments.comparisons import Interval, interval
from needsaug_lite.experiments.records import Record

Before = Literal["first", "vanilla"]
Counted = Literal["images", "weight_mass"]
SHOWN_CLASSES, _SHOWN_GROUPS = 20, 10
_COLUMNS = ("class", "real", "pre", "made", "last", "post")


@dataclass(frozen=True)
class Allocation:
    """A budget by class, and the accuracy before and after, over S seeds and C classes.

    Attributes:
        seeds: S numbers.
        real: training images, mean over seeds, shape (C,).
        before, after: accuracy of every class in percent, shape (S, C).
        generated: images over all epochs, or their weights, shape (S, C).
        last_epoch: of these, images of the last epoch; nan where the row doesn't say.
    """

    seeds: tuple[int, ...]
    real: Any
    before: Any
    after: Any
    generated: Any
    last_epoch: Any

    def correlations(self) -> list[float]:
        """Of generated images with 100 - accuracy before, over classes, by seed.

        Seeds whose counts, or accuracies, are all equal have none.

        Source: needs_aware Table 3 and errata N12.
        """
        return correlations(self.generated, 100 - self.before)

    def mean_accuracy(self, when: Literal["before", "after"]) -> Interval:
        """Mean over classes, with its interval over seeds."""
        return interval([float(one.mean()) for one in getattr(self, when)])

    def spread_of_classes(self, when: Literal["before", "after"]) -> Interval:
        """Standard deviation over classes (n - 1, errata N11), averaged over seeds."""
        return interval([float(one.std(ddof=1)) for one in getattr(self, when)])

    def table(self, class_names: Sequence[str] | None = None) -> pd.DataFrame:
        """Table 3's lines, largest class first, then mean and standard deviation.

        More than 20 classes are shown in ten groups of neighbours by size.

        Args:
            class_names: C names; None numbers the classes from 0.

        Returns:
            Text under class, real, pre (accuracy before), made (over all epochs), last
            (epoch's) and post; empty without rows. The names leave room on a phone.
        """
        if not self.seeds:
            return pd.DataFrame()
        order = np.argsort(-self.real, kind="stable")
        if len(order) > SHOWN_CLASSES:
            groups = np.array_split(order, _SHOWN_GROUPS)
            ends = np.cumsum([len(group) for group in groups])
            names = [f"{e - len(g) + 1}–{e}" for g, e in zip(groups, ends, strict=True)]
        else:
            groups = [order[[place]] for place in range(len(order))]
            given = class_names or [str(label) for label in range(len(order))]
            names = [given[int(group[0])] for group in groups]
        lines = [
            self._line(name, group) for name, group in zip(names, groups, strict=True)
        ]
        ends_with: list[tuple[str, Any]] = [
            ("mean", self.mean_accuracy),
            ("SD", self.spread_of_classes),
        ]
        for title, number in ends_with:
            values = {when: number(when).mean for when in ("before", "after")}
            pre, post = f"{values['before']:.1f}", f"{values['after']:.1f}"
            lines.append(_texts(title, "", pre, "", "", post))
        return pd.DataFrame(lines)

    def _line(self, name: str, group: Any) -> dict[str, str]:
        last = self.last_epoch[:, group].mean()
        return _texts(
            name,
            f"{self.real[group].mean():.0f}",
            f"{self.before[:, group].mean():.1f}",
            f"{self.generated[:, group].mean():.0f}",
            "–" if np.isnan(last) else f"{last:.0f}",
            f"{self.after[:, group].mean():.1f}",
        )


def allocation(
    records: Sequence[Record],
    method: str = "needs_aware",
    *,
    before: Before = "first",
    counted: Counted = "images",
) -> Allocation:
    """How a method shared out its budget, from the rows of one setting.

    Args:
        records: rows of one experiment.
        method: name of the method.
        before: "first" is the method's other classifier W1, "vanilla" the row of plain
            cross-entropy with the same seed and images. Seeds without it are left out.
        counted: what was generated of each class; "weight_mass" for weightings that
            generate equally many of each.

    Raises:
        UserError: if a seed stands twice, or the plain row saw other images.
    """
    kept = [
        (row, accuracies)
        for row in of_method(records, method)
        if counted in row.metrics.get("allocation", {})
        and (accuracies := accuracy_before(row, records, before)) is not None
    ]
    made = [row.metrics["allocation"] for row, _ in kept]
    counts = [np.array(one[counted], dtype=float) for one in made]
    shares = [
        _last_epoch(one, counted, len(c)) for one, c in zip(made, counts, strict=True)
    ]
    return Allocation(
        tuple(row.spec.seed for row, _ in kept),
        _stacked([row.class_counts for row, _ in kept]).sum(0) / max(1, len(kept)),
        100 * _stacked([accuracies for _, accuracies in kept]),
        100 * _stacked([row.metrics["per_class"] for row, _ in kept]),
        _stacked(counts),
        _stacked(shares),
    )


def allocation_correlations(
    records: Sequence[Record],
    methods: Sequence[str] = ("needs_aware", "separate", "sequential", "reciprocal"),
    *,
    before: Before = "vanilla",
) -> pd.DataFrame:
    """Correlation of generated images with 100 - accuracy before, for some methods.

    Returns:
        method, seeds and r with its 95% interval as text; methods without rows are left
        out.
    """
    found = {m: allocation(records, m, before=before).correlations() for m in methods}
    return correlation_table(found)


def of_method(records: Sequence[Record], method: str) -> list[Record]:
    """Rows of a method by seed, of one setting."""
    rows = [record for record in records if record.spec.method == method]
    seeds = [row.spec.seed for row in rows]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"{method} has several rows with the same seed: pick one setting first, "
            "for example with comparisons.groups"
        )
    return sorted(rows, key=lambda row: row.spec.seed)


def accuracy_before(row: Record, records: Sequence[Record], before: Before) -> Any:
    """Accuracy of every class without generated images, shape (C,), or None."""
    if before == "first":
        first = row.metrics.get("first_classifier")
        return None if first is None else np.array(first["per_class"], dtype=float)
    for plain in of_method(records, "cross_entropy"):
        if plain.spec.seed == row.spec.seed:
            if plain.data_checksum != row.data_checksum:
                raise UserError(f"seed {row.spec.seed} of the two saw different data")
            return np.array(plain.metrics["per_class"], dtype=float)
    return None


def _texts(*cells: str) -> dict[str, str]:
    return dict(zip(_COLUMNS, cells, strict=True))


def _last_epoch(made: dict[str, Any], counted: Counted, classes: int) -> Any:
    unknown = [float("nan")] * classes
    known = counted == "images"
    return made.get("images_last_epoch", unknown) if known else unknown


def _stacked(rows: Sequence[Any]) -> Any:
    return np.array(rows, dtype=float) if rows else np.empty((0, 0))


def correlations(left: Any, right: Any) -> list[float]:
    """Pearson's r of each pair of rows in which neither side is constant."""
    return [
        float(np.corrcoef(x, y)[0, 1])
        for x, y in zip(left, right, strict=True)
        if np.ptp(x) > 0 and np.ptp(y) > 0
    ]


def correlation_table(found: dict[str, list[float]]) -> pd.DataFrame:
    """Method, seeds and mean with its 95% interval; methods without values left out."""
    return pd.DataFrame(
        [
            {
                "method": registry.entry(name).label,
                "seeds": len(values),
                "r": interval(values).text(1, 2).replace("-", "−"),
            }
            for name, values in found.items()
            if values
        ]
    )
