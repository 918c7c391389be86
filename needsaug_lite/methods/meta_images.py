"""The small clean set from which a method learns what its training set can't tell."""

from __future__ import annotations

from needsaug_lite.data import Batches, Normalisation, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.endless import Endless


class MetaImages(Endless):
    """Batches of `splits.meta` without end, the same ones for the same epoch.

    They are shuffled and not augmented.
    """

    def __init__(
        self,
        splits: Splits,
        batch_size: int,
        normalisation: Normalisation,
        *,
        seed: int,
        steps: int,
        purpose: str,
    ) -> None:
        """Describe the batches.

        Args:
            splits: `meta` holds the images.
            batch_size: most images in a batch.
            normalisation: that of the training images.
            seed: order of the images.
            steps: batches that an epoch of training takes.
            purpose: what they are for, for the error message.

        Raises:
            UserError: if there are no meta images.
        """
        if len(splits.meta) == 0:
            raise UserError(
                f"{purpose}, and there are none; hold some out with meta_per_class, "
                "for example 10"
            )
        size = min(batch_size, len(splits.meta))
        super().__init__(Batches(splits.meta, size, normalisation, seed=seed), steps)
