"""What is made again after a change, and what a failure leaves behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest
from helpers.stub_project import StubProject

pytestmark = pytest.mark.slow


@pytest.fixture
def stub_project(tmp_path: Path) -> StubProject:
    return StubProject(tmp_path)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_only_what_depends_on_a_change_is_made_again(stub_project: StubProject) -> None:
    root = stub_project.root
    first = stub_project.make()
    assert first.returncode == 0, first.stdout + first.stderr
    assert (root / "book/_build/html/index.html").exists()
    assert stub_project.planned() == set()

    for file in root.rglob("nbs/*.ipynb"):
        os.utime(file)
    os.utime(root / "needsaug_lite/first.py")
    assert stub_project.planned() == set(), "a new time alone is no change"

    edit(root / "nbs/01_first.ipynb", "# 01_first", "# The first")
    assert stub_project.planned() == {"01_first", "book"}
    edit(root / "needsaug_lite/second.py", "1", "2")
    assert stub_project.planned() == {"01_first", "02_second", "book"}
    assert stub_project.make().returncode == 0
    assert stub_project.planned() == set()

    edit(root / "book/intro.md", "Stub", "New")
    assert stub_project.planned() == {"book"}
    (root / "book/results/long_tail/abd.json").write_text("{}")
    assert stub_project.planned() == {"01_first", "02_second", "tables", "book"}


def test_values_of_the_profile_are_inputs(stub_project: StubProject) -> None:
    root = stub_project.root
    assert stub_project.make().returncode == 0
    with (root / "nbs/profiles/lite.yaml").open("a") as profile:
        profile.write("02_second: {seed: 7}\n")
    assert stub_project.planned() == {"02_second", "book"}
    assert stub_project.planned("--config", "profile=smoke") == {
        "01_first",
        "02_second",
        "book",
    }
    with (root / "nbs/profiles/lite.yaml").open("a") as profile:
        profile.write("01_first: {sead: 7}\n")
    refused = stub_project.make()
    assert refused.returncode != 0
    assert "sead" in refused.stdout + refused.stderr


def test_a_failure_is_not_forgotten(stub_project: StubProject) -> None:
    """A failed job must not let the next call report the old book as up to date."""
    assert stub_project.make().returncode == 0
    stub_project.chapter("01_first", "raise RuntimeError('broken on purpose')")
    for _ in range(2):
        failed = stub_project.make()
        output = failed.stdout + failed.stderr
        assert failed.returncode != 0
        assert "broken on purpose" in output
        assert "Nothing to be done" not in output
    # The other chapter is there, the failed one can be looked at.
    assert (stub_project.root / "book/chapters/02_second.ipynb").exists()
    assert (stub_project.root / "book/chapters/.01_first.partial.ipynb").exists()
    stub_project.chapter("01_first", "from needsaug_lite import first")
    assert stub_project.make().returncode == 0


def test_a_warning_of_the_book_fails_every_call(tmp_path: Path) -> None:
    stub_project = StubProject(tmp_path, real_tools=True)
    page = stub_project.root / "book/intro.md"
    page.write_text(page.read_text() + "\nSee [nowhere](no_such_page.md).\n")
    for _ in range(2):
        assert stub_project.make().returncode != 0


def test_committed_rows_are_never_removed(stub_project: StubProject) -> None:
    row = stub_project.root / "book/results/long_tail/abc.json"
    stub_project.chapter("01_first", "raise RuntimeError")
    assert stub_project.make().returncode != 0
    assert stub_project.make("--delete-all-output").returncode == 0
    assert row.read_text() == "{}"


def test_chapters_run_with_the_library_beside_them(tmp_path: Path) -> None:
    """A kernel must not import another copy of the package that is installed."""
    stub_project = StubProject(tmp_path, real_tools=True)
    code = (
        "import json, needsaug_lite\nprint(json.dumps([needsaug_lite.__file__, seed]))"
    )
    stub_project.chapter("01_first", code)
    assert stub_project.make("book/chapters/01_first.ipynb").returncode == 0
    executed = nbformat.read(
        stub_project.root / "book/chapters/01_first.ipynb", as_version=4
    )
    file, seed = json.loads(executed.cells[-1].outputs[0].text)
    assert Path(file).is_relative_to(stub_project.root)
    assert seed == 1
