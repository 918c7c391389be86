"""The command `needsaug`.

Every command imports what it needs when it is called: `--help` answers at once.
"""

from __future__ import annotations

import json
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from needsaug_lite.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from needsaug_lite.experiments.spec import Spec

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn how to augment: run, repeat and read the experiments of the book.",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: fetch and list.")
app.add_typer(data_app, name="data")

RESULTS = Path("book/results")
Root = Annotated[
    Path | None,
    typer.Option(help="Folder of the data sets; else NEEDSAUG_DATA, else the cache."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Results = Annotated[Path, typer.Option(help="Folder of the rows.")]
Skip = Annotated[bool, typer.Option(help="Leave unreadable image files out.")]
Size = Annotated[int | None, typer.Option(help="Height and width of folder images.")]
Channels = Annotated[int | None, typer.Option(help="1 grey, 3 colour; default: look.")]


class By(StrEnum):
    """What a need is measured by."""

    LOSS = "loss"
    ERROR = "error"


def main() -> None:
    """Run the command; a user's mistake becomes one message and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        app()
    except UserError as error:
        typer.echo(f"needsaug: {error}", err=True)
        sys.exit(2)


@app.command()
def run(
    spec: Annotated[
        Path | None, typer.Option(help="Settings from a JSON or YAML file.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Name of the method.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set, folder of class folders, or .npz.")
    ] = None,
    imbalance: Annotated[
        float | None, typer.Option(help="Long tail, e.g. 100.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Network.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="State dict for the backbone, from your disk.")
    ] = None,
    image_size: Size = None,
    channels: Channels = None,
    skip_broken: Skip = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Fixes data, network, order.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other value: --set optimisation.lr=0.05"),
    ] = None,
    results: Results = RESULTS,
    root: Root = None,
    device: Device = "cpu",
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to write while training.")
    ] = None,
    every: Annotated[int, typer.Option(help="Epochs between checkpoints.", min=1)] = 1,
    resume: Annotated[
        bool, typer.Option(help="Continue from the checkpoint if it exists.")
    ] = False,
    save_model: Annotated[
        Path | None, typer.Option(help="Write the trained network, for `predict`.")
    ] = None,
) -> None:
    """Train one method, evaluate it, and write the row."""
    given: list[tuple[str, Any]] = [
        ("method", method),
        ("data.name", data),
        ("data.imbalance", imbalance),
        ("data.image_size", image_size),
        ("data.channels", channels),
        ("data.skip_broken", skip_broken or None),
        ("model.backbone", backbone),
        ("model.weights", None if weights is None else str(weights)),
        ("epochs", epochs),
        ("seed", seed),
    ]
    checked = _spec(spec, given, setting or [])
    if resume and checkpoint is None:
        raise UserError("--resume needs --checkpoint FILE")
    _check_device(device)
    from needsaug_lite.experiments import artefacts, records, runner

    row = records.row_path(checked, results)
    if row.exists() and save_model is None:
        records.read_record(row)
        typer.echo(f"{row} exists; nothing to do")
        return
    ready = runner.prepare(checked, root, device)
    record = runner.run(
        checked,
        results=results,
        device=device,
        checkpoint=checkpoint,
        every=every,
        resume=resume,
        prepared=ready,
    )
    if save_model is not None:
        artefacts.save_classifier(save_model, checked, ready)
    scores = record.metrics
    typer.echo(
        f"{checked.method}: balanced accuracy {scores['balanced_accuracy']:.1%}, "
        f"top-1 {scores['top1']:.1%} on {checked.evaluate_on}\n{row}"
    )


@app.command()
def grid(
    file: Annotated[Path, typer.Argument(help="Grid file (YAML).")],
    results: Results = RESULTS,
    root: Root = None,
    device: Device = "cpu",
    cores: Annotated[int, typer.Option(help="Runs side by side.")] = 1,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="Go on after a failed run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would run.")
    ] = False,
) -> None:
    """Compute the rows of a grid that don't stand yet."""
    _check_device(device)
    from needsaug_lite.experiments.grid import run_grid

    report = run_grid(file, results, root, cores, keep_going, dry_run, device)
    typer.echo(report.summary())
    raise typer.Exit(report.exit_code)


@app.command()
def needs(
    source: Annotated[
        Path, typer.Argument(help="Folder of class folders, .npz, or predictions CSV.")
    ],
    budget: Annotated[int, typer.Option(help="Images to divide among classes.")] = 1000,
    by: Annotated[
        By, typer.Option(help="Measure the need by loss or error.")
    ] = By.LOSS,
    temperature: Annotated[float, typer.Option(help="1: Eq. 3; larger: evener.")] = 1.0,
    floor: Annotated[float, typer.Option(help="Least share of a class.")] = 0.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for needs.csv, needs.json, needs.png.")
    ] = None,
    learning_curve: Annotated[
        bool, typer.Option(help="Also learn from half and a quarter of the images.")
    ] = False,
    backbone: Annotated[str, typer.Option(help="Network to train.")] = "convnet",
    weights: Annotated[
        Path | None, typer.Option(help="State dict for the backbone, from your disk.")
    ] = None,
    image_size: Size = None,
    channels: Channels = None,
    skip_broken: Skip = False,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 30,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 3,
    seed: Annotated[int, typer.Option(help="Fixes folds, network, order.")] = 0,
    root: Root = None,
    device: Device = "cpu",
) -> None:
    """Say which classes need more images, how many, and how sure that is.

    For a folder or .npz, a network is trained by cross-validation; for a CSV of
    predictions (column `label`, columns `p:CLASS`) nothing is trained.
    """
    from needsaug_lite.experiments import needs as needs_room
    from needsaug_lite.experiments.spec import Spec

    curve = None
    if source.suffix == ".csv":
        if learning_curve:
            raise UserError("a learning curve needs the images, not predictions")
        predictions, names = needs_room.read_predictions(source)
        counts = predictions.labels.bincount(minlength=len(names))
    else:
        _check_device(device)
        from needsaug_lite import data as data_room

        values = {
            "data": {"name": str(source)},
            "model": {"backbone": backbone, "weights": weights},
            "optimisation": {"batch_size": 64},
            "epochs": epochs,
            "seed": seed,
        }
        spec = Spec.checked(values)
        splits = data_room.load(
            str(source),
            root,
            image_size=image_size,
            channels=channels,
            skip_broken=skip_broken,
        )
        names, counts = splits.class_names, splits.class_counts
        predictions = needs_room.cross_validated(
            splits, spec, folds=folds, device=device
        )
        if learning_curve:
            curve = needs_room.learning_curve(splits, spec, folds=folds, device=device)
    report = needs_room.NeedsReport.from_predictions(
        predictions,
        names,
        counts,
        budget=budget,
        temperature=temperature,
        floor=floor,
        by=by.value,
        seed=seed,
    )
    table = report.table()
    if curve is not None:
        table = table.merge(
            needs_room.gain_per_doubling(curve).rename_axis("class").reset_index()
        )
    typer.echo(_plain(table))
    if out is not None:
        _write_needs(out, table, report.to_json())


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="File of `needsaug run --save-model`.")],
    images: Annotated[Path, typer.Argument(help="An image or a folder of images.")],
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("predictions.csv"),
    device: Device = "cpu",
) -> None:
    """Predict the classes of images and write them with all probabilities."""
    _check_device(device)
    from needsaug_lite.experiments import artefacts
    from needsaug_lite.files import write_text

    if not images.exists():
        raise UserError(f"{images} doesn't exist")
    saved = artefacts.load_classifier(model, device)
    frame = artefacts.predict_files(saved, images, device)
    write_text(out, frame.to_csv(index=False, float_format="%.6g"))
    typer.echo(f"{len(frame)} predictions in {out}")


@app.command()
def results(
    folder: Annotated[Path, typer.Argument(help="Folder of the rows.")] = RESULTS,
    experiment: Annotated[str | None, typer.Option(help="Only this one.")] = None,
) -> None:
    """Show mean and 95% interval over seeds for every method of every experiment."""
    from needsaug_lite.experiments import comparisons, load_records

    rows = load_records(folder, experiment)
    if not rows:
        raise UserError(f"no rows below {folder}; `needsaug run` writes one")
    columns = ("balanced_accuracy", "geometric_mean", "top1", "ece")
    for name in sorted({row.spec.experiment for row in rows}):
        group = [row for row in rows if row.spec.experiment == name]
        profiles = ", ".join(sorted({row.spec.profile for row in group}))
        typer.echo(f"\n{name} ({profiles}; percent, mean ± 95% interval)")
        typer.echo(_plain(comparisons.summary(group, columns)))


@app.command()
def doctor(root: Root = None) -> None:
    """Say what is installed, which device and data are there, and what would run."""
    from needsaug_lite.experiments.doctor import examine

    for line in examine(root):
        typer.echo(line)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion_mnist, cifar10, ...")],
    root: Root = None,
) -> None:
    """Download a data set, verify it, and put it into place."""
    from needsaug_lite.data.downloads import fetch
    from needsaug_lite.data.sources import default_root

    for path in fetch(name, default_root(root)):
        typer.echo(str(path))


@data_app.command("list")
def data_list(root: Root = None) -> None:
    """List the data sets and whether their files are there and right."""
    from needsaug_lite.experiments.doctor import data_lines

    for line in data_lines(root):
        typer.echo(line)


def _spec(file: Path | None, given: list[tuple[str, Any]], settings: list[str]) -> Spec:
    """The spec of a file, changed by the options and then by `--set`."""
    import yaml

    from needsaug_lite.experiments.spec import Spec

    values: dict[str, Any] = {}
    if file is not None:
        values = Spec.from_file(file).model_dump(mode="json")
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(
                f"--set {setting}: write NAME=VALUE, e.g. optimisation.lr=1"
            )
        given = [*given, (name, yaml.safe_load(text))]
    for name, value in given:
        if value is not None:
            _put(values, name.split("."), value)
    return Spec.checked(values)


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"{'.'.join(keys)}: {key} is a single value")
    values[keys[-1]] = value


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} can't be used: {reason}") from error


def _plain(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format=lambda value: f"{value:.3f}")


def _write_needs(folder: Path, table: pd.DataFrame, report: str) -> None:
    from needsaug_lite.files import atomic_path, write_text
    from needsaug_lite.plots.needs import needs_figure
    from needsaug_lite.plots.style import png_bytes

    write_text(folder / "needs.csv", table.to_csv(index=False))
    write_text(folder / "needs.json", json.dumps(json.loads(report), indent=1) + "\n")
    with atomic_path(folder / "needs.png") as temporary:
        temporary.write_bytes(png_bytes(needs_figure(table)))
    typer.echo(f"needs.csv, needs.json and needs.png are in {folder}")


if __name__ == "__main__":
    main()
