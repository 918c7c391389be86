"""Several levels: every path by itself, at rates that let none of them hide."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.bilevel import Tensors, error, free
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from needsaug_lite import hypergrad
from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad import Level, chain, chain_exact

# Large, so that no path is small beside the others.
RATES = {"first": 0.9, "generator": 0.7, "second": 0.8}
PATHS = ("direct", "first", "second", "first -> second", "generator -> second")


class ThreeLevels:
    """The graph of needs_aware: W1 and G step, then W2 reads both, then A is judged."""

    def __init__(self, seed: int, width: int = 3) -> None:
        source = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source, dtype=torch.float64)

        self.first = {"u": draw(width), "c": draw(2)}
        self.generator = {"g": draw(width, 2)}
        self.second = {"w": draw(width), "d": draw(2)}
        self.hparams = {"a": draw(width), "e": draw(2)}
        self.mix = draw(width, width)

    def first_loss(self, weights: dict, h: Tensors) -> Tensor:
        own = weights["first"]
        bent = (own["u"] * h["a"]).sin().sum() + 0.5 * (
            own["u"] @ self.mix
        ).square().mean()
        return bent + (own["c"] * h["e"]).cos().sum()

    def generator_loss(self, weights: dict, h: Tensors) -> Tensor:
        own = weights["generator"]["g"]
        return (own.T @ h["a"] + h["e"]).cos().sum() + 0.3 * own.square().mean()

    def second_loss(self, weights: dict, h: Tensors) -> Tensor:
        own, w1, g = weights["second"], weights["first"], weights["generator"]["g"]
        need = (w1["u"] * own["w"]).cos().sum() * w1["c"].tanh().sum()
        made = ((own["w"] @ g + own["d"]) * h["e"]).sin().sum()
        return need + made + (own["w"] * h["a"]).square().mean()

    def outer(self, weights: dict, h: Tensors) -> Tensor:
        second = weights["second"]
        judged = (second["w"] * h["a"]).cos().sum() + second["d"].tanh().sum()
        return judged + 0.7 * (weights["first"]["u"] + h["a"]).sin().sum()

    def levels(self, **reads: str) -> list[Level]:
        reads = {"first": "updated", "generator": "updated", **reads}
        return [
            Level("first", self.first_loss, self.first, RATES["first"]),
            Level("generator", self.generator_loss, self.generator, RATES["generator"]),
            Level("second", self.second_loss, self.second, RATES["second"], reads),
        ]

    def cut(self, *kept: str) -> Tensors:
        """The derivative by one graph through the edges in `kept`; others are held.

        An edge is "h>level", "level>level", "level>outer" or "h>outer".
        """
        h = free(self.hparams)
        still = {name: t.detach() for name, t in h.items()}

        def seen(edge: str, live: Tensors) -> Tensors:
            return live if edge in kept else {n: t.detach() for n, t in live.items()}

        def step(name: str, loss: Callable, weights: Tensors, others: dict) -> Tensors:
            own = free(weights)
            value = loss({name: own, **others}, h if f"h>{name}" in kept else still)
            found = torch.autograd.grad(value, list(own.values()), create_graph=True)
            return {
                n: t.detach() - RATES[name] * g
                for (n, t), g in zip(own.items(), found, strict=True)
            }

        first = step("first", self.first_loss, self.first, {})
        generator = step("generator", self.generator_loss, self.generator, {})
        others = {
            "first": seen("first>second", first),
            "generator": seen("generator>second", generator),
        }
        second = step("second", self.second_loss, self.second, others)
        weights = {
            "first": seen("first>outer", first),
            "second": seen("second>outer", second),
        }
        value = self.outer(weights, h if "h>outer" in kept else still)
        found = torch.autograd.grad(
            value, list(h.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(h, found, strict=True))


EDGES = {
    "direct": ["h>outer"],
    "first": ["h>first", "first>outer"],
    "second": ["h>second", "second>outer"],
    "first -> second": ["h>first", "first>second", "second>outer"],
    "generator -> second": ["h>generator", "generator>second", "second>outer"],
}
EVERYTHING = sorted({edge for edges in EDGES.values() for edge in edges})


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 4))
def test_the_whole_by_one_graph(seed: int, width: int) -> None:
    problem = ThreeLevels(seed, width)
    truth = problem.cut(*EVERYTHING)
    arguments = (problem.levels(), problem.outer, problem.hparams)
    assert error(chain_exact(*arguments), truth) < 1e-9
    assert error(chain(*arguments, radius=1e-3), truth) < 1e-4


@pytest.mark.parametrize("path", PATHS)
def test_each_path_by_itself(path: str) -> None:
    problem = ThreeLevels(9)
    truth = problem.cut(*EDGES[path])
    arguments = (problem.levels(), problem.outer, problem.hparams)
    exact, ours = chain_exact(*arguments), chain(*arguments, radius=1e-3)
    assert list(exact.paths) == list(ours.paths)
    assert set(exact.paths) == set(PATHS)
    assert error(exact.paths[path], truth) < 1e-9
    assert error(ours.paths[path], truth) < 1e-4
    # Large enough to be missed if it were not there.
    total = sum(float(length) for length in exact.path_norms.values())
    assert float(exact.path_norms[path]) / total > 0.01


def test_the_paths_add_up_and_their_norms_are_theirs() -> None:
    problem = ThreeLevels(2)
    found = chain(problem.levels(), problem.outer, problem.hparams)
    for name, total in found.items():
        parts = [path[name] for path in found.paths.values()]
        torch.testing.assert_close(torch.stack(parts).sum(0), total)
    for path, length in found.path_norms.items():
        square = sum(t.square().sum() for t in found.paths[path].values())
        torch.testing.assert_close(length, square.sqrt())


@pytest.mark.parametrize("estimator", [chain_exact, chain])
def test_joined_paths_have_the_same_sum(estimator: Callable) -> None:
    problem = ThreeLevels(11)
    arguments = (problem.levels(), problem.outer, problem.hparams)
    apart, joined = (estimator(*arguments, paths=paths) for paths in (True, False))
    assert error(joined, apart) < (1e-12 if estimator is chain_exact else 1e-4)
    # A vector that goes on alone is what it was; "first" has two ways behind it.
    assert set(joined.paths) == {"direct", "first", "generator", "second"}
    for name, parts in {
        "direct": ["direct"],
        "first": ["first", "first -> second"],
        "generator": ["generator -> second"],
        "second": ["second"],
    }.items():
        summed = {
            n: torch.stack([apart.paths[part][n] for part in parts]).sum(0)
            for n in problem.hparams
        }
        assert error(joined.paths[name], summed) < 1e-3
        length = torch.stack([t.square().sum() for t in joined.paths[name].values()])
        torch.testing.assert_close(joined.path_norms[name], length.sum().sqrt())


def test_the_error_of_joined_differences_falls_as_radius_squared() -> None:
    problem = ThreeLevels(12)
    arguments = (problem.levels(), problem.outer, problem.hparams)
    exact = chain_exact(*arguments)
    coarse, fine = (
        error(chain(*arguments, radius=r, paths=False), exact) for r in (0.02, 0.01)
    )
    assert coarse / fine == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("paths", [True, False])
@pytest.mark.parametrize("estimator", [chain_exact, chain])
def test_the_gradients_are_those_of_the_levels_where_they_stood(
    estimator: Callable, paths: bool
) -> None:
    problem = ThreeLevels(10)
    levels = problem.levels()
    found = estimator(levels, problem.outer, problem.hparams, paths=paths)
    assert list(found.gradients) == ["first", "generator", "second"]
    for level in levels:
        own = free(level.params)
        others = {name: found.weights[name] for name in level.reads}
        value = level.loss({level.name: own, **others}, problem.hparams)
        slopes = torch.autograd.grad(value, list(own.values()))
        truth = dict(zip(own, slopes, strict=True))
        assert error(found.gradients[level.name], truth) < 1e-12
        # One step of them leads to the updated weights.
        moved = {n: level.params[n] - level.lr * g for n, g in truth.items()}
        assert error(found.weights[level.name], moved) < 1e-12


def test_frozen_tensors_have_no_gradient_of_their_level() -> None:
    problem = ThreeLevels(10)
    problem.first["u"].requires_grad_()
    found = chain(problem.levels(), problem.outer, problem.hparams)
    assert list(found.gradients["first"]) == ["u"]


def test_the_error_of_differences_falls_as_radius_squared() -> None:
    problem = ThreeLevels(3)
    arguments = (problem.levels(), problem.outer, problem.hparams)
    exact = chain_exact(*arguments)
    for path in PATHS[1:]:
        coarse, fine = (
            error(chain(*arguments, radius=r).paths[path], exact.paths[path])
            for r in (0.04, 0.02)
        )
        assert coarse / fine == pytest.approx(4, rel=0.1), path


def test_old_weights_cut_their_path_and_change_what_is_read() -> None:
    problem = ThreeLevels(4)
    found = chain_exact(problem.levels(first="old"), problem.outer, problem.hparams)
    assert "first -> second" not in found.paths
    both = chain_exact(problem.levels(), problem.outer, problem.hparams)
    assert error(found.weights["second"], both.weights["second"]) > 1e-3
    assert error(found.weights["first"], both.weights["first"]) < 1e-14


def test_one_level_is_one_unrolled_step() -> None:
    problem = ThreeLevels(5)
    level = Level("generator", problem.generator_loss, problem.generator, 0.7)

    def outer(weights: dict, h: Tensors) -> Tensor:
        return (weights["generator"]["g"].T @ h["a"]).sin().sum()

    unrolled = hypergrad.unrolled(
        lambda p, h: problem.generator_loss({"generator": p}, h),
        lambda p, h: outer({"generator": p}, h),
        problem.generator,
        problem.hparams,
        lr=0.7,
    )
    found = chain_exact([level], outer, problem.hparams)
    assert error(found, unrolled) < 1e-12
    assert error(found.weights["generator"], unrolled.params) < 1e-14
    torch.testing.assert_close(found.vector_norm, unrolled.vector_norm)
    assert error(chain([level], outer, problem.hparams, radius=1e-3), unrolled) < 1e-4


def test_a_level_that_the_outer_loss_does_not_see_has_no_path_of_its_own() -> None:
    problem = ThreeLevels(6)

    def outer(weights: dict, h: Tensors) -> Tensor:
        return weights["second"]["w"].square().sum()

    found = chain(problem.levels(), outer, problem.hparams)
    assert set(found.paths) == set(PATHS) - {"first"}
    assert float(found.path_norms["direct"]) == 0


def test_the_weights_of_the_caller_are_untouched() -> None:
    problem = ThreeLevels(7)
    before = {n: t.clone() for n, t in problem.second.items()}
    chain(problem.levels(), problem.outer, problem.hparams)
    chain_exact(problem.levels(), problem.outer, problem.hparams)
    for name, tensor in before.items():
        assert torch.equal(tensor, problem.second[name])
        assert problem.second[name].grad is None


def test_levels_that_cannot_be_put_in_order() -> None:
    problem = ThreeLevels(8)
    first, generator, second = problem.levels()
    arguments = (problem.outer, problem.hparams)
    with pytest.raises(UserError, match="steps after it"):
        chain([second, first, generator], *arguments)
    with pytest.raises(UserError, match="reads 'third'"):
        chain(
            [Level("x", problem.outer, problem.first, 0.1, {"third": "old"})],
            *arguments,
        )
    with pytest.raises(UserError, match="each its own"):
        chain([first, first], *arguments)
    with pytest.raises(UserError, match="'old' or 'updated'"):
        chain(problem.levels(first="new"), *arguments)
    undeclared = Level("second", problem.second_loss, problem.second, 0.1)
    with pytest.raises(UserError, match="add 'first' to its reads"):
        chain([first, generator, undeclared], *arguments)
    with pytest.raises(UserError, match="positive number"):
        chain([Level("x", problem.outer, problem.first, -0.1)], *arguments)
