"""From the DATA argument to the arrays of a training run or a prediction."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.datasets import (
    Column,
    DataError,
    Preprocessing,
    Table,
    load_digits,
    read_csv,
    read_idx,
    read_idx_folder,
    read_npy,
    read_npz,
)
from thalweg.datasets.tables import Kind, is_text, read_names

from .console import UserError, note, plural

_DEFAULT_VALIDATION_SPLIT = 0.2
_STOPPING_VALIDATION_SPLIT = 0.1
_ARRAY_SUFFIXES = (".npz", ".npy")


@dataclass
class TrainingData:
    """Arrays for the network, and how they were made.

    `x_test` is the data's own test part; when no rows were held out, it serves as validation data,
    and nothing is selected by it.
    """

    name: str
    x: npt.NDArray[np.float32]
    y: npt.NDArray[Any]
    x_validation: npt.NDArray[np.float32] | None
    y_validation: npt.NDArray[Any] | None
    x_test: npt.NDArray[np.float32] | None
    y_test: npt.NDArray[Any] | None
    preprocessing: Preprocessing

    def summary(self) -> str:
        """One line: rows, features, task."""
        parts = [f"{self.name}: {plural(len(self.x), 'row')} for training"]
        if self.x_validation is not None:
            parts.append(f"{len(self.x_validation):,} for validation")
        if self.x_test is not None:
            parts.append(f"{len(self.x_test):,} for testing")
        parts.append(plural(self.x.shape[1], "feature"))
        outputs = self.preprocessing.outputs
        if self.preprocessing.task == "classification":
            parts.append(plural(outputs, "class"))
        else:
            parts.append(f"regression of {plural(outputs, 'value')}")
        return ", ".join(parts)


def default_output(options: Namespace) -> Path:
    """The checkpoint's name when none was given."""
    if options.data is None:
        return Path("digits.safetensors")
    return Path(Path(os.path.abspath(options.data)).name).with_suffix(".safetensors")


def load_training_data(options: Namespace, resumed: Preprocessing | None) -> TrainingData:
    """Read DATA, hold rows out, and fit (or, when resuming, reuse) the preprocessing."""
    if options.data is None:
        data = load_digits()
        return _with_test_part("handwritten digits", data, options, resumed, pixels=False)
    path = Path(options.data)
    if path.is_dir():
        data = read_idx_folder(path)
        return _with_test_part(path.name or str(path), data, options, resumed, pixels=True)
    if path.suffix in _ARRAY_SUFFIXES:
        return _from_arrays(path, options, resumed)
    return _from_table(path, options, resumed)


# ---- training data by kind --------------------------------------------------------------------


def _with_test_part(
    name: str, data: Any, options: Namespace, resumed: Preprocessing | None, *, pixels: bool
) -> TrainingData:
    _refuse_table_options(options)
    x, y = data.x_train, data.y_train
    default = _STOPPING_VALIDATION_SPLIT if options.patience else 0.0
    training, held = _split(len(x), options, resumed, default)
    if resumed is None:
        preprocessing = Preprocessing.fit_arrays(x, y, training, task="classification")
        if not pixels:
            preprocessing.mean, preprocessing.scale = [0.0], [1.0]
        _remember_split(preprocessing, options, len(x), len(held))
    else:
        preprocessing = resumed
    x, y = preprocessing.inputs_of_matrix(x), preprocessing.targets_of_array(y)
    return TrainingData(
        name,
        x[training] if len(held) else x,
        y[training] if len(held) else y,
        x[held] if len(held) else None,
        y[held] if len(held) else None,
        preprocessing.inputs_of_matrix(data.x_test),
        preprocessing.targets_of_array(data.y_test),
        preprocessing,
    )


def _from_arrays(path: Path, options: Namespace, resumed: Preprocessing | None) -> TrainingData:
    _refuse_table_options(options)
    if path.suffix == ".npz":
        arrays = read_npz(path, ("x", "y"))
        x, y = arrays["x"], arrays["y"]
    else:
        if options.labels is None:
            raise UserError(f"{path} holds x; name the file with y: --labels y.npy")
        x, y = read_npy(path), read_npy(options.labels)
    x = _matrix(x, path)
    y = _flat_targets(y)
    if y.ndim == 0 or len(y) != len(x):
        raise UserError(f"expected {plural(len(x), 'target')} as x has rows, got shape {y.shape}")
    if y.dtype.kind == "f" and not bool(np.isfinite(y).all()):
        raise UserError(f"expected finite targets, got NaN or infinity in {options.data}")
    training, held = _split(len(x), options, resumed, _DEFAULT_VALIDATION_SPLIT)
    preprocessing = resumed or Preprocessing.fit_arrays(x, y, training, task=options.task)
    if resumed is None:
        _remember_split(preprocessing, options, len(x), len(held))
    return _divided(
        path.name,
        preprocessing.inputs_of_matrix(x),
        preprocessing.targets_of_array(y),
        training,
        held,
        preprocessing,
    )


def _from_table(path: Path, options: Namespace, resumed: Preprocessing | None) -> TrainingData:
    if resumed is not None:
        table = _read_as_trained(path, resumed, options.delimiter, need_target=True)
        preprocessing = resumed
        training, held = _split(table.rows, options, resumed, _DEFAULT_VALIDATION_SPLIT)
    else:
        kinds: dict[str, Kind] = dict.fromkeys(options.drop, "skip")
        kinds.update(dict.fromkeys(options.categorical, "categorical"))
        header = None if options.header is None else options.header == "yes"
        table = read_csv(path, delimiter=options.delimiter, header=header, kinds=kinds)
        if options.target is None:
            raise UserError(
                f"name the column to predict: --target COLUMN; {path} has "
                f"{', '.join(list(table.columns)[:30])}"
            )
        if options.target not in table.columns:
            hint = "" if table.has_header else "; --header yes takes the first line as names"
            raise UserError(
                f"expected a target column '{options.target}' in {path}, got "
                f"{', '.join(list(table.columns)[:30])}{hint}"
            )
        training, held = _split(table.rows, options, None, _DEFAULT_VALIDATION_SPLIT)
        preprocessing = Preprocessing.fit_table(
            table, options.target, training, task=options.task, impute=options.impute
        )
        _remember_split(preprocessing, options, table.rows, len(held))
    return _divided(
        path.name,
        preprocessing.inputs_of_table(table),
        preprocessing.targets_of_column(table.columns[preprocessing.target]),
        training,
        held,
        preprocessing,
    )


def _divided(
    name: str,
    x: npt.NDArray[np.float32],
    y: npt.NDArray[Any],
    training: npt.NDArray[np.int64],
    held: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
) -> TrainingData:
    if len(held) == 0:
        return TrainingData(name, x, y, None, None, None, None, preprocessing)
    return TrainingData(name, x[training], y[training], x[held], y[held], None, None, preprocessing)


# ---- prediction -------------------------------------------------------------------------------


def load_prediction_data(
    path: Path, preprocessing: Preprocessing | None, in_features: int, delimiter: str | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any] | None]:
    """Network inputs, and the targets in network form when the file holds them."""
    targets: npt.NDArray[Any] | None = None
    if path.is_dir():
        data = read_idx_folder(path)
        x, targets = data.x_test, data.y_test
    elif path.suffix == ".npz":
        arrays = read_npz(path)
        if "x" not in arrays:
            raise UserError(f"expected an array x in {path}, got {', '.join(arrays) or 'none'}")
        x, targets = _matrix(arrays["x"], path), arrays.get("y")
    elif path.suffix == ".npy":
        x = _matrix(read_npy(path), path)
    elif path.suffix == ".gz" or "idx" in path.name:
        x = read_idx(path)
        x = _matrix(x, path)
    elif preprocessing is None or preprocessing.columns is None:
        table = read_csv(path, delimiter=delimiter)
        x = _numeric_matrix(table)
    else:
        table = _read_as_trained(path, preprocessing, delimiter, need_target=False)
        column = table.columns.get(preprocessing.target)
        inputs = preprocessing.inputs_of_table(table)
        return inputs, None if column is None else _known_targets(preprocessing, column, table.rows)
    if preprocessing is None:
        if x.shape[1] != in_features:
            raise UserError(f"expected {in_features} values per row, got {x.shape[1]} in {path}")
        return x.astype(np.float32), None
    inputs = preprocessing.inputs_of_matrix(x)
    return inputs, None if targets is None else _known_targets(preprocessing, targets, len(x))


def _known_targets(
    preprocessing: Preprocessing, targets: Column | npt.NDArray[Any], rows: int
) -> npt.NDArray[Any] | None:
    """Targets of data to predict; when they do not fit the model they are only left out."""
    try:
        if isinstance(targets, Column):
            return preprocessing.targets_of_column(targets)
        targets = _flat_targets(targets)
        if targets.ndim == 0 or len(targets) != rows:
            raise DataError(f"expected {plural(rows, 'target')}, got shape {targets.shape}")
        return preprocessing.targets_of_array(targets)
    except DataError as error:
        note(f"no score: {error}")
        return None


def _read_as_trained(
    path: Path, preprocessing: Preprocessing, delimiter: str | None, *, need_target: bool
) -> Table:
    """A table with the columns of training, found by name, or by place when there are no names."""
    if preprocessing.columns is None:
        raise UserError(f"the model was trained on a matrix, got the table {path}")
    peek = read_names(path, delimiter=delimiter, header=preprocessing.has_header)
    kinds: dict[str, Kind] = dict.fromkeys(peek, "skip")
    renamed: dict[str, str] = {}
    if preprocessing.has_header:
        renamed = {name: name for name in peek}
    else:
        wanted = [name for name, _ in preprocessing.columns]
        everything = sorted([*wanted, preprocessing.target], key=_place)
        if len(peek) == len(wanted) and len(peek) < max(_place(name) for name in everything):
            renamed = dict(zip(peek, sorted(wanted, key=_place), strict=True))
        else:
            renamed = {name: name for name in peek}
    trained_kinds = preprocessing.kinds()
    hint = "; delete the first line if it is a title, or give --delimiter" if peek[1:] == [] else ""
    for name in trained_kinds:
        if name not in renamed.values():
            raise UserError(
                f"expected the columns {', '.join(list(trained_kinds)[:30])} as in training, got "
                f"{path} without '{name}': {', '.join(peek[:30])}{hint}"
            )
    if preprocessing.task == "regression":
        trained_kinds[preprocessing.target] = "numeric"
    for name in peek:
        if renamed[name] in trained_kinds:
            kinds[name] = trained_kinds[renamed[name]]
        elif renamed[name] == preprocessing.target:
            del kinds[name]
            if any(is_text(label) for label in preprocessing.classes):
                kinds[name] = "categorical"
    table = read_csv(path, delimiter=delimiter, header=preprocessing.has_header, kinds=kinds)
    columns = {renamed[name]: column for name, column in table.columns.items()}
    if need_target and preprocessing.target not in columns:
        raise DataError(
            f"[train] expected the target column '{preprocessing.target}' in {path}, got "
            f"{', '.join(list(columns)[:20])}"
        )
    return Table(columns, table.rows, table.has_header, table.delimiter)


# ---- parts ------------------------------------------------------------------------------------


def _place(name: str) -> int:
    """Position of a column without a name, from 1."""
    return int(name.rsplit(" ", 1)[1])


def _split(
    rows: int, options: Namespace, resumed: Preprocessing | None, default: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows for training and rows held out, both in file order."""
    if resumed is not None:
        if resumed.split.get("rows") != rows:
            has = "DATA has" if options.data else "no DATA was named, the embedded digits have"
            raise UserError(
                f"the checkpoint was trained on {int(resumed.split.get('rows', 0)):,} rows, "
                f"{has} {rows:,}; resume with the same data"
            )
        held, seed = int(resumed.split["held_out"]), int(resumed.split["seed"])
    else:
        chosen = default if options.validation_split is None else options.validation_split
        held, seed = round(chosen * rows), options.seed or 0
        if chosen > 0:
            held = max(held, 1)
    if rows - held < 2:
        raise UserError(
            f"expected at least 2 rows for training, got {max(rows - held, 0)}: the data has "
            f"{plural(rows, 'row')}, and {held:,} are held out (--validation-split)"
        )
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[held:]), np.sort(order[:held])


def _remember_split(preprocessing: Preprocessing, options: Namespace, rows: int, held: int) -> None:
    preprocessing.split = {"rows": rows, "held_out": held, "seed": options.seed or 0}


def _flat_targets(y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Targets `[rows, 1]` as `[rows]`, so that a column of labels is taken as labels."""
    return y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y


def _matrix(x: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if x.ndim < 2 or x.dtype.kind not in "biuf" or x.size == 0:
        raise UserError(
            f"expected a matrix of numbers [rows, features] in {path}, got shape {x.shape} "
            f"of {x.dtype}"
        )
    x = x.reshape(len(x), -1)
    if x.dtype.kind == "f":
        bad = np.argwhere(~np.isfinite(x))
        if len(bad):
            row, column = bad[0]
            raise UserError(
                f"expected finite values, got {x[row, column]} in row {row}, column {column} "
                f"of {path}"
            )
    return x


def _numeric_matrix(table: Table) -> npt.NDArray[np.float64]:
    for column in table.columns.values():
        if column.categories is not None or column.first_missing:
            raise UserError(f"expected numbers only, got texts in the column '{column.name}'")
    return np.column_stack([column.values for column in table.columns.values()])


def _refuse_table_options(options: Namespace) -> None:
    given = [
        name
        for name, value in (
            ("--target", options.target),
            ("--drop", options.drop),
            ("--categorical", options.categorical),
            ("--header", options.header),
            ("--impute", options.impute),
        )
        if value
    ]
    if given:
        what = "the embedded digits" if options.data is None else options.data
        raise UserError(f"{given[0]} is for tables (CSV files), got {what}")
