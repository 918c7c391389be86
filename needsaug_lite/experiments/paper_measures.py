"""Which number of a row has the unit and the meaning of a number in a paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from needsaug_lite.experiments.records import Record

Taken = Callable[[Record], float | None]
# Table 3 of needs_aware, in the order of CIFAR-10's labels.
CLASSES = (
    "plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """A number of a row in a paper's unit.

    Attributes:
        words: what it is, with its unit.
        take: the number of a row; None where the row has none.
        digits: how many are shown behind the point.
        own_data: whether only rows of the paper's own images can have it.
    """

    words: str
    take: Taken
    digits: int = 1
    own_data: bool = False

    def having(self, rows: Sequence[Record]) -> list[Record]:
        """The rows that have this number."""
        return [row for row in rows if self.take(row) is not None]

    def values(self, rows: Sequence[Record]) -> list[float]:
        """The numbers of the rows that have one."""
        found = [self.take(row) for row in rows]
        return [value for value in found if value is not None]


def measure_of(line: Mapping[str, Any], setting: Mapping[str, str]) -> Measure | str:
    """The measure for one number of a paper, or why there is none.

    Args:
        line: one line of `paper_results`.
        setting: its setting by name, see `paper_numbers.settings_of`.
    """
    metric = str(line["metric"])
    if metric in _NO_COUNTERPART:
        return _NO_COUNTERPART[metric]
    if setting.get("topk") == "5":
        return "rows hold no top-5 error"
    if "class" in setting:
        return _of_class(metric, setting)
    if "protocol" in setting:
        # Where classes are equal, rare attributes alone are left.
        protocol = "glt" if setting["protocol"] == "alt" else setting["protocol"]
        kind = metric.removesuffix("_pct")
        return Measure(f"{kind}, %", _percent(f"{protocol}_{kind}"))
    if setting.get("split", "all") != "all":
        return Measure("accuracy, %", _percent(setting["split"]))
    if metric == "balanced_error_pct" and line["dataset"] == "waterbirds":
        return Measure("balanced error, %", _error("average_group_accuracy"))
    return _MEASURES[metric]


def _percent(name: str) -> Taken:
    def take(record: Record) -> float | None:
        value = record.metrics.get(name)
        return None if value is None else 100 * float(value)

    return take


def _error(name: str) -> Taken:
    share = _percent(name)

    def take(record: Record) -> float | None:
        value = share(record)
        return None if value is None else 100 - value

    return take


def _average(record: Record) -> float | None:
    """Accuracy over images, of Waterbirds with the cells weighted as in training."""
    name = "adjusted_accuracy" if "adjusted_accuracy" in record.metrics else "top1"
    return _percent(name)(record)


def _gamo(name: str) -> Taken:
    def take(record: Record) -> float | None:
        found: float | None = record.metrics.get("gamo_test", {}).get(name)
        return found

    return take


def _of_class(metric: str, setting: Mapping[str, str]) -> Measure | str:
    """Numbers of one class of CIFAR-10, and mean and spread over the classes."""
    name = setting["class"]
    if name == "mean":
        return Measure("accuracy, %", _percent("balanced_accuracy"))
    if name == "std":
        return Measure("SD of accuracies, %", _spread)
    place = CLASSES.index(name)
    if metric == "accuracy_pct":
        return Measure("accuracy, %", _only_cifar10(_class_accuracy, place), 1, True)
    made = setting["quantity"] == "generated"
    return Measure("images", _only_cifar10(_made if made else _real, place), 0, True)


def _only_cifar10(number: Callable[[Record, int], float | None], place: int) -> Taken:
    def take(record: Record) -> float | None:
        return number(record, place) if record.spec.data.name == "cifar10" else None

    return take


def _class_accuracy(record: Record, place: int) -> float:
    return 100 * float(record.metrics["per_class"][place])


def _real(record: Record, place: int) -> float:
    return float(record.class_counts[place])


def _made(record: Record, place: int) -> float | None:
    allocation = record.metrics.get("allocation")
    return None if allocation is None else float(allocation["images"][place])


def _spread(record: Record) -> float:
    """Sample standard deviation over classes, see errata N11."""
    return 100 * float(np.std(record.metrics["per_class"], ddof=1))


_MEASURES = {
    "accuracy_pct": Measure("accuracy, %", _average),
    "error_pct": Measure("error, %", _error("top1")),
    "balanced_error_pct": Measure("balanced error, %", _error("balanced_accuracy")),
    "worst_group_error_pct": Measure(
        "error of the worst group, %", _error("worst_group_accuracy")
    ),
    "worst_group_accuracy_pct": Measure(
        "accuracy of the worst group, %", _percent("worst_group_accuracy")
    ),
    "deo_pct": Measure("DEO, %", _percent("deo")),
    "ece_pct": Measure("ECE, %", _percent("ece")),
    # facog Table 1, in GAMO's test protocol.
    "acsa": Measure("ACSA", _gamo("balanced_accuracy"), 3),
    "gm": Measure("GM", _gamo("geometric_mean"), 3),
}
_NO_COUNTERPART = {
    "rating": "people rated the images",
    "fid": "the distance depends on the network that judges, and Inception isn't here",
    "inception_score": (
        "the score depends on the network that judges, and Inception isn't here"
    ),
    "gpu_days": "times on another machine",
    "hours": "times on another machine",
}
