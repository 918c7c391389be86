"""The rendered book as a reader sees it: headless Chromium, no network, two themes."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urldefrag, urlparse

import pytest
import yaml

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the Playwright client is not installed"
)

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = {"phone": 390, "desktop": 1280}
THEMES = ("light", "dark")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

pytestmark = pytest.mark.browser

# What reaches beyond the window and does not scroll in a box of its own.
TOO_WIDE = """() => {
  const root = document.documentElement;
  const boxed = node => {
    for (let n = node; n && n !== document.body; n = n.parentElement)
      if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(n).overflowX))
        return true;
    return false;
  };
  const found = [...document.querySelectorAll('article *')]
    .filter(n => n.getBoundingClientRect().right > root.clientWidth + 1 && !boxed(n))
    .map(n => `${n.tagName}.${n.className}`);
  if (root.scrollWidth > root.clientWidth)
    found.unshift(`the page: ${root.scrollWidth} of ${root.clientWidth}`);
  return found.slice(0, 5);
}"""


def chromium() -> str | None:
    candidates = (os.environ.get("CHROMIUM"), *map(shutil.which, NAMES))
    return next((found for found in candidates if found), None)


def toc_pages() -> list[str]:
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text())
    chapters = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [f"{name}.html" for name in (toc["root"], *chapters)]


@dataclass
class Visit:
    """An open page and what went wrong on it."""

    page: sync_api.Page
    address: str
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._note_console)
        self.page.on("response", self._note_response)

    def _note_console(self, message: sync_api.ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def _note_response(self, response: sync_api.Response) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status} for {response.url}")

    def open(self, name: str) -> None:
        self.page.goto(f"{self.address}/{name}", wait_until="load")
        # Formulas are set after the page has loaded.
        self.page.evaluate("() => window.MathJax?.startup?.promise")

    def outside(self) -> list[str]:
        local = ("data:", "blob:", "about:", self.address)
        return [url for url in self.requests if not url.startswith(local)]


@pytest.fixture(scope="session")
def address(built_book: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(built_book))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sync_api.Browser]:
    executable = chromium()
    if executable is None:
        pytest.skip("no Chromium here: install it or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        chosen = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield chosen
        chosen.close()


@contextmanager
def window(
    browser: sync_api.Browser, address: str, width: int, theme: str
) -> Iterator[Visit]:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=theme
    )
    # The theme button of the book stores its choice under these names.
    context.add_init_script(
        f"localStorage.setItem('mode', '{theme}');"
        f"localStorage.setItem('theme', '{theme}');"
    )
    visit = Visit(context.new_page(), address)
    visit.listen()
    yield visit
    context.close()


@pytest.fixture
def visit(
    browser: sync_api.Browser, address: str, request: pytest.FixtureRequest
) -> Iterator[Visit]:
    width, theme = getattr(request, "param", (WIDTHS["desktop"], "light"))
    with window(browser, address, width, theme) as visit:
        yield visit


@pytest.fixture(scope="module", params=toc_pages())
def opened(
    browser: sync_api.Browser, address: str, request: pytest.FixtureRequest
) -> Iterator[Visit]:
    """One page at desktop width, opened once for the tests that only look."""
    with window(browser, address, WIDTHS["desktop"], "light") as visit:
        visit.open(request.param)
        yield visit


def test_page_opens_without_an_error(opened: Visit) -> None:
    visit = opened
    assert visit.page.locator("article h1").first.inner_text().strip()
    assert visit.problems == []
    assert visit.outside() == []


def test_formulas_are_typeset(opened: Visit) -> None:
    visit = opened
    formulas = visit.page.locator(".math").count()
    typeset = visit.page.locator(".math mjx-container").count()
    assert typeset >= formulas
    wrong = visit.page.locator("mjx-container [data-mjx-error], mjx-merror, .merror")
    assert wrong.evaluate_all("nodes => nodes.map(n => n.textContent)") == []
    # What is in no formula must not look like one that was missed.
    for mark in ("$$", r"\frac{", r"\mathbb{", "{eq}`", "{numref}`", "{cite"):
        assert mark not in visit.page.locator("article").evaluate(
            "node => { const copy = node.cloneNode(true);"
            " copy.querySelectorAll('pre, code, .math').forEach(n => n.remove());"
            " return copy.textContent; }"
        )


def test_images_load_and_say_what_they_show(opened: Visit) -> None:
    visit = opened
    images = visit.page.locator("article img")
    images.evaluate_all("nodes => nodes.forEach(n => { n.loading = 'eager'; })")
    visit.page.wait_for_function(
        "() => [...document.querySelectorAll('article img')].every(n => n.complete)"
    )
    for image in images.all():
        source = image.get_attribute("src") or ""
        assert image.evaluate("node => node.naturalWidth") > 0, source
        text = (image.get_attribute("alt") or "").strip()
        # Without a text of its own an image gets its file's name.
        assert text, f"{source} has no alt text"
        assert not text.endswith((".png", ".svg", ".jpg")), f"{source}: {text}"


def test_internal_links_resolve(visit: Visit, built_book: Path) -> None:
    anchors: dict[str, set[str]] = {}
    links: list[tuple[str, str]] = []
    for name in toc_pages():
        visit.open(name)
        anchors[name] = set(
            visit.page.evaluate(
                "() => [...document.querySelectorAll('[id]')].map(n => n.id)"
            )
        )
        found = visit.page.evaluate(
            "() => [...document.querySelectorAll('a[href]')].map(n => n.href)"
        )
        links += [(name, url) for url in found if url.startswith(visit.address)]
    broken = set()
    for name, url in links:
        plain, anchor = urldefrag(url)
        target = urlparse(plain).path.lstrip("/") or "index.html"
        missing_page = not (built_book / target).is_file()
        missing_anchor = anchor and target in anchors and anchor not in anchors[target]
        if missing_page or missing_anchor:
            broken.add(f"{name} -> {target}#{anchor}")
    assert not broken


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_pages_fit_their_window(
    browser: sync_api.Browser, address: str, width: int, theme: str
) -> None:
    wrong: dict[str, list[str]] = {}
    with window(browser, address, width, theme) as visit:
        for name in toc_pages():
            visit.open(name)
            root = visit.page.locator("html")
            assert root.get_attribute("data-theme") == theme
            if too_wide := visit.page.evaluate(TOO_WIDE):
                wrong[name] = too_wide
    assert wrong == {}


@pytest.mark.parametrize(
    "visit", [(1280, theme) for theme in THEMES], ids=THEMES, indirect=True
)
def test_text_can_be_read(visit: Visit) -> None:
    """Contrast of the body text, as WCAG 2 asks for it."""
    visit.open(toc_pages()[0])
    text, ground = visit.page.evaluate(
        """() => {
          const numbers = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
          const article = getComputedStyle(document.querySelector('article p'));
          return [numbers(article.color),
                  numbers(getComputedStyle(document.body).backgroundColor)];
        }"""
    )

    def luminance(colour: list[float]) -> float:
        parts = [c / 255 for c in colour]
        linear = [
            c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(text), luminance(ground)))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_search_finds_a_word(visit: Visit) -> None:
    visit.open("search.html?q=imbalance")
    visit.page.wait_for_selector("#search-results li a", timeout=20_000)
    assert visit.page.locator("#search-results li a").count() >= 1
    assert visit.problems == []
    assert visit.outside() == []


def test_there_is_one_search_field_in_view(visit: Visit) -> None:
    visit.open(toc_pages()[0])
    fields = visit.page.locator(
        "input[type=search]:visible, .search-button__kbd:visible"
    )
    assert fields.count() <= 1
