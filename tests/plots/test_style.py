"""Figures carry a caption and an alt text, and leave no trace in the style."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot
from PIL import Image

from needsaug_lite.experiments import load_records
from needsaug_lite.plots import overview, style

ROOT = Path(__file__).parents[2]


def test_the_look_ends_with_its_block() -> None:
    before = dict(mpl.rcParams)
    with style.look():
        assert mpl.rcParams["axes.spines.top"] is False
    assert dict(mpl.rcParams) == before


def test_a_figure_without_alt_text_is_refused() -> None:
    figure = pyplot.figure()
    with pytest.raises(ValueError, match="alt text"):
        style.show(figure, "caption", " ")
    pyplot.close(figure)


def test_caption_and_alt_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, object]] = []
    monkeypatch.setattr(
        "IPython.display.display", lambda bundle, raw: shown.append(bundle)
    )
    style.show(pyplot.figure(), "a < b & c", 'say "no"')
    markup = str(shown[0]["text/html"])
    assert "a &lt; b &amp; c" in markup
    assert 'alt="say &quot;no&quot;"' in markup
    assert not pyplot.get_fignums()


def test_the_picture_of_the_readme_shows_the_committed_rows() -> None:
    records = load_records(ROOT / "book/results", overview.EXPERIMENT)
    with Image.open(ROOT / "book/_static/overview.png") as picture:
        shown = picture.info[overview.KEY]
    assert shown == overview.fingerprint(records), (
        "rows have changed: python -m needsaug_lite.plots.overview "
        "--results book/results --out book/_static/overview.png"
    )
