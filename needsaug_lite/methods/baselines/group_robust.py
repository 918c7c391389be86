"""Baselines that know the group of every training image."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Batch, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.models import Classifier


class GroupDRO(Supervised):
    """Cross-entropy of the groups, weighted towards the worst (Sagawa et al. 2020).

    With L_g the mean loss of the images of group g in a batch, 0 if there are none,

        q_g <- q_g exp(η L_g),   then divided by Σ_g q_g
        L = Σ_g q_g L_g

    with the new q, which no gradient flows through. q starts equal for all groups
    that have training images; it is kept from batch to batch.

    Batches are drawn from all images alike. The paper's algorithm draws the group
    first, and the published commands draw all groups equally often: there a rare
    group is in every batch, here the gradient of a rare group comes from few images,
    and its q falls behind in batches without it.

    Source: Sagawa et al. 2020, Algorithm 1, in the form of its released code
    (kohpangwei/group_DRO), without the adjustment for the sizes of the groups.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        step_size: Annotated[float, Gt(0)] = 0.01,
        **common: Any,
    ) -> None:
        """Start with equal weights of the groups.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from and must have groups.
            step_size: η, 1/nat.
            common: see `Supervised`.

        Raises:
            UserError: if the training images have no groups.
        """
        present = _group_sizes(splits) > 0
        super().__init__(model, splits, **common)
        self.step_size = step_size
        self.group_weights: Tensor = present / present.sum()

    def batch_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Update q with the losses of the groups, and weight them with it."""
        assert batch.groups is not None
        each = losses.cross_entropy(logits, batch.labels, reduction="none")
        numbers = torch.arange(len(self.group_weights), device=each.device)
        member = (batch.groups == numbers.unsqueeze(1)).to(each.dtype)  # (G, B)
        group_losses = member @ each / member.sum(1).clamp(min=1)
        raised = self.group_weights * (self.step_size * group_losses.detach()).exp()
        self.group_weights = raised / raised.sum()
        return (self.group_weights * group_losses).sum()

    def state_dict(self) -> dict[str, Any]:
        """Weights of network and groups, and the optimiser."""
        return {**super().state_dict(), "group_weights": self.group_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.group_weights = state["group_weights"].to(self.group_weights)


class UpWeighting(Supervised):
    """Cross-entropy with every group weighing the same in expectation.

    L = 1/B Σ_i w_{g_i} ℓ_i,   w_g = N / (G n_g)

    with n_g of N training images in group g, and G groups that have any. The mean is
    over the batch, not over the weights, so that a batch with many images of rare
    groups takes a longer step.

    Source: "UW" in Table 6 of meta_iada, cited from Yao et al. 2022; their texts
    leave the scale of the weights open, which here is 1 on average over the images.
    """

    def __init__(self, model: Classifier, splits: Splits, **common: Any) -> None:
        """Count the groups.

        Raises:
            UserError: if the training images have no groups.
        """
        sizes = _group_sizes(splits)
        super().__init__(model, splits, **common)
        groups = (sizes > 0).sum()
        weights = sizes.sum() / (groups * sizes.clamp(min=1))
        self.group_weights = torch.where(sizes > 0, weights, 0.0)

    def batch_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean over the batch of the weighted losses."""
        assert batch.groups is not None
        each = losses.cross_entropy(logits, batch.labels, reduction="none")
        return (self.group_weights[batch.groups] * each).mean()


def _group_sizes(splits: Splits) -> Tensor:
    """Training images of each group, int64, shape (G,)."""
    if splits.train.groups is None:
        raise UserError(
            "this method needs the group of every training image, and these images "
            "have none; load them with colour=True or with attribute_imbalance"
        )
    return torch.bincount(splits.train.groups)
