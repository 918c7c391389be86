"""A linear head, trained by another method, on features that FACoG's phase 1 left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from needsaug_lite import metrics
from needsaug_lite.data import Normalisation, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.contrastive_training import (
    PHASE1,
    ContrastiveSettings,
    ContrastiveTraining,
)
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.models import Classifier
from needsaug_lite.training import Stage


@dataclass(frozen=True)
class FrozenFeatures:
    """Features in the place of images; they are made when they are first read.

    Attributes:
        table: the features of all training images, float32, shape (N, D).
        index: which of them these are, int64, shape (n,).
        length: D.
    """

    table: Callable[[], Tensor]
    index: Tensor
    length: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """D channels of one pixel."""
        return self.length, 1, 1

    def __len__(self) -> int:
        return len(self.index)

    def subset(self, index: Tensor) -> FrozenFeatures:
        """The features at `index`."""
        return replace(self, index=self.index[index.to(self.index.device)])

    def joined(self, other: FrozenFeatures) -> FrozenFeatures:
        """These features followed by others of the same table."""
        return replace(self, index=torch.cat([self.index, other.index]))

    def stream(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """One tensor (B, D, 1, 1) per tensor of indices."""
        table = self.table()
        # One transfer for all chunks: a step must not wait for the device.
        rows = self.subset(torch.cat(list(chunks))).index.to(table.device)
        for chunk in rows.split([len(chunk) for chunk in chunks]):
            yield table[chunk][:, :, None, None]

    def fingerprint(self) -> bytes:
        """All features."""
        return self.table()[self.index].cpu().numpy().tobytes()

    def to(self, device: torch.device | str) -> FrozenFeatures:
        """The same: the table lies where the network is."""
        return self


class FrozenHead(ContrastiveTraining):
    """FACoG's first phase; then another method trains a linear head and no more.

    The features h = f_back(x) of all training images are made once, of the images as
    they are, by the backbone that the first phase left. In place of FACoG's two-layer
    classifier, which the first phase needs and which is dropped, the second method
    trains

        f(x) = W h + b,   W = 0, b = 0 at first,

    with the optimiser and the schedule of the run, stretched over the epochs that the
    first phase leaves. The start is zero because a convex loss with weight decay has
    one minimiser, wherever SGD starts.

    Attributes:
        second: the method of the second phase; its network is W and b.

    Source: facog Sec. 3.2 for the first phase; the second is a combination of ours.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        second: Callable[..., Supervised],
        phase1: ContrastiveSettings = PHASE1,
        **common: Any,
    ) -> None:
        """Prepare both phases.

        Args:
            model: trained in place, on the device of `splits`; its head is replaced.
            splits: `train` is learned from.
            second: makes the method of the second phase from a classifier of features,
                splits with features in place of images, and what all methods take.
            phase1: settings of the first phase.
            common: see `ContrastiveTraining`.
        """
        super().__init__(model, splits, phase1=phase1, **common)
        self.examples = splits.train
        self.linear = nn.Linear(model.feature_dim, splits.num_classes)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)
        self.linear.to(self.device)
        self._features: Tensor | None = None
        rows = torch.arange(len(splits.train))
        features = FrozenFeatures(self.features, rows, model.feature_dim)
        size = model.feature_dim
        self.second = second(
            Classifier(nn.Flatten(), size, self.linear),
            replace(splits, train=replace(splits.train, images=features)),
            optimisation=self.optimisation,
            # As FACoG's second phase: features keep the scale that they have.
            normalisation=Normalisation((0.0,) * size, (1.0,) * size),
            seed=self.batches.seed,
        )

    def features(self) -> Tensor:
        """Features (N, D) of the training images under the frozen backbone."""
        if self._features is None:
            made = metrics.predict_all(
                self.model.backbone, self.examples, self.batches.normalisation
            )
            self._features = made.logits.to(self.device)
        return self._features

    def stages(self, epochs: int) -> Sequence[Stage]:
        """The first phase, then the stages of the second method.

        Raises:
            UserError: if there is no epoch for the second.
        """
        first = super().stages(epochs)
        left = epochs - self.first_epochs
        if not left:
            raise UserError(
                f"the first phase takes all {epochs} epochs of the run (phase1.share = "
                f"{self.phase1.share:g}), so that no head would be trained on its "
                "features; give at least 2 epochs and a share below 1"
            )
        return [*first, *map(self._on_frozen, self.second.stages(left))]

    def _on_frozen(self, stage: Stage) -> Stage:
        """A stage of the second method, with the head that it trains in its place."""

        def begin_epoch(epoch: int) -> Mapping[str, float]:
            self._take_linear_head()
            return stage.begin_epoch(epoch)

        return replace(stage, begin_epoch=begin_epoch)

    def _take_linear_head(self) -> None:
        if self.model.head is not self.linear:
            self.model.head = self.linear
            self._features = None  # what was read before is of another backbone

    def state_dict(self) -> dict[str, Any]:
        """What the first phase keeps, and the second method."""
        return {
            **super().state_dict(),
            "frozen": self.model.head is self.linear,
            "second": self.second.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        if state["frozen"]:
            self._take_linear_head()
        super().load_state_dict(state)
        self.second.load_state_dict(state["second"])
        self._features = None
