"""Features augmented by the covariance of their class: ISDA, and with a meta set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor

from needsaug_lite import hypergrad, losses
from needsaug_lite.data import Batch, Splits
from needsaug_lite.hypergrad import Hypergradient
from needsaug_lite.methods.baselines.supervised import (
    DEFERRED_START,
    Supervised,
    accuracy,
)
from needsaug_lite.methods.baselines.two_phase import (
    ImplicitlyAugmented,
    Share,
    linear_head,
    zeros_for,
)
from needsaug_lite.models import Classifier
from needsaug_lite.statistics import ClassCovariance

NotNegative = Annotated[float, Ge(0)]


class ISDA(Supervised):
    """Implicit semantic data augmentation (Wang et al. 2019).

    The loss is `losses.iada` without perturbation and prior. Its strength grows with
    training, alpha * t / T in epoch t of T, because early covariances tell little; they
    are collected from the first step on.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        alpha: NotNegative = 0.5,
        diagonal: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, **common)
        self.linear = linear_head(model, "ISDA")
        self.alpha, self.strength = alpha, 0.0
        self.class_prior = splits.class_prior
        self.moments = ClassCovariance(
            splits.num_classes,
            model.feature_dim,
            diagonal=diagonal,
            device=splits.train.labels.device,
        )

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set learning rate and strength of the epoch."""
        self.strength = self.alpha * epoch / self.epochs
        return {**super().begin_epoch(epoch), "strength": self.strength}

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of the weights."""
        self.model.train()
        features = self.model.features(batch.images)
        self.moments.update(features, batch.labels)
        loss = losses.iada(
            features,
            batch.labels,
            self.linear.weight,
            self.linear.bias,
            self.moments.covariance,
            zeros_for(batch.labels, features),
            self.class_prior,
            alpha=self.strength,
            beta=0.0,
        )
        right = accuracy(self.linear(features.detach()), batch.labels)
        self.descend(loss)
        return {"loss": loss.detach(), "accuracy": right}

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser and class moments."""
        return {**super().state_dict(), "moments": self.moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.moments.load_state_dict(state["moments"])


class MetaCovariance(ImplicitlyAugmented):
    """ISDA whose covariances take a step on balanced meta images (as in MetaSAug).

    Cross-entropy until `start`; then, in each step, with Σ the running covariances:

        θ' = θ - lr ∇_θ L(θ, Σ),   Σ' = clip(Σ - covariance_lr ∇_Σ ℓ_meta(θ'(Σ)))

    and a step of the network on L(θ, Σ'). clip removes negative eigenvalues. Σ' is
    forgotten after the step. L is `losses.iada` without perturbation; beta adds the
    prior, which the original does not have.

    Source: Li et al. 2021 (MetaSAug), with its published code; the class weights of
    its loss are left out, so that nothing but the covariance differs from ISDA.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        alpha: NotNegative = 0.5,
        beta: NotNegative = 0.0,
        covariance_lr: NotNegative = 0.1,
        start: Share = DEFERRED_START,
        diagonal: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(
            model,
            splits,
            alpha=alpha,
            beta=beta,
            covariance_lr=covariance_lr,
            start=start,
            diagonal=diagonal,
            **common,
        )

    def hypergradient(self, batch: Batch, clean: Batch) -> Hypergradient:
        """Derivative of the meta loss by "covariance", through one step."""

        def inner_loss(params: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
            features = self.features_with(params, batch.images)
            return self.loss_with(features, batch.labels, params, h["covariance"])

        def outer_loss(params: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
            return self.meta_loss(params, clean)

        return hypergrad.unrolled(
            inner_loss,
            outer_loss,
            dict(self.model.named_parameters()),
            {"covariance": self.moments.covariance},
            lr=self.rate,
        )

    def late_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Covariance step on the meta images, then the step of the network."""
        self.model.train()
        features = self.model.features(batch.images)
        self.moments.update(features, batch.labels)
        estimate = self.hypergradient(batch, next(self.meta))
        sigma = self.moved_covariance(estimate["covariance"])
        own = dict(self.model.named_parameters())
        loss = self.loss_with(features, batch.labels, own, sigma)
        right = accuracy(self.linear(features.detach()), batch.labels)
        self.descend(loss)
        return {
            "loss": loss.detach(),
            "accuracy": right,
            "outer_loss": estimate.outer_loss,
        }
