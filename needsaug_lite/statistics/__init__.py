"""What a training knows about its data: moments of features, histories of samples."""

from needsaug_lite.statistics.characteristics import CHARACTERISTICS as CHARACTERISTICS
from needsaug_lite.statistics.characteristics import SampleMemory as SampleMemory
from needsaug_lite.statistics.characteristics import standardised as standardised
from needsaug_lite.statistics.characteristics import (
    training_characteristics as training_characteristics,
)
from needsaug_lite.statistics.covariance import ClassCovariance as ClassCovariance
from needsaug_lite.statistics.covariance import (
    nearest_positive_semidefinite as nearest_positive_semidefinite,
)
from needsaug_lite.statistics.feature_dictionary import (
    FeatureDictionary as FeatureDictionary,
)
