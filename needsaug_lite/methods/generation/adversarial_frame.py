"""The frame in which a generator learns against a discriminator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from needsaug_lite.data import Batch, Batches, Normalisation, Splits, generator
from needsaug_lite.errors import UserError
from needsaug_lite.methods.endless import FixedSteps
from needsaug_lite.methods.generation.aids import (
    core_set,
    mode_seeking,
    projected,
    top_k_count,
)
from needsaug_lite.methods.generation.averages import MovingAverage
from needsaug_lite.methods.generation.lengths import STEPS_PER_EPOCH
from needsaug_lite.models.biggan import BigGANGenerator
from needsaug_lite.models.gan import ConvGenerator, start_and_doublings
from needsaug_lite.training import Stage

_DRAWS = 811
Shape = tuple[int, int, int]
ImageGenerator = ConvGenerator | BigGANGenerator


class Adversarial(ABC):
    """The frame of every GAN: the discriminator's steps, then one of the generator.

    Fake images carry the labels of the real ones beside them, so that the
    discriminator can't tell them apart by how often a class appears.

    Attributes:
        model: generator, discriminator, and the generator's running average.
        maker: the generator that learns, as `make_generator` returned it.
        discriminator: what `make_discriminator` returned.
    """

    version = 1
    # Radford et al. 2016, Sec. 4: a first moment of 0.9 made the training oscillate.
    betas = (0.5, 0.999)

    def __init__(
        self,
        splits: Splits,
        *,
        latent_dim: Annotated[int, Ge(1)] = 64,
        width: Annotated[int, Ge(8)] = 32,
        batch_size: Annotated[int, Ge(2)] = 64,
        lr: Annotated[float, Gt(0)] = 5e-4,
        discriminator_lr: Annotated[float, Gt(0)] = 5e-4,
        discriminator_steps: Annotated[int, Ge(1)] = 1,
        ema: Annotated[float, Ge(0), Lt(1)] = 0.99,
        diversity: Annotated[float, Ge(0)] = 0.1,
        top_k: Annotated[float, Gt(0), Le(1)] = 1.0,
        core_set: Annotated[int, Ge(1)] = 1,
        seed: int = 0,
    ) -> None:
        """Build the networks, from torch's global generator, and their optimisers.

        Args:
            splits: images of `train` are learned from, on the device of its labels.
            latent_dim: length of z.
            width: channels of the smallest map of both networks.
            batch_size: B, real images in a step of the discriminator, and fake ones.
            lr: Adam's learning rate for the generator. Both rates are our choice for
                small data; needs_aware Sec. 4 has 2e-4.
            discriminator_lr: Adam's learning rate for the discriminator.
            discriminator_steps: its updates for each of the generator.
            ema: share of the average that stays in a step; 0 is no average.
            diversity: weight of `aids.mode_seeking`, without which few images end in
                one image a class; no part of the published GANs, 0 leaves it out.
            top_k: ν, the share of fake images that the generator learns from in the
                end; see `aids.top_k_count`.
            core_set: how many times as many images and latent vectors are drawn as
                are used; see `aids.core_set`.
            seed: order of the images and latent vectors.

        Raises:
            UserError: if images of this shape can't be generated here.
        """
        shape, classes = splits.image_shape, splits.num_classes
        start_and_doublings(shape)
        _refuse_features(splits)
        device = splits.train.labels.device
        maker = self.make_generator(shape, classes, latent_dim, width).to(device)
        judge = self.make_discriminator(shape, classes, width).to(device)
        averaged = MovingAverage(maker, ema)
        self.model = nn.ModuleDict(
            {"generator": maker, "discriminator": judge, "averaged": averaged}
        )
        self.maker, self.discriminator, self._averaged = maker, judge, averaged
        self.generator_optimiser = torch.optim.Adam(
            maker.parameters(), lr, self.betas, fused=True
        )
        self.discriminator_optimiser = torch.optim.Adam(
            judge.parameters(), discriminator_lr, self.betas, fused=True
        )
        self.batch_size = batch_size
        self.discriminator_steps = discriminator_steps
        self.diversity = diversity
        self.top_k, self.core_set = top_k, core_set
        self.seed = seed
        half = (0.5,) * shape[0]
        batches = Batches(
            splits.train,
            batch_size * discriminator_steps * core_set,
            Normalisation(half, half),
            seed=seed,
        )
        self.batches = FixedSteps(batches, STEPS_PER_EPOCH)
        self.begin_epoch(0)

    @abstractmethod
    def make_generator(
        self, shape: Shape, classes: int, latent_dim: int, width: int
    ) -> ImageGenerator:
        """The generator, before it learned anything."""

    @abstractmethod
    def make_discriminator(self, shape: Shape, classes: int, width: int) -> nn.Module:
        """Its discriminator."""

    @abstractmethod
    def discriminator_loss(self, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        """What the discriminator minimises, from images of the same labels."""

    @abstractmethod
    def generator_loss(self, fake: Tensor, labels: Tensor, k: int) -> Tensor:
        """What the generator minimises on the k fake images that look most real."""

    @property
    def generator(self) -> ImageGenerator:
        """The averaged generator in evaluation mode, its weights without gradients."""
        return cast(ImageGenerator, self._averaged.module)

    def stages(self, epochs: int) -> Sequence[Stage]:
        """One stage of `epochs` epochs of `STEPS_PER_EPOCH` steps of the generator."""
        return [Stage("gan", epochs, self.batches, self.step, self.begin_epoch)]

    def begin_epoch(self, epoch: int) -> Mapping[str, float]:
        """Start the draws of an epoch."""
        self.epoch, self.steps_done = epoch, 0
        return {}

    def step(self, batch: Batch) -> Mapping[str, Tensor]:
        """Updates of the discriminator and one of the generator.

        The images of the last update of the discriminator serve the generator too:
        the judge has learned from them, and one pass less is needed.
        """
        draw = generator(self.seed, _DRAWS, self.epoch, self.steps_done)
        self.steps_done += 1
        self.maker.train()
        self.discriminator.train()
        images = batch.images.chunk(self.discriminator_steps)
        labels = batch.labels.chunk(self.discriminator_steps)
        for some, names in zip(images, labels, strict=True):
            real, chosen = self._covering(some, names)
            latents = self._latents(len(chosen), draw)
            fake = self.maker.symmetric(latents, chosen)
            judged = self.improve_discriminator(real, fake.detach(), chosen)
        k = top_k_count(len(chosen), self.top_k, self.epoch)
        made = self.maker_loss(latents, fake, chosen, k)
        descend(made, self.generator_optimiser)
        self._average()
        return {"loss": made.detach(), "discriminator_loss": judged.detach()}

    def improve_discriminator(
        self, real: Tensor, fake: Tensor, labels: Tensor
    ) -> Tensor:
        """One update of the discriminator; returns its loss.

        Args:
            real: images in [-1, 1], shape (B, channels, H, W).
            fake: images for the same labels, without a graph.
            labels: shape (B,).
        """
        judged = self.discriminator_loss(real, fake, labels)
        descend(judged, self.discriminator_optimiser)
        return judged

    def maker_loss(
        self, latents: Tensor, fake: Tensor, labels: Tensor, k: int
    ) -> Tensor:
        """What the generator minimises in all: `generator_loss`, and diversity.

        Args:
            latents: z, shape (B, latent_dim).
            fake: its images for these, in [-1, 1].
            labels: shape (B,).
            k: how many of them count.
        """
        made = self.generator_loss(fake, labels, k)
        if self.diversity:
            made = made + self.diversity * mode_seeking(latents, fake, labels)
        return made

    def _latents(self, count: int, draw: torch.Generator) -> Tensor:
        """z, shape (count, latent_dim): a core set of more, if asked for."""
        latents = self.maker.noise(count * self.core_set, draw)
        return latents if self.core_set == 1 else latents[core_set(latents, count)]

    def _covering(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The real images of a step: a core set of those drawn, if asked for."""
        if self.core_set == 1:
            return images, labels
        count = -(-len(labels) // self.core_set)
        index = core_set(projected(images), count)
        return images[index], labels[index]

    def _average(self) -> None:
        """Move the average; its spectral norms are those of its own weights."""
        self._averaged.update_parameters(self.maker)
        # Averages of unit vectors are shorter than 1.
        renew_norms(self._averaged)

    def state_dict(self) -> dict[str, Any]:
        """Networks and optimisers."""
        return {
            "model": self.model.state_dict(),
            "generator_optimiser": self.generator_optimiser.state_dict(),
            "discriminator_optimiser": self.discriminator_optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.generator_optimiser.load_state_dict(state["generator_optimiser"])
        self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])


def descend(loss: Tensor, *optimisers: torch.optim.Optimizer) -> None:
    """One update of what the optimisers hold; nothing else gets a gradient."""
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for optimiser in optimisers:
        optimiser.step()


def renew_norms(network: nn.Module) -> None:
    """One power iteration for the spectral norms of a network in evaluation mode."""
    with torch.no_grad():
        for layer in network.modules():
            if is_parametrized(layer, "weight"):
                layer.train()
                _ = layer.weight
                layer.eval()


def _refuse_features(splits: Splits) -> None:
    """Floats are features, whatever their shape; images are bytes."""
    (first,) = splits.train.images.stream([torch.zeros(1, dtype=torch.int64)])
    if first.is_floating_point():
        raise UserError(
            "these images are features already; a generator of images needs pixels"
        )
