"""Group DRO and up-weighting: their losses by hand, and exact resumption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from needsaug_lite import data, models, training
from needsaug_lite.data import Batch, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.methods.baselines.group_robust import GroupDRO, UpWeighting
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.models import Classifier
from needsaug_lite.training import Optimisation


def with_groups(sizes: Sequence[int]) -> Splits:
    """Digits, of which the first ones belong to group 0, the next to group 1, ..."""
    splits = data.load("digits")
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    few = splits.train.subset(torch.arange(sum(sizes)))
    return replace(splits, train=replace(few, groups=groups))


def make(method: Any, splits: Splits, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    optimisation = Optimisation(batch_size=32)
    return method(model, splits, optimisation=optimisation, seed=0, **settings)


def some_batch(groups: Sequence[int]) -> tuple[Tensor, Batch]:
    """Logits in float64 and a batch with these groups."""
    draw = torch.Generator().manual_seed(2)
    size = len(groups)
    logits = torch.randn(size, 10, generator=draw, dtype=torch.float64)
    labels = torch.randint(10, (size,), generator=draw)
    images = torch.zeros(size, 1, 8, 8)
    batch = Batch(images, labels, torch.tensor(groups), torch.arange(size))
    return logits.requires_grad_(), batch


# --- group DRO ------------------------------------------------------------------


def test_update_of_the_group_weights_by_hand() -> None:
    method = make(GroupDRO, with_groups([60, 30, 10]), step_size=0.5)
    assert method.group_weights.tolist() == pytest.approx([1 / 3] * 3)
    logits, batch = some_batch([0, 2, 0, 2, 2])  # none of group 1
    each = functional.cross_entropy(logits, batch.labels, reduction="none")
    means = torch.stack([each[[0, 2]].mean(), 0 * each[0], each[[1, 3, 4]].mean()])
    q = torch.full((3,), 1 / 3, dtype=torch.float64)
    for _ in range(2):
        q = q * torch.exp(0.5 * means.detach())
        q = q / q.sum()
        loss = method.batch_loss(logits, batch)
        torch.testing.assert_close(method.group_weights.double(), q)
        torch.testing.assert_close(loss, (q * means).sum())
        # No gradient flows through q.
        (found,) = torch.autograd.grad(loss, logits)
        (expected,) = torch.autograd.grad((q * means).sum(), logits, retain_graph=True)
        torch.testing.assert_close(found, expected)
    assert not method.group_weights.requires_grad


def test_the_worst_group_gains_weight() -> None:
    method = make(GroupDRO, with_groups([50, 50]), step_size=0.3)
    logits, batch = some_batch([0, 0, 1, 1])
    with torch.no_grad():
        logits[torch.arange(2), batch.labels[:2]] += 20.0  # group 0 has no loss left
    for _ in range(200):
        method.batch_loss(logits, batch)
    assert float(method.group_weights[1]) > 0.99
    assert float(method.group_weights.sum()) == pytest.approx(1)


def test_equal_group_losses_leave_the_mean_over_groups() -> None:
    method = make(GroupDRO, with_groups([90, 10]))
    logits, batch = some_batch([0, 0, 0, 1])
    with torch.no_grad():
        logits.zero_()
    loss = method.batch_loss(logits, batch)
    assert loss.item() == pytest.approx(math.log(10))
    assert method.group_weights.tolist() == [0.5, 0.5]


def test_groups_without_training_images_get_no_weight() -> None:
    method = make(GroupDRO, with_groups([60, 0, 40]))
    assert method.group_weights.tolist() == [0.5, 0, 0.5]
    weights = make(UpWeighting, with_groups([60, 0, 40])).group_weights
    assert weights.tolist() == pytest.approx([100 / 120, 0, 100 / 80])


def test_one_group_is_cross_entropy() -> None:
    trained = [make(name, with_groups([120])) for name in (CrossEntropy, GroupDRO)]
    rows = [training.fit(method, 2).rows for method in trained]
    for one, other in zip(*rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_group_weights_resume_exactly(tmp_path: Path) -> None:
    splits = data.load("digits", attribute_imbalance=3, attributes=2, n_max=20)
    whole, file = make(GroupDRO, splits, step_size=0.2), tmp_path / "c.ckpt"
    training.fit(whole, 4)
    first = make(GroupDRO, splits, step_size=0.2)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(epoch: int, method: training.Method) -> dict[str, float]:
        if epoch == 2:
            raise Stop
        return {}

    with pytest.raises(Stop):
        training.fit(first, 4, checkpoint=file, on_epoch=stop)
    second = make(GroupDRO, splits, step_size=0.2)
    training.fit(second, 4, checkpoint=file, resume=True)
    assert whole.group_weights.unique().numel() > 1
    assert torch.equal(whole.group_weights, second.group_weights)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


# --- up-weighting ---------------------------------------------------------------


def test_equal_groups_are_cross_entropy() -> None:
    splits = with_groups([40, 40, 40])
    trained = [make(name, splits) for name in (CrossEntropy, UpWeighting)]
    assert trained[1].group_weights.tolist() == pytest.approx([1.0] * 3)
    rows = [training.fit(method, 2).rows for method in trained]
    for one, other in zip(*rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_up_weighting_is_the_mean_over_groups_in_expectation() -> None:
    method = make(UpWeighting, with_groups([90, 9, 1]))
    assert method.group_weights.tolist() == pytest.approx(
        [100 / 270, 100 / 27, 100 / 3]
    )
    # A batch with the shares of the data: the mean over groups of their mean losses.
    logits, batch = some_batch([0] * 90 + [1] * 9 + [2])
    each = functional.cross_entropy(logits, batch.labels, reduction="none")
    means = torch.stack([each[:90].mean(), each[90:99].mean(), each[99]])
    torch.testing.assert_close(
        method.batch_loss(logits, batch), means.mean(), rtol=1e-6, atol=0
    )

    # A batch of the rarest group alone takes a step that is as long as its weight.
    logits, batch = some_batch([2] * 5)
    mean = functional.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(
        method.batch_loss(logits, batch), mean * 100 / 3, rtol=1e-6, atol=0
    )


# --- both -----------------------------------------------------------------------


@pytest.mark.parametrize("method", [GroupDRO, UpWeighting])
def test_missing_groups_are_named(method: Any) -> None:
    with pytest.raises(UserError, match="colour=True or with attribute_imbalance"):
        make(method, data.load("digits"))


def test_the_hook_sees_the_batch_and_defaults_to_the_loss() -> None:
    seen: list[Batch] = []

    class Watching(Supervised):
        def batch_loss(self, logits: Tensor, batch: Batch) -> Tensor:
            seen.append(batch)
            return super().batch_loss(logits, batch)

    splits = data.load("digits", n_max=8)
    one, other = (
        method(Classifier(nn.Flatten(), 64, nn.Linear(64, 10)), splits)
        for method in (Watching, CrossEntropy)
    )
    other.model.load_state_dict(one.model.state_dict())
    assert training.fit(one, 2).column("loss") == training.fit(other, 2).column("loss")
    assert all(isinstance(batch, Batch) for batch in seen)
    assert len(seen) == 2 * len(one.batches)
