"""Runs that share a first stage, and settings within settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.groups import NEED_GROUPS
from helpers.quick import quick_generator
from helpers.shared_phases import SOURCES

from needsaug_lite import training
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Record, Spec, load_records, registry, run, runner
from needsaug_lite.experiments.features import image_checksum

PHASED: dict[str, Any] = {
    "data": {"imbalance": 20},
    "model": {"width": 4},
    "optimisation": {"batch_size": 64},
    "epochs": 4,
    "profile": "smoke",
}
SHARED = {"facog_phase1", *SOURCES}


def phased(method: str = "facog", **values: Any) -> Spec:
    hyperparameters = {"phase1": {"share": 0.5}, **values.pop("hyperparameters", {})}
    return Spec.checked(
        {**PHASED, "method": method, "hyperparameters": hyperparameters, **values}
    )


def result(record: Record) -> tuple[Any, ...]:
    rows = [{k: v for k, v in r.items() if k != "seconds"} for r in record.history]
    return record.metrics, rows, record.run_id


def start_of(spec: Spec, folder: Path) -> Path:
    """The file that a run would look for."""
    ready = runner.prepare(spec)
    checksum, place = image_checksum(ready.splits), torch.device("cpu")
    found = runner._shared_start(spec, ready.method, checksum, place, folder)
    return Path(found["start"])


def test_methods_share_one_first_stage_and_it_changes_no_result(
    tmp_path: Path,
) -> None:
    starts = tmp_path / "new" / "starts"
    for name in sorted(SHARED):
        assert result(run(phased(name), starts=starts)) == result(run(phased(name)))
    assert len(list(starts.iterdir())) == 1


def test_what_the_second_stage_is_told_leaves_the_first(tmp_path: Path) -> None:
    file = start_of(phased(), tmp_path)
    for settings in ({"slots": 3}, {"phase2": {"lr": 0.1}}, {"lambda_adv": 0.0}):
        assert start_of(phased(hyperparameters=settings), tmp_path) == file
    assert start_of(phased(experiment="other"), tmp_path) == file


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"data": {"imbalance": 10}},
        {"data": {"imbalance": 20, "val_per_class": 2}},
        {"model": {"width": 5}},
        {"optimisation": {"batch_size": 64, "lr": 0.2}},
        {"augment": {"crop": 1}},
        {"epochs": 5},
        {"hyperparameters": {"phase1": {"share": 0.5, "lambda_sc": 0.2}}},
        {"hyperparameters": {"phase1": {"share": 0.4}}},
    ],
)
def test_what_the_first_stage_depends_on_makes_another(
    change: dict[str, Any], tmp_path: Path
) -> None:
    assert start_of(phased(**change), tmp_path) != start_of(phased(), tmp_path)


def test_other_images_behind_a_path_make_another_start(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    files = set()
    for seed in (0, 1):
        draw = np.random.default_rng(seed)
        pixels = draw.integers(0, 256, (20, 8, 8), dtype=np.uint8)
        labels = np.arange(20) % 2
        np.savez(file, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
        files.add(start_of(phased(data={"name": str(file)}), tmp_path / "starts"))
    assert len(files) == 2


def test_another_seed_of_the_same_images_makes_another_start(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    pixels, labels = np.zeros((20, 8, 8), dtype=np.uint8), np.arange(20) % 2
    np.savez(file, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    specs = [phased(data={"name": str(file)}, seed=seed) for seed in (0, 1)]
    first, second = (image_checksum(runner.prepare(spec).splits) for spec in specs)
    assert first == second
    assert start_of(specs[0], tmp_path) != start_of(specs[1], tmp_path)


@pytest.mark.parametrize("method", registry.METHODS)
def test_only_the_same_first_stage_is_shared(method: str, tmp_path: Path) -> None:
    """A method with a curriculum of its own neither takes a start nor gives one."""
    usual = start_of(Spec.checked({**PHASED, "method": "facog"}), tmp_path)
    images = {**PHASED["data"], "meta_per_class": 2}
    if method in NEED_GROUPS:
        images |= {"attribute_imbalance": 3, "attributes": 2}
    elif method in SHARED | {"hybrid_contrastive"}:
        images = PHASED["data"]
    values = {**PHASED, "data": images, "method": method}
    spec = Spec.checked(values | quick_generator(method))
    ready = runner.prepare(spec)
    checksum, place = image_checksum(ready.splits), torch.device("cpu")
    found = runner._shared_start(spec, ready.method, checksum, place, tmp_path)
    assert (found.get("start") == usual) == (method in SHARED)


def test_a_damaged_start_is_named(tmp_path: Path) -> None:
    run(phased(), starts=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{file.name} can't be read.*delete it"):
        run(phased("gamo"), starts=tmp_path)


def test_a_folder_of_starts_that_cannot_be_written_is_found_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "fit", lambda *a, **k: pytest.fail("it trained"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run(phased(), starts=tmp_path / "file")


# --- settings within settings ------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phase1": {"strong_vews": True}}, r"phase1\.strong_vews: unknown name"),
        ({"phase1": {"share": 2}}, r"phase1\.share: .*less than or equal to 1"),
        ({"phase2": {"tuning": "none"}}, r"phase2\.tuning: .*'both'.*given: 'none'"),
        ({"phase1": 3}, r"phase1: give names with values \(given: 3\)"),
    ],
)
def test_mistakes_in_nested_settings_are_named(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        phased(hyperparameters=settings)


def test_nested_settings_reach_the_method_and_the_row(tmp_path: Path) -> None:
    settings = {"phase1": {"lambda_sc": 0.3}, "phase2": {"selection": "inverse"}}
    spec = Spec.checked(
        {**PHASED, "method": "facog", "hyperparameters": settings, "epochs": 2}
    )
    method: Any = runner.prepare(spec).method
    assert (method.phase1.lambda_sc, method.phase1.lambda_ce) == (0.3, 1.0)
    assert method.phase2.selection == "inverse"
    run(spec, results=tmp_path)
    (record,) = load_records(tmp_path)
    assert record.spec == spec
    plain = Spec.checked({**PHASED, "method": "facog", "epochs": 2})
    assert spec.run_id != plain.run_id
    usual = {"phase1": {"lambda_sc": 0.1}}
    same = {**PHASED, "method": "facog", "epochs": 2, "hyperparameters": usual}
    assert Spec.checked(same).run_id == plain.run_id
