"""Finders: their four forms, where they start, how far they reach."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.testing import assert_close

from needsaug_lite.errors import UserError
from needsaug_lite.models import Finder, FinderKind

KINDS: tuple[FinderKind, ...] = get_args(FinderKind)
F64 = torch.float64


def finder(kind: FinderKind, *, disturbed: bool = False) -> Finder:
    torch.manual_seed(0)
    made = Finder(5, kind, width=7).double()
    if disturbed:
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.7)
    return made


def latents(count: int = 6) -> Tensor:
    return torch.randn(count, 5, dtype=F64, generator=torch.Generator().manual_seed(1))


def by_hand(made: Finder, z: Tensor) -> Tensor:
    linear = [m for m in made.modules() if isinstance(m, nn.Linear)]
    found = z
    for number, layer in enumerate(linear):
        found = found @ layer.weight.T + layer.bias
        if number + 1 < len(linear):
            found = leaky_relu(found, 0.01)
    return z + found.tanh() if made.kind.startswith("residual") else found


@pytest.mark.parametrize("kind", KINDS)
def test_forms(kind: FinderKind) -> None:
    made, z = finder(kind, disturbed=True), latents()
    assert_close(made(z), by_hand(made, z))
    layers = sum(isinstance(m, nn.Linear) for m in made.modules())
    assert layers == (3 if kind in ("residual", "mlp") else 1)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "mlp"])
def test_the_search_begins_with_the_identity(kind: FinderKind) -> None:
    z = latents()
    assert torch.equal(finder(kind)(z), z)


def test_a_plain_mlp_begins_elsewhere() -> None:
    z = latents()
    assert float((finder("mlp")(z) - z).detach().abs().mean()) > 0.1


@pytest.mark.parametrize("kind", ["residual", "residual_shallow"])
def test_residual_forms_stay_within_one(kind: FinderKind) -> None:
    made, z = finder(kind), latents(100)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=30)
    away = (made(z) - z).detach().abs()
    assert float(away.max()) <= 1 + 1e-12
    assert float(away.max()) > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_no_trap(kind: FinderKind) -> None:
    """The last layer learns at once, all others from the second step on."""
    made, z = finder(kind), latents(50)
    goal = 0.5 * z.flip(1)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        loss = (made(z) - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] > losses[1] > losses[2]
    assert all(
        bool((p.grad != 0).any()) for p in made.parameters() if p.grad is not None
    )


def test_an_unknown_form_is_refused() -> None:
    wrong: Any = "transformer"
    with pytest.raises(UserError, match=r"transformer.*residual_shallow"):
        Finder(5, wrong)
