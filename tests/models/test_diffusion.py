"""EDM: what its constants are for, and where its sampler must end."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from needsaug_lite.errors import UserError
from needsaug_lite.models.diffusion import (
    EDM,
    SIGMA_DATA,
    SIGMA_MAX,
    SIGMA_MIN,
    heun,
    noise_levels,
    preconditioning,
)

SIGMAS = torch.tensor([0.002, 0.05, 0.5, 1.3, 80.0], dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def busy(shape: tuple[int, int, int] = (1, 8, 8), steps: int = 3) -> EDM:
    """A network in float64 in which no layer is 0."""
    torch.manual_seed(3)
    model = EDM(shape, 4, width=8, sampling_steps=steps).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 6)
    return model


def test_inputs_and_targets_of_the_network_have_unit_variance() -> None:
    """x of variance σ_d², so that x + σn has σ_d² + σ²."""
    skip, out, into = preconditioning(SIGMAS)
    clean, noise = drawn(100_000), drawn(100_000, seed=1)
    noisy = SIGMA_DATA * clean + SIGMAS[:, None] * noise
    target = (SIGMA_DATA * clean - skip[:, None] * noisy) / out[:, None]
    ones = torch.ones_like(SIGMAS)
    variance = (into[:, None] * noisy).var(1)
    torch.testing.assert_close(variance, ones, rtol=0.02, atol=0)
    torch.testing.assert_close(target.var(1), ones, rtol=0.02, atol=0)
    torch.testing.assert_close(into**2 * (SIGMAS**2 + SIGMA_DATA**2), ones)
    spread = (1 - skip) ** 2 * SIGMA_DATA**2 + skip**2 * SIGMAS**2
    torch.testing.assert_close(spread / out**2, ones)


def test_the_network_has_as_little_say_as_possible() -> None:
    """c_out² = (1 - c_skip)² σ_d² + c_skip² σ² is smallest at the chosen c_skip."""
    skip = preconditioning(SIGMAS)[0].requires_grad_()
    square = (1 - skip) ** 2 * SIGMA_DATA**2 + skip**2 * SIGMAS**2
    (slope,) = torch.autograd.grad(square.sum(), skip)
    torch.testing.assert_close(slope, torch.zeros_like(slope))


def test_the_denoiser_is_the_best_linear_one_while_the_network_is_silent() -> None:
    model = EDM((1, 8, 8), 4, width=8).double()
    noisy, labels = drawn(5, 1, 8, 8), torch.zeros(5, dtype=torch.int64)
    shrunk = noisy * (SIGMA_DATA**2 / (SIGMA_DATA**2 + SIGMAS**2))[:, None, None, None]
    torch.testing.assert_close(model.denoise(noisy, SIGMAS, labels), shrunk)


def test_the_network_sees_the_logarithm_of_the_noise() -> None:
    """D by hand, with a stand-in F that returns its inputs."""
    model = EDM((1, 8, 8), 4, width=8).double()
    seen: list[Tensor] = []

    def stand_in(images: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        seen.extend([images, noise, labels])
        return torch.ones_like(images)

    model.network.forward = stand_in  # type: ignore[method-assign]
    noisy, labels = drawn(5, 1, 8, 8), torch.arange(5)
    found = model.denoise(noisy, SIGMAS, labels)
    total = (SIGMAS**2 + 0.25)[:, None, None, None]
    each = SIGMAS[:, None, None, None]
    torch.testing.assert_close(seen[0], noisy / total.sqrt())
    torch.testing.assert_close(seen[1], SIGMAS.log() / 4)
    assert torch.equal(seen[2], labels)
    expected = 0.25 / total * noisy + 0.5 * each / total.sqrt()
    torch.testing.assert_close(found, expected)


def test_levels_fall_from_the_largest_to_the_smallest_and_then_to_0() -> None:
    levels = noise_levels(18)
    assert levels.shape == (19,)
    torch.testing.assert_close(levels[0].item(), SIGMA_MAX)
    torch.testing.assert_close(levels[-2].item(), SIGMA_MIN)
    assert levels[-1] == 0
    assert bool((levels.diff() < 0).all())
    # Evenly spaced in the seventh root.
    gaps = (levels[:-1] ** (1 / 7)).diff()
    torch.testing.assert_close(gaps, gaps[:1].expand(17))
    torch.testing.assert_close(
        noise_levels(1), torch.tensor([80.0, 0.0], dtype=torch.float64)
    )


def gaussian_error(steps: int, spread: float) -> float:
    """Relative error of the sampler for data N(0, s²), of which all is known.

    D = s² / (s² + σ²) x, so x(σ) grows with sqrt(s² + σ²). The last step, Euler's
    from σ_min to 0, multiplies by s² / (s² + σ_min²).
    """

    def best(noisy: Tensor, sigma: Tensor) -> Tensor:
        return spread**2 / (spread**2 + sigma**2) * noisy

    start = SIGMA_MAX * drawn(6)
    found = heun(best, start, noise_levels(steps))
    square = spread**2 + SIGMA_MIN**2
    last = spread**2 / square
    truth = start * last * math.sqrt(square / (spread**2 + SIGMA_MAX**2))
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("spread", [0.5, 1.3])
def test_the_sampler_converges_with_second_order(spread: float) -> None:
    errors = [gaussian_error(steps + 1, spread) for steps in (64, 128, 256)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert errors[-1] < 1e-3
    assert slopes == pytest.approx([2, 2], abs=0.15)


def test_the_sampler_reaches_the_closed_form() -> None:
    """x_T s / sqrt(s² + σ_max²), up to σ_min² / (2 s²) of the last step."""

    def best(noisy: Tensor, sigma: Tensor) -> Tensor:
        return 0.49 / (0.49 + sigma**2) * noisy

    start = SIGMA_MAX * drawn(6)
    found = heun(best, start, noise_levels(1000))
    torch.testing.assert_close(
        found, start * 0.7 / math.sqrt(0.49 + SIGMA_MAX**2), rtol=1e-4, atol=0
    )


def test_one_step_is_one_look_at_the_denoiser() -> None:
    start = drawn(4, 3)
    found = heun(lambda noisy, sigma: noisy.sin() + sigma, start, noise_levels(1))
    torch.testing.assert_close(found, start.sin() + SIGMA_MAX)


def test_the_last_step_never_asks_at_no_noise() -> None:
    asked: list[float] = []

    def denoiser(noisy: Tensor, sigma: Tensor) -> Tensor:
        asked.append(float(sigma))
        return noisy / 2

    heun(denoiser, drawn(3), noise_levels(6))
    assert len(asked) == 11
    assert min(asked) == pytest.approx(SIGMA_MIN)


def test_the_derivative_by_the_latents_is_that_of_finite_differences() -> None:
    model, labels = busy(), torch.tensor([2, 0, 3])
    latents = 0.01 * drawn(3, 64)
    direction, weight = drawn(3, 64, seed=1), drawn(3, 1, 8, 8, seed=2)

    def score(where: Tensor) -> Tensor:
        return (weight * model.sample(where, labels)).sum()

    free = latents.clone().requires_grad_()
    images = model.sample(free, labels)
    inside = (images > 0) & (images < 1)
    assert float(inside.double().mean()) > 0.3  # clipped pixels would hide errors
    (slope,) = torch.autograd.grad((weight * images).sum(), free)
    radius = 1e-6
    ahead, behind = latents + radius * direction, latents - radius * direction
    with torch.no_grad():
        difference = (score(ahead) - score(behind)) / (2 * radius)
    torch.testing.assert_close((slope * direction).sum(), difference, rtol=1e-6, atol=0)


def test_samples_are_images_that_start_from_the_largest_noise() -> None:
    model = busy()
    latents, labels = drawn(3, 64), torch.tensor([1, 1, 2])
    assert (model.latent_dim, model.num_classes) == (64, 4)
    by_hand = heun(
        lambda noisy, sigma: model.denoise(noisy, sigma, labels),
        80 * latents.view(3, 1, 8, 8),
        noise_levels(3),
    )
    found = model.sample(latents, labels).detach()
    # The levels of the model went through float32.
    torch.testing.assert_close(
        found, (by_hand / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-3
    )
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


def test_an_image_depends_on_its_own_latents_and_label_alone() -> None:
    model = busy()
    latents, labels = drawn(4, 64), torch.tensor([0, 1, 2, 3])
    together = model.sample(latents, labels)
    torch.testing.assert_close(model.sample(latents[2:3], labels[2:3]), together[2:3])
    other = model.sample(latents, torch.tensor([0, 1, 0, 3]))
    torch.testing.assert_close(other[[0, 1, 3]], together[[0, 1, 3]])
    assert not torch.allclose(other[2], together[2])


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 9, 9), (3, 17, 17), (1, 28, 28)])
def test_every_size_keeps_its_size(shape: tuple[int, int, int]) -> None:
    model = busy(shape, steps=2)
    latents = model.noise(2, torch.Generator().manual_seed(0)).double()
    images = model.sample(latents, torch.tensor([0, 3]))
    assert images.shape == (2, *shape)
    assert bool(images.isfinite().all())


def test_an_odd_image_is_the_corner_of_an_even_one() -> None:
    """The network of 17 x 17 pixels has the weights of that of 18 x 18."""
    odd, even = busy((1, 17, 17)), busy((1, 18, 18))
    images, labels = drawn(2, 1, 17, 17), torch.tensor([0, 3])
    noise = drawn(2, seed=1)
    whole = even.network(torch.nn.functional.pad(images, (0, 1, 0, 1)), noise, labels)
    torch.testing.assert_close(
        odd.network(images, noise, labels), whole[:, :, :17, :17]
    )


@pytest.mark.parametrize(
    "shape", [(1, 7, 7), (3, 64, 64), (1, 8, 12), (2, 8, 8), (512, 1, 1)]
)
def test_other_shapes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=f"{shape[0]} x {shape[1]} x {shape[2]}.*8 x 8"):
        EDM(shape, 4)


def test_no_steps_are_refused() -> None:
    with pytest.raises(UserError, match="sampling_steps is 0; it must be at least 1"):
        EDM((1, 8, 8), 4, sampling_steps=0)


def test_weights_fit_whatever_the_number_of_steps() -> None:
    one, two = busy(steps=3), copy.deepcopy(busy(steps=5))
    two.load_state_dict(one.state_dict())
    assert (one.sampling_steps, two.sampling_steps) == (3, 5)
