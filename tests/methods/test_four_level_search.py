"""The four levels with the architecture as A: gradient, sharing, passes, limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from helpers.needs import gan, small, weights
from helpers.supernets import (
    begin,
    doubled,
    error,
    flat,
    halves,
    held,
    leaves,
    penalty,
    scores,
    search,
    stepped,
    tensors,
)
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, relu
from torch.testing import assert_close

from needsaug_lite.errors import UserError
from needsaug_lite.methods.budget import Portion
from needsaug_lite.methods.four_levels import PATHS, ROLES, Drawn, Look
from needsaug_lite.methods.generation.adversarial import ConditionalGAN
from needsaug_lite.methods.search.four_level_search import NeedsAwareSearch
from needsaug_lite.methods.search.pc_darts import PCDARTS
from needsaug_lite.methods.shared_head import SMALLEST_NEED, by_role
from needsaug_lite.models import unrecorded

LR, GENERATOR_LR = 0.5, 0.3
START = "backbone.architecture."
TIED: dict[str, Any] = {"tied": True, "decorrelation": 0.2}
Params = Mapping[str, Tensor]


# --- the gradient of A ------------------------------------------------------------


def scene(**settings: Any) -> tuple[Any, Look]:
    """All networks in float64, W1 apart from W2, and one look."""
    searcher = search(NeedsAwareSearch, gamma=0.6, strength=1.5, **settings).searcher
    searcher.begin_epoch(0)
    for network in (searcher.first, searcher.model, searcher.gan.gan.model):
        network.double()
    torch.manual_seed(7)
    with torch.no_grad():
        for name, value in searcher.first.named_parameters():
            if "architecture" not in name:
                value += 0.05 * torch.randn_like(value)
    portion = next(searcher.budget)
    real, latents = searcher.gan.next_real()
    look = Look(
        doubled(next(searcher.batches.epoch(0))),
        Drawn(
            replace(portion, latents=portion.latents.double()),
            searcher.drawn_from.double(),
            1.0,
        ),
        (latents.double(), real.labels) if searcher.moves_generator else None,
        doubled(searcher.held_out.next_needs()),
        doubled(searcher.held_out.next_learned()),
    )
    return searcher, look


def outcome(
    searcher: Any, look: Look, a: Mapping[str, Params], kept: tuple[str, ...]
) -> Tensor:
    """Eq. 8 to 12 as one graph, A entering at five places."""
    levels = searcher.levels

    def whole(own: Params, role: str) -> dict[str, Tensor]:
        return {**own, **{START + n: v for n, v in a[role].items()}}

    first, _ = halves(leaves(searcher.first))
    second, _ = halves(leaves(searcher.model))
    maker = leaves(searcher.generator)
    decay = searcher.optimisation.weight_decay
    x, y = look.batch.images, look.batch.labels
    fit = cross_entropy(scores(searcher.first, whole(first, "W1"), x), y)
    moved = stepped(fit + penalty(first, decay), first, LR)
    fixed = {name: value.detach() for name, value in moved.items()}
    probed = moved if "W1" in kept else fixed
    asked = moved if "W1_need" in kept else fixed
    if look.fake is not None:
        z, labels = look.fake
        fake = 2 * functional_call(searcher.generator, maker, (z, labels)) - 1
        judge = searcher.gan.gan.discriminator
        judge.backbone.train()
        given = {START + n: v for n, v in a["H"].items()} if searcher.gan.shared else {}
        with unrecorded(judge):
            made = -functional_call(judge, given, (fake, labels)).mean()
        maker = stepped(made, maker, GENERATOR_LR)
    drawn = look.drawn
    assert drawn is not None
    z, o = drawn.portion.latents, drawn.portion.labels
    images = functional_call(searcher.generator, maker, (z, o))
    seen = searcher.normalisation.from_unit(images)
    checked = scores(searcher.first, whole(asked, "need"), look.needs.images)
    each = cross_entropy(checked, look.needs.labels, reduction="none")
    needs = torch.stack([each[look.needs.labels == c].mean() for c in range(10)])
    p = (needs + SMALLEST_NEED) / (needs + SMALLEST_NEED).sum()
    ratio = p[o] / drawn.shares[o]
    body, head = {}, {}
    for name, value in whole(second, "W2").items():
        (body if name.startswith("backbone.") else head)[name.partition(".")[2]] = value
    with unrecorded(searcher.model):
        found = functional_call(searcher.model.backbone, body, (seen,))
    guess = functional_call(searcher.model.head, head, (found,))
    loss = (ratio / ratio.mean() * cross_entropy(guess, o, reduction="none")).mean()
    if levels.decorrelation:
        centred = found - found.mean(0)
        square = (centred.T @ centred / len(found)).square()
        apart = (square.sum() - square.diagonal().sum()) / 2
        loss = loss + levels.decorrelation * apart
    fit = cross_entropy(scores(searcher.model, whole(second, "W2"), x), y)
    last = stepped(fit + penalty(second, decay) + 1.5 * loss, second, LR)
    x, y = look.clean.images, look.clean.labels
    total = cross_entropy(scores(searcher.model, whole(last, "outer"), x), y)
    probe = cross_entropy(scores(searcher.first, whole(probed, "outer"), x), y)
    return total + 0.6 * probe


@pytest.mark.parametrize("settings", [{}, TIED])
def test_every_path_is_the_derivative_by_its_place_of_a(
    settings: dict[str, Any],
) -> None:
    source = gan(small(), diversity=0.0)
    searcher, look = scene(route="exact", source=source, **settings)
    before = tensors(searcher.model)
    estimate = searcher.levels.hypergradient(look, LR, GENERATOR_LR)
    assert all(v.equal(before[n]) for n, v in tensors(searcher.model).items())
    own = leaves(searcher.place.part(searcher.model))
    for path, (levels, role) in PATHS.items():
        a: dict[str, Any] = {
            one: {n: v.detach() for n, v in own.items()} for one in ROLES
        }
        a[role] = own
        value = outcome(searcher, look, a, (path,))
        truth = torch.autograd.grad(value, list(own.values()))
        found = by_role(estimate.paths[levels], role)
        assert error(found, dict(zip(own, truth, strict=True))) < 1e-9, path
        assert flat(found).norm() > 0
    value = outcome(searcher, look, dict.fromkeys(ROLES, own), ("W1", "W1_need"))
    truth = torch.autograd.grad(value, list(own.values()))
    total = searcher.levels.total(estimate)
    assert error(total, dict(zip(own, truth, strict=True))) < 1e-9
    assert_close(estimate.outer_loss, value.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("route", ["finite_difference", "exact", "first_order"])
def test_without_a_in_h_the_generator_has_no_path(route: str) -> None:
    """The other paths stay, and G and H learn all the same."""
    source = gan(small(), diversity=0.0)
    searcher, look = scene(route=route, source=source, shared=False)
    if route != "first_order":
        estimate = searcher.levels.hypergradient(look, LR, GENERATOR_LR)
        levels, role = PATHS["G"]
        assert not flat(by_role(estimate.paths[levels], role)).any()
        levels, role = PATHS["W2"]
        assert flat(by_role(estimate.paths[levels], role)).any()
    slopes = searcher.improve_head(look)
    expected = torch.autograd.grad(
        searcher.gan.current_loss(*look.fake), list(searcher.generator.parameters())
    )
    found = [slopes[name] for name, _ in searcher.generator.named_parameters()]
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, TIED])
def test_the_first_order_route_is_the_direct_path(settings: dict[str, Any]) -> None:
    """And the limit of the whole for small rates."""
    searcher, look = scene(route="exact", **settings)
    part = searcher.levels.partial(look)
    estimate = searcher.levels.hypergradient(look, 1e-9, 1e-9)
    total = searcher.levels.total(estimate)
    assert error(searcher.levels.total(part), total) < 1e-5
    own = leaves(searcher.place.part(searcher.model))
    given = {START + n: v for n, v in own.items()}
    x, y = look.clean.images, look.clean.labels
    value = sum(
        weight * cross_entropy(scores(one, given, x), y)
        for one, weight in ((searcher.model, 1.0), (searcher.first, 0.6))
    )
    truth = torch.autograd.grad(value, list(own.values()))
    assert error(searcher.levels.total(part), dict(zip(own, truth, strict=True))) < 1e-9


@pytest.mark.parametrize("settings", [{}, TIED])
def test_g_moves_by_the_gradient_at_the_old_a_by_every_route(
    settings: dict[str, Any],
) -> None:
    found = {}
    for route in ("first_order", "finite_difference"):
        searcher, look = scene(route=route, **settings)
        before = tensors(searcher.model)
        found[route] = searcher.improve_head(look)
        after = tensors(searcher.model)
        moved = [n for n, v in before.items() if not v.equal(after[n])]
        # A alone, and no running moment.
        assert moved
        assert all(name.startswith(START) for name in moved)
    one, two = found.values()
    assert error({n: one[n] for n in two}, two) < 1e-9


# --- who shares what --------------------------------------------------------------


def test_three_networks_share_a_alone() -> None:
    searcher = search(NeedsAwareSearch).searcher
    judge = searcher.gan.judge
    bodies = [searcher.model.backbone, searcher.first.backbone, judge.backbone]
    a = {id(p) for p in searcher.model.backbone.architecture.parameters()}
    assert len({id(body.architecture) for body in bodies}) == 1
    own = [{id(p) for p in body.parameters()} - a for body in bodies]
    assert not own[0] & own[1]
    assert not own[0] & own[2]
    assert not own[1] & own[2]
    heads = {
        id(p) for one in (searcher.model, searcher.first) for p in one.head.parameters()
    }
    assert len(heads) == 4
    assert held(searcher.meta_optimiser) == a
    assert held(searcher.optimiser) == own[0] | own[1] | heads
    scored = {id(p) for m in (judge.head, judge.projection) for p in m.parameters()}
    assert held(searcher.gan.gan.discriminator_optimiser) == own[2] | scored


def test_tied_they_share_the_encoder_and_no_head() -> None:
    searcher = search(NeedsAwareSearch, **TIED).searcher
    judge = searcher.gan.judge
    assert searcher.model.backbone is searcher.first.backbone is judge.backbone
    a = {id(p) for p in searcher.model.backbone.architecture.parameters()}
    body = {id(p) for p in searcher.model.backbone.parameters()} - a
    heads = {
        id(p) for one in (searcher.model, searcher.first) for p in one.head.parameters()
    }
    scored = {id(p) for m in (judge.head, judge.projection) for p in m.parameters()}
    assert len(heads) == 4
    assert not heads & scored
    assert held(searcher.optimiser) == body | heads
    assert held(searcher.gan.gan.discriminator_optimiser) == scored
    assert held(searcher.meta_optimiser) == a


def counted(searcher: Any) -> Counter[str]:
    """Passes of images through supernets in one step."""
    found: Counter[str] = Counter()
    bodies = {
        id(body): body
        for body in (
            searcher.model.backbone,
            searcher.first.backbone,
            searcher.gan.judge.backbone,
        )
    }
    hooks = [
        body.register_forward_hook(lambda *_: found.update(["passes"]))
        for body in bodies.values()
    ]
    searcher.step(searcher.waiting.pop())
    for hook in hooks:
        hook.remove()
    return found


def test_a_tied_plain_step_takes_one_pass_of_real_and_one_of_generated_images() -> None:
    method = search(NeedsAwareSearch, **TIED)
    searcher = method.searcher
    searcher.waiting = begin(method)  # A rests
    before = tensors(searcher.model)["backbone.stem.1.num_batches_tracked"]
    assert counted(searcher)["passes"] == 2
    after = tensors(searcher.model)["backbone.stem.1.num_batches_tracked"]
    assert after == before + 1  # of real images alone
    apart = search(NeedsAwareSearch)
    apart.searcher.waiting = begin(apart)
    # W2 of both, W1, and H of real and generated ones together.
    assert counted(apart.searcher)["passes"] == 4


# --- L_H of a tied discriminator --------------------------------------------------


def judged(searcher: Any, labels: Tensor, shares: Tensor) -> Tensor:
    """The generated half of L_H for features that depend on the class alone."""
    portion = Portion(torch.zeros(2, 6), labels)
    drawn = Drawn(portion, shares, 1.0)
    by_class = torch.linspace(-1, 1, 10)[:, None].expand(10, searcher.model.feature_dim)
    batch = searcher.waiting[0]
    found = torch.zeros(len(batch), searcher.model.feature_dim)
    searcher.gan.judge.eval()
    searcher.gan.judge.train = lambda mode=True: None  # one spectral norm for all
    total: Tensor = searcher.judged_loss(found, batch, drawn, by_class[labels])
    scored = searcher.gan.judge.scores
    return total - relu(1 - scored(found, batch.labels)).mean()


@pytest.mark.parametrize("weighting", ["score_ratio", "enumerate"])
def test_generated_images_count_as_the_classes_of_real_ones(weighting: Any) -> None:
    """Σ_c p_c (π_c / p_c) f(c) = Σ_c π_c f(c)."""
    method = search(NeedsAwareSearch, weighting=weighting, **TIED)
    searcher = method.searcher
    searcher.waiting = begin(method)
    p = torch.arange(1, 11) / 55
    drawn_from = torch.full((10,), 0.1) if weighting == "enumerate" else p
    each = torch.stack([judged(searcher, torch.tensor([c, c]), p) for c in range(10)])
    by_class = torch.linspace(-1, 1, 10)[:, None].expand(10, searcher.model.feature_dim)
    plain = relu(1 + searcher.gan.judge.scores(by_class, torch.arange(10)))
    assert_close((drawn_from * each).sum(), (searcher.class_prior * plain).sum())
    assert not searcher.class_prior.allclose(p)


def test_the_class_vectors_of_a_tied_discriminator_stay_normed() -> None:
    """Its power iteration goes on after G has looked at it."""
    method = search(NeedsAwareSearch, interval=8, **TIED)
    layer = method.searcher.gan.judge.projection
    first, *others = begin(method, 1)
    method.searcher.step(first)  # A and G move
    for batch in others[:2]:
        before = tensors(layer)
        method.searcher.step(batch)
        moved = [not v.equal(before[n]) for n, v in tensors(layer).items()]
        assert all(moved)
        assert len(moved) == 3


def test_without_a_moving_generator_a_tied_discriminator_is_left_out() -> None:
    method = search(NeedsAwareSearch, train_generator=False, **TIED)
    searcher = method.searcher
    batch = begin(method)[0]
    before = weights(searcher.gan.judge.head)
    found = torch.ones(len(batch), searcher.model.feature_dim)
    drawn = Drawn(next(searcher.budget), searcher.drawn_from, 1.0)
    assert searcher.judged_loss(found, batch, drawn, found) == 0
    searcher.step(batch)
    assert flat(before).equal(flat(weights(searcher.gan.judge.head)))


# --- limits -----------------------------------------------------------------------


def test_without_generated_images_it_is_a_bilevel_search() -> None:
    """λ = 0, γ = 0, all of D_val for A: PC-DARTS by the same route."""
    given = {"strength": 0.0, "gamma": 0.0, "separate_halves": False}
    ours: Any = search(NeedsAwareSearch, shared=False, route="exact", **given)
    theirs: Any = search(PCDARTS, route="exact")
    clean = ours.searcher.held_out.next_learned()
    theirs.searcher.held_out = iter([clean] * 9)
    theirs.searcher.begin_epoch = theirs.searcher.learner.begin_epoch
    ours.searcher.held_out.next_learned = lambda: clean
    for one in (ours, theirs):
        # W1 is clipped together with W2.
        one.searcher.learner = getattr(one.searcher, "learner", None)
        for batch in begin(one, 1)[:1]:
            one.searcher.step(batch)
    for name, value in weights(theirs.architecture).items():
        assert_close(ours.architecture.get_parameter(name).data, value)


def test_a_discriminator_of_another_loss_cannot_be_tied() -> None:
    splits = small()
    source = partial(gan, splits, ConditionalGAN)
    with pytest.raises(UserError, match="biggan"):
        search(NeedsAwareSearch, splits, source=source(), **TIED)
    method = search(NeedsAwareSearch, splits, source=source())
    method.searcher.step(begin(method, 1)[0])
