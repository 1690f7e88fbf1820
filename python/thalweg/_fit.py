"""How `Model.fit` runs: checked options, callbacks, and the two ways to walk the epochs.

Arrays go to the engine in one call that does all epochs. Batches from an iterable go to it one by
one, and a loss written in Python with validation data goes epoch by epoch: both share `run_epochs`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg import _check, losses
from thalweg._description import loss_table
from thalweg.callbacks import EarlyStopping, ProgressBar, monitored

if TYPE_CHECKING:
    import numpy.typing as npt

    from thalweg.model import Model

_METHODS = ("on_train_begin", "on_step", "on_epoch_end", "on_train_end")
_SHUFFLES = ("epoch", "stack", "iid")
VALIDATION_BATCH = 1024
_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


@dataclass
class History:
    """What one call of `Model.fit` did.

    Attributes
    ----------
    epochs : list of dict
        One row per epoch: epoch (counted over the life of the model), loss, accuracy,
        validation_loss, validation_accuracy, lr (of the last update), seconds (without validation),
        samples_per_second, steps (updates) and skipped_rows. Accuracy is left out where the loss
        has no classes, validation values where there was no validation data.
    stopped_because : str
        "epochs", "max_steps", "early_stopping", "stop_at_loss" or "callback".
    best_epoch : int
        With early stopping: the epoch with the best monitored value; 0 otherwise.

    Examples
    --------
    >>> history = History([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}], "epochs")
    >>> history["loss"]
    [0.5, 0.25]
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    stopped_because: str = ""
    best_epoch: int = 0

    def __getitem__(self, column: str) -> list[Any]:
        """One column of `epochs`."""
        names = list(self.epochs[0]) if self.epochs else []
        if column not in names:
            raise KeyError(f"[History] expected one of {names}, got {column!r}")
        return [row.get(column) for row in self.epochs]

    def __len__(self) -> int:
        return len(self.epochs)

    @property
    def skipped_rows(self) -> int:
        """Rows left out in all epochs: tails of a single row under batch norm."""
        return sum(int(row["skipped_rows"]) for row in self.epochs)


@dataclass(frozen=True)
class Data:
    """x, y and weights of one call, as the engine takes them."""

    x: Any
    y: Any
    weights: Any


@dataclass(frozen=True)
class Options:
    """Checked options of `Model.fit`."""

    epochs: int
    batch_size: int
    shuffle: str
    accumulate: int
    early_stopping: EarlyStopping | None
    max_steps: int | None
    stop_at_loss: float | None

    @classmethod
    def check(
        cls,
        epochs: int,
        batch_size: int | None,
        shuffle: str | bool,
        accumulate: int,
        early_stopping: EarlyStopping | None,
        max_steps: int | None,
        stop_at_loss: float | None,
    ) -> Options:
        """The options of a user, or TypeError or ValueError."""
        if early_stopping is not None:
            hint = "a callbacks.EarlyStopping"
            _check.instance("fit", "early_stopping", early_stopping, EarlyStopping, hint)
        if isinstance(shuffle, bool):
            order = "epoch" if shuffle else "none"
        else:
            order = _check.choice("fit", "shuffle, True, False or a string,", shuffle, _SHUFFLES)
        return cls(
            _check.integer("fit", "epochs", epochs, 1),
            0 if batch_size is None else _check.integer("fit", "batch_size", batch_size, 1),
            order,
            _check.integer("fit", "accumulate", accumulate, 1),
            early_stopping,
            None if max_steps is None else _check.integer("fit", "max_steps", max_steps, 1),
            None if stop_at_loss is None else _check.real("fit", "stop_at_loss", stop_at_loss),
        )


class Listener:
    """Passes what happens on to the callbacks and keeps the history."""

    def __init__(
        self,
        model: Model,
        callbacks: Iterable[Any],
        progress: ProgressBar | None,
        every: int | None,
    ) -> None:
        self.history = History()
        self.every = 1 if every is None else _check.integer("fit", "callback_every", every, 1)
        self._model = model
        self._progress = progress
        self._callbacks = list(callbacks)
        for callback in self._callbacks:
            if not any(callable(getattr(callback, name, None)) for name in _METHODS):
                raise TypeError(
                    f"[fit] expected callbacks with one of the methods {', '.join(_METHODS)}, "
                    f"got {_check.shown(callback)}"
                )
        if progress is not None:
            self._callbacks.append(progress)
        self.wants_steps = any(hasattr(callback, "on_step") for callback in self._callbacks)

    def _call(self, name: str, *arguments: Any) -> bool:
        """Whether any callback returned True."""
        stop = False
        for callback in self._callbacks:
            method = getattr(callback, name, None)
            if method is not None and method(self._model, *arguments) is True:
                stop = True
        return stop

    def begin(self) -> None:
        """Before the first update."""
        self._call("on_train_begin")

    def on_step(self, row: dict[str, Any]) -> bool:
        """After an update that callbacks want to see."""
        return self._call("on_step", row["step"], row)

    def on_progress(self, row: dict[str, Any]) -> None:
        """A few times a second."""
        if self._progress is not None:
            self._progress.on_progress(row)

    def on_epoch(self, row: dict[str, Any]) -> bool:
        """After an epoch."""
        self.history.epochs.append(row)
        return self._call("on_epoch_end", row["epoch"], row)

    def end(self) -> None:
        """After the last update."""
        self._call("on_train_end", self.history)

    def close(self) -> None:
        """After the last update, or an error."""
        if self._progress is not None:
            self._progress.close()

    @property
    def progress_shown(self) -> bool:
        """Whether somebody looks at a bar."""
        return self._progress is not None and self._progress.shown


def progress_bar(verbose: bool | str, total_steps: int | None) -> ProgressBar | None:
    """What `verbose` asks for."""
    if not isinstance(verbose, (bool, np.bool_)):
        _check.choice("fit", "verbose, True, False or a string,", verbose, ("table", "bar"))
    if verbose is False or verbose == np.False_:
        return None
    progress = ProgressBar(bar=verbose != "table", table=verbose != "bar")
    progress.total_steps = total_steps
    return progress


def rows_of(x: Any) -> int:
    """Number of rows of an array, a list or a DLPack object."""
    shape = getattr(x, "shape", None) or getattr(x, "__cuda_array_interface__", {}).get("shape")
    if shape:
        return int(shape[0])
    try:
        return len(x)
    except TypeError:
        raise TypeError(
            f"[data] expected x to be an array of shape [rows, features], got {_check.shown(x)}"
        ) from None


def is_array(x: Any) -> bool:
    """Whether `x` is one array rather than an iterable of batches."""
    if isinstance(x, (bytes, str, memoryview)):
        return True
    names = ("__array__", "__dlpack__", "__array_interface__", "__cuda_array_interface__")
    return any(hasattr(x, name) for name in names)


def on_gpu(x: Any) -> bool:
    """Whether `x` is an array in the memory of a GPU."""
    if isinstance(x, np.ndarray):
        return False
    if hasattr(x, "__dlpack_device__"):
        return int(x.__dlpack_device__()[0]) in _DLPACK_CUDA
    return hasattr(x, "__cuda_array_interface__")


def class_weighted(
    y: Any,
    sample_weight: Any,
    class_weight: Mapping[Any, float] | str | None,
    labels: Collection[int] | None,
) -> Any:
    """`sample_weight` times the weight of every row's class.

    The keys of `class_weight` have to be in y or in `labels`; None lets any pass.
    """
    if class_weight is None:
        return sample_weight
    found = np.asarray(y)
    if found.ndim != 1:
        raise ValueError(
            "[fit] expected one-dimensional labels with class_weight, got y of shape "
            f"{found.shape}; use sample_weight"
        )
    values, position, counts = np.unique(found, return_inverse=True, return_counts=True)
    if isinstance(class_weight, Mapping):
        wrong = [key for key in class_weight if not isinstance(key, (int, float, np.number))]
        if wrong:
            raise TypeError(
                f"[fit] expected class_weight to map labels of y to weights, got keys {wrong}"
            )
        weights = {
            key: _check.real("fit", "class weights", weight, 0.0)
            for key, weight in class_weight.items()
        }
        per_class = np.array([weights.get(v.item(), 1.0) for v in values])
        if labels is not None:
            present = values.tolist()
            unknown = [key for key in weights if key not in labels and key not in present]
            if unknown:
                raise ValueError(
                    "[fit] expected class_weight to map labels of y to weights, got "
                    f"{_first(unknown)} among labels {_first(list(labels) or present)}"
                )
    else:
        _check.choice("fit", "class_weight, a dict or a string,", class_weight, ("balanced",))
        per_class = len(found) / (len(values) * counts)
    per_row = per_class[position]
    return per_row if sample_weight is None else per_row * np.asarray(sample_weight)


def _first(values: Sequence[Any]) -> str:
    """The first few of them, for an error message."""
    more = ", ..." if len(values) > 6 else ""
    return ", ".join(repr(value) for value in values[:6]) + more


def labels_of(model: Model) -> Collection[int]:
    """What y may hold where the loss has classes; empty for the others."""
    loss = model.loss
    if isinstance(loss, losses.CrossEntropy):
        return range(model.out_features)
    if not isinstance(loss, losses.Loss):
        return ()
    return {"unit_interval": (0, 1), "sign": (-1, 1)}.get(loss_table()[loss.type]["target"], ())


def split_batch(batch: Any) -> tuple[Any, Any, Any]:
    """x, y and weights of one batch of an iterable."""
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        raise TypeError(
            "[fit] expected x, y arrays or an iterable of (x, y) or (x, y, sample_weight) batches, "
            f"got an iterable of {_check.shown(batch)}"
        )
    return batch[0], batch[1], batch[2] if len(batch) == 3 else None


def fit_arrays(
    model: Model, data: Data, validation: Data | None, options: Options, listener: Listener
) -> None:
    """All epochs in one call of the engine, or epoch by epoch when it cannot validate."""
    if validation is not None and model.loss_function is not None:
        run_epochs(
            model,
            validation,
            options,
            listener,
            lambda steps: _array_epoch(model, data, options, listener, steps),
        )
        return
    stopping = options.early_stopping
    result = model._core.fit(
        **_arguments(model, data, options, listener),
        validation_x=None if validation is None else validation.x,
        validation_y=None if validation is None else validation.y,
        validation_weights=None if validation is None else validation.weights,
        epochs=options.epochs,
        early_stopping=None
        if stopping is None
        else (stopping.monitor, stopping.patience, stopping.min_delta, stopping.restore_best),
        max_steps=options.max_steps,
        stop_at_loss=options.stop_at_loss,
        on_epoch=listener.on_epoch,
    )
    listener.history.stopped_because = result["stopped_because"]
    listener.history.best_epoch = result["best_epoch"]


def _arguments(model: Model, data: Data, options: Options, listener: Listener) -> dict[str, Any]:
    """What every call of the engine's fit shares."""
    y, loss, targets = model._loss_arguments("fit", data.x, data.y)
    return {
        "x": data.x,
        "y": y,
        "weights": data.weights,
        "batch_size": options.batch_size,
        "shuffle": options.shuffle,
        "accumulate": options.accumulate,
        "on_step": listener.on_step if listener.wants_steps else None,
        "every": listener.every,
        "on_progress": listener.on_progress if listener.progress_shown else None,
        "loss": loss,
        "targets": targets,
    }


def _array_epoch(
    model: Model, data: Data, options: Options, listener: Listener, max_steps: int | None
) -> tuple[dict[str, Any], str]:
    """One epoch over arrays; its row and why it ended."""
    result = model._core.fit(
        **_arguments(model, data, options, listener),
        validation_x=None,
        validation_y=None,
        validation_weights=None,
        epochs=1,
        early_stopping=None,
        max_steps=max_steps,
        stop_at_loss=None,
        on_epoch=None,
    )
    return result["epochs"][0], result["stopped_because"]


def fit_batches(
    model: Model,
    batches: Iterable[Any],
    validation: Data | None,
    class_weight: Mapping[Any, float] | str | None,
    options: Options,
    listener: Listener,
) -> None:
    """Epochs over an iterable of batches, each epoch one pass."""
    if options.accumulate != 1:
        raise ValueError(
            "[fit] expected accumulate=1 with an iterable of batches; give larger batches"
        )
    if class_weight == "balanced":
        raise ValueError(
            "[fit] expected class_weight to be a dict with an iterable of batches, got 'balanced': "
            "the labels are not known beforehand"
        )
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"[fit] expected x, y arrays or an iterable of batches, got {_check.shown(batches)}"
        )
    if isinstance(batches, Iterator) and options.epochs > 1:
        raise ValueError(
            "[fit] expected epochs=1 with an iterator, which runs out after one pass, "
            f"got {options.epochs}; pass an object whose __iter__ starts again"
        )
    first_epoch = model.epochs_done + 1
    epochs = iter(range(first_epoch, first_epoch + options.epochs))

    def epoch(max_steps: int | None) -> tuple[dict[str, Any], str]:
        return _batch_epoch(model, batches, class_weight, next(epochs), listener, max_steps)

    run_epochs(model, validation, options, listener, epoch)


def _batch_epoch(
    model: Model,
    batches: Iterable[Any],
    class_weight: Mapping[Any, float] | str | None,
    number: int,
    listener: Listener,
    max_steps: int | None,
) -> tuple[dict[str, Any], str]:
    """One pass over the batches; its row and why it ended."""
    start = time.perf_counter()
    sums = {"loss": 0.0, "accuracy": 0.0}
    weight = 0.0
    rows = steps = skipped = 0
    # Of a loss without classes, a label may come in a later batch.
    labels = labels_of(model) or None
    step: dict[str, Any] = {}
    reason = "epochs"
    next_progress = 0.0
    for batch in batches:
        if steps == max_steps:
            reason = "max_steps"
            break
        x, y, sample_weight = split_batch(batch)
        if class_weight is not None:
            y = model._on_host("fit", "y", y)
            sample_weight = model._on_host("fit", "sample_weight", sample_weight)
        if rows_of(x) == 1 and model.has_batch_norm:
            skipped += 1
            continue
        step = model._step(Data(x, y, class_weighted(y, sample_weight, class_weight, labels)))
        share = 1.0 if model.sums_loss else step["weight"]
        sums["loss"] += share * step["loss"]
        sums["accuracy"] += step["weight"] * step.get("accuracy", 0.0)
        weight += step["weight"]
        rows += rows_of(x)
        steps += 1
        stop = (
            listener.wants_steps and step["step"] % listener.every == 0 and listener.on_step(step)
        )
        if listener.progress_shown and time.perf_counter() >= next_progress:
            listener.on_progress(step)
            next_progress = time.perf_counter() + 0.1
        if stop:
            reason = "callback"
            break
    if not steps:
        raise ValueError("[fit] expected at least one batch with two rows, got none")
    seconds = time.perf_counter() - start
    row: dict[str, Any] = {
        "epoch": number,
        "loss": sums["loss"] / (1.0 if model.sums_loss else weight),
    }
    if "accuracy" in step:
        row["accuracy"] = sums["accuracy"] / weight
    row.update(lr=step["lr"], seconds=seconds, samples_per_second=rows / max(seconds, 1e-9))
    row.update(steps=steps, skipped_rows=skipped)
    return row, reason


def run_epochs(
    model: Model,
    validation: Data | None,
    options: Options,
    listener: Listener,
    epoch: Callable[[int | None], tuple[dict[str, Any], str]],
) -> None:
    """`epoch(steps left)` again and again, with validation and every reason to stop."""
    history, stopping = listener.history, options.early_stopping
    left = options.max_steps
    best: float | None = None
    waited = 0  # epochs since the best one
    kept: tuple[npt.NDArray[Any], npt.NDArray[Any], Sequence[int]] | None = None
    history.stopped_because = "epochs"
    for _ in range(options.epochs):
        if left == 0:
            history.stopped_because = "max_steps"
            break
        row, reason = epoch(left)
        if left is not None:
            left -= row["steps"]
        if validation is not None:
            row = _with_validation(row, model._evaluate(validation, VALIDATION_BATCH))
        if listener.on_epoch(row):
            reason = "callback"
        if reason != "epochs":
            history.stopped_because = reason
            break
        if stopping is not None:
            score = monitored(row, stopping.monitor)
            improved = best is None or score > best + stopping.min_delta
            if improved and not math.isnan(score):
                best, waited = score, 0
                history.best_epoch = row["epoch"]
                if stopping.restore_best:
                    core = model._core
                    kept = core.parameters(), core.state(), core.batches_tracked()
            else:
                waited += 1
                if waited >= max(1, stopping.patience):
                    history.stopped_because = "early_stopping"
                    break
        if options.stop_at_loss is not None and row["loss"] < options.stop_at_loss:
            history.stopped_because = "stop_at_loss"
            break
    if kept is not None:
        parameters, state, batches = kept
        model._core.set_parameters(parameters)
        model._core.set_state(state, batches)


def _with_validation(row: dict[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """The row with the validation metrics after the training ones."""
    shown = ("loss", "accuracy")
    merged = {key: row[key] for key in ("epoch", *shown) if key in row}
    merged.update({f"validation_{key}": metrics[key] for key in shown if key in metrics})
    return {**merged, **row}
