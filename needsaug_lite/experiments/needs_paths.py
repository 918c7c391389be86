"""How much of the gradient of A came which way, from the histories of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from needsaug_lite.experiments import registry
from needsaug_lite.experiments.needs_allocation import of_method
from needsaug_lite.experiments.records import Record
from needsaug_lite.methods.four_levels import PATHS


def path_history(
    records: Sequence[Record], method: str = "needs_aware"
) -> pd.DataFrame:
    """Norm of every path of dA, as a share of their sum: mean over seeds.

    Returns:
        A line for each epoch, a column for each name of `four_levels.PATHS`; empty
        without rows.
    """
    shares = [_path_shares(row) for row in of_method(records, method)]
    if not shares:
        return pd.DataFrame()
    return pd.concat(shares).groupby(level=0).mean()


def path_shares(records: Sequence[Record], method: str = "needs_aware") -> Any:
    """Share of every path: geometric mean over epochs, then mean over seeds.

    A path that is zero in some epoch has share 0, so that one that is never there does.

    Returns:
        A series of numbers by the names of `four_levels.PATHS`; empty without rows.
    """
    rows = [_path_shares(row) for row in of_method(records, method)]
    if not rows:
        return pd.Series(dtype=float)
    with np.errstate(divide="ignore"):
        means = [np.exp(np.log(shares).mean()) for shares in rows]
    return pd.concat(means, axis=1).mean(axis=1)


def path_table(
    records: Sequence[Record],
    methods: Sequence[str] = ("needs_aware", "needs_aware_reduced"),
) -> pd.DataFrame:
    """`path_shares` as text: a line for a path, a column for a method with rows.

    Two methods fit on a phone.
    """
    found = {m: path_shares(records, m) for m in methods}
    columns = {
        registry.entry(name).label: shares.map(scientific)
        for name, shares in found.items()
        if len(shares)
    }
    if not columns:
        return pd.DataFrame()
    return pd.DataFrame(columns).rename_axis("path").reset_index()


def scientific(value: float) -> str:
    """Like "0.42", or "2.3·10⁻⁵" below a hundredth; "0" for zero."""
    if value == 0 or value >= 0.01:
        return f"{value:.2g}"
    digits, _, exponent = f"{value:.1e}".partition("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digits}·10{raised}"


def _path_shares(row: Record) -> pd.DataFrame:
    """Share of every path of `PATHS` in every epoch with a gradient that isn't zero."""
    columns = {f"path_{name}": name for name in PATHS}
    logged = [line for line in row.history if columns.keys() <= line.keys()]
    norms = pd.DataFrame(logged, columns=[*columns, "epoch"]).set_index("epoch")
    norms = norms.rename(columns=columns).astype(float)
    total = norms.sum(axis=1)
    return norms[total > 0].div(total[total > 0], axis=0)
