"""The objective of a fair classifier: its accuracy, and how it treats the cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Batch, Cells, Examples

Goal = Literal["balanced", "deo"]


@dataclass(frozen=True)
class FairObjective:
    """L_fair = (1 - λ) CE + λ CE_bal   or   (1 - λ) CE + λ CE_deo.

    All three are made of the mean cross-entropies of the cells: CE weights them with
    the shares that the cells have in the data, whatever their shares in a batch.

    Attributes:
        cells: classes, or classes with attributes.
        shares: of the cells in the data, shape (C, A).
        goal: "balanced" for CE_bal (CE_bal^G with attributes), "deo" for CE_deo.
        fairness: λ in [0, 1].

    Source: autobalance Sec. 2.1 and Sec. 4.
    """

    cells: Cells
    shares: Tensor
    goal: Goal = "balanced"
    fairness: float = 1.0

    @classmethod
    def of(
        cls, examples: Examples, cells: Cells, goal: Goal, fairness: float
    ) -> FairObjective:
        """With the shares that the cells have among `examples`."""
        counts = cells.counts(examples)
        return cls(cells, counts / counts.sum(), goal, fairness)

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """L_fair of a batch, a scalar in nats.

        Args:
            logits: shape (B, C).
            batch: best stratified; a cell without images is left out.
        """
        each = losses.cross_entropy(logits, batch.labels, reduction="none")
        number = self.cells.number(batch.labels, batch.groups)
        risks = losses.conditional_risks(each, number, self.cells.shape)
        deo = self.goal == "deo"
        goal = losses.difference_of_equal_opportunity if deo else losses.balanced_risk
        plain = losses.average_risk(risks, self.shares)
        return (1 - self.fairness) * plain + self.fairness * goal(risks)
