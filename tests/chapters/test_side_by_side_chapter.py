"""What chapter 16 teaches is what the library does."""

from __future__ import annotations

from itertools import product
from math import sqrt
from typing import Any

import numpy as np
import pytest
from helpers.taught import functions, lines_of_code
from scipy import stats

from needsaug_lite.experiments import comparisons, ranks

NOTEBOOK = "16_side_by_side.ipynb"
TAUGHT = {
    "paired_variance",
    "signed_rank_p",
    "holm",
    "ranks_within",
    "friedman_statistic",
    "nemenyi",
    "seeds_needed",
}


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(NOTEBOOK, TAUGHT, np=np, stats=stats, sqrt=sqrt, product=product)


def test_it_fits_in_forty_lines() -> None:
    assert lines_of_code(NOTEBOOK, TAUGHT) <= 40


@pytest.mark.parametrize("count", [5, 9, 11])
def test_signed_ranks_are_those_of_the_library(taught: Any, count: int) -> None:
    for seed in range(5):
        sample = np.random.default_rng(seed).normal(0.4, 1, count)
        expected = stats.wilcoxon(sample).pvalue
        assert taught.signed_rank_p(sample) == pytest.approx(expected)
    assert taught.signed_rank_p(np.arange(1, count + 1)) == ranks.smallest_p(count)


def test_correction_is_that_of_the_library(taught: Any) -> None:
    for seed in range(20):
        p_values = np.random.default_rng(seed).uniform(0, 0.2, 7).tolist()
        p_values += p_values[:2]
        assert taught.holm(p_values) == pytest.approx(comparisons.holm(p_values))


def test_ranks_are_those_of_the_library(taught: Any) -> None:
    scores = np.random.default_rng(0).normal(size=(10, 6))
    found = taught.ranks_within(scores).mean(0)
    assert found == pytest.approx(ranks.mean_ranks(scores))
    p_value = stats.chi2.sf(taught.friedman_statistic(scores), 5)
    assert p_value == pytest.approx(ranks.friedman(scores))
    assert taught.nemenyi(6, 10) == pytest.approx(ranks.critical_difference(6, 10))


def test_number_of_seeds_is_the_smallest_that_is_enough(taught: Any) -> None:
    for questions in range(1, 120):
        needed = taught.seeds_needed(questions)
        assert questions * ranks.smallest_p(needed) < 0.05
        assert questions * ranks.smallest_p(needed - 1) >= 0.05


def test_pairs_of_equal_scores_have_no_variance(taught: Any) -> None:
    assert taught.paired_variance(2, 2, 1, 10) == pytest.approx(0)
    assert taught.paired_variance(2, 3, 0, 10) == pytest.approx(1.3)
