"""The learning rate of an epoch."""

from __future__ import annotations

import pytest

from needsaug_lite.training import Optimisation


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
