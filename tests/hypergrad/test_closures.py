"""What the estimators accept: modules, frozen tensors, compiled losses; and refuse."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers.bilevel import Smooth, Tensors, error
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from needsaug_lite import hypergrad
from needsaug_lite.errors import UserError

ESTIMATORS: dict[str, Callable] = {
    "unrolled": partial(hypergrad.unrolled, lr=0.1),
    "finite_difference": partial(hypergrad.finite_difference, lr=0.1),
    "implicit": partial(hypergrad.implicit, solver=hypergrad.neumann(2, 0.01)),
}
everywhere = pytest.mark.parametrize("name", ESTIMATORS)


class Classifier:
    """A convolutional network; per-class weights as hyperparameters."""

    def __init__(self) -> None:
        self.model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(),
            nn.Linear(3 * 4 * 4, 4),
        ).eval()  # fmt: skip
        self.images, self.labels = torch.randn(12, 1, 6, 6), torch.randint(4, (12,))
        self.params = dict(self.model.named_parameters())
        self.hparams = {"log_weight": 0.4 * torch.randn(4)}

    def inner(self, params: Tensors, hparams: Tensors) -> Tensor:
        logits = functional_call(self.model, params, self.images)
        losses = cross_entropy(logits, self.labels, reduction="none")
        return (hparams["log_weight"].exp()[self.labels] * losses).mean()

    def outer(self, params: Tensors, hparams: Tensors) -> Tensor:
        logits = functional_call(self.model, params, self.images.flip(3))
        return cross_entropy(logits, self.labels)


@everywhere
def test_a_module_with_its_buffers_handed_over_or_not(name: str) -> None:
    net = Classifier()
    buffers = dict(net.model.named_buffers())
    alone = ESTIMATORS[name](net.inner, net.outer, net.params, net.hparams)
    together = ESTIMATORS[name](
        net.inner, net.outer, {**net.params, **buffers}, net.hparams
    )
    assert error(alone, together) < 1e-12


@everywhere
def test_plain_tensors_and_tensors_with_a_gradient_are_the_same(name: str) -> None:
    net = Classifier()
    plain = {n: t.detach() for n, t in net.params.items()}
    marked = {n: t.clone().requires_grad_() for n, t in net.hparams.items()}
    one = ESTIMATORS[name](net.inner, net.outer, net.params, net.hparams)
    other = ESTIMATORS[name](net.inner, net.outer, plain, marked)
    assert error(one, other) == 0
    with torch.no_grad():
        third = ESTIMATORS[name](net.inner, net.outer, plain, marked)
    assert error(one, third) == 0


@everywhere
def test_frozen_parameters_stay_and_change_the_answer_as_constants_do(
    name: str,
) -> None:
    net = Classifier()
    net.model[0].weight.requires_grad_(False)
    frozen = ESTIMATORS[name](net.inner, net.outer, net.params, net.hparams)
    assert torch.equal(frozen.params["0.weight"], net.params["0.weight"])
    rest = {n: t for n, t in net.params.items() if n != "0.weight"}
    constant = ESTIMATORS[name](net.inner, net.outer, rest, net.hparams)
    assert error(frozen, constant) < 1e-12
    net.model[0].weight.requires_grad_(True)
    free = ESTIMATORS[name](net.inner, net.outer, net.params, net.hparams)
    assert error(free, frozen) > 1e-6


@everywhere
def test_frozen_hyperparameters_have_derivative_zero(name: str) -> None:
    problem = Smooth(torch.Generator().manual_seed(0))
    hparams = dict(problem.hparams)
    hparams["scale"] = hparams["scale"].clone().requires_grad_()
    found = ESTIMATORS[name](problem.inner, problem.outer, problem.params, hparams)
    assert list(found) == ["scale", "shift"]
    assert not found["shift"].any()
    assert found["scale"].any()


@everywhere
def test_gradients_for_an_optimiser(name: str) -> None:
    net = Classifier()
    log_weight = net.hparams["log_weight"].clone().requires_grad_()
    found = ESTIMATORS[name](
        net.inner, net.outer, net.params, {"log_weight": log_weight}
    )
    before = log_weight.detach().clone()
    optimiser = torch.optim.SGD([log_weight], lr=0.5)
    found.set_grad({"log_weight": log_weight})
    optimiser.step()
    torch.testing.assert_close(log_weight.detach(), before - 0.5 * found["log_weight"])


def test_a_small_step_against_the_hypergradient_lowers_the_outer_loss() -> None:
    """What the sign means, through the real training step."""
    net = Classifier()
    found = hypergrad.unrolled(net.inner, net.outer, net.params, net.hparams, lr=0.5)
    size = 0.1 / float(found.path_norms["params"])
    moved = {"log_weight": net.hparams["log_weight"] - size * found["log_weight"]}
    after = hypergrad.unrolled(net.inner, net.outer, net.params, moved, lr=0.5)
    expected = size * found["log_weight"].square().sum()
    assert float(found.outer_loss - after.outer_loss) == pytest.approx(
        float(expected), rel=0.1
    )


# Compiled functions. The backend changes nothing in what autograd is asked for.
compile_it = partial(torch.compile, backend="aot_eager")


def test_a_compiled_loss_needs_a_compiled_gradient() -> None:
    problem = Smooth(torch.Generator().manual_seed(1))
    arguments = (problem.outer, problem.params, problem.hparams)
    once = compile_it(problem.inner)
    twice = hypergrad.compiled(problem.inner, backend="aot_eager")
    for name in ("unrolled", "implicit"):
        with pytest.raises(UserError, match=r"hypergrad\.compiled"):
            ESTIMATORS[name](once, *arguments)
        plain = ESTIMATORS[name](problem.inner, *arguments)
        assert error(ESTIMATORS[name](twice, *arguments), plain) < 1e-12
        parts = ESTIMATORS[name]([twice, twice], *arguments)
        assert error(parts, plain) < 1e-12
    plain = ESTIMATORS["finite_difference"](problem.inner, *arguments)
    for loss in (once, twice):
        found = ESTIMATORS["finite_difference"](loss, *arguments)
        assert error(found, plain) < 1e-9


def test_step_and_derivative_come_from_the_same_compiled_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two compiled functions may draw different dropout masks from one random state."""
    problem = Smooth(torch.Generator().manual_seed(2))
    twice = hypergrad.compiled(problem.inner, backend="aot_eager")

    def other(*_: object) -> Tensor:
        raise AssertionError("the compiled value was asked")

    monkeypatch.setattr(twice, "_value", other)
    for name in ("unrolled", "implicit"):
        for inner in (twice, [twice, twice]):
            ESTIMATORS[name](inner, problem.outer, problem.params, problem.hparams)


def test_a_compiled_loss_with_frozen_tensors() -> None:
    net = Classifier()
    given = {**net.params, **dict(net.model.named_buffers())}
    given["4.bias"] = given["4.bias"].detach()
    twice = hypergrad.compiled(net.inner, backend="aot_eager")
    plain = hypergrad.unrolled(net.inner, net.outer, given, net.hparams, lr=0.1)
    found = hypergrad.unrolled(twice, net.outer, given, net.hparams, lr=0.1)
    assert error(found, plain) < 1e-9


def test_a_compiled_module() -> None:
    net = Classifier()
    plain = ESTIMATORS["finite_difference"](
        net.inner, net.outer, net.params, net.hparams
    )
    module = compile_it(net.model)
    net.params = dict(module.named_parameters())
    net.model = module
    found = ESTIMATORS["finite_difference"](
        net.inner, net.outer, net.params, net.hparams
    )
    assert error(found, plain) < 1e-9
    with pytest.raises(UserError, match="torch.compile has compiled"):
        ESTIMATORS["unrolled"](net.inner, net.outer, net.params, net.hparams)


# Refusals.


@everywhere
def test_a_closure_that_ignores_its_arguments(name: str) -> None:
    net = Classifier()

    def own_weights(params: Tensors, hparams: Tensors) -> Tensor:
        losses = cross_entropy(net.model(net.images), net.labels, reduction="none")
        return (hparams["log_weight"].exp()[net.labels] * losses).mean()

    for losses in ((own_weights, net.outer), (net.inner, own_weights)):
        with pytest.raises(UserError, match="functional_call"):
            ESTIMATORS[name](*losses, net.params, net.hparams)


@everywhere
def test_losses_that_ignore_the_hyperparameters(name: str) -> None:
    """A closure over a variable outside instead of its argument: zero, with a word."""
    net = Classifier()

    def inner(params: Tensors, hparams: Tensors) -> Tensor:
        return net.inner(params, net.hparams)

    with pytest.warns(hypergrad.HypergradientWarning, match="zero everywhere"):
        found = ESTIMATORS[name](inner, net.outer, net.params, net.hparams)
    assert not found["log_weight"].any()


@everywhere
def test_losses_that_are_not_scalars(name: str) -> None:
    problem = Smooth(torch.Generator().manual_seed(0))

    def per_sample(params: Tensors, hparams: Tensors) -> Tensor:
        return params["weight"].sum(1)

    with pytest.raises(UserError, match=r"inner_loss returned .*shape \(4,\).*scalar"):
        ESTIMATORS[name](per_sample, problem.outer, problem.params, problem.hparams)
    with pytest.raises(UserError, match="outer_loss returned a float"):
        ESTIMATORS[name](
            problem.inner, lambda p, h: 3.0, problem.params, problem.hparams
        )
    with pytest.raises(UserError, match="inner_loss must be a function"):
        ESTIMATORS[name]([], problem.outer, problem.params, problem.hparams)


@everywhere
def test_what_is_not_finite_is_named(name: str) -> None:
    problem = Smooth(torch.Generator().manual_seed(0))

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        return problem.outer(params, hparams) + (0 * params["bias"].sum()).log()

    with pytest.raises(hypergrad.NotFiniteError, match="the outer loss is not finite"):
        ESTIMATORS[name](problem.inner, outer, problem.params, problem.hparams)

    def direct(params: Tensors, hparams: Tensors) -> Tensor:
        return problem.outer(params, hparams) + (0 * hparams["shift"]).sqrt().sum()

    with pytest.raises(hypergrad.NotFiniteError, match="hypergradient of 'shift'"):
        ESTIMATORS[name](problem.inner, direct, problem.params, problem.hparams)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([torch.ones(2)], "dictionary of tensors"),
        ({"w": 3.0}, "params\\['w'\\] is a float"),
        ({"w": torch.ones(2, dtype=torch.int64)}, "no floating-point tensor"),
    ],
)
def test_params_that_are_none(params: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hypergrad.unrolled(
            lambda p, h: p["w"].sum(),
            lambda p, h: p["w"].sum(),
            params,  # type: ignore[arg-type]
            {"h": torch.ones(1)},
            lr=0.1,
        )


@pytest.mark.parametrize(
    "estimator",
    [
        *ESTIMATORS.values(),
        partial(hypergrad.unrolled, lr=0.1, steps=3, momentum=0.5),
        partial(
            hypergrad.implicit, solver=hypergrad.conjugate_gradient(2, damping=50.0)
        ),
    ],
)
def test_two_hundred_estimates_leave_no_memory_behind(estimator: Callable) -> None:
    net = Classifier()
    # Without the collector: a cycle of references would keep its graph.
    gc.collect()
    gc.disable()
    try:

        def live() -> int:
            return sum(isinstance(thing, Tensor) for thing in gc.get_objects())

        hparams = net.hparams
        counts = []
        for step in range(200):
            found = estimator(net.inner, net.outer, net.params, hparams)
            hparams = {n: t - 0.01 * found[n] for n, t in hparams.items()}
            if step in (20, 199):
                counts.append(live())
        assert counts[1] <= counts[0]
    finally:
        gc.enable()


@everywhere
def test_a_sequence_keeps_one_graph_at_a_time(name: str) -> None:
    """When a closure starts, the graph of the one before it is gone."""
    alive = 0

    class Sentinel:
        def __init__(self) -> None:
            nonlocal alive
            alive += 1

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    found_alive = []

    def watched(params: Tensors, hparams: Tensors) -> Tensor:
        found_alive.append(alive)
        product = params["x"] * hparams["h"]
        # The gradient's own graph holds on to this node, through cos(product).
        product.grad_fn.metadata["sentinel"] = Sentinel()
        return product.sin().sum()

    def outer(params: Tensors, hparams: Tensors) -> Tensor:
        return params["x"].square().sum()

    x, h = {"x": torch.randn(3)}, {"h": torch.randn(3)}
    ESTIMATORS[name]([watched] * 4, outer, x, h)
    assert len(found_alive) >= 8
    assert set(found_alive) == {0}
