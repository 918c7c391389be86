"""A copy of the project in which the smoke profile is executed and rendered.

The reader's own `book/chapters` and `book/_build` are never touched. The parts of
`make test` share one copy (NEEDSAUG_TEST_BUILD); a part that runs alone makes its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("Snakefile", "constraints.txt")
FOLDERS = ("nbs", "book", "needsaug_lite")
MADE = ("chapters", "generated", "_build", "__pycache__", ".ipynb_checkpoints")


class BuildFolder:
    """The copy, and the call that makes a target in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.html = folder / "book/_build/html"
        if (folder / "Snakefile").exists():
            return
        for name in FOLDERS:
            # Only names at the top of book/ are outputs; needsaug_lite has such rooms.
            ignore = shutil.ignore_patterns(*(MADE if name == "book" else MADE[3:]))
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        for name in FILES:
            shutil.copy(ROOT / name, folder)

    def make(self, target: str) -> subprocess.CompletedProcess[str]:
        """Make a target of the Snakefile in the smoke profile; go on after failures."""
        call = [sys.executable, "-m", "snakemake", target, "--cores", "2"]
        call += ["--config", "profile=smoke", "--keep-going", "--rerun-incomplete"]
        return subprocess.run(
            [*call, "--show-failed-logs"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    def log(self, name: str) -> str:
        file = self.folder / f"book/_build/logs/{name}.log"
        return file.read_text() if file.exists() else "(no log)"


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> BuildFolder:
    shared = os.environ.get("NEEDSAUG_TEST_BUILD")
    return BuildFolder(Path(shared) if shared else tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="session")
def built_book(build_folder: BuildFolder) -> Path:
    """The folder of the rendered pages."""
    result = build_folder.make("all")
    assert result.returncode == 0, result.stdout
    return build_folder.html
