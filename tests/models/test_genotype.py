"""Genotypes: what is chosen, what two of them share, files."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from needsaug_lite.errors import UserError
from needsaug_lite.models import Architecture, Space
from needsaug_lite.models.genotype import (
    Genotype,
    agreement,
    discretise,
    edge_agreement,
    expected_agreement,
    genotypes_of,
    random_genotype,
)

POOL, SKIP, SEP = "max_pool_3x3", "skip_connect", "sep_conv_3x3"
FOUND = Genotype(
    ((SKIP, 0), (SEP, 1), (SEP, 0), (SEP, 2)),
    ((POOL, 0), (SKIP, 1), (SKIP, 1), (SEP, 2)),
)
TINY = Space(2, ("none", SKIP, SEP))


def drawn(seed: int, space: Space) -> Genotype:
    return random_genotype(space, torch.Generator().manual_seed(seed))


def architecture(seed: int, edge_normalised: bool = True) -> Architecture:
    torch.manual_seed(seed)
    made = Architecture(Space(4), edge_normalised)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def all_genotypes(space: Space) -> list[Genotype]:
    nodes = [
        [
            ((a, i), (b, j))
            for i, j in combinations(range(count), 2)
            for a, b in product(space.choices, repeat=2)
        ]
        for count in space.inputs
    ]
    cells = [sum(parts, ()) for parts in product(*nodes)]
    return [Genotype(normal, reduce) for normal, reduce in product(cells, cells)]


def test_the_strongest_edges_and_operations_are_chosen() -> None:
    made = Architecture(Space(2, ("none", SKIP, SEP)))
    with torch.no_grad():
        for logits in made.parameters():
            logits.zero_()
        # Node 0: inputs 0 and 1. Node 1: 0, 1 and 2; the edge from 1 is weakest.
        made.normal[:, 0] = 0.0
        made.normal[0, 1] = 1.0
        made.normal[1, 2] = 1.0
        made.normal[2, 2] = 2.0
        made.normal[4, 1] = 1.0
        # Equal operations: β alone decides, against the order.
        assert made.reduce_edges is not None
        made.reduce_edges[2:] = torch.tensor([-1.0, 0.0, 1.0])
    found = discretise(made)
    assert found.normal == ((SKIP, 0), (SEP, 1), (SEP, 0), (SKIP, 2))
    assert found.reduce == ((SKIP, 0), (SKIP, 1), (SKIP, 1), (SKIP, 2))


def test_beta_outweighs_alpha() -> None:
    made = Architecture(Space(2, (SKIP, SEP)))
    with torch.no_grad():
        for logits in made.parameters():
            logits.zero_()
        made.normal[2] = torch.tensor([0.0, 5.0])  # share 0.99 against 0.5
        assert made.normal_edges is not None
        made.normal_edges[2] = -1.0  # share 0.16 against 0.42
    assert [source for _, source in discretise(made).normal[2:]] == [1, 2]


def test_a_strong_none_weakens_its_edge() -> None:
    made = Architecture(Space(2, ("none", SKIP, SEP)), edge_normalised=False)
    with torch.no_grad():
        made.normal.zero_()
        made.normal[2:] = torch.tensor([[9.0, 5, 0], [0, 1, 0], [0, 0, 1]])
    assert discretise(made).normal[2:] == ((SKIP, 1), (SEP, 2))


@given(seed=st.integers(0, 1000), shift=st.floats(-5, 5))
def test_a_constant_on_all_preferences_changes_nothing(seed: int, shift: float) -> None:
    made = architecture(seed)
    before = discretise(made)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(shift)
    assert discretise(made) == before


@given(seed=st.integers(0, 1000), normalised=st.booleans())
def test_none_is_never_chosen(seed: int, normalised: bool) -> None:
    made = architecture(seed, normalised)
    with torch.no_grad():
        made.normal[:, 0] += 20
    found = discretise(made)
    assert all(name != "none" for name, _ in found.normal + found.reduce)
    assert found.nodes == 4


def test_what_is_learned_is_left_alone() -> None:
    made = architecture(0)
    before = {n: p.clone() for n, p in made.named_parameters()}
    discretise(made)
    assert all(torch.equal(p, before[n]) for n, p in made.named_parameters())
    assert made.normal.requires_grad


@given(seed=st.integers(0, 1000))
def test_lists_and_back(seed: int) -> None:
    found = drawn(seed, Space(3))
    assert Genotype.from_lists(found.as_lists()) == found


@pytest.mark.parametrize(
    ("normal", "says"),
    [
        ([[SKIP, 0]], "two"),
        ([], "two"),
        ([["conv", 0], [SKIP, 1]], "sep_conv_3x3"),
        ([["none", 0], [SKIP, 1]], "none"),
        ([[SKIP, 0], [SKIP, 2]], "from 0 to 1"),
        ([[SKIP, 0], [SKIP, -1]], "from 0 to 1"),
        ([[SKIP, 0], [SKIP, 1.0]], "whole number"),
        ([[SKIP, 0], [SKIP, True]], "whole number"),
        ([[SKIP, 1], [SKIP, 1]], "different"),
        ([[SKIP, 1], [SKIP, 0]], "lower first"),
        ([[SKIP], [SKIP, 0]], "no genotype"),
        (5, "no genotype"),
        ([[SKIP, 0], [SKIP, 1]], "both as many"),
    ],
)
def test_damaged_lists_are_refused(normal: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Genotype.from_lists(FOUND.as_lists() | {"normal": normal})


def test_no_lists_are_refused() -> None:
    wrong: list[Any] = [None, {"normal": []}, "normal"]
    for lists in wrong:
        with pytest.raises(UserError, match="no genotype"):
            Genotype.from_lists(lists)


def test_skip_connections_are_counted() -> None:
    assert FOUND.skip_connections == {"normal": 1, "reduce": 2}


def test_agreement_by_hand() -> None:
    other = Genotype(((SKIP, 0), (SKIP, 1), (SEP, 1), (SEP, 2)), FOUND.reduce)
    # normal: (SKIP, 0) and (SEP, 2) of four; edges 0, 1 and 2.
    assert agreement(FOUND, other) == agreement(other, FOUND) == 6 / 8
    assert edge_agreement(FOUND, other) == 7 / 8
    assert agreement(FOUND, FOUND) == 1
    with pytest.raises(UserError, match="2 and 3 nodes"):
        agreement(FOUND, drawn(0, Space(3)))


def test_expected_agreement_is_the_mean_over_all_pairs() -> None:
    every = all_genotypes(TINY)
    assert len(set(every)) == len(every) == genotypes_of(TINY) == 48**2
    # By symmetry of the uniform draw, cells of the two kinds may be paired alone.
    cells = {g.normal for g in every}
    pairs = [agreement(Genotype(a, a), Genotype(b, b)) for a in cells for b in cells]
    assert sum(pairs) / len(pairs) == pytest.approx(expected_agreement(TINY))
    assert expected_agreement(TINY) == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_random_genotypes_are_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [random_genotype(TINY, generator) for _ in range(4800)]
    counts = [0] * 48
    cells = sorted({g.normal for g in all_genotypes(TINY)})
    for genotype in draws:
        counts[cells.index(genotype.normal)] += 1
    # χ² with 47 degrees of freedom is above 82.7 once in a thousand.
    assert sum((count - 100) ** 2 / 100 for count in counts) < 82.7
    rate = sum(map(agreement, draws[::2], draws[1::2])) / 2400
    assert rate == pytest.approx(expected_agreement(TINY), abs=0.015)


def test_a_seed_repeats() -> None:
    assert drawn(3, Space(4)) == drawn(3, Space(4)) != drawn(4, Space(4))
