"""Cells drawn at random: the control that a search has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Gt

from needsaug_lite import metrics
from needsaug_lite.data import Splits, generator
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.methods.search.frame import ArchitectureSearch
from needsaug_lite.methods.search.settings import (
    EVALUATION,
    SEARCH,
    EvaluationSettings,
    SearchSettings,
    clipped,
)
from needsaug_lite.models import Classifier
from needsaug_lite.models.genotype import Genotype, random_genotype
from needsaug_lite.training import Optimisation, Stage

_CELLS = 911


class RandomArchitecture(ArchitectureSearch):
    """Cells drawn evenly from the space, the best of several on held-out images.

    Each candidate is a network of the size of the supernet and learns D_tr for an
    equal part of the epochs of a search; the one with the largest balanced accuracy on
    D_val is evaluated. One candidate is evaluated as it is drawn, without a search.

    Source: the control of Li and Talwalkar 2020; no part of needs_aware.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        candidates: Annotated[int, Gt(0)] = 4,
        search: SearchSettings = SEARCH,
        evaluation: EvaluationSettings = EVALUATION,
        **common: Any,
    ) -> None:
        """Draw the candidates.

        Args:
            model, splits, search, evaluation, common: see `ArchitectureSearch`.
            candidates: how many.
        """
        super().__init__(model, splits, search=search, evaluation=evaluation, **common)
        draw = generator(self.seed, _CELLS)
        space = self.supernet.space
        self.candidates = [random_genotype(space, draw) for _ in range(candidates)]
        self.meta = splits.meta
        self.accuracies: list[float] = []
        self.trying: Genotype | None = None

    def make_searcher(
        self, model: Classifier, splits: Splits, **settings: Any
    ) -> _Trial:
        """What trains one candidate after another."""
        self.trial = _Trial(model, splits, **settings)
        return self.trial

    def stages(self, epochs: int) -> Sequence[Stage]:
        """A trial of each candidate, then the evaluation of the best."""
        self.epochs = epochs
        if len(self.candidates) == 1:
            return [self.evaluation_stage()]
        part = max(1, self.search_epochs(epochs) // len(self.candidates))
        self.searcher.epochs = part
        trials = [
            Stage(
                "search",
                part,
                self.searcher.batches,
                self.searcher.step,
                self.searcher.begin_epoch,
                begin=lambda cells=cells: self.try_cells(cells),  # type: ignore[misc]
            )
            for cells in self.candidates
        ]
        return [*trials, self.evaluation_stage()]

    def try_cells(self, genotype: Genotype) -> None:
        """Judge the last candidate, if there was one, and begin the next."""
        self.judge()
        self.trying = genotype
        torch.manual_seed(self.seed)
        small = replace(self.evaluation, cells=None, channels=None, auxiliary=0.0)
        self.trial.begin(self.network(genotype, small), self.search.clip)

    def judge(self) -> None:
        """Balanced accuracy of the candidate in training on D_val."""
        if self.trying is None:
            return
        found = metrics.evaluate(self.trial.model, self.meta, self.normalisation)
        self.accuracies.append(float(found["balanced_accuracy"]))
        self.trying = None

    def finish_search(self) -> None:
        """Evaluate the best candidate; of equal ones the first."""
        self.judge()
        best = 0
        if self.accuracies:
            best = max(range(len(self.candidates)), key=lambda n: self.accuracies[n])
            # A run that goes on from here knows the supernet alone.
            self.trial.begin(self.model, self.search.clip)
        self.evaluate_cells(self.candidates[best])

    def architecture_summary(self) -> dict[str, Any]:
        """The cells; nothing was preferred but by trial."""
        found = super().architecture_summary()
        del found["strengths"]
        return {**found, "candidate_accuracies": self.accuracies}

    def state_dict(self) -> dict[str, Any]:
        """Also which candidate is being tried, and how the others did."""
        trying = None if self.trying is None else self.trying.as_lists()
        return {
            **super().state_dict(),
            "accuracies": self.accuracies,
            "trying": trying,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        if state["trying"] is not None:
            with torch.random.fork_rng():  # its weights are overwritten
                self.try_cells(Genotype.from_lists(state["trying"]))
        super().load_state_dict(state)
        self.accuracies = list(state["accuracies"])


class _Trial(Supervised):
    """Cross-entropy for one network after another."""

    def __init__(self, model: Classifier, splits: Splits, **settings: Any) -> None:
        super().__init__(model, splits, **settings)
        self.moving = False  # there is no A

    def begin(self, model: Classifier, clip: float) -> None:
        self.model = model
        optimisation: Optimisation = self.optimisation
        self.optimiser = clipped(optimisation.optimiser(model), clip)
