"""Run the install cell of notebooks as Colab would: `google.colab` is importable.

python tests/run_install_cell.py nbs/01_topic.ipynb ...
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run_install_cell(file: Path, stub: Path) -> None:
    """Execute the first code cell, then import the library in the same kernel."""
    notebook = nbformat.read(file, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    check = nbformat.v4.new_code_cell("import needsaug_lite")
    notebook.cells = [first, check]
    os.environ["PYTHONPATH"] = str(stub)
    # Outside the checkout: the cell must install, not find the source beside it.
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(stub)}}
    ).execute()


def main(names: list[str]) -> int:
    """Run every notebook's cell; 1 if one of them fails."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        stub = Path(folder)
        (stub / "google/colab").mkdir(parents=True)
        (stub / "google/__init__.py").touch()
        (stub / "google/colab/__init__.py").touch()
        for name in names:
            try:
                run_install_cell(Path(name), stub)
            except Exception as error:  # noqa: BLE001 - all notebooks are tried
                print(f"{name}: {error}")
                failed.append(name)
    print(f"{len(names) - len(failed)} of {len(names)} install cells work")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
