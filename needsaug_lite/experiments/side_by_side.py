"""Methods on the same grounds: their rows, what each saw, and comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import comparisons, registry
from needsaug_lite.experiments.comparisons import Interval
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.spec import Spec

NOT_MEASURED = "not measured"
REFERENCE = "cross_entropy_with_meta"
# The methods of the five papers, in the order of the book's chapters. Needs-aware has
# its paper's own cheaper form: the original costs several times as much.
PAPERS = ("meta_iada", "autobalance", "facog", "mgr", "needs_aware_reduced")
# Re-balancing that needs nothing but the sizes of the classes.
SIMPLE = ("logit_adjustment", "ldam_drw", "resampling")
# The announced family: each is compared with the reference.
METHODS = (
    "cross_entropy",
    "logit_adjustment",
    "ldam_drw",
    "isda",
    "meta_weight_net",
    *PAPERS,
)
# They learn something from meta images that train no weights.
APART = (
    "meta_weight_net",
    "meta_iada",
    "mgr",
    "needs_aware",
    "needs_aware_reduced",
    "facog_needs",
    "feature_copy_needs",
)
# Combinations, and the methods that they are made of.
COMBINED: Mapping[str, tuple[str, str]] = {
    "facog_autobalance": ("facog", "autobalance"),
    "facog_needs": ("facog", "needs_aware_reduced"),
}
# What a combination is without the part that learns.
CONTROLS: Mapping[str, tuple[str, ...]] = {
    "facog_autobalance": ("facog_logit_adjustment",),
    "facog_needs": ("feature_copy_needs",),
}
# Narrow tables and figures; other methods have the label of the registry.
SHORT = {
    "meta_weight_net": "MW-Net",
    "autobalance": "AutoBal.",
    "feature_copy": "Copies",
    "needs_aware_reduced": "Needs, reduced",
    "facog_autobalance": "FACoG + AutoBal.",
    "feature_copy_needs": "Copies + needs",
}


@dataclass(frozen=True)
class Ground:
    """One experiment on which methods stand side by side.

    Attributes:
        experiment: folder of its rows.
        title: in headings.
        short: in heads of columns and on axes.
        bias: what is wrong with the data, in a reader's words.
        score: the metric that methods are compared by, a share in [0, 1].
        beside: further metrics of its table.
    """

    experiment: str
    title: str
    short: str
    bias: str
    score: str = "balanced_accuracy"
    beside: tuple[str, ...] = ("few",)

    def value(self, record: Record) -> float:
        """The score of a row."""
        return float(record.metrics[self.score])


LONG_TAIL = Ground(
    "side_fashion_mnist_lt", "Fashion-MNIST-LT, 100:1", "tail", "a long tail"
)
GAMO = Ground(
    "side_fashion_mnist_gamo",
    "Fashion-MNIST with GAMO's counts",
    "GAMO",
    "a long tail, larger classes",
    beside=("geometric_mean",),
)
MANY = Ground(
    "side_cifar100_lt", "CIFAR-100-LT, 100:1", "C-100", "a long tail, many classes"
)
NOISE = Ground(
    "side_fashion_mnist_noisy",
    "Fashion-MNIST with flipped labels",
    "noise",
    "wrong labels",
    beside=("ece",),
)
COLOUR = Ground(
    "side_mnist_coloured",
    "coloured MNIST",
    "colour",
    "a colour that tells the class in training",
    score="worst_group_accuracy",
    beside=("balanced_accuracy",),
)
GROUNDS = (LONG_TAIL, GAMO, MANY, NOISE, COLOUR)
TUNING = "side_fashion_mnist_lt_tuning"
COMBINATIONS = "side_fashion_mnist_lt_combined"

Rows = Mapping[str, Sequence[Record]]


def name_of(record: Record) -> str:
    """The method of a row; cross-entropy on joined images has a name of its own."""
    return name_of_spec(record.spec)


def name_of_spec(spec: Spec) -> str:
    """`name_of` for what is to be run."""
    joined = spec.method == "cross_entropy" and spec.learn_from == "train+meta"
    return REFERENCE if joined else spec.method


def label(name: str) -> str:
    """Short name for tables and figures."""
    return SHORT.get(name) or registry.entry(name).label


def sees(name: str, record: Record | None = None) -> str:
    """Which images a method learned from: "train", "joined" or "apart".

    Args:
        name: the method.
        record: a row of it; None: as the protocol wants it.
    """
    if name in APART:
        return "apart"
    joins = name == REFERENCE or (
        name != "cross_entropy"
        if record is None
        else record.spec.learn_from == "train+meta"
    )
    return "joined" if joins else "train"


def by_method(records: Sequence[Record], experiment: str) -> dict[str, list[Record]]:
    """Rows of an experiment on test images by method, each in the order of seeds.

    Announced methods come first.

    Raises:
        UserError: if a method stands there with several settings.
    """
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda one: one.spec.seed):
        if record.spec.experiment == experiment and record.spec.evaluate_on == "test":
            found.setdefault(name_of(record), []).append(record)
    for name, rows in found.items():
        if len({_setting(row) for row in rows}) > 1:
            raise UserError(
                f"{experiment} holds rows of {name} with several settings: keep those "
                "of one, the others belong into an experiment of their own"
            )
    order = [REFERENCE, *METHODS]
    first = {name: found.pop(name) for name in order if name in found}
    return first | found


@dataclass(frozen=True)
class Compared:
    """A method less another one, over the seeds that both have.

    Attributes:
        difference: mean with 95% interval; no seeds where nothing was measured.
        p_value: Wilcoxon.
        holm: corrected for the family.
        verdict: words of `comparisons.paired`, by the corrected value.
    """

    difference: Interval
    p_value: float
    holm: float
    verdict: str


def compare(
    rows: Rows,
    value: Callable[[Record], float],
    *,
    reference: str = REFERENCE,
    announced: Sequence[str] = METHODS,
) -> dict[str, Compared]:
    """Every method less the reference; p-values corrected for the whole family.

    The family are the announced methods and every other one with rows. An announced
    method without rows counts as a question without an answer, so that no verdict
    changes for the better while rows are missing.
    """
    names = [name for name in dict.fromkeys((*announced, *rows)) if name != reference]
    base = rows.get(reference, ())
    seeds = {record.spec.seed for record in base}
    found = {
        name: comparisons.paired(rows[name], base, value)
        for name in names
        if not seeds.isdisjoint(record.spec.seed for record in rows.get(name, ()))
    }
    p_values = [found[name].p_value if name in found else 1.0 for name in names]
    corrected = dict(zip(names, comparisons.holm(p_values), strict=True))
    return {
        name: Compared(
            one.difference,
            one.p_value,
            corrected[name],
            verdict(one.difference, corrected[name]),
        )
        for name, one in found.items()
    }


def verdict(spread: Interval, p_value: float) -> str:
    """The words of `comparisons.paired`, and "not measured" without a pair."""
    if spread.seeds == 0:
        return NOT_MEASURED
    if spread.seeds < comparisons.MINIMUM_PAIRS:
        return f"no claim: {spread.seeds} seeds"
    if p_value >= 1 - comparisons.CONFIDENCE:
        return "no difference shown"
    return "higher" if spread.mean > 0 else "lower"


def _setting(record: Record) -> str:
    """What a row was told, beside seed and remarks."""
    spec = record.spec.model_dump(mode="json", exclude={"seed", "deviations"})
    return json.dumps(spec, sort_keys=True)
