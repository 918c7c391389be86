"""From a spec to a row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from needsaug_lite import data, metrics, models, training
from needsaug_lite.data import Normalisation, Splits
from needsaug_lite.experiments import records, registry
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.spec import Spec
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
    """Load the data, build the network from the seed, and make the method."""
    options = spec.data.model_dump(exclude={"name"})
    splits = data.load(spec.data.name, root, seed=spec.seed, **options)
    return prepare_with(splits.to(device), spec)


def prepare_with(splits: Splits, spec: Spec) -> Prepared:
    """Network and method of a spec for data that are at hand, on their device."""
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
        splits,
        optimisation=spec.optimisation,
        augment=spec.augment,
        normalisation=normalisation,
        seed=spec.seed,
        **spec.hyperparameters,
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
    prepared: Prepared | None = None,
) -> Record:
    """Train, evaluate, and write the row; a row that exists is read instead.

    Args:
        spec: the run.
        results: folder of the rows; None writes nothing.
        root: folder of the published data sets; see `data.default_root`.
        device: where tensors live; it isn't part of the spec.
        checkpoint, every, resume, progress: see `training.fit`.
        prepared: what `prepare` returned for this spec, if the caller needs the
            trained model afterwards.

    Returns:
        The row.
    """
    if results is not None and prepared is None:
        known = records.row_path(spec, results)
        if known.exists():
            return records.read_record(known)
    place = torch.device(device)
    ready = prepared or prepare(spec, root, place)
    history = training.fit(
        ready.method,
        spec.epochs,
        checkpoint=checkpoint,
        every=every,
        resume=resume,
        run=spec.run_id,
        progress=progress,
    )
    counts = ready.splits.class_counts
    part = getattr(ready.splits, spec.evaluate_on)
    scores = metrics.evaluate(
        ready.method.model, part, ready.normalisation, class_counts=counts
    )
    if ready.splits.num_classes > CONFUSION_LIMIT:
        del scores["confusion"]
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
        data_checksum=ready.splits.checksum(),
        created=records.now(),
        **records.provenance(),
    )
    if results is not None:
        record.save(results)
    return record
