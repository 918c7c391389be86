"""Policies: what they do to images, and how a training loss learns them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from needsaug_lite import hypergrad
from needsaug_lite.augment import OPERATIONS, AugmentationPolicy, PolicyDraws, policies
from needsaug_lite.errors import UserError

NAMES = ("operation_logits", "magnitude_logits", "probability_logits")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_policy(
    clusters: int = 3, channels: int = 3, **keywords: Any
) -> AugmentationPolicy:
    """A policy in float64 whose weights differ enough to matter at T = 0.05."""
    policy = AugmentationPolicy(clusters, channels, **keywords).double()
    draw = seeded(1)
    scales = (0.05, 1.0, 1.0)
    for name, scale in zip(NAMES, scales, strict=True):
        values = getattr(policy, name).data
        values.copy_(scale * torch.randn(values.shape, generator=draw))
    return policy


def some_images(count: int, channels: int = 3, size: int = 8) -> Tensor:
    shape = (count, channels, size, size)
    return torch.rand(shape, generator=seeded(2), dtype=torch.float64)


def set_all(policy: AugmentationPolicy, name: str, value: float) -> None:
    getattr(policy, name).data.fill_(value)


@pytest.mark.parametrize("mode", ["forward", "sample"])
@pytest.mark.parametrize("channels", [1, 3])
def test_probability_zero_keeps_the_images(mode: str, channels: int) -> None:
    policy = random_policy(channels=channels)
    set_all(policy, "probability_logits", -torch.inf)
    images, cluster = some_images(6, channels), torch.tensor([0, 1, 2, 0, 1, 2])
    result = getattr(policy, mode)(images, cluster, policy.draw(6, seeded(3)))
    assert torch.equal(result, images)


@pytest.mark.parametrize("mode", ["forward", "sample"])
def test_one_certain_operation_is_that_operation_twice(mode: str) -> None:
    policy = random_policy()
    set_all(policy, "probability_logits", torch.inf)
    set_all(policy, "operation_logits", 0)
    chosen = policy.operation_names.index("rotate")
    policy.operation_logits.data[..., chosen] = 1e3
    images, cluster = some_images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    draws = policy.draw(6, seeded(3))
    result = getattr(policy, mode)(images, cluster, draws)
    for stage in range(2):
        logits = policy.magnitude_logits[cluster, draws.sub_policy, stage, chosen]
        arguments = (draws.signs[:, stage, chosen], draws.centres[:, stage])
        images = OPERATIONS["rotate"](images, logits.sigmoid(), *arguments)
    torch.testing.assert_close(result, images.detach(), check_dtype=False)


def test_a_stage_is_the_sum_that_the_docstring_writes() -> None:
    policy = random_policy(stages=1)
    images, cluster = some_images(5), torch.tensor([2, 1, 0, 0, 1])
    draws = policy.draw(5, seeded(4))
    result = policy(images, cluster, draws)
    for i in range(5):
        row = (cluster[i], draws.sub_policy[i], 0)
        weights = (policy.operation_logits[row] / 0.05).softmax(0)
        p = policy.probability_logits[row].sigmoid()
        # The temperature makes a hard coin soft: T -> 0 gives 1[u > 1 - p].
        u = draws.application[i, 0]
        odds = (p / (1 - p) * u / (1 - u)) ** (1 / 0.1)
        b = odds / (1 + odds)
        expected = torch.zeros_like(images[[i]])
        for o, name in enumerate(policy.operation_names):
            m = policy.magnitude_logits[row][[o]].sigmoid()
            sign, place = draws.signs[[i], 0, o], draws.centres[[i], 0]
            changed = OPERATIONS[name](images[[i]], m, sign, place)
            expected += weights[o] * (b[o] * changed + (1 - b[o]) * images[[i]])
        torch.testing.assert_close(result[[i]], expected)


def test_the_start_is_even() -> None:
    policy = AugmentationPolicy(2, 1)
    assert policy.operation_logits.shape == (2, 10, 2, 14)
    assert "color" not in policy.operation_names
    assert len(AugmentationPolicy(2, 3).operation_names) == 15
    for name in NAMES:
        assert not getattr(policy, name).any()


@pytest.mark.parametrize("mode", ["forward", "sample"])
def test_draws_decide_the_result_and_seeds_the_draws(mode: str) -> None:
    policy = random_policy()
    images, cluster = some_images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    first, again = policy.draw(6, seeded(5)), policy.draw(6, seeded(5))
    other = policy.draw(6, seeded(6))
    for field in fields(PolicyDraws):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
    run = getattr(policy, mode)
    result = run(images, cluster, first).detach()
    assert torch.equal(result, run(images, cluster, again))
    assert not torch.equal(result, run(images, cluster, other))
    assert 0 <= float(result.min()) <= float(result.max()) <= 1


@pytest.mark.parametrize("mode", ["forward", "sample"])
def test_an_image_reacts_to_its_own_cluster_alone(mode: str) -> None:
    policy, changed = random_policy(), random_policy()
    for name in NAMES:
        getattr(changed, name).data[1] += 1.5 * torch.linspace(-1, 1, 15).double()
    images, cluster = some_images(60), torch.arange(60) % 3
    draws = policy.draw(60, seeded(7))
    one = getattr(policy, mode)(images, cluster, draws)
    two = getattr(changed, mode)(images, cluster, draws)
    same = (one == two).flatten(1).all(1)
    assert bool(same[cluster != 1].all())
    assert not bool(same[cluster == 1].all())


def test_other_parameters_take_part_through_functional_call() -> None:
    policy, other = random_policy(), random_policy()
    other.magnitude_logits.data += 1
    arguments = (some_images(6), torch.zeros(6).long(), policy.draw(6, seeded(5)))
    called = functional_call(policy, dict(other.named_parameters()), arguments)
    assert torch.equal(called, other(*arguments))
    assert not torch.equal(called, policy(*arguments))


def test_sample_draws_operations_and_coins_in_proportion() -> None:
    """Monte Carlo on a toy of three operations whose results can be told apart."""
    toy = ("invert", "solarize", "brightness")
    policy = AugmentationPolicy(2, 1, sub_policies=1, stages=1, operations=toy)
    policy.operation_logits.data[1, 0, 0] = torch.tensor([0.0, 0.05, 0.1])
    policy.probability_logits.data[1, 0, 0] = torch.tensor([1.0, -1.0, 0.3])
    policy.magnitude_logits.data[1, 0, 0] = torch.tensor([0.0, 0.0, -30.0])
    count = 40_000
    image = torch.tensor([0.2, 0.9]).view(1, 1, 1, 2).expand(count, 1, 1, 2)
    draws = policy.draw(count, seeded(8))
    result = policy.sample(image, torch.ones(count).long(), draws)[:, 0, 0]
    # invert, solarize at 1/2, brightness at 1/10, the image itself
    outcomes = torch.tensor([[0.8, 0.1], [0.2, 0.1], [0.02, 0.09], [0.2, 0.9]])
    near = (result.unsqueeze(1) - outcomes).abs().amax(2) < 1e-5
    assert bool((near.sum(1) == 1).all())
    weights = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    shares = weights * torch.tensor([1.0, -1.0, 0.3]).sigmoid()
    expected = torch.cat([shares, 1 - shares.sum(0, keepdim=True)])
    # Five standard errors.
    error = 5 * (expected * (1 - expected) / count).sqrt()
    assert bool(((near.float().mean(0) - expected).abs() < error).all())


def test_sample_has_the_mean_of_forward_for_hard_coins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one stage, E[sample] = E[forward] as the coin's temperature goes to 0."""
    policy = random_policy(clusters=1, sub_policies=1, stages=1)
    monkeypatch.setattr(policies, "APPLICATION_TEMPERATURE", 1e-6)
    count = 20_000
    images = some_images(1, size=4).expand(count, 3, 4, 4)
    cluster = torch.zeros(count).long()
    draws = policy.draw(count, seeded(9))
    with torch.no_grad():
        soft = policy(images, cluster, draws)
    hard = policy.sample(images, cluster, draws)
    difference = hard - soft
    error = 5 * difference.std(0) / count**0.5
    assert bool((difference.mean(0).abs() < error + 1e-4).all())


def test_both_ways_of_choosing_rows_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = random_policy()
    arguments = (some_images(30), torch.arange(30) % 3, policy.draw(30, seeded(5)))
    some = policy.sample(*arguments)
    monkeypatch.setattr(policies, "_rows", lambda here: torch.arange(len(here)))
    torch.testing.assert_close(policy.sample(*arguments), some)


def convnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.Softplus(),
            nn.AvgPool2d(3),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
    return net.double()


def test_every_parameter_learns_through_an_implicit_hypergradient() -> None:
    policy, net = random_policy(sub_policies=2), convnet()
    images, labels = some_images(24), torch.arange(24) % 3
    draws = policy.draw(24, seeded(10))

    def inner(params: dict[str, Tensor], hparams: dict[str, Tensor]) -> Tensor:
        changed = functional_call(policy, hparams, (images, labels, draws))
        decay = 0.1 * sum((p**2).sum() for p in params.values())
        return cross_entropy(functional_call(net, params, changed), labels) + decay

    def outer(params: dict[str, Tensor], hparams: dict[str, Tensor]) -> Tensor:
        logits = functional_call(net, params, images.flip(3))
        return cross_entropy(logits, labels)

    found = hypergrad.implicit(
        inner,
        outer,
        dict(net.named_parameters()),
        dict(policy.named_parameters()),
        solver=hypergrad.neumann(2, 0.1),
    )
    silent = [
        policy.operation_names.index(name)
        for name in ("auto_contrast", "invert", "equalize")
    ]
    for name in NAMES:
        slope = found[name]
        assert slope.shape == getattr(policy, name).shape
        assert bool(slope.isfinite().all())
        used = slope.abs().sum((0, 1, 2)) > 0
        unused = torch.arange(15)[~used].tolist()
        assert unused == (silent if name == "magnitude_logits" else [])


@pytest.mark.parametrize("operation", ["rotate", "brightness", "cutout"])
def test_the_mixed_derivative_agrees_with_finite_differences(operation: str) -> None:
    """d/d(policy) ⟨∇_θ L(model(policy(x))), u⟩, through two stages."""
    policy = AugmentationPolicy(3, 3, sub_policies=1, operations=[operation]).double()
    net = convnet()
    params: dict[str, Tensor] = dict(net.named_parameters())
    images, labels = 0.3 + 0.2 * some_images(9), torch.arange(9) % 3
    draws = policy.draw(9, seeded(11))
    directions = [
        torch.randn(p.shape, generator=seeded(12)).double() for p in net.parameters()
    ]

    def along(logits: Tensor, graph: bool) -> Tensor:
        hparams = dict(policy.named_parameters()) | {"magnitude_logits": logits}
        changed = functional_call(policy, hparams, (images, labels, draws))
        loss = cross_entropy(functional_call(net, params, changed), labels)
        slopes = torch.autograd.grad(loss, list(params.values()), create_graph=graph)
        pairs = zip(slopes, directions, strict=True)
        return torch.stack([(s * u).sum() for s, u in pairs]).sum()

    start = (
        0.3 * torch.randn(policy.magnitude_logits.shape, generator=seeded(13)).double()
    )
    leaf = start.clone().requires_grad_()
    (found,) = torch.autograd.grad(along(leaf, True), leaf)
    step = 1e-5
    for place in range(start.numel()):
        move = torch.zeros_like(start)
        move.view(-1)[place] = step
        ahead, behind = along(start + move, False), along(start - move, False)
        expected = (ahead - behind) / (2 * step)
        torch.testing.assert_close(
            found.view(-1)[place], expected, rtol=1e-4, atol=1e-9, check_stride=False
        )
    assert float(found.abs().min()) > 0


def test_mistakes_are_named() -> None:
    policy = AugmentationPolicy(2, 1)
    draws = policy.draw(3, seeded(0))
    with pytest.raises(UserError, match=r"policy\.draw\(4"):
        policy(torch.rand(4, 1, 8, 8), torch.zeros(4).long(), draws)
    with pytest.raises(UserError, match="color"):
        AugmentationPolicy(1, 1, operations=["color"])
    with pytest.raises(UserError, match="at least one"):
        AugmentationPolicy(1, 1, operations=[])
    with pytest.raises(UserError, match="at least one cluster"):
        AugmentationPolicy(0, 1)
    assert "clusters=2" in repr(policy)


def test_draws_follow_the_type_of_the_parameters() -> None:
    draws = AugmentationPolicy(1, 1).double().draw(1000, seeded(0))
    assert draws.centres.dtype == torch.float64
    assert set(draws.signs.flatten().tolist()) == {-1.0, 1.0}
    assert set(draws.sub_policy.tolist()) == set(range(10))
    moved = replace(draws, signs=-draws.signs)
    assert torch.equal(moved.signs, -draws.signs)
