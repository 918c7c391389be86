"""Images replaced by what a network that never saw a label makes of them."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from needsaug_lite import metrics, models, training
from needsaug_lite.data import Examples, InMemory, Normalisation, Splits
from needsaug_lite.data.splits import PARTS, Images
from needsaug_lite.errors import UserError
from needsaug_lite.experiments.ingredients import FeatureSpec
from needsaug_lite.files import read_sealed, write_sealed
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.models import Classifier

TURNS = 4
_ACCURACY = "pretext_accuracy"
Made = dict[str, Tensor]


def frozen_features(
    splits: Splits,
    settings: FeatureSpec | None = None,
    *,
    seed: int = 0,
    cache: Path | None = None,
) -> Splits:
    """The same splits with features of a network in place of the images.

    The network is trained on the training images without their labels: it has to tell
    by how many quarter turns a copy of an image was turned and, for images in colour,
    whether its first two channels were swapped. Then it is frozen, and every image of
    every part goes through it once, in evaluation mode, as it is. On a CPU, a seed
    gives the same features bit for bit.

    Args:
        splits: square images, bytes, at least 8 x 8.
        settings: of the network and its training; default: `FeatureSpec()`.
        seed: weights at the start and order of the copies.
        cache: folder in which the features are kept and looked for first, in a file
            named by a hash of images, settings, seed and version of this code. A
            damaged file is made anew; where nothing can be written, nothing is kept.

    Returns:
        Splits with float32 "images" of shape (N, feature_dim, 1, 1), the labels and
        groups as they were, and in `provenance` the settings with the accuracy of the
        pretext task in the last epoch (`features`) and the checksum of the images
        (`image_checksum`).

    Raises:
        UserError: for images that can't be turned or are too small.

    Source: the rotations are the pretext task of Gidaris et al. 2018 (RotNet); features
    of a frozen network under a linear head are how autobalance Sec. 4 (Waterbirds)
    works, there from ResNet-18.
    """
    settings = settings or FeatureSpec()
    checksum = splits.checksum()
    made, file = None, None
    if cache is not None:
        file = cache / f"{_key(checksum, settings, seed)}.features"
        made = _read(file)
    if made is None:
        made = _make(splits, settings, seed)
        if file is not None:
            _write(file, made)
    parts: Any = {part: _replaced(getattr(splits, part), made[part]) for part in PARTS}
    facts = {
        **settings.model_dump(),
        "seed": seed,
        "version": settings.version,
        _ACCURACY: float(made[_ACCURACY]),
    }
    provenance = {**splits.provenance, "features": facts, "image_checksum": checksum}
    return replace(splits, **parts, provenance=provenance)


def image_checksum(splits: Splits) -> str:
    """Checksum of the images, also where features have taken their place.

    The last bits of features may differ between machines; the images don't.
    """
    found = splits.provenance.get("image_checksum")
    return splits.checksum() if found is None else str(found)


def pretext_examples(images: Images) -> Examples:
    """Turned copies of every image, and of colour images also with swapped channels.

    The label is the number t of quarter turns to the left, plus 4 where the first two
    channels were swapped.

    Args:
        images: N square images with 1 or 3 channels.

    Returns:
        4 N examples of grey images, 8 N of colour images: the copies with label 0
        (as they are) first, in the order of `images`, then those with label 1, ...

    Raises:
        UserError: if the images aren't square, or are features already.
    """
    channels, height, width = images.shape
    if height != width:
        raise UserError(
            f"images are {height} x {width} pixels; features are learned from quarter "
            "turns, which need square images. Bring them to one size with image_size"
        )
    pixels = torch.cat(list(images.stream(torch.arange(len(images)).split(500))))
    if pixels.is_floating_point():
        raise UserError("these images are features already; leave features out")
    colours = [pixels]
    if channels == 3:
        colours.append(pixels[:, [1, 0, 2]])
    views = [one.rot90(turns, (2, 3)) for one in colours for turns in range(TURNS)]
    labels = torch.arange(len(views), device=pixels.device)
    copies = InMemory(torch.cat(views))
    return Examples(copies, labels.repeat_interleave(len(images)))


def _make(splits: Splits, settings: FeatureSpec, seed: int) -> Made:
    """Train the network and send every part through it."""
    examples = pretext_examples(splits.train.images)
    none, names = examples.subset(torch.arange(0)), _names(splits.image_shape[0])
    task = Splits(examples, none, none, none, names)
    normalisation = Normalisation.of(task)
    model = _extractor(splits.image_shape, settings, task.num_classes, seed)
    model.to(splits.train.labels.device)
    optimisation = training.Optimisation(
        lr=settings.lr, batch_size=settings.batch_size, schedule="cosine"
    )
    method: Any = CrossEntropy(
        model, task, optimisation=optimisation, normalisation=normalisation, seed=seed
    )
    history = training.fit(method, settings.epochs)
    made = {
        part: _features(model, getattr(splits, part), normalisation) for part in PARTS
    }
    made[_ACCURACY] = torch.tensor(history.rows[-1]["accuracy"], dtype=torch.float64)
    return made


def _names(channels: int) -> tuple[str, ...]:
    turned = [f"turned by {90 * turn}°" for turn in range(TURNS)]
    swapped = [f"{name}, channels swapped" for name in turned if channels == 3]
    return (*turned, *swapped)


def _extractor(
    shape: tuple[int, int, int], settings: FeatureSpec, classes: int, seed: int
) -> Classifier:
    """Features h = relu(W convnet(x) + b), shape (B, D), and a head for the task."""
    dim = settings.feature_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A convnet with D "classes" is a convnet with a layer to D features.
        wide = models.build("convnet", shape, dim, width=settings.width)
        head = models.make_head("linear", dim, classes)
    return Classifier(nn.Sequential(wide, nn.ReLU()), dim, head)


def _features(
    model: Classifier, part: Examples, normalisation: Normalisation
) -> Tensor:
    """Features of a part, float32, on the CPU, shape (N, D, 1, 1)."""
    if len(part) == 0:
        return torch.empty(0, model.feature_dim, 1, 1)
    found = metrics.predict_all(model.backbone, part, normalisation)
    return found.logits[:, :, None, None]


def _replaced(part: Examples, features: Tensor) -> Examples:
    return replace(part, images=InMemory(features.to(part.labels.device)))


def _key(checksum: str, settings: FeatureSpec, seed: int) -> str:
    named = [checksum, settings.model_dump(mode="json"), seed, settings.version]
    text = json.dumps(named, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _write(file: Path, made: Made) -> None:
    stream = io.BytesIO()
    arrays: Any = {name: values.numpy() for name, values in made.items()}
    np.savez(stream, **arrays)
    write_sealed(file, stream.getvalue())


def _read(file: Path) -> Made | None:
    """What `_write` wrote, or None if that isn't there, whole."""
    content = read_sealed(file)
    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
