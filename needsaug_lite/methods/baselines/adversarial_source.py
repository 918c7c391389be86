"""A source of features that learns against a discriminator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from needsaug_lite import losses
from needsaug_lite.data import Splits
from needsaug_lite.methods.baselines.feature_oversampling import (
    FeatureOversampling,
    OversamplingSettings,
)
from needsaug_lite.models import Classifier, ConditionalDiscriminator


class AdversarialSource(FeatureOversampling, ABC):
    """The frame of methods whose features come from a generator with a judge.

    Attributes:
        source: the generator.
        discriminator: scores (B,) of features (B, D) and labels (B,).
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        source: nn.Module,
        phase2: OversamplingSettings,
        **common: Any,
    ) -> None:
        """Prepare the discriminator and the optimisers.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is learned from.
            source: the generator.
            phase2: settings of the second phase.
            common: see `ContrastiveTraining`.
        """
        super().__init__(model, splits, phase2=phase2, **common)
        self.source = source.to(self.device)
        self.discriminator = ConditionalDiscriminator(
            splits.num_classes, model.feature_dim
        ).to(self.device)
        self.source_optimiser = phase2.adversarial_optimiser(self.source)
        self.discriminator_optimiser = phase2.adversarial_optimiser(self.discriminator)

    def train_source(self) -> Mapping[str, Tensor]:
        """One update of the discriminator, then one of the generator.

        All classes are as likely here, because the generator has to serve each of them
        (facog Sec. 3.4, "Label Selection").
        """
        size = self.phase2.batch_size
        chosen = torch.randint(self.num_classes, (size,), generator=self.draw)
        real = self.dictionary.sample(chosen, 1, self.draw, self.device).squeeze(1)
        return self.play(chosen, real)

    @abstractmethod
    def play(self, chosen: Tensor, real: Tensor) -> Mapping[str, Tensor]:
        """One update of both; what to log.

        Args:
            chosen: labels, int64, shape (B,), on the CPU.
            real: a real feature of each of these classes, shape (B, D).
        """

    def train_discriminator(self, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        """One update on real and generated features (B, D) of the same labels.

        Returns:
            Its loss before the update, a scalar.
        """
        loss = losses.least_squares_discriminator(
            self.discriminator(real, labels), self.discriminator(fake.detach(), labels)
        )
        descend_alone(loss, self.discriminator, self.discriminator_optimiser)
        return loss.detach()

    def train_generator(self, loss: Tensor) -> None:
        """One update of the generator; discriminator and classifier stay."""
        descend_alone(loss, self.source, self.source_optimiser)

    def source_networks(self) -> Mapping[str, nn.Module | torch.optim.Optimizer]:
        """Generator, discriminator and their optimisers."""
        return {
            "source": self.source,
            "source_optimiser": self.source_optimiser,
            "discriminator": self.discriminator,
            "discriminator_optimiser": self.discriminator_optimiser,
        }


def descend_alone(
    loss: Tensor, network: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """One update of `network`; no other network that the loss went through is touched.

    Args:
        loss: a scalar.
        network: what is updated.
        optimiser: of its parameters.
    """
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimiser.step()
