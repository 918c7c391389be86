"""What mgr sets its search against: other things to tune, other aims."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor

from needsaug_lite import losses
from needsaug_lite.data import Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.generative import PCR, Params, Views
from needsaug_lite.methods.baselines.synthetic_images import (
    SYNTHETIC,
    SyntheticSettings,
)
from needsaug_lite.methods.mgr import MGR
from needsaug_lite.methods.pseudo_sampling import (
    SEARCH,
    Searched,
    SearchSettings,
    detached,
)
from needsaug_lite.models import Classifier, Generator, unrecorded


class TunedGenerator(MGR):
    """MPS that moves the weights of the generator instead of its latent vectors.

    The generator is copied first; its rate is that of the finder, and there is no
    divergence from the prior.

    Source: "MPS with G_Φ" of mgr Table 5, which fails there.
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
        if next(generator.parameters(), None) is None:
            raise UserError(
                f"a {type(generator).__name__} without weights has nothing that could "
                "be moved; take mgr, which moves its latent vectors"
            )
        super().__init__(
            model,
            splits,
            generator=deepcopy(generator),
            synthetic=synthetic,
            search=search,
            second_order=second_order,
            stop_gradient=stop_gradient,
            **common,
        )

    def searched(self) -> list[Tensor]:
        """Φ, the weights of the generator."""
        self.generator.requires_grad_(True)
        return list(self.generator.parameters())

    def moved(self, latents: Tensor) -> Tensor:
        """Z itself: what moves is G."""
        return latents

    def improve(
        self, real: Params, latents: Tensor, labels: Tensor
    ) -> Mapping[str, Tensor]:
        """One update of Φ; nothing holds it near its start."""
        views = self.views(self.generator.sample(latents, labels))
        slopes, logged = self.search_gradients(real, detached(views), labels)
        self.update(
            torch.autograd.grad(
                list(views.values()),
                self.searched(),
                [slopes[name] for name in views],
                # G may have weights that this way of calling it doesn't use.
                allow_unused=True,
                materialize_grads=True,
            )
        )
        return logged

    def state_dict(self) -> dict[str, Any]:
        """What the frame keeps, and the generator."""
        return {**super().state_dict(), "generator": self.generator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of it back."""
        super().load_state_dict(state)
        self.generator.load_state_dict(state["generator"])


class HardSampling(Searched, PCR):
    """PCR on images that are hard for the network as it is: no look ahead.

    φ ← φ - Adam( -∇_φ ℓ + λ_KL ∇_φ D_KL ),   ℓ the cross-entropy of f(x_p) and y_p,
                                              or ℓ_PCR

    Source: mgr App. B.4 and Table 7.
    """

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        generator: Generator,
        synthetic: SyntheticSettings = SYNTHETIC,
        search: SearchSettings = SEARCH,
        aim: Literal["cross_entropy", "consistency"] = "cross_entropy",
        **common: Any,
    ) -> None:
        """Prepare classifier and finder.

        Args:
            model, splits, generator, synthetic, search, common: see `Searched`.
            aim: the loss that F raises.

        Raises:
            UserError: if the aim is cross-entropy and the generator has no classes.
        """
        self.needs_labels = aim == "cross_entropy"
        super().__init__(
            model,
            splits,
            generator=generator,
            synthetic=synthetic,
            search=search,
            **common,
        )
        self.aim = aim

    def search_gradients(
        self, real: Params, views: Views, labels: Tensor
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """-∇ℓ by the views: descent along it raises ℓ."""
        leaves = {name: view.clone().requires_grad_() for name, view in views.items()}
        fixed = {name: value.detach() for name, value in self.parameters().items()}
        with unrecorded(self.model):
            if self.aim == "consistency":
                found = self.synthetic_loss(fixed, leaves, labels)
            else:
                logits = self.logits_with(fixed, leaves["plain"])
                found = losses.cross_entropy(logits, labels)
        slopes = torch.autograd.grad(
            found, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        down = {name: -slope for name, slope in zip(leaves, slopes, strict=True)}
        return down, {"outer_loss": found.detach()}
