"""One run over several processes, which torchrun starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import nn

from needsaug_lite.data import Batches
from needsaug_lite.data.team import ALONE, Team
from needsaug_lite.errors import UserError
from needsaug_lite.training.stages import Method


@runtime_checkable
class Shareable(Protocol):
    """A method that can train on a part of every batch."""

    batches: Batches

    def share_out(self, team: Team) -> None:
        """Train on this process's part of every batch from now on."""


def shareable(method: type[Any]) -> bool:
    """Whether a method's own class says that its batches may be shared out.

    A subclass that changes the loss doesn't inherit it.

    Args:
        method: the class.

    Returns:
        Whether it says so.
    """
    return bool(vars(method).get("data_parallel", False))


def share_out(method: Method, team: Team) -> None:
    """Make a method one of the processes of a team, before its first step.

    Weights, memories and history are then those that one process would have reached,
    to rounding; weights have the same bits in all processes. Every process must have
    made the method with the same arguments and the same weights.

    Args:
        method: changed in place.
        team: a team of one changes nothing.

    Raises:
        UserError: if the method, its network or the size of its batches don't allow
            it.
    """
    if team.size == 1:
        return
    name = type(method).__name__
    if not (shareable(type(method)) and isinstance(method, Shareable)):
        raise UserError(
            f"{name} runs in one process: it can't be shared out; leave out torchrun"
        )
    batches = method.batches
    smallest = min(batches.batch_size, len(batches.examples))
    if smallest < team.size:
        raise UserError(
            f"{team.size} processes can't share out batches of {smallest} images: "
            f"start at most {smallest}, or set a larger optimisation.batch_size"
        )
    if any(
        isinstance(m, nn.modules.dropout._DropoutNd) for m in method.model.modules()
    ):
        raise UserError(
            f"the network of {name} has dropout, which every process would draw for "
            "itself: it can't be shared out; leave out torchrun"
        )
    method.share_out(team)


def processes() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def own_device(device: str) -> str:
    """The device of this process: of several, each takes the GPU of its number.

    Args:
        device: as the user gave it, such as cpu or cuda.

    Returns:
        The device to use, such as cuda:1.

    Raises:
        UserError: if several processes are given one GPU.
    """
    kind, colon, _ = device.partition(":")
    if processes() == 1 or kind != "cuda":
        return device
    if colon:
        raise UserError(
            f"{processes()} processes can't share {device}: give cuda, and each of "
            "them takes a GPU of its own"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def launched(device: str) -> Iterator[Team]:
    """The team that torchrun has started, or a team of one.

    Args:
        device: what `own_device` returned.
    """
    if processes() == 1:
        yield ALONE
        return
    kind = torch.device(device)
    if kind.type == "cuda":
        torch.cuda.set_device(kind)
    # All processes must sum in one order, also where a graph is differentiated twice.
    # The nodes of a thread have such an order; those of two threads do not.
    torch.autograd.set_multithreading_enabled(False)
    dist.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    team = Team(dist.get_rank(), dist.get_world_size())
    yield team
    # Nobody leaves before the first has written its files. After an error nobody
    # waits: torchrun ends the others.
    team.everyone(0, device)
    dist.destroy_process_group()
