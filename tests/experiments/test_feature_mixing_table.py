"""The tables of FACoG's second phase: every row is in them, no file is no failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.feature_mixing_table import MISSING, feature_mixing_table

RUN: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"torch": "2.13.0"},
    "processor": "A",
    "threads": 1,
    "rounds": 7,
}
STEP = {
    "part": "step",
    "slots": 5,
    "milliseconds": 12.0,
    "passes_milliseconds": 10.0,
    "ratio": 1.2,
    "low": 1.1,
    "high": 1.3,
}
DICTIONARY = {
    "part": "dictionary",
    "count": 1200000,
    "dim": 2048,
    "gigabytes": 9.83,
    "own_megabytes": 21.4,
    "milliseconds": 3.0,
    "ratio": 2.0,
    "low": 1.5,
    "high": 2.5,
}


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    target = folder / "feature_mixing.json"
    runs = {row["part"]: RUN for row in rows}
    target.write_text(json.dumps({"runs": runs, "rows": rows}))
    return target


def test_every_part_has_a_table_of_its_numbers(tmp_path: Path) -> None:
    text = feature_mixing_table(written(tmp_path, STEP, DICTIONARY))
    assert "| 5 | 12.00 | 10.00 | 1.20 [1.10,\u00a01.30] |" in text
    assert "| 1,200,000 × 2,048 | 9.8 | 21 | 3.00 | 2.00 [1.50,\u00a02.50] |" in text
    assert text.count("7 rounds on A, one thread, 2026-01-02") == 2


def test_a_part_that_was_not_measured_has_no_table(tmp_path: Path) -> None:
    text = feature_mixing_table(written(tmp_path, STEP))
    assert "step / passes" in text
    assert "on disk" not in text


def test_nothing_measured_is_a_sentence(tmp_path: Path) -> None:
    assert feature_mixing_table(tmp_path / "none.json") == MISSING
    assert feature_mixing_table(written(tmp_path)) == MISSING


def test_another_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "feature_mixing.json"
    other.write_text('{"rows": [{}]}')
    with pytest.raises(UserError, match="make bench"):
        feature_mixing_table(other)
