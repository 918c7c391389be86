"""Data with groups: coloured digits, and which options exclude each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from needsaug_lite.data.attributes import ATTRIBUTES, check_multiple
from needsaug_lite.data.bias import take_per_class
from needsaug_lite.data.splits import Examples, InMemory, Splits, generator, undivided
from needsaug_lite.errors import UserError

# Each kind of draw has its own stream, so that adding one leaves the others alone.
_COLOUR, _COLOURED_META = 301, 302
_OWN_OF_COLOUR = {
    "attribute_imbalance": None,
    "imbalance": None,
    "n_max": None,
    "counts": None,
    "shuffle_classes": False,
    "val_per_class": 0,
    "noise": 0.0,
    "channels": None,
    "kept": None,
}
_HALVES = "half of them in each colour"
_OWN_OF_GROUP_COUNTS = {
    "colour": False,
    **{k: usual for k, usual in _OWN_OF_COLOUR.items() if k != "val_per_class"},
}
WATERBIRDS = ("waterbirds", "waterbirds_features")
_OWN_OF_WATERBIRDS = {
    "group_counts": None,
    "colour": False,
    **_OWN_OF_COLOUR,
    "skip_broken": False,
    "gamo": False,
}
_OWN_OF_GAMO = {
    "group_counts": None,
    **{k: usual for k, usual in _OWN_OF_GROUP_COUNTS.items() if k != "channels"},
}
DIGITS = ("0 to 4", "5 to 9")


def check_options(options: Mapping[str, object]) -> None:
    """Refuse options of `load` that can't be had together.

    Args:
        options: values by the names of the arguments of `load`; unknown names and
            missing ones are passed over.

    Raises:
        UserError: naming what to leave out or to change.
    """
    imbalance = options.get("attribute_imbalance")
    attributes = options.get("attributes", ATTRIBUTES)
    if options.get("colour"):
        _refuse(
            options,
            {name: usual for name, usual in _OWN_OF_COLOUR.items() if name != "kept"},
            "coloured digits have three channels, wrong labels, groups and a val part "
            "of their own",
        )
        check_multiple(options, ("meta_per_class",), 2, _HALVES)
    if options.get("group_counts") is not None:
        _check_group_counts(options)
    if options.get("gamo"):
        _refuse(
            options,
            _OWN_OF_GAMO,
            "gamo says how many images of every class there are, in the order of the "
            "labels and with right ones",
        )
    if options.get("name") in WATERBIRDS:
        _refuse(
            options,
            _OWN_OF_WATERBIRDS,
            f"{options['name']} has groups, a val part and images of its own",
        )
        check_multiple(options, ("meta_per_class",), 2, "half of them on each place")
    if imbalance is None and attributes != ATTRIBUTES:
        raise UserError(
            f"attributes={attributes} has no effect without attribute_imbalance; give "
            "both or leave it out"
        )
    if imbalance is not None:
        if options.get("noise"):
            raise UserError(
                "groups of attributes contain the right class, which would give wrong "
                "labels away; leave out noise or attribute_imbalance"
            )
        assert isinstance(attributes, int)
        names = ("val_per_class", "meta_per_class")
        check_multiple(options, names, attributes, "the same number of each attribute")


def _check_group_counts(options: Mapping[str, object]) -> None:
    counts = options["group_counts"]
    whole = isinstance(counts, Sequence) and all(
        isinstance(count, int) and count > 0 for count in counts
    )
    if not (whole and isinstance(counts, Sequence) and len(counts) == 4):
        raise UserError(
            f"group_counts is {counts}; give four numbers of at least 1: red and green "
            "images of the digits 0 to 4, then of 5 to 9"
        )
    _refuse(
        options,
        _OWN_OF_GROUP_COUNTS,
        "group_counts says how many images of every class and colour there are, with "
        "three channels and right labels",
    )
    check_multiple(options, ("val_per_class", "meta_per_class"), 2, _HALVES)


def _refuse(
    options: Mapping[str, object], usual: Mapping[str, object], reason: str
) -> None:
    given = [name for name, value in usual.items() if options.get(name, value) != value]
    if given:
        raise UserError(f"{reason}; leave out {', '.join(given)}")


def colour(
    splits: Splits,
    *,
    label_noise: float = 0.25,
    colour_noise: Sequence[float] = (0.2, 0.5, 0.9),
    meta_per_class: int = 0,
    seed: int = 0,
) -> Splits:
    """Coloured digits: the colour goes with the label, but not in the test part.

    The label is y = 1[digit >= 5], flipped with probability `label_noise` in all
    parts; the flipped label *is* the label. An image is red if y = 0 and green if
    y = 1, and then its colour is flipped with the probability of its part. The grey
    image becomes channel 0 (red) or 1 (green); the other channels are 0.

        group = 2 * red + y

    Of the training images, in their order, the first half is `train`, the next sixth
    `val` and the rest `test`: 30,000, 10,000 and 20,000 images of MNIST. The
    published test images aren't used. Of data that `load` itself has divided
    (`digits`), all images are.

    Args:
        splits: grey images in memory of ten classes, with nothing held out.
        label_noise: probability that a label is flipped.
        colour_noise: probabilities that a colour is flipped, in train, val and test.
        meta_per_class: images of each class, half of each colour, to take out of
            `val`, whose colours say nothing about the label.
        seed: draws labels, colours and meta images.

    Returns:
        Splits of two classes with groups.

    Raises:
        UserError: for other images, or numbers that are impossible.

    Source: the coloured MNIST of LISA (Yao et al. 2022) as its released code makes
    it (huaxiuyao/LISA), after Arjovsky et al. 2019.
    """
    splits = undivided(splits)
    check_paintable(splits)
    grey = grey_pixels(splits.train)
    if len(colour_noise) != 3 or not all(
        0 <= share <= 1 for share in (label_noise, *colour_noise)
    ):
        raise UserError(
            f"label_noise={label_noise}, colour_noise={tuple(colour_noise)}: give one "
            "probability between 0 and 1 for labels and three for the colours of "
            "train, val and test"
        )
    count, device = len(grey), splits.train.labels.device
    bounds = [count // 2, count * 2 // 3]
    labels_hit, colours_hit = torch.rand(2, count, generator=generator(seed, _COLOUR))
    parts = torch.bucketize(torch.arange(count), torch.tensor(bounds), right=True)
    labels = (splits.train.labels.cpu() >= 5) ^ (labels_hit < label_noise)
    red = ~labels ^ (colours_hit < torch.tensor(list(colour_noise))[parts])
    groups = 2 * red.long() + labels.long()
    everything = Examples(painted(grey, ~red), labels.long(), groups)
    train, val, test = (
        everything.subset(index) for index in torch.arange(count).tensor_split(bounds)
    )
    meta, val = balanced_meta(val, meta_per_class, seed)
    # All images are in use now: the test part is no share of the training images.
    facts = {**splits.provenance, "split_here": False, "coloured": True}
    return Splits(train, val, meta, test, DIGITS, facts).to(device)


def balanced_meta(
    val: Examples, per_class: int, seed: int, attribute: str = "colour"
) -> tuple[Examples, Examples]:
    """Meta images, `per_class` / 2 of each of four groups, and the rest of val.

    Args:
        val: with two classes of two attributes each, in either code of groups.
        per_class: meta images of each class, an even number.
        seed: chooses them.
        attribute: what the attribute is called, for messages.

    Raises:
        UserError: if `per_class` is odd, or a group of `val` too small.
    """
    halves = f"half of them in each {attribute}"
    check_multiple({"meta_per_class": per_class}, ("meta_per_class",), 2, halves)
    assert val.groups is not None
    smallest = int(torch.bincount(val.groups, minlength=4).min())
    if smallest < per_class // 2:
        raise UserError(
            f"meta_per_class is {per_class}, {halves}, but val has only {smallest} "
            f"images of one {attribute} and class; ask for fewer"
        )
    draw = generator(seed, _COLOURED_META)
    taken, rest = take_per_class(val.groups, [per_class // 2] * 4, 4, draw)
    return val.subset(taken), val.subset(rest)


def check_paintable(splits: Splits) -> None:
    """Refuse images that can't become coloured digits.

    Raises:
        UserError: unless they are grey, in memory, of ten classes, nothing held out.
    """
    if not isinstance(splits.train.images, InMemory) or splits.image_shape[0] != 1:
        raise UserError(
            "only grey images in memory can be coloured: digits, mnist, fashion_mnist "
            "or an .npz file of grey images, and without channels=3"
        )
    if splits.num_classes != 10:
        raise UserError(
            f"coloured digits are made of ten classes, of which five become one, but "
            f"these images have {splits.num_classes}"
        )
    if len(splits.val) or len(splits.meta):
        raise UserError("coloured digits bring their own val and meta; hold out none")


def grey_pixels(part: Examples) -> Tensor:
    """The images of one part on the CPU, uint8, shape (N, H, W)."""
    assert isinstance(part.images, InMemory)
    return part.images.pixels.squeeze(1).cpu()


def painted(grey: Tensor, green: Tensor) -> InMemory:
    """Each grey image as channel 0 (red) or 1 (green); the other channels are 0.

    Args:
        grey: shape (N, H, W).
        green: True or 1 where an image becomes green, shape (N,).
    """
    count, height, width = grey.shape
    pixels = grey.new_zeros(count, 3, height, width)
    pixels[torch.arange(count), green.long()] = grey
    return InMemory(pixels)
