"""The training images in place of a generator: nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from needsaug_lite.data import Splits
from needsaug_lite.models.replay import Replay
from needsaug_lite.training import Stage


class Replaying:
    """A control beside the generators: see `models.replay.Replay`."""

    version = 1

    def __init__(self, splits: Splits, *, seed: int = 0) -> None:
        """Keep the images.

        Args:
            splits: `train` is what is shown.
            seed: not used; every generator takes one.
        """
        self.generator = Replay(splits.train, splits.num_classes)
        # The loop asks a method where it lives.
        place = nn.Parameter(torch.zeros((), device=splits.train.labels.device))
        self.model = nn.ParameterList([place])

    def stages(self, epochs: int) -> Sequence[Stage]:
        """No training."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes."""
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""
        self.model.load_state_dict(state["model"])
