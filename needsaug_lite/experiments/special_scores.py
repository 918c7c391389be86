"""Scores of a run beyond its accuracy, where the data have what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from needsaug_lite import data, metrics, training
from needsaug_lite.data import Cells, Examples
from needsaug_lite.experiments.generated_quality import generator_scores, judge_for
from needsaug_lite.experiments.preparing import Prepared
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.metrics import Predictions
from needsaug_lite.models import Generator


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
        spec: the seed of its data draws the images.
        predictions: of the whole test part, in its order.

    Returns:
        `gamo_test` with `balanced_accuracy` (GAMO's ACSA) and `geometric_mean` (its
        GM) of 100 images per class; nothing for other data or another part.
    """
    if not spec.data.gamo or spec.evaluate_on != "test":
        return {}
    logits, labels = predictions.logits, predictions.labels
    index = data.gamo_test_index(labels, logits.shape[1], spec.data_seed)
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


def allocation_scores(ready: Prepared) -> dict[str, Any]:
    """How a method shared out the generated images, if it decided that.

    Returns:
        `allocation`, see `training.Budgeting`; nothing for other methods, and where
        nothing was shared out.
    """
    if not isinstance(ready.method, training.Budgeting):
        return {}
    found = ready.method.allocation_summary()
    return {"allocation": found} if found else {}


def architecture_scores(ready: Prepared, history: training.History) -> dict[str, Any]:
    """What a search found, and how long its stages took.

    Args:
        ready: after training.
        history: of the training.

    Returns:
        `architecture`, see `training.Searching`, and `stage_seconds`, the time of the
        epochs of every stage by its name; nothing for methods without a search.
    """
    if not isinstance(ready.method, training.Searching):
        return {}
    seconds: dict[str, float] = {}
    for row in history.rows:
        seconds[row["stage"]] = seconds.get(row["stage"], 0.0) + row["seconds"]
    return {
        "architecture": ready.method.architecture_summary(),
        "stage_seconds": seconds,
    }


def first_classifier_scores(ready: Prepared, part: Examples) -> dict[str, Any]:
    """How good the other classifier of a method is, if it has one.

    Args:
        ready: after training.
        part: the images that the method's own network is judged on.

    Returns:
        `first_classifier` with balanced_accuracy, top1, per_class and ece, see
        `metrics.from_predictions`; nothing for methods with one classifier.
    """
    method = ready.method
    if not isinstance(method, training.TwoClassifiers) or method.first is None:
        return {}
    found = metrics.evaluate(method.first, part, ready.normalisation)
    names = ("balanced_accuracy", "top1", "per_class", "ece")
    return {"first_classifier": {name: found[name] for name in names}}


def generated_scores(spec: Spec, ready: Prepared, root: Path | None) -> dict[str, Any]:
    """How good the generated images were that the run was given.

    Args:
        spec: the run.
        ready: after training.
        root: folder of the published data sets; the judge is kept there too.

    Returns:
        `generator`: its name (a hash), label, seconds of training, whether runs of
        other seeds share it, and `uniform`, the scores of its images; after a search
        also `searched`, those of images from where the finder points; where the method
        has a generator of its own, such as one that it went on training, also
        `trained`, the scores of that one as the method left it. See
        `generator_scores`; no scores where the judge would see other images than the
        method did. Nothing for methods without generated images.
    """
    made = ready.generator
    if made is None:
        return {}
    facts = {
        "name": made.name,
        "label": made.label,
        "seconds": made.seconds,
        "shared": spec.data.seed is not None,
    }
    if not _as_published(spec):
        return {"generator": facts}
    judge, normalisation, description = judge_for(
        spec.data.name,
        root,
        cache=data.default_root(root) / "judges",
        device=ready.splits.train.labels.device,
    )
    facts["judge"] = description
    ways: dict[str, tuple[Generator, Any]] = {"uniform": (made.generator, None)}
    if hasattr(ready.method, "finder"):
        ways["searched"] = made.generator, ready.method.finder
    own = getattr(ready.method, "generator", None)
    if isinstance(own, Generator) and own is not made.generator:
        ways["trained"] = own, None
    for way, (generator, finder) in ways.items():
        facts[way] = generator_scores(
            generator,
            judge,
            normalisation,
            ready.splits.test,
            seed=spec.data_seed,
            finder=finder,
        )
    return {"generator": facts}


def _as_published(spec: Spec) -> bool:
    """Whether the images of the run look like those that `data.load(name)` gives."""
    changed = (spec.data.image_size, spec.data.channels, spec.data.group_counts)
    return not spec.data.colour and all(value is None for value in changed)
