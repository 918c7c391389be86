"""What the tables of `make bench` share: a file that is whole, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from needsaug_lite.errors import UserError


def rendered(path: Path, missing: str, render: Callable[[Any], str]) -> str:
    """The text that `render` makes of a file of measurements.

    Args:
        path: JSON written by a benchmark: "runs", the provenance by name, and "rows".
        missing: text for a file that isn't there or holds nothing to show.
        render: Markdown from what the file holds; empty if there is nothing to show.

    Returns:
        Markdown.

    Raises:
        UserError: if the file is not what the benchmark writes.
    """
    if not path.exists():
        return missing
    try:
        text = render(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a file that `make bench` has written ({error!r}); "
            "delete it and run `make bench` again"
        ) from error
    return text or missing


def conditions(run: Mapping[str, Any]) -> str:
    """Rounds, machine, date and versions of one run, as a sentence."""
    versions = ", ".join(f"{who} {number}" for who, number in run["versions"].items())
    threads = "one thread" if run["threads"] == 1 else f"{run['threads']} threads"
    return (
        f"{run['rounds']} rounds on {escaped(run['processor'])}, {threads}, "
        f"{run['date'][:10]}; {versions}."
    )


def escaped(text: str) -> str:
    """Text that breaks no cell of a Markdown table."""
    return text.replace("|", "\\|").replace("_", "\\_").replace("\n", " ")
