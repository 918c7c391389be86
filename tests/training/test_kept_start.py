"""A first stage that several methods share: kept, found again, never a wrong one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.shared_phases import make

from needsaug_lite.errors import UserError
from needsaug_lite.training import fit
from needsaug_lite.training.loop import OnEpoch


def phases(name: str = "facog") -> Any:
    return make(name, phase1={"share": 0.5})


def noting(seen: list[int]) -> OnEpoch:
    """What writes down the number of every epoch that is trained."""

    def note(epoch: int, _: Any) -> dict[str, float]:
        seen.append(epoch)
        return {}

    return note


def end(method: Any) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = method.model.state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def agree(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def losses(rows: list[dict[str, Any]]) -> list[Any]:
    return [(row["stage"], row["epoch"], row["loss"]) for row in rows]


def test_a_kept_start_gives_the_bits_of_a_whole_run(tmp_path: Path) -> None:
    file = tmp_path / "s.start"
    fit(phases("gamo"), 4, start=file, start_run="s")  # another method's first stage
    written = file.read_bytes()
    whole, short = phases(), phases()
    rows = fit(whole, 4).rows
    seen: list[int] = []
    again = fit(short, 4, start=file, start_run="s", on_epoch=noting(seen)).rows
    assert seen == [2, 3]
    assert losses(again) == losses(rows)
    assert agree(end(whole), end(short))
    assert file.read_bytes() == written


def test_a_start_is_written_as_the_first_stage_ends(tmp_path: Path) -> None:
    file = tmp_path / "s.start"
    there: list[bool] = []
    heads: list[dict[str, torch.Tensor]] = []

    def look(epoch: int, method: Any) -> dict[str, float]:
        there.append(file.exists())
        heads.append(end(method))
        return {}

    fit(phases(), 4, start=file, start_run="s", on_epoch=look)
    assert there == [False, False, True, True]
    kept = torch.load(file, weights_only=True)
    assert kept["epochs_done"] == len(kept["history"]) == 2
    assert agree(heads[1], kept["method"]["model"])
    assert not agree(heads[3], kept["method"]["model"])


class StopError(Exception):
    """What ends a run early."""


def cut(method: Any, epoch: int, **options: Any) -> None:
    """Train until an epoch, whose checkpoint isn't written any more."""

    def stop(number: int, _: Any) -> dict[str, float]:
        if number == epoch:
            raise StopError
        return {}

    with pytest.raises(StopError):
        fit(method, 4, on_epoch=stop, **options)


@pytest.mark.parametrize(("epoch", "writes"), [(1, True), (2, True), (3, False)])
def test_a_resumed_run_keeps_no_start_but_the_end_of_the_first_stage(
    epoch: int, writes: bool, tmp_path: Path
) -> None:
    checkpoint, file = tmp_path / "c.ckpt", tmp_path / "s.start"
    cut(phases(), epoch, checkpoint=checkpoint)
    resumed, whole = phases(), phases()
    options: Any = {"start": file, "start_run": "s"}
    fit(resumed, 4, checkpoint=checkpoint, resume=True, **options)
    fit(whole, 4)
    assert agree(end(resumed), end(whole))
    assert file.exists() == writes
    if writes:
        from_start = phases()
        fit(from_start, 4, **options)
        assert agree(end(from_start), end(whole))


def test_a_run_goes_on_from_its_checkpoint_and_not_from_the_start(
    tmp_path: Path,
) -> None:
    checkpoint, file = tmp_path / "c.ckpt", tmp_path / "s.start"
    options: Any = {"start": file, "start_run": "s", "checkpoint": checkpoint}
    cut(phases(), 3, **options)
    seen: list[int] = []
    resumed, whole = phases(), phases()
    rows = fit(resumed, 4, resume=True, on_epoch=noting(seen), **options).rows
    assert seen == [3]
    assert losses(rows) == losses(fit(whole, 4).rows)
    assert agree(end(resumed), end(whole))


def test_a_killed_run_from_a_start_can_be_resumed(tmp_path: Path) -> None:
    checkpoint, file = tmp_path / "c.ckpt", tmp_path / "s.start"
    fit(phases("feature_copy"), 4, start=file, start_run="s")
    options: Any = {"start": file, "start_run": "s", "checkpoint": checkpoint}
    cut(phases(), 3, **options)
    resumed, whole = phases(), phases()
    rows = fit(resumed, 4, resume=True, **options).rows
    assert losses(rows) == losses(fit(whole, 4).rows)
    assert agree(end(resumed), end(whole))


def test_a_failed_save_leaves_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        fit(phases(), 2, start=tmp_path / "s.start", start_run="s")
    assert not list(tmp_path.iterdir())


def test_a_damaged_start_or_one_of_other_settings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.start"
    fit(phases(), 2, start=file, start_run="one")
    with pytest.raises(UserError, match="belongs to run 'one'"):
        fit(phases(), 2, start=file, start_run="two")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"s\.start can't be read.*delete it"):
        fit(phases(), 2, start=file, start_run="one")


def test_a_method_without_a_shared_stage_keeps_none(tmp_path: Path) -> None:
    fit(make("cross_entropy"), 1, start=tmp_path / "s.start", start_run="s")
    assert not list(tmp_path.iterdir())
