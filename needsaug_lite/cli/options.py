"""Options that several commands share, and how a table is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from needsaug_lite.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

RESULTS = Path("book/results")
Root = Annotated[
    Path | None,
    typer.Option(help="Folder of the data sets; else NEEDSAUG_DATA, else the cache."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Results = Annotated[Path, typer.Option(help="Folder of the rows.")]
Starts = Annotated[
    Path | None,
    typer.Option(help="Folder of first phases, to train each once for all methods."),
]
Skip = Annotated[bool, typer.Option(help="Leave unreadable image files out.")]
Weights = Annotated[
    Path | None, typer.Option(help="State dict for the backbone, from your disk.")
]
Size = Annotated[int | None, typer.Option(help="Height and width of folder images.")]
Channels = Annotated[int | None, typer.Option(help="1 grey, 3 colour; default: look.")]


def check_device(device: str) -> None:
    """Refuse a device that torch can't use."""
    import torch

    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise UserError(f"device {device!r} can't be used: give cpu or cuda")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} can't be used: {reason}") from error


def plain(table: pd.DataFrame) -> str:
    """A table as text, numbers with three digits."""
    return table.to_string(index=False, float_format=lambda value: f"{value:.3f}")
