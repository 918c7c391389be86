"""What tests have to know of methods by name."""

from __future__ import annotations

# Methods that can't be made without groups.
NEED_GROUPS = {
    "up_weighting",
    "group_dro",
    "fair_balanced",
    "fair_deo",
    "group_logit_adjustment",
    "autobalance_grouped",
}
