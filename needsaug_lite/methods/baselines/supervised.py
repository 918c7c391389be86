"""One classifier, one loss, SGD: the frame that the loss baselines share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Batch, Batches, Normalisation, Splits
from needsaug_lite.data.batches import Augmentation
from needsaug_lite.data.team import ALONE, Team
from needsaug_lite.models import Classifier
from needsaug_lite.models.team_norm import with_team_norm
from needsaug_lite.training import Optimisation, Stage
from needsaug_lite.training.schedules import set_learning_rate

# Two places in which several published recipes change from one phase to the next.
DEFERRED_START = 0.8


class Supervised:
    """Train a classifier on one loss; a subclass says which.

    A subclass overrides `loss`, or `batch_loss` if it looks at groups or positions,
    and where its recipe changes over time, `begin_epoch`.

    A class may share out its batches among processes if its own body says
    `data_parallel = True`; subclasses don't inherit that. Its loss must then be a plain
    mean over images, and what it takes of a whole batch besides comes from
    `Batch.together`.

    Attributes:
        team: the processes that share out the batches.
    """

    version = 1
    head = "linear"
    team: Team = ALONE

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        optimisation: Optimisation | None = None,
        augment: Augmentation | None = None,
        normalisation: Normalisation | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare the data and the optimiser.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from; other parts aren't looked at.
            optimisation: settings of SGD and its schedule.
            augment: random change of training images.
            normalisation: default: moments of the training images.
            seed: order of the images and augmentation.
        """
        self.model = model
        self.counts = splits.class_counts
        self.optimisation = optimisation or Optimisation()
        self.optimiser = self.optimisation.optimiser(model)
        self.batches = Batches(
            splits.train,
            self.optimisation.batch_size,
            normalisation or Normalisation.of(splits),
            augment=augment,
            seed=seed,
            class_weights=self.sampling_weights(),
        )
        self.epochs = 0

    def share_out(self, team: Team) -> None:
        """Train on this process's part of every batch from now on."""
        self.team = self.batches.team = team
        with_team_norm(self.model, team)

    def sampling_weights(self) -> Tensor | None:
        """Relative chance of an image to be drawn, by class; None: each image once."""
        return None

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar in nats."""
        return losses.cross_entropy(logits, labels)

    def batch_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """What a step minimises, a scalar in nats: the loss of the batch's labels."""
        return self.loss(logits, batch.labels)

    def stages(self, epochs: int) -> Sequence[Stage]:
        """One stage."""
        self.epochs = epochs
        name = type(self).__name__
        return [Stage(name, epochs, self.batches, self.step, self.begin_epoch)]

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set the learning rate of the epoch."""
        lr = self.optimisation.learning_rate(epoch, self.epochs)
        set_learning_rate(self.optimiser, lr)
        return {"lr": lr}

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of the weights."""
        self.model.train()
        logits = self.model(batch.images)
        loss = self.batch_loss(logits, batch)
        self.descend(batch.share(loss))
        return {"loss": loss.detach(), "accuracy": accuracy(logits, batch.labels)}

    def descend(self, loss: Tensor) -> None:
        """One update of the network, along the mean gradient of all processes."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = self.model.parameters()
        self.team.average(p.grad for p in parameters if p.grad is not None)
        self.optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put weights and optimiser back."""
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])


class Deferred(Supervised):
    """A baseline whose class weights come late (DRW of Cao et al. 2019).

    Until `start` (a share of the epochs) all classes weigh the same; after it, the
    class-balanced weights are in force.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        start: float = DEFERRED_START,
        beta: float = 0.9999,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, **common)
        self.start = start
        self.late_weight = losses.class_balanced_weights(self.counts, beta)
        self.class_weight: Tensor = torch.ones_like(self.late_weight)

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set the learning rate and the class weights of the epoch."""
        late = epoch >= round(self.start * self.epochs)
        ones = torch.ones_like(self.late_weight)
        self.class_weight = self.late_weight if late else ones
        return {**super().begin_epoch(epoch), "reweighted": float(late)}


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right guesses in a batch, a scalar."""
    return (logits.detach().argmax(1) == labels).float().mean()
