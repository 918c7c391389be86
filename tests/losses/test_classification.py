"""Losses that know the class sizes: limits, closed forms, invariances, gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from needsaug_lite import losses

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
COUNTS = torch.tensor([500, 120, 31, 9, 2])
PRIOR = COUNTS.double() / COUNTS.sum()
MARGINS = losses.ldam_margins(COUNTS).double()


def draw(batch: int = 64, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(
        batch, len(COUNTS), generator=source, dtype=torch.float64
    )
    return logits, torch.randint(len(COUNTS), (batch,), generator=source)


# Every loss as a function of logits, labels and counts, one number per sample.
LOSSES: dict[str, Loss] = {
    "cross_entropy": lambda f, y, n: losses.cross_entropy(f, y, reduction="none"),
    "weighted": lambda f, y, n: losses.cross_entropy(
        f,
        y,
        class_weight=losses.class_balanced_weights(n, 0.999).double(),
        reduction="none",
    ),
    "focal": lambda f, y, n: losses.focal(f, y, gamma=2.0, reduction="none"),
    "ldam": lambda f, y, n: losses.ldam(
        f, y, margins=losses.ldam_margins(n).double(), scale=4.0, reduction="none"
    ),
    "logit_adjusted": lambda f, y, n: losses.logit_adjusted(
        f, y, class_prior=n.double() / n.sum(), tau=0.7, reduction="none"
    ),
    "class_dependent_temperature": lambda f, y, n: losses.class_dependent_temperature(
        f, y, counts=n.double(), gamma=0.3, reduction="none"
    ),
    "vector_scaling": lambda f, y, n: losses.vector_scaling(
        f, y, counts=n.double(), gamma=0.2, tau=1.2, reduction="none"
    ),
}
SHIFT_INVARIANT = ["cross_entropy", "weighted", "focal", "ldam", "logit_adjusted"]


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    logits, labels = draw(batch=6)
    assert torch.autograd.gradcheck(
        lambda f: LOSSES[name](f, labels, COUNTS), logits.requires_grad_()
    )


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_a_constant_added_to_all_logits_changes_nothing(name: str) -> None:
    logits, labels = draw()
    shift = torch.randn(len(logits), 1, dtype=torch.float64)
    loss = LOSSES[name]
    assert_close(loss(logits + shift, labels, COUNTS), loss(logits, labels, COUNTS))


def test_with_factors_the_free_direction_is_one_over_the_factor() -> None:
    logits, labels = draw()
    factor = (COUNTS.double() / COUNTS.max()) ** 0.2
    shift = torch.randn(len(logits), 1, dtype=torch.float64) / factor
    loss = LOSSES["vector_scaling"]
    assert_close(loss(logits + shift, labels, COUNTS), loss(logits, labels, COUNTS))
    plain = torch.ones_like(shift)
    assert not torch.allclose(
        loss(logits + plain, labels, COUNTS), loss(logits, labels, COUNTS)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_renaming_the_classes_changes_nothing(name: str) -> None:
    logits, labels = draw()
    order = torch.tensor([3, 0, 4, 1, 2])
    renamed = torch.argsort(order)[labels]
    loss = LOSSES[name]
    assert_close(
        loss(logits[:, order], renamed, COUNTS[order]), loss(logits, labels, COUNTS)
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e3, 1e5])
def test_extreme_logits_give_finite_losses_and_gradients(
    name: str, size: float
) -> None:
    logits = torch.tensor([[size, -size, 0, 0, 0], [-size, 0, 0, 0, size]]).double()
    for labels in (torch.tensor([0, 4]), torch.tensor([1, 0])):
        leaf = logits.clone().requires_grad_()
        loss = LOSSES[name](leaf, labels, COUNTS)
        loss.sum().backward()
        assert leaf.grad is not None
        assert bool(loss.isfinite().all())
        assert bool((loss >= 0).all())
        assert bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
def test_a_larger_logit_of_the_label_never_raises_the_loss(name: str) -> None:
    logits, labels = draw()
    steps = torch.linspace(-6, 6, 25, dtype=torch.float64)
    index = torch.arange(len(labels))
    curve = []
    for step in steps:
        moved = logits.clone()
        moved[index, labels] += step
        curve.append(LOSSES[name](moved, labels, COUNTS))
    assert bool((torch.stack(curve).diff(dim=0) < 0).all())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_agree_with_the_single_losses(reduction: str) -> None:
    logits, labels = draw()
    weight = losses.class_balanced_weights(COUNTS).double()
    single = losses.cross_entropy(logits, labels, class_weight=weight, reduction="none")
    whole = single.sum() / (weight[labels].sum() if reduction == "mean" else 1)
    got = losses.cross_entropy(
        logits,
        labels,
        class_weight=weight,
        reduction=reduction,  # type: ignore[arg-type]
    )
    assert_close(got, whole)


# Weights


@given(
    counts=st.lists(st.integers(1, 10_000), min_size=2, max_size=20),
    beta=st.floats(0, 0.99999),
)
def test_class_balanced_weights_add_to_the_number_of_classes(
    counts: list[int], beta: float
) -> None:
    weights = losses.class_balanced_weights(torch.tensor(counts), beta)
    assert_close(float(weights.sum()), float(len(counts)), rtol=1e-5, atol=0)
    order = torch.argsort(torch.tensor(counts))
    # A rarer class never weighs less.
    assert bool((weights[order].diff() <= 1e-6).all())


def test_class_balanced_weights_follow_the_effective_number() -> None:
    beta = 0.99
    effective = torch.tensor(
        [sum(beta**k for k in range(n)) for n in COUNTS.tolist()], dtype=torch.float64
    )
    expected = len(COUNTS) / effective / (1 / effective).sum()
    got = losses.class_balanced_weights(COUNTS, beta)
    assert_close(got.double(), expected, rtol=1e-6, atol=0)


def test_beta_zero_gives_equal_weights() -> None:
    assert_close(losses.class_balanced_weights(COUNTS, 0.0), torch.ones(len(COUNTS)))


def test_beta_near_one_gives_weights_in_proportion_to_one_over_n() -> None:
    inverse = 1 / COUNTS.double()
    expected = len(COUNTS) * inverse / inverse.sum()
    got = losses.class_balanced_weights(COUNTS, 1 - 1e-9)
    assert_close(got.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("beta", [-0.1, 1.0, 1.5])
def test_an_impossible_beta_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        losses.class_balanced_weights(COUNTS, beta)


def test_a_class_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        losses.class_balanced_weights(torch.tensor([5, 0]))


# Limits: each loss contains cross-entropy, and the larger ones contain the smaller


def test_focal_without_focusing_is_cross_entropy() -> None:
    logits, labels = draw()
    assert_close(
        losses.focal(logits, labels, gamma=0.0), losses.cross_entropy(logits, labels)
    )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_against_its_formula(gamma: float) -> None:
    logits, labels = draw()
    p = logits.softmax(1)[torch.arange(len(labels)), labels]
    expected = -((1 - p) ** gamma) * p.log()
    got = losses.focal(logits, labels, gamma=gamma, reduction="none")
    assert_close(got, expected)


def test_focal_weights_multiply_and_its_mean_counts_samples() -> None:
    logits, labels = draw()
    weight = torch.rand(len(COUNTS), dtype=torch.float64)
    single = losses.focal(logits, labels, reduction="none")
    got = losses.focal(logits, labels, class_weight=weight)
    assert_close(got, (weight[labels] * single).mean())


def test_logit_adjustment_without_strength_is_cross_entropy() -> None:
    logits, labels = draw()
    got = losses.logit_adjusted(logits, labels, class_prior=PRIOR, tau=0.0)
    assert_close(got, losses.cross_entropy(logits, labels))


def test_logit_adjustment_against_its_pairwise_formula() -> None:
    logits, labels = draw()
    tau = 0.7
    ratio = (PRIOR[None, :] / PRIOR[labels, None]) ** tau
    gaps = logits - logits.gather(1, labels[:, None])
    expected = (ratio * gaps.exp()).sum(1).log()
    got = losses.logit_adjusted(
        logits, labels, class_prior=PRIOR, tau=tau, reduction="none"
    )
    assert_close(got, expected)


def test_logit_adjustment_with_equal_classes_is_cross_entropy() -> None:
    logits, labels = draw()
    uniform = torch.full_like(PRIOR, 1 / len(PRIOR))
    got = losses.logit_adjusted(logits, labels, class_prior=uniform, tau=1.3)
    assert_close(got, losses.cross_entropy(logits, labels))


def test_vector_scaling_contains_logit_adjustment_temperature_and_neither() -> None:
    logits, labels = draw()
    counts = COUNTS.double()
    assert_close(
        losses.vector_scaling(logits, labels, counts=counts, gamma=0.0, tau=0.9),
        losses.logit_adjusted(logits, labels, class_prior=PRIOR, tau=0.9),
    )
    assert_close(
        losses.vector_scaling(logits, labels, counts=counts, gamma=0.4, tau=0.0),
        losses.class_dependent_temperature(logits, labels, counts=counts, gamma=0.4),
    )
    assert_close(
        losses.vector_scaling(logits, labels, counts=counts, gamma=0.0, tau=0.0),
        losses.cross_entropy(logits, labels),
    )


def test_temperature_damps_the_logits_of_rare_classes() -> None:
    counts = torch.tensor([100.0, 1.0], dtype=torch.float64)
    logits = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    got = losses.class_dependent_temperature(
        logits, torch.tensor([1]), counts=counts, gamma=0.5
    )
    # Factors 1 and 0.1: the rare class must learn a logit ten times as large.
    assert_close(got, torch.log1p(torch.tensor(2.0 - 0.3).double().exp()))


def test_vector_scaling_is_the_parametric_loss_of_autobalance() -> None:
    """autobalance Eq. 2.1 with w = 1, l = tau log pi."""
    logits, labels = draw()
    gamma, tau = 0.2, 1.2
    factor = (COUNTS.double() / COUNTS.max()) ** gamma
    scores = factor * logits + tau * PRIOR.log()
    own = scores.gather(1, labels[:, None])
    others = torch.ones_like(scores).scatter(1, labels[:, None], 0.0)
    expected = torch.log1p((others * (scores - own).exp()).sum(1))
    got = losses.vector_scaling(
        logits, labels, counts=COUNTS.double(), gamma=gamma, tau=tau, reduction="none"
    )
    assert_close(got, expected)


# Margins


def test_margins_follow_the_fourth_root_and_the_rarest_gets_the_largest() -> None:
    margins = losses.ldam_margins(COUNTS, 0.5).double()
    assert_close(margins.max(), torch.tensor(0.5).double())
    assert int(margins.argmax()) == int(COUNTS.argmin())
    constant = margins * COUNTS.double() ** 0.25
    assert_close(constant, constant[0].expand(len(COUNTS)), rtol=1e-6, atol=0)


def test_ldam_without_margins_is_cross_entropy() -> None:
    logits, labels = draw()
    got = losses.ldam(logits, labels, margins=torch.zeros_like(MARGINS))
    assert_close(got, losses.cross_entropy(logits, labels))


def test_ldam_against_its_formula() -> None:
    logits, labels = draw()
    scale = 7.0
    own = logits.gather(1, labels[:, None]).squeeze(1) - scale * MARGINS[labels]
    others = logits.exp().sum(1) - logits.gather(1, labels[:, None]).squeeze(1).exp()
    expected = -(own.exp() / (own.exp() + others)).log()
    got = losses.ldam(logits, labels, margins=MARGINS, scale=scale, reduction="none")
    assert_close(got, expected)


@given(first=st.floats(0, 0.5), more=st.floats(0.01, 0.5))
def test_a_larger_margin_never_lowers_the_loss(first: float, more: float) -> None:
    logits, labels = draw()
    margins = torch.full_like(MARGINS, first)
    small = losses.ldam(logits, labels, margins=margins, reduction="none")
    large = losses.ldam(logits, labels, margins=margins + more, reduction="none")
    assert bool((large > small).all())


# Fisher consistency: what the population minimiser predicts. All these losses are
# convex in the logits, so a point without slope is the minimiser.


def expected_loss(
    loss: Callable[[Tensor, Tensor], Tensor], posterior: Tensor, logits: Tensor
) -> Tensor:
    """sum_x sum_y p(y | x) loss(f(x), y)."""
    labels = [torch.full((len(logits),), k) for k in range(posterior.shape[1])]
    return torch.stack(
        [posterior[:, k] * loss(logits, y) for k, y in enumerate(labels)]
    ).sum()


def slope(
    loss: Callable[[Tensor, Tensor], Tensor], posterior: Tensor, logits: Tensor
) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_loss(loss, posterior, leaf), leaf)
    return gradient


@pytest.fixture
def likelihood() -> Tensor:
    """p(x | k) of 40 points x, shape (40, C)."""
    source = torch.Generator().manual_seed(3)
    shape = (40, len(COUNTS))
    free = torch.rand(shape, generator=source, dtype=torch.float64).pow(2) + 0.01
    return free / free.sum(0)


@pytest.fixture
def posterior(likelihood: Tensor) -> Tensor:
    """p(k | x), shape (40, C)."""
    joint = PRIOR * likelihood
    return joint / joint.sum(1, keepdim=True)


def adjusted(logits: Tensor, labels: Tensor) -> Tensor:
    return losses.logit_adjusted(logits, labels, class_prior=PRIOR, reduction="none")


def weighted(logits: Tensor, labels: Tensor) -> Tensor:
    return losses.cross_entropy(
        logits, labels, class_weight=1 / PRIOR, reduction="none"
    )


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    return losses.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("loss", [adjusted, weighted])
def test_population_minimiser_is_the_balanced_bayes_rule(
    loss: Callable[[Tensor, Tensor], Tensor], likelihood: Tensor, posterior: Tensor
) -> None:
    """f_k = log p(x | k) + any constant."""
    shift = torch.randn(len(likelihood), 1, dtype=torch.float64)
    best = likelihood.log() + shift
    zero = torch.zeros_like(best)
    assert_close(slope(loss, posterior, best), zero, rtol=0, atol=1e-12)
    assert not torch.allclose(slope(plain, posterior, best), zero, atol=1e-3)


def test_population_minimiser_of_cross_entropy_is_the_plain_bayes_rule(
    likelihood: Tensor, posterior: Tensor
) -> None:
    zero = torch.zeros_like(posterior)
    assert_close(slope(plain, posterior, posterior.log()), zero, rtol=0, atol=1e-12)
    # The two rules are different ones here.
    assert not torch.equal(posterior.argmax(1), likelihood.argmax(1))


def test_descent_on_the_adjusted_loss_finds_the_balanced_bayes_rule(
    likelihood: Tensor, posterior: Tensor
) -> None:
    likelihood, posterior = likelihood[:8], posterior[:8]
    logits = torch.zeros_like(posterior, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = expected_loss(adjusted, posterior, logits)
        total.backward()
        return total

    optimiser.step(closure)
    gap = logits.detach() - likelihood.log()
    assert_close(gap, gap.mean(1, keepdim=True).expand_as(gap), rtol=0, atol=1e-2)
    assert torch.equal(logits.argmax(1), likelihood.argmax(1))


def test_margins_move_prior_odds_by_less_than_a_factor_of_two() -> None:
    """LDAM isn't consistent: its two-class boundary has odds sigma(m_0)/sigma(m_1)."""
    margins = torch.tensor([0.3, 6.0], dtype=torch.float64)
    odds = torch.sigmoid(margins[0]) / torch.sigmoid(margins[1])
    posterior = torch.stack([1 / (1 + odds), odds / (1 + odds)]).unsqueeze(0)
    zero = torch.zeros(1, 2, dtype=torch.float64)

    def with_margins(logits: Tensor, labels: Tensor) -> Tensor:
        return losses.ldam(logits, labels, margins=margins, scale=1, reduction="none")

    assert_close(slope(with_margins, posterior, zero), zero, rtol=0, atol=1e-12)
    assert 0.5 < float(odds) < 2


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_where_the_sample_is_certain(gamma: float) -> None:
    logits = torch.tensor([[40.0, 0.0], [1.0, 0.0]], requires_grad=True)
    losses.focal(logits, torch.tensor([0, 0]), gamma=gamma).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_margins_of_an_empty_class_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        losses.ldam_margins(torch.tensor([10, 0]))
