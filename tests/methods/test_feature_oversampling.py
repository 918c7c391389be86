"""The second phase: what it trains, on which labels, and that it can be resumed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_search import NoWaiting, only_train
from helpers.shared_phases import (
    ADVERSARIAL,
    SOURCES,
    at_second_phase,
    changed,
    make,
    parts,
    restarted,
    same,
    tail,
)
from torch.nn.functional import cross_entropy

from needsaug_lite import training
from needsaug_lite.allocation import oversampling_shares
from needsaug_lite.models import feature_gan

HALF = {"share": 0.5}


@pytest.mark.parametrize("name", SOURCES)
def test_backbone_and_projection_stay_bit_for_bit(name: str) -> None:
    method = make(name, phase1=HALF)
    seen: list[dict[str, Any]] = []

    def keep(epoch: int, method: Any) -> dict[str, float]:
        seen.append(parts(method))
        return {}

    training.fit(method, 4, on_epoch=keep)
    assert "backbone" in changed(seen[0], seen[1])  # the first phase does train
    for after in seen[2:]:
        assert not {"backbone", "projection"} & changed(seen[1], after)
    own = {"source", "discriminator"} if name in ADVERSARIAL else set()
    assert changed(seen[1], seen[2]) == {"head"} | own
    assert changed(seen[2], seen[3]) == {"head"} | own


@pytest.mark.parametrize("name", SOURCES)
def test_no_gradient_is_left_where_nothing_is_trained(name: str) -> None:
    method = at_second_phase(name)
    method.oversampling_step(next(method.rows.epoch(0)))
    for network in (method.model.backbone, method.projection):
        assert all(parameter.grad is None for parameter in network.parameters())
    assert all(
        parameter.grad is not None for parameter in method.model.head.parameters()
    )


@pytest.mark.parametrize("name", SOURCES)
def test_the_classifier_step_leaves_the_source(name: str) -> None:
    method = at_second_phase(name)
    method.train_source = dict
    before = parts(method)
    method.oversampling_step(next(method.rows.epoch(0)))
    assert changed(before, parts(method)) == {"head"}


@pytest.mark.parametrize("name", SOURCES)
def test_what_trains_the_source_leaves_the_classifier(name: str) -> None:
    method = at_second_phase(name)
    before = parts(method)
    method.train_source()
    own = {"source", "discriminator"} if name in ADVERSARIAL else set()
    assert changed(before, parts(method)) == own


def test_rows_name_features_of_their_own_labels() -> None:
    method = at_second_phase("feature_copy", phase2={"batch_size": 50})
    train = method.examples
    # Pixels as features, so that a row can be told from any other.
    method.model.features = lambda images: images.flatten(1)
    pixels = method.batches.normalisation(train.images.pixels).flatten(1)
    seen = []
    for batch in method.rows.epoch(0):
        assert torch.equal(batch.labels, method.dictionary.labels[batch.index])
        images = method.dictionary.order[batch.index]
        assert torch.equal(train.labels[images], batch.labels)
        torch.testing.assert_close(method.dictionary.take(batch.index), pixels[images])
        seen.append(images)
    assert torch.cat(seen).sort().values.tolist() == list(range(len(train)))


@pytest.mark.parametrize("selection", ["missing", "inverse"])
def test_labels_to_add_follow_their_shares(selection: str) -> None:
    method = at_second_phase("feature_copy", phase2={"selection": selection})
    counts = method.counts.double()
    share = counts.max() - counts if selection == "missing" else 1 / counts
    share = share / share.sum()
    drawn = method.drawn_labels(200_000)
    found = torch.bincount(drawn, minlength=10) / 200_000
    # Five standard errors of the commonest label.
    torch.testing.assert_close(found.double(), share, rtol=0, atol=0.0056)
    if selection == "missing":
        assert int(counts.argmax()) not in drawn


def test_every_epoch_draws_anew_and_repeats() -> None:
    method = at_second_phase("feature_copy")
    drawn = []
    for epoch in (0, 1, 0):
        method.begin_oversampling_epoch(epoch)
        labels = method.drawn_labels(200)
        drawn.append((labels, method.made(labels)))
    assert not torch.equal(drawn[0][0], drawn[1][0])
    assert all(torch.equal(*pair) for pair in zip(drawn[0], drawn[2], strict=True))


def test_real_and_added_labels_together_are_balanced_in_expectation() -> None:
    counts = tail().class_counts
    missing = (counts.max() - counts).sum()
    together = counts + missing * oversampling_shares(counts)
    torch.testing.assert_close(together, torch.full_like(together, int(counts.max())))


def test_the_classifier_is_told_the_drawn_labels() -> None:
    method = at_second_phase("feature_copy")
    asked: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    told: list[tuple[torch.Tensor, ...]] = []
    made, tuned = method.made, method.tuning_loss

    def watched_made(labels: torch.Tensor) -> torch.Tensor:
        asked.append(labels)
        given.append(made(labels))
        return given[0]

    def watched_loss(*arguments: torch.Tensor) -> Any:
        told.append(arguments)
        return tuned(*arguments)

    method.made, method.tuning_loss = watched_made, watched_loss
    batch = next(method.rows.epoch(0))
    head = copy.deepcopy(method.model.head)
    method.oversampling_step(batch)
    ((logits, labels, generated, chosen),) = told
    assert torch.equal(labels, batch.labels)
    assert torch.equal(logits, head(method.dictionary.take(batch.index)))
    assert torch.equal(chosen, asked[0])
    assert torch.equal(generated, head(given[0]))
    assert len(chosen) == len(batch)


@pytest.mark.parametrize("reweight", [False, True])
def test_tuning_on_both_is_the_sum_of_tuning_on_each(reweight: bool) -> None:
    phase1 = {"reweight": reweight}
    method = at_second_phase("feature_copy", phase1=phase1)
    draw = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, 20, 10, generator=draw)
    labels, chosen = torch.randint(10, (2, 20), generator=draw)
    found = method.tuning_loss(real, labels, fake, chosen)
    weight = (1 / (1 - 0.9999 ** method.counts.double())).float()[labels]
    weight = weight if reweight else torch.ones(20)
    each = cross_entropy(real, labels, reduction="none")
    first = (each * weight).sum() / weight.sum()
    second = cross_entropy(fake, chosen)  # never weighted
    torch.testing.assert_close(found, first + second)
    for tuning, expected in (("real", first), ("augmented", second)):
        phase2 = {"tuning": tuning}
        other = at_second_phase("feature_copy", phase1=phase1, phase2=phase2)
        alone = other.tuning_loss(real, labels, fake, chosen)
        torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize("name", SOURCES)
def test_tuning_on_real_features_is_plain_tuning_of_the_head(name: str) -> None:
    method = make(name, phase1=HALF, phase2={"tuning": "real", "batch_size": 100})
    training.fit(make_first(method), 4)
    head = copy.deepcopy(make_first(make(name, phase1=HALF)).model.head)
    optimiser = torch.optim.SGD(head.parameters(), 0.005, 0.9, weight_decay=1e-4)
    for epoch in range(2):
        for batch in method.rows.epoch(epoch):
            features = method.dictionary.take(batch.index)
            loss = cross_entropy(head(features), batch.labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    assert same(head.state_dict(), method.model.head.state_dict())


def make_first(method: Any) -> Any:
    """The method with a first phase that trains nothing."""
    method.optimisation = training.Optimisation(lr=1e-30, weight_decay=0, batch_size=64)
    method.optimiser = method.optimisation.optimiser(method.networks())
    return method


def test_rebuilt_features_are_of_augmented_images() -> None:
    method = at_second_phase("feature_copy", phase2={"rebuild": True})
    fixed = at_second_phase("feature_copy")
    assert same(parts(method)["backbone"], parts(fixed)["backbone"])
    still, seen = fixed.dictionary.features, []
    for epoch in (0, 1, 0):
        method.begin_oversampling_epoch(epoch)
        fixed.begin_oversampling_epoch(epoch)
        seen.append(method.dictionary.features)
        assert torch.equal(fixed.dictionary.features, still)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], still)
    # Neither do they repeat what the first phase saw.
    (first,) = {method.first_epochs}
    assert torch.equal(seen[0], method.extracted(first).features)


def test_features_are_of_the_backbone_that_the_first_phase_left() -> None:
    method = make("facog", phase1=HALF)
    early = method.dictionary.features
    training.fit(method, 2)
    method.model.eval()
    with torch.no_grad():
        images = method.batches.normalisation(method.examples.images.pixels)
        expected = method.model.features(images)[method.dictionary.order]
    torch.testing.assert_close(method.dictionary.features, expected)
    assert not torch.allclose(early, expected)


def test_features_of_another_checkpoint_are_not_kept() -> None:
    trained, other = make("facog", phase1=HALF), make("facog", phase1=HALF, seed=1)
    training.fit(trained, 2)
    early = other.dictionary.features
    other.load_state_dict(trained.state_dict())
    assert not torch.allclose(other.dictionary.features, early)
    # Rows are of another seed's images in another order; their number is the same.
    assert other.dictionary.features.shape == trained.dictionary.features.shape


class StopError(Exception):
    """What interrupts a run."""


@pytest.mark.parametrize("epoch", [1, 2, 4])
@pytest.mark.parametrize("name", SOURCES)
def test_resumed_anywhere_gives_the_same_bits(
    name: str, epoch: int, tmp_path: Path
) -> None:
    phase2 = {"rebuild": name == "feature_smote"}
    whole = make(name, phase1=HALF, phase2=phase2)
    rows = training.fit(whole, 6).rows

    def stop(number: int, _: Any) -> dict[str, float]:
        if number == epoch:
            raise StopError
        return {}

    cut = make(name, phase1=HALF, phase2=phase2)
    file = tmp_path / "c.ckpt"
    with pytest.raises(StopError):
        training.fit(cut, 6, checkpoint=file, on_epoch=stop)
    resumed = make(name, phase1=HALF, phase2=phase2)
    again = training.fit(resumed, 6, checkpoint=file, resume=True).rows
    assert [without_seconds(row) for row in again] == list(map(without_seconds, rows))
    assert not changed(parts(whole), parts(resumed))


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "seconds"}


@pytest.mark.parametrize("name", [*SOURCES, "facog_phase1", "hybrid_contrastive"])
def test_only_the_training_images_are_looked_at(name: str) -> None:
    method = make(name, splits=only_train(tail()), phase1=HALF)
    assert len(training.fit(method, 2).rows) in (1, 2)


@pytest.mark.parametrize("name", SOURCES)
def test_features_on_disk_change_nothing(name: str) -> None:
    runs = [make(name, phase1=HALF, phase2={"on_disk": on}) for on in (False, True)]
    for method in runs:
        training.fit(method, 4)
    assert not changed(parts(runs[0]), parts(runs[1]))


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_drawn_from_the_global_generator(name: str) -> None:
    """So that a first phase that was read from a file changes nothing after it."""
    runs = [make(name, phase1=HALF) for _ in range(2)]
    for number, method in enumerate(runs):
        torch.manual_seed(number)
        training.fit(method, 4)
    assert not changed(parts(runs[0]), parts(runs[1]))


@pytest.mark.parametrize("name", SOURCES)
def test_a_step_does_not_wait_for_the_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU, and only there, one_hot looks at the labels.
    monkeypatch.setattr(
        feature_gan, "one_hot", lambda labels, count: torch.eye(count)[labels]
    )
    method = restarted(at_second_phase(name))
    batch = next(method.rows.epoch(0))
    method.oversampling_step(batch)  # features are extracted and grown once
    with NoWaiting():
        method.oversampling_step(batch)
