"""The tables of what a search costs: ratios to PC-DARTS, goals, the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.search_results import printed_days
from needsaug_lite.experiments.search_table import (
    GOALS,
    MISSING,
    architecture_search_tables,
    search_time,
)

RUN: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"torch": "2.13.0"},
    "processor": "A",
    "threads": 1,
    "pretraining": {
        "milliseconds": 40.0,
        "steps": 3000,
        "search_steps": 180,
        "searches": 4.0,
    },
    "rounds": 7,
}


def measured(
    name: str, ratio: float, peak: int, problem: str = "one", **settings: Any
) -> dict[str, Any]:
    return {
        "problem": problem,
        "name": name,
        "method": "needs_aware_search" if settings else name,
        "settings": settings,
        "milliseconds": {"warm_up": 20 * ratio, "moving": 50 * ratio},
        "step": {"warm_up": ratio, "moving": 2 * ratio},
        "search": {"ratio": ratio, "low": ratio - 0.1, "high": ratio + 0.1},
        "passes": {"warm_up": 1.0, "moving": 4.125},
        "peak_bytes": peak,
    }


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    target = folder / "architecture_search.json"
    runs = {row["problem"]: RUN for row in rows}
    target.write_text(json.dumps({"runs": runs, "rows": rows}))
    return target


def test_every_search_stands_beside_pc_darts(tmp_path: Path) -> None:
    rows = [
        measured("pc_darts", 1.0, 2 * 2**20),
        measured("needs_aware_search", 5.0, 3 * 2**20),
        measured("first_order", 3.0, 2**20, route="first_order"),
        measured("needs_aware_search_reduced", 1.2, 2**20),
        measured("darts", 1.6, 2**20),
    ]
    text = architecture_search_tables(written(tmp_path, rows))
    assert (
        "PC-DARTS takes 20 ms a step in its warm-up, 50 ms after it, and 2 Mi" in text
    )
    assert "| Needs-aware | 5.00 [4.90,\u00a05.10] | 1.4 | 1.34 | 1.50 |" in text
    assert "| Needs-aware, reduced | 1.20 [1.10,\u00a01.30] | 1.1 | 1.03 |" in text
    assert (
        "| Needs-aware, first-order | 3.00 [2.90,\u00a03.10] | – | – | 0.50 |" in text
    )
    assert "| DARTS | 1.60 [1.50,\u00a01.70] | – | – | 0.50 |" in text
    assert text.count("| PC-DARTS |") == 1  # steps alone; a search of its own is 1
    assert "| Needs-aware | 5.00 | 10.00 | 1, 4.12 |" in text
    assert "5.1 / 3.8 and 3.9 / 3.8" in text
    assert "3,000 steps" in text
    assert "4.00 times as long as a search of PC-DARTS of 180 steps" in text


def test_problems_have_tables_and_conditions_of_their_own(tmp_path: Path) -> None:
    rows = [
        measured(name, 1.0, 2**20, problem)
        for problem in ("one", "other")
        for name in ("pc_darts", "darts")
    ]
    text = architecture_search_tables(written(tmp_path, rows))
    assert text.count("| search |") == text.count("7 rounds on A") == 2
    assert text.index("**one**") < text.index("**other**")


def test_the_papers_days_are_those_of_table_10() -> None:
    assert printed_days() == {
        "pc_darts": 3.8,
        "needs_aware_search": 5.1,
        "needs_aware_search_reduced": 3.9,
    }
    assert GOALS == {"needs_aware_search": 1.4, "needs_aware_search_reduced": 1.1}


def test_a_search_is_a_warm_up_and_the_rest() -> None:
    # 3 of 10 steps at 2 s and 7 at 4 s.
    time = search_time(2.0, 4.0, warm_up_share=0.3, halved=False)
    assert time == pytest.approx((3 * 2 + 7 * 4) / 10)
    assert search_time(2.0, 4.0, warm_up_share=0.3, halved=True) == time / 2
    assert search_time(2.0, 4.0, warm_up_share=1.0, halved=False) == 2.0


def test_without_measurements_the_page_says_so(tmp_path: Path) -> None:
    assert architecture_search_tables(tmp_path / "none.json") == MISSING
    assert architecture_search_tables(written(tmp_path, [])) == MISSING


def test_another_file_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"rows": [{"problem": "x"}], "runs": {}}')
    with pytest.raises(UserError, match=r"other\.json"):
        architecture_search_tables(other)
