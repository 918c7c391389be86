"""The tables of needs_aware's architecture search from our rows, for the book."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from needsaug_lite.experiments import registry, search_results
from needsaug_lite.experiments.markdown_tables import markdown
from needsaug_lite.experiments.needs_page import folded
from needsaug_lite.experiments.records import Record

EXPERIMENTS = (
    "fashion_mnist_search",
    "digits_search",
    "cifar100_search_reduced",
    "cifar100_search",
)
# What an experiment may set: how long and how large, and the reductions of Table 12.
_SIZES = ("search", "evaluation")
_REDUCTIONS = ("interval", "halved")


def search_tables(records: Sequence[Record]) -> str:
    """A folded section for every experiment, also for those without rows.

    Args:
        records: rows of any experiments; those of others are left out.
    """
    parts = []
    for name in EXPERIMENTS:
        rows = usual_rows([row for row in records if row.spec.experiment == name])
        title = f"`{name}`" if rows else f"`{name}`: no row yet"
        parts.append(folded(title, _sections(rows)))
    return "\n\n".join(parts) + "\n"


def usual_rows(rows: Sequence[Record]) -> list[Record]:
    """Rows on test images that can be compared: of the sizes that most rows have.

    What a method does is its own default there, but for the reductions of Table 12.
    """
    kept = [
        row
        for row in rows
        if row.spec.evaluate_on == "test"
        and _without(row.spec.hyperparameters) == _without(_defaults(row))
    ]
    sizes = Counter(map(_size, kept))
    return [row for row in kept if _size(row) == sizes.most_common(1)[0][0]]


def _sections(rows: Sequence[Record]) -> list[str]:
    found = search_results
    titled = {
        "Table 5": found.error_table(rows),
        "Sizes and times": found.size_table(rows),
        "Table 10": found.cost_table(rows),
        "Table 12": found.reduction_table(rows),
        "Agreement, %": found.agreement_table(rows),
        "Operations, %": found.operation_table(rows),
    }
    return [f"**{title}**\n\n{markdown(table)}" for title, table in titled.items()]


def _defaults(row: Record) -> dict[str, Any]:
    return registry.hyperparameters(row.spec.method)().model_dump(mode="json")


def _without(settings: dict[str, Any]) -> dict[str, Any]:
    apart = {*_SIZES, *_REDUCTIONS}
    return {name: value for name, value in settings.items() if name not in apart}


def _size(row: Record) -> str:
    told = {name: row.spec.hyperparameters.get(name) for name in _SIZES}
    model = row.spec.model.model_dump(mode="json")
    data = row.spec.data.model_dump(mode="json")
    return json.dumps([told, model, data, row.spec.epochs], sort_keys=True)
