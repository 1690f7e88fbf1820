"""Files of rows: a JSON list, rewritten after every row so that an interrupted run keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Results:
    """Rows of one run; without a path they are only shown."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._rows = path, [] if path is None or not path.exists() else read(path)

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._rows, indent=1) + "\n")
        os.replace(partial, self._path)


def read(path: Path) -> list[Row]:
    rows: list[Row] = json.loads(path.read_text())
    return rows


def read_all(paths: Iterable[Path]) -> list[Row]:
    """All rows, oldest first."""
    return sorted((row for path in paths for row in read(path)), key=lambda row: row["date"])
