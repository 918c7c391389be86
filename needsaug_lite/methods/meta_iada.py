"""Meta-IADA: how hard to push each sample, learned on a small balanced set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.func import functional_call

from needsaug_lite import hypergrad, losses, statistics
from needsaug_lite.data import Batch, Splits
from needsaug_lite.hypergrad import Hypergradient
from needsaug_lite.methods.baselines.supervised import DEFERRED_START, accuracy
from needsaug_lite.methods.baselines.two_phase import (
    ImplicitlyAugmented,
    Share,
)
from needsaug_lite.models import Classifier, PerturbationNetwork
from needsaug_lite.statistics import SampleMemory

NotNegative = Annotated[float, Ge(0)]

# The hypergradient carries the learning rate of the network as a factor and can fall
# below Adam's usual 1e-8, which would stop the perturbation network.
_ADAM_EPS = 1e-15


class MetaIADA(ImplicitlyAugmented):
    """Implicit adversarial augmentation with learned strength (Zhou et al. 2024).

    Cross-entropy until `start`, then in each step, with Φ the network, Ω the
    perturbation network, f the characteristics of a sample, Σ the running covariances:

        Φ' = Φ - lr ∇_Φ L(Φ; Σ, ε(f, Ω))                            (Eq. 7)
        Ω <- Ω - Adam(∇_Ω ℓ_meta(Φ'))                                (Eq. 8)
        Σ' = clip(Σ - covariance_lr ∇_Σ ℓ_meta(Φ'))                  (Eq. 9)
        Φ <- Φ - SGD(∇_Φ L(Φ; Σ', ε(f, Ω)))                          (Eq. 10)

    L is `losses.iada`, ℓ_meta plain cross-entropy of meta images. Where the paper is
    silent: Eq. 7 is a step without momentum and weight decay; Σ' has negative
    eigenvalues removed and is forgotten after the step; Σ is collected from `start`
    on; Ω and Σ have step sizes of their own.

    Attributes:
        epsilon: ε of every training image when last seen in the second phase, shape
            (N,); 0 before that.

    Source: meta_iada Algorithm 1.
    """

    data_parallel = True

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        alpha: NotNegative = 0.5,
        beta: NotNegative = 1.0,
        outer_lr: Annotated[float, Gt(0)] = 1e-3,
        covariance_lr: NotNegative = 0.1,
        hidden: Annotated[int, Gt(0)] = 100,
        start: Share = DEFERRED_START,
        diagonal: bool = False,
        **common: Any,
    ) -> None:
        """Start with ε = 0 for every sample.

        Args:
            model: trained in place, on the device of `splits`; its head is linear.
            splits: `train` is learned from, `meta` is balanced and clean.
            alpha: share of the covariance that is used.
            beta: strength of the adjustment by the class prior.
            outer_lr: rate of Adam for the perturbation network.
            covariance_lr: step size of Eq. 9.
            hidden: width of the perturbation network.
            start: share of the epochs with cross-entropy; T_1 of the paper.
            diagonal: keep class variances only, C D numbers instead of C D².
            common: see `ImplicitlyAugmented`.

        Raises:
            UserError: if the head isn't linear or there are no meta images.
        """
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
        labels = splits.train.labels
        self.network = PerturbationNetwork(hidden=hidden).to(labels.device)
        self.outer_optimiser = torch.optim.Adam(
            self.network.parameters(), lr=outer_lr, eps=_ADAM_EPS
        )
        self.memory = SampleMemory(labels, splits.num_classes)
        self.epsilon = torch.zeros(labels.shape, device=labels.device)

    def suspicion(self) -> Tensor:
        """-ε of every training image: one that was made easier is suspect, (N,)."""
        return -self.epsilon

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set the learning rate; take the class means of the epoch before."""
        self.memory.begin_epoch()
        return super().begin_epoch(epoch)

    def early_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Algorithm 1, line 4; the memory is filled for the second phase."""
        self.model.train()
        logits = self.model(batch.images)
        self.remember(batch, logits)
        loss = losses.cross_entropy(logits, batch.labels)
        self.descend(batch.share(loss))
        right = accuracy(logits, batch.labels)
        return {"loss": loss.detach(), "accuracy": right}

    def remember(self, batch: Batch, logits: Tensor) -> None:
        """Loss and margin of all samples, those of other processes too."""
        seen = batch.together(logits)
        self.memory.remember(batch.all_index, seen, batch.all_labels)

    def characteristics(self, batch: Batch, features: Tensor, logits: Tensor) -> Tensor:
        """F of every sample, standardised over the whole batch, shape (B, 15)."""
        found = statistics.training_characteristics(
            features,
            logits,
            batch.labels,
            batch.index,
            self.linear.weight,
            self.class_prior,
            self.memory,
        )
        return batch.own(statistics.standardised(batch.together(found)))

    def hypergradient(
        self, batch: Batch, clean: Batch, characteristics: Tensor
    ) -> Hypergradient:
        """Derivative of the meta loss by Ω and Σ, through one step (Eq. 7 to 9).

        Args:
            batch: training images, B of them.
            clean: meta images.
            characteristics: f, shape (B, 15).

        Returns:
            One entry per parameter of the perturbation network, and "covariance".
        """

        def inner_loss(params: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
            omega = {name: h[name] for name, _ in self.network.named_parameters()}
            epsilon = functional_call(self.network, omega, (characteristics,))
            features = self.features_with(params, batch.images)
            sigma = h["covariance"]
            loss = self.loss_with(features, batch.labels, params, sigma, epsilon)
            return batch.share(loss)

        def outer_loss(params: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
            return self.meta_loss(params, clean)

        omega = {name: p.detach() for name, p in self.network.named_parameters()}
        return hypergrad.unrolled(
            inner_loss,
            outer_loss,
            dict(self.model.named_parameters()),
            {**omega, "covariance": self.moments.covariance},
            lr=self.rate,
        )

    def late_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Algorithm 1, lines 8 to 15."""
        self.model.train()
        features = self.model.features(batch.images)
        logits = self.linear(features)
        # Line 11: the covariances as they are now, and what the samples look like.
        self.moments.update(batch.together(features), batch.all_labels)
        found = self.characteristics(batch, features, logits)
        self.remember(batch, logits)
        # Lines 12 and 13: virtual step, then the perturbation network.
        estimate = self.hypergradient(batch, next(self.meta), found)
        for name, parameter in self.network.named_parameters():
            parameter.grad = estimate[name]
        self.outer_optimiser.step()
        # Line 14: the covariances of this step.
        sigma = self.moved_covariance(estimate["covariance"])
        # Line 15: the network, with both.
        with torch.no_grad():
            epsilon = self.network(found)
        self.epsilon[batch.all_index] = batch.together(epsilon)
        own = dict(self.model.named_parameters())
        loss = self.loss_with(features, batch.labels, own, sigma, epsilon)
        self.descend(batch.share(loss))
        return {
            "loss": loss.detach(),
            "accuracy": accuracy(logits, batch.labels),
            "outer_loss": estimate.outer_loss,
            "adversarial": (epsilon > 0).float().mean(),
            "epsilon": epsilon.mean(),
            "epsilon_size": epsilon.abs().mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Both networks and optimisers, moments and memories."""
        return {
            **super().state_dict(),
            "network": self.network.state_dict(),
            "outer_optimiser": self.outer_optimiser.state_dict(),
            "memory": self.memory.state_dict(),
            "epsilon": self.epsilon,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.network.load_state_dict(state["network"])
        self.outer_optimiser.load_state_dict(state["outer_optimiser"])
        self.memory.load_state_dict(state["memory"])
        self.epsilon.copy_(state["epsilon"])
