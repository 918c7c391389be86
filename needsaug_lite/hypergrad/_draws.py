"""One set of random draws for all evaluations of an estimate, and buffers put back.

A finite difference compares two evaluations, and an unrolled step is differentiated by
evaluating it again in part: both mean something only if every evaluation sees the same
dropout masks and augmentations. And an estimate is a look, not a step: afterwards the
random state and the running statistics of batch norm are what they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator

from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad._buffers import Buffers
from needsaug_lite.hypergrad._variables import Variables

# An odd constant far from small integers: the slots' seeds don't run into each other.
_STRIDE = 0x9E3779B97F4A7C15
_SEEDS = 2**62


class Draws:
    """The random numbers of one estimate, by slot; each loss closure has its own slot.

    Within a slot every evaluation starts from the same random state, so that a closure
    that draws from torch's default generators, or from the generator handed in, draws
    the same numbers each time. Different slots draw different numbers.
    """

    def __init__(
        self,
        seed: int,
        devices: list[int],
        generator: Generator | None,
        buffers: Buffers,
    ) -> None:
        self._seed = seed
        self._generators = [torch.default_generator]
        self._generators += [torch.cuda.default_generators[index] for index in devices]
        if generator is not None:
            self._generators.append(generator)
        self._buffers = buffers

    def begin(self, slot: int) -> None:
        """Set the random state of a slot, and buffers back to what they were."""
        self._buffers.put_back()
        seed = (self._seed + slot * _STRIDE) % _SEEDS
        for generator in self._generators:
            generator.manual_seed(seed)


@contextmanager
def fixed_draws(
    variables: Iterable[Variables], generator: Generator | None
) -> Iterator[Draws]:
    """Draws for one estimate; on exit everything is as it was.

    Args:
        variables: the states of their devices' default generators are kept, and their
            buffers.
        generator: decides the draws, and moves on by one number, so that the next
            estimate draws anew. Without it the draws follow from torch's default
            generator, which does not move: two estimates in a row draw the same.

    Raises:
        UserError: inside torch.inference_mode.
    """
    if torch.is_inference_mode_enabled():
        raise UserError(
            "there are no gradients inside torch.inference_mode; leave it (no_grad is "
            "no obstacle)"
        )
    groups = list(variables)
    tensors = [tensor for group in groups for tensor in group.tensors.values()]
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    buffers = Buffers(tensor for group in groups for tensor in group.buffers)
    given = None if generator is None else _seed(generator)
    state = None if generator is None else generator.get_state()
    with torch.random.fork_rng(devices=devices):
        seed = _seed(torch.default_generator) if given is None else given
        try:
            with buffers:
                yield Draws(seed, devices, generator, buffers)
        finally:
            if generator is not None and state is not None:
                generator.set_state(state)


def _seed(source: Generator) -> int:
    drawn = torch.randint(_SEEDS, (), generator=source, device=source.device)
    return int(drawn.item())
