"""What a call of a grid found and did, or would do, in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from needsaug_lite.experiments.grid_estimate import Estimate
from needsaug_lite.experiments.spec import Spec

# As many planned runs are listed; of the others only the number is told.
SHOWN = 20


@dataclass(frozen=True)
class FailedRun:
    """A run without a row after the grid has ended, and where its output went."""

    spec: Spec
    log: Path


@dataclass(frozen=True)
class GridReport:
    """What a call of the grid found and did, or would do.

    Attributes:
        present: rows that stood before.
        computed: rows that are new.
        failed: runs without a row at the end.
        planned: what a dry run would run.
        estimate: of the time of the planned runs; None: it wasn't a dry run.
        places: planned runs side by side; None: a cluster decides.
    """

    present: int
    computed: int
    failed: tuple[FailedRun, ...] = ()
    planned: tuple[Spec, ...] = ()
    estimate: Estimate | None = None
    places: int | None = None

    @property
    def exit_code(self) -> int:
        """0 if every row stands (or nothing was to be run), else 1."""
        return 1 if self.failed else 0

    def summary(self, *, every_run: bool = False) -> str:
        """The report in a few lines, failed runs with their logs last."""
        if self.estimate is not None:
            return "\n".join(self._plan(self.estimate, every_run))
        lines = [f"{self.present} rows were there, {self.computed} are new"]
        lines += [
            f"FAILED {f.spec.run_id}: {_describe(f.spec)}; log: {f.log}"
            for f in self.failed
        ]
        if self.failed:
            lines.append(f"{len(self.failed)} runs failed or were not started")
        return "\n".join(lines)

    def _plan(self, time: Estimate, every_run: bool) -> list[str]:
        pending = len(self.planned)
        total = self.present + pending
        shown = self.planned if every_run else self.planned[:SHOWN]
        lines = [f"would run {s.run_id}: {_describe(s)}" for s in shown]
        if len(shown) < pending:
            lines.append(f"... and {pending - len(shown)} more (--all lists them)")
        lines.append(f"{total} runs: {self.present} rows stand, {pending} to run")
        return lines + (time.said(self.places) if pending else [])


def _describe(spec: Spec) -> str:
    usual = Spec(method=spec.method).hyperparameters
    chosen = {
        name: value
        for name, value in spec.hyperparameters.items()
        if value != usual.get(name)
    }
    words = f"{spec.method} {chosen}" if chosen else spec.method
    return f"{words} on {spec.data.name}, {spec.epochs} epochs, seed {spec.seed}"
