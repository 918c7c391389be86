"""The book's tables of needs-aware generation, experiment by experiment."""

from __future__ import annotations

from typing import Any

from needsaug_lite.experiments import Record, Spec, paper_results, run
from needsaug_lite.experiments.needs_page import (
    EXPERIMENTS,
    GENERATORS,
    METHODS,
    accuracy_table,
    needs_tables,
)
from needsaug_lite.experiments.paper_numbers import by_setting, our_full_rows


def row(method: str = "cross_entropy", **changes: Any) -> Record:
    small = run(
        Spec.checked({"model": {"width": 4}, "epochs": 1, "data": {"n_max": 9}})
    )
    spec = Spec.checked({"method": method, **changes})
    return small.model_copy(update={"spec": spec})


def test_without_rows_every_experiment_is_named() -> None:
    text = needs_tables([])
    for name in EXPERIMENTS:
        # A fence of backticks can't have a title with backticks.
        assert f"~~~~{{dropdown}} `{name}`: no row yet" in text
    assert GENERATORS in text
    assert text.count("~~~~") == 2 * (len(EXPERIMENTS) + 1)


def test_rows_fill_cells_and_stay_apart_by_imbalance() -> None:
    rows = [
        row(experiment="cifar100_lt_needs", data={"imbalance": factor}, seed=seed)
        for factor in (10, 100)
        for seed in (0, 1)
    ]
    text = needs_tables(rows)
    assert text.index("imbalance 100") < text.index("imbalance 10\n")
    assert "| CE | 2 | " in text
    assert "| Needs-aware |  |  |" in text


def test_trials_and_other_settings_are_left_out() -> None:
    rows = [
        row("logit_adjustment", experiment="digits_needs", seed=0),
        row(experiment="digits_needs", evaluate_on="val", data={"val_per_class": 2}),
        row(
            "logit_adjustment",
            experiment="digits_needs",
            hyperparameters={"tau": 2.0},
        ),
    ]
    assert needs_tables(rows[1:]) == needs_tables([])
    assert needs_tables(rows) != needs_tables([])


def test_methods_stand_in_the_papers_order() -> None:
    shown = accuracy_table([row()])
    assert len(shown) == len(METHODS)
    assert shown["method"].tolist()[0] == "CE"
    assert shown["seeds"].tolist()[:2] == [1, ""]


def test_full_rows_of_the_recipe_stand_beside_the_paper() -> None:
    def full(method: str, experiment: str) -> Record:
        data = {"name": "cifar100", "n_max": 490, "imbalance": 200}
        if method == "sequential":
            data["meta_per_class"] = 10
        made = {} if method == "cross_entropy" else {"generator": {"kind": "biggan"}}
        return row(method, experiment=experiment, profile="full", data=data, **made)

    own, other = full("sequential", "cifar100_lt_needs"), full("cross_entropy", "else")
    for table in ("T2", "T6"):
        lines: list[Any] = paper_results("needs_aware", table, "cifar100_lt").to_dict(
            "records"
        )
        groups = by_setting([own, other])
        beside = [our_full_rows(line, groups) for line in lines]
        methods = {
            line["method"]
            for line, rows in zip(lines, beside, strict=True)
            if own in rows
        }
        assert methods == ({"Sequential"} if table == "T6" else set())
