"""Plain cross-entropy: on which images, and with classes drawn evenly."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from annotated_types import Ge, Le
from torch import Tensor

from needsaug_lite.data import Examples, Splits
from needsaug_lite.errors import UserError
from needsaug_lite.methods.baselines.supervised import Supervised
from needsaug_lite.models import Classifier


class CrossEntropy(Supervised):
    """Cross-entropy on the training images as they are."""

    data_parallel = True


class CrossEntropyWithMeta(Supervised):
    """Cross-entropy on the training images and the meta images together.

    What a method gains that learns something from `splits.meta` has to be measured
    against this: it has seen the same images.
    """

    data_parallel = True

    def __init__(self, model: Classifier, splits: Splits, **common: Any) -> None:
        both = splits.train.joined(_meta_images(splits))
        super().__init__(model, replace(splits, train=both), **common)


class CrossEntropyOnMeta(Supervised):
    """Cross-entropy on the meta images alone.

    Where the training labels are wrong and the meta labels are right, this tells what
    the training images add. An epoch goes through the meta images once.
    """

    data_parallel = True

    def __init__(self, model: Classifier, splits: Splits, **common: Any) -> None:
        super().__init__(model, replace(splits, train=_meta_images(splits)), **common)


def _meta_images(splits: Splits) -> Examples:
    """The meta images, or an error that says how to get some."""
    if len(splits.meta) == 0:
        raise UserError(
            "there are no meta images to train on; hold some out with meta_per_class, "
            "or take plain cross-entropy"
        )
    return splits.meta


class Resampling(Supervised):
    """Cross-entropy with classes drawn in proportion to n_c^power.

    An epoch draws as many images as there are, with replacement: class c with
    probability proportional to n_c^power. power = 1 is the data as they are, 0
    draws all classes equally, 0.5 is square-root sampling.
    """

    data_parallel = True

    def __init__(
        self,
        model: Classifier,
        splits: Splits,
        *,
        power: Annotated[float, Ge(0), Le(1)] = 0.0,
        **common: Any,
    ) -> None:
        self.power = power
        super().__init__(model, splits, **common)

    def sampling_weights(self) -> Tensor | None:
        """n_c^(power - 1): a class then has the share n_c^power."""
        return self.counts.double() ** (self.power - 1)
