"""From a spec to a row."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from needsaug_lite import data, metrics, training
from needsaug_lite.data.team import ALONE, Team
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import records
from needsaug_lite.experiments.features import image_checksum
from needsaug_lite.experiments.perturbations import perturbation_scores
from needsaug_lite.experiments.preparing import Prepared, prepare, prepare_with
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.experiments.special_scores import (
    allocation_scores,
    architecture_scores,
    attribute_scores,
    fairness_scores,
    first_classifier_scores,
    gamo_scores,
    generated_scores,
    noise_scores,
)
from needsaug_lite.files import digest

__all__ = [
    "Prepared",
    "checked_row",
    "gamo_scores",
    "noise_scores",
    "prepare",
    "prepare_with",
    "run",
]

# A confusion matrix of more classes than this would make a row large.
CONFUSION_LIMIT = 20


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
            trained model afterwards. If it was prepared for a team, all of its
            processes train and evaluate, and the first one writes.

    Returns:
        The row.

    Raises:
        UserError: if the processes of a team have found different images.
    """
    known = None if results is None else records.row_path(spec, results)
    if known is not None and known.exists() and prepared is None:
        return checked_row(known, spec, root)
    place = torch.device(device)
    ready = prepared or prepare(spec, root, place)
    checksum = image_checksum(ready.splits)
    team: Team = getattr(ready.method, "team", ALONE)
    _require_same_images(team, checksum, place)
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
    scores |= generated_scores(spec, ready, root) | allocation_scores(ready)
    scores |= first_classifier_scores(ready, part)
    scores |= architecture_scores(ready, history)
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
        processes=team.size,
        created=records.now(),
        **records.provenance(),
    )
    missing = known is not None and not known.exists()
    if results is not None and missing and team.leads:
        record.save(results)
    return record


def _require_same_images(team: Team, checksum: str, device: torch.device) -> None:
    if team.size == 1:
        return
    # As many bits as a float64 holds exactly.
    if len(set(team.everyone(int(checksum[:13], 16), device))) > 1:
        raise UserError(
            "the processes have found different images under the same name: give all "
            "of them the same folder"
        )


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
        splits = spec.load_data(root)
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
