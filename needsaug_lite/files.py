"""Files that are either whole or absent."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path that becomes `target` if the block succeeds, else vanishes.

    The temporary file lies in the folder of `target`, so that the final rename is
    one atomic operation of the file system.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; a row or a figure is as readable as any other.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` in one atomic step."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def write_sealed(file: Path, content: bytes) -> None:
    """Write bytes with their SHA-256 before them, for `read_sealed`.

    For what can be made again: where nothing can be written, nothing is kept.
    """
    with suppress(OSError), atomic_path(file) as temporary:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)


def read_sealed(file: Path) -> bytes | None:
    """What `write_sealed` wrote, or None if that isn't there, whole."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    seal = hashlib.sha256().digest_size
    whole = hashlib.sha256(content[seal:]).digest() == content[:seal]
    return content[seal:] if whole else None
