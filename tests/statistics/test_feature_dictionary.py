"""The feature dictionary: even draws inside a class, in memory and in a file."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from needsaug_lite.augment import StandardAugmentation
from needsaug_lite.data import Examples, InMemory, Normalisation, generator
from needsaug_lite.errors import UserError
from needsaug_lite.statistics import FeatureDictionary

GREY = Normalisation((0.2,), (0.5,))
class_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=6)
slot_counts = st.integers(1, 6)
STATUS = Path("/proc/self/status")


def numbered(counts: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features that say which training image they are, in a mixed order."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = torch.randperm(len(labels), generator=generator(seed))
    positions = torch.arange(len(labels), dtype=torch.float32)
    return torch.stack([positions, -positions], 1), labels[order]


def dictionary(counts: list[int], seed: int = 0) -> FeatureDictionary:
    return FeatureDictionary(*numbered(counts, seed), len(counts))


def images(counts: list[int], size: int = 5) -> Examples:
    _, labels = numbered(counts)
    draw = torch.Generator().manual_seed(1)
    shape = (len(labels), 1, size, size)
    pixels = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    return Examples(InMemory(pixels), labels)


class Flat(nn.Module):
    """Some features of an image, with a parameter that wants a gradient."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn(25, 3, generator=source))

    def forward(self, batch: Tensor) -> Tensor:
        return batch.flatten(1) @ self.weight


# --- rows ---------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(class_sizes, st.integers(0, 1000))
def test_rows_are_sorted_and_know_their_image(sizes: list[int], seed: int) -> None:
    features, labels = numbered(sizes, seed)
    found = FeatureDictionary(features, labels, len(sizes))
    assert len(found) == sum(sizes)
    assert found.num_classes == len(sizes)
    assert found.counts.tolist() == sizes
    assert found.starts.tolist() == [sum(sizes[:c]) for c in range(len(sizes))]
    assert found.labels.equal(labels[found.order])
    assert found.labels.equal(labels.sort().values)
    assert found.features.equal(features[found.order])
    for part in found.order.split(sizes):  # images of a class keep their order
        assert part.equal(part.sort().values)


@settings(deadline=None, max_examples=80)
@given(class_sizes, slot_counts, st.integers(0, 1000))
def test_rows_belong_to_their_label_and_repeat_only_where_they_must(
    sizes: list[int], slots: int, seed: int
) -> None:
    found = dictionary(sizes)
    labels = torch.randint(len(sizes), (40,), generator=generator(seed))
    rows = found.rows(labels, slots, generator(seed))
    assert rows.shape == (40, slots)
    assert found.labels[rows].equal(labels[:, None].expand(40, slots))
    for label, row in zip(labels.tolist(), rows.tolist(), strict=True):
        if sizes[label] >= slots:
            assert len(set(row)) == slots
    assert found.rows(labels, slots, generator(seed)).equal(rows)


@settings(deadline=None, max_examples=50)
@given(class_sizes, slot_counts, st.integers(0, 1000))
def test_rows_are_those_of_drawing_from_a_list(
    sizes: list[int], slots: int, seed: int
) -> None:
    """Slot by slot out of the list of members that are left."""
    found = dictionary(sizes)
    labels = torch.randint(len(sizes), (20,), generator=generator(seed))
    rows = found.rows(labels, slots, generator(seed))
    uniform = torch.rand(20, slots, generator=generator(seed), dtype=torch.float64)
    for i, label in enumerate(labels.tolist()):
        left = list(range(sum(sizes[:label]), sum(sizes[: label + 1])))
        kept = sizes[label] < slots
        for slot, u in enumerate(uniform[i].tolist()):
            pick = int(u * len(left))
            assert int(rows[i, slot]) == (left[pick] if kept else left.pop(pick))


CASES: dict[str, tuple[int, int, list[tuple[int, ...]]]] = {
    "4 of which 3": (4, 3, list(itertools.permutations(range(4), 3))),
    "all 4": (4, 4, list(itertools.permutations(range(4)))),
    "one of 5": (5, 1, [(i,) for i in range(5)]),
    "2 for 3 slots": (2, 3, list(itertools.product(range(2), repeat=3))),
    "3 for 4 slots": (3, 4, list(itertools.product(range(3), repeat=4))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_ordered_tuple_is_as_likely(case: str, seed: int) -> None:
    size, slots, tuples = CASES[case]
    found = dictionary([3, size, 2])
    draws = 500 * len(tuples)
    labels = torch.ones(draws, dtype=torch.int64)
    rows = found.rows(labels, slots, generator(seed, 7)) - 3
    seen = Counter(map(tuple, rows.tolist()))
    assert set(seen) == set(tuples)
    assert stats.chisquare([seen[t] for t in tuples]).pvalue > 1e-3


@settings(deadline=None, max_examples=40)
@given(class_sizes, class_sizes, st.integers(1, 9), slot_counts)
def test_other_classes_do_not_disturb_a_draw(
    sizes: list[int], others: list[int], own: int, slots: int
) -> None:
    """Class 0 has `own` members in both; whatever follows it differs."""
    one, two = dictionary([own, *sizes]), dictionary([own, *others])
    draws = generator(1), generator(1)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    rows = [d.rows(labels, slots, g) for d, g in zip((one, two), draws, strict=True)]
    assert rows[0][labels == 0].equal(rows[1][labels == 0])
    # As many numbers were taken from the generator.
    assert draws[0].get_state().equal(draws[1].get_state())


def test_samples_are_the_features_of_the_rows() -> None:
    found = dictionary([3, 1, 6])
    labels = torch.tensor([2, 0, 1, 2])
    sample = found.sample(labels, 4, generator(3))
    rows = found.rows(labels, 4, generator(3))
    assert sample.shape == (4, 4, 2)
    assert sample.equal(found.features[rows])
    assert sample[..., 0].long().equal(found.order[rows])
    assert found.take(rows[0, 1]).equal(sample[0, 1])
    assert found.take(rows, "cpu").equal(sample)


def test_samples_leave_the_dictionary_as_it_is() -> None:
    found = dictionary([3, 2])
    before = found.features.clone()
    found.sample(torch.tensor([0, 1]), 2, generator(0)).zero_()
    assert found.features.equal(before)


@pytest.mark.parametrize("labels", [[0, 0, 2], [1, 1, 2], [0, 1, 1]])
def test_a_class_without_images_is_named(labels: list[int]) -> None:
    missing = ({0, 1, 2} - set(labels)).pop()
    with pytest.raises(UserError, match=f"class {missing} has no training image"):
        FeatureDictionary(torch.zeros(3, 2), torch.tensor(labels), 3)
    pixels = torch.zeros(3, 1, 5, 5, dtype=torch.uint8)
    examples = Examples(InMemory(pixels), torch.tensor(labels))
    with pytest.raises(UserError, match=f"class {missing} has no training image"):
        FeatureDictionary.of(Flat(), examples, GREY, 3)


# --- from images --------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7, 500])
def test_extraction_is_the_network_on_every_image(batch_size: int) -> None:
    examples, network = images([4, 1, 8]), Flat()
    found = FeatureDictionary.of(network, examples, GREY, 3, batch_size=batch_size)
    assert isinstance(examples.images, InMemory)
    direct = network(GREY(examples.images.pixels)).detach()
    expected = FeatureDictionary(direct, examples.labels, 3)
    assert torch.allclose(found.features, expected.features, atol=1e-6)
    assert not found.features.requires_grad
    assert found.order.equal(expected.order)
    assert found.labels.equal(expected.labels)
    assert found.features.shape == (13, 3)


def test_augmentation_is_fixed_by_seed_and_epoch() -> None:
    examples = images([4, 2, 8])

    def features(seed: int, epoch: int) -> Tensor:
        augment = StandardAugmentation(crop=2, flip=True)
        return FeatureDictionary.of(
            Flat(), examples, GREY, 3, augment=augment, seed=seed, epoch=epoch
        ).features

    assert features(0, 1).equal(features(0, 1))
    assert not features(0, 1).equal(features(0, 2))
    assert not features(0, 1).equal(features(1, 1))
    plain = FeatureDictionary.of(Flat(), examples, GREY, 3)
    assert not features(0, 1).equal(plain.features)


# --- in a file ----------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 500])
def test_a_file_holds_what_memory_holds(tmp_path: Path, batch_size: int) -> None:
    examples, file = images([4, 1, 8]), tmp_path / "deep" / "features"
    held = {
        where: FeatureDictionary.of(
            Flat(), examples, GREY, 3, file=where, batch_size=batch_size
        )
        for where in (None, file)
    }
    memory, disk = held[None], held[file]
    assert list(file.parent.iterdir()) == [file]
    assert disk.features.dtype == torch.float32
    assert disk.features.equal(memory.features)
    for name in ("counts", "starts", "order", "labels"):
        assert getattr(disk, name).equal(getattr(memory, name))
    labels = torch.tensor([2, 2, 0, 1])
    one, two = (d.sample(labels, 3, generator(4)) for d in (memory, disk))
    assert one.equal(two)


def failing(after: int) -> Callable[[Tensor], Tensor]:
    calls = itertools.count()

    def extract(batch: Tensor) -> Tensor:
        if next(calls) >= after:
            raise RuntimeError("out of memory")
        return torch.ones(len(batch), 3)

    return extract


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("there", [False, True])
def test_a_file_is_whole_or_absent(tmp_path: Path, after: int, there: bool) -> None:
    examples, file = images([4, 1, 8]), tmp_path / "features"
    if there:
        first = FeatureDictionary.of(Flat(), examples, GREY, 3, file=file)
        before, kept = file.read_bytes(), first.features.clone()
    with pytest.raises(RuntimeError, match="out of memory"):
        FeatureDictionary.of(failing(after), examples, GREY, 3, file=file, batch_size=4)
    assert list(tmp_path.iterdir()) == ([file] if there else [])
    if there:
        assert file.read_bytes() == before
        # A dictionary that is in use survives that its file is made anew.
        FeatureDictionary.of(failing(99), examples, GREY, 3, file=file)
        assert file.read_bytes() != before
        assert first.features.equal(kept)


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation returns."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.numbers = max(self.numbers, found.numel())
        return found


def return_free_memory() -> None:
    """Memory that was let go counts as used until it is given back (glibc)."""
    ctypes.CDLL(None).malloc_trim(0)


def private_memory() -> int:
    """Bytes of this process that are in no file, or 0 where that can't be known."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return 1024 * int(found[0]) if found else 0


@pytest.mark.skipif(private_memory() == 0, reason="only Linux tells")
def test_a_file_is_read_where_it_is_touched(tmp_path: Path) -> None:
    """Neither making 80 MB of features nor drawing among them holds them in memory."""
    count, dim, megabyte = 20_000, 1000, 2**20
    pixels = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    examples = Examples(InMemory(pixels), torch.arange(count) % 2)
    columns = torch.arange(float(dim))
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def extract(batch: Tensor) -> Tensor:
        assert len(alive) < 3  # what is written is let go
        made = batch.flatten(1) + columns
        alive.add(made)
        return made

    return_free_memory()  # else a large array may lie where an old one lay
    before = private_memory()
    found = FeatureDictionary.of(
        extract,
        examples,
        GREY,
        2,
        file=tmp_path / "features",
        batch_size=200,
    )
    with Largest() as seen:
        sample = found.sample(torch.tensor([0, 1]).repeat(100), 5, generator(0))
    assert sample.shape == (200, 5, dim)
    assert seen.numbers == sample.numel()
    assert private_memory() - before < 30 * megabyte
    whole = found.features.clone()  # a copy does show
    assert len(whole) == count
    assert private_memory() - before > 60 * megabyte
