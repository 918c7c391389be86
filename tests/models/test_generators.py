"""One interface for generators of any make: ranges, calls, draws, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from needsaug_lite.data import generator
from needsaug_lite.errors import UserError
from needsaug_lite.models import Adapted, stylegan2


class Painter(nn.Module):
    """Pixels are a weight times the sum of z, plus the label."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        value = self.weight * latents.sum(1) + labels
        return value[:, None, None, None].expand(-1, 1, 8, 8)


class Style(nn.Module):
    """Has StyleGAN2-ADA's attributes and remembers how it was called."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.z_dim, self.c_dim = 4, classes
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.calls: list[tuple[Tensor, Tensor, dict[str, object]]] = []

    def forward(self, z: Tensor, c: Tensor, **settings: object) -> Tensor:
        self.calls.append((z, c, settings))
        value = (self.weight * z.sum(1)).tanh()
        return value[:, None, None, None].expand(-1, 3, 8, 8)


class Ladder(nn.Module):
    """Shows its first latent number as it is."""

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return latents[:, :1, None, None].expand(-1, 1, 2, 2)


def test_the_range_of_the_network_becomes_zero_to_one() -> None:
    z = torch.tensor([[-2.0], [-1.0], [0.0], [3.0], [7.0]])
    labels = torch.zeros(5, dtype=torch.int64)
    wide = Adapted(Ladder(), 1, 2, value_range=(-1, 3)).sample(z, labels)
    assert wide[:, 0, 0, 0].tolist() == [0, 0, 0.25, 1, 1]
    usual = Adapted(Ladder(), 1, 2).sample(z, labels)
    assert usual[:, 0, 0, 0].tolist() == [0, 0, 0.5, 1, 1]


def test_a_call_of_ones_own() -> None:
    made = Adapted(
        Painter(),
        2,
        3,
        value_range=(0, 10),
        call=lambda network, latents, labels: network(latents, 2 * labels),
    )
    images = made(torch.zeros(3, 2), torch.arange(3))
    assert_close(images[:, 0, 0, 0], torch.tensor([0, 0.2, 0.4]))


def test_the_derivative_by_the_latent_vectors_is_scaled_with_the_range() -> None:
    z = torch.tensor([[0.5], [5.0]], requires_grad=True)
    images = Adapted(Ladder(), 1, 2).sample(z, torch.zeros(2, dtype=torch.int64))
    (slope,) = torch.autograd.grad(images.sum(), z)
    assert slope.flatten().tolist() == [2, 0]  # four pixels times one half; clamped


def test_draws_follow_their_source_alone() -> None:
    made = Adapted(Painter(), 3, 4)
    torch.manual_seed(1)
    one = made.noise(5, generator(7)), made.labels(5, generator(7))
    torch.manual_seed(2)
    two = made.noise(5, generator(7)), made.labels(5, generator(7))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], made.noise(5, generator(8)))
    assert one[0].shape == (5, 3)
    assert one[1].dtype == torch.int64


def test_labels_are_even_and_latents_standard_normal() -> None:
    made = Adapted(Ladder(), 2, 4)  # without parameters
    counts = made.labels(20_000, generator(3)).bincount(minlength=4)
    assert len(counts) == 4
    assert float((counts / 20_000 - 0.25).abs().max()) < 0.015
    z = made.noise(20_000, generator(4))
    assert float(z.mean(0).abs().max()) < 0.03
    assert float((z.std(0) - 1).abs().max()) < 0.03


@pytest.mark.parametrize("given", [(1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_an_empty_range_is_refused(given: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="value_range"):
        Adapted(Painter(), 2, 3, value_range=given)


@pytest.mark.parametrize("wrong", ["flat", "fewer"])
def test_what_is_no_batch_of_images_is_refused(wrong: str) -> None:
    def call(network: nn.Module, latents: Tensor, labels: Tensor) -> Tensor:
        images: Tensor = network(latents, labels)
        return images.flatten(1) if wrong == "flat" else images[1:]

    made = Adapted(Painter(), 2, 3, call=call)
    with pytest.raises(UserError, match=r"3 latent vectors.*`call`"):
        made.sample(torch.zeros(3, 2), torch.arange(3))


# --- StyleGAN2-ADA ------------------------------------------------------------


def test_stylegan_sees_latents_and_classes_one_hot() -> None:
    network = Style(3)
    made = stylegan2(network, truncation_psi=0.7, noise_mode="const")
    assert (made.latent_dim, made.num_classes, made.conditional) == (4, 3, True)
    z = torch.randn(2, 4, requires_grad=True)
    images = made.sample(z, torch.tensor([2, 0]))
    ((given, classes, settings),) = network.calls
    assert given is z
    assert classes.dtype == torch.float32
    assert classes.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert settings == {"truncation_psi": 0.7, "noise_mode": "const"}
    expected = ((0.3 * z.sum(1)).tanh() + 1) / 2
    assert_close(images[:, 1, 2, 3], expected)
    assert torch.autograd.grad(images.sum(), z)[0].abs().min() > 0


def test_stylegan_without_classes() -> None:
    network = Style(0)
    made = stylegan2(network)
    assert not made.conditional
    draw = generator(0)
    made.sample(made.noise(5, draw), made.labels(5, draw))
    _, classes, settings = network.calls[0]
    assert classes.shape == (5, 0)
    assert settings == {}


def test_what_is_no_stylegan_is_refused() -> None:
    with pytest.raises(UserError, match=r"Painter has no z_dim.*Adapted"):
        stylegan2(Painter())
