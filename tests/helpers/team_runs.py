"""Short runs that a team of processes shares out, and the same in one process.

`python -m helpers.team_runs RANK SIZE FOLDER` is one process of a team. It saves what
every case returns in FOLDER, as CASE_SIZE_RANK.pt.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from helpers.meta_methods import flat, in_float64, load
from needsaug_lite import metrics, models, training
from needsaug_lite.augment import StandardAugmentation
from needsaug_lite.data import Normalisation, Splits
from needsaug_lite.data.team import ALONE, Team
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Spec, run
from needsaug_lite.experiments.runner import prepare
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.methods.meta_iada import MetaIADA
from needsaug_lite.models.team_norm import TeamNorm
from needsaug_lite.training import Optimisation

EPOCHS = 3
Case = Callable[[Team, Path], dict[str, Any]]


class InFloat64(Normalisation):
    """Images in float64, so that only rounding errors of 1e-16 differ."""

    def __call__(self, pixels: Tensor) -> Tensor:
        return super().__call__(pixels).double()


def make(
    kind: type[Supervised],
    splits: Splits,
    team: Team,
    *,
    batch_size: int = 33,
    **settings: Any,
) -> Supervised:
    """A small network with batch norm, its images cropped and flipped."""
    splits = splits.without_true_labels()
    torch.manual_seed(0)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    moments = Normalisation.of(splits)
    method = kind(
        model,
        splits,
        optimisation=Optimisation(lr=0.05, batch_size=batch_size),
        augment=StandardAugmentation(crop=1, flip=True),
        normalisation=InFloat64(moments.mean, moments.std),
        **settings,
    )
    in_float64(method, getattr(method, "network", None))  # type: ignore[type-var]
    training.share_out(method, team)
    return method


def outcome(method: Supervised, splits: Splits, history: training.History) -> Any:
    """Everything that a run leaves behind."""
    normalisation = method.batches.normalisation
    found = metrics.evaluate(method.model, splits.test, normalisation)
    return {
        "state": flat(method.state_dict()),
        "history": [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in history.rows
        ],
        "metrics": [found[name] for name in ("balanced_accuracy", "top1", "ece")],
    }


def few() -> Splits:
    """Three batches of training images, two of meta images."""
    return load(n_max=20)


def fitted(kind: type[Supervised], team: Team, **settings: Any) -> dict[str, Any]:
    splits = few()
    method = make(kind, splits, team, **settings)
    return outcome(method, splits, training.fit(method, EPOCHS))


def cross_entropy(team: Team, folder: Path) -> dict[str, Any]:
    return fitted(CrossEntropy, team)


def meta_iada(team: Team, folder: Path) -> dict[str, Any]:
    return fitted(MetaIADA, team, start=0.34, outer_lr=0.01)


def resumed(team: Team, folder: Path) -> dict[str, Any]:
    """Meta-IADA, stopped in its second phase and taken up by new objects."""
    splits, file = few(), folder / f"{team.size}.ckpt"
    settings: dict[str, Any] = {"start": 0.34, "outer_lr": 0.01}

    def stop(epoch: int, method: training.Method) -> dict[str, float]:
        if epoch == 2:
            raise InterruptedError
        return {}

    first = make(MetaIADA, splits, team, **settings)
    try:
        training.fit(first, EPOCHS, checkpoint=file, on_epoch=stop, run="r")
    except InterruptedError:
        if team.size > 1:
            team.everyone(0, "cpu")  # the file is whole
    second = make(MetaIADA, splits, team, **settings)
    history = training.fit(second, EPOCHS, checkpoint=file, resume=True, run="r")
    return outcome(second, splits, history)


def fewer_images_than_processes(team: Team, folder: Path) -> dict[str, Any]:
    """Last batches, and all batches of meta images, of two images."""
    splits = few()
    train = splits.train.subset(torch.arange(2 * 30 + 2))
    splits = replace(splits, train=train, meta=splits.meta.subset(torch.tensor([3, 7])))
    settings: dict[str, Any] = {"start": 0.34, "outer_lr": 0.01, "batch_size": 30}
    method = make(MetaIADA, splits, team, **settings)
    return outcome(method, splits, training.fit(method, 2))


def norm(team: Team, folder: Path) -> dict[str, Any]:
    """Values, first and second derivatives of batch norm on parts of unequal size."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, 2, 2, generator=source, dtype=torch.float64) * 2 + 5
    mixing = torch.randn(7, 3, 2, 2, generator=source, dtype=torch.float64)
    layer: nn.Module = nn.BatchNorm2d(3).double()
    if team.size > 1:
        layer = TeamNorm(layer, team)
    assert isinstance(layer.weight, nn.Parameter)
    own = x[team.part(7)].requires_grad_()
    y = layer(own)
    loss = (mixing[team.part(7)] * y.pow(3)).sum()
    wanted = [own, layer.weight, layer.bias]
    first = torch.autograd.grad(loss, wanted, create_graph=True)
    # The gradient by a parameter is the sum of those that the processes hold.
    whole = team.total(first[1])
    product = first[0].square().sum() + whole.square().sum() / team.size
    second = torch.autograd.grad(product, wanted[:2])
    return {
        "by_image": [team.gathered(t, 7) for t in (y, first[0], second[0])],
        "by_channel": [team.total(t.detach()) for t in (first[1], first[2], second[1])],
        "running": [layer.running_mean, layer.running_var],
        "steps": layer.num_batches_tracked,
    }


def different_checkpoints(team: Team, folder: Path) -> dict[str, Any]:
    """Only the first process finds one: what all of them are told."""
    file = folder / f"own_{team.rank}.ckpt"
    if team.leads:
        training.fit(make(CrossEntropy, few(), ALONE), 1, checkpoint=file)
    method = make(CrossEntropy, few(), team)
    with pytest.raises(UserError) as refusal:
        training.fit(method, EPOCHS, checkpoint=file, resume=True)
    return {"message": str(refusal.value)}


def different_images(team: Team, folder: Path) -> dict[str, Any]:
    """Every process draws its own long tail: what all of them are told."""
    settings = {"epochs": 1, "seed": team.rank, "data": {"imbalance": 10}}
    spec = Spec.checked(settings)
    ready = prepare(spec, team=team)
    with pytest.raises(UserError) as refusal:
        run(spec, prepared=ready)
    return {"message": str(refusal.value)}


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        cross_entropy,
        meta_iada,
        resumed,
        fewer_images_than_processes,
        norm,
        different_checkpoints,
        different_images,
    )
}


def team_answers(folder: Path, size: int, *cases: str) -> list[dict[str, Any]]:
    """What every process of a team has found, by case; a list over the ranks."""
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }
    words = [sys.executable, "-m", "helpers.team_runs"]
    jobs = [
        subprocess.Popen(
            [*words, str(rank), str(size), str(folder), *cases],
            env=environment,
            cwd=tests.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    for job in jobs:
        _, errors = job.communicate(timeout=900)
        assert job.returncode == 0, errors[-3000:]
    return [
        {case: torch.load(folder / f"{case}_{size}_{rank}.pt") for case in cases}
        for rank in range(size)
    ]


def main() -> None:
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    folder = Path(sys.argv[3])
    torch.set_num_threads(1)
    team = ALONE
    if size > 1:
        # A process that waits in vain ends the test.
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting_{size}",
            rank=rank,
            world_size=size,
            timeout=timedelta(minutes=5),
        )
        team = Team(rank, size)
    for case in sys.argv[4:]:
        torch.save(CASES[case](team, folder), folder / f"{case}_{size}_{rank}.pt")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
