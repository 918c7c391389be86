"""The partial derivative: by autograd, as a limit, and without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from needsaug_lite import hypergrad
from needsaug_lite.errors import UserError
from needsaug_lite.hypergrad import HypergradientWarning


class Gated(nn.Module):
    """Two layers with batch norm and dropout, mixed by h."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.4)
        self.gate = nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate.softmax(0)
        mixed = shares[0] * self.one(x).tanh() + shares[1] * self.two(x).sin()
        found: Tensor = self.drop(self.norm(mixed))
        return found


def losses_of(model: Gated) -> tuple[object, object, dict[str, Tensor], Tensor]:
    clean, seen = torch.randn(8, 3), torch.randn(8, 3)
    own = {n: p for n, p in model.named_parameters() if n != "gate"}

    def loss(x: Tensor) -> object:
        return lambda w, h: (
            functional_call(model, {**w, **h}, (x,)).square().mul(x).mean()
            + 0.1 * w["one.weight"].square().sum() * h["gate"][0]
        )

    return loss(seen), loss(clean), own, clean


def test_it_is_the_derivative_with_the_parameters_fixed() -> None:
    model = Gated()
    model.drop.p = 0.0
    _, outer, own, clean = losses_of(model)
    found = hypergrad.first_order(outer, own, {"gate": model.gate})  # type: ignore[arg-type]
    value = outer(own, {"gate": model.gate})  # type: ignore[operator]
    (truth,) = torch.autograd.grad(value, [model.gate])
    torch.testing.assert_close(found["gate"], truth, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.outer_loss, value.detach(), rtol=1e-12, atol=0)
    assert found.path_norms["params"] == 0
    torch.testing.assert_close(found.path_norms["direct"], truth.norm())
    assert found.inner_loss == 0


def test_it_is_the_limit_of_a_step_of_length_zero() -> None:
    """In proportion to the length, and with the same draws of dropout."""
    model = Gated()
    inner, outer, own, _ = losses_of(model)
    given = {"gate": model.gate}
    limit = hypergrad.first_order(outer, own, given)["gate"]  # type: ignore[arg-type]
    far, near = (
        hypergrad.unrolled(inner, outer, own, given, lr=lr)["gate"] - limit  # type: ignore[arg-type]
        for lr in (2e-5, 1e-5)
    )
    assert far.norm() > 0
    assert float(far.norm() / near.norm()) == pytest.approx(2, rel=1e-2)


def test_it_leaves_no_trace() -> None:
    model = Gated().train()
    _, outer, own, _ = losses_of(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    drawn = torch.get_rng_state()
    one, two = (hypergrad.first_order(outer, own, {"gate": model.gate}) for _ in "ab")  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(one["gate"], two["gate"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in model.parameters())
    for name, value in own.items():
        assert torch.equal(one.params[name], value)


def test_a_generator_decides_the_draws() -> None:
    model = Gated()
    _, outer, own, _ = losses_of(model)
    source = torch.Generator().manual_seed(1)
    found = [
        hypergrad.first_order(outer, own, {"gate": model.gate}, generator=source)  # type: ignore[arg-type]
        for _ in range(2)
    ]
    assert not torch.equal(found[0]["gate"], found[1]["gate"])


def test_several_losses_are_averaged() -> None:
    model = Gated()
    model.drop.p = 0.0
    one, two, own, _ = losses_of(model)
    given = {"gate": model.gate}
    both = hypergrad.first_order([one, two], own, given)["gate"]  # type: ignore[list-item]
    parts = [hypergrad.first_order(f, own, given)["gate"] for f in (one, two)]  # type: ignore[arg-type]
    torch.testing.assert_close(both, (parts[0] + parts[1]) / 2)


def test_what_the_outer_loss_does_not_see_has_none() -> None:
    w, h = {"w": torch.randn(2)}, {"h": torch.randn(2)}
    with pytest.warns(HypergradientWarning):
        found = hypergrad.first_order(
            lambda w, h: w["w"].sum() + 0 * h["h"].sum(), w, h
        )
    assert torch.equal(found["h"], torch.zeros(2))
    with pytest.raises(UserError, match="outer_loss"):
        hypergrad.first_order(lambda w, h: h["h"].sum(), w, h)
