"""What chapter 8 teaches is what the library does."""

from __future__ import annotations

import json
from itertools import islice
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.taught import functions, lines_of_code
from scipy.optimize import nnls
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from needsaug_lite import hypergrad, losses, models
from needsaug_lite.data import Batch, load
from needsaug_lite.experiments.spec import Spec
from needsaug_lite.methods.autobalance import AutoBalance
from needsaug_lite.training import Optimisation

DECAY = 0.3  # large, so that its part in the Hessian can be seen
NOTEBOOK = "08_designing_a_loss.ipynb"
ROOT = Path(__file__).parents[2]
ALGORITHM = {"train_loss", "balanced_loss", "flat", "upper_gradient", "search"}
MARGINS = {"gaussian_classes", "constraints", "hard_margin", "recalls"}
TAUGHT = ALGORITHM | MARGINS | {"pairwise", "neumann_sum", "reach_of", "moved_by"}


@pytest.fixture(scope="module")
def taught() -> Any:
    return functions(
        NOTEBOOK,
        TAUGHT,
        torch=torch,
        np=np,
        nnls=nnls,
        comb=comb,
        functional_call=functional_call,
        cross_entropy=cross_entropy,
    )


def test_algorithm_fits_in_forty_lines() -> None:
    assert lines_of_code(NOTEBOOK, ALGORITHM) <= 40


def method(seed: int, **settings: Any) -> AutoBalance:
    splits = load("digits", imbalance=20, seed=seed)
    torch.manual_seed(seed)
    model = models.build("convnet", splits.image_shape, 10, width=4, feature_dim=8)
    made = AutoBalance(
        model,
        splits,
        validation_share=0.3,
        optimisation=Optimisation(batch_size=64),
        seed=seed,
        **settings,
    )
    made.epochs = 10
    made.begin_epoch(0)
    made.optimiser.param_groups[0]["weight_decay"] = DECAY
    return made


def by_class(made: AutoBalance, cluster_values: torch.Tensor) -> torch.Tensor:
    """A number of each cluster, which is a class here, in the order of the classes."""
    return made.space.searching @ cluster_values.detach().flatten()


def alpha_of(made: AutoBalance) -> dict[str, torch.Tensor]:
    return {
        name: by_class(made, h).clone().requires_grad_()
        for name, h in made.hparams.items()
    }


@pytest.mark.parametrize("initial", ["la", "plain"])
def test_a_hypergradient_is_that_of_the_library(taught: Any, initial: str) -> None:
    made = method(2, initial=initial)
    for batch in islice(made.search_batches.epoch(0), 3):
        made.step(batch)
    training, validation = next(made.inner), next(made.validation)
    before = {n: b.clone() for n, b in made.model.named_buffers()}
    expected = made.hypergradient([training], [validation])
    alpha = alpha_of(made)
    found = taught.upper_gradient(made.model, alpha, training, validation, DECAY)
    for name, value in zip(alpha, found, strict=True):
        assert float(value.abs().max()) > 1e-5
        assert_close(value, by_class(made, expected[name]), rtol=1e-3, atol=1e-6)
    for name, buffer in made.model.named_buffers():
        assert torch.equal(buffer, before[name]), "looking changes nothing"


def test_a_search_is_that_of_the_library(taught: Any) -> None:
    settings: dict[str, Any] = {"interval": 3, "outer_lr": 0.5, "initial": "plain"}
    library, ours = method(4, **settings), method(4, **settings)
    batches = list(islice(library.search_batches.epoch(0), 4))
    library.step(batches[0])  # the warm-up
    for batch in batches[1:]:
        library.search_step(batch)  # alpha moves after the first of them
    inner, validation = next(ours.inner), next(ours.validation)
    # The training batches and those of the upper step, in the order of use.
    stream = iter([batches[0], batches[1], inner, *batches[2:]])
    alpha = alpha_of(ours)
    upper = torch.optim.SGD(
        list(alpha.values()), lr=0.5, momentum=0.9, weight_decay=1e-4
    )
    taught.search(
        ours.model, alpha, ours.optimiser, upper, stream, iter([validation]),
        (1, 4), DECAY, 3,
    )  # fmt: skip
    for name, start in alpha_of(ours).items():
        assert float((alpha[name] - start).detach().abs().max()) > 1e-4
        mine = by_class(library, library.hparams[name])
        assert_close(alpha[name].detach(), mine, rtol=1e-3, atol=1e-5)
    mine = dict(ours.model.named_parameters())
    for name, parameter in library.model.named_parameters():
        assert_close(parameter, mine[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pairwise_form_is_that_of_the_library(taught: Any, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(30, 4, generator=source, dtype=torch.float64)
    numbers = torch.randn(3, 4, generator=source, dtype=torch.float64)
    weight, shift, scale = numbers[0].exp(), numbers[1], numbers[2].sigmoid()
    labels = torch.arange(30) % 4
    expected = losses.parametric_cross_entropy(
        logits,
        labels,
        class_weight=weight,
        additive=shift,
        multiplicative=scale,
        reduction="none",
    )
    assert_close(taught.pairwise(logits, labels, weight, shift, scale), expected)


@pytest.mark.parametrize("curvature", [0.05, 1.0, 5.0])
def test_series_is_that_of_the_library(taught: Any, curvature: float) -> None:
    with np.errstate(all="ignore"):
        solution, report = hypergrad.safe_neumann(5).solve(
            lambda w: [curvature * w[0]], [torch.ones(1).double()]
        )
    expected = taught.neumann_sum(curvature, report["step"])
    assert float(solution[0]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 4])
def test_hard_margin_is_the_smallest(taught: Any, classes: int) -> None:
    x, y, _, _ = taught.gaussian_classes(classes, 0, width=6, images=12)
    shift = np.linspace(-0.5, 0.5, classes)
    scale = np.linspace(0.6, 1.4, classes)
    W = taught.hard_margin(x, y, shift, scale, 2.0)
    A, b = taught.constraints(x, y, shift, scale, 2.0)
    slack = A @ W.ravel() - b
    assert slack.min() > -1e-6
    # W is a non-negative combination of the constraints that are met exactly.
    tight = A[slack < 1e-6]
    _, distance = nnls(tight.T, W.ravel())
    assert distance < 1e-6 * np.linalg.norm(W)


@pytest.mark.parametrize("sizes", [(5, 5, 5), (20, 3, 1)])
def test_upper_loss_is_balanced(taught: Any, sizes: tuple[int, ...]) -> None:
    source = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    images = torch.randn(len(labels), 4, generator=source)
    batch = Batch(images, labels, None, torch.arange(len(labels)))
    model = torch.nn.Linear(4, 3)
    each = cross_entropy(model(images), labels, reduction="none")
    expected = losses.balanced_risk(losses.conditional_risks(each, labels, (3, 1)))
    found = taught.balanced_loss(model, dict(model.named_parameters()), batch)
    assert_close(found, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_reach_is_that_of_the_optimiser(taught: Any, momentum: float) -> None:
    number, reach = taught.reach_of(10, 8, 0.25, 1.0, 4, 0.05, momentum)
    assert number == 15
    moved = taught.moved_by(0.05, number, momentum)
    assert reach == pytest.approx(-moved, rel=1e-4)


def test_the_box_has_the_constants_of_the_rows() -> None:
    text = "".join(
        "".join(cell["source"])
        for cell in json.loads((ROOT / "nbs" / NOTEBOOK).read_text())["cells"]
        if cell["cell_type"] == "markdown"
    )
    box = text.partition("Search, then train again")[2].partition("```")[0]
    grid = yaml.safe_load((ROOT / "nbs/grids/digits_lt_autobalance.yaml").read_text())
    spec = Spec.checked(grid["base"] | {"method": "autobalance"})
    found, lower = spec.hyperparameters, spec.optimisation
    flowing = " ".join(box.split())
    warm = round(found["start"] * spec.epochs)
    for said in (
        f"{100 * found['validation_share']:.0f}% of each class",
        f"{warm} of {spec.epochs} epochs",
        f"**Search**, {spec.epochs - warm} epochs",
        f"Batches of {lower.batch_size}, rate {lower.lr}, momentum {lower.momentum}",
        f"{100 * lower.warmup}% of the epochs",
        f"rate times {lower.factor} at {100 * lower.milestones[0]:.0f}%",
        f"every {found['interval']}th later one",
        f"rate {found['outer_lr']}, momentum {found['outer_momentum']}, weight decay",
        f"H^{found['terms']} v",
        f"\\min({found['largest_step']:.0f},",
        f"*all* images for {spec.epochs} epochs",
    ):
        assert said in flowing, said
    assert (lower.weight_decay, found["outer_decay"]) == (2e-4, 1e-4)
    assert "weight decay 2·10⁻⁴" in flowing
    assert found["outer_batches"] == 1
