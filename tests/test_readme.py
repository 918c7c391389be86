"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, str(README), "exec"), names)
        log_weight = names["log_weight"]
        assert isinstance(log_weight, torch.Tensor)
        assert log_weight.grad is not None
        assert bool(log_weight.grad.any())
