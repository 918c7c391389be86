"""The generated tables show what matters for the bias that was made in the data."""

from __future__ import annotations

from typing import Any

import pytest

from needsaug_lite.experiments import Spec, run
from needsaug_lite.experiments.pages import measured_tables


def table_of(method: str = "cross_entropy", **data: Any) -> str:
    spec = Spec.checked(
        {"method": method, "data": data, "model": {"width": 4}, "epochs": 1}
    )
    return measured_tables([run(spec)])


@pytest.mark.parametrize(
    ("data", "column"),
    [
        ({"imbalance": 5}, "few-shot classes"),
        ({"noise": 0.4}, "wrong labels found"),
        ({"colour": True}, "worst group"),
        ({"group_counts": (60, 20, 20, 60)}, "DEO"),
        ({"attribute_imbalance": 3, "n_max": 40}, "GLT precision"),
    ],
)
def test_a_table_has_the_columns_of_its_bias(data: dict[str, Any], column: str) -> None:
    head = next(line for line in table_of(**data).splitlines() if line.startswith("|"))
    assert column in head


def test_a_table_shows_the_numbers_of_its_rows() -> None:
    spec = Spec.checked({"data": {"colour": True}, "model": {"width": 4}, "epochs": 1})
    record = run(spec)
    worst = f"{100 * record.metrics['worst_group_accuracy']:.1f}"
    average = f"{100 * record.metrics['top1']:.1f}"
    line = measured_tables([record]).splitlines()[-1]
    assert f"| {average} | {worst} |" in line


def test_trials_are_folded_and_lengths_are_named() -> None:
    base = {"data": {"n_max": 20, "val_per_class": 2}, "model": {"width": 4}}
    specs = [
        Spec.checked({**base, "epochs": epochs, "evaluate_on": part})
        for part in ("val", "test")
        for epochs in (1, 2)
    ]
    records = [run(spec) for spec in specs]
    trials, results = measured_tables(records[:2]), measured_tables(records[2:])
    assert "~~~~{dropdown} 2 trials" in trials
    assert "dropdown" not in results
    assert "1 to 2 epochs" in trials
    assert "1 to" not in measured_tables(records[2:3])
