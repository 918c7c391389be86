"""Fronts and areas against rectangles, and rows that can't be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Record, Spec
from needsaug_lite.experiments.pareto import (
    front,
    hypervolume,
    hypervolumes,
    mean_curve,
    trade_offs,
)

POINTS = arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.just(2)),
    elements=st.integers(0, 16).map(lambda step: step / 8),
)
REFERENCE = (1.5, 1.75)


def row(
    seed: int,
    fairness: float,
    right: float,
    deo: float,
    average: float,
    method: str = "fair_deo",
    **settings: Any,
) -> Record:
    chosen = {"fairness": fairness} if method != "ldam" else {}
    values = {"method": method, "seed": seed, "hyperparameters": chosen, **settings}
    return Record(
        run_id="x",
        method_version=1,
        spec=Spec.checked(values),
        metrics={
            "adjusted_accuracy": right,
            "deo": deo,
            "average_group_accuracy": average,
        },
        class_counts=[1],
        history=[],
        seconds=1,
        peak_memory_mib=1,
        threads=1,
        device="cpu",
        data_checksum="same",
        versions={},
        python="3",
        code_version="0",
        created="now",
    )


def test_area_of_rectangles() -> None:
    assert hypervolume([(0.25, 0.5)], (1, 2)) == pytest.approx(0.75 * 1.5)
    # Two rectangles overlap in 0.5 x 1.
    assert hypervolume([(0.25, 1), (0.5, 0.5)], (1, 2)) == pytest.approx(
        0.75 * 1 + 0.5 * 1.5 - 0.5 * 1
    )
    # A staircase.
    assert hypervolume([(0, 2), (1, 1), (2, 0)], (3, 3)) == pytest.approx(6)


def test_what_is_not_below_the_reference_adds_nothing() -> None:
    assert hypervolume([(1, 0), (0, 2), (3, 3), (-5, 2)], (1, 2)) == 0
    assert hypervolume([], (1, 2)) == 0
    assert hypervolume([(0.5, 0.5), (2, -9)], (1, 1)) == 0.25


def test_front_of_known_points() -> None:
    points = [(0, 3), (1, 1), (1, 2), (2, 1), (3, 0), (1, 1)]
    assert front(points).tolist() == [True, True, False, False, True, True]
    assert front([]).shape == (0,)


@given(POINTS)
def test_front_is_what_its_definition_says(points: np.ndarray) -> None:
    smaller = (points[:, None] <= points[None]).all(2)
    below = smaller & (points[:, None] < points[None]).any(2)
    assert front(points).tolist() == (~below.any(0)).tolist()


@given(POINTS)
def test_area_is_that_of_the_cells_of_a_grid(points: np.ndarray) -> None:
    # Coordinates are multiples of 1/8, so that the middles of cells decide.
    first, second = (np.arange(0, worst, 1 / 8) + 1 / 16 for worst in REFERENCE)
    middles = np.stack(np.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)
    covered = (points[:, None] <= middles[None]).all(2).any(0)
    assert hypervolume(points, REFERENCE) == pytest.approx(covered.sum() / 64)


@given(POINTS, st.randoms())
def test_dominated_points_order_and_axes_change_nothing(
    points: np.ndarray, draw: Any
) -> None:
    area = hypervolume(points, REFERENCE)
    order = list(range(len(points)))
    draw.shuffle(order)
    assert hypervolume(points[order], REFERENCE) == pytest.approx(area)
    assert front(points[order]).tolist() == front(points)[order].tolist()
    assert hypervolume(points[front(points)], REFERENCE) == pytest.approx(area)
    worse = np.concatenate([points, points + np.array([0.125, 0])])
    assert hypervolume(worse, REFERENCE) == pytest.approx(area)
    turned = hypervolume(points[:, ::-1], REFERENCE[::-1])
    assert turned == pytest.approx(area)


@pytest.mark.parametrize(
    "points", [[(0, float("nan"))], [(0, float("inf"))], [(1, 2, 3)], [1, 2]]
)
def test_points_that_are_no_pairs_are_refused(points: Any) -> None:
    with pytest.raises(UserError, match="pairs of finite numbers"):
        hypervolume(points, (1, 1))
    with pytest.raises(UserError, match="pairs of finite numbers"):
        front(points)


def rows() -> list[Record]:
    return [
        row(1, 0.5, 0.75, 0.5, 0.75),
        row(1, 0.0, 0.9, 0.8, 0.6),
        row(0, 0.5, 0.8, 0.2, 0.7),
        row(0, 0.0, 0.9, 1.2, 0.6),
    ]


def test_one_area_for_each_seed() -> None:
    table = hypervolumes(rows())
    assert table["seed"].tolist() == [0, 1]
    assert table["points"].tolist() == [2, 2]
    # Seed 0: (0.2, 0.2) alone, because (0.1, 1.2) has a DEO above 1.
    deo = [0.3 * 0.8, 0.25 * 0.5 + 0.4 * 0.2 - 0.25 * 0.2]
    assert table["deo"].tolist() == pytest.approx(deo)
    balanced = [0.3 * 0.2 + 0.1 * 0.1, 0.25 * 0.25 + 0.15 * 0.1]
    assert table["group_balanced_error"].tolist() == pytest.approx(balanced)
    shuffled = hypervolumes(rows()[::-1])
    assert shuffled.equals(table)


def test_rows_of_two_experiments_make_one_front() -> None:
    first, *others = rows()
    spec = first.spec.model_copy(update={"experiment": "another"})
    moved = first.model_copy(update={"spec": spec})
    assert hypervolumes([moved, *others]).equals(hypervolumes(rows()))


def test_the_mean_curve_has_a_point_for_each_strength() -> None:
    curve = mean_curve(rows())
    assert curve["fairness"].tolist() == [0.0, 0.5]
    assert curve["seeds"].tolist() == [2, 2]
    assert curve["error"].tolist() == pytest.approx([0.1, 0.225])
    assert curve["deo"].tolist() == pytest.approx([1.0, 0.35])
    assert curve["group_balanced_error"].tolist() == pytest.approx([0.4, 0.275])


def test_rows_that_say_nothing_together_are_refused() -> None:
    with pytest.raises(UserError, match="0 different settings"):
        trade_offs([])
    with pytest.raises(UserError, match="2 different settings"):
        trade_offs([*rows(), row(2, 0.5, 0.8, 0.1, 0.7, epochs=7)])
    with pytest.raises(UserError, match="2 different settings"):
        trade_offs([*rows(), row(2, 0.5, 0.8, 0.1, 0.7, method="fair_balanced")])
    with pytest.raises(UserError, match="two rows with seed 1 and λ 0.5"):
        trade_offs([*rows(), row(1, 0.5, 0.8, 0.1, 0.7)])
    with pytest.raises(UserError, match="ldam has no λ"):
        trade_offs([row(0, 0.5, 0.8, 0.1, 0.7, method="ldam")])
    with pytest.raises(UserError, match=r"seed 2 has no row for λ in \[0.0\]"):
        hypervolumes([*rows(), row(2, 0.5, 0.8, 0.1, 0.7)])
    bare = rows()[0].model_copy(update={"metrics": {"adjusted_accuracy": 0.5}})
    with pytest.raises(UserError, match="lacks deo, average_group_accuracy"):
        trade_offs([bare])
