"""The tables of architecture search from rows whose answers are known."""

from __future__ import annotations

from itertools import product
from typing import Any

import pandas as pd
import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Record, Spec
from needsaug_lite.experiments import search_results as results
from needsaug_lite.experiments.search_page import (
    EXPERIMENTS,
    search_tables,
    usual_rows,
)

OPERATIONS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")
# One node: both inputs, so that two cells differ in their four operations alone.
PLAIN = ("sep_conv_3x3",) * 4


def row(
    method: str = "pc_darts",
    seed: int = 0,
    *,
    cells: tuple[str, ...] = PLAIN,
    top1: float = 0.9,
    seconds: float | None = 10.0,
    parameters: int = 50_000,
    history: list[dict[str, Any]] | None = None,
    device: str = "cpu",
    operations: tuple[str, ...] = OPERATIONS,
    **changes: Any,
) -> Record:
    model = {"width": 8, "cells": 3, "nodes": 1, "operations": operations}
    given = {"method": method, "seed": seed, "model": model, "epochs": 2}
    data = {"name": "digits", "meta_per_class": 10}
    spec = Spec.checked({**given, "data": data, **changes})
    first, second, third, fourth = cells
    genotype = {
        "normal": [[first, 0], [second, 1]],
        "reduce": [[third, 0], [fourth, 1]],
    }
    stages = {"evaluation": 5.0}
    if seconds is not None:
        stages["search"] = seconds
    return Record(
        run_id=spec.run_id,
        method_version=spec.method_version,
        spec=spec,
        metrics={
            "top1": top1,
            "architecture": {"genotype": genotype, "parameters": parameters},
            "stage_seconds": stages,
        },
        class_counts=[10, 10],
        history=history or [],
        seconds=sum(stages.values()),
        peak_memory_mib=1.0,
        threads=1,
        device=device,
        data_checksum=f"images {seed}",
        versions={},
        python="3",
        code_version="0",
        created="now",
    )


def line(table: pd.DataFrame, name: str) -> dict[str, str]:
    """The one line of a table that begins with a name."""
    chosen = table[table.iloc[:, 0] == name]
    assert len(chosen) == 1
    return {str(key): str(value) for key, value in chosen.iloc[0].items()}


# --- Table 5 ------------------------------------------------------------------------


def test_errors_stand_beside_those_that_the_paper_prints() -> None:
    rows = [row(seed=0, top1=0.90), row(seed=1, top1=0.86), row("darts", top1=0.5)]
    table = results.error_table(rows)
    # The mean of 10 and 14, and Student's t for one degree of freedom: 12.706 · 2.
    expected = {"n": "2", "error": "12.0 ± 25.4", "ImageNet": "24.2"}
    assert line(table, "PC-DARTS") == {"method": "PC-DARTS", **expected}
    assert line(table, "DARTS")["error"] == "50.0"
    empty = {"n": "", "error": "", "ImageNet": "23.4"}
    reduced = "Needs-aware, reduced"
    assert line(table, reduced) == {"method": reduced, **empty}
    assert len(table) == len(results.METHODS)


def test_the_papers_errors_are_those_of_tables_5_and_10() -> None:
    assert results.printed_errors() == {
        "pc_darts": 24.2,
        "equal_search": 23.9,
        "separate_search": 24.1,
        "mtl_search": 24.4,
        "needs_aware_search": 23.2,
        "needs_aware_search_reduced": 23.4,
    }


def test_sizes_and_times_are_those_of_the_search_alone() -> None:
    rows = [
        row(seed=0, seconds=20.0, parameters=60_000),
        row(seed=1, seconds=20.0, parameters=60_000),
        row("random_architecture", seconds=None, parameters=1_500),
    ]
    table = results.size_table(rows)
    found = line(table, "PC-DARTS")
    assert found["parameters, k"] == "60.0 ± 0.0"
    assert found["search, s"] == "20 ± 0"
    assert line(table, "Random cells")["parameters, k"] == "1.5"
    assert line(table, "Random cells")["search, s"] == "–"
    assert line(table, "DARTS")["search, s"] == ""


# --- Agreement ----------------------------------------------------------------------


def test_agreement_is_the_share_of_equal_choices() -> None:
    skip, pool = "skip_connect", "max_pool_3x3"
    rows = [
        row(seed=0),
        row(seed=1, cells=(skip, *PLAIN[1:])),
        row(seed=2, cells=(pool, skip, *PLAIN[2:])),
        row("equal_search", seed=1, cells=(skip, skip, *PLAIN[2:])),
        row("equal_search", seed=9),
    ]
    # Three pairs agree in 3, 2 and 2 choices of 4.
    expected = (3 + 2 + 2) / 12
    assert results.agreement_across_seeds(rows, "pc_darts") == pytest.approx(expected)
    assert results.agreements_with(rows, "equal_search") == {1: 0.75}
    table = results.agreement_table(rows)
    shown = {"n": "3", "across seeds": "58", "PC-DARTS": ""}
    assert line(table, "PC-DARTS") == {"method": "PC-DARTS", **shown}
    assert line(table, "Equal")["PC-DARTS"] == "75"
    assert line(table, "chance")["across seeds"] == "33"


def test_chance_is_the_mean_agreement_over_all_pairs_of_cells() -> None:
    one = row()
    every = []
    for seed, (a, b, c, d) in enumerate(product(OPERATIONS[1:], repeat=4)):
        cells = {"normal": [[a, 0], [b, 1]], "reduce": [[c, 0], [d, 1]]}
        metrics = {"architecture": {"genotype": cells}}
        spec = one.spec.model_copy(update={"seed": seed})
        every.append(one.model_copy(update={"spec": spec, "metrics": metrics}))
    found = results.agreement_across_seeds(every, "pc_darts")
    count = len(every)
    # Pairs of different seeds leave out the pairs of a genotype with itself.
    with_itself = (found * (count - 1) + 1) / count
    assert with_itself == pytest.approx(results.chance(every))


def test_chance_is_refused_for_rows_of_several_spaces() -> None:
    rows = [row(), row(seed=1, operations=OPERATIONS[1:])]
    with pytest.raises(UserError, match="2 spaces"):
        results.chance(rows)
    with pytest.raises(UserError, match="0 spaces"):
        results.chance([])


def test_one_seed_agrees_with_no_other() -> None:
    assert line(results.agreement_table([row()]), "PC-DARTS")["across seeds"] == ""


# --- What is preferred and chosen -----------------------------------------------------


def looked(epoch: int, normal: float, reduce: float, entropy: float) -> dict[str, Any]:
    return {
        "stage": "search",
        "epoch": epoch,
        "skip_connections_normal": normal,
        "skip_connections_reduce": reduce,
        "entropy": entropy,
    }


def test_preferences_are_means_over_seeds_at_each_epoch_of_the_search() -> None:
    after = {"stage": "evaluation", "epoch": 2, "loss": 1.0}
    rows = [
        row(seed=0, history=[looked(0, 0, 1, 1.0), looked(1, 2, 0, 0.8), after]),
        row(seed=1, history=[looked(0, 1, 1, 1.0), looked(1, 1, 1, 0.4), after]),
        row("random_architecture", seconds=None, history=[after]),
    ]
    found = results.preference_history(rows, "pc_darts")
    assert found.index.tolist() == [0, 1]
    assert found["skip_connections_normal"].tolist() == [0.5, 1.5]
    assert found["skip_connections_reduce"].tolist() == [1.0, 0.5]
    assert found["entropy"].tolist() == pytest.approx([1.0, 0.6])
    assert results.preference_history(rows, "random_architecture").empty


def test_operations_are_counted_over_both_cells_and_all_seeds() -> None:
    rows = [row(seed=0), row(seed=1, cells=("skip_connect", *PLAIN[1:]))]
    shares = results.operation_shares(rows, "pc_darts")
    assert shares.to_dict() == {
        "max_pool_3x3": 0,
        "skip_connect": 1 / 8,
        "sep_conv_3x3": 7 / 8,
    }
    table = results.operation_table(rows)
    assert list(table.columns) == ["operation", "PC-DARTS", "even"]
    assert line(table, "skip connect") == {
        "operation": "skip connect",
        "PC-DARTS": "12",
        "even": "33",
    }
    assert results.operation_table([]).empty


# --- Tables 10 and 12 -----------------------------------------------------------------


def test_times_are_paired_by_seed_on_one_device() -> None:
    rows = [
        row(seed=0, seconds=10.0),
        row(seed=1, seconds=100.0),
        row(seed=2, seconds=10.0, device="gpu"),
        row("needs_aware_search", seed=0, seconds=30.0),
        row("needs_aware_search", seed=1, seconds=200.0),
        row("needs_aware_search", seed=2, seconds=10.0),
        row("needs_aware_search", seed=3, seconds=10.0),
        row("random_search", seed=0, seconds=None),
    ]
    assert results.cost_ratios(rows, "needs_aware_search") == {0: 3.0, 1: 2.0}
    assert results.cost_ratios(rows, "random_search") == {}
    table = results.cost_table(rows)
    # 2.5 ± 12.706 · 0.5
    found = line(table, "Needs-aware")
    assert found["n"] == "2"
    assert found["time / PC-DARTS"] == "2.50 ± 6.35"
    assert found["paper"] == "1.34"
    assert line(table, "Needs-aware, reduced")["paper"] == "1.03"
    assert {"PC-DARTS", "Random cells"}.isdisjoint(table["method"])


def test_reductions_stand_apart_from_what_they_reduce() -> None:
    less = {"interval": 8, "halved": True}
    rows = [
        row("darts", seed=0, top1=0.8, seconds=40.0),
        row("darts", seed=0, top1=0.7, seconds=10.0, hyperparameters=less),
        row("needs_aware_search_reduced", seed=0),
    ]
    assert line(results.error_table(rows), "DARTS")["error"] == "20.0"
    # Built into this one: nothing to tell apart.
    assert len(results.rows_of(rows, "needs_aware_search_reduced")) == 1
    table = results.reduction_table(rows)
    assert table.to_numpy().tolist() == [
        ["error", "20.0", "30.0"],
        ["time", "1", "0.25"],
        ["CIFAR-100, paper", "20.58 ± 0.44", "26.31 ± 0.27"],
        ["time, paper", "1", "0.38"],
    ]
    for told in ({"interval": 8}, {"halved": True}):
        assert results.is_reduced(row("darts", hyperparameters=told))
    other = results.reduction_table([row()], "pc_darts")
    assert other.to_numpy().tolist() == [["error", "10.0", ""], ["time", "1", ""]]


def test_a_seed_that_stands_twice_is_refused() -> None:
    search = {"search": {"length": 1.0}}
    with pytest.raises(UserError, match="same seed"):
        results.error_table([row(), row(hyperparameters=search)])


# --- The book's page ------------------------------------------------------------------


def test_without_rows_every_experiment_is_named() -> None:
    text = search_tables([])
    for name in EXPERIMENTS:
        assert f"{{dropdown}} `{name}`: no row yet" in text
    assert text.count("~~~~") == 2 * len(EXPERIMENTS)
    assert "| Needs-aware |  |  | 23.2 |" in text


def test_rows_fill_the_cells_of_their_experiment() -> None:
    rows = [row(experiment="digits_search", seed=seed) for seed in (0, 1)]
    text = search_tables([*rows, row(experiment="other", seed=5)])
    assert "{dropdown} `digits_search`\n" in text
    assert "| PC-DARTS | 2 | 10.0\u00a0±\u00a00.0 | 24.2 |" in text
    assert text.count("| chance |") == 1


def test_rows_of_another_kind_are_left_out() -> None:
    held = {"data": {"name": "digits", "meta_per_class": 10, "val_per_class": 5}}
    less = {"hyperparameters": {"interval": 8, "halved": True}}
    kept = [row(seed=0, **held), row(seed=1, **held), row("darts", **held, **less)]
    others = [
        row(seed=2, **held, hyperparameters={"route": "exact"}),
        row(seed=3, **held, hyperparameters={"search": {"length": 1.0}}),
        row(seed=4, **held, epochs=9),
        row(seed=5, **held, evaluate_on="val"),
    ]
    assert usual_rows([*others, *kept]) == kept
    assert usual_rows([]) == []
