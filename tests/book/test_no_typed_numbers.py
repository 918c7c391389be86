"""Results in the prose come from rows: a typed one fails here.

The errata page is left out; it quotes the papers' numbers throughout.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nbformat
import pytest
from helpers.typed_numbers import prose, typed_results

ROOT = Path(__file__).parents[2]
PAGES = [
    *(
        page
        for page in sorted([*ROOT.glob("book/*.md"), *ROOT.glob("book/papers/*.md")])
        if page.stem != "errata"
    ),
    ROOT / "README.md",
    *sorted((ROOT / "nbs").glob("*.ipynb")),
]
ANYWHERE = {"is 0.0625": "the smallest p-value of five pairs, 2 / 2**5"}
# Texts with numbers that are no measured results, and what they are. A text stands
# here as `typed_results` sees it: without mathematics, code and quotations.
ALLOWED: dict[str, dict[str, str]] = {
    "data_sets": {"63% of its 4,000": "1 - 1/e"},
    "README": {
        "1.5 minutes, plus the download": "about an installation",
        "2.2 GB": "about an installation",
    },
    "01_which_classes_need_data": {
        "Section 4.1": "a section of a paper",
        "z > 1.96": "a quantile of the normal distribution",
    },
    "02_losses_that_know_class_sizes": {"β = 0.9999": "a published constant"},
    "03_differentiating_through_a_step": {
        "−0.3 · 1.75": "the scalar example",
        "that is 5.25": "the scalar example",
        "2 instead of 1.75": "the scalar example",
    },
    "04_differentiating_an_optimum": {
        "1.9/λmax": "a step size",
        "below 0.1%": "a bound that the cell sets",
        "below 1%": "a bound that the exercise sets",
        "For 1% in this measure": "a bound that the exercise sets",
    },
    "05_several_levels": {
        "about 0.0039": "2 / 2**9",
        "about 36% become wrong": "40% times 9/10",
    },
    "06_infinitely_many_augmentations": {
        "ellipses hold 86%": "1 - exp(-2)",
        "the number 3.14": "pi",
        "zero and 1.8": "multiples that the cell takes",
        "0.9 to 1.1": "limits that the cell sets",
    },
    "07_learning_how_hard_to_push": {
        "at 93% on 599": "an accuracy as an example for a standard error",
        "64% right against 4%": "40% redrawn among ten classes",
        "accuracy of 75.9%": "meta_iada's table of CMNIST",
        "average is 75.9%": "meta_iada's table of CMNIST",
        "an average of 78.0%": "meta_iada's table of CMNIST",
        "78.0% asks": "meta_iada's table of CMNIST",
    },
    "08_designing_a_loss": {
        "a factor of 0.731": "the sigmoid of 1",
        "for 2.5% of the epochs": "a setting",
        "1.5 trainings": "a budget that the recipe sets",
    },
    "09_fairness_as_an_upper_level": {
        "0.73 and 0.83": "factors that the cell takes",
        "start at 0.73": "the sigmoid of 1",
    },
    "10_mixing_instead_of_inventing": {
        "0.2, 0.33 and 1": "1/5, 1/3 and 1",
        "from 17.7% to 25.6%": "facog's table",
        "has 0.250 and 0.125": "½ squared, and its half",
        "can't tell has 0.250": "½ squared",
    },
    "11_when_synthetic_data_hurts": {
        "from 20% to 82%": "mgr's table",
        "−1.5, 1.5 and 12": "means that the exercise sets",
    },
    "12_learning_where_to_sample": {"factor of 1.9": "1 + m", "factor 1.9": "1 + m"},
    "13_a_budget_where_it_is_needed": {
        "which is 1.6%": "1/64",
        "0.5, 0.875 and 0.984": "1 - 1/B",
        "in accuracy: 0.52": "needs_aware App. D",
        "the paper has 0.52": "needs_aware App. D",
    },
    "14_four_levels_one_gradient": {"above 0.99": "a bound that the cell sets"},
    "15_searching_where_data_is_needed": {
        "0.025, App. B": "a published rate",
        "1.34 times PC-DARTS": "needs_aware Table 10",
        "ratio 1.34": "needs_aware Table 10",
        "cost 1.34 times": "needs_aware Table 10",
    },
}
TABLE = """
## Ten seeds

| method | accuracy |
|---|---|
| CE | {cell} |

{sentence}
"""


@cache
def pieces(page: Path) -> list[str]:
    """Those parts of a page that hold such numbers."""
    return [piece for piece in prose(page) if typed_results(piece)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_result_is_typed(page: Path) -> None:
    allowed = ANYWHERE | ALLOWED.get(page.stem, {})
    found = [one for piece in pieces(page) for one in typed_results(piece, allowed)]
    assert not found, f"{page.name}: compute these from rows, or say what they are"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_nothing_is_allowed_that_is_not_there(page: Path) -> None:
    numbers = sum(len(typed_results(piece)) for piece in pieces(page))
    for text in ALLOWED.get(page.stem, {}):
        left = sum(len(typed_results(piece, {text: ""})) for piece in pieces(page))
        assert left < numbers, f"{page.name} has no {text!r} any more"


def test_every_allowed_page_exists() -> None:
    assert ALLOWED.keys() <= {page.stem for page in PAGES}


@pytest.mark.parametrize(
    "typed",
    ["71.3%", "0.8%", "71%", "71 ± 1", "71.3", "71.3 ± 0.8",
     "$71.3\\%$", "$71.3$", "0.713", "1.4 points",
     "12 percentage points", "−3.2", "71.3 per cent"],
)  # fmt: skip
def test_a_typed_result_is_caught(typed: str) -> None:
    assert typed_results(TABLE.format(cell=typed, sentence=""))
    (found,) = typed_results(
        TABLE.format(cell="", sentence=f"CE reaches {typed}, we see.")
    )
    assert "CE reaches" in found
    box = TABLE.format(cell="", sentence=f"~~~~{{note}}\nCE has {typed}.\n~~~~\nMore.")
    assert typed_results(box)
    assert typed_results(f"```python\nx = 1\n```\nCE has {typed}.")


@pytest.mark.parametrize(
    "text",
    ["a rate of 0.05, 0.001 at 80% and 90% of 200 epochs, with its 95% interval",
     "a tail of 100:1 in `a = 71.3`, $\\eta = 71.3$ and\n$$\n71.3\n$$ (eq-x)",
     "```python\nx = 71.3\n```", "~~~~{code-block} text\n71.3%\n~~~~",
     'The paper says "up to 7 percentage points" in Table 71.3 and Sec. 4.3.',
     "{ref}`71.3% <here>`, [here](page-71.3.md), 2,505 images, shares of 0.25, 0.75"],
)  # fmt: skip
def test_settings_formulas_code_and_quotations_pass(text: str) -> None:
    assert typed_results(text) == []


def test_an_allowed_text_allows_nothing_else() -> None:
    text = "The paper has 78.0%, and we have 78.1%."
    (found,) = typed_results(text, {"has 78.0%": "the paper"})
    assert "78.1%" in found


def test_sentences_in_the_code_of_a_notebook_are_read(tmp_path: Path) -> None:
    code = '''
def shown(x):
    """Like 71.3 in our table of results."""
    say(f"So CE reaches {x:.1f}%, and LA reaches 74.2% in the same rows.")
    draw("$x = 3.3$")
'''
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(code),
            nbformat.v4.new_markdown_cell("We see 71.3% above."),
        ]
    )
    file = tmp_path / "page.ipynb"
    nbformat.write(book, file)
    found = [one for text in prose(file) for one in typed_results(text)]
    assert ["74.2%" in one for one in found] == [True, False]
    assert "71.3%" in found[1]
