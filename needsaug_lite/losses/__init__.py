"""Losses as pure functions of tensors."""

from needsaug_lite.losses.adversarial import (
    binary_discriminator as binary_discriminator,
)
from needsaug_lite.losses.adversarial import hinge_discriminator as hinge_discriminator
from needsaug_lite.losses.adversarial import hinge_generator as hinge_generator
from needsaug_lite.losses.adversarial import (
    least_squares_discriminator as least_squares_discriminator,
)
from needsaug_lite.losses.adversarial import (
    least_squares_generator as least_squares_generator,
)
from needsaug_lite.losses.adversarial import misclassification as misclassification
from needsaug_lite.losses.adversarial import (
    non_saturating_generator as non_saturating_generator,
)
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
from needsaug_lite.losses.contrastive import (
    augmented_supervised_contrastive as augmented_supervised_contrastive,
)
from needsaug_lite.losses.contrastive import (
    supervised_contrastive as supervised_contrastive,
)
from needsaug_lite.losses.fairness import average_risk as average_risk
from needsaug_lite.losses.fairness import balanced_risk as balanced_risk
from needsaug_lite.losses.fairness import conditional_risks as conditional_risks
from needsaug_lite.losses.fairness import (
    difference_of_equal_opportunity as difference_of_equal_opportunity,
)
from needsaug_lite.losses.implicit_augmentation import (
    FirstOrderTerms as FirstOrderTerms,
)
from needsaug_lite.losses.implicit_augmentation import (
    first_order_terms as first_order_terms,
)
from needsaug_lite.losses.implicit_augmentation import half_variance as half_variance
from needsaug_lite.losses.implicit_augmentation import iada as iada
from needsaug_lite.losses.implicit_augmentation import iada_weighted as iada_weighted
from needsaug_lite.losses.implicit_augmentation import (
    perturbation_direction as perturbation_direction,
)
from needsaug_lite.losses.parametric import (
    parametric_cross_entropy as parametric_cross_entropy,
)
from needsaug_lite.losses.regularisers import decorrelation as decorrelation
from needsaug_lite.losses.regularisers import (
    kl_to_standard_normal as kl_to_standard_normal,
)
from needsaug_lite.losses.regularisers import (
    prediction_consistency as prediction_consistency,
)
from needsaug_lite.losses.regularisers import pseudo_consistency as pseudo_consistency
