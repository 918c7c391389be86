"""Losses as pure functions of tensors."""

from needsaug_lite.losses.classification import (
    class_balanced_weights as class_balanced_weights,
)
from needsaug_lite.losses.classification import (
    class_dependent_temperature as class_dependent_temperature,
)
from needsaug_lite.losses.classification import cross_entropy as cross_entropy
from needsaug_lite.losses.classification import focal as focal
from needsaug_lite.losses.classification import ldam as ldam
from needsaug_lite.losses.classification import ldam_margins as ldam_margins
from needsaug_lite.losses.classification import logit_adjusted as logit_adjusted
from needsaug_lite.losses.classification import vector_scaling as vector_scaling
