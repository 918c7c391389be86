"""A project with this one's build rules and nothing in it that takes time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat import v4

ROOT = Path(__file__).parents[2]

# Stands in for papermill: runs the cells in the same process, starts no kernel.
PAPERMILL = """
import nbformat

class PapermillExecutionError(Exception):
    cell_index = 0

def execute_notebook(source, target, parameters, **_):
    notebook, values = nbformat.read(source, as_version=4), {}
    nbformat.write(notebook, target)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            try:
                exec(cell.source, values)
            except Exception as error:
                raise PapermillExecutionError(error)
            if "parameters" in cell.metadata.get("tags", []):
                values.update(parameters)
"""
# Stands in for Jupyter Book.
JUPYTER_BOOK = """
from pathlib import Path

def main():
    html = Path("book/_build/html")
    html.mkdir(parents=True, exist_ok=True)
    (html / "index.html").write_text("")
"""


def write_notebook(path: Path, *cells: str, parameters: str | None = None) -> Path:
    """Write code cells, after a title and a cell of parameters, as a notebook."""
    content = v4.new_notebook()
    if parameters is not None:
        cell = v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        content.cells.append(cell)
    content.cells.append(v4.new_markdown_cell(f"# {path.stem}"))
    content.cells += [v4.new_code_cell(cell) for cell in cells]
    for number, cell in enumerate(content.cells):
        cell["id"] = f"cell-{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, path)
    return path


class StubProject:
    """The project's Snakefile with two chapters and a library of two files."""

    def __init__(self, root: Path, real_tools: bool = False) -> None:
        self.root = root
        if not real_tools:
            (root / "papermill.py").write_text(PAPERMILL)
            (root / "jupyter_book/cli").mkdir(parents=True)
            (root / "jupyter_book/__init__.py").touch()
            (root / "jupyter_book/cli/__init__.py").touch()
            (root / "jupyter_book/cli/main.py").write_text(JUPYTER_BOOK)
        shutil.copy(ROOT / "Snakefile", root)
        (root / "constraints.txt").write_text("numpy==2.4.6\n")
        self._write_library()
        self._write_book()
        (root / "nbs/profiles").mkdir(parents=True)
        (root / "nbs/profiles/lite.yaml").write_text("common: {seed: 1}\n")
        (root / "nbs/profiles/smoke.yaml").write_text("common: {seed: 2}\n")
        self.chapter("01_first", "from needsaug_lite import first")
        self.chapter("02_second", "from needsaug_lite import second")

    @classmethod
    def at(cls, root: Path) -> StubProject:
        """The project that already lies in this folder."""
        project = cls.__new__(cls)
        project.root = root
        return project

    def _write_library(self) -> None:
        build = self.root / "needsaug_lite/experiments"
        build.mkdir(parents=True)
        for name in ("dependencies", "code_names", "notebooks"):
            shutil.copy(ROOT / f"needsaug_lite/experiments/{name}.py", build)
        shutil.copy(ROOT / "needsaug_lite/errors.py", build.parent)
        for empty in (build.parent, build):
            (empty / "__init__.py").write_text("")
        for room in ("first", "second"):
            (build.parent / f"{room}.py").write_text("VALUE = 1\n")
        (build / "pages.py").write_text(
            "from pathlib import Path\n"
            "folder = Path('book/generated')\n"
            "folder.mkdir(parents=True, exist_ok=True)\n"
            "(folder / 'results_tables.md').write_text('| a |\\n|---|\\n| 1 |\\n')\n"
        )

    def _write_book(self) -> None:
        book = self.root / "book"
        (book / "results/long_tail").mkdir(parents=True)
        (book / "results/long_tail/abc.json").write_text("{}")
        (book / "_config.yml").write_text(
            "title: Stub\nonly_build_toc_files: true\n"
            "execute: {execute_notebooks: 'off'}\n"
        )
        (book / "_toc.yml").write_text(
            "format: jb-book\nroot: intro\nchapters:\n"
            "  - file: chapters/01_first\n  - file: chapters/02_second\n"
        )
        (book / "intro.md").write_text(
            "# Stub\n\n```{include} generated/results_tables.md\n```\n"
        )

    def chapter(self, name: str, *cells: str) -> Path:
        file = self.root / f"nbs/{name}.ipynb"
        return write_notebook(file, *cells, parameters="seed = 0")

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call Snakemake as `make book` does."""
        call = [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going"]
        return subprocess.run(
            [*call, "--rerun-incomplete", "--show-failed-logs", *arguments],
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
        )

    def planned(self, *arguments: str) -> set[str]:
        """Outputs that a call would make again, with their rule's folder left out."""
        result = self.make("--dry-run", "--quiet", "host", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        known = {
            "Execute 01_first": "01_first",
            "Execute 02_second": "02_second",
            "Write the tables": "tables",
            "Render the book": "book",
        }
        text = result.stdout + result.stderr
        return {name for message, name in known.items() if message in text}
