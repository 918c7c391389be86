"""Buffers of modules that run inside an estimate: kept as they were."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_pre_hooks

from needsaug_lite.errors import UserError

# A compiled module warns that a global hook fires twice, which is harmless here.
warnings.filterwarnings(
    "ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks"
)


class Buffers:
    """Remembers buffers before a module changes them, and puts them back.

    While an estimate runs, a hook looks at every module that is called. Buffers that
    are handed in as plain tensors are kept from the start. What compiled code changes
    behind the hook's back is not seen, unless it was handed in.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        self._given = list(given)
        self._kept: dict[int, _Kept] = {}
        self._swapped: dict[nn.Module, bool] = {}

    def __enter__(self) -> None:
        for tensor in self._given:
            self._keep(tensor)
        _active.append(self)
        self._thread = threading.get_ident()
        _global_forward_pre_hooks[_KEY] = _look

    def __exit__(self, *_: object) -> None:
        _active.remove(self)
        if not _active:
            _global_forward_pre_hooks.pop(_KEY, None)
        self.put_back()
        self._kept.clear()
        self._swapped.clear()

    def put_back(self) -> None:
        """Give every buffer that is still alive the value that it had at first."""
        for key, kept in list(self._kept.items()):
            if not kept.put_back():
                del self._kept[key]

    def look(self, module: nn.Module) -> None:
        """Remember the buffers of a module that is about to run."""
        if not (module._parameters or module._buffers or hasattr(module, "_orig_mod")):
            return  # containers and functions
        own = [p for p in module._parameters.values() if p is not None]
        plain = all(isinstance(p, nn.Parameter) for p in own)
        if torch._C._current_graph_task_id() != -1:  # inside a backward pass
            if plain and self._swapped.get(module):
                raise UserError(
                    f"activation checkpointing inside a {type(module).__name__} "
                    "computes it again in the backward pass, when functional_call has "
                    "put the module's own weights back: the derivative would be taken "
                    "at the wrong weights. Put the checkpoint around functional_call, "
                    "or switch it off"
                )
            return
        if threading.get_ident() != self._thread:
            return
        self._swapped[module] = bool(own) and not plain
        # Compiled and scripted modules run their parts without hooks.
        whole = hasattr(module, "_orig_mod") or isinstance(
            module, torch.jit.ScriptModule
        )
        for buffer in module.buffers(recurse=whole):
            self._keep(buffer)

    def _keep(self, buffer: Tensor) -> None:
        known = self._kept.get(id(buffer))
        if known is None or known.tensor() is not buffer:
            if torch._C._functorch.is_functorch_wrapped_tensor(buffer):
                return  # inside vmap, which refuses to write to it
            overlaps = any(
                step == 0 and size > 1
                for step, size in zip(buffer.stride(), buffer.shape, strict=True)
            )
            if not overlaps:  # expanded memory can't be written to either
                self._kept[id(buffer)] = _Kept(buffer)


class _Kept:
    """A tensor, held weakly because a closure may make a new one each time."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = weakref.ref(tensor)
        self._value = tensor.detach().clone()
        self._version = tensor._version

    def put_back(self) -> bool:
        """Write the value; False if the tensor is gone."""
        tensor = self.tensor()
        if tensor is None:
            return False
        if tensor._version == self._version:
            # Batch norm writes its statistics without telling autograd, rightly: a
            # graph that has saved them doesn't read them in its backward pass.
            tensor.data.copy_(self._value)
        else:
            # Anything else may be read there. Autograd then refuses to go on.
            with torch.no_grad():
                tensor.copy_(self._value)
            self._version = tensor._version
        return True


# One hook under one key for all estimates: torch.compile compiles anew for every key.
_KEY = -1
_active: list[Buffers] = []


def _look(module: nn.Module, _: object) -> None:
    if not torch.compiler.is_compiling():
        for buffers in _active:
            buffers.look(module)
