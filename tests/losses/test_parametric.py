"""The parametric cross-entropy: both forms, the losses in it, and its direction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from needsaug_lite import losses

COUNTS = torch.tensor([500, 120, 31, 9, 2]).double()
PRIOR = COUNTS / COUNTS.sum()
C, A = len(COUNTS), 3
loss = losses.parametric_cross_entropy


class Draw:
    """Logits, labels and groups, and parameters by class, or by class and group."""

    def __init__(self, seed: int = 0, batch: int = 40, grouped: bool = False) -> None:
        source = torch.Generator().manual_seed(seed)
        shape = (C, A) if grouped else (C,)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=source, dtype=torch.float64)

        self.logits = 2 * normal(batch, C)
        self.labels = torch.randint(C, (batch,), generator=source)
        found = torch.randint(A, (batch,), generator=source)
        self.groups = found if grouped else None
        self.w, self.l, self.delta = (normal(*shape) for _ in range(3))
        self.w, self.delta = self.w.exp(), self.delta.exp()

    def value(self, reduction: str = "none", **changes: Tensor) -> Tensor:
        parameters = {
            "class_weight": self.w,
            "additive": self.l,
            "multiplicative": self.delta,
            **changes,
        }
        return loss(
            self.logits,
            self.labels,
            groups=self.groups,
            reduction=reduction,  # type: ignore[arg-type]
            **parameters,
        )


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_both_forms_of_the_definition_agree_with_it(seed: int) -> None:
    d = Draw(seed)
    scores = d.delta * d.logits + d.l
    own = scores.gather(1, d.labels[:, None])
    first = -(own.squeeze(1).exp() / scores.exp().sum(1)).log()
    # Σ_{k≠y} exp(l_k - l_y) exp(Δ_k f_k - Δ_y f_y), class by class.
    second = torch.zeros_like(first)
    for i, y in enumerate(d.labels.tolist()):
        total = torch.zeros((), dtype=torch.float64)
        for k in range(C):
            if k != y:
                gap = d.delta[k] * d.logits[i, k] - d.delta[y] * d.logits[i, y]
                total = total + (d.l[k] - d.l[y]).exp() * gap.exp()
        second[i] = torch.log1p(total)
    assert_close(d.value(), d.w[d.labels] * first)
    assert_close(d.value(), d.w[d.labels] * second)


def test_the_mean_is_over_samples_and_the_sum_over_all() -> None:
    d = Draw()
    assert_close(d.value("mean"), d.value().sum() / len(d.labels))
    assert_close(d.value("sum"), d.value().sum())


# The losses that it contains


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_parameters_it_is_cross_entropy(reduction: str) -> None:
    d = Draw()
    ones, zeros = torch.ones(C).double(), torch.zeros(C).double()
    named = {"reduction": reduction}
    truth = losses.cross_entropy(d.logits, d.labels, **named)  # type: ignore[arg-type]
    bare = loss(d.logits, d.labels, **named)  # type: ignore[arg-type]
    assert_close(bare, truth)
    neutral = {"class_weight": ones, "additive": zeros, "multiplicative": ones}
    assert_close(d.value(reduction, **neutral), truth)


def test_with_weights_it_is_weighted_cross_entropy_but_for_the_mean() -> None:
    d = Draw()
    w = 1 / PRIOR

    def torchs(reduction: str) -> Tensor:
        return losses.cross_entropy(
            d.logits,
            d.labels,
            class_weight=w,
            reduction=reduction,  # type: ignore[arg-type]
        )

    for reduction in ("none", "sum"):
        own = loss(d.logits, d.labels, class_weight=w, reduction=reduction)
        assert_close(own, torchs(reduction))
    # torch divides by the sum of the weights, Eq. 2.3 by the number of samples.
    own = loss(d.logits, d.labels, class_weight=w)
    assert_close(own, torchs("mean") * w[d.labels].mean())
    assert not torch.isclose(own, torchs("mean"))
    assert_close(loss(d.logits, d.labels, class_weight=7 * w), 7 * own)


def test_logit_adjustment_temperature_and_vector_scaling_are_instances() -> None:
    d = Draw()
    f, y = d.logits, d.labels
    delta = (COUNTS / COUNTS.max()) ** 0.3
    assert_close(
        loss(f, y, additive=0.7 * PRIOR.log()),
        losses.logit_adjusted(f, y, class_prior=PRIOR, tau=0.7),
    )
    assert_close(
        loss(f, y, multiplicative=delta),
        losses.class_dependent_temperature(f, y, counts=COUNTS, gamma=0.3),
    )
    assert_close(
        loss(f, y, additive=1.2 * PRIOR.log(), multiplicative=delta),
        losses.vector_scaling(f, y, counts=COUNTS, gamma=0.3, tau=1.2),
    )


# Invariances


@pytest.mark.parametrize("grouped", [False, True])
def test_l_counts_only_up_to_a_constant(grouped: bool) -> None:
    """With groups, up to a constant for each of them."""
    d = Draw(grouped=grouped)
    shift = torch.tensor([3.0, -1.0, 0.4]).double() if grouped else 3.0
    assert_close(d.value(additive=d.l + shift), d.value())
    other = d.l + torch.arange(C).double().view(-1, *[1] * grouped)
    assert not torch.allclose(d.value(additive=other), d.value())


def test_renaming_the_classes_changes_nothing() -> None:
    d = Draw()
    order = torch.tensor([3, 0, 4, 1, 2])
    got = loss(
        d.logits[:, order],
        order.argsort()[d.labels],
        class_weight=d.w[order],
        additive=d.l[order],
        multiplicative=d.delta[order],
        reduction="none",
    )
    assert_close(got, d.value())


def test_groups_are_treated_with_their_own_parameters() -> None:
    d = Draw(grouped=True)
    assert d.groups is not None
    together = d.value()
    for g in range(A):
        mine = d.groups == g
        alone = loss(
            d.logits[mine],
            d.labels[mine],
            class_weight=d.w[:, g],
            additive=d.l[:, g],
            multiplicative=d.delta[:, g],
            reduction="none",
        )
        assert_close(together[mine], alone)


def test_groups_with_equal_parameters_are_no_groups() -> None:
    d, plain = Draw(grouped=True), Draw()
    tables = {
        "class_weight": plain.w,
        "additive": plain.l,
        "multiplicative": plain.delta,
    }
    wide = {name: t[:, None].expand(C, A) for name, t in tables.items()}
    without = loss(d.logits, d.labels, reduction="none", **tables)
    assert_close(d.value("none", **wide), without)


# Derivatives and directions


@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_by_logits_and_parameters(grouped: bool) -> None:
    d = Draw(batch=7, grouped=grouped)
    leaves = [t.clone().requires_grad_() for t in (d.logits, d.w, d.l, d.delta)]

    def value(f: Tensor, w: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
        d.logits = f
        return d.value(class_weight=w, additive=shift, multiplicative=factor)

    assert torch.autograd.gradcheck(value, leaves)
    assert torch.autograd.gradgradcheck(value, leaves)


def test_gradient_by_l_is_softmax_minus_label() -> None:
    """∂L/∂l_k = w_y (p_k - [k = y]): the label's own is never positive."""
    d = Draw()
    shift = d.l.clone().requires_grad_()
    p = (d.delta * d.logits + d.l).softmax(1)
    error = p - torch.nn.functional.one_hot(d.labels, C)
    expected = (d.w[d.labels, None] * error).mean(0)
    (got,) = torch.autograd.grad(d.value("mean", additive=shift), shift)
    assert_close(got, expected)


@pytest.mark.parametrize("y", range(C))
def test_a_larger_l_lowers_the_loss_of_its_class_and_raises_the_others(y: int) -> None:
    d = Draw()
    d.logits = d.logits / 10  # Away from rounding.
    more = d.l + torch.eye(C).double()[y]
    change = d.value(additive=more) - d.value()
    assert bool((change[d.labels == y] < 0).all())
    assert bool((change[d.labels != y] > 0).all())


@settings(deadline=None)
@given(l_y=st.floats(-3, 3), small=st.floats(0.01, 0.5))
def test_a_larger_l_shrinks_the_margin_of_its_class(l_y: float, small: float) -> None:
    """At loss c the margin is log((C-1)/(e^c - 1)) - l_y: it falls one for one (A4)."""
    needed = torch.log((C - 1) / torch.expm1(torch.tensor(small).double())) - l_y
    logits = torch.zeros(1, C, dtype=torch.float64)
    logits[0, 2] = needed
    shift = torch.zeros(C, dtype=torch.float64)
    shift[2] = l_y
    got = loss(logits, torch.tensor([2]), additive=shift)
    assert_close(float(got), small, rtol=1e-6, atol=1e-9)


@settings(deadline=None)
@given(factor=st.floats(0.1, 3), small=st.floats(0.01, 0.5))
def test_a_larger_factor_shrinks_the_logit_that_a_class_needs(
    factor: float, small: float
) -> None:
    """At loss c, against logits of 0, f_y = log((C-1)/(e^c - 1)) / Δ_y (A4)."""
    needed = torch.log((C - 1) / torch.expm1(torch.tensor(small).double())) / factor
    logits = torch.zeros(1, C, dtype=torch.float64)
    logits[0, 2] = needed
    delta = torch.ones(C, dtype=torch.float64)
    delta[2] = factor
    got = loss(logits, torch.tensor([2]), multiplicative=delta)
    assert_close(float(got), small, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1e3, 1e5])
def test_extreme_logits_give_finite_losses_and_gradients(size: float) -> None:
    d = Draw()
    logits = size * d.logits.sign()
    leaves = [t.clone().requires_grad_() for t in (logits, d.w, d.l, d.delta)]
    f, w, shift, factor = leaves
    value = loss(f, d.labels, class_weight=w, additive=shift, multiplicative=factor)
    found = torch.autograd.grad(value, leaves)
    assert bool(value.isfinite())
    assert all(bool(g.isfinite().all()) for g in found)
