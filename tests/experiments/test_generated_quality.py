"""Generators before a judge, and judges that are trained once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from needsaug_lite import data, metrics, training
from needsaug_lite.data import Examples, InMemory, Normalisation
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import generated_quality
from needsaug_lite.experiments.generated_quality import generator_scores, judge_for
from needsaug_lite.models import Classifier
from needsaug_lite.models.generators import Adapted, Generator

Judge = tuple[Classifier, Normalisation, str]
LATENT = 5


class Replay(Generator):
    """Real images of the class that is asked for; the latent vector says which.

    Its label can be off by `leak`, its images by noise of its own, and batch norm in
    training mode would change them.
    """

    def __init__(self, part: Examples, *, leak: int = 0, noise: float = 0.0) -> None:
        super().__init__(LATENT, 10)
        assert isinstance(part.images, InMemory)
        self.norm = nn.BatchNorm2d(1, eps=0)
        self.leak, self.noise_size = leak, noise
        pixels = part.images.pixels.float() / 255
        self.pools = [pixels[part.labels == label] for label in range(10)]
        self.seen: list[tuple[Tensor, Tensor]] = []

    def sample(self, latents: Tensor, labels: Tensor) -> Tensor:
        self.seen.append((latents, labels))
        shares = torch.special.ndtr(latents[:, 0]).tolist()
        chosen = []
        for share, label in zip(shares, labels.tolist(), strict=True):
            pool = self.pools[(label + self.leak) % 10]
            chosen.append(pool[int(share * len(pool))])
        images: Tensor = self.norm(torch.stack(chosen))
        return images + self.noise_size * torch.randn(images.shape)


@pytest.fixture(scope="module")
def digits() -> data.Splits:
    return data.load("digits")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Judge, Path]:
    cache = tmp_path_factory.mktemp("judges")
    return judge_for("digits", seed=3, epochs=12, cache=cache), cache


@pytest.fixture
def judge(made: tuple[Judge, Path]) -> Judge:
    return made[0]


# --- generator_scores ---------------------------------------------------------------


def test_real_images_of_other_people_are_good_and_noise_is_not(
    digits: data.Splits, judge: Judge
) -> None:
    network, normalisation, _ = judge
    good = generator_scores(Replay(digits.train), network, normalisation, digits.test)
    pure_noise = Adapted(_Noise(), LATENT, 10, value_range=(0, 1))
    bad = generator_scores(pure_noise, network, normalisation, digits.test)
    assert good["real_count"] == good["generated_count"] == len(digits.test)
    assert good["label_agreement"] > 0.95
    assert good["inception_style_score"] > 8
    assert good["precision"] > 0.6
    assert good["recall"] > 0.4
    assert bad["frechet_distance"] > 10 * good["frechet_distance"]
    assert bad["label_agreement"] < 0.3
    # Classifiers see something in noise, too: in their features it isn't far away.
    assert bad["precision"] < 0.5 * good["precision"]
    assert bad["recall"] < 0.5 * good["recall"]


def test_a_generator_of_the_next_class_leaks_completely(
    digits: data.Splits, judge: Judge
) -> None:
    network, normalisation, _ = judge
    straight, leaking = (
        generator_scores(
            Replay(digits.train, leak=leak), network, normalisation, digits.test
        )
        for leak in (0, 1)
    )
    assert leaking["label_agreement"] < 0.05 < 0.95 < straight["label_agreement"]
    # Only the label tells: the other scores see a set of images without classes.
    assert leaking["frechet_distance"] < 5 * straight["frechet_distance"]


def test_scores_are_those_of_features_by_hand(
    digits: data.Splits, judge: Judge
) -> None:
    network, normalisation, _ = judge
    generator = Replay(digits.train)
    found = generator_scores(
        generator, network, normalisation, digits.test, count=200, seed=4
    )
    (latents, labels), *own = generator.seen
    assert labels.bincount(minlength=10).min() > 5
    # The images of single classes come after the others, 100 of each class.
    each = torch.cat([labels for _, labels in own])
    assert torch.equal(each, torch.arange(10).repeat_interleave(100))
    with torch.no_grad():
        pictures = generator.eval().sample(torch.cat([z for z, _ in own]), each)
        by_class = network((pictures - normalisation.mean[0]) / normalisation.std[0])
        images = generator.eval().sample(latents, labels)
        scaled = (images - normalisation.mean[0]) / normalisation.std[0]
        features = network.features(scaled)
        logits = network(scaled)
        assert isinstance(digits.test.images, InMemory)
        order = torch.randperm(599, generator=data.generator(4, 901))[:200]
        real = network.features(normalisation(digits.test.images.pixels[order]))
    expected = metrics.sample_scores(real, features, logits, labels)
    for name, values in metrics.class_scores(by_class, each).items():
        assert found.pop(name) == pytest.approx(values, rel=1e-4)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found["generated_count"] == 200
    # They leave the draws of the other scores alone.
    settings: dict[str, Any] = {"count": 200, "seed": 4, "per_class": 0}
    noisy = Replay(digits.train, noise=0.1)
    without = generator_scores(noisy, network, normalisation, digits.test, **settings)
    settings["per_class"] = 7
    noisy = Replay(digits.train, noise=0.1)
    beside = generator_scores(noisy, network, normalisation, digits.test, **settings)
    assert beside.keys() - without.keys() == {"class_inception", "class_agreement"}
    assert without.items() <= {k: v for k, v in beside.items() if k in without}.items()


def test_batch_size_does_not_matter_and_the_seed_repeats(
    digits: data.Splits, judge: Judge
) -> None:
    network, normalisation, _ = judge

    def scores(**settings: Any) -> dict[str, Any]:
        generator = Replay(digits.train)
        return generator_scores(
            generator, network, normalisation, digits.test, count=150, **settings
        )

    whole = scores(seed=1, batch_size=150)
    assert scores(seed=1, batch_size=150) == whole
    for name, value in scores(seed=1, batch_size=37).items():
        assert value == pytest.approx(whole[name], rel=1e-4)
    assert scores(seed=2, batch_size=150) != whole


def test_draws_of_a_generator_repeat_and_leave_the_random_state_alone(
    digits: data.Splits, judge: Judge
) -> None:
    network, normalisation, _ = judge
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, other = (
        generator_scores(
            Replay(digits.train, noise=0.2), network, normalisation, digits.test
        )
        for _ in range(2)
    )
    assert one == other
    assert torch.equal(torch.rand(3), expected)


def test_a_finder_moves_the_latent_vectors(digits: data.Splits, judge: Judge) -> None:
    network, normalisation, _ = judge
    plain, moved = Replay(digits.train), Replay(digits.train)
    settings: dict[str, Any] = {"count": 100, "seed": 2}
    first = generator_scores(plain, network, normalisation, digits.test, **settings)
    finder = nn.Linear(LATENT, LATENT)
    second = generator_scores(
        moved, network, normalisation, digits.test, finder=finder, **settings
    )
    (latents, labels), (others, same) = plain.seen[0], moved.seen[0]
    assert torch.equal(others, finder(latents).detach())
    assert not others.requires_grad
    assert torch.equal(labels, same)
    assert first != second


def test_modes_and_buffers_stay_as_they_are(digits: data.Splits, judge: Judge) -> None:
    network, normalisation, _ = judge
    generator, finder = Replay(digits.train), nn.Dropout(0.5)
    network.train()
    network.head.eval()
    generator.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    generator_scores(
        generator, network, normalisation, digits.test, count=50, finder=finder
    )
    assert network.backbone.training
    assert not network.head.training
    assert not generator.norm.training
    assert finder.training
    # Dropout in training mode would have set some of them to 0.
    assert bool((generator.seen[0][0] != 0).all())
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    network.eval()


def test_without_classes_there_is_no_agreement(
    digits: data.Splits, judge: Judge
) -> None:
    network, normalisation, _ = judge
    blind = Adapted(_Noise(), LATENT, 1, value_range=(0, 1), conditional=False)
    found = generator_scores(blind, network, normalisation, digits.test, count=20)
    assert "label_agreement" not in found
    assert "class_inception" not in found
    assert found["frechet_distance"] > 0


def test_what_does_not_fit_is_refused(digits: data.Splits, judge: Judge) -> None:
    network, normalisation, _ = judge
    three = Adapted(_Noise(), LATENT, 3, value_range=(0, 1))
    with pytest.raises(UserError, match="3 classes, but the judge knows 10"):
        generator_scores(three, network, normalisation, digits.test)
    large = Adapted(_Noise((3, 8, 8)), LATENT, 10, value_range=(0, 1))
    with pytest.raises(UserError, match=r"\(3, 8, 8\), but .*\(1, 8, 8\)"):
        generator_scores(large, network, normalisation, digits.test)
    wrongs: list[dict[str, Any]] = [{"count": 0}, {"batch_size": 0}, {"per_class": -1}]
    for wrong in wrongs:
        with pytest.raises(UserError, match="at least 1"):
            generator_scores(large, network, normalisation, digits.test, **wrong)


class _Noise(nn.Module):
    """Images that know nothing of latent vectors and labels."""

    def __init__(self, shape: tuple[int, int, int] = (1, 8, 8)) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return torch.rand(len(latents), *self.shape)


def test_the_seed_draws_latent_vectors_classes_and_real_images(
    digits: data.Splits, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, normalisation, _ = judge
    drawn: list[tuple[Tensor, ...]] = []

    def keep(real: Tensor, made: Tensor, *_: Tensor) -> dict[str, float]:
        drawn.append((real, *generator.seen[0]))
        return {}

    monkeypatch.setattr(metrics, "sample_scores", keep)
    for seed in (1, 2, 1):
        generator = Replay(digits.train)
        settings: dict[str, Any] = {"count": 60, "seed": seed}
        generator_scores(generator, network, normalisation, digits.test, **settings)
    first, other, again = drawn
    for one, two, three in zip(first, other, again, strict=True):
        assert not torch.equal(one, two)
        assert torch.equal(one, three)


# --- judge_for ----------------------------------------------------------------------


def test_a_judge_knows_its_data_and_says_what_it_is(
    digits: data.Splits, judge: Judge
) -> None:
    network, normalisation, description = judge
    right = metrics.evaluate(network, digits.test, normalisation)["top1"]
    assert right > 0.95
    assert description == (
        "convnet of width 16, trained on all 1,198 training images of digits, "
        f"12 epochs, right on {right:.1%} of its test images"
    )
    assert normalisation == Normalisation.of(digits)
    assert not any(module.training for module in network.modules())


def test_a_judge_is_trained_once(
    made: tuple[Judge, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (network, normalisation, description), cache = made
    assert len(list(cache.iterdir())) == 1

    def never(*_: object) -> float:
        raise AssertionError

    monkeypatch.setattr(generated_quality, "_train", never)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    again = judge_for("digits", seed=3, epochs=12, cache=cache)
    assert torch.equal(torch.rand(3), expected)
    assert (again[1], again[2]) == (normalisation, description)
    assert same(again[0], network)
    assert not any(module.training for module in again[0].modules())
    for seed, epochs in ((4, 12), (3, 11)):
        with pytest.raises(AssertionError):
            judge_for("digits", seed=seed, epochs=epochs, cache=cache)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    first, _, _ = judge_for("digits", epochs=1, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    broken = {"cut": whole[:-7], "changed": changed, "empty": b""}
    file.write_bytes(broken[damage])
    second, _, _ = judge_for("digits", epochs=1, cache=tmp_path)
    assert same(first, second)
    assert list(tmp_path.iterdir()) == [file]
    assert len(file.read_bytes()) > middle
    assert same(first, judge_for("digits", epochs=1, cache=tmp_path)[0])


def test_a_seed_repeats_without_a_cache_and_where_nothing_can_be_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    first, _, _ = judge_for("digits", epochs=1)
    again, _, _ = judge_for("digits", epochs=1, cache=tmp_path / "file")
    other, _, _ = judge_for("digits", epochs=1, seed=1)
    assert same(first, again)
    assert not same(first, other)


def test_the_seed_draws_first_weights_and_the_order_of_the_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[tuple[Tensor, Tensor]] = []

    def keep(method: Any, epochs: int) -> None:
        order = method.batches.order(0)
        starts.append((method.model.head.weight.detach().clone(), order))

    monkeypatch.setattr(training, "fit", keep)
    for number, seed in enumerate((1, 2, 1)):
        torch.manual_seed(number)
        judge_for("digits", seed=seed)
    first, other, again = starts
    for one, two, three in zip(first, other, again, strict=True):
        assert not torch.equal(one, two)
        assert torch.equal(one, three)


def test_other_images_of_the_same_name_get_another_judge(tmp_path: Path) -> None:
    draw, file = np.random.default_rng(0), tmp_path / "own.npz"

    def write() -> None:
        pixels = draw.integers(0, 256, (20, 8, 8), dtype=np.uint8)
        labels = np.arange(20) % 2
        np.savez(file, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)

    cache = tmp_path / "judges"
    for number in (1, 2):
        write()
        description = judge_for(str(file), epochs=1, cache=cache)[2]
        assert "all 20 training images" in description
        assert len(list(cache.iterdir())) == number


def test_a_judge_needs_an_epoch() -> None:
    with pytest.raises(UserError, match="epochs is 0"):
        judge_for("digits", epochs=0)


def same(one: Classifier, other: Classifier) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
