"""Verdicts on claims follow corrected tests over paired seeds, and only those."""

from __future__ import annotations

from typing import Any

import pytest

from needsaug_lite.experiments import Record, Spec, comparisons, hypotheses
from needsaug_lite.experiments.hypotheses import Case

BASE = [0.5 + 0.01 * seed for seed in range(10)]


def rows(
    method: str, values: list[float], counts: tuple[int, ...] = (1,), **metrics: Any
) -> list[Record]:
    return [
        Record(
            run_id="x",
            method_version=1,
            spec=Spec.checked({"method": method, "seed": seed}),
            metrics={"balanced_accuracy": value, **metrics},
            class_counts=list(counts),
            history=[],
            seconds=1,
            peak_memory_mib=1,
            threads=1,
            device="cpu",
            data_checksum=f"same{seed}",
            versions={},
            python="3",
            code_version="0",
            created="now",
        )
        for seed, value in enumerate(values)
    ]


def shifted(by: float) -> list[float]:
    return [value + by + 0.0001 * seed for seed, value in enumerate(BASE)]


def test_differences_are_those_of_the_method_and_mirror_against() -> None:
    both = rows("ldam", shifted(0.1)) + rows("cross_entropy", BASE)
    found = hypotheses.over_rivals([Case("a", both)], "ldam")
    other = comparisons.against(both, "ldam")
    assert found["rival"].tolist() == ["CE"]
    assert found["difference"][0].mean == pytest.approx(0.10045)
    assert found["difference"][0].mean == -other["difference"][0].mean
    assert found["holm"].tolist() == other["holm"].tolist()
    assert found["verdict"].tolist() == ["higher"]
    assert hypotheses.answer(found) == "supported"


def test_all_questions_are_corrected_together() -> None:
    strong = rows("ldam", shifted(0.1)) + rows("cross_entropy", BASE)
    frame = hypotheses.over_rivals([Case(str(k), strong) for k in range(30)], "ldam")
    assert frame["p_value"].tolist() == pytest.approx([2 / 2**10] * 30)
    assert frame["holm"].tolist() == pytest.approx([60 / 2**10] * 30)
    assert set(frame["verdict"]) == {"no difference shown"}
    assert hypotheses.answer(frame).startswith("not supported: higher in 0, no diff")


def test_one_lower_rival_is_enough_to_refuse_support() -> None:
    mixed = (
        rows("ldam", shifted(0.1))
        + rows("cross_entropy", BASE)
        + rows("focal", shifted(0.3))
    )
    found = hypotheses.over_rivals([Case("a", mixed)], "ldam")
    assert dict(zip(found["rival"], found["verdict"], strict=True)) == {
        "CE": "higher",
        "Focal": "lower",
    }
    assert "higher in 1, no difference shown in 0, lower in 1 of 2" in (
        hypotheses.answer(found)
    )


def test_few_seeds_and_missing_rows_give_no_verdict() -> None:
    few = rows("ldam", shifted(0.1)[:9]) + rows("cross_entropy", BASE)
    found = hypotheses.over_rivals([Case("a", few)], "ldam")
    assert hypotheses.answer(found) == (
        "no verdict: too few seeds in 1 of 1 comparisons"
    )
    low = rows("focal", shifted(-0.2))
    both = hypotheses.over_rivals([Case("a", few), Case("b", few + low)], "focal")
    assert hypotheses.answer(both) == (
        "not supported: higher in 0, no difference shown in 0, lower in 1, too few "
        "seeds in 1 of 2 comparisons"
    )
    for records in ([], rows("ldam", BASE), rows("focal", BASE)):
        nothing = hypotheses.over_rivals([Case("a", records)], "ldam")
        assert hypotheses.answer(nothing) == hypotheses.NOT_MEASURED


def test_numbers_within_rows_are_compared_with_zero() -> None:
    found = hypotheses.above_zero(
        {"up": shifted(0.0), "down": [-x for x in BASE], "none": []}
    )
    assert found["verdict"].tolist() == ["higher", "lower"]
    assert found["holm"].tolist() == pytest.approx([4 / 2**10] * 2)
    still = hypotheses.above_zero({"still": [0.0] * 10})
    assert still["p_value"].tolist() == [1.0]
    assert hypotheses.answer(still).startswith("not supported")


def test_a_rival_that_repeats_another_is_counted_once() -> None:
    both = (
        rows("ldam", shifted(0.1))
        + rows("cross_entropy", BASE)
        + rows("focal", BASE)
        + rows("logit_adjustment", shifted(-0.1))
    )
    found = hypotheses.over_rivals([Case("a", both)], "ldam")
    assert dict(zip(found["rival"], found["repeats"], strict=True)) == {
        "CE": "",
        "Focal": "CE",
        "LA": "",
    }
    assert found["holm"].tolist() == pytest.approx([2 * 2 / 2**10] * 3)
    few = [record for record in both if record.spec.method != "cross_entropy"]
    without = hypotheses.over_rivals([Case("a", few)], "ldam")
    assert without["repeats"].tolist() == ["", ""]
    # A second verdict on the same runs isn't one more against the claim.
    low = rows("ldam", shifted(-0.1)) + both[10:]
    below = hypotheses.over_rivals([Case("a", low)], "ldam")
    assert "lower in 1 of 2 comparisons" in hypotheses.answer(below)


def test_verdicts_alone_follow_the_uncorrected_values() -> None:
    strong = rows("ldam", shifted(0.1)) + rows("cross_entropy", BASE)
    frame = hypotheses.over_rivals([Case(str(k), strong) for k in range(30)], "ldam")
    assert set(frame["alone"]) == {"higher"}
    assert hypotheses.answer(frame, "alone") == "supported"


def test_pairs_that_differ_are_counted() -> None:
    found = hypotheses.above_zero({"few": [0.0] * 7 + [0.1, 0.2, 0.3]})
    assert found["nonzero"].tolist() == [3]
    assert found["p_value"].tolist() == pytest.approx([2 / 2**3])
    tied = rows("ldam", [0.6] * 3 + BASE[3:]) + rows("cross_entropy", BASE)
    rivals = hypotheses.over_rivals([Case("a", tied)], "ldam")
    assert rivals["nonzero"].tolist() == [3]


def test_tail_minus_head_goes_by_class_size() -> None:
    row = rows(
        "ldam", [0.5], (5, 100, 50, 60, 70, 10), adversarial_per_class=[1, 0, 0.5, 0.5,
        0.2, 0.8]
    )[0]  # fmt: skip
    found = hypotheses.tail_minus_head(row, "adversarial_per_class")
    assert found == pytest.approx((1 + 0.8) / 2 - (0 + 0.2) / 2)


def test_rows_are_picked_by_their_settings() -> None:
    one = rows("ldam", [0.5])
    assert hypotheses.of_data(one, noise=0.0) == one
    assert hypotheses.of_data(one, noise=0.4) == []
    margin = one[0].spec.hyperparameters["max_margin"]
    found = hypotheses.with_hyperparameters(one, "ldam", max_margin=margin)
    assert found == one
    assert not hypotheses.with_hyperparameters(one, "ldam", max_margin=margin + 1)
    assert not hypotheses.with_hyperparameters(one, "focal")


def test_points_carry_their_sign() -> None:
    assert hypotheses.points(comparisons.interval([0.01])) == "+1.0"
    assert hypotheses.points(comparisons.interval([-0.01])) == "−1.0"
    assert hypotheses.points(comparisons.interval([])) == "–"
