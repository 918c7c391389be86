"""What a search finds: two inputs and their operations for every node of a cell."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import torch

from needsaug_lite.errors import UserError
from needsaug_lite.models.cell_operations import NONE, OPERATIONS, SKIP
from needsaug_lite.models.search_cell import KINDS, Architecture, CellKind, Space

Choice = tuple[str, int]  # operation, and the state it sees


@dataclass(frozen=True)
class Genotype:
    """The two cells of an evaluation network.

    Args:
        normal: for each node, in order, two pairs of an operation and its input: 0 and
            1 are the outputs of the two cells before, 2 is the first node; the lower
            input comes first.
        reduce: likewise, of the cells that halve the side.

    Raises:
        UserError: if a node hasn't two different inputs before it, or an operation is
            unknown or none.
    """

    normal: tuple[Choice, ...]
    reduce: tuple[Choice, ...]

    def __post_init__(self) -> None:
        for kind in KINDS:
            found = tuple((str(name), source) for name, source in self.cell(kind))
            object.__setattr__(self, kind, found)
            _check(kind, found)
        if len(self.normal) != len(self.reduce):
            raise UserError(
                f"the normal cell has {len(self.normal) // 2} nodes and the reduction "
                f"cell {len(self.reduce) // 2}; give both as many"
            )

    @property
    def nodes(self) -> int:
        """Nodes of each cell."""
        return len(self.normal) // 2

    def cell(self, kind: CellKind) -> tuple[Choice, ...]:
        """The choices of the cells of this kind."""
        return self.normal if kind == "normal" else self.reduce

    @property
    def skip_connections(self) -> dict[str, int]:
        """How many skip connections each kind of cell has."""
        return {kind: sum(op == SKIP for op, _ in self.cell(kind)) for kind in KINDS}

    def as_lists(self) -> dict[str, list[list[str | int]]]:
        """For a file: normal and reduce, each a list of [operation, input]."""
        return {kind: [[op, i] for op, i in self.cell(kind)] for kind in KINDS}

    @classmethod
    def from_lists(cls, lists: Any) -> Genotype:
        """What `as_lists` gave.

        Raises:
            UserError: if it is damaged.
        """
        try:
            cells = [tuple((op, source) for op, source in lists[k]) for k in KINDS]
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(
                "this is no genotype; give normal and reduce, each a list of "
                f"[operation, input] ({error!r})"
            ) from error
        return cls(*cells)


def _check(kind: str, cell: tuple[Choice, ...]) -> None:
    """UserError unless these choices make a cell."""
    if not cell or len(cell) % 2:
        raise UserError(
            f"{kind} has {len(cell)} choices; every node needs two, one node at least"
        )
    for place, (name, source) in enumerate(cell):
        node = place // 2
        if name == NONE or name not in OPERATIONS:
            raise UserError(
                f"{kind} holds operation {name!r}; use {', '.join(OPERATIONS[1:])}"
            )
        if type(source) is not int or not 0 <= source < node + 2:
            raise UserError(
                f"node {node} of {kind} has input {source!r}; use a whole number from "
                f"0 to {node + 1}"
            )
        if place % 2 and source <= cell[place - 1][1]:
            raise UserError(
                f"node {node} of {kind} has inputs {cell[place - 1][1]} and {source}; "
                "give two different ones, the lower first"
            )


def discretise(architecture: Architecture) -> Genotype:
    """The two strongest edges into every node, each with its strongest operation.

    strength of edge (i, j) = max_{o ≠ none} β_ij α_ijo

    Among equals, the first counts.

    Args:
        architecture: α of every operation and β of every edge.

    Returns:
        The cells that are left.

    Source: Liu et al. 2019 (DARTS), Sec. 2.4; Xu et al. 2020 (PC-DARTS), Sec. 3.3.
    """
    space = architecture.space
    columns = [space.operations.index(name) for name in space.choices]
    cells = []
    for kind in KINDS:
        strengths = architecture.strengths(kind).detach()[:, columns].cpu()
        best, which = strengths.max(1)
        names = [space.choices[n] for n in which.tolist()]
        cell: list[Choice] = []
        start = 0
        for count in space.inputs:
            values = best[start : start + count]
            order = values.argsort(descending=True, stable=True)
            cell += [(names[start + i], i) for i in sorted(order[:2].tolist())]
            start += count
        cells.append(tuple(cell))
    return Genotype(*cells)


def random_genotype(space: Space, generator: torch.Generator) -> Genotype:
    """A genotype of the space, each equally likely.

    Args:
        space: nodes and operations to choose from.
        generator: of the draws, on the CPU.

    Returns:
        The genotype.
    """

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    def cell() -> Iterator[Choice]:
        for count in space.inputs:
            pairs = list(combinations(range(count), 2))
            for source in pairs[draw(len(pairs))]:
                yield space.choices[draw(len(space.choices))], source

    return Genotype(tuple(cell()), tuple(cell()))


def agreement(a: Genotype, b: Genotype) -> float:
    """The share of choices (kind of cell, node, input, operation) that both made.

    Raises:
        UserError: if the genotypes have different numbers of nodes.
    """
    return _shared(a, b, lambda choice: choice)


def edge_agreement(a: Genotype, b: Genotype) -> float:
    """The share of edges (kind of cell, node, input) that both hold."""
    return _shared(a, b, lambda choice: choice[1])


def _shared(a: Genotype, b: Genotype, part: Callable[[Choice], Hashable]) -> float:
    if a.nodes != b.nodes:
        raise UserError(
            f"the genotypes have {a.nodes} and {b.nodes} nodes; compare cells of one "
            "size"
        )

    def choices(genotype: Genotype) -> set[Hashable]:
        return {
            (kind, place // 2, part(choice))
            for kind in KINDS
            for place, choice in enumerate(genotype.cell(kind))
        }

    return len(choices(a) & choices(b)) / (4 * a.nodes)


def expected_agreement(space: Space) -> float:
    """What `agreement` is on average for two genotypes drawn from the space.

    E = (1 / n) Σ_j 2 / (m_j |O'|),   m_j edges enter node j, |O'| operations but none

    An edge of one is among the two of m_j in the other with probability 2 / m_j.
    """
    shares = [2 / (count * len(space.choices)) for count in space.inputs]
    return sum(shares) / space.nodes


def genotypes_of(space: Space) -> int:
    """How many genotypes the space holds."""
    found = 1
    for count in space.inputs:
        found *= comb(count, 2) * len(space.choices) ** 2
    return found**2
