"""From a spec to a row."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from needsaug_lite import data, metrics, models, training
from needsaug_lite.data import Cells, Normalisation, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import records, registry
from needsaug_lite.experiments.features import frozen_features, image_checksum
from needsaug_lite.experiments.perturbations import perturbation_scores
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.files import digest
from needsaug_lite.metrics import Predictions
from needsaug_lite.models import Classifier

# A confusion matrix of more classes than this would make a row large.
CONFUSION_LIMIT = 20


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, on its device, before the first step."""

    splits: Splits
    normalisation: Normalisation
    model: Classifier
    method: training.Method


def prepare(
    spec: Spec, root: Path | None = None, device: str | torch.device = "cpu"
) -> Prepared:
    """Load the data, build the network from the seed, and make the method.

    Features are made on the CPU, so that no device changes them, and kept in the
    folder `features` beside the published data sets.
    """
    options = spec.data.model_dump(exclude={"name"})
    splits = data.load(spec.data.name, root, seed=spec.seed, **options)
    if spec.features is not None:
        cache = data.default_root(root) / "features"
        splits = frozen_features(splits, spec.features, seed=spec.seed, cache=cache)
    return prepare_with(splits.to(device), spec)


def prepare_with(splits: Splits, spec: Spec) -> Prepared:
    """Network and method of a spec for data that are at hand, on their device.

    The method gets the splits without true labels; the evaluation keeps them.
    """
    chosen = registry.entry(spec.method)
    method_class = chosen.load()
    torch.manual_seed(spec.seed)
    model = models.build(
        spec.model.backbone,
        splits.image_shape,
        splits.num_classes,
        width=spec.model.width,
        feature_dim=spec.model.feature_dim,
        head=method_class.head,
        weights=spec.model.weights,
    ).to(splits.train.labels.device)
    normalisation = data.IMAGENET if spec.model.weights else Normalisation.of(splits)
    method = method_class(
        model,
        splits.without_true_labels(),
        optimisation=spec.optimisation,
        augment=spec.augment,
        normalisation=normalisation,
        seed=spec.seed,
        **registry.arguments(spec.method, spec.hyperparameters),
        **chosen.fixed,
    )
    return Prepared(splits, normalisation, model, method)


def run(
    spec: Spec,
    *,
    results: Path | None = None,
    root: Path | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    every: int = 1,
    resume: bool = False,
    progress: bool | None = None,
    starts: Path | None = None,
    prepared: Prepared | None = None,
) -> Record:
    """Train, evaluate, and write the row; a row that exists is read instead.

    Args:
        spec: the run.
        results: folder of the rows; None writes nothing.
        root: folder of the published data sets; see `data.default_root`.
        device: where tensors live; it isn't part of the spec.
        checkpoint, every, resume, progress: see `training.fit`.
        starts: folder in which first stages that several methods share are kept and
            looked for; see `training.SharedStart`.
        prepared: then it trains also if the row exists, and leaves the row as it is;
            what `prepare` returned for this spec, if the caller needs the
            trained model afterwards.

    Returns:
        The row.
    """
    known = None if results is None else records.row_path(spec, results)
    if known is not None and known.exists() and prepared is None:
        return checked_row(known, spec, root)
    place = torch.device(device)
    ready = prepared or prepare(spec, root, place)
    checksum = image_checksum(ready.splits)
    if known is not None:
        # A folder that can't be written is found before the training, not after it.
        known.parent.mkdir(parents=True, exist_ok=True)
    history = training.fit(
        ready.method,
        spec.epochs,
        checkpoint=checkpoint,
        every=every,
        resume=resume,
        run=f"{spec.run_id} on data {checksum[:16]}",
        progress=progress,
        **_shared_start(spec, ready.method, checksum, place, starts),
    )
    counts = ready.splits.class_counts
    part = getattr(ready.splits, spec.evaluate_on)
    predictions = metrics.predict_all(ready.method.model, part, ready.normalisation)
    scores = metrics.from_predictions(predictions, counts)
    if ready.splits.num_classes > CONFUSION_LIMIT:
        del scores["confusion"]
    scores |= noise_scores(ready) | attribute_scores(spec, ready, predictions)
    scores |= fairness_scores(ready, predictions) | gamo_scores(spec, predictions)
    if isinstance(ready.method, training.LossDesigning):
        found = ready.method.loss_parameters
        scores["loss_parameters"] = {
            name: None if table is None else table.tolist()
            for name, table in found.items()
        }
    if isinstance(ready.method, training.Perturbing):
        scores |= perturbation_scores(
            ready.method.epsilon, ready.splits.train, ready.splits.num_classes
        )
    record = Record(
        run_id=spec.run_id,
        method_version=spec.method_version,
        spec=spec,
        metrics=scores,
        class_counts=counts.tolist(),
        history=history.rows,
        seconds=history.seconds,
        peak_memory_mib=records.peak_memory_mib(place),
        threads=torch.get_num_threads(),
        device=records.device_name(place),
        data_checksum=checksum,
        weights_sha256=_weights_digest(spec),
        created=records.now(),
        **records.provenance(),
    )
    if results is not None and known is not None and not known.exists():
        record.save(results)
    return record


def _shared_start(
    spec: Spec,
    method: training.Method,
    checksum: str,
    device: torch.device,
    folder: Path | None,
) -> dict[str, Any]:
    """Where the first stage of a run is kept, by all that it depends on."""
    if folder is None or not isinstance(method, training.SharedStart):
        return {}
    shared = {"data", "features", "model", "optimisation", "augment", "epochs", "seed"}
    settings = {
        **spec.model_dump(mode="json", include=shared),
        "settings": dict(method.start_settings),
        "images": checksum,
        "weights": _weights_digest(spec),
        "torch": torch.__version__,
        "device": device.type,
    }
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return {"start": folder / f"{name[:16]}.start", "start_run": name}


def noise_scores(ready: Prepared) -> dict[str, Any]:
    """How well the wrong training labels were found, if there are known ones.

    The score is the method's own `suspicion` if it has one, and otherwise the
    cross-entropy of the training images as they are, without augmentation, under the
    final network.

    Returns:
        `noise_average_precision`, or nothing where no label is known to be wrong.
    """
    train = ready.splits.train
    wrong = train.mislabelled
    if wrong is None or not bool(wrong.any()):
        return {}
    if isinstance(ready.method, training.Suspicious):
        score = ready.method.suspicion()
    else:
        score = metrics.sample_losses(ready.method.model, train, ready.normalisation)
    found = metrics.noise_average_precision(score.cpu(), wrong.cpu())
    return {"noise_average_precision": found}


def attribute_scores(
    spec: Spec, ready: Prepared, predictions: Predictions
) -> dict[str, Any]:
    """Scores under other distributions of attributes, if the data have attributes.

    Returns:
        See `metrics.generalised_long_tail_scores`; nothing for other data.
    """
    groups = ready.splits.train.groups
    if spec.data.attribute_imbalance is None or groups is None:
        return {}
    return dict(
        metrics.generalised_long_tail_scores(predictions, groups, spec.data.attributes)
    )


def gamo_scores(spec: Spec, predictions: Predictions) -> dict[str, Any]:
    """Scores on the test images that GAMO draws, if the training images are GAMO's.

    Args:
        spec: its seed draws the images.
        predictions: of the whole test part, in its order.

    Returns:
        `gamo_test` with `balanced_accuracy` (GAMO's ACSA) and `geometric_mean` (its
        GM) of 100 images per class; nothing for other data or another part.
    """
    if not spec.data.gamo or spec.evaluate_on != "test":
        return {}
    logits, labels = predictions.logits, predictions.labels
    index = data.gamo_test_index(labels, logits.shape[1], spec.seed)
    found = metrics.from_predictions(Predictions(logits[index], labels[index]))
    names = ("balanced_accuracy", "geometric_mean")
    return {"gamo_test": {name: found[name] for name in names}}


def fairness_scores(ready: Prepared, predictions: Predictions) -> dict[str, float]:
    """Scores of fairness, if the images have groups with two attributes.

    Returns:
        See `metrics.fairness_scores`; nothing for other data.
    """
    if predictions.groups is None or ready.splits.train.groups is None:
        return {}
    cells = Cells.of(ready.splits)
    if cells.attributes != 2:
        return {}
    counts = cells.counts(ready.splits.train)
    return metrics.fairness_scores(predictions, cells, counts)


def checked_row(file: Path, spec: Spec, root: Path | None = None) -> Record:
    """The row of a spec, refused if it was made from other images or weights.

    A spec names the user's own folder, .npz or weights by a path; what lies there may
    have changed since the row was written. The published data sets can't change.

    Raises:
        UserError: if the row is damaged, or the files behind its paths are others now.
    """
    record = records.read_record(file)
    other = "weights" if _weights_digest(spec) != record.weights_sha256 else ""
    if spec.data.name not in data.NAMES:
        options = spec.data.model_dump(exclude={"name"})
        splits = data.load(spec.data.name, root, seed=spec.seed, **options)
        other = "images" if splits.checksum() != record.data_checksum else other
    if other:
        raise UserError(
            f"{file} was made from other {other} than those that the settings name "
            "now. Give the new run another `experiment`, or move the old row away"
        )
    return record


def _weights_digest(spec: Spec) -> str | None:
    weights = spec.model.weights
    return digest(weights) if weights is not None and weights.is_file() else None
