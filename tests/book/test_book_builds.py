"""The book renders without a warning, and a second call has nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers.built_book import ROOT, BuildFolder

pytestmark = pytest.mark.book


def toc_files() -> list[str]:
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
    chapters = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [toc["root"], *chapters]


def test_every_page_is_rendered(built_book: Path) -> None:
    for name in toc_files():
        assert (built_book / f"{name}.html").is_file()


def test_a_second_call_has_nothing_to_do(
    built_book: Path,
    build_folder: BuildFolder,
) -> None:
    again = build_folder.make("all")
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout


def test_every_chapter_is_in_the_table_of_contents() -> None:
    chapters = {f"chapters/{f.stem}" for f in (ROOT / "nbs").glob("[0-9][0-9]_*.ipynb")}
    assert chapters == {name for name in toc_files() if name.startswith("chapters/")}


def test_no_page_asks_the_network_for_anything(built_book: Path) -> None:
    for page in built_book.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        for attribute in ('src="http', "src='http", 'rel="stylesheet" href="http'):
            assert attribute not in html, f"{page.name} loads something from outside"
