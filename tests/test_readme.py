"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


def run_block(word: str) -> dict[str, Any]:
    """Names that the example with `word` in it leaves behind."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if re.search(rf"\b{word}\b", block)]
    names: dict[str, Any] = {}
    exec(compile(block, str(README), "exec"), names)
    return names


def test_the_example_of_a_hypergradient_runs() -> None:
    gradient = run_block("hypergrad")["log_weight"].grad
    assert bool(gradient.any())


def test_the_example_of_meta_iada_runs() -> None:
    names = run_block("MetaIADA")
    epsilon = names["method"].epsilon
    assert len(epsilon) == len(names["splits"].train)
    assert bool((epsilon != 0).all())


def test_the_example_of_autobalance_runs() -> None:
    names = run_block("AutoBalance")
    assert len(names["method"].loss_parameters["additive"]) == 10


def test_the_example_of_facog_runs() -> None:
    names = run_block("FACoG")
    assert [row["stage"] for row in names["history"].rows].count("phase 2") == 2
    assert 0.2 <= names["history"].rows[-1]["weight_norm"] <= 1


def test_the_example_of_a_search_runs() -> None:
    method = run_block("NeedsAwareSearch")["method"]
    assert len(method.genotype.normal) == 2
    assert method.model.backbone is not method.supernet


def test_the_example_of_mgr_runs() -> None:
    names = run_block("MGR")
    assert names["method"].generator is names["made"].generator


def test_the_example_of_needs_aware_generation_runs() -> None:
    names = run_block("NeedsAware")
    assert sum(names["method"].allocation_summary()["images"]) == 2 * 200
    assert names["history"].rows[-1]["path_G"] > 0
