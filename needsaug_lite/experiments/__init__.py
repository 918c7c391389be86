"""Runs, their rows, and the papers' numbers beside them.

Names are imported when they are asked for: the build of the book uses this room too,
and must not load torch for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from needsaug_lite.experiments.paper_tables import paper_results as paper_results
    from needsaug_lite.experiments.records import Record as Record
    from needsaug_lite.experiments.records import load_records as load_records
    from needsaug_lite.experiments.runner import run as run
    from needsaug_lite.experiments.spec import Spec as Spec

_HOME = {
    "paper_results": "paper_tables",
    "Record": "records",
    "load_records": "records",
    "run": "runner",
    "Spec": "spec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
