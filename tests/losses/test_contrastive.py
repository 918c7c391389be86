"""Contrastive losses: double loop, another library, closed forms, what never occurs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.testing import assert_close

from needsaug_lite import losses

F64 = torch.float64
seeds = st.integers(0, 10**6)
sizes = st.integers(1, 9)
temperatures = st.floats(0.02, 5)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=dtype)


def drawn_labels(count: int, classes: int = 3, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed + 1)
    return torch.randint(classes, (count,), generator=source)


def unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt()


def double_loop(
    anchors: Tensor,
    anchor_labels: Tensor,
    real: Tensor,
    real_labels: Tensor,
    temperature: float,
) -> Tensor:
    """Eq. 4 with the resolution of errata F2, anchor by anchor."""
    points = [*anchors, *real]
    labels = [*anchor_labels.tolist(), *real_labels.tolist()]
    terms = []
    for i in range(len(anchors)):
        others = [a for a in range(len(points)) if a != i]
        weight = {
            a: (unit(points[i]) @ unit(points[a]) / temperature).exp() for a in others
        }
        total = sum(weight.values(), torch.zeros((), dtype=F64))
        positive = [a for a in others if labels[a] == labels[i]]
        if positive:
            surprise = [-(weight[p] / total).log() for p in positive]
            terms.append(torch.stack(surprise).mean())
    return torch.stack(terms).mean() if terms else torch.zeros((), dtype=F64)


def supervised_loop(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return double_loop(z, labels, z[:0], labels[:0], temperature)


def problem(
    count: int, real: int, seed: int, dim: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Generated and real projections of three classes, of unlike lengths."""
    length = 1 + 10 * torch.arange(count + real, dtype=F64)[:, None]
    points = normal(count + real, dim, seed=seed) * length
    labels = drawn_labels(count + real, seed=seed)
    return points[:count], labels[:count], points[count:], labels[count:]


# --- the contrast of a batch with itself --------------------------------------


@settings(deadline=None, max_examples=60)
@given(sizes, seeds, temperatures)
def test_contrast_is_the_double_loop(count: int, seed: int, temperature: float) -> None:
    z, labels, _, _ = problem(count, 0, seed)
    found = losses.supervised_contrastive(z, labels, temperature=temperature)
    assert_close(found, supervised_loop(z, labels, temperature))
    assert found.shape == ()


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 30), seeds, temperatures)
def test_contrast_is_that_of_pytorch_metric_learning(
    count: int, seed: int, temperature: float
) -> None:
    z, labels, _, _ = problem(count, 0, seed)
    labels[0] = 3  # theirs is 0 by decree where all labels agree
    ours, theirs = (z.clone().requires_grad_() for _ in range(2))
    found = losses.supervised_contrastive(ours, labels, temperature=temperature)
    expected = SupConLoss(temperature=temperature)(theirs, labels)
    assert_close(found, expected, rtol=1e-6, atol=1e-9)
    if found > 0:
        found.backward()
        expected.backward()
        assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


def test_the_default_temperature_is_that_of_the_paper() -> None:
    z, labels, _, _ = problem(8, 0, 0)
    expected = losses.supervised_contrastive(z, labels, temperature=0.1)
    assert losses.supervised_contrastive(z, labels).equal(expected)


@settings(deadline=None)
@given(st.integers(2, 9), seeds)
def test_only_directions_and_pairs_count(count: int, seed: int) -> None:
    z, labels, _, _ = problem(count, 0, seed)
    value = losses.supervised_contrastive(z, labels)
    scale = normal(count, 1, seed=seed).exp()
    assert_close(losses.supervised_contrastive(scale * z, labels), value)
    turn = torch.linalg.qr(normal(4, 4, seed=seed)).Q
    assert_close(losses.supervised_contrastive(z @ turn, labels), value)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert_close(losses.supervised_contrastive(z[order], labels[order]), value)
    renamed = torch.tensor([7, 2, 4])[labels]
    assert_close(losses.supervised_contrastive(z, renamed), value)


def test_a_pair_without_others_finds_itself() -> None:
    z = normal(2, 3)
    assert losses.supervised_contrastive(z, torch.tensor([4, 4])) == 0


@settings(deadline=None)
@given(st.integers(2, 40), st.floats(0.02, 5))
def test_identical_features_are_a_fair_draw(count: int, temperature: float) -> None:
    z = normal(1, 3).expand(count, 3)
    labels = torch.zeros(count, dtype=torch.int64)
    found = losses.supervised_contrastive(z, labels, temperature=temperature)
    assert float(found) == pytest.approx(math.log(count - 1), abs=1e-9)


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.floats(0.05, 5))
def test_classes_at_right_angles(classes: int, each: int, temperature: float) -> None:
    """All features of a class are one unit vector, e_c."""
    z = torch.eye(classes, dtype=F64).repeat_interleave(each, 0)
    labels = torch.arange(classes).repeat_interleave(each)
    found = losses.supervised_contrastive(z, labels, temperature=temperature)
    own = math.exp(1 / temperature)
    expected = math.log((each - 1) * own + (classes - 1) * each) - 1 / temperature
    assert float(found) == pytest.approx(expected, abs=1e-9)


def test_hot_contrast_forgets_the_features() -> None:
    """τ -> ∞: every other feature is as likely."""
    z, labels, _, _ = problem(9, 0, 3)
    found = losses.supervised_contrastive(z, labels, temperature=1e9)
    assert float(found) == pytest.approx(math.log(8))


def test_the_gradient_is_that_of_finite_differences() -> None:
    z, labels, _, _ = problem(6, 0, 1)
    z = (z / 10).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: losses.supervised_contrastive(z, labels, temperature=0.5), z
    )


def test_the_gradient_does_not_change_lengths() -> None:
    z, labels, _, _ = problem(9, 0, 2)
    z.requires_grad_()
    losses.supervised_contrastive(z, labels).backward()
    assert z.grad is not None
    along = (z.grad * z).sum(1)
    assert_close(along, torch.zeros_like(along), atol=1e-10, rtol=0)
    assert bool(z.grad.any())


def test_anchors_without_company_are_skipped_but_seen() -> None:
    """A lone feature is no anchor; the others still have to tell it apart."""
    z = torch.eye(3, dtype=F64)[[0, 0, 1]]
    labels = torch.tensor([5, 5, 8])
    found = losses.supervised_contrastive(z, labels, temperature=1.0)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-1)))


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_without_any_pair_nothing_is_asked(count: int, dtype: torch.dtype) -> None:
    z = normal(count, 3, dtype=dtype).requires_grad_()
    found = losses.supervised_contrastive(z, torch.arange(count))
    found.backward()
    assert found == 0
    assert z.grad is not None
    assert z.grad.equal(torch.zeros(count, 3, dtype=dtype))


# --- the contrast of generated features ---------------------------------------


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(0, 9), seeds, temperatures)
def test_augmented_contrast_is_the_double_loop(
    count: int, real: int, seed: int, temperature: float
) -> None:
    given_ = problem(count, real, seed)
    found = losses.augmented_supervised_contrastive(*given_, temperature=temperature)
    assert_close(found, double_loop(*given_, temperature))


@settings(deadline=None)
@given(sizes, seeds, temperatures)
def test_without_real_features_both_are_one(
    count: int, seed: int, temperature: float
) -> None:
    given_ = problem(count, 0, seed)
    found = losses.augmented_supervised_contrastive(*given_, temperature=temperature)
    expected = losses.supervised_contrastive(*given_[:2], temperature=temperature)
    assert found.equal(expected)


def test_real_features_are_no_anchors() -> None:
    """One generated feature between its class and another one, at right angles."""
    axes = torch.eye(3, dtype=F64)
    labels = torch.tensor([0, 1, 1, 1])
    found = losses.augmented_supervised_contrastive(
        axes[:1], labels[:1], axes[[0, 1, 1, 2]], labels, temperature=1.0
    )
    assert float(found) == pytest.approx(math.log(math.e + 3) - 1)


def test_the_order_of_real_features_does_not_matter() -> None:
    generated, labels, real, real_labels = problem(5, 7, 4)
    value = losses.augmented_supervised_contrastive(
        generated, labels, real, real_labels
    )
    order = torch.tensor([3, 6, 0, 1, 5, 4, 2])
    found = losses.augmented_supervised_contrastive(
        generated, labels, 3 * real[order], real_labels[order]
    )
    assert_close(found, value)


def printed_eq_4(
    generated: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, tau: float
) -> Tensor:
    """Eq. 4 as printed: the denominator runs over real features alone."""
    anchors, others = (torch.stack([unit(z) for z in part]) for part in
                       (generated, real))  # fmt: skip
    total = (anchors @ others.T / tau).exp().sum(1)
    points = torch.cat([anchors, others])
    all_labels = torch.cat([labels, real_labels])
    terms = []
    for i, label in enumerate(labels):
        positive = all_labels == label
        positive[i] = False
        share = (points[positive] @ anchors[i] / tau).exp() / total[i]
        terms.append(-share.log().mean())
    return torch.stack(terms).mean()


def test_the_printed_loss_is_negative_where_ours_is_not() -> None:
    """Two parallel generated features among three real ones of another class."""
    cosines = torch.tensor([0.0, 0.03, 0.05], dtype=F64)
    real = torch.stack([cosines, (1 - cosines**2).sqrt()], 1)
    generated = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=F64)
    labels, real_labels = torch.zeros(2).long(), torch.ones(3).long()
    printed = printed_eq_4(generated, labels, real, real_labels, 0.1)
    surplus = math.log(sum(math.exp(10 * c) for c in cosines.tolist()))
    assert float(printed) == pytest.approx(surplus - 10)
    assert float(printed) == pytest.approx(-8.6, abs=0.05)
    found = losses.augmented_supervised_contrastive(
        generated, labels, real, real_labels
    )
    # With the positive in the denominator too.
    expected = math.log(math.exp(10) + math.exp(surplus)) - 10
    assert float(found) == pytest.approx(expected)
    assert float(found) >= 0


@settings(deadline=None, max_examples=100)
@given(sizes, st.integers(0, 9), seeds, st.floats(1e-4, 10), st.booleans())
def test_never_negative_and_finite_in_single_precision(
    count: int, real: int, seed: int, temperature: float, close: bool
) -> None:
    z, labels, others, other_labels = problem(count, real, seed)
    if close:  # nearly all similarities are 1
        z, others = z * 0 + 1 + 1e-4 * z, others * 0 + 1 + 1e-4 * others
    generated = z.float().requires_grad_()
    found = losses.augmented_supervised_contrastive(
        generated, labels, others.float(), other_labels, temperature=temperature
    )
    found.backward()
    assert bool(found.isfinite())
    assert bool(found >= 0)
    assert generated.grad is not None
    assert bool(generated.grad.isfinite().all())


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_single_precision_is_enough(temperature: float) -> None:
    z, labels = normal(256, 64), drawn_labels(256, 10)
    z = z + 3 * normal(10, 64, seed=5)[labels]
    exact, rounded = z.requires_grad_(), z.detach().float().requires_grad_()
    value = losses.supervised_contrastive(exact, labels, temperature=temperature)
    found = losses.supervised_contrastive(rounded, labels, temperature=temperature)
    value.backward()
    found.backward()
    assert exact.grad is not None
    assert rounded.grad is not None
    assert_close(found.double(), value, rtol=2e-6, atol=0)
    error = (rounded.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert float(error) < 1e-5


@pytest.mark.parametrize("real", [0, 5])
def test_the_gradient_flows_into_generated_features_alone(real: int) -> None:
    generated, labels, others, other_labels = problem(4, real, 6)
    generated.requires_grad_()
    others.requires_grad_()
    losses.augmented_supervised_contrastive(
        generated, labels, others, other_labels
    ).backward()
    assert others.grad is None
    assert generated.grad is not None
    assert bool(generated.grad.any())
    short = (generated.detach() / 10).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: losses.augmented_supervised_contrastive(
            z, labels, others.detach(), other_labels, temperature=0.5
        ),
        short,
    )


def test_a_step_brings_a_feature_to_its_class() -> None:
    axes = torch.eye(2, dtype=F64)
    start = torch.tensor([[1.0, 1.0]], dtype=F64, requires_grad=True)
    labels = torch.tensor([0, 1])
    losses.augmented_supervised_contrastive(start, labels[:1], axes, labels).backward()
    assert start.grad is not None
    ahead = start.detach() - 0.01 * start.grad
    assert float(ahead[0, 0]) > 1
    assert float(ahead[0, 1]) < 1


# --- the edges ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "labels", "real", "real_labels"),
    [
        ((4, 3), (5,), (2, 3), (2,)),
        ((4, 3), (4,), (2, 3), (3,)),
        ((4, 3), (4,), (2, 5), (2,)),
        ((4, 3), (4, 1), (2, 3), (2,)),
        ((4,), (4,), (2, 3), (2,)),
        ((4, 3), (4,), (2, 3, 1), (2,)),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    z: tuple[int, ...],
    labels: tuple[int, ...],
    real: tuple[int, ...],
    real_labels: tuple[int, ...],
) -> None:
    def whole(shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    with pytest.raises(ValueError, match=r"shape \(M, D\).*given \(4,"):
        losses.augmented_supervised_contrastive(
            torch.ones(z), whole(labels), torch.ones(real), whole(real_labels)
        )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_impossible_temperatures_are_refused(temperature: float) -> None:
    z, labels, _, _ = problem(4, 0, 0)
    with pytest.raises(ValueError, match="above 0"):
        losses.supervised_contrastive(z, labels, temperature=temperature)


def test_no_step_waits_for_the_device() -> None:
    """A "meta" tensor has no values: reading one, as `.item()` does, raises."""
    z = torch.ones(6, 4, device="meta", requires_grad=True)
    labels = torch.zeros(6, dtype=torch.int64, device="meta")
    losses.supervised_contrastive(z, labels).backward()
    found = losses.augmented_supervised_contrastive(z, labels, z[:3], labels[:3])
    found.backward()
