"""Training losses that ask for fairness themselves, without a validation set."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Batch, Cells, Splits, StratifiedBatches
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.methods.fair_objective import FairObjective
from needsaug_lite.methods.loss_design import LossDesign
from needsaug_lite.models import Classifier

Fairness = Annotated[float, Ge(0), Le(1)]


class FairLoss(Supervised):
    """L = (1 - λ) CE + λ CE_bal^G   or   (1 - λ) CE + λ CE_deo, on the training images.

    Batches hold equally many images of every cell of class and attribute, and all three
    losses are made of the means of the cells, see `FairObjective`.

    Source: the regularised baselines of autobalance Sec. 4, Table 3 and Fig. 5.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        goal: Literal["balanced", "deo"] = "balanced",
        fairness: Fairness = 1.0,
        **common: Any,
    ) -> None:
        """Stratify the batches.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from and must have groups.
            goal: CE_bal^G or CE_deo.
            fairness: λ.
            common: see `Supervised`.

        Raises:
            UserError: if the training images have no groups.
        """
        cells = grouped_cells(splits)
        super().__init__(model, splits, **common)
        train = splits.train
        self.objective = FairObjective.of(train, cells, goal, fairness)
        self.batches = StratifiedBatches(
            train,
            cells.number(train.labels, train.groups),
            self.optimisation.batch_size,
            self.batches.normalisation,
            augment=self.batches.augment,
            seed=self.batches.seed,
        )

    def batch_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The blend, from the means of the cells."""
        return self.objective(logits, batch)


class GroupLogitAdjustment(Supervised):
    """L = (1 - λ) CE + λ GLA, with logits adjusted within each attribute.

        GLA = -1/(A π̄_g) log softmax_y( f + τ log(π_{·g} / π̄_g) )

    π_{yg} is the share of a cell, π̄_g that of its attribute g among A.

    Source: "Group LA" of autobalance Sec. 4, read as in its errata A13.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        tau: Annotated[float, Ge(0)] = 1.0,
        fairness: Fairness = 1.0,
        **common: Any,
    ) -> None:
        """Count the cells.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from and must have groups.
            tau: τ.
            fairness: λ.
            common: see `Supervised`.

        Raises:
            UserError: if the training images have no groups, or a cell no image.
        """
        self.cells = grouped_cells(splits)
        super().__init__(model, splits, **common)
        self.fairness = fairness
        counts = self.cells.counts(splits.train)
        space = LossDesign(counts, design="none", initial="la", tau=tau)
        self.alpha = space.detached()

    def batch_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The blend, mean over the batch."""
        one = self.cells.attributes == 1  # the parameters have no second dimension
        attribute = None if one else self.cells.attribute(batch.groups, batch.labels)
        adjusted = losses.parametric_cross_entropy(
            logits, batch.labels, groups=attribute, **self.alpha
        )
        plain = losses.cross_entropy(logits, batch.labels)
        return (1 - self.fairness) * plain + self.fairness * adjusted


def grouped_cells(splits: Splits) -> Cells:
    """The cells of images that have groups.

    Raises:
        UserError: if they have none.
    """
    if splits.train.groups is None:
        raise UserError(
            "this method needs the group of every training image, and these images "
            "have none; load them with group_counts, colour or attribute_imbalance"
        )
    return Cells.of(splits)
