"""What is made again after a change, and what a failure leaves behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nbformat
import pytest
from helpers.stub_project import StubProject

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose outputs all stand."""
    project = StubProject(tmp_path_factory.mktemp("made"))
    first = project.make()
    assert first.returncode == 0, first.stdout + first.stderr
    assert (project.root / "book/_build/html/index.html").exists()
    return project.root


@pytest.fixture
def project(made_once: Path, tmp_path: Path) -> StubProject:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return StubProject.at(tmp_path)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_only_what_depends_on_a_change_is_made_again(project: StubProject) -> None:
    root = project.root
    for file in (*root.glob("nbs/*.ipynb"), root / "needsaug_lite/first.py"):
        os.utime(file)
    assert project.planned() == set(), "a new time alone is no change"
    edit(root / "book/intro.md", "Stub", "New")
    assert project.planned() == {"book"}
    edit(root / "needsaug_lite/second.py", "1", "2")
    assert project.planned() == {"02_second", "book"}
    edit(root / "nbs/01_first.ipynb", "# 01_first", "# The first")
    assert project.planned() == {"01_first", "02_second", "book"}
    (root / "book/results/long_tail/abd.json").write_text("{}")
    assert project.planned() == {"01_first", "02_second", "tables", "book"}
    assert project.make().returncode == 0
    assert project.planned() == set()


def test_values_of_the_profile_are_inputs(project: StubProject) -> None:
    lite = project.root / "nbs/profiles/lite.yaml"
    with lite.open("a") as profile:
        profile.write("02_second: {seed: 7}\n")
    assert project.planned() == {"02_second", "book"}
    both = {"01_first", "02_second", "book"}
    assert project.planned("--config", "profile=smoke") == both
    with lite.open("a") as profile:
        profile.write("01_first: {sead: 7}\n")
    refused = project.make()
    assert refused.returncode != 0
    assert "sead" in refused.stdout + refused.stderr


def test_a_failure_is_not_forgotten(project: StubProject) -> None:
    """A failed job must not let the next call report the old book as up to date."""
    row = project.root / "book/results/long_tail/abc.json"
    project.chapter("01_first", "raise RuntimeError('broken on purpose')")
    for _ in range(2):
        failed = project.make()
        output = failed.stdout + failed.stderr
        assert failed.returncode != 0
        assert "broken on purpose" in output
        assert "Nothing to be done" not in output
    # The other chapter is there, the failed one can be looked at, no row is gone.
    assert (project.root / "book/chapters/02_second.ipynb").exists()
    assert (project.root / "book/chapters/.01_first.partial.ipynb").exists()
    assert project.make("--delete-all-output").returncode == 0
    assert row.read_text() == "{}"


def test_kernels_and_warnings_with_the_real_tools(tmp_path: Path) -> None:
    project = StubProject(tmp_path, real_tools=True)
    code = (
        "import json, needsaug_lite\nprint(json.dumps([needsaug_lite.__file__, seed]))"
    )
    project.chapter("01_first", code)
    made = project.make()
    assert made.returncode == 0, made.stdout + made.stderr

    # A kernel imports the library beside the Snakefile, not one that is installed.
    executed = nbformat.read(tmp_path / "book/chapters/01_first.ipynb", as_version=4)
    file, seed = json.loads(executed.cells[-1].outputs[0].text)
    assert Path(file).is_relative_to(tmp_path)
    assert seed == 1

    # Sphinx warns about a page once; the second call must fail all the same.
    with (tmp_path / "book/intro.md").open("a") as page:
        page.write("\nSee [nowhere](no_such_page.md).\n")
    for _ in range(2):
        assert project.make().returncode != 0
