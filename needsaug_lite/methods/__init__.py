"""The methods of the five papers and their baselines, one file each.

A baseline is imported from its own file; `needsaug_lite.experiments.registry` finds all
of them by name.
"""

from needsaug_lite.methods.autobalance import AutoBalance as AutoBalance
from needsaug_lite.methods.facog import FACoG as FACoG
from needsaug_lite.methods.meta_iada import MetaIADA as MetaIADA
from needsaug_lite.methods.mgr import MGR as MGR
from needsaug_lite.methods.needs_aware import NeedsAware as NeedsAware
from needsaug_lite.methods.search.four_level_search import (
    NeedsAwareSearch as NeedsAwareSearch,
)
