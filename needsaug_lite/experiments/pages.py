"""Generated pages of the book: measured rows, and the papers' tables beside ours.

python -m needsaug_lite.experiments.pages --results book/results --out book/generated
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from needsaug_lite.data.groups import WATERBIRDS
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import (
    comparisons,
    needs_page,
    search_page,
    side_by_side_page,
)
from needsaug_lite.experiments.feature_mixing_table import feature_mixing_table
from needsaug_lite.experiments.hypergradient_table import hypergradient_tables
from needsaug_lite.experiments.implicit_augmentation_table import (
    implicit_augmentation_table,
)
from needsaug_lite.experiments.markdown_tables import markdown
from needsaug_lite.experiments.meta_sampling_table import meta_sampling_table
from needsaug_lite.experiments.needs_aware_table import needs_aware_table
from needsaug_lite.experiments.paper_map import paper_map
from needsaug_lite.experiments.paper_pages import paper_tables
from needsaug_lite.experiments.records import Record, read_rows
from needsaug_lite.experiments.search_cost_table import search_cost_table
from needsaug_lite.experiments.search_table import architecture_search_tables
from needsaug_lite.experiments.stale import StaleRow, stale_mark
from needsaug_lite.files import write_text

METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "geometric_mean": "geometric mean",
    "few": "few-shot classes",
    "ece": "ECE",
}
GROUP_METRICS = {
    "top1": "average accuracy",
    "worst_group_accuracy": "worst group",
    "average_group_accuracy": "mean over groups",
}
FAIRNESS_METRICS = {
    "adjusted_accuracy": "accuracy, cells weighted as in training",
    "average_group_accuracy": "mean over cells",
    "worst_group_accuracy": "worst cell",
    "deo": "DEO (of 200)",
}
ATTRIBUTE_METRICS = {
    "clt_accuracy": "CLT accuracy",
    "clt_precision": "CLT precision",
    "glt_accuracy": "GLT accuracy",
    "glt_precision": "GLT precision",
}
NOISE_METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "ece": "ECE",
    "noise_average_precision": "wrong labels found (average precision)",
}
NEEDS = (*needs_page.EXPERIMENTS, needs_page.GENERATORS)


def measured_tables(records: Sequence[Record], stale: Sequence[StaleRow] = ()) -> str:
    """One section per experiment: settings, means with intervals, stale rows."""
    names = {record.spec.experiment for record in records}
    names |= {row.experiment for row in stale}
    if not names:
        return "No row has been recorded yet.\n"
    parts = []
    for name in sorted(names):
        parts.append(f"### `{name}`")
        rows = [record for record in records if record.spec.experiment == name]
        if rows:
            rows.sort(key=lambda record: record.spec.seed)
            parts += [_settings(rows), _measured(rows)]
        parts += stale_mark([row for row in stale if row.experiment == name])
    return "\n\n".join(parts) + "\n"


def _settings(rows: Sequence[Record]) -> str:
    spec = rows[0].spec
    profiles = ", ".join(sorted({row.spec.profile for row in rows}))
    lengths = {row.spec.epochs for row in rows}
    epochs = dict.fromkeys(str(n) for n in (min(lengths), max(lengths)))
    tail = f", imbalance {spec.data.imbalance:g}" if spec.data.imbalance else ""
    lines = [
        f"Profile **{profiles}**; {spec.data.name}{tail}, "
        f"{sum(rows[0].class_counts):,} training images for seed {spec.seed}; "
        f"{spec.model.backbone}, {' to '.join(epochs)} epochs; measured on the "
        f"{'test' if spec.evaluate_on == 'test' else 'validation'} images."
    ]
    deviations = sorted({text for row in rows for text in row.spec.deviations})
    if deviations:
        lines.append("Deviations from the papers: " + "; ".join(deviations) + ".")
    return "\n\n".join(lines)


def _measured(rows: Sequence[Record]) -> str:
    """Mean ± interval per method and setting."""
    names = _metrics_of(rows)
    found = comparisons.summary(rows, tuple(names)).rename(columns=names)
    if rows[0].spec.evaluate_on == "test":
        return markdown(found)
    # Trials, of which there are many.
    return f"~~~~{{dropdown}} {len(found)} trials\n{markdown(found)}\n~~~~"


def _metrics_of(rows: Sequence[Record]) -> dict[str, str]:
    """What tells most about data with the bias of these rows: metric and its name."""
    data = [row.spec.data for row in rows]
    if any(part.group_counts or part.name in WATERBIRDS for part in data):
        return FAIRNESS_METRICS
    if any(part.colour for part in data):
        return GROUP_METRICS
    if any(part.attribute_imbalance is not None for part in data):
        return ATTRIBUTE_METRICS
    return NOISE_METRICS if any(part.noise for part in data) else METRICS


def _marked(page: str, stale: Sequence[StaleRow], experiments: Sequence[str]) -> str:
    """A page, and above it what is stale among the rows of its experiments."""
    mark = stale_mark([row for row in stale if row.experiment in experiments])
    return "\n\n".join([*mark, page])


def write_pages(results: Path, out: Path) -> list[Path]:
    """Write all generated tables: our rows, one file per paper, and times.

    Times come from `measurements/`, which lies beside the folder of results.
    """
    records, stale, _ = read_rows(results)
    measured = results.parent / "measurements"
    pages = {
        "results_tables.md": measured_tables(records, stale),
        "hypergradients.md": hypergradient_tables(measured / "hypergradients.json"),
        "implicit_augmentation.md": implicit_augmentation_table(
            measured / "implicit_augmentation.json"
        ),
        "search_cost.md": search_cost_table(measured / "search_cost.json"),
        "meta_sampling.md": meta_sampling_table(measured / "meta_sampling.json"),
        "needs_aware.md": needs_aware_table(measured / "needs_aware.json"),
        "needs_results.md": _marked(needs_page.needs_tables(records), stale, NEEDS),
        "architecture_search.md": architecture_search_tables(
            measured / "architecture_search.json"
        ),
        "search_results.md": _marked(
            search_page.search_tables(records), stale, search_page.EXPERIMENTS
        ),
        "feature_mixing.md": feature_mixing_table(measured / "feature_mixing.json"),
        "which_method_when.md": _marked(
            side_by_side_page.which_method_when(records, measured),
            stale,
            side_by_side_page.EXPERIMENTS,
        ),
    }
    for paper in paper_map().papers:
        pages[f"paper_{paper}.md"] = paper_tables(paper, records, stale)
    for name, text in pages.items():
        write_text(out / name, text)
    return [out / name for name in pages]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        write_pages(options.results, options.out)
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
