"""Search for the parameters of a loss on a part of the data, then train on all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Batch, Batches, Cells, Splits, StratifiedBatches, divide
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.methods.fair_objective import FairObjective, Goal
from needsaug_lite.methods.loss_design import (
    Design,
    Initial,
    LossDesign,
    LossParameters,
)
from needsaug_lite.models import Classifier
from needsaug_lite.training import Stage

Share = Annotated[float, Gt(0), Lt(1)]


class LossSearch(Supervised, ABC):
    """The frame of methods that search for α, the numbers of a `LossDesign`.

    The training images are divided into a larger part, on which networks are trained
    while α is searched for, and a smaller part, which α is judged on. Then the network
    starts again from its first weights and is trained on all training images with the
    α that was found.

    Attributes:
        space: what is searched.
        alpha: w, l and Δ that a step trains with.
        fair_loss: what validation batches are asked.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        design: Design,
        initial: Initial,
        tau: float,
        cluster_size: int,
        goal: Goal,
        fairness: float,
        grouped: bool,
        validation_share: float,
        **common: Any,
    ) -> None:
        """Divide the training images and start the search space.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from; other parts aren't looked at.
            design, initial, tau, cluster_size: see `LossDesign`.
            goal, fairness: see `FairObjective`.
            grouped: give every cell of class and attribute its own loss parameters and
                its own place in the validation batches; otherwise classes only.
            validation_share: share of every class or cell to validate on.
            common: see `Supervised`.

        Raises:
            UserError: if groups are asked for and there are none, or a class or cell
                has no training image.
        """
        super().__init__(model, splits, **common)
        if goal == "deo" and not grouped:
            raise UserError(
                "goal='deo' compares the groups of a class; give grouped=True"
            )
        if grouped and splits.train.groups is None:
            raise UserError(
                "grouped=True needs the group of every training image, and these "
                "images have none; load them with group_counts, or leave grouped out"
            )
        self.cells = Cells.of(splits, grouped=grouped)
        self.space = LossDesign(
            self.cells.counts(splits.train),
            design=design,
            initial=initial,
            tau=tau,
            cluster_size=cluster_size,
        )
        self.alpha: LossParameters = self.space.detached()
        self.first_state = deepcopy(model.state_dict())
        numbers = self.cells.number(splits.train.labels, splits.train.groups)
        seed = self.batches.seed
        held, self.rest = divide(splits.train, validation_share, numbers, seed=seed)
        self.fair_loss = FairObjective.of(held, self.cells, goal, fairness)
        self.search_batches = self.batches_of_rest(seed)
        self.strata = StratifiedBatches(
            held,
            self.cells.number(held.labels, held.groups),
            self.optimisation.batch_size,
            self.batches.normalisation,
            seed=seed,
        )

    def batches_of_rest(self, seed: int) -> Batches:
        """Batches of the larger part, as the network is trained on them."""
        return Batches(
            self.rest,
            self.optimisation.batch_size,
            self.batches.normalisation,
            augment=self.batches.augment,
            seed=seed,
        )

    def batch_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The parametric cross-entropy with α as it is."""
        return self.train_loss(logits, batch, self.alpha)

    def train_loss(self, logits: Tensor, batch: Batch, alpha: LossParameters) -> Tensor:
        """ℓ_train of autobalance Eq. 2.2, or 4.2 with groups; mean over the batch."""
        one = self.cells.attributes == 1
        groups = None if one else self.cells.attribute(batch.groups, batch.labels)
        return losses.parametric_cross_entropy(
            logits, batch.labels, groups=groups, **alpha
        )

    def stages(self, epochs: int) -> Sequence[Stage]:
        """The search, then the training on everything."""

        def begin_epoch(epoch: int) -> Mapping[str, float]:
            self.epochs = epochs
            self.alpha = self.space.detached(interpolate=True)
            return self.begin_epoch(epoch)

        retraining = Stage(
            f"{type(self).__name__}, retraining",
            epochs,
            self.batches,
            self.step,
            begin_epoch,
            self.start_again,
        )
        return [*self.search_stages(epochs), retraining]

    @abstractmethod
    def search_stages(self, epochs: int) -> Sequence[Stage]:
        """The phases in which α is found; a subclass says which."""

    def start_again(self) -> None:
        """The weights as they were at first, and an optimiser without a past."""
        self.model.load_state_dict(self.first_state)
        self.optimiser = self.optimisation.optimiser(self.model)

    @property
    def loss_parameters(self) -> dict[str, Tensor | None]:
        """w, l and Δ of the retraining, shape (C,) or (C, A); None: 1, 0 and 1."""
        found = self.space.detached(interpolate=True)
        return {
            "class_weight": found["class_weight"],
            "additive": found["additive"],
            "multiplicative": found["multiplicative"],
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, those at first, α, and the optimiser of the network."""
        return {
            **super().state_dict(),
            "first_state": self.first_state,
            "alpha": {name: h.detach() for name, h in self.space.hparams.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.first_state = state["first_state"]
        with torch.no_grad():
            for name, value in state["alpha"].items():
                self.space.hparams[name].copy_(value)
