"""`pyproject.toml`, `environment.yml`, `constraints.txt` and the code agree."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# Distributions whose conda-forge name differs.
CONDA_NAME = {
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "seaborn": "seaborn-base",
}
# Distributions whose import name differs.
IMPORT_NAME = {
    "ipython": "IPython",
    "imbalanced-learn": "imblearn",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}


def declared(extras: bool = True) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    if extras:
        lines += [line for g in project["optional-dependencies"].values() for line in g]
    return [Requirement(line) for line in lines]


def conda_lines() -> list[str]:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = [entry for entry in entries if isinstance(entry, str)]
    return lines + [line for e in entries if isinstance(e, dict) for line in e["pip"]]


def test_environment_file_mirrors_the_project() -> None:
    wanted = {"pip": "", "python": ">=3.11"}
    for requirement in declared():
        name = CONDA_NAME.get(requirement.name, requirement.name)
        wanted[name] = str(requirement.specifier)
    found = {r.name: str(r.specifier) for r in map(Requirement, conda_lines())}
    assert found == wanted


def test_every_declared_distribution_is_pinned_inside_its_range() -> None:
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert version, f"constraints.txt must pin exactly: {line}"
            assert "+" not in version, f"a local version can't be installed: {line}"
            pins[canonicalize_name(name)] = version
    for requirement in declared():
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} but {version}"


def imported_names(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(
    "file",
    sorted((ROOT / "needsaug_lite").rglob("*.py")),
    ids=lambda f: str(f.relative_to(ROOT)),
)
def test_the_library_imports_only_what_is_declared(file: Path) -> None:
    # Only the build of the book, its figures and the grid may use the extras.
    extras = file.parent.name in ("experiments", "plots")
    allowed = {
        IMPORT_NAME.get(r.name, r.name.replace("-", "_")) for r in declared(extras)
    }
    allowed |= set(sys.stdlib_module_names) | {"needsaug_lite"}
    assert imported_names(file.read_text()) <= allowed
