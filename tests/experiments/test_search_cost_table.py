"""The table of search costs: every row is in it, and no file is no failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.pages import write_pages
from needsaug_lite.experiments.search_cost_table import MISSING, search_cost_table

RUN: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"torch": "2.13.0"},
    "processor": "A | B",
    "threads": 1,
    "rounds": 7,
}
PLAIN: dict[str, Any] = {
    "problem": "digits",
    "method": "LA",
    "batches": None,
    "ratio": 1.0,
    "low": 1.0,
    "high": 1.0,
    "error": 0.125,
    "gain": None,
    "half_width": None,
}
SEARCH = {
    **PLAIN,
    "method": "search_a | b",
    "batches": 10,
    "ratio": 4.25,
    "low": 4.0,
    "high": 4.5,
    "gain": -0.034,
    "half_width": 0.021,
}


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    target = folder / "search_cost.json"
    target.write_text(json.dumps({"runs": {"digits": RUN}, "rows": rows}))
    return target


def test_a_line_for_every_method(tmp_path: Path) -> None:
    text = search_cost_table(written(tmp_path, [PLAIN, SEARCH]))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [line.replace("\\|", "/").count("|") for line in lines]
    assert len(set(cells)) == 1
    assert "| LA | – | 1.00 [1.00,\u00a01.00] | 12.5 | – |" in lines
    assert "| search\\_a \\| b | 10 + 10 | 4.25 [4.00,\u00a04.50]" in text
    assert "−3.4 ± 2.1" in text
    assert "7 rounds on A \\| B, one thread, 2026-01-02" in text


def test_nothing_measured_yet(tmp_path: Path) -> None:
    assert search_cost_table(tmp_path / "none.json") == MISSING
    assert search_cost_table(written(tmp_path, [])) == MISSING


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": [{"problem": 3}]}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    target = tmp_path / "search_cost.json"
    target.write_text(content)
    with pytest.raises(UserError, match="make bench"):
        search_cost_table(target)


def test_the_book_gets_the_table(tmp_path: Path) -> None:
    results = tmp_path / "results"
    (tmp_path / "measurements").mkdir()
    results.mkdir()
    written(tmp_path / "measurements", [PLAIN, SEARCH])
    write_pages(results, tmp_path / "out")
    assert "4.25" in (tmp_path / "out/search_cost.md").read_text()
