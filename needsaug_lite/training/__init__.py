"""One training loop for every method."""

from needsaug_lite.training.checkpoint import load_checkpoint as load_checkpoint
from needsaug_lite.training.checkpoint import save_checkpoint as save_checkpoint
from needsaug_lite.training.loop import History as History
from needsaug_lite.training.loop import TrainingDivergedError as TrainingDivergedError
from needsaug_lite.training.loop import fit as fit
from needsaug_lite.training.schedules import Optimisation as Optimisation
from needsaug_lite.training.stages import Budgeting as Budgeting
from needsaug_lite.training.stages import LossDesigning as LossDesigning
from needsaug_lite.training.stages import Method as Method
from needsaug_lite.training.stages import Perturbing as Perturbing
from needsaug_lite.training.stages import Searching as Searching
from needsaug_lite.training.stages import SharedStart as SharedStart
from needsaug_lite.training.stages import Stage as Stage
from needsaug_lite.training.stages import Suspicious as Suspicious
from needsaug_lite.training.stages import TwoClassifiers as TwoClassifiers
