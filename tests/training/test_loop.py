"""The loop: repeats, resumes, stops at nonsense."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from needsaug_lite import data, models, training
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.cross_entropy import CrossEntropy
from needsaug_lite.methods.baselines.margins import LDAM
from needsaug_lite.training import Optimisation, Stage, fit

RUN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from needsaug_lite import data, models, training
from needsaug_lite.augment import StandardAugmentation
from needsaug_lite.methods.baselines.margins import LDAM

splits = data.load("digits", imbalance=20, seed=3)
torch.manual_seed(3)
model = models.build("convnet", splits.image_shape, 10, width=4, head="cosine")
method = LDAM(model, splits, deferred=True, start=0.5, seed=3,
              augment=StandardAugmentation(crop=1),
              optimisation=training.Optimisation(batch_size=16))
checkpoint, out, stop = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if stop == "wait":
    step, steps = method.step, 0
    def slow(batch):
        global steps
        steps += 1
        if steps == 50:                      # in the middle of the third epoch
            print("waiting", flush=True)
            import time; time.sleep(600)
        return step(batch)
    method.step = slow
history = training.fit(method, 6, checkpoint=checkpoint, resume=True, run="r")
torch.save(method.state_dict(), out)
print(len(history.rows))
"""


def make(seed: int = 0, batch_size: int = 64, lr: float = 0.1) -> CrossEntropy:
    splits = data.load("digits", imbalance=20, seed=seed)
    torch.manual_seed(seed)
    model = models.build("convnet", splits.image_shape, 10, width=4)
    settings = Optimisation(batch_size=batch_size, lr=lr)
    return CrossEntropy(model, splits, optimisation=settings, seed=seed)


def weights(method: training.Method) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in method.model.parameters()])


def test_a_seed_repeats_and_another_does_not() -> None:
    runs = [make(seed) for seed in (0, 0, 1)]
    histories = [fit(run, 2) for run in runs]
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert histories[0].column("loss") == histories[1].column("loss")
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_killed_in_mid_epoch_and_resumed_gives_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def call(name: str, mode: str) -> list[str]:
        files = [str(tmp_path / f"{name}.ckpt"), str(tmp_path / f"{name}.pt")]
        return [sys.executable, str(script), *files, mode]

    whole = subprocess.run(
        call("whole", "go"), capture_output=True, text=True, check=False
    )
    assert whole.returncode == 0, whole.stderr

    victim = subprocess.Popen(call("cut", "wait"), stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    assert victim.stdout.readline().strip() == "waiting"
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut.pt").exists()
    saved = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    assert 0 < saved["epochs_done"] < 6

    resumed = subprocess.run(
        call("cut", "go"), capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split()[-1] == "6"
    one = torch.load(tmp_path / "whole.pt", weights_only=True)
    other = torch.load(tmp_path / "cut.pt", weights_only=True)
    assert one["model"].keys() == other["model"].keys()
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name]), name
    momenta = [s["optimiser"]["state"][0]["momentum_buffer"] for s in (one, other)]
    assert torch.equal(*momenta)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.ckpt"
    fit(make(), 1, checkpoint=file, run="one")
    with pytest.raises(UserError, match="belongs to run 'one'"):
        fit(make(), 2, checkpoint=file, resume=True, run="two")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.ckpt"
    fit(make(), 1, checkpoint=file, run="one")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="can't be read"):
        fit(make(), 2, checkpoint=file, resume=True, run="one")


def test_a_failed_save_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.ckpt"
    fit(make(), 1, checkpoint=file)
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        fit(make(), 1, checkpoint=file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_divergence_is_named() -> None:
    with pytest.raises(training.TrainingDivergedError, match="loss became .*CrossEnt"):
        fit(make(lr=1e30), 3)


def test_stages_run_in_order_and_begin_once(tmp_path: Path) -> None:
    method = make()
    events: list[str] = []

    def stages(epochs: int) -> list[Stage]:
        plain = CrossEntropy.stages(method, epochs)[0]

        def stage(name: str, length: int) -> Stage:
            return Stage(
                name,
                length,
                plain.batches,
                plain.step,
                lambda epoch: events.append(f"{name}{epoch}") or {},
                lambda: events.append(f"begin {name}"),
            )

        return [stage("a", 2), stage("b", epochs - 2)]

    method.stages = stages  # type: ignore[method-assign]
    file = tmp_path / "c.ckpt"
    rows = fit(method, 5, checkpoint=file, every=3).rows
    assert events == ["begin a", "a0", "a1", "begin b", "b0", "b1", "b2"]
    assert [row["stage"] for row in rows] == ["a", "a", "b", "b", "b"]
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4]
    events.clear()
    again = fit(method, 6, checkpoint=file, resume=True).rows
    assert events == ["b3"]
    assert again[:5] == rows


def test_on_epoch_adds_to_the_history() -> None:
    rows = fit(make(), 2, on_epoch=lambda epoch, method: {"twice": 2.0 * epoch}).rows
    assert [row["twice"] for row in rows] == [0.0, 2.0]


def test_mean_loss_of_an_epoch_is_over_images_not_batches() -> None:
    # One epoch at rate zero: the weights stand still, so the mean can be recomputed.
    method = make(batch_size=100, lr=0.0)
    method.model.eval()
    with torch.no_grad():
        seen = [
            (len(batch), float(method.loss(method.model(batch.images), batch.labels)))
            for batch in method.batches.epoch(0)
        ]
    assert len({size for size, _ in seen}) == 2
    method.model.train = lambda mode=True: method.model  # type: ignore[assignment]
    logged = fit(method, 1).rows[0]["loss"]
    expected = sum(n * loss for n, loss in seen) / sum(n for n, _ in seen)
    assert logged == pytest.approx(expected, rel=1e-5)


def test_ldam_needs_a_cosine_head() -> None:
    splits = data.load("digits", imbalance=20)
    model = models.build("convnet", splits.image_shape, 10)
    with pytest.raises(UserError, match="cosine head"):
        LDAM(model, splits)


def test_nothing_is_written_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    fit(make(), 1)
    assert capfd.readouterr() == ("", "")


def test_time_of_earlier_epochs_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "c.ckpt"
    first = fit(make(), 1, checkpoint=file)
    started = time.perf_counter()
    both = fit(make(), 2, checkpoint=file, resume=True)
    assert both.seconds < first.seconds + time.perf_counter() - started
    assert both.seconds > first.seconds
