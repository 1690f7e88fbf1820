"""Callbacks: objects that `Model.fit` calls while it trains.

A callback is any object with some of these methods; returning True stops the training:

``on_train_begin(model)``
    Before the first update.
``on_step(model, step, logs)``
    After every `callback_every` updates; `step` counts updates over the life of the model and
    `logs` holds step, loss, accuracy, lr and, when it was computed, gradient_norm, of it.
``on_epoch_end(model, epoch, logs)``
    After every epoch, counted from 1 over the life of the model; `logs` is the row of
    `History.epochs`.
``on_train_end(model, history)``
    After training, also when it was stopped; not after an error.

Inside a callback the model can be evaluated, asked for parameters and saved; it cannot be changed.

Examples
--------
>>> import numpy as np
>>> import thalweg as tw
>>> from thalweg import callbacks, nn
>>> model = tw.Model(nn.Sequential(nn.Dense(2)), in_features=3)
>>> seen = []
>>> note = callbacks.LambdaCallback(on_epoch_end=lambda model, epoch, logs: seen.append(epoch))
>>> x, y = np.eye(3), np.array([0, 1, 1])
>>> history = model.fit(x, y, epochs=2, callbacks=[note], verbose=False)
>>> seen
[1, 2]
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from thalweg import _check

if TYPE_CHECKING:
    from thalweg.model import History, Model

__all__ = ["CSVLogger", "Checkpoint", "EarlyStopping", "LambdaCallback", "ProgressBar"]

MONITORS = ("validation_loss", "validation_accuracy", "loss", "accuracy")


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a monitored value has not improved for some epochs.

    Parameters
    ----------
    monitor : str, default "validation_loss"
        "validation_loss", "validation_accuracy", "loss" or "accuracy".
    patience : int, default 10
        Epochs without improvement that end the training, >= 0; 0 and 1 stop at the first of them.
    min_delta : float, default 0.0
        Smallest change that counts as an improvement, >= 0.
    restore_best : bool, default True
        Put the parameters and batch-norm statistics of the best epoch back at the end.

    Examples
    --------
    >>> EarlyStopping(patience=3).monitor
    'validation_loss'
    """

    monitor: str = "validation_loss"
    patience: int = 10
    min_delta: float = 0.0
    restore_best: bool = True

    def __post_init__(self) -> None:
        where = "EarlyStopping"
        _check.choice(where, "monitor", self.monitor, MONITORS)
        _check.integer(where, "patience", self.patience, 0)
        _check.real(where, "min_delta", self.min_delta, 0.0)
        _check.flag(where, "restore_best", self.restore_best)


class LambdaCallback:
    """A callback made of functions.

    Parameters
    ----------
    on_train_begin, on_step, on_epoch_end, on_train_end : callable, optional
        With the arguments listed at the top of this module.

    Examples
    --------
    >>> stop_at_once = LambdaCallback(on_step=lambda model, step, logs: True)
    """

    def __init__(
        self,
        *,
        on_train_begin: Callable[[Model], object] | None = None,
        on_step: Callable[[Model, int, dict[str, Any]], object] | None = None,
        on_epoch_end: Callable[[Model, int, dict[str, Any]], object] | None = None,
        on_train_end: Callable[[Model, History], object] | None = None,
    ) -> None:
        functions = {
            "on_train_begin": on_train_begin,
            "on_step": on_step,
            "on_epoch_end": on_epoch_end,
            "on_train_end": on_train_end,
        }
        for name, function in functions.items():
            if function is None:
                continue
            if not callable(function):
                raise TypeError(
                    f"[LambdaCallback] expected {name} to be callable, got {_check.shown(function)}"
                )
            setattr(self, name, function)


class Checkpoint:
    """Save the model every few epochs.

    Parameters
    ----------
    path : str or os.PathLike
        Where to; ``{epoch}`` in it is replaced by the number of the epoch. Files are replaced
        whole: a crash leaves the old one.
    every : int, default 1
        Epochs between files.
    monitor : str, optional
        With one of "validation_loss", "validation_accuracy", "loss", "accuracy": save only when
        it is better than at the last save.

    Examples
    --------
    >>> Checkpoint("runs/{epoch}.safetensors", every=5).every
    5
    """

    def __init__(
        self, path: str | os.PathLike[str], every: int = 1, *, monitor: str | None = None
    ) -> None:
        self.path = os.fspath(path)
        self.every = _check.integer("Checkpoint", "every", every, 1)
        self.monitor = (
            None if monitor is None else _check.choice("Checkpoint", "monitor", monitor, MONITORS)
        )
        self.best: float | None = None

    def on_epoch_end(self, model: Model, epoch: int, logs: dict[str, Any]) -> None:
        """Save if it is time to."""
        if epoch % self.every:
            return
        if self.monitor is not None:
            value = monitored(logs, self.monitor)
            if self.best is not None and not value > self.best:
                return
            self.best = value
        model.save(self.path.replace("{epoch}", str(epoch)))


class CSVLogger:
    """Write the history to a CSV file, one line per epoch, as it grows.

    Parameters
    ----------
    path : str or os.PathLike
        The file; written anew by every training unless `append`.
    append : bool, default False
        Continue an existing file.
    """

    def __init__(self, path: str | os.PathLike[str], *, append: bool = False) -> None:
        self.path = os.fspath(path)
        self.append = _check.flag("CSVLogger", "append", append)
        self._file: TextIO | None = None
        self._writer: csv.DictWriter[str] | None = None

    def on_train_begin(self, model: Model) -> None:
        """Open the file."""
        self._close()
        self._file = open(  # noqa: SIM115
            self.path, "a" if self.append else "w", newline="", encoding="utf-8"
        )
        self._writer = None

    def on_epoch_end(self, model: Model, epoch: int, logs: dict[str, Any]) -> None:
        """Add a line."""
        if self._file is None:
            return
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(logs), extrasaction="ignore")
            if self._file.tell() == 0:
                self._writer.writeheader()
        self._writer.writerow(logs)
        self._file.flush()

    def on_train_end(self, model: Model, history: History) -> None:
        """Close the file."""
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


_COLUMNS = (
    ("epoch", "epoch", 5, "d"),
    ("loss", "loss", 10, ".5f"),
    ("accuracy", "accuracy", 9, ".4f"),
    ("validation_loss", "val. loss", 10, ".5f"),
    ("validation_accuracy", "val. acc.", 9, ".4f"),
    ("samples_per_second", "samples/s", 11, ",.0f"),
)


class ProgressBar:
    """A live bar on standard error, and a table with a line per epoch on standard output.

    The bar shows only on a terminal. ``Model.fit(..., verbose=True)`` uses one.

    Parameters
    ----------
    bar : bool, default True
        Whether to show the bar (tqdm).
    table : bool, default False
        Whether to print the table.
    """

    def __init__(self, *, bar: bool = True, table: bool = False) -> None:
        self.bar = _check.flag("ProgressBar", "bar", bar)
        self.table = _check.flag("ProgressBar", "table", table)
        self._tqdm: Any = None
        self._first_step = 0
        self._columns: list[tuple[str, str, int, str]] = []
        self.total_steps: int | None = None

    def on_train_begin(self, model: Model) -> None:
        """Draw an empty bar."""
        self._columns = []
        self._first_step = model.steps_done
        if self.bar and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._tqdm = tqdm(
                total=self.total_steps, unit=" steps", leave=False, dynamic_ncols=True
            )

    def on_progress(self, logs: dict[str, Any]) -> None:
        """Move the bar; called a few times a second."""
        if self._tqdm is not None:
            shown = {key: f"{logs[key]:.4g}" for key in ("loss", "accuracy") if key in logs}
            self._tqdm.set_postfix(shown, refresh=False)
            self._move(logs["step"])

    def on_epoch_end(self, model: Model, epoch: int, logs: dict[str, Any]) -> None:
        """Print the line of an epoch."""
        if self._tqdm is not None:
            self._tqdm.set_description(f"epoch {epoch}", refresh=False)
            self._move(model.steps_done)
        if not self.table:
            return
        if not self._columns:
            self._columns = [column for column in _COLUMNS if column[0] in logs]
            self._print("  ".join(f"{title:>{width}}" for _, title, width, _ in self._columns))
        cells = (f"{logs[key]:>{width}{form}}" for key, _, width, form in self._columns)
        self._print("  ".join(cells))

    def on_train_end(self, model: Model, history: History) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar, after an error too."""
        if self._tqdm is not None:
            self._tqdm.close()
            self._tqdm = None

    @property
    def shown(self) -> bool:
        """Whether a bar is on the screen."""
        return self._tqdm is not None

    def _move(self, step: int) -> None:
        self._tqdm.update(step - self._first_step - self._tqdm.n)

    def _print(self, line: str) -> None:
        if self._tqdm is not None:
            self._tqdm.write(line, file=sys.stdout)
        else:
            print(line, flush=True)


def monitored(logs: dict[str, Any], monitor: str) -> float:
    """The monitored value of an epoch, signed so that larger is better."""
    if monitor not in logs:
        raise ValueError(
            f"[fit] expected {monitor} among the logged values ({', '.join(logs)}); "
            "validation values need validation_data, accuracy a loss with classes"
        )
    value = float(logs[monitor])
    return value if monitor.endswith("accuracy") else -value
