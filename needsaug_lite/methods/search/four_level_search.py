"""Needs-aware architecture search: the four levels with the architecture as A."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import relu

from needsaug_lite.data import Batch, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad import HypergradientWarning
from needsaug_lite.methods.budget import Weighting
from needsaug_lite.methods.cell_gan import CellGAN
from needsaug_lite.methods.continued_gan import ContinuedGAN
from needsaug_lite.methods.four_levels import Drawn, Look
from needsaug_lite.methods.generation.adversarial import BigGAN
from needsaug_lite.methods.generation.adversarial_frame import Adversarial
from needsaug_lite.methods.needs_aware import NeedsAware
from needsaug_lite.methods.search.bilevel import META_BETAS, Radius, Route
from needsaug_lite.methods.search.frame import ArchitectureSearch
from needsaug_lite.methods.search.settings import (
    EVALUATION,
    SEARCH,
    Count,
    EvaluationSettings,
    Positive,
    SearchSettings,
    Weight,
    clipped,
)
from needsaug_lite.methods.shared_head import ARCHITECTURE
from needsaug_lite.models import Classifier, Generator
from needsaug_lite.models.cell_discriminator import CellDiscriminator
from needsaug_lite.models.search_cell import Supernet


class ArchitectureNeeds(NeedsAware):
    """The four levels of `NeedsAware` with A = the architecture of a supernet.

    W1 and W2 are two supernets with heads of their own; H is a third one where A is
    shared with it. Tied, the three are one network with three heads:

        W, heads <- SGD(L_cls(W1) + L_cls(W2) + λ L_a + L_H)

    in one pass of the real images and one of the generated ones, which serve L_a and
    L_H alike. Their classes follow the needs and not D_tr, so that in L_H an image of
    class c counts π_c / p_c: else H could tell it by its class.

    Source: needs_aware Sec. 3.2 and 4.2, with errata N6: heads are private.
    """

    place = ARCHITECTURE
    meta_betas = META_BETAS
    measured = False

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        route: Route = "finite_difference",
        clip: float,
        **settings: Any,
    ) -> None:
        """Prepare the four levels.

        Args:
            model: W2 and A.
            splits: `train` is D_tr, `meta` is D_val.
            route: how the gradient of A is taken: at W1 and W2 as they are
                ("first_order"), or through one step of every level.
            clip: largest norm of the gradient of the weights in a step.
            settings: see `NeedsAware`.
        """
        self.route = route
        self.class_prior = splits.class_prior
        super().__init__(model, splits, second_order=route == "exact", **settings)
        self.optimiser = clipped(self.optimiser, clip)

    def first_network(self, model: Classifier) -> Classifier:
        """W1: a twin of W2, or tied the same network, with a head of its own."""
        body = cast(Supernet, model.backbone)
        head = deepcopy(model.head)
        return Classifier(body if self.tied else body.twin(), model.feature_dim, head)

    def adversary(
        self, gan: Adversarial, *, shared: bool, **settings: Any
    ) -> ContinuedGAN:
        """G, and H as a supernet where A is shared with it."""
        self.judged = self.tied and shared
        if not shared:
            return ContinuedGAN(gan, **settings)
        if self.tied and not isinstance(gan, BigGAN):
            raise UserError(
                "a discriminator that is tied to the classifiers learns by the hinge "
                "loss of BigGAN: take biggan, or set tied to false"
            )
        body = cast(Supernet, self.model.backbone)
        judge = CellDiscriminator(
            body if self.tied else body.twin(),
            len(self.counts),
            self.normalisation.from_unit,
        )
        return CellGAN(gan, judge=judge, tied=self.tied, **settings)

    def first_features(self, found: Tensor) -> Tensor:
        """Tied, the features of W1 are those of W2."""
        return found

    def improve_head(self, look: Look) -> Mapping[str, Tensor]:
        """One step of Adam for A, by the chosen route."""
        if self.route != "first_order":
            return super().improve_head(look)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HypergradientWarning)
            estimate = self.levels.partial(look)
        slopes = self.generator_slopes(look)
        self.step_of_part(estimate, estimate.outer_loss)
        return slopes

    def generator_slopes(self, look: Look) -> Mapping[str, Tensor]:
        """∇_G L_G, by the names of G's weights; empty where G doesn't learn."""
        if look.fake is None:
            return {}
        own = self.gan.params()
        part = dict(self.place.part(self.model).named_parameters())
        loss = self.gan.loss_at(own, part, *look.fake)
        slopes = torch.autograd.grad(loss, list(own.values()))
        return dict(zip(own, slopes, strict=True))

    def improve_judge(self, real: Batch, latents: Tensor) -> None:
        """A tied H moves with the classifiers."""
        if not self.judged:
            super().improve_judge(real, latents)

    def judged_loss(
        self, found: Tensor, batch: Batch, drawn: Drawn, invented: Tensor
    ) -> Tensor:
        """L_H of a tied discriminator; zero for one that has its own network."""
        if not self.judged or not self.moves_generator:
            return super().judged_loss(found, batch, drawn, invented)
        judge = cast(CellGAN, self.gan).judge
        judge.train()  # its spectral norm follows its weights
        labels = drawn.portion.labels
        shares = drawn.shares
        if self.weighting == "enumerate":  # spread evenly, whatever p is
            shares = torch.full_like(shares, 1 / len(shares))
        counted = (self.class_prior / shares)[labels]
        scores = judge.scores(
            torch.cat([found, invented]), torch.cat([batch.labels, labels])
        )
        real, fake = scores.tensor_split([len(found)])
        return relu(1 - real).mean() + (counted * relu(1 + fake)).mean()

    def movers(self) -> tuple[torch.optim.Optimizer, ...]:
        """SGD for the networks, and Adam for the scores of a tied H."""
        if not self.judged or not self.moves_generator:
            return super().movers()
        return self.optimiser, self.gan.gan.discriminator_optimiser


class NeedsAwareSearch(ArchitectureSearch):
    """Search by the four levels of needs_aware, then train the found cells.

    A cell is chosen for two classifiers: one that learns the real images, and one that
    also learns generated images of the classes that the first finds hard.

    Source: "Ours-pcdarts" of needs_aware Table 5, and "Reduce" of Table 10.
    """

    needs_adversary = True
    # H sees an image and its label, and gives one score.
    discriminator_kinds = ("biggan", "cgan")

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        gan: Adversarial,
        search: SearchSettings = SEARCH,
        evaluation: EvaluationSettings = EVALUATION,
        interval: Count = 1,
        halved: bool = False,
        route: Route = "finite_difference",
        radius: Radius = 0.01,
        budget: Count | None = None,
        strength: Weight = 1.0,
        gamma: Weight = 1.0,
        weighting: Weighting = "score_ratio",
        separate_halves: bool = True,
        shared: bool = True,
        train_generator: bool = True,
        tied: bool = False,
        decorrelation: Weight = 0.0,
        generator_lr: Positive = 2e-4,
        discriminator_lr: Positive = 2e-4,
        **common: Any,
    ) -> None:
        """Prepare both phases.

        Args:
            model, splits, search, evaluation, interval, halved, common: see
                `ArchitectureSearch`.
            gan: pretrained on no other images than those of `train`; trained on.
            route: see `ArchitectureNeeds`.
            radius, budget, strength, gamma, weighting, separate_halves,
                train_generator, decorrelation, generator_lr, discriminator_lr: see
                `NeedsAware`.
            shared: make the discriminator of cells, too.
            tied: one network with three heads.
        """
        super().__init__(
            model,
            splits,
            search=search,
            evaluation=evaluation,
            interval=interval,
            halved=halved,
            gan=gan,
            route=route,
            radius=radius,
            budget=budget,
            strength=strength,
            gamma=gamma,
            weighting=weighting,
            separate_halves=separate_halves,
            shared=shared,
            train_generator=train_generator,
            tied=tied,
            decorrelation=decorrelation,
            generator_lr=generator_lr,
            discriminator_lr=discriminator_lr,
            **common,
        )

    def make_searcher(
        self, model: Classifier, splits: Splits, **settings: Any
    ) -> ArchitectureNeeds:
        """The four levels."""
        return ArchitectureNeeds(
            model,
            splits,
            clip=self.search.clip,
            interval=self.interval,
            meta_lr=self.search.meta_lr,
            meta_decay=self.search.meta_decay,
            **settings,
        )

    @property
    def generator(self) -> Generator:
        """G as it is now."""
        return cast(ArchitectureNeeds, self.searcher).generator
