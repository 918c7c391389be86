"""A learned loss for a head on frozen features: a problem that can be solved."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loss_search import NoWaiting, only_train
from helpers.meta_methods import Stopped, assert_same, doubled
from helpers.shared_phases import changed, make, parts
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from needsaug_lite import data, hypergrad, training
from needsaug_lite.data import Batch, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, runner

HALF = {"share": 0.5}
NAMES = ("facog_autobalance", "facog_logit_adjustment")
DECAY, WIDTH, CLASSES = 0.02, 8, 10


def small() -> Splits:
    return data.load("digits", n_max=60, imbalance=20, seed=0)


def made(name: str = "facog_autobalance", **settings: Any) -> Any:
    return make(name, **{"phase1": HALF, "splits": small(), **settings})


def trained(name: str = "facog_autobalance", epochs: int = 4, **settings: Any) -> Any:
    method = made(name, **settings)
    training.fit(method, epochs)
    return method


# --- frozen features ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_only_a_linear_head_moves_after_the_first_phase(name: str) -> None:
    method, seen = made(name), []

    def keep(epoch: int, method: Any) -> dict[str, float]:
        networks = {**parts(method), "linear": method.linear.state_dict()}
        seen.append(
            {n: {k: v.clone() for k, v in s.items()} for n, s in networks.items()}
        )
        return {}

    training.fit(method, 6, on_epoch=keep)
    assert changed(seen[1], seen[2]) == {"backbone", "head", "projection"}
    for before, after in pairwise(seen[2:]):
        assert not {"backbone", "projection"} & changed(before, after)
        assert "linear" in changed(before, after)
    assert isinstance(method.model.head, nn.Linear)
    assert method.model.head is method.linear


@pytest.mark.parametrize("name", NAMES)
def test_what_is_learned_from_are_features_of_the_images_as_they_are(name: str) -> None:
    method = made(name)
    early = method.features()
    training.fit(method, 4)
    images = method.batches.normalisation(method.examples.images.pixels)
    method.model.eval()
    with torch.no_grad():
        expected = method.model.features(images)
    assert not torch.allclose(early, expected)
    seen = []
    for batch in method.second.batches.epoch(0):
        torch.testing.assert_close(batch.images.flatten(1), expected[batch.index])
        assert torch.equal(batch.labels, method.examples.labels[batch.index])
        seen.append(batch.index)
    assert torch.cat(seen).sort().values.tolist() == list(range(len(images)))


def test_the_search_divides_the_images_and_keeps_their_labels() -> None:
    method = trained()
    table, labels = method.features(), method.examples.labels
    taken: list[set[int]] = []
    for source in (method.second.search_batches, method.second.strata):
        rows = source.examples.images.index
        assert torch.equal(source.examples.labels, labels[rows])
        for batch in source.epoch(1):
            assert torch.equal(batch.images.flatten(1), table[rows[batch.index]])
        taken.append(set(rows.tolist()))
    assert not taken[0] & taken[1]
    assert len(taken[0] | taken[1]) == len(table)


def test_features_in_place_of_images() -> None:
    method = made()
    table = method.features()
    whole = method.second.batches.examples.images
    assert whole.shape == (WIDTH, 1, 1)
    few = whole.subset(torch.tensor([5, 3, 9])).subset(torch.tensor([2, 0]))
    (found,) = few.joined(whole.subset(torch.tensor([1]))).stream([torch.arange(3)])
    assert torch.equal(found.flatten(1), table[[9, 5, 1]])
    assert few.fingerprint() == table[[9, 5]].numpy().tobytes()
    assert few.fingerprint() != few.subset(torch.tensor([1, 0])).fingerprint()


# --- the hypergradient ------------------------------------------------------------


def in_float64(**settings: Any) -> tuple[Any, Batch, Batch]:
    """The search at its beginning, all images of its parts, α away from its start."""
    optimisation = {"weight_decay": DECAY, "batch_size": 2000}
    method = made(optimisation=optimisation, **settings).second
    method.model.double()
    for table in ("searching", "interpolating", "log_prior", "additive"):
        value = getattr(method.space, table)
        setattr(method.space, table, value.double())
    draw = data.generator(5)
    for value in method.hparams.values():
        noise = torch.randn(value.shape, generator=draw, dtype=torch.float64)
        value.data = value.data.double() + 0.3 * noise
    (whole,) = method.search_batches.epoch(0)
    return method, doubled(whole), doubled(next(method.strata.epoch(0)))


def logits_of(theta: Tensor, batch: Batch) -> Tensor:
    weight = theta[: CLASSES * WIDTH].view(CLASSES, WIDTH)
    return batch.images.flatten(1) @ weight.T + theta[CLASSES * WIDTH :]


def train_loss(theta: Tensor, batch: Batch, alpha: Mapping[str, Tensor]) -> Tensor:
    """The inner loss by its definition; θ = (W, b) in a row."""
    factor = 1 / (1 + (-alpha["multiplicative"].flatten()).exp())
    z = factor * logits_of(theta, batch) + alpha["additive"].flatten()
    own = z[torch.arange(len(batch)), batch.labels]
    return (z.logsumexp(1) - own).mean() + DECAY / 2 * theta.square().sum()


def resolved(
    start: Tensor, whole: Batch, held: Batch, alpha: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """θ*(α) by Newton's method with halved steps, and L_fair there."""
    theta = start
    for _ in range(40):
        slope = torch.func.grad(train_loss)(theta, whole, alpha)
        if slope.norm() < 1e-13:
            break
        curved = torch.func.hessian(train_loss)(theta, whole, alpha)
        step, size = torch.linalg.solve(curved, slope), 1.0
        here = train_loss(theta, whole, alpha) + 1e-12
        while size > 1e-6 and train_loss(theta - size * step, whole, alpha) > here:
            size /= 2
        theta = theta - size * step
    assert torch.func.grad(train_loss)(theta, whole, alpha).norm() < 1e-11
    each = cross_entropy(logits_of(theta, held), held.labels, reduction="none")
    of_class = [each[held.labels == c].mean() for c in range(CLASSES)]
    return theta, torch.stack(of_class).mean()


def values_of(method: Any) -> dict[str, Tensor]:
    return {name: h.detach().clone() for name, h in method.hparams.items()}


def put(method: Any, theta: Tensor) -> None:
    weight, bias = method.model.parameters()
    with torch.no_grad():
        weight.copy_(theta[: weight.numel()].view_as(weight))
        bias.copy_(theta[weight.numel() :])


def zeros() -> Tensor:
    return torch.zeros(CLASSES * (WIDTH + 1), dtype=torch.float64)


def test_hypergradient_is_the_derivative_of_solving_the_inner_problem_again() -> None:
    method, whole, held = in_float64()
    alpha = values_of(method)
    theta, outer = resolved(zeros(), whole, held, alpha)
    put(method, theta)
    series = method.hypergradient([whole], [held])
    method.solver = hypergrad.exact()
    exact = method.hypergradient([whole], [held])
    torch.testing.assert_close(exact.outer_loss, outer)
    assert exact.report["gradient_norm"] < 1e-10
    products, lengths = 0.0, [0.0, 0.0]
    for name, value in exact.items():
        for place in range(0, value.numel(), 3):
            ends = []
            for sign in (1, -1):
                moved = {n: v.clone() for n, v in alpha.items()}
                moved[name].view(-1)[place] += sign * 1e-4
                ends.append(resolved(theta, whole, held, moved)[1])
            slope = (ends[0] - ends[1]) / 2e-4
            found = value.flatten()[place]
            torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-9)
        products += float((series[name] * value).sum())
        lengths[0] += float(series[name].square().sum())
        lengths[1] += float(value.square().sum())
    assert lengths[1] > 1e-6
    # The truncated series points the same way.
    assert products > 0.5 * (lengths[0] * lengths[1]) ** 0.5


def test_a_step_of_alpha_lowers_the_objective_of_the_solved_head() -> None:
    method, whole, held = in_float64()
    alpha = values_of(method)
    theta, outer = resolved(zeros(), whole, held, alpha)
    put(method, theta)
    method.inner, method.validation = iter([whole]), iter([held])
    method.outer = [(torch.optim.SGD(list(method.hparams.values()), lr=0.1), 0.1)]
    method.search_step(whole)
    assert resolved(theta, whole, held, values_of(method))[1] < outer - 1e-6


def test_the_inner_problem_is_strongly_convex_and_has_one_solution() -> None:
    method, whole, _ = in_float64()
    held = whole
    draw = torch.Generator().manual_seed(0)
    points = [3 * torch.randn(zeros().shape, generator=draw).double() for _ in range(3)]
    alpha, found = values_of(method), []
    names = [name for name, _ in method.model.named_parameters()]

    def loss(theta: Tensor) -> Tensor:
        weight, bias = theta.split([CLASSES * WIDTH, CLASSES])
        params = dict(zip(names, (weight.view(CLASSES, WIDTH), bias), strict=True))
        value: Tensor = method._inner_loss(whole)(params, method.hparams)
        return value

    for point in points:
        torch.testing.assert_close(loss(point), train_loss(point, whole, alpha))
        curvature = torch.linalg.eigvalsh(torch.func.hessian(loss)(point))
        assert curvature[0] > DECAY - 1e-9
        # Adding a number to all biases changes nothing but the weight decay.
        torch.testing.assert_close(curvature[0], torch.tensor(DECAY).double())
        found.append(resolved(point, whole, held, alpha)[0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(found[0], found[2], rtol=0, atol=1e-9)


# --- limits -----------------------------------------------------------------------


def unmoved(method: Any) -> Any:
    """With a rate of 0 for α."""
    method.second.outer = [(optimiser, 0.0) for optimiser, _ in method.second.outer]
    return method


@pytest.mark.parametrize("design", ["l", "tau", "delta_l"])
def test_at_a_rate_of_zero_it_is_logit_adjustment(design: str) -> None:
    steps = {"optimisation": {"batch_size": 16, "lr": 0.5}}
    method = unmoved(made(design=design, **steps))
    before = values_of(method.second)
    if design == "delta_l":
        with torch.no_grad():  # σ(40) is 1 in single precision
            method.second.hparams["multiplicative"].fill_(40.0)
            before["multiplicative"].fill_(40.0)
    training.fit(method, 6)
    assert method.second.steps > 0
    for name, value in method.second.hparams.items():
        assert torch.equal(value.detach(), before[name])
        assert value.grad is not None
    plain = trained("facog_logit_adjustment", 6, **steps)
    # Both take the logarithm of the class shares, rounded along two routes.
    for name, value in plain.model.state_dict().items():
        other = method.model.state_dict()[name]
        torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-6)
    moved = trained(epochs=6, design=design, **steps)
    assert (plain.linear.weight - moved.linear.weight).abs().max() > 1e-4


def test_without_adjustment_it_is_cross_entropy_on_features() -> None:
    method = trained("facog_logit_adjustment", 4, tau=0.0)
    head = nn.Linear(WIDTH, CLASSES)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    settings = method.optimisation
    optimiser = settings.optimiser(head)
    for epoch in range(2):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate(epoch, 2)
        for batch in method.second.batches.epoch(epoch):
            features = method.features()[batch.index]
            optimiser.zero_grad()
            cross_entropy(head(features), batch.labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    torch.testing.assert_close(method.linear.weight, head.weight)
    torch.testing.assert_close(method.linear.bias, head.bias)


# --- the frame --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        ({}, (2, 1, 1, 2)),
        ({"start": 0.0}, (2, 0, 2, 2)),
        ({"search_length": 2.0, "start": 0.5}, (2, 2, 2, 2)),
    ],
)
def test_lengths_of_the_phases(
    settings: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    method = made(**settings)
    stages = method.stages(4)
    assert tuple(stage.epochs for stage in stages) == lengths
    names = ("phase 1", "warm-up", "search", "retraining")
    assert all(n in stage.name for n, stage in zip(names, stages, strict=True))
    assert len(training.fit(made(**settings), 4).rows) == sum(lengths)


@pytest.mark.parametrize(
    ("name", "epoch", "settings"),
    [
        *(("facog_logit_adjustment", epoch, {}) for epoch in (1, 2, 3)),
        *(("facog_autobalance", epoch, {}) for epoch in (2, 3, 4, 5)),
        ("facog_autobalance", 3, {"start": 0.0}),
    ],
)
def test_resumed_anywhere_gives_the_same_bits(
    name: str, epoch: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = trained(name, 4, **settings)

    def stop(number: int, _: Any) -> dict[str, float]:
        if number == epoch:
            raise Stopped
        return {}

    file = tmp_path / "c.ckpt"
    with pytest.raises(Stopped):
        training.fit(made(name, **settings), 4, checkpoint=file, on_epoch=stop)
    resumed = made(name, **settings)
    torch.manual_seed(epoch)
    training.fit(resumed, 4, checkpoint=file, resume=True)
    assert_same(whole, resumed)
    assert resumed.model.head is resumed.linear


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_drawn_from_the_global_generator(name: str) -> None:
    runs = [made(name) for _ in range(2)]
    for number, method in enumerate(runs):
        torch.manual_seed(number)
        training.fit(method, 4)
    assert_same(*runs)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_phase_is_facogs_and_can_be_shared(name: str, tmp_path: Path) -> None:
    values = {
        "data": {"imbalance": 20},
        "model": {"width": 4},
        "optimisation": {"batch_size": 64},
        "epochs": 4,
        "profile": "smoke",
        "hyperparameters": {"phase1": HALF},
    }
    specs = [Spec.checked({**values, "method": m}) for m in ("facog", name)]
    runner.run(specs[0], starts=tmp_path)
    alone, shared = (runner.run(specs[1], starts=s) for s in (None, tmp_path))
    assert len(list(tmp_path.iterdir())) == 1
    assert alone.metrics == shared.metrics


@pytest.mark.parametrize("name", NAMES)
def test_only_the_training_images_are_looked_at(name: str) -> None:
    method = made(name, splits=only_train(small()))
    assert len(training.fit(method, 2).rows) >= 2


def test_a_step_of_the_head_does_not_wait_for_the_device() -> None:
    method = made(interval=2)
    stages = method.stages(4)
    search = stages[2]
    search.begin_epoch(search.first)
    batch = next(search.batches.epoch(0))
    search.step(batch)
    with NoWaiting():
        search.step(batch)


def test_what_was_found_is_told() -> None:
    method = trained()
    assert isinstance(method, training.LossDesigning)
    found = method.loss_parameters
    assert found["class_weight"] is None
    start = method.second.space.log_prior.flatten()
    assert found["additive"].shape == found["multiplicative"].shape == (CLASSES,)
    assert not torch.allclose(found["additive"], start)


@pytest.mark.parametrize(("epochs", "share"), [(1, 0.5), (4, 1.0)])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_a_second_phase_is_refused(
    name: str, epochs: int, share: float
) -> None:
    with pytest.raises(UserError, match="at least 2 epochs and a share below 1"):
        make(name, phase1={"share": share}).stages(epochs)


def test_nothing_to_search_for_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to search for"):
        made(design="none").stages(4)
