"""The loop that every method of the book runs in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from needsaug_lite.data.team import ALONE, Team
from needsaug_lite.errors import UserError
from needsaug_lite.training.checkpoint import load_checkpoint, save_checkpoint
from needsaug_lite.training.stages import Method, SharedStart, Stage

# One look at the losses costs one wait for the device.
STEPS_BETWEEN_CHECKS = 50
Row = dict[str, Any]
OnEpoch = Callable[[int, Method], Mapping[str, float]]


class TrainingDivergedError(UserError):
    """A loss became infinite or not a number."""


@dataclass
class History:
    """What a training has logged.

    Attributes:
        rows: one per epoch: stage, epoch, mean of every logged value, seconds.
    """

    rows: list[Row] = field(default_factory=list)

    def column(self, name: str) -> list[Any]:
        """The values of one column, None where a row lacks it."""
        return [row.get(name) for row in self.rows]

    @property
    def seconds(self) -> float:
        """Time spent in all epochs, those before a resume included."""
        return float(sum(row["seconds"] for row in self.rows))


def fit(
    method: Method,
    epochs: int,
    *,
    on_epoch: OnEpoch | None = None,
    checkpoint: Path | None = None,
    every: int = 1,
    resume: bool = False,
    run: str = "",
    start: Path | None = None,
    start_run: str = "",
    progress: bool | None = None,
) -> History:
    """Drive all stages of a method.

    A run that is killed and resumed from its checkpoint ends with the same weights
    as one that was never interrupted, bit for bit on a CPU: what an epoch sees
    depends on the seed and the epoch alone, and the checkpoint holds the rest.

    Processes that share out a method (see `share_out`) call this together; the first
    of them writes the files and shows the bar. One process can go on from their
    checkpoint, and they from its.

    Args:
        method: what is trained, in place.
        epochs: handed to `method.stages`.
        on_epoch: called after each epoch with its number in the whole run and the
            method; what it returns is added to the history.
        checkpoint: file to write after every `every` epochs and at the end.
        every: epochs between checkpoints.
        resume: continue from `checkpoint` if it exists.
        run: name of the run; a checkpoint of another run is refused.
        start: file with the end of the first stage; if it exists, that stage is read
            instead of trained, otherwise it is written. Only for a `SharedStart`.
        start_run: name of all that the first stage depends on.
        progress: show a bar; None shows it on a terminal only.

    Returns:
        The history of the whole run, including epochs before a resume.

    Raises:
        TrainingDivergedError: if a loss is not finite, naming stage, epoch and step.
        UserError: if the checkpoint is damaged or of another run, or isn't the same
            one for all processes.
    """
    history, done = History(), 0
    device = next(method.model.parameters()).device
    team: Team = getattr(method, "team", ALONE)
    if resume and checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint, run, device)
        method.load_state_dict(state["method"])
        history, done = History(state["history"]), state["epochs_done"]
    stages = list(method.stages(epochs))
    if not isinstance(method, SharedStart):
        start = None
    elif start is not None and start.exists() and not done:
        state = load_checkpoint(start, start_run, device)
        method.load_start_state(state["method"])
        history, done = History(state["history"]), state["epochs_done"]
    _require_same_start(team, done, device)
    if not team.leads:
        checkpoint, start, progress = None, None, False
    bar = tqdm(
        total=sum(stage.epochs for stage in stages),
        initial=done,
        unit="epoch",
        disable=None if progress is None else not progress,
        leave=False,
    )
    first = 0  # number of the stage's first epoch in the whole run
    for stage in stages:
        for epoch in range(max(0, done - first), stage.epochs):
            if epoch == 0:
                stage.begin()
            bar.set_description(stage.name)
            number = first + epoch
            means = _run_epoch(stage, epoch, team)
            row = {"stage": stage.name, "epoch": number, **means}
            if on_epoch is not None:
                row |= on_epoch(number, method)
            history.rows.append(row)
            finished = number + 1 == bar.total
            if checkpoint is not None and ((number + 1) % every == 0 or finished):
                _save(checkpoint, run, method.state_dict(), history, number + 1)
            bar.update()
        first += stage.epochs
        # After a resume in a later stage, the end of the first one is gone.
        ended_now = stage is stages[0] and done <= first
        if start is not None and ended_now and not start.exists():
            assert isinstance(method, SharedStart)
            _save(start, start_run, method.start_state(), history, first)
    bar.close()
    return history


def _save(
    file: Path, run: str, state: dict[str, Any], history: History, done: int
) -> None:
    content = {
        "run": run,
        "method": state,
        "history": history.rows,
        "epochs_done": done,
    }
    weights: Tensor = next(iter(state["model"].values()))
    save_checkpoint(file, content, weights.device)


def _require_same_start(team: Team, done: int, device: torch.device) -> None:
    if team.size == 1:
        return
    found = team.everyone(done, device)
    if len(set(found)) > 1:
        listed = ", ".join(f"{epochs:.0f}" for epochs in found)
        raise UserError(
            f"the processes would go on after epoch {listed}: all of them must be able "
            "to read the same checkpoint, in a folder that their machines share"
        )


def _run_epoch(stage: Stage, epoch: int, team: Team) -> Row:
    started = perf_counter()
    logged = dict(stage.begin_epoch(stage.first + epoch))
    sums: dict[str, Tensor] = {}
    samples = 0
    for step, batch in enumerate(stage.batches.epoch(stage.first + epoch)):
        size = len(batch)
        samples += len(batch.all_labels)
        for name, value in stage.step(batch).items():
            if size:  # else a mean of nothing
                sums[name] = sums.get(name, 0) + value.detach() * size
        if step % STEPS_BETWEEN_CHECKS == 0:
            _check(_of_all(sums, team), stage, epoch, step)
    sums = _of_all(sums, team)
    _check(sums, stage, epoch, len(stage.batches) - 1)
    means = {name: float(total) / samples for name, total in sums.items()}
    return {**logged, **means, "seconds": perf_counter() - started}


def _of_all(sums: dict[str, Tensor], team: Team) -> dict[str, Tensor]:
    """Sums over the processes, so that all of them stop at the same step."""
    if team.size == 1:
        return sums
    own = torch.stack([total.double() for total in sums.values()])
    return dict(zip(sums, team.total(own), strict=True))


def _check(sums: dict[str, Tensor], stage: Stage, epoch: int, step: int) -> None:
    for name, total in sums.items():
        value = float(total)
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"{name} became {value} in stage {stage.name!r}, epoch {epoch}, at or "
                f"shortly before step {step}. Lower the learning rate, or look for "
                "images or labels that are not what they should be"
            )
