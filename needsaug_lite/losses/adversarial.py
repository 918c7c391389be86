"""Losses of a discriminator and of the generator it judges."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus


def least_squares_discriminator(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """What the discriminator minimises: 1 for real features, 0 for generated ones.

    L_D = ½ E[(D(f) - 1)²] + ½ E[D(f̃)²]

    Where both densities are known, its minimum is D(f) = p(f) / (p(f) + p̃(f)).

    Args:
        real_scores: D of real features, any shape.
        fake_scores: D of generated features, any shape; the caller detaches them from
            the generator.

    Returns:
        A scalar, at least 0.

    Source: facog Eq. 3, which prints this as a maximum over D, where it is unbounded;
    Mao et al. 2017 with labels a = 0 and b = 1 (errata F1).
    """
    return 0.5 * ((real_scores - 1).square().mean() + fake_scores.square().mean())


def least_squares_generator(fake_scores: Tensor) -> Tensor:
    """What the generator minimises: to be taken for real.

    L_adv = ½ E[(D(f̃) - 1)²]

    Args:
        fake_scores: D of generated features, any shape.

    Returns:
        A scalar, at least 0.

    Source: Mao et al. 2017 with c = 1. Facog Eq. 3 minimises E[D(f̃)²], which asks the
    generator to be recognised as generated (errata F1).
    """
    return 0.5 * (fake_scores - 1).square().mean()


def binary_discriminator(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Binary cross-entropy that a discriminator minimises: is this image real?

    L_D = -E[log σ(D(x))] - E[log(1 - σ(D(x̃)))]

    Where both densities are known, its minimum is σ(D(x)) = p(x) / (p(x) + p̃(x)).

    Args:
        real_scores: D of real images, logits of any shape.
        fake_scores: D of generated images; the caller detaches them from the generator.

    Returns:
        A scalar in nats, at least 0; 2 log 2 for a discriminator without an opinion.

    Source: Goodfellow et al. 2014, Eq. 1, as a loss to be minimised (errata N1).
    """
    return softplus(-real_scores).mean() + softplus(fake_scores).mean()


def non_saturating_generator(fake_scores: Tensor) -> Tensor:
    """What the generator minimises against `binary_discriminator`.

    L_G = -E[log σ(D(x̃))]

    Minimising E[log(1 - σ(D(x̃)))] has the same aim, but hardly a gradient where the
    discriminator is sure.

    Args:
        fake_scores: D of generated images, logits of any shape.

    Returns:
        A scalar in nats, at least 0.

    Source: Goodfellow et al. 2014, Sec. 3.
    """
    return softplus(-fake_scores).mean()


def hinge_discriminator(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """What a discriminator minimises that has to keep a margin of 1.

    L_D = E[max(0, 1 - D(x))] + E[max(0, 1 + D(x̃))]

    Args:
        real_scores: D of real images, any shape.
        fake_scores: D of generated images; the caller detaches them from the generator.

    Returns:
        A scalar, at least 0.

    Source: Miyato et al. 2018, Eq. 16; BigGAN (Brock et al. 2019).
    """
    return relu(1 - real_scores).mean() + relu(1 + fake_scores).mean()


def hinge_generator(fake_scores: Tensor) -> Tensor:
    """What the generator minimises against `hinge_discriminator`: L_G = -E[D(x̃)].

    Args:
        fake_scores: D of generated images, any shape.

    Returns:
        A scalar of either sign.

    Source: Miyato et al. 2018, Eq. 17.
    """
    return -fake_scores.mean()


def misclassification(logits: Tensor, labels: Tensor) -> Tensor:
    """What a generator minimises that wants its features taken for another class.

    L = -log(1 - p_y) = logsumexp_k f_k - logsumexp_{k≠y} f_k

    Args:
        logits: f of the classifier, shape (B, C), C at least 2.
        labels: y, int64, shape (B,).

    Returns:
        The mean over the batch, a scalar in nats, at least 0.

    Source: GAMO (Mullick et al. 2019), whose generator minimises log p_y; this form
    has the same aim and a gradient also where p_y is near 1.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (logits.logsumexp(1) - others.logsumexp(1)).mean()
