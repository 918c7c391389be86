"""Training images shown again: the right class, each as often as the others."""

from __future__ import annotations

import pytest
import torch

from needsaug_lite import data
from needsaug_lite.data import Examples, InMemory
from needsaug_lite.errors import UserError
from needsaug_lite.experiments.generators import trained_generator
from needsaug_lite.experiments.ingredients import GeneratorSpec
from needsaug_lite.models.replay import Replay


def examples() -> Examples:
    """Image i is filled with the number i; classes 1, 0, 1, 1, 0."""
    pixels = torch.arange(5, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return Examples(InMemory(pixels.contiguous()), torch.tensor([1, 0, 1, 1, 0]))


def test_every_image_of_the_class_comes_equally_often_and_no_other() -> None:
    replay = Replay(examples(), 2)
    latents = replay.noise(6000, data.generator(0))
    for label, numbers in ((0, [1, 4]), (1, [0, 2, 3])):
        labels = torch.full((6000,), label)
        found = (255 * replay.sample(latents, labels)[:, 0, 0, 0]).round().long()
        seen, counts = found.unique(return_counts=True)
        assert seen.tolist() == numbers
        # Five standard deviations of a share of 6,000 draws.
        assert (counts / 6000 - 1 / len(numbers)).abs().max() < 5 * 0.5 / 6000**0.5


def test_images_stay_as_they_are_and_have_no_slope() -> None:
    replay = Replay(examples(), 2)
    extreme = torch.tensor([[-40.0], [40.0]], requires_grad=True)
    images = replay.sample(extreme, torch.tensor([1, 1]))
    assert images.shape == (2, 1, 8, 8)
    assert torch.equal(images[1].detach() * 255, torch.full((1, 8, 8), 3.0))
    (slope,) = torch.autograd.grad(images.sum(), extreme)
    assert torch.equal(slope, torch.zeros_like(slope))


def test_it_needs_no_training_and_refuses_what_it_cant_show() -> None:
    splits = data.load("digits", n_max=3)
    made = trained_generator(splits, GeneratorSpec(kind="replay", steps=100))
    assert made.history == []
    assert isinstance(made.generator, Replay)
    with pytest.raises(UserError, match="class 2 has no training image"):
        Replay(examples(), 3)
    features = Examples(InMemory(torch.randn(2, 4, 1, 1)), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="features"):
        Replay(features, 2)
