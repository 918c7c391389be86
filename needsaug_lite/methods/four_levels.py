"""The four levels of needs-aware generation as closures, and the gradient of A."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from needsaug_lite import hypergrad, losses
from needsaug_lite.data import Batch, Normalisation
from needsaug_lite.hypergrad import ChainHypergradient, Hypergradient, Level
from needsaug_lite.methods.budget import Portion, Weighting, weights
from needsaug_lite.methods.continued_gan import ContinuedGAN
from needsaug_lite.methods.shared_head import (
    HEAD,
    SMALLEST_NEED,
    Place,
    by_role,
    class_losses,
    copies,
    decay,
    features,
    held_out_logits,
    logits,
)
from needsaug_lite.models import Classifier

Need = Literal["loss", "error"]
# The five places of A: in the two validation losses, in the loss of W1, in the
# discriminator, in the loss of W2, and in the losses that the budget is divided by.
ROLES = ("outer", "W1", "H", "W2", "need")
# Ways from A to the validation loss: the levels passed, and the place of A they begin.
PATHS = {
    "direct": ("direct", "outer"),
    "W1": ("W1", "W1"),
    "W2": ("W2", "W2"),
    "need": ("W2", "need"),
    "W1_need": ("W1 -> W2", "W1"),
    "G": ("G -> W2", "H"),
}
Params = Mapping[str, Tensor]
Weights = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Drawn:
    """A part of the budget, and how its classes came about.

    Attributes:
        portion: latent vectors and labels.
        shares: q, from which the labels were drawn, shape (C,).
        temperature: T of a relaxed weight.
    """

    portion: Portion
    shares: Tensor
    temperature: float


@dataclass(frozen=True)
class Look:
    """What one update of A looks at.

    Attributes:
        batch: of D_tr.
        drawn: of the budget; None where λ is 0.
        fake: latent vectors (B, latent_dim) and labels (B,) of L_G; None where G
            doesn't learn.
        needs: of the half of D_val that needs are measured on.
        clean: of the half that A learns from.
    """

    batch: Batch
    drawn: Drawn | None
    fake: tuple[Tensor, Tensor] | None
    needs: Batch
    clean: Batch


@dataclass(frozen=True)
class FourLevels:
    """Stages I to IV of needs_aware as losses of weights and of copies of A.

    In every method `w` holds the weights of the levels by name, "W1", "G" and "W2", and
    `h` a copy of A for each of `ROLES`, see `shared_head.copies`.

    Attributes:
        first, model: W1 and W2, which share A.
        gan: generator and discriminator.
        normalisation: of the classifiers' images.
        strength, gamma, weighting, need, decorrelation: see `NeedsAware`.
        weight_decay: of W1 and W2.
        second_order, radius: how mixed derivatives are taken.
        place: which part of the classifiers A is.
    """

    first: Classifier
    model: Classifier
    gan: ContinuedGAN
    normalisation: Normalisation
    strength: float = 1.0
    gamma: float = 1.0
    weighting: Weighting = "score_ratio"
    need: Need = "loss"
    decorrelation: float = 0.0
    weight_decay: float = 0.0
    second_order: bool = False
    radius: float = 0.01
    place: Place = HEAD

    def first_loss(self, w: Weights, h: Params, look: Look) -> Tensor:
        """Stage I: L_cls(W1, A, D_tr)."""
        params = self.place.whole(w["W1"], by_role(h, "W1"))
        found = features(self.first, params, look.batch.images)
        fit = losses.cross_entropy(logits(self.first, params, found), look.batch.labels)
        return fit + decay(w["W1"], self.weight_decay)

    def second_loss(self, w: Weights, h: Params, look: Look) -> Tensor:
        """Stage III: L_cls(W2, A, D_tr) + λ L_a(W2, A, W1', G')."""
        params = self.place.whole(w["W2"], by_role(h, "W2"))
        found = features(self.model, params, look.batch.images)
        scores = logits(self.model, params, found)
        fit = losses.cross_entropy(scores, look.batch.labels)
        fit = fit + decay(w["W2"], self.weight_decay)
        if look.drawn is None:
            return fit
        portion = look.drawn.portion
        images = self.gan.sample(w["G"], portion.latents, portion.labels)
        found = features(self.model, params, self.normalisation.from_unit(images))
        shares = look.drawn.shares  # error rates have no gradient (errata N12)
        if self.need == "loss":
            shares = self.shares(w["W1"], by_role(h, "need"), look.needs)
        return fit + self.strength * self.synthetic_loss(
            found, params, shares, look.drawn
        )

    def outer_loss(self, w: Weights, h: Params, look: Look) -> Tensor:
        """Stage IV: L_cls(W2', A, D_val) + γ L_cls(W1', A, D_val)."""
        part, images = by_role(h, "outer"), look.clean.images
        second = self._held_out(self.model, w["W2"], part, images)
        first = self._held_out(self.first, w["W1"], part, images)
        probe = losses.cross_entropy(first, look.clean.labels)
        return losses.cross_entropy(second, look.clean.labels) + self.gamma * probe

    def _held_out(
        self, model: Classifier, weights: Params, part: Params, images: Tensor
    ) -> Tensor:
        params = self.place.whole(weights, part)
        return held_out_logits(
            model, params, images, own_moments=self.place.own_moments
        )

    def shares(self, first: Params, part: Params, needs: Batch) -> Tensor:
        """Eq. 3 at given W1 and A, shape (C,)."""
        scores = self._held_out(self.first, first, part, needs.images)
        found = class_losses(scores, needs.labels, scores.shape[1]) + SMALLEST_NEED
        return found / found.sum()

    def synthetic_loss(
        self, found: Tensor, params: Params, shares: Tensor, drawn: Drawn
    ) -> Tensor:
        """L_a of a portion from its features (B, D), and what holds these apart."""
        portion = drawn.portion
        scores = logits(self.model, params, found)
        each = losses.cross_entropy(scores, portion.labels, reduction="none")
        counted = weights(
            self.weighting, shares, drawn.shares, portion, drawn.temperature
        )
        loss = (counted * each).mean()
        if self.decorrelation:
            loss = loss + self.decorrelation * losses.decorrelation(found)
        return loss

    def hypergradient(
        self,
        look: Look,
        lr: float,
        generator_lr: float | None,
        *,
        paths: bool = True,
    ) -> ChainHypergradient:
        """DA by place of A and by path, with one look-ahead step of every level.

        Args:
            look: the batches.
            lr: η of W1 and W2.
            generator_lr: η_g; None leaves G as it is.
            paths: keep the paths apart; their sum alone is cheaper.

        Source: needs_aware Eq. 8 to 18, with the direct term (errata N1, N2).
        """
        fixed = self.gan.params()

        def bound(loss: Callable[[Weights, Params, Look], Tensor]) -> Any:
            return lambda w, h: loss(w, h, look)

        def second(w: Weights, h: Params) -> Tensor:
            return self.second_loss({"G": fixed, **w}, h, look)

        w1, w2 = self.place.weights(self.first), self.place.weights(self.model)
        levels = [Level("W1", bound(self.first_loss), w1, lr)]
        reads: dict[str, Any] = {"W1": "updated"} if self.strength else {}
        if generator_lr is not None:
            levels.append(Level("G", bound(self.generator_loss), fixed, generator_lr))
            reads["G"] = "updated"
        levels.append(Level("W2", second, w2, lr, reads))
        outer = bound(self.outer_loss)
        given = copies(self.place.part(self.model), ROLES)
        if self.second_order:
            return hypergrad.chain_exact(levels, outer, given, paths=paths)
        return hypergrad.chain(levels, outer, given, radius=self.radius, paths=paths)

    def partial(self, look: Look) -> Hypergradient:
        """∂/∂A of the validation losses at W1 and W2 as they are, by place of A.

        Only the place "outer" has one.

        Source: the first-order approximation of DARTS.
        """
        both = {"W1": self.first, "W2": self.model}
        # Detached: tied, a tensor of both levels would count as one given twice.
        flat = {
            f"{level}.{name}": value.detach()
            for level, network in both.items()
            for name, value in self.place.weights(network).items()
        }

        def outer(w: Params, h: Params) -> Tensor:
            return self.outer_loss(
                {level: by_role(w, level) for level in both}, h, look
            )

        given = copies(self.place.part(self.model), ROLES)
        return hypergrad.first_order(outer, flat, given)

    def total(self, estimate: Params) -> dict[str, Tensor]:
        """DA by the names of its part: the sum over its places."""
        parts = [by_role(estimate, role) for role in ROLES]
        return {n: torch.stack([p[n] for p in parts]).sum(0) for n in parts[0]}

    def generator_loss(self, w: Weights, h: Params, look: Look) -> Tensor:
        """Stage II: L_G(G, H, A), H held fixed."""
        assert look.fake is not None
        return self.gan.loss_at(w["G"], by_role(h, "H"), *look.fake)


def path_norms(
    estimate: ChainHypergradient, usual: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """‖path‖ of dA for every path of `PATHS`; 0 for one that isn't there.

    Args:
        estimate: by copies of A.
        usual: something of the right device and type for every name.
    """
    found = {}
    for name, (levels, role) in PATHS.items():
        parts = by_role(estimate.paths.get(levels, {}), role)
        squares = [part.square().sum() for part in parts.values()]
        zero = torch.zeros_like(usual[name])
        found[name] = torch.stack(squares).sum().sqrt() if squares else zero
    return found
