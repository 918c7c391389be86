"""A step of MGR beside a step of PCR, and its second-order route beside differences.

make bench BENCH='-k meta_sampling'
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import pytest
import torch
from benchmarks import measure, record

from needsaug_lite import models
from needsaug_lite.data import Batch, Examples, InMemory, Splits
from needsaug_lite.experiments.meta_sampling_table import meta_sampling_table
from needsaug_lite.methods import MGR
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.methods.baselines.generative import PCR
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.models.gan import ConvGenerator
from needsaug_lite.training import Optimisation

TARGET = record.MEASUREMENTS / "meta_sampling.json"
CLASSES, BATCH = 10, 64
Call = Callable[[], object]
# Name, network, image, width of the generator, rounds.
PROBLEMS: list[tuple[str, str, tuple[int, int, int], int, int]] = [
    ("convnet, 8 x 8 grey", "convnet", (1, 8, 8), 32, 200),
    ("convnet, 28 x 28 grey", "convnet", (1, 28, 28), 32, 60),
    ("ResNet-32, 32 x 32 colour", "resnet32", (3, 32, 32), 32, 20),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def random_splits(shape: tuple[int, int, int]) -> Splits:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (4 * BATCH, *shape), generator=draw).to(torch.uint8)
    part = Examples(InMemory(pixels), torch.arange(4 * BATCH) % CLASSES)
    none = part.subset(torch.arange(0))
    return Splits(part, none, part, none, tuple(map(str, range(CLASSES))))


def prepared(method: type[Supervised], network: str, splits: Splits, **own: Any) -> Any:
    torch.manual_seed(0)
    model = models.build(network, splits.image_shape, CLASSES)
    optimisation = Optimisation(
        lr=0.01, batch_size=BATCH, nesterov=True, weight_decay=5e-4, warmup=0
    )
    found = method(model, splits, optimisation=optimisation, **own)
    found.stages(10)
    found.begin_epoch(0)
    return found


def stepping(method: Supervised) -> Call:
    batches: Iterator[Batch] = cycle(list(method.batches.epoch(0)))
    return partial(one_step, method, batches)


def one_step(method: Supervised, batches: Iterator[Batch]) -> None:
    method.step(next(batches))


@pytest.mark.parametrize("problem", PROBLEMS, ids=[p[0] for p in PROBLEMS])
def test_meta_sampling_step_beside_pcr(
    problem: tuple[str, str, tuple[int, int, int], int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, network, shape, width, rounds = problem
    splits = random_splits(shape)
    torch.manual_seed(0)
    generator = ConvGenerator(shape, CLASSES, latent_dim=64, width=width)
    source = {"generator": generator}
    calls = {
        "plain": stepping(prepared(CrossEntropy, network, splits)),
        "pcr": stepping(prepared(PCR, network, splits, **source)),
        "mgr": stepping(prepared(MGR, network, splits, **source)),
        "second": stepping(prepared(MGR, network, splits, second_order=True, **source)),
    }
    for call in calls.values():
        for _ in range(3):
            call()
    times = measure.rounds(calls, rounds)
    row: dict[str, Any] = {
        "problem": name,
        "milliseconds": 1000 * float(median(times["plain"])),
    }
    for key, one, unit in (
        ("pcr", "pcr", "plain"),
        ("mgr", "mgr", "pcr"),
        ("second_order", "second", "mgr"),
    ):
        found = measure.ratio(times[one], times[unit])
        row[key] = {"ratio": found.value, "low": found.low, "high": found.high}
    run = record.provenance({"kornia": "kornia"}, rounds)
    record.record(TARGET, "problem", name, [row], run)
    with capsys.disabled():
        print("\n" + meta_sampling_table(TARGET))
