"""Ranks, their tests and the difference that tells methods apart."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from helpers.made_rows import row, rows
from scipy import stats

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import ranks
from needsaug_lite.experiments.side_by_side import LONG_TAIL, by_method

GROUND = LONG_TAIL.experiment


def of(scores: dict[str, list[float]]) -> ranks.Ranking | None:
    return ranks.ranking(by_method(rows(GROUND, scores), GROUND), LONG_TAIL.value)


def test_the_best_comes_first_and_equal_scores_share_a_rank() -> None:
    found = of(
        {"isda": [0.5, 0.6], "cross_entropy": [0.7, 0.6], "ldam_drw": [0.1, 0.2]}
    )
    assert found is not None
    assert found.methods == ("cross_entropy", "isda", "ldam_drw")
    assert found.mean_ranks.tolist() == [1.25, 1.75, 3.0]
    assert found.scores[0].tolist() == [0.7, 0.5, 0.1]


@pytest.mark.parametrize(
    ("methods", "constant"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)]
)
def test_constants_are_those_of_the_printed_table(
    methods: int, constant: float
) -> None:
    # Demsar 2006, Table 5a: q at 5% over the square root of two.
    found = ranks.critical_difference(methods, 7)
    width = sqrt(methods * (methods + 1) / (6 * 7))
    assert found / width == pytest.approx(constant, abs=1e-3)


def test_two_methods_are_a_sign_test() -> None:
    # Mean ranks 1.5 +- s / (2 n) for s = wins - losses: |R1 - R2| = |s| / n.
    assert ranks.critical_difference(2, 25) == pytest.approx(
        stats.norm.ppf(0.975) / sqrt(25)
    )


def test_false_alarms_are_about_one_in_twenty() -> None:
    draw = np.random.default_rng(0)
    count, seeds, methods = 1500, 15, 8
    difference = ranks.critical_difference(methods, seeds)
    friedman = far = 0
    for _ in range(count):
        scores = draw.normal(size=(seeds, methods)) + draw.normal(size=(seeds, 1))
        friedman += ranks.friedman(scores) < 0.05
        far += np.ptp(ranks.mean_ranks(scores)) >= difference
    for share in (friedman / count, far / count):
        assert 0.025 < share < 0.065


def test_friedman_sees_a_difference_and_no_difference() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(10, 5))
    assert ranks.friedman(scores + 3 * np.arange(5)) < 1e-6
    assert ranks.friedman(np.ones((10, 5))) == 1.0
    assert ranks.friedman(scores[:, :2]) == 1.0


def test_joined_are_the_longest_runs_closer_than_the_difference() -> None:
    assert ranks.joined([1.0, 2.0, 3.5, 4.0, 8.0], 2.1) == [(0, 1), (1, 3)]
    assert ranks.joined([1.0, 2.0, 3.0], 5.0) == [(0, 2)]
    assert ranks.joined([1.0, 3.0, 5.0], 2.0) == []


def test_ten_seeds_tell_no_pair_of_eleven_methods_apart() -> None:
    draw = np.random.default_rng(0)
    scores = draw.uniform(0, 0.001, (14, 11)) + np.arange(11) / 20
    for seeds, apart in ((10, 0), (14, 55)):
        found = ranks.Ranking(
            tuple("abcdefghijk"), tuple(range(seeds)), scores[:seeds],
            np.arange(11.0), 0.0, 1.0,
        )  # fmt: skip
        pairs = ranks.wilcoxon_pairs(found)
        assert (len(pairs.apart), pairs.count) == (apart, 55)
        assert (pairs.smallest < 0.05) == (apart > 0)


def test_a_method_with_fewer_seeds_is_left_out_and_named() -> None:
    found = of({"isda": [0.5, 0.6, 0.7], "cross_entropy": [0.7, 0.6, 0.5], "mgr": [1]})
    assert found is not None
    assert found.left_out == ("mgr",)
    assert found.seeds == (0, 1, 2)
    assert of({"isda": [0.5, 0.6]}) is None
    assert of({}) is None


def test_other_data_are_refused() -> None:
    one = row(GROUND, "isda", 0, 0.5), row(GROUND, "isda", 1, 0.5)
    other = row(GROUND, "cross_entropy", 0, 0.5), row(GROUND, "cross_entropy", 1, 0.5)
    wrong = other[1].model_copy(update={"data_checksum": "others"})
    given = by_method([*one, other[0], wrong], GROUND)
    with pytest.raises(UserError, match="different data with seed 1"):
        ranks.ranking(given, LONG_TAIL.value)
