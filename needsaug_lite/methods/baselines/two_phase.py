"""Cross-entropy until the features are good, then a method that builds on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.func import functional_call

from needsaug_lite import losses
from needsaug_lite.data import Batch, Normalisation, Splits
from needsaug_lite.data.team import Team
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.supervised import DEFERRED_START, Supervised
from needsaug_lite.methods.meta_images import MetaImages
from needsaug_lite.models import Classifier, features_with
from needsaug_lite.statistics import ClassCovariance, nearest_positive_semidefinite
from needsaug_lite.training import Optimisation, Stage

Share = Annotated[float, Ge(0), Le(1)]


class TwoPhase(Supervised, ABC):
    """The frame of the methods that learn something on meta images.

    Until `start` (a share of the epochs) the loss is cross-entropy; then a subclass's
    `late_step` is in force, which finds the meta images in `meta`. Data, schedule and
    optimiser go on as they were.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        start: Share = DEFERRED_START,
        optimisation: Optimisation | None = None,
        normalisation: Normalisation | None = None,
        seed: int = 0,
        **common: Any,
    ) -> None:
        """Prepare the data and the optimiser.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from, `meta` is balanced and clean.
            start: share of the epochs with cross-entropy.
            optimisation: settings of SGD and its schedule, for the network.
            normalisation: default: moments of the training images.
            seed: order of the images and augmentation.
            common: see `Supervised`.

        Raises:
            UserError: if there are no meta images.
        """
        settings = optimisation or Optimisation()
        normal = normalisation or Normalisation.of(splits)
        super().__init__(
            model,
            splits,
            optimisation=settings,
            normalisation=normal,
            seed=seed,
            **common,
        )
        name = type(self).__name__
        self.start = start
        self.meta = MetaImages(
            splits,
            settings.batch_size,
            normal,
            seed=seed,
            steps=len(self.batches),
            purpose=f"{name} learns from a balanced, clean set of meta images",
        )

    def share_out(self, team: Team) -> None:
        """Train on this process's part of every batch, those of meta images too."""
        super().share_out(team)
        self.meta.batches.team = team

    def stages(self, epochs: int) -> Sequence[Stage]:
        """Cross-entropy, then the method."""
        self.epochs = epochs
        first = round(self.start * epochs)
        name, batches = type(self).__name__, self.batches
        return [
            Stage("CrossEntropy", first, batches, self.early_step, self.begin_epoch),
            Stage(
                name,
                epochs - first,
                batches,
                self.late_step,
                self.begin_epoch,
                first=first,
            ),
        ]

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set the learning rate, and start the meta images of the epoch."""
        self.meta.begin_epoch(epoch)
        return super().begin_epoch(epoch)

    def early_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One step on cross-entropy."""
        return self.step(batch)

    @abstractmethod
    def late_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One step of the method; a subclass says which."""

    @property
    def rate(self) -> float:
        """Learning rate of the network in this epoch."""
        lr: float = self.optimiser.param_groups[0]["lr"]
        return lr

    def meta_loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean cross-entropy of a batch of meta images under other parameters."""
        logits = functional_call(self.model, dict(params), (batch.images,))
        return batch.share(nn.functional.cross_entropy(logits, batch.labels))


class ImplicitlyAugmented(TwoPhase):
    """A method of two phases whose second loss is `losses.iada`.

    `moments` are the running class moments; they are collected in the second phase.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        alpha: float,
        beta: float,
        covariance_lr: float,
        diagonal: bool = False,
        **common: Any,
    ) -> None:
        """Prepare the moments.

        Args:
            model: its head is linear.
            splits: see `TwoPhase`.
            alpha: share of the covariance that is used.
            beta: strength of the adjustment by the class prior.
            covariance_lr: step size of the covariances on the meta loss.
            diagonal: keep class variances only, C D numbers instead of C D².
            common: see `TwoPhase`.

        Raises:
            UserError: if the head isn't linear or there are no meta images.
        """
        super().__init__(model, splits, **common)
        self.linear = linear_head(model, type(self).__name__)
        self.alpha, self.beta, self.covariance_lr = alpha, beta, covariance_lr
        self.class_prior = splits.class_prior
        self.moments = ClassCovariance(
            splits.num_classes,
            model.feature_dim,
            diagonal=diagonal,
            device=splits.train.labels.device,
        )

    def features_with(self, params: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Features (B, D) under other parameters than the model's own."""
        return features_with(self.model, params, images)

    def loss_with(
        self,
        features: Tensor,
        labels: Tensor,
        params: Mapping[str, Tensor],
        sigma: Tensor,
        epsilon: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch under given parameters, covariances and ε (None: zero)."""
        return losses.iada(
            features,
            labels,
            params["head.weight"],
            params.get("head.bias"),
            sigma,
            zeros_for(labels, features) if epsilon is None else epsilon,
            self.class_prior,
            alpha=self.alpha,
            beta=self.beta,
        )

    def moved_covariance(self, gradient: Tensor) -> Tensor:
        """Σ after a step along the gradient of the meta loss, without eigenvalues < 0.

        The running covariances stay as they are.
        """
        moved = self.moments.covariance - self.covariance_lr * gradient
        return nearest_positive_semidefinite(moved)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser and class moments."""
        return {**super().state_dict(), "moments": self.moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.moments.load_state_dict(state["moments"])


def linear_head(model: Classifier, method: str) -> nn.Linear:
    """The head of a model, if the loss of the method fits it.

    Raises:
        UserError: if it isn't linear.
    """
    if not isinstance(model.head, nn.Linear):
        raise UserError(
            f"{method} needs a linear head, because its loss is made of weights and "
            "biases; build the model with head='linear'"
        )
    return model.head


def zeros_for(labels: Tensor, like: Tensor) -> Tensor:
    """ε = 0 for every sample, shape (B,)."""
    return torch.zeros(labels.shape, device=like.device, dtype=like.dtype)
