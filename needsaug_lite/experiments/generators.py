"""Trained generators of images, kept by what they were made from."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from needsaug_lite import training
from needsaug_lite.data import Splits
from needsaug_lite.experiments import registry
from needsaug_lite.experiments.ingredients import GeneratorSpec
from needsaug_lite.files import read_sealed, write_sealed
from needsaug_lite.methods.generation.lengths import STEPS_PER_EPOCH
from needsaug_lite.models import Generator


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator that is ready to use, and how it came about.

    Attributes:
        generator: in evaluation mode, without gradients, on the device of the data.
        name: hash of images, settings, seed, code version and kind of device.
        label: name in tables.
        history: one row for every 100 steps of its training.
        seconds: that its training took.
        trainer: what trained it, such as `methods.generation.adversarial.BigGAN`, with
            all its networks as they were in the end, `generator` among them, and
            optimisers without a past; None where an older file holds no more than the
            generator and no more was asked for.
    """

    generator: Generator
    name: str
    label: str
    history: list[dict[str, Any]]
    seconds: float
    trainer: Any = None


def trained_generator(
    splits: Splits,
    spec: GeneratorSpec | None = None,
    *,
    seed: int = 0,
    cache: Path | None = None,
    whole: bool = False,
    progress: bool | None = None,
) -> TrainedGenerator:
    """A generator trained on the training images, or the one that is there already.

    On a CPU, a seed gives the same generator bit for bit; the caller's random state
    stays as it is.

    Args:
        splits: `train` alone is looked at.
        spec: kind and settings; default: `GeneratorSpec()`.
        seed: used where the spec has none.
        cache: folder in which the generator is kept and looked for first, in a file
            named by the hash. A damaged file is made anew; where nothing can be
            written, nothing is kept. While it trains, a checkpoint lies beside it.
        whole: the trainer is needed too; a file without its networks, of an older
            form, is made anew.
        progress: show a bar; None shows it on a terminal only.

    Raises:
        UserError: for images that the kind can't make.
    """
    spec = spec or GeneratorSpec()
    device = splits.train.labels.device
    chosen = registry.entry(spec.kind, "generator")
    number = seed if spec.seed is None else spec.seed
    name = _name(splits, spec, number, device)
    devices = [device] if device.type == "cuda" else []
    file = None if cache is None else cache / f"{name}.generator"

    def fresh() -> Any:
        torch.manual_seed(number)
        return chosen.load()(
            splits.without_true_labels(),
            seed=number,
            **registry.arguments(spec.kind, spec.hyperparameters, "generator"),
            **chosen.fixed,
        )

    with torch.random.fork_rng(devices=devices):
        trainer = fresh()
        kept = None if file is None else _read(file, device)
        if kept is None or (whole and "networks" not in kept):
            kept = _train(trainer, name, spec.steps, file, progress)
            # Optimisers and draws are then those of a trainer whose file was read.
            trainer = fresh()
    made: Generator = trainer.generator
    made.load_state_dict(kept["weights"])
    if "networks" in kept:
        trainer.model.load_state_dict(kept["networks"])
    else:
        trainer = None
    made.eval().requires_grad_(False)
    history, seconds = kept["history"], kept["seconds"]
    return TrainedGenerator(made, name, chosen.label, history, seconds, trainer)


def _train(
    trainer: Any, name: str, steps: int, file: Path | None, progress: bool | None
) -> dict[str, Any]:
    """What is kept of a training, which goes on where it was interrupted."""
    checkpoint = None if file is None else file.with_suffix(".checkpoint")
    history = training.fit(
        trainer,
        steps // STEPS_PER_EPOCH,
        checkpoint=checkpoint,
        every=5,
        resume=True,
        run=name,
        progress=progress,
    )
    kept = {
        "weights": trainer.generator.state_dict(),
        "networks": trainer.model.state_dict(),
        "history": history.rows,
        "seconds": history.seconds,
    }
    if file is not None and checkpoint is not None:
        stream = io.BytesIO()
        torch.save(kept, stream)
        write_sealed(file, stream.getvalue())
        checkpoint.unlink(missing_ok=True)
    return kept


def _read(file: Path, device: torch.device) -> dict[str, Any] | None:
    """What `_train` kept, or None where there is no whole file."""
    content = read_sealed(file)
    if content is None:
        return None
    found: dict[str, Any] = torch.load(
        io.BytesIO(content), map_location=device, weights_only=True
    )
    return found


def _name(splits: Splits, spec: GeneratorSpec, seed: int, device: torch.device) -> str:
    named = {
        **spec.model_dump(mode="json", exclude={"seed"}),
        "version": spec.version,
        "seed": seed,
        "images": splits.train.checksum(),
        "device": device.type,
    }
    text = json.dumps(named, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
