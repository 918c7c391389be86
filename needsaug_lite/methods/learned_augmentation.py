"""How the images of every class are augmented, as something a loss can be made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from needsaug_lite.augment import AugmentationPolicy
from needsaug_lite.data import Batch, Normalisation, generator
from needsaug_lite.errors import UserError
from needsaug_lite.methods.loss_design import cluster_dictionary

Personal = Literal["none", "single", "personal"]
# Each kind of draw has its own stream.
_TRAINING, _HYPERGRADIENT = 501, 502


class LearnedAugmentation:
    """Augmentation policies for clusters of classes, between a batch and the network.

    A policy is made of operations with learned weights, probabilities and strengths,
    see `augment.AugmentationPolicy`. An image gets the policy of the cluster of its own
    class (errata A3): Eq. 2.2 prints one policy per logit, which would be a forward
    pass for every class.

    Attributes:
        policy: its parameters are hyperparameters of the training loss.

    Source: autobalance Sec. 2, "Personalized data augmentation"; with one policy for
    all classes the differentiable augmentation of MADAO (Hataya et al. 2020).
    """

    def __init__(
        self,
        counts: Tensor,
        image_shape: tuple[int, int, int],
        normalisation: Normalisation,
        *,
        cluster_size: int,
        sub_policies: int,
        seed: int,
    ) -> None:
        """Start all policies alike.

        Args:
            counts: training images of each class, shape (C,).
            image_shape: channels, height, width.
            normalisation: that of the batches.
            cluster_size: classes of similar size that share a policy; C or more for
                one policy.
            sub_policies: of a policy; every image gets one of them at random.
            seed: of the draws.

        Raises:
            UserError: for features, which can't be rotated.
        """
        channels, height, width = image_shape
        if min(height, width) < 2:
            raise UserError(
                "augmentation is learned for images, not for features; leave policy "
                "out or take the images themselves"
            )
        self.policy = AugmentationPolicy(
            -(-len(counts) // cluster_size), channels, sub_policies=sub_policies
        ).to(counts.device)
        self.cluster = cluster_dictionary(counts, cluster_size).argmax(1)
        self.normalisation = normalisation
        self.seed = seed
        self.used = 0

    @property
    def hparams(self) -> dict[str, Tensor]:
        """The parameters of the policies, by name."""
        return {f"policy.{n}": p for n, p in self.policy.named_parameters()}

    def images_of(self, batch: Batch) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Augmented images as a function of `hparams`, with draws that stay."""
        plain = self.normalisation.inverse(batch.images)
        cluster = self.cluster[batch.labels]
        draws = self.policy.draw(len(batch), self._source(_HYPERGRADIENT))

        def images(hparams: Mapping[str, Tensor]) -> Tensor:
            own = {
                name.removeprefix("policy."): value
                for name, value in hparams.items()
                if name.startswith("policy.")
            }
            changed = functional_call(self.policy, own, (plain, cluster, draws))
            return self.normalisation.from_unit(changed)

        return images

    @torch.no_grad()
    def augmented(self, batch: Batch) -> Tensor:
        """Images for a training step: one operation at a time, drawn by its weight."""
        plain = self.normalisation.inverse(batch.images)
        draws = self.policy.draw(len(batch), self._source(_TRAINING))
        changed = self.policy.sample(plain, self.cluster[batch.labels], draws)
        return self.normalisation.from_unit(changed)

    def _source(self, stream: int) -> torch.Generator:
        self.used += 1
        return generator(self.seed, stream, self.used)

    def state_dict(self) -> dict[str, Any]:
        """The policies, and how many draws have been made."""
        return {"policy": self.policy.state_dict(), "used": self.used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put both back."""
        self.policy.load_state_dict(state["policy"])
        self.used = state["used"]
