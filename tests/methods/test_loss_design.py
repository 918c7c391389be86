"""The search space of AutoBalance: dictionaries, starts, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from needsaug_lite import losses
from needsaug_lite.errors import UserError
from needsaug_lite.methods.loss_design import (
    Design,
    Initial,
    LossDesign,
    cluster_dictionary,
    interpolating_dictionary,
)

CLASSES = torch.tensor([[40], [7], [300], [90], [15], [120], [2]])
CELLS = torch.tensor([[3498, 184], [56, 1057], [20, 300]])
SIZES = st.lists(st.integers(1, 10_000), min_size=1, max_size=25, unique=True)


def by_rank(sizes: Tensor) -> Tensor:
    """Classes, the largest first."""
    return sizes.argsort(descending=True)


def table(found: Tensor | None) -> Tensor:
    assert found is not None
    return found


# --- dictionaries -------------------------------------------------------------


@settings(deadline=None)
@given(sizes=SIZES, cluster_size=st.integers(1, 30))
def test_clusters_divide_the_classes_in_the_order_of_their_sizes(
    sizes: list[int], cluster_size: int
) -> None:
    n = torch.tensor(sizes)
    found = cluster_dictionary(n, cluster_size)
    number = -(-len(n) // cluster_size)
    assert found.shape == (len(n), number)
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    assert found.sum(1).eq(1).all()
    members = found.sum(0)
    assert members[:-1].eq(cluster_size).all()
    assert int(members[-1]) == len(n) - cluster_size * (number - 1)
    # Every class of a cluster is larger than all those of the next one.
    inside = [n[found[:, k] == 1] for k in range(number)]
    for larger, smaller in pairwise(inside):
        assert int(larger.min()) > int(smaller.max())


@settings(deadline=None)
@given(sizes=SIZES, cluster_size=st.integers(1, 30), seed=st.integers(0, 1000))
def test_renaming_classes_moves_rows(
    sizes: list[int], cluster_size: int, seed: int
) -> None:
    n = torch.tensor(sizes)
    order = torch.randperm(len(n), generator=torch.Generator().manual_seed(seed))
    for make in (cluster_dictionary, interpolating_dictionary):
        assert_close(make(n[order], cluster_size), make(n, cluster_size)[order])


def test_equal_classes_are_clustered_in_the_order_of_their_names() -> None:
    found = cluster_dictionary(torch.full((5,), 8), 2)
    assert found.argmax(1).tolist() == [0, 0, 1, 1, 2]


@settings(deadline=None)
@given(sizes=SIZES, cluster_size=st.integers(1, 30))
def test_interpolation_is_the_piecewise_linear_function_of_the_rank(
    sizes: list[int], cluster_size: int
) -> None:
    """By numpy's `interp`, which is constant outside the outer mid-points."""
    n = torch.tensor(sizes)
    found = interpolating_dictionary(n, cluster_size)
    places = np.arange(len(n))
    starts = range(0, len(n), cluster_size)
    middles = [places[i : i + cluster_size].mean() for i in starts]
    values = torch.randn(len(middles), generator=torch.Generator().manual_seed(1))
    truth = np.interp(places, middles, values.numpy())
    got = (found @ values)[by_rank(n)]
    assert_close(got.double(), torch.as_tensor(truth), rtol=1e-5, atol=1e-5)
    assert_close(found.sum(1), torch.ones(len(n)))
    assert bool((found >= 0).all())
    assert bool(((found > 0).sum(1) <= 2).all())


def test_interpolation_in_numbers() -> None:
    """Clusters of three and a last one of two: mid-points 1, 4 and 6.5."""
    n = torch.tensor([80, 70, 60, 50, 40, 30, 20, 10])
    got = interpolating_dictionary(n, 3) @ torch.tensor([1.0, 4.0, 9.0])
    truth = torch.tensor([1, 1, 2, 3, 4, 6, 8, 9.0])
    assert_close(got, truth)


def test_clusters_of_one_class_and_one_cluster_need_no_interpolation() -> None:
    n = CLASSES.flatten()
    for cluster_size in (1, len(n), 100):
        assert_close(
            interpolating_dictionary(n, cluster_size),
            cluster_dictionary(n, cluster_size),
        )


# --- what is searched ---------------------------------------------------------


@pytest.mark.parametrize("counts", [CLASSES, CELLS])
@pytest.mark.parametrize(
    ("design", "names"),
    [
        ("none", []),
        ("tau", ["tau"]),
        ("l", ["additive"]),
        ("delta", ["multiplicative"]),
        ("delta_l", ["additive", "multiplicative"]),
    ],
)
def test_designs(counts: Tensor, design: Design, names: list[str]) -> None:
    space = LossDesign(counts, design=design)
    assert list(space.hparams) == names
    for name, value in space.hparams.items():
        assert value.is_leaf
        assert value.requires_grad
        assert value.dtype == torch.float32
        assert value.shape == (() if name == "tau" else counts.shape)
    found = space.parameters()
    shape = counts.flatten().shape if counts.shape[1] == 1 else counts.shape
    for value_ in (found["additive"], found["multiplicative"]):
        assert value_ is None or value_.shape == shape
    assert (found["multiplicative"] is None) == ("multiplicative" not in names)


def test_ten_classes_have_twenty_numbers_and_a_hundred_in_tens_as_many() -> None:
    """Sec. 3: "20 hyper-parameters are trained"."""
    for classes, cluster_size in ((10, 1), (100, 10)):
        counts = torch.arange(1, classes + 1)[:, None]
        space = LossDesign(counts, cluster_size=cluster_size)
        assert sum(h.numel() for h in space.hparams.values()) == 20


@pytest.mark.parametrize("cluster_size", [1, 2, 3])
@pytest.mark.parametrize("interpolate", [False, True])
def test_parameters_are_the_dictionary_times_the_numbers(
    cluster_size: int, interpolate: bool
) -> None:
    """l = D l' and Δ = σ(D Δ'): σ of the mix, not the mix of σ."""
    space = LossDesign(CLASSES, cluster_size=cluster_size)
    n = CLASSES.flatten()
    make = interpolating_dictionary if interpolate else cluster_dictionary
    own = {name: torch.randn_like(h) for name, h in space.hparams.items()}
    found = space.parameters(own, interpolate=interpolate)
    mixed = {name: (make(n, cluster_size) @ h)[:, 0] for name, h in own.items()}
    assert_close(table(found["additive"]), mixed["additive"])
    sigma = 1 / (1 + (-mixed["multiplicative"]).exp())
    assert_close(table(found["multiplicative"]), sigma)


def test_cells_have_numbers_of_their_own() -> None:
    space = LossDesign(CELLS)
    own = {name: torch.randn_like(h) for name, h in space.hparams.items()}
    found = space.parameters(own)
    order = by_rank(CELLS.sum(1))
    assert_close(table(found["additive"])[order], own["additive"])
    assert_close(table(found["multiplicative"])[order], own["multiplicative"].sigmoid())


@pytest.mark.parametrize("interpolate", [False, True])
def test_the_slope_of_a_number_is_that_of_its_classes_together(
    interpolate: bool,
) -> None:
    space = LossDesign(CLASSES, design="l", cluster_size=3)
    slope = torch.randn(len(CLASSES))
    found = table(space.parameters(interpolate=interpolate)["additive"])
    (got,) = torch.autograd.grad(found @ slope, space.hparams["additive"])
    make = interpolating_dictionary if interpolate else cluster_dictionary
    assert_close(got[:, 0], make(CLASSES.flatten(), 3).T @ slope)


@pytest.mark.parametrize("counts", [CLASSES, CELLS])
def test_tau_moves_the_prior(counts: Tensor) -> None:
    space = LossDesign(counts, design="tau", tau=0.8)
    start = table(space.parameters()["additive"])
    still = LossDesign(counts, design="none", tau=0.8).parameters()
    assert_close(start.detach(), table(still["additive"]))
    (slope,) = torch.autograd.grad(start.sum(), space.hparams["tau"])
    assert_close(slope, start.sum().detach() / 0.8)
    doubled = space.parameters({"tau": torch.tensor(1.6)})
    assert_close(table(doubled["additive"]), 2 * start.detach())


def test_a_whole_number_is_a_strength() -> None:
    tau = LossDesign(CLASSES, design="tau", tau=1).hparams["tau"]
    assert tau.requires_grad
    assert tau.item() == 1


# --- where it starts ----------------------------------------------------------


@pytest.mark.parametrize("design", ["none", "tau", "l", "delta_l"])
def test_the_start_of_logit_adjustment(design: Design) -> None:
    """l = τ log π, and w = 1."""
    found = LossDesign(CLASSES, design=design, tau=1.3).parameters()
    prior = CLASSES.flatten() / CLASSES.sum()
    assert_close(table(found["additive"]).detach(), 1.3 * prior.log())
    assert found["class_weight"] is None
    logits, labels = torch.randn(20, 7), torch.randint(7, (20,))
    if design != "delta_l":
        got = losses.parametric_cross_entropy(logits, labels, **found)
        truth = losses.logit_adjusted(logits, labels, class_prior=prior, tau=1.3)
        assert_close(got.detach(), truth)


@pytest.mark.parametrize("design", ["none", "tau", "l", "delta_l"])
def test_the_start_of_group_logit_adjustment(design: Design) -> None:
    """l = τ log(π_yg / π̄_g), and w = 1 / (A π̄_g) (A13)."""
    found = LossDesign(CELLS, design=design, tau=0.7).parameters()
    for y, row in enumerate(CELLS.tolist()):
        for g, size in enumerate(row):
            group = int(CELLS[:, g].sum())
            shift = 0.7 * torch.tensor(size / group).log()
            assert_close(table(found["additive"])[y, g].detach(), shift)
            weight = int(CELLS.sum()) / (2 * group)
            assert float(table(found["class_weight"])[y, g]) == pytest.approx(weight)


def test_groups_of_one_size_have_the_logit_adjustment_of_their_classes() -> None:
    """Without dependence on the group, Group-LA is LA."""
    counts = CLASSES.expand(7, 3)
    found = LossDesign(counts, design="none").parameters()
    alone = LossDesign(CLASSES, design="none").parameters()
    each = table(alone["additive"])[:, None].expand(7, 3)
    assert_close(table(found["additive"]), each)
    assert_close(table(found["class_weight"]), torch.ones(7, 3))


@pytest.mark.parametrize("counts", [CLASSES, CELLS])
def test_the_balanced_start_is_the_balanced_risk(counts: Tensor) -> None:
    """The mean over the training images of w CE is the mean of the cells' CE."""
    space = LossDesign(counts, design="l", initial="balanced_ce")
    found = space.detached()
    weight = table(found["class_weight"])
    each_cell = torch.full_like(weight, int(counts.sum()) / counts.numel())
    assert_close(weight * counts.view_as(weight), each_cell)
    assert not table(found["additive"]).any()
    cells = torch.arange(counts.numel()).repeat_interleave(counts.flatten())
    attributes = counts.shape[1]
    labels, groups = cells // attributes, cells % attributes
    logits = torch.randn(len(cells), len(counts))
    each = losses.cross_entropy(logits, labels, reduction="none")
    risks = losses.conditional_risks(each, cells, (len(counts), attributes))
    got = losses.parametric_cross_entropy(
        logits, labels, groups=groups if attributes > 1 else None, **found
    )
    assert_close(got, losses.balanced_risk(risks), rtol=1e-4, atol=0)


@pytest.mark.parametrize("counts", [CLASSES, CELLS])
@pytest.mark.parametrize("initial", ["plain", "balanced_ce", "la"])
def test_the_weights_of_the_training_images_have_mean_one(
    counts: Tensor, initial: Initial
) -> None:
    weight = LossDesign(counts, initial=initial).class_weight
    if weight is not None:
        assert float((counts / counts.sum() * weight).sum()) == pytest.approx(1)


@pytest.mark.parametrize("counts", [CLASSES, CELLS])
def test_the_plain_start_is_cross_entropy_of_damped_logits(counts: Tensor) -> None:
    found = LossDesign(counts, initial="plain").detached()
    assert found["class_weight"] is None
    assert not table(found["additive"]).any()
    factor = table(found["multiplicative"])
    assert_close(factor, torch.full_like(factor, 0.7310586))


def test_nothing_searched_and_nothing_started_is_cross_entropy() -> None:
    found = LossDesign(CLASSES, design="none", initial="plain").parameters()
    assert found == {
        "class_weight": None,
        "additive": None,
        "multiplicative": None,
    }
    space = LossDesign(CLASSES, design="tau", initial="plain", tau=2.0)
    assert not table(space.detached()["additive"]).any()


@pytest.mark.parametrize("cluster_size", [2, 3, 4])
def test_a_cluster_starts_where_its_middle_class_belongs(cluster_size: int) -> None:
    space = LossDesign(CLASSES, design="l", cluster_size=cluster_size)
    order = by_rank(CLASSES.flatten())
    middle = [part[len(part) // 2] for part in order.split(cluster_size)]
    prior = CLASSES.flatten() / CLASSES.sum()
    expected = prior.log()[torch.stack(middle)]
    assert_close(space.hparams["additive"][:, 0].detach(), expected)


def test_with_odd_clusters_interpolation_meets_the_start_in_the_middle() -> None:
    space = LossDesign(CLASSES[:6], design="l", cluster_size=3)
    n = CLASSES[:6].flatten()
    found = table(space.detached(interpolate=True)["additive"])
    middle = by_rank(n)[[1, 4]]
    assert_close(found[middle], (n / n.sum()).log()[middle])


# --- training with it ---------------------------------------------------------


def test_detached_parameters_are_the_same_without_a_graph() -> None:
    space = LossDesign(CLASSES, cluster_size=2)
    for interpolate in (False, True):
        live = space.parameters(interpolate=interpolate)
        still = space.detached(interpolate=interpolate)
        assert table(live["additive"]).requires_grad
        assert not table(still["additive"]).requires_grad
        assert_close(table(still["additive"]), table(live["additive"]).detach())


def test_the_summary_of_classes_is_centred_and_by_fifths() -> None:
    counts = torch.arange(1, 11)[:, None].flip(0)
    space = LossDesign(counts)
    found = space.summary()
    shift = (counts / counts.sum()).log().flatten()
    shift = (shift - shift.mean()).view(5, 2).mean(1)
    for k in range(5):
        assert found[f"additive_{k + 1}"] == pytest.approx(float(shift[k]), abs=1e-5)
        assert found[f"multiplicative_{k + 1}"] == pytest.approx(0.73106, abs=1e-5)
    assert len(found) == 10
    with torch.no_grad():
        space.hparams["additive"] += 5
    assert space.summary() == pytest.approx(found, abs=2e-5)


def test_the_summary_of_cells_names_each_of_them() -> None:
    space = LossDesign(CELLS)
    found = space.summary()
    shift = (CELLS / CELLS.sum(0)).log()
    shift = (shift - shift.mean(0)).flatten()
    assert [found[f"additive_{k + 1}"] for k in range(6)] == pytest.approx(
        shift.tolist(), abs=1e-5
    )
    assert len(found) == 12
    assert LossDesign(CELLS, design="none", initial="plain").summary() == {}


# --- refusals -----------------------------------------------------------------


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="needs training images of each"):
        LossDesign(torch.tensor([[5], [0]]))
    with pytest.raises(UserError, match="every cell has its own numbers"):
        LossDesign(CELLS, cluster_size=2)
    with pytest.raises(UserError, match="cluster_size is 0"):
        LossDesign(CLASSES, cluster_size=0)
    with pytest.raises(UserError, match="'LA' is none of plain, balanced_ce, la"):
        LossDesign(CLASSES, initial="LA")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'w' is none of none, tau, l"):
        LossDesign(CLASSES, design="w")  # type: ignore[arg-type]
