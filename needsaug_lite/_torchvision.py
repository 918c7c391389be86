"""Import torchvision where its compiled operators don't match the installed torch.

The registry's torchvision is linked against CUDA. On a CPU-only torch its import
fails because the schemas of two detection operators are missing. This module
registers the schemas (not the operators, which nothing here calls) and imports
again. Where the plain import works it does nothing.
"""

from __future__ import annotations

import sys

import torch

_SCHEMAS = ("nms", "qnms")
# The library object must outlive the import: its schemas vanish with it.
_keep: list[torch.library.Library] = []


def ensure() -> None:
    """Make `import torchvision` (and `import torchmetrics`) work, once."""
    if "torchvision" in sys.modules and hasattr(sys.modules["torchvision"], "models"):
        return
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in _SCHEMAS:
            library.define(
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        _keep.append(library)
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401


ensure()
