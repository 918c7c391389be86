"""The network that learns where in its latent space a generator is sampled."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from needsaug_lite.errors import UserError

#: The forms of a `Finder`.
FinderKind = Literal["residual", "linear", "mlp", "residual_shallow"]
# mgr gives three layers with leaky rectifiers and no width (errata M9).
WIDTH = 512


class Finder(nn.Module):
    """Moves latent vectors.

        residual          F(z) = z + tanh(MLP(z))                         (mgr Eq. 10)
        residual_shallow  F(z) = z + tanh(W z + b)
        linear            F(z) = W z + b
        mlp               F(z) = MLP(z)

    The MLP has three layers. The last layer of the residual forms starts at zero, so
    that the search begins with the identity; linear starts with W = I and b = 0. The
    plain MLP can't, and starts at random.

    Args:
        latent_dim: d, length of z.
        kind: which form.
        width: of the MLP.

    Raises:
        UserError: for an unknown kind.

    Source: mgr Eq. 10 and App. B.2; the start is our choice.
    """

    def __init__(
        self, latent_dim: int, kind: FinderKind = "residual", width: int = WIDTH
    ) -> None:
        super().__init__()
        self.kind = kind
        if kind in ("residual", "mlp"):
            self.layers: nn.Module = nn.Sequential(
                nn.Linear(latent_dim, width),
                nn.LeakyReLU(),
                nn.Linear(width, width),
                nn.LeakyReLU(),
                nn.Linear(width, latent_dim),
            )
        elif kind in ("linear", "residual_shallow"):
            self.layers = nn.Linear(latent_dim, latent_dim)
        else:
            raise UserError(
                f"unknown finder {kind!r}; use residual, residual_shallow, linear or "
                "mlp"
            )
        if kind != "mlp":
            self._start_at_identity()

    def _start_at_identity(self) -> None:
        last = list(self.layers.modules())[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.bias)
        if self.kind == "linear":
            nn.init.eye_(last.weight)
        else:
            nn.init.zeros_(last.weight)

    def forward(self, latents: Tensor) -> Tensor:
        """F(z), shape (B, d), of z, shape (B, d)."""
        found: Tensor = self.layers(latents)
        if self.kind.startswith("residual"):
            return latents + torch.tanh(found)
        return found
