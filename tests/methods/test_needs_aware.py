"""A step of needs-aware generation by hand, who moves what, limits and resuming."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_search import NoWaiting
from helpers.meta_methods import assert_same, doubled, fit_in_two
from helpers.needs import EPOCHS, gan, make, same, small, steps, weights
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from needsaug_lite import training
from needsaug_lite.data import Batch
from needsaug_lite.errors import UserError
from needsaug_lite.methods.four_levels import PATHS, Drawn, Look
from needsaug_lite.methods.generation.adversarial import (
    BigGAN,
    ConditionalGAN,
    UnconditionalGAN,
)
from needsaug_lite.methods.generation.aids import mode_seeking
from needsaug_lite.methods.needs_aware import NeedsAware
from needsaug_lite.methods.shared_head import SMALLEST_NEED
from needsaug_lite.models import biggan

PLACE = "projection.parametrizations.weight.original"
FROZEN_HEAD: dict[str, Any] = {"meta_lr": 1e-30, "meta_decay": 0.0}
LAMBDA_ZERO: dict[str, Any] = {
    "strength": 0.0,
    "train_generator": False,
    "shared": False,
}
REDUCED: dict[str, Any] = {"interval": 2, "tied": True, "decorrelation": 0.1}
Params = Mapping[str, Tensor]


def head_of(method: Any) -> dict[str, Tensor]:
    return weights(method.model.head)


def encoders_of(method: Any) -> dict[str, Tensor]:
    both = {"W1": method.first.backbone, "W2": method.model.backbone}
    return {f"{n}.{k}": v for n, m in both.items() for k, v in weights(m).items()}


def judge_of(method: Any) -> dict[str, Tensor]:
    """Weights of H that are its own."""
    found = weights(method.gan.gan.discriminator)
    if method.gan.shared:
        del found[PLACE]
    return found


# --- the gradient of A ------------------------------------------------------------


def in_float64(method: Any) -> Look:
    """All networks in float64, and one look at what a step sees."""
    method.begin_epoch(0)
    for network in (method.first, method.model, method.gan.gan.model):
        network.double()
    torch.manual_seed(7)
    with torch.no_grad():
        # W1 isn't W2 any more, as later in training, and p isn't q.
        for value in method.first.backbone.parameters():
            value += 0.05 * torch.randn_like(value)
    portion = next(method.budget)
    portion = replace(portion, latents=portion.latents.double())
    real, latents = method.gan.next_real()
    moves = method.moves_generator
    return Look(
        doubled(next(method.batches.epoch(0))),
        Drawn(portion, method.drawn_from.double(), method.temperature),
        (latents.double(), real.labels) if moves else None,
        doubled(method.held_out.next_needs()),
        doubled(method.held_out.next_learned()),
    )


def fresh(module: nn.Module) -> dict[str, Tensor]:
    named = module.named_parameters()
    return {n: p.detach().clone().requires_grad_() for n, p in named}


def moved(loss: Tensor, params: Params, lr: float) -> dict[str, Tensor]:
    slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    pairs = zip(params.items(), slopes, strict=True)
    return {name: value - lr * slope for (name, value), slope in pairs}


def outcome(
    method: Any, look: Look, a: Params, lr: float, generator_lr: float
) -> Tensor:
    """Eq. 8 to 12 with the networks themselves, as one graph."""
    levels = method.levels
    first, second = method.first.backbone, method.model.backbone
    settled = [
        (buffer, buffer.clone())
        for module in (first, second)
        for buffer in module.buffers()
    ]

    def put_back() -> None:
        for buffer, value in settled:
            buffer.data.copy_(value)

    def run(body: nn.Module, params: Params, x: Tensor, *, train: bool) -> Tensor:
        body.train(train)
        found: Tensor = functional_call(body, dict(params), (x,))
        put_back()
        return found @ a["weight"].T + a["bias"]

    def features(params: Params, x: Tensor) -> Tensor:
        second.train()
        found: Tensor = functional_call(second, dict(params), (x,))
        put_back()
        return found

    def decayed(params: Params) -> Tensor:
        squares = torch.stack([p.square().sum() for p in params.values()]).sum()
        return squares * float(method.optimisation.weight_decay) / 2

    w1, w2, g = fresh(first), fresh(second), fresh(method.generator)
    images, labels = look.batch.images, look.batch.labels
    loss = cross_entropy(run(first, w1, images, train=True), labels)
    w1 = moved(loss + decayed(w1), w1, lr)

    if look.fake is not None:
        z, y = look.fake
        fake = 2 * functional_call(method.generator, g, (z, y)) - 1
        judge = method.gan.gan.discriminator.eval()
        swapped = {PLACE: a["weight"]} if method.gan.shared else {}
        scores = functional_call(judge, swapped, (fake, y))
        made = -scores.mean() + method.gan.gan.diversity * mode_seeking(z, fake, y)
        g = moved(made, g, generator_lr)

    assert look.drawn is not None
    portion = look.drawn.portion
    made_images = functional_call(
        method.generator, g, (portion.latents, portion.labels)
    )
    found = features(w2, method.normalisation.from_unit(made_images))
    scores = run(first, w1, look.needs.images, train=False)
    each = cross_entropy(scores, look.needs.labels, reduction="none")
    needs = torch.stack([each[look.needs.labels == c].mean() for c in range(10)])
    p = (needs + SMALLEST_NEED) / (needs + SMALLEST_NEED).sum()
    ratio = p[portion.labels] / look.drawn.shares[portion.labels]
    each = cross_entropy(
        found @ a["weight"].T + a["bias"], portion.labels, reduction="none"
    )
    made = (ratio / ratio.mean() * each).mean()
    centred = found - found.mean(0)
    square = (centred.T @ centred / len(found)).square()
    made = made + levels.decorrelation * (square.sum() - square.diagonal().sum()) / 2
    loss = cross_entropy(run(second, w2, images, train=True), labels)
    w2 = moved(loss + decayed(w2) + method.strength * made, w2, lr)

    x, y = look.clean.images, look.clean.labels
    outer = cross_entropy(run(second, w2, x, train=False), y)
    probe = cross_entropy(run(first, w1, x, train=False), y)
    return outer + float(levels.gamma) * probe


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": True, "decorrelation": 0.2, "gamma": 0.4, "strength": 1.5},
        {"shared": False},
        {"train_generator": False},
    ],
)
def test_the_gradient_of_a_is_that_of_the_whole_on_real_networks(
    settings: dict[str, Any],
) -> None:
    method = make(NeedsAware, second_order=True, **settings)
    look = in_float64(method)
    lr, rate = 0.5, 0.3
    moves = method.moves_generator
    estimate = method.levels.hypergradient(look, lr, rate if moves else None)
    a = fresh(method.model.head)
    value = outcome(method, look, a, lr, rate)
    assert_close(estimate.outer_loss, value.detach(), rtol=1e-10, atol=0)
    truth = torch.autograd.grad(value, list(a.values()))
    total = method.levels.total(estimate)
    for name, exact in zip(a, truth, strict=True):
        assert float((total[name] - exact).norm() / exact.norm()) < 1e-9
    for path, levels in (("G", "G -> W2"), ("need", "W1 -> W2")):
        if path == "G":
            shared = moves and method.gan.shared
            part = estimate.paths.get(levels, {}).get("H.weight")
            assert (part is not None and float(part.norm()) > 0) == shared
        else:
            assert float(estimate.paths[levels]["W1.weight"].norm()) > 0


def smoothed(model: nn.Module) -> None:
    """Without kinks: beside them a difference and a derivative aren't the same."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus())
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(2))


@pytest.mark.parametrize("tied", [False, True])
def test_differences_on_real_networks_are_exact_to_the_square_of_the_radius(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(biggan, "relu", nn.functional.softplus)
    splits = small()
    # Distances of `mode_seeking` have kinks too.
    source = gan(splits, diversity=0.0)
    method = make(NeedsAware, splits, source=source, tied=tied, decorrelation=0.1)
    smoothed(method.first)  # and, where they are tied, the body of W2 with it
    smoothed(method.model)
    steps(method, 3)
    look = in_float64(method)

    def found(**settings: Any) -> dict[str, Tensor]:
        levels = replace(method.levels, **settings)
        estimate = levels.hypergradient(look, 0.05, 2e-4)
        return {
            path: estimate.paths[name][f"{role}.weight"]
            for path, (name, role) in PATHS.items()
        }

    exact = found(second_order=True)
    far, near = (found(radius=radius) for radius in (0.02, 0.01))
    assert torch.equal(near["direct"], exact["direct"])
    for path in set(PATHS) - {"direct"}:
        gaps = [float((one[path] - exact[path]).norm()) for one in (far, near)]
        assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1), path
        assert gaps[1] < 0.01 * float(exact[path].norm()), path


def test_adam_gets_the_whole_gradient_and_the_rates_of_now() -> None:
    method = make(NeedsAware, second_order=True)
    method.begin_epoch(0)
    asked: list[Any] = []
    inner = type(method.levels).hypergradient

    def spy(levels: Any, look: Any, lr: Any, rate: Any, *, paths: bool = True) -> Any:
        found = inner(levels, look, lr, rate, paths=paths)
        asked.append((lr, rate, paths, levels.total(found)))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method.levels), "hypergradient", spy)
        batches = method.batches.epoch(0)
        before = head_of(method)
        method.step(next(batches))
        after = head_of(method)
        method.step(next(batches))
    # Paths are measured before the first update of an epoch alone.
    assert [paths for _, _, paths, _ in asked] == [True, False, False]
    _, (lr, rate, _, total), _ = asked
    assert (lr, rate) == (0.05, 2e-4)
    twin = {n: nn.Parameter(p.clone()) for n, p in before.items()}
    adam = torch.optim.Adam(twin.values(), 0.006, weight_decay=1e-3)
    for name, value in twin.items():
        value.grad = total[name]
    adam.step()
    for name, value in twin.items():
        assert_close(value.data, after[name], rtol=0, atol=1e-7)


def test_paths_are_measured_with_exact_derivatives() -> None:
    """Whatever the update itself is made with."""
    found = []
    for exact in (True, False):
        method = make(NeedsAware, second_order=exact)
        method.begin_epoch(0)
        logged = method.step(next(method.batches.epoch(0)))
        found.append({name: logged[f"path_{name}"] for name in PATHS})
    assert float(found[0]["G"]) > 0
    for name in PATHS:
        assert_close(found[0][name], found[1][name])


# --- one step ---------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_after_a_the_others_take_one_step_each_with_the_new_a(tied: bool) -> None:
    """Errata N7: G by the gradient of stage II, H at the new G, then W1 and W2."""
    method = make(NeedsAware, tied=tied, decorrelation=0.2, strength=1.5)
    method.begin_epoch(0)
    batch = next(method.batches.epoch(0))
    seen: dict[str, Any] = {}
    for place, name in ((method.gan, "next_real"), (method, "improve_head")):
        own = getattr(place, name)

        def record(*given: Any, own: Any = own, name: str = name) -> Any:
            seen[name] = own(*given)
            seen[f"{name} given"] = given
            return seen[name]

        setattr(place, name, record)
    judge = copy.deepcopy(method.gan.gan.discriminator)
    maker = copy.deepcopy(method.generator)
    first, second = copy.deepcopy((method.first, method.model))
    method.step(batch)
    real, z = seen["next_real"]

    # G: Adam with ∇ L_G at the old G, H and A.
    judge.eval()
    fake = maker.symmetric(z, real.labels)
    spread = method.gan.gan.diversity * mode_seeking(z, fake, real.labels)
    loss = -judge(fake, real.labels).mean() + spread
    betas = method.gan.gan.betas
    adam = torch.optim.Adam(maker.parameters(), 2e-4, betas)
    loss.backward()
    adam.step()
    for name, value in maker.named_parameters():
        assert_close(value.data, method.generator.get_parameter(name).data)

    # H: Adam with ∇ L_H at the new G and A; A isn't its own.
    with torch.no_grad():
        judge.get_parameter(PLACE).copy_(method.model.head.weight)
        fake = method.generator.symmetric(z, real.labels)
    own = [p for n, p in judge.named_parameters() if n != PLACE]
    adam = torch.optim.Adam(own, 2e-4, betas)
    judge.train().zero_grad()
    scores = judge(torch.cat([real.images, fake]), real.labels.repeat(2)).chunk(2)
    ((1 - scores[0]).relu().mean() + (1 + scores[1]).relu().mean()).backward()
    adam.step()
    for name, value in judge.named_parameters():
        assert_close(value.data, method.gan.gan.discriminator.get_parameter(name).data)

    # W1 and W2: SGD at the new A and G.
    head = method.model.head
    (look,) = seen["improve_head given"]
    portion = look.drawn.portion
    with torch.no_grad():
        made = method.generator.sample(portion.latents, portion.labels)
    second.train()
    body = second.backbone
    found = body(batch.images)
    kept = {n: b.clone() for n, b in body.named_buffers()}
    total = cross_entropy(head(found), batch.labels)
    alone = first.train().backbone[1] if tied else first.train().backbone
    probed = alone(found if tied else batch.images)
    total = total + cross_entropy(head(probed), batch.labels)
    fakes = body(method.normalisation.from_unit(made))
    centred = fakes - fakes.mean(0)
    square = (centred.T @ centred / len(fakes)).square()
    apart = (square.sum() - square.diagonal().sum()) / 2
    loss = cross_entropy(head(fakes), portion.labels) + 0.2 * apart
    bodies = nn.ModuleList([body, alone])
    slopes = torch.autograd.grad(total + 1.5 * loss, list(bodies.parameters()))
    theirs = nn.ModuleList([method.model.backbone])
    theirs.append(method.first.backbone[1] if tied else method.first.backbone)
    lr, decay = 0.05, method.optimisation.weight_decay
    for old, slope, new in zip(
        bodies.parameters(), slopes, theirs.parameters(), strict=True
    ):
        expected = old.data - lr * (slope + decay * old.data)
        assert_close(expected, new.data, rtol=1e-4, atol=1e-6)
    # Of the running moments only real images left a trace, and only once.
    for name, buffer in method.model.backbone.named_buffers():
        assert_close(buffer, kept[name])


def test_a_is_one_object_which_only_its_own_optimiser_holds() -> None:
    method = make(NeedsAware)
    a = method.model.head.weight
    layer = method.gan.gan.discriminator.projection.parametrizations.weight
    assert layer.original is a
    assert method.first.head is method.model.head

    def held(optimiser: Any) -> set[int]:
        return {id(p) for group in optimiser.param_groups for p in group["params"]}

    head = {id(p) for p in method.model.head.parameters()}
    assert held(method.meta_optimiser) == head
    for optimiser in (
        method.optimiser,
        method.gan.optimiser,
        method.gan.gan.discriminator_optimiser,
    ):
        assert not held(optimiser) & head
    encoders = {id(p) for p in method.model.backbone.parameters()}
    encoders |= {id(p) for p in method.first.backbone.parameters()}
    assert held(method.optimiser) == encoders


@pytest.mark.parametrize("settings", [{}, REDUCED, LAMBDA_ZERO])
def test_a_moves_in_its_update_alone(settings: dict[str, Any]) -> None:
    method = make(NeedsAware, **{**settings, **FROZEN_HEAD})
    before, others = head_of(method), encoders_of(method)
    steps(method, 4)
    assert same(head_of(method), before)
    assert not any(torch.equal(v, others[n]) for n, v in encoders_of(method).items())
    moving = make(NeedsAware, **settings)
    before = head_of(moving)
    steps(moving, 1)
    assert not any(torch.equal(v, before[n]) for n, v in head_of(moving).items())


def test_between_two_updates_a_and_g_stay_and_the_others_go_on() -> None:
    method = make(NeedsAware, interval=3)
    method.begin_epoch(0)
    batches = method.batches.epoch(0)
    for number in range(4):
        parts = [head_of, lambda m: weights(m.generator), encoders_of, judge_of]
        before = [part(method) for part in parts]
        method.step(next(batches))
        a, g, encoders, judge = (
            same(part(method), old) for part, old in zip(parts, before, strict=True)
        )
        assert (a, g) == (number % 3 != 0,) * 2
        assert not encoders
        assert not judge
    # The count goes on through epochs: step 4 and 5 come before the next update.
    before = [head_of(method)]
    steps(method, 2, epoch=1)
    assert same(head_of(method), before[0])
    steps(method, 1, epoch=2)
    assert not same(head_of(method), before[0])


def test_a_generator_that_is_not_trained_stays_bit_for_bit() -> None:
    method = make(NeedsAware, train_generator=False)
    before = method.generator.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    judge = judge_of(method)
    logged = steps(method, 3)
    assert same(method.generator.state_dict(), before)
    assert same(judge_of(method), judge)
    assert float(logged[-1]["path_G"]) == 0


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_only_a_shared_a_reaches_the_generator(
    shared: bool, second_order: bool
) -> None:
    method = make(NeedsAware, shared=shared, second_order=second_order)
    (logged,) = steps(method, 1)
    assert (float(logged["path_G"]) > 0) == shared
    others = ("direct", "W1", "W2", "need", "W1_need")
    assert min(float(logged[f"path_{name}"]) for name in others) > 0


def test_the_norms_of_the_paths_are_those_of_the_epoch() -> None:
    method = make(NeedsAware)
    names = [f"path_{name}" for name in method.norms]
    one, two = steps(method, 2)
    (three,) = steps(method, 1, epoch=1)
    assert all(torch.equal(one[name], two[name]) for name in names)
    assert not any(torch.equal(one[name], three[name]) for name in names)
    assert not torch.equal(one["outer_loss"], two["outer_loss"])


def test_images_do_not_depend_on_those_beside_them() -> None:
    method = make(NeedsAware)
    steps(method, 3)
    draw = torch.Generator().manual_seed(0)
    z, y = method.generator.noise(6, draw), torch.arange(6)
    with torch.no_grad():
        whole = method.generator.sample(z, y)
        alone = method.generator.sample(z[:2], y[:2])
    assert_close(whole[:2], alone, rtol=0, atol=1e-6)


def test_the_losses_of_a_step_never_wait_for_the_device() -> None:
    method = make(NeedsAware, decorrelation=0.1)
    method.begin_epoch(0)
    seen: list[Any] = []
    own = method.improve_head

    def record(look: Any) -> Any:
        seen.append(look)
        return own(look)

    method.improve_head = record
    batches = method.batches.epoch(0)
    method.step(next(batches))
    (look,), levels = seen, method.levels
    given = {"W1": dict(method.first.named_parameters())}
    given |= {"W2": dict(method.model.named_parameters())}
    given |= {"G": method.gan.params()}
    h = {
        f"{role}.{n}": p
        for role in ("outer", "W1", "H", "W2", "need")
        for n, p in method.model.head.named_parameters()
    }
    with NoWaiting():
        for loss in ("first_loss", "generator_loss", "second_loss", "outer_loss"):
            getattr(levels, loss)(given, h, look)
        method.made_loss(look.drawn, method.invented(look.drawn.portion))


# --- needs and budget -------------------------------------------------------------


@pytest.mark.parametrize("need", ["loss", "error"])
@pytest.mark.parametrize("weighting", ["score_ratio", "enumerate", "c_way", "literal"])
def test_the_budget_of_an_epoch_is_eq_3_of_w1(need: str, weighting: str) -> None:
    method = make(NeedsAware, need=need, weighting=weighting, budget=400)
    steps(method, 4)
    batch_of_all = next(iter(_whole(method, method.held_out.needs)))
    method.first.eval()
    with torch.no_grad():
        scores = method.first(batch_of_all.images)
    labels = batch_of_all.labels
    each = cross_entropy(scores, labels, reduction="none")
    wrong = (scores.argmax(1) != labels).float()
    losses, errors = (
        torch.stack([one[labels == c].mean() for c in range(10)]) + SMALLEST_NEED
        for one in (each, wrong)
    )
    method.begin_epoch(1)
    by_need = losses if need == "loss" else errors
    assert_close(method.drawn_from, by_need / by_need.sum(), rtol=1e-4, atol=1e-7)
    assert_close(method.error_shares, errors / errors.sum(), rtol=1e-4, atol=1e-7)
    found = method.allocation_summary()
    assert found["budget"] == 400
    assert sum(found["images"]) == 800
    assert sum(found["images_last_epoch"]) == 400
    assert found["shares_by_need"] == method.drawn_from.tolist()
    assert found["shares_by_error"] == method.error_shares.tolist()
    # What W2 learned from weighs as it should: in the first epoch all of it.
    mass = sum(found["weight_mass"])
    if weighting == "literal":
        assert 0 < mass < 390
    elif weighting == "enumerate":
        assert mass == pytest.approx(400, rel=0.02)
    else:
        assert mass == pytest.approx(400, rel=1e-5)


def _whole(method: Any, examples: Any) -> Any:
    from needsaug_lite.data import Batches

    return Batches(examples, len(examples), method.normalisation, shuffle=False).epoch(
        0
    )


def test_needs_and_a_are_learned_from_different_images_unless_told_otherwise() -> None:
    def pixels(batch: Batch) -> set[bytes]:
        return {one.numpy().tobytes() for one in batch.images}

    splits = small()
    whole = make(NeedsAware, splits)
    held = whole.held_out
    needs = [held.next_needs() for _ in range(4)]
    learned = [held.next_learned() for _ in range(4)]
    for batch in needs:
        assert torch.equal(batch.labels, torch.arange(10).repeat_interleave(3))
    for batch in learned:
        assert torch.equal(batch.labels.bincount(), torch.full((10,), 3))
    assert not set().union(*map(pixels, needs)) & set().union(*map(pixels, learned))
    both = make(NeedsAware, splits, separate_halves=False).held_out
    needs, learned = [both.next_needs()], [both.next_learned() for _ in range(4)]
    assert len(needs[0]) == 50  # five of every class
    assert set().union(*map(pixels, needs)) & set().union(*map(pixels, learned))


def test_the_shares_of_a_level_are_those_of_its_needs_batch() -> None:
    method = make(NeedsAware)
    method.begin_epoch(0)
    needs = method.held_out.next_needs()
    head = dict(method.model.head.named_parameters())
    first = {f"backbone.{n}": p for n, p in method.first.backbone.named_parameters()}
    found = method.levels.shares(first, head, needs)
    # The batch holds the whole half: three images of each class.
    assert_close(found, method.drawn_from, rtol=1e-4, atol=1e-7)


# --- limits -----------------------------------------------------------------------


def test_without_generated_images_w1_and_w2_are_one_and_g_rests() -> None:
    method = make(NeedsAware, **LAMBDA_ZERO)
    before = {n: t.clone() for n, t in method.generator.state_dict().items()}
    logged = steps(method, 4) + steps(method, 4, epoch=1)
    one, other = method.first.state_dict(), method.model.state_dict()
    assert same(one, other)
    assert same(method.generator.state_dict(), before)
    assert method.allocation_summary() == {}
    assert float(logged[-1]["synthetic_loss"]) == 0
    for name in ("need", "W1_need", "G"):
        assert float(logged[-1][f"path_{name}"]) == 0
    # With generated images they part.
    both = make(NeedsAware)
    steps(both, 2)
    assert not same(weights(both.first.backbone), weights(both.model.backbone))


def test_without_generated_images_it_is_a_bilevel_loop() -> None:
    """Decoupled training of the head, written out: A by Adam, W by SGD."""
    gamma, lr, momentum = 0.5, 0.05, 0.9
    method = make(NeedsAware, gamma=gamma, second_order=True, **LAMBDA_ZERO)
    for network in (method.first, method.model):
        network.double()
    clean: list[Batch] = []
    own = method.held_out.next_learned

    def learned() -> Batch:
        clean.append(doubled(own()))
        return clean[-1]

    method.held_out.next_learned = learned
    model = copy.deepcopy(method.model)
    body, head = model.backbone, model.head
    adam = torch.optim.Adam(head.parameters(), 0.006, weight_decay=1e-3)
    decay = method.optimisation.weight_decay
    sgd = torch.optim.SGD(
        body.parameters(), lr=lr, momentum=momentum, weight_decay=decay
    )
    method.begin_epoch(0)
    for batch in map(doubled, list(method.batches.epoch(0))[:3]):
        method.step(batch)
        w = dict(body.named_parameters())
        kept = {n: b.clone() for n, b in body.named_buffers()}
        body.train()
        loss = cross_entropy(head(body(batch.images)), batch.labels)
        squares = torch.stack([p.square().sum() for p in w.values()]).sum()
        ahead = moved(loss + decay / 2 * squares, w, lr)
        for name, buffer in body.named_buffers():
            buffer.data.copy_(kept[name])
        body.eval()
        scores = head(functional_call(body, ahead, (clean[-1].images,)))
        outer = (1 + gamma) * cross_entropy(scores, clean[-1].labels)
        slopes = torch.autograd.grad(outer, list(head.parameters()))
        for value, slope in zip(head.parameters(), slopes, strict=True):
            value.grad = slope
        adam.step()
        body.train()
        sgd.zero_grad()
        cross_entropy(head(body(batch.images)), batch.labels).backward()
        sgd.step()
    assert_close(dict(method.model.state_dict()), dict(model.state_dict()))


def test_w1_is_judged_by_the_same_head_and_learns_on_real_images_alone() -> None:
    """Two budgets, with A held: W2 differs, W1 doesn't."""
    one, other = (
        make(NeedsAware, weighting=kind, **FROZEN_HEAD)
        for kind in ("score_ratio", "enumerate")
    )
    for method in (one, other):
        steps(method, 3)
    assert same(weights(one.first.backbone), weights(other.first.backbone))
    assert not same(weights(one.model.backbone), weights(other.model.backbone))


def test_tied_classifiers_start_as_one_and_share_their_encoder() -> None:
    method = make(NeedsAware, tied=True)
    images = next(method.batches.epoch(0)).images
    method.model.eval(), method.first.eval()
    assert_close(method.first(images), method.model(images))
    assert method.first.backbone[0] is method.model.backbone
    steps(method, 2)
    method.model.eval(), method.first.eval()
    gap = method.first(images) - method.model(images)
    assert float(gap.detach().norm()) > 0


def test_a_starts_from_the_class_vectors_where_they_fit() -> None:
    source = gan(small())
    start = source.discriminator.get_parameter(PLACE).detach().clone()
    both: list[dict[str, Any]] = [{}, {"shared": False}]
    for settings in both:
        method = make(NeedsAware, source=gan(small()), **settings)
        assert torch.equal(method.model.head.weight, start)
    wide = make(NeedsAware, source=gan(small(), width=16), shared=False)
    assert wide.model.head.weight.shape == (10, 8)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_encoders_learn_by_what_was_asked_for(kind: str) -> None:
    method = make(NeedsAware, optimisation={"kind": kind, "lr": 1e-3})
    expected = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[kind]
    assert type(method.optimiser) is expected
    logged = training.fit(method, 1).rows[-1]
    assert logged["lr"] == 1e-3


# --- resuming ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"weighting": "c_way"}, {**REDUCED, "interval": 3}, LAMBDA_ZERO],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    def prepared() -> Any:
        return make(NeedsAware, **settings)

    whole = prepared()
    training.fit(whole, EPOCHS)
    second = fit_in_two(prepared, EPOCHS, 1, tmp_path / "run.pt")
    assert_same(whole, second)
    assert second.steps_done == whole.steps_done
    assert second.allocation_summary() == whole.allocation_summary()
    a = second.model.head.weight
    assert second.first.head.weight is a
    if second.gan.shared:
        layer = second.gan.gan.discriminator.projection.parametrizations.weight
        assert layer.original is a


# --- errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("splits", "settings", "message"),
    [
        ({"meta_per_class": 0}, {}, r"at least 2 .* class 0 has 0; .* meta_per_class"),
        ({"meta_per_class": 1}, {}, r"at least 2 of every class, and class 0 has 1"),
        (
            {"meta_per_class": 0},
            {"separate_halves": False},
            r"at least 1 of every class",
        ),
        ({}, {"budget": 7}, r"budget of 7 images .* at least 8"),
    ],
)
def test_too_few_images_are_refused(
    splits: dict[str, float], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(NeedsAware, small(**splits), **settings)


def test_one_held_out_image_is_enough_for_both_uses() -> None:
    method = make(NeedsAware, small(meta_per_class=1), separate_halves=False)
    steps(method, 1)


@pytest.mark.parametrize(
    ("kind", "width", "message"),
    [
        (ConditionalGAN, 8, r"no class vectors .* biggan, or shared=False"),
        (BigGAN, 16, r"head of the classifier is \(10, 8\).* \(10, 16\).* width 8"),
        (UnconditionalGAN, 8, r"unconditional generator knows none"),
    ],
)
def test_a_gan_that_does_not_fit_is_refused(
    kind: Any, width: int, message: str
) -> None:
    splits = small()
    with pytest.raises(UserError, match=message):
        make(NeedsAware, splits, source=gan(splits, kind, width=width))


def test_a_gan_without_class_vectors_serves_where_a_is_not_shared() -> None:
    splits = small()
    method = make(NeedsAware, splits, source=gan(splits, ConditionalGAN), shared=False)
    before = {n: b.clone() for n, b in method.generator.named_buffers()}
    (logged,) = steps(method, 1)
    assert float(logged["path_G"]) == 0
    after = dict(method.generator.named_buffers())
    assert all(torch.equal(after[name], b) for name, b in before.items())
