"""Finds measured results that someone typed into the prose of the book."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import nbformat

# What looks like a measured result. Settings look otherwise, and pass: 0.05, 0.001,
# 80%, 95%, whole numbers; a result that was rounded like this passes as well.
RESULT = re.compile(
    r"""
    (?<![\w.,])(?:
        \d[\d,.]*\s?±\s?\d[\d,.]*                             # 71.3 ± 0.8, 71 ± 1
      | \d[\d,]*\.\d+\s?(?:%|per\s?cent)                      # 71.3%
      | \d*[1-46-9]\s?(?:%|per\s?cent|percentage\spoints)     # 71%
      | (?!1\.0+(?!\d))[1-9][\d,]*\.\d+                       # 71.3, but 1.0
      | 0\.(?!\d[05]?(?!\d))0*[1-9]\d+                        # 0.713, but 0.25
    )
    """,
    re.VERBOSE,
)
# Labels and formulas in figures have fewer.
FEWEST_WORDS = 4
_FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")
# A number alone between dollars is no mathematics.
_NUMBER = re.compile(r"\$((?:[\d.,\s%±]|\\%|\\pm|\\,)+)\$")
_BLOCK = re.compile(r"\$\$.*?\$\$", re.DOTALL)
_APART = re.compile(
    r"""
    <!--.*?-->                                  # comments
  | \$[^$]+\$
  | `[^`]*`                                     # code, and arguments of roles
  | \{[a-z:]+\}                                 # names of roles
  | (?<=\])\([^)]*\)                            # targets of links
  | ["“][^"”]{1,200}["”]                        # what somebody else says
  | \b(?:Sec|Eq|Table|App|Appendix|Fig|Figure|Algorithm)s?\.?\s[A-Z]?\.?[\d.]+
  | \b(?:Python|CC\sBY(?:-SA)?|Apache)[\s-][\d.]+
    """,
    re.VERBOSE | re.DOTALL,
)


def typed_results(text: str, allowed: Mapping[str, str] | None = None) -> list[str]:
    """Numbers in Markdown that look like measured results, each with its surroundings.

    Args:
        text: Markdown.
        allowed: texts with numbers that are no results of ours.
    """
    found: list[str] = []
    # A sign without its partner does no harm beyond its paragraph.
    for paragraph in re.split(r"\n\s*\n", _BLOCK.sub(" ", _outside_code(text))):
        words = _NUMBER.sub(lambda number: _plain(number[1]), paragraph)
        words = " ".join(_APART.sub(" ", words).split())
        for part in allowed or ():
            words = words.replace(part, " ")
        found += [
            words[max(0, number.start() - 40) : number.end() + 40]
            for number in RESULT.finditer(words)
        ]
    return found


def _outside_code(text: str) -> str:
    """Markdown without blocks of code and formulas; the bodies of boxes stay."""
    kept, silent = [], []
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line)
        if fence is None:
            kept.append("" if any(silent) else line)
        elif silent and not fence[2].strip():
            silent.pop()
        else:
            silent.append(not re.match(r"\{(?!code|math)", fence[2]))
    return "\n".join(kept)


def _plain(number: str) -> str:
    return number.replace(r"\%", "%").replace(r"\pm", "±").replace(r"\,", "")


def prose(page: Path) -> list[str]:
    """What a page says, in pieces: Markdown, and the sentences in a notebook's code."""
    if page.suffix == ".md":
        return [page.read_text(encoding="utf-8")]
    parts: list[str] = []
    for cell in nbformat.read(page, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts += sentences(cell.source)
    return parts


def sentences(code: str) -> Iterator[str]:
    """Strings of some words, without docstrings and without what is computed."""
    lines = [
        re.sub(r"^(\s*)[!%](pip|conda)\b.*", r"\1pass", x) for x in code.split("\n")
    ]
    tree = ast.parse("\n".join(lines))
    apart = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            apart |= {id(part) for part in node.values}
            parts = [getattr(part, "value", "") for part in node.values]
            text = "".join(part if isinstance(part, str) else " … " for part in parts)
        elif isinstance(node, ast.Constant) and id(node) not in apart:
            text = str(node.value)
        else:
            continue
        if len(re.findall(r"[^\W\d]{2,}", text)) >= FEWEST_WORDS:
            yield text
