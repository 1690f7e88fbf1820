"""From a table or matrix to what a network takes, and back; stored as JSON beside a checkpoint."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ._errors import DataError
from .tables import Column, Kind, Table

Task = Literal["classification", "regression"]

_FORMAT = "thalweg-preprocessing-1"
_MAX_CLASSES_OF_NUMBERS = 20
_MAX_FILE = 256 << 20


@dataclass
class Preprocessing:
    """Standardization, one-hot encoding and target coding, fitted on the training rows.

    Attributes
    ----------
    task : {"classification", "regression"}
    mean, scale : list of float
        Per input of the network, or one value for all; an input is (value - mean) / scale.
    columns : list of (name, categories or None), or None
        Columns of a table in order; None for a matrix.
    has_header : bool
        Whether the table's file had column names.
    target : str
        Name of the target column; "" for a matrix.
    classes : list of str
        Class names in label order; empty for regression.
    target_mean, target_scale : list of float
        Regression: per output of the network.
    impute : bool
        Whether a missing number takes its column's mean; else it is an error.
    in_features : int
    split : dict
        How the rows were divided, for resumed training.
    """

    task: Task
    in_features: int
    mean: list[float]
    scale: list[float]
    columns: list[tuple[str, list[str] | None]] | None = None
    has_header: bool = True
    target: str = ""
    classes: list[str] = field(default_factory=list)
    target_mean: list[float] = field(default_factory=list)
    target_scale: list[float] = field(default_factory=list)
    impute: bool = False
    split: dict[str, float] = field(default_factory=dict)

    # ---- fitting ------------------------------------------------------------------------------

    @classmethod
    def fit_table(
        cls,
        table: Table,
        target: str,
        rows: npt.NDArray[np.int64],
        *,
        task: Task | None = None,
        impute: bool = False,
    ) -> Preprocessing:
        """Fit on the given rows of a table.

        Parameters
        ----------
        table : Table
        target : str
            Name of the target column.
        rows : int64 ndarray
            Rows to take means and scales from: the training rows.
        task : {"classification", "regression"}, optional
            Default: classification when the target is categorical or has at most 20 different
            values, all of them integers.
        impute : bool
            Let missing numbers take the mean of their column.

        Raises
        ------
        DataError
            No such column, no other column, or missing values.
        """
        if target not in table.columns:
            names = list(table.columns)
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise DataError(f"[preprocessing] expected a target column '{target}', got {shown}")
        features = [column for name, column in table.columns.items() if name != target]
        if not features:
            raise DataError(f"[preprocessing] expected columns beside the target '{target}'")
        columns = [
            (column.name, None if column.categories is None else list(column.categories))
            for column in features
        ]
        width = sum(1 if categories is None else len(categories) for _, categories in columns)
        result = cls(
            task or _table_task(table.columns[target]),
            width,
            [],
            [],
            columns=columns,
            has_header=table.has_header,
            target=target,
            impute=impute,
        )
        mean, scale = np.zeros(width), np.ones(width)
        at = 0
        for column in features:
            if column.categories is None:
                mean[at], scale[at] = _moments(result._numbers(column)[rows], column.name)
            at += 1 if column.categories is None else len(column.categories)
        result.mean, result.scale = mean.tolist(), scale.tolist()
        result._fit_table_target(table.columns[target], rows)
        return result

    @classmethod
    def fit_arrays(
        cls,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        rows: npt.NDArray[np.int64],
        *,
        task: Task | None = None,
    ) -> Preprocessing:
        """Fit on the rows `rows` of a matrix `x` [rows, features] and its targets `y`.

        Bytes (uint8) are taken as pixels and divided by 255; other columns are standardized.
        `task` defaults to classification for integer, boolean and text targets, and for
        floating-point targets with at most 20 different values, all of them integers.
        """
        if x.dtype == np.uint8:
            mean, scale = [0.0], [255.0]
        else:
            moments = [
                _moments(x[rows, i].astype(np.float64), f"x[:, {i}]") for i in range(x.shape[1])
            ]
            mean, scale = [m for m, _ in moments], [s for _, s in moments]
        result = cls(task or _array_task(y), x.shape[1], mean, scale)
        if result.task == "classification":
            if y.ndim != 1:
                raise DataError(
                    f"[preprocessing] expected one label per row, got targets of shape {y.shape}"
                )
            result.classes = [_label_text(value) for value in np.unique(y).tolist()]
            result._check_classes()
        else:
            values = _real_targets(y)[rows]
            moments = [_moments(values[:, i], "y") for i in range(values.shape[1])]
            result.target_mean = [m for m, _ in moments]
            result.target_scale = [s for _, s in moments]
        return result

    def _fit_table_target(self, column: Column, rows: npt.NDArray[np.int64]) -> None:
        if column.first_missing or (column.categories and "?" in column.categories):
            raise DataError(
                f"[preprocessing] the target column '{column.name}' has missing values"
                + (f", first in line {column.first_missing}" if column.first_missing else "")
                + "; remove those rows"
            )
        if self.task == "classification":
            if column.categories is not None:
                self.classes = list(column.categories)
            else:
                self.classes = [_label_text(value) for value in np.unique(column.values).tolist()]
            self._check_classes()
            return
        if column.categories is not None:
            raise DataError(
                f"[preprocessing] expected numbers in the target column '{column.name}' for "
                f"regression, got texts such as {column.categories[0]!r}"
            )
        mean, scale = _moments(column.values[rows].astype(np.float64), column.name)
        self.target_mean, self.target_scale = [mean], [scale]

    def _check_classes(self) -> None:
        if len(self.classes) < 2:
            raise DataError(
                f"[preprocessing] expected at least two classes, got {', '.join(self.classes)}"
            )

    # ---- use ----------------------------------------------------------------------------------

    @property
    def outputs(self) -> int:
        """Outputs that a network for this task needs."""
        return len(self.classes) if self.task == "classification" else len(self.target_mean)

    def kinds(self) -> dict[str, Kind]:
        """How `read_csv` has to read the columns of another file."""
        return {
            name: "numeric" if categories is None else "categorical"
            for name, categories in self.columns or []
        }

    def inputs_of_table(self, table: Table) -> npt.NDArray[np.float32]:
        """Network inputs, float32 [rows, in_features]; an unknown category becomes all zeros."""
        if self.columns is None:
            raise DataError("[preprocessing] the model was trained on a matrix, got a table")
        x = np.zeros((table.rows, self.in_features), np.float32)
        at = 0
        for name, categories in self.columns:
            column = table.columns.get(name)
            if column is None:
                raise DataError(
                    f"[preprocessing] expected the column '{name}', got "
                    f"{', '.join(list(table.columns)[:20])}"
                )
            if categories is None:
                values = (self._numbers(column) - self.mean[at]) / self.scale[at]
                x[:, at] = np.where(np.isnan(values), 0.0, values)
                at += 1
                continue
            if column.categories is None:
                raise DataError(f"[preprocessing] expected texts in the column '{name}'")
            position = {text: i for i, text in enumerate(categories)}
            code = np.array([position.get(text, -1) for text in column.categories], np.int64)
            code = code[column.values]
            known = np.flatnonzero(code >= 0)
            x[known, at + code[known]] = 1.0
            at += len(categories)
        return x

    def inputs_of_matrix(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Network inputs, float32 [rows, in_features]."""
        if self.columns is not None:
            raise DataError(
                f"[preprocessing] the model was trained on a table with the columns "
                f"{', '.join([name for name, _ in self.columns][:20])}; got a matrix"
            )
        if x.shape[1] != self.in_features:
            raise DataError(
                f"[preprocessing] expected {self.in_features} values per row, got {x.shape[1]}"
            )
        if len(self.mean) == 1:
            scaled = x.astype(np.float32)
            if self.mean[0]:
                scaled -= np.float32(self.mean[0])
            if self.scale[0] != 1:
                scaled /= np.float32(self.scale[0])
            return scaled
        # In float64: a column with a large mean would lose its digits in float32.
        standardized = (x - np.array(self.mean)) / np.array(self.scale)
        return np.asarray(standardized, np.float32)

    def targets_of_column(self, column: Column) -> npt.NDArray[Any]:
        """Labels, int64 [rows], or standardized values, float32 [rows, 1], of the target column."""
        if column.first_missing:
            raise DataError(
                f"[preprocessing] line {column.first_missing}: the target "
                f"'{column.name}' is missing"
            )
        if column.categories is None:
            return self.targets_of_array(column.values)
        return self._labels(list(column.categories))[column.values]

    def targets_of_array(self, y: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Labels, int64 [rows], or standardized values, float32 [rows, outputs], of an array."""
        if self.task == "classification":
            if y.ndim != 1:
                raise DataError(
                    f"[preprocessing] expected one label per row, got targets of shape {y.shape}"
                )
            values, inverse = np.unique(y, return_inverse=True)
            return self._labels([_label_text(value) for value in values.tolist()])[
                inverse.reshape(-1)
            ]
        targets = _real_targets(y)
        if targets.shape[1] != len(self.target_mean):
            raise DataError(
                f"[preprocessing] expected {len(self.target_mean)} targets per row, "
                f"got {targets.shape[1]}"
            )
        scaled = (targets - np.array(self.target_mean)) / np.array(self.target_scale)
        return np.asarray(scaled, np.float32)

    def values(self, outputs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Network outputs [rows, outputs] of a regression, in the units of the target."""
        return np.asarray(
            outputs.astype(np.float64) * np.array(self.target_scale) + np.array(self.target_mean)
        )

    def _labels(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        position = {text: i for i, text in enumerate(self.classes)}
        for text in texts:
            if text not in position:
                raise DataError(
                    f"[preprocessing] expected one of the classes {', '.join(self.classes[:20])}, "
                    f"got '{text}'"
                )
        return np.array([position[text] for text in texts], np.int64)

    def _numbers(self, column: Column) -> npt.NDArray[np.float64]:
        if column.categories is not None:
            raise DataError(f"[preprocessing] expected numbers in the column '{column.name}'")
        if column.first_missing and not self.impute:
            raise DataError(
                f"[preprocessing] line {column.first_missing}, column '{column.name}': the value "
                f"is missing; fill it in, or train with impute (--impute) to use the column's mean"
            )
        return column.values.astype(np.float64, copy=False)

    # ---- file ---------------------------------------------------------------------------------

    @staticmethod
    def path_for(checkpoint: str | os.PathLike[str]) -> Path:
        """Where the preprocessing of a checkpoint is kept: `model.preprocess.json`."""
        return Path(checkpoint).with_suffix(".preprocess.json")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, atomically: a temporary file in the same folder, then a rename."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Preprocessing:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            The file is not such a file.
        OSError
            The file cannot be opened.
        """
        if os.path.getsize(path) > _MAX_FILE:
            raise DataError(f"[preprocessing] {os.fspath(path)} is too large")
        try:
            fields = json.loads(Path(path).read_bytes())
            if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
                raise ValueError(f"no format '{_FORMAT}'")
            return cls._checked(fields)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(
                f"[preprocessing] expected a file that thalweg train wrote, got "
                f"{os.fspath(path)}: {error}"
            ) from error

    @classmethod
    def _checked(cls, fields: Mapping[str, Any]) -> Preprocessing:
        def numbers(name: str) -> list[float]:
            values = fields[name]
            if not isinstance(values, list) or not all(
                isinstance(v, (int, float)) and math.isfinite(v) for v in values
            ):
                raise ValueError(f"{name} is not a list of numbers")
            return [float(v) for v in values]

        def texts(values: Any, name: str) -> list[str]:
            if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
                raise ValueError(f"{name} is not a list of texts")
            return values

        columns: list[tuple[str, list[str] | None]] | None = None
        if fields["columns"] is not None:
            columns = []
            for name, categories in fields["columns"]:
                if not isinstance(name, str):
                    raise ValueError("a column's name is not a text")
                columns.append((name, None if categories is None else texts(categories, name)))
        task = fields["task"]
        if task not in ("classification", "regression"):
            raise ValueError("task is neither classification nor regression")
        split = fields["split"]
        if not isinstance(split, dict) or not all(
            isinstance(v, (int, float)) for v in split.values()
        ):
            raise ValueError("split is not a table of numbers")
        width = fields["in_features"]
        mean, scale = numbers("mean"), numbers("scale")
        implied = width if columns is None else sum(1 if c is None else len(c) for _, c in columns)
        if not isinstance(width, int) or width != implied:
            raise ValueError("in_features does not fit the columns")
        if len(mean) != len(scale) or len(mean) not in (1, width) or 0.0 in scale:
            raise ValueError("mean and scale do not fit in_features")
        if columns is not None and len(mean) != width:
            raise ValueError("mean and scale do not fit the columns")
        target_mean, target_scale = numbers("target_mean"), numbers("target_scale")
        if len(target_mean) != len(target_scale) or 0.0 in target_scale:
            raise ValueError("target_mean and target_scale do not fit")
        target = fields["target"]
        if not isinstance(target, str):
            raise ValueError("target is not a text")
        return cls(
            task,
            width,
            mean,
            scale,
            columns=columns,
            has_header=bool(fields["has_header"]),
            target=target,
            classes=texts(fields["classes"], "classes"),
            target_mean=target_mean,
            target_scale=target_scale,
            impute=bool(fields["impute"]),
            split=split,
        )


def _moments(values: npt.NDArray[np.float64], name: str) -> tuple[float, float]:
    """Mean and standard deviation without NaN; a constant column has scale 1."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return 0.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(values.mean())
        scale = float(np.sqrt(np.mean((values - mean) ** 2)))
    if not (math.isfinite(mean) and math.isfinite(scale)):
        raise DataError(
            f"[preprocessing] column '{name}': expected values below about 1e150, got up to "
            f"{float(np.abs(values).max()):.3g}; rescale the column, or leave it out"
        )
    return mean, scale if scale > 1e-12 * max(1.0, abs(mean)) else 1.0


def _label_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _few_integers(values: npt.NDArray[Any]) -> bool:
    if not bool(np.all(values == np.rint(values))):
        return False
    return len(np.unique(values)) <= _MAX_CLASSES_OF_NUMBERS


def _table_task(target: Column) -> Task:
    if target.categories is not None or _few_integers(target.values):
        return "classification"
    return "regression"


def _array_task(y: npt.NDArray[Any]) -> Task:
    if y.ndim == 1 and (y.dtype.kind in "biuUS" or _few_integers(y)):
        return "classification"
    return "regression"


def _real_targets(y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    if y.dtype.kind not in "biuf" or y.ndim not in (1, 2):
        raise DataError(
            f"[preprocessing] expected real targets [rows] or [rows, outputs], "
            f"got shape {y.shape} of {y.dtype}"
        )
    return y.astype(np.float64).reshape(len(y), -1)
