"""Data frames as Markdown."""

from __future__ import annotations

from typing import Any

import pandas as pd

NOT_MEASURED = "Not measured yet."


def markdown(frame: pd.DataFrame) -> str:
    """A Markdown table; characters that would break a cell are escaped."""
    if frame.empty:
        return NOT_MEASURED

    def cell(value: Any) -> str:
        # Non-breaking spaces keep "78.6 ± 0.6" on one line.
        text = str(value).replace(" ± ", "\u00a0±\u00a0").replace("\n", " ")
        return text.replace("|", "\\|").replace("_", "\\_")

    head = [str(column) for column in frame.columns]
    rows = [[cell(value) for value in row] for row in frame.itertuples(index=False)]
    rule = ["---" if i < 1 else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rows])
