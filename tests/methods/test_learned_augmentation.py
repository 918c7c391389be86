"""Policies between a batch and the network: whose policy, which draws, which scale."""

from __future__ import annotations

import pytest
import torch

from needsaug_lite import data
from needsaug_lite.data import Batch, Batches, Normalisation
from needsaug_lite.errors import UserError
from needsaug_lite.methods.learned_augmentation import LearnedAugmentation

SPLITS = data.load("digits", imbalance=5)
NORMAL = Normalisation.of(SPLITS)


def learned(cluster_size: int = 1, seed: int = 0) -> LearnedAugmentation:
    return LearnedAugmentation(
        SPLITS.class_counts,
        SPLITS.image_shape,
        NORMAL,
        cluster_size=cluster_size,
        sub_policies=2,
        seed=seed,
    )


def batch() -> Batch:
    return next(iter(Batches(SPLITS.train, 40, NORMAL).epoch(0)))


def never(augmentation: LearnedAugmentation) -> None:
    """Operations with a probability of almost zero."""
    with torch.no_grad():
        augmentation.policy.probability_logits.fill_(-40.0)


def test_without_operations_the_images_stay_as_they_are() -> None:
    augmentation, found = learned(), batch()
    never(augmentation)
    with torch.no_grad():
        through = augmentation.images_of(found)(augmentation.hparams)
    torch.testing.assert_close(through, found.images, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        augmentation.augmented(found), found.images, atol=1e-5, rtol=0
    )


def test_an_image_gets_the_policy_of_its_own_class() -> None:
    augmentation, found = learned(), batch()
    never(augmentation)
    with torch.no_grad():
        augmentation.policy.probability_logits[augmentation.cluster[3]] = 40.0
        through = augmentation.images_of(found)(augmentation.hparams)
    changed = (through - found.images).abs().flatten(1).amax(1) > 1e-3
    assert not bool(changed[found.labels != 3].any())
    assert bool(changed[found.labels == 3].any())


def test_clusters_follow_the_class_sizes() -> None:
    # Class 0 is the largest, class 9 the smallest.
    assert learned(1).cluster.tolist() == list(range(10))
    assert learned(4).cluster.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert learned(10).cluster.tolist() == [0] * 10


def test_a_closure_keeps_its_draws_and_the_next_one_has_others() -> None:
    augmentation, found = learned(), batch()
    first, second = augmentation.images_of(found), augmentation.images_of(found)
    with torch.no_grad():
        once, twice = (first(augmentation.hparams) for _ in range(2))
        other = second(augmentation.hparams)
    assert torch.equal(once, twice)
    assert not torch.equal(once, other)
    assert not torch.equal(augmentation.augmented(found), augmentation.augmented(found))


def test_draws_depend_on_the_seed_and_the_number_of_draws_alone() -> None:
    found = batch()
    one, same, other = learned(seed=1), learned(seed=1), learned(seed=2)
    torch.manual_seed(5)
    here = one.augmented(found)
    torch.manual_seed(6)
    assert torch.equal(here, same.augmented(found))
    assert not torch.equal(here, other.augmented(found))
    resumed = learned(seed=1)
    resumed.load_state_dict(one.state_dict())
    assert torch.equal(one.augmented(found), resumed.augmented(found))


def test_training_images_carry_no_graph_and_closures_do() -> None:
    augmentation, found = learned(), batch()
    assert not augmentation.augmented(found).requires_grad
    images = augmentation.images_of(found)(augmentation.hparams)
    gradients = torch.autograd.grad(
        images.square().mean(), list(augmentation.hparams.values())
    )
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert all(bool((gradient != 0).any()) for gradient in gradients)


def test_values_handed_in_are_used() -> None:
    augmentation, found = learned(), batch()
    images = augmentation.images_of(found)
    still = {name: h.detach().clone() for name, h in augmentation.hparams.items()}
    still["policy.probability_logits"].fill_(-40.0)
    torch.testing.assert_close(images(still), found.images, atol=1e-5, rtol=0)
    with torch.no_grad():
        assert not torch.equal(images(augmentation.hparams), images(still))


def test_features_are_refused() -> None:
    with pytest.raises(UserError, match="features"):
        LearnedAugmentation(
            SPLITS.class_counts,
            (512, 1, 1),
            NORMAL,
            cluster_size=1,
            sub_policies=2,
            seed=0,
        )
