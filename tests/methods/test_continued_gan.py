"""A GAN that goes on: modes, norms, and what moves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.needs import gan, same, small, weights
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized
from torch.testing import assert_close

from needsaug_lite.errors import UserError
from needsaug_lite.methods.continued_gan import ContinuedGAN, class_vectors
from needsaug_lite.methods.generation.adversarial import (
    ACGAN,
    BigGAN,
    ConditionalGAN,
    UnconditionalGAN,
)

KINDS = (BigGAN, ConditionalGAN, ACGAN)
PLACE = "projection.parametrizations.weight.original"


def continued(kind: Any = BigGAN, *, a: Any = None, **settings: Any) -> ContinuedGAN:
    source = gan(small(), kind, **settings)
    return ContinuedGAN(source, lr=2e-3, discriminator_lr=2e-3, steps=4, shared=a)


def a_of(classes: int = 10, width: int = 8) -> nn.Parameter:
    torch.manual_seed(2)
    return nn.Parameter(torch.randn(classes, width))


@pytest.mark.parametrize("kind", KINDS)
def test_g_goes_on_from_its_average(kind: Any) -> None:
    source = gan(small(), kind)
    with torch.no_grad():
        for value in source.generator.parameters():
            value += 0.1
    average = {n: t.clone() for n, t in source.generator.state_dict().items()}
    one = ContinuedGAN(source, lr=1e-3, discriminator_lr=1e-3, steps=4)
    assert same(one.generator.state_dict(), average)
    assert one.generator is source.maker
    assert not any(m.training for m in one.generator.modules())
    assert all(p.requires_grad for p in one.generator.parameters())


def test_the_discriminator_is_the_projection_on_a_over_its_norm() -> None:
    """H(x, y) = wᵀφ(x) + b + ⟨a_y, φ(x)⟩ / ‖A‖."""
    a = a_of()
    one = continued(a=a)
    judge: Any = one.gan.discriminator
    real, z = one.next_real()
    for _ in range(100):  # the power iteration finds ‖A‖
        judge.train()(real.images, real.labels)
    judge.eval()
    with torch.no_grad():
        phi = judge.features(real.images)
        by_class = (a / torch.linalg.matrix_norm(a, 2))[real.labels]
        expected = judge.head(phi).squeeze(1) + (by_class * phi).sum(1)
        assert_close(judge(real.images, real.labels), expected, rtol=1e-4, atol=1e-4)
        twice = one.generator_loss(one.params(), 2 * a, z, real.labels)
    loss = one.generator_loss(one.params(), a, z, real.labels)
    # Only the direction of A counts, and its derivative says so.
    assert_close(twice, loss.detach())
    (slope,) = torch.autograd.grad(loss, a)
    assert float(slope.norm()) > 0
    assert abs(float((slope * a).sum().detach())) < 1e-4 * float(
        slope.norm() * a.detach().norm()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_g_makes_its_images_look_more_real(kind: Any) -> None:
    one = continued(kind, diversity=0.0)
    real, z = one.next_real()
    params, labels = one.params(), real.labels
    loss = one.generator_loss(params, a_of(), z, labels)
    assert_close(loss, one.current_loss(z, labels))
    gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    assert all(g is not None for g in gradients)
    judge = judge_state(one)
    one.improve_generator(dict(zip(params, gradients, strict=True)))
    with torch.no_grad():
        assert one.current_loss(z, labels) < loss
    assert same(judge_state(one), judge)


def judge_state(one: ContinuedGAN) -> dict[str, Tensor]:
    state = one.gan.discriminator.state_dict()
    return {
        n: t.clone() for n, t in state.items() if "running" not in n and "num" not in n
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_h_tells_them_apart_better_and_moves_nothing_else(
    kind: Any,
) -> None:
    a = a_of() if kind is BigGAN else None
    one = continued(kind, a=a)
    before = None if a is None else a.detach().clone()
    maker = {n: t.clone() for n, t in one.generator.state_dict().items()}
    judge = weights(one.gan.discriminator)
    real, z = one.next_real()
    first = one.improve_discriminator(real, z)
    assert not first.requires_grad
    for _ in range(5):
        last = one.improve_discriminator(real, z)
    assert last < first
    assert same(one.generator.state_dict(), maker)
    assert all(p.grad is None for p in one.generator.parameters())
    moved = weights(one.gan.discriminator)
    for name, value in moved.items():
        held = a is not None and name == PLACE
        assert torch.equal(value, judge[name]) == held, name
    if a is not None and before is not None:
        assert torch.equal(a, before)
        assert a.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_looking_at_the_loss_of_g_leaves_norms_and_moments_of_h(kind: Any) -> None:
    one = continued(kind)
    real, z = one.next_real()
    for _ in range(2):
        one.improve_discriminator(real, z)
    before = {n: b.clone() for n, b in one.gan.discriminator.named_buffers()}
    one.current_loss(z, real.labels)
    after = dict(one.gan.discriminator.named_buffers())
    assert all(torch.equal(after[name], b) for name, b in before.items())
    for layer in one.gan.discriminator.modules():
        if isinstance(layer, _NormBase):
            assert layer.training


def test_batches_of_h_are_normalised_by_themselves_in_the_loss_of_g() -> None:
    one = continued(ConditionalGAN)
    real, z = one.next_real()
    before = one.current_loss(z, real.labels).detach()
    with torch.no_grad():
        for name, buffer in one.gan.discriminator.named_buffers():
            if "running_mean" in name:
                buffer += 100
    assert_close(one.current_loss(z, real.labels).detach(), before)


def largest(network: nn.Module) -> list[float]:
    layers: list[Any] = [m for m in network.modules() if is_parametrized(m, "weight")]
    matrices = [layer.weight.detach().flatten(1) for layer in layers]
    return [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in matrices]


def test_spectral_norms_of_g_follow_its_weights() -> None:
    one = continued()
    torch.manual_seed(0)
    still = {n: torch.zeros_like(p) for n, p in one.params().items()}
    with torch.no_grad():
        for name, value in one.generator.named_parameters():
            if name.endswith("original"):
                value.copy_(torch.randn_like(value))
    assert max(largest(one.generator)) > 1.5
    for _ in range(300):
        one.improve_generator(still)
    assert largest(one.generator) == pytest.approx([1] * 9, abs=0.02)
    assert not any(m.training for m in one.generator.modules())


def test_real_images_go_on_where_they_end_and_repeat_with_the_epoch() -> None:
    one = continued(batch_size=50, discriminator_steps=2, core_set=2)

    def drawn(epoch: int) -> list[tuple[Tensor, Tensor]]:
        one.begin_epoch(epoch)
        found = [one.next_real() for _ in range(4)]
        assert all(len(real) <= 51 for real, _ in found)
        assert all(float(real.images.abs().max()) <= 1 for real, _ in found)
        assert all(len(real) == len(z) for real, z in found)
        return [(real.images, z) for real, z in found]

    first, again, later = drawn(0), drawn(0), drawn(1)
    for pair, same_pair, other in zip(first, again, later, strict=True):
        assert all(map(torch.equal, pair, same_pair))
        assert not any(map(torch.equal, pair, other))


def test_a_state_brings_everything_back() -> None:
    one, other = continued(a=a_of()), continued(a=a_of())

    def advance(gan: ContinuedGAN, epoch: int) -> None:
        gan.begin_epoch(epoch)
        real, z = gan.next_real()
        params = gan.params()
        loss = gan.generator_loss(params, a_of(), z, real.labels)
        slopes = torch.autograd.grad(loss, list(params.values()))
        gan.improve_generator(dict(zip(params, slopes, strict=True)))
        gan.improve_discriminator(real, z)

    advance(one, 0)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for each in (one, other):
        advance(each, 1)
    for name in ("generator", "discriminator"):
        assert same(one.state_dict()[name], other.state_dict()[name])


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UserError, match="no class vectors"):
        continued(ACGAN, a=a_of())
    with pytest.raises(UserError, match=r"\(10, 16\).*\(10, 8\).* width 16"):
        continued(a=a_of(width=16))
    with pytest.raises(UserError, match=r"\(7, 8\)"):
        continued(a=a_of(7))
    with pytest.raises(UserError, match="unconditional generator"):
        continued(UnconditionalGAN)
    assert class_vectors(gan(small(), ACGAN)) is None
    vectors = class_vectors(gan(small()))
    assert vectors is not None
    assert vectors.shape == (10, 8)
