"""Mean ranks of methods over paired seeds: Friedman's test and Nemenyi's difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import comparisons
from needsaug_lite.experiments.records import Record


@dataclass(frozen=True)
class Ranking:
    """Methods over the same seeds.

    Attributes:
        methods: k names, best mean rank first.
        seeds: the n seeds that all of them have.
        scores: shape (n, k), larger is better.
        mean_ranks: shape (k,); rank 1 is the best, equal scores share a mean rank.
        p_value: of Friedman's test; 1 for fewer than three methods or two seeds.
        critical_difference: Nemenyi's; NaN for fewer than two seeds.
        left_out: methods that lack one of the seeds.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: NDArray[np.float64]
    mean_ranks: NDArray[np.float64]
    p_value: float
    critical_difference: float
    left_out: tuple[str, ...] = ()

    @property
    def joined(self) -> list[tuple[int, int]]:
        """Longest runs of methods that Nemenyi's difference doesn't tell apart."""
        return joined(self.mean_ranks, self.critical_difference)


def ranking(
    rows: Mapping[str, Sequence[Record]], value: Callable[[Record], float]
) -> Ranking | None:
    """Rank methods on the seeds of the method that has most.

    Args:
        rows: by method, one setting each.
        value: the number to rank by, larger is better.

    Returns:
        The ranking of all methods that have all of these seeds; None if fewer than
        two methods have two of them.

    Raises:
        UserError: if two methods saw different data with one seed.
    """
    found = {name: {row.spec.seed: row for row in own} for name, own in rows.items()}
    most: set[int] = max((set(own) for own in found.values()), key=len, default=set())
    inside = {name: own for name, own in found.items() if most <= set(own)}
    if len(inside) < 2 or len(most) < 2:
        return None
    seeds = sorted(most)
    for seed in seeds:
        if len({own[seed].data_checksum for own in inside.values()}) > 1:
            raise UserError(f"methods saw different data with seed {seed}")
    scores = np.array([[value(own[s]) for own in inside.values()] for s in seeds])
    means = mean_ranks(scores)
    order = np.argsort(means, kind="stable")
    names = list(inside)
    return Ranking(
        methods=tuple(names[place] for place in order),
        seeds=tuple(seeds),
        scores=scores[:, order],
        mean_ranks=means[order],
        p_value=friedman(scores),
        critical_difference=critical_difference(scores.shape[1], len(seeds)),
        left_out=tuple(name for name in found if name not in inside),
    )


def mean_ranks(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over seeds of the rank within each seed, 1 for the largest score.

    Args:
        scores: shape (n, k); equal scores of a seed share the mean of their ranks.

    Returns:
        Shape (k,).
    """
    ranks: NDArray[np.float64] = stats.rankdata(-scores, axis=1).mean(0)
    return ranks


def friedman(scores: NDArray[np.float64]) -> float:
    """p-value of "all methods are alike", with the correction for equal scores.

    Q = 12 n / (k (k + 1)) sum_j (R_j - (k + 1) / 2)^2,  about chi-squared, k - 1

    Args:
        scores: shape (n, k).

    Returns:
        The p-value; 1 where k < 3 or all scores of every seed are equal.

    Source: Friedman 1937, computed by SciPy.
    """
    if scores.shape[1] < 3 or (scores == scores[:, :1]).all():
        return 1.0
    return float(stats.friedmanchisquare(*scores.T).pvalue)


def critical_difference(methods: int, seeds: int, alpha: float = 0.05) -> float:
    """Difference of mean ranks that two alike methods rarely reach.

    CD = q_alpha(k) / sqrt(2) * sqrt(k (k + 1) / (6 n))

    With probability about 1 - alpha no two of k alike methods differ by as much; q is
    the quantile of the studentised range with infinitely many degrees of freedom.

    Source: Nemenyi 1963; Demsar 2006, Sec. 3.2.2.
    """
    q = float(stats.studentized_range.ppf(1 - alpha, methods, np.inf))
    return q / sqrt(2) * sqrt(methods * (methods + 1) / (6 * seeds))


def joined(
    means: Sequence[float] | NDArray[np.float64], difference: float
) -> list[tuple[int, int]]:
    """Longest runs of at least two neighbours that lie closer than a difference.

    Args:
        means: ascending.
        difference: what tells two apart.

    Returns:
        First and last place of each run.
    """
    found: list[tuple[int, int]] = []
    for first, low in enumerate(means):
        inside = [place for place, high in enumerate(means) if high - low < difference]
        last = max((place for place in inside if place >= first), default=first)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


@dataclass(frozen=True)
class Pairs:
    """All pairs of a ranking by Wilcoxon's test.

    Attributes:
        apart: pairs whose corrected p-value is below 5%.
        count: of all pairs.
        smallest: the smallest corrected p-value that so many seeds allow.
    """

    apart: tuple[tuple[str, str], ...]
    count: int
    smallest: float


def wilcoxon_pairs(found: Ranking) -> Pairs:
    """Which pairs does Wilcoxon's test with Holm's correction tell apart?

    n seeds give no p-value below 2 / 2^n, and the smallest of m is multiplied by m.
    """
    places = list(combinations(range(len(found.methods)), 2))
    p_values = []
    for one, other in places:
        differences = found.scores[:, one] - found.scores[:, other]
        same = not differences.any()
        p_values.append(1.0 if same else float(stats.wilcoxon(differences).pvalue))
    corrected = comparisons.holm(p_values)
    level = 1 - comparisons.CONFIDENCE
    apart = tuple(
        (found.methods[one], found.methods[other])
        for (one, other), p_value in zip(places, corrected, strict=True)
        if p_value < level
    )
    smallest = min(1.0, len(places) * smallest_p(len(found.seeds)))
    return Pairs(apart, len(places), smallest)


def smallest_p(seeds: int) -> float:
    """Smallest two-sided p-value of Wilcoxon's test: all n differences of one sign."""
    return 2.0 * 0.5**seeds
