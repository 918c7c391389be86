"""Every public name is in the reference; its docstring says what goes in and out."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from helpers.built_book import ROOT

from needsaug_lite.experiments.registry import GENERATORS, METHODS

PAGES = sorted((ROOT / "book/api").glob("*.md"))
PACKAGE = ROOT / "needsaug_lite"
# Modules that others use and readers don't.
INTERNAL = {"errors", "files", "cli"}


def extension(name: str) -> ModuleType:
    """A Sphinx extension of the book."""
    folder = str(ROOT / "book/_ext")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module(name)


def filled(page: Path) -> str:
    """The text that Sphinx parses."""
    source = [page.read_text(encoding="utf-8")]
    extension("api_pages").fill(source)
    return source[0]


@pytest.fixture(scope="module")
def shown() -> set[str]:
    """Full names of everything that a page documents."""
    names, place = set(), ""
    for page in PAGES:
        for line in filled(page).splitlines():
            if found := re.match(r"\.\. currentmodule:: (\S+)", line):
                place = found[1]
            if found := re.match(r"\.\. auto(?:function|class):: (\S+)", line):
                names.add(f"{place}.{found[1]}")
            if found := re.match(r"\.\. autodata:: (\S+)", line):
                names.add(found[1])
    return names


def rooms() -> list[str]:
    """Rooms of the package, and the modules beside them, that readers import."""
    found = {p.stem for p in PACKAGE.glob("[!_]*.py")}
    found |= {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    return sorted(found - INTERNAL)


def exported(room: str) -> dict[str, str]:
    """Public names of a room and the module that each comes from."""
    module = import_module(f"needsaug_lite.{room}")
    groups = extension("api_pages").public_names(module)
    return {name: home for home, names in groups.items() for name in names}


@pytest.mark.parametrize("room", rooms())
def test_every_public_name_is_on_a_page(room: str, shown: set[str]) -> None:
    names = exported(room)
    assert names
    module = import_module(f"needsaug_lite.{room}")
    # Names in the namespace that are neither modules nor private are all exports.
    if not room.startswith(("plots", "experiments")):
        public = {
            name
            for name, thing in vars(module).items()
            if not name.startswith("_")
            and getattr(thing, "__module__", "").startswith(f"needsaug_lite.{room}")
        }
        assert public <= set(names)
    for name, home in names.items():
        assert {f"needsaug_lite.{room}.{name}", f"{home}.{name}"} & shown, name


@pytest.mark.parametrize("table", [METHODS, GENERATORS], ids=["methods", "generators"])
def test_every_method_is_on_a_page(table: dict, shown: set[str]) -> None:
    short = {(name.rpartition(".")[2]) for name in shown}
    for entry in table.values():
        assert entry.load().__name__ in short


@pytest.mark.parametrize("room", [r for r in rooms() if r != "plots"])
def test_docstrings_say_what_goes_in_and_out(room: str) -> None:
    for name, home in exported(room).items():
        thing = getattr(import_module(home), name)
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        assert thing.__doc__, name
        if inspect.isfunction(thing):
            check_sections(name, thing)
        elif has_own_arguments(thing):
            text = thing.__doc__ + (thing.__init__.__doc__ or "")
            assert re.search(r"(?m)^ *(Args|Attributes):$|^ *Parameters, ", text), name


def check_sections(name: str, function: object) -> None:
    """Args for arguments and Returns for a result."""
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    if signature.parameters:
        assert "\nArgs:\n" in text, name
        described = text.partition("\nArgs:\n")[2].split("\n\n")[0]
        for argument in signature.parameters:
            assert re.search(rf"\b{argument}\b", described), f"{name}: {argument}"
    result = str(signature.return_annotation)
    if result != "None" and not result.startswith("Iterator"):
        assert re.search(r"\n(Returns|Yields):\n", text), name


def has_own_arguments(kind: type) -> bool:
    """Whether the class itself says how it is made, and is meant to be made.

    Pydantic's models name their settings by their fields; errors take a message.
    """
    if getattr(kind, "_is_protocol", False) or issubclass(kind, BaseException):
        return False
    return "__init__" in vars(kind) or hasattr(kind, "__dataclass_fields__")


def test_every_command_is_on_the_page() -> None:
    text = filled(ROOT / "book/api/command_line.md")
    for command in ("run", "grid", "needs", "predict", "results", "doctor"):
        assert f"`needsaug {command}`" in text
    assert "`needsaug data fetch`" in text
    assert "`--seed" in text
    listed = text.partition("**Commands**")[2].partition("##")[0]
    assert listed.count("* `") == 7
    assert "..." not in listed  # first lines are whole


def test_no_mark_is_left() -> None:
    for page in PAGES:
        assert "<!-- " not in filled(page), page.name


FORMULA = """A loss.

L = -w_y log p_y                                     (facog Eq. 3)

It is |small| for f_ and *this*, see `other` and "mean":

    x <- x - 1, and so on.

Args:
    first, second,
        third: of any shape.

Returns:
    A scalar.
"""


def test_formulas_become_literal_and_markup_is_taken_as_text() -> None:
    text = "\n".join(extension("docstring_pages").restructured(FORMULA.splitlines()))
    assert "   L = -w_y log p_y   (facog Eq. 3)\n" in text
    assert "   x <- x - 1, and so on.\n" in text
    assert text.count(".. code-block:: none") == 2
    assert r"\|small\| for f\_ and \*this\*, see `other` and ``" in text
    assert "    first, second, third: of any shape." in text
    assert text.startswith("A loss.\n")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("(a: ~typing.Annotated[int, Ge(ge=1)] = 1)", "(a: int = 1)"),
        (
            "(a: Annotated[dict[str, int], Len(1, 2)] | None)",
            "(a: dict[str, int] | None)",
        ),
        ("(a: int, b: str)", "(a: int, b: str)"),
    ],
)
def test_bounds_are_left_out_of_signatures(given: str, wanted: str) -> None:
    assert extension("docstring_pages").without_bounds(given) == wanted
