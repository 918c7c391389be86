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
        generator: in evaluation mode, on the device of the data.
        name: hash of images, settings, seed, code version and kind of device.
        label: name in tables.
        history: one row for every 100 steps of its training.
        seconds: that its training took.
    """

    generator: Generator
    name: str
    label: str
    history: list[dict[str, Any]]
    seconds: float


def trained_generator(
    splits: Splits,
    spec: GeneratorSpec | None = None,
    *,
    seed: int = 0,
    cache: Path | None = None,
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
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number)
        method = chosen.load()(
            splits.without_true_labels(),
            seed=number,
            **registry.arguments(spec.kind, spec.hyperparameters, "generator"),
            **chosen.fixed,
        )
        file = None if cache is None else cache / f"{name}.generator"
        content = None if file is None else read_sealed(file)
        if content is None:
            checkpoint = None if cache is None else cache / f"{name}.checkpoint"
            history = training.fit(
                method,
                spec.steps // STEPS_PER_EPOCH,
                checkpoint=checkpoint,
                every=5,
                resume=True,
                run=name,
                progress=progress,
            )
            kept = {
                "weights": method.generator.state_dict(),
                "history": history.rows,
                "seconds": history.seconds,
            }
            stream = io.BytesIO()
            torch.save(kept, stream)
            if file is not None and checkpoint is not None:
                write_sealed(file, stream.getvalue())
                checkpoint.unlink(missing_ok=True)
        else:
            kept = torch.load(
                io.BytesIO(content), map_location=device, weights_only=True
            )
    made: Generator = method.generator
    made.load_state_dict(kept["weights"])
    made.eval().requires_grad_(False)
    return TrainedGenerator(made, name, chosen.label, kept["history"], kept["seconds"])


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
