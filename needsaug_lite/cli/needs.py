"""`needsaug needs`: which classes need more images."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from needsaug_lite.cli.options import (
    Channels,
    Device,
    Root,
    Size,
    Skip,
    Weights,
    check_device,
    plain,
)
from needsaug_lite.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


class By(StrEnum):
    """What a need is measured by."""

    LOSS = "loss"
    ERROR = "error"


def measure_needs(
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
    weights: Weights = None,
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
    predictions (column `label`, columns `p:CLASS`) nothing is trained. The interval
    from low to high is for other held-out images and the same networks; repeat with
    another --seed to see how much another training moves a need.
    """
    from needsaug_lite.experiments import artefacts
    from needsaug_lite.experiments import needs as needs_room
    from needsaug_lite.experiments.spec import Spec

    curve = None
    if source.suffix == ".csv":
        if learning_curve:
            raise UserError("a learning curve needs the images, not predictions")
        predictions, names = artefacts.read_predictions(source)
        counts = predictions.labels.bincount(minlength=len(names))
    else:
        check_device(device)
        from needsaug_lite import data as data_room

        values = {
            "data": {"name": str(source)},
            "model": {"backbone": backbone, "weights": weights},
            "optimisation": {"batch_size": 64},
            "epochs": epochs,
            "seed": seed,
        }
        spec = Spec.checked(values)
        loaded = data_room.load(
            str(source),
            root,
            image_size=image_size,
            channels=channels,
            skip_broken=skip_broken,
        )
        splits = data_room.undivided(loaded)
        needs_room.check_options(splits.num_classes, budget, temperature, floor)
        names, counts = splits.class_names, splits.class_counts
        predictions = needs_room.cross_validated(
            splits, spec, folds=folds, device=device
        )
        if learning_curve:
            curve = needs_room.learning_curve(
                splits, spec, folds=folds, device=device, known=predictions
            )
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
    typer.echo(plain(table))
    if out is not None:
        _write_needs(out, table, report.to_json())


def _write_needs(folder: Path, table: pd.DataFrame, report: str) -> None:
    from needsaug_lite.files import atomic_path, write_text
    from needsaug_lite.plots.needs import needs_figure
    from needsaug_lite.plots.style import png_bytes

    write_text(folder / "needs.csv", table.to_csv(index=False))
    write_text(folder / "needs.json", json.dumps(json.loads(report), indent=1) + "\n")
    with atomic_path(folder / "needs.png") as temporary:
        temporary.write_bytes(png_bytes(needs_figure(table)))
    typer.echo(f"needs.csv, needs.json and needs.png are in {folder}")
