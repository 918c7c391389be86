"""Needs, budgets, the gradient of a sampled allocation, and the bootstrap."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from needsaug_lite.allocation import (
    bootstrap_allocations,
    class_allocation,
    enumerated_weights,
    gumbel_noise,
    inverse_frequency_shares,
    mean_per_class,
    oversampling_shares,
    relaxed_bernoulli,
    score_ratio,
    split_budget,
    straight_through,
)
from needsaug_lite.data import generator, long_tail_counts
from needsaug_lite.errors import UserError

positive = st.lists(st.floats(1e-4, 1e3), min_size=2, max_size=30)
weights = st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(
    lambda values: sum(values) > 1e-3
)


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- Eq. 3 -----------------------------------------------------------------------


@given(positive)
def test_allocation_is_eq_3(values: list[float]) -> None:
    losses = tensor(values)
    shares = class_allocation(losses)
    assert torch.allclose(shares, losses / losses.sum())
    assert math.isclose(float(shares.sum()), 1)


@given(positive, st.floats(1e-3, 1e3), st.floats(0.2, 5), st.floats(0, 1))
def test_shares_add_up_and_do_not_see_the_scale(
    values: list[float], scale: float, temperature: float, part: float
) -> None:
    losses = tensor(values)
    floor = part / len(values)
    shares = class_allocation(losses, temperature=temperature, floor=floor)
    scaled = class_allocation(scale * losses, temperature=temperature, floor=floor)
    assert math.isclose(float(shares.sum()), 1)
    assert torch.allclose(scaled, shares)
    assert float(shares.min()) >= floor - 1e-12


@given(positive, st.floats(0.1, 10), st.floats(0.1, 10))
def test_temperatures_multiply(values: list[float], one: float, other: float) -> None:
    # l^(1/T) normalised, then to the power 1/T' and normalised again.
    losses = tensor(values)
    twice = class_allocation(
        class_allocation(losses, temperature=one), temperature=other
    )
    assert torch.allclose(twice, class_allocation(losses, temperature=one * other))


def test_temperature_two_is_the_square_root() -> None:
    shares = class_allocation(tensor([1.0, 4.0, 9.0]), temperature=2)
    assert torch.allclose(shares, tensor([1, 2, 3]) / 6)


def test_limits_of_the_temperature() -> None:
    losses = tensor([0.5, 2.0, 0.1, 1.9])
    hot = class_allocation(losses, temperature=1e9)
    cold = class_allocation(losses, temperature=1e-4)
    assert torch.allclose(hot, torch.full_like(losses, 0.25))
    assert torch.allclose(cold, tensor([0, 1, 0, 0]))


def test_cold_allocation_of_tiny_and_huge_losses_is_finite() -> None:
    for scale in (1e-30, 1e30):
        shares = class_allocation(scale * torch.rand(5) + scale, temperature=0.01)
        assert torch.isfinite(shares).all()


@given(st.integers(1, 20))
def test_zero_losses_give_uniform_shares(number: int) -> None:
    shares = class_allocation(torch.zeros(number, dtype=torch.float64))
    assert torch.allclose(shares, torch.full_like(shares, 1 / number))


def test_one_zero_loss_gets_nothing_and_a_floor_lifts_it() -> None:
    losses = tensor([0.0, 1.0, 3.0])
    assert torch.allclose(class_allocation(losses), tensor([0, 0.25, 0.75]))
    lifted = class_allocation(losses, floor=0.1)
    assert torch.allclose(lifted, tensor([0.1, 0.275, 0.625]))
    assert torch.allclose(class_allocation(losses, floor=1 / 3), tensor([1, 1, 1]) / 3)


def test_rows_of_a_batch_are_allocated_one_by_one() -> None:
    batch = torch.rand(4, 6, generator=generator(0), dtype=torch.float64)
    batch[2] = 0
    each = torch.stack([class_allocation(row, temperature=2) for row in batch])
    assert torch.allclose(class_allocation(batch, temperature=2), each)


@pytest.mark.parametrize("bad", [-1e-9, float("nan"), float("inf")])
def test_impossible_losses_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="validation loss"):
        class_allocation(tensor([1.0, bad]))


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"temperature": -1}, {"floor": -0.1}, {"floor": 0.6}],
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        class_allocation(tensor([1.0, 2.0]), **options)


def test_means_per_class_and_the_absent_class() -> None:
    values, labels = tensor([1, 2, 3, 10]), torch.tensor([0, 0, 2, 1])
    assert torch.equal(mean_per_class(values, labels, 3), tensor([1.5, 10, 3]))
    with pytest.raises(UserError, match=r"class 3, 4"):
        mean_per_class(values, labels, 5)


@pytest.mark.parametrize(("temperature", "floor"), [(1, 0), (0.5, 0), (3, 0.05)])
def test_gradient_of_the_allocation(temperature: float, floor: float) -> None:
    losses = torch.rand(5, generator=generator(1), dtype=torch.float64) + 0.1

    def shares(values: Tensor) -> Tensor:
        return class_allocation(values, temperature=temperature, floor=floor)

    assert torch.autograd.gradcheck(shares, losses.requires_grad_())


def test_jacobian_of_eq_3() -> None:
    losses = torch.rand(5, generator=generator(2), dtype=torch.float64) + 0.1
    p = class_allocation(losses)
    closed = (torch.eye(5, dtype=torch.float64) - p[:, None]) / losses.sum()
    automatic = torch.autograd.functional.jacobian(class_allocation, losses)
    assert torch.allclose(automatic, closed)


# --- Whole budgets ---------------------------------------------------------------


@given(weights, st.integers(0, 100_000))
def test_a_split_budget_adds_up_and_is_off_by_less_than_one(
    values: list[float], budget: int
) -> None:
    shares = tensor(values) / sum(values)
    counts = split_budget(shares, budget)
    assert int(counts.sum()) == budget
    assert int(counts.min()) >= 0
    assert ((counts - budget * shares).abs() < 1 + 1e-9).all()


@given(weights, st.integers(0, 1000))
def test_the_largest_remainders_are_rounded_up(
    values: list[float], budget: int
) -> None:
    exact = budget * tensor(values) / sum(values)
    counts = split_budget(tensor(values) / sum(values), budget)
    remainder = exact - exact.floor()
    up, down = counts > exact.floor(), counts == exact.floor()
    assert (up | down).all()
    if up.any() and down.any():
        assert remainder[up].min() >= remainder[down].max() - 1e-9


def test_equal_remainders_go_to_lower_numbers() -> None:
    assert split_budget(torch.full((4,), 0.25), 6).tolist() == [2, 2, 1, 1]
    assert split_budget(torch.full((3,), 1 / 3), 2).tolist() == [1, 1, 0]
    many = split_budget(torch.full((1000,), 1 / 1000), 400)
    assert many.tolist() == [1] * 400 + [0] * 600


def test_shares_of_single_precision_keep_large_budgets_whole() -> None:
    shares = class_allocation(torch.rand(1000, generator=generator(3)))
    assert int(split_budget(shares, 1_300_000).sum()) == 1_300_000


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(UserError, match="-1 images"):
        split_budget(torch.ones(2) / 2, -1)


# --- The gradient of a sampled allocation (errata N3) ----------------------------


def _problem(classes: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Validation losses, losses on added images, exact gradient of sum_c p_c L_c."""
    draw = generator(4)
    validation = torch.rand(classes, generator=draw, dtype=torch.float64) + 0.2
    added = torch.rand(classes, generator=draw, dtype=torch.float64) + 0.2
    p = class_allocation(validation)
    exact = (added - (p * added).sum()) / validation.sum()
    return validation.requires_grad_(), added, exact


def test_exact_gradient_is_that_of_the_intended_objective() -> None:
    validation, added, exact = _problem()
    (class_allocation(validation) * added).sum().backward()
    assert torch.allclose(validation.grad, exact)


def test_score_ratio_enumerated_is_exact_whatever_was_drawn_from() -> None:
    validation, added, exact = _problem()
    every = torch.arange(6)
    p = class_allocation(validation)
    for drawn_from in (p, torch.full((6,), 1 / 6, dtype=torch.float64)):
        # E_{o ~ q} of (p/q) L, with the draw written out.
        terms = drawn_from.detach() * score_ratio(p, drawn_from, every) * added
        assert torch.isclose(terms.sum(), (p * added).sum())
        (gradient,) = torch.autograd.grad(terms.sum(), validation, retain_graph=True)
        assert torch.allclose(gradient, exact)


def test_score_ratio_has_value_one_and_an_unbiased_gradient() -> None:
    validation, added, exact = _problem()
    p = class_allocation(validation)
    draws = 200_000
    picks = torch.multinomial(p.detach(), draws, True, generator=generator(5))
    ratio = score_ratio(p, p, picks)
    assert torch.equal(ratio, torch.ones_like(ratio))
    (sampled,) = torch.autograd.grad((ratio * added[picks]).mean(), validation)
    with torch.no_grad():
        one_draw = added[:, None] * (torch.eye(6) - p[:, None]) / validation[:, None]
        error = (p @ one_draw**2 - exact**2).sqrt() / draws**0.5
    assert ((sampled - exact).abs() < 5 * error).all()


def _relaxed_mean(p: Tensor, temperature: float) -> Tensor:
    """E[b | p] of Eq. 4: the difference of two Gumbel draws is logit(u)."""
    u = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    return torch.sigmoid((p.logit()[:, None] + u.logit()) / temperature).mean(1)


def test_eq_4_as_printed_tends_to_the_sum_of_squares() -> None:
    validation, added, _ = _problem()
    p = class_allocation(validation).detach()
    intended, squares = (p * added).sum(), (p**2 * added).sum()
    gaps = []
    for temperature in (1.0, 0.3, 0.1, 0.03, 0.01):
        literal = (p * _relaxed_mean(p, temperature) * added).sum()
        gaps.append(float((literal - squares).abs()))
        assert literal < intended
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-3 * float(squares)
    hot = (p * _relaxed_mean(p, 1e5) * added).sum()
    assert torch.isclose(hot, intended / 2, rtol=1e-3)


def test_the_mean_relaxed_weight_agrees_with_gumbel_draws() -> None:
    p = tensor([0.01, 0.2, 0.6])
    draw = torch.rand(2, 400_000, generator=generator(6), dtype=torch.float64)
    gumbel = -(-draw.log()).log()
    for temperature in (0.1, 1.0):
        first = ((p.log()[:, None] + gumbel[0]) / temperature).exp()
        second = (((1 - p).log()[:, None] + gumbel[1]) / temperature).exp()
        b = first / (first + second)
        error = b.std(1) / b.shape[1] ** 0.5
        assert ((b.mean(1) - _relaxed_mean(p, temperature)).abs() < 5 * error).all()


def test_enumerated_weights_are_exact_over_all_classes() -> None:
    validation, added, exact = _problem()
    b = enumerated_weights(class_allocation(validation), torch.arange(6))
    value = (b * added).mean()
    torch.testing.assert_close(value, (class_allocation(validation) * added).sum())
    (gradient,) = torch.autograd.grad(value, validation)
    torch.testing.assert_close(gradient, exact)


def test_gumbel_noise_has_its_distribution() -> None:
    draws = gumbel_noise((20_000,), generator(9))
    assert stats.kstest(draws.numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
    assert torch.equal(gumbel_noise((5,), generator(9)), draws[:5])
    assert gumbel_noise((3, 2), generator(1)).isfinite().all()


def test_the_largest_of_p_and_gumbel_noise_is_a_draw_from_p() -> None:
    p = tensor([0.05, 0.15, 0.3, 0.5])
    picks = (p.log() + gumbel_noise((50_000, 4), generator(10))).argmax(1)
    counts = picks.bincount(minlength=4).numpy()
    assert stats.chisquare(counts, 50_000 * p.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_straight_through_has_value_one_and_the_slope_of_the_softmax(
    temperature: float,
) -> None:
    p = tensor([0.2, 0.3, 0.5]).requires_grad_()
    noise = gumbel_noise((4, 3), generator(11)).double()
    labels = torch.tensor([0, 1, 2, 2])
    b = straight_through(p, labels, noise, temperature)
    torch.testing.assert_close(b, torch.ones_like(b), rtol=0, atol=1e-15)
    jacobian = torch.stack(
        [torch.autograd.grad(one, p, retain_graph=True)[0] for one in b]
    )
    with torch.no_grad():
        soft = ((p.log() + noise) / temperature).softmax(1)
        own = torch.nn.functional.one_hot(labels, 3)
        chosen = soft[torch.arange(4), labels][:, None]
        # d r_o / d p_c = r_o (1[o = c] - r_c) / (T p_c)
        closed = chosen * (own - soft) / (temperature * p)
    torch.testing.assert_close(jacobian, closed)


def test_the_relaxed_bernoulli_is_that_of_eq_4() -> None:
    p = tensor([0.2, 0.3, 0.5])
    noise = gumbel_noise((3, 2), generator(12)).double()
    labels, temperature = torch.tensor([2, 0, 1]), 0.6
    yes = ((p[labels].log() + noise[:, 0]) / temperature).exp()
    no = (((1 - p[labels]).log() + noise[:, 1]) / temperature).exp()
    b = relaxed_bernoulli(p, labels, noise, temperature)
    torch.testing.assert_close(b, yes / (yes + no))
    cold = relaxed_bernoulli(p, labels, noise, 1e-6)
    torch.testing.assert_close(cold, (yes > no).double())


# --- Shares of what is added ------------------------------------------------------

class_sizes = st.lists(st.integers(1, 10_000), min_size=1, max_size=30)


@settings(deadline=None)
@given(class_sizes)
def test_added_to_what_is_there_all_classes_have_one_size(sizes: list[int]) -> None:
    counts = torch.tensor(sizes)
    shares = oversampling_shares(counts)
    assert shares.dtype == torch.float64
    assert math.isclose(float(shares.sum()), 1)
    added = int((counts.max() - counts).sum())
    if added:
        assert torch.allclose(counts + added * shares, counts.max().double())
        assert not shares[counts == counts.max()].any()
    else:
        assert torch.equal(shares, torch.full_like(shares, 1 / len(sizes)))


@settings(deadline=None)
@given(class_sizes, st.integers(2, 50))
def test_inverse_shares_give_every_image_the_same_weight(
    sizes: list[int], factor: int
) -> None:
    counts = torch.tensor(sizes)
    shares = inverse_frequency_shares(counts)
    assert shares.dtype == torch.float64
    assert math.isclose(float(shares.sum()), 1)
    mass = shares * counts
    assert torch.allclose(mass, mass[:1].expand_as(mass))
    assert torch.allclose(inverse_frequency_shares(factor * counts), shares)


def test_both_readings_of_the_label_selection_on_cifar_100_lt() -> None:
    """The numbers of errata F7 for imbalance 100."""
    counts = torch.tensor(long_tail_counts(500, 100, 100))
    inverse, missing = inverse_frequency_shares(counts), oversampling_shares(counts)
    assert float(inverse[-20:].sum()) == pytest.approx(0.62, abs=5e-3)
    assert float(missing[-20:].sum()) == pytest.approx(0.25, abs=5e-3)
    assert float(inverse[-1] / inverse[50]) == pytest.approx(9.6, abs=5e-3)
    assert float(missing[-1] / missing[50]) == pytest.approx(1.10, abs=5e-3)
    assert float(inverse[0]) == pytest.approx(4e-4, abs=5e-5)
    assert float(missing[0]) == 0


# --- Bootstrap -------------------------------------------------------------------


def test_the_interval_holds_the_truth_in_95_of_100_cases() -> None:
    means = tensor([0.3, 1.0, 2.0])
    truth = means / means.sum()
    labels = torch.arange(3).repeat_interleave(100)
    draw, trials, hits = generator(7), 400, 0
    for _ in range(trials):
        uniform = torch.rand(300, generator=draw, dtype=torch.float64)
        shares = bootstrap_allocations(
            2 * uniform * means[labels], labels, 3, repeats=400, draw=draw
        )
        low, high = shares[:, 1].quantile(tensor([0.025, 0.975]))
        hits += int(low <= truth[1] <= high)
    expected = stats.binom(trials, 0.95)
    assert expected.ppf(1e-4) <= hits <= expected.ppf(1 - 1e-4)


def test_bootstrap_spread_is_that_of_the_delta_method() -> None:
    draw, sizes = generator(8), torch.tensor([300, 200, 100])  # classes of unequal size
    labels = torch.arange(3).repeat_interleave(sizes)
    values = torch.rand(600, generator=draw, dtype=torch.float64) * (1 + labels)
    shares = bootstrap_allocations(values, labels, 3, repeats=4000, draw=draw)
    mean = mean_per_class(values, labels, 3)
    squares = mean_per_class((values - mean[labels]) ** 2, labels, 3)
    jacobian = torch.autograd.functional.jacobian(class_allocation, mean)
    first_order = (jacobian**2 @ (squares / sizes)).sqrt()
    assert torch.allclose(shares.std(0), first_order, rtol=0.06)
    error = first_order / 4000**0.5
    assert ((shares.mean(0) - class_allocation(mean)).abs() < 10 * error).all()


def test_bootstrap_of_one_image_per_class_has_no_spread() -> None:
    values, labels = tensor([0.5, 1.5]), torch.tensor([1, 0])
    shares = bootstrap_allocations(values, labels, 2, repeats=20)
    assert torch.allclose(shares, tensor([0.75, 0.25]).expand(20, 2))


def test_bootstrap_refuses_an_absent_class() -> None:
    with pytest.raises(UserError, match="class 2"):
        bootstrap_allocations(torch.ones(2), torch.tensor([0, 1]), 3)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_bootstrap_repeats_itself_for_one_seed(seed: int) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    values = torch.rand(6, generator=generator(seed))
    one, other = (
        bootstrap_allocations(values, labels, 2, repeats=10, draw=generator(seed))
        for _ in range(2)
    )
    assert torch.equal(one, other)
