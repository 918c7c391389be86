"""What architecture searches found: cells, how alike they are, and operations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import registry
from needsaug_lite.experiments.needs_allocation import of_method
from needsaug_lite.experiments.records import Record
from needsaug_lite.models.genotype import Genotype, agreement, expected_agreement
from needsaug_lite.models.search_cell import KINDS, Space

REFERENCE = "pc_darts"
# In the order of Table 5, then that of Table 10, the controls, and Table 12.
METHODS = (
    "pc_darts",
    "equal_search",
    "separate_search",
    "mtl_search",
    "needs_aware_search",
    "needs_aware_search_reduced",
    "random_architecture",
    "random_search",
    "darts",
)
_PREFERENCES = ("skip_connections_normal", "skip_connections_reduce", "entropy")


def short_label(method: str) -> str:
    """Name of a method beside others that search, short enough for a phone."""
    label = registry.entry(method).label.removesuffix(", search")
    return label.replace("Needs-aware search", "Needs-aware")


def rows_of(
    records: Sequence[Record], method: str, *, reduced: bool = False
) -> list[Record]:
    """Rows of a method by seed, of one setting.

    Args:
        records: rows of one experiment.
        method: name of the method.
        reduced: those with the cost reductions of Table 12 in place of those without;
            of a method that has them built in, all rows are without.

    Raises:
        UserError: if a seed stands twice.
    """
    return of_method([row for row in records if is_reduced(row) == reduced], method)


def is_reduced(row: Record) -> bool:
    """Whether a row was told to search for less, against what its method does."""
    told = row.spec.hyperparameters
    return bool(told.get("halved", False)) or told.get("interval", 1) > 1


def genotypes(records: Sequence[Record], method: str) -> dict[int, Genotype]:
    """The cells that a method found, by seed."""
    return {
        row.spec.seed: Genotype.from_lists(row.metrics["architecture"]["genotype"])
        for row in rows_of(records, method)
    }


def agreement_across_seeds(records: Sequence[Record], method: str) -> float:
    """Mean of `genotype.agreement` over all pairs of seeds; nan without a pair."""
    pairs = list(combinations(genotypes(records, method).values(), 2))
    return float(np.mean([agreement(a, b) for a, b in pairs])) if pairs else np.nan


def agreements_with(
    records: Sequence[Record], method: str, other: str = REFERENCE
) -> dict[int, float]:
    """`genotype.agreement` of what two methods found, by the seeds that both have."""
    mine, theirs = genotypes(records, method), genotypes(records, other)
    return {s: agreement(mine[s], theirs[s]) for s in mine if s in theirs}


def chance(records: Sequence[Record]) -> float:
    """What two cells drawn evenly from the space of these rows agree in on average.

    Raises:
        UserError: if they were searched in different spaces.
    """
    models = [row.spec.model for row in records]
    spaces = {Space(one.nodes, one.operations) for one in models}
    if len(spaces) != 1:
        raise UserError(
            f"these rows come from {len(spaces)} spaces; pick those of one, chance is "
            "another in each"
        )
    return expected_agreement(spaces.pop())


def agreement_table(
    records: Sequence[Record], methods: Sequence[str] = METHODS
) -> pd.DataFrame:
    """How much of the cells is the same again.

    Returns:
        method, n (seeds), across seeds (of one method) and with PC-DARTS (of one
        seed), in percent, as text; a last line for chance. Empty without rows.
    """
    lines = []
    for method in methods:
        found = genotypes(records, method)
        if not found:
            continue
        beside = {} if method == REFERENCE else agreements_with(records, method)
        values = list(beside.values())
        lines.append(
            {
                "method": short_label(method),
                "n": str(len(found)),
                "across seeds": _percent(agreement_across_seeds(records, method)),
                "PC-DARTS": _percent(float(np.mean(values)) if values else np.nan),
            }
        )
    if lines:
        expected = _percent(chance(records))
        texts = ("chance", "", expected, expected)
        lines.append(dict(zip(lines[0], texts, strict=True)))
    return pd.DataFrame(lines)


def preference_history(records: Sequence[Record], method: str) -> pd.DataFrame:
    """What the architecture prefers at the beginning of each epoch, mean over seeds.

    Returns:
        A line for each epoch of the search, with skip_connections_normal and
        skip_connections_reduce (how many a discretisation would keep) and entropy (1
        for even shares of the operations); empty for methods that prefer nothing.
    """
    found = [
        pd.DataFrame(logged, columns=["epoch", *_PREFERENCES]).set_index("epoch")
        for row in rows_of(records, method)
        if (logged := [e for e in row.history if e.keys() >= set(_PREFERENCES)])
    ]
    if not found:
        return pd.DataFrame(columns=list(_PREFERENCES))
    return pd.concat(found).astype(float).groupby(level=0).mean()


def operation_shares(records: Sequence[Record], method: str) -> Any:
    """Share of each operation among the choices of all cells, mean over seeds.

    Returns:
        A series by the names of the operations but none; empty without rows.
    """
    rows, cells = rows_of(records, method), genotypes(records, method)
    if not rows:
        return pd.Series(dtype=float)
    model = rows[0].spec.model
    names = Space(model.nodes, model.operations).choices
    chosen = [
        operation
        for genotype in cells.values()
        for kind in KINDS
        for operation, _ in genotype.cell(kind)
    ]
    return pd.Series({name: chosen.count(name) / len(chosen) for name in names})


def operation_table(
    records: Sequence[Record],
    methods: Sequence[str] = ("pc_darts", "needs_aware_search_reduced"),
) -> pd.DataFrame:
    """`operation_shares` in percent as text, beside an even choice.

    Two methods fit on a phone.
    """
    found = {method: operation_shares(records, method) for method in methods}
    columns = {
        short_label(method): shares.map(_percent)
        for method, shares in found.items()
        if len(shares)
    }
    if not columns:
        return pd.DataFrame()
    table = pd.DataFrame(columns)
    table["even"] = _percent(1 / len(table))
    table.index = pd.Index([name.replace("_", " ") for name in table.index])
    return table.rename_axis("operation").reset_index()


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{100 * share:.0f}"
