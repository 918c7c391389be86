"""A discriminator made of the cells of an architecture search."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from needsaug_lite.models.biggan import Projecting
from needsaug_lite.models.search_cell import Supernet


class CellDiscriminator(Projecting):
    """A projection discriminator whose features are those of a `Supernet`.

    Its architecture is that of the classifiers, so that what learns from it sees A
    (needs_aware Sec. 4.2); the network too, if it is handed in as it is ("parameter
    tying", Sec. 3.2).

    Args:
        backbone: h.
        num_classes: C.
        normalise: from images in [0, 1] to those that `backbone` sees as a classifier.
    """

    def __init__(
        self,
        backbone: Supernet,
        num_classes: int,
        normalise: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._normalise = normalise
        self.add_scores(backbone.feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """h, shape (B, D), of images in [-1, 1] (B, channels, H, W)."""
        found: Tensor = self.backbone(self._normalise((images + 1) / 2))
        return found
