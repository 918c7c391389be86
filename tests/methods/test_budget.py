"""Exactly M images in an epoch, and what each of them counts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from needsaug_lite.allocation import class_allocation, split_budget
from needsaug_lite.errors import UserError
from needsaug_lite.methods.budget import (
    Budget,
    Portion,
    Weighting,
    temperature,
    weights,
)

F64 = torch.float64
WEIGHTINGS: Any = get_args(Weighting)
CPU = torch.device("cpu")
CLASSES, LATENT = 4, 3
SHARES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)


def budget(images: int = 50, steps: int = 7, seed: int = 0) -> Budget:
    return Budget(images, steps, CLASSES, LATENT, seed=seed, device=CPU)


def epoch_of(one: Budget) -> list[Portion]:
    return [next(one) for _ in range(one.steps)]


# --- how many ---------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    steps=st.integers(1, 12),
    more=st.integers(0, 60),
    seed=st.integers(0, 99),
    weighting=st.sampled_from(("share", *WEIGHTINGS)),
)
def test_an_epoch_has_exactly_m_images_spread_evenly(
    steps: int, more: int, seed: int, weighting: Any
) -> None:
    one = budget(2 * steps + more, steps, seed)
    for epoch in range(2):
        if weighting == "share":
            one.share(epoch, SHARES)
        else:
            one.draw(epoch, SHARES, weighting)
        portions = epoch_of(one)
        with pytest.raises(StopIteration):
            next(one)
        sizes = [len(portion.labels) for portion in portions]
        assert sum(sizes) == one.images
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2
        assert sizes == [len(portion.latents) for portion in portions]
        labels = torch.cat([portion.labels for portion in portions])
        assert torch.equal(one.last_counts, labels.bincount(minlength=CLASSES))
        assert int(one.counts.sum()) == (epoch + 1) * one.images
        if weighting in ("c_way", "literal"):
            assert all(len(p.noise) == len(p.labels) for p in portions)  # type: ignore[arg-type]


def test_divided_shares_are_met_exactly_and_mixed() -> None:
    one = budget(1000, 10)
    one.share(0, SHARES.float())
    assert torch.equal(one.last_counts, split_budget(SHARES, 1000))
    assert all(len(portion.labels.unique()) == CLASSES for portion in epoch_of(one))


def test_enumerated_classes_are_spread_evenly_whatever_the_needs() -> None:
    one = budget(50)
    one.draw(0, SHARES, "enumerate")
    assert one.last_counts.tolist() == [13, 13, 12, 12]


@pytest.mark.parametrize("weighting", ["score_ratio", "c_way", "literal"])
def test_drawn_classes_follow_the_shares(weighting: Any) -> None:
    one = budget(40_000, 1)
    one.draw(0, SHARES, weighting)
    error = (SHARES * (1 - SHARES) / 40_000).sqrt()
    assert ((one.last_counts / 40_000 - SHARES).abs() < 5 * error).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_seed_and_an_epoch_repeat_their_draws(weighting: Any) -> None:
    def drawn(seed: int, epoch: int) -> list[Tensor]:
        one = budget(seed=seed)
        one.draw(0, SHARES, weighting)  # what came before doesn't matter
        one.draw(epoch, SHARES, weighting)
        (whole,) = [epoch_of(one)]
        parts = [torch.cat([p.latents for p in whole])]
        parts += [torch.cat([p.labels for p in whole])]
        if whole[0].noise is not None:
            parts += [torch.cat([p.noise for p in whole if p.noise is not None])]
        return parts

    again = zip(drawn(3, 1), drawn(3, 1), strict=True)
    assert all(torch.equal(one, other) for one, other in again)
    for other in (drawn(3, 2), drawn(4, 1)):
        assert not any(map(torch.equal, drawn(3, 1), other))


def test_latent_vectors_are_standard_normal() -> None:
    one = budget(20_000, 1)
    one.share(0, SHARES)
    latents = next(one).latents
    assert latents.shape == (20_000, LATENT)
    assert float(latents.mean().abs()) < 0.02
    assert float(latents.std()) == pytest.approx(1, abs=0.02)


def test_a_budget_that_is_too_small_is_refused() -> None:
    budget(14, 7)
    with pytest.raises(UserError, match=r"budget of 13 images .* at least 14"):
        budget(13, 7)


# --- what they count --------------------------------------------------------------

LOSSES = torch.tensor([0.3, 0.9, 1.4, 2.5], dtype=F64)
VALIDATION = torch.tensor([0.4, 1.1, 0.7, 1.6], dtype=F64)
EXACT = (LOSSES - (class_allocation(VALIDATION) * LOSSES).sum()) / VALIDATION.sum()


def drawn(weighting: Any, shares: Tensor, count: int, seed: int = 0) -> Portion:
    one = budget(count, 1, seed)
    one.draw(0, shares, weighting)
    found = next(one)
    noise = None if found.noise is None else found.noise.double()
    return Portion(found.latents.double(), found.labels, noise)


def estimate(
    weighting: Any, portion: Portion, size: int, *, heat: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Gradient by the validation losses of 1/B Σ b ℓ in every batch of `size`."""
    leaf = VALIDATION.clone().requires_grad_()
    p = class_allocation(leaf)
    gradients, values = [], []
    noises = (
        [None] * (len(portion.labels) // size)
        if portion.noise is None
        else portion.noise.split(size)
    )
    for labels, noise in zip(portion.labels.split(size), noises, strict=True):
        part = Portion(labels, labels, noise)
        b = weights(weighting, p, p, part, heat)
        value = (b * LOSSES[labels]).mean()
        gradients.append(torch.autograd.grad(value, leaf, retain_graph=True)[0])
        values.append(value.detach())
    return torch.stack(gradients), torch.stack(values)


@pytest.mark.parametrize("size", [2, 5, 20])
def test_the_score_ratio_points_where_the_sum_over_classes_does(size: int) -> None:
    """The batch's own baseline takes the factor 1 - 1/B with it, and no direction."""
    shares = class_allocation(VALIDATION)
    draws = 2000
    found, values = estimate(
        "score_ratio", drawn("score_ratio", shares, draws * size), size
    )
    spread = found.std(0) / draws**0.5
    assert ((found.mean(0) - (1 - 1 / size) * EXACT).abs() < 4 * spread).all()
    # The factor shows: without it the mean would be off.
    if size == 2:
        assert ((found.mean(0) - EXACT).abs() > 4 * spread).any()
    expected = (shares * LOSSES).sum()
    error = values.std() / draws**0.5
    assert abs(values.mean() - expected) < 4 * error


def test_enumerated_weights_are_unbiased_in_value_and_gradient() -> None:
    portion = drawn("enumerate", SHARES, 40)
    found, values = estimate("enumerate", portion, 40)
    # Ten images of each class: the mean over them is the sum over classes itself.
    torch.testing.assert_close(found[0], EXACT)
    expected = (class_allocation(VALIDATION) * LOSSES).sum()
    torch.testing.assert_close(values[0], expected)


@pytest.mark.parametrize("heat", [0.3, 1.0])
def test_the_straight_through_gradient_is_biased(heat: float) -> None:
    shares = class_allocation(VALIDATION)
    found, values = estimate("c_way", drawn("c_way", shares, 4000), 2, heat=heat)
    spread = found.std(0) / 2000**0.5
    assert ((found.mean(0) - EXACT).abs() > 5 * spread).any()
    expected = (shares * LOSSES).sum()
    assert abs(values.mean() - expected) < 4 * values.std() / 2000**0.5


def test_the_weights_as_printed_count_p_twice() -> None:
    """For T -> 0 the mean of b ℓ is Σ p² ℓ (errata N3)."""
    p = class_allocation(VALIDATION)
    portion = drawn("literal", p, 40_000)
    b = weights("literal", p, p, portion, 1e-3)
    each = b * LOSSES[portion.labels]
    error = each.std() / 200
    assert abs(each.mean() - (p**2 * LOSSES).sum()) < 4 * error
    assert abs(each.mean() - (p * LOSSES).sum()) > 20 * error


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), size=st.integers(2, 30))
def test_score_ratios_add_to_the_images_whatever_p_has_become(
    seed: int, size: int
) -> None:
    torch.manual_seed(seed)
    p, q = class_allocation(torch.rand(2, CLASSES, dtype=F64) + 0.01)
    b = weights("score_ratio", p, q, drawn("score_ratio", q, size, seed), 1.0)
    torch.testing.assert_close(b.sum(), torch.tensor(float(size), dtype=F64))
    one = weights("score_ratio", q, q, drawn("score_ratio", q, size, seed), 1.0)
    torch.testing.assert_close(one, torch.ones_like(one))


def test_score_ratios_hold_what_one_class_gains_against_another() -> None:
    """b_m / b_n = p(o_m) q(o_n) / (q(o_m) p(o_n))."""
    p, q = class_allocation(torch.stack([VALIDATION, LOSSES]))
    labels = torch.tensor([0, 3])
    b = weights("score_ratio", p, q, Portion(labels, labels), 1.0)
    torch.testing.assert_close(b[0] / b[1], p[0] * q[3] / (q[0] * p[3]))


def test_the_temperature_falls_by_one_factor_from_warm_to_cold() -> None:
    found = [temperature(epoch, 11) for epoch in range(11)]
    assert found[0] == 1
    assert found[-1] == pytest.approx(0.1)
    factors = [b / a for a, b in pairwise(found)]
    assert factors == pytest.approx([0.1 ** (1 / 10)] * 10)
    assert temperature(0, 1) == 1
