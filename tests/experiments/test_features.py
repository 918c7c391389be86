"""Features that never saw a label, the same ones whenever they are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from needsaug_lite import data, models, training
from needsaug_lite.data import InMemory, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, artefacts, features, run, runner
from needsaug_lite.experiments.features import (
    frozen_features,
    image_checksum,
    pretext_examples,
)
from needsaug_lite.experiments.ingredients import FeatureSpec

QUICK = FeatureSpec(width=4, feature_dim=24, epochs=1)
RUN: dict[str, Any] = {
    "data": {"colour": True},
    "model": {"backbone": "linear"},
    "features": QUICK.model_dump(),
    "epochs": 2,
    "profile": "smoke",
    "seed": 5,
}


@pytest.fixture(scope="module")
def images() -> Splits:
    return data.load("digits", colour=True, meta_per_class=2)


@pytest.fixture(scope="module")
def made(images: Splits) -> Splits:
    return frozen_features(images, QUICK, seed=3)


def pixels(part: data.Examples) -> torch.Tensor:
    assert isinstance(part.images, InMemory)
    return part.images.pixels


def same(one: Splits, other: Splits) -> bool:
    parts = ("train", "val", "meta", "test")
    pairs = [(getattr(one, part), getattr(other, part)) for part in parts]
    return all(torch.equal(pixels(a), pixels(b)) for a, b in pairs)


# --- the pretext task ---------------------------------------------------------------


def test_copies_are_turned_and_swapped_as_their_labels_say(images: Splits) -> None:
    first = images.train.subset(torch.arange(5))
    found = pretext_examples(first.images)
    assert found.labels.tolist() == [label for label in range(8) for _ in range(5)]
    copies = pixels(found).view(8, 5, 3, 8, 8)
    for label in range(8):
        back = copies[label].rot90(-(label % 4), (2, 3))
        back = back[:, [1, 0, 2]] if label >= 4 else back
        assert torch.equal(back, pixels(first))


def test_a_quarter_turn_goes_to_the_left() -> None:
    corner = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    corner[0, 0, 0, 7] = 255
    copies = pixels(pretext_examples(InMemory(corner))).squeeze(1)
    at = [divmod(int(copy.argmax()), 8) for copy in copies]
    assert at == [(0, 7), (0, 0), (7, 0), (7, 7)]


def test_images_that_can_not_be_turned_are_refused() -> None:
    wide = InMemory(torch.zeros(2, 1, 8, 9, dtype=torch.uint8))
    with pytest.raises(UserError, match="8 x 9 .*square"):
        pretext_examples(wide)
    with pytest.raises(UserError, match="features already"):
        pretext_examples(InMemory(torch.zeros(2, 24, 1, 1)))


# --- the features -------------------------------------------------------------------


def test_everything_but_the_images_stays(images: Splits, made: Splits) -> None:
    for part in ("train", "val", "meta", "test"):
        before, after = getattr(images, part), getattr(made, part)
        assert pixels(after).shape == (len(before), 24, 1, 1)
        assert pixels(after).dtype == torch.float32
        assert float(pixels(after).min()) == 0 < float(pixels(after).max())
        assert torch.equal(before.labels, after.labels)
        assert torch.equal(before.groups, after.groups)
    assert made.class_names == images.class_names
    assert made.provenance["coloured"]
    assert made.provenance["features"]["seed"] == 3
    assert made.provenance["features"]["width"] == 4


def test_a_seed_repeats_and_leaves_the_random_state_alone(
    images: Splits, made: Splits
) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    again = frozen_features(images, QUICK, seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert same(made, again)
    assert not same(made, frozen_features(images, QUICK, seed=4))


def test_the_seed_draws_the_weights_at_the_start(images: Splits) -> None:
    # Without learning, the features are those of the first weights.
    still = QUICK.model_copy(update={"lr": 1e-12})
    one, other = (
        pixels(frozen_features(images, still, seed=seed).test) for seed in (3, 4)
    )
    assert float((one - other).abs().mean()) > 0.3 * float(one.std())


def test_labels_and_other_parts_have_no_say(images: Splits, made: Splits) -> None:
    train, test = images.train, images.test
    other = replace(
        images,
        train=replace(train, labels=1 - train.labels, groups=None),
        test=test.subset(torch.arange(len(test)).flip(0)),
    )
    found = frozen_features(other, QUICK, seed=3)
    assert torch.equal(pixels(found.train), pixels(made.train))
    # An image's features are its own: the order of the test part moves with it.
    flipped = pixels(found.test).flip(0)
    assert torch.allclose(flipped, pixels(made.test), rtol=1e-4, atol=1e-5)


def test_grey_images_have_four_copies_and_their_features_know_shapes() -> None:
    grey = data.load("digits")
    assert len(pretext_examples(grey.train.images)) == 4 * len(grey.train)
    found = frozen_features(grey, FeatureSpec(width=8, feature_dim=64), seed=0)
    assert found.provenance["features"]["pretext_accuracy"] > 0.6
    standard = data.Normalisation.of(found)
    x, y = standard(pixels(found.train)).flatten(1), found.train.labels
    learner = LogisticRegression(max_iter=300).fit(x.numpy(), y.numpy())
    x, y = standard(pixels(found.test)).flatten(1), found.test.labels
    right = learner.score(x.numpy(), y.numpy())
    assert right > 0.7


def test_the_network_learns(images: Splits) -> None:
    short, long = (
        frozen_features(images, QUICK.model_copy(update={"epochs": epochs}))
        for epochs in (1, 6)
    )
    accuracies = [f.provenance["features"]["pretext_accuracy"] for f in (short, long)]
    assert accuracies[1] > accuracies[0] + 0.1
    assert accuracies[1] > 2 / 8


# --- the cache ----------------------------------------------------------------------


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fit", lambda *a, **k: pytest.fail("it trained"))


def test_features_are_made_once(
    images: Splits, made: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = frozen_features(images, QUICK, seed=3, cache=tmp_path)
    assert same(first, made)
    with monkeypatch.context() as patch:
        no_training(patch)
        second = frozen_features(images, QUICK, seed=3, cache=tmp_path)
    assert same(second, made)
    assert second.provenance == made.provenance


def test_a_change_of_anything_is_another_file(
    images: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = pixels(images.test).clone()
    changed[0, 0, 0, 0] += 1
    test = replace(images.test, images=InMemory(changed))
    frozen_features(images, QUICK, cache=tmp_path)
    frozen_features(images, QUICK, cache=tmp_path, seed=1)
    wider = QUICK.model_copy(update={"width": 5})
    frozen_features(images, wider, cache=tmp_path)
    frozen_features(replace(images, test=test), QUICK, cache=tmp_path)
    monkeypatch.setattr(FeatureSpec, "version", FeatureSpec.version + 1)
    frozen_features(images, QUICK, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["short", "flipped", "empty", "other"])
def test_a_damaged_file_is_made_again(
    images: Splits, made: Splits, tmp_path: Path, damage: str
) -> None:
    frozen_features(images, QUICK, seed=3, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "short": whole[:middle],
            "flipped": whole[:middle]
            + bytes([whole[middle] ^ 1])
            + whole[middle + 1 :],
            "empty": b"",
            "other": b"something else " * 9,
        }[damage]
    )
    again = frozen_features(images, QUICK, seed=3, cache=tmp_path)
    assert same(again, made)
    assert file.read_bytes() == whole


def test_a_cache_that_can_not_be_written_stops_nothing(
    images: Splits, made: Splits, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert same(frozen_features(images, QUICK, seed=3, cache=blocked), made)


# --- runs ---------------------------------------------------------------------------


def test_two_methods_see_the_features_of_one_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by: list[int] = []
    make = features._make

    def counted(splits: Splits, settings: FeatureSpec, seed: int) -> features.Made:
        made_by.append(seed)
        return make(splits, settings, seed)

    monkeypatch.setattr(features, "_make", counted)
    rows = [
        run(Spec.checked({**RUN, "method": method}), root=tmp_path)
        for method in ("cross_entropy", "logit_adjustment", "group_dro", "ldam")
    ]
    assert made_by == [5]
    assert len(list((tmp_path / "features").iterdir())) == 1
    # The row names the images: features may differ in a last bit elsewhere.
    images = data.load("digits", colour=True, seed=5)
    assert {row.data_checksum for row in rows} == {images.checksum()}
    for row in rows:
        assert 0 <= row.metrics["deo"] <= 2
        assert 0 <= row.metrics["adjusted_accuracy"] <= 1


def test_a_run_on_features_trains_a_linear_head_on_them(tmp_path: Path) -> None:
    spec = Spec.checked(RUN)
    ready = runner.prepare(spec, tmp_path)
    assert ready.splits.image_shape == (24, 1, 1)
    assert image_checksum(ready.splits) != ready.splits.checksum()
    trained = {name for name, _ in ready.model.named_parameters()}
    assert trained == {"head.weight", "head.bias"}
    record = run(spec, root=tmp_path)
    assert record.metrics["top1"] == run(spec, root=tmp_path).metrics["top1"]


def test_features_of_a_file_that_changed_are_noticed(tmp_path: Path) -> None:
    import numpy as np

    file = tmp_path / "mine.npz"
    for seed in (0, 1):
        draw = np.random.default_rng(seed)
        x = draw.integers(0, 256, (20, 8, 8), dtype=np.uint8)
        y = np.arange(20) % 2
        np.savez(file, x_train=x, y_train=y, x_test=x, y_test=y)
        spec = Spec.checked({**RUN, "data": {"name": str(file)}})
        if seed == 0:
            row = run(spec, root=tmp_path, results=tmp_path / "rows")
            assert "deo" not in row.metrics
            run(spec, root=tmp_path, results=tmp_path / "rows")
    with pytest.raises(UserError, match="other images"):
        run(spec, root=tmp_path, results=tmp_path / "rows")


def test_a_head_alone_is_not_saved_as_a_classifier(tmp_path: Path) -> None:
    spec = Spec.checked(RUN)
    ready = runner.prepare(spec, tmp_path)
    with pytest.raises(UserError, match="frozen features"):
        artefacts.save_classifier(tmp_path / "m.pt", spec, ready)


def test_features_can_not_be_augmented(made: Splits) -> None:
    from needsaug_lite.augment import StandardAugmentation
    from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy

    for asked in ({"crop": 1}, {"flip": True}, {"cutout": 2}):
        model = models.build("linear", made.image_shape, 2)
        method = CrossEntropy(model, made, augment=StandardAugmentation(**asked))
        with pytest.raises(UserError, match="features"):
            next(iter(method.batches.epoch(0)))
    model = models.build("linear", made.image_shape, 2)
    method = CrossEntropy(model, made, augment=StandardAugmentation())
    assert len(next(iter(method.batches.epoch(0))).images) == 128
