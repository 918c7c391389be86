"""Rows that stand no longer: their settings, code or images are others now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import registry
from needsaug_lite.experiments.ingredients import DataSpec
from needsaug_lite.experiments.measurements import escaped
from needsaug_lite.experiments.spec import Spec

# Data that come with a package: they are always at hand, and quickly read.
BUNDLED = ("digits",)


class StaleRow(NamedTuple):
    """A row that is counted nowhere, and why; `profile` is the one it names."""

    file: Path
    experiment: str
    profile: str
    reason: str


class StaleRowError(UserError):
    """A sound row that stands no longer; `row` says why."""

    def __init__(self, row: StaleRow) -> None:
        super().__init__(
            f"{row.file} is stale: {row.reason}. Run it again, or move it away"
        )
        self.row = row


def stale_row(file: Path, settings: Mapping[str, Any], reason: str) -> StaleRow:
    """A stale row from the settings that its file holds, which may be no spec."""
    profile = str(settings.get("profile", "unknown"))
    return StaleRow(file, file.parent.name, profile, reason)


def settings_reason(settings: dict[str, Any]) -> str | None:
    """Why settings can't be run any more, in words; None if they can."""
    method = settings.get("method")
    if method is not None and method not in registry.METHODS:
        return f"there is no method {method!r} any more"
    try:
        Spec.checked(settings, "its settings")
    except UserError as error:
        return " ".join(str(error).split())
    return None


def code_reason(spec: Spec, run_id: str, method_version: int) -> str | None:
    """Why a row isn't what today's code would call by its name; None if it is.

    Args:
        spec: the settings in the row.
        run_id: the row's name.
        method_version: version of the method's code that made it.
    """
    if method_version != spec.method_version:
        return (
            f"version {method_version} of {spec.method} made it, and the code is "
            f"version {spec.method_version} now"
        )
    if spec.run_id == run_id:
        return None
    parts = ["default settings"]
    if spec.features is not None:
        parts.append("the code that makes its features")
    if spec.generator is not None:
        parts.append("the code that trains its generator")
    return (
        "its settings have another hash than its name: it was edited, or comes from "
        f"another version of {' or '.join(parts)}"
    )


class DataCheck:
    """Compares the checksum in a row with that of the data at hand.

    What the same settings and seed draw is read once.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Prepare to read.

        Args:
            root: folder of the published data sets. None: only bundled data are
                compared, and no file of a user is opened.
        """
        self.root = root
        self.unchecked: Counter[str] = Counter()  # rows by reason
        self._known: dict[tuple[DataSpec, int], str | UserError] = {}

    def reason(self, spec: Spec, checksum: str) -> str | None:
        """Why a row doesn't stand on its data; None if it does or can't be checked.

        What can't be checked is counted in `unchecked`: data that aren't below `root`,
        or the user's own folder if it is no longer there.
        """
        bundled = spec.data.name in BUNDLED
        if self.root is None and not bundled:
            return None
        now = self._checksum(spec)
        if now == checksum:
            return None
        if isinstance(now, str):
            return f"the images or labels of {spec.data.name} are others now"
        if bundled:
            return f"its data can't be made any more: {now}"
        self.unchecked[f"{spec.data.name}: {now}"] += 1
        return None

    def _checksum(self, spec: Spec) -> str | UserError:
        key = data_key(spec)
        if key not in self._known:
            try:
                self._known[key] = spec.load_data(self.root).checksum()
            except UserError as error:
                self._known[key] = error
        return self._known[key]


def data_key(spec: Spec) -> tuple[DataSpec, int]:
    """What the data of a run depend on: the settings, and the seed that draws."""
    return spec.data.model_copy(update={"seed": None}), spec.data_seed


def disagreeing(rows: Iterable[tuple[Spec, str]]) -> set[tuple[DataSpec, int]]:
    """Keys of data that were other images for one row than for another.

    Args:
        rows: settings and checksum of the data of each row.
    """
    seen: dict[tuple[DataSpec, int], str] = {}
    return {
        key
        for spec, checksum in rows
        if seen.setdefault(key := data_key(spec), checksum) != checksum
    }


def in_words(stale: Sequence[StaleRow]) -> list[str]:
    """Like "3 rows are stale: ...", one sentence for each reason, most rows first."""
    reasons = Counter(row.reason for row in stale)
    return [
        f"{count} {'row is' if count == 1 else 'rows are'} stale: {reason}"
        for reason, count in reasons.most_common()
    ]


def stale_mark(stale: Sequence[StaleRow]) -> list[str]:
    """Markdown for a box that says what a table leaves out; no stale row, no box."""
    if not stale:
        return []
    lines = [f"- {escaped(line)}; not counted here" for line in in_words(stale)]
    return ["\n".join(["~~~~{warning}", *lines, "~~~~"])]
