"""Runs that are short."""

from __future__ import annotations

from typing import Any

from needsaug_lite.experiments import registry


def quick_generator(method: str) -> dict[str, Any]:
    """A short training of a generator, for specs of methods that need one.

    It is as wide as a convnet of width 4 has features.
    """
    chosen = registry.entry(method).load()
    wanted = ("needs_generator", "needs_adversary")
    if not any(getattr(chosen, name, False) for name in wanted):
        return {}
    return {"generator": {"steps": 100, "hyperparameters": {"width": 8}}}
