"""Waterbirds from an archive that is written here, and its features end to end."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from needsaug_lite import data
from needsaug_lite.data import waterbirds
from needsaug_lite.data.downloads import DOWNLOADS
from needsaug_lite.errors import UserError
from needsaug_lite.models import build, image_features

SCRIPT = Path(__file__).parents[2] / "data_scripts" / "extract_waterbirds_features.py"
# y, place, split of the images 1, 2, ... in an order that mixes the parts.
ROWS = [
    *[(0, 0, 0), (1, 1, 2), (0, 1, 1), (1, 0, 0), (0, 0, 2), (1, 1, 1), (0, 1, 0)],
    *[(1, 0, 1), (1, 1, 0), (0, 1, 2), (0, 0, 1), (1, 0, 2), (0, 0, 0)],
]
GROUPS = {"train": [0, 2, 1, 3, 0], "val": [1, 3, 2, 0], "test": [3, 0, 1, 2]}


def write_archive(root: Path, folder: str = waterbirds.FOLDERS[0]) -> Path:
    """Flat images whose red says y, green the place, blue the number of the row."""
    table = pd.DataFrame(ROWS, columns=["y", "place", "split"])
    names = []
    for number, (y, place, _) in enumerate(ROWS):
        name = f"{number % 3:03}.Bird/image_{number}.{'png' if number % 2 else 'jpg'}"
        file = root / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        colour = (200 * y, 200 * place, 10 * number)
        Image.new("RGB", (300 + 10 * number, 280), colour).save(file)
        names.append(name)
    table.insert(0, "img_id", range(1, len(ROWS) + 1))
    table.insert(1, "img_filename", names)
    table["place_filename"] = "/o/ocean/0001.jpg"
    table.to_csv(root / folder / "metadata.csv", index=False)
    return root / folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ResNet-18 weights with running moments that aren't trivial."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(weights=None)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), file)
    return file


# --- images ---------------------------------------------------------------------


@pytest.mark.parametrize("folder", waterbirds.FOLDERS)
def test_the_published_parts_are_read_with_their_groups(tmp_path, folder) -> None:
    write_archive(tmp_path, folder)
    splits = data.load("waterbirds", tmp_path, image_size=16)
    assert splits.class_names == ("landbird", "waterbird")
    assert splits.image_shape == (3, 16, 16)
    assert len(splits.meta) == 0
    assert splits.provenance["folder"] == folder
    for code, name in enumerate(("train", "val", "test")):
        part = getattr(splits, name)
        assert part.groups.tolist() == GROUPS[name]
        assert part.labels.equal(part.groups // 2)
        (pixels,) = part.images.stream([torch.arange(len(part))])
        middle = pixels[:, :, 8, 8].long()
        assert ((middle[:, 0] > 100) == (part.labels == 1)).all()
        assert ((middle[:, 1] > 100) == (part.groups % 2 == 1)).all()
        order = [10 * n for n, row in enumerate(ROWS) if row[2] == code]
        assert ((middle[:, 2] - torch.tensor(order)).abs() < 5).all()
    assert data.Cells.of(splits).counts(splits.train).tolist() == [[2, 1], [1, 1]]


def test_images_have_224_pixels_unless_another_size_is_given(archive: Path) -> None:
    assert data.load("waterbirds", archive.parent).image_shape == (3, 224, 224)


def test_meta_images_are_taken_out_of_val(archive: Path) -> None:
    whole, split = (
        data.load("waterbirds", archive.parent, meta_per_class=count)
        for count in (0, 2)
    )
    assert torch.bincount(split.meta.groups).tolist() == [1, 1, 1, 1]
    assert len(split.val) == len(whole.val) - 4 == 0
    assert split.train.groups.equal(whole.train.groups)
    with pytest.raises(UserError, match="only 1 images of one place and class"):
        data.load("waterbirds", archive.parent, meta_per_class=4)


def test_missing_folders_and_images_are_named(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        data.load("waterbirds", tmp_path / "nowhere")
    for part in (*waterbirds.FOLDERS, "needsaug data fetch waterbirds", "--root"):
        assert part in str(told.value)
    (archive / "000.Bird" / "image_3.png").unlink()
    with pytest.raises(UserError, match=r"1 of 5 train images.*image_3\.png"):
        data.load("waterbirds", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["place", "y"]), "lacks the column y, place"),
        (lambda t: t.assign(y=[*t["y"][:-1], 2]), "y is 2 in line 14"),
        (lambda t: t.assign(place=[None, *t["place"][1:]]), "place is nan in line 2"),
        (lambda t: t.assign(split=t["split"] + 1), "split is 3 in line 3"),
        (lambda t: t[t["split"] != 1], "no image of split 1"),
    ],
)
def test_a_wrong_table_is_named(archive: Path, change: Callable, message) -> None:
    file = archive / "metadata.csv"
    change(pd.read_csv(file)).to_csv(file, index=False)
    with pytest.raises(UserError, match=f"metadata.csv.*{message}"):
        data.load("waterbirds", archive.parent)


def test_a_table_that_is_none_is_named(archive: Path) -> None:
    for content in (b"", b"\xff\xfe\x00"):
        (archive / "metadata.csv").write_bytes(content)
        with pytest.raises(UserError, match=r"metadata\.csv"):
            data.load("waterbirds", archive.parent)


OPTIONS = [
    ({"imbalance": 10}, "leave out imbalance"),
    ({"n_max": 5, "noise": 0.1}, "leave out n_max, noise"),
    ({"val_per_class": 2}, "leave out val_per_class"),
    ({"colour": True}, "leave out colour"),
    ({"group_counts": (1, 1, 1, 1)}, "leave out group_counts"),
    ({"attribute_imbalance": 3.0}, "leave out attribute_imbalance"),
    ({"channels": 3}, "leave out channels"),
    ({"skip_broken": True}, "leave out skip_broken"),
    ({"meta_per_class": 3}, "multiple of 2"),
]


@pytest.mark.parametrize("name", ["waterbirds", "waterbirds_features"])
@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_without_sense_are_refused(tmp_path, name, options, message) -> None:
    with pytest.raises(UserError, match=message):
        data.load(name, tmp_path, **options)


def test_features_have_no_image_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave image_size out"):
        data.load("waterbirds_features", tmp_path, image_size=8)


def test_published_numbers_are_checked(tmp_path, archive, monkeypatch) -> None:
    (remote,) = DOWNLOADS["waterbirds"]
    assert remote.md5 is None
    with pytest.raises(UserError, match=r"\(2, 1, 1, 1\) train.*\(3498, 184, 56, 1057"):
        remote.check(archive)
    small = {"train": (2, 1, 1, 1), "val": (1,) * 4, "test": (1,) * 4}
    monkeypatch.setattr(waterbirds, "GROUP_COUNTS", small)
    remote.check(archive)
    totals = {"train": 4795, "val": 1199, "test": 5794}
    monkeypatch.undo()
    assert {p: sum(n) for p, n in waterbirds.GROUP_COUNTS.items()} == totals


# --- features -------------------------------------------------------------------


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *arguments])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_script_writes_what_load_reads(
    archive, weights, monkeypatch, capsys
) -> None:
    root = archive.parent
    given = ["--root", str(root), "--weights", str(weights)]
    run_script(monkeypatch, *given, "--batch-size", "3")
    file = root / "waterbirds_features.npz"
    assert capsys.readouterr().out.strip() == str(file)
    assert sorted(p.name for p in root.iterdir()) == [file.name, archive.name]
    splits = data.load("waterbirds_features", root)
    assert splits.image_shape == (512, 1, 1)
    assert splits.provenance["features_from"]["weights"] == weights.name
    images = data.load("waterbirds", root)
    for name in ("train", "val", "test"):
        part, source = getattr(splits, name), getattr(images, name)
        assert part.groups.tolist() == GROUPS[name]
        assert part.labels.equal(source.labels)
        assert part.images.pixels.dtype == torch.float32
        assert part.images.pixels.shape == (len(source), 512, 1, 1)
    # The parts aren't mixed up, and each row belongs to its image: one at a time.
    model = image_features.resnet18(weights)
    for name in ("train", "test"):
        paths = getattr(images, name).images.paths
        alone = [image_features.features_of_files(model, [path]) for path in paths]
        found = getattr(splits, name).images.pixels.flatten(1)
        torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)
        distances = torch.cdist(found, found) + torch.eye(len(found)) * 9
        assert float(distances.min()) > 1e-3


def test_features_are_what_torchvision_s_own_network_computes(
    archive, weights, tmp_path
) -> None:
    """Resize, crop, normalisation and network, each written out by hand."""
    from torchvision.models import resnet18
    from torchvision.transforms.functional import pil_to_tensor

    random = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    file = tmp_path / "noise.png"
    Image.fromarray(random).save(file)
    network = resnet18(weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.fc = torch.nn.Identity()
    with Image.open(file) as picture:
        scaled = picture.resize((384, 256), Image.Resampling.BILINEAR)
    square = pil_to_tensor(scaled.crop((80, 16, 304, 240))).float() / 255
    mean, std = (
        torch.tensor(three).view(3, 1, 1)
        for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        expected = network.eval()(((square - mean) / std).unsqueeze(0))
    model = image_features.resnet18(weights)
    found = image_features.features_of_files(model, [file])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_stopped_extraction_leaves_the_old_file(
    archive, weights, monkeypatch
) -> None:
    file = archive.parent / waterbirds.FEATURES
    file.write_bytes(b"old")

    def broken(stream: IO[bytes], **_: object) -> None:
        stream.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(KeyboardInterrupt):
        image_features.extract_waterbirds(archive.parent, weights)
    assert file.read_bytes() == b"old"
    assert sorted(p.name for p in archive.parent.iterdir()) == [file.name, archive.name]


def test_the_script_names_what_is_wrong(archive, weights, monkeypatch) -> None:
    root = ["--root", str(archive.parent)]
    with pytest.raises(SystemExit, match=r"error: weights file .*none\.pth doesn't"):
        run_script(monkeypatch, *root, "--weights", "none.pth")
    with pytest.raises(SystemExit, match="error: waterbirds isn't there"):
        run_script(monkeypatch, "--root", str(archive), "--weights", str(weights))
    (archive / "000.Bird" / "image_0.jpg").write_text("no image")
    with pytest.raises(SystemExit, match=r"image_0\.jpg can't be read as an image"):
        run_script(monkeypatch, *root, "--weights", str(weights))
    assert not (archive.parent / waterbirds.FEATURES).exists()


def test_weights_that_can_t_be_downloaded_are_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match=r"resnet18-.*pth \(no network\).*--weights"):
        image_features.imagenet_weights()


def test_downloaded_weights_are_found_where_torch_keeps_them(
    monkeypatch, tmp_path, weights
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fetched(_: str, target: str, *__: object, **___: object) -> None:
        Path(target).write_bytes(weights.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetched)
    file = image_features.imagenet_weights()
    assert file.read_bytes() == weights.read_bytes()
    assert not image_features.resnet18(file).training


def test_a_network_in_training_mode_is_refused(weights: Path) -> None:
    model = image_features.resnet18(weights).train()
    with pytest.raises(UserError, match=r"call model\.eval\(\)"):
        image_features.features_of_files(model, [])
    with pytest.raises(UserError, match="batch_size is 0 and workers is 2"):
        image_features.features_of_files(model.eval(), [], batch_size=0)
    other = build("convnet", (3, 8, 8), 2)
    torch.save(other.state_dict(), weights.with_name("other.pth"))
    with pytest.raises(UserError, match="doesn't fit"):
        image_features.resnet18(weights.with_name("other.pth"))


def feature_arrays() -> dict[str, np.ndarray]:
    found = {}
    for part, groups in GROUPS.items():
        g = np.array(groups)
        found[f"x_{part}"] = np.outer(g, np.ones(5)).astype(np.float32)
        found[f"y_{part}"], found[f"g_{part}"] = g // 2, g
    return found


def test_features_without_a_source_are_read_too(tmp_path: Path) -> None:
    np.savez(tmp_path / waterbirds.FEATURES, **feature_arrays())
    splits = data.load("waterbirds_features", tmp_path, meta_per_class=2)
    assert splits.train.images.pixels[:, 4, 0, 0].tolist() == GROUPS["train"]
    assert splits.test.images.pixels[:, 4, 0, 0].tolist() == GROUPS["test"]
    assert sorted(splits.meta.groups.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g_val": None}, "lacks g_val"),
        ({"x_val": np.zeros((4, 5))}, "x_val is float64"),
        ({"x_val": np.zeros((4, 5, 1), np.float32)}, r"shape \(4, 5, 1\)"),
        ({"x_val": np.full((4, 5), np.nan, np.float32)}, "finite"),
        ({"x_val": np.zeros((4, 6), np.float32)}, "different lengths"),
        ({"x_val": np.zeros((3, 5), np.float32)}, "one whole number for each of the 3"),
        ({"y_test": np.zeros(4)}, "one whole number"),
        ({"y_test": np.array([0, 0, 0, 0])}, r"2 y \+ place"),
        ({"g_test": np.array([3, 0, 1, 4])}, r"2 y \+ place"),
    ],
)
def test_a_wrong_file_of_features_is_named(tmp_path, change, message) -> None:
    arrays = {k: v for k, v in (feature_arrays() | change).items() if v is not None}
    np.savez(tmp_path / waterbirds.FEATURES, **arrays)
    with pytest.raises(UserError, match=rf"waterbirds_features\.npz.*{message}"):
        data.load("waterbirds_features", tmp_path)


def test_missing_or_cut_features_name_the_script(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="extract_waterbirds_features"):
        data.load("waterbirds_features", tmp_path)
    file = tmp_path / waterbirds.FEATURES
    np.savez(file, **feature_arrays())
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 5):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match="extract_waterbirds_features"):
            data.load("waterbirds_features", tmp_path)
