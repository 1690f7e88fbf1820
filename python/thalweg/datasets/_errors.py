"""The error of everything that reads data."""

from __future__ import annotations


class DataError(ValueError):
    """A data file or table that cannot be used: what was expected, what was found, what to do."""
