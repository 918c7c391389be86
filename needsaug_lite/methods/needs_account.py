"""What a needs-aware training remembers of its needs, its budget and its paths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from needsaug_lite.data import Splits
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.methods.budget import Budget
from needsaug_lite.methods.continued_gan import ContinuedGAN
from needsaug_lite.methods.four_levels import PATHS
from needsaug_lite.models import Classifier, Generator


class NeedsAccount(Supervised):
    """The books of a needs-aware training, and all that a checkpoint holds.

    Attributes:
        first: W1.
        gan: G and H.
        budget: M.
        strength: λ.
        meta_optimiser: of A.
        drawn_from: q, the shares that classes are drawn from in this epoch, (C,).
        error_shares: shares by error rates beside them, (C,).
        weight_mass: sum of the weights b_m by class so far, (C,).
        norms: of the paths of dA, as last measured.
        outer_value: validation loss of the last update of A.
    """

    first: Classifier
    gan: ContinuedGAN
    budget: Budget
    strength: float
    meta_optimiser: torch.optim.Optimizer

    def open_account(self, splits: Splits) -> None:
        """Begin with even shares, and nothing spent."""
        device, classes = splits.train.labels.device, splits.num_classes
        self.drawn_from = torch.full((classes,), 1 / classes, device=device)
        self.weight_mass = torch.zeros(classes, device=device)
        self.error_shares = self.drawn_from
        self.norms: dict[str, Tensor] = {
            name: torch.zeros((), device=device) for name in PATHS
        }
        self.outer_value = torch.zeros((), device=device)
        self.steps_done = 0

    @property
    def generator(self) -> Generator:
        """G as it is now."""
        return self.gan.generator

    def allocation_summary(self) -> dict[str, Any]:
        """What the budget went to, by class; empty where nothing is generated."""
        if not self.strength:
            return {}
        return {
            "budget": self.budget.images,
            "images": self.budget.counts.tolist(),
            "images_last_epoch": self.budget.last_counts.tolist(),
            "weight_mass": self.weight_mass.tolist(),
            "shares_by_need": self.drawn_from.tolist(),
            "shares_by_error": self.error_shares.tolist(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Classifiers, GAN, their optimisers, and what the budget went to."""
        return {
            **super().state_dict(),
            "first": self.first.state_dict(),
            "gan": self.gan.state_dict(),
            "meta_optimiser": self.meta_optimiser.state_dict(),
            "steps_done": self.steps_done,
            "counts": self.budget.counts,
            "last_counts": self.budget.last_counts,
            "weight_mass": self.weight_mass,
            "drawn_from": self.drawn_from,
            "error_shares": self.error_shares,
            "norms": self.norms,
            "outer_value": self.outer_value,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.first.load_state_dict(state["first"])
        self.gan.load_state_dict(state["gan"])
        self.meta_optimiser.load_state_dict(state["meta_optimiser"])
        self.steps_done = state["steps_done"]
        self.budget.counts = state["counts"].cpu()
        self.budget.last_counts = state["last_counts"].cpu()
        self.weight_mass = state["weight_mass"]
        self.drawn_from, self.error_shares = state["drawn_from"], state["error_shares"]
        self.norms, self.outer_value = state["norms"], state["outer_value"]
