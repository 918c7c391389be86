"""A spec refuses nonsense, and its hash names a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, registry


def spec(**values: Any) -> Spec:
    return Spec.checked(values)


def test_hash_of_a_known_run_never_changes() -> None:
    # Committed rows are named like this: if it fails, they would all be lost.
    run = spec(method="ldam_drw", data={"imbalance": 20}, seed=1)
    assert run.run_id == "66affefb95aa7958"


def test_every_value_that_matters_changes_the_hash() -> None:
    base = spec()
    others = [
        spec(seed=1),
        spec(epochs=21),
        spec(method="ldam"),
        spec(data={"imbalance": 20}),
        spec(optimisation={"lr": 0.05}),
        spec(augment={"flip": True}),
        spec(model={"width": 8}),
        spec(experiment="other"),
        spec(profile="smoke"),
        spec(data={"val_per_class": 5}, evaluate_on="val"),
        spec(data={"colour": True}),
        spec(data={"colour": True}, evaluate_on="val"),
        spec(data={"attribute_imbalance": 10}),
        spec(data={"attribute_imbalance": 10, "attributes": 3}),
    ]
    names = {run.run_id for run in [base, *others]}
    assert len(names) == len(others) + 1


def test_defaults_written_out_are_the_same_run() -> None:
    short = spec(method="focal")
    long = spec(method="focal", hyperparameters={"gamma": 1.0}, epochs=20)
    assert short.run_id == long.run_id == Spec.checked(short.model_dump()).run_id


def test_remarks_do_not_change_the_hash() -> None:
    one, other = (
        spec(profile="reduced", deviations=[text]) for text in ("short", "shorter")
    )
    assert one.run_id == other.run_id


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
        ({"data": {"colours": 1}}, "data.colours: unknown name"),
        ({"data": {"colour": True, "imbalance": 9}}, "leave out imbalance"),
        ({"data": {"colour": True, "meta_per_class": 3}}, "multiple of 2"),
        ({"data": {"attribute_imbalance": 0.9}}, "greater than or equal to 1"),
        ({"data": {"attribute_imbalance": 9, "noise": 0.1}}, "leave out noise"),
        ({"data": {"attribute_imbalance": 9, "val_per_class": 15}}, "multiple of 6"),
        ({"data": {"attributes": 4}}, "no effect"),
        ({"optimisation": {"lr": -0.1}}, "optimisation.lr: .*greater than 0"),
        ({"optimisation": {"learning_rate": 1}}, "unknown name"),
        ({"optimisation": {"batch_size": 0}}, "greater than 0"),
        ({"augment": {"crop": -1}}, "greater than or equal to 0"),
        ({"profile": "fast"}, "profile"),
        ({"experiment": "../up"}, "experiment"),
        ({"profile": "full", "deviations": ["short"]}, "no deviations"),
        ({"profile": "reduced"}, "must list its deviations"),
        ({"evaluate_on": "val"}, "val_per_class"),
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
