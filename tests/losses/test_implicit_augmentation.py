"""IADA losses: limits, the literal formula, derivatives of two orders, the bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import literal_iada as literal
from helpers.literal_iada import Problem
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, linear, one_hot
from torch.testing import assert_close

from needsaug_lite import hypergrad, losses

# More samples than classes, with repeated labels, and fewer.
SIZES = {"C < N": (30, 7, 5), "C = N": (8, 8, 3), "C > N": (6, 20, 4)}
FORMS = {"full": True, "diagonal": False}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return SIZES[request.param]


@pytest.fixture(params=FORMS)
def full(request: pytest.FixtureRequest) -> bool:
    return FORMS[request.param]


@pytest.fixture
def problem(size: tuple[int, int, int], full: bool) -> Problem:
    return literal.draw(*size, full=full)


def clean_logits(problem: Problem) -> Tensor:
    return linear(problem.features, problem.head_weight, problem.head_bias)


def clean_losses(problem: Problem) -> Tensor:
    return cross_entropy(clean_logits(problem), problem.labels, reduction="none")


def without_shift(problem: Problem) -> Problem:
    return problem._replace(epsilon=torch.zeros_like(problem.epsilon))


def iada(problem: Problem, alpha: float = 0.5, beta: float = 1.0) -> Tensor:
    return losses.iada(*problem, alpha=alpha, beta=beta, reduction="none")


def rho(problem: Problem) -> Tensor:
    return losses.half_variance(problem.labels, problem.head_weight, problem.covariance)


def leaves(problem: Problem, *names: str) -> tuple[Problem, list[Tensor]]:
    """The problem with leaves in place of what is named."""
    new = {name: getattr(problem, name).detach().requires_grad_() for name in names}
    return problem._replace(**new), list(new.values())


# Limits


def test_without_shift_spread_and_prior_it_is_cross_entropy(problem: Problem) -> None:
    got = iada(without_shift(problem), alpha=0.0, beta=0.0)
    assert_close(got, clean_losses(problem))


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_prior_alone_is_logit_adjustment(problem: Problem, beta: float) -> None:
    expected = losses.logit_adjusted(
        clean_logits(problem),
        problem.labels,
        class_prior=problem.class_prior,
        tau=beta,
        reduction="none",
    )
    assert_close(iada(without_shift(problem), alpha=0.0, beta=beta), expected)


@pytest.mark.parametrize("alpha", [0.5, 1.3])
def test_the_spread_alone_is_isda(problem: Problem, alpha: float) -> None:
    """log Σ_j exp(Δwᵀh + Δb + α/2 ΔwᵀΣΔw), sample by sample and class by class."""
    h, y, weight, bias, covariance, _, _ = problem
    expected = []
    for i, own in enumerate(y):
        change = weight - weight[own]
        sigma = covariance[own]
        sigma = sigma if sigma.ndim == 2 else sigma.diag()
        spread = torch.stack([0.5 * w @ sigma @ w for w in change])
        terms = change @ h[i] + bias - bias[own] + alpha * spread
        expected.append(terms.logsumexp(0))
    got = iada(without_shift(problem), alpha=alpha, beta=0.0)
    assert_close(got, torch.stack(expected))


def test_no_bias_is_a_bias_of_zero(problem: Problem) -> None:
    zero = torch.zeros_like(problem.head_bias)
    h, y, weight, _, *others = problem
    assert_close(
        losses.iada(h, y, weight, None, *others),
        losses.iada(h, y, weight, zero, *others),
    )


# The literal formula


@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradients_are_those_of_the_literal_formula(
    size: tuple[int, int, int], full: bool, seed: int
) -> None:
    names = ["features", "head_weight", "head_bias", "covariance", "epsilon"]
    problem, free = leaves(literal.draw(*size, full=full, seed=seed), *names)
    weight = torch.rand(len(problem.labels), dtype=torch.float64)
    for alpha, beta in [(0.5, 1.0), (1.7, -0.4)]:
        got = iada(problem, alpha, beta)
        expected = literal.iada(problem, alpha, beta)
        assert_close(got, expected)
        # Another weight for each sample: no gradient hides in a mean.
        found = torch.autograd.grad((weight * got).sum(), free)
        wanted = torch.autograd.grad((weight * expected).sum(), free)
        assert_close(found, wanted)


def test_a_full_covariance_made_of_a_diagonal_is_the_diagonal_form(
    size: tuple[int, int, int],
) -> None:
    names = ["features", "head_weight", "epsilon", "covariance"]
    thin, free = leaves(literal.draw(*size, full=False), *names)
    thick, others = leaves(
        thin._replace(covariance=thin.covariance.diag_embed()), *names
    )
    assert_close(iada(thick), iada(thin))
    gradients = torch.autograd.grad(iada(thin).sum(), free)
    found = torch.autograd.grad(iada(thick).sum(), others)
    assert_close(found[:-1], gradients[:-1])
    assert_close(found[-1].diagonal(dim1=1, dim2=2), gradients[-1])


# Half the variance


def test_each_gradient_to_a_full_covariance_is_half_an_outer_product(
    size: tuple[int, int, int],
) -> None:
    problem, (sigma,) = leaves(literal.draw(*size, full=True), "covariance")
    table = rho(problem)
    for i, own in enumerate(problem.labels[:3]):
        for j in range(problem.head_weight.shape[0]):
            (found,) = torch.autograd.grad(table[i, j], sigma, retain_graph=True)
            change = problem.head_weight[j] - problem.head_weight[own]
            expected = torch.zeros_like(found)
            expected[own] = 0.5 * change.outer(change)
            assert_close(found, expected)
            # So that a step on Σ leaves it symmetric.
            assert_close(found, found.mT, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_cancellation_leaves_half_variances_right_in_single_precision(
    size: tuple[int, int, int], full: bool, offset: float, seed: int
) -> None:
    """Weights of size 100 around a common offset of 10,000."""
    problem = literal.draw(*size, full=full, seed=seed, dtype=torch.float32)
    common = offset * torch.linspace(-1, 1, size[2])
    problem = problem._replace(head_weight=100 * problem.head_weight + common)
    got = rho(problem)
    own = one_hot(problem.labels, size[1]).bool()
    assert bool((got[own] == 0).all())
    assert bool((got >= 0).all())
    exact = literal.half_variance(
        problem.labels, problem.head_weight.double(), problem.covariance.double()
    )
    assert_close(got.double(), exact, rtol=1e-4, atol=0)


def test_a_class_with_the_weights_of_the_label_has_half_variance_zero(
    problem: Problem,
) -> None:
    twins = problem.head_weight.float().clone()
    twins[1:] = twins[0]
    twins[-1] += 100
    sigma = problem.covariance.float()
    got = losses.half_variance(problem.labels.clamp(max=1), twins, sigma)
    largest = float(got.max())
    assert largest > 1
    zero = torch.zeros_like(got[:, :-1])
    assert_close(got[:, :-1], zero, rtol=0, atol=1e-6 * largest)


def test_a_constant_added_to_all_rows_of_the_head_changes_nothing(
    problem: Problem,
) -> None:
    common = 5 * torch.randn(problem.head_weight.shape[1], dtype=torch.float64)
    moved = problem._replace(head_weight=problem.head_weight + common)
    assert_close(rho(moved), rho(problem))
    assert_close(iada(moved), iada(problem))


def test_renaming_the_classes_changes_nothing(problem: Problem) -> None:
    order = torch.randperm(len(problem.class_prior))
    renamed = problem._replace(
        labels=order.argsort()[problem.labels],
        head_weight=problem.head_weight[order],
        head_bias=problem.head_bias[order],
        covariance=problem.covariance[order],
        class_prior=problem.class_prior[order],
    )
    assert_close(rho(renamed), rho(problem)[:, order])
    assert_close(iada(renamed), iada(problem))


# Direction and shift


def direction(problem: Problem) -> Tensor:
    h, y, weight, bias, *_ = problem
    return losses.perturbation_direction(h, y, weight, bias)


def test_the_direction_is_the_sign_of_the_gradient_and_has_no_graph(
    problem: Problem,
) -> None:
    problem, _ = leaves(problem, "features", "head_weight", "head_bias")
    got = direction(problem)
    assert torch.equal(got, literal.direction(problem))
    assert not got.requires_grad


def test_the_sign_of_zero_is_zero(problem: Problem) -> None:
    weight = problem.head_weight.clone()
    weight[:, 1] = 0.0
    problem = problem._replace(head_weight=weight)
    moved = direction(problem)
    assert bool((moved[:, 1] == 0).all())
    assert bool((moved[:, 0].abs() == 1).all())


def test_a_small_shift_raises_or_lowers_every_loss_by_its_sign(
    problem: Problem,
) -> None:
    clean = clean_losses(problem)
    size = 1e-4 * problem.epsilon.abs()
    harder = iada(problem._replace(epsilon=size), alpha=0.0, beta=0.0)
    easier = iada(problem._replace(epsilon=-size), alpha=0.0, beta=0.0)
    assert bool((harder > clean).all())
    assert bool((easier < clean).all())


def test_the_slope_by_epsilon_is_the_l1_norm_of_the_feature_gradient(
    problem: Problem,
) -> None:
    problem, (epsilon, h) = leaves(without_shift(problem), "epsilon", "features")
    total = iada(problem, alpha=0.0, beta=0.0).sum()
    slope, gradient = torch.autograd.grad(total, [epsilon, h])
    assert_close(slope, gradient.abs().sum(1))


# Terms of first order


def expansion(problem: Problem) -> losses.FirstOrderTerms:
    return losses.first_order_terms(*problem)


def scaled(problem: Problem, t: float, term: str) -> Tensor:
    """The loss with one of its three parts at strength t, and the others off."""
    part = {"generalisation": "alpha", "fairness": "beta"}.get(term)
    if part is None:
        problem = problem._replace(epsilon=t * problem.epsilon)
        return iada(problem, alpha=0.0, beta=0.0)
    return iada(without_shift(problem), **{"alpha": 0.0, "beta": 0.0, part: t})


@pytest.mark.parametrize("term", losses.FirstOrderTerms._fields)
def test_each_term_is_a_derivative_of_the_loss(problem: Problem, term: str) -> None:
    t = 1e-5
    difference = (scaled(problem, t, term) - scaled(problem, -t, term)) / (2 * t)
    assert_close(getattr(expansion(problem), term), difference, rtol=1e-6, atol=1e-8)


def test_what_the_three_terms_leave_shrinks_with_the_square(problem: Problem) -> None:
    terms = expansion(problem)

    def left(t: float) -> float:
        part = terms.robustness + 0.5 * terms.generalisation - terms.fairness
        loss = iada(problem._replace(epsilon=t * problem.epsilon), 0.5 * t, -t)
        return float((loss - clean_losses(problem) - t * part).norm())

    assert left(1e-3) / left(5e-4) == pytest.approx(4, rel=0.02)


def test_robustness_is_epsilon_times_the_l1_norm(problem: Problem) -> None:
    problem, (h,) = leaves(problem, "features")
    (gradient,) = torch.autograd.grad(clean_losses(problem).sum(), h)
    expected = problem.epsilon * gradient.abs().sum(1)
    assert_close(expansion(problem).robustness, expected)


# Second derivatives, and a virtual step


def virtual_step(problem: Problem, loss: Callable[[Problem], Tensor]) -> Tensor:
    """Cross-entropy of other features after a step of the head on `loss`."""
    leaf, free = leaves(problem, "head_weight", "head_bias")
    gradients = torch.autograd.grad(loss(leaf).mean(), free, create_graph=True)
    weight, bias = (p - 0.3 * g for p, g in zip(free, gradients, strict=True))
    return cross_entropy(linear(problem.features.flip(0), weight, bias), problem.labels)


@pytest.mark.parametrize("size", [(5, 3, 2), (3, 5, 2)])
def test_derivatives_of_both_orders_are_those_of_finite_differences(
    size: tuple[int, int, int], full: bool
) -> None:
    problem = literal.draw(*size, full=full)
    free = tuple(
        t.clone().requires_grad_() for t in (problem.covariance, problem.epsilon)
    )

    def stepped(covariance: Tensor, epsilon: Tensor) -> Tensor:
        changed = problem._replace(covariance=covariance, epsilon=epsilon)
        return virtual_step(changed, iada)

    def loss(covariance: Tensor, epsilon: Tensor, weight: Tensor) -> Tensor:
        changed = (covariance, epsilon, weight)
        names = ("covariance", "epsilon", "head_weight")
        return iada(problem._replace(**dict(zip(names, changed, strict=True))))

    # δ is constant in pieces; the head stays within one of them.
    weight = problem.head_weight.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (*free, weight))
    assert torch.autograd.gradgradcheck(loss, (*free, weight))
    assert torch.autograd.gradcheck(stepped, free)
    assert torch.autograd.gradgradcheck(stepped, free)


def test_a_hypergradient_is_that_of_the_literal_formula(problem: Problem) -> None:
    """A network's virtual step, by `unrolled`; ε and Σ are what is learned."""
    size = problem.features.shape[1]
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(3, size), torch.nn.Tanh()).double()
    head = torch.nn.Linear(size, len(problem.class_prior)).double()
    model = torch.nn.ModuleDict({"body": body, "head": head})
    images = torch.randn(len(problem.labels), 3, dtype=torch.float64)
    params = dict(model.named_parameters())
    hparams = {"epsilon": problem.epsilon, "covariance": problem.covariance}
    Loss = Callable[[Problem], Tensor]

    def features(params: dict[str, Tensor]) -> Tensor:
        inside = {
            k.removeprefix("body."): v
            for k, v in params.items()
            if k.startswith("body.")
        }
        found: Tensor = functional_call(body, inside, images)
        return found

    def inner(loss: Loss) -> Callable[[Any, Any], Tensor]:
        def closure(params: dict[str, Tensor], hparams: dict[str, Tensor]) -> Tensor:
            current = problem._replace(
                features=features(params),
                head_weight=params["head.weight"],
                head_bias=params["head.bias"],
                **hparams,
            )
            return loss(current).mean()

        return closure

    def outer(params: Any, hparams: Any) -> Tensor:
        logits = linear(
            features(params).flip(0), params["head.weight"], params["head.bias"]
        )
        return cross_entropy(logits, problem.labels)

    def found(loss: Loss) -> hypergrad.Hypergradient:
        return hypergrad.unrolled(inner(loss), outer, params, hparams, lr=0.5)

    got, expected = found(iada), found(literal.iada)
    for name in hparams:
        assert_close(got[name], expected[name])
        assert float(got[name].abs().max()) > 1e-7
    transformed = torch.func.grad(inner(iada), argnums=1)(params, hparams)
    wanted = torch.func.grad(inner(literal_without_graph), argnums=1)(params, hparams)
    assert_close(transformed, wanted)


def literal_without_graph(problem: Problem) -> Tensor:
    """The literal formula for torch.func, inside which autograd.grad has no place."""
    h, y, weight, bias, covariance, epsilon, prior = problem
    gradient = torch.func.grad(
        lambda x: cross_entropy(linear(x, weight, bias), y, reduction="sum")
    )(h)
    moved = h + epsilon[:, None] * gradient.detach().sign()
    spread = literal.half_variance(y, weight, covariance)
    logits = linear(moved, weight, bias) + 0.5 * spread + prior.log()
    return cross_entropy(logits, y, reduction="none")


# The bound


def sampled_losses(problem: Problem, alpha: float, draws: int, seed: int) -> Tensor:
    """Cross-entropy of drawn copies h̃ ~ N(h + δ, α Σ_y), shape (draws, N)."""
    h, y, weight, bias, covariance, epsilon, _ = problem
    source = torch.Generator().manual_seed(seed)
    noise = torch.randn((draws, *h.shape), generator=source, dtype=h.dtype)
    if covariance.ndim == 3:
        spread = torch.einsum(
            "tnd,ned->tne", noise, torch.linalg.cholesky(covariance)[y]
        )
    else:
        spread = noise * covariance[y].sqrt()
    copies = h + epsilon[:, None] * literal.direction(problem) + alpha**0.5 * spread
    logits = linear(copies, weight, bias)
    own = logits.gather(2, y.expand(draws, -1)[:, :, None]).squeeze(2)
    found: Tensor = logits.logsumexp(2) - own
    return found


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def weights(problem: Problem) -> Tensor:
    """1 / (C π_y) of every sample."""
    prior = problem.class_prior
    return 1 / (len(prior) * prior[problem.labels])


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_the_weighted_loss_lies_above_what_drawn_copies_cost(
    full: bool, alpha: float, seed: int
) -> None:
    problem = literal.draw(6, 5, 3, full=full, seed=seed)
    drawn = sampled_losses(problem, alpha, 20_000, seed)
    mean, error = mean_and_error((drawn * weights(problem)).mean(1))
    bound = float(losses.iada_weighted(*problem, alpha=alpha))
    assert bound > mean + 4 * error


@pytest.mark.parametrize("seed", range(8))
def test_the_bound_is_the_logarithm_of_a_mean(full: bool, seed: int) -> None:
    """E[exp ℓ(h̃)] = exp(L) per sample (Eq. 4), for a spread with a light tail."""
    problem = literal.draw(6, 5, 3, full=full, seed=seed)
    problem = problem._replace(covariance=0.1 * problem.covariance)
    drawn = sampled_losses(problem, 0.5, 100_000, seed).exp()
    exact = iada(problem, alpha=0.5, beta=0.0).exp()
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert bool(((drawn.mean(0) - exact).abs() < 5 * error).all())


def test_without_spread_the_bound_is_an_equality(problem: Problem) -> None:
    drawn = sampled_losses(problem, 0.0, 2, 0)[0]
    got = losses.iada_weighted(*problem, alpha=0.0)
    assert_close(got, (drawn * weights(problem)).mean())


def test_with_the_prior_in_the_logits_it_is_no_bound() -> None:
    """99 images of one class, 1 of another, all at one point: Eq. 6 is far below."""
    count, prior = torch.tensor([99, 1]), torch.tensor([0.99, 0.01]).double()
    problem = Problem(
        features=torch.zeros(100, 1, dtype=torch.float64),
        labels=torch.arange(2).repeat_interleave(count),
        head_weight=torch.tensor([[0.1], [-0.1]]).double(),
        head_bias=torch.zeros(2, dtype=torch.float64),
        covariance=torch.ones(2, 1, dtype=torch.float64),
        epsilon=torch.zeros(100, dtype=torch.float64),
        class_prior=prior,
    )
    drawn = sampled_losses(problem, 0.5, 2000, 0)
    printed = float(iada(problem).mean())
    for weight in (weights(problem), torch.ones(100)):
        mean, error = mean_and_error((drawn * weight).mean(1))
        assert printed < mean - 10 * error
    assert float(losses.iada_weighted(*problem)) > mean


# Weights, reductions, refusals


def test_weights_are_one_over_classes_and_prior(problem: Problem) -> None:
    got = losses.iada_weighted(*problem, alpha=0.7, reduction="none")
    assert_close(got, weights(problem) * iada(problem, alpha=0.7, beta=0.0))


def test_equal_classes_have_weight_one(problem: Problem) -> None:
    uniform = torch.full_like(problem.class_prior, 1 / len(problem.class_prior))
    problem = problem._replace(class_prior=uniform)
    assert_close(losses.iada_weighted(*problem), losses.iada(*problem))


@pytest.mark.parametrize("loss", [losses.iada, losses.iada_weighted])
def test_reductions_agree_with_the_single_losses(
    problem: Problem, loss: Callable[..., Tensor]
) -> None:
    single = loss(*problem, reduction="none")
    assert single.shape == problem.labels.shape
    assert_close(loss(*problem), single.mean())
    assert_close(loss(*problem, reduction="sum"), single.sum())


CALLS = [losses.iada, losses.iada_weighted, losses.first_order_terms]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", [(1,), (31,), (30, 1), ()])
def test_one_epsilon_for_each_sample_is_asked_for(
    call: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    problem = literal.draw(30, 7, 5, full=True)
    wrong = problem._replace(epsilon=torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="epsilon has shape.*30 samples"):
        call(*wrong)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", [(7,), (5, 5), (6, 5), (7, 5, 4), (30, 5, 5), (5, 7)])
def test_a_covariance_of_another_shape_is_refused(
    call: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    problem = literal.draw(30, 7, 5, full=True)
    wrong = problem._replace(covariance=torch.ones(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"must be \(7, 5, 5\).*diagonal.*\(7, 5\)"):
        call(*wrong)


@pytest.mark.parametrize("size", [1, 6, 8])
@pytest.mark.parametrize(
    "call", [losses.iada, losses.iada_weighted, losses.first_order_terms]
)
def test_a_prior_of_another_length_is_refused(
    call: Callable[..., Any], size: int
) -> None:
    problem = literal.draw(30, 7, 5, full=True)
    prior = torch.full((size,), 1 / size, dtype=torch.float64)
    with pytest.raises(ValueError, match="each of the 7 classes"):
        call(*problem._replace(class_prior=prior))
