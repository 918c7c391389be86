"""What bounds features, predictions and latent vectors: values, scales, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import kl_div
from torch.testing import assert_close

from needsaug_lite import losses
from needsaug_lite.errors import UserError

F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=F64)


# --- pseudo consistency -------------------------------------------------------


def test_consistency_sums_over_features_and_averages_over_images() -> None:
    changed = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=F64)
    plain = torch.tensor([[0.0, 4.0], [3.0, -1.0]], dtype=F64)
    # 1 + 4 = 5 and 9 + 0 = 9.
    assert float(losses.pseudo_consistency(changed, plain)) == 7
    wide = losses.pseudo_consistency(changed.repeat(1, 3), plain.repeat(1, 3))
    assert float(wide) == 21
    long = losses.pseudo_consistency(changed.repeat(3, 1), plain.repeat(3, 1))
    assert float(long) == 7


@pytest.mark.parametrize("stop", [False, True])
def test_stopping_takes_the_gradient_of_the_plain_branch_alone(stop: bool) -> None:
    changed, plain = (normal(5, 3).requires_grad_() for _ in range(2))
    found = losses.pseudo_consistency(changed, plain, stop_gradient=stop)
    by_changed, by_plain = torch.autograd.grad(
        found, [changed, plain], allow_unused=True, materialize_grads=True
    )
    assert_close(by_changed, 2 * (changed - plain).detach() / 5)
    assert_close(by_plain, torch.zeros_like(plain) if stop else -by_changed)


def test_where_both_branches_do_the_same_stopping_one_halves_the_gradient() -> None:
    """G(x) = w x and T(x) = -x: ℓ = 4 w² x², of which each branch has one half."""
    weight, x = torch.tensor(0.7, dtype=F64, requires_grad=True), normal(6, 1)
    whole, half = (
        torch.autograd.grad(
            losses.pseudo_consistency(-weight * x, weight * x, stop_gradient=stop),
            weight,
        )[0]
        for stop in (False, True)
    )
    assert_close(whole, 8 * weight.detach() * x.square().mean())
    assert_close(whole, 2 * half)


def test_features_that_never_change_have_no_loss() -> None:
    constant = torch.full((4, 3), 2.5, dtype=F64, requires_grad=True)
    found = losses.pseudo_consistency(constant, constant.clone())
    (slope,) = torch.autograd.grad(found, constant)
    assert float(found.detach()) == 0
    assert not bool(slope.any())


# --- consistency of predictions -----------------------------------------------


def test_prediction_consistency_is_the_divergence_of_torch() -> None:
    changed, plain = normal(6, 4), normal(6, 4, scale=2)
    truth = kl_div(
        changed.log_softmax(1),
        (plain / 0.4).softmax(1),
        reduction="batchmean",
    )
    assert_close(losses.prediction_consistency(changed, plain, sharpening=0.4), truth)
    same = losses.prediction_consistency(plain, plain)
    assert_close(same, torch.zeros_like(same), atol=1e-15, rtol=0)


def test_prediction_consistency_teaches_the_changed_branch_alone() -> None:
    changed, plain = normal(6, 4).requires_grad_(), normal(6, 4).requires_grad_()
    found = losses.prediction_consistency(changed, plain, sharpening=0.4)
    by_changed, by_plain = torch.autograd.grad(
        found, [changed, plain], allow_unused=True, materialize_grads=True
    )
    assert not bool(by_plain.any())
    target = (plain.detach() / 0.4).softmax(1)
    assert_close(by_changed, (changed.detach().softmax(1) - target) / 6)


def test_unsure_images_count_as_nothing_but_are_counted() -> None:
    # Largest p: 1/2 and 9/10, before sharpening.
    plain = torch.tensor([[0.0, 0.0], [math.log(9), 0.0]], dtype=F64)
    changed = normal(2, 2)
    settings = {"sharpening": 0.1}
    alone = losses.prediction_consistency(changed[1:], plain[1:], **settings)
    found = losses.prediction_consistency(changed, plain, confidence=0.8, **settings)
    assert_close(found, alone / 2)
    none = losses.prediction_consistency(changed, plain, confidence=0.95, **settings)
    assert float(none) == 0


# --- divergence from the prior ------------------------------------------------


def test_divergence_is_that_of_normals_with_the_moments_of_the_batch() -> None:
    vectors = 1.5 * normal(9, 4) + torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=F64)
    own = Normal(vectors.mean(0), vectors.std(0))
    prior = Normal(torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64))
    assert_close(losses.kl_to_standard_normal(vectors), kl_divergence(own, prior).sum())


@pytest.mark.parametrize(("variance", "truth"), [(4.0, 0.852), (0.25, 0.363)])
def test_sigma_of_eq_11_is_a_variance(variance: float, truth: float) -> None:
    """Errata M5, with mean 0.3: read as deviations the values are 0.198 and 0.142."""
    half = math.sqrt(variance / 2)  # two vectors: unbiased variance 2 half²
    vectors = torch.tensor([[0.3 + half], [0.3 - half]], dtype=F64)
    assert float(losses.kl_to_standard_normal(vectors)) == pytest.approx(
        truth, abs=6e-4
    )


def test_divergence_of_perfect_moments_has_neither_value_nor_slope() -> None:
    vectors = normal(20, 3)
    vectors = (vectors - vectors.mean(0)) / vectors.std(0)
    vectors.requires_grad_()
    found = losses.kl_to_standard_normal(vectors)
    (slope,) = torch.autograd.grad(found, vectors)
    assert_close(found.detach(), torch.zeros((), dtype=F64), atol=1e-14, rtol=0)
    assert_close(slope, torch.zeros_like(slope), atol=1e-14, rtol=0)


@pytest.mark.parametrize("size", [16, 64])
def test_divergence_of_a_standard_normal_batch(size: int) -> None:
    """½ d (1/B + 1/(B - 1)) on average, which the book states for B = 64."""
    dims = 30_000  # dimensions are independent: as many samples of one dimension
    found = float(losses.kl_to_standard_normal(normal(size, dims))) / dims
    # To first order; the next term is of the order of 1/B².
    assert found == pytest.approx(0.5 * (1 / size + 1 / (size - 1)), rel=1.5 / size)


def test_one_vector_has_no_variance() -> None:
    with pytest.raises(UserError, match="at least 2"):
        losses.kl_to_standard_normal(normal(1, 3))


# --- decorrelation ------------------------------------------------------------


def test_decorrelation_is_half_the_squares_off_the_diagonal() -> None:
    h = normal(7, 4, scale=2) + 3
    total = 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                left, right = h[:, i] - h[:, i].mean(), h[:, j] - h[:, j].mean()
                total += 0.5 * float((left * right).sum() / 7) ** 2
    assert float(losses.decorrelation(h)) == pytest.approx(total, rel=1e-12)


def test_decorrelation_of_uncorrelated_features_is_exactly_zero() -> None:
    h = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert float(losses.decorrelation(h)) == 0
    assert float(losses.decorrelation(h[:, :1])) == 0


def test_large_variances_do_not_drown_small_covariances() -> None:
    """In float32: a feature of variance 10⁸ beside two of variance 1 that agree."""
    first, second = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]])
    h = torch.stack([1e4 * first, second, second], 1)
    assert float(losses.decorrelation(h)) == 1


def test_decorrelation_grows_with_the_fourth_power_and_ignores_shifts() -> None:
    h = normal(8, 5)
    base = losses.decorrelation(h)
    assert float(base) > 0
    assert_close(losses.decorrelation(3 * h), 81 * base)
    assert_close(losses.decorrelation(h - 10), base)
