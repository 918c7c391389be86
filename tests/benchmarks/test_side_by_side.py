"""Side by side in one run: ratios, printed, never a bound that a slow day can break.

make bench
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import pytest
import torch

from needsaug_lite import _torchvision, data, losses, models  # noqa: F401
from needsaug_lite.augment import StandardAugmentation
from needsaug_lite.data import Batches, Examples, InMemory, Normalisation

from torchvision.transforms import v2  # isort: skip

REPEATS = 15


def paired_ratio(one: Callable[[], object], other: Callable[[], object]) -> float:
    """Median over pairs of the time of `one` divided by the time of `other`."""

    def seconds(call: Callable[[], object]) -> float:
        started = perf_counter()
        call()
        return perf_counter() - started

    one(), other()
    return median(seconds(one) / seconds(other) for _ in range(REPEATS))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_losses_beside_cross_entropy(capsys: pytest.CaptureFixture[str]) -> None:
    """One training step with each loss, divided by a step with plain cross-entropy."""
    model = models.build("convnet", (1, 28, 28), 10)
    images, labels = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
    counts = torch.tensor(data.long_tail_counts(1000, 100, 10))
    prior = counts / counts.sum()
    margins = losses.ldam_margins(counts)

    def step(loss: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            model.zero_grad()
            loss(model(images)).backward()

        return call

    plain = step(lambda z: losses.cross_entropy(z, labels))
    others = {
        "focal": lambda z: losses.focal(z, labels),
        "LDAM": lambda z: losses.ldam(z, labels, margins=margins),
        "LA": lambda z: losses.logit_adjusted(z, labels, class_prior=prior),
        "VS": lambda z: losses.vector_scaling(z, labels, counts=counts),
    }
    with capsys.disabled():
        for name, loss in others.items():
            print(f"\n{name} step / CE step: {paired_ratio(step(loss), plain):.3f}")


def test_batches_beside_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    """An epoch of crop, flip and normalisation, beside torchvision per image."""
    pixels = torch.randint(256, (2000, 3, 32, 32), dtype=torch.uint8)
    examples = Examples(InMemory(pixels), torch.zeros(2000, dtype=torch.int64))
    moments = Normalisation((0.5,) * 3, (0.25,) * 3)
    ours = Batches(examples, 128, moments, augment=StandardAugmentation(4, True))
    theirs = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )

    def batched() -> None:
        for _ in ours.epoch(0):
            pass

    def one_by_one() -> None:
        for chunk in pixels.split(128):
            torch.stack([theirs(image) for image in chunk])

    with capsys.disabled():
        ratio = paired_ratio(one_by_one, batched)
        print(f"\ntorchvision per image / batched: {ratio:.1f}")
