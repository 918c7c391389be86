"""The frame of searches for a loss: what is divided, counted, refused and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.loss_search import only_train
from helpers.meta_methods import assert_same, load, make
from torch.nn.functional import cross_entropy

from needsaug_lite import training
from needsaug_lite.data import Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.loss_search import LossSearch
from needsaug_lite.training import Stage


class Still(LossSearch):
    """One epoch on the larger part, after which α jumps."""

    def search_stages(self, epochs: int) -> Sequence[Stage]:
        def begin_epoch(epoch: int) -> dict[str, float]:
            self.epochs = 1
            self.alpha = self.space.detached()
            return dict(self.begin_epoch(epoch))

        return [Stage("look", 1, self.search_batches, self.step, begin_epoch)]


def coloured(splits: Splits, *, by_attribute: bool = False) -> Splits:
    """Two attributes; group label * 2 + attribute, or attribute * 10 + label."""
    labels = splits.train.labels
    side = (torch.arange(len(labels)) % 3 == 0).long()
    groups = side * 10 + labels if by_attribute else labels * 2 + side
    return replace(splits, train=replace(splits.train, groups=groups))


def still(splits: Splits | None = None, **settings: Any) -> Still:
    splits = only_train(load()) if splits is None else splits
    space = {
        "design": "delta_l",
        "initial": "la",
        "tau": 1.0,
        "cluster_size": 1,
        **settings.pop("space", {}),
    }
    options = {
        "goal": "balanced",
        "fairness": 1.0,
        "grouped": False,
        "validation_share": 0.25,
    }
    return make(
        lambda *arguments, **common: Still(*arguments, **space, **common),
        splits,
        **{**options, **settings},
    )


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_cell_gives_its_share(share: float, grouped: bool) -> None:
    method = still(coloured(load()), grouped=grouped, validation_share=share)
    whole = method.cells.counts(method.batches.examples)
    rest = method.cells.counts(method.rest)
    held = method.cells.counts(method.strata.examples)
    assert whole.shape == ((10, 2) if grouped else (10, 1))
    assert torch.equal(held + rest, whole)
    expected = (share * whole.double()).round().clamp(min=1).minimum(whole - 1.0)
    assert torch.equal(held.double(), expected)
    # What L_fair's plain part weights the cells with.
    torch.testing.assert_close(method.fair_loss.shares, held / held.sum())


@pytest.mark.parametrize("grouped", [False, True])
def test_validation_batches_hold_equally_many_of_every_cell(grouped: bool) -> None:
    method = still(coloured(load()), grouped=grouped, batch_size=40)
    each = 2 if grouped else 4
    for batch in method.strata.epoch(0):
        found = method.cells.number(batch.labels, batch.groups).bincount()
        present = method.cells.counts(method.strata.examples).flatten() > 0
        assert found[present[: len(found)]].unique().tolist() == [each]
        assert len(batch) == each * int(present.sum())


def test_a_lone_image_stays_in_training() -> None:
    splits = load()
    first = (splits.train.labels == 9).nonzero().flatten()[1:]
    keep = torch.ones(len(splits.train), dtype=torch.bool)
    keep[first] = False
    few = replace(splits, train=splits.train.subset(keep.nonzero().flatten()))
    method = still(few)
    assert (method.rest.labels == 9).sum() == 1
    assert not (method.strata.examples.labels == 9).any()
    batch = next(method.strata.epoch(0))
    loss = method.fair_loss(torch.randn(len(batch), 10), batch)
    assert loss.isfinite()
    training.fit(method, 1)


def test_the_division_follows_from_the_seed() -> None:
    def held(seed: int) -> bytes:
        return still(load(), seed=seed).strata.examples.images.fingerprint()

    assert held(3) == held(3)
    assert held(3) != held(4)


@pytest.mark.parametrize("by_attribute", [False, True])
def test_each_cell_trains_with_its_own_numbers(by_attribute: bool) -> None:
    """Eq. 4.2 sample by sample, for both codes of groups."""
    method = still(coloured(load(), by_attribute=by_attribute), grouped=True)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for h in method.space.hparams.values():
            h += torch.randn(h.shape, generator=draw)
    alpha = method.space.detached()
    w, shift, factor = (
        alpha[name] for name in ("class_weight", "additive", "multiplicative")
    )
    assert w is not None
    assert shift is not None
    assert factor is not None
    batch = next(method.search_batches.epoch(0))
    assert batch.groups is not None
    logits = torch.randn(len(batch), 10, generator=draw)
    side = batch.groups // 10 if by_attribute else batch.groups % 2
    assert 0 < side.sum() < len(side)
    total = torch.zeros(())
    for f, y, a in zip(logits, batch.labels, side, strict=True):
        total += w[y, a] * cross_entropy(factor[:, a] * f + shift[:, a], y)
    found = method.train_loss(logits, batch, alpha)
    torch.testing.assert_close(found, total / len(batch))
    # Without groups each class has its own, whatever its attribute.
    blind = still(coloured(load(), by_attribute=by_attribute), grouped=False)
    additive = blind.alpha["additive"]
    assert additive is not None
    assert additive.shape == (10,)


def test_groups_make_no_difference_unless_asked_for() -> None:
    plain, seeing = still(load()), still(coloured(load()))
    training.fit(plain, 2)
    training.fit(seeing, 2)
    assert_same(plain, seeing)


def test_retraining_uses_what_was_found() -> None:
    """Its loss is that of the interpolated α as it is when the search has ended."""
    method = still(space={"design": "l", "cluster_size": 4, "initial": "plain"})
    first = {n: v.clone() for n, v in method.model.state_dict().items()}
    found = torch.tensor([[0.5], [-1.0], [2.0]])
    seen: list[Any] = []
    step = method.step

    def watched(batch: Any) -> Any:
        seen.append(method.alpha["additive"])
        return step(batch)

    method.step = watched

    def jump(epoch: int, _: training.Method) -> dict[str, float]:
        if epoch == 0:
            with torch.no_grad():
                method.space.hparams["additive"].copy_(found)
        return {}

    training.fit(method, 2, on_epoch=jump)
    early, late = seen[: len(method.search_batches)], seen[len(method.search_batches) :]
    assert len(late) == 2 * len(method.batches)
    assert all(not one.any() for one in early)
    expected = method.space.interpolating @ found
    assert all(torch.equal(one, expected.squeeze(1)) for one in late)
    # The same as a run that starts from those weights with that α at once.
    other = still(space={"design": "l", "cluster_size": 4, "initial": "plain"})
    with torch.no_grad():
        other.space.hparams["additive"].copy_(found)
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, first[name])
    training.fit(other, 2)
    assert_same(method, other, "/model")


def test_first_weights_are_a_copy() -> None:
    method = still()
    first = {n: v.clone() for n, v in method.first_state.items()}
    training.fit(method, 2)
    for name, value in method.first_state.items():
        assert torch.equal(value, first[name]), name


def test_saved_and_put_back() -> None:
    method, other = still(), still()
    training.fit(method, 1)
    with torch.no_grad():
        for h in method.space.hparams.values():
            h += 1.0
        for parameter in other.model.parameters():
            parameter.zero_()
    other.first_state = {n: 0 * v for n, v in other.first_state.items()}
    other.load_state_dict(method.state_dict())
    assert_same(method, other)
    found, expected = other.loss_parameters, method.loss_parameters
    assert expected["additive"] is not None
    for name, value in expected.items():
        assert value is None or torch.equal(found[name], value)


# --- errors ---------------------------------------------------------------------


def test_groups_that_are_not_there() -> None:
    with pytest.raises(UserError, match=r"grouped=True needs the group .* have none"):
        still(grouped=True)


def test_equal_opportunity_without_groups() -> None:
    with pytest.raises(UserError, match=r"goal='deo' .* give grouped=True"):
        still(coloured(load()), goal="deo")


def test_a_class_without_images() -> None:
    splits = load()
    keep = (splits.train.labels != 4).nonzero().flatten()
    empty = replace(splits, train=splits.train.subset(keep))
    with pytest.raises(UserError, match=r"needs training images of each"):
        still(empty)


def test_clusters_of_cells() -> None:
    with pytest.raises(UserError, match=r"cluster_size=2 clusters classes"):
        still(coloured(load()), grouped=True, space={"cluster_size": 2})


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_to_validate_on_or_to_train_on(share: float) -> None:
    with pytest.raises(UserError, match="give a number between 0 and 1"):
        still(validation_share=share)
