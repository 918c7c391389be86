"""One weight per training image, learned so that clean images are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from needsaug_lite import hypergrad
from needsaug_lite.data import Batch, Splits
from needsaug_lite.hypergrad import Hypergradient
from needsaug_lite.methods.baselines.supervised import accuracy
from needsaug_lite.methods.baselines.two_phase import TwoPhase
from needsaug_lite.models import Classifier


class HyperCleaning(TwoPhase):
    """Weighted cross-entropy whose weights are learned on clean images.

    Inner loss of a batch of B images, θ the weights of the network:

        L_in(θ, h) = 1/B Σ_i σ(h_i) ℓ_i(θ) + decay/2 ||θ||²

    Outer loss: mean cross-entropy of a batch of `splits.meta`, whose labels are right,
    at θ' = θ - lr ∇_θ L_in(θ, h). With v its gradient at θ', the hypergradient is

        d L_out / d h_i = -lr σ'(h_i) / B ⟨∇ℓ_i(θ), v⟩

    so an image gains weight if a step on it is a step downhill for the clean images.

    θ' is a plain step at the learning rate of the epoch; the momentum of the optimiser
    is left out of it, as in Ren et al. and Meta-Weight-Net. Batch norm is in training
    mode in both losses, with the statistics of the batch at hand. Meta images are not
    augmented.

    The h are updated by Adam, whose momentum also moves the h of the batches before.

    Source: the two losses are those of data hyper-cleaning (Franceschi et al. 2017,
    Sec. 5.1), which differentiates through the whole training and keeps the weights in
    [0, 1] by projection instead of a sigmoid. The derivative through one step, taken
    online, is that of Ren et al. 2018; there the weights are forgotten after the step.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        outer_lr: Annotated[float, Gt(0)] = 0.1,
        **common: Any,
    ) -> None:
        """Start with equal weights of one half.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from, `meta` holds the clean images.
            outer_lr: rate of Adam for the h.
            common: see `TwoPhase`; there is no first phase with cross-entropy.

        Raises:
            UserError: if there are no meta images.
        """
        super().__init__(model, splits, start=0.0, **common)
        device = splits.train.labels.device
        self.weight_logits = torch.zeros(len(splits.train), device=device)
        self.outer_optimiser = torch.optim.Adam([self.weight_logits], lr=outer_lr)

    def suspicion(self) -> Tensor:
        """1 - σ(h_i) of every training image, in [0, 1], shape (N,)."""
        return torch.sigmoid(-self.weight_logits)

    def hypergradient(self, batch: Batch, clean: Batch) -> Hypergradient:
        """Derivative of the outer loss by the h of this batch.

        Args:
            batch: training images, B of them.
            clean: meta images.

        Returns:
            "weight_logits" of shape (B,), through one step of the network at the rate
            of its optimiser; the network stays as it is.
        """
        decay: float = self.optimiser.param_groups[0]["weight_decay"]

        def inner_loss(params: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
            weights = h["weight_logits"].sigmoid()
            squares = torch.stack([p.square().sum() for p in params.values()]).sum()
            logits = functional_call(self.model, dict(params), (batch.images,))
            loss = _weighted(logits, batch, weights)
            return loss + 0.5 * decay * squares

        def outer_loss(params: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
            return self.meta_loss(params, clean)

        return hypergrad.unrolled(
            inner_loss,
            outer_loss,
            dict(self.model.named_parameters()),
            {"weight_logits": self.weight_logits[batch.index]},
            lr=self.rate,
        )

    def late_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of the h of this batch, then one of the network."""
        self.model.train()
        # Step 1: the hypergradient moves the h.
        estimate = self.hypergradient(batch, next(self.meta))
        gradient = torch.zeros_like(self.weight_logits)
        gradient[batch.index] = estimate["weight_logits"]
        self.weight_logits.grad = gradient
        self.outer_optimiser.step()
        # Step 2: the network takes its step with the new weights.
        weights = self.weight_logits[batch.index].sigmoid()
        logits = self.model(batch.images)
        loss = _weighted(logits, batch, weights)
        self.descend(loss)
        return {
            "loss": loss.detach(),
            "accuracy": accuracy(logits, batch.labels),
            "outer_loss": estimate.outer_loss,
            "weight": weights.mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights of network and images, and both optimisers."""
        return {
            **super().state_dict(),
            "weight_logits": self.weight_logits,
            "outer_optimiser": self.outer_optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.weight_logits.copy_(state["weight_logits"])
        self.outer_optimiser.load_state_dict(state["outer_optimiser"])


def _weighted(logits: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """1/B Σ_i weight_i ℓ_i, a scalar in nats; `weights` of shape (B,)."""
    each: Tensor = functional.cross_entropy(logits, batch.labels, reduction="none")
    return (weights * each).mean()
