"""The network that a method searches an architecture in."""

from __future__ import annotations

from typing import Any

from needsaug_lite.experiments import registry
from needsaug_lite.experiments.ingredients import ModelSpec

SUPERNET = "supernet"
# Fields of a `ModelSpec` that no other backbone has.
OPTIONS = ("cells", "nodes", "operations", "partial", "halvings")


def with_supernet(model: ModelSpec, method: str) -> ModelSpec:
    """The network of a spec, a supernet where the method searches and none is named.

    Args:
        model: as it was given.
        method: a name of `registry.METHODS`.

    Raises:
        ValueError: if a method that searches is given another network, or one that
            doesn't is given a supernet, or the channels can't be divided.
    """
    chosen = registry.entry(method).load()
    if not getattr(chosen, "searches", False):
        if model.backbone == SUPERNET:
            raise ValueError(
                "supernet is what an architecture is searched in, and "
                f"{method} searches none: use one of "
                f"{', '.join(registry.searching_methods())}, or another backbone"
            )
        return model
    if "backbone" not in model.model_fields_set:
        model = model.model_copy(update={"backbone": SUPERNET})
    if model.backbone != SUPERNET:
        raise ValueError(
            f"{method} searches its network in a supernet: leave out model.backbone "
            f"(given: {model.backbone}), or use another method"
        )
    if model.weights is not None:
        raise ValueError(
            f"{method} trains the network that it finds from scratch: leave out "
            "model.weights"
        )
    partial = _partial(model, chosen)
    if model.width % partial:
        raise ValueError(
            f"an operation sees 1/{partial} of {model.width} channels, which is no "
            f"whole number: set model.width to a multiple of {partial}, or "
            f"model.partial to a divisor of {model.width}"
        )
    return model


def build_options(model: ModelSpec, method: str) -> dict[str, Any]:
    """What `models.build` is told of a supernet, beside its width.

    Args:
        model: the network of a spec.
        method: its class may settle `partial` and `edge_normalised`, as DARTS does.

    Returns:
        Keyword arguments; none for another network.
    """
    if model.backbone != SUPERNET:
        return {}
    chosen = registry.entry(method).load()
    options = {name: getattr(model, name) for name in OPTIONS}
    options["partial"] = _partial(model, chosen)
    if hasattr(chosen, "edge_normalised"):
        options["edge_normalised"] = chosen.edge_normalised
    return options


def _partial(model: ModelSpec, chosen: Any) -> int:
    settled: int | None = getattr(chosen, "partial", None)
    return model.partial if settled is None else settled
