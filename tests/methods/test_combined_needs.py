"""Labels by need: who is drawn, when that changes, and what stays as FACoG has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_search import NoWaiting
from helpers.meta_methods import Stopped, assert_same
from helpers.shared_phases import at_second_phase, changed, make, parts, restarted
from torch import Tensor
from torch.nn.functional import cross_entropy

from needsaug_lite import data, training
from needsaug_lite.data import Examples, InMemory, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.models import feature_gan

HALF = {"share": 0.5}
PARENTS = {"facog_needs": "facog", "feature_copy_needs": "feature_copy"}


def splits(imbalance: float = 20, meta: int = 10) -> Splits:
    return data.load(
        "digits", n_max=60, imbalance=imbalance, meta_per_class=meta, seed=0
    )


def made(name: str, **settings: Any) -> Any:
    return make(name, **{"phase1": HALF, "splits": splits(), **settings})


def literal_shares(method: Any) -> Tensor:
    """Eq. 3, class by class."""
    meta = method.meta
    method.model.eval()
    with torch.no_grad():
        logits = method.model(method.batches.normalisation(meta.images.pixels))
    needs = []
    for label in range(10):
        own = meta.labels == label
        needs.append(cross_entropy(logits[own], meta.labels[own]).double())
    return torch.stack(needs) / torch.stack(needs).sum()


@pytest.mark.parametrize("name", PARENTS)
def test_every_epoch_draws_by_the_needs_of_its_beginning(name: str) -> None:
    method, seen = made(name), []
    _, second = method.stages(6)
    begin = second.begin_epoch

    def watched(epoch: int) -> Any:
        expected = literal_shares(method)
        logged = begin(epoch)
        torch.testing.assert_close(method.shares, expected)
        assert logged["largest_share"] == pytest.approx(float(expected.max()))
        seen.append(method.shares)
        return logged

    stages = [method.stages(6)[0], replace(second, begin_epoch=watched)]
    method.stages = lambda epochs: stages
    training.fit(method, 6)
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("name", PARENTS)
def test_the_class_that_cannot_be_read_is_drawn_most(name: str) -> None:
    """Also if it is the largest, which FACoG never draws."""
    method = made(name)
    training.fit(method, 8)
    meta = method.meta
    largest = int(method.counts.argmax())
    images = meta.images.subset((meta.labels == 9).nonzero().flatten())
    wrong = torch.where(meta.labels == largest)[0]
    pixels = meta.images.pixels.clone()
    pixels[wrong] = images.pixels[: len(wrong)]
    method.meta = Examples(InMemory(pixels), meta.labels)
    with torch.no_grad():
        method.model.head[-1].bias[largest] -= 3
    method.begin_oversampling_epoch(0)
    assert int(method.shares.argmax()) == largest
    labels = method.drawn_labels(100_000)
    found = labels.bincount(minlength=10) / 100_000
    # Five standard errors of the commonest label.
    torch.testing.assert_close(found.double(), method.shares, rtol=0, atol=0.008)


@pytest.mark.parametrize("name", PARENTS)
def test_with_equal_needs_it_is_its_parent_with_even_labels(name: str) -> None:
    """Bit for bit, on classes of one size, which the parent draws evenly."""
    even = splits(imbalance=1)
    method = made(name, splits=even)
    method.needs = lambda: torch.full((10,), 0.7).double()
    parent = make(PARENTS[name], phase1=HALF, splits=even)
    torch.testing.assert_close(parent.shares, torch.full((10,), 0.1).double())
    for one in (method, parent):
        training.fit(one, 4)
    assert not changed(parts(parent), parts(method))
    other = made(name, splits=even)
    training.fit(other, 4)
    assert changed(parts(parent), parts(other)) >= {"head"}


@pytest.mark.parametrize("name", PARENTS)
def test_a_classifier_that_knows_nothing_needs_all_classes_alike(name: str) -> None:
    method = made(name)
    method.stages(4)
    for parameter in method.model.head.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(
        method.needs(), torch.full((10,), 10.0).double().log(), rtol=1e-6, atol=0
    )
    method.begin_oversampling_epoch(0)
    torch.testing.assert_close(
        method.shares, torch.full((10,), 0.1).double(), rtol=1e-6, atol=0
    )


def test_the_generator_goes_on_meeting_all_classes_alike() -> None:
    method = at_second_phase(
        "facog_needs", splits=splits(), phase2={"batch_size": 50_000}
    )
    asked: list[Tensor] = []
    method.play = lambda chosen, truth: asked.append(chosen)
    method.train_source()
    share = asked[0].bincount(minlength=10) / 50_000
    torch.testing.assert_close(share, torch.full((10,), 0.1), rtol=0, atol=0.007)
    assert int(method.drawn.sum()) == 0


@pytest.mark.parametrize("name", PARENTS)
def test_meta_images_tell_the_needs_and_train_nothing(name: str) -> None:
    """Other meta images with the same needs leave every weight as it is."""
    first, second = made(name), made(name)
    pixels = second.meta.images.pixels.flip(3)
    second.meta = replace(second.meta, images=InMemory(pixels))
    fixed = torch.linspace(1, 2, 10).double()
    for method in (first, second):
        method.needs = lambda: fixed
        training.fit(method, 4)
    assert_same(first, second)
    assert len(first.examples) == len(splits().train)


@pytest.mark.parametrize("name", PARENTS)
def test_backbone_and_projection_stay_bit_for_bit(name: str) -> None:
    method, seen = made(name), []

    def keep(epoch: int, method: Any) -> dict[str, float]:
        seen.append(parts(method))
        return {}

    training.fit(method, 4, on_epoch=keep)
    for after in seen[2:]:
        assert not {"backbone", "projection"} & changed(seen[1], after)
        assert "head" in changed(seen[1], after)


@pytest.mark.parametrize("epoch", [1, 2, 4])
@pytest.mark.parametrize("name", PARENTS)
def test_resumed_anywhere_gives_the_same_bits(
    name: str, epoch: int, tmp_path: Path
) -> None:
    whole = made(name)
    training.fit(whole, 6)

    def stop(number: int, _: Any) -> dict[str, float]:
        if number == epoch:
            raise Stopped
        return {}

    file = tmp_path / "c.ckpt"
    with pytest.raises(Stopped):
        training.fit(made(name), 6, checkpoint=file, on_epoch=stop)
    resumed = made(name)
    torch.manual_seed(epoch)  # nothing is drawn from the global generator
    training.fit(resumed, 6, checkpoint=file, resume=True)
    assert_same(whole, resumed)
    assert resumed.allocation_summary() == whole.allocation_summary()


@pytest.mark.parametrize("name", PARENTS)
def test_the_row_tells_what_was_drawn(name: str) -> None:
    method, counted = made(name), torch.zeros(10, dtype=torch.int64)
    make_features = method.made

    def watched(labels: Tensor) -> Any:
        counted.add_(labels.bincount(minlength=10))
        return make_features(labels)

    method.made = watched
    training.fit(method, 6)
    assert isinstance(method, training.Budgeting)
    found = method.allocation_summary()
    # One added feature for each real one, in three epochs.
    assert sum(found["features"]) == 3 * len(method.examples)
    assert found["features"] == counted.tolist()
    assert found["shares_by_need"] == method.shares.tolist()


@pytest.mark.parametrize("name", PARENTS)
def test_a_step_does_not_wait_for_the_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU, and only there, one_hot looks at the labels.
    monkeypatch.setattr(
        feature_gan, "one_hot", lambda labels, count: torch.eye(count)[labels]
    )
    method = restarted(at_second_phase(name, splits=splits()))
    batch = next(method.rows.epoch(0))
    method.oversampling_step(batch)  # features are extracted once
    with NoWaiting():
        method.oversampling_step(batch)


@pytest.mark.parametrize("name", PARENTS)
def test_what_cannot_be_measured_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="hold some out with meta_per_class"):
        made(name, splits=splits(meta=0))
    one = splits()
    some = one.meta.subset((one.meta.labels != 4).nonzero().flatten())
    with pytest.raises(UserError, match="of class 4: its need can't be measured"):
        made(name, splits=replace(one, meta=some))
    with pytest.raises(UserError, match=r"selection = 'inverse'.*by need"):
        made(name, phase2={"selection": "inverse"})
