"""Which class needs how much data: needs, budgets, and their uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor

from needsaug_lite.errors import UserError


def mean_per_class(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean of `values` over the samples of each class.

    l_c = (1 / n_c) sum_{i: y_i = c} v_i

    Args:
        values: one number per sample, shape (N,): a loss in nats, or 0/1 errors.
        labels: int64, shape (N,).
        num_classes: C.

    Returns:
        Means, shape (C,).

    Raises:
        UserError: if a class has no sample, because its need can't be known then.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    if int(counts.min()) == 0:
        missing = torch.nonzero(counts == 0).flatten().tolist()
        raise UserError(
            f"no validation image of class {', '.join(map(str, missing))}: its need "
            "can't be measured. Hold out at least one image of every class"
        )
    sums = torch.zeros(num_classes, dtype=values.dtype, device=values.device)
    return sums.index_add(0, labels, values) / counts


def oversampling_shares(counts: Tensor) -> Tensor:
    """Share of each class among what is added to bring all classes to one size.

    P(c) = (n_max - n_c) / sum_k (n_max - n_k)

    With as many added samples as are missing, real and added ones together are
    balanced in expectation; nothing is added to the largest class.

    Args:
        counts: training samples of each class, shape (C,).

    Returns:
        Probabilities, float64, shape (C,); uniform if all classes have one size.

    Source: GAMO (Mullick et al. 2019) as its published code draws labels; facog
    Sec. 3.4 refers to it (errata F7).
    """
    missing = (counts.max() - counts).double()
    if not bool(missing.any()):
        return torch.full_like(missing, 1 / len(counts))
    return missing / missing.sum()


def inverse_frequency_shares(counts: Tensor) -> Tensor:
    """Shares in inverse proportion to the class sizes.

    P(c) = (1 / n_c) / sum_k (1 / n_k)

    Args:
        counts: training samples of each class, at least 1, shape (C,).

    Returns:
        Probabilities, float64, shape (C,).

    Source: the words of facog Sec. 3.4, which its reference contradicts (errata F7).
    """
    inverse = 1 / counts.double()
    return inverse / inverse.sum()


def class_allocation(
    validation_losses: Tensor, *, temperature: float = 1.0, floor: float = 0.0
) -> Tensor:
    """Share of the generation budget that each class receives.

    p(s = c) = l_c / sum_b l_b                                   (needs_aware Eq. 3)

    With a temperature T the shares are proportional to l_c^(1/T): T = 1 is Eq. 3,
    T -> infinity is uniform, T -> 0 gives everything to the worst class. A floor m
    mixes in the uniform distribution so that no class gets less than m:
    p <- m + (1 - C m) p.

    Args:
        validation_losses: mean validation loss per class, shape (..., C), nats,
            non-negative; error rates may stand in for losses.
        temperature: T, positive.
        floor: m, in [0, 1/C].

    Returns:
        Probabilities, shape (..., C); uniform where every loss is zero.

    Raises:
        ValueError: if a loss is negative or not finite, or an option is impossible.

    Source: needs_aware Eq. 3; temperature and floor are additions of this book.
    """
    num_classes = validation_losses.shape[-1]
    if not bool(torch.isfinite(validation_losses).all()):
        raise ValueError("a validation loss is not finite")
    if bool((validation_losses < 0).any()):
        raise ValueError("a validation loss is negative; a need can't be")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    if not 0 <= floor <= 1 / num_classes:
        raise ValueError(
            f"floor is {floor}; with {num_classes} classes it must lie "
            f"between 0 and {1 / num_classes:.4g}"
        )
    largest = validation_losses.detach().amax(-1, keepdim=True)
    # Dividing by the largest first keeps l^(1/T) finite for small T.
    relative = validation_losses / torch.where(largest > 0, largest, 1.0)
    powered = torch.where(largest > 0, relative, 1.0) ** (1 / temperature)
    shares = powered / powered.sum(-1, keepdim=True)
    return floor + (1 - num_classes * floor) * shares


def split_budget(probabilities: Tensor, budget: int) -> Tensor:
    """Whole numbers of images per class that add up to the budget exactly.

    Every class gets floor(M p_c); the images left over go to the largest
    remainders, one each (equal remainders: lower class number first).

    Args:
        probabilities: shape (C,), adding to 1.
        budget: M, images in all, not negative.

    Returns:
        Counts, int64, shape (C,), with sum M.
    """
    if budget < 0:
        raise UserError(f"the budget is {budget} images; it can't be negative")
    shares = probabilities.double()
    exact = shares / shares.sum() * budget
    counts = exact.floor().long()
    left = budget - int(counts.sum())
    order = torch.argsort(exact - counts, descending=True, stable=True)
    counts[order[:left]] += 1
    return counts


def score_ratio(probabilities: Tensor, drawn_from: Tensor, labels: Tensor) -> Tensor:
    """Weight that carries the gradient of a sampled allocation.

    b_m = p(o_m) / stop_gradient(q(o_m)),   o_m ~ q

    With q = p its value is 1 and the gradient of (1/M) sum_m b_m L_m is an unbiased
    estimate of the gradient of sum_c p_c L_c. needs_aware Eq. 4 weights by a relaxed
    Bernoulli of p(o_m) instead and so counts p twice; see the errata page, N3.

    Args:
        probabilities: p, current shares, shape (C,), may require a gradient.
        drawn_from: q, the shares that the labels were drawn from, shape (C,).
        labels: o, int64, shape (M,).

    Returns:
        Weights, shape (M,).
    """
    return probabilities[labels] / drawn_from.detach()[labels]


def enumerated_weights(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Weights of images whose classes were drawn evenly, not in proportion to p.

    b_m = C p(o_m),   o_m uniform

    The mean of b_m L_m is an unbiased estimate of sum_c p_c L_c, and so is its
    gradient; what a class gets is weight, not images.

    Args:
        probabilities: p, current shares, shape (C,), may require a gradient.
        labels: o, int64, shape (M,).

    Returns:
        Weights, shape (M,).

    Source: errata N3 of needs_aware.
    """
    return len(probabilities) * probabilities[labels]


def gumbel_noise(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    """Standard Gumbel draws, -log(-log U) with U uniform.

    Args:
        shape: of the result.
        draw: a CPU generator.

    Returns:
        The draws, on the CPU.
    """
    uniform = torch.rand(shape, generator=draw).clamp(min=1e-20)
    return -(-uniform.log()).clamp(min=1e-20).log()


def straight_through(
    probabilities: Tensor, labels: Tensor, noise: Tensor, temperature: float
) -> Tensor:
    """Weights of value 1 whose gradient is that of a relaxed choice among C classes.

    b_m = 1 + r_m - stop_gradient(r_m),   r_m = softmax_c((log p_c + g_mc) / T) at o_m

    With o_m = argmax_c (log p_c + g_mc) the labels are drawn from p, and r_m nears 1
    for T -> 0. The gradient is biased, for every T: it is that of the relaxation, and
    of the classes that weren't drawn there is no image and no loss.

    Args:
        probabilities: p, current shares, above 0, shape (C,).
        labels: o, int64, shape (M,).
        noise: g, standard Gumbel draws, shape (M, C).
        temperature: T, positive.

    Returns:
        Weights, shape (M,).

    Source: Jang et al. 2017, Sec. 2.2; errata N3 of needs_aware.
    """
    relaxed = ((probabilities.log() + noise) / temperature).softmax(1)
    chosen = relaxed.gather(1, labels[:, None]).squeeze(1)
    return 1 + chosen - chosen.detach()


def relaxed_bernoulli(
    probabilities: Tensor, labels: Tensor, noise: Tensor, temperature: float
) -> Tensor:
    """The weights of needs_aware Eq. 4, as printed.

    b_m = sigmoid((log p(o_m) - log(1 - p(o_m)) + g_m1 - g_m2) / T)

    For T -> 0 its mean is p(o_m). Where o_m was drawn from p already, p counts twice:
    the loss nears M sum_c p_c² L_c in place of M sum_c p_c L_c. For comparison only.

    Args:
        probabilities: p, current shares, in (0, 1), shape (C,).
        labels: o, int64, shape (M,).
        noise: g, standard Gumbel draws, shape (M, 2).
        temperature: T, positive.

    Returns:
        Weights in (0, 1), shape (M,).

    Source: needs_aware Eq. 4 (errata N3).
    """
    chosen = probabilities[labels]
    return ((chosen.logit() + noise[:, 0] - noise[:, 1]) / temperature).sigmoid()


def bootstrap_allocations(
    values: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    repeats: int = 1000,
    temperature: float = 1.0,
    floor: float = 0.0,
    draw: torch.Generator | None = None,
) -> Tensor:
    """Allocations from resampled validation sets, to see how sure the needs are.

    Each repeat draws, within every class, as many samples as the class has, with
    replacement, and applies Eq. 3 to the resampled class means.

    Args:
        values: per-sample validation loss (or error), shape (N,).
        labels: int64, shape (N,).
        num_classes: C.
        repeats: R.
        temperature, floor: see `class_allocation`.
        draw: a CPU generator; None takes torch's default.

    Returns:
        Allocations, shape (R, C).
    """
    mean_per_class(values, labels, num_classes)  # every class is present, or says so
    means = torch.empty(repeats, num_classes, dtype=values.dtype)
    for label in range(num_classes):  # classes differ in size: no common batch
        own = values[labels == label].cpu()
        picks = torch.randint(len(own), (repeats, len(own)), generator=draw)
        means[:, label] = own[picks].mean(1)
    return class_allocation(means, temperature=temperature, floor=floor)
