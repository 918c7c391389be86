"""The network of an architecture search: every operation on every edge, weighted."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from needsaug_lite.errors import UserError
from needsaug_lite.models.cell_operations import (
    NONE,
    OPERATIONS,
    MixedEdges,
    check_side,
    check_sizes,
    preparation,
    reductions,
    shuffled,
    stem,
)

CellKind = Literal["normal", "reduce"]
KINDS: tuple[CellKind, ...] = ("normal", "reduce")


@dataclass(frozen=True)
class Space:
    """The cells that a search can find.

    A cell is a graph: two inputs, then `nodes` nodes, each of which may see both inputs
    and all nodes before it. Edges are counted node by node, and within a node by input.

    Args:
        nodes: per cell.
        operations: names of OPERATIONS, each once; not only "none".

    Raises:
        UserError: if there is no node or no operation to choose.
    """

    nodes: int = 4
    operations: tuple[str, ...] = OPERATIONS

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", tuple(self.operations))
        if self.nodes < 1:
            raise UserError(f"nodes is {self.nodes}; a cell has at least 1")
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown:
            raise UserError(
                f"unknown operation {unknown[0]!r}; use {', '.join(OPERATIONS)}"
            )
        if len(set(self.operations)) < len(self.operations):
            raise UserError("an operation is named twice; name each once")
        if not self.choices:
            raise UserError(
                "a cell needs an operation other than none; name at least one of "
                + ", ".join(OPERATIONS[1:])
            )

    @property
    def inputs(self) -> tuple[int, ...]:
        """How many edges enter each node: 2, 3, ..."""
        return tuple(range(2, self.nodes + 2))

    @property
    def edges(self) -> int:
        """How many edges a cell has."""
        return sum(self.inputs)

    @property
    def choices(self) -> tuple[str, ...]:
        """The operations that a found cell may hold: all but none."""
        return tuple(name for name in self.operations if name != NONE)


class Architecture(nn.Module):
    """What a search learns: preferences α among operations and β among edges.

    Args:
        space: of E edges and |O| operations.
        edge_normalised: learn β too.

    Attributes:
        normal, reduce: α before its softmax, shape (E, |O|).
        normal_edges, reduce_edges: β before its softmax, shape (E,); None without.

    Source: Liu et al. 2019 (DARTS), Eq. 2; Xu et al. 2020 (PC-DARTS), Eq. 2.
    """

    normal_edges: nn.Parameter | None
    reduce_edges: nn.Parameter | None

    def __init__(self, space: Space, edge_normalised: bool = True) -> None:
        super().__init__()
        self.space, self.edge_normalised = space, edge_normalised
        shape = space.edges, len(space.operations)
        self.normal = nn.Parameter(1e-3 * torch.randn(shape))
        self.reduce = nn.Parameter(1e-3 * torch.randn(shape))
        for name in ("normal_edges", "reduce_edges"):
            start = nn.Parameter(1e-3 * torch.randn(space.edges))
            self.register_parameter(name, start if edge_normalised else None)

    def operations_of(self, kind: CellKind) -> Tensor:
        """α of the cells of this kind: shares of the operations, (E, |O|)."""
        logits = self.normal if kind == "normal" else self.reduce
        return logits.softmax(1)

    def edges_of(self, kind: CellKind) -> Tensor:
        """β of the cells of this kind, (E,): shares at each node; ones without."""
        logits = self.normal_edges if kind == "normal" else self.reduce_edges
        if logits is None:
            return torch.ones_like(self.normal[:, 0])
        return torch.cat([part.softmax(0) for part in logits.split(self.space.inputs)])

    def strengths(self, kind: CellKind) -> Tensor:
        """β α, (E, |O|): what enters a cell, and what a discretisation ranks."""
        return self.edges_of(kind)[:, None] * self.operations_of(kind)


class SearchCell(nn.Module):
    """A cell in which every edge holds every operation.

    s_j = Σ_{i<j} β_ij f_ij(s_i),   out = (s_2, s_3, ...)

    Args:
        space: nodes and operations.
        before: channels of the outputs of the cell before the last, and of the last.
        channels: C of each node, divisible by `partial`.
        halve: edges from the inputs have stride 2.
        halved: the last cell did, so that the output before it is twice as large.
        partial: K.
    """

    def __init__(
        self,
        space: Space,
        before: tuple[int, int],
        channels: int,
        *,
        halve: bool,
        halved: bool,
        partial: int,
    ) -> None:
        super().__init__()
        self.partial = partial
        self.first = preparation(before[0], channels, halve=halved, affine=False)
        self.second = preparation(before[1], channels, halve=False, affine=False)
        self.sources = nn.ModuleList(
            MixedEdges(
                space.operations,
                channels,
                2 if halve and state < 2 else 1,
                partial,
                space.nodes - max(0, state - 1),
            )
            for state in range(space.nodes + 1)
        )

    def forward(
        self, maps: tuple[Tensor, Tensor], strengths: Tensor, edges: Tensor
    ) -> Tensor:
        """Maps (B, nodes * C, H', W') of the outputs of two cells.

        Args:
            maps: of the cell before the last, and of the last.
            strengths: β α, shape (nodes, nodes + 1, |O|), by node and state.
            edges: β, shape (nodes, nodes + 1).
        """
        states = [self.first(maps[0]), self.second(maps[1])]
        sums: list[Tensor | None] = [None, None]  # over states, for nodes to come
        for number, source in enumerate(self.sources):
            start = max(0, number - 1)
            found = source(
                states[number], strengths[start:, number], edges[start:, number]
            )
            sums = [
                new if old is None else old + new
                for old, new in zip(sums, found, strict=True)
            ]
            if number:  # all states that the next node sees have been added
                parts = [part[:, 0] for part in sums if part is not None]
                states.append(shuffled(torch.cat(parts, 1), self.partial))
                sums = [part if part is None else part[:, 1:] for part in sums]
        return torch.cat(states[2:], 1)


class Supernet(nn.Module):
    """Features of images by cells that hold every operation.

    Args:
        channels: of the images.
        architecture: α and β, one for all normal and one for all reduction cells.
        width: C of the first cells, divisible by `partial`; the stem has 3 C channels.
        cells: how many; those after 1/3 and 2/3 halve the side and double C.
        partial: K; only C/K channels go through the operations, 1 for all.
        halvings: of the side in the stem, 0, 1 or 2.

    Attributes:
        feature_dim: D, nodes times C of the last cell.

    Raises:
        UserError: for sizes that don't fit.

    Source: Liu et al. 2019 (DARTS); Xu et al. 2020 (PC-DARTS).
    """

    def __init__(
        self,
        channels: int,
        architecture: Architecture,
        *,
        width: int = 16,
        cells: int = 8,
        partial: int = 4,
        halvings: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(width, cells, halvings)
        if partial < 1 or width % partial:
            raise UserError(
                f"width is {width} and partial is {partial}; partial must be at least "
                "1 and divide the width"
            )
        self.architecture, self.space = architecture, architecture.space
        self.width, self.size, self.halvings = width, cells, halvings
        self.stem = stem(channels, 3 * width, halvings)
        halving = reductions(cells)
        widths = [width * 2 ** sum(n >= h for h in halving) for n in range(cells)]
        outputs = [3 * width, 3 * width, *(self.space.nodes * w for w in widths)]
        self.kinds: list[CellKind] = [
            "reduce" if n in halving else "normal" for n in range(cells)
        ]
        self.cells = nn.ModuleList(
            SearchCell(
                self.space,
                before,
                widths[number],
                halve=number in halving,
                halved=number - 1 in halving,
                partial=partial,
            )
            for number, before in enumerate(pairwise(outputs[:-1]))
        )
        self.feature_dim = outputs[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, channels, H, W).

        Raises:
            UserError: if the images are too small for the halvings.
        """
        check_side(images, self.size, self.halvings)
        weights = {kind: self._weights(kind) for kind in set(self.kinds)}
        maps = self.stem(images)
        before = maps
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            before, maps = maps, cell((before, maps), *weights[kind])
        features: Tensor = maps.mean((2, 3))
        return features

    def _weights(self, kind: CellKind) -> tuple[Tensor, Tensor]:
        """Strengths and β by node and state; zeros where no edge is."""
        edges = self.architecture.edges_of(kind)
        strengths = edges[:, None] * self.architecture.operations_of(kind)
        rows = torch.cat([strengths, edges[:, None]], 1).split(self.space.inputs)
        states = self.space.nodes + 1
        table = torch.stack([pad(row, (0, 0, 0, states - len(row))) for row in rows])
        return table[..., :-1], table[..., -1]

    def twin(self, fresh: bool = False) -> Self:
        """A network with weights of its own that shares this one's architecture.

        Args:
            fresh: draw the weights anew; else they begin equal.
        """
        shared = {id(self.architecture): self.architecture}
        made = copy.deepcopy(self, shared)
        own = {id(p) for p in self.architecture.parameters()}
        for parameter in made.parameters():
            if id(parameter) not in own:
                parameter.grad = None
        if fresh:
            for module in made.modules():
                if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                    module.reset_parameters()
        return made
