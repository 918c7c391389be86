"""A whole search of an architecture, by every method, beside one of PC-DARTS.

make bench BENCH='-k architecture_search'
"""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
import torch
from benchmarks import measure, record
from benchmarks.search_steps import (
    METHODS,
    PERIOD,
    Pretraining,
    Problem,
    Steps,
    long_splits,
    passes,
    peak_alone,
    prepared,
)

from needsaug_lite.experiments.search_table import (
    UNIT,
    architecture_search_tables,
    search_time,
)
from needsaug_lite.methods.search.settings import SEARCH

TARGET = record.MEASUREMENTS / "architecture_search.json"
PROBLEMS = [
    # digits_search.yaml: 12 epochs of 15 steps.
    Problem("digits, 8 x 8 grey, 2 nodes", None, 2, 0, 24, 3, 12 * 15, 3000),
    # fashion_mnist_search.yaml: 12 epochs of 32 steps.
    Problem("28 x 28 grey, 2 nodes", (1, 28, 28), 2, 1, 50, 3, 12 * 32, 4000),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def measured(problem: Problem) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of all methods, and how they were measured."""
    splits = long_splits(problem)
    steps = {name: Steps(prepared(name, problem, splits)) for name in METHODS}
    counts = {
        name: {
            "warm_up": passes(one, moving=False),
            "moving": passes(one, moving=True),
        }
        for name, one in steps.items()
    }
    # PC-DARTS looks once at a training batch and once at a held-out one, which is
    # smaller where the held-out images end.
    assert counts[UNIT]["warm_up"] == 1 < counts[UNIT]["moving"] <= 2
    first = Pretraining(splits)
    first.period()
    calls = {f"{name} rests": one.warm_up for name, one in steps.items()}
    calls |= {f"{name} moves": one.moved for name, one in steps.items()}
    times = measure.rounds({**calls, "gan": first.period}, problem.rounds)
    per_step = {name: found / PERIOD for name, found in times.items()}

    def phases(name: str) -> tuple[Any, Any]:
        return per_step[f"{name} rests"], per_step[f"{name} moves"]

    def whole(name: str) -> Any:
        return search_time(
            *phases(name),
            warm_up_share=SEARCH.warm_up,
            halved=steps[name].method.halved,
        )

    rows = []
    for name, (method, settings) in METHODS.items():
        found = measure.ratio(whole(name), whole(UNIT))
        rests, moves = phases(name)
        unit_rests, unit_moves = phases(UNIT)
        rows.append(
            {
                "problem": problem.name,
                "name": name,
                "method": method,
                "settings": settings,
                "milliseconds": {
                    "warm_up": 1000 * float(median(rests)),
                    "moving": 1000 * float(median(moves)),
                },
                "step": {
                    "warm_up": measure.ratio(rests, unit_rests).value,
                    "moving": measure.ratio(moves, unit_moves).value,
                },
                "search": {"ratio": found.value, "low": found.low, "high": found.high},
                "passes": counts[name],
                "peak_bytes": peak_alone(name, problem),
            }
        )
    unit_step = median(whole(UNIT))
    pretraining = {
        "milliseconds": 1000 * float(median(per_step["gan"])),
        "steps": problem.pretraining,
        "search_steps": problem.search,
        "searches": float(
            median(per_step["gan"]) * problem.pretraining / unit_step / problem.search
        ),
    }
    run = record.provenance({}, problem.rounds, period=PERIOD, pretraining=pretraining)
    return rows, run


@pytest.mark.parametrize("problem", PROBLEMS, ids=[p.name for p in PROBLEMS])
def test_architecture_search_beside_pc_darts(
    problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, run = measured(problem)
    record.record(TARGET, "problem", problem.name, rows, run)
    with capsys.disabled():
        print("\n" + architecture_search_tables(TARGET))
