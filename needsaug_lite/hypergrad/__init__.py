"""Derivatives of an outer loss through the training that an inner loss does."""

from needsaug_lite.hypergrad._chain import chain as chain
from needsaug_lite.hypergrad._chain import chain_exact as chain_exact
from needsaug_lite.hypergrad._compiled import CompiledLoss as CompiledLoss
from needsaug_lite.hypergrad._compiled import compiled as compiled
from needsaug_lite.hypergrad._curvature import largest_eigenvalue as largest_eigenvalue
from needsaug_lite.hypergrad._finite_difference import (
    finite_difference as finite_difference,
)
from needsaug_lite.hypergrad._first_order import first_order as first_order
from needsaug_lite.hypergrad._gauss_newton import ComposedLoss as ComposedLoss
from needsaug_lite.hypergrad._implicit import implicit as implicit
from needsaug_lite.hypergrad._levels import ChainHypergradient as ChainHypergradient
from needsaug_lite.hypergrad._levels import Level as Level
from needsaug_lite.hypergrad._objective import Loss as Loss
from needsaug_lite.hypergrad._result import Hypergradient as Hypergradient
from needsaug_lite.hypergrad._result import HypergradientWarning as HypergradientWarning
from needsaug_lite.hypergrad._result import NotFiniteError as NotFiniteError
from needsaug_lite.hypergrad._safe_neumann import safe_neumann as safe_neumann
from needsaug_lite.hypergrad._solvers import IndefiniteError as IndefiniteError
from needsaug_lite.hypergrad._solvers import Solver as Solver
from needsaug_lite.hypergrad._solvers import conjugate_gradient as conjugate_gradient
from needsaug_lite.hypergrad._solvers import exact as exact
from needsaug_lite.hypergrad._solvers import neumann as neumann
from needsaug_lite.hypergrad._unrolled import unrolled as unrolled
