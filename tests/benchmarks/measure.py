"""Time as a ratio within a round, and peak memory counted by the allocator."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

Call = Callable[[], object]
MARK = "measured call"


@dataclass(frozen=True)
class Ratio:
    """Median over rounds and the 95% bootstrap interval of that median."""

    value: float
    low: float
    high: float


def seconds(call: Call) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started


def rounds(calls: Mapping[str, Call], count: int, seed: int = 0) -> dict[str, Any]:
    """Seconds per call, shape (count,) for each name; every round shuffles the order.

    Each call must have run once before. What disturbs the machine for longer than a
    round disturbs all calls of it alike.
    """
    shuffle = random.Random(seed).shuffle
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(count):
        names = list(calls)
        shuffle(names)
        for name in names:
            found[name].append(seconds(calls[name]))
    return {name: np.array(times) for name, times in found.items()}


def ratio(times: Any, unit: Any, seed: int = 0, draws: int = 5000) -> Ratio:
    """Median of times / unit, round by round, with its bootstrap interval."""
    ratios = np.asarray(times) / np.asarray(unit)
    chosen = np.random.default_rng(seed).integers(
        len(ratios), size=(draws, len(ratios))
    )
    low, high = np.quantile(np.median(ratios[chosen], axis=1), [0.025, 0.975])
    return Ratio(float(median(ratios)), float(low), float(high))


def peak_bytes(call: Call) -> int:
    """Highest sum of live CPU tensors during `call`, above the level before it.

    Every allocation and release of torch's CPU allocator is an event with its size, so
    the running sum is exact. Activations count; the scratch memory that a library of
    kernels takes for itself does not.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        # Memory that the second call releases is known from the first one.
        call()
        with record_function(MARK):
            call()
    events = recorded.profiler.kineto_results.events()
    start = next(event.start_ns() for event in events if event.name() == MARK)
    memory = [event for event in events if event.name() == "[memory]"]
    memory.sort(key=lambda event: event.start_ns())
    level = before = highest = 0
    for event in memory:
        level += event.nbytes()
        if event.start_ns() < start:
            before = highest = level
        highest = max(highest, level)
    return highest - before


def peak_cuda_bytes(call: Call) -> int:
    """The same on a GPU, from the caching allocator's own counter."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
