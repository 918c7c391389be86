"""Trained classifiers on disk, and their predictions for files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from needsaug_lite import metrics, models
from needsaug_lite.data import Batches, Examples, Normalisation
from needsaug_lite.data.folders import SUFFIXES, OnDisk, class_folders
from needsaug_lite.errors import UserError
from needsaug_lite.experiments.registry import entry
from needsaug_lite.experiments.runner import Prepared
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.files import atomic_path
from needsaug_lite.models import Classifier

_FORMAT = 1


@dataclass(frozen=True)
class SavedClassifier:
    """A trained network with everything that a prediction needs."""

    model: Classifier
    normalisation: Normalisation
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]


def save_classifier(file: Path, spec: Spec, ready: Prepared) -> None:
    """Write a trained classifier to one file, in one atomic step."""
    content = {
        "format": _FORMAT,
        "method": spec.method,
        "network": spec.model.model_dump(mode="json", exclude={"weights"}),
        "image_shape": list(ready.splits.image_shape),
        "class_names": list(ready.splits.class_names),
        "normalisation": asdict(ready.normalisation),
        "weights": ready.method.model.state_dict(),
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
        head = entry(content["method"]).load().head
        model = models.build(
            network.pop("backbone"), shape, len(names), head=head, **network
        )
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
    saved: SavedClassifier, place: Path, device: str = "cpu"
) -> pd.DataFrame:
    """Predictions for an image or a folder of images.

    Returns:
        One line per image: path, label (empty where the folders aren't the model's
        classes), prediction, and the probabilities `p:CLASS`.
    """
    files, labelled = find_images(place, saved.class_names)
    channels, size, _ = saved.image_shape
    names = saved.class_names
    classes = [p.relative_to(place).parts[0] if labelled else "" for p in files]
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
