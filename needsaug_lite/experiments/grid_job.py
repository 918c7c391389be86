"""Hold a lock while one run of a grid works, so that no run goes twice at once.

    python grid_job.py LOCK COMMAND ...
    python grid_job.py --gpus 0,1 --runs-per-gpu 2 LOCK COMMAND ...

The lock belongs to the open file, and the run inherits it: it is free again exactly
when the run has ended, however it ended, also if its driver was killed before it. A
place on a GPU is such a lock too.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def hold(file: Path, wait_message: str) -> Iterator[int]:
    """Hold the lock of a file; say so if another process has it, and wait.

    Args:
        file: the lock file; made if missing, never removed.
        wait_message: logged once if the lock is not free.

    Yields:
        The file's descriptor, to be handed to a child that shall keep the lock.

    Raises:
        OSError: if the file system has no locks.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _locked(descriptor, file):
            logger.warning("%s", wait_message)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def hold_gpu(gpus: Sequence[str], runs_per_gpu: int) -> Iterator[tuple[str, int]]:
    """Hold one of the places on the GPUs; wait until one is free.

    The locks lie in a folder of this machine and user, not of the grid: two grids at
    once share the GPUs.

    Args:
        gpus: what CUDA_VISIBLE_DEVICES calls them.
        runs_per_gpu: places on each.

    Yields:
        The GPU and the descriptor of its lock.
    """
    folder = Path(tempfile.gettempdir()) / f"needsaug-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # The first place of every GPU comes before the second of any.
    places = [(gpu, place) for place in range(runs_per_gpu) for gpu in gpus]
    while True:
        for gpu, place in places:
            file = folder / f"{gpu.replace('/', '_')}.{place}.lock"
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if _locked(descriptor, file):
                    yield gpu, descriptor
                    return
            finally:
                os.close(descriptor)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _locked(descriptor: int, file: Path) -> bool:
    """Lock the open file unless another process has; True if it is ours now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        message = "the file system of this folder has no locks (flock); use another"
        raise OSError(error.errno, message, str(file)) from error
    return True


def main(arguments: list[str]) -> None:
    """Take the lock and a GPU, then become the command, which keeps them to its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", help="as in CUDA_VISIBLE_DEVICES; else left alone")
    parser.add_argument("--runs-per-gpu", type=int, default=1)
    parser.add_argument("lock", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    waiting = "The same run is still going; waiting for its end"
    with ExitStack() as held:
        descriptors = [held.enter_context(hold(given.lock, waiting))]
        if given.gpus:
            places = hold_gpu(given.gpus.split(","), given.runs_per_gpu)
            gpu, place = held.enter_context(places)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            descriptors.append(place)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execvp(given.command[0], given.command)


if __name__ == "__main__":
    main(sys.argv[1:])
