"""The small BigGAN: shapes, spectral norms, class conditions and derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm
from torch.nn.utils.parametrize import is_parametrized
from torch.testing import assert_close

from needsaug_lite.data import generator
from needsaug_lite.errors import UserError
from needsaug_lite.models.biggan import (
    BigGANGenerator,
    ConditionalBatchNorm,
    ProjectionDiscriminator,
)

CLASSES, LATENT = 4, 11
F64 = torch.float64
SHAPES = [(channels, side, side) for channels in (1, 3) for side in (8, 16, 28, 32)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make(shape: tuple[int, int, int] = (1, 8, 8)) -> BigGANGenerator:
    return BigGANGenerator(shape, CLASSES, latent_dim=LATENT, width=8, embedding_dim=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_every_shape(shape: tuple[int, int, int]) -> None:
    maker, judge = make(shape).eval(), ProjectionDiscriminator(shape, CLASSES, 8)
    labels = maker.labels(5, generator(1))
    images = maker.sample(maker.noise(5, generator(0)), labels)
    assert images.shape == (5, *shape)
    assert bool((images >= 0).all() and (images <= 1).all())
    assert judge(images, labels).shape == (5,)
    assert judge.features(images).shape == (5, judge.feature_dim)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="can't be generated"):
        make((1, 1, 1))
    with pytest.raises(UserError, match="can't be generated"):
        ProjectionDiscriminator((1, 64, 64), CLASSES, 8)


def test_the_derivative_by_the_latents_is_right() -> None:
    maker = make((1, 16, 16)).double().eval()
    labels = torch.arange(2)
    latents = torch.randn(2, LATENT, dtype=F64, requires_grad=True)
    # Along random directions: one for each number of 512 pixels would take a minute.
    assert torch.autograd.gradcheck(
        lambda z: maker.sample(z, labels), latents, fast_mode=True
    )


def test_the_second_derivative_by_the_latents_is_right() -> None:
    """What the exact second-order route of a search in the latent space needs."""
    maker = make().double().eval()
    labels = torch.arange(2)
    latents = torch.randn(2, LATENT, dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda z: maker.sample(z, labels), latents, fast_mode=True
    )


def test_every_part_of_z_and_the_label_matter() -> None:
    maker = make((1, 32, 32)).eval()
    latents, labels = torch.randn(2, LATENT), torch.arange(2)
    images = maker.sample(latents, labels)
    assert not maker.sample(latents, labels + 1).equal(images)
    for number in range(LATENT):
        moved = latents.clone()
        moved[:, number] += 1
        assert not maker.sample(moved, labels).equal(images)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_layers_have_spectral_norm_one(network: str) -> None:
    found: nn.Module = (
        make((3, 16, 16))
        if network == "generator"
        else ProjectionDiscriminator((3, 16, 16), CLASSES, 8)
    )
    layers = [layer for layer in found.modules() if is_parametrized(layer, "weight")]
    assert layers
    plain = [
        layer
        for layer in found.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer not in layers
    ]
    assert not plain
    for layer in layers:
        with torch.no_grad():
            original = layer.get_parameter("parametrizations.weight.original")
            original.copy_(3 * torch.randn_like(original))
            for _ in range(200):
                _ = layer.weight
            layer.eval()
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            norm = torch.linalg.matrix_norm(weight.flatten(1), 2)
        assert float(norm) == pytest.approx(1, abs=1e-2)


def test_the_projection_is_an_inner_product() -> None:
    """D(x, y) - D(x, y') = (v_y - v_y')ᵀ h(x)."""
    judge = ProjectionDiscriminator((1, 8, 8), CLASSES, 8).eval().double()
    images = torch.randn(5, 1, 8, 8, dtype=F64)
    zeros, ones = torch.zeros(5).long(), torch.ones(5).long()
    v = judge.projection.weight
    assert isinstance(v, torch.Tensor)
    assert v.shape == (CLASSES, judge.feature_dim)
    expected = judge.features(images) @ (v[1] - v[0])
    assert_close(judge(images, ones) - judge(images, zeros), expected)


def test_conditional_batch_norm_scales_and_moves() -> None:
    layer = ConditionalBatchNorm(3, 2).double()
    maps = 5 + 2 * torch.randn(4, 3, 6, 6, dtype=F64)
    condition = torch.randn(4, 2, dtype=F64)
    normed = batch_norm(maps, None, None, training=True)
    found = layer(maps, condition)
    gain = (1 + layer.gain(condition))[:, :, None, None]
    offset = layer.offset(condition)[:, :, None, None]
    assert_close(found, normed * gain + offset, atol=1e-4, rtol=1e-4)
    assert_close(layer(maps, 0 * condition), normed)
