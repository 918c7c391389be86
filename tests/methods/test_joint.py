"""One sum of losses for a classifier and a generator."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.meta_methods import assert_same, fit_in_two
from helpers.needs import EPOCHS, gan, make, same, small, steps, weights
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from needsaug_lite.errors import UserError
from needsaug_lite.methods import NeedsAware
from needsaug_lite.methods.baselines.joint import Joint
from needsaug_lite.methods.generation.adversarial import (
    ConditionalGAN,
    UnconditionalGAN,
)
from needsaug_lite.methods.generation.aids import mode_seeking


def spied(method: Any) -> dict[str, Any]:
    """What a step draws."""
    seen: dict[str, Any] = {}
    own = method.gan.next_real
    class_budget = type(method.budget)
    following = class_budget.__next__

    def real() -> Any:
        seen["real"] = own()
        return seen["real"]

    class Watched(class_budget):  # type: ignore[misc,valid-type]
        def __next__(self) -> Any:
            seen["portion"] = following(self)
            return seen["portion"]

    method.gan.next_real = real
    method.budget.__class__ = Watched
    return seen


@pytest.mark.parametrize(("strength", "weight"), [(1.5, 0.7), (0.0, 1.0), (1.0, 0.0)])
def test_a_step_descends_the_written_sum(strength: float, weight: float) -> None:
    method = make(Joint, strength=strength, adversarial_strength=weight)
    seen = spied(method)
    method.begin_epoch(0)
    batch = next(method.batches.epoch(0))
    model, maker = copy.deepcopy((method.model.train(), method.generator))
    logged = method.step(batch)
    (real, z), portion = seen["real"], seen["portion"]

    fit = cross_entropy(model(batch.images), batch.labels)
    moments = {n: b.clone() for n, b in model.named_buffers()}
    images = maker.sample(portion.latents, portion.labels)
    made = cross_entropy(model(method.normalisation.from_unit(images)), portion.labels)
    judge = method.gan.gan.discriminator.eval()  # it has taken its step already
    fake = maker.symmetric(z, real.labels)
    judged = -judge(fake, real.labels).mean()
    judged = judged + method.gan.gan.diversity * mode_seeking(z, fake, real.labels)
    total = fit + strength * made + weight * judged
    assert_close(logged["loss"], fit.detach())
    assert_close(logged["synthetic_loss"], made.detach())
    assert_close(logged["generator_loss"], judged.detach())

    parameters = [*model.parameters(), *maker.parameters()]
    slopes = torch.autograd.grad(total, parameters)
    theirs = [*method.model.parameters(), *method.generator.parameters()]
    decay = method.optimisation.weight_decay
    for slope, new in zip(slopes, theirs, strict=True):
        assert new.grad is not None
        assert_close(new.grad, slope, rtol=1e-3, atol=1e-6)
    for old, slope, new in zip(
        model.parameters(), slopes, method.model.parameters(), strict=False
    ):
        expected = old.data - 0.05 * (slope + decay * old.data)
        assert_close(new.data, expected, rtol=1e-4, atol=1e-6)
    for name, buffer in method.model.named_buffers():
        assert_close(buffer, moments[name])


def test_everyone_moves_and_the_head_belongs_to_w2_alone() -> None:
    method = make(Joint)
    parts = {
        "W2": method.model,
        "G": method.generator,
        "H": method.gan.gan.discriminator,
    }
    before = {name: weights(part) for name, part in parts.items()}
    steps(method, 2)
    for name, part in parts.items():
        moved = weights(part)
        assert not any(torch.equal(p, before[name][n]) for n, p in moved.items())
    judge = {id(p) for p in parts["H"].parameters()}
    assert not judge & {id(p) for p in method.model.parameters()}
    assert not any(m.training for m in method.generator.modules())


def test_norms_of_the_generator_follow_its_weights() -> None:
    method = make(Joint)
    before = {n: b.clone() for n, b in method.generator.named_buffers() if "_u" in n}
    steps(method, 2)
    after = dict(method.generator.named_buffers())
    assert before
    assert any(not torch.equal(after[n], b) for n, b in before.items())


def test_every_class_gets_the_same_and_an_epoch_the_whole_budget() -> None:
    method = make(Joint, budget=203)
    steps(method, len(method.batches))
    steps(method, len(method.batches), epoch=1)
    found = method.allocation_summary()
    assert found["budget"] == 203
    assert found["images"] == [42] * 3 + [40] * 7


def test_any_gan_with_classes_will_do_and_no_other() -> None:
    splits = small()
    steps(make(Joint, splits, source=gan(splits, ConditionalGAN)), 1)
    with pytest.raises(UserError, match="unconditional"):
        make(Joint, splits, source=gan(splits, UnconditionalGAN))
    with pytest.raises(UserError, match="budget of 5 images"):
        make(Joint, budget=5)
    # No held-out images are needed.
    steps(make(Joint, small(meta_per_class=0)), 1)


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    from needsaug_lite import training

    whole = make(Joint)
    training.fit(whole, EPOCHS)
    second = fit_in_two(lambda: make(Joint), EPOCHS, 1, tmp_path / "run.pt")
    assert_same(whole, second)
    assert second.allocation_summary() == whole.allocation_summary()
    assert same(weights(whole.generator), weights(second.generator))


@pytest.mark.parametrize("kind", [Joint, NeedsAware])
def test_a_gan_of_other_images_is_refused(kind: Any) -> None:
    other = replace(small(), class_names=tuple("abcdefghijkl"))
    with pytest.raises(UserError, match="makes 12 classes, the data have 10"):
        make(kind, source=gan(other))
