"""The command, as a user calls it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from needsaug_lite import cli, data

SMALL = ("--set", "model.width=4", "--set", "optimisation.batch_size=32")


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """Exit status, output and error output of one call."""
    monkeypatch.setattr(sys, "argv", ["needsaug", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def needsaug(monkeypatch, capsys):
    return lambda *words: call(monkeypatch, capsys, *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0 to 2 as a folder of class folders, unequal sizes."""
    place = tmp_path_factory.mktemp("images")
    train = data.load("digits").train
    pixels = train.images.pixels  # type: ignore[attr-defined]
    for digit, count in ((0, 30), (1, 20), (2, 12)):
        (place / str(digit)).mkdir()
        for i, index in enumerate((train.labels == digit).nonzero()[:count, 0]):
            picture = Image.fromarray(pixels[index, 0].numpy())
            picture.save(place / str(digit) / f"{i:03d}.png")
    return place


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "model.pt"
    with pytest.MonkeyPatch.context() as patch:
        words = ["needsaug", "run", "--data", folder, "--image-size", 8, *SMALL]
        words += ["--epochs", 15, "--results", out.parent, "--save-model", out]
        patch.setattr(sys, "argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert not stop.value.code
    return out


def test_run_writes_a_row_once(needsaug, tmp_path: Path) -> None:
    options = ("--imbalance", 20, "--kept", 0.5, "--epochs", 1, *SMALL)
    options = (*options, "--policy", "trivialaugment")
    words = ("run", *options, "--results", tmp_path)
    status, out, _ = needsaug(*words)
    assert status == 0
    assert "balanced accuracy" in out
    (row,) = tmp_path.glob("scratch/*.json")
    spec = json.loads(row.read_text())["spec"]
    assert (spec["data"]["imbalance"], spec["data"]["kept"]) == (20, 0.5)
    assert spec["augment"]["policy"] == "trivialaugment"
    status, out, _ = needsaug(*words)
    assert status == 0
    assert "exists; nothing to do" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "--method", "ldamm"), "unknown method 'ldamm'"),
        (("run", "--epochs", 0), "epochs"),
        (("run", "--set", "optimisation.lrr=1"), "lrr: unknown name"),
        (("run", "--set", "seed"), "write NAME=VALUE"),
        (("run", "--set", "data.counts=[1,2"), "is no value"),
        (("run", "--set", "optimisation={nesterov: true, momentum: 0}"), "nesterov"),
        (("run", "--seed", 10**20), "seed"),
        (("run", "--device", "meta"), "give cpu or cuda"),
        (("run", "--data", "x" * 300), "no data set, folder or .npz"),
        (("run", "--save-model", "."), "is a folder"),
        (("needs", "digits", "--floor", 0.9), "floor is 0.9"),
        (("needs", "digits", "--budget", -1), "can't be negative"),
        (("run", "--resume"), "needs --checkpoint"),
        (("run", "--data", "nowhere"), "no data set, folder or .npz"),
        (("run", "--data", "cifar10", "--root", "/nowhere"), "is missing"),
        (("run", "--backbone", "resnet18"), "needs colour images"),
        (("run", "--device", "abacus"), "can't be used"),
        (("needs", "nowhere"), "no data set, folder or .npz"),
        (("predict", "none.pt", "."), "doesn't exist"),
        (("results", "nowhere"), "no rows below"),
        (("grid", "none.yaml"), "none.yaml"),
        (("data", "fetch", "cifar11"), "cifar11"),
    ],
)
def test_mistakes_end_in_one_message(needsaug, tmp_path, words, message) -> None:
    if words[0] == "run":
        words = (*words, "--results", tmp_path)
    status, _, err = needsaug(*words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_a_setting_can_be_taken_back_and_a_file_overridden(
    needsaug, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "method: focal\nepochs: 1\nmodel: {width: 4}\n"
        "data: {imbalance: 20}\nhyperparameters: {gamma: 2.0}\n"
    )
    words = ("run", "--spec", file, "--results", tmp_path)
    status, _, err = needsaug(
        *words, "--method", "ldam", "--set", "hyperparameters={}",
        "--set", "data.imbalance=null",
    )  # fmt: skip
    assert status == 0, err
    (row,) = tmp_path.glob("scratch/*.json")
    spec = json.loads(row.read_text())["spec"]
    assert (spec["method"], spec["data"]["imbalance"]) == ("ldam", None)


def test_a_grid_may_name_folders_from_where_it_is_called(
    needsaug, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "photos")
    (tmp_path / "g.yaml").write_text(
        "experiment: mine\nprofile: smoke\nseeds: 0\nruns: [{method: cross_entropy}]\n"
        "base: {data: {name: photos, image_size: 8}, epochs: 1, model: {width: 4}}\n"
    )
    status, out, err = needsaug("grid", "g.yaml", "--results", "rows")
    assert status == 0, out + err
    assert len(list((tmp_path / "rows/mine").glob("*.json"))) == 1


def test_broken_images_can_be_left_out_of_a_prediction(
    needsaug, folder: Path, model: Path, tmp_path: Path
) -> None:
    place = tmp_path / "images"
    shutil.copytree(folder, place)
    (place / "0" / "broken.png").write_text("no image")
    out = tmp_path / "p.csv"
    status, _, err = needsaug("predict", model, place, "--out", out)
    assert status == 2
    assert "broken.png" in err
    assert needsaug("predict", model, place, "--out", out, "--skip-broken")[0] == 0
    assert len(pd.read_csv(out)) == 62


def test_own_images_end_to_end(needsaug, folder: Path, model: Path, tmp_path) -> None:
    out = tmp_path / "p.csv"
    status, text, _ = needsaug("predict", model, folder, "--out", out)
    assert status == 0
    assert "62 predictions" in text
    frame = pd.read_csv(out, dtype={"label": str, "prediction": str})
    assert set(frame["label"]) == {"0", "1", "2"}
    assert frame[["p:0", "p:1", "p:2"]].sum(axis=1).round(4).eq(1).all()
    assert (frame["label"] == frame["prediction"]).mean() > 0.8

    status, text, _ = needsaug("needs", out, "--budget", 40, "--out", tmp_path / "n")
    assert status == 0
    report = json.loads((tmp_path / "n/needs.json").read_text())
    assert sum(line["budget"] for line in report["classes"]) == 40
    assert (tmp_path / "n/needs.png").read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(tmp_path / "n/needs.csv")) == 3


def test_one_image_and_unlabelled_folders(needsaug, folder, model, tmp_path) -> None:
    out = tmp_path / "p.csv"
    status, _, _ = needsaug("predict", model, folder / "0" / "000.png", "--out", out)
    assert status == 0
    assert pd.read_csv(out)["label"].isna().all()
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(folder / "1" / "000.png", flat / "a.png")
    status, _, _ = needsaug("predict", model, flat, "--out", out)
    assert status == 0
    assert len(pd.read_csv(out)) == 1


def test_needs_of_a_folder_with_learning_curve(needsaug, folder: Path) -> None:
    status, out, _ = needsaug(
        "needs", folder, "--budget", 10, "--image-size", 8, "--epochs", 2,
        "--learning-curve",
    )  # fmt: skip
    assert status == 0
    assert "gain_per_doubling" in out
    assert len(out.strip().splitlines()) == 4
    # No image is set aside: 30, 20 and 12 are all looked at.
    assert {int(line.split()[1]) for line in out.strip().splitlines()[1:]} == {
        30, 20, 12,
    }  # fmt: skip


def test_resume_gives_the_row_of_an_uninterrupted_run(needsaug, tmp_path) -> None:
    def metrics(place: Path) -> dict[str, object]:
        (row,) = place.glob("scratch/*.json")
        found: dict[str, object] = json.loads(row.read_text())["metrics"]
        return found

    words = ("run", "--imbalance", 20, "--epochs", 2, *SMALL)
    assert needsaug(*words, "--results", tmp_path / "a")[0] == 0
    checkpoint = ("--checkpoint", tmp_path / "c.ckpt")
    assert needsaug(*words, "--results", tmp_path / "b", *checkpoint)[0] == 0
    (row,) = (tmp_path / "b").glob("scratch/*.json")
    row.unlink()
    again = (*words, "--results", tmp_path / "b", *checkpoint, "--resume")
    assert needsaug(*again)[0] == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


PHASED = (*SMALL, "--set", "hyperparameters.phase1.share=0.5", "--epochs", 2)


def test_runs_share_a_first_phase(needsaug, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    words = ("run", "--imbalance", 20, *PHASED, "--results", tmp_path / "rows")
    for method in ("gamo", "facog"):
        status, _, err = needsaug(*words, "--method", method, "--starts", starts)
        assert status == 0, err
    (file,) = starts.iterdir()
    file.write_bytes(b"")
    status, _, err = needsaug(*words, "--method", "feature_copy", "--starts", starts)
    assert status == 2
    assert f"{file.name} can't be read" in err


def test_a_grid_hands_on_where_first_phases_are(
    needsaug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("g.yaml").write_text(
        "experiment: phases\nprofile: smoke\nseeds: 0\n"
        "runs: [{method: facog}, {method: feature_smote}]\n"
        "base: {data: {imbalance: 20}, epochs: 2, model: {width: 4},\n"
        "  hyperparameters: {phase1: {share: 0.5}, phase2: {tuning: augmented}}}\n"
    )
    words = ("grid", "g.yaml", "--results", "rows", "--starts", "kept")
    status, out, err = needsaug(*words)
    assert status == 0, out + err
    rows = [json.loads(row.read_text()) for row in Path("rows/phases").glob("*.json")]
    assert len(rows) == 2
    for row in rows:
        assert row["spec"]["hyperparameters"]["phase2"]["tuning"] == "augmented"
        assert [epoch["stage"] for epoch in row["history"]] == ["phase 1", "phase 2"]
    assert len(list(Path("kept").iterdir())) == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("phase1.strong_vews=true", "phase1.strong_vews: unknown name"),
        ("phase1.share=2", "phase1.share: Input should be less than or equal to 1"),
        ("phase2.tuning=none", "phase2.tuning: Input should be 'both'"),
        ("phase1=strong", "phase1: give names with values (given: 'strong')"),
    ],
)
def test_mistakes_in_nested_settings_are_named(
    needsaug, setting: str, message: str
) -> None:
    words = ("run", "--method", "facog", "--set", f"hyperparameters.{setting}")
    status, _, err = needsaug(*words)
    assert status == 2
    assert message in err


def test_a_classifier_of_two_layers_predicts(
    needsaug, folder: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "m.pt", tmp_path / "p.csv"
    words = ("run", "--data", folder, "--image-size", 8, "--method", "facog", *PHASED)
    status, _, err = needsaug(*words, "--results", tmp_path, "--save-model", file)
    assert status == 0, err
    assert needsaug("predict", file, folder, "--out", out)[0] == 0
    frame = pd.read_csv(out)
    assert len(frame) == 62
    assert frame[["p:0", "p:1", "p:2"]].sum(axis=1).round(4).eq(1).all()


def test_doctor_and_results_speak(needsaug, tmp_path: Path) -> None:
    status, out, _ = needsaug("doctor", "--root", tmp_path)
    assert status == 0
    for word in ("torch", "device", "digits", "absent", "make book"):
        assert word in out
    needsaug("run", "--epochs", 1, *SMALL, "--results", tmp_path)
    status, out, _ = needsaug("results", tmp_path)
    assert status == 0
    assert "balanced_accuracy" in out


def test_help_is_fast_and_complete(needsaug) -> None:
    status, out, _ = needsaug("--help")
    assert status == 0
    for command in ("run", "grid", "needs", "predict", "data", "results", "doctor"):
        assert command in out
