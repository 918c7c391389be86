"""The table of `make bench`: every row is in it, and no file is no failure."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.hypergradient_table import MISSING, hypergradient_tables
from needsaug_lite.experiments.pages import write_pages

RUN: dict[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "versions": {"torch": "2.13.0", "higher": "0.2.1"},
    "processor": "A | B",
    "threads": 1,
    "batch": 128,
    "rounds": 60,
}
positive = st.floats(0.01, 100)
word = st.text("abcXYZ _|", min_size=1).filter(str.strip)


def row(network: str, estimator: str, route: str, ratio: float) -> dict[str, Any]:
    return {
        "network": network,
        "estimator": estimator,
        "route": route,
        "ratio": ratio,
        "low": ratio - 0.5,
        "high": ratio + 0.5,
        "plain_milliseconds": 4.0,
        "plain_memory": 1.1,
        "memory": 2.5,
        "relative_error": 1e-7,
    }


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    target = folder / "hypergradients.json"
    runs = {one["network"]: RUN for one in rows}
    target.write_text(json.dumps({"runs": runs, "rows": rows}))
    return target


@given(keys=st.lists(st.tuples(word, word, word, positive), min_size=1, max_size=8))
def test_every_row_is_one_line_of_four_cells(
    tmp_path_factory: pytest.TempPathFactory, keys: list[tuple[str, str, str, float]]
) -> None:
    rows = [row(*key) for key in keys]
    text = hypergradient_tables(written(tmp_path_factory.mktemp("table"), rows))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    bodies = [line for line in lines if not line.startswith("| route |")]
    cells = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in bodies]
    assert all(len(line) == 4 for line in cells)

    def plain(name: str) -> str:
        return name.replace("\\", "").strip()

    found = Counter((plain(name), time.split()[0]) for name, time, *_ in cells)
    assert found == Counter((who.strip(), f"{ratio:.2f}") for *_, who, ratio in keys)


def test_a_row_stands_under_its_network_and_estimator(tmp_path: Path) -> None:
    rows = [row("mlp", "unrolled", "ours", 2.0), row("other", "Neumann", "ours", 8.0)]
    text = hypergradient_tables(written(tmp_path, rows))
    places = ["MLP", "*Unrolled*", "2.00 [1.50, 2.50]", "other", "*Neumann*", "8.00 ["]
    assert sorted(places, key=text.index) == places
    alone = hypergradient_tables(written(tmp_path, rows), networks=["mlp"])
    assert "2.00" in alone
    assert "8.00" not in alone


@pytest.mark.parametrize("field", ["date", "2.13.0", "0.2.1", "128", "60 rounds"])
def test_the_run_is_named(tmp_path: Path, field: str) -> None:
    rows = [row("mlp", "unrolled", "ours", 2.0)]
    expected = RUN["date"][:10] if field == "date" else field
    assert expected in hypergradient_tables(written(tmp_path, rows))


def test_nothing_measured_is_a_sentence(tmp_path: Path) -> None:
    missing = tmp_path / "book/measurements/hypergradients.json"
    assert hypergradient_tables(missing) == MISSING
    assert hypergradient_tables(written(tmp_path, [])) == MISSING
    (tmp_path / "book/results").mkdir(parents=True)
    write_pages(tmp_path / "book/results", tmp_path / "out")
    assert (tmp_path / "out/hypergradients.md").read_text() == MISSING


def test_the_page_lies_beside_the_others(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "measurements").mkdir()
    written(tmp_path / "measurements", [row("mlp", "unrolled", "ours", 2.0)])
    write_pages(tmp_path / "results", tmp_path / "out")
    assert "2.00 [1.50, 2.50]" in (tmp_path / "out/hypergradients.md").read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": [{}], "runs": {}}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    target = tmp_path / "hypergradients.json"
    target.write_text(text)
    with pytest.raises(UserError, match="delete it"):
        hypergradient_tables(target)
