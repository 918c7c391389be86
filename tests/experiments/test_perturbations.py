"""Who is pushed where, counted by class, by group and by wrong label."""

from __future__ import annotations

import torch

from needsaug_lite.data import Examples, InMemory
from needsaug_lite.experiments import Spec, run
from needsaug_lite.experiments.perturbations import perturbation_scores

EPSILON = torch.tensor([0.5, -0.5, 0.25, 0.0, -0.75, 0.125])
LABELS = torch.tensor([0, 0, 1, 1, 1, 3])


def examples(**more: torch.Tensor) -> Examples:
    images = InMemory(torch.zeros(6, 1, 8, 8, dtype=torch.uint8))
    return Examples(images, LABELS, **more)


def test_shares_by_class() -> None:
    scores = perturbation_scores(EPSILON, examples(), 4)
    assert scores["adversarial"] == 0.5
    assert scores["adversarial_per_class"] == [0.5, 1 / 3, None, 1.0]
    assert scores["epsilon_per_class"] == [0.0, -0.5 / 3, None, 0.125]
    assert scores["epsilon_size"] == 2.125 / 6
    assert "adversarial_noisy" not in scores
    assert "adversarial_per_group" not in scores


def test_wrong_labels_and_groups_are_told_apart() -> None:
    true = torch.tensor([1, 0, 1, 0, 1, 3])  # samples 0 and 3 are mislabelled
    groups = torch.tensor([0, 2, 2, 2, 0, 0])
    train = examples(true_labels=true, groups=groups)
    scores = perturbation_scores(EPSILON, train, 4)
    assert scores["adversarial_noisy"] == 0.5
    assert scores["adversarial_clean"] == 0.5
    assert scores["adversarial_per_group"] == [2 / 3, None, 1 / 3]


def test_a_row_of_meta_iada_tells_whom_it_pushed() -> None:
    spec = Spec.checked(
        {
            "method": "meta_iada",
            "data": {"n_max": 20, "meta_per_class": 2, "noise": 0.4},
            "model": {"width": 4},
            "hyperparameters": {"start": 0.5},
            "epochs": 2,
        }
    )
    metrics = run(spec).metrics
    assert len(metrics["adversarial_per_class"]) == 10
    assert 0 < metrics["epsilon_size"] < 1
    assert 0 <= metrics["adversarial_noisy"] <= 1
    assert 0 < metrics["noise_average_precision"] <= 1


def test_a_row_of_another_method_says_nothing_of_it() -> None:
    spec = Spec.checked({"data": {"n_max": 20}, "model": {"width": 4}, "epochs": 1})
    assert "adversarial" not in run(spec).metrics
