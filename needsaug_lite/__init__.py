"""Learning how to augment: the tested code of a reproducibility book."""

__version__ = "0.1.0"
