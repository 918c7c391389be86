"""Pages of the reference: a comment in a page becomes the names of a room.

    <!-- names of needsaug_lite.losses -->        all that its __init__ exports
    <!-- classes of needsaug_lite.plots.style -->  classes alone
    <!-- commands of needsaug_lite.cli -->         every command with its options

Names stand under the module that they come from, in the order of the room's imports. A
room without exports shows what its modules define. A new name needs no new line here.
"""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import typer
from docstring_pages import restructured
from typer.cli import get_docs_for_click

MARK = re.compile(r"^<!-- (names|classes|commands) of ([\w.]+) -->$", re.MULTILINE)
OPTION = re.compile(r"(?<![`\w-])--[a-z][\w-]*(?: \w[\w.]*=[\w.]+)?")
SHOWN_VALUE = 60  # characters of a constant that fit into a line
Names = dict[str, list[str]]


def setup(app: Any) -> dict[str, bool]:
    """Register the replacement, which runs before a page is parsed."""
    app.connect("source-read", lambda app, page, source: fill(source))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def fill(source: list[str]) -> None:
    """Replace every mark in the text of a page, in place."""
    source[0] = MARK.sub(lambda found: generated(*found.groups()), source[0])


def generated(kind: str, path: str) -> str:
    """Markdown for one mark."""
    if kind == "commands":
        return commands(path)
    room = import_module(path)
    groups = {
        home: [n for n in names if kind == "names" or is_class(room, home, n)]
        for home, names in public_names(room).items()
    }
    return "\n".join(
        section(room, home, names, titled=len(groups) > 1)
        for home, names in groups.items()
        if names
    )


def public_names(room: ModuleType) -> Names:
    """Public names of a room by the module that they come from.

    Read from the source: rooms that import lazily say what they export only there.
    """
    names: Names = {}
    for node in ast.walk(ast.parse(inspect.getsource(room))):
        if isinstance(node, ast.ImportFrom) and hasattr(room, "__path__"):
            exported = [alias.name for alias in node.names if alias.asname]
            if exported and node.module:
                names.setdefault(node.module, []).extend(exported)
    if names:
        return names
    inside = [m.name for m in iter_modules(getattr(room, "__path__", []))]
    modules = [import_module(f"{room.__name__}.{name}") for name in inside] or [room]
    return {module.__name__: defined(module) for module in modules}


def defined(module: ModuleType) -> list[str]:
    """Public functions and classes that a module defines, in its order."""
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
    ]


def is_class(room: ModuleType, home: str, name: str) -> bool:
    """Whether a public name is a class."""
    return inspect.isclass(getattr(import_module(home), name))


def section(room: ModuleType, home: str, names: list[str], *, titled: bool) -> str:
    """The names of one module, with what its docstring says."""
    module = import_module(home)
    stem = home.rpartition(".")[2].strip("_")
    named = [name for name in names if name.lower() == stem.replace("_", "")]
    title = named[0] if named else stem.replace("_", " ").capitalize()
    lines = [f"## {title}", ""] if titled else []
    lines += ["```{eval-rst}"]
    if titled:
        lines += restructured(inspect.cleandoc(module.__doc__ or "").splitlines())
    for name in names:
        # The shortest path that works is the one to import from.
        exported = hasattr(room, name)
        lines += ["", *directive(room if exported else module, module, name)]
    return "\n".join([*lines, "```", ""])


def directive(place: ModuleType, home: ModuleType, name: str) -> list[str]:
    """How autodoc is asked for one name."""
    thing = getattr(home, name)
    head = [f".. currentmodule:: {place.__name__}", ""]
    if inspect.isfunction(thing):
        return [*head, f".. autofunction:: {name}"]
    if inspect.isclass(thing):
        lines = [f".. autoclass:: {name}", "   :members:"]
        own = all(base.__module__.startswith("needsaug") for base in thing.__bases__)
        return [*head, *lines, *["   :show-inheritance:"] * own]
    # The comment above a constant is found in the module that sets it.
    lines = [f".. autodata:: {home.__name__}.{name}"]
    return [*head, *lines, *["   :no-value:"] * (len(repr(thing)) > SHOWN_VALUE)]


def commands(path: str) -> str:
    """Every command of a typer application, its help, arguments and options."""
    command = typer.main.get_command(import_module(path).app)
    whole_sentences(command)
    context = typer.Context(command, info_name="needsaug")
    text = get_docs_for_click(obj=command, ctx=context, name="needsaug")
    # The page has its own title; two hyphens in prose would become a dash.
    blocks = re.split(r"(```.*?```)", text.partition("\n")[2], flags=re.DOTALL)
    return "".join(
        block if block.startswith("```") else OPTION.sub(r"`\g<0>`", block)
        for block in blocks
    )


def whole_sentences(command: Any) -> None:
    """Let lists of commands show first lines uncut."""
    for inner in getattr(command, "commands", {}).values():
        inner.short_help = (inner.help or "").partition("\n\n")[0]
        whole_sentences(inner)
