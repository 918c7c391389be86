"""Every notebook runs to its end in the smoke profile, and leaves clean outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from helpers.built_book import ROOT, BuildFolder

NOTEBOOKS = sorted(file.stem for file in (ROOT / "nbs").glob("*.ipynb"))
pytestmark = pytest.mark.notebook


@pytest.fixture(scope="module")
def executed(build_folder: BuildFolder) -> BuildFolder:
    build_folder.make("notebooks")
    return build_folder


def output_of(build: BuildFolder, name: str) -> nbformat.NotebookNode:
    chapter = re.match(r"\d\d_", name)
    folder = "book/chapters" if chapter else "book/_build/notebooks"
    file: Path = build.folder / folder / f"{name}.ipynb"
    assert file.exists(), build.log(name)
    return nbformat.read(file, as_version=4)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_to_its_end(executed: BuildFolder, name: str) -> None:
    output_of(executed, name)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_hold_no_warnings_or_progress_bars(
    executed: BuildFolder, name: str
) -> None:
    for cell in output_of(executed, name).cells:
        tags = cell.metadata.get("tags", [])
        if {"remove-cell", "remove-output"} & set(tags):
            continue
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", output.text
            assert "application/vnd.jupyter.widget-view+json" not in output.get(
                "data", {}
            ), "a widget needs scripts from the network"
