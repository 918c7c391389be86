"""Random cells: which are tried, how long, and which is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.meta_methods import assert_same
from helpers.needs import small
from helpers.supernets import EPOCHS, EVALUATION, killed, search, tensors

from needsaug_lite import metrics, training
from needsaug_lite.methods.search.random_cells import RandomArchitecture
from needsaug_lite.methods.search.settings import EvaluationSettings, SearchSettings


def make(candidates: int = 2, **settings: Any) -> Any:
    return search(RandomArchitecture, candidates=candidates, **settings)


def test_the_seed_decides_the_candidates() -> None:
    one, same, other = make(5), make(5), make(5, seed=1)
    assert one.candidates == same.candidates != other.candidates
    assert len(set(one.candidates)) > 1
    # One candidate more doesn't change those before it.
    assert make(3).candidates == one.candidates[:3]


@pytest.mark.parametrize(
    ("candidates", "halved", "lengths"),
    [(1, False, []), (2, False, [4, 4]), (3, False, [2] * 3), (4, True, [1] * 4)],
)
def test_candidates_divide_the_epochs_of_a_search(
    candidates: int, halved: bool, lengths: list[int]
) -> None:
    given = SearchSettings(length=2.0)
    method = make(candidates, halved=halved, search=given)
    stages = method.stages(4)
    assert [stage.epochs for stage in stages] == [*lengths, 4]
    assert [stage.name for stage in stages] == ["search"] * len(lengths) + [
        "evaluation"
    ]
    splits = small()
    for stage in stages[:-1]:
        assert sum(len(batch) for batch in stage.batches.epoch(0)) == len(splits.train)
        stage.begin()
        assert stage.begin_epoch(0)["lr"] == 0.05


def test_every_candidate_begins_anew_and_is_judged_on_held_out_images() -> None:
    method = make(2, evaluation=EvaluationSettings(cells=4, channels=8))
    first, second, last = method.stages(EPOCHS)
    first.begin()
    body = method.trial.model.backbone
    assert body.genotype == method.candidates[0]
    # As large as the supernet, without a second head.
    assert (body.width, len(body.cells), body.auxiliary) == (4, 3, None)
    first.begin_epoch(0)
    batch = next(first.batches.epoch(0))
    tried, begun = method.trial.model, tensors(method.trial.model)
    first.step(batch)
    assert not tried.head.weight.equal(begun["head.weight"])
    expected = metrics.evaluate(tried, method.meta, method.normalisation)
    second.begin()
    assert method.accuracies == [float(expected["balanced_accuracy"])]
    assert method.trial.model.backbone.genotype == method.candidates[1]
    assert method.trial.model.backbone.stem[0].weight.equal(
        begun["backbone.stem.0.weight"]
    )
    last.begin()
    assert len(method.accuracies) == 2
    body = method.model.backbone
    assert (body.width, len(body.cells)) == (8, 4)


@pytest.mark.parametrize(
    ("accuracies", "best"), [([0.1, 0.4, 0.3], 1), ([0.2, 0.4, 0.4], 1), ([0.5] * 3, 0)]
)
def test_the_best_is_evaluated_and_of_equals_the_first(
    accuracies: list[float], best: int
) -> None:
    method = make(3)
    method.accuracies = accuracies
    method.finish_search()
    assert method.genotype == method.candidates[best]
    summary = method.architecture_summary()
    assert summary["candidate_accuracies"] == accuracies
    assert "strengths" not in summary


def test_one_candidate_is_evaluated_as_it_is_drawn() -> None:
    method = make(1, epochs=1)
    history = training.fit(method, 1)
    assert history.column("stage") == ["evaluation"]
    assert method.genotype == method.candidates[0]
    assert method.accuracies == []


@pytest.mark.parametrize("after", range(1, 6))
def test_a_run_can_be_resumed_in_every_trial_and_between_them(
    after: int, tmp_path: Path
) -> None:
    """Two trials of two epochs each, then two of evaluation."""
    given = SearchSettings(length=2.0)

    def one() -> Any:
        return make(2, search=given, evaluation=EVALUATION, epochs=2)

    whole = one()
    training.fit(whole, 2)
    resumed = killed(one, 2, after, tmp_path / "run.pt")
    assert whole.accuracies == resumed.accuracies
    assert len(whole.accuracies) == 2
    assert whole.genotype == resumed.genotype
    assert_same(whole, resumed)
    assert torch.isfinite(resumed.model.head.weight).all()
