"""Trials of loss parameters: what they see, what they find, and that they repeat."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn

from needsaug_lite import data, losses, models, training
from needsaug_lite.data import Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods import AutoBalance
from needsaug_lite.methods.trial_search import DIVERGED, TrialSearch, ranges
from needsaug_lite.models import Classifier
from needsaug_lite.training import Optimisation

QUICK: dict[str, Any] = {"budget": 2.0, "trial_epochs": 1}


def load(**options: Any) -> Splits:
    return data.load("digits", **{"n_max": 40, "imbalance": 5, **options})


def make(
    splits: Splits | None = None, *, seed: int = 0, **settings: Any
) -> TrialSearch:
    splits = splits or load()
    torch.manual_seed(seed)
    classes = splits.num_classes
    model = models.build("convnet", splits.image_shape, classes, width=4)
    # A rate that tells the schedule of a trial from that of a whole run.
    optimisation = Optimisation(lr=0.05, batch_size=32, schedule="cosine")
    return TrialSearch(
        model, splits, optimisation=optimisation, seed=seed, **{**QUICK, **settings}
    )


class Bowl(TrialSearch):
    """L_fair is known: the squared distance of α from a point in the ranges."""

    target = 2.2

    def held_out_loss(self) -> float:
        return sum((value - self.target) ** 2 for value in self.values())


def bowl(seed: int, budget: float = 40, **settings: Any) -> Bowl:
    """A search in which nothing is trained."""
    splits = load(n_max=8, imbalance=1)
    model = Classifier(nn.Flatten(), 64, nn.Linear(64, 10))
    optimisation = Optimisation(lr=0.1, batch_size=80)
    method = Bowl(
        model,
        splits,
        optimisation=optimisation,
        seed=seed,
        budget=budget,
        trial_epochs=1,
        **settings,
    )
    for stage in method.search_stages(1):
        stage.begin()
    method.start_again()
    return method


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_optimum_of_one_number_is_found(seed: int) -> None:
    method = bowl(seed, design="tau")
    assert len(method.trials) == 40
    assert method.trials[0].values == [1.0]
    assert abs(method.values()[0] - Bowl.target) < 0.05
    assert method.values() == pytest.approx(method.best.values)


def test_proposals_learn_from_the_trials() -> None:
    # After a third at random the others come closer, in all ten numbers together.
    # The random third is at most 10 trials.
    found = [[t.loss for t in bowl(s, design="delta").trials] for s in range(3)]
    random = sum(sum(losses[1:10]) / 9 for losses in found)
    late = sum(sum(losses[-10:]) / 10 for losses in found)
    assert late < 0.6 * random
    assert all(min(losses) < losses[0] for losses in found)


def test_the_first_trial_is_the_start_and_all_stay_inside_the_ranges() -> None:
    method = bowl(0, design="delta_l", tau=1.3)
    adjusted = 1.3 * torch.tensor([0.1] * 10).log()
    expected = torch.cat([adjusted, torch.ones(10)])
    torch.testing.assert_close(torch.tensor(method.trials[0].values), expected)
    values = torch.tensor([trial.values for trial in method.trials])
    steps = values[:, :10] - adjusted
    assert steps.abs().max() <= 3.00001
    assert steps.abs().max() > 2
    assert -3 <= values[:, 10:].min() < -1.5
    assert 2.5 < values[:, 10:].max() <= 4


def test_a_start_outside_its_range_widens_it() -> None:
    assert ranges({"tau": torch.tensor(5.0)}) == [(0.0, 5.0)]
    assert ranges({"tau": torch.tensor(-1.0)}) == [(-1.0, 3.0)]
    pair = {"additive": torch.tensor([[2.0]]), "multiplicative": torch.tensor([[1.0]])}
    assert ranges(pair) == [(-1.0, 5.0), (-3.0, 4.0)]


def test_numbers_go_where_they_came_from() -> None:
    method = bowl(0, budget=2, design="delta_l")
    numbers = torch.arange(20, dtype=torch.float32)
    method.use(numbers.tolist())
    assert method.values() == numbers.tolist()
    h = method.space.hparams
    assert h["additive"].flatten().tolist() == numbers[:10].tolist()
    assert h["multiplicative"].flatten().tolist() == numbers[10:].tolist()
    assert all(value.requires_grad for value in h.values())


def test_seeds_repeat_and_differ() -> None:
    one, again, other = (bowl(seed, 15, design="delta_l") for seed in (3, 3, 4))
    assert one.trials == again.trials
    assert one.trials[1:] != other.trials[1:]


@pytest.mark.parametrize("initial", ["plain", "la"])
def test_the_search_space_is_that_of_autobalance(initial: str) -> None:
    trial, splits = make(initial=initial), load()
    model = models.build("convnet", splits.image_shape, 10, width=4)
    settings: Any = {"initial": initial, "optimisation": Optimisation(batch_size=32)}
    peer = AutoBalance(model, splits, **settings)
    assert list(trial.space.hparams) == list(peer.space.hparams)
    for name, value in trial.space.hparams.items():
        assert torch.equal(value, peer.space.hparams[name])
    assert torch.equal(trial.rest.labels, peer.rest.labels)
    assert torch.equal(trial.strata.examples.labels, peer.strata.examples.labels)


def test_a_trial_is_a_training_from_the_first_weights() -> None:
    """The first trial, by hand: T epochs, the schedule of T, L_fair of all images."""
    settings: dict[str, Any] = {"design": "l", "initial": "plain", "fairness": 0.3}
    settings["trial_epochs"] = 2
    method, plain = make(**settings), make(**settings)
    training.fit(method, 4)
    model, settings_of = plain.model, plain.optimisation
    optimiser = settings_of.optimiser(model)
    model.train()
    for epoch in range(2):
        optimiser.param_groups[0]["lr"] = settings_of.learning_rate(epoch, 2)
        for batch in plain.search_batches.epoch(epoch):
            optimiser.zero_grad()
            torch.autograd.backward(
                losses.cross_entropy(model(batch.images), batch.labels)
            )
            optimiser.step()
    model.eval()
    held = plain.strata.examples
    (pixels,) = held.images.stream([torch.arange(len(held))])
    with torch.no_grad():
        logits = model(plain.batches.normalisation(pixels))
    each = losses.cross_entropy(logits, held.labels, reduction="none")
    by_class = torch.stack([each[held.labels == k].mean() for k in range(10)])
    expected = 0.7 * each.mean() + 0.3 * by_class.mean()
    assert method.trials[0].loss == pytest.approx(float(expected), rel=1e-5)


def test_all_trials_start_alike_and_the_retraining_has_the_best() -> None:
    method = make(trial_epochs=2)
    first = {name: v.clone() for name, v in method.model.state_dict().items()}
    for stage in method.stages(4):
        stage.begin()
        state = method.model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in first.items())
        assert not method.optimiser.state
        stage.begin_epoch(0)
        for name in ("additive", "multiplicative"):
            used, wanted = method.alpha[name], method.space.detached()[name]
            assert used is not None
            assert wanted is not None
            assert torch.equal(used, wanted), (stage.name, name)
        for batch in stage.batches.epoch(0):
            stage.step(batch)
    assert len(method.trials) == 4
    smallest = min(trial.loss for trial in method.trials)
    assert method.best.loss == smallest
    assert method.values() == method.best.values
    # The numbers are ordered by the size of the class, the largest first.
    place = method.counts.argsort(descending=True, stable=True).argsort()
    factor = torch.tensor(method.best.values[10:]).sigmoid()[place]
    assert method.alpha["multiplicative"] is not None
    torch.testing.assert_close(method.alpha["multiplicative"], factor)


def test_the_budget_counts_epochs() -> None:
    def trials(epochs: int, **settings: Any) -> int:
        return len(make(**settings).search_stages(epochs))

    assert trials(20, budget=2.0, trial_epochs=4) == 10
    assert trials(20, budget=2.0, trial_epochs=None) == 10
    assert trials(20, budget=2.0, trial_epochs=7) == 5
    assert 0.57 * 100 < 57
    assert trials(100, budget=0.57, trial_epochs=1) == 57
    assert trials(1, budget=2.0, trial_epochs=None) == 2
    history = training.fit(make(budget=1.5, trial_epochs=2), 4)
    assert len(history.rows) == 3 * 2 + 4
    assert [row["epoch"] for row in history.rows] == list(range(10))


def test_history_tells_of_the_trials() -> None:
    method = make()
    history = training.fit(method, 3)
    assert history.column("outer_loss")[:1] == [None]
    assert history.column("outer_loss")[1:7] == [t.loss for t in method.trials]
    assert history.column("best_outer_loss")[-1] == method.best.loss
    factors = [row["multiplicative_1"] for row in history.rows[:6]]
    assert factors[0] == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-5)
    assert len(set(factors)) == 6


def test_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trial_epochs": 2, "budget": 3.0}
    whole = make(**settings)
    training.fit(whole, 4)

    class Stop(Exception):  # noqa: N818
        pass

    for last in (4, 5, 6, 11, 13):  # inside a trial, after one, in the retraining
        file = tmp_path / f"{last}.ckpt"

        def stop(
            epoch: int, method: training.Method, last: int = last
        ) -> dict[str, float]:
            if epoch == last:
                raise Stop
            return {}

        with pytest.raises(Stop):
            training.fit(make(**settings), 4, checkpoint=file, on_epoch=stop)
        resumed = make(**settings)
        history = training.fit(resumed, 4, checkpoint=file, resume=True)
        assert len(history.rows) == 16
        assert resumed.trials == whole.trials
        assert resumed.values() == whole.values()
        state = resumed.model.state_dict()
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, state[name]), (last, name)


def test_other_parts_are_never_looked_at() -> None:
    splits = load(val_per_class=2, meta_per_class=2)
    part = splits.test.subset(torch.zeros(3, dtype=torch.int64))
    other = replace(splits, val=part, meta=part, test=part)
    one, two = make(splits), make(other)
    training.fit(one, 2)
    training.fit(two, 2)
    assert one.trials == two.trials
    state = two.model.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in one.model.state_dict().items())


def test_a_trial_that_diverges_is_the_worst_and_the_run_goes_on() -> None:
    class Fragile(TrialSearch):
        def step(self, batch: data.Batch) -> Any:
            if len(self.trials) == 1:
                with torch.no_grad():
                    next(self.model.parameters()).fill_(torch.nan)
            return super().step(batch)

    torch.manual_seed(0)
    splits = load()
    model = models.build("convnet", splits.image_shape, 10, width=4)
    method = Fragile(model, splits, optimisation=Optimisation(batch_size=32), **QUICK)
    history = training.fit(method, 2)
    assert method.trials[1].loss == DIVERGED
    assert method.best.loss < 10
    assert all(p.isfinite().all() for p in model.parameters())
    assert history.rows[-1]["loss"] < 10


def test_groups_have_numbers_of_their_own() -> None:
    splits = data.load("digits", group_counts=(60, 10, 8, 40))
    method = make(splits, grouped=True, goal="deo", fairness=0.5, design="delta")
    training.fit(method, 2)
    assert [len(trial.values) for trial in method.trials] == [4] * 4
    found = method.loss_parameters["multiplicative"]
    assert found is not None
    assert found.shape == (2, 2)


def test_optuna_says_nothing_and_keeps_its_settings() -> None:
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ear, logger = Ear(), logging.getLogger("optuna")
    logger.addHandler(ear)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bowl(0, 14, design="delta_l")
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
        logger.removeHandler(ear)
    assert said == []


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to search for"):
        make(design="none").stages(4)
    with pytest.raises(UserError, match="need 10: the first trial"):
        make(budget=1.0, trial_epochs=5).stages(9)
    with pytest.raises(UserError, match="grouped=True"):
        make(goal="deo")
