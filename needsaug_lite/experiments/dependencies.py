"""Which files of the library does a notebook really import?

A chapter is executed again when one of these files changes, and not when another one
does. The import graph of the package comes from `grimp`. Two things that such a graph
can't say are added: which names of a lazy package (one with a module-level
`__getattr__`) are used, and which entries of a table of modules (a registry) are named.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import grimp
import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from needsaug_lite.errors import UserError
from needsaug_lite.experiments import code_names


def notebook_dependencies(notebook: Path, package_root: Path) -> list[Path]:
    """Files of the package that the notebook's code cells import, closed over imports.

    Args:
        notebook: the notebook; outputs and text cells do not matter.
        package_root: the folder of the package, e.g. `needsaug_lite`.

    Returns:
        Sorted paths of `.py` files below `package_root`.

    Raises:
        UserError: if a code cell is not valid Python.
    """
    return Package.read(package_root).files_behind(_code(notebook))


def module_dependencies(module: str, package_root: Path) -> list[Path]:
    """Files that running one module of the package imports, its own among them.

    Args:
        module: full name, e.g. `needsaug_lite.experiments.pages`.
        package_root: the folder of the package.

    Returns:
        Sorted paths of `.py` files below `package_root`.

    Raises:
        UserError: if the package has no such module.
    """
    package = Package.read(package_root)
    if module not in package.trees:
        raise UserError(f"{package_root} has no module {module}")
    # Nobody names the entries of its tables from outside: all of them count.
    return package.files_behind(ast.parse(f"import {module}"), all_entries=True)


@dataclass(frozen=True)
class Package:
    """The modules of one package, their import graph and their syntax trees."""

    root: Path
    graph: grimp.ImportGraph
    trees: dict[str, ast.Module]

    @classmethod
    def read(cls, root: Path) -> Package:
        """Parse every module below `root` and build the import graph."""
        with _findable(root):
            graph = grimp.build_graph(
                root.name, exclude_type_checking_imports=True, cache_dir=None
            )
        trees = {
            module: ast.parse(_file(root, module).read_text(encoding="utf-8"))
            for module in graph.modules
        }
        return cls(root, graph, trees)

    @cached_property
    def lazy(self) -> set[str]:
        """Packages that import a submodule only when one of its names is asked for."""
        return {
            module
            for module, tree in self.trees.items()
            if any(code_names.is_getattr(node) for node in tree.body)
        }

    @cached_property
    def tables(self) -> dict[str, dict[str, dict[str, set[str]]]]:
        """Module -> table -> key -> modules that the entry names."""
        found = {
            module: code_names.tables(tree, self._package_of(module), self.trees)
            for module, tree in self.trees.items()
        }
        return {module: tables for module, tables in found.items() if tables}

    def files_behind(self, code: ast.Module, all_entries: bool = False) -> list[Path]:
        """Files that run when the code does.

        Args:
            code: absolute imports only.
            all_entries: count every entry of a table, not only those that are named.

        Returns:
            Sorted paths.
        """
        names = code_names.dotted_names(code)
        texts = code_names.strings(code)
        found: set[str] = set()
        waiting = self._modules(names)
        while waiting:
            module = waiting.pop()
            found.add(module)
            texts |= code_names.strings(self.trees[module]) - self._own_keys(module)
            names |= self._names_in(module)
            waiting |= self._parents(module) | self._imports(module)
            if not waiting - found:
                waiting |= self._entries(found, texts, names, all_entries)
            waiting -= found
        return sorted(_file(self.root, module) for module in found)

    def _imports(self, module: str) -> set[str]:
        """Direct imports of a module, through lazy packages to what is used of them."""
        if module in self.lazy:
            # The users of a lazy package ask for what its __getattr__ would import.
            return self._modules(self._names_in(module))
        targets = set(self.graph.find_modules_directly_imported_by(module))
        if targets & self.lazy:
            targets |= self._modules(self._names_in(module))
        return targets

    def _names_in(self, module: str) -> set[str]:
        body = self.trees[module].body
        eager = [node for node in body if not code_names.is_deferred(node)]
        tree = ast.Module(body=eager, type_ignores=[])
        return code_names.dotted_names(
            code_names.absolute(tree, self._package_of(module))
        )

    def _modules(self, names: set[str]) -> set[str]:
        return set().union(*(self._resolve(name) for name in names))

    def _resolve(self, dotted: str) -> set[str]:
        """The modules behind `package.room.name`: the longest prefix that is one."""
        module, *rest = dotted.split(".")
        if module != self.root.name:
            return set()
        while rest and f"{module}.{rest[0]}" in self.trees:
            module, rest = f"{module}.{rest[0]}", rest[1:]
        if module not in self.lazy or not rest or rest[0].startswith("__"):
            return {module}
        return {module} | self._behind(module, rest[0])

    def _behind(self, room: str, name: str) -> set[str]:
        """Where a lazy package takes `name` from; all it holds if that is unclear."""
        sources = code_names.imported_from(
            code_names.absolute(self.trees[room], room), self.trees.keys()
        )
        if name in sources:
            return {sources[name]}
        for entries in self.tables.get(room, {}).values():
            if name in entries:
                return entries[name]
        return {module for module in self.trees if module.startswith(f"{room}.")}

    def _entries(
        self, found: set[str], texts: set[str], names: set[str], all_entries: bool
    ) -> set[str]:
        """Modules behind those entries of imported tables that someone names."""
        modules: set[str] = set()
        for module in found & self.tables.keys() - self.lazy:
            for table, entries in self.tables[module].items():
                # Who takes the whole table may use any of its entries.
                path = f"{module}.{table}"
                whole = all_entries or any(
                    name == path or name.startswith(f"{path}.") for name in names
                )
                chosen = entries if whole else entries.keys() & texts
                modules |= set().union(*(entries[key] for key in chosen))
        return modules

    def _own_keys(self, module: str) -> set[str]:
        """Keys of a module's tables: writing an entry is not using it."""
        return set().union(*(e.keys() for e in self.tables.get(module, {}).values()))

    def _package_of(self, module: str) -> str:
        is_package = _file(self.root, module).name == "__init__.py"
        return module if is_package else module.rpartition(".")[0]

    def _parents(self, module: str) -> set[str]:
        """Importing a.b.c runs the `__init__` of a and of a.b first."""
        parts = module.split(".")
        return {".".join(parts[:n]) for n in range(1, len(parts))}


def _code(notebook: Path) -> ast.Module:
    """One syntax tree of all code cells, with IPython's magics turned into calls."""
    transform = TransformerManager().transform_cell
    body: list[ast.stmt] = []
    cells = nbformat.read(notebook, as_version=4).cells
    for number, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        try:
            body += ast.parse(transform(cell.source)).body
        except SyntaxError as error:
            raise UserError(
                f"{notebook}, cell {number}: not valid Python ({error.msg})"
            ) from error
    return ast.Module(body=body, type_ignores=[])


def _file(root: Path, module: str) -> Path:
    """The file of a module of the package."""
    base = root.parent.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@contextmanager
def _findable(package_root: Path) -> Iterator[None]:
    """Let `grimp` find the package in this folder, not an imported namesake."""
    folder, name = str(package_root.parent.resolve()), package_root.name
    imported = sys.modules.pop(name, None)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
        if imported is not None:
            sys.modules[name] = imported
