"""A generator on the bench: what it makes, before a judge that knows the data."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from needsaug_lite import data, metrics, models, training
from needsaug_lite.data import Batches, Examples, Normalisation, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.files import read_sealed, write_sealed
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.models import Classifier
from needsaug_lite.models.generators import Generator

COUNT, CLASS_COUNT = 2048, 100
_VERSION = 1
_IMAGES, _LATENTS, _LABELS, _CLASS_LATENTS = 901, 902, 903, 904
_WIDTH, _SEEN, _FEWEST_EPOCHS = 16, 48_000, 3
_OPTIMISATION = training.Optimisation(lr=0.1, batch_size=128, schedule="cosine")
Finder = Callable[[Tensor], Tensor]


def generator_scores(
    generator: Generator,
    judge: Classifier,
    normalisation: Normalisation,
    real: Examples,
    *,
    count: int = COUNT,
    seed: int = 0,
    finder: Finder | None = None,
    batch_size: int = 500,
    per_class: int = CLASS_COUNT,
) -> dict[str, Any]:
    """How good a generator's images are, beside as many real ones.

    Classes are drawn evenly; the scores of single classes come from images of their
    own, equally many of each class. All networks run in evaluation mode and are put
    back into the mode they had. A seed makes the same draws whatever the batch size and
    whoever is judged, so that two generators, or one with and without a finder, meet
    the same real images and, where they fit, the same latent vectors and classes.

    Args:
        generator: makes floats in [0, 1].
        judge: its features and logits are what is compared.
        normalisation: the judge's.
        real: images that neither the generator nor, better, the judge was trained on,
            such as the test part; on the device of both networks.
        count: generated images, and real images drawn from `real` without
            replacement; where there are fewer real images, as many as there are. Scores
            of different counts can't be compared.
        seed: draws real images, latent vectors and classes.
        finder: changes the latent vectors, (B, latent_dim) to the same shape, before
            they go into the generator.
        batch_size: images that are made at once.
        per_class: generated images of each class for the scores of single classes; 0
            leaves these scores out. Scores of different counts can't be compared.

    Returns:
        See `metrics.sample_scores` and `metrics.class_scores`; label_agreement and the
        scores of single classes are absent where the generator makes images of no given
        class.

    Raises:
        UserError: if the generator, the judge and the real images don't fit.
    """
    if min(count, batch_size) < 1 or per_class < 0:
        raise UserError(
            f"count is {count}, batch_size {batch_size} and per_class {per_class}; the "
            "first two must be at least 1, per_class 0 or more"
        )
    count = min(count, len(real))
    chosen = torch.randperm(len(real), generator=data.generator(seed, _IMAGES))
    shown = real.subset(chosen[:count].sort().values)
    latents = generator.noise(count, data.generator(seed, _LATENTS))
    labels = generator.labels(count, data.generator(seed, _LABELS))

    def features_of(latents: Tensor, labels: Tensor) -> Tensor:
        found = []
        for z, y in zip(
            latents.split(batch_size), labels.split(batch_size), strict=True
        ):
            images = generator.sample(z if finder is None else finder(z), y)
            _check_shape(images, real)
            found.append(judge.features(normalisation.from_unit(images)))
        return torch.cat(found)

    with _judging(judge, generator, finder), _own_draws(seed, labels.device):
        batches = Batches(shown, batch_size, normalisation, shuffle=False)
        real_features = torch.cat(
            [judge.features(batch.images) for batch in batches.epoch(0)]
        )
        _check_classes(generator, judge, real_features)
        features = features_of(latents, labels)
        logits = judge.head(features)
        known = labels if generator.conditional else None
        scores: dict[str, Any] = dict(
            metrics.sample_scores(real_features, features, logits, known)
        )
        if known is not None and per_class:
            classes = torch.arange(generator.num_classes, device=labels.device)
            each = classes.repeat_interleave(per_class)
            draw = data.generator(seed, _CLASS_LATENTS)
            latents = generator.noise(len(each), draw)
            logits = judge.head(features_of(latents, each))
            scores |= metrics.class_scores(logits, each)
    return scores


def judge_for(
    name: str,
    root: Path | str | None = None,
    *,
    epochs: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Classifier, Normalisation, str]:
    """A small network that has learned all training images of a data set.

    A convnet with plain cross-entropy on the training part of `data.load(name, root)`,
    with no bias. On a CPU, a seed gives the same network bit for bit, and the caller's
    random state stays as it is.

    Args:
        name: of the data set, a folder or a file; see `data.load`.
        root: folder of the published data sets.
        epochs: default: as many as show it 48,000 images, and at least 3.
        seed: weights at the start and order of the images.
        cache: folder in which the network is kept and looked for first, in a file named
            by a hash of images, settings, seed and version of this code. A damaged file
            is made anew; where nothing can be written, nothing is kept.
        device: where it is trained and returned.

    Returns:
        The network in evaluation mode, its normalisation, and a description of both for
        a reader of the scores, with its accuracy on the test part.

    Raises:
        UserError: for data that can't be loaded, images below 8 x 8 pixels, or epochs
            below 1.
    """
    splits = data.load(name, root).to(device)
    if epochs is None:
        epochs = max(_FEWEST_EPOCHS, -(-_SEEN // len(splits.train)))
    if epochs < 1:
        raise UserError(f"epochs is {epochs}; a judge needs at least 1")
    normalisation = Normalisation.of(splits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = models.build(
            "convnet", splits.image_shape, splits.num_classes, width=_WIDTH
        )
    judge.to(splits.train.labels.device)
    file = None if cache is None else cache / f"{_key(splits, epochs, seed)}.judge"
    sealed = None if file is None else read_sealed(file)
    content: dict[str, Any]
    if sealed is None:
        accuracy = _train(judge, splits, normalisation, epochs, seed)
        content = {"weights": judge.state_dict(), "accuracy": accuracy}
        stream = io.BytesIO()
        torch.save(content, stream)
        if file is not None:
            write_sealed(file, stream.getvalue())
    else:
        content = torch.load(io.BytesIO(sealed), map_location="cpu", weights_only=True)
    judge.load_state_dict(content["weights"])
    description = (
        f"convnet of width {_WIDTH}, trained on all {len(splits.train):,} training "
        f"images of {splits.provenance['name']}, {epochs} epochs, right on "
        f"{content['accuracy']:.1%} of its test images"
    )
    return judge.eval(), normalisation, description


def _train(
    judge: Classifier,
    splits: Splits,
    normalisation: Normalisation,
    epochs: int,
    seed: int,
) -> float:
    """Train the judge in place; its accuracy on the test part."""
    method: Any = CrossEntropy(
        judge,
        splits,
        optimisation=_OPTIMISATION,
        normalisation=normalisation,
        seed=seed,
    )
    training.fit(method, epochs)
    return float(metrics.evaluate(judge, splits.test, normalisation)["top1"])


@contextmanager
def _judging(*parts: object) -> Iterator[None]:
    """Every network among `parts` in evaluation mode, without gradients."""
    networks = [part for part in parts if isinstance(part, nn.Module)]
    modes = [(module, module.training) for net in networks for module in net.modules()]
    for network in networks:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _own_draws(seed: int, device: torch.device) -> Iterator[None]:
    """Draws that a generator makes by itself depend on the seed, and on it alone."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _check_classes(generator: Generator, judge: Classifier, features: Tensor) -> None:
    classes = judge.head(features[:1]).shape[1]
    if generator.conditional and generator.num_classes != classes:
        raise UserError(
            f"the generator makes images of {generator.num_classes} classes, but the "
            f"judge knows {classes}; take a judge of the generator's data set"
        )


def _check_shape(images: Tensor, real: Examples) -> None:
    if tuple(images.shape[1:]) != tuple(real.images.shape):
        made, there = tuple(images.shape[1:]), tuple(real.images.shape)
        raise UserError(
            f"the generator makes images of (channels, height, width) {made}, but the "
            f"real images have {there}; compare it with the images it was trained for"
        )


def _key(splits: Splits, epochs: int, seed: int) -> str:
    settings = asdict(_OPTIMISATION)
    del settings["kind"]  # judges that are kept have names without it
    named = [splits.checksum(), _WIDTH, settings, epochs, seed, _VERSION]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]
