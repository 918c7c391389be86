"""A classifier and a generator that minimise one sum of losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Batch, Normalisation, Splits
from needsaug_lite.methods.baselines.supervised import Supervised, accuracy
from needsaug_lite.methods.baselines.synthetic_images import check_generator
from needsaug_lite.methods.budget import Budget
from needsaug_lite.methods.continued_gan import ContinuedGAN
from needsaug_lite.methods.generation.adversarial_frame import (
    Adversarial,
    descend,
    renew_norms,
)
from needsaug_lite.models import Classifier, Generator, unrecorded


class Joint(Supervised):
    """Multi-task learning of W2 and G, without needs and without an upper level.

        min_{W2, G}  L_cls(W2, D_tr) + λ L_cls(W2, G(z, o)) + w L_G(G, H)
        H minimises L_H; of every class equally many images, M in an epoch

    W2 moves by SGD, G by Adam. The paper doesn't say which classes are generated, nor
    the weights.

    Source: "MTL" of needs_aware Sec. 4.1.
    """

    needs_adversary = True

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        gan: Adversarial,
        budget: Annotated[int, Gt(0)] | None = None,
        strength: Annotated[float, Ge(0)] = 1.0,
        adversarial_strength: Annotated[float, Ge(0)] = 1.0,
        generator_lr: Annotated[float, Gt(0)] = 2e-4,
        discriminator_lr: Annotated[float, Gt(0)] = 2e-4,
        normalisation: Normalisation | None = None,
        **common: Any,
    ) -> None:
        """Prepare classifier and GAN.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from.
            gan: pretrained on no other images than those of `train`; trained on.
            budget: M; None: as many as training images.
            strength: λ.
            adversarial_strength: w.
            generator_lr, discriminator_lr: of Adam for G and H.
            normalisation: default: moments of the training images.
            common: see `Supervised`.
        """
        check_generator(gan.generator, splits)
        normal = normalisation or Normalisation.of(splits)
        super().__init__(model, splits, normalisation=normal, **common)
        self.normalisation = normal
        self.strength, self.adversarial_strength = strength, adversarial_strength
        steps = len(self.batches)
        self.gan = ContinuedGAN(
            gan, lr=generator_lr, discriminator_lr=discriminator_lr, steps=steps
        )
        self.budget = Budget(
            budget or len(splits.train),
            steps,
            splits.num_classes,
            self.gan.generator.latent_dim,
            seed=self.batches.seed,
            device=splits.train.labels.device,
        )

    @property
    def generator(self) -> Generator:
        """G as it is now."""
        return self.gan.generator

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Start the budget and the draws of the epoch."""
        self.gan.begin_epoch(epoch)
        self.budget.share(epoch, torch.ones(len(self.counts)) / len(self.counts))
        return super().begin_epoch(epoch)

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """One update of H, then of W2 and G together."""
        portion = next(self.budget)
        real, latents = self.gan.next_real()
        self.gan.improve_discriminator(real, latents)
        self.model.train()
        scores = self.model(batch.images)
        fit = self.batch_loss(scores, batch)
        images = self.generator.sample(portion.latents, portion.labels)
        with unrecorded(self.model):
            found = self.model(self.normalisation.from_unit(images))
        made = losses.cross_entropy(found, portion.labels)
        judged = self.gan.current_loss(latents, real.labels)
        total = fit + self.strength * made + self.adversarial_strength * judged
        descend(total, self.optimiser, self.gan.optimiser)
        renew_norms(self.generator)
        return {
            "loss": fit.detach(),
            "accuracy": accuracy(scores, batch.labels),
            "synthetic_loss": made.detach(),
            "generator_loss": judged.detach(),
        }

    def allocation_summary(self) -> dict[str, Any]:
        """What the budget went to, by class."""
        return {"budget": self.budget.images, "images": self.budget.counts.tolist()}

    def state_dict(self) -> dict[str, Any]:
        """Classifier, GAN and optimisers."""
        return {
            **super().state_dict(),
            "gan": self.gan.state_dict(),
            "counts": self.budget.counts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.gan.load_state_dict(state["gan"])
        self.budget.counts = state["counts"].cpu()
