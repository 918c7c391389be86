"""How good generated images are, judged by a network that the caller brings.

The names FID and inception score belong to features and classes of one Inception
network; here any network judges, so that neither name is used.
"""

from __future__ import annotations

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from needsaug_lite import _torchvision  # noqa: F401  # before torchmetrics
from needsaug_lite.errors import UserError

from torchmetrics.image.fid import FrechetInceptionDistance  # isort: skip


def sample_scores(
    real_features: Tensor,
    generated_features: Tensor,
    generated_logits: Tensor,
    generated_labels: Tensor | None = None,
    *,
    neighbours: int = 3,
) -> dict[str, float]:
    """All scores of generated images, with the counts that they depend on.

    Args:
        real_features: of N real images, shape (N, D).
        generated_features: of M generated images by the same network, shape (M, D).
        generated_logits: of the same generated images, shape (M, C).
        generated_labels: classes they were made for, shape (M,); None where they were
            made for no class.
        neighbours: see `precision_recall`.

    Returns:
        frechet_distance, inception_style_score, precision, recall, label_agreement
        (absent without labels), real_count = N and generated_count = M.

    Raises:
        UserError: if shapes don't fit, a number isn't finite, or images are too few.
    """
    if len(generated_logits) != len(generated_features):
        raise UserError(
            f"{len(generated_features)} generated images have features but "
            f"{len(generated_logits)} have logits; give both for the same images"
        )
    precision, recall = precision_recall(real_features, generated_features, neighbours)
    scores: dict[str, float] = {
        "frechet_distance": frechet_distance(real_features, generated_features),
        "inception_style_score": inception_style_score(generated_logits),
        "precision": precision,
        "recall": recall,
    }
    if generated_labels is not None:
        agreement = label_agreement(generated_logits, generated_labels)
        scores["label_agreement"] = agreement
    counts = {
        "real_count": len(real_features),
        "generated_count": len(generated_features),
    }
    return scores | counts


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians with the moments of the features.

    ||μ - μ_p||² + Tr(Σ + Σ_p - 2 (Σ Σ_p)^½)

    With few images the estimate is too large: for two samples of one distribution it
    is above 0, by an amount that grows with D and falls with the counts. Only numbers
    from equal counts (and the same network) can be compared. Below N = D + 1 or
    M = D + 1 a covariance has no full rank, and most of the number may be this bias,
    as in 2,048 images with 2,048 features.

    Args:
        real: features of real images, shape (N, D).
        generated: features of generated images, shape (M, D).

    Returns:
        The distance, computed in float64, in squared units of the features; at least 0.

    Raises:
        UserError: for fewer than two images, or features that don't fit.

    Source: Heusel et al. 2017, there with features of Inception; mgr Table 2.
    """
    real, generated = _features(real, generated, at_least=2)
    # The features are at hand: the "network" hands them on.
    distance = FrechetInceptionDistance(_Given(real.shape[1]))
    distance.update(real, real=True)
    distance.update(generated, real=False)
    # Roots of eigenvalues that should be 0 can make the difference slightly negative.
    return max(0.0, float(distance.compute()))


def inception_style_score(logits: Tensor) -> float:
    """How sure a classifier is of each image, and how many classes there are in all.

    exp( E_x KL( p(y | x) || p(y) ) ),   p(y) = E_x p(y | x)

    Real images have no part in it, and neither have differences within a class.

    Args:
        logits: of generated images, shape (N, C).

    Returns:
        From 1 (all images have the same probabilities) to C (each is certainly of one
        class, and the classes are equally frequent).

    Raises:
        UserError: if there is no image, or a logit isn't finite.

    Source: Salimans et al. 2016, there with Inception; here without parts ("splits").
    """
    logits = _matrix(logits, "logits of generated images", at_least=1)
    return float(_inception_style(logits))


def class_scores(logits: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """How good the generated images of each class are by themselves.

    class_inception_c = exp( E_x KL( p(y | x) || p_c(y) ) ),   p_c(y) = E_x p(y | x)
    class_agreement_c = share of x with argmax_y p(y | x) = c

    x runs over the n images of class c. Where all of them are certainly of class c, the
    score of Salimans et al. is 1, its smallest value: within a class it says how much
    the judge's opinion changes from image to image. One image a class has score 1, and
    few have too small a score, so that every class must bring the same n.

    Args:
        logits: of generated images, shape (C n, C).
        labels: classes they were made for, int64, shape (C n,), in any order.

    Returns:
        class_inception, from 1 to C, and class_agreement, from 0 to 1: C numbers each,
        in float64.

    Raises:
        UserError: if there is no image, a label is no class, or the classes have
            different numbers of images.

    Source: needs_aware App. D.
    """
    logits, labels = _labelled(logits, labels)
    classes = logits.shape[1]
    counts = labels.bincount(minlength=classes)
    if int(counts.min()) != int(counts.max()):
        raise UserError(
            f"the {classes} classes have from {int(counts.min())} to "
            f"{int(counts.max())} generated images; give equally many of each class"
        )
    by_class = logits[labels.argsort()].unflatten(0, (classes, -1))
    own = torch.arange(classes)[:, None]
    agreement = (by_class.argmax(2) == own).double().mean(1)
    return {
        "class_inception": _inception_style(by_class).tolist(),
        "class_agreement": agreement.tolist(),
    }


def precision_recall(
    real: Tensor, generated: Tensor, neighbours: int = 3
) -> tuple[float, float]:
    """Share of generated images that look real, and of real ones that are covered.

    A set of images covers a point if, for one of them, the point is no further away
    than the k-th nearest other image of the set. Precision is the share of generated
    images that the real ones cover, recall the share of real images that the generated
    ones cover.

    Args:
        real: features of real images, shape (N, D).
        generated: features of generated images, shape (M, D).
        neighbours: k.

    Returns:
        Precision and recall, in [0, 1]. Both depend on the counts: only numbers from
        equal counts can be compared.

    Raises:
        UserError: unless each set has more than k images, or features don't fit.

    Source: Kynkäänniemi et al. 2019, Eq. 1 and 2, with the Euclidean distance.
    """
    if neighbours < 1:
        raise UserError(f"neighbours is {neighbours}; it must be at least 1")
    real, generated = _features(real, generated, at_least=neighbours + 1)
    return (
        _covered(generated, real, neighbours),
        _covered(real, generated, neighbours),
    )


def label_agreement(logits: Tensor, labels: Tensor) -> float:
    """Share of generated images that the judge puts into the class they were made for.

    1 minus this share is what class leakage and mistakes of the judge make together.

    Args:
        logits: of generated images, shape (N, C).
        labels: classes they were made for, int64, shape (N,).

    Returns:
        The share, between 0 and 1.

    Raises:
        UserError: if there is no image, the counts differ, or a label is no class.

    Source: the failure of conditional generators that mgr Sec. 1 starts from.
    """
    logits, labels = _labelled(logits, labels)
    return float((logits.argmax(1) == labels).double().mean())


class _Given(nn.Identity):
    """A network for torchmetrics whose images are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _covered(points: Tensor, centres: Tensor, neighbours: int) -> float:
    """Share of points in the ball of a centre, up to its k-th nearest other centre."""
    search = NearestNeighbors(n_neighbors=neighbours).fit(centres.numpy())
    # Asked without points, the search leaves each centre out of its own neighbours.
    radii = torch.from_numpy(search.kneighbors()[0][:, -1])
    # Every ball has a radius of its own, so that the nearest centre isn't enough.
    within = [
        (_distances(some, centres) <= radii).any(1) for some in points.split(1000)
    ]
    return float(torch.cat(within).double().mean())


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """Euclidean distances, shape (N, M), exact also between equal points."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(points, centres, compute_mode=exact)


def _features(real: Tensor, generated: Tensor, at_least: int) -> tuple[Tensor, Tensor]:
    """Both sets of features as `_matrix` gives them, of one length."""
    real = _matrix(real, "features of real images", at_least)
    generated = _matrix(generated, "features of generated images", at_least)
    if real.shape[1] != generated.shape[1]:
        raise UserError(
            f"real images have {real.shape[1]} features and generated images "
            f"{generated.shape[1]}; take both from the same network"
        )
    return real, generated


def _matrix(numbers: Tensor, name: str, at_least: int) -> Tensor:
    """Numbers as float64 on the CPU, shape (N, D), checked."""
    if numbers.ndim != 2:
        raise UserError(
            f"{name} have shape {tuple(numbers.shape)}; give one row for every image"
        )
    if len(numbers) < at_least:
        raise UserError(
            f"{len(numbers)} rows with {name} are too few; give at least {at_least}"
        )
    found = numbers.detach().cpu().double()
    if not bool(found.isfinite().all()):
        raise UserError(
            f"{name} contain numbers that are infinite or not a number; the generator "
            "or the judge has diverged"
        )
    return found


def _labelled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits as `_matrix` gives them, and labels on the CPU, checked."""
    logits = _matrix(logits, "logits of generated images", at_least=1)
    if labels.shape != logits.shape[:1]:
        raise UserError(
            f"labels of shape {tuple(labels.shape)} don't fit the logits of "
            f"{len(logits)} generated images; give one label for every image"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise UserError(
            f"labels from {int(labels.min())} to {int(labels.max())} meet a judge of "
            f"{logits.shape[1]} classes; give labels from 0 to {logits.shape[1] - 1}"
        )
    return logits, labels.cpu()


def _inception_style(logits: Tensor) -> Tensor:
    """The score of each set of images, from logits (..., N, C) to shape (...)."""
    logs = logits.log_softmax(-1)
    shares = logs.exp()
    marginal = shares.mean(-2)
    # E KL(p(y | x) || p(y)) is the entropy of the mean less the mean of the entropies.
    within = (shares * logs).sum(-1).mean(-1)
    divergence = within - torch.xlogy(marginal, marginal).sum(-1)
    return divergence.clamp(min=0).exp()
