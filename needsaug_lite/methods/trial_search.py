"""Search for the parameters of a loss by trials, without a derivative."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from needsaug_lite.data import Batch, Splits, generator
from needsaug_lite.errors import UserError
from needsaug_lite.methods.fair_objective import Goal
from needsaug_lite.methods.loss_design import Design, Initial
from needsaug_lite.methods.loss_search import LossSearch, Share
from needsaug_lite.metrics import predict_all
from needsaug_lite.models import Classifier
from needsaug_lite.training import Stage

Positive = Annotated[float, Gt(0)]
Count = Annotated[int, Gt(0)]
Range = tuple[float, float]

# Where the numbers of a `LossDesign` are looked for: τ, the way of l' from its start,
# and Δ', whose sigmoid then lies between 0.05 and 0.98.
TAU_RANGE: Range = (0.0, 3.0)
ADDITIVE_REACH = 3.0
MULTIPLICATIVE_RANGE: Range = (-3.0, 4.0)
# Nats that stand for a loss that isn't a number: a trial may fail, the search may not.
DIVERGED = 1e6
# Proposals are drawn at random until there are this many trials, or a third of them.
RANDOM_TRIALS = 10
_PROPOSAL = 411


@dataclass(frozen=True)
class Trial:
    """Values of α, one number after the other, and the L_fair they led to, nats."""

    values: list[float]
    loss: float


class TrialSearch(LossSearch):
    """Search for the parameters of a loss by training a network for every proposal.

        min_α L_fair(θ_T(α)),   θ_T(α): T epochs of SGD on L_train(θ, α) from θ_0

    The problem and the search space are those of `AutoBalance`, but L_fair is only
    evaluated, never differentiated. The first trial is the start of the space, a third
    of the trials (at most 10) are drawn at random from the ranges, and the others are
    proposed by the tree-structured Parzen estimator: it models the densities of good
    and of other trials, and proposes where their ratio is high. All trials see the same
    batches and differ in α alone; after the last, the network starts again from its
    first weights and is trained on all training images with the best α.

    Ranges: τ in [0, 3] (wider if it starts outside), l' within 3 of its start, Δ' in
    [-3, 4]. A trial whose loss stops being a number counts as the worst.

    Source: stands in for the derivative-free search (SMAC) that autobalance Sec. 2.1
    compares with; Bergstra et al. 2011 for the estimator, as Optuna has it.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        design: Design = "delta_l",
        initial: Initial = "la",
        tau: float = 1.0,
        cluster_size: Count = 1,
        goal: Goal = "balanced",
        fairness: Annotated[float, Ge(0), Le(1)] = 1.0,
        grouped: bool = False,
        validation_share: Share = 0.2,
        budget: Positive = 2.0,
        trial_epochs: Count | None = None,
        **common: Any,
    ) -> None:
        """Divide the training images and set the ranges.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from; other parts aren't looked at.
            design, initial, tau, cluster_size: see `LossDesign`.
            goal, fairness: see `FairObjective`; the goal "deo" needs `grouped`.
            grouped, validation_share: see `LossSearch`.
            budget: epochs of all trials together, as a multiple of the epochs of the
                retraining; the number of trials is floor(budget epochs / trial_epochs).
            trial_epochs: T, in which a trial goes through the whole schedule of the
                learning rate; None for a fifth of the epochs of the retraining.
            common: see `Supervised`.

        Raises:
            UserError: see `LossSearch`.
        """
        super().__init__(
            model,
            splits,
            design=design,
            initial=initial,
            tau=tau,
            cluster_size=cluster_size,
            goal=goal,
            fairness=fairness,
            grouped=grouped,
            validation_share=validation_share,
            **common,
        )
        self.budget, self.trial_epochs = budget, trial_epochs
        self.start = self.values()
        self.ranges = ranges(self.space.hparams)
        self.trials: list[Trial] = []
        self.number = 0  # trials that the budget pays for
        self.running = False

    def values(self) -> list[float]:
        """α as it is, one number after the other."""
        flat = [h.detach().flatten().tolist() for h in self.space.hparams.values()]
        return [value for part in flat for value in part]

    @torch.no_grad()
    def use(self, values: Sequence[float]) -> None:
        """Make the given numbers α."""
        parts = list(self.space.hparams.values())
        numbers = torch.tensor(values, device=parts[0].device)
        pieces = numbers.split([h.numel() for h in parts])
        for h, piece in zip(parts, pieces, strict=True):
            h.copy_(piece.view_as(h))

    @property
    def best(self) -> Trial:
        """The trial with the smallest L_fair, the earliest of equal ones."""
        return min(self.trials, key=lambda trial: trial.loss)

    def search_stages(self, epochs: int) -> Sequence[Stage]:
        """One stage for every trial."""
        if not self.space.hparams:
            raise UserError("design='none' leaves nothing to search for")
        each = self.trial_epochs or max(1, round(epochs / 5))
        # What rounding left of a product that should be whole must not cost a trial.
        self.number = int(self.budget * epochs / each + 1e-9)
        if self.number < 2:
            raise UserError(
                f"budget={self.budget} pays for {self.budget * epochs:g} epochs, but "
                f"two trials of trial_epochs={each} need {2 * each}: the first trial "
                "is the start of the search. Give a larger budget or shorter trials"
            )

        def begin_epoch(epoch: int) -> Mapping[str, float]:
            self.epochs = each
            self.alpha = self.space.detached()
            return {**self.begin_epoch(epoch), **self.space.summary()}

        name = type(self).__name__
        return [
            Stage(
                f"{name}, trial {trial}",
                each,
                self.search_batches,
                self.trial_step,
                begin_epoch,
                self.begin_trial,
            )
            for trial in range(1, self.number + 1)
        ]

    def begin_trial(self) -> None:
        """Judge the trial before, propose the next α, and start from θ_0."""
        self.start_again()
        self.use(self.proposal())
        self.running = True

    def start_again(self) -> None:
        """Judge the trial that ends, take the best α so far, and start from θ_0."""
        if self.running:
            self.trials.append(Trial(self.values(), self.held_out_loss()))
            self.running = False
        if self.trials:
            self.use(self.best.values)
        super().start_again()

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set the learning rate; say what the last trial led to, and the best one."""
        logged = dict(super().begin_epoch(epoch))
        if self.trials:
            logged["outer_loss"] = self.trials[-1].loss
            logged["best_outer_loss"] = self.best.loss
        return logged

    def trial_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of the weights; a loss that isn't a number doesn't end the run."""
        logged = self.step(batch)
        return {name: _finite(value) for name, value in logged.items()}

    def held_out_loss(self) -> float:
        """L_fair of all images held out, in evaluation mode, nats."""
        held = self.strata.examples
        found = predict_all(self.model, held, self.batches.normalisation)
        logits = found.logits.to(held.labels.device)
        # The objective looks at labels and groups, not at the images.
        index = torch.arange(len(held))
        loss = self.fair_loss(logits, Batch(logits, held.labels, held.groups, index))
        return float(_finite(loss))

    def proposal(self) -> list[float]:
        """α of the next trial; it depends on the seed and the trials before it."""
        number = len(self.trials)
        if number == 0:
            return self.start
        import optuna  # late: it is slow, and talks in a notebook

        draw = generator(self.batches.seed, _PROPOSAL, number)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=min(RANDOM_TRIALS, -(-self.number // 3)),
            seed=draw.initial_seed() % 2**32,
        )
        space = {
            f"{place:05d}": optuna.distributions.FloatDistribution(low, high)
            for place, (low, high) in enumerate(self.ranges)
        }
        with _silent():
            study = optuna.create_study(sampler=sampler)
            study.add_trials(
                optuna.trial.create_trial(
                    params=dict(zip(space, trial.values, strict=True)),
                    distributions=dict(space),
                    value=trial.loss,
                )
                for trial in self.trials
            )
            found = study.ask(dict(space)).params
        return [found[place] for place in space]

    def state_dict(self) -> dict[str, Any]:
        """What the frame keeps, and the trials so far."""
        trials = [[trial.values, trial.loss] for trial in self.trials]
        return {**super().state_dict(), "trials": trials, "running": self.running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.trials = [Trial(values, loss) for values, loss in state["trials"]]
        self.running = state["running"]


def ranges(hparams: Mapping[str, Tensor]) -> list[Range]:
    """Where each number of α is looked for, in the order of `TrialSearch.values`.

    Args:
        hparams: of a `LossDesign`, where the search starts.

    Returns:
        Lowest and highest value; the start lies between them.
    """
    found = []
    for name, start in hparams.items():
        for value in start.detach().flatten().tolist():
            low, high = TAU_RANGE
            if name == "additive":
                low, high = value - ADDITIVE_REACH, value + ADDITIVE_REACH
            elif name == "multiplicative":
                low, high = MULTIPLICATIVE_RANGE
            found.append((min(low, value), max(high, value)))
    return found


def _finite(value: Tensor) -> Tensor:
    return value.nan_to_num(DIVERGED, DIVERGED, DIVERGED)


@contextmanager
def _silent() -> Iterator[None]:
    """Optuna without its announcements."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
