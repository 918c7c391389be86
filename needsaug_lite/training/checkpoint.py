"""Checkpoints that are whole or absent, and belong to one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from needsaug_lite.errors import UserError
from needsaug_lite.files import atomic_path


def save_checkpoint(file: Path, state: dict[str, Any], device: torch.device) -> None:
    """Write `state` with the random states, atomically.

    Args:
        file: replaced if it exists.
        state: tensors, numbers, text, and lists and dicts of them.
        device: whose random state is kept beside that of the CPU.
    """
    random = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    with atomic_path(file) as temporary:
        torch.save({**state, "random": random}, temporary)


def load_checkpoint(file: Path, run: str, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint of the named run and put the random states back.

    Args:
        file: what `save_checkpoint` wrote.
        run: name of the run that wrote it.
        device: where its tensors go.

    Returns:
        The state that was saved.

    Raises:
        UserError: if the file is damaged or belongs to another run.
    """
    try:
        state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # torch raises several unrelated types here
        raise UserError(
            f"checkpoint {file} can't be read ({error}); delete it to start afresh"
        ) from error
    if not isinstance(state, dict) or "random" not in state:
        raise UserError(
            f"{file} is no checkpoint of a training run; delete or rename it"
        )
    if state.get("run") != run:
        raise UserError(
            f"checkpoint {file} belongs to run {state.get('run')!r}, not {run!r}: the "
            "settings have changed. Delete it, or give another checkpoint path"
        )
    random = state["random"]
    torch.set_rng_state(random["cpu"].cpu())
    if "cuda" in random and device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"].cpu(), device)
    return state
