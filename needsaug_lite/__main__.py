"""`python -m needsaug_lite` is `needsaug`; torchrun starts it in several processes."""

from __future__ import annotations

import logging
import os
import sys

from needsaug_lite.cli import main


def _start() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # All but `run` would do the same thing in every process, to the same files.
        if sys.argv[1:2] != ["run"]:
            sys.exit("needsaug: torchrun can start `run` alone; call needsaug instead")
        if os.environ.get("RANK") != "0":
            logging.disable(logging.INFO)
    main()


_start()
