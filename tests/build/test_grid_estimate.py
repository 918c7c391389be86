"""The time of a grid, told from rows of known seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.grids import GRID, Bench, record

from needsaug_lite.experiments.grid import expand
from needsaug_lite.experiments.grid_estimate import Estimate, duration, estimate
from needsaug_lite.experiments.spec import Spec

SECONDS, IMAGES = 30.0, 200


def told(
    results: Path, known: list[Spec], pending: list[Spec], **kinds: Any
) -> Estimate:
    """The estimate for some runs when all known ones took SECONDS on IMAGES."""
    for spec in known:
        record(spec, seconds=SECONDS, images=IMAGES, **kinds).save(results)
    return estimate(pending, results, "cpu")


def changed(**values: Any) -> list[Spec]:
    return expand(GRID | {"base": GRID["base"] | values, "seeds": "5-7"})


def test_known_runs_add_up_and_share_the_places(tmp_path: Path) -> None:
    pending = changed()
    found = told(tmp_path, expand(GRID), pending)
    assert found.seconds == pytest.approx(len(pending) * SECONDS)
    assert (found.alike, found.scaled, found.unknown) == (6, 0, 0)
    assert found.rows == 4
    assert found.side_by_side(3) == pytest.approx(2 * SECONDS)
    assert found.side_by_side(100) == SECONDS, "no shorter than one run"


def test_nothing_is_told_from_nothing_nor_from_another_device(tmp_path: Path) -> None:
    pending = changed()
    for found in (
        told(tmp_path, [], pending),
        told(tmp_path, expand(GRID), pending, device="Some GPU"),
    ):
        assert found == Estimate(0, 0, 0, 0, 0, unknown=len(pending))
        assert "unknown" in found.said(2)[0]


@pytest.mark.parametrize("factor", [2, 0.5])
def test_time_is_proportional_to_epochs(tmp_path: Path, factor: float) -> None:
    pending = changed(epochs=int(GRID["base"]["epochs"] * factor))
    found = told(tmp_path, expand(GRID), pending)
    assert found.seconds == pytest.approx(len(pending) * SECONDS * factor)
    assert (found.alike, found.scaled) == (0, 6)


def test_time_is_proportional_to_images_where_they_are_known(tmp_path: Path) -> None:
    other = {"name": "digits", "imbalance": 5}
    pending = [s for s in changed(data=other, epochs=4) if s.method == "ldam"]
    before = told(tmp_path, expand(GRID), pending)
    # A row of another method says how many images these data are.
    row = next(s for s in changed(data=other) if s.method == "cross_entropy")
    record(row, seconds=1000.0, images=3 * IMAGES).save(tmp_path)
    after = estimate(pending, tmp_path, "cpu")
    assert before.seconds == pytest.approx(len(pending) * SECONDS * 2)
    assert after.seconds == pytest.approx(3 * before.seconds)


def test_other_data_tell_nothing_before_their_images_are_known(tmp_path: Path) -> None:
    pending = changed(data={"name": "mnist"})
    assert told(tmp_path, expand(GRID), pending).unknown == len(pending)
    record(changed(data={"name": "mnist"}, model={"width": 4})[0], images=50 * IMAGES,
           seconds=1.0).save(tmp_path)  # fmt: skip
    assert estimate(pending, tmp_path, "cpu").seconds == pytest.approx(
        len(pending) * SECONDS * 50
    )


def test_the_most_similar_rows_decide(tmp_path: Path) -> None:
    pending = changed()
    told(tmp_path, expand(GRID), pending)
    for spec in changed(epochs=40) + changed(model={"width": 64}):
        record(spec, seconds=9999.0, images=IMAGES).save(tmp_path)
    (tmp_path / "long_tail" / "0.json").write_text("no row")
    found = estimate(pending, tmp_path, "cpu")
    assert found.seconds == pytest.approx(len(pending) * SECONDS)


@pytest.mark.parametrize("epochs", [2, 4])
@pytest.mark.parametrize("imbalance", [20, 5])
def test_rows_of_another_method_tell_nothing(
    tmp_path: Path, epochs: int, imbalance: int
) -> None:
    known = [s for s in expand(GRID) if s.method == "ldam"]
    data = {"name": "digits", "imbalance": imbalance}
    found = told(tmp_path, known, changed(data=data, epochs=epochs))
    assert (found.alike + found.scaled, found.unknown) == (3, 3)


def test_a_method_without_rows_is_counted_and_said(tmp_path: Path) -> None:
    known = [s for s in expand(GRID) if s.method == "ldam"]
    bench = Bench(tmp_path)
    for spec in known:
        record(spec, seconds=600.0, images=IMAGES).save(bench.results)
    base = GRID["base"] | {"epochs": 4}
    bench = Bench(tmp_path, GRID | {"base": base})
    text = bench.run(dry_run=True, cores=2).summary()
    assert "about 40 min of training in all, 20 min with 2 runs side by side" in text
    assert "from 2 rows, for 2 runs (2 of them scaled by epochs and images)" in text
    assert "2 runs have no earlier row like them" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (45, "45 s"),
        (720, "12 min"),
        (12_000, "3 h 20 min"),
        (7_199, "2 h 0 min"),
        (180_000, "2 days 2 h"),
    ],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
