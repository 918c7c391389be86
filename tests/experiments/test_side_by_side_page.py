"""Which method when, and what it costs: only what rows and measurements say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.made_rows import rows

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.pages import write_pages
from needsaug_lite.experiments.side_by_side import LONG_TAIL, REFERENCE
from needsaug_lite.experiments.side_by_side_cost import (
    FILE,
    MISSING,
    cost_tables,
    costs,
    measured,
)
from needsaug_lite.experiments.side_by_side_page import (
    FEW,
    choose,
    few_images,
    which_method_when,
)

GROUND = LONG_TAIL.experiment
LINE: dict[str, Any] = {
    "problem": "digits",
    "method": REFERENCE,
    "ratio": 1.0,
    "low": 1.0,
    "high": 1.0,
    "seconds": 2.0,
    "generator": None,
    "peak_bytes": 3 * 2**20,
}
MGR = {**LINE, "method": "mgr", "ratio": 4.5, "low": 4.25, "generator": 2.3}
RUN = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"torch": "2.13.0"},
    "processor": "A | B",
    "threads": 1,
    "rounds": 7,
}
PAID = {REFERENCE: 1.0, "isda": 2.0, "mgr": 6.8}


def level(mean: float, number: int) -> list[float]:
    return np.random.default_rng(number).normal(mean, 0.002, 10).tolist()


def written(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    content = {"runs": {"digits": RUN, "larger": RUN}, "rows": lines}
    (folder / FILE).write_text(json.dumps(content))
    return folder / FILE


def test_the_cheapest_that_is_not_shown_worse_is_taken() -> None:
    scores = {
        REFERENCE: level(0.5, 0),
        "isda": level(0.6, 1),
        "mgr": [s + 1e-4 * (-1) ** i for i, s in enumerate(level(0.6, 1))],
    }
    found = choose(rows(GROUND, scores), LONG_TAIL, PAID)
    assert set(found.close) == {"isda", "mgr"}
    assert found.cheapest == "isda"
    unpriced = choose(rows(GROUND, scores), LONG_TAIL, {"mgr": 1.0})
    assert unpriced.cheapest == "mgr"
    assert choose(rows(GROUND, scores), LONG_TAIL, {}).cheapest is None


def test_the_only_one_that_is_left_is_taken_without_a_cost(tmp_path: Path) -> None:
    given = rows(GROUND, {REFERENCE: level(0.5, 0), "isda": level(0.6, 1)})
    found = choose(given, LONG_TAIL, {})
    assert (found.cheapest, found.close) == ("isda", ("isda",))
    assert "| a long tail | ISDA | ISDA, " in which_method_when(given, tmp_path)


def test_too_few_seeds_advise_nothing() -> None:
    scores = {REFERENCE: level(0.5, 0)[:9], "isda": level(0.6, 1)[:9]}
    found = choose(rows(GROUND, scores), LONG_TAIL, PAID)
    assert (found.best, found.close, found.cheapest) == ("isda", (), None)


def test_without_rows_the_page_says_so(tmp_path: Path) -> None:
    text = which_method_when([], tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == 6
    assert all("not measured" in line for line in lines)
    assert "Costs have not been measured yet" in text


def test_the_page_has_method_cost_and_needs(tmp_path: Path) -> None:
    written(tmp_path, [LINE, MGR])
    scores = {REFERENCE: level(0.5, 0), "mgr": level(0.6, 1)}
    text = which_method_when(rows(GROUND, scores), tmp_path)
    line = "| a long tail | MGR, 6.8 ×; needs clean images held apart, a generator |"
    assert line in text
    assert "%; every other one is shown worse" in text


def test_few_images_keeps_one_setting_of_each_method() -> None:
    made = {"synthetic": {"strength": 0.1}}, {"synthetic": {"strength": 1.0}}
    both = [
        one
        for settings in made
        for one in rows(
            FEW.experiment,
            {"gda": [0.5]},
            hyperparameters=settings,
            data={"name": "fashion_mnist", "kept": 0.1},
            learn_from="train",
        )
    ]
    assert few_images(both) == both[:1]


def test_costs_count_the_generator_and_take_the_largest_problem(tmp_path: Path) -> None:
    long = {**MGR, "problem": "larger", "seconds": 9.0, "ratio": 5.0}
    file = written(tmp_path, [LINE, MGR, long])
    assert [line["problem"] for line in measured(file)] == ["larger"]
    assert costs([LINE, MGR]) == {REFERENCE: 1.0, "mgr": 6.8}
    assert measured(tmp_path / "none.json") == []
    text = cost_tables(file)
    assert "| MGR | 4.50 [4.25,\u00a01.00] | +2.3 | 3 |" in text
    assert "| CE + meta | 1 | – | 3 |" in text
    assert "7 rounds on A \\| B" in text


def test_nothing_measured_and_damaged_files(tmp_path: Path) -> None:
    assert cost_tables(tmp_path / "none.json") == MISSING
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(UserError, match="make bench"):
        cost_tables(tmp_path / FILE)


def test_the_book_gets_the_table(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    write_pages(tmp_path / "results", tmp_path / "out")
    assert "a long tail" in (tmp_path / "out/which_method_when.md").read_text()
