"""Two levels: any training of a supernet's weights, and steps of its architecture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from needsaug_lite import hypergrad, losses
from needsaug_lite.data import Batch, Batches, Normalisation, Splits
from needsaug_lite.hypergrad import Hypergradient, HypergradientWarning
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.methods.meta_images import MetaImages
from needsaug_lite.methods.search.settings import SearchSettings, clipped
from needsaug_lite.methods.shared_head import ARCHITECTURE, decay, features, logits

Params = Mapping[str, Tensor]
Route = Literal["first_order", "finite_difference", "exact"]
Radius = Annotated[float, Gt(0)]
# Of Adam for A, in DARTS and PC-DARTS.
META_BETAS = (0.5, 0.999)


class BilevelSearch:
    """DARTS around any method that trains the weights of a supernet.

        A <- A - Adam(∇_A L_cls(W', A, D_val))
        W <- what `learner` does, with the new A

    W' = W ("first_order"), or W - η ∇ L_cls(W, A, D_tr), through which the gradient
    goes by finite differences or exactly. L_cls is the cross-entropy of real images,
    whatever the learner adds to it.

    Source: DARTS (Liu et al. 2019), Algorithm 1.
    """

    def __init__(
        self,
        learner: Supervised,
        splits: Splits,
        *,
        search: SearchSettings,
        normalisation: Normalisation,
        interval: int = 1,
        route: Route = "first_order",
        radius: float = 0.01,
    ) -> None:
        """Give the learner the weights, and keep A.

        Args:
            learner: trains a classifier with a `Supernet`.
            splits: `meta` is D_val.
            search: settings.
            normalisation: that of the training images.
            interval: steps of the weights for each of A.
            route: see above.
            radius: length of the move of a finite difference.
        """
        self.learner, self.model = learner, learner.model
        self.route, self.radius, self.interval = route, radius, interval
        part = ARCHITECTURE.part(self.model)
        learner.optimiser = clipped(
            learner.optimisation.optimiser(ARCHITECTURE.weights(self.model).values()),
            search.clip,
        )
        self.meta_optimiser = torch.optim.Adam(
            part.parameters(),
            search.meta_lr,
            META_BETAS,
            weight_decay=search.meta_decay,
        )
        self.held_out = MetaImages(
            splits,
            learner.optimisation.batch_size,
            normalisation,
            seed=learner.batches.seed,
            steps=len(learner.batches),
            purpose="an architecture is learned on held-out images",
        )
        self.moving = True
        self.steps_done = 0
        self.outer_value = torch.zeros((), device=splits.train.labels.device)

    @property
    def batches(self) -> Batches:
        """The training images."""
        return self.learner.batches

    @property
    def epochs(self) -> int:
        """Epochs of the search."""
        return self.learner.epochs

    @epochs.setter
    def epochs(self, epochs: int) -> None:
        self.learner.epochs = epochs

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Start the held-out images, and the learner's epoch."""
        self.held_out.begin_epoch(epoch)
        return self.learner.begin_epoch(epoch)

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """A where it is due, then the weights."""
        if self.moving and self.steps_done % self.interval == 0:
            self.improve_architecture(batch, next(self.held_out))
        self.steps_done += 1
        return {**self.learner.step(batch), "outer_loss": self.outer_value}

    def improve_architecture(self, batch: Batch, clean: Batch) -> Hypergradient:
        """One step of Adam for A."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HypergradientWarning)
            estimate = self.hypergradient(batch, clean)
        part = ARCHITECTURE.part(self.model)
        for name, value in part.named_parameters():
            value.grad = estimate[name]
        self.meta_optimiser.step()
        self.outer_value = estimate.outer_loss
        return estimate

    def hypergradient(self, batch: Batch, clean: Batch) -> Hypergradient:
        """∇_A L_cls(W'(A), A, D_val) by the chosen route."""
        rate: float = self.learner.optimiser.param_groups[0]["lr"]
        weight_decay = self.learner.optimisation.weight_decay
        weights = ARCHITECTURE.weights(self.model)
        part = dict(ARCHITECTURE.part(self.model).named_parameters())

        def loss(
            w: Mapping[str, Tensor], a: Mapping[str, Tensor], seen: Batch
        ) -> Tensor:
            params = ARCHITECTURE.whole(w, a)
            found = features(self.model, params, seen.images)
            return losses.cross_entropy(logits(self.model, params, found), seen.labels)

        def outer(w: Params, a: Params) -> Tensor:
            return loss(w, a, clean)

        def inner(w: Params, a: Params) -> Tensor:
            return loss(w, a, batch) + decay(w, weight_decay)

        if self.route == "first_order":
            return hypergrad.first_order(outer, weights, part)
        if self.route == "exact":
            return hypergrad.unrolled(inner, outer, weights, part, lr=rate)
        return hypergrad.finite_difference(
            inner, outer, weights, part, lr=rate, radius=self.radius
        )

    def allocation_summary(self) -> dict[str, Any]:
        """What a budget of the learner went to; empty without one."""
        found = getattr(self.learner, "allocation_summary", None)
        return found() if found is not None else {}

    def state_dict(self) -> dict[str, Any]:
        """The learner's state with A, and the optimiser of A."""
        return {
            "learner": self.learner.state_dict(),
            "meta_optimiser": self.meta_optimiser.state_dict(),
            "steps_done": self.steps_done,
            "outer_value": self.outer_value,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        self.learner.load_state_dict(state["learner"])
        self.meta_optimiser.load_state_dict(state["meta_optimiser"])
        self.steps_done, self.outer_value = state["steps_done"], state["outer_value"]
