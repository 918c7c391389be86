"""The frame of a search: how long, what is at rest, what is evaluated, resuming."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.meta_methods import assert_same
from helpers.needs import small, weights
from helpers.supernets import (
    CELLS,
    EPOCHS,
    EVALUATION,
    SEARCH,
    begin,
    flat,
    killed,
    scores,
    search,
    supernet,
    tensors,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from needsaug_lite import models, training
from needsaug_lite.errors import UserError
from needsaug_lite.methods.search.four_level_search import NeedsAwareSearch
from needsaug_lite.methods.search.pc_darts import PCDARTS, EqualSearch, JointSearch
from needsaug_lite.methods.search.random_cells import RandomArchitecture
from needsaug_lite.methods.search.settings import (
    EvaluationSettings,
    SearchSettings,
    clipped,
    preferences,
)
from needsaug_lite.models.genotype import discretise
from needsaug_lite.models.search_cell import Architecture, Space

REDUCED: dict[str, Any] = {"interval": 2, "tied": True, "decorrelation": 0.1}
KINDS: dict[str, Any] = {
    "pc_darts": lambda **more: search(PCDARTS, **more),
    "equal": lambda **more: search(EqualSearch, **more),
    "joint": lambda **more: search(JointSearch, **more),
    "needs_aware": lambda **more: search(NeedsAwareSearch, **more),
    "reduced": lambda **more: search(NeedsAwareSearch, **REDUCED, **more),
    "random": lambda **more: search(RandomArchitecture, candidates=2, **more),
}


# --- lengths ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "epochs", "halved", "expected"),
    [
        (0.2, 250, False, 50),
        (0.2, 250, True, 25),
        (0.3, 40, False, 12),
        (0.3, 40, True, 6),
        (2.0, 3, False, 6),
        (0.2, 1, True, 1),
    ],
)
def test_the_length_of_the_search(
    length: float, epochs: int, halved: bool, expected: int
) -> None:
    method = search(PCDARTS, search=SearchSettings(length=length), halved=halved)
    first, second = method.stages(epochs)
    assert (first.name, second.name) == ("search", "evaluation")
    assert (first.epochs, second.epochs) == (expected, epochs)
    assert method.searcher.epochs == method.searcher.learner.epochs == expected
    # The cosine of the weights' rate ends with the search.
    first.begin_epoch(0)
    assert method.searcher.learner.optimiser.param_groups[0]["lr"] == 0.05
    rate = first.begin_epoch(expected - 1)["lr"]
    angle = math.pi * (expected - 1) / expected
    assert rate == pytest.approx(0.025 * (1 + math.cos(angle)))


@pytest.mark.parametrize(
    ("warm_up", "epochs", "moving"),
    [
        (0.3, 10, [False] * 3 + [True] * 7),
        (0.0, 2, [True, True]),
        (1.0, 2, [False, False]),
        (0.3, 1, [True]),
    ],
)
def test_when_a_wakes(warm_up: float, epochs: int, moving: list[bool]) -> None:
    given = SearchSettings(length=1.0, warm_up=warm_up)
    method = search(PCDARTS, search=given, epochs=epochs)
    found = []
    for epoch in range(epochs):
        method.begin_search_epoch(epoch)
        found.append(method.searcher.moving)
    assert found == moving


def test_the_warm_up_is_a_share_of_the_search_and_not_of_the_evaluation() -> None:
    given = SearchSettings(length=2.0, warm_up=0.5)
    method = search(PCDARTS, search=given, epochs=2)
    found = []
    for epoch in range(4):
        method.begin_search_epoch(epoch)
        found.append(method.searcher.moving)
    assert found == [False, False, True, True]


@pytest.mark.parametrize("kind", ["pc_darts", "needs_aware", "reduced"])
def test_adam_for_an_architecture_is_that_of_darts(kind: str) -> None:
    """Xu et al. 2020: β of 0.5 and 0.999, rate and decay as set, A and nothing else."""
    method = KINDS[kind]()
    (group,) = method.searcher.meta_optimiser.param_groups
    assert group["betas"] == (0.5, 0.999)
    given = method.search
    assert (group["lr"], group["weight_decay"]) == (given.meta_lr, given.meta_decay)
    assert list(map(id, group["params"])) == [
        id(one) for one in method.architecture.parameters()
    ]


@pytest.mark.parametrize("kind", ["pc_darts", "needs_aware", "reduced"])
def test_in_the_warm_up_a_and_g_are_at_rest_and_all_others_move(kind: str) -> None:
    method = KINDS[kind]()
    searcher, a = method.searcher, weights(method.architecture)
    nets = {"W2": searcher.model}
    if kind != "pc_darts":
        g = tensors(method.generator)
        nets |= {"W1": searcher.first, "H": searcher.gan.gan.discriminator}
    others = {
        f"{role}.{name}": value
        for role, network in nets.items()
        for name, value in weights(network).items()
        if "architecture" not in name
    }
    for batch in begin(method)[:3]:
        searcher.step(batch)
    assert flat(weights(method.architecture)).equal(flat(a))
    for name, value in others.items():
        role, _, part = name.partition(".")
        assert not nets[role].get_parameter(part).equal(value), name
    if kind != "pc_darts":
        after = tensors(method.generator)
        assert all(value.equal(after[name]) for name, value in g.items())
    for batch in begin(method, 1)[:3]:
        searcher.step(batch)
    for name, value in a.items():
        assert not method.architecture.get_parameter(name).equal(value)
    if kind != "pc_darts":
        assert not flat(weights(method.generator)).equal(
            flat({n: g[n] for n in weights(method.generator)})
        )


# --- which images -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pc_darts", "equal", "joint"])
def test_the_weights_of_a_search_never_learn_held_out_images(kind: str) -> None:
    splits = small()
    other = replace(splits, meta=small(seed=3).meta)
    found = []
    for one in (splits, other):
        method = KINDS[kind](splits=one)
        for batch in begin(method)[:3]:
            method.searcher.step(batch)
        found.append(tensors(method.model))
    assert all(value.equal(found[1][name]) for name, value in found[0].items())
    # A does.
    for method_of in (splits, other):
        method = KINDS[kind](splits=method_of)
        method.searcher.step(begin(method, 1)[0])
        found.append(weights(method.architecture))
    assert not flat(found[2]).equal(flat(found[3]))


def test_the_evaluation_learns_all_of_them() -> None:
    splits = small()
    method = search(PCDARTS, splits)
    first, second = method.stages(EPOCHS)
    seen = [
        sum(len(batch) for batch in stage.batches.epoch(0)) for stage in (first, second)
    ]
    assert seen == [len(splits.train), len(splits.train) + len(splits.meta)]
    assert method.batches.normalisation == method.searcher.batches.normalisation


def test_the_evaluation_depends_on_the_cells_and_the_seed_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever was searched before, and however."""

    def at_once(method: Any) -> None:
        torch.rand(7)
        method.evaluate_cells(CELLS)

    for kind in (PCDARTS, NeedsAwareSearch, RandomArchitecture):
        monkeypatch.setattr(kind, "finish_search", at_once)
    dropped = replace(EVALUATION, drop_path=0.3, auxiliary=0.4)
    short = replace(SEARCH, length=0.5)
    settings: dict[str, Any] = {"search": short, "evaluation": dropped, "epochs": 2}
    found = []
    for kind, more in (
        (PCDARTS, {}),
        (NeedsAwareSearch, REDUCED),
        (RandomArchitecture, {"candidates": 1}),
        (PCDARTS, {"seed": 1}),
    ):
        method = search(kind, **settings, **more)
        training.fit(method, 2)
        found.append(tensors(method.model))
    assert all(value.equal(found[1][name]) for name, value in found[0].items())
    assert all(value.equal(found[2][name]) for name, value in found[0].items())
    stem = "backbone.stem.0.weight"
    assert not found[0][stem].equal(found[3][stem])


# --- evaluation -------------------------------------------------------------------


def test_the_strongest_cells_are_evaluated() -> None:
    method = search(PCDARTS)
    expected = discretise(method.architecture)
    _, second = method.stages(EPOCHS)
    second.begin()
    assert method.genotype == expected == method.model.backbone.genotype
    assert method.model is not method.searcher.model
    body = method.model.backbone
    assert (body.width, len(body.cells), body.auxiliary) == (4, 3, None)
    larger = EvaluationSettings(cells=5, channels=8)
    method = search(PCDARTS, evaluation=larger)
    method.finish_search()
    body = method.model.backbone
    assert (body.width, len(body.cells)) == (8, 5)
    assert body.auxiliary is not None


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_a_step_of_the_evaluation(clip: float) -> None:
    given = EvaluationSettings(auxiliary=0.7, label_smoothing=0.2, clip=clip)
    method = search(PCDARTS, evaluation=given, optimisation={"weight_decay": 0.01})
    method.evaluate_cells(CELLS)
    method.begin_epoch(0)
    batch = next(method.batches.epoch(0))
    model = method.model.train()
    before = weights(model)
    found, auxiliary = model.backbone.with_auxiliary(batch.images)

    def loss(given: Tensor) -> Tensor:
        target = 0.8 * nn.functional.one_hot(batch.labels, 10) + 0.2 / 10
        return -(target * given.log_softmax(1)).sum(1).mean()

    fit = loss(model.head(found))
    total = fit + 0.7 * loss(auxiliary)
    slopes = torch.autograd.grad(total, list(model.parameters()))
    norm = torch.cat([slope.flatten() for slope in slopes]).norm()
    assert (norm > clip) == (clip < 1)
    logged = method.step(batch)
    assert_close(logged["loss"], fit.detach())
    short = min(1.0, clip / float(norm))
    for (name, old), slope in zip(before.items(), slopes, strict=True):
        step = 0.05 * (short * slope + 0.01 * old)
        assert_close(model.get_parameter(name).data, old - step, rtol=1e-4, atol=1e-6)


def test_paths_are_dropped_more_and_more() -> None:
    method = search(PCDARTS, evaluation=replace(EVALUATION, drop_path=0.4))
    method.epochs = 4
    method.evaluate_cells(CELLS)
    chances = []
    for epoch in range(4):
        method.begin_epoch(epoch)
        chances.append(method.model.backbone.drop_probability)
    assert chances == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_what_a_row_tells_of_it() -> None:
    method = search(PCDARTS, evaluation=EvaluationSettings())
    method.evaluate_cells(CELLS)
    found = json.loads(json.dumps(method.architecture_summary()))
    assert found["genotype"] == CELLS.as_lists()
    assert found["skip_connections"] == {"normal": 1, "reduce": 0}
    alone = search(PCDARTS)
    alone.evaluate_cells(CELLS)
    size = sum(p.numel() for p in alone.model.backbone.parameters())
    assert found["parameters"] == size
    assert_close(
        torch.tensor(found["strengths"]["normal"]),
        method.architecture.strengths("normal").detach(),
    )


# --- aids -------------------------------------------------------------------------


def test_a_gradient_is_shortened_and_never_made_longer() -> None:
    parts = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    optimiser = clipped(torch.optim.SGD(parts, 1.0), 6.5)
    for factor in (1.0, 0.25):
        for part, value in zip(parts, ([3.0, 4.0], [12.0]), strict=True):
            part.grad = torch.tensor(value) * factor
            part.data.zero_()
        optimiser.step()
        moved = torch.cat([part.data for part in parts])
        length = 13 * factor * (1.0 if factor < 0.5 else 0.5)
        assert_close(moved.norm(), torch.tensor(length), rtol=1e-5, atol=0)
        direction = torch.tensor([3.0, 4.0, 12.0]) / 13
        assert_close(-moved / moved.norm(), direction)


def test_preferences_of_an_even_and_of_a_decided_architecture() -> None:
    architecture = Architecture(Space(2, ("none", "skip_connect", "avg_pool_3x3")))
    with torch.no_grad():
        for value in architecture.parameters():
            value.zero_()
    found = preferences(architecture)
    assert found["entropy"] == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        architecture.normal[:, 1] = 30.0
        architecture.reduce[:, 2] = 30.0
    found = preferences(architecture)
    assert found["entropy"] == pytest.approx(0, abs=1e-6)
    assert found["skip_connections_normal"] == 4
    assert found["skip_connections_reduce"] == 0
    assert preferences(Architecture(Space(1, ("skip_connect",))))["entropy"] == 0


# --- repeating --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pc_darts", "joint", "needs_aware", "reduced"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_run_can_be_resumed_in_either_stage(
    kind: str, after: int, tmp_path: Path
) -> None:
    given = {"evaluation": replace(EVALUATION, drop_path=0.3), "epochs": 2}
    given["search"] = replace(SEARCH, length=1.5)

    def make() -> Any:
        # Five steps an epoch: an interval goes on over the end of one.
        return KINDS[kind](**given, optimisation={"batch_size": 36})

    whole = make()
    training.fit(whole, 2)
    resumed = killed(make, 2, after + 1, tmp_path / "run.pt")
    assert_same(whole, resumed)
    assert whole.genotype == resumed.genotype


def test_a_seed_repeats_and_another_draws_anew() -> None:
    found = []
    for seed in (0, 0, 1):
        method = search(PCDARTS, seed=seed, epochs=1)
        training.fit(method, 1)
        found.append(method)
    assert found[0].genotype == found[1].genotype
    assert_same(found[0], found[1])
    one, two = (weights(method.architecture) for method in found[1:])
    assert not flat(one).equal(flat(two))


# --- what is refused --------------------------------------------------------------


@pytest.mark.parametrize("kind", [PCDARTS, RandomArchitecture])
def test_what_is_refused(kind: Any) -> None:
    splits = small()
    other = models.build("convnet", splits.image_shape, 10, width=4)
    with pytest.raises(UserError, match="supernet"):
        kind(other, splits)
    none = small(meta_per_class=0)
    with pytest.raises(UserError, match="meta_per_class"):
        kind(supernet(none), none)


def test_scores_by_hand_are_those_of_the_model() -> None:
    method = search(PCDARTS)
    batch = begin(method)[0]
    found = scores(method.model, dict(method.model.named_parameters()), batch.images)
    assert_close(found, method.model.train()(batch.images))
    assert torch.isfinite(cross_entropy(found, batch.labels))
