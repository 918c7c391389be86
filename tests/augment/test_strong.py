"""The strong transformation: what is drawn, what it does, which gradient it passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import comb, sqrt

import pytest
import torch
from torch import Tensor

from needsaug_lite.augment import (
    OPERATIONS,
    StrongAugmentation,
    StrongDraws,
    zero_gradient_share,
)
from needsaug_lite.augment.strong import GREY_OPERATIONS, GreyDraws
from needsaug_lite.errors import UserError

STRONG = StrongAugmentation()
WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
BLENDS = ("brightness", "contrast", "sharpness")
SMOOTH = (*WARPS, *BLENDS, "identity", "solarize")
FLAT = {"posterize", "equalize"}
each_kind = pytest.mark.parametrize("channels", [1, 3])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(channels: int, count: int = 6, side: int = 20) -> Tensor:
    shape = (count, channels, side, side)
    return torch.rand(shape, generator=seeded(0), dtype=torch.float64)


def only(name: str, images: Tensor, sign: int = 1) -> GreyDraws:
    return GreyDraws((name,), torch.full((1, len(images)), sign))


def applied(name: str, images: Tensor, magnitude: float, sign: int = 1) -> Tensor:
    return StrongAugmentation(1, magnitude)(images, only(name, images, sign))


def near(share: float, expected: float, count: int) -> bool:
    """Within five standard errors."""
    return abs(share - expected) < 5 * sqrt(expected * (1 - expected) / count)


def names_of(draws: StrongDraws) -> tuple[str, ...]:
    """The operations: our own names, or those of kornia's classes."""
    if isinstance(draws, GreyDraws):
        return draws.names
    return tuple(item.data[0].name.split("_")[0] for item in draws.settings)


# What is drawn


@each_kind
def test_with_its_draws_it_is_one_function(channels: int) -> None:
    images, draw = some_images(channels), seeded(1)
    for _ in range(25):
        draws = STRONG.draw(images.shape, draw)
        one = STRONG(images, draws)
        STRONG(1 - images, STRONG.draw(images.shape, seeded(9)))  # no memory of it
        assert torch.equal(STRONG(images, draws), one)


@each_kind
def test_a_seed_repeats_and_a_generator_moves_on(channels: int) -> None:
    images = some_images(channels)
    one, same = seeded(4), seeded(4)
    first = [STRONG(images, STRONG.draw(images.shape, one)) for _ in range(12)]
    again = [STRONG(images, STRONG.draw(images.shape, same)) for _ in range(12)]
    assert all(map(torch.equal, first, again))
    assert len({float(x.square().sum()) for x in first}) > 6


@each_kind
def test_the_global_generator_neither_moves_nor_matters(channels: int) -> None:
    images, results = some_images(channels), []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            draws = [STRONG.draw(images.shape, seeded(s)) for s in range(20)]
            results.append([STRONG(images, d) for d in draws])
            assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, *results))


@each_kind
def test_no_device_s_generator_is_seeded(
    monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    def refuse(_: int) -> None:
        raise AssertionError("a generator of every device was seeded")

    for module in (torch, torch.random):
        monkeypatch.setattr(module, "manual_seed", refuse)
    STRONG.draw((2, channels, 8, 8), seeded(4))


@each_kind
@pytest.mark.parametrize("count", [1, 2, 5])
def test_different_operations_each_as_likely(channels: int, count: int) -> None:
    strong, draw, draws_count = StrongAugmentation(count), seeded(2), 1500
    names: Counter[str] = Counter()
    for _ in range(draws_count):
        draws = strong.draw((2, channels, 8, 8), draw)
        found = names_of(draws)
        assert len(set(found)) == len(found) == count
        names.update(found)
    choices = len(GREY_OPERATIONS) if channels == 1 else 15
    assert len(names) == choices
    for hits in names.values():
        assert near(hits / draws_count, count / choices, draws_count)


@each_kind
def test_every_order_is_as_likely(channels: int) -> None:
    draw, count = seeded(2), 1000
    drawn = [names_of(STRONG.draw((2, channels, 8, 8), draw)) for _ in range(count)]
    rising = sum(one < other for one, other in drawn)
    assert near(rising / count, 0.5, count)


def test_signs_are_fair_and_drawn_for_each_image_and_operation() -> None:
    draws = STRONG.draw((4000, 1, 8, 8), seeded(3))
    assert isinstance(draws, GreyDraws)
    signs = draws.signs.double()
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert all(near(float(row.gt(0).double().mean()), 0.5, 4000) for row in signs)
    assert abs(float((signs[0] * signs[1]).mean())) < 5 / sqrt(4000)


def test_the_operations_are_applied_in_their_order() -> None:
    images = some_images(1)
    signs = torch.tensor([[1, -1] * 3, [-1, -1, 1] * 2])
    found = StrongAugmentation(2, 0.6)(images, GreyDraws(("rotate", "solarize"), signs))
    m, s = torch.full((6,), 0.6).double(), signs.double()
    turned = OPERATIONS["rotate"](images, m, s[0], s)
    expected = OPERATIONS["solarize"](turned, 1 - m, s[1], s)
    assert torch.allclose(found, expected, atol=1e-12)


# What it does


@each_kind
@pytest.mark.parametrize("side", [8, 28])
def test_images_stay_images(channels: int, side: int) -> None:
    images = some_images(channels, 4, side).float()
    images[2:] = images[2:].round()
    images[3] = 1  # where a rounding error of a warp shows
    draw = seeded(5)
    for _ in range(100):
        changed = STRONG(images, STRONG.draw(images.shape, draw))
        assert changed.shape == images.shape
        assert changed.dtype == images.dtype
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "name", [n for n in GREY_OPERATIONS if n not in ("auto_contrast", "equalize")]
)
def test_no_strength_changes_nothing(name: str, sign: int) -> None:
    images = some_images(1)
    result = applied(name, images, 0, sign)
    assert torch.allclose(result, images, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in GREY_OPERATIONS if n != "identity"])
def test_more_strength_changes_more(name: str) -> None:
    """On a smooth image; sums over both signs."""
    ramp = torch.linspace(0.05, 0.9, 28, dtype=torch.float64)
    images = (0.6 * ramp.view(1, 1, 28, 1) + 0.4 * ramp).expand(2, 1, 28, 28) ** 2
    if name in ("sharpness", "auto_contrast", "equalize"):
        images = images + 0.05 * some_images(1, 2, 28)

    def change(magnitude: float) -> float:
        results = [applied(name, images, magnitude, sign) for sign in (1, -1)]
        return sum(float((result - images).abs().mean()) for result in results)

    sizes = [change(magnitude) for magnitude in (0.25, 0.6, 1)]
    assert 0 < sizes[0] <= sizes[1] <= sizes[2]
    if OPERATIONS[name].has_magnitude:
        assert sizes[0] < sizes[1] < sizes[2]
    else:
        assert sizes[0] == sizes[2]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_strengths_of_the_table(sign: int) -> None:
    images, s = 0.5 * some_images(1), 1 / 3
    brighter = applied("brightness", images, s, sign)
    assert torch.allclose(brighter, (1 + 0.9 * s * sign) * images)
    spread = applied("contrast", images, s, sign)
    mean = images.mean((1, 2, 3), keepdim=True)
    expected = (mean + (1 + 0.9 * s * sign) * (images - mean)).clamp(0, 1)
    assert torch.allclose(spread, expected)
    images = some_images(1)
    inverted = applied("solarize", images, s)
    # 256 grey levels, so that the edge lies half a level above 1 - s.
    bright = images > (1 - s) * 256 / 255
    assert torch.equal(inverted, torch.where(bright, 1 - images, images))
    levels = (255 * images).round()
    seven_bits = (levels - levels % 2) / 255
    assert torch.allclose(applied("posterize", images, s), seven_bits)
    right = applied("translate_x", images, 1 / 9, sign)  # 0.45 · 20 / 9 = 1 pixel
    one, other = (right[..., 1:], images[..., :-1])
    if sign == -1:
        one, other = (right[..., :-1], images[..., 1:])
    assert torch.allclose(one, other, atol=1e-9)


# Which gradient it passes


def pulled_back(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    leaf = images.clone().requires_grad_()
    result = function(leaf)
    vector = torch.randn(result.shape, generator=seeded(7), dtype=result.dtype)
    (gradient,) = torch.autograd.grad(result, leaf, vector)
    return gradient


def moved_forward(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The same as `pulled_back`, tested along 5 directions: (direction, product)."""
    gradient = pulled_back(function, images)
    result = function(images)
    vector = torch.randn(result.shape, generator=seeded(7), dtype=result.dtype)
    step, pairs = 1e-6, []
    for seed in range(5):
        direction = torch.randn(images.shape, generator=seeded(seed)).double()
        ahead, behind = (function(images + h * direction) for h in (step, -step))
        quotient = (vector * (ahead - behind)).sum() / (2 * step)
        pairs.append(torch.stack([(gradient * direction).sum(), quotient]))
    return torch.stack(pairs)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_is_a_difference_quotient(name: str, sign: int) -> None:
    # In the middle of the range no blend clamps.
    images = 0.35 + 0.3 * some_images(1)
    strong, draws = StrongAugmentation(1, 0.4), only(name, images, sign)
    pairs = moved_forward(lambda x: strong(x, draws), images)
    assert torch.allclose(pairs[:, 0], pairs[:, 1], rtol=1e-6, atol=1e-7)


def test_the_gradient_of_colour_is_a_difference_quotient() -> None:
    images, draw = 0.4 + 0.2 * some_images(3), seeded(2)
    seen: set[str] = set()
    for _ in range(60):
        draws = StrongAugmentation(1).draw(images.shape, draw)
        (name,) = names_of(draws)
        if name in seen | {"Equalize", "Posterize", "AutoContrast"}:
            continue
        seen.add(name)

        def change(x: Tensor, draws: StrongDraws = draws) -> Tensor:
            return StrongAugmentation(1)(x, draws)

        pairs = moved_forward(change, images)
        assert torch.allclose(pairs[:, 0], pairs[:, 1], rtol=1e-5, atol=1e-6), name
    assert len(seen) >= 10


def mixed_cases() -> list[tuple[str, StrongAugmentation, Tensor, StrongDraws]]:
    grey = 0.35 + 0.3 * some_images(1, 3, 9)
    colour = 0.35 + 0.3 * some_images(3, 3, 9)
    one = StrongAugmentation(1, 0.4)
    cases: list[tuple[str, StrongAugmentation, Tensor, StrongDraws]] = [
        (name, one, grey, only(name, grey)) for name in SMOOTH
    ]
    draw = seeded(2)
    while len(cases) < len(SMOOTH) + 6:
        draws = one.draw(colour.shape, draw)
        (name,) = names_of(draws)
        if name not in ("Equalize", "Posterize", "AutoContrast"):
            cases.append((name, one, colour, draws))
    return cases


@pytest.mark.parametrize(
    ("strong", "images", "draws"),
    [case[1:] for case in mixed_cases()],
    ids=[f"{i}-{case[0]}" for i, case in enumerate(mixed_cases())],
)
@pytest.mark.parametrize("functional", [False, True])
def test_the_look_ahead_differentiates_a_gradient(
    strong: StrongAugmentation, images: Tensor, draws: StrongDraws, functional: bool
) -> None:
    """∂/∂x of vᵀ ∂L/∂θ, L = ‖tanh(θ T(x)) - tanh(θ x)‖², both ways and by quotient."""
    pixels = images[0].numel()
    theta = torch.randn(4, pixels, generator=seeded(1)).double() / sqrt(pixels)
    v = torch.randn(theta.shape, generator=seeded(2)).double()

    def loss(weights: Tensor, x: Tensor) -> Tensor:
        strong_features = (strong(x, draws).flatten(1) @ weights.T).tanh()
        return (strong_features - (x.flatten(1) @ weights.T).tanh()).square().sum()

    def slope(x: Tensor) -> Tensor:
        if functional:
            gradient: Tensor = torch.func.grad(loss)(theta, x)
            return (gradient * v).sum()
        weights = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(weights, x), weights, create_graph=True)
        return (gradient * v).sum()

    if functional:
        found = torch.func.grad(slope)(images)
    else:
        leaf = images.clone().requires_grad_()
        (found,) = torch.autograd.grad(slope(leaf), leaf)
    direction, step = torch.randn(images.shape, generator=seeded(3)).double(), 1e-5
    ahead, behind = (slope(images + h * direction) for h in (step, -step))
    quotient = (ahead - behind).detach() / (2 * step)
    product = (found * direction).sum()
    assert torch.allclose(product, quotient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", BLENDS)
def test_smooth_operations_have_second_derivatives(name: str) -> None:
    images = (0.35 + 0.3 * some_images(1, 2, 4)).requires_grad_()
    strong, draws = StrongAugmentation(1, 0.4), only(name, images)
    assert torch.autograd.gradgradcheck(lambda x: strong(x, draws) ** 2, images)


@pytest.mark.parametrize("name", sorted(FLAT))
def test_grey_steps_pass_the_gradient_on(name: str) -> None:
    images = some_images(1)
    vector = torch.randn(images.shape, generator=seeded(7), dtype=images.dtype)
    strong, draws = StrongAugmentation(1, 0.5), only(name, images)
    assert not torch.equal(strong(images, draws), images)
    found = pulled_back(lambda x: strong(x, draws), images)
    assert torch.allclose(found, vector)


@pytest.mark.parametrize("count", [1, 2])
def test_shares_of_draws_without_gradient(count: int) -> None:
    """None for grey; for colour those with one of two of kornia's fifteen."""
    strong, tries = StrongAugmentation(count), 400
    grey, colour = some_images(1, 2), some_images(3, 2)
    assert zero_gradient_share(strong, grey, tries, seeded(1)) == 0
    share = zero_gradient_share(strong, colour, tries, seeded(1))
    assert near(share, 1 - comb(13, count) / comb(15, count), tries)
    draw = seeded(1)
    drawn = [strong.draw(grey.shape, draw) for _ in range(tries)]
    flat = sum(bool(FLAT & set(names_of(draws))) for draws in drawn) / tries
    assert near(flat, 1 - comb(11, count) / comb(13, count), tries)


# What is refused


def test_bytes_are_refused() -> None:
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="divide bytes by 255"):
        STRONG(images, STRONG.draw(images.shape, seeded(0)))


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 64, 1, 1), (2, 64), (1, 8, 8)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="1 or 3 channels"):
        STRONG.draw(shape, seeded(0))
    draws = STRONG.draw((2, 1, 8, 8), seeded(0))
    with pytest.raises(UserError, match="1 or 3 channels"):
        STRONG(torch.zeros(shape), draws)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 8, 8)])
def test_draws_for_other_images_are_refused(shape: tuple[int, ...]) -> None:
    draws = STRONG.draw(shape, seeded(0))
    with pytest.raises(UserError, match=r"draw\(images.shape"):
        STRONG(torch.zeros(2, 1, 8, 8), draws)


def test_settings_outside_their_ranges_are_refused() -> None:
    for operations in (0, 14):
        with pytest.raises(UserError, match="operations"):
            StrongAugmentation(operations)
    for magnitude in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            StrongAugmentation(magnitude=magnitude)
    for magnitude in (0, 1):
        with pytest.raises(UserError, match="without the two ends"):
            StrongAugmentation(magnitude=magnitude).draw((2, 3, 8, 8), seeded(0))
    with pytest.raises(UserError, match="at least 1 draw"):
        zero_gradient_share(STRONG, some_images(1), 0, seeded(0))
