"""Lists of tensors as one long vector, and their mean over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist

Vector = Sequence[Tensor]


def norm(vector: Vector) -> Tensor:
    """Euclidean norm of all entries together, a scalar."""
    lengths: list[Tensor] = [part.norm() for part in vector]
    if len(lengths) == 1:
        return lengths[0]
    total: Tensor = torch.stack([one.to(lengths[0]) for one in lengths]).norm()
    return total


def safe_norm(vector: Vector) -> Tensor:
    """The norm, or the largest entry where squares leave the range of the type."""
    length = norm(vector)
    # Squares leave the range of float32 below 1e-19 and above 1e19. There the largest
    # entry stands in for the norm, at most √n too small.
    ends = [end for part in vector if part.numel() for end in torch.aminmax(part)]
    largest = torch.stack([end.to(vector[0]) for end in ends]).abs().max()
    usable = length.isfinite() & (length > 10 * torch.finfo(length.dtype).tiny ** 0.5)
    return torch.where(usable, length, largest)


def dot(one: Vector, other: Vector) -> Tensor:
    """Inner product of all entries, a scalar."""
    parts = [(a * b).sum().to(one[0]) for a, b in zip(one, other, strict=True)]
    return torch.stack(parts).sum()


def add(one: Vector, other: Vector, factor: float = 1.0) -> list[Tensor]:
    """Sum `one + factor * other`, new tensors."""
    return [torch.add(a, b, alpha=factor) for a, b in zip(one, other, strict=True)]


def add_into(one: Vector, other: Vector, factor: float = 1.0) -> None:
    """Add `factor * other` to `one` in its memory, which must be nobody else's."""
    for a, b in zip(one, other, strict=True):
        a.add_(b, alpha=factor)


def scaled(vector: Vector, factor: float | Tensor) -> list[Tensor]:
    """Product `factor * vector`, new tensors."""
    if isinstance(factor, Tensor):
        return [factor.to(part) * part for part in vector]
    return [factor * part for part in vector]


def mean(vectors: Iterable[list[Tensor]]) -> list[Tensor]:
    """Mean of vectors that are made one after the other, so that one is alive."""
    total: list[Tensor] | None = None
    count = 0
    for vector in vectors:
        total = vector if total is None else add(total, vector)
        count += 1
    assert total is not None
    return total if count == 1 else scaled(total, 1 / count)


def averaged(vector: Vector) -> list[Tensor]:
    """Mean over the ranks of torch.distributed; the vector itself without it.

    One message per type and device. Every rank gets the same bits.
    """
    parts = list(vector)
    if not (dist.is_available() and dist.is_initialized()):
        return parts
    ranks = dist.get_world_size()
    if ranks == 1:
        return parts
    kinds = {(part.dtype, part.device) for part in parts}
    for kind in sorted(kinds, key=str):
        places = [
            i for i, part in enumerate(parts) if (part.dtype, part.device) == kind
        ]
        flat = torch.cat([parts[i].detach().reshape(-1) for i in places])
        dist.all_reduce(flat)
        pieces = (flat / ranks).split([parts[i].numel() for i in places])
        for i, piece in zip(places, pieces, strict=True):
            parts[i] = piece.view(parts[i].shape)
    return parts
