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


def quick_search(method: str, model: dict[str, Any]) -> dict[str, Any]:
    """A small network to search in, for specs of methods that search one.

    Args:
        method: its name.
        model: the network of the other methods, whose width is kept.
    """
    if not getattr(registry.entry(method).load(), "searches", False):
        return {}
    return {"model": {**model, "cells": 3, "nodes": 1}}
