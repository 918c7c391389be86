"""Specs of methods that search an architecture, and what their rows hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import searching
from helpers.searching import NAME

from needsaug_lite import metrics, models, training
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, artefacts, load_records, registry, run
from needsaug_lite.experiments.grid import expand
from needsaug_lite.experiments.ingredients import GeneratorSpec, ModelSpec
from needsaug_lite.experiments.preparing import prepare
from needsaug_lite.experiments.supernets import build_options
from needsaug_lite.models.cell_operations import OPERATIONS

ROOT = Path(__file__).parents[2]
REAL = registry.searching_methods()
SMALL: dict[str, Any] = {
    "method": NAME,
    "data": {"imbalance": 20},
    "model": {"width": 4, "cells": 3, "nodes": 1},
    "optimisation": {"batch_size": 64},
    "epochs": 2,
    "profile": "smoke",
}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Any:
    searching.put_in(monkeypatch)
    yield
    # The table of the stand-ins must not outlive them.
    registry.searching_methods.cache_clear()
    registry.hyperparameters.cache_clear()


def test_options_of_a_supernet_change_no_older_run() -> None:
    results = ROOT / "book/results"
    folders = sorted(path for path in results.iterdir() if path.is_dir())
    for folder in folders[:: max(1, len(folders) // 8)]:
        file = min(folder.glob("*.json"))
        values = json.loads(file.read_text())["spec"]
        assert Spec.checked(values).run_id == file.stem
        for name in ("cells", "nodes", "operations", "partial", "halvings"):
            values["model"].pop(name, None)
        assert Spec.checked(values).run_id == file.stem


def test_a_search_happens_in_a_supernet_that_nobody_has_to_name() -> None:
    usual = Spec(method=NAME)
    assert usual.model == ModelSpec(backbone="supernet")
    named = Spec(method=NAME, model=ModelSpec(backbone="supernet"))
    assert named == usual
    assert named.run_id == usual.run_id
    narrow = Spec.checked({"method": NAME, "model": {"width": 8}})
    assert (narrow.model.backbone, narrow.model.width) == ("supernet", 8)
    assert Spec(method=NAME, model=ModelSpec(width=8)).run_id == narrow.run_id
    assert Spec().model.backbone == "convnet"  # the default is nobody else's


@pytest.mark.parametrize(
    "values",
    [{"method": NAME}, {**SMALL}, {"method": f"{NAME}_adversarial"}],
    ids=["usual", "small", "adversarial"],
)
def test_a_spec_that_is_written_and_read_is_the_same(values: dict[str, Any]) -> None:
    spec = Spec.checked(values)
    for again in (
        Spec.checked(spec.model_dump()),
        Spec.checked(spec.model_dump(mode="json")),
        Spec.model_validate_json(spec.model_dump_json()),
    ):
        assert again == spec
        assert again.run_id == spec.run_id


def test_every_option_of_a_supernet_changes_the_hash() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"cells": 4},
        {"nodes": 3},
        {"operations": ["skip_connect", "max_pool_3x3"]},
        {"operations": ["max_pool_3x3", "skip_connect"]},
        {"partial": 2},
        {"halvings": 1},
        {"width": 8},
    ]
    specs = [Spec.checked({"method": NAME, "model": change}) for change in changes]
    assert len({spec.run_id for spec in specs}) == len(changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": NAME, "model": {"backbone": "convnet"}}, "given: convnet"),
        ({"model": {"backbone": "supernet"}}, f"cross_entropy.*{NAME}.*backbone"),
        ({"method": NAME, "model": {"weights": "w.pt"}}, "leave out model.weights"),
        ({"method": NAME, "features": {}}, "leave out features"),
        ({"method": NAME, "model": {"width": 6}}, "to a multiple of 4"),
        ({"method": f"{NAME}_normalised", "model": {"width": 6}}, "multiple of 4"),
        ({"method": NAME, "model": {"partial": 3}}, "a divisor of 16"),
        ({"model": {"cells": 0}}, "model.cells: .*greater than 0"),
        ({"model": {"nodes": 0}}, "model.nodes: .*greater than 0"),
        ({"model": {"halvings": 3}}, "model.halvings: .*0, 1 or 2"),
        ({"model": {"operations": ["pool"]}}, "unknown operation 'pool'; use some of"),
        ({"model": {"operations": ["none"]}}, "one operation beside none"),
        ({"model": {"operations": []}}, "one operation beside none"),
        ({"model": {"operations": ["skip_connect"] * 2}}, "every operation once"),
    ],
)
def test_an_impossible_search_is_refused_in_words(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Spec.checked(values)


def test_a_method_may_settle_the_share_of_the_channels() -> None:
    model = {"width": 6, "partial": 4}
    whole = Spec.checked({"method": f"{NAME}_whole", "model": model})
    options = build_options(whole.model, whole.method)
    assert (options["partial"], options["edge_normalised"]) == (1, False)
    for suffix in ("", "_normalised"):
        spec = Spec.checked({"method": NAME + suffix, "model": {"partial": 2}})
        options = build_options(spec.model, spec.method)
        assert options["partial"] == 2
        assert options.get("edge_normalised", True) is True
    assert options["operations"] == tuple(OPERATIONS)


def test_the_generator_of_a_search_is_the_usual_one() -> None:
    method = f"{NAME}_adversarial"
    for width in (4, 16, 32):
        spec = Spec.checked({"method": method, "model": {"width": width}})
        assert spec.generator == GeneratorSpec()
    # Where a head is shared, it has the width of the classifier.
    shared = Spec.checked({"method": "needs_aware", "model": {"width": 4}})
    assert shared.generator == GeneratorSpec(hyperparameters={"width": 8})


def test_only_some_discriminators_can_be_made_of_cells() -> None:
    def spec(kind: str) -> Spec:
        method = f"{NAME}_adversarial"
        return Spec.checked({"method": method, "generator": {"kind": kind}})

    assert spec("cgan").generator == GeneratorSpec(kind="cgan")
    for kind in ("acgan", "unconditional"):
        with pytest.raises(UserError, match=f"{kind}.*one of biggan, cgan"):
            spec(kind)
    with pytest.raises(UserError, match="edm has none"):
        spec("edm")


def test_the_options_reach_the_network() -> None:
    names = ("skip_connect", "max_pool_3x3")
    model = {"width": 4, "cells": 2, "nodes": 2, "operations": names, "partial": 2}
    for method, normalised in ((f"{NAME}_whole", False), (f"{NAME}_normalised", True)):
        ready = prepare(Spec.checked({**SMALL, "method": method, "model": model}))
        body = ready.model.backbone
        assert isinstance(body, models.Supernet)
        assert body.space.nodes == 2
        assert tuple(body.space.operations) == names
        assert body.architecture.normal.shape == (5, 2)
        parameters = dict(body.architecture.named_parameters())
        assert ("normal_edges" in parameters) is normalised


def test_the_row_is_of_the_network_that_was_found(tmp_path: Path) -> None:
    spec = Spec.checked(SMALL)
    ready = prepare(spec)
    row = run(spec, results=tmp_path, prepared=ready)
    assert ready.method.model is not ready.model
    part = ready.splits.test
    expected = metrics.evaluate(ready.method.model, part, ready.normalisation)
    assert row.metrics["per_class"] == expected["per_class"]
    assert row.metrics["ece"] == expected["ece"]
    found = row.metrics["architecture"]
    assert found["genotype"] == {"classes": 10}
    assert found["parameters"] == sum(
        p.numel() for p in ready.method.model.parameters()
    )
    (read,) = load_records(tmp_path)
    assert read.metrics["architecture"] == found


def test_the_time_of_a_run_is_that_of_its_stages() -> None:
    record = run(Spec.checked({**SMALL, "epochs": 3}))
    seconds = record.metrics["stage_seconds"]
    assert list(seconds) == ["search", "evaluation"]
    assert sum(seconds.values()) == pytest.approx(record.seconds)
    assert seconds["search"] == pytest.approx(record.history[0]["seconds"])
    plain = run(Spec.checked({**SMALL, "method": "cross_entropy", "epochs": 1}))
    assert not {"architecture", "stage_seconds"} & plain.metrics.keys()


class KilledError(Exception):
    """The run ends here."""


@pytest.mark.parametrize("last", [1, 2], ids=["search", "evaluation"])
def test_a_search_goes_on_where_it_was_interrupted(tmp_path: Path, last: int) -> None:
    spec = Spec.checked({**SMALL, "epochs": 4})
    whole = run(spec).metrics
    file = tmp_path / "run.checkpoint"

    def stop(epoch: int, method: training.Method) -> dict[str, float]:
        if epoch > last:
            raise KilledError
        return {}

    def fitted(resume: bool) -> Any:
        ready = prepare(spec)
        training.fit(
            ready.method,
            spec.epochs,
            checkpoint=file,
            resume=resume,
            on_epoch=None if resume else stop,
        )
        return ready

    with pytest.raises(KilledError):
        fitted(False)
    ready = fitted(True)
    again = metrics.evaluate(ready.method.model, ready.splits.test, ready.normalisation)
    assert again["per_class"] == whole["per_class"]
    assert again["ece"] == whole["ece"]


@pytest.mark.parametrize("auxiliary", [0.0, 0.4])
def test_a_found_network_is_saved_and_predicts_the_same(
    auxiliary: float, tmp_path: Path
) -> None:
    settings = {"evaluation": {"auxiliary": auxiliary, "channels": 4}}
    method = "random_architecture"
    data = {"imbalance": 20, "meta_per_class": 5}
    changed = {"method": method, "hyperparameters": settings, "data": data}
    spec = Spec.checked({**SMALL, **changed})
    ready = prepare(spec)
    training.fit(ready.method, 1, progress=False)
    artefacts.save_classifier(tmp_path / "model.pt", spec, ready)
    saved = artefacts.load_classifier(tmp_path / "model.pt")
    images = torch.rand(3, *ready.splits.image_shape)
    with torch.no_grad():
        expected = ready.method.model.eval()(images)
        assert torch.equal(saved.model.eval()(images), expected)


def test_seeds_draw_the_same_supernet() -> None:
    one, two = (prepare(Spec.checked(SMALL)).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("method", REAL)
def test_methods_that_search_are_what_a_run_takes_them_for(method: str) -> None:
    kind = registry.entry(method).load()
    assert issubclass(kind, training.Searching)
    spec = Spec.checked({"method": method})
    assert spec.model.backbone == "supernet"
    assert Spec.checked(spec.model_dump()).run_id == spec.run_id
    needed = ("needs_adversary", "needs_generator")
    has_generator = any(getattr(kind, name, False) for name in needed)
    assert spec.generator == (GeneratorSpec() if has_generator else None)


@pytest.mark.parametrize("file", sorted((ROOT / "nbs/grids").glob("*_search*.yaml")))
def test_grids_of_searches_are_valid(file: Path) -> None:
    specs = expand(yaml.safe_load(file.read_text()))
    searched = [spec for spec in specs if spec.method in REAL]
    assert specs
    if file.stem.endswith("trial_search"):
        assert not searched
        return
    assert searched == specs
    # Four to one, and the same images whatever the method.
    assert len({spec.data.model_dump_json() for spec in specs}) == 1
    assert {spec.experiment for spec in specs} == {file.stem}
