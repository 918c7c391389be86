"""Generated images whose latent vectors are searched for while the network trains."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from needsaug_lite import hypergrad, losses
from needsaug_lite.data import Batch, Splits
from needsaug_lite.hypergrad import Hypergradient, HypergradientWarning
from needsaug_lite.methods.baselines.generative import Generative, Params, Views
from needsaug_lite.methods.baselines.supervised import accuracy
from needsaug_lite.methods.baselines.synthetic_images import (
    SYNTHETIC,
    SyntheticSettings,
)
from needsaug_lite.methods.meta_images import MetaImages
from needsaug_lite.models import Classifier, Finder, FinderKind, Generator

# The hypergradient carries ηλ as a factor and can fall below Adam's usual 1e-8, which
# would stop the finder (errata M2).
_ADAM_EPS = 1e-15


@dataclass(frozen=True)
class SearchSettings:
    """What the finder is, and how it learns.

    Attributes:
        kind: form of the finder, see `models.Finder`.
        width: of its layers.
        lr: ξ, rate of Adam.
        lambda_kl: λ_KL, weight of the divergence of F(z) from the prior.
        look_ahead: η of the virtual step; None: the network's rate of the epoch.
        radius: length of the move of the finite difference.

    Source: mgr Sec. 3.2 and 4.1; the width isn't given (errata M9).
    """

    kind: FinderKind = "residual"
    width: Annotated[int, Gt(0)] = 512
    lr: Annotated[float, Gt(0)] = 1e-4
    lambda_kl: Annotated[float, Ge(0)] = 0.01
    look_ahead: Annotated[float, Gt(0)] | None = None
    radius: Annotated[float, Gt(0)] = 0.01


SEARCH = SearchSettings()


class Searched(Generative):
    """A generative method in which a finder F moves the latent vectors.

    x_p = G(F(z), y_p),   F ← F - Adam(gradient of an objective of F)

    In every step F is improved first, then the network is trained on what the new F
    makes of the same z and y_p (errata M4). A subclass says what F is improved for.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        synthetic: SyntheticSettings = SYNTHETIC,
        search: SearchSettings = SEARCH,
        **common: Any,
    ) -> None:
        """Prepare the finder, which starts as the identity unless it is a plain MLP.

        Args:
            model, splits, generator, synthetic, common: see `Generative`.
            search: settings of the finder.
        """
        super().__init__(
            model, splits, generator=generator, synthetic=synthetic, **common
        )
        self.search = search
        device = splits.train.labels.device
        finder = Finder(self.generator.latent_dim, search.kind, search.width)
        self.finder = finder.to(device)
        self.outer_optimiser = torch.optim.Adam(
            self.searched(), lr=search.lr, eps=_ADAM_EPS, fused=True
        )

    def searched(self) -> list[Tensor]:
        """φ, what the outer level optimises."""
        return list(self.finder.parameters())

    def moved(self, latents: Tensor) -> Tensor:
        """F(z), shape (B_p, d)."""
        found: Tensor = self.finder(latents)
        return found

    @abstractmethod
    def search_gradients(
        self, real: Params, views: Views, labels: Tensor
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """How the objective of F changes with the views of the generated images.

        Args:
            real: gradient of the loss of the real batch by θ.
            views: of G(F(z), y), without a graph.
            labels: y.

        Returns:
            A derivative for every view, and values to log.
        """

    def improve(
        self, real: Params, latents: Tensor, labels: Tensor
    ) -> Mapping[str, Tensor]:
        """One update of F on a batch of latent vectors.

        By the chain rule the derivative by φ is that by the views, pulled back through
        T, G and F. Every objective is differentiated by the views alone, so that this
        way is gone once, whatever the objective costs.

        Returns:
            Values to log; the two gradients that F follows are measured at F(z).
        """
        moved = self.moved(latents)
        points = moved.detach().requires_grad_()
        views = self.views(self.generator.sample(points, labels))
        slopes, logged = self.search_gradients(real, detached(views), labels)
        (search,) = torch.autograd.grad(
            list(views.values()), points, [slopes[name] for name in views]
        )
        # mgr Eq. 11
        prior = self.search.lambda_kl * losses.kl_to_standard_normal(points)
        (held,) = torch.autograd.grad(prior, points)
        self.update(torch.autograd.grad(moved, self.searched(), search + held))
        return {
            **logged,
            "search_gradient": search.square().sum().sqrt(),
            "prior_gradient": held.square().sum().sqrt(),
        }

    def update(self, gradients: Sequence[Tensor]) -> None:
        """One step of Adam."""
        for value, gradient in zip(self.searched(), gradients, strict=True):
            value.grad = gradient
        self.outer_optimiser.step()

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Mgr Algorithm 1: the finder, then the network."""
        self.model.train()
        latents, labels = self.latents()
        # Lines 7 and 11 use the same real batch: its gradient is taken once.
        logits = self.model(batch.images)
        real = self.batch_loss(logits, batch)
        self.optimiser.zero_grad(set_to_none=True)
        real.backward()
        slopes = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in self.model.named_parameters()
        }
        draws = self.draw.get_state()
        logged = self.improve(slopes, latents, labels)
        # Lines 10 and 11: the same z, y and T with the new finder.
        self.draw.set_state(draws)
        with torch.no_grad():
            moved = self.moved(latents)
            views = self.views(self.generator.sample(moved, labels))
        made = self.add_synthetic_gradient(views, labels)
        self.optimiser.step()
        return {
            "loss": real.detach(),
            "accuracy": accuracy(logits, batch.labels),
            "synthetic_loss": made,
            "moved": (moved - latents).square().mean().sqrt(),
            **self.observed(),
            **logged,
        }

    def state_dict(self) -> dict[str, Any]:
        """Network and finder with their optimisers."""
        return {
            **super().state_dict(),
            "finder": self.finder.state_dict(),
            "outer_optimiser": self.outer_optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.finder.load_state_dict(state["finder"])
        self.outer_optimiser.load_state_dict(state["outer_optimiser"])


class MetaPseudoSampling(Searched):
    """The finder learns to lower the validation loss after one step of the network.

        θ'(φ) = θ - η ∇_θ( L(θ) + λ L_p(θ, φ) )                         (mgr Eq. 8)
        φ ← φ - Adam( -ηλ ∇²_{φ,θ} L_p ∇_θ' L_val(θ') + λ_KL ∇_φ D_KL )

    The factor -ηλ isn't printed in the paper, and Eq. 9 divides by another step than it
    takes; see errata M1 and M2. L_val is the cross-entropy of meta images, which the
    network itself never learns from (errata M3).

    Source: mgr Sec. 3.2.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        synthetic: SyntheticSettings = SYNTHETIC,
        search: SearchSettings = SEARCH,
        second_order: bool = False,
        **common: Any,
    ) -> None:
        """Prepare finder and meta images.

        Args:
            model, splits, generator, synthetic, search, common: see `Searched`;
                `splits.meta` is the validation set D_val of the paper.
            second_order: the exact mixed derivative in place of a finite difference.

        Raises:
            UserError: if there are no meta images.
        """
        super().__init__(
            model,
            splits,
            generator=generator,
            synthetic=synthetic,
            search=search,
            **common,
        )
        self.second_order = second_order
        self.meta = MetaImages(
            splits,
            synthetic.batch_size,
            self.normalisation,
            seed=self.batches.seed,
            steps=len(self.batches),
            purpose="the finder learns from meta images, which are held out",
        )

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Set the rates, and start the meta images of the epoch."""
        self.meta.begin_epoch(epoch)
        return super().begin_epoch(epoch)

    @property
    def look_ahead(self) -> float:
        """η of the virtual step."""
        rate: float = self.optimiser.param_groups[0]["lr"]
        return self.search.look_ahead or rate

    def hypergradient(
        self, real: Params, views: Views, labels: Tensor, clean: Batch
    ) -> Hypergradient:
        """Derivative of the validation loss after the virtual step, by the views.

        d/dv L_val(θ'(v)) = -ηλ ∇_v ⟨∇_θ L_p(θ, v), ∇_θ' L_val(θ')⟩

        Args:
            real: ∇_θ L(θ) of the real batch. L doesn't depend on φ: only this gradient
                of it enters Eq. 8, so that L is replaced by its tangent ⟨real, θ⟩.
            views: of the generated images, shape (B_p, channels, H, W) each.
            labels: y_p.
            clean: meta images.

        Returns:
            One entry for every view.
        """
        slope = parameters_to_vector(real.values())

        def inner_loss(params: Params, h: Views) -> Tensor:
            tangent = slope @ parameters_to_vector(params[name] for name in real)
            made = self.synthetic_loss(params, h, labels)
            return tangent + self.synthetic.strength * made

        def outer_loss(params: Params, h: Views) -> Tensor:
            return losses.cross_entropy(
                self.logits_with(params, clean.images), clean.labels
            )

        both = (inner_loss, outer_loss, self.parameters(), views)
        with warnings.catch_warnings():
            # Where T changes nothing, L_PCR has no slope, and rightly so.
            warnings.simplefilter("ignore", HypergradientWarning)
            if self.second_order:
                return hypergrad.unrolled(*both, lr=self.look_ahead)
            return hypergrad.finite_difference(
                *both, lr=self.look_ahead, radius=self.search.radius
            )

    def search_gradients(
        self, real: Params, views: Views, labels: Tensor
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Algorithm 1, lines 7 and 8."""
        estimate = self.hypergradient(real, views, labels, next(self.meta))
        return estimate, {"outer_loss": estimate.outer_loss}


def detached(views: Views) -> Views:
    """The same views without a graph."""
    return {name: view.detach() for name, view in views.items()}
