"""Every way from A to the validation loss by itself, against one graph by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from needsaug_lite.data import Batch, Normalisation
from needsaug_lite.methods.budget import Portion
from needsaug_lite.methods.four_levels import (
    PATHS,
    ROLES,
    Drawn,
    FourLevels,
    Look,
    path_norms,
)
from needsaug_lite.methods.shared_head import SMALLEST_NEED, by_role, encoder
from needsaug_lite.models import Classifier

CLASSES, WIDTH, LATENT = 3, 3, 2
# Large, so that no path is small beside the others.
LR, GENERATOR_LR = 2.5, 30.0
STRENGTH, GAMMA, DECAY, DECORRELATION = 1.7, 0.6, 0.05, 0.3
TEMPERATURE = 0.7
WEIGHTINGS = ("score_ratio", "enumerate", "c_way", "literal")
F64 = torch.float64

Params = Mapping[str, Tensor]


def classifier(head: nn.Module, seed: int) -> Classifier:
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(WIDTH)
    body = nn.Sequential(nn.Flatten(), nn.Linear(4, WIDTH), norm, nn.Tanh())
    model = Classifier(body, WIDTH, head).double()
    for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        assert value is not None
        value.data = 0.5 + torch.rand_like(value)
    return model


class ToyGAN:
    """A smooth G, and an L_G that looks at A through normed class vectors."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.weights = {
            "g": torch.randn(LATENT, 4, dtype=F64).requires_grad_(),
            "e": torch.randn(CLASSES, 4, dtype=F64).requires_grad_(),
        }
        self.eyes = torch.randn(4, WIDTH, dtype=F64)
        self.shared = True

    def params(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def sample(self, params: Params, latents: Tensor, labels: Tensor) -> Tensor:
        drawn = latents @ params["g"] + params["e"][labels]
        return drawn.sigmoid().view(-1, 1, 2, 2)

    def loss_at(
        self, params: Params, part: Params, latents: Tensor, labels: Tensor
    ) -> Tensor:
        return self.generator_loss(params, part["weight"], latents, labels)

    def generator_loss(
        self, params: Params, class_vectors: Tensor, latents: Tensor, labels: Tensor
    ) -> Tensor:
        seen = 2 * self.sample(params, latents, labels).flatten(1) - 1
        found = (seen @ self.eyes).tanh()
        if not self.shared:
            class_vectors = class_vectors.detach()
        vectors = class_vectors / class_vectors.norm()
        return functional.softplus(-(vectors[labels] * found).sum(1)).mean()


@dataclass
class Scene:
    """The levels, what they look at, and how A is drawn into the graph."""

    levels: FourLevels
    look: Look

    @property
    def given(self) -> dict[str, Tensor]:
        head = self.levels.model.head
        return {n: p.detach().clone() for n, p in head.named_parameters()}


def batch(count: int, seed: int, *, ordered: bool = False) -> Batch:
    torch.manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    labels = labels.sort().values if ordered else labels
    images = torch.randn(count, 1, 2, 2, dtype=F64)
    return Batch(images, labels, None, torch.arange(count))


@cache
def scene(weighting: Any = "score_ratio", need: Any = "loss", **more: Any) -> Scene:
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, CLASSES).double()
    gan: Any = ToyGAN()
    settings = {
        "strength": STRENGTH,
        "gamma": GAMMA,
        "decorrelation": DECORRELATION,
        "weight_decay": DECAY,
        "second_order": True,
        **more,
    }
    levels = FourLevels(
        classifier(head, 1),
        classifier(head, 2),
        gan,
        Normalisation((0.4,), (0.3,)),
        weighting=weighting,
        need=need,
        **settings,
    )
    torch.manual_seed(4)
    labels = torch.randint(CLASSES, (8,))
    shape = (8, CLASSES if weighting == "c_way" else 2)
    noise = -(-torch.rand(shape, dtype=F64).log()).log()
    portion = Portion(torch.randn(8, LATENT, dtype=F64), labels, noise)
    # Not what p is now: an epoch ago it was something else.
    q = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    fake = (torch.randn(6, LATENT, dtype=F64), torch.randint(CLASSES, (6,)))
    look = Look(
        batch(7, 5),
        Drawn(portion, q, TEMPERATURE),
        fake,
        batch(2 * CLASSES, 6, ordered=True),
        batch(9, 7),
    )
    return Scene(levels, look)


# --- the four levels once more, with nothing of the library -----------------------


def body(model: Classifier, params: Params, images: Tensor, *, train: bool) -> Tensor:
    hidden = images.flatten(1) @ params["backbone.1.weight"].T
    hidden = hidden + params["backbone.1.bias"]
    norm: Any = model.backbone[2]  # type: ignore[index]
    mean, variance = norm.running_mean, norm.running_var
    if train:
        mean, variance = hidden.mean(0), hidden.var(0, unbiased=False)
    normed = (hidden - mean) / (variance + norm.eps).sqrt()
    moved: Tensor = normed * params["backbone.2.weight"] + params["backbone.2.bias"]
    return moved.tanh()


def each_loss(found: Tensor, head: Params, labels: Tensor) -> Tensor:
    scores = found @ head["weight"].T + head["bias"]
    return -scores.log_softmax(1)[torch.arange(len(labels)), labels]


def penalty(params: Params) -> Tensor:
    total = torch.stack([p.square().sum() for p in params.values()]).sum()
    return DECAY / 2 * total


def weight_of(kind: str, p: Tensor, drawn: Drawn) -> Tensor:
    """b_m by its definition."""
    labels, noise = drawn.portion.labels, drawn.portion.noise
    assert noise is not None
    temperature = drawn.temperature
    if kind == "score_ratio":
        ratio = p[labels] / drawn.shares[labels]
        return ratio * len(labels) / ratio.sum()
    if kind == "enumerate":
        return CLASSES * p[labels]
    if kind == "c_way":
        powers = ((p.log() + noise) / temperature).exp()
        relaxed = powers[torch.arange(len(labels)), labels] / powers.sum(1)
        return 1 + relaxed - relaxed.detach()
    yes = ((p[labels].log() + noise[:, 0]) / temperature).exp()
    no = (((1 - p[labels]).log() + noise[:, 1]) / temperature).exp()
    return yes / (yes + no)


def stepped(loss: Tensor, params: Params, lr: float) -> dict[str, Tensor]:
    slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    moved = zip(params.items(), slopes, strict=True)
    return {name: value - lr * slope for (name, value), slope in moved}


def outcome(
    seen: Scene,
    head: Mapping[str, Params],
    kept: tuple[str, ...],
    *,
    moves_generator: bool = True,
) -> Tensor:
    """The validation loss as a function of A, which enters at five places.

    Args:
        head: a copy of A for every place.
        kept: which ways W1' passes its derivative on: "W1", "W1_need".
    """
    levels, look = seen.levels, seen.look
    first, second = (
        {n: p.detach().clone().requires_grad_() for n, p in encoder(m).items()}
        for m in (levels.first, levels.model)
    )
    maker = {
        n: p.detach().clone().requires_grad_() for n, p in levels.gan.params().items()
    }
    real, labels = look.batch.images, look.batch.labels

    found = body(levels.first, first, real, train=True)
    loss = each_loss(found, head["W1"], labels).mean() + penalty(first)
    moved = stepped(loss, first, LR)
    held = {n: p.detach() for n, p in moved.items()}
    probed = moved if "W1" in kept else held
    asked = moved if "W1_need" in kept else held

    assert look.fake is not None
    if moves_generator:
        judged = levels.gan.generator_loss(maker, head["H"]["weight"], *look.fake)
        maker = stepped(judged, maker, GENERATOR_LR)

    found = body(levels.model, second, real, train=True)
    loss = each_loss(found, head["W2"], labels).mean() + penalty(second)
    drawn = look.drawn
    if drawn is not None:
        z, o = drawn.portion.latents, drawn.portion.labels
        images = (levels.gan.sample(maker, z, o) - 0.4) / 0.3
        p = drawn.shares
        if levels.need == "loss":
            checked = body(levels.first, asked, look.needs.images, train=False)
            each = each_loss(checked, head["need"], look.needs.labels)
            needs = torch.stack(
                [each[look.needs.labels == c].mean() for c in range(CLASSES)]
            )
            p = (needs + SMALLEST_NEED) / (needs + SMALLEST_NEED).sum()
        found = body(levels.model, second, images, train=True)
        counted = weight_of(levels.weighting, p, drawn)
        made = (counted * each_loss(found, head["W2"], o)).mean()
        centred = found - found.mean(0)
        square = (centred.T @ centred / len(found)).square()
        apart = (square.sum() - square.diagonal().sum()) / 2
        made = made + DECORRELATION * apart
        loss = loss + STRENGTH * made
    last = stepped(loss, second, LR)

    total = torch.zeros((), dtype=F64)
    for weight, model, params in (
        (1.0, levels.model, last),
        (GAMMA, levels.first, probed),
    ):
        found = body(model, params, look.clean.images, train=False)
        total = (
            total + weight * each_loss(found, head["outer"], look.clean.labels).mean()
        )
    return total


def by_hand(seen: Scene, path: str, **options: bool) -> dict[str, Tensor]:
    """One path: the derivative by one place of A, with the other ways of W1' cut."""
    _, role = PATHS[path]
    head = {
        one: {n: v.clone().requires_grad_(one == role) for n, v in seen.given.items()}
        for one in ROLES
    }
    value = outcome(seen, head, (path,), **options)
    leaves = head[role]
    found = torch.autograd.grad(
        value, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def whole(seen: Scene, **options: bool) -> dict[str, Tensor]:
    """The derivative with one A at all places and nothing cut."""
    head = {n: v.clone().requires_grad_() for n, v in seen.given.items()}
    value = outcome(seen, dict.fromkeys(ROLES, head), ("W1", "W1_need"), **options)
    return dict(zip(head, torch.autograd.grad(value, list(head.values())), strict=True))


def flat(tensors: Params) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


def error(found: Params, truth: Params) -> float:
    return float((flat(found) - flat(truth)).norm() / flat(truth).norm())


def norms_of(estimate: Any) -> dict[str, Tensor]:
    return path_norms(estimate, dict.fromkeys(PATHS, torch.zeros((), dtype=F64)))


def ours(seen: Scene, path: str, **settings: Any) -> dict[str, Tensor]:
    levels = replace(seen.levels, **settings) if settings else seen.levels
    estimate = levels.hypergradient(seen.look, LR, GENERATOR_LR)
    name, role = PATHS[path]
    return by_role(estimate.paths[name], role)


# --- the gradient -----------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_each_path_is_the_derivative_by_its_place_of_a(
    weighting: str, path: str
) -> None:
    seen = scene(weighting)
    assert error(ours(seen, path), by_hand(seen, path)) < 1e-9


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_path_is_missing_and_none_is_small(weighting: str) -> None:
    """What the paths add up to is the derivative with one A in all its places."""
    seen = scene(weighting)
    estimate = seen.levels.hypergradient(seen.look, LR, GENERATOR_LR)
    total, truth = seen.levels.total(estimate), whole(seen)
    assert error(total, truth) < 1e-9
    norms = norms_of(estimate)
    assert list(norms) == list(PATHS)
    for path, norm in norms.items():
        truth_of_path = flat(by_hand(seen, path)).norm()
        torch.testing.assert_close(norm, truth_of_path, rtol=1e-9, atol=0)
        # Large enough to be missed.
        assert norm / flat(truth).norm() > 5e-3, path


@pytest.mark.parametrize("path", [name for name in PATHS if name != "direct"])
def test_the_error_of_a_path_falls_with_the_square_of_the_radius(path: str) -> None:
    seen = scene()
    truth = by_hand(seen, path)
    far, near = (
        error(ours(seen, path, second_order=False, radius=radius), truth)
        for radius in (2e-3, 1e-3)
    )
    assert far / near == pytest.approx(4, rel=0.05)
    assert near < 1e-3


@pytest.mark.parametrize("second_order", [True, False])
def test_joined_paths_are_their_sum(second_order: bool) -> None:
    seen = scene()
    levels = replace(seen.levels, second_order=second_order, radius=1e-3)
    apart, joined = (
        levels.hypergradient(seen.look, LR, GENERATOR_LR, paths=paths)
        for paths in (True, False)
    )
    assert error(levels.total(joined), levels.total(apart)) < (
        1e-12 if second_order else 1e-5
    )


def test_the_gradient_of_stage_two_is_that_of_the_weights_of_g() -> None:
    seen = scene()
    estimate = seen.levels.hypergradient(seen.look, LR, GENERATOR_LR)
    gan, fake = seen.levels.gan, seen.look.fake
    assert fake is not None
    maker = {n: p.detach().clone().requires_grad_() for n, p in gan.params().items()}
    loss = gan.generator_loss(maker, seen.given["weight"], *fake)
    slopes = torch.autograd.grad(loss, list(maker.values()))
    assert error(estimate.gradients["G"], dict(zip(maker, slopes, strict=True))) < 1e-12
    # G' = G - η_g ∇ L_G goes down (errata N1).
    with torch.no_grad():
        ahead = {n: p - 1e-3 * estimate.gradients["G"][n] for n, p in maker.items()}
        assert gan.generator_loss(ahead, seen.given["weight"], *fake) < loss


def test_nothing_is_moved_or_recorded_by_a_look() -> None:
    seen = scene()
    for model in (seen.levels.first, seen.levels.model):
        before = {n: t.clone() for n, t in model.state_dict().items()}
        for second_order in (True, False):
            levels = replace(seen.levels, second_order=second_order)
            levels.hypergradient(seen.look, LR, GENERATOR_LR)
        after = model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert all(p.grad is None for p in model.parameters())


# --- limits -----------------------------------------------------------------------


def test_error_rates_carry_no_gradient() -> None:
    seen = scene(need="error")
    estimate = seen.levels.hypergradient(seen.look, LR, GENERATOR_LR)
    total = seen.levels.total(estimate)
    norms = norms_of(estimate)
    assert norms["need"] == norms["W1_need"] == 0
    assert min(norms[p] for p in ("direct", "W1", "W2", "G")) > 0
    assert error(total, whole(seen)) < 1e-9


def test_without_generated_images_only_the_real_ones_count() -> None:
    """λ = 0: a bilevel problem with two encoders."""
    seen = scene()
    plain = Scene(replace(seen.levels, strength=0.0), replace(seen.look, drawn=None))
    estimate = plain.levels.hypergradient(plain.look, LR, None)
    total = plain.levels.total(estimate)
    assert error(total, whole(plain, moves_generator=False)) < 1e-9
    norms = norms_of(estimate)
    assert norms["need"] == norms["W1_need"] == norms["G"] == 0
    assert error(total, whole(seen)) > 0.01


def test_without_gamma_w1_counts_through_the_needs_alone() -> None:
    seen = scene()
    levels = replace(seen.levels, gamma=0.0)
    estimate = levels.hypergradient(seen.look, LR, GENERATOR_LR)
    norms = norms_of(estimate)
    assert norms["W1"] == 0
    for path in ("W2", "need", "W1_need", "G"):
        name, role = PATHS[path]
        found = by_role(estimate.paths[name], role)
        assert error(found, by_hand(seen, path)) < 1e-9


def test_a_generator_that_stays_has_no_path() -> None:
    seen = scene()
    look = replace(seen.look, fake=None)
    estimate = seen.levels.hypergradient(look, LR, None)
    total = seen.levels.total(estimate)
    assert norms_of(estimate)["G"] == 0
    assert error(total, whole(seen, moves_generator=False)) < 1e-9


@pytest.mark.parametrize("second_order", [True, False])
def test_a_discriminator_without_a_leaves_the_path_of_g_at_zero(
    second_order: bool,
) -> None:
    gan: Any = ToyGAN()
    gan.shared = False
    levels = replace(scene().levels, gan=gan, second_order=second_order)
    estimate = levels.hypergradient(scene().look, LR, GENERATOR_LR)
    assert norms_of(estimate)["G"] == 0
