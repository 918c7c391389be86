"""A classifier and a projection trained together: cross-entropy and contrast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from needsaug_lite import losses
from needsaug_lite.augment import AutoAugmentCutout, SimAugment, StandardAugmentation
from needsaug_lite.data import Batch, Batches, Normalisation, Splits, generator
from needsaug_lite.data.batches import Augmentation
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.supervised import (
    DEFERRED_START,
    Supervised,
    accuracy,
)
from needsaug_lite.models import Classifier, two_layers
from needsaug_lite.training import Optimisation, Stage
from needsaug_lite.training.schedules import set_learning_rate

_PROJECTION = 602
Weight = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]


def _views(
    standard: StandardAugmentation, strong: bool
) -> tuple[Augmentation, Augmentation]:
    """How the first and the second view of an image are made."""
    if not strong:
        return standard, standard
    if standard.policy is not None:
        raise UserError(
            f"policy={standard.policy!r} and strong_views, which have a policy of "
            "their own: leave one of the two out"
        )
    first = AutoAugmentCutout(
        crop=standard.crop, flip=standard.flip, cutout=standard.cutout
    )
    return first, SimAugment(flip=standard.flip)


@dataclass(frozen=True)
class ContrastiveSettings:
    """What the first phase is told.

    Attributes:
        share: of the epochs of the run that it takes; its schedule is stretched over
            them. The paper chooses the division "heuristically" and gives none.
        lambda_ce, lambda_sc: weights of cross-entropy and contrast.
        temperature: τ of the contrast.
        projection_dim: length of a projection.
        reweight: class-balanced weights in the cross-entropy (DRW), from `late` on, a
            share of the phase.
        strong_views: AutoAugment and Cutout for the first view, SimAugment for the
            second; otherwise both go through the augmentation of the run.

    Source: facog Sec. 4.2 for all values; DRW's start is that of its own paper.
    """

    share: Share = 0.8
    lambda_ce: Weight = 1.0
    lambda_sc: Weight = 0.1
    temperature: Annotated[float, Gt(0)] = 0.1
    projection_dim: Annotated[int, Gt(0)] = 128
    reweight: bool = False
    late: Share = DEFERRED_START
    strong_views: bool = False


PHASE1 = ContrastiveSettings()


class ContrastiveTraining(Supervised):
    """Cross-entropy plus supervised contrast of two views: the first phase of FACoG.

    L_ph1 = λ_ce L_ce(f_cls(h)) + λ_sc L_sc(f_proj(h), f_proj(h'))
    h = f_back(x), h' = f_back(x')

    x and x' are two augmentations of an image. The cross-entropy sees the first, the
    contrast both.

    Source: facog Sec. 3.2, Eq. 1 and 2.
    """

    head = "two_layers"

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        phase1: ContrastiveSettings = PHASE1,
        optimisation: Optimisation | None = None,
        augment: StandardAugmentation | None = None,
        normalisation: Normalisation | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare the projection, the two views and the optimiser.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from.
            phase1: settings of this phase.
            optimisation: settings of SGD and its schedule.
            augment: random change of training images.
            normalisation: default: moments of the training images.
            seed: order of the images, augmentation and projection.
        """
        self.phase1 = phase1
        normal = normalisation or Normalisation.of(splits)
        first, second = _views(augment or StandardAugmentation(), phase1.strong_views)
        super().__init__(
            model,
            splits,
            optimisation=optimisation,
            augment=first,
            normalisation=normal,
            seed=seed,
        )
        self.device = splits.train.labels.device
        with torch.random.fork_rng(devices=[]):
            # Of its own: what a subclass draws before leaves it as it is, and the
            # weights aren't those of a network that was drawn from the same seed.
            torch.manual_seed(generator(seed, _PROJECTION).initial_seed())
            self.projection = two_layers(model.feature_dim, phase1.projection_dim)
        self.projection.to(self.device)
        self.optimiser = self.optimisation.optimiser(self.networks())
        self.second_view = Batches(
            splits.train,
            self.optimisation.batch_size,
            normal,
            augment=second,
            seed=seed,
            view=1,
        )
        self.late_weight = losses.class_balanced_weights(self.counts)
        self.class_weight: Tensor | None = None
        self.first_epochs = 0

    def networks(self) -> nn.Module:
        """All that the first phase trains."""
        return nn.ModuleList([self.model, self.projection])

    def stages(self, epochs: int) -> Sequence[Stage]:
        """The first phase; a run of this method alone ends with it."""
        self.epochs = epochs
        wanted = round(self.phase1.share * epochs)
        # At least one epoch, and one for the phase after it.
        most = epochs if self.phase1.share == 1 else max(1, epochs - 1)
        self.first_epochs = min(max(1, wanted), most)
        return [
            Stage(
                "phase 1",
                self.first_epochs,
                self.batches,
                self.contrastive_step,
                self.begin_contrastive_epoch,
            )
        ]

    def begin_contrastive_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set learning rate and class weights, and start the second views."""
        late = epoch >= round(self.phase1.late * self.first_epochs)
        self.class_weight = self.late_weight if self.phase1.reweight and late else None
        self.others: Iterator[Batch] = self.second_view.epoch(epoch)
        lr = self.optimisation.learning_rate(epoch, self.first_epochs)
        set_learning_rate(self.optimiser, lr)
        return {"lr": lr}

    def contrastive_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of backbone, classifier and projection."""
        self.model.train()
        both = torch.cat([batch.images, next(self.others).images])
        features = self.model.features(both)
        logits = self.model.head(features[: len(batch)])
        classification = losses.cross_entropy(
            logits, batch.labels, class_weight=self.class_weight
        )
        contrast = losses.supervised_contrastive(
            self.projection(features),
            batch.labels.repeat(2),
            temperature=self.phase1.temperature,
        )
        # facog Eq. 2
        loss = self.phase1.lambda_ce * classification + self.phase1.lambda_sc * contrast
        self.descend(loss)
        return {
            "loss": loss.detach(),
            "contrast": contrast.detach(),
            "accuracy": accuracy(logits, batch.labels),
        }

    def state_dict(self) -> dict[str, Any]:
        """Network, projection and optimiser."""
        return {**super().state_dict(), "projection": self.projection.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.projection.load_state_dict(state["projection"])

    @property
    def start_settings(self) -> Mapping[str, Any]:
        """What the first phase depends on, beside data, network and optimisation."""
        return {"version": ContrastiveTraining.version, **vars(self.phase1)}

    def start_state(self) -> dict[str, Any]:
        """What later phases need of the first one."""
        return {
            "model": self.model.state_dict(),
            "projection": self.projection.state_dict(),
        }

    def load_start_state(self, state: dict[str, Any]) -> None:
        """Put back what `start_state` returned."""
        self.model.load_state_dict(state["model"])
        self.projection.load_state_dict(state["projection"])
