"""Budgets that are divided beforehand: equally, by size, and by need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.meta_methods import assert_same, fit_in_two
from helpers.needs import EPOCHS, gan, make, same, small, steps, weights
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from needsaug_lite import training
from needsaug_lite.allocation import split_budget
from needsaug_lite.data import Batches
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.budgeted import Equal, Reciprocal, Sequential
from needsaug_lite.methods.shared_head import SMALLEST_NEED

KINDS = (Equal, Reciprocal, Sequential)


def test_equal_counts_are_equal() -> None:
    method = make(Equal, budget=203)
    method.begin_epoch(0)
    assert method.budget.last_counts.tolist() == [21] * 3 + [20] * 7


def test_reciprocal_counts_go_with_one_over_the_class_size() -> None:
    method = make(Reciprocal, budget=1000)
    method.begin_epoch(0)
    inverse = 1 / method.counts.double()
    assert method.counts.max() > 3 * method.counts.min()
    expected = split_budget(inverse / inverse.sum(), 1000)
    assert torch.equal(method.budget.last_counts, expected)
    assert method.budget.last_counts.argmax() == method.counts.argmin()


@pytest.mark.parametrize("kind", [Equal, Reciprocal])
@pytest.mark.parametrize("budget", [None, 77])
def test_an_epoch_takes_the_whole_budget(kind: Any, budget: int | None) -> None:
    splits = small()
    method = make(kind, splits, budget=budget)
    training.fit(method, 2)
    images = budget or len(splits.train)
    found = method.allocation_summary()
    assert found["budget"] == images
    assert sum(found["images_last_epoch"]) == images
    assert sum(found["images"]) == 2 * images


def test_a_step_is_the_gradient_of_both_losses() -> None:
    """min mean ℓ(real) + λ mean ℓ(generated), each normalised by itself."""
    method = make(Equal, strength=1.5)
    portions: list[Any] = []
    own = method.latents

    def latents() -> Any:
        portions.append(own())
        return portions[-1]

    method.latents = latents
    method.begin_epoch(0)
    batch = next(method.batches.epoch(0))
    old = weights(method.model)
    twin = make(Equal).model.train()
    method.step(batch)
    ((z, y),) = portions
    with torch.no_grad():
        images = method.normalisation.from_unit(method.generator.sample(z, y))
    loss = cross_entropy(twin(batch.images), batch.labels)
    loss = loss + 1.5 * cross_entropy(twin(images), y)
    slopes = torch.autograd.grad(loss, list(twin.parameters()))
    decay = method.optimisation.weight_decay
    for (name, before), slope in zip(old.items(), slopes, strict=True):
        expected = before - 0.05 * (slope + decay * before)
        assert_close(method.model.get_parameter(name).data, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_stays(kind: Any) -> None:
    source = gan(small())
    before = {n: t.clone() for n, t in source.generator.state_dict().items()}
    training.fit(make(kind, source=source), 1)
    assert same(source.generator.state_dict(), before)


# --- one stage after another ------------------------------------------------------


def test_the_second_stage_starts_from_the_first_weights() -> None:
    method = make(Sequential)
    start = weights(method.model)
    first, second = method.stages(EPOCHS)
    assert first.epochs == second.epochs == EPOCHS
    for epoch in range(2):
        first.begin_epoch(epoch)
        for batch in first.batches.epoch(epoch):
            first.step(batch)
    assert same(weights(method.model), start)
    assert not any(torch.equal(p, start[n]) for n, p in weights(method.first).items())
    assert int(method.budget.counts.sum()) == 0
    second.begin()
    assert same(weights(method.model), start)
    trained = weights(method.first)
    second.begin_epoch(0)
    second.step(next(iter(second.batches.epoch(0))))
    assert same(weights(method.first), trained)
    assert not any(torch.equal(p, start[n]) for n, p in weights(method.model).items())


def test_the_first_stage_is_plain_training_on_real_images() -> None:
    method = make(Sequential)
    twin = make(Sequential).model
    first, _ = method.stages(5)
    rates = []
    sgd = torch.optim.SGD(
        twin.parameters(),
        lr=0.05,
        momentum=0.9,
        weight_decay=method.optimisation.weight_decay,
    )
    for epoch in (0, 4):
        rates.append(first.begin_epoch(epoch)["lr"])
        for group in sgd.param_groups:
            group["lr"] = rates[-1]
        for batch in method.batches.epoch(epoch):
            first.step(batch)
            sgd.zero_grad()
            cross_entropy(twin.train()(batch.images), batch.labels).backward()
            sgd.step()
    assert rates[1] < rates[0]
    assert_close(dict(method.first.state_dict()), dict(twin.state_dict()))


def test_the_shares_are_eq_3_of_the_trained_first_classifier() -> None:
    method = make(Sequential, budget=1000)
    training.fit(method, 2)
    whole = Batches(
        method.needs, len(method.needs), method.normalisation, shuffle=False
    )
    (batch,) = whole.epoch(0)
    assert len(batch) == 30  # half of six of every class
    method.first.eval()
    with torch.no_grad():
        scores = method.first(batch.images)
    each = cross_entropy(scores, batch.labels, reduction="none")
    needs = torch.stack([each[batch.labels == c].mean() for c in range(10)])
    needs = needs + SMALLEST_NEED
    found = method.allocation_summary()
    expected = needs / needs.sum()
    assert_close(torch.tensor(found["shares_by_need"]), expected, rtol=1e-4, atol=1e-7)
    assert found["images_last_epoch"] == split_budget(method.found, 1000).tolist()
    assert sum(found["images"]) == 2000
    assert len(set(found["images_last_epoch"])) > 3


def test_both_networks_have_heads_of_their_own() -> None:
    method = make(Sequential)
    mine = {id(p) for p in method.first.parameters()}
    assert not mine & {id(p) for p in method.model.parameters()}
    held = {id(p) for g in method.first_optimiser.param_groups for p in g["params"]}
    assert held == mine


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_resumed_sequence_ends_like_an_uninterrupted_one(
    after: int, tmp_path: Path
) -> None:
    """Killed in the first stage, at the first step of the second, and inside it."""

    def prepared() -> Any:
        return make(Sequential)

    whole = prepared()
    history = training.fit(whole, 3)
    assert len(history.rows) == 6
    with pytest.raises(AssertionError):  # it counts the epochs of one stage
        fit_in_two(prepared, 3, after, tmp_path / "run.pt")
    second = prepared()
    training.fit(second, 3, checkpoint=tmp_path / "run.pt", resume=True)
    assert_same(whole, second)
    assert second.allocation_summary() == whole.allocation_summary()


@pytest.mark.parametrize("kind", [Equal, Reciprocal])
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    kind: Any, tmp_path: Path
) -> None:
    whole = make(kind)
    training.fit(whole, EPOCHS)
    second = fit_in_two(lambda: make(kind), EPOCHS, 1, tmp_path / "run.pt")
    assert_same(whole, second)
    assert second.allocation_summary() == whole.allocation_summary()


def test_impossible_budgets_and_missing_images_are_refused() -> None:
    for kind in KINDS:
        with pytest.raises(UserError, match="budget of 5 images"):
            make(kind, budget=5)
    bare = small(meta_per_class=0)
    steps(make(Equal, bare), 1)
    with pytest.raises(
        UserError, match=r"at least 2 of every class, .* meta_per_class"
    ):
        make(Sequential, bare)
    with pytest.raises(UserError, match="at least 1 of every class"):
        make(Sequential, bare, separate_halves=False)
