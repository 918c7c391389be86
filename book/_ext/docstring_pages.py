"""Docstrings as pages: the library's plain text becomes reStructuredText.

The docstrings are written for readers of the code: Google's sections, formulas in
Unicode that stand as paragraphs of their own, names between single backticks. Sphinx's
autodoc and napoleon read the sections; this extension makes formulas literal blocks and
marks what reStructuredText would take for markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from textwrap import dedent
from typing import Any

SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:", "Warns:", "Yields:")
FIELDS = ("Args:", "Attributes:")
PLACE = re.compile(r"\s{3,}(\([^()]*\))$")
CODE = re.compile(r"(`[^`]+`)")
LISTED = re.compile(r"(- |\d\. )")
SENTENCE = re.compile(r"^[A-Z][a-z]* [a-z]{2}|[a-z]\. |[.:]$")
WORD_IN_QUOTES = re.compile(r'(?<![^\s(])"[\w./:-]+"(?!\w)')
BOUNDED = re.compile(r"~?(?:typing\.)?Annotated\[")
BUILT = re.compile(r"\b([A-Z]\w*)\((?:[^()]|\([^()]*\))+\)")
MADE = re.compile(r"<[^<>]*>")
MARKUP = re.compile(r"[*|\\]|_(?!\w)")


def setup(app: Any) -> dict[str, bool]:
    """Register the step before napoleon's, which has priority 500."""
    app.connect("autodoc-process-docstring", rewrite, priority=400)
    app.connect("autodoc-process-signature", readable)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def rewrite(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Replace the lines of a docstring in place, as autodoc wants it."""
    lines[:] = restructured(lines)


def readable(
    app: Any, what: str, name: str, thing: Any, options: Any, *texts: str | None
) -> tuple[str | None, ...]:
    """A signature that Sphinx can lay out: bounds and made defaults are left out."""
    return tuple(text and shortened(without_bounds(text)) for text in texts)


def shortened(signature: str) -> str:
    """Defaults that are objects, by the name of their class."""
    return BUILT.sub(r"\1(...)", MADE.sub("...", signature))


def without_bounds(signature: str) -> str:
    """`Annotated[float, Ge(0)]` as `float`."""
    while found := BOUNDED.search(signature):
        comma, depth = 0, 0
        for end in range(found.end(), len(signature)):
            letter = signature[end]
            if letter == "," and not depth and not comma:
                comma = end
            depth += (letter in "[(") - (letter in "])")
            if depth < 0:
                break
        kind = signature[found.end() : comma]
        signature = signature[: found.start()] + kind + signature[end + 1 :]
    return signature


def skip(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> Any:
    """Leave out the fields of a named tuple: its docstring explains them."""
    doc = getattr(thing, "__doc__", None) or ""
    return True if doc.startswith("Alias for field number") else None


def restructured(lines: list[str]) -> list[str]:
    """A docstring in reStructuredText with Google's sections.

    Args:
        lines: of the docstring, without its common indentation.
    """
    result: list[str] = []
    section = ""
    for number, paragraph in enumerate(paragraphs(lines)):
        if paragraph[0] in SECTIONS:
            section = paragraph[0]
        elif section and not paragraph[0].startswith(" "):
            section = ""
        if section:
            result += fields(paragraph) if section in FIELDS else escaped(paragraph)
        elif number and is_formula(paragraph):
            result += literal(paragraph)
        else:
            result += escaped(paragraph)
        result.append("")
    return result


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """What stands between empty lines; an indented block is a paragraph of its own."""
    for filled, group in groupby(lines, key=lambda line: bool(line.strip())):
        if not filled:
            continue
        block = list(group)
        if block[0] in SECTIONS or LISTED.match(block[0]):
            yield block
            continue
        for _, part in groupby(block, key=lambda line: line.startswith(" ")):
            yield list(part)


def is_formula(paragraph: list[str]) -> bool:
    """Whether a paragraph is indented, or neither begins nor ends as a sentence."""
    if paragraph[0].startswith(" "):
        return True
    text = " ".join(PLACE.sub("", line) for line in paragraph)
    return not (SENTENCE.search(text) or LISTED.match(text))


def literal(paragraph: list[str]) -> list[str]:
    """A block that is shown as it stands, with places in the paper drawn near."""
    block = dedent("\n".join(paragraph)).splitlines()
    split = [(PLACE.sub("", line), PLACE.search(line)) for line in block]
    width = max((len(text) for text, place in split if place), default=0)
    body = [f"{text:{width}}   {place[1]}" if place else text for text, place in split]
    return [".. code-block:: none", "   :class: formula", "", *indented(body)]


def indented(lines: list[str]) -> list[str]:
    """Lines as the content of a directive."""
    return [f"   {line}" for line in lines]


def fields(paragraph: list[str]) -> list[str]:
    """A section of arguments; names that fill a line stay with those of the next."""
    text = "\n".join(paragraph)
    text = re.sub(r"(?m)^( {4}[\w, ]+,)\n {8}", r"\1 ", text)
    return escaped(text.splitlines())


def escaped(paragraph: list[str]) -> list[str]:
    """Text in which only backticks mean something; words in quotes become code."""
    # A name between backticks may be broken over two lines.
    parts = CODE.split("\n".join(paragraph))
    for position in range(0, len(parts), 2):
        plain = MARKUP.sub(r"\\\g<0>", parts[position])
        parts[position] = WORD_IN_QUOTES.sub(r"``\g<0>``", plain)
    return "".join(parts).split("\n")
