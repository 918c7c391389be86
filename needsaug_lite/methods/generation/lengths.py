"""How long an epoch of a generator's training is."""

# Small data sets have too few batches for an epoch to mean much.
STEPS_PER_EPOCH = 100
