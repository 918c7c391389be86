"""MGR: generated images regularise the features, and a finder learns which ones."""

from __future__ import annotations

from typing import Any

from needsaug_lite.data import Splits
from needsaug_lite.methods.baselines.generative import GDA, PCR
from needsaug_lite.methods.baselines.synthetic_images import (
    SYNTHETIC,
    SyntheticSettings,
)
from needsaug_lite.methods.pseudo_sampling import (
    SEARCH,
    MetaPseudoSampling,
    SearchSettings,
)
from needsaug_lite.models import Classifier, Generator


class MGR(MetaPseudoSampling, PCR):
    """Meta generative regularisation: PCR on images that MPS looks for.

    In every step, with x, y from D, z ~ N(0, I), y_p uniform, T a strong change:

        θ' = θ - η ∇_θ( L(θ) + λ L_PCR(θ, φ) )                           (line 7)
        φ ← φ - Adam( ∇_φ L_val(θ') + λ_KL ∇_φ D_KL )                    (line 8)
        x_p = G(F_φ(z), y_p)                                            (line 10)
        θ ← θ - SGD( ∇_θ( L(θ) + λ L_PCR(θ, φ) ) )                      (line 11)

    Source: mgr Algorithm 1; Yamaguchi et al. 2023.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        synthetic: SyntheticSettings = SYNTHETIC,
        search: SearchSettings = SEARCH,
        second_order: bool = False,
        stop_gradient: bool = False,
        **common: Any,
    ) -> None:
        """Prepare classifier and finder; with F the identity this is PCR.

        Args:
            model: trained in place, on the device of `splits`.
            splits: `train` is D, `meta` is D_val, from which the finder learns.
            generator: G, trained on no other images than those of `train`.
            synthetic: λ, B_p and T.
            search: the finder and how it learns.
            second_order: the exact mixed derivative in place of a finite difference.
            stop_gradient: hold g(x_p) fixed in Eq. 5 (errata M8).
            common: see `Supervised`.

        Raises:
            UserError: if there are no meta images, or the generator doesn't fit.
        """
        super().__init__(
            model,
            splits,
            generator=generator,
            synthetic=synthetic,
            search=search,
            second_order=second_order,
            stop_gradient=stop_gradient,
            **common,
        )


class SampledGDA(MetaPseudoSampling, GDA):
    """MPS with generated images as plain data: GDA+MPS of mgr Table 1."""
