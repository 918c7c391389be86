"""One set of random draws for all evaluations of an estimate, and buffers put back.

A finite difference compares two evaluations, and an unrolled step is differentiated by
evaluating it again in part: both mean something only if every evaluation sees the same
dropout masks and augmentations. And an estimate is a look, not a step: afterwards the
random state and the running statistics of batch norm are what they were.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

# An odd constant far from small integers: the slots' seeds don't run into each other.
_STRIDE = 0x9E3779B97F4A7C15
_SEEDS = 2**62

# `_Buffers` hooks every module call for the length of an estimate. A compiled module
# then warns that a hook fires twice, which is harmless: it only looks.
warnings.filterwarnings(
    "ignore", message="Using `torch.compile\\(module\\)` when there"
)


class Draws:
    """The random numbers of one estimate, by slot; each loss closure has its own slot.

    Within a slot every evaluation starts from the same random state, so that a closure
    that draws from torch's default generators, or from the generator handed in, draws
    the same numbers each time. Different slots draw different numbers.
    """

    def __init__(self, seed: int, devices: list[int], generator: Generator | None):
        self._seed = seed
        self._generators = [torch.default_generator]
        self._generators += [torch.cuda.default_generators[index] for index in devices]
        if generator is not None:
            self._generators.append(generator)
        self._buffers = _Buffers()

    def begin(self, slot: int) -> None:
        """Set the random state of a slot, and buffers back to what they were."""
        self._buffers.put_back()
        seed = (self._seed + slot * _STRIDE) % _SEEDS
        for generator in self._generators:
            generator.manual_seed(seed)


@contextmanager
def fixed_draws(
    tensors: Iterable[Tensor], generator: Generator | None
) -> Iterator[Draws]:
    """Draws for one estimate; on exit everything is as it was.

    Args:
        tensors: the states of their devices' default generators are kept.
        generator: decides the draws, and moves on by one number, so that the next
            estimate draws anew. Without it the draws follow from torch's default
            generator, which does not move: two estimates in a row draw the same.
    """
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda})
    with torch.random.fork_rng(devices=devices):
        source = generator or torch.default_generator
        seed = int(
            torch.randint(_SEEDS, (), generator=source, device=source.device).item()
        )
        state = None if generator is None else generator.get_state()
        draws = Draws(seed, devices, generator)
        try:
            with draws._buffers:
                yield draws
        finally:
            if generator is not None and state is not None:
                generator.set_state(state)


class _Buffers:
    """Remembers the buffers of every module that is called, and puts them back."""

    def __init__(self) -> None:
        self._modules: set[nn.Module] = set()
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._thread = threading.get_ident()

    def __enter__(self) -> None:
        self._hook = register_module_forward_pre_hook(self._remember)

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        self.put_back()
        self._known.clear()
        self._modules.clear()

    def _remember(self, module: nn.Module, _: object) -> None:
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        # `functional_call` may bring other buffers, but the same ones each time.
        if module in self._modules:
            return
        self._modules.add(module)
        # A compiled module runs its parts without hooks, so it is looked at as a whole.
        whole = hasattr(module, "_orig_mod")
        for buffer in module.buffers(recurse=whole):
            if id(buffer) not in self._known:
                self._known[id(buffer)] = (buffer, buffer.detach().clone())

    def put_back(self) -> None:
        for buffer, value in self._known.values():
            # `.data` has a version counter of its own: a graph that has saved the
            # buffer stays valid, and its backward doesn't read running statistics.
            buffer.data.copy_(value)
