"""The re-run notebook's values make a valid spec in every profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from needsaug_lite.experiments import Spec, notebooks
from needsaug_lite.experiments.grid import merged

NOTEBOOK = Path(__file__).parents[2] / "nbs/rerun.ipynb"


@pytest.mark.parametrize("profile", ["smoke", "lite", "reduced", "full"])
def test_values_of_a_profile_are_a_run(profile: str) -> None:
    declared = notebooks.declared_parameters(NOTEBOOK)
    values = declared | notebooks.profile_parameters(NOTEBOOK, profile, declared)
    deviations = [t for t in str(values["deviations"]).split(";") if t.strip()]
    spec = Spec.checked(
        merged(
            {
                "experiment": values["experiment"],
                "profile": values["profile"],
                "method": values["method"],
                "data": {
                    "name": values["data"],
                    "imbalance": values["imbalance"],
                    "val_per_class": values["val_per_class"],
                },
                "model": {"backbone": values["backbone"]},
                "optimisation": {"batch_size": values["batch_size"]},
                "epochs": values["epochs"],
                "deviations": deviations,
            },
            json.loads(str(values["settings"])),
        )
    )
    assert spec.profile == profile
    if profile == "full":
        assert (spec.model.backbone, spec.epochs) == ("resnet32", 200)
