"""A notebook depends on what it imports, on nothing else, and on nothing less."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers.stub_project import write_notebook

from needsaug_lite.errors import UserError
from needsaug_lite.experiments.dependencies import (
    module_dependencies,
    notebook_dependencies,
)

LIBRARY = {
    "__init__.py": "",
    "files.py": "ROOT = 1",
    "types_only.py": "class T: ...",
    "data/__init__.py": "from stub_lib.data.load import load as load",
    "data/load.py": "from stub_lib import files\ndef load(): ...",
    "data/unused.py": "",
    # Lazy: a submodule is imported when one of its names is asked for.
    "losses/__init__.py": """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from .focusing import focal as focal
            from .margins import ldam as ldam
        _HOME = {"focal": "focusing", "ldam": "margins"}
        def __getattr__(name):
            import importlib
            module = importlib.import_module("." + _HOME[name], __name__)
            return getattr(module, name)
        """,
    "losses/focusing.py": "def focal(): ...",
    "losses/margins.py": "from ..data.load import load\ndef ldam(): ...",
    "training.py": """
        from typing import TYPE_CHECKING
        from stub_lib import losses
        if TYPE_CHECKING:
            from stub_lib.types_only import T
        def train(): return losses.focal
        """,
    "registry.py": """
        _HOME = "stub_lib.methods"
        METHODS = {"one": f"{_HOME}.one:One", "two": f"{_HOME}.two:Two"}
        def find(name):
            import importlib
            module, cls = METHODS[name].split(":")
            return getattr(importlib.import_module(module), cls)
        """,
    "methods/__init__.py": "",
    "methods/one.py": "class One: ...",
    "methods/two.py": "from stub_lib import losses\nclass Two: loss = losses.ldam",
}
ALWAYS = {"__init__.py"}
LOAD = {"data/__init__.py", "data/load.py", "files.py"}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "stub_lib"
    for name, text in LIBRARY.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(text))
    return root


CASES = {
    "nothing of the library": ("import json", None),
    "an eager room": ("from stub_lib import data", LOAD),
    "an attribute path": ("import stub_lib.data as d\nd.load()", LOAD),
    "one module": ("from stub_lib import files", {"files.py"}),
    "a name of a lazy room": (
        "from stub_lib.losses import focal\nfocal()",
        {"losses/__init__.py", "losses/focusing.py"},
    ),
    "a lazy room and one attribute": (
        "from stub_lib import losses as L\nL.ldam()",
        {"losses/__init__.py", "losses/margins.py"} | LOAD,
    ),
    "a lazy room handed around": (
        "from stub_lib import losses\nprint(vars(losses))",
        {"losses/__init__.py", "losses/margins.py", "losses/focusing.py"} | LOAD,
    ),
    "a lazy room used by the library": (
        "import stub_lib.training\nstub_lib.training.train()",
        {"training.py", "losses/__init__.py", "losses/focusing.py"},
    ),
    "a named entry of a registry": (
        "from stub_lib.registry import find\nfind('one')",
        {"registry.py", "methods/__init__.py", "methods/one.py"},
    ),
    "an entry that imports more": (
        "from stub_lib.registry import find\nfind('two')",
        {"registry.py", "methods/__init__.py", "methods/two.py"}
        | {"losses/__init__.py", "losses/margins.py"}
        | LOAD,
    ),
    "a whole registry": (
        "from stub_lib import registry\n[registry.find(n) for n in registry.METHODS]",
        {"registry.py", "methods/__init__.py", "methods/one.py", "methods/two.py"}
        | {"losses/__init__.py", "losses/margins.py"}
        | LOAD,
    ),
    "magics and a late import": (
        "%matplotlib inline\n!ls\ndef f():\n    from stub_lib import files\n    f",
        {"files.py"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_files_behind_a_notebook(library: Path, tmp_path: Path, case: str) -> None:
    code, expected = CASES[case]
    notebook = write_notebook(tmp_path / "nb.ipynb", code)
    files = notebook_dependencies(notebook, library)
    found = {file.relative_to(library).as_posix() for file in files}
    assert found == (set() if expected is None else ALWAYS | expected)


@pytest.mark.parametrize("case", [c for c in CASES if "magics" not in c])
def test_nothing_that_python_imports_is_missing(
    library: Path, tmp_path: Path, case: str
) -> None:
    code, _ = CASES[case]
    report = (
        "\nimport sys\nprint(*(m.__file__ for n, m in sys.modules.items()"
        " if n.split('.')[0] == 'stub_lib'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code + report],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {Path(name).resolve() for name in run.stdout.splitlines()[-1].split()}
    notebook = write_notebook(tmp_path / "nb.ipynb", code)
    found = {file.resolve() for file in notebook_dependencies(notebook, library)}
    assert imported <= found


def test_order_and_text_of_cells_do_not_matter(library: Path, tmp_path: Path) -> None:
    cells = ["from stub_lib import data", "import stub_lib.registry"]
    one = write_notebook(tmp_path / "one.ipynb", *cells)
    two = write_notebook(tmp_path / "two.ipynb", *reversed(cells), "1 + 1")
    assert notebook_dependencies(one, library) == notebook_dependencies(two, library)


def test_a_module_depends_on_all_entries_of_its_tables(library: Path) -> None:
    files = module_dependencies("stub_lib.registry", library)
    found = {file.relative_to(library).as_posix() for file in files}
    assert {"methods/one.py", "methods/two.py"} <= found


def test_an_import_cycle_ends(library: Path, tmp_path: Path) -> None:
    (library / "files.py").write_text("import stub_lib.data")
    notebook = write_notebook(tmp_path / "nb.ipynb", "import stub_lib.files")
    files = notebook_dependencies(notebook, library)
    assert {f.name for f in files} == {"__init__.py", "files.py", "load.py"}


def test_mistakes_are_named(library: Path, tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "nb.ipynb", "x = (")
    with pytest.raises(UserError, match=r"nb\.ipynb, cell 1"):
        notebook_dependencies(notebook, library)
    with pytest.raises(UserError, match=r"no module stub_lib\.nowhere"):
        module_dependencies("stub_lib.nowhere", library)
