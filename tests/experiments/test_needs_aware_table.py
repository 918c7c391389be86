"""The tables of the step of needs-aware generation: ratios to MTL, goals, the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.needs_aware_table import (
    GOALS,
    MISSING,
    needs_aware_table,
    paper_days,
)

RUN: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"torch": "2.13.0"},
    "processor": "A",
    "threads": 1,
    "rounds": 7,
}


def measured(method: str, ratio: float, peak: int, problem: str = "one") -> Any:
    time = {"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1}
    return {
        "problem": problem,
        "method": method,
        "milliseconds": 20 * ratio,
        "time": time,
        "peak_bytes": peak,
    }


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    target = folder / "needs_aware.json"
    runs = {row["problem"]: RUN for row in rows}
    target.write_text(json.dumps({"runs": runs, "rows": rows}))
    return target


def test_every_method_stands_beside_mtl(tmp_path: Path) -> None:
    rows = [
        measured("needs_aware", 2.9, 3 * 2**20),
        measured("mtl", 1.0, 2 * 2**20),
        measured("needs_aware_reduced", 1.2, 2**20),
        measured("retrained_head", 1.1, 2**20),
    ]
    text = needs_aware_table(written(tmp_path, rows))
    assert "MTL takes 20.0 ms a step and 2.0 MiB" in text
    assert "| Needs-aware | 2.90 [2.80,\u00a03.00] | 3.0 | 1.34 | 1.50 |" in text
    assert (
        "| Needs-aware, reduced | 1.20 [1.10,\u00a01.30] | 1.3 | 1.03 | 0.50 |" in text
    )
    assert "[1.00,\u00a01.20] | – | – | 0.50 |" in text
    assert "| MTL |" not in text
    assert "5.1 / 3.8 and 3.9 / 3.8" in text
    assert "needs\\_aware" in text


def test_problems_have_tables_and_conditions_of_their_own(tmp_path: Path) -> None:
    rows = [
        measured(method, 1.0, 2**20, problem)
        for problem in ("one", "other")
        for method in ("mtl", "equal")
    ]
    text = needs_aware_table(written(tmp_path, rows))
    assert text.count("| method |") == text.count("7 rounds on A") == 2
    assert text.index("**one**") < text.index("**other**")


def test_the_papers_days_are_those_of_table_10() -> None:
    assert paper_days() == {"needs_aware": 5.1, "needs_aware_reduced": 3.9, "mtl": 3.8}
    assert GOALS == {"needs_aware": 3.0, "needs_aware_reduced": 1.3}


def test_without_measurements_the_page_says_so(tmp_path: Path) -> None:
    assert needs_aware_table(tmp_path / "none.json") == MISSING
    assert needs_aware_table(written(tmp_path, [])) == MISSING


def test_another_file_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"rows": [{"problem": "x"}], "runs": {}}')
    with pytest.raises(UserError, match=r"other\.json"):
        needs_aware_table(other)
