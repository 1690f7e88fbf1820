"""The command line: `thalweg train | predict | info | doctor | bench | reproduce`.

Exit codes: 0 success, 1 a check failed, 2 wrong usage or input, 130 interrupted.
"""

from __future__ import annotations

from .main import main

__all__ = ["main"]
