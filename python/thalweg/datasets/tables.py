"""Delimited text: a CSV file becomes a table of numeric and categorical columns.

Errors name the line, the column and the text. Memory stays proportional to the numbers of the file:
its text is read in a stream, twice when a column holds texts.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ._errors import DataError

Kind = Literal["numeric", "categorical", "skip"]

MISSING_TEXTS = frozenset({"", "?", "NA", "N/A", "NaN", "nan", "null", "NULL"})
MAX_CATEGORIES = 1000
_DELIMITERS = (",", "\t", ";", "|")
_MAX_COLUMNS = 1 << 20
_SAMPLE = 1 << 14
_COMMA_NUMBER = re.compile(r"[+-]?[\d.]*,\d[\d,.]*")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name : str
    values : float64 ndarray [rows] or int32 ndarray [rows]
        Numbers, NaN where missing; or positions in `categories`.
    categories : tuple of str or None
        Texts of a categorical column in sorted order, missing ones as "?"; None when numeric.
    first_missing : int
        Line of the first missing number, 0 when there is none.
    """

    name: str
    values: npt.NDArray[np.float64] | npt.NDArray[np.int32]
    categories: tuple[str, ...] | None
    first_missing: int = 0


@dataclass(frozen=True)
class Table:
    """A table read from a file.

    Attributes
    ----------
    columns : dict of str to Column
        In file order, without skipped columns.
    rows : int
    has_header : bool
        Whether the first line holds names; else columns are "column 1", "column 2", ...
    delimiter : str
    """

    columns: dict[str, Column]
    rows: int
    has_header: bool
    delimiter: str


def read_csv(
    path: str | os.PathLike[str],
    *,
    delimiter: str | None = None,
    header: bool | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Table:
    r"""Read a delimited text file (UTF-8, quoted fields allowed).

    Parameters
    ----------
    path : path-like
    delimiter : str, optional
        One character. Default: the most frequent of comma, tab, semicolon and bar at the file's
        beginning.
    header : bool, optional
        Whether the first line holds column names. Default: it does when none of its fields is a
        number, none is empty and no two are equal.
    kinds : mapping of str to {"numeric", "categorical", "skip"}, optional
        By column name. Default: a column is numeric when at least half of its fields that are not
        missing are numbers, and then a text in it is an error; else it is categorical, unless
        all its texts are numbers with a comma such as 0,5, which is an error.

    Returns
    -------
    Table
        Fields that are empty or one of ``? NA N/A NaN nan null NULL`` are missing.

    Raises
    ------
    DataError
        A line with too few or too many fields, a text or an infinite number in a numeric column, a
        categorical column with more than 1000 texts, an unknown name in `kinds`, no rows, text that
        is not UTF-8.
    OSError
        The file cannot be opened.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from thalweg.datasets import read_csv
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "pets.csv"
    >>> _ = path.write_text("kg,kind\n4.5,cat\n20,dog\n")
    >>> table = read_csv(path)
    >>> table.columns["kg"].values, table.columns["kind"].categories
    (array([ 4.5, 20. ]), ('cat', 'dog'))
    """
    reader = _Reader(os.fspath(path), delimiter, header)
    names = reader.names
    wanted = dict(kinds or {})
    for name in wanted:
        if name not in names:
            raise DataError(
                f"[read_csv] expected a column '{name}' in {reader.place}, got {_listed(names)}"
            )
    if "categorical" not in wanted.values():
        matrix = _read_numbers(reader, [wanted.get(name) != "skip" for name in names])
        if matrix is not None:
            kept = [name for name in names if wanted.get(name) != "skip"]
            columns = {
                name: Column(name, np.ascontiguousarray(matrix[:, i]), None)
                for i, name in enumerate(kept)
            }
            return Table(columns, len(matrix), reader.has_header, reader.delimiter)
    return _read_mixed(reader, wanted)


def read_names(
    path: str | os.PathLike[str], *, delimiter: str | None = None, header: bool | None = None
) -> list[str]:
    """Column names as `read_csv` would give them, from the first line alone."""
    return _Reader(os.fspath(path), delimiter, header).names


class _Reader:
    """The rows of a file, each checked for its number of fields; can be read more than once."""

    def __init__(self, place: str, delimiter: str | None, header: bool | None) -> None:
        self.place = place
        if delimiter is not None and len(delimiter) != 1:
            raise DataError(f"[read_csv] expected a delimiter of one character, got {delimiter!r}")
        self.delimiter = delimiter or ","
        self.delimiter = delimiter or self._detect_delimiter()
        self.has_header = False
        self.width = 0
        line, first = next(self._lines(), (0, None))
        if first is None:
            raise DataError(f"[read_csv] expected rows, got an empty file: {place}")
        if len(first) > _MAX_COLUMNS:
            raise DataError(f"[read_csv] more than {_MAX_COLUMNS} columns in {place}")
        self.width = len(first)
        self.first_line = line
        self.header_guessed = header is None
        self.has_header = _is_header(first) if header is None else header
        self.names = first if self.has_header else [f"column {i + 1}" for i in range(len(first))]
        if self.has_header and len(set(first)) < len(first):
            twice = next(name for name in first if first.count(name) > 1)
            raise DataError(f"[read_csv] two columns are named '{twice}' in {place}")

    def _detect_delimiter(self) -> str:
        counts = dict.fromkeys(_DELIMITERS, 0)
        with open(self.place, encoding="utf-8-sig", errors="replace", newline="") as file:
            quoted = False
            for character in file.read(_SAMPLE):
                if character == '"':
                    quoted = not quoted
                elif not quoted and character in counts:
                    counts[character] += 1
        return max(counts, key=lambda c: counts[c])

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and stripped fields of every data row."""
        return itertools.islice(self._lines(), int(self.has_header), None)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        with open(self.place, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, delimiter=self.delimiter, skipinitialspace=True, strict=True)
            while True:
                try:
                    fields = next(lines, None)
                except csv.Error as error:
                    raise DataError(
                        f"[read_csv] line {lines.line_num} of {self.place}: {error}"
                    ) from error
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"[read_csv] expected UTF-8 text after line {lines.line_num} of "
                        f"{self.place}, got byte 0x{error.object[error.start]:02x}; save the file "
                        f"as UTF-8"
                    ) from error
                if fields is None:
                    return
                fields = [field.strip() for field in fields]
                if len(fields) <= 1 and not any(fields):
                    continue
                if self.width and len(fields) != self.width:
                    hint = "; delete the first line if it is a title or a comment"
                    raise DataError(
                        f"[read_csv] line {lines.line_num} of {self.place}: expected {self.width} "
                        f"field{'s' * (self.width != 1)} as in the first line, got {len(fields)}: "
                        f"{_short(self.delimiter.join(fields))!r}{hint * (self.width == 1)}"
                    )
                yield lines.line_num, fields


def _read_numbers(reader: _Reader, keep: Sequence[bool]) -> npt.NDArray[np.float64] | None:
    """The whole file as numbers, or None when a field is missing or no finite number."""
    values = array("d")
    everything = all(keep)
    for _, fields in reader.rows():
        if not everything:
            fields = list(itertools.compress(fields, keep))
        if any("_" in field for field in fields):
            return None
        try:
            values.extend(map(float, fields))
        except ValueError:
            return None
    width = sum(keep)
    if not width:
        raise DataError(
            f"[read_csv] expected columns, got {reader.place} with all of them left out"
        )
    matrix = np.frombuffer(values, np.float64).reshape(-1, width)
    if len(matrix) == 0:
        raise DataError(f"[read_csv] expected rows below the header, got none: {reader.place}")
    return matrix if bool(np.isfinite(matrix).all()) else None


class _Statistics:
    """What the first reading learns of one column."""

    def __init__(self) -> None:
        self.numbers = 0
        self.texts = 0
        self.comma_numbers = 0
        self.categories: dict[str, int] | None = {}
        self.first_text = (0, "")
        self.first_missing = 0

    def add(self, line: int, text: str) -> None:
        if text in MISSING_TEXTS:
            self.first_missing = self.first_missing or line
            text = "?"
        elif _number(text) is None:
            if not self.texts:
                self.first_text = (line, text)
            self.texts += 1
            self.comma_numbers += _COMMA_NUMBER.fullmatch(text) is not None
        else:
            self.numbers += 1
        if self.categories is not None:
            self.categories[text] = 0
            if len(self.categories) > MAX_CATEGORIES:
                self.categories = None


def _read_mixed(reader: _Reader, kinds: Mapping[str, Kind]) -> Table:
    chosen = [i for i, name in enumerate(reader.names) if kinds.get(name) != "skip"]
    statistics = [_Statistics() for _ in chosen]
    rows = 0
    for line, fields in reader.rows():
        rows += 1
        for i, column in zip(chosen, statistics, strict=True):
            column.add(line, fields[i])
    if rows == 0:
        raise DataError(f"[read_csv] expected rows below the header, got none: {reader.place}")

    numeric: list[tuple[int, npt.NDArray[np.float64]]] = []
    coded: list[tuple[int, npt.NDArray[np.int32], dict[str, int]]] = []
    columns: dict[str, Column] = {}
    for i, column in zip(chosen, statistics, strict=True):
        name = reader.names[i]
        if _is_numeric(reader, name, column, kinds.get(name)):
            numbers = np.empty(rows, np.float64)
            numeric.append((i, numbers))
            columns[name] = Column(name, numbers, None, column.first_missing)
        else:
            assert column.categories is not None
            texts = sorted(column.categories, key=_category_order)
            codes = np.empty(rows, np.int32)
            coded.append((i, codes, {text: code for code, text in enumerate(texts)}))
            columns[name] = Column(name, codes, tuple(texts))

    for row, (line, fields) in enumerate(reader.rows()):
        for i, numbers in numeric:
            text = fields[i]
            value = math.nan if text in MISSING_TEXTS else _number(text)
            assert value is not None
            if math.isinf(value):
                raise DataError(
                    f"[read_csv] line {line} of {reader.place}, column '{reader.names[i]}': "
                    f"expected a finite number, got {text!r}"
                )
            numbers[row] = value
        for i, codes, positions in coded:
            codes[row] = positions["?" if fields[i] in MISSING_TEXTS else fields[i]]
    return Table(columns, rows, reader.has_header, reader.delimiter)


def _is_numeric(reader: _Reader, name: str, column: _Statistics, kind: Kind | None) -> bool:
    if kind is None:
        kind = "numeric" if column.numbers >= column.texts else "categorical"
        if column.texts and column.comma_numbers == column.texts:
            line, text = column.first_text
            raise DataError(
                f"[read_csv] line {line} of {reader.place}, column '{name}': expected a number "
                f"with a decimal point and no group separators, got {_short(text)!r}; correct the "
                f"column, or declare it categorical (--categorical)"
            )
    if kind == "numeric" and column.texts:
        line, text = column.first_text
        hint = "correct it, or declare the column categorical (--categorical)"
        if reader.header_guessed and not reader.has_header and line == reader.first_line:
            hint = "if this line holds the names of the columns, pass header=True (--header yes)"
        raise DataError(
            f"[read_csv] line {line} of {reader.place}, column '{name}': expected a number, got "
            f"{_short(text)!r}; {hint}"
        )
    if kind == "categorical" and column.categories is None:
        raise DataError(
            f"[read_csv] column '{name}' of {reader.place}: expected at most {MAX_CATEGORIES} "
            f"different texts, got more; leave the column out"
        )
    return kind == "numeric"


def _is_header(fields: Sequence[str]) -> bool:
    return all(field not in MISSING_TEXTS and _number(field) is None for field in fields) and len(
        set(fields)
    ) == len(fields)


def _number(text: str) -> float | None:
    """The number that `text` is; Python's digit-group underscores and "nan" are not numbers."""
    try:
        value = float(text)
    except ValueError:
        return None
    return None if "_" in text or math.isnan(value) else value


def is_text(field: str) -> bool:
    """Whether `read_csv` takes the field as a text, neither a number nor missing."""
    return field not in MISSING_TEXTS and _number(field) is None


def _category_order(text: str) -> tuple[bool, float, str]:
    value = _number(text)
    return (value is None, value or 0.0, text)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20])
    return shown if len(names) <= 20 else f"{shown}, ... ({len(names)} columns)"
