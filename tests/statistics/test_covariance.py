"""Class moments: any split into batches gives those of all data; nearest PSD matrix."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.statistics import ClassCovariance, nearest_positive_semidefinite

F64 = torch.float64
CLASSES, SIZE = 4, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=F64)


def sample(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of unlike scales, off the origin; labels of three of four classes."""
    source = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(CLASSES - 1, (count,), generator=source)
    scale = torch.tensor([1.0, 3.0, 0.2], dtype=F64)
    return normal(count, SIZE, seed=seed) * scale + labels[:, None] - 2.0, labels


def empty(*, diagonal: bool = False, dtype: torch.dtype = F64) -> ClassCovariance:
    return ClassCovariance(CLASSES, SIZE, diagonal=diagonal, dtype=dtype)


def streamed(
    features: Tensor, labels: Tensor, sizes: list[int], *, diagonal: bool = False
) -> ClassCovariance:
    moments = empty(diagonal=diagonal)
    parts = zip(features.split(sizes), labels.split(sizes), strict=True)
    for part, label in parts:
        moments.update(part, label)
    return moments


def check_one_pass(moments: ClassCovariance, features: Tensor, labels: Tensor) -> None:
    """Against torch's own moments of every class; zero where there is no sample."""
    for label in range(CLASSES):
        own = features[labels == label]
        mean, covariance = torch.zeros(SIZE, dtype=F64), torch.zeros(SIZE, SIZE)
        if len(own):
            mean = own.mean(0)
            covariance = torch.cov(own.T, correction=0)
        expected = covariance.diagonal() if moments.diagonal else covariance
        close = {"rtol": 1e-12, "atol": 1e-12, "check_dtype": False}
        assert moments.counts[label] == len(own)
        torch.testing.assert_close(moments.mean[label], mean, **close)
        torch.testing.assert_close(moments.covariance[label], expected, **close)


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60), max_size=12),
    seed=st.integers(0, 1000),
    diagonal=st.booleans(),
)
def test_any_split_equals_one_pass(cuts: list[int], seed: int, diagonal: bool) -> None:
    """Among them empty batches, single samples, and batches that lack classes."""
    features, labels = sample(seed=seed)
    edges = [0, *sorted(cuts), 60]
    sizes = [b - a for a, b in pairwise(edges)]
    moments = streamed(features, labels, sizes, diagonal=diagonal)
    check_one_pass(moments, features, labels)


def test_one_sample_a_batch_and_one_class_a_batch() -> None:
    features, labels = sample()
    check_one_pass(streamed(features, labels, [1] * 60), features, labels)
    order = labels.argsort(stable=True)
    sizes = labels.bincount().tolist()
    check_one_pass(streamed(features[order], labels[order], sizes), features, labels)


def test_more_samples_than_fit_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("needsaug_lite.statistics.covariance._OUTER_NUMBERS", 7 * 9)
    features, labels = sample()
    check_one_pass(streamed(features, labels, [60]), features, labels)


def test_the_order_of_batches_does_not_matter() -> None:
    features, labels = sample()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    one = streamed(features, labels, [20, 5, 35])
    other = streamed(features[order], labels[order], [1, 40, 19])
    torch.testing.assert_close(one.covariance, other.covariance, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.mean, other.mean, rtol=0, atol=1e-12)


def test_the_diagonal_is_that_of_the_full_matrix() -> None:
    features, labels = sample()
    full = streamed(features, labels, [7] * 8 + [4])
    diagonal = streamed(features, labels, [7] * 8 + [4], diagonal=True)
    found = full.covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found, diagonal.covariance, rtol=0, atol=1e-13)
    assert torch.equal(full.mean, diagonal.mean)


def test_the_matrices_are_symmetric_to_the_last_bit() -> None:
    features, labels = sample()
    found = streamed(features, labels, [13] * 4 + [8]).covariance
    assert torch.equal(found, found.mT)


def test_a_class_that_comes_late_starts_from_zero() -> None:
    features, labels = sample()
    moments = streamed(features, labels, [60])
    assert not moments.mean[3].any()
    assert not moments.covariance[3].any()
    late = normal(5, SIZE, seed=9) + 100
    moments.update(late[:1], torch.tensor([3]))
    torch.testing.assert_close(moments.mean[3], late[0])
    assert not moments.covariance[3].any()
    moments.update(late[1:], torch.full((4,), 3))
    everything = torch.cat([features, late]), torch.cat([labels, torch.full((5,), 3)])
    check_one_pass(moments, *everything)


@pytest.mark.parametrize("diagonal", [False, True])
def test_float32_stays_near_float64_far_from_the_origin(diagonal: bool) -> None:
    """1000 updates around 1000: squares less squares would lose every digit."""
    features, labels = normal(8000, SIZE, seed=4) + 1000, torch.arange(8000) % CLASSES
    features = features.float().double()
    moments = empty(diagonal=diagonal, dtype=torch.float32)
    for part, label in zip(features.split(8), labels.split(8), strict=True):
        moments.update(part.float(), label)
    exact = streamed(features, labels, [8000], diagonal=diagonal)
    gap = (moments.covariance.double() - exact.covariance).abs().max()
    assert gap < 2e-3
    assert (moments.mean.double() - exact.mean).abs().max() < 2e-3


def test_the_moments_have_no_graph() -> None:
    features, labels = sample()
    moments = streamed(features.requires_grad_(), labels, [60])
    assert not moments.covariance.requires_grad
    assert not moments.mean.requires_grad


def test_resuming_changes_no_bit() -> None:
    features, labels = sample()
    whole = streamed(features, labels, [10] * 6)
    first = streamed(features[:30], labels[:30], [10] * 3)
    kept = {name: value.clone() for name, value in first.state_dict().items()}
    second = empty()
    second.load_state_dict(kept)
    # The new object has memory of its own.
    first.update(features[:30], labels[:30])
    for part, label in zip(features[30:].split(10), labels[30:].split(10), strict=True):
        second.update(part, label)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("shape", [(6, SIZE + 1), (5, SIZE), (6, SIZE, 1)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(6, 3\)"):
        empty().update(torch.zeros(shape, dtype=F64), torch.zeros(6, dtype=torch.int64))


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from needsaug_lite.statistics import ClassCovariance

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
)
source = torch.Generator().manual_seed(0)
features = torch.randn(40, 3, generator=source, dtype=torch.float64) + 5
labels = torch.randint(3, (40,), generator=source)
labels[: 20] = labels[: 20].clamp(max=1)  # class 2 comes late
found = {}
for diagonal in (False, True):
    moments = ClassCovariance(4, 3, diagonal=diagonal, dtype=torch.float64)
    for start in (0, 20):
        # Parts of unequal size: 13 and 7 samples.
        mine = slice(start, start + 13) if rank == 0 else slice(start + 13, start + 20)
        moments.update(features[mine], labels[mine], across_ranks=True)
    found[diagonal] = moments.state_dict()
dist.destroy_process_group()
torch.save({"found": found, "features": features, "labels": labels},
           f"{folder}/{rank}.pt")
"""


def test_two_ranks_hold_the_moments_of_all_data(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(rank), str(tmp_path)],
            env=environment, cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for job in jobs:
        _, errors = job.communicate(timeout=120)
        assert job.returncode == 0, errors[-3000:]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for diagonal in (False, True):
        moments = empty(diagonal=diagonal)
        moments.load_state_dict(one["found"][diagonal])
        check_one_pass(moments, one["features"], one["labels"])
        for name, value in one["found"][diagonal].items():
            assert torch.equal(value, other["found"][diagonal][name]), name


def positive(count: int = 3, size: int = 5, seed: int = 0) -> Tensor:
    factor = normal(count, size, size, seed=seed)
    return factor @ factor.mT


def indefinite(count: int = 3, size: int = 5, seed: int = 0) -> Tensor:
    factor = normal(count, size, size, seed=seed)
    return factor + factor.mT


def test_the_clipped_matrix_is_positive_and_a_fixed_point() -> None:
    start = indefinite()
    assert (torch.linalg.eigvalsh(start) < -0.1).any(1).all()
    found = nearest_positive_semidefinite(start)
    assert torch.linalg.eigvalsh(found).min() > -1e-13
    torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-13)
    again = nearest_positive_semidefinite(found)
    torch.testing.assert_close(again, found, rtol=0, atol=1e-12)


def test_a_positive_matrix_stays() -> None:
    start = positive()
    start[0] = 0
    start[1] = torch.outer(start[1, 0], start[1, 0])  # rank one
    found = nearest_positive_semidefinite(start)
    torch.testing.assert_close(found, start, rtol=1e-12, atol=1e-12)


def test_no_positive_matrix_is_nearer() -> None:
    """The projection on a convex cone: ⟨A - P, X - P⟩ <= 0 for every X in the cone."""
    start = indefinite(1)[0]
    found = nearest_positive_semidefinite(start[None])[0]
    others = (
        positive(200, seed=5) * torch.logspace(-3, 1, 200, dtype=F64)[:, None, None]
    )
    others = torch.cat([others, found + 0.1 * others])
    products = ((start - found) * (others - found)).sum((1, 2))
    assert products.max() < 1e-9
    distance = (start - found).norm()
    assert (start - others).flatten(1).norm(dim=1).min() > distance


def test_the_symmetric_part_decides() -> None:
    start, turn = indefinite(), normal(3, 5, 5, seed=8)
    found = nearest_positive_semidefinite(start + turn - turn.mT)
    expected = nearest_positive_semidefinite(start)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_diagonals_are_clipped_like_diagonal_matrices() -> None:
    diagonal = normal(6, 4)
    full = nearest_positive_semidefinite(torch.diag_embed(diagonal))
    found = nearest_positive_semidefinite(diagonal)
    torch.testing.assert_close(torch.diag_embed(found), full, rtol=0, atol=1e-13)


def test_one_step_of_the_covariance_can_leave_the_cone() -> None:
    """0.01 I less a rank-one step: ρ turns negative, and the clip makes it zero.

    The step is ½ ΔwᵀΔw, the derivative of ρ, with a positive factor, as in Eq. 9.
    """
    gap = torch.tensor([1.0, 0.5, -0.5], dtype=F64)
    weight, labels = torch.stack([0 * gap, gap]), torch.tensor([0])
    start = 0.01 * torch.eye(3, dtype=F64).expand(2, 3, 3)
    moved = start - 0.5 * torch.outer(gap, gap)
    eigenvalue = torch.linalg.eigvalsh(moved[0])[0]
    torch.testing.assert_close(eigenvalue, 0.01 - 0.5 * gap.dot(gap))  # -0.74
    rho = losses.half_variance(labels, weight, moved)[0, 1]
    assert rho < -0.5
    clipped = nearest_positive_semidefinite(moved)
    after = losses.half_variance(labels, weight, clipped)[0, 1]
    torch.testing.assert_close(after, torch.zeros_like(after), rtol=0, atol=1e-15)
    # Directions at right angles to the step keep their variance.
    other = torch.tensor([1.0, -1.0, 1.0], dtype=F64)
    torch.testing.assert_close(other @ clipped[0] @ other, 0.01 * other.dot(other))


def test_clipping_never_lowers_the_variance_of_a_logit() -> None:
    """V max(Λ, 0) Vᵀ - A is positive semi-definite, so ρ can grow only."""
    weight, labels = normal(3, 5, seed=2), torch.arange(3)
    start = indefinite()
    before = losses.half_variance(labels, weight, start)
    after = losses.half_variance(labels, weight, nearest_positive_semidefinite(start))
    assert (after >= before - 1e-12).all()
    assert after.min() >= 0
    assert before.min() < 0
