"""The tables of needs_aware in the shape of its paper, from our rows, for the book."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from needsaug_lite.experiments import comparisons, needs_results, registry
from needsaug_lite.experiments.markdown_tables import markdown
from needsaug_lite.experiments.records import Record

EXPERIMENTS = (
    "digits_needs",
    "fashion_mnist_needs",
    "fashion_mnist_gamo_needs",
    "cifar100_lt_needs_reduced",
    "cifar100_lt_needs",
)
# Table 7: one setting for each kind of GAN.
GENERATORS = "digits_needs_generators"
# In the order of Tables 2 and 6, then ours.
METHODS = (
    "cross_entropy",
    "reciprocal",
    "equal",
    "separate",
    "mtl",
    "sequential",
    "needs_aware",
    "needs_aware_reduced",
    "retrained_head",
    "cross_entropy_with_meta",
    "needs_aware_unshared",
    "logit_adjustment",
)


def needs_tables(records: Sequence[Record]) -> str:
    """A folded section for every experiment, also for those without rows.

    Args:
        records: rows of any experiments; those of others are left out.
    """
    parts = [
        folded(title, _sections(rows))
        for name in EXPERIMENTS
        for title, rows in _by_imbalance(name, _of(records, name))
    ]
    kinds = _of(records, GENERATORS)
    found = markdown(comparisons.summary(kinds)) if kinds else markdown(pd.DataFrame())
    parts.append(folded(f"`{GENERATORS}` (Table 7)", [found]))
    return "\n\n".join(parts) + "\n"


def accuracy_table(records: Sequence[Record]) -> pd.DataFrame:
    """Balanced accuracy of the methods of Tables 2 and 6; empty where no row is.

    Args:
        records: rows of one experiment at one imbalance.
    """
    lines = []
    for name in METHODS:
        rows = [record for record in records if record.spec.method == name]
        values = [float(row.metrics["balanced_accuracy"]) for row in rows]
        accuracy = comparisons.interval(values).text() if values else ""
        label = registry.entry(name).label
        lines.append(
            {"method": label, "seeds": len(values) or "", "accuracy": accuracy}
        )
    return pd.DataFrame(lines)


def _sections(rows: Sequence[Record]) -> list[str]:
    found = needs_results
    allocated = found.allocation(rows, before="vanilla").table()
    judges = found.judges(rows)
    quality = markdown(found.quality_table(rows))
    return [
        f"**Tables 2 and 6**, balanced accuracy\n\n{markdown(accuracy_table(rows))}",
        "**Table 3**, needs-aware; *pre*: plain cross-entropy\n\n"
        + markdown(allocated),
        "**Errata N12**, generated images against 100 − accuracy before\n\n"
        + markdown(found.allocation_correlations(rows)),
        f"**Table 9**, judge: {judges or 'none yet'}\n\n{quality}",
        f"**Table 11**\n\n{markdown(found.calibration_table(rows))}",
        "**App. D**, quality against gain over plain cross-entropy\n\n"
        + markdown(found.gain_table(rows, before="vanilla")),
        "**Ways to A**, shares of the norms\n\n" + markdown(found.path_table(rows)),
    ]


def _of(records: Sequence[Record], experiment: str) -> list[Record]:
    """Rows on test images whose method has its own settings."""
    return [
        record
        for record in records
        if record.spec.experiment == experiment
        and record.spec.evaluate_on == "test"
        and record.spec.hyperparameters == _usual(record.spec.method)
    ]


def _usual(method: str) -> dict[str, Any]:
    return registry.hyperparameters(method)().model_dump(mode="json")


def _by_imbalance(
    name: str, rows: Sequence[Record]
) -> Iterator[tuple[str, list[Record]]]:
    """Rows that can be compared, with the title of their section."""
    factors = sorted({row.spec.data.imbalance or 0.0 for row in rows}, reverse=True)
    if not factors:
        yield f"`{name}`: no row yet", []
    for factor in factors:
        tail = f", imbalance {factor:g}" if factor else ""
        chosen = [row for row in rows if (row.spec.data.imbalance or 0.0) == factor]
        yield f"`{name}`{tail}", chosen


def folded(title: str, parts: Sequence[str]) -> str:
    """Markdown behind a title that opens it, which may hold code in backticks."""
    body = "\n\n".join(parts)
    return f"~~~~{{dropdown}} {title}\n{body}\n~~~~"
