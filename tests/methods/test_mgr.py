"""The finder's gradient against the whole pipeline as one graph, and what it sees."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_search import Untouchable
from helpers.meta_methods import assert_same, fit_in_two, load
from helpers.synthetic import STANDSTILL, Scene, flat, make, scene, smooth_model
from torch import Tensor
from torch.testing import assert_close

from needsaug_lite import hypergrad, training
from needsaug_lite.errors import UserError
from needsaug_lite.losses import kl_to_standard_normal
from needsaug_lite.methods.baselines.generative import PCR
from needsaug_lite.methods.mgr import MGR, SampledGDA

ETA, STRENGTH = 0.4, 0.6


def prepared(
    kind: Any = MGR,
    *,
    smooth: bool = True,
    eta: float = ETA,
    strength: float = STRENGTH,
    radius: float = 0.01,
    lambda_kl: float = 0.0,
    second_order: bool = True,
    **settings: Any,
) -> Scene:
    method = make(
        kind,
        model=smooth_model(),
        synthetic={"strength": strength},
        search={"lambda_kl": lambda_kl, "look_ahead": eta, "radius": radius},
        second_order=second_order,
        **settings,
    )
    return scene(method, smooth=smooth)


def loss_of(seen: Scene) -> Any:
    return seen.supervision if isinstance(seen.method, SampledGDA) else seen.consistency


def outcome(seen: Scene, phi: dict[str, Tensor]) -> Tensor:
    """L_val(θ'(φ)), the pipeline written out."""
    method = seen.method
    return seen.after_step(
        seen.images(phi),
        loss_of(seen),
        eta=method.look_ahead,
        strength=method.synthetic.strength,
    )


def truth(seen: Scene) -> Tensor:
    phi = seen.phi()
    return flat(torch.autograd.grad(outcome(seen, phi), list(phi.values())))


def handed_over(seen: Scene) -> Tensor:
    """What Adam gets in a step of the method."""
    seen.method.step(seen.batch)
    return flat([p.grad for p in seen.method.finder.parameters()])


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


# --- the gradient -------------------------------------------------------------


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [(MGR, {}), (MGR, {"stop_gradient": True}), (SampledGDA, {})],
)
def test_second_order_is_the_derivative_of_the_whole(
    kind: Any, settings: dict[str, bool], smooth: bool
) -> None:
    """∇_φ L_val(θ - η ∇_θ(L + λ L_p)) through T, G, F and batch norm."""
    seen = prepared(kind, smooth=smooth, **settings)
    exact = truth(seen)
    assert float(exact.norm()) > 1e-6
    assert error(handed_over(seen), exact) < 1e-9


@pytest.mark.parametrize("kind", [MGR, SampledGDA])
def test_second_order_is_the_slope_of_the_whole(kind: Any) -> None:
    """Against difference quotients: no derivative of anybody's is used."""
    seen = prepared(kind)
    phi = {name: value.detach() for name, value in seen.phi().items()}
    torch.manual_seed(2)
    quotients, directions = [], []
    for _ in range(3):
        way = {name: torch.randn_like(value) for name, value in phi.items()}
        ahead, behind = (
            outcome(seen, {name: phi[name] + step * way[name] for name in phi})
            for step in (1e-4, -1e-4)
        )
        quotients.append((ahead - behind).detach() / 2e-4)
        directions.append(flat(way.values()))
    found = handed_over(seen)
    slopes = torch.stack([found @ way for way in directions])
    assert_close(slopes, torch.stack(quotients), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"stop_gradient": True}])
def test_the_error_of_the_finite_difference_falls_with_the_square_of_the_radius(
    settings: dict[str, bool],
) -> None:
    exact = truth(prepared(**settings))
    far, near = (
        error(
            handed_over(prepared(second_order=False, radius=radius, **settings)), exact
        )
        for radius in (0.04, 0.02)
    )
    assert far / near == pytest.approx(4, rel=0.05)
    assert near < 0.01


def test_a_small_step_against_the_gradient_lowers_the_validation_loss() -> None:
    seen = prepared()
    phi = {name: value.detach() for name, value in seen.phi().items()}
    before = outcome(seen, phi).detach()
    handed_over(seen)
    # The step moved θ as well: the outcome is compared at the old weights.
    slopes = {n: p.grad for n, p in seen.method.finder.named_parameters()}
    again = prepared()
    rate = 1e-3 / flat(slopes.values()).norm()
    after = outcome(again, {n: phi[n] - rate * slopes[n] for n in phi}).detach()
    expected = rate * flat(slopes.values()).square().sum()
    assert float((before - after) / expected) == pytest.approx(1, abs=0.01)


def test_the_gradient_carries_eta_and_lambda() -> None:
    """-ηλ ∇²L_p v: errata M2. Small, so that θ' hardly moves and v stays."""
    base = handed_over(prepared(eta=1e-7))
    assert error(handed_over(prepared(eta=2e-7)) / 2, base) < 1e-5
    double = handed_over(prepared(eta=1e-7, strength=2 * STRENGTH))
    assert error(double / 2, base) < 1e-5


def test_the_divergence_is_added_with_its_weight() -> None:
    """λ_KL ∇_φ D_KL beside the derivative of the validation loss."""
    plain = handed_over(prepared())
    seen = prepared(lambda_kl=0.3)
    phi = seen.phi()
    moved = torch.func.functional_call(seen.method.finder, phi, (seen.latents,))
    held = torch.autograd.grad(kl_to_standard_normal(moved), list(phi.values()))
    assert_close(handed_over(seen) - plain, 0.3 * flat(held))


def views_of(seen: Scene) -> dict[str, Tensor]:
    plain, changed = seen.both(seen.images(seen.phi()))
    return {"plain": plain.detach(), "changed": changed.detach()}


def real_slopes(seen: Scene) -> dict[str, Tensor]:
    theta = seen.theta()
    real = torch.nn.functional.cross_entropy(
        seen.logits(theta, seen.batch.images), seen.batch.labels
    )
    found = torch.autograd.grad(real, list(theta.values()))
    return dict(zip(theta, found, strict=True))


def test_the_tangent_stands_for_the_loss_of_the_real_batch() -> None:
    """Same θ' and same hypergradient with the loss itself in the closure."""
    seen = prepared()
    method, views = seen.method, views_of(seen)
    found = method.hypergradient(real_slopes(seen), views, seen.labels, seen.clean)

    def inner(params: dict[str, Tensor], h: dict[str, Tensor]) -> Tensor:
        real = torch.nn.functional.cross_entropy(
            seen.logits(params, seen.batch.images), seen.batch.labels
        )
        gap = seen.features(params, h["changed"]) - seen.features(params, h["plain"])
        return real + STRENGTH * gap.square().sum(1).mean()

    def outer(params: dict[str, Tensor], h: dict[str, Tensor]) -> Tensor:
        assert seen.clean is not None
        logits = seen.logits(params, seen.clean.images)
        return torch.nn.functional.cross_entropy(logits, seen.clean.labels)

    whole = hypergrad.unrolled(inner, outer, seen.theta(), views, lr=ETA)
    assert_close(dict(found), dict(whole), rtol=1e-9, atol=1e-15)
    assert_close(found.params, whole.params, rtol=1e-10, atol=1e-12)
    assert_close(found.outer_loss, whole.outer_loss)


def test_the_head_has_no_part_in_the_mixed_derivative() -> None:
    """Errata M2: L_PCR depends on ψ only, so that moving ω changes nothing."""
    seen = prepared()
    leaves = {n: v.requires_grad_() for n, v in views_of(seen).items()}

    def slopes(theta: dict[str, Tensor]) -> Tensor:
        loss = seen.method.synthetic_loss(theta, leaves, seen.labels)
        return flat(torch.autograd.grad(loss, list(leaves.values())))

    theta = {name: value.detach() for name, value in seen.theta().items()}
    disturbed = {
        name: value + (name.startswith("head.") * torch.randn_like(value))
        for name, value in theta.items()
    }
    assert torch.equal(slopes(theta), slopes(disturbed))
    moved = {name: value + 0.1 for name, value in theta.items()}
    assert not torch.equal(slopes(theta), slopes(moved))


def test_the_rule_as_printed_is_wrong_by_eta_over_epsilon() -> None:
    """Errata M1: a step of η and a division by ε = 0.01/||v||."""
    eta = 1e-4
    seen = prepared(eta=eta)
    views = views_of(seen)
    found = seen.method.hypergradient(real_slopes(seen), views, seen.labels, seen.clean)
    exact = -flat(found.values()) / (eta * STRENGTH)
    leaves = {n: p.clone().requires_grad_() for n, p in found.params.items()}
    assert seen.clean is not None
    outer = torch.nn.functional.cross_entropy(
        seen.logits(leaves, seen.clean.images), seen.clean.labels
    )
    v = dict(
        zip(leaves, torch.autograd.grad(outer, list(leaves.values())), strict=True)
    )
    epsilon = 0.01 / flat(v.values()).norm()

    def slopes(step: float) -> Tensor:
        theta = {n: p.detach() + step * v[n] for n, p in seen.theta().items()}
        given = {n: view.clone().requires_grad_() for n, view in views.items()}
        loss = seen.method.synthetic_loss(theta, given, seen.labels)
        return flat(torch.autograd.grad(loss, list(given.values())))

    printed = (slopes(eta) - slopes(-eta)) / (2 * epsilon)
    ratio = eta / epsilon
    assert float(ratio) < 0.1
    assert error(printed, ratio * exact) < 1e-5


# --- the whole method ---------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"strength": 0.0}])
def test_with_the_identity_mgr_is_pcr(settings: dict[str, float]) -> None:
    """Bit for bit, with the same draws, look ahead or not."""
    still = make(MGR, search={"lr": STANDSTILL}, synthetic=settings)
    plain = make(PCR, synthetic=settings)
    one, two = training.fit(still, 2), training.fit(plain, 2)
    assert one.column("synthetic_loss") == two.column("synthetic_loss")
    for part in ("/model", "/optimiser"):
        assert_same(still, plain, part)


def test_the_finder_moves_what_the_network_learns_from() -> None:
    searching = make(MGR, search={"lr": 0.01})
    plain = make(PCR)
    rows = training.fit(searching, 1).rows
    training.fit(plain, 1)
    assert rows[0]["moved"] > 0
    with pytest.raises(AssertionError):
        assert_same(searching, plain, "/model")


def test_the_network_sees_the_same_draws_through_the_new_finder() -> None:
    """Errata M4: z, y and T of line 10 are those of line 6."""
    seen = prepared(lambda_kl=0.1)
    method = seen.method
    method.outer_optimiser.param_groups[0]["lr"] = 0.05
    looks: list[dict[str, Tensor]] = []
    own = method.views

    def views(images: Tensor) -> dict[str, Tensor]:
        looks.append({n: view.detach() for n, view in own(images).items()})
        made: dict[str, Tensor] = own(images)
        return made

    # Counted apart, so that the second call doesn't take other draws.
    def same_draws(shape: torch.Size, source: torch.Generator) -> Any:
        torch.rand(1, generator=source)
        return seen.draws

    method.strong.draw = same_draws
    method.views = views
    old = seen.phi()
    method.step(seen.batch)
    new = seen.phi()
    assert len(looks) == 2
    for look, phi in zip(looks, (old, new), strict=True):
        plain, changed = seen.both(seen.images(phi))
        assert_close(look["plain"], plain.detach())
        assert_close(look["changed"], changed.detach())
    assert not torch.equal(looks[0]["plain"], looks[1]["plain"])


def test_both_looks_use_one_draw_of_t() -> None:
    seen = prepared(smooth=False)
    method = seen.method
    drawn: list[Any] = []
    own = method.strong

    class Watched:
        def draw(self, *arguments: Any) -> Any:
            drawn.append(own.draw(*arguments))
            return drawn[-1]

        def __call__(self, *arguments: Any) -> Any:
            return own(*arguments)

    method.strong = Watched()
    for _ in range(3):
        method.step(seen.batch)
    names = [draws.names for draws in drawn]
    assert names[0::2] == names[1::2]
    assert len(set(names)) > 1
    signs = [draws.signs for draws in drawn]
    assert all(torch.equal(a, b) for a, b in zip(signs[::2], signs[1::2], strict=True))


def test_a_step_descends_on_the_new_images() -> None:
    """Line 11: ∇_θ( L + λ L_PCR ) at θ, with the images of the new φ."""
    seen = prepared(lambda_kl=0.1)
    seen.method.outer_optimiser.param_groups[0]["lr"] = 0.05
    theta = seen.theta()
    real = torch.nn.functional.cross_entropy(
        seen.logits(theta, seen.batch.images), seen.batch.labels
    )
    seen.method.step(seen.batch)
    with torch.no_grad():
        images = seen.images(seen.phi())
    total = real + STRENGTH * seen.consistency(theta, images)
    exact = torch.autograd.grad(total, list(theta.values()))
    found = [p.grad for p in seen.method.model.parameters()]
    assert_close(found, list(exact), rtol=1e-9, atol=1e-12)


def test_meta_images_teach_the_finder_and_never_the_network() -> None:
    splits = load().without_true_labels()
    away: Any = Untouchable()
    others = replace(splits, meta=splits.test.subset(torch.arange(50)), val=away)
    runs = {
        lr: [make(MGR, each, search={"lr": lr}) for each in (splits, others)]
        for lr in (STANDSTILL, 0.01)
    }
    for pair in runs.values():
        for run in pair:
            training.fit(run, 1)
    for part in ("/model", "/optimiser"):
        assert_same(runs[STANDSTILL][0], runs[STANDSTILL][1], part)
    for part in ("/model", "/finder", "/outer_optimiser"):
        with pytest.raises(AssertionError):
            assert_same(runs[0.01][0], runs[0.01][1], part)


def test_meta_images_are_needed() -> None:
    for kind in (MGR, SampledGDA):
        with pytest.raises(UserError, match=r"finder learns.*meta_per_class"):
            make(kind, load(meta_per_class=0))


def test_the_look_ahead_is_the_rate_of_the_epoch_or_fixed() -> None:
    following, fixed = make(MGR), make(MGR, search={"look_ahead": 0.3})
    rates = []
    for method in (following, fixed):
        method.stages(10)
        for epoch in (0, 9):
            method.begin_epoch(epoch)
            rates.append(method.look_ahead)
    assert rates == pytest.approx([0.05, 5e-6, 0.3, 0.3])


def test_adam_does_not_smother_a_small_gradient() -> None:
    """Errata M2: at ηλ = 10⁻¹⁰ the finder still moves at its own rate."""
    rate = 1e-3
    method = make(
        MGR,
        synthetic={"strength": 1e-5},
        search={"look_ahead": 1e-5, "lambda_kl": 0.0, "lr": rate},
    )
    before = copy.deepcopy(method.finder.state_dict())
    method.stages(1)
    method.begin_epoch(0)
    method.step(next(method.batches.epoch(0)))
    bias = "layers.4.bias"
    away = (method.finder.state_dict()[bias] - before[bias]).abs()
    assert_close(away, torch.full_like(away, rate), rtol=0.01, atol=0)


@pytest.mark.filterwarnings("error")
def test_a_transformation_that_changes_nothing_is_no_alarm() -> None:
    class Nothing:
        def draw(self, shape: torch.Size, source: torch.Generator) -> None: ...

        def __call__(self, images: Tensor, draws: None) -> Tensor:
            return images.clone()

    method = make(MGR, search={"lambda_kl": 0.0})
    nothing: Any = Nothing()
    method.strong = nothing
    rows = training.fit(method, 1).rows
    assert rows[0]["search_gradient"] == 0
    assert rows[0]["moved"] == 0


def test_without_kinks_single_precision_comes_close_to_the_exact_derivative() -> None:
    found = []
    for second_order in (False, True):
        method = make(
            MGR,
            model=smooth_model(),
            second_order=second_order,
            search={"lambda_kl": 0.0},
        )
        method.stages(1)
        method.begin_epoch(0)
        method.step(next(method.batches.epoch(0)))
        found.append(flat([p.grad for p in method.finder.parameters()]))
    assert error(*found) < 0.005


@pytest.mark.parametrize("second_order", [False, True])
def test_a_killed_run_ends_like_one_that_was_never_interrupted(
    second_order: bool, tmp_path: Path
) -> None:
    def one() -> Any:
        return make(MGR, second_order=second_order, search={"lr": 0.01})

    whole = one()
    training.fit(whole, 3)
    assert_same(whole, fit_in_two(one, 3, 2, tmp_path / "run"))


def test_a_seed_repeats_and_another_does_not() -> None:
    runs = [make(MGR, seed=seed, search={"lr": 0.01}) for seed in (0, 0, 1)]
    for number, run in enumerate(runs):
        training.fit(run, 1)
        torch.manual_seed(number)
    assert_same(runs[0], runs[1])
    with pytest.raises(AssertionError):
        assert_same(runs[0], runs[2], "/finder")


def test_estimating_leaves_the_random_state_alone() -> None:
    method = make(MGR)
    torch.manual_seed(4)
    before = torch.get_rng_state()
    training.fit(method, 1)
    assert torch.equal(before, torch.get_rng_state())
