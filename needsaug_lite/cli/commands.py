"""All commands in one place."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from needsaug_lite.cli.needs import measure_needs
from needsaug_lite.cli.options import RESULTS, Root, plain
from needsaug_lite.cli.training import grid, predict, run
from needsaug_lite.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Learn how to augment: run, repeat and read the experiments of the book.",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: fetch and list.")
app.add_typer(data_app, name="data")

app.command()(run)
app.command()(grid)
app.command("needs")(measure_needs)
app.command()(predict)


def main() -> None:
    """Run the command; a user's mistake becomes one message and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        app()
    except (UserError, OSError) as error:
        # An OSError names the file or folder that can't be read or written.
        typer.echo(f"needsaug: {error}", err=True)
        sys.exit(2)


@app.command()
def results(
    folder: Annotated[Path, typer.Argument(help="Folder of the rows.")] = RESULTS,
    experiment: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    stale: Annotated[
        bool,
        typer.Option(
            "--stale",
            help="List the rows that settings, code or data of today don't bear out; "
            "exit status 1 if there is one.",
        ),
    ] = False,
    root: Root = None,
) -> None:
    """Show mean and 95% interval over seeds for every method of every experiment."""
    from needsaug_lite.experiments import comparisons, load_records

    if stale:
        _list_stale(folder, experiment, root)
        return
    rows = load_records(folder, experiment)
    if not rows:
        raise UserError(f"no rows below {folder}; `needsaug run` writes one")
    columns = ("balanced_accuracy", "geometric_mean", "top1", "ece")
    for name in sorted({row.spec.experiment for row in rows}):
        group = [row for row in rows if row.spec.experiment == name]
        profiles = ", ".join(sorted({row.spec.profile for row in group}))
        typer.echo(f"\n{name} ({profiles}; percent, mean ± 95% interval)")
        typer.echo(plain(comparisons.summary(group, columns)))


def _list_stale(folder: Path, experiment: str | None, root: Path | None) -> None:
    from needsaug_lite.data import default_root
    from needsaug_lite.experiments.records import read_rows

    rows = read_rows(folder, experiment, root=default_root(root))
    count = len(rows.standing) + len(rows.stale)
    if not count:
        raise UserError(f"no rows below {folder}; `needsaug run` writes one")
    for row in rows.stale:
        typer.echo(f"{row.file}: {row.reason}")
    for reason, number in rows.unchecked.items():
        typer.echo(f"data of {number} rows can't be checked: {reason}")
    typer.echo(f"{len(rows.stale)} of {count} rows are stale")
    if rows.stale:
        raise typer.Exit(1)


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
