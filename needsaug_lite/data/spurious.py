"""Coloured digits whose colour goes with the class in exactly the asked numbers."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from needsaug_lite.data.bias import take_per_class
from needsaug_lite.data.groups import (
    DIGITS,
    check_options,
    check_paintable,
    grey_pixels,
    painted,
)
from needsaug_lite.data.splits import Examples, InMemory, Splits, generator
from needsaug_lite.errors import UserError

# Each kind of draw has its own stream, so that adding one leaves the others alone.
_CHOICE, _COLOURS = 305, 306


def coloured_groups(
    splits: Splits,
    group_counts: Sequence[int],
    *,
    val_per_class: int = 0,
    meta_per_class: int = 0,
    seed: int = 0,
) -> Splits:
    """Coloured digits with given numbers of every class and colour, and right labels.

    The label is y = 1[digit >= 5], the attribute a is 0 (red) or 1 (green), and the
    grey image becomes channel a; the other channels are 0.

        group = 2 y + a

    The training part is thinned to `group_counts`. In val, meta and test the colour
    says nothing about the label: half of the images of each class are red. Only in
    this are they like the parts of Waterbirds; the test part keeps all its images.

    Args:
        splits: grey images in memory of ten classes, with nothing held out.
        group_counts: training images of the groups 0, 1, 2, 3: red and green of the
            digits 0 to 4, red and green of 5 to 9.
        val_per_class, meta_per_class: training images of each of the two classes to
            hold out before the thinning, even numbers.
        seed: draws the images and their colours.

    Returns:
        Splits of two classes with four groups.

    Raises:
        UserError: for other images, impossible numbers, or a class with too few
            images: the message says how many would do.

    Source: the counts of Waterbirds (Sagawa et al. 2020) are 3498, 184, 56, 1057, and
    autobalance Sec. 4 gives them as the shares 0.73, 0.038, 0.012, 0.22; the digits
    in place of birds are ours.
    """
    held = {"val_per_class": val_per_class, "meta_per_class": meta_per_class}
    check_options({"group_counts": group_counts, **held})
    check_paintable(splits)
    per_class = torch.tensor(list(group_counts)).view(2, 2)
    rest, test = _two_classes(splits.train), _two_classes(splits.test)
    parts = []
    # Step 1: hold out; step 2: choose what is left for training.
    wanted = [torch.full((2,), number) for number in held.values()]
    have = rest.counts(2)
    _check_enough(have - sum(wanted), per_class, sum(held.values()))
    for number, wish in enumerate([*wanted, per_class.sum(1)]):
        draw = generator(seed, _CHOICE, number)
        taken, left = take_per_class(rest.labels, wish.tolist(), 2, draw)
        parts.append(rest.subset(taken))
        rest = rest.subset(left)
    # Step 3: colour. Of an odd class of the test part, one image more is green.
    reds = [half // 2 for half in wanted] + [per_class[:, 0], test.counts(2) // 2]
    val, meta, train, test = (
        _coloured(part, red, generator(seed, _COLOURS, number))
        for number, (part, red) in enumerate(zip([*parts, test], reds, strict=True))
    )
    # The parts have different colours: test must not be joined to train again.
    facts = {"split_here": False, "group_counts": [int(n) for n in group_counts]}
    made = Splits(train, val, meta, test, DIGITS, splits.provenance | facts)
    return made.to(splits.train.labels.device)


def _two_classes(part: Examples) -> Examples:
    """Grey images of shape (1, H, W) on the CPU with the label 1[digit >= 5]."""
    pixels = grey_pixels(part).unsqueeze(1)
    return Examples(InMemory(pixels), (part.labels.cpu() >= 5).long())


def _coloured(part: Examples, reds: Tensor, draw: torch.Generator) -> Examples:
    """Exactly `reds[y]` random images of each class y red, the others green."""
    red, _ = take_per_class(part.labels, reds.tolist(), 2, draw)
    green = torch.ones(len(part), dtype=torch.int64)
    green[red] = 0
    groups = 2 * part.labels + green
    return Examples(painted(grey_pixels(part), green), part.labels, groups)


def _check_enough(have: Tensor, wanted: Tensor, held: int) -> None:
    """Refuse counts that a class can't give, and say which ones it could.

    Args:
        have: images of each class that aren't held out, shape (2,).
        wanted: red and green images of each class, shape (2, 2).
        held: images of each class that are held out.
    """
    sizes = zip(DIGITS, have.tolist(), wanted.sum(1).tolist(), strict=True)
    short = [(name, there, wish) for name, there, wish in sizes if there < wish]
    if not short:
        return
    name, there, wish = short[0]
    out = f" after {held} are held out" if held else ""
    if int(have.min()) < 2:
        raise UserError(
            f"of the class {name!r}, {max(there, 0)} training images are left{out}, "
            f"but group_counts takes {wish}; hold out fewer"
        )
    share = min(Fraction(left, size) for _, left, size in short)
    largest = tuple(max(1, int(share * count)) for count in wanted.flatten().tolist())
    raise UserError(
        f"the class {name!r} has {there} training images{out}, but group_counts takes "
        f"{wish} of them; in the same proportions at most group_counts={largest} is "
        "possible"
    )
