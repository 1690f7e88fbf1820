"""Text for people: aligned tables, numbers, and the error that becomes one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence


class UserError(Exception):
    """A mistake of the caller; its message is all that is shown."""


def plural(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    ending = "es" if noun.endswith(("s", "x")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def quantity(value: float) -> str:
    """Four significant digits, plain where that stays short."""
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:.3e}"


def size(count: int) -> str:
    """Bytes as kB or MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def fields(rows: Sequence[tuple[str, object]]) -> str:
    """Name and value, one pair per line."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns under a header; the first `left` columns flush left, the others flush right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])


def note(text: str) -> None:
    """Print to the standard error stream, which a pipe leaves on the terminal."""
    print(text, file=sys.stderr, flush=True)
