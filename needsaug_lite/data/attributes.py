"""Long tails of attributes within the classes. Pure and seeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from needsaug_lite.data.bias import counts_by_class, long_tail_counts, take_per_class
from needsaug_lite.data.clusters import attribute_groups
from needsaug_lite.data.splits import Examples, Splits, generator
from needsaug_lite.errors import UserError

ATTRIBUTES = 6

# Each kind of draw has its own stream, so that adding one leaves the others alone.
_HOLD_OUT, _TAIL = 303, 304


def check_multiple(
    options: Mapping[str, object], names: Sequence[str], divisor: int, reason: str
) -> None:
    """Refuse numbers of images that can't be divided evenly.

    Raises:
        UserError: if an option of these names is negative or no multiple of `divisor`.
    """
    for name in names:
        value = options.get(name, 0)
        if not isinstance(value, int) or value < 0 or value % max(divisor, 1):
            raise UserError(
                f"{name} is {value}; give 0 or a multiple of {divisor}, which is "
                f"{reason}"
            )


def attribute_counts(
    class_counts: Sequence[int], attribute_imbalance: float, attributes: int
) -> Tensor:
    """Images of every class and attribute in a long tail of attributes.

    n_ca ≈ n_c s_a,   s_a ∝ imbalance^(-a / (A - 1)),   sum_a s_a = 1

    Rounded by largest remainders, so that the n_ca of a class add up to n_c. Rare
    attributes of a small class may get no image.

    Args:
        class_counts: n_c of each class, at least 0.
        attribute_imbalance: ratio of the largest share to the smallest, at least 1.
        attributes: A, at least 2.

    Returns:
        Counts, int64, shape (C, A).

    Raises:
        UserError: for values outside these ranges.
    """
    if attributes < 2:
        raise UserError(f"attributes is {attributes}; divide a class into 2 or more")
    if not attribute_imbalance >= 1:
        raise UserError(
            f"attribute_imbalance is {attribute_imbalance}; it is the size of the "
            "largest attribute divided by the size of the smallest, at least 1"
        )
    if min(class_counts, default=-1) < 0:
        raise UserError(
            f"class_counts is {list(class_counts)}; give one number of at least 0 for "
            "every class"
        )
    counts = torch.tensor(list(class_counts))
    exact = counts.unsqueeze(1) * _shares(attribute_imbalance, attributes)
    whole = exact.floor()
    # The largest remainders get one image more, the common attribute first.
    missing = counts - whole.sum(1).long()
    order = (whole - exact).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)
    return whole.long() + (rank < missing.unsqueeze(1))


def _shares(imbalance: float, attributes: int) -> Tensor:
    steps = torch.linspace(0, -1, attributes, dtype=torch.float64)
    return torch.softmax(steps * torch.tensor(imbalance).double().log(), 0)


def attribute_tail(
    splits: Splits,
    *,
    attribute_imbalance: float,
    attributes: int = ATTRIBUTES,
    imbalance: float | None = None,
    n_max: int | None = None,
    counts: Sequence[int] | None = None,
    shuffle_classes: bool = False,
    val_per_class: int = 0,
    meta_per_class: int = 0,
    features: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> Splits:
    """A long tail of attributes within every class, and of classes if asked for.

    Attributes come from `attribute_groups`. Val and meta images are held out first,
    the same number of every attribute of every class; then the training images are
    thinned to `attribute_counts`. All test images stay, with their groups.

    Args:
        splits: with nothing held out.
        attribute_imbalance: ratio of common to rare attributes; 1: no tail.
        attributes: A, clusters of each class.
        imbalance: ratio of largest to smallest class; default 1, balanced classes.
        n_max: images of the largest class; default: as many as the clusters allow.
        counts: explicit class sizes, largest class first, instead of both.
        shuffle_classes: see `bias.long_tail`.
        val_per_class, meta_per_class: images of each class to hold out, multiples
            of A.
        features: see `attribute_groups`.
        seed: draws the held-out images and those that stay, not the attributes.

    Returns:
        Splits with groups; class and attribute of a group as in `attribute_groups`.

    Raises:
        UserError: if a cluster has too few images, or options contradict each other.

    Source: the generalised long tail of Tang et al. 2022, as used in meta_iada
    Sec. 5.2; the exponential shape within a class is ours.
    """
    if counts is not None and not (imbalance is None and n_max is None):
        raise UserError("counts say the size of every class; leave imbalance and n_max")
    held = {"val_per_class": val_per_class, "meta_per_class": meta_per_class}
    check_multiple(held, list(held), attributes, "the same number of each attribute")
    splits = attribute_groups(splits, attributes, features)
    # Step 1: hold out, the same number of every group.
    parts = []
    for part, (option, per_class) in enumerate(held.items()):
        draw = generator(seed, _HOLD_OUT, part)
        each = torch.full((splits.num_classes * attributes,), per_class // attributes)
        taken, rest = _take(splits, each, attributes, option, draw)
        splits = replace(splits, train=rest)
        parts.append(taken)
    # Step 2: thin what is left.
    if counts is None:
        if n_max is None:
            n_max = _largest_class(splits, attribute_imbalance, attributes)
        ratio = 1.0 if imbalance is None else imbalance
        counts = long_tail_counts(n_max, ratio, splits.num_classes)
    sizes = counts_by_class(counts, splits.num_classes, shuffle_classes, seed)
    wanted = attribute_counts(sizes, attribute_imbalance, attributes).flatten()
    draw = generator(seed, _TAIL)
    train, _ = _take(splits, wanted, attributes, "training", draw)
    return replace(splits, train=train, val=parts[0], meta=parts[1])


def _largest_class(splits: Splits, imbalance: float, attributes: int) -> int:
    """The largest class size for which no class runs out of an attribute."""
    number = splits.num_classes * attributes
    have = _group_counts(splits, number).view(-1, attributes)
    if int(have.min()) < 1:
        label, attribute = divmod(int(have.argmin()), attributes)
        raise UserError(
            f"no image of attribute {attribute} of class "
            f"{splits.class_names[label]!r} is left for training; hold out fewer, ask "
            "for fewer attributes, or give n_max"
        )
    # Rounding up never asks for more than there are: they are whole numbers.
    return int((have / _shares(imbalance, attributes)).min() + 1e-9)


def _group_counts(splits: Splits, number: int) -> Tensor:
    assert splits.train.groups is not None
    return torch.bincount(splits.train.groups.cpu(), minlength=number)


def _take(
    splits: Splits,
    wanted: Tensor,
    attributes: int,
    purpose: str,
    draw: torch.Generator,
) -> tuple[Examples, Examples]:
    """Random training images, `wanted` of each group, and the rest."""
    have = _group_counts(splits, len(wanted))
    short = torch.nonzero(wanted > have).flatten().tolist()
    if short:
        label, attribute = divmod(short[0], attributes)
        raise UserError(
            f"attribute {attribute} of class {splits.class_names[label]!r} has "
            f"{int(have[short[0]])} images, but {purpose} takes {int(wanted[short[0]])}"
            " of them; ask for fewer images of each class, or for fewer attributes"
        )
    assert splits.train.groups is not None
    groups = splits.train.groups
    taken, rest = take_per_class(groups, wanted.tolist(), len(wanted), draw)
    return splits.train.subset(taken), splits.train.subset(rest)
