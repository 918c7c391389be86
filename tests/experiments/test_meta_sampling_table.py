"""The table of MGR's step: every row is in it, no file is no failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.meta_sampling_table import MISSING, meta_sampling_table

RUN: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"torch": "2.13.0"},
    "processor": "A",
    "threads": 1,
    "rounds": 7,
}


def measured(ratio: float) -> dict[str, float]:
    return {"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1}


ROW = {
    "problem": "convnet, 8 x 8",
    "milliseconds": 3.21,
    "pcr": measured(3.0),
    "mgr": measured(2.5),
    "second_order": measured(1.2),
}


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    target = folder / "meta_sampling.json"
    runs = {row["problem"]: RUN for row in rows}
    target.write_text(json.dumps({"runs": runs, "rows": rows}))
    return target


def test_every_problem_has_a_line_and_the_paper_stands_below(tmp_path: Path) -> None:
    text = meta_sampling_table(written(tmp_path, [ROW, {**ROW, "problem": "other"}]))
    assert "| convnet, 8 x 8 | 3.2 | 3.00 [2.90,\u00a03.10] | 2.50" in text
    assert "| other |" in text
    assert "| 1.13 |" in text  # 6.55 hours over 5.79 hours
    assert text.count("7 rounds on A") == 2


def test_without_measurements_the_page_says_so(tmp_path: Path) -> None:
    assert meta_sampling_table(tmp_path / "none.json") == MISSING
    assert meta_sampling_table(written(tmp_path, [])) == MISSING


def test_another_file_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"rows": [{"problem": "x"}], "runs": {}}')
    with pytest.raises(UserError, match=r"other\.json"):
        meta_sampling_table(other)
