"""The command line that the scripts of this folder share."""

from __future__ import annotations

import argparse
import logging
import sys

from needsaug_lite.data.downloads import fetch
from needsaug_lite.errors import UserError


def main(name: str, description: str | None) -> None:
    """Fetch the data set `name` into `--root` and print where its files are."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--root", help="folder of the data sets; default: NEEDSAUG_DATA, or your cache"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for path in fetch(name, arguments.root):
            print(path)
    except UserError as error:
        sys.exit(f"error: {error}")
