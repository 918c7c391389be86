"""Rows with made-up numbers, of the methods that stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from needsaug_lite.experiments import Record, Spec
from needsaug_lite.experiments.side_by_side import APART, REFERENCE

_OWN = ("cross_entropy", REFERENCE)


def row(
    experiment: str, method: str, seed: int, score: float, **settings: Any
) -> Record:
    """One row of the protocol; `metrics` has the score under every name."""
    joins = method not in (*APART, *_OWN)
    data = {"name": "fashion_mnist", "meta_per_class": 10, "val_per_class": 10}
    spec = Spec.checked(
        {
            "experiment": experiment,
            "method": method,
            "seed": seed,
            "learn_from": "train+meta" if joins else "train",
            "data": data,
            **settings,
        }
    )
    names = ("balanced_accuracy", "few", "geometric_mean", "worst_group_accuracy")
    return Record(
        run_id=spec.run_id,
        method_version=spec.method_version,
        spec=spec,
        metrics={**dict.fromkeys(names, score), "ece": 1 - score},
        class_counts=[10],
        history=[],
        seconds=1,
        peak_memory_mib=1,
        threads=1,
        device="cpu",
        data_checksum=f"data {seed}",
        versions={},
        python="3",
        code_version="0",
        created="now",
    )


def rows(
    experiment: str, scores: Mapping[str, Sequence[float]], **settings: Any
) -> list[Record]:
    """One row for each score; the seeds are 0, 1, 2 ..."""
    return [
        row(experiment, method, seed, score, **settings)
        for method, own in scores.items()
        for seed, score in enumerate(own)
    ]
