"""Label-distribution-aware margins, with and without deferred weights."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Le, Lt
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.supervised import DEFERRED_START, Deferred
from needsaug_lite.models import Classifier, CosineHead


class LDAM(Deferred):
    """Margins that grow as classes get rarer (Cao et al. 2019).

    `deferred` switches the class weights on at `start` (LDAM-DRW, the paper's
    recipe); without it the weights stay 1 to the end.
    """

    head = "cosine"

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        max_margin: Annotated[float, Ge(0)] = 0.5,
        deferred: bool = False,
        start: Annotated[float, Ge(0), Le(1)] = DEFERRED_START,
        beta: Annotated[float, Ge(0), Lt(1)] = 0.9999,
        **common: Any,
    ) -> None:
        if not isinstance(model.head, CosineHead):
            raise UserError("LDAM needs a cosine head; build the model with it")
        late = start if deferred else 1.0
        super().__init__(model, splits, start=late, beta=beta, **common)
        self.margins = losses.ldam_margins(self.counts, max_margin)
        self.scale = model.head.scale

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with margins, weighted once the deferred weights are on."""
        return losses.ldam(
            logits,
            labels,
            margins=self.margins,
            scale=self.scale,
            class_weight=self.class_weight,
        )
