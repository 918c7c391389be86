"""The methods of the five papers and their baselines, one file each.

Import a method from its own file; `needsaug_lite.experiments.registry` finds them
by name.
"""
