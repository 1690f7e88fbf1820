"""Runs the code blocks of the Markdown pages and compares what they print.

The `python` blocks of a page run in order, in one namespace and in an empty folder of their own. A
`text` block right after one holds what it prints. `console` blocks run the lines after `$ thalweg`;
the other lines are what these print. A block with `file=PATH` is an excerpt of that file, in which
`...` stands for lines left out, or a `diff` of it; with `new=PATH` it is a file that a reader adds.

Words after the language of a block:
    needs=MODULE      run the block only where MODULE can be imported
    tolerance=NUMBER  numbers may differ by this, relative or absolute
    unchecked         show, do not run; output: show, do not compare

    python docs/snippets.py [--update] [PAGE...]     check pages, or rewrite what they print
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "examples/**/*.md")

_NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d*)?(?:e[-+]?\d+)?")
_TOKEN = re.compile(rf"\.\.\.|(?<![\w.])(?:{_NUMBER.pattern})(?!\w)|\w+|\S")


@dataclass
class Block:
    """A fenced block of a page."""

    page: Path
    line: int  # of its first line of content, from 1
    language: str
    words: tuple[str, ...]
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The content, with a newline at the end of every line."""
        return "".join(line + "\n" for line in self.lines)

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def option(self, name: str) -> str | None:
        """VALUE of the word `name=VALUE`."""
        values = (word.partition("=")[2] for word in self.words if word.startswith(f"{name}="))
        return next(values, None)

    @property
    def runs(self) -> bool:
        """Whether the block can and should be executed here."""
        module = self.option("needs")
        available = module is None or importlib.util.find_spec(module) is not None
        return available and "unchecked" not in self.words


class Mismatch(AssertionError):
    """A page says something else than its code does."""


def pages() -> list[Path]:
    """The pages with code."""
    return sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found: list[Block] = []
    inside: Block | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if inside is not None:
            if line.strip() == "```":
                found.append(inside)
                inside = None
            else:
                inside.lines.append(line)
        elif line.startswith("```"):
            language, *words = line[3:].split() or [""]
            inside = Block(page, number + 1, language, tuple(words))
    if inside is not None:
        raise Mismatch(f"{inside.place}: the block has no end")
    return found


def output_after(block: Block, following: Sequence[Block]) -> Block | None:
    """The `text` block that stands right below `block`."""
    below = following[0] if following else None
    if below is None or below.language != "text":
        return None
    return below if below.line == block.line + len(block.lines) + 3 else None


# ---- comparison --------------------------------------------------------------------------------


def _same_token(expected: str, actual: str, tolerance: float) -> bool:
    if expected == actual or expected == "...":
        return True
    if tolerance == 0.0 or not (_NUMBER.fullmatch(expected) and _NUMBER.fullmatch(actual)):
        return False
    a, b = (float(token.replace(",", "")) for token in (expected, actual))
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def _same_line(expected: str, actual: str, tolerance: float) -> bool:
    a, b = _TOKEN.findall(expected), _TOKEN.findall(actual)
    return len(a) == len(b) and all(map(_same_token, a, b, [tolerance] * len(a)))


def same(expected: Sequence[str], actual: Sequence[str], tolerance: float = 0.0) -> bool:
    """Whether output is as expected: `...` stands for a word, or alone for any number of lines."""
    if not expected:
        return not actual
    if expected[0].strip() == "...":
        return any(same(expected[1:], actual[i:], tolerance) for i in range(len(actual) + 1))
    if not actual or not _same_line(expected[0], actual[0], tolerance):
        return False
    return same(expected[1:], actual[1:], tolerance)


def _check(block: Block, actual: list[str]) -> None:
    tolerance = float(block.option("tolerance") or 0.0)
    if "unchecked" not in block.words and not same(block.lines, actual, tolerance):
        wanted, got = "\n    ".join(block.lines), "\n    ".join(actual)
        raise Mismatch(f"{block.place}: expected\n    {wanted}\ngot\n    {got}")


# ---- the three kinds of blocks -----------------------------------------------------------------


def run_python(block: Block, namespace: dict[str, object]) -> list[str]:
    """Execute a block; the lines it prints."""
    source = "\n" * (block.line - 1) + block.text  # tracebacks point into the page
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, str(block.page), "exec"), namespace)
    return [line.rstrip() for line in printed.getvalue().splitlines()]


def run_console(block: Block) -> list[str]:
    """Run the commands of a block; the block as it looks after that."""
    environment = {**os.environ, "COLUMNS": "100", "MPLBACKEND": "Agg"}
    shown: list[str] = []
    for line in block.lines:
        if not line.startswith("$ "):
            continue
        program, *arguments = shlex.split(line[2:], comments=True)
        if program != "thalweg":
            raise Mismatch(f"{block.place}: only thalweg runs in a console block, got {line!r}")
        result = subprocess.run(
            [sys.executable, "-m", "thalweg", *arguments],
            capture_output=True,
            text=True,
            env=environment,
        )
        if result.returncode != 0:
            raise Mismatch(f"{block.place}: {line!r} failed: {result.stderr.strip()}")
        shown += [line, *(output.rstrip() for output in result.stdout.splitlines())]
    return shown


def _find(lines: Sequence[str], run: Sequence[str], start: int = 0) -> int | None:
    """Where a run of lines stands."""
    places = range(start, len(lines) - len(run) + 1)
    return next((i for i in places if list(lines[i : i + len(run)]) == list(run)), None)


def applied(block: Block, text: str) -> str:
    """The text of a file after the change that a `diff` block describes."""
    lines = text.splitlines()
    old = [line[1:] for line in block.lines if line[:1] in ("", " ", "-")]
    new = [line[1:] for line in block.lines if line[:1] in ("", " ", "+")]
    start = _find(lines, old)
    if start is None:
        raise Mismatch(f"{block.place}: {block.option('file')} does not hold the lines to change")
    return "\n".join([*lines[:start], *new, *lines[start + len(old) :]]) + "\n"


def check_excerpt(block: Block) -> None:
    """Whether a block fits its file: the runs of lines between `...` stand in it, in this order."""
    name = block.option("file") or ""
    path = ROOT / name
    if not path.is_file():
        raise Mismatch(f"{block.place}: there is no file {name}")
    text = path.read_text(encoding="utf-8")
    if block.language == "diff":
        applied(block, text)
        return
    lines = [line.strip() for line in text.splitlines()]
    runs: list[list[str]] = [[]]
    for line in map(str.strip, block.lines):
        if line in ("...", "// ...", "# ..."):
            runs.append([])
        else:
            runs[-1].append(line)
    at = 0
    for run in filter(None, runs):
        start = _find(lines, run, at)
        if start is None:
            missing = next((line for line in run if line not in lines[at:]), run[0])
            raise Mismatch(f"{block.place}: {name} does not hold this excerpt; look at {missing!r}")
        at = start + len(run)


# ---- pages -------------------------------------------------------------------------------------


def run_page(page: Path) -> Iterator[tuple[Block, list[str]]]:
    """Run a page in the present folder; each block that holds output, with the actual output."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    found = blocks(page)
    for i, block in enumerate(found):
        if block.option("file") is not None:
            check_excerpt(block)
        elif block.language == "python" and block.runs:
            actual = run_python(block, namespace)
            expected = output_after(block, found[i + 1 :])
            if expected is not None:
                yield expected, actual
            elif actual:
                raise Mismatch(f"{block.place}: prints, but no text block shows it: {actual}")
        elif block.language == "console" and block.runs:
            yield block, run_console(block)


@contextlib.contextmanager
def empty_folder() -> Iterator[None]:
    """Work in a temporary folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def check(page: Path) -> int:
    """Run a page and compare; the number of blocks with code."""
    with empty_folder():
        for block, actual in run_page(page):
            _check(block, actual)
    return sum(block.language in ("python", "console") and block.runs for block in blocks(page))


def update(page: Path) -> int:
    """Write what a page's code prints into it; the number of blocks that changed."""
    lines = page.read_text(encoding="utf-8").splitlines()
    changes: list[tuple[Block, list[str]]] = []
    with empty_folder():
        for block, actual in run_page(page):
            try:
                _check(block, actual)
            except Mismatch:
                changes.append((block, actual))
    for block, actual in reversed(changes):
        lines[block.line - 1 : block.line - 1 + len(block.lines)] = actual
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(changes)


def main() -> int:
    """Check or update pages."""
    parser = argparse.ArgumentParser(description="Run the code of the documentation.")
    parser.add_argument("--update", action="store_true", help="rewrite the output blocks")
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="default: all")
    options = parser.parse_args()
    failed = False
    for page in [path.resolve() for path in options.pages] or pages():
        try:
            count = update(page) if options.update else check(page)
            verb = "changed" if options.update else "run"
            print(f"{page.relative_to(ROOT)}: {count} blocks {verb}")
        except Mismatch as error:
            print(error, file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
