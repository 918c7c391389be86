"""A spec refuses nonsense, and its hash names a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, registry
from needsaug_lite.experiments.ingredients import FeatureSpec

FEATURES: dict[str, Any] = {"features": {}, "model": {"backbone": "linear"}}


def spec(**values: Any) -> Spec:
    return Spec.checked(values)


def test_hash_of_a_known_run_never_changes() -> None:
    # Committed rows are named like this: if it fails, they would all be lost.
    run = spec(method="ldam_drw", data={"imbalance": 20}, seed=1)
    assert run.run_id == "66affefb95aa7958"
    # Only what differs from the usual features is in it: they may get new options.
    assert spec(**FEATURES).run_id == "cb9edab9c98b4387"


def test_every_value_that_matters_changes_the_hash() -> None:
    base = spec()
    others = [
        spec(seed=1),
        spec(epochs=21),
        spec(method="ldam"),
        spec(data={"imbalance": 20}),
        spec(optimisation={"lr": 0.05}),
        spec(optimisation={"kind": "adam"}),
        spec(augment={"flip": True}),
        spec(augment={"policy": "augmix"}),
        spec(augment={"policy": "randaugment"}),
        spec(model={"width": 8}),
        spec(experiment="other"),
        spec(profile="smoke"),
        spec(data={"val_per_class": 5}, evaluate_on="val"),
        spec(data={"colour": True}),
        spec(data={"colour": True}, evaluate_on="val"),
        spec(data={"attribute_imbalance": 10}),
        spec(data={"attribute_imbalance": 10, "attributes": 3}),
        spec(data={"group_counts": (40, 4, 2, 20)}),
        spec(data={"group_counts": (40, 4, 2, 21)}),
        spec(data={"name": "waterbirds_features"}),
        spec(data={"name": "waterbirds_features"}, evaluate_on="val"),
        spec(model={"backbone": "linear"}),
        spec(**FEATURES),
        spec(**{**FEATURES, "features": {"epochs": 5}}),
    ]
    names = {run.run_id for run in [base, *others]}
    assert len(names) == len(others) + 1


def test_defaults_written_out_are_the_same_run() -> None:
    assert spec(optimisation={"kind": "sgd"}).run_id == spec().run_id
    short = spec(method="focal")
    long = spec(method="focal", hyperparameters={"gamma": 1.0}, epochs=20)
    assert short.run_id == long.run_id == Spec.checked(short.model_dump()).run_id


def test_remarks_do_not_change_the_hash() -> None:
    one, other = (
        spec(profile="reduced", deviations=[text]) for text in ("short", "shorter")
    )
    assert one.run_id == other.run_id


def test_options_of_features_keep_the_rules_of_all_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = FeatureSpec().model_dump()
    short, long = spec(**FEATURES), spec(**{**FEATURES, "features": usual})
    assert short.run_id == long.run_id == Spec.checked(short.model_dump()).run_id
    before, without = short.run_id, spec().run_id
    monkeypatch.setattr(FeatureSpec, "version", FeatureSpec.version + 1)
    assert short.run_id != before
    assert spec().run_id == without


def test_a_new_version_of_a_method_is_another_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = spec().run_id
    method = registry.entry("cross_entropy").load()
    monkeypatch.setattr(method, "version", method.version + 1)
    assert spec().run_id != before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methd": "ldam"}, "methd: unknown name"),
        ({"method": "ldamm"}, "unknown method 'ldamm'"),
        ({"hyperparameters": {"gamma": 1}}, "gamma: unknown name"),
        (
            {"method": "focal", "hyperparameters": {"gamma": -1}},
            "greater than or equal",
        ),
        ({"method": "focal", "hyperparameters": {"gamma": "x"}}, "valid number"),
        (
            {"method": "ldam", "hyperparameters": {"deferred": True}},
            "deferred: unknown",
        ),
        ({"epochs": 0}, "greater than 0"),
        ({"epochs": 1.5}, "valid integer"),
        ({"data": {"imbalance": 0.5}}, "greater than or equal to 1"),
        ({"data": {"kept": 0}}, "greater than 0"),
        ({"data": {"kept": 0.5, "gamo": True}}, "leave out kept"),
        ({"data": {"colours": 1}}, "data.colours: unknown name"),
        ({"data": {"colour": True, "imbalance": 9}}, "leave out imbalance"),
        ({"data": {"colour": True, "meta_per_class": 3}}, "multiple of 2"),
        ({"data": {"attribute_imbalance": 0.9}}, "greater than or equal to 1"),
        ({"data": {"attribute_imbalance": 9, "noise": 0.1}}, "leave out noise"),
        ({"data": {"attribute_imbalance": 9, "val_per_class": 15}}, "multiple of 6"),
        ({"data": {"attributes": 4}}, "no effect"),
        ({"data": {"group_counts": [9, 9, 9]}}, "data.group_counts.3: Field required"),
        ({"data": {"group_counts": [9, 9, 9, 0]}}, "group_counts.3: .*greater than 0"),
        ({"data": {"group_counts": [9] * 4, "noise": 0.1}}, "leave out noise"),
        ({"data": {"group_counts": [9] * 4, "meta_per_class": 3}}, "multiple of 2"),
        ({"data": {"name": "waterbirds", "imbalance": 9}}, "leave out imbalance"),
        ({"optimisation": {"lr": -0.1}}, "optimisation.lr: .*greater than 0"),
        ({"optimisation": {"learning_rate": 1}}, "unknown name"),
        ({"optimisation": {"kind": "lbfgs"}}, "optimisation.kind: .*'sgd' or 'adam'"),
        ({"optimisation": {"kind": "adam", "momentum": 0.5}}, "set kind to sgd"),
        ({"optimisation": {"kind": "adam", "nesterov": True}}, "set kind to sgd"),
        ({"optimisation": {"nesterov": True, "momentum": 0}}, "momentum above 0"),
        ({"optimisation": {"batch_size": 0}}, "greater than 0"),
        ({"augment": {"crop": -1}}, "greater than or equal to 0"),
        ({"augment": {"policy": "autoaugment"}}, "augment.policy: .*'augmix'"),
        ({"profile": "fast"}, "profile"),
        ({"experiment": "../up"}, "experiment"),
        ({"profile": "full", "deviations": ["short"]}, "no deviations"),
        ({"profile": "reduced"}, "must list its deviations"),
        ({"evaluate_on": "val"}, "val_per_class"),
        ({"features": {}}, "backbone to linear .given: convnet"),
        ({**FEATURES, "augment": {"flip": True}}, "leave out augment"),
        ({**FEATURES, "features": {"dim": 3}}, "features.dim: unknown name"),
        ({**FEATURES, "features": {"lr": 0}}, "greater than 0"),
    ],
)
def test_nonsense_is_refused_in_words(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Spec.checked(values)


def test_from_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("method: ldam\nseed: 3\n")
    assert Spec.from_file(file) == spec(method="ldam", seed=3)
    file.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="no settings"):
        Spec.from_file(file)
    with pytest.raises(UserError, match="can't be read"):
        Spec.from_file(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", registry.METHODS)
def test_every_method_can_be_specified(name: str) -> None:
    assert (
        spec(method=name)
        .hyperparameters.keys()
        .isdisjoint(registry.METHODS[name].fixed)
    )
