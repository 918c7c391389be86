"""Which row may stand beside which number of facog's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from needsaug_lite.experiments import Record, Spec, paper_results
from needsaug_lite.experiments.facog_table import same_setting
from needsaug_lite.experiments.grid import expand

GRIDS = Path(__file__).parents[2] / "nbs/grids"
FULL = ("cifar100_lt_facog", "cifar100_lt_facog_losses", "gamo_full")


def row(spec: Spec) -> Record:
    """A row of a spec, as far as the comparison looks at it."""
    return Record.model_construct(spec=spec)


def full_rows() -> list[Record]:
    specs: list[Spec] = []
    for name in FULL:
        specs += expand(yaml.safe_load((GRIDS / f"{name}.yaml").read_text()))
    return [row(spec) for spec in specs if spec.seed == 0]


def lines(**wanted: Any) -> list[dict[str, Any]]:
    found = paper_results("facog").to_dict("records")
    return [line for line in found if all(line[k] == v for k, v in wanted.items())]


@pytest.mark.parametrize("table", ["T4", "T5"])
def test_each_number_of_the_ablations_has_one_full_run(table: str) -> None:
    rows = full_rows()
    for line in lines(table=table, dataset="cifar100_lt"):
        assert len([one for one in rows if same_setting(line, one)]) == 1, line


def test_the_headline_has_both_and_the_losses_of_table_4_have_no_reweighting() -> None:
    rows = full_rows()
    headline = lines(table="T2", method="FACoG", setting="imbalance=100")
    (found,) = [one for line in headline for one in rows if same_setting(line, one)]
    given = found.spec.hyperparameters["phase1"]
    assert given["reweight"]
    assert given["strong_views"]
    (line,) = lines(table="T4", method="Phase1+L_adv", setting="imbalance=50")
    (found,) = [one for one in rows if same_setting(line, one)]
    assert found.spec.hyperparameters["lambda_asc"] == 0
    assert not found.spec.hyperparameters["phase1"]["reweight"]


def test_table_1_wants_gamos_images_of_the_right_data_set() -> None:
    (line, _) = lines(table="T1", dataset="mnist_lt", method="FACoG")
    found = [one.spec for one in full_rows() if same_setting(line, one)]
    assert [(spec.method, spec.data.name) for spec in found] == [("facog", "mnist")]
    tail = Spec.checked({"method": "facog", "data": {"name": "mnist"}})
    assert not same_setting(line, row(tail))


@pytest.mark.parametrize("method", ["SMOTE", "cGAN", "GAMO", "GAMO w/o D", "DOS"])
def test_methods_that_make_images_there_stay_alone(method: str) -> None:
    for line in lines(table="T1", method=method):
        assert not [one for one in full_rows() if same_setting(line, one)]


def test_another_setting_of_phase_2_is_not_the_papers() -> None:
    (line,) = lines(
        table="T2", method="FACoG", setting="imbalance=100", dataset="cifar100_lt"
    )
    data = {"name": "cifar100", "imbalance": 100}
    views = {"reweight": True, "strong_views": True}
    usual = {"phase1": views}
    spec = Spec.checked({"method": "facog", "data": data, "hyperparameters": usual})
    assert same_setting(line, row(spec))
    for change in ({"slots": 3}, {"phase2": {"lr": 0.05}}, {"sight": "seeing"}):
        values = {"method": "facog", "data": data, "hyperparameters": usual | change}
        assert not same_setting(line, row(Spec.checked(values)))
