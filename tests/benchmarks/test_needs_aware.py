"""A step of needs-aware generation, and its reductions, beside one without levels.

make bench BENCH='-k needs_aware'
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest
import torch
from benchmarks import measure, record

from needsaug_lite import data, models
from needsaug_lite.data import Batch, Examples, InMemory, Splits
from needsaug_lite.experiments import registry
from needsaug_lite.experiments.needs_aware_table import UNIT, needs_aware_table
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.methods.generation.adversarial import BigGAN
from needsaug_lite.training import Optimisation

TARGET = record.MEASUREMENTS / "needs_aware.json"
CLASSES, BATCH, META = 10, 64, 10
# The reduced variant updates A and G once in so many steps: a call is a whole period.
PERIOD = 8
# An epoch's beginning, where needs are measured and paths told apart, is in one round
# of so many; medians leave it out.
PERIODS = 16
METHODS = (
    "mtl",
    "equal",
    "separate",
    "retrained_head",
    "needs_aware",
    "needs_aware_reduced",
)
# Name, network, image or None for digits, width of the GAN, rounds. The width is that
# of the classifier's features: A can be shared.
PROBLEMS: list[tuple[str, str, tuple[int, int, int] | None, int, int]] = [
    ("convnet, digits, 8 x 8 grey", "convnet", None, 32, 100),
    ("convnet, 28 x 28 grey", "convnet", (1, 28, 28), 32, 25),
    ("ResNet-32, 32 x 32 colour", "resnet32", (3, 32, 32), 64, 6),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def long_splits(shape: tuple[int, int, int] | None) -> Splits:
    """An epoch of `PERIODS` periods: digits again and again, or random images."""
    count = PERIODS * PERIOD * BATCH
    if shape is None:
        digits = data.load("digits", meta_per_class=META)
        index = torch.arange(count) % len(digits.train)
        train, meta = digits.train.subset(index), digits.meta
    else:
        draw = torch.Generator().manual_seed(0)
        whole = count + CLASSES * META
        pixels = torch.randint(256, (whole, *shape), generator=draw).to(torch.uint8)
        part = Examples(InMemory(pixels), torch.arange(whole) % CLASSES)
        train = part.subset(torch.arange(count))
        meta = part.subset(torch.arange(count, whole))
    none = train.subset(torch.arange(0))
    return Splits(train, none, meta, none, tuple(map(str, range(CLASSES))))


def prepared(name: str, network: str, splits: Splits, width: int) -> Any:
    """A method of the registry with its first weights, and a GAN with its own."""
    entry = registry.entry(name)
    method = entry.load()
    torch.manual_seed(0)
    model = models.build(network, splits.image_shape, CLASSES)
    gan = BigGAN(splits, width=width)
    whole = getattr(method, "needs_adversary", False)
    handed = {"gan": gan} if whole else {"generator": gan.generator}
    recipe = Optimisation(
        kind="adam", lr=1e-3, weight_decay=0.0, batch_size=BATCH, warmup=0
    )
    found = method(model, splits, optimisation=recipe, **handed, **entry.fixed)
    found.stages(10**6)
    return found


class Steps:
    """Training steps of a method, one epoch after another."""

    def __init__(self, method: Supervised) -> None:
        self.method, self.epoch = method, -1
        self.batches: Iterator[Batch] = iter(())

    def step(self) -> None:
        batch = next(self.batches, None)
        if batch is None:
            self.epoch += 1
            self.method.begin_epoch(self.epoch)
            self.batches = iter(list(self.method.batches.epoch(self.epoch)))
            batch = next(self.batches)
        self.method.step(batch)

    def period(self) -> None:
        for _ in range(PERIOD):
            self.step()

    def update(self) -> None:
        """A step in which A and G are updated, if there is an A."""
        if hasattr(self.method, "steps_done"):
            self.method.steps_done = 0
        self.step()


@pytest.mark.parametrize("problem", PROBLEMS, ids=[p[0] for p in PROBLEMS])
def test_needs_aware_step_beside_joint_training(
    problem: tuple[str, str, tuple[int, int, int] | None, int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, network, shape, width, rounds = problem
    splits = long_splits(shape)
    steps = {m: Steps(prepared(m, network, splits, width)) for m in METHODS}
    for one in steps.values():
        one.period()
    times = measure.rounds({m: one.period for m, one in steps.items()}, rounds)
    rows: list[dict[str, Any]] = []
    for method, one in steps.items():
        found = measure.ratio(times[method], times[UNIT])
        rows.append(
            {
                "problem": name,
                "method": method,
                "milliseconds": 1000 * float(median(times[method])) / PERIOD,
                "time": {"ratio": found.value, "low": found.low, "high": found.high},
                "peak_bytes": measure.peak_bytes(one.update),
            }
        )
    run = record.provenance({}, rounds, period=PERIOD)
    record.record(TARGET, "problem", name, rows, run)
    with capsys.disabled():
        print("\n" + needs_aware_table(TARGET))
