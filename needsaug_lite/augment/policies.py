"""Policies of the AutoAugment space that learn by gradient, one for each cluster.

A policy has S sub-policies of two stages; an image goes through one sub-policy, drawn
evenly. In a stage, every operation o has a weight w, a magnitude m and a probability p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from needsaug_lite.augment.operations import OPERATIONS, Operation
from needsaug_lite.augment.straight_through import clamp_to_unit
from needsaug_lite.data.splits import on_device
from needsaug_lite.errors import UserError

# MADAO's library: of the softmax over operations, and of the relaxed Bernoulli.
SELECTION_TEMPERATURE = 0.05
APPLICATION_TEMPERATURE = 0.1


@dataclass(frozen=True)
class PolicyDraws:
    """All that is random in one pass of B images through T stages of O operations.

    Attributes:
        sub_policy: which sub-policy an image goes through, int64, shape (B,).
        application: uniform on [0, 1), decides the Bernoulli, shape (B, T, O).
        selection: uniform on [0, 1), decides the operation of `sample`, shape (B, T).
        signs: 1 or -1, shape (B, T, O).
        centres: of the cutout, uniform on [0, 1), shape (B, T, 2).
    """

    sub_policy: Tensor
    application: Tensor
    selection: Tensor
    signs: Tensor
    centres: Tensor

    def __len__(self) -> int:
        return len(self.sub_policy)


@dataclass(frozen=True)
class _Choices:
    """What the policies say for each image: shape (B, T, O) each."""

    weights: Tensor
    magnitudes: Tensor
    application_logits: Tensor


class AugmentationPolicy(nn.Module):
    """K' augmentation policies and the two ways to go through them.

    As in MADAO's library all operations start with equal weight, probability 1/2 and
    magnitude 1/2, for which contrast, colour, brightness and sharpness keep the image.
    Magnitudes and probabilities are sigmoids of the parameters, where that library
    clamps; the derivative at the start is a quarter of its own.

    Parameters, each of shape (K', S, T, O): `operation_logits`, `magnitude_logits`,
    `probability_logits`.

    Args:
        clusters: K', number of policies; 1 is MADAO, more is autobalance's
            personalised augmentation.
        channels: of the images; 1 leaves out what needs colour.
        sub_policies: S.
        stages: T.
        operations: names from `OPERATIONS`; all that fit if None.

    Source: autobalance Sec. 3 "Personalized Data Augmentation", whose code is
    unpublished; MADAO (Hataya et al. 2020) and its library for the form. Autobalance
    Eq. 2.2 augments inside the sum of the softmax; we augment x once, with the policy
    of its own class (errata A3).
    """

    def __init__(
        self,
        clusters: int,
        channels: int,
        *,
        sub_policies: int = 10,
        stages: int = 2,
        operations: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.operation_names = _fitting(channels, operations)
        shape = (clusters, sub_policies, stages, len(self.operation_names))
        if min(shape) < 1:
            raise UserError(
                f"a policy needs at least one cluster, sub-policy and stage, not "
                f"{clusters}, {sub_policies} and {stages}"
            )
        self.operation_logits = nn.Parameter(torch.zeros(shape))
        self.magnitude_logits = nn.Parameter(torch.zeros(shape))
        self.probability_logits = nn.Parameter(torch.zeros(shape))

    def draw(self, batch_size: int, generator: torch.Generator) -> PolicyDraws:
        """The random numbers of one pass, from a CPU generator.

        They don't depend on the parameters: with the same draws, `forward` is a
        function of the parameters alone.
        """
        _, sub_policies, stages, count = self.operation_logits.shape
        like = self.operation_logits

        def uniform(*shape: int) -> Tensor:
            draws = torch.rand(batch_size, *shape, generator=generator)
            return on_device(draws.to(like.dtype), like.device)

        sub_policy = torch.randint(sub_policies, (batch_size,), generator=generator)
        return PolicyDraws(
            sub_policy=on_device(sub_policy, like.device),
            application=uniform(stages, count),
            selection=uniform(stages),
            signs=1 - 2 * uniform(stages, count).round(),
            centres=uniform(stages, 2),
        )

    def forward(self, images: Tensor, cluster: Tensor, draws: PolicyDraws) -> Tensor:
        """Augment with a derivative by the parameters and by the images.

        x ← clamp( Σ_o softmax(w / 0.05)_o [ b_o f_o(x; m_o) + (1 - b_o) x ] )   a stage

        b_o = σ( (logit p_o + logit u) / 0.1 ), u uniform: a relaxed Bernoulli

        Args:
            images: floats in [0, 1], shape (B, C, H, W).
            cluster: which policy each image gets, int64, shape (B,).
            draws: of this batch, from `draw`.

        Returns:
            Floats in [0, 1], shape (B, C, H, W).

        Raises:
            UserError: if the numbers of images, clusters and draws differ.
        """
        choices = self._choices(images, cluster, draws)
        applied = (choices.application_logits / APPLICATION_TEMPERATURE).sigmoid()
        shares = choices.weights * applied
        for stage in range(shares.shape[1]):
            # Σ_o a_o [b_o f_o + (1 - b_o) x] with Σ_o a_o = 1
            kept = 1 - shares[:, stage].sum(1)
            mixed = kept.view(-1, 1, 1, 1) * images
            for position, operation in enumerate(self._operations()):
                changed = operation(
                    images,
                    choices.magnitudes[:, stage, position],
                    draws.signs[:, stage, position],
                    draws.centres[:, stage],
                )
                share = shares[:, stage, position].view(-1, 1, 1, 1)
                mixed = mixed + share * changed
            images = clamp_to_unit(mixed)
        return images

    @torch.no_grad()
    def sample(self, images: Tensor, cluster: Tensor, draws: PolicyDraws) -> Tensor:
        """Augment without derivative: one operation for each image and stage.

        o ~ softmax(w / 0.05), applied if u > 1 - p_o: the mixture of `forward` when
        the operation is drawn instead of averaged, and the limit of its relaxed
        Bernoulli for a temperature of 0, draw by draw.

        Args, returns and raises as `forward`.
        """
        choices = self._choices(images, cluster, draws)
        edges = choices.weights.cumsum(2)
        below = edges <= draws.selection.unsqueeze(2) * edges[:, :, -1:]
        chosen = below.sum(2, keepdim=True).clamp(max=edges.shape[2] - 1)
        logits = choices.application_logits.gather(2, chosen).squeeze(2)
        # -1 stands for no operation.
        chosen = torch.where(logits > 0, chosen.squeeze(2), -1)
        magnitudes = choices.magnitudes
        for stage in range(edges.shape[1]):
            result = images.clone()
            for position, operation in enumerate(self._operations()):
                rows = _rows(chosen[:, stage] == position)
                if not len(rows):
                    continue
                changed = operation(
                    images[rows],
                    magnitudes[rows, stage, position],
                    draws.signs[rows, stage, position],
                    draws.centres[rows, stage],
                )
                here = (chosen[rows, stage] == position).view(-1, 1, 1, 1)
                result[rows] = torch.where(here, changed, result[rows])
            images = result
        return images

    def extra_repr(self) -> str:
        """Sizes, for `print(policy)`."""
        clusters, sub_policies, stages, count = self.operation_logits.shape
        return (
            f"clusters={clusters}, sub_policies={sub_policies}, stages={stages}, "
            f"operations={count}"
        )

    def _operations(self) -> list[Operation]:
        return [OPERATIONS[name] for name in self.operation_names]

    def _choices(self, images: Tensor, cluster: Tensor, draws: PolicyDraws) -> _Choices:
        """The parameters of each image's own sub-policy."""
        if not len(images) == len(cluster) == len(draws):
            raise UserError(
                f"{len(images)} images, {len(cluster)} clusters and draws for "
                f"{len(draws)}: give as many clusters as images, and draws from "
                f"policy.draw({len(images)}, generator)"
            )
        rows = (cluster, draws.sub_policy)
        uniform = torch.logit(draws.application, eps=1e-6)
        return _Choices(
            (self.operation_logits[rows] / SELECTION_TEMPERATURE).softmax(2),
            self.magnitude_logits[rows].sigmoid(),
            self.probability_logits[rows] + uniform,
        )


def _rows(here: Tensor) -> Tensor:
    """The images to work on: those that need it, or all where asking would wait.

    Reading off positions makes the host wait for a GPU, on which the whole batch costs
    little more than a part.
    """
    if here.device.type == "cpu":
        return here.nonzero().squeeze(1)
    return torch.arange(len(here), device=here.device)


def _fitting(channels: int, operations: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the operations, checked against the images."""
    fitting = [n for n, o in OPERATIONS.items() if channels == 3 or not o.needs_colour]
    names = tuple(fitting if operations is None else operations)
    unfit = [name for name in names if name not in fitting]
    if unfit or not names:
        raise UserError(
            f"operations {list(names)} for images of {channels} channel(s): "
            f"choose at least one of {', '.join(fitting)}"
        )
    return names
