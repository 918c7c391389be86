"""Searches of an architecture as single steps, for measurements."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal

import torch
from benchmarks import measure
from torch.nn.modules.module import register_module_forward_hook

from needsaug_lite import data, models
from needsaug_lite.data import Batch, Examples, InMemory, Splits
from needsaug_lite.experiments import registry
from needsaug_lite.experiments.ingredients import ModelSpec
from needsaug_lite.experiments.supernets import build_options
from needsaug_lite.methods.generation.adversarial import BigGAN
from needsaug_lite.methods.search.frame import ArchitectureSearch
from needsaug_lite.models.search_cell import Supernet
from needsaug_lite.training import Optimisation

CLASSES, BATCH = 10, 64
# The reduced variant updates A and G once in so many steps: a call is a whole period.
PERIOD = 8
# Periods of an epoch; its beginning, where needs are measured, is in one of so many.
PERIODS = 16
# Name of the row: method, and its settings that aren't the usual ones.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "pc_darts": ("pc_darts", {}),
    "darts": ("darts", {}),
    "equal_search": ("equal_search", {}),
    "mtl_search": ("mtl_search", {}),
    "separate_search": ("separate_search", {}),
    "needs_aware_search": ("needs_aware_search", {}),
    "first_order": ("needs_aware_search", {"route": "first_order"}),
    "needs_aware_search_reduced": ("needs_aware_search_reduced", {}),
}


@dataclass(frozen=True)
class Problem:
    """Images, supernet and how often it is measured.

    Attributes:
        name: title of its table.
        shape: of random images; None for digits.
        nodes, halvings: of the supernet, which has 3 cells and 8 channels.
        meta: held-out images of a class.
        rounds: of the measurement.
        search: steps of a whole search, and `pretraining` those of the generator
            before it, in the grid with these images.
    """

    name: str
    shape: tuple[int, int, int] | None
    nodes: int
    halvings: Literal[0, 1, 2]
    meta: int
    rounds: int
    search: int
    pretraining: int


def long_splits(problem: Problem) -> Splits:
    """An epoch of `PERIODS` periods: digits again and again, or random images."""
    count = PERIODS * PERIOD * BATCH
    if problem.shape is None:
        digits = data.load("digits", meta_per_class=problem.meta)
        index = torch.arange(count) % len(digits.train)
        train, meta = digits.train.subset(index), digits.meta
    else:
        draw = torch.Generator().manual_seed(0)
        whole = count + CLASSES * problem.meta
        pixels = torch.randint(256, (whole, *problem.shape), generator=draw)
        images = InMemory(pixels.to(torch.uint8))
        part = Examples(images, torch.arange(whole) % CLASSES)
        train = part.subset(torch.arange(count))
        meta = part.subset(torch.arange(count, whole))
    none = train.subset(torch.arange(0))
    return Splits(train, none, meta, none, tuple(map(str, range(CLASSES))))


def prepared(name: str, problem: Problem, splits: Splits) -> ArchitectureSearch:
    """A method of the registry with its first weights, and a GAN with its own."""
    method, settings = METHODS[name]
    entry = registry.entry(method)
    chosen = entry.load()
    size = ModelSpec(
        backbone="supernet",
        width=8,
        cells=3,
        nodes=problem.nodes,
        halvings=problem.halvings,
    )
    torch.manual_seed(0)
    model = models.build(
        "supernet",
        splits.image_shape,
        CLASSES,
        width=size.width,
        **build_options(size, method),
    )
    handed: dict[str, Any] = {}
    if getattr(chosen, "needs_adversary", False):
        handed["gan"] = BigGAN(splits)
    elif getattr(chosen, "needs_generator", False):
        handed["generator"] = BigGAN(splits).generator
    recipe = Optimisation(lr=0.1, batch_size=BATCH, warmup=0, schedule="cosine")
    found: ArchitectureSearch = chosen(
        model, splits, optimisation=recipe, **handed, **entry.fixed, **settings
    )
    found.stages(10**6)
    return found


class Steps:
    """Steps of a search, one epoch after another."""

    def __init__(self, method: ArchitectureSearch) -> None:
        self.method, self.searcher = method, method.searcher
        self.epoch, self.moving = -1, True
        self.batches: Iterator[Batch] = iter(())

    def step(self) -> None:
        batch = next(self.batches, None)
        if batch is None:
            self.epoch += 1
            self.method.begin_search_epoch(self.epoch)
            self.batches = iter(list(self.searcher.batches.epoch(self.epoch)))
            batch = next(self.batches)
        self.searcher.moving = self.moving
        self.searcher.step(batch)

    def warm_up(self) -> None:
        """A period with A and G at rest."""
        self.period(moving=False)

    def moved(self) -> None:
        """A period in which A and G are updated where they are due."""
        self.period(moving=True)

    def period(self, *, moving: bool) -> None:
        self.moving = moving
        for _ in range(PERIOD):
            self.step()

    def update(self) -> None:
        """A step in which A and G are updated."""
        searcher: Any = self.searcher
        searcher.steps_done, self.moving = 0, True
        self.step()


class Pretraining:
    """Steps of the generator before the search."""

    def __init__(self, splits: Splits) -> None:
        self.gan = BigGAN(splits)
        self.batch = next(iter(self.gan.batches.epoch(0)))

    def period(self) -> None:
        for _ in range(PERIOD):
            self.gan.step(self.batch)


def passes(one: Steps, *, moving: bool) -> float:
    """Batches of images that go forward through a supernet, W1, W2 or H, in a step.

    Mean of a period; derivatives by what went forward are not counted.
    """
    one.step()  # where an epoch begins, needs are measured
    count = 0

    def seen(module: torch.nn.Module, given: tuple[Any, ...], found: Any) -> None:
        nonlocal count
        if isinstance(module, Supernet):
            count += len(given[0])

    handle = register_module_forward_hook(seen)
    try:
        one.period(moving=moving)
    finally:
        handle.remove()
    return count / PERIOD / BATCH


def peak(name: str, problem: Problem) -> int:
    """Peak memory of a step in which A is updated."""
    torch.set_num_threads(1)
    one = Steps(prepared(name, problem, long_splits(problem)))
    one.step()
    found: int = measure.peak_bytes(one.update)
    return found


def peak_alone(name: str, problem: Problem) -> int:
    """`peak` in a process of its own, which leaves nothing behind."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak, name, problem).result()
