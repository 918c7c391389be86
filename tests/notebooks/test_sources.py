"""What every committed notebook looks like."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from needsaug_lite.experiments import notebooks

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
PROFILES = sorted((ROOT / "nbs/profiles").glob("*.yaml"))

every_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)


@every_notebook
def test_outputs_are_not_committed(file: Path) -> None:
    for number, cell in enumerate(nbformat.read(file, as_version=4).cells):
        assert not cell.get("outputs"), f"cell {number} has outputs"
        assert cell.get("execution_count") is None, f"cell {number} has a count"


@every_notebook
def test_install_cell_and_parameters_come_first(file: Path) -> None:
    content = nbformat.read(file, as_version=4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert "google.colab" in code[0].source, "first a guarded install cell for Colab"
    assert "parameters" in code[1].metadata.get("tags", [])


@every_notebook
@pytest.mark.parametrize("profile", PROFILES, ids=lambda f: f.stem)
def test_profiles_set_only_what_is_declared(file: Path, profile: Path) -> None:
    declared = notebooks.declared_parameters(file)
    notebooks.profile_parameters(file, profile.stem, declared)


@every_notebook
def test_math_blocks_are_labelled_one_by_one(file: Path) -> None:
    for cell in nbformat.read(file, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert r"\label{" not in cell.source, "label a block: $$ ... $$ (eq-name)"


def test_profiles_name_existing_notebooks() -> None:
    import yaml

    stems = {file.stem for file in NOTEBOOKS}
    for profile in PROFILES:
        sections = set(yaml.safe_load(profile.read_text()) or {})
        assert sections <= stems | {"common"}, f"{profile.name}: {sections - stems}"
