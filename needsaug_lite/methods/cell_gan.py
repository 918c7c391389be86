"""A pretrained generator that goes on learning against a discriminator of cells."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from needsaug_lite.methods.continued_gan import ContinuedGAN
from needsaug_lite.methods.generation.adversarial_frame import Adversarial
from needsaug_lite.models.cell_discriminator import CellDiscriminator

Params = Mapping[str, Tensor]
ARCHITECTURE = "backbone.architecture"


class CellGAN(ContinuedGAN):
    """Generator G, and a discriminator H that begins anew and is made of A.

    H(x, y) = wᵀφ(x; A) + b + ⟨v_y, φ(x; A)⟩

    A convolutional G was pretrained against another H, because cells that hold every
    operation are slow; the new one catches up while A and G rest, in the warm-up of
    the search. H doesn't train A. The paper doesn't say how its H begins.

    Source: needs_aware Sec. 4.2, "the shared learnable architecture of the two
    classifiers and the CGAN's discriminator".
    """

    def __init__(
        self,
        gan: Adversarial,
        *,
        judge: CellDiscriminator,
        lr: float,
        discriminator_lr: float,
        steps: int,
        tied: bool,
    ) -> None:
        """Put the new discriminator in its place.

        Args:
            gan: pretrained.
            judge: the discriminator.
            lr, discriminator_lr: of Adam for G and H.
            steps: of an epoch.
            tied: the encoder of `judge` is trained elsewhere; Adam moves w, b and v.
        """
        place = next(gan.maker.parameters()).device
        gan.discriminator = gan.model["discriminator"] = judge.to(place)
        super().__init__(gan, lr=lr, discriminator_lr=discriminator_lr, steps=steps)
        self.shared = True
        left_out = judge.backbone if tied else judge.get_submodule(ARCHITECTURE)
        others = set(left_out.parameters())
        own = [one for one in judge.parameters() if one not in others]
        self.judge = judge
        self.gan.discriminator_optimiser = torch.optim.Adam(
            own, discriminator_lr, gan.betas, fused=True
        )

    def loss_at(
        self, params: Params, part: Params, latents: Tensor, labels: Tensor
    ) -> Tensor:
        """L_G as a function of the weights of G and of A, H held fixed."""
        judge = {f"{ARCHITECTURE}.{name}": value for name, value in part.items()}
        return self.loss_under(params, judge, latents, labels)
