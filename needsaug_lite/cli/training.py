"""`needsaug run`, `grid` and `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from needsaug_lite.cli.options import (
    RESULTS,
    Channels,
    Device,
    Results,
    Root,
    Size,
    Skip,
    Starts,
    Weights,
    check_device,
)
from needsaug_lite.errors import UserError

if TYPE_CHECKING:
    from needsaug_lite.data.team import Team
    from needsaug_lite.experiments.spec import Spec


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
    kept: Annotated[
        float | None, typer.Option(help="Share of the training images to keep.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Network.")] = None,
    weights: Weights = None,
    image_size: Size = None,
    channels: Channels = None,
    skip_broken: Skip = False,
    policy: Annotated[
        str | None,
        typer.Option(help="augmix, randaugment or trivialaugment of training images."),
    ] = None,
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
    starts: Starts = None,
    save_model: Annotated[
        Path | None, typer.Option(help="Write the trained network, for `predict`.")
    ] = None,
) -> None:
    """Train one method, evaluate it, and write the row.

    Under `torchrun -m needsaug_lite run`, several processes share out every batch.
    """
    options: list[tuple[str, Any]] = [
        ("method", method),
        ("data.name", data),
        ("data.imbalance", imbalance),
        ("data.kept", kept),
        ("data.image_size", image_size),
        ("data.channels", channels),
        ("data.skip_broken", skip_broken or None),
        ("model.backbone", backbone),
        ("model.weights", None if weights is None else str(weights)),
        ("augment.policy", policy),
        ("epochs", epochs),
        ("seed", seed),
    ]
    given = [(name, value) for name, value in options if value is not None]
    checked = _spec(spec, given, setting or [])
    if resume and checkpoint is None:
        raise UserError("--resume needs --checkpoint FILE")
    from needsaug_lite import training
    from needsaug_lite.experiments import artefacts

    own = training.own_device(device)
    check_device(own)
    if save_model is not None:
        artefacts.check_savable(checked)
    files = {
        "checkpoint": checkpoint,
        "every": every,
        "resume": resume,
        "starts": starts,
    }
    with training.launched(own) as team:
        said = _run(checked, results, root, own, save_model, team, **files)
        if team.leads:
            typer.echo(said)


def _run(
    spec: Spec,
    results: Path,
    root: Path | None,
    device: str,
    save_model: Path | None,
    team: Team,
    **files: Any,
) -> str:
    """Do what `run` is asked for, as one process of a team; what it has to say."""
    from needsaug_lite.experiments import artefacts, records, runner

    row = records.row_path(spec, results)
    exists = row.exists()
    if team.size > 1:
        # Their file systems may disagree for a while.
        exists = bool(team.everyone(exists, device)[0])
    if exists:
        runner.checked_row(row, spec, root)
        if save_model is None:
            return f"{row} exists; nothing to do"
    for target in (files["checkpoint"], save_model):
        if target is not None and target.is_dir():
            raise UserError(f"{target} is a folder; give the name of a file")
    ready = runner.prepare(spec, root, device, team)
    record = runner.run(spec, results=results, device=device, prepared=ready, **files)
    if save_model is not None and team.leads:
        artefacts.save_classifier(save_model, spec, ready)
    scores = record.metrics
    return (
        f"{spec.method}: balanced accuracy {scores['balanced_accuracy']:.1%}, "
        f"top-1 {scores['top1']:.1%} on {spec.evaluate_on}\n{row}"
    )


def grid(
    file: Annotated[Path, typer.Argument(help="Grid file (YAML).")],
    snakemake: Annotated[
        list[str] | None,
        typer.Argument(help="Further arguments for Snakemake, after `--`."),
    ] = None,
    results: Results = RESULTS,
    root: Root = None,
    device: Device = "cpu",
    cores: Annotated[
        int | None,
        typer.Option(help="Runs side by side; else one a core, with cuda one a GPU."),
    ] = None,
    runs_per_gpu: Annotated[
        int, typer.Option(help="Runs side by side on each GPU of this machine.")
    ] = 1,
    profile: Annotated[
        Path | None,
        typer.Option(help="Snakemake profile of a cluster, e.g. nbs/cluster/slurm."),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="Go on after a failed run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would run.")
    ] = False,
    every_run: Annotated[
        bool, typer.Option("--all", help="With --dry-run: list every run.")
    ] = False,
    starts: Starts = None,
) -> None:
    """Compute the rows of a grid that don't stand yet."""
    from needsaug_lite.experiments.grid import run_grid

    further = snakemake or []
    if further and not further[0].startswith("-"):
        raise UserError(
            f"{further[0]}: give one grid file; arguments for Snakemake follow after --"
        )
    if profile is None:
        # On a cluster, the machine of this call needs no GPU.
        check_device(device)
    report = run_grid(
        file,
        results,
        root,
        cores,
        keep_going,
        dry_run,
        device,
        runs_per_gpu=runs_per_gpu,
        profile=profile,
        starts=starts,
        snakemake_arguments=further,
    )
    typer.echo(report.summary(every_run=every_run))
    raise typer.Exit(report.exit_code)


def predict(
    model: Annotated[Path, typer.Argument(help="File of `needsaug run --save-model`.")],
    images: Annotated[Path, typer.Argument(help="An image or a folder of images.")],
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("predictions.csv"),
    skip_broken: Skip = False,
    device: Device = "cpu",
) -> None:
    """Predict the classes of images and write them with all probabilities."""
    check_device(device)
    from needsaug_lite.experiments import artefacts
    from needsaug_lite.files import write_text

    if not images.exists():
        raise UserError(f"{images} doesn't exist")
    saved = artefacts.load_classifier(model, device)
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a CSV file")
    frame = artefacts.predict_files(saved, images, device, skip_broken=skip_broken)
    write_text(out, frame.to_csv(index=False, float_format="%.6g"))
    typer.echo(f"{len(frame)} predictions in {out}")


def _spec(file: Path | None, given: list[tuple[str, Any]], settings: list[str]) -> Spec:
    """The spec of a file, changed by the options and then by `--set`."""
    import yaml

    from needsaug_lite.experiments.spec import Spec, read_settings

    values = {} if file is None else read_settings(file)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(
                f"--set {setting}: write NAME=VALUE, e.g. optimisation.lr=1"
            )
        try:
            given = [*given, (name, yaml.safe_load(text))]
        except yaml.YAMLError as error:
            raise UserError(f"--set {setting}: {text!r} is no value") from error
    for name, value in given:
        _put(values, name.split("."), value)
    return Spec.checked(values)


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"{'.'.join(keys)}: {key} is a single value")
    values[keys[-1]] = value
