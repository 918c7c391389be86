"""The picture of the README, drawn from committed rows.

python -m needsaug_lite.plots.overview --results book/results --out FILE.png
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure

from needsaug_lite.experiments.comparisons import interval, label
from needsaug_lite.experiments.records import Record, load_records
from needsaug_lite.files import atomic_path
from needsaug_lite.plots import style

EXPERIMENT = "fashion_mnist_lt"
METHODS = ("CE", "LA", "LDAM-DRW")
# Where the PNG says which rows it shows.
KEY = "rows"


def overview_figure(records: Sequence[Record], class_names: Sequence[str]) -> Figure:
    """Recall of every class for three methods, largest class first.

    Args:
        records: rows of one experiment with one class order for all seeds.
        class_names: C names.

    Returns:
        One panel: mean recall with its 95% interval over seeds, in percent, and the
        number of training images below each name.
    """
    counts = records[0].class_counts
    ticks = [f"{name}\n{n}" for name, n in zip(class_names, counts, strict=True)]
    place = np.arange(len(counts))
    with style.look():
        figure, axes = pyplot.subplots(figsize=(9, 3.8))
        for shift, method in enumerate(METHODS):
            rows = [record for record in records if label(record) == method]
            if not rows:
                continue
            columns = zip(*(row.metrics["per_class"] for row in rows), strict=True)
            spreads = [interval(values) for values in columns]
            axes.errorbar(
                place + 0.12 * (shift - 1),
                [100 * spread.mean for spread in spreads],
                [50 * (spread.high - spread.low) for spread in spreads],
                marker=style.MARKERS[shift],
                color=style.PALETTE[shift],
                linewidth=1.2,
                label=f"{method} ({len(rows)} seeds)",
            )
        axes.set(
            ylabel="accuracy on the class, %",
            xticks=place,
            ylim=(-3, 103),
        )
        axes.set_xticklabels(ticks, fontsize=8)
        figure.legend(ncols=len(METHODS), loc="outside upper center")
    return figure


def fingerprint(records: Sequence[Record]) -> str:
    """A hash that changes when a shown row changes."""
    shown = sorted(
        (record.run_id, str(record.metrics["per_class"]))
        for record in records
        if label(record) in METHODS
    )
    return hashlib.sha256(str(shown).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture from the rows and write it."""
    from needsaug_lite.data.published import SOURCES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    records = load_records(options.results, EXPERIMENT)
    if not records:
        parser.exit(2, f"no rows of {EXPERIMENT} below {options.results}\n")
    figure = overview_figure(records, SOURCES["fashion_mnist"].dataset.classes)
    with atomic_path(options.out) as temporary:
        figure.savefig(
            temporary, format="png", dpi=130, metadata={KEY: fingerprint(records)}
        )
    pyplot.close(figure)


if __name__ == "__main__":
    main()
