"""Rivals of the look-ahead: tuning the generator, and looking for hard images."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers.loss_search import only_train
from helpers.meta_methods import assert_same, fit_in_two, load
from helpers.synthetic import Scene, flat, make, painter, scene, smooth_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from needsaug_lite import training
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.generative import PCR
from needsaug_lite.methods.sampling_strategies import HardSampling, TunedGenerator
from needsaug_lite.models import Adapted

Aim = Literal["cross_entropy", "consistency"]
AIMS: tuple[Aim, ...] = ("cross_entropy", "consistency")


# --- the generator itself -----------------------------------------------------


def test_the_generator_follows_the_derivative_of_the_whole() -> None:
    """∇_Φ L_val(θ'(Φ)) through T and G as one graph, with z as it was drawn."""
    method = make(
        TunedGenerator,
        model=smooth_model(),
        synthetic={"strength": 0.6},
        search={"look_ahead": 0.4},
        second_order=True,
    )
    seen = scene(method)
    weights = {
        name: value.detach().clone().requires_grad_()
        for name, value in method.generator.named_parameters()
    }
    images = functional_call(method.generator, weights, (seen.latents, seen.labels))
    after = seen.after_step(images, seen.consistency, eta=0.4, strength=0.6)
    exact = flat(torch.autograd.grad(after, list(weights.values())))
    method.step(seen.batch)
    found = flat([p.grad for p in method.generator.parameters()])
    assert float((found - exact).norm() / exact.norm()) < 1e-9


def test_the_callers_generator_stays_and_the_copy_moves() -> None:
    source = painter().train()
    before = copy.deepcopy(source.state_dict())
    method = make(TunedGenerator, source=source, search={"lr": 0.01})
    training.fit(method, 1)
    assert all(torch.equal(before[n], v) for n, v in source.state_dict().items())
    moved = method.generator.state_dict()
    assert all(not torch.equal(before[name], moved[name]) for name in before)
    assert all(p.requires_grad and p.grad is None for p in source.parameters())


def test_it_trains_on_the_images_that_it_improves() -> None:
    """The finder has no part in it, whatever its form."""
    runs = [
        make(TunedGenerator, search={"kind": kind, "lr": 0.01})
        for kind in ("residual", "mlp")
    ]
    for run in runs:
        training.fit(run, 1)
    assert_same(runs[0], runs[1], "/model")
    assert_same(runs[0], runs[1], "/generator")


def test_a_generator_that_stands_still_is_pcr() -> None:
    still, plain = make(TunedGenerator, search={"lr": 1e-30}), make(PCR)
    for run in (still, plain):
        training.fit(run, 1)
    assert_same(still, plain, "/model")


class Lazy(nn.Module):
    """Has weights that it doesn't use, as a StyleGAN with constant noise has."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 64), nn.Linear(6, 64)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        made: Tensor = self.used(latents).tanh()
        return made.view(-1, 1, 8, 8)


def test_weights_that_are_not_used_stay() -> None:
    torch.manual_seed(1)
    source = Adapted(Lazy(), 6, 10)
    method = make(TunedGenerator, source=source, search={"lr": 0.01})
    training.fit(method, 1)
    before, after = source.state_dict(), method.generator.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) == ("unused" in name)


class Formula(nn.Module):
    """Images without a single weight."""

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return (latents + labels[:, None] / 5).tanh().view(-1, 1, 8, 8)


def test_a_generator_without_weights() -> None:
    source = Adapted(Formula(), 64, 10)
    with pytest.raises(UserError, match="without weights"):
        make(TunedGenerator, source=source)
    training.fit(make(HardSampling, source=source), 1)


# --- hard images --------------------------------------------------------------


def hard(aim: Aim, **search: Any) -> Scene:
    settings = {"lambda_kl": 0.0, "lr": 1e-5, **search}
    made = make(HardSampling, model=smooth_model(), search=settings, aim=aim)
    return scene(made)


def aim_of(seen: Scene) -> Any:
    harder = seen.method.aim == "cross_entropy"
    return seen.supervision if harder else seen.consistency


@pytest.mark.parametrize("aim", AIMS)
def test_a_step_makes_the_images_harder(aim: Aim) -> None:
    seen = hard(aim)
    theta = {name: value.detach() for name, value in seen.theta().items()}
    phi = seen.phi()
    before = aim_of(seen)(theta, seen.images(phi))
    exact = torch.autograd.grad(before, list(phi.values()))
    seen.method.step(seen.batch)
    found = [p.grad for p in seen.method.finder.parameters()]
    assert_close(found, [-slope for slope in exact], rtol=1e-9, atol=1e-14)
    after = aim_of(seen)(theta, seen.images(seen.phi()))
    assert float(after.detach()) > float(before.detach())


def test_stopping_the_gradient_of_theta_does_not_stop_that_of_phi() -> None:
    found = []
    for stop in (False, True):
        made = make(
            HardSampling,
            model=smooth_model(),
            search={"lambda_kl": 0.0},
            aim="consistency",
            stop_gradient=stop,
        )
        seen = scene(made)
        made.step(seen.batch)
        found.append(flat([p.grad for p in made.finder.parameters()]))
    assert_close(*found)


def test_the_aim_does_not_touch_the_gradient_of_the_network() -> None:
    """θ follows L + λ L_PCR whatever F aims at."""
    found = []
    for aim in AIMS:
        seen = hard(aim, lr=1e-30)
        seen.method.step(seen.batch)
        found.append(flat([p.grad for p in seen.method.model.parameters()]))
    assert_close(*found)


def test_no_meta_images_are_needed() -> None:
    training.fit(make(HardSampling, only_train(load().without_true_labels())), 1)


@pytest.mark.parametrize("kind", [TunedGenerator, HardSampling])
def test_a_killed_run_ends_like_one_that_was_never_interrupted(
    kind: Any, tmp_path: Path
) -> None:
    def one() -> Any:
        return make(kind, search={"lr": 0.01})

    whole = one()
    training.fit(whole, 3)
    assert_same(whole, fit_in_two(one, 3, 2, tmp_path / "run"))
