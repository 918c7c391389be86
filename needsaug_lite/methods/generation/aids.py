"""Aids of a GAN: two that save time, off by default, and one against collapse.

needs_aware Sec. 3.2 uses top-k and core sets and gives no settings.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from needsaug_lite.data import generator
from needsaug_lite.data.splits import on_device

# k shrinks by a factor an epoch (Sinha et al. 2020b, Sec. 3), usually this one.
TOP_K_FACTOR = 0.99
# Our choice: distances survive a projection on 32 random directions to about a fifth.
PROJECTED_DIM = 32
_DIRECTIONS = 821


def top_k_count(batch_size: int, share: float, epoch: int) -> int:
    """How many fake images train the generator in epoch `epoch`.

    k = max(⌈ν B⌉, ⌈0.99^epoch B⌉)

    Args:
        batch_size: B.
        share: ν, above 0 and at most 1; 1 keeps all images.
        epoch: from 0; here one of `STEPS_PER_EPOCH` steps.

    Source: Sinha et al. 2020b, Sec. 3.
    """
    kept = max(share, TOP_K_FACTOR**epoch)
    return max(1, math.ceil(kept * batch_size))


def top_k_index(scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest scores, int64, shape (min(k, B),).

    Args:
        scores: of the discriminator, shape (B,).
        k: how many; at least 1.
    """
    return scores.topk(min(k, len(scores))).indices


def top_k_scores(scores: Tensor, k: int) -> Tensor:
    """The k highest scores; the other images get a gradient of zero.

    Args:
        scores: of the discriminator for fake images, shape (B,).
        k: how many are kept; at least 1, all of them if there are fewer.

    Returns:
        Shape (min(k, B),), highest first.

    Source: Sinha et al. 2020b.
    """
    return scores[top_k_index(scores, k)]


def core_set(points: Tensor, k: int) -> Tensor:
    """K points that cover all: each is the farthest from those before it.

    i_1 = 0,   i_{t+1} = argmax_i min_{s ≤ t} ‖x_i - x_{i_s}‖

    The largest distance from a point to its nearest chosen one is at most twice the
    smallest that any k points reach.

    Args:
        points: x, shape (N, D).
        k: how many, at most N.

    Returns:
        Positions of the chosen points, int64, shape (k,), all different.

    Source: Gonzalez 1985; Sinha et al. 2020a, Algorithm 1.
    """
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    chosen = torch.zeros(1, dtype=torch.int64, device=points.device)
    picks = [chosen]
    nearest = torch.full_like(distances[0], torch.inf)
    for _ in range(k - 1):
        nearest = torch.minimum(nearest, distances.index_select(0, chosen).squeeze(0))
        # Where points coincide, the chosen ones must not tie with the rest at 0.
        nearest = nearest.index_fill(0, chosen, -torch.inf)
        chosen = nearest.argmax(0, keepdim=True)
        picks.append(chosen)
    return torch.cat(picks)


def projected(images: Tensor) -> Tensor:
    """Pixels seen along a few random directions, always the same ones, (B, 32).

    Distances between images stay about what they are, at a fraction of the cost.
    Sinha et al. 2020a project features of an Inception network; there is none for
    small data, so that these are distances of pixels.

    Args:
        images: shape (B, channels, H, W).
    """
    flat = images.flatten(1)
    shape = (flat.shape[1], PROJECTED_DIM)
    directions = torch.randn(shape, generator=generator(_DIRECTIONS)) / math.sqrt(
        PROJECTED_DIM
    )
    return flat @ on_device(directions, images.device).to(images.dtype)


def mode_seeking(latents: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Small where other latent vectors give other images of the same class.

    L = 1 / (d(x̃, x̃') / d(z, z') + 1e-5),   d = mean of |difference| over all pairs

    Every image is paired with the next one of its class in the batch.

    Args:
        latents: z, shape (B, d).
        images: x̃ = G(z, y), shape (B, channels, H, W).
        labels: y, int64, shape (B,).

    Returns:
        A scalar, at least 0; 0 where no two images share a class.

    Source: Mao et al. 2019, as the reciprocal that their code minimises.
    """
    order = labels.argsort(stable=True)
    one, other = order[:-1], order[1:]
    paired = (labels[one] == labels[other]).to(images.dtype)

    def distance(points: Tensor) -> Tensor:
        apart = (points[one] - points[other]).flatten(1).abs().mean(1)
        return (apart * paired).sum() / paired.sum().clamp(min=1)

    ratio = distance(images) / distance(latents).clamp(min=1e-5)
    # Not `amax`: a batch of one image has no pairs at all.
    return paired.sum().clamp(max=1) / (ratio + 1e-5)
