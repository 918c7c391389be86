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
    words = ("run", "--imbalance", 20, "--epochs", 1, *SMALL, "--results", tmp_path)
    status, out, _ = needsaug(*words)
    assert status == 0
    assert "balanced accuracy" in out
    (row,) = tmp_path.glob("scratch/*.json")
    assert json.loads(row.read_text())["spec"]["data"]["imbalance"] == 20
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
