"""FACoG's second phase with labels that are drawn by need."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from needsaug_lite import metrics
from needsaug_lite.allocation import class_allocation, mean_per_class
from needsaug_lite.data import Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.contrastive_training import (
    PHASE1,
    ContrastiveSettings,
    Weight,
)
from needsaug_lite.methods.baselines.feature_oversampling import (
    PHASE2,
    FeatureOversampling,
    OversamplingSettings,
)
from needsaug_lite.methods.baselines.feature_sources import FixedMixing
from needsaug_lite.methods.facog import FACoG
from needsaug_lite.models import Classifier


class NeedsDraws(FeatureOversampling, ABC):
    """A second phase whose added features go to the classes that need them.

    At the beginning of each of its epochs the classifier as it is says how much a
    class needs, on meta images, and the labels of the features to add are drawn by it:

        l_c = mean cross-entropy of the meta images of class c
        p(c) = l_c / Σ_b l_b                                       (needs_aware Eq. 3)

    FACoG draws c in proportion to n_max - n_c instead, which looks at no image and
    leaves the largest class out (facog errata F7). Here every class may be drawn, the
    largest too, as long as its loss is above 0. Generator and discriminator go on
    meeting all classes alike.

    To be mixed into a source of features. The meta images train nothing else: backbone,
    classifier and source see those of `train`.

    Attributes:
        shares: p of this epoch, float64, shape (C,), on the CPU.
        drawn: features of each class so far, int64, shape (C,), on the CPU.

    Source: combination of ours; facog Sec. 3.4, needs_aware Eq. 3.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        phase2: OversamplingSettings = PHASE2,
        **common: Any,
    ) -> None:
        """Prepare both phases.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from, `meta` tells the needs.
            phase2: settings of the second phase; its `selection` is of no use here.
            common: of the source that this is mixed into.

        Raises:
            UserError: if a class has no meta image, or a `selection` is given.
        """
        if phase2.selection != PHASE2.selection:
            raise UserError(
                f"phase2.selection = {phase2.selection!r} draws labels by class size, "
                f"and {type(self).__name__} draws them by need; leave selection out, "
                "or take the method without needs"
            )
        if len(splits.meta) == 0:
            raise UserError(
                f"{type(self).__name__} measures what classes need on meta images, and "
                "there are none; hold some out with meta_per_class, for example 10"
            )
        # Every class has a meta image, or says so now.
        mean_per_class(
            splits.meta.labels.double(), splits.meta.labels, splits.num_classes
        )
        super().__init__(model, splits, phase2=phase2, **common)
        self.meta = splits.meta
        self.drawn = torch.zeros(self.num_classes, dtype=torch.int64)

    def needs(self) -> Tensor:
        """l_c under the classifier as it is, nats, float64, shape (C,), on the CPU."""
        each = metrics.sample_losses(
            self.model, self.meta, self.batches.normalisation
        ).double()
        return mean_per_class(each, self.meta.labels.cpu(), self.num_classes)

    def begin_oversampling_epoch(self, epoch: int) -> Mapping[str, float]:
        """Start the draws of the epoch, with shares by need."""
        logged = super().begin_oversampling_epoch(epoch)
        self.shares = class_allocation(self.needs())
        return {**logged, "largest_share": float(self.shares.max())}

    def drawn_labels(self, count: int) -> Tensor:
        """Labels of features to add, int64, shape (count,), on the CPU."""
        labels = super().drawn_labels(count)
        self.drawn = self.drawn + labels.bincount(minlength=self.num_classes)
        return labels

    def allocation_summary(self) -> dict[str, Any]:
        """Added features of every class, and the shares of the last epoch."""
        return {
            "features": self.drawn.tolist(),
            "shares_by_need": self.shares.tolist(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What the source keeps, the shares, and what was drawn."""
        return {**super().state_dict(), "shares": self.shares, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.shares, self.drawn = state["shares"].cpu(), state["drawn"].cpu()


class FACoGNeeds(NeedsDraws, FACoG):
    """FACoG whose mixtures are made for the classes that need them; see `NeedsDraws`.

    Source: combination of ours; facog Sec. 3.3 and 3.4, needs_aware Eq. 3.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        phase1: ContrastiveSettings = PHASE1,
        phase2: OversamplingSettings = PHASE2,
        slots: Annotated[int, Ge(1)] = 5,
        lambda_adv: Weight = 1.0,
        lambda_asc: Weight = 0.1,
        temperature: Annotated[float, Gt(0)] = 0.1,
        **common: Any,
    ) -> None:
        """Prepare both phases; all settings are FACoG's.

        Args:
            model, splits, common: see `NeedsDraws`.
            phase1, phase2, slots, lambda_adv, lambda_asc, temperature: see `FACoG`.

        Raises:
            UserError: see `NeedsDraws`.
        """
        super().__init__(
            model,
            splits,
            phase1=phase1,
            phase2=phase2,
            slots=slots,
            lambda_adv=lambda_adv,
            lambda_asc=lambda_asc,
            temperature=temperature,
            **common,
        )


class FixedMixingNeeds(NeedsDraws, FixedMixing):
    """Copies or even mixtures for the classes that need them: the control.

    Source: combination of ours; facog errata F4, needs_aware Eq. 3.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        kind: Literal["dirichlet", "copy"],
        phase1: ContrastiveSettings = PHASE1,
        phase2: OversamplingSettings = PHASE2,
        slots: Annotated[int, Ge(1)] = 5,
        **common: Any,
    ) -> None:
        """Prepare both phases; all settings are those of `FixedMixing`."""
        super().__init__(
            model,
            splits,
            kind=kind,
            phase1=phase1,
            phase2=phase2,
            slots=slots,
            **common,
        )
