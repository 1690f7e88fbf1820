"""`thalweg predict`: a checkpoint and data in, one line per row out."""

from __future__ import annotations

import contextlib
import csv
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from thalweg import Model
from thalweg.datasets import Preprocessing

from .console import UserError, note, plural
from .data import load_prediction_data
from .score import score


def run(options: Namespace) -> int:
    """Predict and write."""
    model = Model.load(options.model, device=options.device, threads=options.threads)
    sidecar = Preprocessing.path_for(options.model)
    preprocessing = Preprocessing.load(sidecar) if sidecar.exists() else None
    if preprocessing is None:
        note(f"{sidecar} is missing: the rows are taken as they are, outputs are not decoded")
    elif preprocessing.in_features != model.in_features:
        raise UserError(f"{sidecar} belongs to another model than {options.model}")
    classification = preprocessing is not None and preprocessing.task == "classification"
    if options.probabilities and not classification:
        raise UserError("--probabilities needs a classification model with its preprocessing")
    output = None if options.output is None else Path(options.output)
    if output is not None and output.suffix not in (".csv", ".npy"):
        raise UserError(f"--output: expected a .csv or .npy file, got {output}")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output: there is no folder {output.parent}")

    x, y = load_prediction_data(
        Path(options.data), preprocessing, model.in_features, options.delimiter
    )
    header, columns = _columns(model, preprocessing, x, options.probabilities)
    if output is not None and output.suffix == ".npy":
        with _replacing(output, "wb") as file:
            np.save(file, np.column_stack(columns) if len(columns) > 1 else columns[0])
    elif output is not None:
        with _replacing(output, "w") as file:
            _write_csv(file, header, columns)
    else:
        _write_csv(sys.stdout, header, columns)
    if output is not None:
        note(f"{plural(len(x), 'prediction')} written to {output}")
    if preprocessing is not None and y is not None:
        note(score(model, preprocessing, x, y))
    return 0


def _columns(
    model: Model,
    preprocessing: Preprocessing | None,
    x: npt.NDArray[np.float32],
    probabilities: bool,
) -> tuple[list[str], list[npt.NDArray[Any]]]:
    if preprocessing is not None and preprocessing.task == "classification":
        proba = model.predict_proba(x)
        labels = np.array(preprocessing.classes)[proba.argmax(axis=1)]
        name = preprocessing.target or "prediction"
        if not probabilities:
            return [name], [labels]
        return (
            [name, *(f"p({c})" for c in preprocessing.classes)],
            [labels, *proba.T],
        )
    outputs = model.predict(x)
    values = outputs if preprocessing is None else preprocessing.values(outputs)
    target = (preprocessing.target if preprocessing else "") or "prediction"
    names = [target] if values.shape[1] == 1 else [f"{target} {i}" for i in range(values.shape[1])]
    return names, list(values.T)


def _write_csv(file: IO[Any], header: list[str], columns: list[npt.NDArray[Any]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    texts = [
        column.tolist() if column.dtype.kind == "U" else [f"{value:.7g}" for value in column]
        for column in columns
    ]
    writer.writerows(zip(*texts, strict=True))


@contextlib.contextmanager
def _replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
    """A file that appears under its name only when it is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8", newline=None) as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
