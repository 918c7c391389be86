"""The network that says how hard to push each sample."""

from __future__ import annotations

from torch import Tensor, nn

from needsaug_lite.statistics import CHARACTERISTICS


class PerturbationNetwork(nn.Module):
    """Two layers from K training characteristics to ε in (-1, 1).

    ε = tanh( u ᵀ relu(V f + a) + c )

    u and c start at zero: all ε are 0 until the meta images ask for something else,
    so no direction of the perturbation is built into the start.

    Args:
        inputs: K.
        hidden: units of the first layer.

    Source: meta_iada Sec. 4; width and start are our choice, the paper gives none.
    """

    def __init__(self, inputs: int = len(CHARACTERISTICS), hidden: int = 100):
        super().__init__()
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), last)

    def forward(self, characteristics: Tensor) -> Tensor:
        """ε of shape (B,) from standardised characteristics (B, K)."""
        epsilon: Tensor = self.layers(characteristics).squeeze(1).tanh()
        return epsilon
