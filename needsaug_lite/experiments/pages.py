"""Generated pages of the book: measured rows, and the papers' tables beside ours.

python -m needsaug_lite.experiments.pages --results book/results --out book/generated
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from needsaug_lite.data.groups import WATERBIRDS
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import comparisons
from needsaug_lite.experiments.facog_table import same_setting
from needsaug_lite.experiments.feature_mixing_table import feature_mixing_table
from needsaug_lite.experiments.hypergradient_table import hypergradient_tables
from needsaug_lite.experiments.implicit_augmentation_table import (
    implicit_augmentation_table,
)
from needsaug_lite.experiments.markdown_tables import markdown
from needsaug_lite.experiments.meta_sampling_table import meta_sampling_table
from needsaug_lite.experiments.needs_aware_table import needs_aware_table
from needsaug_lite.experiments.needs_page import needs_tables
from needsaug_lite.experiments.paper_tables import paper_results
from needsaug_lite.experiments.records import Record, load_records
from needsaug_lite.experiments.search_cost_table import search_cost_table
from needsaug_lite.experiments.search_page import search_tables
from needsaug_lite.experiments.search_table import architecture_search_tables
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
TITLES = {
    "needs_aware": "Needs-aware generation",
    "mgr": "Meta generative regularisation",
    "autobalance": "AutoBalance",
    "facog": "FACoG",
    "meta_iada": "Implicit adversarial data augmentation",
}
# How the papers name the methods that can be run here. A name counts only where the
# paper means the same algorithm; everything else stays empty.
PAPER_NAMES = {
    "cross_entropy": {"CE", "Cross-Entropy", "Vanilla ResNet"},
    "focal": {"Focal loss"},
    "class_balanced_focal": {"CB-Focal", "Class-Balanced Focal"},
    "class_balanced": {"Class-Balanced CE"},
    "deferred_reweighting": {"CE-DRW"},
    "ldam": {"LDAM", "LDAM loss"},
    "ldam_drw": {"LDAM-DRW"},
    "logit_adjustment": {"LA", "LA loss (τ = 1)", "Logit Adj."},
    "class_dependent_temperature": {"CDT loss"},
    "isda": {"ISDA"},
    "meta_weight_net": {"Meta-Weight-Net"},
    "meta_iada": {"Meta-IADA"},
    "autobalance_tau": {"AutoBalance: τ of LA loss"},
    "autobalance_l": {"AutoBalance: l"},
    "autobalance_delta": {"AutoBalance: Δ"},
    "autobalance_delta_l": {"AutoBalance: Δ & l"},
    "autobalance": {"AutoBalance: Δ & l, LA init"},
    "madao": {"MADAO"},
    "autobalance_pda": {"AutoBalance: PDA"},
    "autobalance_pda_delta_l": {"AutoBalance: PDA, Δ & l"},
    "reciprocal": {"Reciprocal"},
    "separate": {"Separate"},
    "mtl": {"MTL"},
    "sequential": {"Sequential"},
    "needs_aware": {"needs-aware (ours)", "needs-aware (ours): End-to-end"},
}
# Experiments that follow the recipe of one paper: their rows stand beside no other.
RECIPES = {
    "cifar10_lt": "meta_iada",
    "cifar100_lt": "meta_iada",
    "cifar_noisy": "meta_iada",
    "cifar100_lt_autobalance": "autobalance",
    "cifar10_lt_facog": "facog",
    "cifar100_lt_facog": "facog",
    "cifar100_lt_facog_losses": "facog",
    "gamo_full": "facog",
    "cifar100_lt_needs": "needs_aware",
}
_SAME_DATA = {"cifar10_lt": "cifar10", "cifar100_lt": "cifar100"}
_MEASURES: dict[str, Callable[[Record], float]] = {
    "accuracy_pct": lambda record: 100 * float(record.metrics["top1"]),
    "balanced_error_pct": lambda record: (
        100 * (1 - float(record.metrics["balanced_accuracy"]))
    ),
    "ece_pct": lambda record: 100 * float(record.metrics["ece"]),
    # facog Table 1, in GAMO's test protocol.
    "acsa": lambda record: float(record.metrics["gamo_test"]["balanced_accuracy"]),
    "gm": lambda record: float(record.metrics["gamo_test"]["geometric_mean"]),
}


def measured_tables(records: Sequence[Record]) -> str:
    """One section per experiment: settings, means with intervals, verdicts."""
    if not records:
        return "No row has been recorded yet.\n"
    parts = []
    for name in sorted({record.spec.experiment for record in records}):
        rows = [record for record in records if record.spec.experiment == name]
        rows.sort(key=lambda record: record.spec.seed)
        parts += [f"### `{name}`", _settings(rows), _measured(rows)]
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


def paper_tables(paper: str, records: Sequence[Record]) -> str:
    """Every table of one paper: each number beside the mean of our full rows."""
    numbers = paper_results(paper)
    parts = []
    for (table, dataset), group in numbers.groupby(["table", "dataset"], dropna=False):
        data = f": {dataset}" if isinstance(dataset, str) else ""
        numbered: list[Any] = group.to_dict("records")
        lines = [_paper_line(line, records) for line in numbered]
        body = markdown(pd.DataFrame(lines))
        title = f"{_table_name(str(table))}{data} ({len(lines)} numbers)"
        parts.append(f"~~~~{{dropdown}} {title}\n{body}\n~~~~")
    return "\n\n".join(parts) + "\n"


def _table_name(table: str) -> str:
    return f"Table {table.removeprefix('T')}"


def _paper_line(line: dict[str, Any], records: Sequence[Record]) -> dict[str, str]:
    spread = "" if pd.isna(line["std"]) else f" ± {line['std']:g}"
    setting = "" if pd.isna(line["setting"]) else str(line["setting"])
    what = ", ".join(part for part in (setting, str(line["metric"])) if part)
    ours = our_full_rows(line, records)
    measure = _MEASURES.get(str(line["metric"]))
    values = [measure(record) for record in ours] if measure else []
    return {
        "method": str(line["method"]),
        "setting, metric": what.replace(";", ", "),
        "paper": f"{line['value']:g}{spread}",
        "ours (full)": comparisons.interval(values).text(1.0, 2) if values else "",
    }


def our_full_rows(line: dict[str, Any], records: Sequence[Record]) -> list[Record]:
    """Full rows of the same method on the same data at the same imbalance.

    Rows that follow the recipe of another paper (`RECIPES`) are left out.
    """
    if line["paper"] == "facog":
        return [
            record
            for record in records
            if record.spec.profile == "full"
            and record.spec.evaluate_on == "test"
            and RECIPES.get(record.spec.experiment) == "facog"
            and same_setting(line, record)
        ]
    setting = str(line["setting"])
    name = _SAME_DATA.get(str(line["dataset"]))
    if name is None or not setting.startswith("imbalance=") or ";" in setting:
        return []
    imbalance = float(setting.removeprefix("imbalance="))
    return [
        record
        for record in records
        if record.spec.profile == "full"
        and record.spec.evaluate_on == "test"
        and record.spec.data.name == name
        and record.spec.data.imbalance == imbalance
        and line["method"] in PAPER_NAMES.get(record.spec.method, set())
        and RECIPES.get(record.spec.experiment, line["paper"]) == line["paper"]
    ]


def write_pages(results: Path, out: Path) -> list[Path]:
    """Write all generated tables: our rows, one file per paper, and times.

    Times come from `measurements/`, which lies beside the folder of results.
    """
    records = load_records(results)
    measured = results.parent / "measurements"
    pages = {
        "results_tables.md": measured_tables(records),
        "hypergradients.md": hypergradient_tables(measured / "hypergradients.json"),
        "implicit_augmentation.md": implicit_augmentation_table(
            measured / "implicit_augmentation.json"
        ),
        "search_cost.md": search_cost_table(measured / "search_cost.json"),
        "meta_sampling.md": meta_sampling_table(measured / "meta_sampling.json"),
        "needs_aware.md": needs_aware_table(measured / "needs_aware.json"),
        "needs_results.md": needs_tables(records),
        "architecture_search.md": architecture_search_tables(
            measured / "architecture_search.json"
        ),
        "search_results.md": search_tables(records),
        "feature_mixing.md": feature_mixing_table(measured / "feature_mixing.json"),
    }
    for paper in TITLES:
        pages[f"paper_{paper}.md"] = paper_tables(paper, records)
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
