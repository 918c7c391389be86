"""Networks."""

from needsaug_lite.models.batch_statistics import unrecorded as unrecorded
from needsaug_lite.models.cell_network import CellNetwork as CellNetwork
from needsaug_lite.models.classifiers import BACKBONES as BACKBONES
from needsaug_lite.models.classifiers import Classifier as Classifier
from needsaug_lite.models.classifiers import build as build
from needsaug_lite.models.classifiers import build_from_cells as build_from_cells
from needsaug_lite.models.classifiers import features_with as features_with
from needsaug_lite.models.classifiers import load_weights as load_weights
from needsaug_lite.models.feature_gan import (
    ConditionalDiscriminator as ConditionalDiscriminator,
)
from needsaug_lite.models.feature_gan import ConvexGenerator as ConvexGenerator
from needsaug_lite.models.feature_gan import CopyWeights as CopyWeights
from needsaug_lite.models.feature_gan import DirichletWeights as DirichletWeights
from needsaug_lite.models.feature_gan import FeatureGenerator as FeatureGenerator
from needsaug_lite.models.feature_gan import InstanceGenerator as InstanceGenerator
from needsaug_lite.models.feature_gan import Mixer as Mixer
from needsaug_lite.models.feature_gan import SeeingGenerator as SeeingGenerator
from needsaug_lite.models.feature_gan import mix as mix
from needsaug_lite.models.finder import Finder as Finder
from needsaug_lite.models.finder import FinderKind as FinderKind
from needsaug_lite.models.generators import Adapted as Adapted
from needsaug_lite.models.generators import Generator as Generator
from needsaug_lite.models.generators import stylegan2 as stylegan2
from needsaug_lite.models.genotype import Genotype as Genotype
from needsaug_lite.models.genotype import discretise as discretise
from needsaug_lite.models.genotype import random_genotype as random_genotype
from needsaug_lite.models.heads import CosineHead as CosineHead
from needsaug_lite.models.heads import make_head as make_head
from needsaug_lite.models.heads import two_layers as two_layers
from needsaug_lite.models.perturbation import PerturbationNetwork as PerturbationNetwork
from needsaug_lite.models.search_cell import Architecture as Architecture
from needsaug_lite.models.search_cell import Space as Space
from needsaug_lite.models.search_cell import Supernet as Supernet
