"""A method that searches nothing, but looks to a run like one that does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from needsaug_lite import models
from needsaug_lite.experiments import registry
from needsaug_lite.experiments.registry import Entry
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.training import Stage

NAME = "stand_in"


class StandIn(Supervised):
    """A supernet learns in the first stage, and a convnet in its place in the second.

    What it "found" is the number of classes.
    """

    searches = True

    def __init__(self, model: Any, splits: Any, **common: Any) -> None:
        super().__init__(model, splits, **common)
        self.supernet, self.common = model, common
        self.shape, self.classes = splits.image_shape, splits.num_classes
        self.found: dict[str, Any] | None = None

    def stages(self, epochs: int) -> Sequence[Stage]:
        self.epochs = epochs
        half = epochs // 2
        plan = (
            ("search", half, lambda: None),
            ("evaluation", epochs - half, self.find),
        )
        return [
            Stage(name, length, self.batches, self.step, self.begin_epoch, begin)
            for name, length, begin in plan
        ]

    def find(self) -> None:
        self.found = {"classes": self.classes}
        self.model = models.build("convnet", self.shape, self.classes, width=2)
        self.optimiser = self.optimisation.optimiser(self.model)

    def architecture_summary(self) -> dict[str, Any]:
        size = sum(p.numel() for p in self.model.parameters())
        return {"genotype": self.found, "parameters": size}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["found"] is not None:
            self.find()
        super().load_state_dict(state)


class Whole(StandIn):
    """Without partial channels, as DARTS."""

    partial = 1
    edge_normalised = False


class Normalised(StandIn):
    """With a share of the channels that a spec states."""

    partial = None
    edge_normalised = True


class Adversarial(StandIn):
    """Trains a generator against a discriminator of its own."""

    needs_adversary = True
    discriminator_kinds = ("biggan", "cgan")

    def __init__(self, model: Any, splits: Any, *, gan: Any, **common: Any) -> None:
        super().__init__(model, splits, **common)
        self.gan = gan


def put_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the stand-ins for the length of a test."""
    kinds: dict[str, type[StandIn]] = {
        "": StandIn,
        "_whole": Whole,
        "_normalised": Normalised,
        "_adversarial": Adversarial,
    }
    for suffix, kind in kinds.items():
        entry = Entry(f"{__name__}:{kind.__name__}", kind.__name__)
        monkeypatch.setitem(registry.METHODS, NAME + suffix, entry)
