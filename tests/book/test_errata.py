"""Every erratum that changes results is demonstrated by a cell that can fail."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import NamedTuple

import pytest
from helpers.built_book import ROOT

PAGE = (ROOT / "book/errata.md").read_text(encoding="utf-8")
CHECK = re.compile(r"(?m)^\s*(?:assert |(?:\w+\.)*assert_\w+\()")
LABEL = re.compile(r"(?m)^\(([\w-]+)\)=$")
ROW = re.compile(
    r"^\| \{ref\}`(\w+) <erratum-(\w+)>` \| (.+) \| (.+) \| (.+) \|$", re.M
)
LINK = re.compile(r"\{ref\}`chapter (\d+) <([\w-]+)>`")


class Section(NamedTuple):
    """A labelled part of a notebook, up to the next one."""

    chapter: int
    code: list[str]


@cache
def sections() -> dict[str, Section]:
    """Labelled parts of all chapters by label.

    A part ends at the next heading of its level or above, and at the next label that
    stands on a heading or, without a heading of its own, at any label.
    """
    found = {}
    for notebook in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for number, cell in enumerate(cells):
            text = "".join(cell["source"])
            for label in (
                LABEL.finditer(text) if cell["cell_type"] == "markdown" else ()
            ):
                heading = re.match(r"\s*(#+) ", text[label.end() :])
                level = len(heading[1]) if heading else 7
                code = code_below(cells[number + 1 :], level)
                found[label[1]] = Section(int(notebook.name[:2]), code)
    return found


def code_below(cells: list[dict], level: int) -> list[str]:
    """Code cells up to the end of a part."""
    code = []
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            code.append(text)
            continue
        levels = [len(found) for found in re.findall(r"(?m)^(#+) ", text)]
        if any(found <= level for found in levels) or (
            level == 7 and (levels or LABEL.search(text))
        ):
            break
    return code


def entries() -> dict[str, str]:
    """Every entry's number with its class."""
    pattern = r"\(erratum-([A-Z]\d+)\)=\n### .+\n\n\*Class: ([^.]+)\."
    return dict(re.findall(pattern, PAGE))


def rows() -> dict[str, list[tuple[int, str]]]:
    """Entries of the table with the chapters and labels that they lead to."""
    table = PAGE.partition("(erratum-results)=")[2].partition("(erratum-correct)=")[0]
    found = {}
    for name, target, _, links, _ in ROW.findall(table):
        assert name == target
        found[name] = [(int(chapter), label) for chapter, label in LINK.findall(links)]
    return found


def test_every_entry_that_must_be_resolved_is_in_the_table() -> None:
    must = {name for name, kind in entries().items() if "must be resolved" in kind}
    assert len(must) >= 20
    assert must <= set(rows())
    assert set(rows()) <= set(entries())


def test_the_table_has_no_other_lines() -> None:
    table = PAGE.partition("(erratum-results)=")[2].partition("(erratum-correct)=")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == len(rows()) + 2  # and the head


@pytest.mark.parametrize("entry", rows())
def test_the_table_leads_to_a_cell_with_an_assertion(entry: str) -> None:
    links = rows()[entry]
    assert links
    for chapter, label in links:
        assert label in sections(), f"{entry}: no label {label} in any chapter"
        assert sections()[label].chapter == chapter
        checks = [c for c in sections()[label].code if CHECK.search(c)]
        assert checks, f"{entry}: no assertion under {label}"


@pytest.mark.parametrize("entry", rows())
def test_the_entry_names_the_same_cells(entry: str) -> None:
    after = PAGE.partition(f"(erratum-{entry})=")[2].partition("\n(erratum-")[0]
    status = after.split("\n\n")[1]
    for _, label in rows()[entry]:
        assert label in status


def test_every_link_of_an_entry_to_a_check_has_its_label() -> None:
    named = re.findall(r"\{ref\}`(?:[^`<]*<)?([a-z]+-(?:\w+-)*check-[\w-]+)>?`", PAGE)
    assert len(named) > 60
    for label in named:
        assert label in sections(), label
