"""Exceptions that thalweg adds to Python's own.

Wrong shapes and values raise `ValueError`, wrong types `TypeError`, exhausted memory `MemoryError`,
and Ctrl-C `KeyboardInterrupt`. Every message names the operation, what was expected, what came and
what to do.
"""

from __future__ import annotations

from thalweg._core import CheckpointError, DeviceError, NonFiniteError

__all__ = ["CheckpointError", "DeviceError", "NonFiniteError"]
