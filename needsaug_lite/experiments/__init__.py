"""Runs, their rows, and the papers' numbers beside them."""

from needsaug_lite.experiments.paper_tables import paper_results as paper_results
from needsaug_lite.experiments.records import Record as Record
from needsaug_lite.experiments.records import load_records as load_records
from needsaug_lite.experiments.runner import run as run
from needsaug_lite.experiments.spec import Spec as Spec
