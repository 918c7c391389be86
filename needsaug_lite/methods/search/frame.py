"""The frame of an architecture search: search a cell, then train a network of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from needsaug_lite.data import Batch, Normalisation, Splits
from needsaug_lite.data.batches import Augmentation
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.supervised import Supervised, accuracy
from needsaug_lite.methods.search.settings import (
    EVALUATION,
    SEARCH,
    Count,
    EvaluationSettings,
    Searcher,
    SearchSettings,
    clipped,
    preferences,
)
from needsaug_lite.models import Classifier, build_from_cells
from needsaug_lite.models.genotype import Genotype, discretise
from needsaug_lite.models.search_cell import KINDS, Architecture, Supernet
from needsaug_lite.training import Optimisation, Stage


class ArchitectureSearch(Supervised, ABC):
    """Search a cell, then train a network of such cells from its first weights.

    1. Search: weights on D_tr, the architecture A on D_val, by a `Searcher`.
    2. Every node keeps its two strongest edges, each with its strongest operation.
    3. Evaluation: a network of the found cells learns the real images of D_tr and
       D_val together, which is the same for all methods: what it gains, it gains by
       the cell alone.

    `model` is the supernet during the search and the network of the cells after it.

    Source: needs_aware Sec. 4.2, App. B; DARTS (Liu et al. 2019), Sec. 2 and 3.
    """

    searches = True
    # Of the supernet: K in place of that of the model, and whether β is learned.
    partial: int | None = None
    edge_normalised = True

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        search: SearchSettings = SEARCH,
        evaluation: EvaluationSettings = EVALUATION,
        interval: Count = 1,
        halved: bool = False,
        optimisation: Optimisation | None = None,
        augment: Augmentation | None = None,
        normalisation: Normalisation | None = None,
        seed: int = 0,
        **searching: Any,
    ) -> None:
        """Prepare both phases.

        Args:
            model: a `Supernet` with a head, on the device of `splits`.
            splits: `train` is D_tr, `meta` is D_val.
            search: of the first phase.
            evaluation: of the second phase.
            interval: steps of the weights for each of A.
            halved: search for half as many epochs as `search` says (Sec. 3.2).
            optimisation: of the second phase.
            augment: random change of training images, in both phases.
            normalisation: default: moments of the training images.
            seed: order of the images, first weights of the network, dropped paths.
            searching: for `make_searcher`.

        Raises:
            UserError: if the model is no supernet or there are no meta images.
        """
        if not isinstance(model.backbone, Supernet):
            raise UserError(
                f"{type(self).__name__} searches in a supernet; build the model with "
                "backbone supernet"
            )
        if len(splits.meta) == 0:
            raise UserError(
                "an architecture is chosen on held-out images, and there are none; "
                "hold some out with meta_per_class, for example 10"
            )
        normal = normalisation or Normalisation.of(splits)
        common: dict[str, Any] = {
            "augment": augment,
            "normalisation": normal,
            "seed": seed,
        }
        both = replace(splits, train=splits.train.joined(splits.meta))
        super().__init__(model, both, optimisation=optimisation, **common)
        self.normalisation, self.seed = normal, seed
        self.search, self.evaluation = search, evaluation
        self.interval, self.halved = interval, halved
        self.supernet: Supernet = model.backbone
        self.image_shape = splits.image_shape
        self.genotype: Genotype | None = None
        weights = Optimisation(
            lr=search.lr or self.optimisation.lr,
            weight_decay=search.weight_decay,
            batch_size=self.optimisation.batch_size,
            warmup=0.0,
            schedule="cosine",
        )
        self.searcher = self.make_searcher(
            model, splits, optimisation=weights, **common, **searching
        )

    @abstractmethod
    def make_searcher(
        self, model: Classifier, splits: Splits, **settings: Any
    ) -> Searcher:
        """What trains the supernet."""

    @property
    def architecture(self) -> Architecture:
        """A."""
        return self.supernet.architecture

    def search_epochs(self, epochs: int) -> int:
        """Epochs of the search, beside as many of the evaluation."""
        part = self.search.length / (2 if self.halved else 1)
        return max(1, round(part * epochs))

    def stages(self, epochs: int) -> Sequence[Stage]:
        """The search, then the evaluation."""
        self.epochs = epochs
        self.searcher.epochs = self.search_epochs(epochs)
        return [
            Stage(
                "search",
                self.searcher.epochs,
                self.searcher.batches,
                self.searcher.step,
                self.begin_search_epoch,
            ),
            self.evaluation_stage(),
        ]

    def evaluation_stage(self) -> Stage:
        """Training of the network of the found cells."""
        return Stage(
            "evaluation",
            self.epochs,
            self.batches,
            self.step,
            self.begin_epoch,
            begin=self.finish_search,
        )

    def begin_search_epoch(self, epoch: int) -> Mapping[str, float]:
        """Wake A after the warm-up, and look at what it prefers so far."""
        rest = round(self.search.warm_up * self.searcher.epochs)
        self.searcher.moving = epoch >= rest
        return {**self.searcher.begin_epoch(epoch), **preferences(self.architecture)}

    def finish_search(self) -> None:
        """Discretise A."""
        self.evaluate_cells(discretise(self.architecture))

    def evaluate_cells(self, genotype: Genotype) -> None:
        """Begin the evaluation of cells; it depends on them and on the seed alone."""
        self.genotype = genotype
        torch.manual_seed(self.seed)
        self.model = self.network(genotype, self.evaluation)
        self.optimiser = clipped(
            self.optimisation.optimiser(self.model), self.evaluation.clip
        )

    def network(self, genotype: Genotype, settings: EvaluationSettings) -> Classifier:
        """A network of the cells, drawn from torch's global generator."""
        made = build_from_cells(
            genotype,
            self.image_shape,
            len(self.counts),
            width=settings.channels or self.supernet.width,
            cells=settings.cells or self.supernet.size,
            halvings=self.supernet.halvings,
            auxiliary=settings.auxiliary > 0,
        )
        return made.to(next(self.supernet.parameters()).device)

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set learning rate and drop path of an epoch of the evaluation."""
        body: Any = self.model.backbone
        body.drop_probability = self.evaluation.drop_path * epoch / self.epochs
        return super().begin_epoch(epoch)

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of the network of the cells."""
        self.model.train()
        body: Any = self.model.backbone
        settings, auxiliary = self.evaluation, None
        if settings.auxiliary:
            found, auxiliary = body.with_auxiliary(batch.images)
        else:
            found = body(batch.images)

        def loss(scores: Tensor) -> Tensor:
            return cross_entropy(
                scores, batch.labels, label_smoothing=settings.label_smoothing
            )

        scores = self.model.head(found)
        total = fit = loss(scores)
        if auxiliary is not None:
            total = fit + settings.auxiliary * loss(auxiliary)
        self.descend(total)
        return {"loss": fit.detach(), "accuracy": accuracy(scores, batch.labels)}

    def architecture_summary(self) -> dict[str, Any]:
        """The cells, how strongly they were preferred, and the size of the network."""
        assert self.genotype is not None
        strengths = {kind: self.architecture.strengths(kind).tolist() for kind in KINDS}
        body = self.model.backbone
        return {
            "genotype": self.genotype.as_lists(),
            "skip_connections": dict(self.genotype.skip_connections),
            "operations": list(self.supernet.space.operations),
            "strengths": strengths,
            "parameters": sum(
                one.numel()
                for name, one in body.named_parameters()
                if not name.startswith("auxiliary")
            ),
        }

    def allocation_summary(self) -> dict[str, Any]:
        """What a budget of generated images went to; empty without one."""
        found = getattr(self.searcher, "allocation_summary", None)
        return found() if found is not None else {}

    def state_dict(self) -> dict[str, Any]:
        """Both networks, A, the optimisers, and the cells once they are found."""
        cells = None if self.genotype is None else self.genotype.as_lists()
        return {
            **super().state_dict(),
            "searcher": self.searcher.state_dict(),
            "genotype": cells,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        self.searcher.load_state_dict(state["searcher"])
        if state["genotype"] is not None:
            with torch.random.fork_rng():  # its weights are overwritten
                self.evaluate_cells(Genotype.from_lists(state["genotype"]))
        super().load_state_dict(state)
