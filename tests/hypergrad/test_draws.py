"""Random layers, buffers and the caller's state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers.bilevel import error, flat
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, softplus

from needsaug_lite import hypergrad

ESTIMATORS: dict[str, Callable] = {
    "unrolled": partial(hypergrad.unrolled, lr=0.1),
    "two steps": partial(hypergrad.unrolled, lr=0.1, steps=2),
    "finite_difference": partial(hypergrad.finite_difference, lr=0.1, radius=1e-3),
    "neumann": partial(hypergrad.implicit, solver=hypergrad.neumann(2, 0.01)),
    "conjugate_gradient": partial(
        hypergrad.implicit, solver=hypergrad.conjugate_gradient(2, damping=10.0)
    ),
}


class Noisy:
    """A network with dropout and batch norm, in training mode."""

    def __init__(self, rate: float = 0.5) -> None:
        self.model = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(rate),
            nn.Linear(16, 3),
        )  # fmt: skip
        self.images, self.labels = torch.randn(40, 6), torch.randint(3, (40,))
        self.held_images, self.held_labels = torch.randn(30, 6), torch.randint(3, (30,))
        self.params = dict(self.model.named_parameters())
        self.hparams = {"weight": torch.randn(3)}

    def inner(self, params: dict, hparams: dict) -> Tensor:
        logits = functional_call(self.model, params, self.images)
        # PyTorch's own class weights have no derivative.
        losses = cross_entropy(logits, self.labels, reduction="none")
        return (softplus(hparams["weight"])[self.labels] * losses).mean()

    def outer(self, params: dict, hparams: dict) -> Tensor:
        logits = functional_call(self.model, params, self.held_images)
        return cross_entropy(logits, self.held_labels)

    def __call__(
        self, estimator: Callable, **options: object
    ) -> hypergrad.Hypergradient:
        return estimator(self.inner, self.outer, self.params, self.hparams, **options)


def cosine(one: dict, other: dict) -> float:
    return float(torch.cosine_similarity(flat(one), flat(other), dim=0))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_of_the_caller_changes(name: str) -> None:
    problem = Noisy()
    buffers = {n: b.clone() for n, b in problem.model.named_buffers()}
    weights = {n: p.detach().clone() for n, p in problem.params.items()}
    state = torch.get_rng_state()
    found = problem(ESTIMATORS[name])
    assert torch.equal(torch.get_rng_state(), state)
    for n, buffer in problem.model.named_buffers():
        assert torch.equal(buffer, buffers[n]), n
    for n, parameter in problem.model.named_parameters():
        assert torch.equal(parameter.detach(), weights[n])
        assert parameter.grad is None
    assert all(not t.requires_grad for t in [*found.values(), *found.params.values()])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_everything_of_the_caller_is_put_back_after_an_error(name: str) -> None:
    problem = Noisy()
    buffers = {n: b.clone() for n, b in problem.model.named_buffers()}
    state = torch.get_rng_state()

    def broken(params: dict, hparams: dict) -> Tensor:
        problem.outer(params, hparams)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ESTIMATORS[name](problem.inner, broken, problem.params, problem.hparams)
    assert torch.equal(torch.get_rng_state(), state)
    for n, buffer in problem.model.named_buffers():
        assert torch.equal(buffer, buffers[n]), n
    problem.model(problem.images)  # no hook stays behind
    assert not torch.equal(problem.model[1].running_mean, buffers["1.running_mean"])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_draws_repeat_with_the_seed_and_change_with_it(name: str) -> None:
    problem, estimator = Noisy(), ESTIMATORS[name]
    torch.manual_seed(5)
    first, again = problem(estimator), problem(estimator)
    assert error(first, again) == 0
    torch.manual_seed(6)
    assert error(problem(estimator), first) > 1e-3


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_generator_gives_new_draws_each_time_and_repeats_with_its_seed(
    name: str,
) -> None:
    problem, estimator = Noisy(), ESTIMATORS[name]

    def three(seed: int) -> list[hypergrad.Hypergradient]:
        source = torch.Generator().manual_seed(seed)
        return [problem(estimator, generator=source) for _ in range(3)]

    one, two = three(1), three(1)
    for a, b in zip(one, two, strict=True):
        assert error(a, b) == 0
    assert error(one[0], one[1]) > 1e-3
    assert error(one[1], one[2]) > 1e-3


def test_a_closure_may_draw_from_the_generator_handed_in() -> None:
    """Both sides of the difference see the same noise; the next estimate another."""
    source = torch.Generator().manual_seed(0)
    seen: list[Tensor] = []

    def inner(p: dict, h: dict) -> Tensor:
        noise = torch.randn(4, generator=source)
        seen.append(noise)
        return ((p["x"] + noise).sin() * h["h"]).sum()

    def outer(p: dict, h: dict) -> Tensor:
        return (p["x"] ** 2).sum()

    params, hparams = {"x": torch.randn(4)}, {"h": torch.randn(4)}
    for _ in range(2):
        hypergrad.finite_difference(
            inner, outer, params, hparams, lr=0.1, generator=source
        )
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[3])


def test_the_two_sides_of_a_difference_see_the_same_dropout() -> None:
    """Against the exact step on the same draws; unpaired sides are far off."""
    problem = Noisy()
    exact = problem(ESTIMATORS["unrolled"])
    assert error(problem(ESTIMATORS["finite_difference"]), exact) < 1e-4

    def unpaired(params: dict, hparams: dict) -> Tensor:
        with torch.random.fork_rng():
            torch.seed()
            return problem.inner(params, hparams)

    estimator = ESTIMATORS["finite_difference"]
    naive = [
        estimator(unpaired, problem.outer, problem.params, problem.hparams)
        for _ in range(2)
    ]
    assert abs(cosine(naive[0], exact)) < 0.9 or abs(cosine(naive[1], exact)) < 0.9


def test_closures_of_a_sequence_and_steps_draw_different_numbers() -> None:
    seen: list[float] = []

    def inner(p: dict, h: dict) -> Tensor:
        noise = torch.rand(())
        seen.append(float(noise))
        return ((p["x"] - h["h"]) ** 2).sum() * noise

    def outer(p: dict, h: dict) -> Tensor:
        noise = torch.rand(())
        seen.append(float(noise))
        return (p["x"] ** 2).sum() * noise

    params, hparams = {"x": torch.ones(2)}, {"h": torch.zeros(2)}
    hypergrad.unrolled([inner, inner], outer, params, hparams, lr=0.1, steps=2)
    # Two steps of two closures, each evaluated again for its product, and the outer.
    assert len(set(seen)) == 5


def test_a_module_whose_output_depends_on_its_buffers() -> None:
    """Spectral norm moves its power iteration at every call in training mode."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))
    images = torch.randn(8, 5)
    params = dict(layer.named_parameters())
    before = {n: b.clone() for n, b in layer.named_buffers()}
    values = []

    def inner(p: dict, h: dict) -> Tensor:
        value = (functional_call(layer, p, images).tanh() * h["h"]).mean()
        values.append(value.item())
        return value

    def outer(p: dict, h: dict) -> Tensor:
        return functional_call(layer, p, images).square().mean()

    hparams = {"h": torch.randn(5)}
    parts = [inner, inner]
    exact = hypergrad.unrolled(inner, outer, params, hparams, lr=0.1)
    again = hypergrad.unrolled(parts, outer, params, hparams, lr=0.1)
    assert len(set(values)) == 1
    assert error(exact, again) < 1e-9
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name])


def test_buffers_handed_over_with_the_parameters_are_not_changed() -> None:
    problem = Noisy()
    given = {**problem.params, **dict(problem.model.named_buffers())}
    given = {name: tensor.clone() for name, tensor in given.items()}
    given = {
        name: t.requires_grad_() if name in problem.params else t.detach()
        for name, t in ((n, t.detach()) for n, t in given.items())
    }
    before = {name: t.detach().clone() for name, t in given.items()}
    for estimator in ESTIMATORS.values():
        found = estimator(problem.inner, problem.outer, given, problem.hparams)
        for name, tensor in given.items():
            assert torch.equal(tensor.detach(), before[name]), name
        assert set(found.params) == set(given)
