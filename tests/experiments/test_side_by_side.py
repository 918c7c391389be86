"""Methods side by side: what is compared, with whom, and which words come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.made_rows import row, rows

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import (
    Record,
    comparisons,
    grid,
    load_records,
    registry,
    side_by_side,
    side_by_side_tables,
    side_by_side_tuning,
    side_by_side_verdicts,
)
from needsaug_lite.experiments.side_by_side import (
    COMBINATIONS,
    COMBINED,
    GROUNDS,
    LONG_TAIL,
    METHODS,
    PAPERS,
    REFERENCE,
    SIMPLE,
    TUNING,
    by_method,
    compare,
    label,
    sees,
)

ROOT = Path(__file__).parents[2]
GROUND = LONG_TAIL.experiment
SEEDS = np.arange(10)


def level(mean: float, number: int = 0) -> list[float]:
    """Ten scores around a mean; two methods never differ by zero."""
    draw = np.random.default_rng(number)
    return (mean + 0.002 * np.sin(SEEDS) + draw.normal(0, 0.002, 10)).tolist()


def everything(**means: float) -> list[Record]:
    names = (REFERENCE, *METHODS, *SIMPLE)
    usual = {name: means.get(name, 0.5) for name in names}
    return rows(GROUND, {m: level(v, i) for i, (m, v) in enumerate(usual.items())})


def test_cross_entropy_on_joined_images_is_the_reference() -> None:
    joined = row(GROUND, "cross_entropy", 0, 0.5, learn_from="train+meta")
    assert set(by_method([joined, row(GROUND, "cross_entropy", 0, 0.4)], GROUND)) == {
        REFERENCE,
        "cross_entropy",
    }


def test_only_test_rows_of_one_experiment_count() -> None:
    given = [
        row(GROUND, "isda", 0, 0.5),
        row(GROUND, "isda", 0, 0.9, evaluate_on="val"),
        row("other", "isda", 0, 0.9),
    ]
    assert by_method(given, GROUND) == {"isda": given[:1]}


def test_two_settings_of_a_method_are_refused() -> None:
    given = [row(GROUND, "isda", 0, 0.5), row(GROUND, "isda", 1, 0.5, epochs=3)]
    with pytest.raises(UserError, match="isda with several settings"):
        by_method(given, GROUND)


def test_what_a_method_sees_is_told_by_its_row() -> None:
    assert sees("cross_entropy", row(GROUND, "cross_entropy", 0, 0.5)) == "train"
    assert sees("isda", row(GROUND, "isda", 0, 0.5)) == "joined"
    assert sees("isda", row(GROUND, "isda", 0, 0.5, learn_from="train")) == "train"
    assert sees("mgr") == "apart"
    assert sees(REFERENCE) == sees("isda") == "joined"


def test_differences_are_paired_and_corrected_for_the_announced_family() -> None:
    found = compare(by_method(everything(isda=0.6), GROUND), LONG_TAIL.value)
    one = found["isda"]
    questions = len({*METHODS, *SIMPLE})
    assert one.difference.mean == pytest.approx(0.1, abs=0.01)
    assert one.holm == pytest.approx(questions * one.p_value)
    assert one.verdict == "higher"
    assert found["mgr"].verdict == "no difference shown"


def test_missing_rows_make_no_verdict_better() -> None:
    few = [r for r in everything(isda=0.6) if r.spec.method in (REFERENCE, "isda")]
    one = compare(by_method(few, GROUND), LONG_TAIL.value)["isda"]
    assert one.holm == pytest.approx(len(METHODS) * one.p_value)


def test_no_claim_below_ten_pairs() -> None:
    nine = [r for r in everything(isda=0.6) if r.spec.seed < 9]
    found = compare(by_method(nine, GROUND), LONG_TAIL.value)
    assert {one.verdict for one in found.values()} == {"no claim: 9 seeds"}


def test_tables_name_what_is_not_measured() -> None:
    frame = side_by_side_tables.score_table([], LONG_TAIL)
    assert len(frame) == len(METHODS) + 1
    assert set(frame["bal. acc."]) == {"not measured"}
    assert set(frame["n"]) == {"0"}
    assert set(side_by_side_tables.difference_table([], LONG_TAIL)["verdict"]) == {
        "not measured"
    }
    assert set(side_by_side_tables.combination_table([])["verdict"]) == {"not measured"}
    assert set(side_by_side_tables.rank_table([]).iloc[0, 1:]) == {"–"}


def test_tables_are_ordered_and_in_percent() -> None:
    given = everything(isda=0.6)
    scores = side_by_side_tables.score_table(given, LONG_TAIL)
    assert scores["method"].iloc[0] == "ISDA"
    assert scores["bal. acc."].iloc[0].startswith("60.")
    assert (
        side_by_side_tables.difference_table(given, LONG_TAIL)["points"]
        .iloc[0]
        .startswith("+")
    )
    order = side_by_side_tables.rank_table(given)
    assert order.iloc[0][["method", "tail"]].tolist() == ["ISDA", "1.0"]
    assert order.iloc[-2]["tail"] == str(len({REFERENCE, *METHODS, *SIMPLE}))
    assert order.iloc[-1]["tail"] == "10"


def test_best_rival_is_beaten_only_if_all_are() -> None:
    names = {"facog": 0.6, "logit_adjustment": 0.61, "ldam_drw": 0.5, "mgr": 0.7}
    found = side_by_side_verdicts.over_all(
        by_method(everything(**names), GROUND),
        dict.fromkeys(PAPERS, SIMPLE),
        LONG_TAIL.value,
    )
    assert found["mgr"].verdict == "higher"
    assert found["mgr"].difference.mean == pytest.approx(0.09, abs=0.01)
    assert found["facog"].verdict == "lower"
    text = side_by_side_verdicts.in_words(found, PAPERS)
    assert text.startswith("not supported: higher in 1")
    assert side_by_side_verdicts.in_words(found, ["mgr"]) == "supported"
    assert side_by_side_verdicts.in_words({}, PAPERS) == "not measured"


def test_a_missing_method_leaves_a_hypothesis_open() -> None:
    given = [r for r in everything(mgr=0.7) if r.spec.method in (REFERENCE, "mgr")]
    found = compare(by_method(given, GROUND), LONG_TAIL.value)
    text = side_by_side_verdicts.in_words(found, PAPERS)
    assert text.startswith("no verdict: higher in 1")
    assert "not measured in 4 of 5" in text


def test_the_larger_p_value_decides_over_several_rivals() -> None:
    draw = np.random.default_rng(0)
    close = (0.7 + draw.normal(0, 0.02, 10)).tolist()
    given = rows(GROUND, {"mgr": level(0.706), "isda": close, "ldam_drw": level(0.5)})
    by_name = by_method(given, GROUND)
    found = side_by_side_verdicts.over_all(
        by_name, {"mgr": ("isda", "ldam_drw")}, LONG_TAIL.value
    )["mgr"]
    alone = comparisons.paired(by_name["mgr"], by_name["isda"]).p_value
    assert found.difference.mean > 0
    assert found.p_value == alone > 0.05


def test_apart_less_joined_leaves_both_cross_entropies_out() -> None:
    given = by_method(
        everything(
            mgr=0.9,
            meta_iada=0.9,
            meta_weight_net=0.9,
            needs_aware_reduced=0.9,
            cross_entropy_with_meta=0.1,
            cross_entropy=0.1,
        )
        + rows(GROUND, {"cross_entropy_on_meta": [0.0]}),
        GROUND,
    )
    verdict, spread = side_by_side_verdicts.lead(given, LONG_TAIL.value)
    assert verdict == "supported"
    assert spread.mean == pytest.approx(0.4, abs=0.01)
    assert spread.seeds == 10
    no_apart = {name: own for name, own in given.items() if sees(name) != "apart"}
    assert side_by_side_verdicts.lead(no_apart, LONG_TAIL.value)[0] == "not measured"


def test_no_help_is_refuted_by_one_gain_and_never_proven() -> None:
    given = compare(by_method(everything(), GROUND), LONG_TAIL.value)
    assert side_by_side_verdicts.no_help(given, SIMPLE).startswith("nothing against it")
    gain = compare(by_method(everything(ldam_drw=0.6), GROUND), LONG_TAIL.value)
    assert side_by_side_verdicts.no_help(gain, SIMPLE) == (
        "not supported: higher in 1 of 3"
    )


def test_cost_beside_score() -> None:
    given = everything(mgr=0.9, isda=0.6)
    costs = {REFERENCE: 1.0, "isda": 2.0, "mgr": 3.0, "unknown": 9.0}
    found = side_by_side_verdicts.cost_and_score(given, LONG_TAIL, costs)
    assert found is not None
    assert found.names == (REFERENCE, "isda", "mgr")
    assert found.correlation == pytest.approx(1.0)
    assert found.dearest_is_best
    other = side_by_side_verdicts.cost_and_score(given, LONG_TAIL, costs | {"mgr": 0.1})
    assert other is not None
    assert not other.dearest_is_best
    assert side_by_side_verdicts.cost_and_score(given, LONG_TAIL, {"mgr": 1.0}) is None


def test_a_combination_stands_beside_both_parents() -> None:
    combined = rows(COMBINATIONS, {"facog_needs": level(0.6, 99)})
    frame = side_by_side_tables.combination_table(everything(facog=0.5) + combined)
    own = frame[frame["method"] == registry.entry("facog_needs").label]
    parents = COMBINED["facog_needs"]
    assert own["less"].tolist()[:2] == [label(name) for name in parents]
    assert own["verdict"].tolist()[:2] == ["higher", "higher"]
    assert len(frame) >= sum(map(len, COMBINED.values()))


def trial_rows(best: str = "lr") -> list[Record]:
    """Three trials of two methods; the one named is the best."""
    settings = {
        "published": {},
        "lr": {"optimisation": {"lr": 0.05}},
        "decay": {"optimisation": {"weight_decay": 0.002}},
    }
    return [
        row(
            TUNING,
            method,
            seed,
            0.5 + 0.1 * (name == best) + 0.001 * seed % 3,
            evaluate_on="val",
            **given,
        )
        for method in ("isda", "logit_adjustment")
        for name, given in settings.items()
        for seed in (100, 101)
    ]


def test_the_best_trial_is_chosen_and_the_first_is_the_published_one() -> None:
    given = trial_rows()
    found = side_by_side_tuning.trials(given, [given[0].spec])
    own = [one for one in found if one.method == "isda"]
    assert [one.published for one in own] == [True, False, False]
    chosen = next(one for one in own if one.chosen)
    assert chosen.settings["optimisation.lr"] == 0.05
    assert chosen.seeds == (100, 101)
    frame = side_by_side_tuning.trial_table(found)
    assert frame[""].tolist()[0] == "P"
    assert (frame[""] == "✓").sum() == 2


def test_equal_trials_keep_the_published_constants() -> None:
    given = trial_rows(best="")
    order = [given[0].spec]
    chosen = [t for t in side_by_side_tuning.trials(given, order) if t.chosen]
    assert chosen[0].published


def test_rows_with_other_settings_than_the_chosen_are_found() -> None:
    found = side_by_side_tuning.trials(trial_rows())
    chosen = row(GROUND, "isda", 0, 0.5, optimisation={"lr": 0.05})
    assert side_by_side_tuning.faults(found, [chosen]) == []
    other = row(GROUND, "isda", 0, 0.5)
    assert (
        "isda has optimisation.lr 0.1" in side_by_side_tuning.faults(found, [other])[0]
    )
    control = row(GROUND, "resampling", 0, 0.5)
    assert side_by_side_tuning.faults(found, [control]) == []


def test_another_recipe_keeps_the_multiple_of_the_reference() -> None:
    given = trial_rows()
    given += [
        row(TUNING, REFERENCE, seed, 0.5, evaluate_on="val", optimisation=rate)
        for rate in ({"lr": 0.1}, {"lr": 0.05}, {"weight_decay": 0.002})
        for seed in (100, 101)
    ]
    found = side_by_side_tuning.trials(given, [given[-6].spec])

    def said(experiment: str, rate: float, base: float) -> list[str]:
        own = row(experiment, "isda", 0, 0.5, optimisation={"lr": rate})
        other = row(experiment, REFERENCE, 0, 0.5, optimisation={"lr": base})
        return side_by_side_tuning.faults(found, [own, other])

    assert said("side_mnist_coloured", 0.015, 0.03) == []
    assert "0.05 times 0.3" in said("side_mnist_coloured", 0.03, 0.03)[0]
    assert len(said(GROUND, 0.015, 0.03)) == 2  # the ground of the trials: as chosen


def test_unequal_trials_and_shared_seeds_are_found() -> None:
    given = trial_rows()
    short = [r for r in given if (r.spec.method, r.spec.seed) != ("isda", 101)]
    said = side_by_side_tuning.faults(side_by_side_tuning.trials(short), [])
    assert said == ["trials have different development seeds"]
    fewer = [
        r
        for r in given
        if r.spec.method != "isda" or r.spec.optimisation.weight_decay != 0.002
    ]
    said = side_by_side_tuning.faults(side_by_side_tuning.trials(fewer), [])
    assert "different numbers of trials" in said[0]
    report = row(GROUND, "isda", 100, 0.5, optimisation={"lr": 0.05})
    said = side_by_side_tuning.faults(side_by_side_tuning.trials(given), [report])
    assert said == ["a development seed is a reporting seed, too"]


def test_committed_rows_keep_to_the_protocol() -> None:
    """The gate: chosen settings on every ground, and the images of the protocol."""
    results = ROOT / "book/results"
    found = side_by_side_tuning.trials(load_records(results, TUNING))
    if not found:
        pytest.skip("no trial has been committed yet")
    reported = [
        record
        for ground in GROUNDS
        for own in by_method(
            load_records(results, ground.experiment), ground.experiment
        ).values()
        for record in own
    ]
    assert side_by_side_tuning.faults(found, reported) == []
    tuned = {one.method for one in found}
    assert {REFERENCE, *METHODS} <= tuned, "every announced method has its trials"
    for record in reported:
        name = side_by_side.name_of(record)
        assert record.spec.data.meta_per_class >= 10 or name == "cross_entropy"
        if name in METHODS:
            assert sees(name, record) == sees(name), f"{record.run_id}, {name}"


def test_the_grid_has_equally_many_trials_the_first_without_changes() -> None:
    file = ROOT / "nbs/grids" / f"{TUNING}.yaml"
    if not file.is_file():
        pytest.skip("the grid of trials isn't there yet")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    by_name: dict[str, set[str]] = {}
    for spec in grid.expand(content):
        values = spec.model_dump_json(exclude={"seed"})
        by_name.setdefault(side_by_side.name_of_spec(spec), set()).add(values)
        assert spec.evaluate_on == "val"
        assert spec.seed >= 100
    assert len({len(one) for one in by_name.values()}) == 1
    assert {REFERENCE, *METHODS} <= set(by_name)
