"""Train a network, freeze its features, and train its head on more of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from needsaug_lite import losses
from needsaug_lite.allocation import inverse_frequency_shares, oversampling_shares
from needsaug_lite.data import (
    Batch,
    Batches,
    Examples,
    InMemory,
    Normalisation,
    Splits,
    generator,
)
from needsaug_lite.data.splits import on_device
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.contrastive_training import ContrastiveTraining
from needsaug_lite.methods.baselines.supervised import accuracy
from needsaug_lite.models import Classifier
from needsaug_lite.statistics import FeatureDictionary
from needsaug_lite.training import Stage

# Each kind of draw has its own stream, so that adding one leaves the others alone.
_MIXING = 601
Selection = Literal["missing", "inverse"]
Tuning = Literal["both", "augmented", "real"]
Adversaries = Literal["sgd", "adam"]


@dataclass(frozen=True)
class OversamplingSettings:
    """What the second phase is told.

    Attributes:
        lr, momentum, weight_decay: of SGD, for all networks of this phase.
        adversaries: what generator and discriminator are trained with: "sgd" as the
            classifier, or "adam" with rate 2e-4 and β₁ = 0.5, as GAMO's code does.
        batch_size: real features, and generated ones, of a step.
        selection: classes of the features that are added: "missing" in proportion to
            n_max - n_c, "inverse" to 1 / n_c (errata F7).
        tuning: what the classifier is tuned on: "both" real and generated features
            (errata F6), "augmented" ones alone, as printed, or "real" ones alone,
            which leaves the generated ones aside: a comparison.
        rebuild: make the features anew in every epoch, from augmented images;
            otherwise once, from the images as they are (errata F9).
        on_disk: keep the features in a temporary file that is read where it is
            touched, for data sets whose features don't fit into memory.

    Source: facog Sec. 4.2 for the numbers.
    """

    lr: Annotated[float, Gt(0)] = 0.005
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    batch_size: Annotated[int, Gt(1)] = 128
    selection: Selection = "missing"
    tuning: Tuning = "both"
    rebuild: bool = False
    on_disk: bool = False
    adversaries: Adversaries = "sgd"

    def optimiser(self, network: nn.Module) -> torch.optim.SGD:
        """SGD over all parameters of `network`."""
        return torch.optim.SGD(
            network.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def adversarial_optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """For a generator or a discriminator."""
        if self.adversaries == "adam":
            return torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
        return self.optimiser(network)


PHASE2 = OversamplingSettings()


class FeatureOversampling(ContrastiveTraining, ABC):
    """The frame of methods that add features to those of the rare classes.

    The first phase is `ContrastiveTraining`. Then the backbone is frozen and all
    features go into a dictionary. A step of the second phase trains what generates
    features, if anything does, draws labels of rare classes, generates a feature for
    each, and updates the classifier:

        L_cls = L_ce(real batch) + L_ce(generated batch)

    A subclass says how features are made (`made`) and how that is learned
    (`train_source`).

    Source: facog Sec. 3.3 and 3.4.
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
            splits: `train` is learned from.
            phase2: settings of the second phase.
            common: see `ContrastiveTraining`.
        """
        super().__init__(model, splits, **common)
        self.phase2 = phase2
        self.examples = splits.train
        self.num_classes = splits.num_classes
        self.head_optimiser = phase2.optimiser(model.head)
        counts = self.counts.cpu()
        shares = {
            "missing": oversampling_shares,
            "inverse": inverse_frequency_shares,
        }
        self.shares = shares[phase2.selection](counts)
        # The second phase goes through rows of the dictionary; no image is read.
        rows = torch.zeros(len(splits.train), 1, 1, 1)
        labels = torch.arange(self.num_classes).repeat_interleave(counts)
        self.rows = Batches(
            Examples(InMemory(rows), labels),
            phase2.batch_size,
            Normalisation((0.0,), (1.0,)),
            seed=self.batches.seed,
        )
        self._dictionary: FeatureDictionary | None = None
        self.folder = TemporaryDirectory() if phase2.on_disk else None

    def stages(self, epochs: int) -> Sequence[Stage]:
        """The first phase, then the second.

        Raises:
            UserError: if there is no epoch for the second.
        """
        first = super().stages(epochs)
        if self.first_epochs == epochs:
            raise UserError(
                f"the first phase takes all of the run ({epochs} epochs at "
                f"phase1.share = {self.phase1.share:g}), so that no feature would be "
                "added; give at least 2 epochs and a share below 1"
            )
        return [
            *first,
            Stage(
                "phase 2",
                epochs - self.first_epochs,
                self.rows,
                self.oversampling_step,
                self.begin_oversampling_epoch,
                self.forget_features,
            ),
        ]

    def forget_features(self) -> None:
        """Features of another backbone are of no use."""
        self._dictionary = None

    @property
    def dictionary(self) -> FeatureDictionary:
        """Features of the training images under the frozen backbone."""
        if self._dictionary is None:
            self._dictionary = self.extracted()
        return self._dictionary

    def extracted(self, epoch: int | None = None) -> FeatureDictionary:
        """Features of the training images, augmented if an epoch is given."""
        self.model.eval()
        file = None if self.folder is None else Path(self.folder.name) / "features.npy"
        return FeatureDictionary.of(
            self.model.features,
            self.examples,
            self.batches.normalisation,
            self.num_classes,
            augment=None if epoch is None else self.batches.augment,
            seed=self.batches.seed,
            epoch=0 if epoch is None else epoch,
            file=file,
        )

    def begin_oversampling_epoch(self, epoch: int) -> Mapping[str, float]:
        """Start the draws of the epoch, and make the features anew if asked to."""
        self.draw = generator(self.batches.seed, _MIXING, epoch)
        if self.phase2.rebuild:
            self._dictionary = self.extracted(self.first_epochs + epoch)
        return {"lr": self.phase2.lr}

    def oversampling_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of what makes features, then one of the classifier."""
        logged = self.train_source()
        labels = self.drawn_labels(len(batch))
        with torch.no_grad():
            generated = self.made(labels)
        real = self.dictionary.take(batch.index, self.device)
        truth = self.placed(batch.labels)
        logits = self.model.head(real)
        loss = self.tuning_loss(
            logits, truth, self.model.head(generated), self.placed(labels)
        )
        self.head_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.head_optimiser.step()
        right = accuracy(logits, truth)
        return {"loss": loss.detach(), "accuracy": right, **logged}

    def tuning_loss(
        self, logits: Tensor, labels: Tensor, generated: Tensor, chosen: Tensor
    ) -> Tensor:
        """Cross-entropy of the classifier on real and generated features.

        With deferred weights these are in force for the real features alone: the labels
        of the generated ones are drawn to make up for the class sizes already.

        Args:
            logits: of real features, shape (B, C).
            labels: int64, shape (B,).
            generated: logits of generated features, shape (M, C).
            chosen: their labels, int64, shape (M,).
        """
        weight = self.late_weight if self.phase1.reweight else None
        real = losses.cross_entropy(logits, labels, class_weight=weight)
        augmented = losses.cross_entropy(generated, chosen)
        parts = {"both": real + augmented, "real": real, "augmented": augmented}
        return parts[self.phase2.tuning]

    def drawn_labels(self, count: int) -> Tensor:
        """Labels of features to add, int64, shape (count,), on the CPU."""
        return torch.multinomial(self.shares, count, True, generator=self.draw)

    def placed(self, labels: Tensor) -> Tensor:
        """Labels from the CPU on the device of the networks."""
        return on_device(labels, self.device)

    def train_source(self) -> Mapping[str, Tensor]:
        """One update of what makes features; what to log of it. Here: nothing."""
        return {}

    @abstractmethod
    def made(self, labels: Tensor) -> Tensor:
        """Features of classes `labels` (B,), which lie on the CPU; shape (B, D)."""

    def source_networks(self) -> Mapping[str, nn.Module | torch.optim.Optimizer]:
        """Networks and optimisers of the second phase by name, for checkpoints."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All networks and optimisers."""
        sources = {n: part.state_dict() for n, part in self.source_networks().items()}
        head = self.head_optimiser.state_dict()
        return {**super().state_dict(), "head_optimiser": head, "sources": sources}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.forget_features()
        self.head_optimiser.load_state_dict(state["head_optimiser"])
        for name, part in self.source_networks().items():
            part.load_state_dict(state["sources"][name])
