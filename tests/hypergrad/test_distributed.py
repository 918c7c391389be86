"""Two processes with half a batch each, against one with the joined batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from needsaug_lite import hypergrad

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
if world > 1:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
source = torch.Generator().manual_seed(0)
images = torch.randn(24, 5, generator=source)
labels = torch.randint(3, (24,), generator=source)
held = torch.randn(16, 5, generator=source)
params = {"a": torch.randn(6, 5, generator=source),
          "b": torch.randn(3, 6, generator=source)}
hparams = {"w": torch.randn(3, generator=source), "t": torch.ones(1)}
mine, mine_held = slice(rank, None, world), slice(rank, None, world)

def logits(p, x, h):
    return (x @ p["a"].T).tanh() @ p["b"].T * h["t"]

def inner(p, h):
    found = cross_entropy(logits(p, images[mine], h), labels[mine], reduction="none")
    decay = 0.1 * sum(t.square().sum() for t in p.values())
    return (h["w"].exp()[labels[mine]] * found).mean() + decay

def outer(p, h):
    return logits(p, held[mine_held], h).logsumexp(1).square().mean()

def chained(w, h):
    return inner(w["first"], h) + 0.2 * (w["second"]["a"] * w["first"]["a"]).sum()

composed = hypergrad.ComposedLoss(
    lambda p, h: logits(p, images[mine], h),
    lambda z, h: (h["w"].exp()[labels[mine]]
                  * cross_entropy(z, labels[mine], reduction="none")).mean(),
    lambda p, h: 0.1 * sum(t.square().sum() for t in p.values()),
)
two = (params, hparams)
levels = [
    hypergrad.Level("second", lambda w, h: inner(w["second"], h), params, 0.5),
    hypergrad.Level("first", chained, params, 0.4, {"second": "updated"}),
]
judge = lambda w, h: outer(w["first"], h)
cg = hypergrad.conjugate_gradient
found = {
    "unrolled": hypergrad.unrolled(inner, outer, *two, lr=0.5, steps=2, momentum=0.5),
    "sequence": hypergrad.unrolled([inner, inner], outer, *two, lr=0.5),
    "finite_difference": hypergrad.finite_difference(inner, outer, *two, lr=0.5),
    "neumann": hypergrad.implicit(inner, outer, *two, solver=hypergrad.neumann(5, 0.1)),
    "cg": hypergrad.implicit(inner, outer, *two, solver=cg(40, damping=3.0)),
    "gauss_newton": hypergrad.implicit(
        composed, outer, *two, solver=cg(60, matrix="gauss_newton")),
    "exact": hypergrad.implicit(
        inner, outer, *two, solver=hypergrad.exact()),
    "chain": hypergrad.chain(levels, judge, hparams),
    "chain_exact": hypergrad.chain_exact(levels, judge, hparams),
}
answer = {
    name: torch.cat([
        *(t.flatten() for t in f.values()), *(t.flatten() for t in f.params.values()),
        f.inner_loss[None], f.outer_loss[None], f.vector_norm[None],
    ]).tolist()
    for name, f in found.items()
}
answer["eigenvalue"] = [hypergrad.largest_eigenvalue(
    inner, *two, iterations=2000, tolerance=1e-8)]
# What averaging hypergradients of single ranks would give.
if world > 1:
    dist.destroy_process_group()
    local = hypergrad.unrolled(inner, outer, *two, lr=0.5, steps=2, momentum=0.5)
    answer["local"] = torch.cat([t.flatten() for t in local.values()]).tolist()
with open(f"{folder}/{world}_{rank}.json", "w") as file:
    json.dump(answer, file)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("ranks")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(rank), str(world),
             str(folder)],
            env=environment, cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE, text=True,
        )
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]  # fmt: skip
    for job in jobs:
        _, errors = job.communicate(timeout=240)
        assert job.returncode == 0, errors[-3000:]
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


ROUTES = [
    "unrolled", "sequence", "finite_difference", "neumann", "cg",
    "gauss_newton", "exact", "chain", "chain_exact", "eigenvalue",
]  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
def test_two_ranks_equal_one_process(answers: dict[str, dict], route: str) -> None:
    assert answers["2_0"][route] == answers["2_1"][route]  # bit for bit
    assert answers["2_0"][route] == pytest.approx(
        answers["1_0"][route], rel=1e-6, abs=1e-9
    )


def test_averaging_local_hypergradients_is_another_number(
    answers: dict[str, dict],
) -> None:
    pairs = zip(answers["2_0"]["local"], answers["2_1"]["local"], strict=True)
    averaged = [(a + b) / 2 for a, b in pairs]
    joined = answers["1_0"]["unrolled"][: len(averaged)]
    gap = sum((a - b) ** 2 for a, b in zip(averaged, joined, strict=True)) ** 0.5
    assert gap > 0.05 * sum(b * b for b in joined) ** 0.5
