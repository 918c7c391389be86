"""What a piece of code names: imported modules, attributes of them, entries of tables.

Pure functions of syntax trees; `dependencies` builds the closure from them.
"""

from __future__ import annotations

import ast
from collections.abc import Collection

# Stands for "any of the module's names may be used".
EVERYTHING = "*"


def dotted_names(tree: ast.AST) -> set[str]:
    """Every imported name, and attributes of imported names, as full dotted names.

    `from p import losses as L; L.ldam(x)` gives `p.losses` and `p.losses.ldam`. A
    module that is handed around whole (`vars(L)`, `f(L)`) gives `p.losses.*`.

    Args:
        tree: code with absolute imports; see `absolute`.

    Returns:
        Dotted names, each a module or something below one.
    """
    bound: dict[str, str] = {}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.add(alias.name)
                top = alias.name.partition(".")[0]
                bound[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full)
                bound[alias.asname or alias.name] = full
    return names | _uses(tree, bound)


def strings(tree: ast.AST) -> set[str]:
    """All string constants."""
    constants = (
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
    )
    return {value for value in constants if isinstance(value, str)}


def absolute(tree: ast.Module, package: str) -> ast.Module:
    """A copy of the tree with `from .x import y` as `from package.x import y`.

    Args:
        tree: the code of a module.
        package: the package that holds the module, or that the module is.

    Returns:
        The copy.
    """
    parts = package.split(".")
    copy = ast.parse(ast.unparse(tree))
    for node in ast.walk(copy):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level + 1]
            node.module = ".".join([*base, *([node.module] if node.module else [])])
            node.level = 0
    return copy


def imported_from(tree: ast.Module, modules: Collection[str]) -> dict[str, str]:
    """Name -> module that it comes from, anywhere in code with absolute imports."""
    sources: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                source = deeper if deeper in modules else node.module
                if source in modules:
                    sources[alias.asname or alias.name] = source
    return sources


def tables(
    tree: ast.Module, package: str, modules: Collection[str]
) -> dict[str, dict[str, set[str]]]:
    """Dictionaries at the top of a module whose entries name modules of the package.

    Understands `"ldam": Entry(f"{_BASELINES}.margins:LDAM")`, `"MGR": ".mgr"` and
    `"MGR": "package.room.mgr"`.

    Args:
        tree: the code of a module.
        package: what a name without its package is relative to.
        modules: full names of the package's modules.

    Returns:
        Name of the dictionary -> key -> modules that the entry names.
    """
    constants = _string_constants(tree)
    found: dict[str, dict[str, set[str]]] = {}
    for name, value in _assignments(tree):
        if not isinstance(value, ast.Dict):
            continue
        entries: dict[str, set[str]] = {}
        for key, item in zip(value.keys, value.values, strict=True):
            named = _named_modules(item, constants, package, modules)
            if isinstance(key, ast.Constant) and named:
                entries[str(key.value)] = named
        if entries:
            found[name] = entries
    return found


def is_deferred(node: ast.stmt) -> bool:
    """True for what does not run when a module is imported: types, lazy names."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return True
    return is_getattr(node)


def is_getattr(node: ast.stmt) -> bool:
    """True for a module's own `__getattr__`, which makes it lazy."""
    return isinstance(node, ast.FunctionDef) and node.name == "__getattr__"


def _uses(tree: ast.AST, bound: dict[str, str]) -> set[str]:
    names: set[str] = set()
    inside: set[int] = set()
    for node in ast.walk(tree):  # an attribute comes before what it is an attribute of
        if id(node) in inside:
            continue
        if isinstance(node, ast.Attribute):
            chain = _chain(node, inside)
            if chain and chain[0] in bound:
                names.add(".".join([bound[chain[0]], *chain[1:]]))
        elif isinstance(node, ast.Name) and node.id in bound:
            names.add(f"{bound[node.id]}.{EVERYTHING}")
    return names


def _chain(node: ast.Attribute, inside: set[int]) -> list[str]:
    """`a.b.c` as its three names; empty if it does not start with a plain name."""
    parts: list[str] = []
    current: ast.expr = node
    while isinstance(current, ast.Attribute):
        parts.append(current.attr)
        inside.add(id(current))
        current = current.value
    if not isinstance(current, ast.Name):
        return []
    inside.add(id(current))
    return [current.id, *reversed(parts)]


def _assignments(tree: ast.Module) -> list[tuple[str, ast.expr]]:
    pairs: list[tuple[str, ast.expr]] = []
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                pairs.append((name, value))
    return pairs


def _string_constants(tree: ast.Module) -> dict[str, str]:
    return {
        name: value.value
        for name, value in _assignments(tree)
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    }


def _named_modules(
    item: ast.expr,
    constants: dict[str, str],
    package: str,
    modules: Collection[str],
) -> set[str]:
    """Modules that the strings of one entry name, in full or relative to `package`."""
    texts = {_text(node, constants) for node in ast.walk(item)} - {""}
    paths = {text.partition(":")[0] for text in texts}
    full = paths | {f"{package}.{path.lstrip('.')}" for path in paths}
    return {name for name in full if name in modules}


def _text(node: ast.AST, constants: dict[str, str]) -> str:
    """A string constant, or an f-string of the module's own constants; else empty."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, constants) for part in parts)
        case ast.FormattedValue(value=ast.Name(id=name)):
            return constants.get(name, "")
        case _:
            return ""
