"""A row that today's settings, code or data don't bear out is named and not counted."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from needsaug_lite import cli
from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Record, Spec, load_records, pages, registry, run
from needsaug_lite.experiments.grid import expand
from needsaug_lite.experiments.ingredients import FeatureSpec
from needsaug_lite.experiments.records import full_rows, read_record, read_rows
from needsaug_lite.experiments.stale import StaleRowError, in_words

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "data": {"imbalance": 20},
    "model": {"width": 4},
    "optimisation": {"batch_size": 64},
    "epochs": 1,
    "profile": "smoke",
}
FEATURES = {**SMALL, "features": {"width": 4}, "model": {"backbone": "linear"}}
GENERATED = {**SMALL, "method": "pcr", "data": {"imbalance": 20, "meta_per_class": 2}}
Change = Callable[[dict[str, Any], pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def trained() -> Record:
    return run(Spec.checked(SMALL))


def like(trained: Record, spec: Spec, **changes: Any) -> Record:
    """A row with the numbers of another: what matters here is what it says it is."""
    own = {"spec": spec, "run_id": spec.run_id, "method_version": spec.method_version}
    return trained.model_copy(update={**own, **changes})


def save(trained: Record, results: Path, values: dict[str, Any]) -> Path:
    """A sound row of these settings, whose data may be others than its numbers'."""
    spec = Spec.checked(values)
    known = {
        "digits": spec.load_data().checksum() if spec.data.name == "digits" else ""
    }
    checksum = known.get(spec.data.name, f"{spec.data.name} {spec.data_seed}")
    return like(trained, spec, data_checksum=checksum).save(results)


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def lose_the_method(content: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    content["spec"]["method"] = "a_method_of_old"


def forbid_a_setting(content: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    content["spec"]["optimisation"]["lr"] = -1


def drop_an_option(content: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    content["spec"]["data"]["option_of_old"] = 3


def change_the_method(content: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    method: Any = registry.entry(content["spec"]["method"]).load()
    patch.setattr(method, "version", method.version + 1)


def change_the_generator(content: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    kind: Any = registry.entry(content["spec"]["generator"]["kind"], "generator").load()
    patch.setattr(kind, "version", kind.version + 1)


def change_the_features(content: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FeatureSpec, "version", FeatureSpec.version + 1)


def change_the_seed(content: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    content["spec"]["seed"] = 77


def change_the_data(content: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    content["data_checksum"] = "0" * 64


CASES = [
    (SMALL, lose_the_method, "no method 'a_method_of_old'"),
    (SMALL, forbid_a_setting, "optimisation.lr: .* greater than 0"),
    (SMALL, drop_an_option, "data.option_of_old: unknown name"),
    (SMALL, change_the_method, r"version 1 of cross_entropy .* version 2 now"),
    (GENERATED, change_the_generator, "another version .* trains its generator"),
    (FEATURES, change_the_features, "another version .* makes its features"),
    (SMALL, change_the_seed, "it was edited, or"),
    (SMALL, change_the_data, "images or labels of digits are others"),
]


@pytest.fixture(params=CASES, ids=lambda case: case[1].__name__)
def spoiled(
    request: pytest.FixtureRequest,
    trained: Record,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Path, str]:
    """Two sound rows of another method and one spoiled row; its file; why."""
    values, change, reason = request.param
    for seed in (1, 2):
        others = {**SMALL, "method": "logit_adjustment", "seed": seed}
        save(trained, tmp_path, others)
    file = save(trained, tmp_path, {**values, "experiment": "scratch"})
    assert not read_rows(tmp_path).stale
    edit(file, lambda content: change(content, monkeypatch))
    return tmp_path, file, reason


def test_a_stale_row_is_named_with_its_reason(spoiled: tuple[Path, Path, str]) -> None:
    results, file, reason = spoiled
    rows = read_rows(results)
    assert [record.spec.method for record in rows.standing] == ["logit_adjustment"] * 2
    (row,) = rows.stale
    assert (row.file, row.experiment, row.profile) == (file, "scratch", "smoke")
    assert re.search(reason, row.reason)


def test_it_is_not_counted_and_the_table_says_so(
    spoiled: tuple[Path, Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    results, file, reason = spoiled
    with caplog.at_level(logging.WARNING):
        standing = load_records(results, "scratch")
    assert re.search(f"scratch: 1 row is stale: .*{reason}", caplog.text)
    pages.write_pages(results, results / "out")
    shown = (results / "out/results_tables.md").read_text()
    (mark,) = re.findall(r"~~~~\{warning\}\n(.*?)\n~~~~\n", shown, re.DOTALL)
    assert "1 row is stale" in mark
    assert "not counted" in mark
    file.unlink()
    assert load_records(results) == standing
    alone = pages.measured_tables(standing)
    assert (
        re.sub(r"~~~~\{warning\}.*?~~~~\n", "", shown, flags=re.DOTALL) == alone + "\n"
    )


def test_the_command_lists_it_and_fails(
    spoiled: tuple[Path, Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results, file, reason = spoiled

    def call() -> tuple[int, str]:
        words = ["needsaug", "results", str(results), "--stale", "--root", str(results)]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capsys.readouterr().out

    status, out = call()
    assert status == 1
    assert re.search(f"{file}: .*{reason}", out)
    assert "1 of 3 rows are stale" in out
    file.unlink()
    assert call() == (0, "0 of 2 rows are stale\n")


def test_an_experiment_of_which_nothing_stands_is_still_named(
    trained: Record, tmp_path: Path
) -> None:
    file = save(trained, tmp_path, {**SMALL, "experiment": "digits_needs"})
    edit(file, lambda content: content.update(data_checksum="0"))
    pages.write_pages(tmp_path, tmp_path / "out")
    for name in ("results_tables", "needs_results"):
        text = (tmp_path / f"out/{name}.md").read_text()
        assert "`digits_needs`" in text
        assert "1 row is stale" in text
    assert "stale" not in (tmp_path / "out/search_results.md").read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:200],
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "spec": None}),
        lambda text: json.dumps({**json.loads(text), "metrics": None}),
        lambda text: json.dumps({**json.loads(text), "run_id": "0123456789abcdef"}),
        lambda text: text.replace('"lr": 0.1', '"lr": -1').replace('"metrics"', '"x"'),
    ],
)
def test_a_damaged_file_is_an_error_and_not_stale(
    damage: Callable[[str], str], trained: Record, tmp_path: Path
) -> None:
    file = save(trained, tmp_path, SMALL)
    before = file.read_text()
    file.write_text(damage(before))
    assert file.read_text() != before
    for read in (lambda: read_record(file), lambda: read_rows(tmp_path)):
        with pytest.raises(UserError) as error:
            read()
        assert not isinstance(error.value, StaleRowError)


def test_reasons_are_counted(trained: Record, tmp_path: Path) -> None:
    for seed in range(3):
        file = save(trained, tmp_path, {**SMALL, "seed": seed})
        edit(file, lambda content: content.update(data_checksum="0"))
    edit(file, lambda content: content["spec"].update(method="old"))
    lines = in_words(read_rows(tmp_path).stale)
    assert [line.partition(" stale")[0] for line in lines] == ["2 rows are", "1 row is"]


# --- data -----------------------------------------------------------------------


def save_npz(file: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    labels = np.arange(20) % 2
    np.savez(file, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)


def test_a_users_own_data_are_compared_where_they_are(tmp_path: Path) -> None:
    file, results = tmp_path / "mine.npz", tmp_path / "rows"
    save_npz(file, 0)
    run(Spec.checked({**SMALL, "data": {"name": str(file)}}), results=results)
    assert read_rows(results, root=tmp_path)[1:] == ([], {})
    save_npz(file, 1)
    (row,) = read_rows(results, root=tmp_path).stale
    assert "mine.npz are others now" in row.reason
    # No file of a user is opened unless somebody asks.
    assert read_rows(results)[1:] == ([], {})
    file.unlink()
    found = read_rows(results, root=tmp_path)
    assert len(found.standing) == 1
    assert not found.stale
    ((reason, count),) = found.unchecked.items()
    assert count == 1
    assert "mine.npz" in reason


def test_published_data_that_are_not_there_leave_the_question_open(
    trained: Record, tmp_path: Path
) -> None:
    for seed in (0, 1):
        save(trained, tmp_path, {**SMALL, "data": {"name": "mnist"}, "seed": seed})
    found = read_rows(tmp_path, root=tmp_path)
    assert (len(found.standing), found.stale) == (2, [])
    assert list(found.unchecked.values()) == [2]


def test_digits_that_cannot_be_drawn_any_more_are_stale(
    trained: Record, tmp_path: Path
) -> None:
    spec = Spec.checked({**SMALL, "data": {"n_max": 5000}})
    like(trained, spec).save(tmp_path)
    (row,) = read_rows(tmp_path).stale
    assert "can't be made any more" in row.reason


def test_rows_on_the_same_data_must_agree(trained: Record, tmp_path: Path) -> None:
    """`seed` of the run and `data.seed` name the same data."""
    drawn = {"name": "cifar10", "imbalance": 100}
    values = [
        {**SMALL, "data": drawn, "seed": 3},
        {**SMALL, "data": {**drawn, "seed": 3}, "seed": 4, "method": "focal"},
        {**SMALL, "data": drawn, "seed": 4},
        {**SMALL, "data": {**drawn, "imbalance": 50}, "seed": 3},
    ]
    files = [save(trained, tmp_path, one) for one in values]
    assert not read_rows(tmp_path).stale
    edit(files[1], lambda content: content.update(data_checksum="other"))
    rows = read_rows(tmp_path)
    assert {row.file for row in rows.stale} == set(files[:2])
    assert all("different checksums" in row.reason for row in rows.stale)


@pytest.mark.slow
def test_no_committed_row_is_stale() -> None:
    """Digits are compared by settings and seed of their data, every pair of them."""
    rows = read_rows(ROOT / "book/results")
    assert rows.standing
    assert not rows.stale, "\n".join(f"{row.file}: {row.reason}" for row in rows.stale)


# --- columns for full rows ------------------------------------------------------

GRIDS = (
    "cifar10_lt",
    "cifar100_lt_autobalance",
    "cifar100_lt_facog",
    "gamo_full",
    "cifar100_lt_needs",
)


def full_specs() -> list[Spec]:
    grids = [yaml.safe_load((ROOT / f"nbs/grids/{x}.yaml").read_text()) for x in GRIDS]
    specs = [spec for grid in grids for spec in expand(grid)]
    first = [spec for spec in specs if spec.seed == min(one.seed for one in specs)]
    # Rows of needs-aware generation have norms of paths, which these numbers lack.
    return [spec for spec in first if not spec.method.startswith("needs_aware")]


def full_cells(results: Path) -> list[str]:
    """Numbers in any column of any page whose title has "full" in it."""
    cells = []
    for page in pages.write_pages(results, results.parent / "pages"):
        place: int | None = None
        for line in page.read_text().splitlines():
            parts = [part.strip() for part in re.split(r"(?<!\\)\|", line)]
            if not line.startswith("|"):
                place = None
            elif place is None:
                place = next((i for i, x in enumerate(parts) if "full" in x), -1)
            elif place >= 0 and re.search("[1-9]", parts[place]):
                cells.append(parts[place])
    return cells


def changed(spec: Spec, **values: Any) -> Spec:
    return Spec.checked({**spec.model_dump(mode="json"), **values})


def shortened(spec: Spec) -> Spec:
    return changed(spec, profile="reduced", deviations=["shorter"])


def on_validation(spec: Spec) -> Spec:
    held = {**spec.model_dump(mode="json")["data"], "val_per_class": 2}
    return changed(spec, data=held, evaluate_on="val")


LESSER: dict[str, Callable[[Spec], Spec]] = {
    "reduced": shortened,
    "lite": lambda spec: changed(spec, profile="lite"),
    "smoke": lambda spec: changed(spec, profile="smoke"),
    "validation": on_validation,
}


@pytest.fixture(scope="module")
def scored(trained: Record) -> Record:
    """With the scores of every table."""
    gamo = {"balanced_accuracy": 0.5, "geometric_mean": 0.5}
    return trained.model_copy(
        update={"metrics": {**trained.metrics, "gamo_test": gamo}}
    )


@pytest.fixture(scope="module")
def full(scored: Record, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Full rows of the recipes of four papers."""
    return [like(scored, spec, data_checksum="x") for spec in full_specs()]


def saved(rows: list[Record], results: Path) -> list[Path]:
    # Rows of several recipes on the same data have the same checksum.
    return [row.save(results) for row in rows]


def test_full_rows_fill_columns(full: list[Record], tmp_path: Path) -> None:
    saved(full, tmp_path / "rows")
    assert full_rows(full) == full
    assert full_cells(tmp_path / "rows")


@pytest.mark.parametrize("kind", LESSER)
def test_a_lesser_row_fills_no_full_column(
    kind: str, full: list[Record], scored: Record, tmp_path: Path
) -> None:
    rows = [like(scored, LESSER[kind](row.spec), data_checksum="x") for row in full]
    assert full_rows(rows) == []
    files = saved(rows, tmp_path / "rows")
    assert len(read_rows(tmp_path / "rows").standing) == len(set(files)) == len(full)
    assert full_cells(tmp_path / "rows") == []


def test_a_stale_row_fills_no_full_column_and_the_page_names_it(
    full: list[Record], tmp_path: Path
) -> None:
    results = tmp_path / "rows"
    for file in saved(full, results):
        edit(file, lambda content: content["spec"].update(method="old"))
    assert full_cells(results) == []
    for paper in ("meta_iada", "autobalance", "facog", "needs_aware"):
        text = (tmp_path / f"pages/paper_{paper}.md").read_text()
        assert "stale: there is no method 'old' any more" in text
