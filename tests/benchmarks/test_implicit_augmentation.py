"""The IADA loss, forward and backward, beside its formula written out for all pairs.

make bench
make bench BENCH='-k implicit_augmentation'

The literal form of the diagonal problem holds several arrays of 2 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch
from benchmarks import measure, record
from helpers import literal_iada as literal
from helpers.literal_iada import Problem
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.experiments.implicit_augmentation_table import (
    implicit_augmentation_table,
)

TARGET = record.MEASUREMENTS / "implicit_augmentation.json"
Loss = Callable[[Problem], Tensor]


@dataclass(frozen=True)
class Case:
    """Sizes N, C, D; whether Σ is full, whether it is learned, how often to measure."""

    samples: int
    classes: int
    features: int
    full: bool
    covariance_gradient: bool
    rounds: int


# The literal form of the first takes seconds.
CASES = {
    "diagonal": Case(256, 1000, 2048, False, False, rounds=5),
    "full": Case(128, 100, 64, True, False, rounds=100),
    "full, learned": Case(128, 100, 64, True, True, rounds=100),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def gradients(case: Case, problem: Problem, loss: Loss) -> list[Tensor]:
    """The mean loss, and its gradients to h, W, b, ε and, if it is learned, Σ."""
    names = ["features", "head_weight", "head_bias", "epsilon"]
    names += ["covariance"] if case.covariance_gradient else []
    leaves = {name: getattr(problem, name).detach().requires_grad_() for name in names}
    value = loss(problem._replace(**leaves))
    return [value.detach(), *torch.autograd.grad(value, list(leaves.values()))]


def measured(case: Case) -> dict[str, Any]:
    problem = literal.draw(
        case.samples,
        case.classes,
        case.features,
        full=case.full,
        dtype=torch.float32,
    )
    forms: dict[str, Loss] = {
        "table": lambda p: losses.iada(*p),
        "literal": lambda p: literal.iada(p).mean(),
    }
    calls = {
        name: partial(gradients, case, problem, loss) for name, loss in forms.items()
    }
    pairs = zip(*(call() for call in calls.values()), strict=True)
    difference = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    times = measure.rounds(calls, case.rounds)
    faster = measure.ratio(times["literal"], times["table"])
    peaks = {name: measure.peak_bytes(call) / 1e6 for name, call in calls.items()}
    return {
        "covariance": "full" if case.full else "diagonal",
        "samples": case.samples,
        "classes": case.classes,
        "features": case.features,
        "covariance_gradient": case.covariance_gradient,
        "faster": faster.value,
        "low": faster.low,
        "high": faster.high,
        "milliseconds": 1000 * float(median(times["table"])),
        "literal_milliseconds": 1000 * float(median(times["literal"])),
        "leaner": peaks["literal"] / peaks["table"],
        "megabytes": peaks["table"],
        "literal_megabytes": peaks["literal"],
        "relative_difference": difference,
    }


@pytest.mark.parametrize("name", CASES)
def test_implicit_augmentation_beside_its_literal_formula(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"problem": name, **measured(CASES[name])}
    # Loss and every gradient, up to single precision; times are never asserted.
    assert row["relative_difference"] < 1e-4
    run = record.provenance({}, CASES[name].rounds)
    record.record(TARGET, "problem", name, [row], run)
    with capsys.disabled():
        print("\n" + implicit_augmentation_table(TARGET, problems=[name]))
