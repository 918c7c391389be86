"""Batch norm that looks at a batch without remembering it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_MOMENTS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def unrecorded(model: nn.Module) -> Iterator[None]:
    """Inside, a model in training mode leaves its running moments as they are.

    The batch is normalised by its own moments, as in any training step. What isn't
    real data must not enter the moments that a test image is normalised with.

    Args:
        model: its batch normalisation is changed for the length of the block.

    Source: errata M8 of mgr.
    """
    # Taken away, and not only switched off: instance norm writes to them all the same.
    kept = [
        (layer, {name: getattr(layer, name) for name in _MOMENTS})
        for layer in model.modules()
        if isinstance(layer, _NormBase) and layer.training
    ]
    for layer, moments in kept:
        for name in moments:
            setattr(layer, name, None)
    try:
        yield
    finally:
        for layer, moments in kept:
            for name, moment in moments.items():
                setattr(layer, name, moment)
