"""Losses of discriminator and generator: their optima, signs and extremes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from needsaug_lite import losses

F64 = torch.float64
counts = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8
).filter(lambda pairs: all(map(any, zip(*pairs, strict=True))))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=F64)


# --- least squares ------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(counts)
def test_the_best_discriminator_is_the_share_of_real(
    pairs: list[tuple[int, int]],
) -> None:
    """D*(f) = p/(p + p̃) on points that occur n and ñ times, found numerically."""
    real, fake = (torch.tensor(column) for column in zip(*pairs, strict=True))
    points = torch.arange(len(pairs))
    scores = torch.full((len(pairs),), 0.3, dtype=F64, requires_grad=True)

    def loss() -> Tensor:
        return losses.least_squares_discriminator(
            scores[points.repeat_interleave(real)],
            scores[points.repeat_interleave(fake)],
        )

    hessian = torch.autograd.functional.hessian(
        lambda d: losses.least_squares_discriminator(
            d[points.repeat_interleave(real)], d[points.repeat_interleave(fake)]
        ),
        scores.detach(),
    )
    (slope,) = torch.autograd.grad(loss(), scores)
    occurs = (real + fake) > 0
    best = (scores - torch.linalg.pinv(hessian) @ slope).detach()  # a quadratic form
    p, q = real / real.sum(), fake / fake.sum()
    assert_close(best[occurs], (p / (p + q))[occurs].double(), atol=1e-6, rtol=0)
    with torch.no_grad():
        scores.copy_(best)
    least = 0.5 * (p * q / (p + q))[occurs].sum()
    assert_close(loss().detach().float(), least)
    for _ in range(3):
        with torch.no_grad():
            scores.copy_(best + 0.1 * torch.randn(len(pairs), dtype=F64))
        assert float(loss().detach()) >= float(least) - 1e-6


def test_values_of_a_judge_who_is_right_undecided_or_wrong() -> None:
    real, fake = torch.ones(3, dtype=F64), torch.zeros(5, dtype=F64)
    judge, maker = losses.least_squares_discriminator, losses.least_squares_generator
    assert float(judge(real, fake)) == 0
    assert float(judge(real / 2, fake + 0.5)) == 0.25
    assert float(judge(1 - real, fake + 1)) == 1
    assert float(maker(fake)) == 0.5
    assert float(maker(fake + 1)) == 0
    # Two scores, one of them doubled: the means are of squares.
    assert float(maker(tensor([3.0, 0.0]))) == 0.5 * (4 + 1) / 2
    assert float(judge(tensor([3.0, 0.0]), tensor([2.0]))) == 0.5 * (2.5 + 4)


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(1e-3, 0.5))
def test_a_step_of_the_judge_goes_to_one_and_zero(
    real: float, fake: float, rate: float
) -> None:
    scores = tensor([real, fake]).requires_grad_()
    loss = losses.least_squares_discriminator(scores[:1], scores[1:])
    (slope,) = torch.autograd.grad(loss, scores)
    assert_close(slope, tensor([real - 1, fake]))
    ahead = scores.detach() - rate * slope
    assert abs(float(ahead[0]) - 1) <= abs(real - 1)
    assert abs(float(ahead[1])) <= abs(fake)


def test_a_step_of_the_generator_raises_the_score() -> None:
    """Undecided judge: ours goes up, the printed E[D(f̃)²] down (errata F1)."""
    direction = tensor([1.0, -2.0])
    shift = tensor([0.3, 0.0]).requires_grad_()
    fakes = tensor([0.1, 0.2, -0.1])[:, None] * torch.ones(2, dtype=F64)

    def score(shift: Tensor) -> Tensor:
        return (fakes + shift) @ direction

    start = float(score(shift).detach().mean())
    assert 0 < start < 1
    (ours,) = torch.autograd.grad(losses.least_squares_generator(score(shift)), shift)
    (printed,) = torch.autograd.grad(score(shift).square().mean(), shift)
    assert float(score(shift - 0.05 * ours).mean().detach()) > start
    assert float(score(shift - 0.05 * printed).mean().detach()) < start


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_printed_maximum_over_the_judge_does_not_exist(sign: int) -> None:
    """E[(1 - D)²] + E[D̃²] of Eq. 3 is twice what the judge has to *minimise*."""
    real, fake = tensor([0.2, 0.7]), tensor([0.4, -0.1, 0.3])
    values = []
    for size in (1e1, 1e3, 1e6):
        scores = real + sign * size, fake + sign * size
        printed = (1 - scores[0]).square().mean() + scores[1].square().mean()
        ours = losses.least_squares_discriminator(*scores)
        assert_close(printed, 2 * ours)
        values.append(float(printed))
    assert values == sorted(values)
    assert values[-1] > 1e12


def test_scores_of_any_shape() -> None:
    real, fake = torch.randn(2, 3, 4), torch.randn(5)
    one = losses.least_squares_discriminator(real, fake)
    assert one.shape == ()
    assert_close(one, losses.least_squares_discriminator(real.flatten(), fake[:, None]))


# --- misclassification --------------------------------------------------------


def some_logits(seed: int, rows: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=source, dtype=F64)
    return logits, torch.randint(classes, (rows,), generator=source)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 7))
def test_misclassification_is_the_surprise_at_another_class(
    seed: int, classes: int
) -> None:
    logits, labels = some_logits(seed, classes=classes)
    logits.requires_grad_()
    p = logits.softmax(1)
    own = p.gather(1, labels[:, None]).squeeze(1)
    found = losses.misclassification(logits, labels)
    expected = -torch.log1p(-own).mean()
    assert_close(found, expected)
    (slope,) = torch.autograd.grad(found, logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    assert_close(slope, wanted)
    moved = losses.misclassification(logits + 50 * torch.randn(6, 1), labels)
    assert_close(moved, found)


def test_two_classes_at_even_odds_cost_one_bit() -> None:
    found = losses.misclassification(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    assert float(found) == pytest.approx(math.log(2))


@pytest.mark.parametrize("margin", [20.0, 100.0, 1e4])
def test_a_sure_classifier_still_gives_a_direction(margin: float) -> None:
    """Single precision, p_y rounds to 1: log(1 - p_y) is lost, log p_y is flat."""
    logits = torch.tensor([[margin, 0.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0])
    found = losses.misclassification(logits, labels)
    (slope,) = torch.autograd.grad(found, logits)
    assert float(found) == pytest.approx(margin - math.log(2), rel=1e-6)
    assert_close(slope, torch.tensor([[1.0, -0.5, -0.5]]))
    (flat,) = torch.autograd.grad(logits.log_softmax(1)[0, 0], logits)
    assert float(flat.abs().max()) < 1e-6


@pytest.mark.parametrize("margin", [20.0, 1e4])
def test_a_feature_taken_for_another_class_is_left_alone(margin: float) -> None:
    logits = torch.tensor([[-margin, 0.0, 0.0]], requires_grad=True)
    found = losses.misclassification(logits, torch.tensor([0]))
    (slope,) = torch.autograd.grad(found, logits)
    assert 0 <= float(found) < 1e-6
    assert float(slope.abs().max()) < 1e-6


def test_no_step_waits_for_the_device() -> None:
    """A "meta" tensor has no values: reading one, as `.item()` does, raises."""
    logits = torch.ones(6, 4, device="meta", requires_grad=True)
    labels = torch.zeros(6, dtype=torch.int64, device="meta")
    losses.misclassification(logits, labels).backward()
    losses.least_squares_generator(logits).backward()
    losses.least_squares_discriminator(logits, logits).backward()


# --- binary cross-entropy and hinge -------------------------------------------


@settings(deadline=None)
@given(st.floats(0.01, 5), st.floats(0.01, 5))
def test_the_best_binary_judge_is_the_share_of_real(p: float, q: float) -> None:
    """At σ(D) = p/(p + q) the slope of p·softplus(-D) + q·softplus(D) is 0."""

    def loss(score: Tensor) -> Tensor:
        weights = tensor([p, q])
        none = score.new_full((1,), -torch.inf)  # contributes softplus(-inf) = 0
        real = losses.binary_discriminator(score, none)
        fake = losses.binary_discriminator(-none, score)
        return weights @ torch.stack([real, fake])

    best = tensor([math.log(p / q)]).requires_grad_()
    (slope,) = torch.autograd.grad(loss(best), best)
    assert_close(slope, torch.zeros(1, dtype=F64))
    assert_close(best.sigmoid(), tensor([p / (p + q)]))
    least = float(loss(best).detach())
    for other in (-0.3, 0.2):
        assert float(loss(best.detach() + other)) > least


@settings(deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=1, max_size=6), st.floats(-8, 8))
def test_binary_losses_are_negative_log_likelihoods(
    reals: list[float], fake: float
) -> None:
    real_scores, fake_scores = tensor(reals), tensor([fake, -1.0])
    expected = -real_scores.sigmoid().log().mean()
    expected = expected - (1 - fake_scores.sigmoid()).log().mean()
    assert_close(losses.binary_discriminator(real_scores, fake_scores), expected)
    found = losses.non_saturating_generator(fake_scores)
    assert_close(found, -fake_scores.sigmoid().log().mean())


def test_a_judge_without_an_opinion_pays_two_bits() -> None:
    none = torch.zeros(3, dtype=F64)
    found = losses.binary_discriminator(none, none)
    assert float(found) == pytest.approx(2 * math.log(2))
    assert float(losses.non_saturating_generator(none)) == pytest.approx(math.log(2))


def test_a_sure_judge_still_gives_the_generator_a_direction() -> None:
    scores = torch.tensor([-200.0], requires_grad=True)
    (ours,) = torch.autograd.grad(losses.non_saturating_generator(scores), scores)
    (saturated,) = torch.autograd.grad((1 - scores.sigmoid()).log().mean(), scores)
    assert float(ours) == -1
    assert float(saturated) == 0


def test_hinge_values() -> None:
    judge = losses.hinge_discriminator
    sure, zero = tensor([1.0, 3.0]), torch.zeros(2, dtype=F64)
    assert float(judge(sure, -sure)) == 0
    assert float(judge(zero, zero)) == 2
    assert float(judge(-sure, sure)) == 6  # (2 + 4) / 2 twice
    assert float(judge(tensor([0.5, 2.0]), tensor([-0.25, -7.0]))) == 0.25 + 0.375
    assert float(losses.hinge_generator(tensor([3.0, -1.0]))) == -1


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_hinge_pushes_only_inside_the_margin(real: float, fake: float) -> None:
    scores = tensor([real, fake]).requires_grad_()
    loss = losses.hinge_discriminator(scores[:1], scores[1:])
    (slope,) = torch.autograd.grad(loss, scores)
    if real != 1 and fake != -1:  # the corners have no derivative
        assert_close(slope, tensor([-float(real < 1), float(fake > -1)]))


@pytest.mark.parametrize(
    "loss", [losses.non_saturating_generator, losses.hinge_generator]
)
def test_a_generator_step_raises_every_score(loss: Callable[[Tensor], Tensor]) -> None:
    """What needs_aware's errata N1 asks for."""
    scores = tensor([-2.0, 0.0, 3.0]).requires_grad_()
    (slope,) = torch.autograd.grad(loss(scores), scores)
    assert bool((slope < 0).all())


def test_no_image_loss_waits_for_the_device() -> None:
    scores = torch.ones(6, device="meta", requires_grad=True)
    total = (
        losses.binary_discriminator(scores, scores)
        + losses.hinge_discriminator(scores, scores)
        + losses.non_saturating_generator(scores)
        + losses.hinge_generator(scores)
    )
    (slope,) = torch.autograd.grad(total, scores)
    assert slope.shape == (6,)
