"""The learning rate of an epoch, and the optimiser that takes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from needsaug_lite.errors import UserError
from needsaug_lite.training import Optimisation
from needsaug_lite.training.schedules import set_learning_rate


def test_published_ldam_schedule() -> None:
    rate = Optimisation().learning_rate
    assert [rate(epoch, 200) for epoch in range(5)] == pytest.approx(
        [0.02, 0.04, 0.06, 0.08, 0.1]
    )
    assert rate(5, 200) == rate(159, 200) == pytest.approx(0.1)
    assert rate(160, 200) == rate(179, 200) == pytest.approx(1e-3)
    assert rate(180, 200) == rate(199, 200) == pytest.approx(1e-5)


def test_cosine_starts_at_lr_and_falls_towards_zero() -> None:
    settings = Optimisation(schedule="cosine", warmup=0.0)
    rates = [settings.learning_rate(epoch, 10) for epoch in range(11)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.05)
    assert rates[10] == pytest.approx(0.0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_short_runs_have_a_positive_rate_everywhere(epochs: int) -> None:
    assert all(Optimisation().learning_rate(e, epochs) > 0 for e in range(epochs))


def test_adams_first_step_has_the_length_of_the_rate_whatever_the_slope() -> None:
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    adam = Optimisation(kind="adam", lr=1e-3, weight_decay=0.1).optimiser([weights])
    assert adam.param_groups[0]["lr"] == 1e-3
    set_learning_rate(adam, 0.01)
    before = weights.detach().clone()
    # With the decay, the slopes are 2 + 0.1, 0.2 - 0.2 and -40 + 0.3.
    weights.grad = torch.tensor([2.0, 0.2, -40.0], dtype=torch.float64)
    adam.step()
    expected = torch.tensor([-0.01, 0.0, 0.01], dtype=torch.float64)
    torch.testing.assert_close(weights.detach() - before, expected, rtol=1e-6, atol=0)


def test_two_steps_of_sgd_are_those_of_its_formula() -> None:
    weight = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    sgd = Optimisation(lr=0.1, momentum=0.5, weight_decay=0.2).optimiser([weight])
    place, speed = 1.0, 0.0
    for slope in (3.0, -1.0):
        weight.grad = torch.tensor([slope], dtype=torch.float64)
        sgd.step()
        speed = 0.5 * speed + slope + 0.2 * place
        place -= 0.1 * speed
        assert float(weight.detach()) == pytest.approx(place, rel=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_a_network_and_its_parameters_are_trained_alike(kind: Any) -> None:
    settings = Optimisation(kind=kind)
    network = nn.Linear(3, 2)
    whole = settings.optimiser(network).param_groups[0]
    some = settings.optimiser(iter([network.bias])).param_groups[0]
    pairs = zip(whole["params"], network.parameters(), strict=True)
    assert all(one is two for one, two in pairs)
    assert len(some["params"]) == 1
    assert some["params"][0] is network.bias
    names = whole.keys() - {"params"}
    assert all(whole[name] == some[name] for name in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "adam", "momentum": 0.5}, "leave both out, or set kind to sgd"),
        ({"kind": "adam", "momentum": 0.0}, "momentum 0.0 .* are of SGD"),
        ({"kind": "adam", "nesterov": True}, "nesterov True are of SGD"),
        ({"nesterov": True, "momentum": 0.0}, "momentum above 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Optimisation(**settings).optimiser(nn.Linear(1, 1))
