"""Needs from predictions and from images."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from needsaug_lite import data
from needsaug_lite.allocation import class_allocation
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, needs
from needsaug_lite.experiments.artefacts import read_predictions
from needsaug_lite.experiments.needs import NeedsReport
from needsaug_lite.metrics import Predictions

NAMES = ("cat", "dog", "owl")


def predictions(per_class: int = 200) -> Predictions:
    """Three classes, told apart well, badly and not at all."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(per_class)
    logits = torch.randn(len(labels), 3, generator=draw)
    logits[torch.arange(len(labels)), labels] += torch.tensor([4.0, 1.5, 0.0])[labels]
    return Predictions(logits, labels)


def report(**options: object) -> NeedsReport:
    counts = torch.tensor([30, 20, 10])
    return NeedsReport.from_predictions(
        predictions(), NAMES, counts, **{"budget": 100, **options}
    )


def test_needs_are_equation_3_of_the_class_losses() -> None:
    found = report()
    pred = predictions()
    means = torch.stack([pred.losses[pred.labels == c].mean() for c in range(3)])
    assert torch.allclose(found.need, class_allocation(means))
    assert torch.allclose(found.losses, means)
    assert int(found.budget.sum()) == 100
    assert found.need.argmax() == 2


def test_intervals_contain_the_need_and_shrink_with_data() -> None:
    found = report()
    assert bool((found.low <= found.need).all() and (found.need <= found.high).all())
    few = NeedsReport.from_predictions(
        predictions(10), NAMES, torch.tensor([1, 1, 1]), budget=10
    )
    assert bool((few.high - few.low > found.high - found.low).all())


def test_by_error_uses_error_rates() -> None:
    found = report(by="error")
    assert torch.allclose(found.need, found.errors / found.errors.sum())


def test_the_table_is_sorted_and_the_json_agrees() -> None:
    found = report()
    table = found.table()
    assert table["class"].tolist() == ["owl", "dog", "cat"]
    assert table["images"].tolist() == [10, 20, 30]
    content = json.loads(found.to_json())
    assert content["budget"] == 100
    assert [line["class"] for line in content["classes"]] == ["owl", "dog", "cat"]


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UserError, match="temperature is 0"):
        report(temperature=0.0)
    with pytest.raises(UserError, match="floor is 0.5"):
        report(floor=0.5)
    with pytest.raises(UserError, match="can't be negative"):
        report(budget=-1)


def csv(tmp_path: Path, **changes: object) -> Path:
    pred = predictions(5)
    frame = pd.DataFrame(pred.logits.softmax(1).numpy(), columns=NAMES)
    frame = frame.add_prefix("p:")
    frame["label"] = [NAMES[label] for label in pred.labels]
    for name, value in changes.items():
        frame[name] = value
    file = tmp_path / "p.csv"
    frame.to_csv(file, index=False)
    return file


def test_predictions_survive_a_csv(tmp_path: Path) -> None:
    found, names = read_predictions(csv(tmp_path))
    assert names == NAMES
    assert torch.allclose(found.losses, predictions(5).losses, atol=1e-5)


def test_numeric_class_names_survive_a_csv(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("label,p:0,p:1\n0,0.9,0.1\n1,0.2,0.8\n")
    found, names = read_predictions(file)
    assert names == ("0", "1")
    assert found.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "fox"}, "no column p:fox"),
        ({"p:cat": 3.0}, "line 2: the p: columns aren't"),
        ({"p:cat": float("nan")}, "line 2"),
    ],
)
def test_a_wrong_csv_is_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_predictions(csv(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,p:a,p:b\n", "holds no prediction"),
        ("label,p:a,p:b\n,0.5,0.5\n", "lacks labels"),
        ("label,p:a,p:b\na,x,0.5\n", "line 2"),
        ("label,p:a,p:b\na,,1\n", "line 2"),
    ],
)
def test_a_csv_with_gaps_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "p.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_predictions(file)


def test_a_class_may_be_called_none(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("label,p:None,p:nan\nNone,0.9,0.1\nnan,0.2,0.8\n")
    assert read_predictions(file)[1] == ("None", "nan")


def test_a_csv_without_columns_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="needs a column `label`"):
        read_predictions(file)
    with pytest.raises(UserError, match="can't be read"):
        read_predictions(tmp_path / "none.csv")


SPEC = Spec.checked(
    {"epochs": 1, "model": {"width": 4}, "optimisation": {"batch_size": 64}}
)


def test_cross_validation_predicts_each_image_once_and_leaves_data_alone() -> None:
    splits = data.load("digits", imbalance=20)
    before = splits.checksum()
    found = needs.cross_validated(splits, SPEC)
    assert torch.equal(found.labels, splits.train.labels)
    assert bool(torch.isfinite(found.logits).all())
    assert splits.checksum() == before
    assert torch.equal(found.logits, needs.cross_validated(splits, SPEC).logits)


def test_no_image_is_predicted_by_a_network_that_saw_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    splits = data.load("digits", n_max=6)
    learned: list[torch.Tensor] = []
    prepare = needs.runner.prepare_with

    def spy(part: data.Splits, spec: Spec) -> object:
        learned.append(part.train.images.pixels.flatten(1))  # type: ignore[attr-defined]
        return prepare(part, spec)

    monkeypatch.setattr(needs.runner, "prepare_with", spy)
    needs.cross_validated(splits, SPEC, folds=3)
    whole = splits.train.images.pixels.flatten(1)  # type: ignore[attr-defined]
    # Two of three folds learn from each image: it is held out exactly once.
    seen = torch.stack(
        [(whole.unsqueeze(1) == part).all(2).any(1) for part in learned]
    ).sum(0)
    assert len(learned) == 3
    assert bool((seen == 2).all())


def test_more_folds_than_images_of_a_class_are_refused() -> None:
    splits = data.load("digits", imbalance=60, n_max=100)
    with pytest.raises(UserError, match="class '9' has 1 images and 3 folds"):
        needs.cross_validated(splits, SPEC)


def test_a_smaller_share_is_learned_with_as_many_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths: dict[float, int] = {}

    def spy(splits: data.Splits, spec: Spec, *, fraction: float, **_: object) -> object:
        lengths[fraction] = spec.epochs
        return Predictions(torch.eye(3), torch.arange(3))

    monkeypatch.setattr(needs, "cross_validated", spy)
    splits = data.load("digits")
    few = data.Splits(
        splits.train, splits.val, splits.meta, splits.test, ("0", "1", "2")
    )
    monkeypatch.setattr(data.Splits, "class_counts", torch.tensor([9, 9, 9]))
    needs.learning_curve(few, SPEC.model_copy(update={"epochs": 10}), (0.25, 0.5, 1.0))
    assert lengths == {0.25: 40, 0.5: 20, 1.0: 10}


def test_learning_curve_thins_and_its_slope_is_per_doubling() -> None:
    splits = data.load("digits", imbalance=5)
    curve = needs.learning_curve(splits, SPEC, (0.5, 1.0), folds=2)
    assert len(curve) == 20
    half, full = (curve[curve["fraction"] == f]["images"].sum() for f in (0.5, 1.0))
    assert half == pytest.approx(full / 2, abs=10)
    line = pd.DataFrame(
        {"class": ["a"] * 3, "images": [10, 20, 40], "loss": [1.0, 0.75, 0.5]}
    )
    assert needs.gain_per_doubling(line)["a"] == pytest.approx(0.25)
    with pytest.raises(UserError, match="fractions"):
        needs.learning_curve(splits, SPEC, (0.0, 1.0))
