"""Hold a lock while one run of a grid works, so that no run goes twice at once.

    python grid_job.py LOCK COMMAND ...

The lock belongs to the open file, and the run inherits it: it is free again exactly
when the run has ended, however it ended, also if its driver was killed before it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def hold(file: Path, wait_message: str) -> Iterator[int]:
    """Hold the lock of a file; say so if another process has it, and wait.

    Args:
        file: the lock file; made if missing, never removed.
        wait_message: logged once if the lock is not free.

    Yields:
        The file's descriptor, to be handed to a child that shall keep the lock.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("%s", wait_message)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def main(arguments: list[str]) -> None:
    """Take the lock, then become the command, which keeps it to its end."""
    lock, *command = arguments
    logging.basicConfig(format="%(message)s")
    with hold(Path(lock), "The same run is still going; waiting for its end") as held:
        os.set_inheritable(held, True)
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
