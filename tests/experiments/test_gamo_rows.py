"""A row of GAMO's data is judged on the whole test part and on GAMO's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from needsaug_lite import data, metrics
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, load_records, run, runner
from needsaug_lite.metrics import Predictions

SMALL: dict[str, Any] = {
    "model": {"width": 4},
    "optimisation": {"batch_size": 512},
    "epochs": 1,
    "profile": "smoke",
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around a grey value that says the class, enough for GAMO."""
    draw = np.random.default_rng(0)
    arrays = {}
    for part, size in (("train", 4010), ("test", 810)):
        labels = np.arange(10 * size) % 10
        noise = draw.integers(0, 60, (10 * size, 8, 8))
        arrays[f"x_{part}"] = (18 * labels[:, None, None] + noise).astype(np.uint8)
        arrays[f"y_{part}"] = labels
    file = tmp_path_factory.mktemp("gamo") / "grey.npz"
    np.savez(file, **arrays)
    return file


def gamo_spec(archive: Path, **values: Any) -> Spec:
    images = {"name": str(archive), "gamo": True, "val_per_class": 10}
    return Spec.checked({**SMALL, "data": images, **values})


def test_a_row_has_the_scores_of_both_tests(archive: Path, tmp_path: Path) -> None:
    spec = gamo_spec(archive, seed=1)
    ready = runner.prepare(spec)
    record = run(spec, results=tmp_path, prepared=ready)
    assert record.class_counts == list(data.GAMO_COUNTS)
    assert record.metrics["support"] == [810] * 10
    # The other route: predict the drawn images themselves, not all of them.
    index = data.gamo_test_index(ready.splits.test.labels, 10, 1)
    drawn = ready.splits.test.subset(index)
    expected = metrics.evaluate(ready.model, drawn, ready.normalisation)
    found = record.metrics["gamo_test"]
    assert set(found) == {"balanced_accuracy", "geometric_mean"}
    for name, score in found.items():
        # A sum in another order may move an image over a border.
        assert score == pytest.approx(expected[name], abs=0.003)
    assert found["balanced_accuracy"] != record.metrics["balanced_accuracy"]
    (row,) = load_records(tmp_path)
    assert row.spec == spec
    assert row.metrics["gamo_test"] == pytest.approx(found)


def test_scores_follow_the_definition_and_the_seed_of_the_spec(archive: Path) -> None:
    labels = torch.arange(8100) % 10
    # Right up to the 400th image of class c, then right where c is even only.
    right = (torch.arange(8100) // 10 < 400) | (labels % 2 == 0)
    guesses = torch.where(right, labels, (labels + 1) % 10)
    logits = torch.nn.functional.one_hot(guesses, 10).float()
    scores = []
    for seed in (1, 2):
        found = runner.gamo_scores(
            gamo_spec(archive, seed=seed), Predictions(logits, labels)
        )["gamo_test"]
        index = data.gamo_test_index(labels, 10, seed)
        hits = labels[index][right[index]]
        recall = torch.bincount(hits, minlength=10).double() / 100
        assert found["balanced_accuracy"] == pytest.approx(float(recall.mean()))
        assert found["geometric_mean"] == pytest.approx(
            float(recall.log().mean().exp())
        )
        scores.append(found)
    assert scores[0] != scores[1]


def test_other_rows_have_no_scores_of_gamo(archive: Path) -> None:
    predictions = Predictions(torch.eye(10), torch.arange(10))
    assert runner.gamo_scores(Spec.checked(SMALL), predictions) == {}
    chosen = gamo_spec(archive, evaluate_on="val")
    assert runner.gamo_scores(chosen, predictions) == {}


def test_the_option_names_another_run_only_where_it_is_set() -> None:
    plain, unset, gamo = (
        Spec.checked({"data": values})
        for values in (
            {"name": "mnist"},
            {"name": "mnist", "gamo": False},
            {"name": "mnist", "gamo": True},
        )
    )
    assert plain.run_id == unset.run_id != gamo.run_id
    with pytest.raises(UserError, match="leave out imbalance"):
        Spec.checked({"data": {"name": "mnist", "gamo": True, "imbalance": 100}})
    with pytest.raises(UserError, match="val_per_class"):
        Spec.checked({"data": {"name": "mnist", "gamo": True}, "evaluate_on": "val"})
