"""A step of FACoG's second phase beside its passes, and a dictionary beyond memory.

make bench BENCH='-k feature_mixing'

The dictionary has the size of ImageNet's, 1.2 million features of 2048 numbers: it
takes 10 GB in pytest's temporary folder while it is measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import measure, record

from needsaug_lite import losses, models
from needsaug_lite.data import Batch, Examples, InMemory, Splits, long_tail_counts
from needsaug_lite.experiments.feature_mixing_table import (
    DICTIONARY,
    STEP,
    feature_mixing_table,
)
from needsaug_lite.methods import FACoG
from needsaug_lite.statistics import FeatureDictionary

TARGET = record.MEASUREMENTS / "feature_mixing.json"
CLASSES, DIM, ROUNDS = 100, 512, 100
SLOTS = (1, 3, 5, 8, 12)
Call = Callable[[], object]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def method(slots: int) -> FACoG:
    """FACoG in its second phase on features as of CIFAR-100-LT at 100:1."""
    counts = torch.tensor(long_tail_counts(500, 100, CLASSES))
    labels = torch.arange(CLASSES).repeat_interleave(counts)
    torch.manual_seed(0)
    features = torch.randn(len(labels), DIM, 1, 1)
    train = Examples(InMemory(features), labels)
    none = train.subset(torch.arange(0))
    names = tuple(map(str, range(CLASSES)))
    model = models.build("linear", (DIM, 1, 1), CLASSES, head="two_layers")
    found = FACoG(model, Splits(train, none, none, none, names), slots=slots)
    found.stages(10)
    found.begin_oversampling_epoch(0)
    return found


def full_batches(facog: FACoG) -> Iterator[Batch]:
    batches = [batch for batch in facog.rows.epoch(0) if len(batch) == 128]
    return cycle(batches)


def passes(facog: FACoG) -> Call:
    """Forward and backward of D, G and the classifier, nothing else."""
    chosen = torch.randint(CLASSES, (128,), generator=facog.draw)
    mixed = facog.dictionary.sample(chosen, facog.slots, facog.draw)
    real = facog.dictionary.sample(chosen, 1, facog.draw).squeeze(1)
    noise = facog.mixer.noise(128, facog.draw)
    mixtures = models.mix(facog.mixer(noise, chosen, mixed), mixed).detach()

    def discriminator() -> None:
        scores = (
            facog.discriminator(real, chosen),
            facog.discriminator(mixtures, chosen),
        )
        loss = losses.least_squares_discriminator(*scores)
        torch.autograd.grad(loss, list(facog.discriminator.parameters()))

    def generator() -> None:
        made = models.mix(facog.mixer(noise, chosen, mixed), mixed)
        adversarial = losses.least_squares_generator(facog.discriminator(made, chosen))
        loss = adversarial + 0.1 * facog.contrast(made, chosen, mixed)
        torch.autograd.grad(loss, list(facog.source.parameters()))

    def classifier() -> None:
        loss = losses.cross_entropy(facog.model.head(real), chosen)
        loss = loss + losses.cross_entropy(facog.model.head(mixtures), chosen)
        torch.autograd.grad(loss, list(facog.model.head.parameters()))

    def together() -> None:
        discriminator()
        generator()
        classifier()

    return together


def test_feature_mixing_step_beside_its_passes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: dict[str, Call] = {}
    for slots in SLOTS:
        facog = method(slots)
        calls[f"step {slots}"] = partial(one_step, facog, full_batches(facog))
        calls[f"passes {slots}"] = passes(facog)
    for call in calls.values():
        call()
    times = measure.rounds(calls, ROUNDS)
    rows = []
    for slots in SLOTS:
        step, alone = times[f"step {slots}"], times[f"passes {slots}"]
        found = measure.ratio(step, alone)
        row = {
            "part": STEP,
            "slots": slots,
            "milliseconds": 1000 * float(median(step)),
            "passes_milliseconds": 1000 * float(median(alone)),
            "ratio": found.value,
            "low": found.low,
            "high": found.high,
        }
        rows.append(row)
    record.record(TARGET, "part", STEP, rows, record.provenance({}, ROUNDS))
    with capsys.disabled():
        print("\n" + feature_mixing_table(TARGET))


def one_step(facog: FACoG, batches: Iterator[Batch]) -> None:
    facog.oversampling_step(next(batches))


def own_memory() -> int:
    """Bytes that this process doesn't share with a file (Linux)."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def table(file: Path, count: int, dim: int) -> None:
    """An array of random numbers on disk, written in parts."""
    rows = np.lib.format.open_memmap(file, "w+", np.float32, (count, dim))
    part = np.random.default_rng(0).standard_normal((20_000, dim), dtype=np.float32)
    for start in range(0, count, len(part)):
        rows[start : start + len(part)] = part[: count - start]
    rows.flush()


def test_feature_mixing_dictionary_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count, dim, classes, draws = 1_200_000, 2048, 1000, 100
    file = tmp_path / "features.npy"
    table(file, count, dim)
    labels = torch.arange(count) * classes // count
    before = own_memory()
    on_disk = FeatureDictionary.from_file(file, labels, classes)
    draw = torch.Generator().manual_seed(0)
    chosen = torch.randint(classes, (128,), generator=draw)
    calls: dict[str, Call] = {"disk": lambda: on_disk.sample(chosen, 5, draw)}
    for _ in range(draws):
        calls["disk"]()
    grown = own_memory() - before
    small = torch.randn(50_000, dim)
    in_memory = FeatureDictionary(small, labels[:: count // 50_000], classes)
    calls["memory"] = lambda: in_memory.sample(chosen, 5, draw)
    calls["memory"]()
    times = measure.rounds(calls, draws)
    found = measure.ratio(times["disk"], times["memory"])
    row: dict[str, Any] = {
        "part": DICTIONARY,
        "count": count,
        "dim": dim,
        "gigabytes": file.stat().st_size / 1e9,
        "own_megabytes": grown / 1e6,
        "milliseconds": 1000 * float(median(times["disk"])),
        "ratio": found.value,
        "low": found.low,
        "high": found.high,
    }
    file.unlink()
    # The labels, counts and one draw, but nothing of the size of the features.
    assert grown < 0.01 * count * dim * 4
    record.record(TARGET, "part", DICTIONARY, [row], record.provenance({}, draws))
    with capsys.disabled():
        print("\n" + feature_mixing_table(TARGET))
