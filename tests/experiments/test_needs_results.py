"""Budgets, generators and paths from rows whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import Record, Spec, paper_results
from needsaug_lite.experiments import needs_results as results
from needsaug_lite.methods.four_levels import PATHS

COUNTS = [100, 10, 40]


def row(
    method: str = "needs_aware",
    seed: int = 0,
    *,
    checksum: str = "images",
    counts: list[int] = COUNTS,
    history: list[dict[str, Any]] | None = None,
    epochs: int = 1,
    **metrics: Any,
) -> Record:
    spec = Spec.checked({"method": method, "seed": seed, "epochs": epochs})
    return Record(
        run_id=spec.run_id,
        method_version=spec.method_version,
        spec=spec,
        metrics=metrics,
        class_counts=counts,
        history=history or [],
        seconds=1.0,
        peak_memory_mib=1.0,
        threads=1,
        device="cpu",
        data_checksum=f"{checksum} {seed}",
        versions={},
        python="3",
        code_version="0",
        created="now",
    )


def budgeted(
    seed: int,
    made: list[int],
    before: list[float],
    after: list[float],
    method: str = "needs_aware",
    **more: Any,
) -> Record:
    allocation = {"images": made, "images_last_epoch": [n // 10 for n in made]}
    return row(
        method,
        seed,
        per_class=after,
        allocation=allocation,
        first_classifier={"per_class": before},
        **more,
    )


# --- allocation ---------------------------------------------------------------------


def table_3() -> Record:
    """The paper's own numbers as a row."""
    lines = paper_results("needs_aware", "T3")
    lines = lines[~lines["setting"].str.contains("class=(?:mean|std)")]

    def column(part: str) -> list[float]:
        values: list[float] = lines[lines["setting"].str.endswith(part)][
            "value"
        ].tolist()
        return values

    before, after = (
        [v / 100 for v in column(p)] for p in ("phase=before", "phase=after")
    )
    made, real = (
        [int(v) for v in column(p)] for p in ("quantity=generated", "quantity=real")
    )
    return budgeted(0, made, before, after, counts=real)


def test_the_papers_table_3_gives_the_papers_last_lines() -> None:
    found = results.allocation([table_3()])
    assert found.mean_accuracy("before").mean == pytest.approx(74.8, abs=0.05)
    assert found.mean_accuracy("after").mean == pytest.approx(83.1, abs=0.05)
    # Errata N11: n - 1; and N12: counts follow the error rate.
    assert found.spread_of_classes("before").mean == pytest.approx(21.28, abs=0.005)
    assert found.spread_of_classes("after").mean == pytest.approx(14.78, abs=0.005)
    assert found.correlations() == [pytest.approx(0.9990, abs=5e-5)]
    shown = found.table(["truck", *"bcdefghij"])
    assert shown.iloc[0].tolist() == ["truck", "5000", "97.3", "237", "23", "98.7"]
    assert shown.iloc[-2].tolist() == ["mean", "", "74.8", "", "", "83.0"]
    assert shown.iloc[-1].tolist() == ["SD", "", "21.3", "", "", "14.8"]


def test_an_allocation_is_a_mean_over_seeds_and_ordered_by_size() -> None:
    records = [
        budgeted(1, [10, 50, 30], [0.9, 0.5, 0.7], [0.9, 0.8, 0.7]),
        budgeted(0, [30, 70, 10], [0.7, 0.7, 0.9], [0.5, 0.6, 1.0]),
    ]
    found = results.allocation(records)
    assert found.seeds == (0, 1)
    expected = [1.0, np.corrcoef([30, 70, 10], [30, 30, 10])[0, 1]]
    assert sorted(found.correlations()) == pytest.approx(sorted(expected))
    assert found.table().iloc[:3].to_numpy().tolist() == [
        ["0", "100", "80.0", "20", "2", "70.0"],
        ["2", "40", "80.0", "20", "2", "85.0"],
        ["1", "10", "60.0", "60", "6", "70.0"],
    ]
    # Deviations of single seeds, 20, 10 (after) and 20, 11.5 (before), are averaged.
    deviations = [float(np.std([50, 60, 100], ddof=1)), 10.0]
    assert found.spread_of_classes("after").mean == pytest.approx(np.mean(deviations))
    assert found.mean_accuracy("after").seeds == 2


def test_before_can_be_plain_training_on_the_same_images() -> None:
    plain = row("cross_entropy", 0, per_class=[0.1, 0.2, 0.3])
    mine = budgeted(0, [1, 2, 3], [0.9, 0.9, 0.8], [0.5, 0.5, 0.5])
    alone = budgeted(1, [1, 2, 3], [0.9, 0.9, 0.8], [0.5, 0.5, 0.5])
    found = results.allocation([mine, plain, alone], before="vanilla")
    assert found.seeds == (0,)
    assert found.before.tolist() == [pytest.approx([10, 20, 30])]
    other = row("cross_entropy", 0, per_class=[0.1, 0.2, 0.3], checksum="others")
    with pytest.raises(UserError, match="seed 0"):
        results.allocation([mine, other], before="vanilla")


def test_equal_counts_have_no_correlation_but_a_mass() -> None:
    record = budgeted(0, [5, 5, 5], [0.9, 0.5, 0.7], [0.9, 0.8, 0.7])
    record.metrics["allocation"]["weight_mass"] = [1.0, 5.0, 3.0]
    assert results.allocation([record]).correlations() == []
    mass = results.allocation([record], counted="weight_mass")
    assert mass.correlations() == [pytest.approx(1)]
    assert mass.table()["last"].tolist()[:3] == ["–"] * 3


def test_rows_of_two_settings_are_refused() -> None:
    two = [
        budgeted(0, [1, 2, 3], [0.9, 0.9, 0.8], [0.5, 0.5, 0.5], epochs=n)
        for n in (1, 2)
    ]
    with pytest.raises(UserError, match="pick one setting"):
        results.allocation(two)


def test_many_classes_are_shown_in_ten_groups() -> None:
    counts = list(range(100, 0, -1))
    record = budgeted(0, counts[::-1], [0.5] * 100, [0.25] * 100, counts=counts)
    shown = results.allocation([record]).table()
    assert shown["class"].tolist() == [
        *(f"{10 * n + 1}–{10 * n + 10}" for n in range(10)),
        "mean",
        "SD",
    ]
    assert shown["real"].tolist()[:2] == ["96", "86"]
    assert shown["made"].tolist()[:2] == ["6", "16"]


def test_correlations_of_methods_have_intervals() -> None:
    records = [
        budgeted(seed, [10, 50, 30], [0.9, 0.5, 0.7], [0.9, 0.8, 0.7], method)
        for seed in range(2)
        for method in ("needs_aware", "sequential")
    ]
    shown = results.allocation_correlations(records, before="first")
    assert shown.to_numpy().tolist() == [
        ["Needs-aware", 2, "1.00 ± 0.00"],
        ["Sequential", 2, "1.00 ± 0.00"],
    ]


# --- generators ---------------------------------------------------------------------


def judged(
    seed: int,
    name: str,
    *,
    method: str = "needs_aware",
    trained: float | None = None,
    **more: Any,
) -> Record:
    def scores(distance: float) -> dict[str, float]:
        return {"frechet_distance": distance, "inception_style_score": distance + 1}

    made: dict[str, Any] = {"label": "GAN", "name": name, "judge": "a judge"}
    made["uniform"] = scores(4.0 if name == "a" else 6.0)
    if trained is not None:
        made["trained"] = scores(trained)
    return row(method, seed, generator=made, **more)


def test_a_generator_that_runs_share_counts_once() -> None:
    records = [
        judged(0, "a", trained=2.0),
        judged(1, "b", trained=3.0),
        judged(0, "a", method="separate"),
        judged(1, "b", method="separate"),
    ]
    shown = results.quality_table(records)
    assert shown["images of"].tolist() == ["GAN, pretrained", "Needs-aware"]
    assert shown["n"].tolist() == [2, 2]
    assert [text.partition(" ")[0] for text in shown["Fréchet"]] == ["5.00", "2.50"]
    assert [text.partition(" ")[0] for text in shown["score"]] == ["6.00", "3.50"]
    assert results.judges(records) == "a judge"
    changes = results.quality_changes(records)
    assert changes == {0: -2.0, 1: -3.0}
    assert results.quality_changes(records, "separate") == {}


def test_calibration_begins_with_the_best() -> None:
    records = [
        row(method, seed, ece=ece, top1=top1)
        for method, ece, top1 in (("cross_entropy", 0.2, 0.5), ("mtl", 0.1, 0.4))
        for seed in range(2)
    ]
    assert results.calibration_table(records).to_numpy().tolist() == [
        ["MTL", 2, "10.0 ± 0.0", "40.0 ± 0.0"],
        ["CE", 2, "20.0 ± 0.0", "50.0 ± 0.0"],
    ]


def test_quality_against_gain() -> None:
    def with_quality(seed: int, way: str, quality: list[float]) -> Record:
        gains = [0.0, 0.1, 0.2]
        before = [0.6, 0.4, 0.3]
        after = [b + g for b, g in zip(before, gains, strict=True)]
        record = budgeted(seed, [1, 1, 1], before, after)
        scores = {way: {"class_inception": quality}}
        if way == "trained":
            scores["uniform"] = {"class_inception": [9.0, 1.0, 1.0]}
        record.metrics["generator"] = scores
        return record

    records = [
        with_quality(0, "trained", [1.0, 2.0, 3.0]),
        with_quality(1, "uniform", [3.0, 2.0, 1.0]),
        with_quality(2, "uniform", [1.0, 3.0, 2.0]),
        with_quality(3, "uniform", [1.0, 1.0, 1.0]),
    ]
    found = results.gain_correlations(records)
    assert found == {
        0: pytest.approx(1),
        1: pytest.approx(-1),
        2: pytest.approx(0.5),
    }
    shown = results.gain_table(records)
    assert shown["seeds"].tolist() == [3]
    assert shown["r"].tolist()[0].startswith("0.17 ± ")


# --- paths --------------------------------------------------------------------------


def with_paths(seed: int, *norms: dict[str, float], method: str = "needs_aware") -> Any:
    history = [
        {"epoch": e, **{f"path_{p}": one.get(p, 0.0) for p in PATHS}}
        for e, one in enumerate(norms)
    ]
    history.append({"epoch": len(norms), "loss": 1.0})
    return row(method, seed, history=history)


def test_path_shares_are_geometric_over_epochs_and_arithmetic_over_seeds() -> None:
    first = {"direct": 8.0, "W1": 2.0}
    second = {"direct": 1.0, "W1": 1.0, "G": 2.0}
    records = [with_paths(0, first, second), with_paths(1, first, first)]
    shares = results.path_shares(records)
    assert list(shares.index) == list(PATHS)
    assert shares["direct"] == pytest.approx(((0.8 * 0.25) ** 0.5 + 0.8) / 2)
    assert shares["W1"] == pytest.approx(((0.2 * 0.25) ** 0.5 + 0.2) / 2)
    # Not there in every epoch of either.
    assert shares["G"] == shares["need"] == 0
    by_epoch = results.path_history(records)
    assert by_epoch["direct"].tolist() == pytest.approx([0.8, (0.25 + 0.8) / 2])
    assert by_epoch.sum(axis=1).tolist() == pytest.approx([1, 1])


def test_an_epoch_without_any_gradient_is_left_out() -> None:
    record = with_paths(0, {"direct": 3.0, "W2": 1.0}, {})
    assert results.path_shares([record])["W2"] == pytest.approx(0.25)


def test_the_table_of_paths_has_a_column_for_every_method_with_rows() -> None:
    records = [
        with_paths(0, {"direct": 1.0, "W2": 2.3e-5}),
        with_paths(0, {"direct": 1.0}, method="needs_aware_reduced"),
    ]
    shown = results.path_table(records)
    assert list(shown.columns) == ["path", "Needs-aware", "Needs-aware, reduced"]
    assert shown["path"].tolist() == list(PATHS)
    assert shown["Needs-aware"].tolist()[:3] == ["1", "0", "2.3·10⁻⁵"]


def test_small_numbers_are_readable() -> None:
    texts = [results.scientific(v) for v in (0, 0.421, 0.01, 2.34e-5, 9.96e-11)]
    assert texts == ["0", "0.42", "0.01", "2.3·10⁻⁵", "1.0·10⁻¹⁰"]


@pytest.mark.filterwarnings("error")
def test_without_rows_everything_is_empty() -> None:
    found = results.allocation([])
    assert found.table().empty
    assert found.correlations() == []
    assert found.mean_accuracy("after").text() == "–"
    assert results.judges([]) == ""
    assert results.quality_changes([]) == results.gain_correlations([]) == {}
    assert len(results.path_shares([])) == 0
    for table in (
        results.allocation_correlations,
        results.quality_table,
        results.calibration_table,
        results.gain_table,
        results.path_table,
        results.path_history,
    ):
        assert table([]).empty
