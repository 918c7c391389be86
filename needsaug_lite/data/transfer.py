"""One file from the first of several addresses that has it, resumed and verified."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pooch
import requests
import urllib3
from tqdm import tqdm

from needsaug_lite.errors import UserError
from needsaug_lite.files import digest

_TRIES = 20  # per address, as long as each try brings the file further
_TIMEOUT = (15, 60)  # seconds to connect, and between two blocks
_BLOCK = 2**18
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """One file to download.

    Attributes:
        file: where it belongs, relative to the root.
        urls: addresses of the same bytes, tried in turn.
        md5: published MD5, or None where no source states one; then `check` decides
            whether the contents are right.
        sha256: published SHA-256, or None where no source states one.
        unpacks_to: for a tar archive, the folder that it makes in the root.
        members: for a tar archive, MD5 of files in it, by path relative to the root.
        check: for a tar archive, raises a UserError if the unpacked folder holds
            something else than published.
    """

    file: str
    urls: tuple[str, ...]
    md5: str | None
    sha256: str | None = None
    unpacks_to: str | None = None
    members: dict[str, str] = field(default_factory=dict)
    check: Callable[[Path], None] | None = None

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
        if not path.is_file():
            return False
        if self.md5 is not None and digest(path, "md5") != self.md5:
            return False
        return self.sha256 is None or digest(path) == self.sha256

    def wrong_members(self, root: Path) -> list[str]:
        """Members that are missing below `root` or have another MD5."""
        return [
            name
            for name, md5 in self.members.items()
            if not (root / name).is_file() or digest(root / name, "md5") != md5
        ]


def download(remote: Remote, base: Path, name: str, progress: bool) -> None:
    """Put one file under its final name, from the first address that has it.

    Args:
        remote: the file.
        base: root folder of the data sets.
        name: of the data set, for messages.
        progress: show a bar where the output is a terminal.

    Raises:
        UserError: if no address gives the right file: which were tried, what to do.
    """
    target = base / remote.file
    target.parent.mkdir(parents=True, exist_ok=True)
    downloader = _Resuming(target.with_name(target.name + ".part"), remote, progress)
    failures = []
    for url in remote.urls:
        reason = _try(url, target, downloader)
        if reason is None:
            return
        failures.append(f"  {url}: {reason}")
        _log.warning("%s: %s", url, reason)
    part = downloader.part
    kept = f" ({part.name} beside it will be continued)" if part.exists() else ""
    raise UserError(
        f"{target.name} of {name} can't be downloaded. Tried:\n"
        + "\n".join(failures)
        + f"\nRun the command again later{kept}. Or download the file by hand, put it "
        f"at\n  {target}\nand run the command again: it will be checked"
        + (f" (MD5 {remote.md5})" if remote.md5 else "")
        + (" and unpacked" if remote.unpacks_to else "")
    )


def _try(url: str, target: Path, downloader: _Resuming) -> str | None:
    """Download from one address; None if the file is there, else why it isn't."""
    reason, md5 = "", downloader.remote.md5
    for _ in range(_TRIES):
        before = _size(downloader.part)
        try:
            pooch.retrieve(
                url,
                known_hash=f"md5:{md5}" if md5 else None,
                fname=target.name,
                path=target.parent,
                downloader=downloader,
            )
            return None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _in_words(error)
            worth_another_try = _size(downloader.part) > before
        except ValueError as error:
            # The wrong bytes are gone. If they began with an older part file, that
            # one may have been damaged: start afresh.
            _log.info("%s", error)
            reason = "it sends another file than the published one (wrong checksum)"
            worth_another_try = before > 0
        if not worth_another_try:
            break
    return reason


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
        self.part.replace(output_file)

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
