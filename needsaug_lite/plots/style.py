"""One look for all figures, and one way to show them with caption and alt text."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

# Okabe-Ito colours: told apart by readers with any of the common colour deficiencies.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PINK, SKY, BLACK = "#CC79A7", "#56B4E9", "#000000"
PALETTE = [BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK]
# Line styles and markers repeat what the colours say.
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


@contextmanager
def look() -> Iterator[None]:
    """Figures made inside this block have the book's style; others keep theirs."""
    settings: dict[str, Any] = {
        "figure.figsize": (6.4, 3.6),
        "figure.dpi": 110,
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        # Names, not numbers, in the SVG and PDF: text can be searched.
        "svg.fonttype": "none",
    }
    style: Any = sns.axes_style("whitegrid", {"grid.color": "#DDDDDD"})
    with mpl.rc_context(dict(style) | settings), sns.color_palette(PALETTE):
        yield


def show(figure: Figure, caption: str, alt: str) -> None:
    """Display a figure in a notebook with a caption and a text for those who can't see.

    Args:
        figure: closed after it is shown.
        caption: plain text that says what the figure answers; may hold numbers that
            were computed a moment ago.
        alt: what is drawn: axes, lines, and their course.

    Raises:
        ValueError: if caption or alt text is empty.
    """
    from IPython.display import display

    if not caption.strip() or not alt.strip():
        raise ValueError("a figure needs a caption and an alt text")
    png = png_bytes(figure)
    encoded = base64.b64encode(png).decode()
    markup = (
        '<figure class="book-figure">'
        f'<img alt="{html.escape(alt, quote=True)}" '
        f'src="data:image/png;base64,{encoded}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
    bundle = {"text/html": markup, "image/png": png, "text/plain": caption}
    display(bundle, raw=True)


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG on white, and the figure closed."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", dpi=150)
    pyplot.close(figure)
    return buffer.getvalue()
