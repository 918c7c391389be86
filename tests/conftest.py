"""Fixtures that several folders of tests share."""

from helpers.built_book import build_folder, built_book

__all__ = ["build_folder", "built_book"]
