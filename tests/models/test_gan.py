"""Convolutional GANs: shapes, what depends on what, and derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from needsaug_lite.data import generator
from needsaug_lite.errors import UserError
from needsaug_lite.models.gan import (
    AuxiliaryDiscriminator,
    ConvGenerator,
    LabelDiscriminator,
    UnconditionalDiscriminator,
    start_and_doublings,
    widths_down,
)

CLASSES, LATENT = 4, 6
F64 = torch.float64
SHAPES = [(channels, side, side) for channels in (1, 3) for side in (8, 16, 28, 32)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make(shape: tuple[int, int, int] = (1, 8, 8), **settings: Any) -> ConvGenerator:
    return ConvGenerator(shape, CLASSES, latent_dim=LATENT, width=8, **settings)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("conditional", [True, False])
def test_images_of_every_shape(shape: tuple[int, int, int], conditional: bool) -> None:
    maker = make(shape, conditional=conditional).eval()
    labels = maker.labels(5, generator(1))
    images = maker.sample(maker.noise(5, generator(0)), labels)
    assert images.shape == (5, *shape)
    assert bool((images >= 0).all() and (images <= 1).all())
    assert images.std() > 0
    for judge in (
        UnconditionalDiscriminator(shape, 8),
        LabelDiscriminator(shape, CLASSES, 8),
        AuxiliaryDiscriminator(shape, CLASSES, 8),
    ):
        judge.eval()
        assert judge(images, labels).shape == (5,)
    both = AuxiliaryDiscriminator(shape, CLASSES, 8).eval()
    scores, logits = both.scores_and_logits(images)
    assert_close(scores, both(images, labels))
    assert logits.shape == (5, CLASSES)
    assert both.features(images).shape == (5, both.feature_dim)


@given(st.integers(4, 7), st.integers(1, 3))
def test_the_start_is_small_and_doubles_to_the_side(start: int, times: int) -> None:
    side = start * 2**times
    if side <= 32:
        assert start_and_doublings((1, side, side)) == (start, times)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 8, 8), (1, 8, 16), (1, 26, 26), (3, 64, 64), (1, 4, 4)]
)
def test_other_shapes_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match="can't be generated"):
        make(shape)


def test_widths_halve_down_to_eight() -> None:
    assert widths_down(64, 2) == [64, 32, 16]
    assert widths_down(16, 3) == [16, 8, 8, 8]


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_images_depend_on_the_label_if_they_should(seed: int) -> None:
    torch.manual_seed(seed)
    for conditional in (True, False):
        maker = make(conditional=conditional).eval()
        latents = torch.randn(3, LATENT)
        one, other = (
            maker.sample(latents, torch.full((3,), label)) for label in (0, 1)
        )
        assert one.equal(other) != conditional
        assert not one.equal(maker.sample(-latents, torch.zeros(3).long()))
        assert maker.conditional == conditional


def test_samples_are_the_symmetric_images_moved() -> None:
    maker = make().eval()
    latents, labels = torch.randn(3, LATENT), torch.arange(3)
    moved = 2 * maker.sample(latents, labels) - 1
    assert_close(moved, maker.symmetric(latents, labels))


def test_rows_do_not_see_each_other_in_evaluation() -> None:
    maker = make().eval()
    latents, labels = torch.randn(4, LATENT), torch.arange(4)
    together = maker.sample(latents, labels)
    assert_close(maker.sample(latents[2:3], labels[2:3]), together[2:3])


@pytest.mark.parametrize("conditional", [True, False])
def test_the_derivative_by_the_latents_is_right(conditional: bool) -> None:
    maker = make(conditional=conditional).double().eval()
    labels = torch.arange(2)
    latents = torch.randn(2, LATENT, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: maker.sample(z, labels), latents)


@pytest.mark.parametrize("conditional", [True, False])
def test_the_second_derivative_by_the_latents_is_right(conditional: bool) -> None:
    """What the exact second-order route of a search in the latent space needs."""
    maker = make(conditional=conditional).double().eval()
    labels = torch.arange(2)
    latents = torch.randn(2, LATENT, dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda z: maker.sample(z, labels), latents, fast_mode=True
    )


def test_who_looks_at_labels() -> None:
    images = torch.randn(3, 1, 8, 8)
    zeros, ones = torch.zeros(3).long(), torch.ones(3).long()
    blind = UnconditionalDiscriminator((1, 8, 8), 8).eval()
    seeing = LabelDiscriminator((1, 8, 8), CLASSES, 8).eval()
    assert blind(images, zeros).equal(blind(images, ones))
    assert not seeing(images, zeros).isclose(seeing(images, ones)).any()


def test_one_seed_gives_the_same_weights() -> None:
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(make().first.weight)
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])
