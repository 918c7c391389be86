"""The tables of a paper as a page: every number, and what was measured beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from string import ascii_lowercase
from typing import Any

import pandas as pd

from needsaug_lite.experiments import comparisons
from needsaug_lite.experiments.markdown_tables import markdown
from needsaug_lite.experiments.paper_map import DATA_LABELS, Table, paper_map
from needsaug_lite.experiments.paper_numbers import (
    MEASURED,
    NOT_COMPARABLE,
    NOT_HERE,
    NOT_MEASURED,
    OUT_OF_REACH,
    Beside,
    Rows,
    beside,
    by_setting,
)
from needsaug_lite.experiments.paper_tables import paper_results
from needsaug_lite.experiments.records import Record
from needsaug_lite.experiments.stale import StaleRow, stale_mark


def paper_tables(
    paper: str, records: Sequence[Record], stale: Sequence[StaleRow] = ()
) -> str:
    """Every table of one paper: each number, our full rows, and the nearest ones.

    Args:
        paper: its short name.
        records: rows of any experiments and profiles.
        stale: rows that count no longer; those of experiments that could stand here
            are named once, at the top.

    Returns:
        Markdown with sections of the second level.
    """
    tables = paper_map().papers[paper].tables
    experiments = {
        name
        for table in tables.values()
        for names in (table.full, *table.nearest.values())
        for name in names
    }
    groups = by_setting(
        row
        for row in records
        if row.spec.experiment in experiments or row.spec.profile == "full"
    )
    numbers = {name: _numbers(paper, name, groups) for name in tables}
    parts = stale_mark([row for row in stale if _could_stand(row, experiments)])
    parts += [_counted(numbers), _contents(paper, numbers)]
    for name, table in tables.items():
        parts += _section(paper, name, table, numbers[name])
    return "\n\n".join(parts) + "\n"


def _could_stand(row: StaleRow, experiments: Container[str]) -> bool:
    """Whether a stale row would have stood on the page of these experiments."""
    own = not paper_map().tables_with(row.experiment)
    return row.experiment in experiments or (row.profile == "full" and own)


def _numbers(paper: str, table: str, groups: Sequence[Rows]) -> list[Beside]:
    lines: list[Any] = paper_results(paper, table).to_dict("records")
    return [beside(line, groups) for line in lines]


def _counted(tables: Mapping[str, Sequence[Beside]]) -> str:
    """How many numbers there are, and what is known about each of them."""
    every = [one for numbers in tables.values() for one in numbers]
    states = Counter(one.state for one in every)
    near = [one for one in every if one.nearest]
    names = {row.spec.experiment for one in near for row in one.nearest}
    return (
        f"**{len(every)} numbers in {len(tables)} tables.** Measured with the paper's "
        f"data, network and settings (full): {states[MEASURED]}. A number measured at "
        f"reduced size stands beside {len(near)} of them, from {len(names)} "
        f"experiments. Of those without a full row {states[OUT_OF_REACH]} are out of "
        f"reach, {states[NOT_COMPARABLE]} have no comparable measure, "
        f"{states[NOT_HERE]} belong to methods that are not here, and "
        f"{states[NOT_MEASURED]} wait for a run of a grid that is here."
    )


def _contents(paper: str, tables: Mapping[str, Sequence[Beside]]) -> str:
    declared = paper_map().papers[paper].tables
    titles = {
        name: f"{table_name(name)}: {table.title}" for name, table in declared.items()
    }
    lines = []
    for name, numbers in tables.items():
        states = Counter(one.state for one in numbers)
        lines.append(
            {
                "table": f"{{ref}}`{titles[name]} <{_label(paper, name)}>`",
                "numbers": len(numbers),
                "full": states[MEASURED],
                "beside": sum(bool(one.nearest) for one in numbers),
                "out of reach": states[OUT_OF_REACH],
            }
        )
    return markdown(pd.DataFrame(lines))


def table_name(table: str) -> str:
    """Like "Table 2"."""
    return f"Table {table.removeprefix('T')}"


def _label(paper: str, table: str) -> str:
    return f"paper-{paper}-{table}".lower().replace("_", "-")


def _section(
    paper: str, name: str, table: Table, numbers: Sequence[Beside]
) -> Iterator[str]:
    """Heading, how to read it, what is in the way, and the numbers by data set."""
    yield f"({_label(paper, name)})=\n## {table_name(name)}: {table.title}"
    yield f"{table.reading.strip()} See {{doc}}`/chapters/{table.see}`."
    if table.full:
        grids = ", ".join(f"`{grid}.yaml`" for grid in table.full)
        yield f"Full runs: {grids} in `nbs/grids`."
    reasons = _reasons(numbers)
    if reasons:
        yield "\n".join(reasons)
    by_data: dict[str, list[Beside]] = {}
    for one in numbers:
        dataset = one.line["dataset"]
        by_data.setdefault(dataset if isinstance(dataset, str) else "", []).append(one)
    for dataset, group in by_data.items():
        settings = {_setting(one) for one in group}
        shared = [DATA_LABELS[dataset]] if dataset else []
        shared += list(settings - {""}) if len(settings) == 1 else []
        count = f"{len(group)} number{'' if len(group) == 1 else 's'}"
        title = f"{', '.join(shared)}: {count}" if shared else count
        parts = [_table(group), *_rows_beside(group), *_printed(group)]
        yield "\n\n".join([f"~~~~{{dropdown}} {title}", *parts]) + "\n~~~~"


def _reasons(numbers: Sequence[Beside]) -> list[str]:
    """A line for every reason but that a method isn't here without more to say."""
    found: Counter[tuple[str, str]] = Counter(
        (one.state, one.reason) for one in numbers if one.reason
    )
    return [
        f"- *{state}* ({count}): {reason}." for (state, reason), count in found.items()
    ]


def _table(group: Sequence[Beside]) -> str:
    """One line for each number; columns that would say the same in all are left out."""
    letters = _letters(group)
    measures = {_words(one) for one in group}
    settings = {_setting(one) for one in group}
    lines = []
    for one in group:
        line = {"method": str(one.line["method"])}
        if len(settings) > 1:
            line["setting"] = _setting(one)
        if len(measures) > 1:
            line["measure"] = _words(one)
        line |= {
            "paper" if len(measures) > 1 else f"paper: {_words(one)}": _printed_value(
                one.line
            ),
            "ours (full)": _value(one, one.full) or _in_italics(one.state),
            "nearest here": _value(one, one.nearest) or _in_italics(one.gap),
            "seeds": str(len(one.nearest) or ""),
            "rows": letters.get(_facts(one.nearest), ""),
        }
        lines.append(line)
    return markdown(pd.DataFrame(lines))


def _setting(one: Beside) -> str:
    return ", ".join(f"{name} {value}" for name, value in one.setting.items()).replace(
        "_", " "
    )


def _in_italics(state: str) -> str:
    # Non-breaking spaces keep it on one line of its cell.
    return f"*{state}*".replace(" ", "\u00a0")


def _words(one: Beside) -> str:
    """What a number is, in words."""
    if one.measure is not None:
        return one.measure.words
    return str(one.line["metric"]).replace("_pct", ", %").replace("_", " ")


def _printed_value(line: Mapping[str, Any]) -> str:
    spread = "" if pd.isna(line["std"]) else f" ± {line['std']:g}"
    return f"{line['value']:g}{spread}"


def _value(one: Beside, rows: Rows) -> str:
    """Mean ± half of the 95% interval over seeds; "" without rows."""
    if one.measure is None or not rows:
        return ""
    spread = comparisons.interval(one.measure.values(rows))
    return spread.text(1.0, one.measure.digits)


def _facts(rows: Rows) -> tuple[str, str]:
    """Experiment and, in words, data, network and length of rows of one setting."""
    if not rows:
        return "", ""
    spec = rows[0].spec
    data, network = spec.data, spec.model.backbone
    parts = [data.name.replace("_", " ")]
    parts += [f"imbalance {data.imbalance:g}"] if data.imbalance else []
    parts += ["GAMO's draw"] if data.gamo else []
    parts += [f"{data.kept:.0%} kept"] if data.kept else []
    parts += [f"{data.noise:.0%} {data.noise_kind} noise"] if data.noise else []
    parts += ["coloured"] if data.colour else []
    parts += ["four groups"] if data.group_counts else []
    parts += ["rare attributes"] if data.attribute_imbalance else []
    parts.append(f"{sum(rows[0].class_counts):,} training images")
    if spec.learn_from == "train+meta":
        parts[-1] += " with the meta images"
    if network in ("convnet", "supernet"):
        network += f" of width {spec.model.width}"
    parts += [network, f"{spec.epochs} epochs", "last epoch"]
    return spec.experiment, ", ".join(parts)


def _letters(group: Sequence[Beside]) -> dict[tuple[str, str], str]:
    """a, b, ... z, aa, ... for the facts of the rows beside the numbers."""
    facts = dict.fromkeys(_facts(one.nearest) for one in group if one.nearest)
    names = [*ascii_lowercase, *(a + b for a in "ab" for b in ascii_lowercase)]
    return dict(zip(facts, names, strict=False))


def _rows_beside(group: Sequence[Beside]) -> Iterator[str]:
    """What the letters stand for, and in what those rows differ from the paper."""
    letters = _letters(group)
    if not letters:
        return
    deviations: dict[str, dict[str, None]] = {}
    profiles: dict[str, set[str]] = {}
    for one in group:
        for row in one.nearest:
            spec = row.spec
            profiles.setdefault(spec.experiment, set()).add(spec.profile)
            found = deviations.setdefault(spec.experiment, {})
            found |= dict.fromkeys(spec.deviations)
    lines = ["**Rows beside the numbers**", ""]
    for experiment, texts in deviations.items():
        kinds = ", ".join(sorted(profiles[experiment]))
        lines.append(f"- [`{experiment}`](/results.md#{experiment}), {kinds}.")
        lines += [
            f"  *{letter}*: {facts}."
            for (name, facts), letter in letters.items()
            if name == experiment
        ]
        if texts:
            lines.append(f"  Not as in the paper: {'; '.join(texts)}.")
    yield "\n".join(lines)


def _printed(group: Sequence[Beside]) -> Iterator[str]:
    """What is odd about the numbers as they are printed."""
    notes = dict.fromkeys(
        one.line["note"] for one in group if isinstance(one.line["note"], str)
    )
    if notes:
        texts = (note.replace("_", "\\_").replace("*", "\\*") for note in notes)
        yield "**As printed**\n\n" + "\n".join(f"- {note}." for note in texts)
