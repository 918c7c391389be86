"""AutoBalance: its hypergradient against retraining, its steps, what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_search import (
    DECAY,
    PIXELS,
    NoWaiting,
    batches_of,
    convex,
    fair_loss,
    minimiser,
    only_train,
    put,
    tables,
)
from helpers.meta_methods import Stopped, assert_same, flat, load, make
from torch import Generator, Tensor

from needsaug_lite import data, hypergrad, training
from needsaug_lite.data import Batch, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.autobalance import AutoBalance
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.methods.baselines.logit_adjustment import LogitAdjustment

CASES: dict[str, dict[str, Any]] = {
    "tau": {"design": "tau"},
    "l": {"design": "l", "initial": "plain"},
    "delta": {"design": "delta", "initial": "balanced_ce", "fairness": 0.6},
    "both": {"design": "delta_l", "initial": "la", "fairness": 0.3},
    "clusters": {"design": "delta_l", "cluster_size": 2},
    "tau of cells": {"design": "tau", "attributes": 2},
    "cells": {"design": "delta_l", "attributes": 2, "goal": "deo", "fairness": 0.9},
    "balanced cells": {"design": "l", "attributes": 2, "initial": "balanced_ce"},
}


def retrained(
    method: AutoBalance,
    hparams: Mapping[str, Tensor],
    case: Mapping[str, Any],
    start: Tensor | None = None,
    *,
    images: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """θ*(α) and L_fair(θ*(α)), by the definitions."""
    whole, held = batches_of(method)
    initial, cluster = case.get("initial", "la"), case.get("cluster_size", 1)
    found = tables(method, hparams, initial, cluster)
    images = whole.images if images is None else images
    theta = minimiser(images, whole, found, start)
    shares = method.cells.counts(method.strata.examples).double()
    goal, fairness = case.get("goal", "balanced"), case.get("fairness", 1.0)
    return theta, fair_loss(theta, held, shares, goal, fairness)


def values_of(method: AutoBalance) -> dict[str, Tensor]:
    return {name: h.detach().clone() for name, h in method.hparams.items()}


def slopes_of_retraining(
    method: AutoBalance, case: Mapping[str, Any], theta: Tensor, radius: float = 1e-4
) -> dict[str, Tensor]:
    """Finite differences of L_fair(θ*(α)), every entry of α on its own."""
    found = {}
    for name, value in values_of(method).items():
        slopes = torch.zeros_like(value)
        for place in range(value.numel()):
            ends = []
            for sign in (1, -1):
                moved = values_of(method)
                moved[name].view(-1)[place] += sign * radius
                ends.append(retrained(method, moved, case, theta)[1])
            slopes.view(-1)[place] = (ends[0] - ends[1]) / (2 * radius)
        found[name] = slopes
    return found


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_hypergradient_is_the_derivative_of_retraining(case: dict[str, Any]) -> None:
    method = convex(**case)
    whole, held = batches_of(method)
    theta, outer = retrained(method, values_of(method), case)
    put(method, theta)
    expected = slopes_of_retraining(method, case, theta)
    series = method.hypergradient([whole], [held])
    for solver in (hypergrad.exact(), hypergrad.conjugate_gradient(60)):
        method.solver = solver
        estimate = method.hypergradient([whole], [held])
        torch.testing.assert_close(estimate.outer_loss, outer)
        assert estimate.report["gradient_norm"] < 1e-6
        assert list(estimate) == list(expected)
        for name, value in estimate.items():
            assert value.abs().max() > 1e-4
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-8)
    # The truncated series points the same way.
    pairs = [(flat(dict(e))) for e in (series, expected)]
    inner = sum((pairs[0][n] * v).sum() for n, v in pairs[1].items())
    lengths = [sum(v.square().sum() for v in pair.values()) for pair in pairs]
    assert inner > 0.5 * (lengths[0] * lengths[1]) ** 0.5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_of_the_search_lowers_the_objective_of_the_retrained_model(
    case: dict[str, Any],
) -> None:
    method = convex(outer_lr=1e-2, outer_momentum=0.0, outer_decay=0.0, **case)
    before = values_of(method)
    theta, outer = retrained(method, before, case)
    put(method, theta)
    whole, held = batches_of(method)
    method.inner, method.validation = iter([whole]), iter([held])
    logged = method.search_step(whole)
    torch.testing.assert_close(logged["outer_loss"], outer)
    after = values_of(method)
    assert retrained(method, after, case, theta)[1] < outer
    # Backwards, it grows.
    back = {name: 2 * before[name] - value for name, value in after.items()}
    assert retrained(method, back, case, theta)[1] > outer


def test_the_network_descends_to_where_the_formula_holds() -> None:
    """Weight decay is once in SGD and once in H: one stationary point of both."""
    method = convex()
    whole, held = batches_of(method)
    for _ in range(1500):
        method.step(whole)
    assert method.hypergradient([whole], [held]).report["gradient_norm"] < 1e-6
    theta, _ = retrained(method, values_of(method), {})
    torch.testing.assert_close(theta_of(method), theta, rtol=0, atol=1e-7)


class Scaling:
    """Stands in for learned augmentation: one factor for every pixel."""

    def __init__(self) -> None:
        self.hparams = {"policy.scale": torch.full((1, 1, 2, 2), 0.3).requires_grad_()}

    def images_of(self, batch: Batch) -> Callable[[Mapping[str, Tensor]], Tensor]:
        return lambda h: batch.images * (1 + h["policy.scale"])

    def augmented(self, batch: Batch) -> Tensor:
        return self.images_of(batch)(self.hparams).detach()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}


def with_scaling(**settings: Any) -> AutoBalance:
    method: AutoBalance = convex(**settings)
    scaling: Any = Scaling()
    method.augmentation = scaling
    method.hparams |= scaling.hparams
    method.outer.append((torch.optim.SGD([*scaling.hparams.values()], lr=0.5), 0.5))
    for value in scaling.hparams.values():
        value.data = value.data.double()
    return method


@pytest.mark.parametrize("design", ["none", "l"])
def test_what_happens_to_training_images_is_learned_as_well(design: str) -> None:
    case = {"design": design}
    method, name = with_scaling(**case), "policy.scale"
    whole, held = batches_of(method)

    def seen(hparams: Mapping[str, Tensor]) -> Tensor:
        return whole.images * (1 + hparams[name])

    start = values_of(method)
    theta, _ = retrained(method, start, case, images=seen(start))
    put(method, theta)
    method.solver = hypergrad.exact()
    estimate = method.hypergradient([whole], [held])
    assert list(estimate) == [*(["additive"] if design == "l" else []), name]
    for place in range(PIXELS):
        ends = []
        for sign in (1, -1):
            moved = values_of(method)
            moved[name].view(-1)[place] += sign * 1e-4
            ends.append(retrained(method, moved, case, theta, images=seen(moved))[1])
        slope = (ends[0] - ends[1]) / 2e-4
        exact = estimate[name].flatten()[place]
        torch.testing.assert_close(exact, slope, rtol=1e-5, atol=1e-8)
    # A step of θ is on the augmented images: it stays where it is.
    method.step(whole)
    torch.testing.assert_close(theta_of(method), theta, rtol=0, atol=1e-7)
    # Its own optimiser moves it, and it is kept with the rest.
    method.inner, method.validation = iter([whole]), iter([held])
    method.search_step(whole)
    expected = start[name] - 0.5 * estimate[name]
    torch.testing.assert_close(
        method.hparams[name].detach(), expected, rtol=1e-4, atol=0
    )
    other = with_scaling(**case)
    other.load_state_dict(method.state_dict())
    assert_same(method, other)


def theta_of(method: AutoBalance) -> Tensor:
    return torch.cat([p.detach().flatten() for p in method.model.parameters()])


# --- the step -------------------------------------------------------------------


def test_alpha_moves_by_sgd_with_momentum_and_decay() -> None:
    method = convex(outer_lr=0.2, outer_momentum=0.7, outer_decay=0.1, interval=1)
    whole, held = batches_of(method)
    method.inner, method.validation = iter([whole] * 3), iter([held] * 3)
    expected = values_of(method)
    moving = {name: torch.zeros_like(v) for name, v in expected.items()}
    found: list[Mapping[str, Tensor]] = []
    original = method.hypergradient

    def watched(inner: Any, held: Any) -> Any:
        found.append(original(inner, held))
        return found[-1]

    method.hypergradient = watched
    for _ in range(3):
        method.search_step(whole)
        # After the step of θ, at the new weights (line 6 before line 8).
        torch.testing.assert_close(
            dict(found[-1]), slopes_at(method, expected, whole, held)
        )
        for name, value in found[-1].items():
            moving[name] = 0.7 * moving[name] + value + 0.1 * expected[name]
            expected[name] = expected[name] - 0.2 * moving[name]
            torch.testing.assert_close(method.hparams[name].detach(), expected[name])
        alpha = method.space.parameters(expected)
        torch.testing.assert_close(method.alpha["additive"], alpha["additive"])
        assert not method.alpha["additive"].requires_grad


def slopes_at(
    method: AutoBalance, values: Mapping[str, Tensor], whole: Batch, held: Batch
) -> dict[str, Tensor]:
    """The hypergradient at the weights of now and given values of α."""
    now = values_of(method)
    with torch.no_grad():
        for name, value in values.items():
            method.hparams[name].copy_(value)
    estimate = AutoBalance.hypergradient(method, [whole], [held])
    with torch.no_grad():
        for name, value in now.items():
            method.hparams[name].copy_(value)
    return dict(estimate)


def prepared(**settings: Any) -> AutoBalance:
    """A network with batch norm, in the first epoch of its search."""
    method = make(AutoBalance, only_train(load()), start=0.0, **settings)
    method.stages(2)[1].begin_epoch(0)
    return method


def test_batch_norm_trains_on_training_batches_and_is_evaluated_on_the_others() -> None:
    method = prepared(outer_batches=2)
    method.model.train()
    whole = next(method.search_batches.epoch(0))
    inner = [next(method.inner) for _ in range(2)]
    held = [next(method.validation) for _ in range(2)]
    modes: dict[int, set[bool]] = {id(b.images): set() for b in (*inner, *held)}

    def look(module: Any, given: Any) -> None:
        modes[id(given[0])].add(module.training)

    handle = method.model.register_forward_pre_hook(look)
    method.hypergradient(inner, held)
    handle.remove()
    assert [modes[id(b.images)] for b in inner] == [{True}] * 2
    assert [modes[id(b.images)] for b in held] == [{False}] * 2
    assert len(whole)


@pytest.mark.parametrize("training_mode", [True, False])
def test_a_hypergradient_changes_nothing(training_mode: bool) -> None:
    method = prepared()
    method.step(next(method.search_batches.epoch(0)))
    method.model.zero_grad()
    method.model.train(training_mode)
    before = {name: v.clone() for name, v in flat(method.state_dict()).items()}
    assert any("running_mean" in name for name in before)
    assert any("momentum_buffer" in name for name in before)
    random = torch.get_rng_state()
    method.hypergradient([next(method.inner)], [next(method.validation)])
    assert torch.equal(torch.get_rng_state(), random)
    after = flat(method.state_dict())
    assert list(before) == list(after)
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    assert all(module.training == training_mode for module in method.model.modules())
    leaves = [*method.model.parameters(), *method.hparams.values()]
    assert all(leaf.grad is None for leaf in leaves)


def test_the_network_steps_as_if_nobody_searched() -> None:
    """A search step is a step of θ, with the same batch norm, and then one of α."""
    method, other = prepared(interval=1), prepared(interval=1)
    batch = next(method.search_batches.epoch(0))
    method.search_step(batch)
    other.step(batch)
    assert_same(method, other, "/model")
    assert_same(method, other, "/optimiser")
    assert not torch.equal(method.hparams["additive"], other.hparams["additive"])


@pytest.mark.parametrize(("interval", "outer_batches"), [(1, 1), (3, 2), (50, 4)])
def test_interval_and_number_of_batches(interval: int, outer_batches: int) -> None:
    """From the first step of the search on, however many epochs it goes through."""
    method = make(
        AutoBalance, only_train(load()), interval=interval, outer_batches=outer_batches
    )
    found: list[tuple[int, int, int]] = []
    original = method.hypergradient

    def watched(inner: Any, held: Any) -> Any:
        found.append((method.steps, len(inner), len(held)))
        return original(inner, held)

    method.hypergradient = watched
    training.fit(method, 4)
    steps = len(method.search_batches) * 2  # of 4 epochs, round(1.6) = 2 warm up
    expected = range(0, steps, interval)
    assert found == [(step, outer_batches, outer_batches) for step in expected]


def test_only_steps_of_alpha_wait_for_the_device() -> None:
    method = prepared(interval=2)
    batches = list(method.search_batches.epoch(0))[:2]
    method.search_step(batches[0])
    with NoWaiting():
        method.search_step(batches[1])
        method.step(batches[0])
    with pytest.raises(AssertionError), NoWaiting():
        method.search_step(batches[0])


def test_the_rate_of_alpha_follows_the_schedule() -> None:
    method = make(AutoBalance, outer_lr=0.3, search_length=2.0, start=0.0)
    method.optimisation = replace(method.optimisation, milestones=(0.5, 0.75))
    search, retraining = method.stages(2)[1:]
    rates = []
    for epoch in range(4):
        search.begin_epoch(epoch)
        (optimiser, _), network = method.outer[0], method.optimiser
        pair = [o.param_groups[0]["lr"] for o in (optimiser, network)]
        rates.append(tuple(pair))
    steps = [1, 1, 0.01, 0.0001]
    for pair, factor in zip(rates, steps, strict=True):
        assert pair == pytest.approx((0.3 * factor, 0.05 * factor))
    retraining.begin_epoch(0)
    assert method.optimiser.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0.0, 1.0, (0, 4)),
        (1.0, 1.0, (4, 0)),
        (0.4, 1.0, (2, 2)),
        (0.5, 2.5, (5, 5)),
        (0.5, 0.01, (0, 1)),
    ],
)
def test_lengths_of_the_phases(
    start: float, length: float, expected: tuple[int, int]
) -> None:
    method = make(AutoBalance, start=start, search_length=length)
    stages = method.stages(4)
    assert tuple(stage.epochs for stage in stages) == (*expected, 4)
    assert [stage.first for stage in stages] == [0, expected[0], 0]
    before = values_of(method)
    history = training.fit(method, 4)
    assert len(history.rows) == sum(expected) + 4
    moved = any(not torch.equal(v, method.hparams[n]) for n, v in before.items())
    assert moved == (expected[1] > 0)
    told = [row["stage"].split(", ")[1] for row in history.rows]
    names = ("warm-up", "search", "retraining")
    sizes = (*expected, 4)
    assert told == [n for n, k in zip(names, sizes, strict=True) for _ in range(k)]


# --- limits ---------------------------------------------------------------------


def frozen(method: AutoBalance) -> AutoBalance:
    for optimiser, _ in method.outer:
        optimiser.step = lambda: None
    return method


def trained(method: Any, epochs: int = 3) -> Any:
    training.fit(method, epochs)
    return method


def test_frozen_at_logit_adjustment_it_is_logit_adjustment() -> None:
    plain = trained(make(LogitAdjustment))
    for design in ("l", "tau"):
        method = trained(frozen(make(AutoBalance, design=design, initial="la")))
        assert_same(plain, method, "/model")
        assert_same(plain, method, "/optimiser")


@pytest.mark.parametrize("cluster_size", [1, 3, 10])
@pytest.mark.parametrize("design", ["l", "tau"])
def test_frozen_at_nothing_it_is_cross_entropy(design: str, cluster_size: int) -> None:
    settings = {"design": design, "initial": "plain", "cluster_size": cluster_size}
    method = trained(frozen(make(AutoBalance, **settings)))
    assert_same(trained(make(CrossEntropy)), method, "/model")


def test_a_vanishing_rate_of_alpha_is_no_search() -> None:
    """Through the optimiser: what α keeps is where it starts."""
    settings = {"outer_lr": 1e-30, "outer_decay": 0.0, "interval": 1}
    method = trained(make(AutoBalance, design="l", initial="plain", **settings))
    assert_same(trained(make(CrossEntropy)), method, "/model")


def test_clustered_values_are_interpolated_for_the_retraining_alone() -> None:
    method = make(AutoBalance, design="l", cluster_size=5, initial="plain", start=0.0)
    with torch.no_grad():
        method.hparams["additive"].copy_(torch.tensor([[1.0], [3.0]]))
    _, search, retraining = method.stages(2)
    search.begin_epoch(0)
    assert method.alpha["additive"].unique().tolist() == [1, 3]
    retraining.begin_epoch(0)
    assert len(method.alpha["additive"].unique()) > 5
    found = method.loss_parameters
    assert torch.equal(found["additive"], method.alpha["additive"])
    assert found["class_weight"] is None
    assert isinstance(method, training.LossDesigning)


# --- what is looked at ----------------------------------------------------------


def test_nothing_but_training_images_is_read() -> None:
    training.fit(make(AutoBalance, only_train(load())), 2)


def grouped(splits: Splits) -> Splits:
    groups = 2 * splits.train.labels + torch.arange(len(splits.train)) % 2
    return replace(splits, train=replace(splits.train, groups=groups))


def numbered(splits: Splits) -> Splits:
    """The first pixels of image i say i."""
    count = len(splits.train)
    pixels = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(count) // 200
    pixels[:, 0, 0, 1] = torch.arange(count) % 200
    return replace(splits, train=replace(splits.train, images=data.InMemory(pixels)))


@pytest.mark.parametrize("cells", [False, True])
def test_parts_stay_apart_until_the_retraining(cells: bool) -> None:
    splits = only_train(numbered(grouped(load())))
    method = make(
        AutoBalance,
        splits,
        grouped=cells,
        interval=1,
        normalisation=data.Normalisation((0.0,), (1.0,)),
    )

    def of(batch: Batch) -> set[int]:
        pixels = (255 * batch.images[:, 0, 0, :2]).round().long()
        return set((200 * pixels[:, 0] + pixels[:, 1]).tolist())

    seen: dict[str, set[int]] = {}

    def watch(name: str, batch: Batch) -> None:
        numbers = of(batch)
        truth = splits.train.labels[[*numbers]].bincount(minlength=10)
        if name != "held":
            assert torch.equal(truth, batch.labels.bincount(minlength=10))
        seen.setdefault(name, set()).update(numbers)

    step, hypergradient = method.step, method.hypergradient

    def watched_step(batch: Batch) -> Any:
        watch(phase[0], batch)
        return step(batch)

    def watched(inner: list[Batch], held: list[Batch]) -> Any:
        for batch in inner:
            watch("inner", batch)
        for batch in held:
            watch("held", batch)
        return hypergradient(inner, held)

    method.step, method.hypergradient = watched_step, watched
    phase = ["search"]

    def next_phase(epoch: int, method: training.Method) -> dict[str, float]:
        phase[0] = "search" if epoch < 5 else "retraining"
        return {}

    training.fit(method, 6, on_epoch=next_phase)
    everything = set(range(len(splits.train)))
    assert seen["retraining"] == everything
    assert seen["search"] | seen["held"] == everything
    assert not seen["search"] & seen["held"]
    assert seen["inner"] <= seen["search"]
    cell = splits.train.groups if cells else splits.train.labels
    assert cell is not None
    sizes, held = cell.bincount(), cell[[*seen["held"]]].bincount(minlength=1)
    wanted = (0.2 * sizes).round().clamp(min=1).minimum(sizes - 1)
    assert torch.equal(held, wanted[: len(held)].long())


def darker(pixels: Tensor, draw: Generator) -> Tensor:
    return (pixels * torch.rand(len(pixels), 1, 1, 1, generator=draw)).to(pixels.dtype)


def test_validation_batches_are_stratified_and_not_augmented() -> None:
    calls: list[int] = []

    def augment(pixels: Tensor, draw: Generator) -> Tensor:
        calls.append(len(pixels))
        return darker(pixels, draw)

    method = make(AutoBalance, augment=augment)
    held = next(method.validation)
    assert not calls
    assert held.labels.bincount().tolist() == [3] * 10
    next(method.inner)
    assert calls


def test_training_batches_of_a_hypergradient_are_not_those_of_the_steps() -> None:
    method = make(AutoBalance, outer_batches=2)
    orders = [batch.index for batch in method.search_batches.epoch(0)]
    assert not torch.equal(next(method.inner).index, orders[0])
    method.inner.begin_epoch(3)
    first = next(method.inner).index
    method.inner.begin_epoch(4)
    assert not torch.equal(next(method.inner).index, first)
    method.inner.begin_epoch(3)
    assert torch.equal(next(method.inner).index, first)


# --- retraining and resuming ----------------------------------------------------


def test_retraining_starts_from_the_first_weights_without_a_past() -> None:
    method = make(AutoBalance)
    first = {name: v.clone() for name, v in method.model.state_dict().items()}
    retraining = method.stages(3)[-1]
    seen: list[Any] = []
    step = method.step

    def watched(batch: Batch) -> Any:
        if method.alpha is not None and method.epochs == 3:
            state = {n: v.clone() for n, v in method.model.state_dict().items()}
            seen.append((len(method.optimiser.state), state))
        return step(batch)

    method.step = watched
    method.search_length = 2.0  # so that the two phases have different lengths
    training.fit(method, 3)
    assert retraining.batches is method.batches
    past, start = seen[0]
    assert past == 0
    assert len(seen) == 3 * len(method.batches)
    for name, value in start.items():
        assert torch.equal(value, first[name]), name


POLICIES = [("none", after) for after in range(1, 7)]
POLICIES += [("personal", after) for after in (1, 2, 3, 5)] + [("single", 3)]


@pytest.mark.parametrize(("policy", "after"), POLICIES)
def test_resumed_gives_the_same_bits(policy: str, after: int, tmp_path: Path) -> None:
    """Two epochs of warm-up, two of search, three of retraining: killed in each."""

    def one() -> AutoBalance:
        return make(
            AutoBalance,
            load(),
            search_length=4 / 3,
            start=0.5,
            interval=4,
            outer_batches=2,
            cluster_size=3,
            augment=darker,
            policy=policy,
            sub_policies=2,
        )

    def stop(epoch: int, method: training.Method) -> dict[str, float]:
        if epoch == after:
            raise Stopped
        return {}

    whole, file = one(), tmp_path / "c.ckpt"
    history = training.fit(whole, 3)
    with pytest.raises(Stopped):
        training.fit(one(), 3, checkpoint=file, on_epoch=stop)
    second = one()
    with torch.no_grad():
        for parameter in second.model.parameters():
            parameter.zero_()
    second.first_state = {n: v.clone() for n, v in second.model.state_dict().items()}
    resumed = training.fit(second, 3, checkpoint=file, resume=True)
    assert_same(whole, second)
    assert whole.steps == second.steps > 0
    for row, other in zip(history.rows, resumed.rows, strict=True):
        del row["seconds"], other["seconds"]
        assert row == other


def test_a_seed_repeats_and_another_differs() -> None:
    one = trained(make(AutoBalance))
    assert_same(one, trained(make(AutoBalance)))
    other = trained(make(AutoBalance, seed=1))
    assert not torch.equal(one.hparams["additive"], other.hparams["additive"])


def test_true_labels_are_not_looked_at() -> None:
    splits = load(noise=0.4, imbalance=1)
    seeing, blind = (
        trained(make(AutoBalance, given))
        for given in (splits, splits.without_true_labels())
    )
    assert_same(seeing, blind)


# --- errors ---------------------------------------------------------------------


def test_nothing_to_search_for() -> None:
    method = make(AutoBalance, design="none")
    with pytest.raises(UserError, match="design='none' leaves nothing"):
        training.fit(method, 1)


def test_a_search_that_rounds_to_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="all warm-up"):
        make(AutoBalance, start=0.9).stages(3)


@pytest.mark.parametrize("terms", [0, 11])
def test_impossible_lengths_of_the_series(terms: int) -> None:
    with pytest.raises(UserError, match=f"terms is {terms}; give 1 to 10"):
        make(AutoBalance, terms=terms)


def test_decay_is_that_of_the_optimiser() -> None:
    """H of a loss without decay isn't that of the method."""
    method = convex()
    whole, held = batches_of(method)
    method.solver = hypergrad.exact()
    smallest = method.hypergradient([whole], [held]).report["smallest"]
    assert smallest == pytest.approx(DECAY, rel=1e-6)
