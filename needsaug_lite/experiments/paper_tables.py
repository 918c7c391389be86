"""The numbers that the five papers print."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import pandas as pd

COLUMNS = [
    "paper", "table", "dataset", "setting", "method", "metric", "value", "std", "note",
]  # fmt: skip


@cache
def _table() -> pd.DataFrame:
    with files("needsaug_lite.experiments").joinpath("paper_results.csv").open() as csv:
        return pd.read_csv(csv)


def paper_results(
    paper: str | None = None, table: str | None = None, dataset: str | None = None
) -> pd.DataFrame:
    """Every number of the papers' tables, or those of one paper, table, data set.

    Args:
        paper: its short key, such as mgr.
        table: its number, such as T2.
        dataset: its name in the column of that name.

    Returns:
        One row per number with the columns paper, table, dataset, setting, method,
        metric, value, std, note; accuracies and errors in percent as printed.
    """
    frame = _table()
    for column, wanted in (("paper", paper), ("table", table), ("dataset", dataset)):
        if wanted is not None:
            frame = frame[frame[column] == wanted]
    return frame.reset_index(drop=True)
