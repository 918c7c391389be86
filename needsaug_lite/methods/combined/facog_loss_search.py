"""AutoBalance's search for a loss, with a linear head on FACoG's frozen features."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from torch import Tensor

from needsaug_lite.data import Splits
from needsaug_lite.methods.autobalance import AutoBalance, Count, Positive
from needsaug_lite.methods.baselines.contrastive_training import (
    PHASE1,
    ContrastiveSettings,
)
from needsaug_lite.methods.baselines.logit_adjustment import (
    LogitAdjustment,
    NotNegative,
)
from needsaug_lite.methods.combined.frozen_head import FrozenHead
from needsaug_lite.methods.loss_design import Design
from needsaug_lite.methods.loss_search import Share
from needsaug_lite.models import Classifier


class FACoGAutoBalance(FrozenHead):
    """Contrastive features, then a loss that is learned for a linear head on them.

    1. f_back by cross-entropy and contrast, then frozen           (facog Eq. 1 and 2)
    2. min_α L_fair(θ*(α)),  θ*(α) = argmin_θ L_train(θ, α)  (autobalance Eq. 2.3)
    3. θ <- argmin_θ L_train(θ, α) on all training images

    θ = (W, b) is the head on h = f_back(x), and

        L_train = mean_i -log softmax_{y_i}(σ(Δ) ∘ (W h_i + b) + l) + ½ μ ‖θ‖²

    log-sum-exp of a map that is affine in θ is convex, so that for every α and a weight
    decay μ > 0 L_train is strongly convex in θ: H ⪰ μ I. θ*(α) exists, is unique and
    is differentiable wherever α is, which autobalance needs for

        dL_fair/dα = -∇_α⟨∇_θ L_train(θ*, α), u⟩,   H u = ∇_θ L_fair(θ*)

    and which no deep network grants (errata A7). Two conditions stay: SGD has to be
    near θ*, and the series for u is as short as in AutoBalance.

    With a rate of 0 for α and "l" for the design it is `FACoGLogitAdjustment`.

    Source: combination of ours; facog Sec. 3.2, autobalance Algorithm 1 (errata A1).
    """

    second: AutoBalance

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        phase1: ContrastiveSettings = PHASE1,
        design: Design = "delta_l",
        tau: NotNegative = 1.0,
        validation_share: Share = 0.2,
        search_length: Positive = 1.0,
        start: Annotated[float, Ge(0), Le(1)] = 0.4,
        outer_lr: Positive = 0.05,
        interval: Count = 1,
        terms: Annotated[int, Gt(0), Le(10)] = 5,
        **common: Any,
    ) -> None:
        """Prepare the first phase and the search.

        Args:
            model: trained in place, on the device of `splits`; its head is replaced.
            splits: `train` is learned from; the search divides it.
            phase1: settings of the first phase.
            design: what is searched; the start is logit adjustment.
            tau: strength of that adjustment.
            validation_share, start, outer_lr, terms: see `AutoBalance`.
            search_length: epochs of the search, as a multiple of those of step 3.
            interval: steps of the head for each step of α; 1 is Algorithm 1 as printed,
                which a linear head can afford.
            common: see `ContrastiveTraining`.

        Raises:
            UserError: see `AutoBalance`.
        """
        search = partial(
            AutoBalance,
            design=design,
            initial="la",
            tau=tau,
            validation_share=validation_share,
            search_length=search_length,
            start=start,
            outer_lr=outer_lr,
            interval=interval,
            terms=terms,
        )
        super().__init__(model, splits, second=search, phase1=phase1, **common)

    @property
    def loss_parameters(self) -> dict[str, Tensor | None]:
        """w, l and Δ that step 3 trains with; see `LossSearch.loss_parameters`."""
        return self.second.loss_parameters


class FACoGLogitAdjustment(FrozenHead):
    """The same features and head under logit adjustment: no search.

    What `FACoGAutoBalance` gains over this is what its search finds.

    Source: control of ours; facog Sec. 3.2, Menon et al. 2021.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        phase1: ContrastiveSettings = PHASE1,
        tau: NotNegative = 1.0,
        **common: Any,
    ) -> None:
        """Prepare both phases.

        Args:
            model: trained in place, on the device of `splits`; its head is replaced.
            splits: `train` is learned from.
            phase1: settings of the first phase.
            tau: strength of the adjustment.
            common: see `ContrastiveTraining`.
        """
        adjusted = partial(LogitAdjustment, tau=tau)
        super().__init__(model, splits, second=adjusted, phase1=phase1, **common)
