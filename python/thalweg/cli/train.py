"""`thalweg train`: from data to a checkpoint, its preprocessing and learning curves."""

from __future__ import annotations

import importlib.util
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from thalweg import Model, callbacks, nn, optim, schedules
from thalweg.datasets import Preprocessing

from .console import UserError, fields, plural, quantity
from .data import TrainingData, default_output, load_training_data
from .safetensors_header import looks_like_safetensors
from .score import score

_HIDDEN = (256, 256)
_BATCH_SIZE = 64
_FINAL_LEARNING_RATE = 0.01  # of the first, where the cosine schedule ends
_SAVE_EVERY_SECONDS = 30.0


def run(options: Namespace) -> int:
    """Train, save, and print the result."""
    started = time.perf_counter()
    output = Path(options.output) if options.output else default_output(options)
    _check_output(output)
    _check_plot(options)
    model: Model | None = None
    resumed: Preprocessing | None = None
    if options.resume:
        _refuse_with_resume(options)
        model = Model.load(options.resume, device=options.device, threads=options.threads)
        resumed = Preprocessing.load(Preprocessing.path_for(options.resume))
    data = load_training_data(options, resumed)
    if options.batch_size is None:
        # Batch norm would leave out a last minibatch of one row.
        options.batch_size = _BATCH_SIZE + (len(data.x) % _BATCH_SIZE == 1)
    if model is None:
        model = _build(options, data)
    elif model.in_features != data.preprocessing.in_features:
        raise UserError(
            f"the checkpoint takes {model.in_features} features, DATA has "
            f"{data.preprocessing.in_features}"
        )
    remaining = options.epochs - model.epochs_done
    if remaining <= 0:
        raise UserError(
            f"{options.resume} has {plural(model.epochs_done, 'epoch')} already; "
            f"--epochs is the number in all"
        )
    if not options.quiet:
        print(_introduction(options, data, model), flush=True)

    # First the preprocessing: a checkpoint without it could not be used.
    data.preprocessing.save(Preprocessing.path_for(output))
    validation = _validation(data)
    history = _fit(options, model, data, validation, remaining, output)
    model.save(output)

    picture = None if options.no_plot else _plot(options, output, history, validation is not None)
    if not options.quiet:
        written = [str(output), str(Preprocessing.path_for(output))]
        print("\n" + fields([("written", ", ".join(written + ([picture] if picture else [])))]))
    print(_summary(model, data, history, time.perf_counter() - started), flush=True)
    return 0


# ---- before -----------------------------------------------------------------------------------


def _check_output(output: Path) -> None:
    if output.is_dir():
        raise UserError(f"--output: expected a file name, got the folder {output}")
    if not output.parent.is_dir():
        raise UserError(f"--output: there is no folder {output.parent}")
    if output.exists() and not looks_like_safetensors(output):
        raise UserError(f"--output: {output} exists and is no checkpoint; it is left alone")


def _check_plot(options: Namespace) -> None:
    """What would otherwise fail after the training."""
    if options.no_plot or not options.plot:
        return
    path = Path(options.plot)
    if path.suffix not in (".png", ".svg", ".pdf") or path.is_dir():
        raise UserError(f"--plot: expected a .png, .svg or .pdf file, got {path}")
    if not path.parent.is_dir():
        raise UserError(f"--plot: there is no folder {path.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install matplotlib")


def _refuse_with_resume(options: Namespace) -> None:
    for name in (
        "hidden",
        "activation",
        "dropout",
        "optimizer",
        "lr",
        "weight_decay",
        "schedule",
        "seed",
        "target",
        "task",
        "header",
        "validation_split",
    ):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} cannot be combined with --resume: "
                f"the checkpoint holds it"
            )
    for name in ("no_batch_norm", "impute", "drop", "categorical"):
        if getattr(options, name):
            raise UserError(
                f"--{name.replace('_', '-')} cannot be combined with --resume: "
                f"the checkpoint holds it"
            )


def _build(options: Namespace, data: TrainingData) -> Model:
    layers: list[Any] = []
    for width in _HIDDEN if options.hidden is None else options.hidden:
        layers.append(nn.Dense(width))
        if not options.no_batch_norm:
            layers.append(nn.BatchNorm())
        layers.append(nn.activation(options.activation or "relu"))
        if options.dropout:
            layers.append(nn.Dropout(options.dropout))
    layers.append(nn.Dense(data.preprocessing.outputs))

    settings: dict[str, Any] = {"type": options.optimizer or "adam"}
    if options.weight_decay is not None:
        settings["weight_decay"] = options.weight_decay
    lr = options.lr or float(optim.from_dict(settings).to_dict()["lr"])
    settings["lr"] = lr
    if options.schedule != "constant":
        steps = options.epochs * -(-len(data.x) // options.batch_size)
        settings["lr"] = schedules.Cosine(lr, steps, end=_FINAL_LEARNING_RATE * lr)
    classification = data.preprocessing.task == "classification"
    return Model(
        nn.Sequential(*layers),
        in_features=data.preprocessing.in_features,
        loss="cross_entropy" if classification else "squared_error",
        optimizer=optim.from_dict(settings),
        device=options.device,
        seed=options.seed or 0,
        threads=options.threads,
    )


def _introduction(options: Namespace, data: TrainingData, model: Model) -> str:
    description = model.description
    shape = [description["in_features"]]
    shape += [layer["units"] for layer in description["layers"] if "units" in layer]
    kinds = dict.fromkeys(
        layer["type"] for layer in description["layers"] if layer["type"] != "dense"
    )
    parts = ["-".join(map(str, shape)), *(kind.replace("_", " ") for kind in kinds)]
    state = f", resumed after {plural(model.epochs_done, 'epoch')}" if options.resume else ""
    return (
        fields(
            [
                ("data", data.summary()),
                (
                    "model",
                    f"{', '.join(parts)}: {plural(model.num_parameters, 'parameter')}{state}",
                ),
                (
                    "training",
                    f"{description['optimizer']['type']}, minibatches of {options.batch_size}, "
                    f"seed {description['seed']}",
                ),
            ]
        )
        + "\n"
    )


# ---- training ---------------------------------------------------------------------------------


class _Saver:
    """Writes the checkpoint now and then, so that a killed run can be resumed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = time.monotonic() + _SAVE_EVERY_SECONDS

    def on_epoch_end(self, model: Model, epoch: int, logs: dict[str, Any]) -> None:
        """Save when the last time is long enough ago."""
        if time.monotonic() >= self._next:
            model.save(self._path)
            self._next = time.monotonic() + _SAVE_EVERY_SECONDS


def _validation(data: TrainingData) -> tuple[Any, Any] | None:
    if data.x_validation is not None:
        return data.x_validation, data.y_validation
    if data.x_test is not None:
        return data.x_test, data.y_test
    return None


def _fit(
    options: Namespace,
    model: Model,
    data: TrainingData,
    validation: tuple[Any, Any] | None,
    epochs: int,
    output: Path,
) -> Any:
    stopping = None
    if options.patience:
        if data.x_validation is None:
            raise UserError("--patience needs rows held out: --validation-split 0.1")
        stopping = callbacks.EarlyStopping(patience=options.patience)
    if options.class_weight and data.preprocessing.task != "classification":
        raise UserError("--class-weight is for classification")
    try:
        return model.fit(
            data.x,
            data.y,
            epochs=epochs,
            batch_size=options.batch_size,
            validation_data=validation,
            class_weight=options.class_weight,
            early_stopping=stopping,
            callbacks=[_Saver(output)],
            verbose=not options.quiet,
        )
    except KeyboardInterrupt:
        model.save(output)
        raise KeyboardInterrupt(
            f"interrupted after {plural(model.steps_done, 'step')}; continue with --resume {output}"
        ) from None


# ---- after ------------------------------------------------------------------------------------


def _plot(options: Namespace, output: Path, history: Any, has_validation: bool) -> str | None:
    path = Path(options.plot) if options.plot else output.with_suffix(".png")
    try:
        from .plot import learning_curves
    except ImportError:
        if options.plot:
            raise UserError("--plot needs matplotlib: pip install matplotlib") from None
        return None
    learning_curves(path, history, has_validation)
    return str(path)


def _summary(model: Model, data: TrainingData, history: Any, seconds: float) -> str:
    if data.x_test is not None:
        name, x, y = "test", data.x_test, data.y_test
    elif data.x_validation is not None:
        name, x, y = "validation", data.x_validation, data.y_validation
    else:
        name, x, y = "training", data.x, data.y
    assert y is not None
    training = float(np.sum([row["seconds"] for row in history.epochs]))
    epochs = plural(len(history.epochs), "epoch")
    if history.stopped_because == "early_stopping":
        epochs += f" (stopped early, best epoch {history.best_epoch})"
    return (
        f"{name} {score(model, data.preprocessing, x, y)}; "
        f"{epochs} in {quantity(training)} s, {quantity(seconds)} s in all"
    )
