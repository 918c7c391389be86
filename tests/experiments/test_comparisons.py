"""Intervals and paired comparisons against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Record, Spec, comparisons
from needsaug_lite.experiments.comparisons import interval, paired, summary


def rows(
    method: str, values: list[float], checksum: str = "same", **settings: object
) -> list[Record]:
    return [
        Record(
            run_id="x",
            method_version=1,
            spec=Spec.checked({"method": method, "seed": seed, **settings}),
            metrics={"balanced_accuracy": value, "per_class": [value]},
            class_counts=[1],
            history=[],
            seconds=1,
            peak_memory_mib=1,
            threads=1,
            device="cpu",
            data_checksum=f"{checksum}{seed}",
            versions={},
            python="3",
            code_version="0",
            created="now",
        )
        for seed, value in enumerate(values)
    ]


def test_interval_of_known_numbers() -> None:
    # Student's t with 2 degrees of freedom: 4.302653 at 97.5%.
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2 - found.low == pytest.approx(found.high - 2)


def test_interval_covers_the_truth_in_95_of_100() -> None:
    draw = np.random.default_rng(0)
    found = [interval(draw.normal(0, 1, 10)) for _ in range(2000)]
    hits = sum(one.low <= 0 <= one.high for one in found)
    assert abs(hits - 1900) < 4 * math.sqrt(2000 * 0.95 * 0.05)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    assert interval([0.5]).text() == "50.0"
    assert interval([]).text() == "–"


def test_no_claim_below_ten_pairs() -> None:
    many = [0.5 + 0.01 * seed for seed in range(10)]
    better = [value + 0.1 + 0.001 * i for i, value in enumerate(many)]
    nine = paired(rows("ldam", better[:9]), rows("cross_entropy", many[:9]))
    assert nine.verdict.startswith("no claim: 9 paired seeds")
    ten = paired(rows("ldam", better), rows("cross_entropy", many))
    assert ten.verdict == "higher"
    assert ten.difference.mean == pytest.approx(0.1045)
    back = paired(rows("cross_entropy", many), rows("ldam", better))
    assert back.verdict == "lower"
    assert back.p_value == ten.p_value == pytest.approx(2 / 2**10)


def test_equal_rows_show_no_difference() -> None:
    same = [0.5] * 10
    found = paired(rows("ldam", same), rows("cross_entropy", same))
    assert found.verdict == "no difference shown"


def test_pairs_need_common_seeds_and_the_same_data() -> None:
    with pytest.raises(UserError, match="no seed in common"):
        paired(rows("ldam", [0.5]), [])
    with pytest.raises(UserError, match="saw different data"):
        paired(rows("ldam", [0.5]), rows("cross_entropy", [0.5], "other"))


def test_summary_is_sorted_and_in_percent() -> None:
    table = summary([*rows("cross_entropy", [0.1, 0.1]), *rows("ldam", [0.9, 0.9])])
    assert table["method"].tolist() == ["LDAM", "CE"]
    assert table["balanced_accuracy"].tolist() == ["90.0 ± 0.0", "10.0 ± 0.0"]
    assert set(comparisons.frame(rows("ldam", [0.5])).columns) >= {"seed", "seconds"}


def test_seeds_of_several_settings_are_no_pairs() -> None:
    twice = [*rows("ldam", [0.5] * 5), *rows("ldam", [0.6] * 5, epochs=30)]
    with pytest.raises(UserError, match="several rows with the same seed"):
        paired(twice, rows("cross_entropy", [0.4] * 5))


def test_settings_and_hyperparameters_are_not_pooled() -> None:
    mixed = [
        *rows("focal", [0.1, 0.1], hyperparameters={"gamma": 0.5}),
        *rows("focal", [0.9, 0.9], hyperparameters={"gamma": 2.0}),
        *rows("cross_entropy", [0.5, 0.5]),
    ]
    table = summary(mixed)
    assert table["seeds"].tolist() == [2, 2, 2]
    assert table["method"].tolist() == ["Focal (gamma 2.0)", "CE", "Focal (gamma 0.5)"]


def test_what_follows_from_the_share_kept_and_absent_generators_are_not_named() -> None:
    few = {"data": {"kept": 0.1, "meta_per_class": 1}, "epochs": 30}
    many = {"data": {"kept": 0.5, "meta_per_class": 5}, "epochs": 6}
    mixed = [
        *rows("cross_entropy", [0.5], **few),
        *rows("cross_entropy", [0.6], **many),
        *rows("pcr", [0.7], **few, generator={"kind": "cgan"}),
    ]
    names = set(summary(mixed)["method"])
    assert names == {"CE (kept 0.1)", "CE (kept 0.5)", "PCR (kept 0.1)"}
    other = rows("pcr", [0.8], **few, generator={"kind": "acgan"})
    named = set(summary(mixed + other)["method"])
    assert {"CE (kept 0.1)", "PCR (kept 0.1, generator acgan)"} < named
    longer = rows("cross_entropy", [0.9], **{**few, "epochs": 7})
    assert "CE (kept 0.1, epochs 7)" in set(summary(mixed + longer)["method"])
