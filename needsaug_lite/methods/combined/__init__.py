"""Combinations of the papers' methods that no paper tries."""
