"""How many runs of a grid go side by side on this machine, and on which GPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from needsaug_lite.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Places:
    """Room for runs on this machine.

    Attributes:
        count: runs side by side.
        gpus: what CUDA_VISIBLE_DEVICES calls the GPUs that are handed out; empty: none.
        runs_per_gpu: runs side by side on each of them.
    """

    count: int
    gpus: tuple[str, ...] = ()
    runs_per_gpu: int = 1


def local_places(
    device: str,
    cores: int | None = None,
    runs_per_gpu: int = 1,
    gpus: Sequence[str] | None = None,
) -> Places:
    """Every core of this machine, or one run a GPU, unless something else is asked for.

    Args:
        device: "cpu", "cuda" for all GPUs, or "cuda:1" for one.
        cores: runs side by side; None: as many as there is room for.
        runs_per_gpu: how many share a GPU.
        gpus: names of the GPUs; None: those that torch sees.

    Returns:
        The places.

    Raises:
        UserError: if a number is below 1, or the GPU isn't there.
    """
    for name, number in (("--cores", cores), ("--runs-per-gpu", runs_per_gpu)):
        if number is not None and number < 1:
            raise UserError(f"{name} {number}: give 1 or more")
    kind, _, index = device.partition(":")
    if kind != "cuda":
        if runs_per_gpu > 1:
            raise UserError(f"--runs-per-gpu {runs_per_gpu} needs --device cuda")
        return Places(cores or all_cores())
    names = tuple(visible_gpus() if gpus is None else gpus)
    if index:
        if not index.isdigit() or int(index) >= len(names):
            raise UserError(f"there is no GPU {device}; found: {len(names)}")
        names = (names[int(index)],)
    room = len(names) * runs_per_gpu
    if room == 0:
        raise UserError("--device cuda: no GPU was found")
    if cores is not None and cores > room:
        logger.warning(
            "%d runs side by side, not %d: %d GPUs take %d each (--runs-per-gpu)",
            *(room, cores, len(names), runs_per_gpu),
        )
    return Places(min(cores or room, room), names, runs_per_gpu)


def all_cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that torch sees, in torch's order."""
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given is not None else map(str, range(count))
    return tuple(name.strip() for name in names)[:count]
