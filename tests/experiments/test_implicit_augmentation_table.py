"""The table of the IADA loss: every row is in it, and no file is no failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.implicit_augmentation_table import (
    MISSING,
    implicit_augmentation_table,
)
from needsaug_lite.experiments.pages import write_pages

RUN: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"torch": "2.13.0"},
    "processor": "A | B",
    "threads": 1,
    "rounds": 7,
}


def row(problem: str, faster: float, samples: int = 30) -> dict[str, Any]:
    return {
        "problem": problem,
        "covariance": "full",
        "samples": samples,
        "classes": 20,
        "features": 10,
        "covariance_gradient": problem == "learned",
        "faster": faster,
        "low": faster - 0.5,
        "high": faster + 0.5,
        "milliseconds": 2.0,
        "literal_milliseconds": 2.0 * faster,
        "leaner": 4.0,
        "megabytes": 1.5,
        "literal_megabytes": 6.0,
        "relative_difference": 2e-7,
    }


def written(folder: Path, rows: list[dict[str, Any]], **runs: Any) -> Path:
    target = folder / "implicit_augmentation.json"
    named = {one["problem"]: runs.get(one["problem"], RUN) for one in rows}
    target.write_text(json.dumps({"runs": named, "rows": rows}))
    return target


def test_every_row_is_a_line_of_its_numbers(tmp_path: Path) -> None:
    target = written(tmp_path, [row("fixed", 3.0), row("learned", 8.0)])
    lines = implicit_augmentation_table(target).splitlines()
    assert lines[2:4] == [
        "| full | 30×20×10 | no | 3 [2.5,\u00a03.5] | 2, 6 | 4 | 1.5, 6 |",
        "| full | 30×20×10 | yes | 8 [7.5,\u00a08.5] | 2, 16 | 4 | 1.5, 6 |",
    ]
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "Largest relative difference of the two: 2e-07." in lines
    alone = implicit_augmentation_table(target, problems=["learned"])
    assert "16" in alone
    assert "[2.5" not in alone


def test_a_run_is_named_once_with_the_sizes_it_measured(tmp_path: Path) -> None:
    other = {**RUN, "rounds": 9}
    rows = [row("fixed", 3.0), row("learned", 8.0), row("large", 9.0, samples=40)]
    text = implicit_augmentation_table(written(tmp_path, rows, large=other))
    made = r"rounds on A \| B, one thread, 2026-01-02; torch 2.13.0."
    assert text.count(f"30×20×10: 7 {made}") == 1
    assert text.count(f"40×20×10: 9 {made}") == 1


def test_nothing_measured_is_a_sentence(tmp_path: Path) -> None:
    assert implicit_augmentation_table(tmp_path / "none.json") == MISSING
    assert implicit_augmentation_table(written(tmp_path, [])) == MISSING


def test_the_page_lies_beside_the_others(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "measurements").mkdir()
    written(tmp_path / "measurements", [row("fixed", 3.0)])
    write_pages(tmp_path / "results", tmp_path / "out")
    assert (
        "3 [2.5,\u00a03.5]" in (tmp_path / "out/implicit_augmentation.md").read_text()
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": [{}], "runs": {}}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    target = tmp_path / "implicit_augmentation.json"
    target.write_text(text)
    with pytest.raises(UserError, match="delete it"):
        implicit_augmentation_table(target)
