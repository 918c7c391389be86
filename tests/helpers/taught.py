"""The functions that a chapter teaches, taken out of its notebook."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

NOTEBOOKS = Path(__file__).parents[2] / "nbs"


def definitions(notebook: str, names: Iterable[str]) -> dict[str, ast.FunctionDef]:
    """Definitions of the named functions; each must stand there exactly once."""
    wanted, found = set(names), {}
    for cell in nbformat.read(NOTEBOOKS / notebook, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        source = TransformerManager().transform_cell(cell.source)
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name in wanted:
                assert node.name not in found, f"{node.name} is defined twice"
                found[node.name] = node
    assert set(found) == wanted
    return found


def functions(notebook: str, names: Iterable[str], **scope: Any) -> SimpleNamespace:
    """The named functions, which see each other and what is in `scope`."""
    found = definitions(notebook, names)
    module = ast.Module(list(found.values()), type_ignores=[])
    variables = dict(scope)
    exec(compile(module, notebook, "exec"), variables)
    return SimpleNamespace(**{name: variables[name] for name in found})


def lines_of_code(notebook: str, names: Iterable[str]) -> int:
    """Lines of the named functions together; docstrings aren't code."""
    nodes = definitions(notebook, names).values()
    for node in nodes:
        if isinstance(node.body[0], ast.Expr):
            node.body = node.body[1:]
    return sum(len(ast.unparse(node).splitlines()) for node in nodes)
