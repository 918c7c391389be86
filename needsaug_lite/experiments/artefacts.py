"""Trained classifiers on disk, and predictions as CSV files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from needsaug_lite import metrics, models
from needsaug_lite.data import Batches, Examples, Normalisation
from needsaug_lite.data.folders import SUFFIXES, OnDisk, class_folders, readable
from needsaug_lite.errors import UserError
from needsaug_lite.experiments.registry import entry
from needsaug_lite.experiments.runner import Prepared
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.experiments.supernets import OPTIONS
from needsaug_lite.files import atomic_path
from needsaug_lite.metrics import Predictions
from needsaug_lite.models import CellNetwork, Classifier, Genotype

_FORMAT = 1
# In a file: the network is made of cells that were found.
_CELLS, _SECOND_HEAD = "cells", "backbone.auxiliary."


@dataclass(frozen=True)
class SavedClassifier:
    """A trained network with everything that a prediction needs."""

    model: Classifier
    normalisation: Normalisation
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]


def check_savable(spec: Spec) -> None:
    """Refuse to save a classifier that can't read images.

    Raises:
        UserError: if it was trained on frozen features.
    """
    if spec.features is not None:
        raise UserError(
            "a classifier of frozen features can't predict image files, because the "
            "network that makes the features isn't part of it; leave out --save-model"
        )


def save_classifier(file: Path, spec: Spec, ready: Prepared) -> None:
    """Write a trained classifier to one file, in one atomic step.

    Raises:
        UserError: see `check_savable`.
    """
    check_savable(spec)
    trained = ready.method.model
    weights = trained.state_dict()
    network = spec.model.model_dump(mode="json", exclude={"weights", *OPTIONS})
    found = getattr(trained, "backbone", None)
    if isinstance(found, CellNetwork):
        network = {"backbone": _CELLS, **found.settings}
        # The second head served the training alone.
        weights = {n: w for n, w in weights.items() if not n.startswith(_SECOND_HEAD)}
    content = {
        "format": _FORMAT,
        "method": spec.method,
        "network": network,
        "image_shape": list(ready.splits.image_shape),
        "class_names": list(ready.splits.class_names),
        "normalisation": asdict(ready.normalisation),
        "weights": weights,
    }
    with atomic_path(file) as temporary:
        torch.save(content, temporary)


def load_classifier(file: Path, device: str = "cpu") -> SavedClassifier:
    """Read what `save_classifier` wrote.

    Raises:
        UserError: if the file is missing, damaged, or holds something else.
    """
    if not file.is_file():
        raise UserError(f"{file} doesn't exist; `needsaug run --save-model` writes one")
    try:
        content: dict[str, Any] = torch.load(
            file, map_location=device, weights_only=True
        )
        shape, names = tuple(content["image_shape"]), tuple(content["class_names"])
        network = dict(content["network"])
        kind = network.pop("backbone")
        if kind == _CELLS:
            cells = Genotype.from_lists(network.pop("genotype"))
            model = models.build_from_cells(cells, shape, len(names), **network)
        else:
            head = entry(content["method"]).load().head
            model = models.build(kind, shape, len(names), head=head, **network)
        model.load_state_dict(content["weights"])
        moments = {key: tuple(v) for key, v in content["normalisation"].items()}
    except Exception as error:  # torch raises several unrelated types here
        raise UserError(f"{file} holds no saved classifier ({error!r})") from error
    return SavedClassifier(model.to(device), Normalisation(**moments), names, shape)


def find_images(place: Path, class_names: tuple[str, ...]) -> tuple[list[Path], bool]:
    """Image files of a folder, and whether its folders are the model's classes."""
    if place.is_file():
        return [place], False
    files = sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{place} holds no image ({', '.join(sorted(SUFFIXES))})")
    try:
        labelled = {p.name for p in class_folders(place)} <= set(class_names)
    except UserError:
        labelled = False
    return files, labelled


def predict_files(
    saved: SavedClassifier,
    place: Path,
    device: str = "cpu",
    *,
    skip_broken: bool = False,
) -> pd.DataFrame:
    """Predictions for an image or a folder of images.

    Returns:
        One line per image: path, label (empty where the folders aren't the model's
        classes), prediction, and the probabilities `p:CLASS`.
    """
    files, labelled = find_images(place, saved.class_names)
    channels, size, _ = saved.image_shape
    names = saved.class_names
    if skip_broken:
        files = [path for path in files if readable(path)]
    folders = [p.relative_to(place).parts[0] if labelled else "" for p in files]
    classes = [name if name in saved.class_names else "" for name in folders]
    examples = Examples(
        OnDisk(tuple(files), channels, size, workers=0),
        torch.zeros(len(files), dtype=torch.int64, device=device),
    )
    batches = Batches(examples, 100, saved.normalisation, shuffle=False)
    shares = metrics.predict(saved.model, batches.epoch(0)).logits.softmax(1)
    frame = pd.DataFrame(shares.numpy(), columns=[f"p:{name}" for name in names])
    guesses = [names[guess] for guess in shares.argmax(1).tolist()]
    frame.insert(0, "prediction", guesses)
    frame.insert(0, "label", classes)
    frame.insert(0, "path", [str(path) for path in files])
    return frame


def read_predictions(file: Path) -> tuple[Predictions, tuple[str, ...]]:
    """Predictions from a CSV with a column `label` and one column `p:CLASS` a class.

    This is what `needsaug predict` writes for a folder of class folders; any other
    model may have made it.

    Raises:
        UserError: if a column is missing, a label is unknown, or the probabilities
            of a line are no probabilities.
    """
    try:
        # Read as text: a class may be called "None" or "1".
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} can't be read as CSV: {error}") from error
    columns = [name for name in frame.columns if name.startswith("p:")]
    if "label" not in frame or len(columns) < 2:
        raise UserError(
            f"{file} needs a column `label` and a column `p:CLASS` for each of at "
            f"least two classes; it has {', '.join(frame.columns)}"
        )
    names = tuple(name.removeprefix("p:") for name in columns)
    if frame.empty:
        raise UserError(f"{file} holds no prediction, only the names of the columns")
    if (frame["label"] == "").any():
        raise UserError(
            f"{file} lacks labels: a need is measured on images whose class is known. "
            "Predict a folder of class folders, or fill the column `label`"
        )
    unknown = sorted(set(frame["label"]) - set(names))
    if unknown:
        raise UserError(
            f"{file}: no column p:{unknown[0]} for the label {unknown[0]!r}; the "
            f"classes are {', '.join(names)}"
        )
    numbers = frame[columns].apply(pd.to_numeric, errors="coerce")
    shares = torch.from_numpy(numbers.to_numpy(dtype=np.float64, copy=True))
    off = (
        ((shares.sum(1) - 1).abs() > 1e-3) | (shares < 0).any(1) | shares.isnan().any(1)
    )
    if bool(off.any()):
        line = int(off.nonzero()[0]) + 2
        raise UserError(
            f"{file}, line {line}: the p: columns aren't numbers that add up to 1"
        )
    labels = torch.tensor([names.index(label) for label in frame["label"]])
    # A probability of 0 for the true class would make the loss infinite.
    return Predictions(shares.clamp(min=1e-12).log().float(), labels), names
