"""Trained generators: one for one set of images and settings, whoever asks for it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from needsaug_lite import data, training
from needsaug_lite.data import Splits
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, generated_quality, runner
from needsaug_lite.experiments.generators import TrainedGenerator, trained_generator
from needsaug_lite.experiments.ingredients import GeneratorSpec
from needsaug_lite.experiments.registry import GENERATORS, METHODS, Entry
from needsaug_lite.files import read_sealed, write_sealed

SETTINGS: dict[str, Any] = {"latent_dim": 8, "width": 8, "batch_size": 4}


def spec(**changes: Any) -> GeneratorSpec:
    return GeneratorSpec(
        **{"kind": "cgan", "steps": 100, "hyperparameters": SETTINGS, **changes}
    )


def run_spec(**changes: Any) -> Spec:
    return Spec.checked(
        {
            "method": "pcr",
            "data": {"name": "digits", "n_max": 4},
            "generator": spec().model_dump(),
            "epochs": 1,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def splits() -> Splits:
    return data.load("digits", n_max=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generators")


@pytest.fixture(scope="module")
def made(splits: Splits, cache: Path) -> TrainedGenerator:
    return trained_generator(splits, spec(), cache=cache)


def image(made: TrainedGenerator) -> torch.Tensor:
    draw = data.generator(1)
    source = made.generator
    return source.sample(source.noise(3, draw), source.labels(3, draw))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("trained again")


def test_a_generator_is_trained_once_for_the_same_images_and_settings(
    splits: Splits,
    cache: Path,
    made: TrainedGenerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "fit", refuse)
    again = trained_generator(splits, spec(), cache=cache)
    assert again.name == made.name
    assert torch.equal(image(again), image(made))
    assert again.history == made.history
    for other in (spec(steps=200), spec(seed=3)):
        with pytest.raises(AssertionError, match="trained again"):
            trained_generator(splits, other, cache=cache)
    fewer = data.load("digits", n_max=4, seed=1)
    with pytest.raises(AssertionError, match="trained again"):
        trained_generator(fewer, spec(), cache=cache)


def test_a_damaged_file_is_made_anew_bit_for_bit(
    splits: Splits, cache: Path, made: TrainedGenerator
) -> None:
    (file,) = cache.glob(f"{made.name}.*")
    file.write_bytes(file.read_bytes()[:-9])
    torch.manual_seed(99)  # the caller's random state decides nothing ...
    before = torch.get_rng_state()
    again = trained_generator(splits, spec(), cache=cache)
    assert torch.equal(image(again), image(made))
    assert torch.equal(torch.get_rng_state(), before)  # ... and stays
    assert not list(cache.glob("*.checkpoint"))


def test_a_trained_generator_is_frozen_and_in_evaluation_mode(
    made: TrainedGenerator,
) -> None:
    assert not made.generator.training
    assert not any(p.requires_grad for p in made.generator.parameters())
    assert len(made.history) == 1
    assert made.label == GENERATORS["cgan"].label


def test_the_generator_is_part_of_a_runs_name() -> None:
    names = {
        run_spec(generator=chosen.model_dump()).run_id
        for chosen in (spec(), spec(steps=200), spec(seed=1), spec(kind="acgan"))
    }
    assert len(names) == 4
    default = GeneratorSpec()
    assert run_spec(generator=None).generator == default
    assert run_spec(generator=None).run_id == run_spec(generator={}).run_id


def test_methods_without_generated_images_refuse_a_generator() -> None:
    with pytest.raises(UserError, match="leave out generator"):
        run_spec(method="cross_entropy")
    with pytest.raises(UserError, match="unknown generator 'gan'; use one of cgan"):
        run_spec(generator={"kind": "gan"})
    with pytest.raises(UserError, match=r"unknown name|leave out features"):
        run_spec(features={}, model={"backbone": "linear"})
    with pytest.raises(UserError, match="widht"):
        run_spec(generator={"kind": "cgan", "hyperparameters": {"widht": 3}})


def test_seeds_of_runs_share_data_and_generator_where_the_data_have_a_seed() -> None:
    own = [runner.prepare(run_spec(seed=seed)) for seed in (0, 1)]
    assert own[0].splits.checksum() != own[1].splits.checksum()
    drawn = {"name": "digits", "n_max": 4, "seed": 5}
    shared = [run_spec(seed=seed, data=drawn) for seed in (0, 1)]
    ready = [runner.prepare(one) for one in shared]
    assert ready[0].splits.checksum() == ready[1].splits.checksum()
    assert ready[0].generator is not None
    assert ready[1].generator is not None
    assert ready[0].generator.name == ready[1].generator.name
    weights = [next(one.model.parameters()) for one in ready]
    assert not torch.equal(weights[0], weights[1])
    assert shared[0].run_id != run_spec(seed=0).run_id


def test_a_row_says_how_good_the_generated_images_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated_quality, "_SEEN", 1)  # a judge of few epochs
    row = runner.run(run_spec(), root=tmp_path, progress=False)
    facts = row.metrics["generator"]
    assert facts["label"] == "cGAN"
    assert facts["shared"] is False
    assert "digits" in facts["judge"]
    assert facts["uniform"]["frechet_distance"] > 0
    assert "searched" not in facts
    assert list((tmp_path / "generators").iterdir())
    assert list((tmp_path / "judges").iterdir())
    searched = runner.run(
        run_spec(
            method="mgr", data={"name": "digits", "n_max": 4, "meta_per_class": 2}
        ),
        root=tmp_path,
        progress=False,
    )
    assert "searched" in searched.metrics["generator"]
    assert "trained" not in facts
    assert "allocation" not in row.metrics
    assert "first_classifier" not in row.metrics
    assert len(facts["uniform"]["class_inception"]) == 10


# --- the trainer --------------------------------------------------------------------


def networks(made: TrainedGenerator) -> dict[str, torch.Tensor]:
    return dict(made.trainer.model.state_dict())


def same(one: TrainedGenerator, other: TrainedGenerator) -> bool:
    mine, yours = networks(one), networks(other)
    assert mine.keys() == yours.keys()
    return all(torch.equal(mine[name], yours[name]) for name in mine)


def to_older_form(file: Path) -> None:
    """A file as it was before the networks of the trainer were kept."""
    content = read_sealed(file)
    assert content is not None
    kept = torch.load(io.BytesIO(content), weights_only=True)
    del kept["networks"]
    stream = io.BytesIO()
    torch.save(kept, stream)
    write_sealed(file, stream.getvalue())


@pytest.mark.parametrize("kind", ["cgan", "biggan"])
def test_a_trainer_goes_on_alike_whether_it_was_read_or_has_just_trained(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = spec(kind=kind)
    new = trained_generator(splits, settings, cache=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", refuse)
        read = trained_generator(splits, settings, cache=tmp_path, whole=True)
    torch.manual_seed(0)
    by_hand = GENERATORS[kind].load()(splits, seed=0, **SETTINGS)
    training.fit(by_hand, 1, progress=False)
    for name, value in by_hand.model.state_dict().items():
        assert torch.equal(value, networks(read)[name])
    for made in (new, read):
        assert made.generator is made.trainer.generator
        assert not made.generator.training
    assert same(new, read)
    before = {name: value.clone() for name, value in networks(new).items()}
    for made in (new, read):
        training.fit(made.trainer, 1, progress=False)
    assert same(new, read)
    moved = [not torch.equal(before[name], networks(new)[name]) for name in before]
    assert sum(moved) > len(moved) / 2


def test_an_older_file_is_good_for_its_generator_and_made_anew_for_the_trainer(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = trained_generator(splits, spec(), cache=tmp_path)
    file = tmp_path / f"{new.name}.generator"
    to_older_form(file)
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", refuse)
        older = trained_generator(splits, spec(), cache=tmp_path)
        assert torch.equal(image(older), image(new))
        assert older.trainer is None
        assert older.history == new.history
        with pytest.raises(AssertionError, match="trained again"):
            trained_generator(splits, spec(), cache=tmp_path, whole=True)
    again = trained_generator(splits, spec(), cache=tmp_path, whole=True)
    assert torch.equal(image(again), image(new))
    assert same(again, new)
    monkeypatch.setattr(training, "fit", refuse)
    assert same(trained_generator(splits, spec(), cache=tmp_path, whole=True), new)
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture
def budgeted(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a method that trains the GAN it is given."""
    name = "budgeted_in_tests"
    monkeypatch.setitem(METHODS, name, Entry("helpers.budgeting:Budgeted", name))
    return name


def test_a_method_that_needs_an_adversary_gets_the_whole_trainer(
    budgeted: str, splits: Splits, cache: Path, made: TrainedGenerator
) -> None:
    ready = runner.prepare_with(splits, run_spec(method=budgeted), cache)
    method: Any = ready.method
    assert ready.generator is not None
    assert ready.generator.name == made.name
    assert method.gan is ready.generator.trainer
    assert same(ready.generator, made)
    # What was handed in is kept beside what the method makes of it.
    assert ready.generator.generator is not method.generator
    shown = image(ready.generator)
    training.fit(method, 1, progress=False)
    assert torch.equal(image(ready.generator), shown)
    assert not same(ready.generator, made)


def test_only_gans_have_an_adversary(budgeted: str) -> None:
    assert run_spec(method=budgeted, generator=None).generator == GeneratorSpec()
    assert "gan" not in run_spec(method=budgeted).hyperparameters
    for kind in ("edm", "replay"):
        with pytest.raises(
            UserError, match=f"{kind} has none: .* cgan, acgan, biggan, unconditional$"
        ):
            run_spec(method=budgeted, generator={"kind": kind})
    with pytest.raises(UserError, match=r"unknown name|leave out features"):
        run_spec(method=budgeted, features={}, model={"backbone": "linear"})


def test_a_row_tells_what_a_method_made_of_its_budget_and_its_generator(
    budgeted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated_quality, "_SEEN", 1)

    def row(method: str, **hyperparameters: Any) -> Any:
        chosen = run_spec(method=method, hyperparameters=hyperparameters)
        return runner.run(
            chosen, root=tmp_path, results=tmp_path, progress=False
        ).metrics

    found = row(budgeted)
    assert found["allocation"] == {"images": [4] * 10}
    # Its other classifier is its own network: measured alike, it has its scores.
    names = {"balanced_accuracy", "top1", "per_class", "ece"}
    assert found["first_classifier"] == {name: found[name] for name in names}
    before, after = found["generator"]["uniform"], found["generator"]["trained"]
    assert before != after
    assert before.keys() == after.keys()
    # The generator that was handed in is the one that other methods are given.
    assert before == row("pcr")["generator"]["uniform"]
    still = row(budgeted, alone=True, push=0.0)
    assert still["generator"]["trained"] == still["generator"]["uniform"] == before
    assert "first_classifier" not in still
