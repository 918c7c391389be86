"""Every data set behind one function: `load`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from needsaug_lite.data import arrays, bias, folders, groups, waterbirds
from needsaug_lite.data.attributes import ATTRIBUTES, attribute_tail
from needsaug_lite.data.gamo import gamo_train
from needsaug_lite.data.published import SOURCES, load_published
from needsaug_lite.data.splits import Examples, InMemory, Splits, generator
from needsaug_lite.data.spurious import coloured_groups
from needsaug_lite.errors import UserError

#: Published data sets that `load` knows.
NAMES = ("digits", *SOURCES)
_TEST_SPLIT_SEED = 20260101  # the test part of digits and folders never changes


class _Tail(TypedDict):
    imbalance: float | None
    n_max: int | None
    counts: Sequence[int] | None
    shuffle_classes: bool


class _Held(TypedDict):
    val_per_class: int
    meta_per_class: int


def default_root(root: Path | str | None = None) -> Path:
    """Folder of the data sets: the argument, `NEEDSAUG_DATA`, or the user's cache.

    Args:
        root: goes before the other two; None leaves it to them.

    Returns:
        The folder, which may not exist yet.
    """
    import pooch

    if root is not None:
        return Path(root).expanduser()
    named = os.environ.get("NEEDSAUG_DATA")
    return Path(named).expanduser() if named else Path(pooch.os_cache("needsaug_lite"))


def load(
    name_or_path: str | Path,
    root: Path | str | None = None,
    *,
    imbalance: float | None = None,
    n_max: int | None = None,
    counts: Sequence[int] | None = None,
    shuffle_classes: bool = False,
    val_per_class: int = 0,
    meta_per_class: int = 0,
    noise: float = 0.0,
    noise_kind: bias.NoiseKind = "uniform",
    colour: bool = False,
    attribute_imbalance: float | None = None,
    attributes: int = ATTRIBUTES,
    group_counts: Sequence[int] | None = None,
    gamo: bool = False,
    kept: float | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    skip_broken: bool = False,
    seed: int = 0,
) -> Splits:
    """Load a data set and make it as long-tailed or noisy as asked.

    The order is fixed: validation and meta images are held out of the training
    images first (balanced, clean), then the tail is made, then a share is kept, then
    the noise is made. The test part is never touched, except that coloured digits
    bring their own.

    Args:
        name_or_path: digits, mnist, fashion_mnist, cifar10, cifar100, waterbirds,
            waterbirds_features, a folder of class folders (or of `train` and `test`
            with class folders in them), or an .npz file with x_train, y_train,
            x_test, y_test.
        root: folder of the published data sets; see `default_root`.
        imbalance, n_max, counts, shuffle_classes: see `bias.long_tail`.
        val_per_class, meta_per_class: images of each class to hold out.
        noise, noise_kind: see `bias.label_noise`.
        colour: coloured digits in two classes; see `groups.colour`.
        attribute_imbalance, attributes: see `attribute_tail`; val and meta
            images are then balanced over attributes too.
        group_counts: coloured digits with right labels and these numbers of training
            images; see `spurious.coloured_groups`.
        gamo: GAMO's class sizes, drawn with replacement; val and meta images come
            from those it never draws; see `gamo_train`.
        kept: share of the training images of each class that stays: the small data of
            mgr Sec. 4.3, whose "reduced by" means the share kept (errata M12) and who
            draws over all images before it holds out 1 in 10; see `bias.keep_share`.
        image_size: height and width, for a folder of images (default 32) or
            waterbirds (default 224).
        channels: 1 or 3, for a folder; default: 1 if all images are grey. Grey
            images are repeated to three channels where 3 is asked for.
        skip_broken: leave unreadable image files out instead of refusing.
        seed: draws the held-out parts, the tail, what is kept, noise and colours.

    Returns:
        The four parts; `provenance` says how they were made.

    Raises:
        UserError: for anything that the caller can mend, in their words.
    """
    if channels not in (None, 1, 3):
        raise UserError(f"channels is {channels}; give 1 (grey) or 3 (colour)")
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size is {image_size}; it must be at least 1 pixel")
    if n_max is not None and n_max < 1:
        raise UserError(f"n_max is {n_max}; the largest class needs at least 1 image")
    name = str(name_or_path)
    if image_size is not None and name != "waterbirds" and not _is_folder(name):
        raise UserError(
            f"image_size is for a folder of images; {name_or_path} has a size of its "
            "own, leave image_size out"
        )
    tail: _Tail = {
        "imbalance": imbalance,
        "n_max": n_max,
        "counts": counts,
        "shuffle_classes": shuffle_classes,
    }
    held: _Held = {"val_per_class": val_per_class, "meta_per_class": meta_per_class}
    grouping = {"attribute_imbalance": attribute_imbalance, "attributes": attributes}
    others = {"colour": colour, "noise": noise, "channels": channels}
    more = {"name": name, "group_counts": group_counts, "skip_broken": skip_broken}
    own = {"gamo": gamo, "kept": kept}
    groups.check_options({**tail, **held, **grouping, **others, **more, **own})
    splits = _load_plain(name, root, image_size, channels, skip_broken)
    if colour:
        splits = groups.colour(splits, meta_per_class=meta_per_class, seed=seed)
    elif group_counts is not None:
        splits = coloured_groups(splits, group_counts, seed=seed, **held)
    elif gamo:
        splits = gamo_train(splits, seed, **held)
    elif name in groups.WATERBIRDS:
        splits = waterbirds.with_meta(splits, meta_per_class, seed)
    elif attribute_imbalance is not None:
        splits = attribute_tail(
            splits,
            attribute_imbalance=attribute_imbalance,
            attributes=attributes,
            seed=seed,
            **tail,
            **held,
        )
    else:
        splits = bias.with_held_out(splits, val_per_class, meta_per_class, seed)
        splits = _with_tail(splits, tail, seed)
    if kept is not None:
        splits = bias.keep_share(splits, kept, seed)
    if noise:
        splits = bias.label_noise(splits, noise, noise_kind, seed)
    empty = torch.nonzero(splits.class_counts.cpu() == 0).flatten().tolist()
    if empty:
        names = ", ".join(repr(splits.class_names[label]) for label in empty)
        raise UserError(f"no training image of class {names} is left or was given")
    return splits


def _with_tail(splits: Splits, tail: _Tail, seed: int) -> Splits:
    counts, n_max = tail["counts"], tail["n_max"]
    if counts is not None and n_max is not None:
        raise UserError("counts say the size of every class; leave n_max out")
    if tail["imbalance"] is not None or counts is not None:
        return bias.long_tail(splits, seed=seed, **tail)
    if n_max is None:
        return splits
    return bias.long_tail(splits, counts=[n_max] * splits.num_classes, seed=seed)


def _load_plain(
    name: str,
    root: Path | str | None,
    image_size: int | None,
    channels: int | None,
    skip_broken: bool,
) -> Splits:
    if name == "digits":
        splits = _digits()
    elif name in SOURCES:
        train, test, classes = load_published(name, default_root(root))
        splits = _splits(_examples(*train), _examples(*test), classes, name)
    elif name in groups.WATERBIRDS:
        return waterbirds.read(name, default_root(root), image_size)
    elif name.endswith(".npz"):
        splits = _splits(*arrays.read_npz(Path(name)), name)
    elif _is_folder(name):
        return _folder(Path(name), image_size or 32, channels, skip_broken)
    else:
        raise UserError(
            f"{name!r} is no data set, folder or .npz file; give one of "
            f"{', '.join([*NAMES, *groups.WATERBIRDS])}, or a path that exists"
        )
    return _with_channels(splits, channels)


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name that no file system takes
        return False


def _splits(
    train: Examples, test: Examples, classes: Sequence[str], name: str
) -> Splits:
    empty = train.subset(torch.arange(0))
    return Splits(train, empty, empty, test, tuple(classes), {"name": name})


def _examples(pixels: Tensor, labels: Tensor) -> Examples:
    return Examples(InMemory(pixels), labels)


def _digits() -> Splits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)
    everything = _examples(pixels.unsqueeze(1), torch.from_numpy(bunch.target).long())
    train, test = _stratified(everything, 10, test_share=1 / 3)
    splits = _splits(train, test, [str(digit) for digit in range(10)], "digits")
    return replace(splits, provenance={**splits.provenance, "split_here": True})


def _stratified(
    everything: Examples, num_classes: int, test_share: float
) -> tuple[Examples, Examples]:
    """The same share of every class goes to the test part, at least one image."""
    counts = everything.counts(num_classes)
    wanted = (counts * test_share).round().long().clamp(min=1)
    draw = generator(_TEST_SPLIT_SEED)
    test, train = bias.take_per_class(
        everything.labels, wanted.tolist(), num_classes, draw
    )
    return everything.subset(train), everything.subset(test)


def _folder(folder: Path, size: int, channels: int | None, skip_broken: bool) -> Splits:
    parts = {part: folder / part for part in ("train", "test", "val")}
    divided = parts["train"].is_dir()
    held_out = next((p for p in (parts["test"], parts["val"]) if p.is_dir()), None)
    base = parts["train"] if divided and held_out else folder
    names = [path.name for path in folders.class_folders(base)]
    depth = channels or folders.guess_channels(base)
    train, broken = folders.read_folder(base, names, size, depth, skip_broken)
    if divided and held_out:
        others = {path.name for path in folders.class_folders(held_out)} - set(names)
        if others:
            raise UserError(
                f"{held_out} has classes that {base} lacks: {', '.join(sorted(others))}"
                "; give both the same class folders"
            )
        test, more = folders.read_folder(held_out, names, size, depth, skip_broken)
        broken += more
    else:
        counts = train.counts(len(names)).tolist()
        small = [n for n, count in zip(names, counts, strict=True) if count < 2]
        if small:
            raise UserError(
                f"class {small[0]!r} in {folder} has one image; at least two are "
                "needed, one to train and one to test"
            )
        train, test = _stratified(train, len(names), test_share=0.2)
    splits = _splits(train, test, names, folder.name)
    facts = {"skipped": len(broken), "split_here": not (divided and held_out)}
    return replace(splits, provenance=splits.provenance | facts)


def _with_channels(splits: Splits, channels: int | None) -> Splits:
    if channels is None or channels == splits.image_shape[0]:
        return splits
    if channels != 3:
        raise UserError(
            f"{splits.provenance['name']} holds colour images, which are not turned "
            "grey; leave out channels=1"
        )

    def colour(part: Examples) -> Examples:
        assert isinstance(part.images, InMemory)
        pixels = part.images.pixels.expand(-1, 3, -1, -1)
        return replace(part, images=InMemory(pixels))

    return replace(
        splits,
        train=colour(splits.train),
        val=colour(splits.val),
        meta=colour(splits.meta),
        test=colour(splits.test),
    )
