"""Turn the Waterbirds images into 512 features of an ImageNet ResNet-18 each.

Fetch the images first (fetch_waterbirds.py). The file of features appears when it is
complete; a call that is stopped leaves nothing behind.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from needsaug_lite.data import default_root
from needsaug_lite.errors import UserError
from needsaug_lite.models.image_features import extract_waterbirds


def main() -> None:
    """Read the command line, write the features, print where they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root", help="folder of the data sets; default: NEEDSAUG_DATA, or your cache"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        help="state dict of torchvision's ResNet-18; default: torchvision downloads it",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images a step")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        target = extract_waterbirds(
            default_root(given.root),
            given.weights,
            batch_size=given.batch_size,
            workers=given.workers,
            device=given.device,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    print(target)


if __name__ == "__main__":
    main()
