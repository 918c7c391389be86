"""Searches with two levels: DARTS, PC-DARTS, and PC-DARTS with generated images."""

from __future__ import annotations

from typing import Any

from needsaug_lite.data import Splits
from needsaug_lite.methods.baselines.budgeted import Equal
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.methods.baselines.joint import Joint
from needsaug_lite.methods.generation.adversarial_frame import Adversarial
from needsaug_lite.methods.search.bilevel import BilevelSearch, Radius, Route
from needsaug_lite.methods.search.frame import ArchitectureSearch
from needsaug_lite.methods.search.settings import (
    EVALUATION,
    SEARCH,
    Count,
    EvaluationSettings,
    Positive,
    SearchSettings,
    Weight,
)
from needsaug_lite.models import Classifier, Generator


class PCDARTS(ArchitectureSearch):
    """Search with real images alone, in a supernet with partial channels.

        A <- A - Adam(∇_A L_cls(W, A, D_val)),   W <- W - SGD(∇_W L_cls(W, A, D_tr))

    Source: Xu et al. 2020; "Pcdarts" of needs_aware Table 5.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        search: SearchSettings = SEARCH,
        evaluation: EvaluationSettings = EVALUATION,
        interval: Count = 1,
        halved: bool = False,
        route: Route = "first_order",
        radius: Radius = 0.01,
        **common: Any,
    ) -> None:
        """Prepare both phases.

        Args:
            model, splits, search, evaluation, interval, halved, common: see
                `ArchitectureSearch`. The last two but one are the cost reductions of
                needs_aware Table 12.
            route, radius: how the gradient of A is taken, see `BilevelSearch`.
        """
        super().__init__(
            model,
            splits,
            search=search,
            evaluation=evaluation,
            interval=interval,
            halved=halved,
            route=route,
            radius=radius,
            **common,
        )

    def make_searcher(
        self, model: Classifier, splits: Splits, **settings: Any
    ) -> BilevelSearch:
        """Cross-entropy for the weights."""
        how = {name: settings.pop(name) for name in ("route", "radius")}
        learner = CrossEntropy(model, splits, **settings)
        return BilevelSearch(
            learner,
            splits,
            search=self.search,
            normalisation=self.normalisation,
            interval=self.interval,
            **how,
        )


class DARTS(PCDARTS):
    """The same with all channels in every operation, and no weights for edges.

    Source: Liu et al. 2019; needs_aware Table 12.
    """

    partial = 1
    edge_normalised = False


class EqualSearch(ArchitectureSearch):
    """PC-DARTS whose weights see as many generated images of every class, too.

    The generator is pretrained and stays as it is; A sees real held-out images alone,
    by the first-order route.

    Source: "Equal-pcdarts" of needs_aware Table 5.
    """

    needs_generator = True

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        search: SearchSettings = SEARCH,
        evaluation: EvaluationSettings = EVALUATION,
        budget: Count | None = None,
        strength: Weight = 1.0,
        **common: Any,
    ) -> None:
        """Prepare both phases.

        Args:
            model, splits, search, evaluation, common: see `ArchitectureSearch`.
            generator, budget, strength: see `Budgeted`.
        """
        self.generator = generator
        super().__init__(
            model,
            splits,
            search=search,
            evaluation=evaluation,
            generator=generator,
            budget=budget,
            strength=strength,
            **common,
        )

    def make_searcher(
        self, model: Classifier, splits: Splits, **settings: Any
    ) -> BilevelSearch:
        """`Equal` for the weights."""
        return BilevelSearch(
            Equal(model, splits, **settings),
            splits,
            search=self.search,
            normalisation=self.normalisation,
        )


class JointSearch(ArchitectureSearch):
    """PC-DARTS whose weights are learned together with a generator, as one task.

    A sees real held-out images alone, by the first-order route; the discriminator is
    the one that the generator was pretrained against.

    Source: "MTL-pcdarts" of needs_aware Table 5.
    """

    needs_adversary = True

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        gan: Adversarial,
        search: SearchSettings = SEARCH,
        evaluation: EvaluationSettings = EVALUATION,
        budget: Count | None = None,
        strength: Weight = 1.0,
        adversarial_strength: Weight = 1.0,
        generator_lr: Positive = 2e-4,
        discriminator_lr: Positive = 2e-4,
        **common: Any,
    ) -> None:
        """Prepare both phases.

        Args:
            model, splits, search, evaluation, common: see `ArchitectureSearch`.
            gan, budget, strength, adversarial_strength, generator_lr,
                discriminator_lr: see `Joint`.
        """
        super().__init__(
            model,
            splits,
            search=search,
            evaluation=evaluation,
            gan=gan,
            budget=budget,
            strength=strength,
            adversarial_strength=adversarial_strength,
            generator_lr=generator_lr,
            discriminator_lr=discriminator_lr,
            **common,
        )

    def make_searcher(
        self, model: Classifier, splits: Splits, **settings: Any
    ) -> BilevelSearch:
        """`Joint` for the weights."""
        self.joint = Joint(model, splits, **settings)
        return BilevelSearch(
            self.joint,
            splits,
            search=self.search,
            normalisation=self.normalisation,
        )

    @property
    def generator(self) -> Generator:
        """G as it is now."""
        return self.joint.generator
