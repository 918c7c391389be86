"""Several processes share out a run and reach what one process reaches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.team_runs import CASES, EPOCHS, few, make, outcome, team_answers
from torch import nn

from needsaug_lite import training
from needsaug_lite.data.team import ALONE, Team
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, load_records, run
from needsaug_lite.experiments.runner import prepare
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.methods.baselines.implicit_augmentation import MetaCovariance
from needsaug_lite.methods.baselines.reweighting import ClassBalanced
from needsaug_lite.methods.meta_iada import MetaIADA

TWO = [
    "cross_entropy",
    "meta_iada",
    "resumed",
    "norm",
]
THREE = ["fewer_images_than_processes", "norm"]
REFUSED = ["different_checkpoints", "different_images"]
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teams")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return team_answers(folder, 2, *TWO, *REFUSED)


@pytest.fixture(scope="module")
def three(folder: Path) -> list[dict[str, Any]]:
    return team_answers(folder, 3, *THREE)


def close(found: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def assert_alike(found: Any, expected: Any, tolerance: float) -> None:
    """Every tensor and number of nested lists and names."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_alike(found[name], value, tolerance)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other, tolerance)
    elif isinstance(expected, str):
        assert found == expected
    else:
        close(torch.as_tensor(found), torch.as_tensor(expected), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("case", TWO)
def test_two_processes_reach_what_one_reaches(two, folder: Path, case: str) -> None:
    # In float64, memories in float32: nothing but rounding errors differs.
    assert_alike(two[0][case], CASES[case](ALONE, folder), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("case", THREE)
def test_some_of_three_processes_may_have_no_image(
    three, folder: Path, case: str
) -> None:
    assert_alike(three[0][case], CASES[case](ALONE, folder), 1e-9)


@pytest.mark.slow
def test_all_processes_hold_the_same_bits(two, three) -> None:
    for case in TWO:
        assert_alike(two[1][case], two[0][case], 0)
    for case in THREE:
        assert_alike(three[1][case], three[0][case], 0)
        assert_alike(three[2][case], three[0][case], 0)


@pytest.mark.slow
def test_a_checkpoint_serves_the_team_and_a_single_process(two, folder: Path) -> None:
    assert_alike(two[0]["resumed"], two[0]["meta_iada"], 0)
    method = make(MetaIADA, few(), ALONE, start=0.34, outer_lr=0.01)
    file = folder / "2.ckpt"
    history = training.fit(method, EPOCHS, checkpoint=file, resume=True, run="r")
    assert_alike(outcome(method, few(), history), two[0]["resumed"], 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("different_checkpoints", "go on after epoch 1, 0: all of them must be able"),
        ("different_images", "different images under the same name"),
    ],
)
def test_processes_that_disagree_all_stop(two, case: str, message: str) -> None:
    for rank in two:
        assert message in rank[case]["message"]


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    """Two processes, at a free port."""
    return called("torch.distributed.run", "--standalone", "--nproc-per-node=2", *words)


def called(module: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


SPEC = """
method: meta_iada
data: {imbalance: 10, n_max: 40, meta_per_class: 5}
model: {width: 4}
hyperparameters: {start: 0.5}
epochs: 2
"""


@pytest.mark.slow
def test_torchrun_writes_one_row_that_one_process_would_have_written(
    tmp_path: Path,
) -> None:
    file, results = tmp_path / "run.yaml", tmp_path / "results"
    file.write_text(SPEC)
    saved, checkpoint = tmp_path / "model.pt", tmp_path / "run.ckpt"
    words = ["-m", "needsaug_lite", "run", "--spec", file, "--results", results]
    done = torchrun(*words, "--save-model", saved, "--checkpoint", checkpoint)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("balanced accuracy") == 1
    (row,) = load_records(results)
    alone = run(Spec.from_file(file))
    assert (row.processes, alone.processes) == (2, 1)
    assert row.run_id == alone.run_id
    # In float32. A class has 30 test images or more.
    assert row.metrics["top1"] == pytest.approx(alone.metrics["top1"], abs=0.01)
    losses = [[epoch["loss"] for epoch in one.history] for one in (row, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert saved.is_file()
    again = torchrun(*words)
    assert again.returncode == 0
    assert again.stdout.count("exists; nothing to do") == 1


def test_a_method_for_one_process_is_refused_before_data_are_read() -> None:
    spec = Spec.checked({"method": "ldam", "data": {"name": "nowhere"}})
    with pytest.raises(UserError, match="ldam runs in one process.*meta_iada"):
        prepare(spec, team=Team(0, 2))


def test_torchrun_starts_no_other_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "WORLD_SIZE", "2")
    done = called("needsaug_lite", "results", "nowhere")
    assert done.returncode != 0
    assert "torchrun can start `run` alone" in done.stderr
    monkeypatch.delitem(ENVIRONMENT, "WORLD_SIZE")
    assert (
        "no rows below nowhere" in called("needsaug_lite", "results", "nowhere").stderr
    )


FAILING = """
from needsaug_lite import training
from needsaug_lite.errors import UserError
from helpers.team_runs import few, make
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy

def fail(epoch, method):
    if epoch == 1 and method.team.rank == 1:
        raise UserError("the second process has had enough")
    return {}

with training.launched("cpu") as team:
    training.fit(make(CrossEntropy, few(), team), 10_000, on_epoch=fail)
"""


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tmp_path: Path, monkeypatch) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    paths = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", paths)
    done = torchrun(script)
    assert done.returncode != 0
    assert "the second process has had enough" in done.stderr


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 33])
def test_parts_cover_everything_once_and_evenly(size: int, count: int) -> None:
    parts = [range(count)[Team(rank, size).part(count)] for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


class Heir(CrossEntropy):
    """Another loss, which need not be a mean over images."""


@pytest.mark.parametrize("kind", [Heir, ClassBalanced, MetaCovariance])
def test_a_method_must_say_itself_that_it_can_be_shared_out(kind) -> None:
    assert training.shareable(CrossEntropy)
    assert not training.shareable(kind)
    with pytest.raises(UserError, match="runs in one process: it can't be shared out"):
        make(kind, few(), Team(0, 2))


def test_too_many_processes_or_dropout_are_refused() -> None:
    with pytest.raises(UserError, match="9 processes can't share out batches of 8"):
        make(CrossEntropy, few(), Team(0, 9), batch_size=8)
    method = make(CrossEntropy, few(), ALONE)
    method.model.head = nn.Sequential(nn.Dropout(0.5), method.model.head)
    with pytest.raises(UserError, match="dropout"):
        training.share_out(method, Team(0, 2))


def test_every_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training.own_device("cuda:1") == "cuda:1"
    for name, value in (
        ("TORCHELASTIC_RUN_ID", "none"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "1"),
    ):
        monkeypatch.setenv(name, value)
    assert training.own_device("cuda") == "cuda:1"
    assert training.own_device("cpu") == "cpu"
    with pytest.raises(UserError, match="give cuda, and each of them takes a GPU"):
        training.own_device("cuda:0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert training.own_device("cuda:0") == "cuda:0"
