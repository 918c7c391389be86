"""What an architecture search is told, and what it asks of an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from needsaug_lite.data import Batch, Batches
from needsaug_lite.models.genotype import discretise
from needsaug_lite.models.search_cell import KINDS, Architecture

Positive = Annotated[float, Gt(0)]
Weight = Annotated[float, Ge(0)]
Count = Annotated[int, Gt(0)]


@dataclass(frozen=True)
class SearchSettings:
    """How long and how fast an architecture is searched.

    Attributes:
        length: epochs of the search, as a multiple of those of the evaluation; at
            least one epoch. 0.2 are 50 of 250.
        warm_up: share of the search with A at rest, and in the four levels G too; 0.3
            are 15 of 50.
        lr: of SGD for the weights, on a cosine to 0; None: that of the evaluation.
        weight_decay: of the weights.
        meta_lr, meta_decay: of Adam for A.
        clip: largest norm of the gradient of the weights in a step.

    Source: needs_aware Table 14 and errata N15; the warm-up from the code of PC-DARTS.
    """

    length: Positive = 0.2
    warm_up: Annotated[float, Ge(0), Le(1)] = 0.3
    lr: Positive | None = None
    weight_decay: Weight = 3e-4
    meta_lr: Positive = 0.006
    meta_decay: Weight = 1e-3
    clip: Positive = 5.0


@dataclass(frozen=True)
class EvaluationSettings:
    """The network that a found cell is judged by, and how it is trained.

    Attributes:
        cells, channels: None: as many as in the search.
        auxiliary: weight of the loss of a second head at 2/3 of the depth; 0 builds
            none.
        drop_path: largest chance that a path of a cell is left out for an image; it
            grows from 0 with the epochs.
        label_smoothing: share of the target that is spread over all classes.
        clip: largest norm of the gradient in a step.

    Source: needs_aware Table 15; drop path as in DARTS.
    """

    cells: Count | None = None
    channels: Count | None = None
    auxiliary: Weight = 0.4
    drop_path: Annotated[float, Ge(0), Lt(1)] = 0.0
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.1
    clip: Positive = 5.0


Steps = TypeVar("Steps", bound=torch.optim.Optimizer)
SEARCH, EVALUATION = SearchSettings(), EvaluationSettings()


class Searcher(Protocol):
    """What trains a supernet and its architecture.

    Attributes:
        epochs: of the search.
        moving: whether A learns, or rests in the warm-up.
    """

    epochs: int
    moving: bool

    @property
    def batches(self) -> Batches:
        """The training images."""

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set learning rates; returns what to log."""

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One step of the weights, and of A where it is due."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""


def preferences(architecture: Architecture) -> dict[str, float]:
    """What A would be discretised to, and how decided it is.

    Returns:
        Skip connections of the cells of each kind, and the mean entropy of the shares
        of the operations as a part of its largest value: 1 for a uniform A.
    """
    genotype = discretise(architecture)
    found = {
        f"skip_connections_{kind}": float(count)
        for kind, count in genotype.skip_connections.items()
    }
    with torch.no_grad():
        shares = torch.cat([architecture.operations_of(kind) for kind in KINDS])
        entropy = torch.special.entr(shares).sum(1).mean()
    most = torch.tensor(float(shares.shape[1])).log().clamp_min(1e-12)
    return {**found, "entropy": float(entropy / most)}


def clipped(optimiser: Steps, norm: float) -> Steps:
    """The optimiser, whose steps shorten a gradient that is longer than `norm`."""

    def shorten(one: torch.optim.Optimizer, *_: Any) -> None:
        held = [value for group in one.param_groups for value in group["params"]]
        nn.utils.clip_grad_norm_(held, norm)

    optimiser.register_step_pre_hook(shorten)
    return optimiser
