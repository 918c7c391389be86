"""A weight for each sample as a learned function of its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from needsaug_lite import hypergrad
from needsaug_lite.data import Batch, Splits
from needsaug_lite.hypergrad import Hypergradient
from needsaug_lite.methods.baselines.supervised import accuracy
from needsaug_lite.methods.baselines.two_phase import TwoPhase
from needsaug_lite.models import Classifier


class MetaWeightNet(TwoPhase):
    """Cross-entropy weighted by a small network of the loss (Shu et al. 2019).

    With V(ℓ) = σ(MLP(ℓ)), of one hidden layer, and ℓ_i held fixed as its argument:

        L(θ, V) = Σ_i V(ℓ_i) ℓ_i(θ) / Σ_i V(ℓ_i)

    In each step V is moved by Adam along the derivative of the cross-entropy of meta
    images at θ' = θ - lr ∇_θ L(θ, V); then θ takes its step on L(θ, V).

    Source: Shu et al. 2019, Eq. 3 to 5, with the constants of the published code for
    label noise; there is no first phase with cross-entropy.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        outer_lr: Annotated[float, Gt(0)] = 1e-3,
        outer_weight_decay: Annotated[float, Ge(0)] = 1e-4,
        hidden: Annotated[int, Gt(0)] = 100,
        **common: Any,
    ) -> None:
        super().__init__(model, splits, start=0.0, **common)
        self.network = nn.Sequential(
            nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid()
        ).to(splits.train.labels.device)
        self.outer_optimiser = torch.optim.Adam(
            self.network.parameters(), lr=outer_lr, weight_decay=outer_weight_decay
        )

    def hypergradient(
        self, batch: Batch, clean: Batch, sample_losses: Tensor
    ) -> Hypergradient:
        """Derivative of the meta loss by V, through one step.

        Args:
            batch: training images, B of them.
            clean: meta images.
            sample_losses: ℓ at the parameters of the model, shape (B,).

        Returns:
            One entry per parameter of V.
        """

        def inner_loss(params: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
            logits = functional_call(self.model, dict(params), (batch.images,))
            weights = functional_call(self.network, dict(h), (sample_losses[:, None],))
            return weighted(logits, batch.labels, weights.squeeze(1))

        def outer_loss(params: Mapping[str, Tensor], h: Mapping[str, Tensor]) -> Tensor:
            return self.meta_loss(params, clean)

        return hypergrad.unrolled(
            inner_loss,
            outer_loss,
            dict(self.model.named_parameters()),
            {name: p.detach() for name, p in self.network.named_parameters()},
            lr=self.rate,
        )

    def late_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of V, then one of the network."""
        self.model.train()
        logits = self.model(batch.images)
        each = functional.cross_entropy(logits, batch.labels, reduction="none").detach()
        estimate = self.hypergradient(batch, next(self.meta), each)
        for name, parameter in self.network.named_parameters():
            parameter.grad = estimate[name]
        self.outer_optimiser.step()
        with torch.no_grad():
            weights = self.network(each[:, None]).squeeze(1)
        loss = weighted(logits, batch.labels, weights)
        self.descend(loss)
        return {
            "loss": loss.detach(),
            "accuracy": accuracy(logits, batch.labels),
            "outer_loss": estimate.outer_loss,
            "weight": weights.mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Both networks and optimisers."""
        return {
            **super().state_dict(),
            "network": self.network.state_dict(),
            "outer_optimiser": self.outer_optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.network.load_state_dict(state["network"])
        self.outer_optimiser.load_state_dict(state["outer_optimiser"])


def weighted(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Σ_i weight_i ℓ_i / Σ_i weight_i, a scalar in nats; `weights` of shape (B,)."""
    each: Tensor = functional.cross_entropy(logits, labels, reduction="none")
    return (weights * each).sum() / weights.sum().clamp(min=1e-12)
