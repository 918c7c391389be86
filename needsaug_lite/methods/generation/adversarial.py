"""Four kinds of GAN: with labels, without, with a class head, and BigGAN."""

from __future__ import annotations

from typing import Annotated, cast

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from needsaug_lite import losses
from needsaug_lite.data import Splits
from needsaug_lite.methods.generation.adversarial_frame import (
    Adversarial,
    ImageGenerator,
    Shape,
)
from needsaug_lite.methods.generation.aids import top_k_index, top_k_scores
from needsaug_lite.models.biggan import BigGANGenerator, ProjectionDiscriminator
from needsaug_lite.models.gan import (
    AuxiliaryDiscriminator,
    ConvGenerator,
    LabelDiscriminator,
    UnconditionalDiscriminator,
)

# Odena et al. 2017, Sec. 3, adds both of its losses with weight 1.
CLASS_WEIGHT = 1.0


class ConditionalGAN(Adversarial):
    """The vanilla conditional GAN: both networks see the label.

    L_D = -E log σ(D(x, y)) - E log(1 - σ(D(x̃, y))),   L_G = -E log σ(D(x̃, y))
    x̃ = G(z, y)

    Source: Mirza and Osindero 2014, with the convolutions of Radford et al. 2016.
    """

    def make_generator(
        self, shape: Shape, classes: int, latent_dim: int, width: int
    ) -> ImageGenerator:
        """A convolutional generator with a label."""
        return ConvGenerator(shape, classes, latent_dim=latent_dim, width=width)

    def make_discriminator(self, shape: Shape, classes: int, width: int) -> nn.Module:
        """A discriminator that takes the label in beside the image."""
        return LabelDiscriminator(shape, classes, width)

    def discriminator_loss(self, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy of real against generated."""
        scores = (self.discriminator(images, labels) for images in (real, fake))
        return losses.binary_discriminator(*scores)

    def generator_loss(self, fake: Tensor, labels: Tensor, k: int) -> Tensor:
        """The non-saturating loss."""
        scores = self.discriminator(fake, labels)
        return losses.non_saturating_generator(top_k_scores(scores, k))


class UnconditionalGAN(ConditionalGAN):
    """A GAN without labels: its images belong to no class that it was asked for.

    Source: Goodfellow et al. 2014; Radford et al. 2016.
    """

    def make_generator(
        self, shape: Shape, classes: int, latent_dim: int, width: int
    ) -> ImageGenerator:
        """A convolutional generator without a label."""
        return ConvGenerator(
            shape, classes, latent_dim=latent_dim, width=width, conditional=False
        )

    def make_discriminator(self, shape: Shape, classes: int, width: int) -> nn.Module:
        """A discriminator that looks at the image alone."""
        return UnconditionalDiscriminator(shape, width)


class ACGAN(ConditionalGAN):
    """A GAN whose discriminator also says which class an image shows.

    L_D = L_S + L_C(x) + L_C(x̃),   L_G = -E log σ(D(x̃)) + L_C(x̃)
    L_S = binary cross-entropy of real and fake,   L_C = -E log P(y | x)

    Source: Odena et al. 2017, Eq. 2 and 3.
    """

    def make_discriminator(self, shape: Shape, classes: int, width: int) -> nn.Module:
        """A discriminator with a class head."""
        return AuxiliaryDiscriminator(shape, classes, width)

    def discriminator_loss(self, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        """Real or generated, and the class of both."""
        real_scores, real_logits = self._with_classes(real)
        fake_scores, fake_logits = self._with_classes(fake)
        adversarial = losses.binary_discriminator(real_scores, fake_scores)
        classes = cross_entropy(real_logits, labels) + cross_entropy(
            fake_logits, labels
        )
        return adversarial + CLASS_WEIGHT * classes

    def generator_loss(self, fake: Tensor, labels: Tensor, k: int) -> Tensor:
        """To look real and like the class, for the k that look most real."""
        scores, logits = self._with_classes(fake)
        best = top_k_index(scores, k)
        adversarial = losses.non_saturating_generator(scores[best])
        return adversarial + CLASS_WEIGHT * cross_entropy(logits[best], labels[best])

    def _with_classes(self, images: Tensor) -> tuple[Tensor, Tensor]:
        judge = cast(AuxiliaryDiscriminator, self.discriminator)
        return judge.scores_and_logits(images)


class BigGAN(Adversarial):
    """A small BigGAN: hinge loss, projection discriminator, averaged generator.

    L_D = E max(0, 1 - D(x, y)) + E max(0, 1 + D(G(z, y), y)),  L_G = -E D(G(z, y), y)

    Source: Brock et al. 2019; the CGAN of needs_aware Sec. 4 and mgr Table 2.
    """

    # Brock et al. 2019, App. C.
    betas = (0.0, 0.999)

    def __init__(
        self,
        splits: Splits,
        *,
        latent_dim: Annotated[int, Ge(4)] = 64,
        width: Annotated[int, Ge(8)] = 32,
        batch_size: Annotated[int, Ge(2)] = 64,
        lr: Annotated[float, Gt(0)] = 5e-4,
        discriminator_lr: Annotated[float, Gt(0)] = 1e-3,
        discriminator_steps: Annotated[int, Ge(1)] = 1,
        ema: Annotated[float, Ge(0), Lt(1)] = 0.99,
        diversity: Annotated[float, Ge(0)] = 0.1,
        top_k: Annotated[float, Gt(0), Le(1)] = 1.0,
        core_set: Annotated[int, Ge(1)] = 1,
        seed: int = 0,
    ) -> None:
        """Build the networks; the arguments are those of `Adversarial`."""
        super().__init__(
            splits,
            latent_dim=latent_dim,
            width=width,
            batch_size=batch_size,
            lr=lr,
            discriminator_lr=discriminator_lr,
            discriminator_steps=discriminator_steps,
            ema=ema,
            diversity=diversity,
            top_k=top_k,
            core_set=core_set,
            seed=seed,
        )

    def make_generator(
        self, shape: Shape, classes: int, latent_dim: int, width: int
    ) -> ImageGenerator:
        """A residual generator; z and label enter at every block."""
        return BigGANGenerator(shape, classes, latent_dim=latent_dim, width=width)

    def make_discriminator(self, shape: Shape, classes: int, width: int) -> nn.Module:
        """A residual discriminator with a projection on the class."""
        return ProjectionDiscriminator(shape, classes, width)

    def discriminator_loss(self, real: Tensor, fake: Tensor, labels: Tensor) -> Tensor:
        """The hinge loss of real against generated."""
        # Without batch norm, one pass of both is the same as two, and faster.
        scores = self.discriminator(torch.cat([real, fake]), labels.repeat(2))
        return losses.hinge_discriminator(*scores.chunk(2))

    def generator_loss(self, fake: Tensor, labels: Tensor, k: int) -> Tensor:
        """The hinge loss of the generator."""
        return losses.hinge_generator(top_k_scores(self.discriminator(fake, labels), k))
