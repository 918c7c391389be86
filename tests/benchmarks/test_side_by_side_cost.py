"""The methods of chapter 16: short runs as a ratio to cross-entropy, and memory.

make bench BENCH='-k side_by_side_cost'
NEEDSAUG_DATA=FOLDER make bench BENCH='-k side_by_side_cost'

Settings, the chosen constants among them, are those of the grid of the ground. A run
has a part of its epochs and a generator the same part of its steps, so phases keep
their shares.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from benchmarks import measure, record

from needsaug_lite import training
from needsaug_lite.data import Splits
from needsaug_lite.errors import UserError
from needsaug_lite.experiments.generators import trained_generator
from needsaug_lite.experiments.grid import expand
from needsaug_lite.experiments.preparing import prepare_with
from needsaug_lite.experiments.side_by_side import LONG_TAIL, REFERENCE, name_of_spec
from needsaug_lite.experiments.side_by_side_cost import FILE, cost_tables
from needsaug_lite.experiments.spec import Spec

TARGET = record.MEASUREMENTS / FILE
GRID = Path(__file__).parents[2] / "nbs/grids" / f"{LONG_TAIL.experiment}.yaml"
ROUNDS = 5
SHARE, EPOCHS = 5, 4  # one epoch in so many, but at least these
SMALL = {"n_max": 50, "imbalance": 5}  # for memory: about 220 images
DIGITS: dict[str, Any] = {"name": "digits", "imbalance": 20, "meta_per_class": 10}
PROBLEMS = {
    "digits, 20:1": DIGITS,
    LONG_TAIL.title: None,  # the data of the grid
}


def specs(problem: str) -> dict[str, Spec]:
    """A short run of each method of the grid, by name."""
    found: dict[str, Spec] = {}
    for spec in expand(yaml.safe_load(GRID.read_text(encoding="utf-8"))):
        if name_of_spec(spec) in found:
            continue
        values = spec.model_dump(mode="json")
        values["data"] = PROBLEMS[problem] or values["data"]
        if PROBLEMS[problem]:  # images of 8 x 8 with one right way up
            values["augment"] = {}
            values["optimisation"]["batch_size"] = 64
        values["epochs"] = max(EPOCHS, spec.epochs // SHARE)
        made = values["generator"]
        if made is not None:
            steps = made["steps"] * values["epochs"] / spec.epochs
            made["steps"] = max(100, round(steps / 100) * 100)
        found[name_of_spec(spec)] = Spec.checked(values)
    return found


def small(spec: Spec) -> Spec:
    """The same network and batches on few images: the largest step is in it, too."""
    values = spec.model_dump(mode="json")
    values["data"] |= SMALL
    values["epochs"] = EPOCHS
    if values["generator"] is not None:
        values["generator"]["steps"] = 100
    return Spec.checked(values)


def train(spec: Spec, splits: Splits, cache: Path) -> None:
    """A run on data that are there, with a generator that is there."""
    ready = prepare_with(splits, spec, cache)
    training.fit(ready.method, spec.epochs, progress=False)


def generate(spec: Spec, splits: Splits) -> None:
    """The training of a generator, which runs of many seeds and methods may share."""
    trained_generator(splits, spec.generator, seed=spec.data_seed, progress=False)


def peak(spec: Spec, cache: Path) -> int:
    """Largest sum of tensors alive at once, network and optimiser included."""
    torch.set_num_threads(1)
    few = small(spec)
    splits = few.load_data()
    train(few, splits, cache)  # a generator is made outside of what is counted
    return measure.peak_bytes(lambda: train(few, splits, cache))


def alone(call: Callable[..., Any], *given: Any) -> Any:
    """In a process of its own, which leaves nothing behind."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *given).result()


@pytest.mark.parametrize("problem", PROBLEMS)
def test_side_by_side_cost(
    problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    chosen = specs(problem)
    try:
        splits = {name: spec.load_data() for name, spec in chosen.items()}
    except UserError as error:
        pytest.skip(f"the data aren't here: {error}")
    calls: dict[str, Callable[[], object]] = {}
    made: dict[str, str] = {}
    for name, spec in chosen.items():
        calls[name] = partial(train, spec, splits[name], tmp_path)
        if spec.generator is not None:
            made[name] = f"generator {spec.generator.model_dump_json()}"
            calls[made[name]] = partial(generate, spec, splits[name])
    for name in chosen:  # generators are made, kernels chosen
        calls[name]()
    times = measure.rounds(calls, ROUNDS)
    rows = []
    for name, spec in chosen.items():
        found = measure.ratio(times[name], times[REFERENCE])
        paid = measure.ratio(times[made.get(name, name)], times[REFERENCE])
        rows.append(
            {
                "problem": problem,
                "method": name,
                "ratio": found.value,
                "low": found.low,
                "high": found.high,
                "seconds": float(np.median(times[name])),
                "generator": paid.value if name in made else None,
                "peak_bytes": alone(peak, spec, tmp_path),
            }
        )
    # A learned network has gradients of its size; times are never asserted.
    assert all(row["peak_bytes"] > 0 for row in rows)
    run = record.provenance({}, ROUNDS, epochs=chosen[REFERENCE].epochs)
    record.record(TARGET, "problem", problem, rows, run)
    with capsys.disabled():
        print("\n" + cost_tables(TARGET))
