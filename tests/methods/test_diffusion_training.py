"""Training a diffusion model: its loss, its average, and a killed run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from needsaug_lite import data, training
from needsaug_lite.data import Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.endless import FixedSteps
from needsaug_lite.methods.generation.diffusion import Diffusion, denoising_loss
from needsaug_lite.models.diffusion import EDM, preconditioning


def digits() -> Splits:
    return data.load("digits")


def make(steps: int = 4, **settings: Any) -> Diffusion:
    """A small one whose epochs have few steps."""
    torch.manual_seed(0)
    method = Diffusion(digits(), width=8, batch_size=16, **settings)
    method.batches = FixedSteps(method.batches.batches, steps)
    return method


def weights(method: Diffusion) -> dict[str, Tensor]:
    return {name: w.clone() for name, w in method.model.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


def batch(size: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = data.generator(8)
    images = torch.randn(size, 1, 8, 8, generator=draw, dtype=torch.float64) / 2
    sigma = torch.randn(size, generator=draw, dtype=torch.float64).exp()
    noise = torch.randn(size, 1, 8, 8, generator=draw, dtype=torch.float64)
    return images, torch.arange(size) % 4, sigma, noise


def test_the_weight_makes_it_the_loss_of_the_inner_network() -> None:
    """λ c_out² = 1: the loss is ‖F - (x - c_skip x_noisy) / c_out‖² / d."""
    torch.manual_seed(1)
    model = EDM((1, 8, 8), 4, width=8).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images, labels, sigma, noise = batch()
    skip, out, into = preconditioning(sigma[:, None, None, None])
    noisy = images + sigma[:, None, None, None] * noise
    target = (images - skip * noisy) / out
    inner = model.network(into * noisy, sigma.log() / 4, labels)
    torch.testing.assert_close(
        denoising_loss(model, images, labels, sigma, noise),
        (inner - target).square().mean(),
    )


def test_the_loss_starts_near_one_for_every_noise() -> None:
    """For data of variance σ_d², because F is silent and its target has variance 1."""
    model = EDM((1, 8, 8), 4, width=8).double()
    images, labels, _, noise = batch(400)
    for level in (0.01, 0.5, 20.0):
        sigma = torch.full((400,), level, dtype=torch.float64)
        loss = denoising_loss(model, images, labels, sigma, noise)
        assert float(loss.detach()) == pytest.approx(1, abs=0.03)


def test_levels_of_a_step_follow_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """ln σ ~ N(-1.2, 1.2²), n ~ N(0, 1), and images in [-1, 1]."""
    seen: list[tuple[Tensor, ...]] = []

    def spy(network: EDM, *given: Tensor) -> Tensor:
        seen.append(given)
        return denoising_loss(network, *given)

    name = "needsaug_lite.methods.generation.diffusion.denoising_loss"
    monkeypatch.setattr(name, spy)
    method = make(40)
    training.fit(method, 2)
    images, _, sigma, noise = (torch.cat(parts) for parts in zip(*seen, strict=True))
    logs = sigma.log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.12)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.1)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert (float(images.min()), float(images.max())) == (-1, 1)
    assert len(set(logs.tolist())) == len(logs)  # no step sees another's draws


def test_training_lowers_the_loss() -> None:
    method = make(30)
    history = training.fit(method, 4)
    first, *_, last = history.column("loss")
    assert last < 0.8 * first


def test_the_generator_is_the_moving_average() -> None:
    method = make(1, ema=0.75)
    networks: list[dict[str, Tensor]] = []

    def keep(*_: object) -> dict[str, float]:
        state = method.network.state_dict()
        networks.append({name: w.clone() for name, w in state.items()})
        return {}

    training.fit(method, 3, on_epoch=keep)
    for name, found in method.generator.state_dict().items():
        first, second, third = (state[name] for state in networks)
        expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_generator_is_ready_to_use() -> None:
    method = make(sampling_steps=2)
    training.fit(method, 1)
    made = method.generator
    assert not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    latents = made.noise(5, data.generator(0)).requires_grad_()
    images = made.sample(latents, made.labels(5, data.generator(1)))
    assert images.shape == (5, 1, 8, 8)
    assert images.dtype == torch.float32
    assert float(images.detach().min()) >= 0
    assert float(images.detach().max()) <= 1
    (slope,) = torch.autograd.grad(images.sum(), latents)
    assert float(slope.abs().sum()) > 0


def test_the_seed_decides_and_not_the_state_of_torch() -> None:
    runs = []
    for number, seed in enumerate((4, 4, 5)):
        method = make(seed=seed)
        torch.manual_seed(number)
        training.fit(method, 2)
        runs.append(weights(method))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_killed_and_resumed_ends_where_uninterrupted_does(tmp_path: Path) -> None:
    whole = make()
    training.fit(whole, 4)
    file = tmp_path / "checkpoint.pt"

    class KilledError(Exception):
        pass

    def kill(epoch: int, _: object) -> dict[str, float]:
        if epoch == 2:
            raise KilledError
        return {}

    with pytest.raises(KilledError):
        training.fit(make(), 4, checkpoint=file, on_epoch=kill)
    torch.manual_seed(99)
    again = Diffusion(digits(), width=8, batch_size=16)
    again.batches = FixedSteps(again.batches.batches, 4)
    training.fit(again, 4, checkpoint=file, resume=True)
    assert equal(weights(whole), weights(again))
    assert not equal(weights(whole), weights(make()))


def test_it_looks_at_training_images_alone() -> None:
    splits = digits()
    nothing = splits.train.subset(torch.zeros(0, dtype=torch.int64))
    bare = dataclasses.replace(splits, val=nothing, meta=nothing, test=nothing)
    found = []
    for given in (splits, bare):
        torch.manual_seed(0)
        method = Diffusion(given, width=8, batch_size=16)
        method.batches = FixedSteps(method.batches.batches, 2)
        training.fit(method, 1)
        found.append(weights(method))
    assert equal(*found)


def test_features_are_refused() -> None:
    splits = digits()
    features = data.InMemory(torch.randn(len(splits.train), 64, 1, 1))
    train = data.Examples(features, splits.train.labels)
    with pytest.raises(UserError, match="64 x 1 x 1"):
        Diffusion(dataclasses.replace(splits, train=train))
