"""The papers' tables as pages: what is declared, what stands beside a number."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from needsaug_lite.experiments import Record, Spec, paper_results
from needsaug_lite.experiments.grid import expand
from needsaug_lite.experiments.paper_map import DATA_LABELS, Counterpart, paper_map
from needsaug_lite.experiments.paper_measures import CLASSES, Measure, measure_of
from needsaug_lite.experiments.paper_numbers import (
    MEASURED,
    NOT_COMPARABLE,
    NOT_HERE,
    NOT_MEASURED,
    OUT_OF_REACH,
    beside,
    by_setting,
    our_full_rows,
    same_data,
    settings_of,
)
from needsaug_lite.experiments.paper_pages import paper_tables
from needsaug_lite.experiments.stale import StaleRow

ROOT = Path(__file__).parents[2]
GRIDS = ROOT / "nbs/grids"
PAPERS = paper_map().papers
TABLES = [(paper, name) for paper, entry in PAPERS.items() for name in entry.tables]
FULL = sorted(
    {grid for p in PAPERS.values() for t in p.tables.values() for grid in t.full}
)


def grid(name: str) -> list[Spec]:
    return expand(yaml.safe_load((GRIDS / f"{name}.yaml").read_text()))


def lines(**wanted: Any) -> list[dict[str, Any]]:
    found: list[Any] = paper_results().to_dict("records")
    return [line for line in found if all(line[k] == v for k, v in wanted.items())]


def row(spec: Spec, **metrics: Any) -> Record:
    """A row of a spec, as far as these pages look at it."""
    usual = {"top1": 0.5, "balanced_accuracy": 0.4, "per_class": [0.1, 0.3]}
    return Record.model_construct(
        spec=spec, metrics={**usual, **metrics}, class_counts=[30, 20]
    )


def reduced(method: str = "cross_entropy", seed: int = 0, **settings: Any) -> Spec:
    values = {"profile": "reduced", "deviations": ["smaller"], **settings}
    return Spec.checked({"method": method, "seed": seed, **values})


def test_every_table_is_declared_and_nothing_else() -> None:
    printed = paper_results()[["paper", "table"]].drop_duplicates()
    assert sorted(TABLES) == sorted(printed.itertuples(index=False, name=None))


def test_every_name_that_is_printed_has_a_meaning_and_no_other() -> None:
    for paper, entry in PAPERS.items():
        printed = {(line["table"], line["method"]) for line in lines(paper=paper)}
        for table, method in printed:
            entry.meaning(table, method)
        assert set(entry.names) == {method for _, method in printed}
        for table, declared in entry.tables.items():
            assert {(table, name) for name in declared.names} <= printed


def test_every_experiment_that_is_named_has_a_grid_of_its_profile() -> None:
    tables = [table for paper in PAPERS.values() for table in paper.tables.values()]
    near = {n for table in tables for names in table.nearest.values() for n in names}
    for name in near:
        content = yaml.safe_load((GRIDS / f"{name}.yaml").read_text())
        assert content["experiment"] == name
        assert content["profile"] != "full"


@pytest.mark.parametrize("name", FULL)
def test_every_full_grid_expands(name: str) -> None:
    specs = grid(name)
    assert {(spec.experiment, spec.profile) for spec in specs} == {(name, "full")}
    assert len({spec.seed for spec in specs}) >= 3


def test_every_data_set_and_chapter_that_is_named_exists() -> None:
    printed = {name for name in paper_results()["dataset"] if isinstance(name, str)}
    assert set(DATA_LABELS) == printed
    assert set(paper_map().data) <= printed
    for paper, entry in PAPERS.items():
        for name, table in entry.tables.items():
            assert (ROOT / f"nbs/{table.see}.ipynb").is_file()
            here = {line["dataset"] for line in lines(paper=paper, table=name)}
            assert set(table.nearest) <= here | {"any"}


def test_what_waits_for_a_run_is_in_a_full_grid() -> None:
    """No cell promises a run that no committed file describes."""
    runs = [row(spec) for name in FULL for spec in grid(name) if spec.seed == 0]
    groups = by_setting(runs)
    for line in lines():
        if beside(line, []).state == NOT_MEASURED:
            assert our_full_rows(line, groups), line


def test_a_grid_with_every_run_fills_what_can_be_filled_and_no_more() -> None:
    runs = [row(spec) for name in FULL for spec in grid(name) if spec.seed == 0]
    groups = by_setting(runs)
    closed = {OUT_OF_REACH, NOT_COMPARABLE, NOT_HERE}
    for line in lines():
        if beside(line, []).state in closed:
            assert beside(line, groups).state in closed, line


def test_a_number_of_a_row_is_turned_into_the_unit_of_the_paper() -> None:
    found = row(
        Spec(),
        deo=0.05,
        worst_group_accuracy=0.25,
        average_group_accuracy=0.6,
        glt_precision=0.7,
        few=0.1,
        ece=0.02,
        gamo_test={"balanced_accuracy": 0.8, "geometric_mean": 0.75},
    )

    def number(metric: str, setting: str = "", dataset: str = "cifar10_lt") -> float:
        line = {"metric": metric, "setting": setting, "dataset": dataset}
        measure = measure_of(line, settings_of(line))
        assert isinstance(measure, Measure)
        value = measure.take(found)
        assert value is not None
        return value

    assert number("accuracy_pct") == pytest.approx(50)
    assert number("error_pct") == pytest.approx(50)
    assert number("balanced_error_pct") == pytest.approx(60)
    assert number("balanced_error_pct", dataset="waterbirds") == pytest.approx(40)
    assert number("worst_group_error_pct") == pytest.approx(75)
    assert number("worst_group_accuracy_pct") == pytest.approx(25)
    assert number("deo_pct") == pytest.approx(5)
    assert number("ece_pct") == pytest.approx(2)
    assert number("acsa") == pytest.approx(0.8)
    assert number("gm") == pytest.approx(0.75)
    assert number("precision_pct", "protocol=alt") == pytest.approx(70)
    assert number("accuracy_pct", "split=few") == pytest.approx(10)
    assert number("accuracy_std_pct", "class=std") == pytest.approx(
        100 * math.sqrt(0.02)
    )


def test_classes_are_compared_on_the_same_images_only() -> None:
    (line,) = lines(
        table="T3",
        setting="imbalance=50;class=deer;phase=before",
        method="before using generated data",
    )
    measure = measure_of(line, settings_of(line))
    assert isinstance(measure, Measure)
    shares = [0.01 * place for place in range(10)]
    cifar = row(Spec.checked({"data": {"name": "cifar10"}}), per_class=shares)
    assert measure.take(cifar) == pytest.approx(CLASSES.index("deer"))
    assert measure.take(row(Spec(), per_class=shares)) is None


def test_every_metric_has_a_measure_or_a_reason() -> None:
    for line in lines():
        found = measure_of(line, settings_of(line))
        assert isinstance(found, Measure) or found


def full(method: str, experiment: str, seed: int = 0, **settings: Any) -> Record:
    data = {"name": "cifar100", "imbalance": 100}
    values = {"data": data, "experiment": experiment, "profile": "full", **settings}
    return row(Spec.checked({"method": method, "seed": seed, **values}))


def test_a_row_stands_beside_the_paper_whose_recipe_it_follows() -> None:
    theirs = full("logit_adjustment", "cifar100_lt_autobalance")
    own = full("logit_adjustment", "my_own")
    (line,) = lines(
        paper="autobalance", table="T1", dataset="cifar100_lt", method="LA loss (τ = 1)"
    )
    (other,) = lines(
        paper="meta_iada",
        table="T2",
        dataset="cifar100_lt",
        method="LA",
        setting="imbalance=100",
    )
    assert our_full_rows(line, by_setting([own, theirs])) == [theirs]
    assert our_full_rows(line, by_setting([own])) == [own]
    assert our_full_rows(other, by_setting([theirs])) == []
    assert our_full_rows(other, by_setting([theirs, own])) == [own]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "cross_entropy"},
        {"data": {"name": "cifar10", "imbalance": 100}},
        {"data": {"name": "cifar100", "imbalance": 10}},
        {"data": {"name": "cifar100", "imbalance": 100, "kept": 0.5}},
        {"data": {"name": "cifar100", "imbalance": 100, "noise": 0.4}},
        {"hyperparameters": {"tau": 2.0}},
        {"profile": "lite"},
        {"evaluate_on": "val", "data": {"name": "cifar100", "val_per_class": 5}},
    ],
    ids=str,
)
def test_another_setting_never_stands_in_the_full_column(
    change: dict[str, Any],
) -> None:
    (line,) = lines(
        paper="autobalance", table="T1", dataset="cifar100_lt", method="LA loss (τ = 1)"
    )
    usual = full("logit_adjustment", "cifar100_lt_autobalance").spec
    values = usual.model_dump(exclude={"hyperparameters"}) | change
    changed = row(Spec.checked(values))
    assert our_full_rows(line, by_setting([row(usual), changed])) == [row(usual)]
    assert beside(line, by_setting([changed])).full == []


def test_the_nearest_rows_are_of_one_setting_and_all_its_seeds() -> None:
    (line,) = lines(paper="mgr", table="T1b", method="MGR", setting="fraction=0.25")

    def kept(share: float, seed: int, experiment: str = "digits_kept") -> Record:
        data = {"kept": share, "meta_per_class": 3}
        made = {"generator": {"kind": "cgan"}}
        return row(reduced("mgr", seed, experiment=experiment, data=data, **made))

    rows = [kept(share, seed) for share in (0.1, 0.25, 0.5) for seed in range(3)]
    elsewhere = kept(0.25, 0, "digits_kept_finders")
    found = beside(line, by_setting([elsewhere, *rows])).nearest
    assert found == rows[3:6]
    # Nearer data come before a nearer setting.
    nearer = kept(0.1, 0, "fashion_mnist_kept")
    assert beside(line, by_setting([*rows, nearer])).nearest == [nearer]


def test_of_several_settings_the_one_with_the_defaults_is_meant() -> None:
    (line,) = lines(
        paper="facog", table="T2", dataset="cifar10_lt", setting="imbalance=100",
        method="FACoG",
    )  # fmt: skip
    both = {"reweight": True, "strong_views": True}

    def mixed(seed: int, **more: Any) -> Record:
        chosen = {"phase1": both, **more}
        name = "fashion_mnist_lt_facog_recipe"
        return row(reduced("facog", seed, experiment=name, hyperparameters=chosen))

    plain = mixed(0)
    others = [mixed(seed, slots=3) for seed in range(5)]
    weak = row(reduced("facog", experiment="fashion_mnist_lt_facog_recipe"))
    assert beside(line, by_setting([*others, weak, plain])).nearest == [plain]
    assert beside(line, by_setting([weak])).nearest == []


def test_rows_of_the_validation_images_stand_nowhere() -> None:
    (line,) = lines(paper="mgr", table="T3", method="MGR", setting="augmentation=none")
    data = {"kept": 0.1, "meta_per_class": 1, "val_per_class": 5}
    made: dict[str, Any] = {
        "data": data,
        "generator": {"kind": "cgan"},
        "experiment": "digits_kept",
    }
    tried = row(reduced("mgr", evaluate_on="val", **made))
    judged = row(reduced("mgr", **made))
    assert beside(line, by_setting([tried])).nearest == []
    assert beside(line, by_setting([tried, judged])).nearest == [judged]


def test_waterbirds_and_gamos_draw_are_told_from_their_images() -> None:
    def data(**values: Any) -> Any:
        return Spec.checked({"data": values}).data

    assert same_data("mnist_lt", data(name="mnist", gamo=True))
    assert not same_data("mnist_lt", data(name="mnist", imbalance=100))
    assert not same_data("mnist_lt", data(name="fashion_mnist", gamo=True))
    assert same_data("cmnist", data(name="mnist", colour=True))
    assert not same_data("cmnist", data(name="mnist"))
    assert same_data("cifar10_noisy", data(name="cifar10", noise=0.2))
    assert not same_data("cifar10_noisy", data(name="cifar10"))
    assert not same_data("imagenet_lt", data(name="digits"))


def page_rows() -> list[Record]:
    """Seeds of two methods of digits_lt, one of them beside autobalance's Table 1."""
    base = {"experiment": "digits_lt", "data": {"imbalance": 20}}
    return [
        row(reduced(method, seed, **base), balanced_accuracy=0.5 + 0.01 * seed)
        for method in ("cross_entropy", "resampling")
        for seed in (1, 2, 3)
    ]


def test_a_page_shows_mean_interval_seeds_and_reason() -> None:
    text = paper_tables("autobalance", page_rows())
    line = next(x for x in text.splitlines() if x.startswith("| Cross-Entropy"))
    assert "| 30.45 | *not\u00a0measured* | 48.0\u00a0±\u00a02.5 | 3 | a |" in line
    assert "[`digits_lt`](/results.md#digits_lt), reduced." in text
    assert "*a*: digits, imbalance 20, 50 training images" in text
    assert "Not as in the paper: smaller." in text
    assert "resampling" not in text


def test_a_page_has_every_number_once_and_no_empty_state() -> None:
    for paper in PAPERS:
        text = paper_tables(paper, page_rows())
        cells = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in text.splitlines()
            if line.startswith("| ") and "---" not in line and "{ref}" not in line
        ]
        head = [row for row in cells if row[0] in ("method", "table")]
        numbers = [row for row in cells if row not in head]
        assert len(numbers) == len(lines(paper=paper))
        assert all(row[-4] and row[-3] for row in numbers)


def test_the_counts_of_a_page_are_those_of_its_cells() -> None:
    for paper in PAPERS:
        text = paper_tables(paper, page_rows())
        states = Counter(
            beside(line, by_setting(page_rows())).state for line in lines(paper=paper)
        )
        counted = [int(n) for n in re.findall(r"\d+", text.partition("\n\n")[0])]
        every, tables, measured, _, _, reach, comparable, here, waiting = counted
        assert (every, tables) == (len(lines(paper=paper)), len(PAPERS[paper].tables))
        assert measured == states[MEASURED]
        assert reach == states[OUT_OF_REACH]
        assert comparable == states[NOT_COMPARABLE]
        assert here == states[NOT_HERE]
        assert waiting == states[NOT_MEASURED]
        assert every == measured + reach + comparable + here + waiting


def test_a_full_row_moves_a_number_out_of_the_gap() -> None:
    rows = [full("logit_adjustment", "cifar100_lt_autobalance", n) for n in (0, 1)]
    text = paper_tables("autobalance", rows)
    assert "(full): 1." in text
    cells = [line for line in text.splitlines() if line.startswith("| LA loss")]
    assert [line.split(" | ")[2] for line in cells[:2]] == [
        "*not\u00a0measured*",
        "60.0\u00a0±\u00a00.0",
    ]


def test_a_stale_row_is_named_on_the_pages_where_it_would_stand() -> None:
    def stale(experiment: str, profile: str = "reduced") -> StaleRow:
        return StaleRow(Path("x.json"), experiment, profile, "old code")

    assert "1 row is stale" in paper_tables("autobalance", [], [stale("digits_lt")])
    assert "stale" not in paper_tables("mgr", [], [stale("digits_lt")])
    assert "stale" in paper_tables("mgr", [], [stale("my_own", "full")])
    assert "stale" not in paper_tables("mgr", [], [stale("gamo_full", "full")])


def test_a_counterpart_asks_for_its_settings_and_counts_the_others() -> None:
    chosen = Counterpart(
        method=("facog",), hyperparameters={"phase1": {"reweight": True}}
    )
    usual = Spec(method="facog")
    asked = Spec.checked(
        {"method": "facog", "hyperparameters": {"phase1": {"reweight": True}}}
    )
    more = {"phase1": {"reweight": True, "strong_views": True}, "slots": 3}
    other = Spec.checked({"method": "facog", "hyperparameters": more})
    assert [chosen.fits(spec) for spec in (usual, asked, other)] == [False, True, True]
    assert [chosen.unlike(spec) for spec in (asked, other)] == [0, 2]
