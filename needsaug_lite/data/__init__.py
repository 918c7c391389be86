"""Data sets, the biases made in them, and batches."""

from needsaug_lite.data.attributes import attribute_counts as attribute_counts
from needsaug_lite.data.attributes import attribute_tail as attribute_tail
from needsaug_lite.data.batches import IMAGENET as IMAGENET
from needsaug_lite.data.batches import Batch as Batch
from needsaug_lite.data.batches import Batches as Batches
from needsaug_lite.data.batches import Normalisation as Normalisation
from needsaug_lite.data.bias import label_noise as label_noise
from needsaug_lite.data.bias import long_tail as long_tail
from needsaug_lite.data.bias import long_tail_counts as long_tail_counts
from needsaug_lite.data.cells import Cells as Cells
from needsaug_lite.data.clusters import attribute_groups as attribute_groups
from needsaug_lite.data.gamo import GAMO_COUNTS as GAMO_COUNTS
from needsaug_lite.data.gamo import gamo_test_index as gamo_test_index
from needsaug_lite.data.gamo import gamo_train as gamo_train
from needsaug_lite.data.groups import colour as colour
from needsaug_lite.data.sources import NAMES as NAMES
from needsaug_lite.data.sources import default_root as default_root
from needsaug_lite.data.sources import load as load
from needsaug_lite.data.splits import Examples as Examples
from needsaug_lite.data.splits import InMemory as InMemory
from needsaug_lite.data.splits import Splits as Splits
from needsaug_lite.data.splits import generator as generator
from needsaug_lite.data.splits import undivided as undivided
from needsaug_lite.data.spurious import coloured_groups as coloured_groups
from needsaug_lite.data.stratified import StratifiedBatches as StratifiedBatches
from needsaug_lite.data.stratified import divide as divide
