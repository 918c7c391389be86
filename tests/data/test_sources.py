"""Every source read right, and every mistake of a user answered in their words."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from needsaug_lite import data
from needsaug_lite.data import folders
from needsaug_lite.data.published import SOURCES, read_idx, read_pickle
from needsaug_lite.errors import UserError

RANDOM = np.random.default_rng(0)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# --- digits -------------------------------------------------------------------


def test_digits_need_no_files_and_keep_their_test_part():
    one, two = data.load("digits", seed=0), data.load("digits", seed=1, imbalance=20)
    assert one.num_classes == 10
    assert one.image_shape == (1, 8, 8)
    assert len(one.train) + len(one.test) == 1797
    share = one.test.counts(10) / (one.test.counts(10) + one.class_counts)
    assert bool(((share - 1 / 3).abs() < 0.01).all())
    assert one.test.labels.equal(two.test.labels)
    assert one.test.images.fingerprint() == two.test.images.fingerprint()
    pixels = one.train.images.pixels
    assert pixels.dtype == torch.uint8
    assert int(pixels.max()) == 255


def test_the_class_prior_sums_to_one():
    splits = data.load("digits", imbalance=10)
    assert float(splits.class_prior.sum()) == pytest.approx(1)
    assert float(splits.class_prior[0] / splits.class_prior[9]) == pytest.approx(
        10, rel=0.2
    )


# --- published files of the MNIST and CIFAR families ----------------------------


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + array.ndim}i", 2048 + array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A root with a tiny MNIST, its checksums taken as the published ones."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    arrays, resources = {}, []
    for part, count in (("train", 30), ("t10k", 20)):
        arrays[part] = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        files = {
            f"{part}-images-idx3-ubyte.gz": idx(arrays[part]),
            f"{part}-labels-idx1-ubyte.gz": idx((np.arange(count) % 10).astype("u1")),
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
            resources.append((name, md5(content)))
    monkeypatch.setattr(SOURCES["mnist"].dataset, "resources", resources)
    return tmp_path, arrays


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A root with a tiny CIFAR-10 and CIFAR-100."""
    pixels = {}
    for name, source in SOURCES.items():
        if not name.startswith("cifar"):
            continue
        dataset, key = source.dataset, source.label_key
        folder = tmp_path / source.folder
        folder.mkdir()
        for attribute in ("train_list", "test_list"):
            entries = []
            for file, _ in getattr(dataset, attribute):
                array = RANDOM.integers(0, 256, (20, 3 * 32 * 32), dtype=np.uint8)
                content = pickle.dumps(
                    {"data": array, key: [i % 10 for i in range(20)]}
                )
                pixels[name, file] = array
                (folder / file).write_bytes(content)
                entries.append([file, md5(content)])
            monkeypatch.setattr(dataset, attribute, entries)
        names = [f"class {i}" for i in range(10)]
        content = pickle.dumps({dataset.meta["key"]: names})
        (folder / dataset.meta["filename"]).write_bytes(content)
        monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(content)})
    return tmp_path, pixels


def test_mnist_files_are_read(mnist):
    root, arrays = mnist
    splits = data.load("mnist", root)
    assert np.array_equal(splits.train.images.pixels[:, 0].numpy(), arrays["train"])
    assert np.array_equal(splits.test.images.pixels[:, 0].numpy(), arrays["t10k"])
    assert splits.train.labels.tolist() == [i % 10 for i in range(30)]
    assert splits.train.labels.dtype == torch.int64
    assert splits.class_names[:2] == ("0", "1")


def test_grey_images_are_repeated_where_colour_is_asked_for(mnist):
    grey, colour = (data.load("mnist", mnist[0], channels=c) for c in (None, 3))
    assert colour.image_shape == (3, 28, 28)
    for channel in range(3):
        one = colour.train.images.pixels[:, channel]
        assert one.equal(grey.train.images.pixels[:, 0])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_files_are_read(cifar, name):
    root, pixels = cifar
    splits = data.load(name, root)
    first = SOURCES[name].dataset.train_list[0][0]
    expected = pixels[name, first].reshape(20, 3, 32, 32)  # planes, not pixels
    assert np.array_equal(splits.train.images.pixels[:20].numpy(), expected)
    assert len(splits.train) == 20 * len(SOURCES[name].dataset.train_list)
    assert splits.train.labels.tolist()[:12] == [*range(10), 0, 1]
    assert splits.class_names[3] == "class 3"


def test_root_is_the_argument_then_the_variable_then_the_cache(mnist, monkeypatch):
    monkeypatch.setenv("NEEDSAUG_DATA", str(mnist[0]))
    assert len(data.load("mnist").train) == 30
    assert data.default_root("/elsewhere") == Path("/elsewhere")
    monkeypatch.delenv("NEEDSAUG_DATA")
    assert "needsaug_lite" in str(data.default_root())


def test_missing_root_names_file_and_command(tmp_path):
    with pytest.raises(UserError) as caught:
        data.load("mnist", tmp_path / "nowhere")
    for part in ("nowhere/MNIST/raw", "missing", "needsaug data fetch mnist", "--root"):
        assert part in str(caught.value)


def test_wrong_checksum_names_file_and_both_sums(mnist):
    file = mnist[0] / "MNIST/raw/t10k-labels-idx1-ubyte.gz"
    right = md5(file.read_bytes())
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(UserError) as caught:
        data.load("mnist", mnist[0])
    message = str(caught.value)
    for part in (str(file), right, md5(file.read_bytes()), "Delete it", "fetch mnist"):
        assert part in message


def test_a_pickle_with_a_wrong_checksum_is_never_opened(cifar, monkeypatch):
    root, _ = cifar
    (root / "cifar-10-batches-py/test_batch").write_bytes(b"cos\nabort\n(tR.")
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("it was opened"))
    with pytest.raises(UserError, match="test_batch has MD5"):
        data.load("cifar10", root)


def test_truncated_gzip_is_named_at_every_length(tmp_path):
    content = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    file = tmp_path / "images.gz"
    file.write_bytes(content)
    assert read_idx(file, 2051).shape == (2, 3, 4)
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"images\.gz"):
            read_idx(file, 2051)


def test_an_idx_file_of_another_kind_or_length_is_refused(tmp_path):
    raw = gzip.decompress(idx(np.arange(24, dtype=np.uint8)))
    file = tmp_path / "images.gz"
    for content in (raw, raw[:-1], *(raw[:n] for n in range(17))):
        file.write_bytes(gzip.compress(content))
        with pytest.raises(UserError, match="no IDX file"):
            read_idx(file, 2051)
    file.write_bytes(gzip.compress(raw + b"x"))
    with pytest.raises(UserError, match="no IDX file"):
        read_idx(file, 2049)


def test_truncated_pickle_is_named_at_every_length(tmp_path):
    array = np.arange(12, dtype=np.uint8).reshape(2, 6)
    content = pickle.dumps({"data": array, "labels": [0, 1]}, protocol=2)
    file = tmp_path / "data_batch_1"
    file.write_bytes(content)
    assert read_pickle(file)["labels"] == [0, 1]
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"data_batch_1 can't be read.*fetch"):
            read_pickle(file)


# --- .npz ---------------------------------------------------------------------


def arrays(count: int = 12, shape: tuple[int, ...] = (4, 5), classes: int = 3):
    return {
        "x_train": RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8),
        "y_train": np.arange(count) % classes,
        "x_test": RANDOM.integers(0, 256, (classes, *shape), dtype=np.uint8),
        "y_test": np.arange(classes),
    }


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 5), (1, 4, 5)), ((4, 5, 3), (3, 4, 5)), ((3, 4, 5), (3, 4, 5))],
)
def test_npz_layouts(tmp_path, shape, expected):
    content = arrays(shape=shape)
    np.savez(tmp_path / "a.npz", **content)
    splits = data.load(tmp_path / "a.npz")
    assert splits.image_shape == expected
    assert splits.class_names == ("0", "1", "2")
    pixels, raw = splits.train.images.pixels.numpy(), content["x_train"]
    if shape[-1] == 3:
        assert np.array_equal(pixels[:, 2], raw[..., 2])
    else:
        assert np.array_equal(pixels.reshape(raw.shape), raw)


def test_npz_may_name_its_classes(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(), class_names=["cat", "dog", "cow"])
    assert data.load(tmp_path / "a.npz").class_names == ("cat", "dog", "cow")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, "lacks y_test"),
        ({"x_train": np.zeros((12, 4, 5))}, "float64; store pixels as uint8"),
        ({"x_train": np.zeros((12, 5), np.uint8)}, r"shape \(12, 5\)"),
        ({"x_test": np.zeros((3, 9, 9), np.uint8)}, "test images"),
        ({"y_train": np.arange(11) % 3}, "12 images, but y_train 11 labels"),
        ({"y_train": np.linspace(0, 1, 12)}, "whole numbers"),
        ({"y_train": np.arange(12) % 3 - 1}, "4 labels lie outside 0..1.*first is -1"),
        ({"y_test": np.array([0, 1, 3])}, "1 labels lie outside 0..2.*is 3 at pos"),
        ({"y_train": np.zeros(12, int)}, "1 class.*at least two"),
        ({"class_names": np.array(["only"])}, "1 class.*at least two"),
        ({"class_names": np.array(["a", "b"])}, "outside 0..1"),
    ],
)
def test_a_wrong_npz_is_named_with_what_is_expected(tmp_path, change, message):
    content = {k: v for k, v in {**arrays(), **change}.items() if v is not None}
    np.savez(tmp_path / "wrong.npz", **content)
    with pytest.raises(UserError, match=message) as caught:
        data.load(tmp_path / "wrong.npz")
    assert "wrong.npz" in str(caught.value)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays(count=200))
    whole = buffer.getvalue()
    plain = io.BytesIO()
    np.save(plain, np.zeros(3))
    damaged = bytearray(whole)
    damaged[100:400] = bytes(300)
    file = tmp_path / "broken.npz"
    for content in (b"", b"text", whole[:-40], whole[:700], plain.getvalue(), damaged):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.npz can't be read"):
            data.load(file)
    with pytest.raises(UserError, match=r"absent\.npz can't be read"):
        data.load(tmp_path / "absent.npz")


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UserError, match="digits, mnist, fashion_mnist, cifar10"):
        data.load("imagenet")


# --- folders of images ----------------------------------------------------------


def write_images(folder: Path, classes: dict[str, int], colour: bool = True) -> None:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shape = (20, 30, 3) if colour else (20, 30)
            pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")


def test_a_folder_is_divided_once_for_all_seeds(tmp_path):
    write_images(tmp_path, {"dog": 10, "cat": 5})
    splits, other = (data.load(tmp_path, image_size=8, seed=s) for s in (0, 1))
    assert splits.class_names == ("cat", "dog")
    assert splits.image_shape == (3, 8, 8)
    assert splits.class_counts.tolist() == [4, 8]
    assert splits.test.counts(2).tolist() == [1, 2]
    assert splits.checksum() == other.checksum()


def test_a_folder_with_train_and_test_is_taken_as_it_is(tmp_path):
    write_images(tmp_path / "train", {"a": 3, "b": 4})
    write_images(tmp_path / "val", {"a": 2, "b": 1})
    splits = data.load(tmp_path)
    assert splits.class_counts.tolist() == [3, 4]
    assert splits.test.counts(2).tolist() == [2, 1]


def test_classes_that_only_the_test_folder_has_are_refused(tmp_path):
    write_images(tmp_path / "train", {"a": 3, "b": 4})
    write_images(tmp_path / "test", {"a": 2, "b": 1, "zebra": 1})
    with pytest.raises(UserError, match="lacks: zebra"):
        data.load(tmp_path)


def test_depth_follows_the_images_unless_it_is_given(tmp_path):
    write_images(tmp_path, {"a": 4, "b": 4}, colour=False)
    assert data.load(tmp_path).image_shape[0] == 1
    assert data.load(tmp_path, channels=3).image_shape[0] == 3
    for i in range(9):  # files that sort before the images don't hide their colour
        (tmp_path / "b" / f"000 note {i}.txt").write_text("no image")
    rgb = Image.fromarray(RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    rgb.save(tmp_path / "b" / "000.png")
    assert data.load(tmp_path).image_shape[0] == 3


def test_decoding_keeps_the_middle_square_and_the_upright_view(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:15] = 200  # the left half of the middle square
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    middle = folders.decode(file, 3, 10)
    assert int(middle[:, :, :5].min()) == 200
    assert int(middle[:, :, 5:].max()) == 0
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half a circle
    Image.fromarray(pixels).save(file, exif=exif)
    assert folders.decode(file, 3, 10).equal(middle.flip(1, 2))


def test_sixteen_bit_images_keep_their_greys(tmp_path):
    ramp = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert folders.decode(tmp_path / "a.png", 1, 16).flatten().tolist() == [*range(256)]
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="32-bit pixels have no fixed range"):
        folders.decode(tmp_path / "a.tif", 1, 16)


def test_one_class_is_refused(tmp_path):
    write_images(tmp_path, {"only": 3})
    with pytest.raises(UserError, match=r"1 class folder.*only.*at least two"):
        data.load(tmp_path)


def test_a_class_without_images_or_with_one_is_refused(tmp_path):
    write_images(tmp_path, {"a": 3, "b": 1})
    with pytest.raises(UserError, match=r"class 'b' in .* has one image"):
        data.load(tmp_path)
    (tmp_path / "b" / "000.png").rename(tmp_path / "b" / "000.txt")
    with pytest.raises(UserError, match="b holds no readable image"):
        data.load(tmp_path)


@pytest.fixture(params=["in memory", "streamed"])
def broken_folder(request, tmp_path, monkeypatch):
    """14 images, three of them broken in different ways."""
    if request.param == "streamed":
        monkeypatch.setattr(folders, "MEMORY_LIMIT", 0)
    write_images(tmp_path, {"a": 6, "b": 5})
    picture = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    picture.save(tmp_path / "b" / "cut.jpg")
    whole = (tmp_path / "b" / "cut.jpg").read_bytes()
    (tmp_path / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "text.png").write_text("no image")
    bomb = bytearray(b"BM" + bytes(52))
    bomb[10], bomb[14], bomb[26], bomb[28] = 54, 40, 1, 24
    bomb[20:22] = bomb[24:26] = b"\xff\x7f"  # two billion pixels a side
    (tmp_path / "a" / "bomb.bmp").write_bytes(bomb)
    return tmp_path


def test_unreadable_images_are_counted_and_named(broken_folder):
    with pytest.raises(UserError) as caught:
        data.load(broken_folder)
    message = str(caught.value)
    for part in ("3 of 14", "b/cut.jpg", "a/text.png", "a/bomb.bmp", "--skip-broken"):
        assert part in message


def test_skip_broken_leaves_them_out_and_says_how_many(broken_folder):
    splits = data.load(broken_folder, skip_broken=True)
    assert splits.provenance["skipped"] == 3
    assert (splits.class_counts + splits.test.counts(2)).tolist() == [6, 5]
    everything = torch.arange(len(splits.train)).split(4)
    assert sum(len(p) for p in splits.train.images.stream(everything)) == 9


# --- options ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imbalance": 0.5}, "at least 1"),
        ({"imbalance": 2, "n_max": 0}, "n_max is 0"),
        ({"imbalance": 1000}, "no image"),
        ({"n_max": 100_000}, "to be taken"),
        ({"val_per_class": -1}, "can't be negative"),
        ({"meta_per_class": 500}, "500 of them can't"),
        ({"channels": 2}, "1 .grey. or 3"),
        ({"image_size": 0}, "at least 1 pixel"),
        ({"noise": 1.5}, "between 0 and 1"),
        ({"noise": 0.5, "noise_kind": "pairs"}, "uniform, flip or flip2"),
        ({"val_per_class": 1, "seed": -1}, "at least 0"),
        ({"counts": [1, 2]}, "2 counts were given for 10 classes"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        data.load("digits", **options)


def test_colour_images_are_not_turned_grey_unasked(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(shape=(4, 5, 3)))
    with pytest.raises(UserError, match=r"a\.npz holds colour images"):
        data.load(tmp_path / "a.npz", channels=1)


def test_grey_images_meet_a_colour_normalisation():
    splits = data.load("digits")
    batches = data.Batches(splits.train, 8, data.IMAGENET)
    with pytest.raises(UserError, match=r"1 channel.*channels=3"):
        next(batches.epoch(0))
    colour = data.load("digits", channels=3)
    batch = next(data.Batches(colour.train, 8, data.IMAGENET).epoch(0))
    assert batch.images.shape == (8, 3, 8, 8)
