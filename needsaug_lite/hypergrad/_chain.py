"""Several levels, each one step of gradient descent, that read each other's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Generator, Tensor

from needsaug_lite.hypergrad._draws import Draws, fixed_draws
from needsaug_lite.hypergrad._finite_difference import difference, require_radius
from needsaug_lite.hypergrad._levels import (
    ChainHypergradient,
    Level,
    Reads,
    Weights,
    ordered,
)
from needsaug_lite.hypergrad._linearisation import Linearisation
from needsaug_lite.hypergrad._objective import Loss, Objective, require_dependence
from needsaug_lite.hypergrad._precision import full_precision, require_precision
from needsaug_lite.hypergrad._two_level import SLOTS
from needsaug_lite.hypergrad._variables import Variables
from needsaug_lite.hypergrad._vectors import add, norm, safe_norm, scaled

# A vector times the Jacobian of a level's gradient: by h, and by what it reads.
Pull = Callable[[list[Tensor]], tuple[list[Tensor], dict[str, list[Tensor]]]]


def chain(
    levels: Sequence[Level],
    outer_loss: Loss,
    hparams: Mapping[str, Tensor],
    *,
    radius: float = 0.01,
    generator: Generator | None = None,
    paths: bool = True,
) -> ChainHypergradient:
    """Derivative of the outer loss after one step of every level.

    d/dh L_out(θ_1', ..., θ_n', h) is a sum over paths from h to the outer loss. A path
    carries a vector v backwards: it starts as ∂L_out/∂θ_k', and the step of level k
    turns it into

        -lr_k ∇_z⟨∇_θ_k L_k, v⟩ ≈ -lr_k [∇_z L_k(θ_k + εv) - ∇_z L_k(θ_k - εv)] / (2ε)

    with ε = radius / ||v||, for z = h (a part of the result) and for the updated
    weights of every level that k reads (the vector of a longer path).

    Runs in full float32 or in float64. Every path costs two evaluations of its levels;
    the sum of all paths alone costs two of every level.

    Args:
        levels: in an order in which every level reads updated weights of earlier levels
            only.
        outer_loss: closure (weights, hparams) -> scalar, or a sequence of closures;
            `weights[name]` are the updated tensors of that level.
        hparams: h, tensors by name.
        radius: length of the move of each finite difference.
        generator: decides the draws of what is random in the closures.
        paths: False adds the vectors that meet at a level before they go on, which is
            the same sum; `paths` and `path_norms` then have one entry for each level.

    Returns:
        The hypergradient with every path and its norm.

    Raises:
        UserError: for levels that can't be put in order, or impossible settings.
        NotFiniteError: naming the quantity that is not finite.

    Source: needs_aware Eq. 8 to 18, with the direct term (erratum N2).
    """
    require_radius(radius)
    sweep = _Sweep(levels, outer_loss, hparams)
    for weights in sweep.own.values():
        require_precision(weights)
    with (
        fixed_draws(sweep.variables, generator) as draws,
        full_precision([t for group in sweep.variables for t in group.values]),
    ):
        sweep.forward(draws, lambda place: _Differenced(sweep, place, radius))
        return sweep.backward(paths)


def chain_exact(
    levels: Sequence[Level],
    outer_loss: Loss,
    hparams: Mapping[str, Tensor],
    *,
    generator: Generator | None = None,
    paths: bool = True,
) -> ChainHypergradient:
    """The same as `chain`, with second derivatives by automatic differentiation.

    Exact, but a level's loss must be twice differentiable, and the graphs of all levels
    are alive at once.

    Args:
        levels, outer_loss, hparams, generator, paths: see `chain`.

    Returns:
        The hypergradient with every path and its norm.
    """
    sweep = _Sweep(levels, outer_loss, hparams)
    with fixed_draws(sweep.variables, generator) as draws:
        sweep.forward(draws, lambda place: _Exact(sweep, place))
        return sweep.backward(paths)


class _Sweep:
    """Steps of all levels in order, then the outer loss, then the paths backwards."""

    def __init__(
        self, levels: Sequence[Level], outer_loss: Loss, hparams: Mapping[str, Tensor]
    ) -> None:
        self.levels = ordered(levels)
        self.settings = Variables.of(hparams, "hparams")
        self.own = {
            level.name: Variables.of(level.params, f"params of level {level.name!r}")
            for level in self.levels
        }
        self._outer_loss = outer_loss
        self.updated: dict[str, Variables] = {}
        self.losses: dict[str, Tensor] = {}
        self.gradients: dict[str, dict[str, Tensor]] = {}
        self.pulls: dict[str, Pull] = {}

    @property
    def variables(self) -> list[Variables]:
        return [self.settings, *self.own.values()]

    def forward(
        self, draws: Draws, step: Callable[[int], _Differenced | _Exact]
    ) -> None:
        self._draws = draws
        for place, level in enumerate(self.levels):
            here = step(place)
            values = add(self.own[level.name].values, here.gradient, -level.lr)
            self.updated[level.name] = self.own[level.name].at(values)
            self.losses[level.name] = here.value
            slopes = zip(self.own[level.name].free, here.gradient, strict=True)
            self.gradients[level.name] = dict(slopes)
            self.pulls[level.name] = here.pull
            del here.gradient

    def objective(self, place: int) -> Objective:
        level = self.levels[place]
        role = f"the loss of level {level.name!r}"
        return Objective(level.loss, role, self._draws, SLOTS * (place + 1))

    def read(
        self, level: Level, own: Variables, others: dict[str, Variables]
    ) -> Weights:
        """What the level's closures see."""
        seen: Weights = {level.name: own.tensors}
        for name, state in level.reads.items():
            old = self.own[name]
            seen[name] = (others[name] if state == "updated" else old).tensors
        return Reads(f"the loss of level {level.name!r}", seen)

    def inputs(self, level: Level) -> dict[str, Variables]:
        """Updated weights that the level reads, as new leaves."""
        return {
            name: self.updated[name].leaves()
            for name, state in level.reads.items()
            if state == "updated"
        }

    def backward(self, paths: bool) -> ChainHypergradient:
        points = {name: weights.leaves() for name, weights in self.updated.items()}
        settings = self.settings.leaves()
        outer = Objective(self._outer_loss, "outer_loss", self._draws, 0)
        seen = Reads("outer_loss", {n: p.tensors for n, p in points.items()})
        leaves = [leaf for point in points.values() for leaf in point.values]
        value, found, used = outer.gradient(
            [*leaves, *settings.values], seen, settings.tensors
        )
        require_dependence(used[: len(leaves)], "outer_loss")
        count = len(leaves)
        vectors, direct = found[:count], found[count:]
        vector_norm = safe_norm(vectors)
        open_paths: dict[str, list[tuple[tuple[str, ...], list[Tensor]]]] = {}
        for name, point in points.items():
            size = len(point.free)
            mine, vectors = vectors[:size], vectors[size:]
            reached, used = used[:size], used[size:]
            open_paths[name] = [((name,), mine)] if any(reached) else []
        parts = {"direct": direct}
        for level in reversed(self.levels):
            arrived = open_paths.pop(level.name)
            for path, vector in arrived if paths else _joined(level.name, arrived):
                by_hparams, by_read = self.pulls[level.name](vector)
                parts[" -> ".join(path)] = scaled(by_hparams, -level.lr)
                for name, part in by_read.items():
                    longer = ((name, *path), scaled(part, -level.lr))
                    open_paths[name].append(longer)
            del self.pulls[level.name]
        return self._result(parts, value, vector_norm)

    def _result(
        self, parts: dict[str, list[Tensor]], value: Tensor, vector_norm: Tensor
    ) -> ChainHypergradient:
        total = parts["direct"]
        for name, part in parts.items():
            total = total if name == "direct" else add(total, part)
        weights = {name: dict(new.tensors) for name, new in self.updated.items()}
        result = ChainHypergradient(
            self.settings.shaped(total),
            params={
                f"{level}.{name}": tensor
                for level, tensors in weights.items()
                for name, tensor in tensors.items()
            },
            inner_loss=self.losses[self.levels[-1].name],
            outer_loss=value,
            vector_norm=vector_norm,
            path_norms={name: norm(part) for name, part in parts.items()},
        )
        result.weights = weights
        result.losses = self.losses
        result.gradients = self.gradients
        result.paths = {name: self.settings.shaped(p) for name, p in parts.items()}
        return result


class _Exact:
    """A level's gradient with its graph."""

    def __init__(self, sweep: _Sweep, place: int) -> None:
        level = sweep.levels[place]
        own, self._settings = sweep.own[level.name].leaves(), sweep.settings.leaves()
        self._inputs = sweep.inputs(level)
        seen = sweep.read(level, own, self._inputs)
        self._here = Linearisation(
            sweep.objective(place), own.values, seen, self._settings.tensors
        )
        self.value = self._here.value
        self.gradient = self._here.take_gradient()

    def pull(
        self, vector: list[Tensor]
    ) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        groups = [self._settings, *self._inputs.values()]
        wrt = [leaf for group in groups for leaf in group.values]
        return _apart(self._here.product(vector, wrt), self._settings, self._inputs)


class _Differenced:
    """A level's gradient, and its Jacobian by finite differences."""

    def __init__(self, sweep: _Sweep, place: int, radius: float) -> None:
        self._sweep, self._level = sweep, sweep.levels[place]
        self._radius = radius
        self._loss = sweep.objective(place)
        own = sweep.own[self._level.name].leaves()
        seen = sweep.read(self._level, own, sweep.updated)
        self.value, self.gradient, used = self._loss.gradient(
            own.values, seen, sweep.settings.tensors
        )
        require_dependence(used, self._loss.role)

    def pull(
        self, vector: list[Tensor]
    ) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        sweep, level = self._sweep, self._level
        settings, inputs = sweep.settings.leaves(), sweep.inputs(level)
        wrt = [leaf for g in (settings, *inputs.values()) for leaf in g.values]
        own = sweep.own[level.name]

        def gradient(values: list[Tensor]) -> list[Tensor]:
            seen = sweep.read(level, own.at(values), inputs)
            return self._loss.gradient(wrt, seen, settings.tensors)[1]

        found = difference(
            gradient, own.values, list(vector), safe_norm(vector), self._radius
        )
        return _apart(found, settings, inputs)


def _apart(
    found: list[Tensor], settings: Variables, inputs: dict[str, Variables]
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """One flat list as the part of the hyperparameters and that of each level."""
    place = len(settings.free)
    parts = {}
    for name, group in inputs.items():
        parts[name] = found[place : place + len(group.free)]
        place += len(group.free)
    return found[: len(settings.free)], parts


def _joined(
    name: str, arrived: list[tuple[tuple[str, ...], list[Tensor]]]
) -> list[tuple[tuple[str, ...], list[Tensor]]]:
    """All vectors of a level as one, since pulling back is linear."""
    if not arrived:
        return []
    total = arrived[0][1]
    for _, vector in arrived[1:]:
        total = add(total, vector)
    return [((name,), total)]
