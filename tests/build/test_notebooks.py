"""Parameters are checked before anything runs; outputs are whole or absent."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from helpers.stub_project import write_notebook

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import notebooks

PROFILE = """
common: {seed: 5, epochs: 2, not_of_this_notebook: 1}
01_topic: {rate: 0.5}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/lite.yaml").write_text(PROFILE)
    return tmp_path


def topic(folder: Path, *cells: str) -> Path:
    parameters = "# Settings\nseed = 0\nrate: float = 1.0\nname = 'digits'\n"
    return write_notebook(folder / "01_topic.ipynb", *cells, parameters=parameters)


def test_common_gives_only_what_is_declared(folder: Path) -> None:
    notebook = topic(folder)
    declared = notebooks.declared_parameters(notebook)
    assert declared == {"seed": 0, "rate": 1.0, "name": "digits"}
    values = notebooks.profile_parameters(notebook, "lite", declared)
    assert values == {"seed": 5, "rate": 0.5}


@pytest.mark.parametrize(
    ("profile", "given", "message"),
    [
        ("lite", {"sead": 1}, "sets sead, which 01_topic.ipynb does not declare"),
        ("lite", {"seed": "one"}, "same type"),
        ("lite", {"seed": True}, "same type"),
        ("lite", {"seed": 1.5}, "same type"),
        ("huge", {}, "no profile.*profiles there: lite"),
    ],
)
def test_a_wrong_call_is_refused_before_it_runs(
    folder: Path, profile: str, given: dict[str, object], message: str
) -> None:
    notebook = topic(folder, "open('ran', 'w')")
    with pytest.raises(UserError, match=message):
        notebooks.execute(notebook, folder / "out.ipynb", profile, given)
    assert not (folder / "ran").exists()
    assert not (folder / "out.ipynb").exists()


def test_an_unknown_name_in_the_own_section_is_refused(folder: Path) -> None:
    with (folder / "profiles/lite.yaml").open("a") as profile:
        profile.write("02_other: {seed: 1}\n")
    notebook = write_notebook(folder / "02_other.ipynb", "1")
    with pytest.raises(UserError, match="section 02_other sets seed"):
        notebooks.execute(notebook, folder / "out.ipynb", "lite")


@pytest.mark.parametrize("cell", ["seed = f()", "seed, rate = 1, 2", "import os"])
def test_parameters_must_be_plain_values(folder: Path, cell: str) -> None:
    notebook = write_notebook(folder / "nb.ipynb", parameters=cell)
    with pytest.raises(UserError, match="plain value"):
        notebooks.declared_parameters(notebook)


@pytest.mark.slow
def test_execution_passes_values_and_hides_the_injected_cell(folder: Path) -> None:
    notebook = topic(folder, "print(seed, rate, name)")
    output = folder / "made/out.ipynb"
    code = notebooks.main(
        [str(notebook), "--profile", "lite", "--output", str(output), "-p", "seed", "9"]
    )
    assert code == 0
    executed = nbformat.read(output, as_version=4)
    assert executed.cells[-1].outputs[0].text == "9 0.5 digits\n"
    injected = [
        cell.metadata.tags
        for cell in executed.cells
        if "injected-parameters" in cell.metadata.get("tags", [])
    ]
    assert len(injected) == 1
    assert "remove-cell" in injected[0]
    assert [p.name for p in output.parent.iterdir()] == ["out.ipynb"]


@pytest.mark.slow
def test_a_failing_cell_leaves_the_old_output_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notebook = topic(folder, "raise RuntimeError('on purpose')")
    output = folder / "out.ipynb"
    output.write_text("old")
    arguments = [str(notebook), "--profile", "lite", "--output", str(output)]
    assert notebooks.main(arguments) == 1
    assert "on purpose" in caplog.text
    assert output.read_text() == "old"
    assert (folder / ".out.partial.ipynb").exists()
    assert notebooks.main([*arguments, "-p", "sead", "1"]) == 2
