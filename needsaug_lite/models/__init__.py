"""Networks."""

from needsaug_lite.models.classifiers import BACKBONES as BACKBONES
from needsaug_lite.models.classifiers import Classifier as Classifier
from needsaug_lite.models.classifiers import build as build
from needsaug_lite.models.classifiers import load_weights as load_weights
from needsaug_lite.models.heads import CosineHead as CosineHead
from needsaug_lite.models.heads import make_head as make_head
from needsaug_lite.models.perturbation import PerturbationNetwork as PerturbationNetwork
