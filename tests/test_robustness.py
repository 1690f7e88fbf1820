"""Faults that a review found, each with the test that catches it.

Sizes at the ends of their ranges, data that changes while it is in use, interrupts, files that ask
for too much.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import thalweg as tw
from conftest import DEVICE, EMULATED
from thalweg import callbacks, nn, optim, schedules
from thalweg._core import _testing

LARGEST = 2**63 - 1


def classifier(**changes: Any) -> tw.Model:
    layers = nn.Sequential(nn.Dense(8), nn.BatchNorm(), nn.ReLU(), nn.Dense(3))
    return tw.Model(layers, in_features=4, **changes)


def data(rows: int = 70) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((rows, 4)).astype(np.float32), rng.integers(0, 3, rows)


# ---- early stopping ------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [False, True])
def test_nan_is_never_the_best_validation_loss(batches: bool) -> None:
    x, y = data()
    overflowing = np.full((4, 4), 3e38) * [1, -1, 1, -1]
    network = nn.Sequential(nn.Dense(8, init="he_normal"), nn.ReLU(), nn.Dense(3))
    model = tw.Model(network, in_features=4, seed=3)
    model.fit(x, y, epochs=9, verbose=False)
    plain = model.copy()
    training = ([(x, y)],) if batches else (x, y)
    history = model.fit(
        *training,
        epochs=20,
        validation_data=(overflowing, y[:4]),
        early_stopping=callbacks.EarlyStopping(patience=3),
        verbose=False,
    )
    assert all(math.isnan(row["validation_loss"]) for row in history.epochs)
    assert history.stopped_because == "early_stopping"
    assert len(history.epochs) == 3  # patience counts from the start of this call
    plain.fit(*training, epochs=3, verbose=False)
    np.testing.assert_array_equal(model.parameters, plain.parameters)


def test_the_first_reason_to_stop_is_reported() -> None:
    class Stop:
        def on_epoch_end(self, model: tw.Model, epoch: int, logs: dict[str, Any]) -> bool:
            return True

    x, y = data()
    history = classifier().fit(x, y, epochs=5, stop_at_loss=1e9, callbacks=[Stop()], verbose=False)
    assert history.stopped_because == "callback"


# ---- data that changes while it is in use --------------------------------------------------------


@pytest.mark.parametrize("label", [3, -1, 2**40])
def test_labels_are_checked_again_when_they_are_read(label: int) -> None:
    class Spoil:
        def on_epoch_end(self, model: tw.Model, epoch: int, logs: dict[str, Any]) -> None:
            y[:] = label

    x, y = data()
    model = classifier()
    if DEVICE == "cuda":  # it has a copy of its own
        model.fit(x, y, epochs=3, callbacks=[Spoil()], verbose=False)
        assert model.epochs_done == 3
        return
    with pytest.raises(ValueError, match="changed while it was in use"):
        model.fit(x, y, epochs=3, callbacks=[Spoil()], verbose=False)
    assert model.epochs_done == 1
    x, y = data()
    model.fit(x, y, verbose=False)


# ---- sizes at the ends of their ranges -----------------------------------------------------------


def test_batch_sizes_beyond_the_data_mean_all_of_it() -> None:
    x, y = data()
    model = classifier()
    np.testing.assert_array_equal(model.predict(x, batch_size=LARGEST), model.predict(x))
    assert model.evaluate(x, y, batch_size=LARGEST) == model.evaluate(x, y)
    model.recalibrate_batch_norm(x, batch_size=LARGEST)
    other = model.copy()
    model.fit(x, y, batch_size=LARGEST, epochs=2, accumulate=LARGEST, verbose=False)
    other.fit(x, y, batch_size=None, epochs=2, verbose=False)
    np.testing.assert_array_equal(model.parameters, other.parameters)


@pytest.mark.parametrize("depth", [1, 2, 4, 5])
def test_parameters_beyond_memory_are_a_memory_error(depth: int) -> None:
    width = 2**31 - 1
    start = time.perf_counter()
    with pytest.raises(MemoryError):
        tw.Model([nn.Dense(width)] * depth, in_features=width)
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize("rows", [2**58, 2**59, 2**60])
def test_rows_beyond_memory_are_a_memory_error(rows: int) -> None:
    endless = np.broadcast_to(np.zeros((1, 4), np.uint8), (rows, 4))
    with pytest.raises(MemoryError):
        tw.ops.dense(endless, np.zeros((0, 4), np.float32))


# ---- files ---------------------------------------------------------------------------------------


def rewrite_description(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the description in a checkpoint."""
    metadata, tensors = _testing.read_checkpoint(str(path), True)
    description = json.loads(metadata["description"])
    change(description)
    metadata["description"] = json.dumps(description)
    _testing.write_checkpoint(str(path), metadata, tensors)


def test_a_small_file_cannot_ask_for_all_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    classifier().save(path)
    rewrite_description(path, lambda description: None)
    tw.Model.load(path)

    def widen(description: dict[str, Any]) -> None:
        description["layers"][0]["units"] = 300_000_000

    rewrite_description(path, widen)
    start = time.perf_counter()
    with pytest.raises(tw.CheckpointError, match="parameters"):
        tw.Model.load(path)
    assert time.perf_counter() - start < 1.0


def test_wrong_arguments_of_load_are_not_errors_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    classifier().save(path)
    with pytest.raises(ValueError, match="threads") as caught:
        tw.Model.load(path, threads=100_000)
    assert not isinstance(caught.value, tw.CheckpointError)


def test_load_weights_takes_the_number_of_batches(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Dense(8), nn.BatchNorm(momentum=None), nn.ReLU(), nn.Dense(3))
    x, y = data()
    trained = tw.Model(layers, in_features=4)
    trained.fit(x, y, epochs=3, verbose=False)
    trained.save(tmp_path / "model.safetensors")
    model = tw.Model(layers, in_features=4)
    model.load_weights(tmp_path / "model.safetensors")
    for name, value in trained.named_state().items():
        np.testing.assert_array_equal(model.named_state()[name], value)


# ---- schedules in epochs -------------------------------------------------------------------------


def test_theta_of_a_new_model_needs_no_length_of_an_epoch() -> None:
    lr = schedules.Linear(0.1, 0.01, tau_epochs=2)
    model = classifier(optimizer=optim.Nesterov(lr), averaging=optim.EMA(0.9))
    np.testing.assert_array_equal(model.theta(), model.parameters)
    np.testing.assert_array_equal(model.averaged().parameters, model.parameters)
    x, y = data()
    before = model.parameters
    with pytest.raises(ValueError, match="tau_epochs"):
        model.step(x, y)
    np.testing.assert_array_equal(model.parameters, before)
    model.fit(x, y, verbose=False)
    model.step(x, y)


# ---- interrupts ----------------------------------------------------------------------------------


class Alarm(Exception):
    """Raised by the signal handler."""


def ring(number: int, frame: FrameType | None) -> None:
    raise Alarm


@contextmanager
def alarm(delay: float, handler: Callable[[int, FrameType | None], None] = ring) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, delay)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


ENDLESS = 2**40  # rows, of one that is repeated
INTERRUPTED: dict[str, Callable[[tw.Model, Any, Any], object]] = {
    "scan of x": lambda model, x, y: model.fit(x, y, verbose=False),
    "scan of y": lambda model, x, y: model.evaluate(x, y),
    "scan of weights": lambda model, x, y: model.evaluate(x, y, sample_weight=y),
    "recalibrate": lambda model, x, y: model.recalibrate_batch_norm(x),
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_checks_of_large_arrays_can_be_interrupted(name: str) -> None:
    model = classifier()
    x = np.broadcast_to(np.ones((1, 4)), (ENDLESS, 4))
    y = np.broadcast_to(np.ones(1, np.int64), (ENDLESS,))
    start = time.perf_counter()
    with pytest.raises(Alarm), alarm(0.1):
        INTERRUPTED[name](model, x, y)
    assert time.perf_counter() - start < 2.0
    model.fit(*data(), verbose=False)


def test_activations_can_be_interrupted() -> None:
    width = 32 if EMULATED else 512
    layers = [layer for _ in range(30) for layer in (nn.Dense(width), nn.ReLU())]
    model = tw.Model(layers, in_features=width, loss="squared_error")
    x = np.ones((4096, width), np.float32)
    start = time.perf_counter()
    model.activations(x[:64])
    with pytest.raises(Alarm), alarm(0.1):
        while True:
            model.activations(x)
    assert time.perf_counter() - start < 10.0


# ---- subnormal numbers ---------------------------------------------------------------------------


def subnormals_are_kept() -> bool:
    """Whether this thread computes with subnormal numbers, asked of the processor."""
    return sys.float_info.min / 2 > 0.0


@pytest.mark.skipif(DEVICE != "cpu", reason="GPUs compute with subnormal numbers at full speed")
def test_networks_flush_subnormal_numbers() -> None:
    model = tw.Model(nn.Dense(2, bias=False), 1)
    model.set_parameters({"layers.0.weight": np.array([[0.0], [-90.0]], np.float32)})
    one, label = np.ones((1, 1), np.float32), np.zeros(1, np.int64)
    assert 0 < float(np.exp(np.float64(-90))) < np.finfo(np.float32).tiny
    assert model.predict_proba(one)[0, 1] == 0.0
    assert (model.loss_and_grad(one, label)[1] == 0).all()


def diverge(model: tw.Model, x: Any, y: Any) -> None:
    with pytest.raises(tw.NonFiniteError):
        model.fit(np.full_like(x, 3e38), y, verbose=False)


def spoil(model: tw.Model, x: Any, y: Any) -> None:
    spoiled = y.copy()

    def on_epoch_end(*_: Any) -> None:
        spoiled[:] = -1

    listener = callbacks.LambdaCallback(on_epoch_end=on_epoch_end)
    with pytest.raises(ValueError, match="changed while it was in use"):
        model.fit(x, spoiled, epochs=2, callbacks=[listener], verbose=False)


def interrupt(model: tw.Model, x: Any, y: Any) -> None:
    with pytest.raises(Alarm), alarm(0.1):
        model.fit(x, y, epochs=10**9, verbose=False)


def train_population(model: tw.Model, x: Any, y: Any) -> None:
    tw.Population(nn.Dense(3), 3, 4, device="cpu", threads=model.threads).fit(x, y, verbose=False)


FLUSHING: dict[str, Callable[[tw.Model, Any, Any], object]] = {
    "fit": lambda model, x, y: model.fit(x, y, verbose=False),
    "fit in parts": lambda model, x, y: model.fit(x, y, accumulate=2, verbose=False),
    "step": lambda model, x, y: model.step(x, y),
    "predict": lambda model, x, y: model.predict(x),
    "evaluate": lambda model, x, y: model.evaluate(x, y),
    "activations": lambda model, x, y: model.activations(x),
    "loss_and_grad": lambda model, x, y: model.loss_and_grad(x, y),
    "recalibrate": lambda model, x, y: model.recalibrate_batch_norm(x),
    "hvp": lambda model, x, y: tw.Objective(model, x, y).hvp(np.ones(model.num_parameters)),
    "population": train_population,
    "not finite": diverge,
    "data that change": spoil,
    "interrupt": interrupt,
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", FLUSHING)
def test_callers_keep_subnormal_numbers(name: str, threads: int) -> None:
    if name == "data that change" and DEVICE == "cuda":
        pytest.skip("a GPU has a copy of its own")
    assert subnormals_are_kept()
    FLUSHING[name](classifier(threads=threads), *data())
    assert subnormals_are_kept()


@pytest.mark.parametrize("threads", [1, 2])
def test_python_functions_keep_subnormal_numbers(threads: int) -> None:
    kept: dict[str, list[bool]] = {"callback": [], "loss": [], "signal": []}

    def loss(outputs: Any, target: Any) -> tuple[float, Any]:
        kept["loss"].append(subnormals_are_kept())
        return float((outputs**2).mean()), 2 * outputs / outputs.size

    def on_step(*_: Any) -> None:
        kept["callback"].append(subnormals_are_kept())

    def on_signal(*_: Any) -> None:
        kept["signal"].append(subnormals_are_kept())
        raise Alarm

    x, _ = data()
    model = tw.Model(nn.Dense(3), 4, loss, threads=threads)
    listener = callbacks.LambdaCallback(on_step=on_step)
    model.fit(x, np.zeros((len(x), 3)), callbacks=[listener], verbose=False)
    # Regions that last: the signal comes while one runs.
    width = 32 if EMULATED else 1024
    model = tw.Model([nn.Dense(width), nn.ReLU(), nn.Dense(width)], width, threads=threads)
    x = np.ones((4096, width), np.float32)
    with pytest.raises(Alarm), alarm(0.1, on_signal):
        while True:
            model.predict(x, batch_size=len(x))
    assert all(values and all(values) for values in kept.values()), kept
