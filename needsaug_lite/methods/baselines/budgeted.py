"""A budget of generated images, divided beforehand: equally, by size, or by need."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from needsaug_lite.allocation import inverse_frequency_shares
from needsaug_lite.data import Batch, Splits
from needsaug_lite.methods.baselines.generative import GDA
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.methods.baselines.synthetic_images import SYNTHETIC
from needsaug_lite.methods.budget import Budget
from needsaug_lite.methods.shared_head import HeldOut, measured_shares
from needsaug_lite.models import Classifier, Generator
from needsaug_lite.training import Stage


class Budgeted(GDA):
    """Real images, and M generated ones in every epoch, of a generator that is fixed.

    min_θ  mean ℓ(f_θ(x), y) + λ mean ℓ(f_θ(x̂_m), o_m),   #{m : o_m = c} = M p_c

    A subclass says what p is. Rounding leaves every epoch exactly M images.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        budget: Annotated[int, Gt(0)] | None = None,
        strength: Annotated[float, Ge(0)] = 1.0,
        **common: Any,
    ) -> None:
        """Prepare the budget.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from.
            generator: trained on no other images than those of `train`.
            budget: M; None: as many as training images (needs_aware Sec. 4).
            strength: λ.
            common: see `Supervised`.

        Raises:
            UserError: if the generator doesn't fit, or M is too small.
        """
        synthetic = replace(SYNTHETIC, strength=strength)
        super().__init__(
            model, splits, generator=generator, synthetic=synthetic, **common
        )
        self.budget = Budget(
            budget or len(splits.train),
            len(self.batches),
            splits.num_classes,
            generator.latent_dim,
            seed=self.batches.seed,
            device=splits.train.labels.device,
        )

    @abstractmethod
    def shares(self) -> Tensor:
        """p, shape (C,), adding to 1."""

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set the learning rate, and divide the budget of the epoch."""
        self.budget.share(epoch, self.shares())
        return super().begin_epoch(epoch)

    def latents(self) -> tuple[Tensor, Tensor]:
        """Latent vectors and classes of the next portion."""
        portion = next(self.budget)
        return portion.latents, portion.labels

    def allocation_summary(self) -> dict[str, Any]:
        """What the budget went to, by class."""
        return {
            "budget": self.budget.images,
            "images": self.budget.counts.tolist(),
            "images_last_epoch": self.budget.last_counts.tolist(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser and what the budget went to."""
        counts = {"all": self.budget.counts, "last": self.budget.last_counts}
        return {**super().state_dict(), "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.budget.counts = state["counts"]["all"].cpu()
        self.budget.last_counts = state["counts"]["last"].cpu()


class Equal(Budgeted):
    """Equally many generated images of every class: p_c = 1 / C.

    Source: "Equal" of needs_aware Sec. 4.2.
    """

    def shares(self) -> Tensor:
        """1 / C each."""
        return torch.ones(len(self.counts)) / len(self.counts)


class Reciprocal(Budgeted):
    """More generated images of a smaller class: p_c ∝ 1 / n_c.

    Source: "Reciprocal" of needs_aware Sec. 4.1.
    """

    def shares(self) -> Tensor:
        """In proportion to 1 / n_c."""
        return inverse_frequency_shares(self.counts)


class Sequential(Equal):
    """The stages one after another: needs of a trained classifier, then a new one.

    1. W1 is trained on the real images.
    2. p_c ∝ its validation loss of class c (Eq. 3), measured once.
    3. A new network with the first weights is trained on real and generated images.

    Both networks have heads of their own. Both trainings take all epochs of the run.

    Source: "Sequential" of needs_aware Sec. 4.3.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        budget: Annotated[int, Gt(0)] | None = None,
        strength: Annotated[float, Ge(0)] = 1.0,
        separate_halves: bool = True,
        **common: Any,
    ) -> None:
        """Prepare both networks.

        Args:
            model, splits, generator, budget, strength, common: see `Budgeted`.
            separate_halves: measure needs on half of the meta images, as `NeedsAware`
                does with the same setting.

        Raises:
            UserError: if there are too few meta images.
        """
        super().__init__(
            model,
            splits,
            generator=generator,
            budget=budget,
            strength=strength,
            **common,
        )
        held = HeldOut(
            splits,
            self.optimisation.batch_size,
            self.normalisation,
            separate=separate_halves,
            seed=self.batches.seed,
            steps=len(self.batches),
        )
        self.needs = held.needs
        self.first = deepcopy(model)
        self.first_optimiser = self.optimisation.optimiser(self.first)
        self.found = torch.full_like(
            self.counts, 1 / len(self.counts), dtype=torch.float
        )

    def shares(self) -> Tensor:
        """What was measured after the first training."""
        return self.found

    def stages(self, epochs: int) -> Sequence[Stage]:
        """W1, then the network that is kept."""
        self.epochs = epochs
        name = type(self).__name__
        return [
            Stage(
                f"{name}, first classifier",
                epochs,
                self.batches,
                self.first_step,
                self.begin_first,
            ),
            Stage(
                f"{name}, generated images",
                epochs,
                self.batches,
                self.step,
                self.begin_epoch,
                begin=self.measure,
            ),
        ]

    def begin_first(self, epoch: int) -> Mapping[str, float]:
        """Set the learning rate of W1."""
        found = Supervised.begin_epoch(self, epoch)
        for group in self.first_optimiser.param_groups:
            group["lr"] = found["lr"]
        return found

    def first_step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of W1 on real images."""
        self.first.train()
        loss = self.batch_loss(self.first(batch.images), batch)
        self.first_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.first_optimiser.step()
        return {"loss": loss.detach()}

    def measure(self) -> None:
        """Eq. 3 with the trained W1."""
        self.found, _ = measured_shares(self.first, self.needs, self.normalisation)

    def allocation_summary(self) -> dict[str, Any]:
        """What the budget went to, by class, and the shares that decided it."""
        return {**super().allocation_summary(), "shares_by_need": self.found.tolist()}

    def state_dict(self) -> dict[str, Any]:
        """Both networks, their optimisers, and the needs."""
        return {
            **super().state_dict(),
            "first": self.first.state_dict(),
            "first_optimiser": self.first_optimiser.state_dict(),
            "found": self.found,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.first.load_state_dict(state["first"])
        self.first_optimiser.load_state_dict(state["first_optimiser"])
        self.found = state["found"]
