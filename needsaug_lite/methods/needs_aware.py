"""Needs-aware generation: classifiers, budget and generator learned as four levels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Batch, Normalisation, Splits
from needsaug_lite.hypergrad import HypergradientWarning
from needsaug_lite.methods.baselines.supervised import accuracy
from needsaug_lite.methods.baselines.synthetic_images import check_generator
from needsaug_lite.methods.budget import (
    Budget,
    Portion,
    Weighting,
    temperature,
    weights,
)
from needsaug_lite.methods.continued_gan import ContinuedGAN, class_vectors
from needsaug_lite.methods.four_levels import (
    Drawn,
    FourLevels,
    Look,
    Need,
    path_norms,
)
from needsaug_lite.methods.generation.adversarial_frame import Adversarial, descend
from needsaug_lite.methods.needs_account import NeedsAccount
from needsaug_lite.methods.shared_head import (
    HEAD,
    HeldOut,
    first_classifier,
    head_weight,
    measured_shares,
    neck,
)
from needsaug_lite.models import Classifier, unrecorded


class NeedsAware(NeedsAccount):
    """Four levels, solved by one step each (Gala and Xie 2024).

        I    W1' = W1 - η ∇ L_cls(W1, A, D_tr)                            (Eq. 8)
        II   G'  = G - η_g ∇ L_G(G, H, A, D_tr);   H by L_H               (Eq. 9, 10)
        III  p_c ∝ l_c(W1', A, D_val),   o_m ~ p,   x̂_m = G'(z_m, o_m)    (Eq. 3)
             W2' = W2 - η ∇ (L_cls(W2, A, D_tr) + λ L_a(W2, A, W1', G'))  (Eq. 11)
        IV   A <- A - Adam(∇_A (L_cls(W2', A, D_val) + γ L_cls(W1', A, D_val)))

    A is the head of both classifiers, and with `shared` the class vectors of the
    discriminator. W1 and W2 are encoders. L_a = mean of b_m ℓ(W2, A, x̂_m, o_m), see
    `budget.weights`. The primed weights are a look ahead: after the step of A, G takes
    one step of Adam with the gradient of stage II, then H one of Adam, W1 and W2 one of
    `Optimisation`, with the new A (errata N7). Between two updates of A and G there are
    `interval` - 1 steps of the others.

    `model` is W2 with A. Generated images go through W2 by themselves, and leave no
    trace in the running moments of batch norm, as in `Generative`.

    Source: needs_aware Sec. 3, App. A, with errata N1 to N10.
    """

    needs_adversary = True
    place = HEAD
    # Of Adam for A.
    meta_betas = (0.9, 0.999)
    # Whether the paths are taken apart once an epoch.
    measured = True

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        gan: Adversarial,
        budget: Annotated[int, Gt(0)] | None = None,
        strength: Annotated[float, Ge(0)] = 1.0,
        gamma: Annotated[float, Ge(0)] = 1.0,
        weighting: Weighting = "score_ratio",
        need: Need = "loss",
        separate_halves: bool = True,
        shared: bool = True,
        train_generator: bool = True,
        interval: Annotated[int, Gt(0)] = 1,
        tied: bool = False,
        decorrelation: Annotated[float, Ge(0)] = 0.0,
        meta_lr: Annotated[float, Gt(0)] = 0.006,
        meta_decay: Annotated[float, Ge(0)] = 1e-3,
        generator_lr: Annotated[float, Gt(0)] = 2e-4,
        discriminator_lr: Annotated[float, Gt(0)] = 2e-4,
        second_order: bool = False,
        radius: Annotated[float, Gt(0)] = 0.01,
        normalisation: Normalisation | None = None,
        **common: Any,
    ) -> None:
        """Prepare classifiers, GAN, budget and held-out images.

        Args:
            model: W2 and A, trained in place, on the device of `splits`. Where the
                class vectors of `gan` have the shape of A, A starts from them.
            splits: `train` is D_tr, `meta` is D_val.
            gan: pretrained on no other images than those of `train`; trained on.
            budget: M, generated images of an epoch; None: as many as training images.
            strength: λ; 0 leaves out stages II and III.
            gamma: γ, weight of W1 in the validation loss.
            weighting: how L_a carries the gradient by p, see `budget.weights`.
            need: what the budget of an epoch is divided by, validation loss or error
                rate; the latter has no gradient (errata N12).
            separate_halves: measure needs and train A on different halves of D_val
                (errata N10).
            shared: put A into the discriminator, see `ContinuedGAN`.
            train_generator: False keeps G as it was pretrained ("Separate").
            interval: steps for each update of A and G (Sec. 3.2 has 8).
            tied: W1 and W2 share the encoder, see `first_classifier`.
            decorrelation: weight of `losses.decorrelation` on the features of generated
                images (Sec. 3.2, without its weight).
            meta_lr, meta_decay: of Adam for A (Table 14).
            generator_lr, discriminator_lr: of Adam for G and H (Sec. 4).
            second_order: exact mixed derivatives in place of finite differences.
            radius: length of the move of a finite difference.
            normalisation: default: moments of the training images.
            common: see `Supervised`.

        Raises:
            UserError: if there are too few meta images or generated ones, or A can't be
                shared with this GAN.
        """
        check_generator(gan.generator, splits)
        normal = normalisation or Normalisation.of(splits)
        super().__init__(model, splits, normalisation=normal, **common)
        self.normalisation = normal
        self.strength, self.weighting, self.need = strength, weighting, need
        self.interval, self.tied = interval, tied
        steps, seed = len(self.batches), self.batches.seed
        self.first = self.first_network(model)
        self.held_out = HeldOut(
            splits,
            self.optimisation.batch_size,
            normal,
            separate=separate_halves,
            seed=seed,
            steps=steps,
        )
        rates = {"lr": generator_lr, "discriminator_lr": discriminator_lr}
        self.gan = self.adversary(gan, shared=shared, steps=steps, **rates)
        self.moves_generator = train_generator and strength > 0
        self.levels = FourLevels(
            self.first,
            model,
            self.gan,
            normal,
            strength=strength,
            gamma=gamma,
            weighting=weighting,
            need=need,
            decorrelation=decorrelation,
            weight_decay=self.optimisation.weight_decay,
            second_order=second_order,
            radius=radius,
            place=self.place,
        )
        self.budget = Budget(
            budget or len(splits.train),
            steps,
            splits.num_classes,
            self.gan.generator.latent_dim,
            seed=seed,
            device=splits.train.labels.device,
        )
        weights = [self.place.weights(one) for one in (model, self.first)]
        # Tied, some are in both.
        unique = dict.fromkeys(value for part in weights for value in part.values())
        self.optimiser = self.optimisation.optimiser(unique)
        self.meta_optimiser = torch.optim.Adam(
            self.place.part(model).parameters(),
            meta_lr,
            self.meta_betas,
            weight_decay=meta_decay,
        )
        self.open_account(splits)
        self.moving = True  # A and G; False in a warm-up

    def first_network(self, model: Classifier) -> Classifier:
        """W1 beside W2."""
        return first_classifier(model, tied=self.tied)

    def adversary(
        self, gan: Adversarial, *, shared: bool, **settings: Any
    ) -> ContinuedGAN:
        """Generator and discriminator, with A in it if that is `shared`."""
        _start_from(gan, self.model)
        place = head_weight(self.model) if shared else None
        return ContinuedGAN(gan, shared=place, **settings)

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Measure the needs, and draw the budget of the epoch (Eq. 3)."""
        self.held_out.begin_epoch(epoch)
        self.gan.begin_epoch(epoch)
        self.temperature = temperature(epoch, self.epochs)
        self.measuring = self.measured
        if self.strength:
            held = self.held_out.needs
            by_loss, by_error = measured_shares(self.first, held, self.normalisation)
            self.drawn_from = by_loss if self.need == "loss" else by_error
            self.error_shares = by_error
            self.budget.draw(epoch, self.drawn_from, self.weighting)
        return super().begin_epoch(epoch)

    def improve_head(self, look: Look) -> Mapping[str, Tensor]:
        """Stage IV: one step of Adam for A.

        Once an epoch the paths are measured too, with exact derivatives: on networks
        with kinks a finite difference tells nothing of the shortest ones.

        Returns:
            ∇_G L_G before the step; empty where G doesn't learn.
        """
        lr: float = self.optimiser.param_groups[0]["lr"]
        moves = self.moves_generator
        rates = lr, self.gan.optimiser.param_groups[0]["lr"] if moves else None
        with warnings.catch_warnings():
            # Fitted images leave nothing to learn from, and rightly so.
            warnings.simplefilter("ignore", HypergradientWarning)
            if self.measuring:
                exact = replace(self.levels, second_order=True)
                self.norms = path_norms(exact.hypergradient(look, *rates), self.norms)
                self.measuring = False
            estimate = self.levels.hypergradient(look, *rates, paths=False)
        self.step_of_part(estimate, estimate.outer_loss)
        return estimate.gradients.get("G", {})

    def step_of_part(self, by_copies: Mapping[str, Tensor], value: Tensor) -> None:
        """One step of Adam for A.

        Args:
            by_copies: DA by copies of A.
            value: the validation loss.
        """
        total = self.levels.total(by_copies)
        for name, parameter in self.place.part(self.model).named_parameters():
            parameter.grad = total[name]
        self.meta_optimiser.step()
        self.outer_value = value

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Algorithm 1: A by the four levels, then each of the others."""
        drawn, fake = None, None
        if self.strength:
            drawn = Drawn(next(self.budget), self.drawn_from, self.temperature)
        if self.moves_generator:
            real, latents = self.gan.next_real()
            fake = (latents, real.labels)
        if self.moving and self.steps_done % self.interval == 0:
            needs, clean = self.held_out.next_needs(), self.held_out.next_learned()
            slopes = self.improve_head(Look(batch, drawn, fake, needs, clean))
            if fake is not None:
                self.gan.improve_generator(slopes)
        if fake is not None:
            self.improve_judge(real, latents)
        self.steps_done += 1
        logged = self.improve_encoders(batch, drawn)
        norms = {f"path_{name}": norm for name, norm in self.norms.items()}
        return {**logged, "outer_loss": self.outer_value, **norms}

    def improve_judge(self, real: Batch, latents: Tensor) -> None:
        """Stage II: one step of Adam for H."""
        self.gan.improve_discriminator(real, latents)

    def improve_encoders(
        self, batch: Batch, drawn: Drawn | None
    ) -> Mapping[str, Tensor]:
        """One step of W1 and W2 on their losses, with A as it is."""
        self.model.train()
        self.first.train()
        found = self.model.features(batch.images)
        scores = self.model.head(found)
        fit = losses.cross_entropy(scores, batch.labels)
        first = self.first_features(found) if self.tied else None
        if first is None:
            first = self.first.features(batch.images)
        total = fit + losses.cross_entropy(self.first.head(first), batch.labels)
        made = torch.zeros_like(fit)
        if drawn is not None:
            invented = self.invented(drawn.portion)
            made = self.made_loss(drawn, invented)
            total = total + self.judged_loss(found, batch, drawn, invented)
        descend(total + self.strength * made, *self.movers())
        return {
            "loss": fit.detach(),
            "accuracy": accuracy(scores, batch.labels),
            "synthetic_loss": made.detach(),
        }

    def first_features(self, found: Tensor) -> Tensor:
        """Features of a tied W1 from those of W2, (B, D)."""
        after: Tensor = neck(self.first)(found)
        return after

    def invented(self, portion: Portion) -> Tensor:
        """Features under W2 of images of G as it is, (B, D)."""
        with torch.no_grad():
            images = self.generator.sample(portion.latents, portion.labels)
        with unrecorded(self.model):
            return self.model.features(self.normalisation.from_unit(images))

    def made_loss(self, drawn: Drawn, found: Tensor) -> Tensor:
        """L_a of generated images, with the shares that the epoch began with."""
        portion = drawn.portion
        with torch.no_grad():
            counted = weights(
                self.weighting, drawn.shares, drawn.shares, portion, drawn.temperature
            )
            self.weight_mass.index_add_(0, portion.labels, counted)
        params = dict(self.model.named_parameters())
        return self.levels.synthetic_loss(found, params, drawn.shares, drawn)

    def judged_loss(
        self, found: Tensor, batch: Batch, drawn: Drawn, invented: Tensor
    ) -> Tensor:
        """What else moves the encoder of W2: nothing, H has one of its own."""
        return torch.zeros_like(found[0, 0])

    def movers(self) -> tuple[torch.optim.Optimizer, ...]:
        """What takes a step on the losses of W1 and W2."""
        return (self.optimiser,)


def _start_from(gan: Adversarial, model: Classifier) -> None:
    """A starts from the class vectors of the discriminator, where they fit."""
    start, weight = class_vectors(gan), head_weight(model)
    if start is not None and start.shape == weight.shape:
        with torch.no_grad():
            weight.copy_(start)
