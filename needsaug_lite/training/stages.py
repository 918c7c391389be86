"""What a method hands to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from needsaug_lite.data import Batch
from needsaug_lite.models import Classifier


class BatchSource(Protocol):
    """Anything that yields the batches of an epoch, the same ones every time."""

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Stage:
    """One phase of a method: its data, its length, and what one step does.

    Attributes:
        name: shown in the progress bar and the history.
        epochs: how many times the loop goes through `batches`.
        batches: the data of the stage.
        step: one update from one batch; returns the values to log as scalars on
            the device, "loss" among them. It must not wait for the device.
        begin_epoch: called with the epoch before its first step, to set learning
            rates and weights that depend on the epoch; returns what to log of them.
        begin: called once before the first epoch of the stage (not on resuming
            inside it), to build what the stage starts from.
        first: number that `batches` and `begin_epoch` see for the first epoch; a
            stage that goes on with the data and the schedule of the one before it
            starts there.
    """

    name: str
    epochs: int
    batches: BatchSource
    step: Callable[[Batch], Mapping[str, Tensor]]
    begin_epoch: Callable[[int], Mapping[str, float]] = lambda epoch: {}
    begin: Callable[[], None] = lambda: None
    first: int = 0


class Method(Protocol):
    """A learner: parameters, the step of its paper, and how to save them."""

    model: nn.Module

    def stages(self, epochs: int) -> Sequence[Stage]:
        """The phases of a run of `epochs` epochs in all, in order."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes in training: weights, optimisers, memories."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""


@runtime_checkable
class Perturbing(Protocol):
    """A method that pushes the features of each training image."""

    @property
    def epsilon(self) -> Tensor:
        """Strength of the push, above 0 for a harder image, shape (N,)."""


@runtime_checkable
class Suspicious(Protocol):
    """A method with an opinion of its own on which training labels are wrong."""

    def suspicion(self) -> Tensor:
        """A score for every training image, larger for wrong labels, shape (N,)."""


@runtime_checkable
class LossDesigning(Protocol):
    """A method that finds the parameters of its own training loss."""

    @property
    def loss_parameters(self) -> Mapping[str, Tensor | None]:
        """Values by name, for each class (C,) or class and attribute (C, A)."""


@runtime_checkable
class Budgeting(Protocol):
    """A method that decides how many images of each class are generated."""

    def allocation_summary(self) -> dict[str, Any]:
        """What it decided, as numbers, texts, lists and names with values.

        Such as the number of generated images of each class over all epochs.
        """


@runtime_checkable
class TwoClassifiers(Protocol):
    """A method with a classifier beside `model`, which learned before it.

    Attributes:
        first: None where the method has trained no other one.
    """

    first: Classifier | None


@runtime_checkable
class Searching(Protocol):
    """A method that looks for an architecture, and then trains it from scratch.

    Afterwards `model` is the network that it found.
    """

    def architecture_summary(self) -> dict[str, Any]:
        """What was found, as numbers, texts, lists and names with values.

        Such as the operations of each cell and the parameters of the network.
        """


@runtime_checkable
class SharedStart(Protocol):
    """A method whose first stage is the same in other methods too.

    Who trains several of them can train that stage once.
    """

    @property
    def start_settings(self) -> Mapping[str, Any]:
        """What the first stage depends on, beside data, network and optimisation."""

    def start_state(self) -> dict[str, Any]:
        """What later stages need of the first one."""

    def load_start_state(self, state: dict[str, Any]) -> None:
        """Put back what `start_state` returned."""
