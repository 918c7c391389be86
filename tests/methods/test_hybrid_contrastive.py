"""Hybrid-SC: its curriculum, its two ways of drawing, its loss by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_search import NoWaiting
from helpers.shared_phases import changed, literal_contrast, make, parts
from torch.nn.functional import cross_entropy

from needsaug_lite import training

NAME = "hybrid_contrastive"


def begun(epoch: int, epochs: int = 10, **settings: Any) -> tuple[Any, Any]:
    method = make(NAME, **settings)
    method.stages(epochs)
    method.begin_epoch(epoch)
    return method, next(method.batches.epoch(epoch))


def test_the_curriculum_goes_from_contrast_to_classification() -> None:
    alphas = training.fit(make(NAME), 10).column("alpha")
    assert alphas == pytest.approx([1 - (t / 10) ** 2 for t in range(10)])
    assert alphas[0] == 1
    method = make(NAME)
    method.stages(200)
    assert method.begin_epoch(199)["alpha"] < 0.011


def test_all_epochs_of_the_run_are_its_own() -> None:
    rows = training.fit(make(NAME, phase1={"share": 0.5}), 4).rows
    assert [row["stage"] for row in rows] == ["Hybrid-SC"] * 4


def test_loss_of_a_step_by_a_second_route() -> None:
    phase1 = {"temperature": 0.3}
    method, batch = begun(5, phase1=phase1, optimisation={"batch_size": 24})
    second = next(method.second_view.epoch(5))
    even = next(method.balanced.epoch(5))
    model, projection = map(copy.deepcopy, (method.model, method.projection))
    logged = method.hybrid_step(batch)

    model.train()
    features = model.features(torch.cat([batch.images, second.images, even.images]))
    labels = batch.labels.repeat(2)
    projected = projection(features[:48])
    contrast = literal_contrast(projected, projected[:0], labels, labels[:0], 0.3)
    classification = cross_entropy(model.head(features[48:]), even.labels)
    torch.testing.assert_close(logged["contrast"], contrast.detach())
    expected = (0.75 * contrast + 0.25 * classification).detach()
    torch.testing.assert_close(logged["loss"], expected)
    assert torch.equal(second.labels, batch.labels)


def test_the_first_epoch_leaves_the_classifier() -> None:
    method, batch = begun(0, optimisation={"weight_decay": 0.0})
    before = parts(method)
    method.hybrid_step(batch)
    assert changed(before, parts(method)) == {"backbone", "projection"}


def test_classification_sees_classes_evenly_and_contrast_sees_images_once() -> None:
    method = make(NAME)
    even = torch.cat([b.labels for e in range(60) for b in method.balanced.epoch(e)])
    share = torch.bincount(even, minlength=10) / len(even)
    torch.testing.assert_close(share, torch.full((10,), 0.1), rtol=0, atol=0.01)
    for batches in (method.batches, method.second_view):
        index = torch.cat([batch.index for batch in batches.epoch(3)])
        assert index.sort().values.tolist() == list(range(len(method.batches.examples)))


def test_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(epoch: int, _: Any) -> dict[str, float]:
        if epoch == 2:
            raise StopError
        return {}

    whole, cut, resumed = (make(NAME) for _ in range(3))
    training.fit(whole, 4)
    file = tmp_path / "c.ckpt"
    with pytest.raises(StopError):
        training.fit(cut, 4, checkpoint=file, on_epoch=stop)
    rows = training.fit(resumed, 4, checkpoint=file, resume=True).rows
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert not changed(parts(whole), parts(resumed))


def test_a_step_does_not_wait_for_the_device() -> None:
    method, batch = begun(1)
    method.others = iter([next(method.second_view.epoch(1))])
    method.evenly = iter([next(method.balanced.epoch(1))])
    with NoWaiting():
        method.hybrid_step(batch)
