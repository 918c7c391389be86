"""A pretrained GAN that goes on learning beside classifiers, or shares with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

from needsaug_lite.data import Batch, Batches, generator
from needsaug_lite.errors import UserError
from needsaug_lite.methods.endless import Endless
from needsaug_lite.methods.generation.adversarial_frame import (
    Adversarial,
    renew_norms,
)
from needsaug_lite.models import unrecorded

_DRAWS = 741
# Of the discriminator: what D(x, y) multiplies the features of x with, for class y.
_PROJECTION = "projection.parametrizations.weight.original"

Params = Mapping[str, Tensor]


class ContinuedGAN:
    """Generator G and discriminator H after their pretraining.

    G starts from its running average and stays in evaluation mode: an image doesn't
    depend on which classes are drawn beside it, and their mixture changes with the
    needs. Only its spectral norms follow its weights.

    With a shared A the class vectors of H are A, divided by its spectral norm as
    those it was pretrained with: H(x, y) = wᵀφ(x) + b + ⟨a_y, φ(x)⟩ / ‖A‖. H doesn't
    train A.

    Source: needs_aware Sec. 3.1, Stage II; errata N1, N5, N16.
    """

    def __init__(
        self,
        gan: Adversarial,
        *,
        lr: float,
        discriminator_lr: float,
        steps: int,
        shared: nn.Parameter | None = None,
    ) -> None:
        """Take over the networks, which are changed in place.

        Args:
            gan: pretrained; its batches go on.
            lr, discriminator_lr: of Adam for G and H.
            steps: of an epoch.
            shared: A, shape (C, D); None leaves H its own class vectors.

        Raises:
            UserError: if A can't be shared with this discriminator, or G knows no
                classes.
        """
        if not gan.maker.conditional:
            raise UserError(
                "images are asked for by their class, and an unconditional generator "
                "knows none; take biggan, cgan or acgan"
            )
        self.gan = gan
        self.generator = gan.maker
        self.generator.load_state_dict(gan.generator.state_dict())
        self.generator.eval().requires_grad_(True)
        self.shared = shared is not None
        judge = gan.discriminator
        own = list(judge.parameters())
        if shared is not None:
            place = class_vectors(gan)
            if place is None or place.shape != shared.shape:
                raise UserError(_mismatch(place, shared))
            layer: Any = judge.projection
            own = [one for one in own if one is not place]
            layer.parametrizations.weight.original = shared
        betas = gan.betas
        self.optimiser = torch.optim.Adam(
            self.generator.parameters(), lr, betas, fused=True
        )
        gan.discriminator_optimiser = torch.optim.Adam(
            own, discriminator_lr, betas, fused=True
        )
        self._objective = _Objective(gan)
        source = gan.batches.batches
        self._real = Endless(
            Batches(
                source.examples,
                min(gan.batch_size, len(source.examples)),
                source.normalisation,
                seed=source.seed,
            ),
            steps,
        )
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Start the draws and real images of an epoch."""
        self._real.begin_epoch(epoch)
        self._draw = generator(self.gan.seed, _DRAWS, epoch)

    def next_real(self) -> tuple[Batch, Tensor]:
        """Real images in [-1, 1], and latent vectors for fake ones of their labels."""
        real = next(self._real)
        return real, self.generator.noise(len(real), self._draw)

    def params(self) -> dict[str, Tensor]:
        """Weights of G by name."""
        return dict(self.generator.named_parameters())

    def sample(self, params: Params, latents: Tensor, labels: Tensor) -> Tensor:
        """Images in [0, 1] under given weights of G."""
        images: Tensor = functional_call(
            self.generator, dict(params), (latents, labels)
        )
        return images

    def generator_loss(
        self, params: Params, class_vectors: Tensor, latents: Tensor, labels: Tensor
    ) -> Tensor:
        """L_G as a function of the weights of G and of A, H held fixed.

        Args:
            params: weights of G.
            class_vectors: A, shape (C, D); not looked at where A isn't shared.
            latents: z, shape (B, latent_dim).
            labels: shape (B,).
        """
        judge = {_PROJECTION: class_vectors} if self.shared else {}
        return self.loss_under(params, judge, latents, labels)

    def loss_at(
        self, params: Params, part: Params, latents: Tensor, labels: Tensor
    ) -> Tensor:
        """L_G as a function of the weights of G and of A, by the names of its part.

        Arguments otherwise as for `generator_loss`.
        """
        if not self.shared:
            return self.loss_under(params, {}, latents, labels)
        return self.generator_loss(params, part["weight"], latents, labels)

    def loss_under(
        self, params: Params, judge: Params, latents: Tensor, labels: Tensor
    ) -> Tensor:
        """L_G under given weights of G, and given ones of H by its names."""
        given = {f"generator.{name}": value for name, value in params.items()}
        given |= {f"discriminator.{name}": value for name, value in judge.items()}
        _judge(self.gan.discriminator)
        with unrecorded(self.gan.discriminator):
            found: Tensor = functional_call(self._objective, given, (latents, labels))
        return found

    def improve_generator(self, gradients: Params) -> None:
        """One step of Adam for G.

        Args:
            gradients: of L_G, by the names of `params`.
        """
        for name, value in self.generator.named_parameters():
            value.grad = gradients[name]
        self.optimiser.step()
        renew_norms(self.generator)

    def current_loss(self, latents: Tensor, labels: Tensor) -> Tensor:
        """L_G with all weights as they are, a scalar with its graph."""
        _judge(self.gan.discriminator)
        with unrecorded(self.gan.discriminator):
            loss: Tensor = self._objective(latents, labels)
        return loss

    def improve_discriminator(self, real: Batch, latents: Tensor) -> Tensor:
        """One step of Adam for H; returns L_H before it, detached."""
        self.gan.discriminator.train()
        with torch.no_grad():
            fake = self.generator.symmetric(latents, real.labels)
        judged = self.gan.improve_discriminator(real.images, fake, real.labels)
        return judged.detach()

    def state_dict(self) -> dict[str, Any]:
        """Both networks and optimisers."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.gan.discriminator.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "discriminator_optimiser": self.gan.discriminator_optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.generator.load_state_dict(state["generator"])
        self.gan.discriminator.load_state_dict(state["discriminator"])
        self.optimiser.load_state_dict(state["optimiser"])
        saved = state["discriminator_optimiser"]
        self.gan.discriminator_optimiser.load_state_dict(saved)


class _Objective(nn.Module):
    """L_G as a module, so that weights of both networks can be put in its place."""

    def __init__(self, gan: Adversarial) -> None:
        super().__init__()
        self.generator, self.discriminator = gan.maker, gan.discriminator
        self._loss = gan.maker_loss

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        fake = self.generator.symmetric(latents, labels)
        return self._loss(latents, fake, labels, len(labels))


def class_vectors(gan: Adversarial) -> nn.Parameter | None:
    """What a projection discriminator multiplies features with, (C, D), or None."""
    layer = getattr(gan.discriminator, "projection", None)
    if layer is None or not is_parametrized(layer, "weight"):
        return None
    place: nn.Parameter = layer.parametrizations.weight.original
    return place


def _judge(discriminator: nn.Module) -> None:
    """Batches are normalised by themselves; spectral norms stay as they are."""
    discriminator.eval()
    for layer in discriminator.modules():
        if isinstance(layer, _NormBase):
            layer.train()


def _mismatch(place: nn.Parameter | None, shared: nn.Parameter) -> str:
    if place is None:
        return (
            "this discriminator has no class vectors that a classifier's head could be "
            "shared with; take the generator biggan, or shared=False"
        )
    return (
        f"the head of the classifier is {tuple(shared.shape)}, the discriminator's "
        f"class vectors are {tuple(place.shape)} (classes, features); train the "
        f"generator with width {shared.shape[1]}, or take shared=False"
    )
