"""How good a classifier is, and how good generated images are."""

from needsaug_lite.metrics.distributions import fairness_scores as fairness_scores
from needsaug_lite.metrics.distributions import (
    generalised_long_tail_scores as generalised_long_tail_scores,
)
from needsaug_lite.metrics.forward import Predictions as Predictions
from needsaug_lite.metrics.forward import predict as predict
from needsaug_lite.metrics.forward import predict_all as predict_all
from needsaug_lite.metrics.forward import sample_losses as sample_losses
from needsaug_lite.metrics.sample_quality import class_scores as class_scores
from needsaug_lite.metrics.sample_quality import frechet_distance as frechet_distance
from needsaug_lite.metrics.sample_quality import (
    inception_style_score as inception_style_score,
)
from needsaug_lite.metrics.sample_quality import label_agreement as label_agreement
from needsaug_lite.metrics.sample_quality import precision_recall as precision_recall
from needsaug_lite.metrics.sample_quality import sample_scores as sample_scores
from needsaug_lite.metrics.scores import FEW as FEW
from needsaug_lite.metrics.scores import MANY as MANY
from needsaug_lite.metrics.scores import evaluate as evaluate
from needsaug_lite.metrics.scores import from_predictions as from_predictions
from needsaug_lite.metrics.scores import (
    noise_average_precision as noise_average_precision,
)
