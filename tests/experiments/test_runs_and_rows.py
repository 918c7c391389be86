"""Runs write rows, rows are trusted only if they are what their name says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.groups import NEED_GROUPS
from helpers.quick import quick_generator, quick_search

from needsaug_lite import data, metrics, training
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import (
    Record,
    Spec,
    load_records,
    registry,
    run,
    runner,
)
from needsaug_lite.experiments.records import read_record, row_path

SMALL: dict[str, Any] = {
    "data": {"imbalance": 20},
    "model": {"width": 4},
    "optimisation": {"batch_size": 64},
    "epochs": 1,
    "profile": "smoke",
}


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    results = tmp_path_factory.mktemp("results")
    return results, run(Spec.checked(SMALL), results=results)


@pytest.mark.parametrize("method", registry.METHODS)
def test_every_method_runs(method: str) -> None:
    images = {**SMALL["data"], "meta_per_class": 2}
    if method in NEED_GROUPS:
        images |= {"attribute_imbalance": 3, "attributes": 2}
    # Methods of two phases need an epoch for each.
    values = {**SMALL, "data": images, "method": method, "epochs": 2}
    values |= quick_generator(method) | quick_search(method, SMALL["model"])
    record = run(Spec.checked(values))
    assert record.history[0]["loss"] > 0
    assert 0 <= record.metrics["balanced_accuracy"] <= 1


def test_a_run_repeats(row: tuple[Path, Record]) -> None:
    again = run(Spec.checked(SMALL))
    assert again.metrics == row[1].metrics
    assert again.data_checksum == row[1].data_checksum


def test_the_row_holds_what_is_promised(row: tuple[Path, Record]) -> None:
    results, record = row
    content = json.loads(row_path(record.spec, results).read_text())
    assert content["run_id"] == record.spec.run_id
    assert content["versions"]["torch"]
    assert len(content["data_checksum"]) == 64
    assert sum(content["class_counts"]) < 1198
    assert content["spec"]["optimisation"]["momentum"] == 0.9
    assert content["peak_memory_mib"] > 0
    assert len(json.dumps(content)) < 20_000


def test_a_row_that_exists_is_read(
    row: tuple[Path, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, record = row
    monkeypatch.setattr(training, "fit", lambda *a, **k: pytest.fail("it trained"))
    assert run(record.spec, results=results).metrics["top1"] == pytest.approx(
        record.metrics["top1"], rel=1e-6
    )


def test_an_edited_row_is_refused(row: tuple[Path, Record], tmp_path: Path) -> None:
    results, record = row
    content = json.loads(row_path(record.spec, results).read_text())
    content["spec"]["seed"] = 7
    file = tmp_path / f"{record.run_id}.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="edited, or comes from another version"):
        read_record(file)


def test_a_renamed_or_broken_row_is_refused(
    row: tuple[Path, Record], tmp_path: Path
) -> None:
    results, record = row
    good = row_path(record.spec, results).read_text()
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "0123456789abcdef.json").write_text(good)
    with pytest.raises(UserError, match="holds the row of run"):
        load_records(tmp_path)
    (folder / "0123456789abcdef.json").write_text(good[:100])
    with pytest.raises(UserError, match="no readable row"):
        load_records(tmp_path)


def test_committed_rows_are_valid_and_named_by_their_hash() -> None:
    results = Path(__file__).parents[2] / "book/results"
    for record in load_records(results):
        assert record.spec.profile in ("lite", "reduced", "full")
        said = "; ".join(record.spec.deviations)
        judged_on_val = record.spec.evaluate_on == "val"
        assert judged_on_val == ("a trial on validation images" in said)


def test_reporting_seeds_are_not_development_seeds() -> None:
    records = load_records(Path(__file__).parents[2] / "book/results")
    tuning = {r.spec.seed for r in records if r.spec.evaluate_on == "val"}
    reported = {r.spec.seed for r in records if r.spec.evaluate_on == "test"}
    assert not tuning & reported


def test_settings_with_many_digits_survive_in_a_row(tmp_path: Path) -> None:
    values = {**SMALL, "optimisation": {"lr": 0.031622776601683791, "batch_size": 64}}
    spec = Spec.checked({**values, "method": "class_balanced",
                         "hyperparameters": {"beta": 0.99999999}})  # fmt: skip
    run(spec, results=tmp_path)
    (record,) = load_records(tmp_path)
    assert record.spec == spec


def save_npz(file: Path, seed: int, classes: int = 2) -> None:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (20, 8, 8), dtype=np.uint8)
    labels = np.arange(20) % classes
    np.savez(file, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)


def test_other_images_behind_the_same_path_are_noticed(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    save_npz(file, 0)
    spec = Spec.checked({**SMALL, "data": {"name": str(file)}})
    run(spec, results=tmp_path / "rows")
    run(spec, results=tmp_path / "rows")
    save_npz(file, 1)
    with pytest.raises(UserError, match="made from other images"):
        run(spec, results=tmp_path / "rows")


def test_a_checkpoint_of_other_images_is_refused(tmp_path: Path) -> None:
    file, checkpoint = tmp_path / "mine.npz", tmp_path / "c.ckpt"
    save_npz(file, 0)
    spec = Spec.checked({**SMALL, "data": {"name": str(file)}})
    run(spec, checkpoint=checkpoint)
    save_npz(file, 1)
    with pytest.raises(UserError, match="belongs to run"):
        run(spec, checkpoint=checkpoint, resume=True)


def test_a_row_is_not_overwritten_by_training_again(
    row: tuple[Path, Record],
) -> None:
    results, record = row
    before = row_path(record.spec, results).read_bytes()
    run(record.spec, results=results, prepared=runner.prepare(record.spec))
    assert row_path(record.spec, results).read_bytes() == before


def test_a_folder_that_cannot_be_written_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "fit", lambda *a, **k: pytest.fail("it trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run(Spec.checked(SMALL), results=tmp_path / "file")


# --- wrong labels ---------------------------------------------------------------

NOISY = {"name": "digits", "imbalance": 20, "meta_per_class": 2, "noise": 0.4}


def noisy(method: str) -> Spec:
    values = {**SMALL, "data": NOISY, "method": method}
    values |= quick_search(method, SMALL["model"])
    return Spec.checked(values | quick_generator(method))


@pytest.mark.parametrize("method", registry.METHODS)
def test_no_method_is_given_the_true_labels(method: str) -> None:
    spec = noisy(method)
    splits = spec.load_data()
    # No noisy data of ours have groups; those of a user may.
    plain = splits.train
    train = replace(plain, groups=2 * plain.labels + torch.arange(len(plain)) % 2)
    ready = runner.prepare_with(replace(splits, train=train), spec)
    assert ready.splits.train.mislabelled is not None
    held = vars(ready.method).values()
    parts = [value.examples for value in held if isinstance(value, data.Batches)]
    assert parts
    assert all(part.true_labels is None for part in parts)
    assert not any(isinstance(value, data.Splits) for value in held)


def test_true_labels_change_no_result() -> None:
    spec = noisy("hyper_cleaning")
    splits = spec.load_data()
    train = splits.train
    shifted = replace(train, true_labels=(train.labels + 1) % 10)
    told, untold, misled = (
        run(spec, prepared=runner.prepare_with(replace(splits, train=part), spec))
        for part in (train, train.without_true_labels(), shifted)
    )
    found = told.metrics.pop("noise_average_precision")
    assert 0 < found <= 1
    assert misled.metrics.pop("noise_average_precision") == 1  # every label is wrong
    assert told.metrics == untold.metrics == misled.metrics
    assert told.data_checksum == untold.data_checksum == misled.data_checksum


def test_only_noisy_runs_rank_labels(row: tuple[Path, Record]) -> None:
    assert "noise_average_precision" not in row[1].metrics
    assert "noise_average_precision" in run(noisy("cross_entropy")).metrics


def test_a_method_without_an_opinion_is_ranked_by_its_losses() -> None:
    ready = runner.prepare(noisy("cross_entropy"))
    train = ready.splits.train
    assert not isinstance(ready.method, training.Suspicious)
    ready.model.eval()
    with torch.no_grad():
        batches = data.Batches(train, 9999, ready.normalisation, shuffle=False)
        (batch,) = batches.epoch(0)
        shares = ready.model(batch.images).softmax(1)
    right = shares[torch.arange(len(batch)), batch.labels]
    assert train.mislabelled is not None
    expected = metrics.noise_average_precision(-right, train.mislabelled)
    found = runner.noise_scores(ready)["noise_average_precision"]
    # Rounding may swap neighbours of the ranking.
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_method_with_an_opinion_is_ranked_by_it() -> None:
    ready = runner.prepare(noisy("hyper_cleaning"))
    wrong = ready.splits.train.mislabelled
    assert wrong is not None
    share = float(wrong.float().mean())
    equal = runner.noise_scores(ready)["noise_average_precision"]
    assert equal == pytest.approx(share)  # all weights are one half before training
    ready.method.weight_logits.copy_(-wrong.float())
    assert runner.noise_scores(ready)["noise_average_precision"] == 1


# --- groups -----------------------------------------------------------------------


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_row_of_coloured_digits_has_four_groups(part: str) -> None:
    values = {**SMALL, "data": {"colour": True, "meta_per_class": 2}}
    record = run(Spec.checked({**values, "method": "group_dro", "evaluate_on": part}))
    scores = record.metrics
    rates = scores["per_group"]
    assert len(rates) == 4
    assert scores["worst_group_accuracy"] == min(rates)
    assert sum(scores["group_support"]) == {"test": 599, "val": 296}[part]
    assert len(record.class_counts) == 2
    assert "clt_accuracy" not in scores


def test_a_row_of_attributes_has_weighted_scores() -> None:
    images = {"attribute_imbalance": 5, "attributes": 3, "imbalance": 4}
    spec = Spec.checked({**SMALL, "data": images})
    ready = runner.prepare(spec)
    record = run(spec, prepared=ready)
    found = metrics.predict_all(ready.model, ready.splits.test, ready.normalisation)
    groups = ready.splits.train.groups
    assert groups is not None
    expected = metrics.generalised_long_tail_scores(found, groups, 3)
    assert set(expected) == {
        "clt_accuracy",
        "clt_precision",
        "glt_accuracy",
        "glt_precision",
    }
    assert expected.items() <= record.metrics.items()
    assert len(record.metrics["per_group"]) == 30
    assert run(spec).metrics == record.metrics


def test_data_without_groups_have_no_scores_of_groups(
    row: tuple[Path, Record],
) -> None:
    assert not {"per_group", "glt_accuracy"} & row[1].metrics.keys()
