"""The Python API: descriptions, training, evaluation, values, files, callbacks, threads."""

from __future__ import annotations

import ast
import copy
import csv
import dataclasses
import doctest
import importlib
import itertools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thalweg as tw
from conftest import DEVICE, EMULATED
from thalweg import _core, callbacks, init, losses, nn, ops, optim, schedules

Arrays = tuple[np.ndarray, np.ndarray]


def classifier(**options: Any) -> tw.Model:
    """20 -> 2 with batch norm."""
    network = nn.Sequential(nn.Dense(32), nn.BatchNorm(), nn.ReLU(), nn.Dense(2))
    return tw.Model(network, 20, **{"seed": 1, "device": DEVICE, **options})


@pytest.fixture(scope="module")
def data() -> Arrays:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 20))
    return x, (x[:, 0] + 0.3 * rng.normal(size=300) > 0).astype(np.int64)


def squared_error(prediction: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    difference = prediction - target
    return float((difference**2).sum() / len(difference)), 2.0 * difference / len(difference)


# ---- descriptions --------------------------------------------------------------------------------

NETWORK = nn.Sequential(
    nn.Dense(8, init="he_normal"),
    nn.BatchNorm(momentum=None),
    nn.Maxout(8, 3, bias=False),
    nn.Residual(nn.Dense(8), nn.ELU(0.5), nn.Dense(8), zero_init=False),
    nn.Dropout(0.2),
    nn.LeakyReLU(0.1),
    nn.Sequential(nn.Dense(4, init=init.Normal(0.1)), nn.GELU()),
    nn.Dense(3, bias=True, init=init.Orthogonal(2.0)),
)
OPTIMIZER = optim.Nesterov(
    schedules.Warmup(schedules.Linear(0.1, tau=100), 10),
    schedules.NesterovConvex(),
    torch_compat=True,
    groups=[optim.Group("*.bias", weight_decay=0.0, frozen=True)],
)


def test_descriptions_survive_json_and_the_engine() -> None:
    model = tw.Model(
        NETWORK,
        5,
        losses.CrossEntropy(0.1),
        OPTIMIZER,
        averaging=optim.EMA(0.9),
        clip_norm=2,
        check_finite="gradients",
        matmul_precision="high",
        seed=2**64 - 1,
        dtype="float64",
    )
    assert model.network == NETWORK
    assert nn.from_dict(json.loads(json.dumps(NETWORK.to_dict()))) == NETWORK
    assert model.optimizer == OPTIMIZER
    assert model.loss == losses.CrossEntropy(0.1)
    assert model.averaging == optim.EMA(0.9)
    assert model.seed == 2**64 - 1
    assert model.dtype == np.float64
    text = json.dumps(model.description)
    assert json.loads(_core.canonical_description(text)) == model.description


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.Constant(0.1),
        schedules.Linear(0.1, 0.01, tau=10),
        schedules.RobbinsMonro(0.1, 5, power=0.6),
        schedules.Step(0.1, 0.5, 3),
        schedules.Cosine(0.1, 10, 0.01),
        schedules.Warmup(0.1, 5),
        schedules.OneCycle(0.1, 10),
        schedules.NesterovConvex(),
    ],
    ids=lambda schedule: schedule.type,
)
def test_schedules_round_trip_and_evaluate(schedule: schedules.Schedule) -> None:
    assert schedules.from_dict(schedule.to_dict()) == schedule
    values = [schedule(k) for k in range(12)]
    assert all(np.isfinite(values))
    model = tw.Model(nn.Dense(2), 3, optimizer=optim.SGD(schedule))
    used = [model.step(np.eye(3), [0, 1, 1])["lr"] for _ in range(12)]
    np.testing.assert_allclose(used, values, rtol=1e-12)


def test_schedule_in_epochs() -> None:
    schedule = schedules.Linear(1.0, 0.0, tau_epochs=2)
    assert schedule(5, steps_per_epoch=5) == pytest.approx(0.5)
    model = tw.Model(nn.Dense(2), 3, optimizer=optim.SGD(schedule))
    history = model.fit(np.eye(3), [0, 1, 1], epochs=2, batch_size=1, verbose=False)
    assert history["lr"] == pytest.approx([1 - 2 / 6, 1 - 5 / 6])


def required(cls: type) -> dict[str, Any]:
    """Arguments for the fields of a description without a default."""
    values = {"units": 4, "std": 0.1, "bound": 0.1}
    return {
        field.name: values[field.name]
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


def python_classes(module: Any, base: type) -> dict[str, type]:
    """Public classes of a module by type name."""
    members = (getattr(module, name) for name in module.__all__)
    return {
        m.type: m
        for m in members
        if isinstance(m, type) and issubclass(m, base) and hasattr(m, "type")
    }


@pytest.mark.parametrize(
    ("module", "base", "table"),
    [
        (nn, nn.Activation, _core.activations()),
        (optim, optim.Optimizer, _core.optimizers()),
        (losses, losses.Loss, _core.losses()),
    ],
    ids=["activations", "optimizers", "losses"],
)
def test_every_listed_item_has_its_python_description(
    module: Any, base: type, table: dict[str, Any]
) -> None:
    classes = python_classes(module, base)
    assert set(table) <= set(classes)
    for name, entry in table.items():
        defaults = classes[name]().to_dict()
        for parameter, row in entry["parameters"].items():
            assert defaults[parameter] == row["default"], (name, parameter)
        others = set(defaults) - set(entry["parameters"])
        assert others <= {"type", "groups", "reduction"}, name
        assert classes[name].__doc__


@pytest.mark.parametrize(
    "cls", python_classes(init, init.Initializer).values(), ids=lambda c: c.type
)
def test_initializers_are_accepted(cls: type) -> None:
    model = tw.Model(nn.Dense(4, init=cls(**required(cls))), 6)
    assert model.network[0].init == cls(**required(cls))  # type: ignore[attr-defined]
    weight = model.named_parameters()["layers.0.weight"]
    assert bool(np.any(weight)) == (cls is not init.Zeros)


def test_networks_may_be_lists_and_single_layers() -> None:
    layers = [nn.Dense(4), nn.Tanh(), nn.Dense(2)]
    first, second = tw.Model(layers, 3), tw.Model(nn.Sequential(*layers), 3)
    assert first.description == second.description
    assert tw.Model(nn.Dense(2), 3).num_parameters == 8


def test_descriptions_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        nn.Dense(3).units = 4  # type: ignore[misc]
    assert len({nn.Dense(3), nn.Dense(3), nn.ReLU()}) == 2


# ---- training ------------------------------------------------------------------------------------


def test_fit_learns_and_reports(data: Arrays, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data
    model = classifier()
    history = model.fit(x[:200], y[:200], epochs=20, validation_data=(x[200:], y[200:]))
    assert history["loss"][-1] < history["loss"][0]
    assert model.evaluate(x[200:], y[200:])["accuracy"] > 0.8
    assert list(history.epochs[0]) == [
        "epoch", "loss", "accuracy", "validation_loss", "validation_accuracy", "lr", "seconds",
        "samples_per_second", "steps", "skipped_rows",
    ]  # fmt: skip
    assert history["epoch"] == list(range(1, 21))
    assert (history.stopped_because, history.best_epoch, history.skipped_rows) == ("epochs", 0, 0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert lines[0].split() == [
        "epoch",
        "loss",
        "accuracy",
        "val.",
        "loss",
        "val.",
        "acc.",
        "samples/s",
    ]
    assert len({len(line) for line in lines}) == 1
    with pytest.raises(KeyError, match="expected one of"):
        history["acuracy"]


def test_second_fit_continues_and_reset_restarts(data: Arrays) -> None:
    x, y = data
    once, twice = classifier(), classifier()
    once.fit(x, y, epochs=4, verbose=False)
    first = twice.fit(x, y, epochs=2, verbose=False)
    second = twice.fit(x, y, epochs=2, verbose=False)
    assert first["epoch"] + second["epoch"] == [1, 2, 3, 4]
    np.testing.assert_array_equal(once.parameters, twice.parameters)
    assert twice.steps_done == 40
    assert twice.epochs_done == 4
    twice.reset()
    assert twice.steps_done == 0
    np.testing.assert_array_equal(twice.parameters, classifier().parameters)


def test_batches_equal_arrays(data: Arrays) -> None:
    x, y = data
    arrays, batches = classifier(), classifier()
    expected = arrays.fit(
        x, y, epochs=2, batch_size=64, shuffle=False, verbose=False, validation_data=data
    )
    parts = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 300, 64)]
    got = batches.fit(parts, epochs=2, verbose=False, validation_data=data)
    np.testing.assert_array_equal(arrays.parameters, batches.parameters)
    for column in ("epoch", "loss", "accuracy", "validation_loss", "steps", "lr"):
        assert got[column] == pytest.approx(expected[column], rel=1e-12), column
    assert list(got.epochs[0]) == list(expected.epochs[0])


def test_one_shot_iterator_and_weights(data: Arrays) -> None:
    x, y = data
    model, other = classifier(), classifier()
    weights = np.linspace(0.5, 1.5, 100)
    parts = ((x[i : i + 100], y[i : i + 100], weights) for i in range(0, 300, 100))
    assert len(model.fit(parts, verbose=False)) == 1
    for i in range(0, 300, 100):
        other.step(x[i : i + 100], y[i : i + 100], weights)
    np.testing.assert_array_equal(model.parameters, other.parameters)


def test_endless_batches_stop_at_max_steps(data: Arrays) -> None:
    x, y = data
    history = classifier().fit(itertools.repeat((x, y)), max_steps=7, verbose=False)
    assert history.stopped_because == "max_steps"
    assert history["steps"] == [7]


def test_tail_of_one_row_is_skipped_and_counted(data: Arrays) -> None:
    x, y = data
    history = classifier().fit(x[:65], y[:65], epochs=2, batch_size=32, verbose=False)
    assert history.skipped_rows == 2
    parts = [(x[:32], y[:32]), (x[64:65], y[64:65])]
    assert classifier().fit(parts, verbose=False).skipped_rows == 1


def test_class_weight_is_a_sample_weight(data: Arrays) -> None:
    x, y = data
    weights = np.where(y == 1, 3.0, 1.0)
    models = [classifier() for _ in range(3)]
    models[0].fit(x, y, sample_weight=weights, verbose=False)
    models[1].fit(x, y, class_weight={1: 3.0}, verbose=False)
    models[2].fit([(x[:50], y[:50])], class_weight={1: 3.0}, verbose=False)
    np.testing.assert_array_equal(models[0].parameters, models[1].parameters)
    other = classifier()
    other.step(x[:50], y[:50], weights[:50])
    np.testing.assert_array_equal(models[2].parameters, other.parameters)
    counts = np.bincount(y)
    balanced = (len(y) / (2 * counts))[y]
    first, second = classifier(), classifier()
    first.fit(x, y, class_weight="balanced", verbose=False)
    second.fit(x, y, sample_weight=balanced, verbose=False)
    np.testing.assert_array_equal(first.parameters, second.parameters)


def test_reasons_to_stop(data: Arrays) -> None:
    x, y = data
    assert classifier().fit(x, y, epochs=9, max_steps=13, verbose=False)["steps"] == [10, 3]
    loose = classifier().fit(x, y, epochs=9, stop_at_loss=100.0, verbose=False)
    assert (len(loose), loose.stopped_because) == (1, "stop_at_loss")
    stop = callbacks.LambdaCallback(on_epoch_end=lambda model, epoch, logs: epoch == 2)
    assert (
        classifier().fit(x, y, epochs=9, callbacks=[stop], verbose=False).stopped_because
        == "callback"
    )
    stop = callbacks.LambdaCallback(on_step=lambda model, step, logs: step == 4)
    history = classifier().fit(x, y, epochs=9, callbacks=[stop], verbose=False)
    assert history["steps"] == [4]


@pytest.mark.parametrize("batches", [False, True])
def test_early_stopping_restores_the_best(data: Arrays, batches: bool) -> None:
    x, y = data
    y = np.random.default_rng(0).integers(0, 2, len(y))  # noise: validation gets worse
    train, validation = (x[:200], y[:200]), (x[200:], y[200:])
    model = classifier(optimizer=optim.Adam(0.02))
    stopping = callbacks.EarlyStopping(patience=3)
    options: dict[str, Any] = {"epochs": 60, "validation_data": validation, "verbose": False}
    if batches:
        history = model.fit([train], early_stopping=stopping, **options)
    else:
        history = model.fit(*train, batch_size=None, callbacks=[stopping], **options)
    assert history.stopped_because == "early_stopping"
    best = int(np.argmin(history["validation_loss"]))
    assert history.best_epoch == best + 1
    assert len(history) == best + 4
    assert model.evaluate(*validation)["loss"] == pytest.approx(history["validation_loss"][best])


def test_accumulation_is_one_larger_batch(data: Arrays) -> None:
    x, y = data
    network = nn.Sequential(nn.Dense(16), nn.Tanh(), nn.Dense(2))
    models = [tw.Model(network, 20, dtype="float64") for _ in range(2)]
    models[0].fit(x, y, batch_size=100, verbose=False)
    models[1].fit(x, y, batch_size=25, accumulate=4, verbose=False)
    np.testing.assert_allclose(models[0].parameters, models[1].parameters, rtol=1e-9)


def test_step_reports(data: Arrays) -> None:
    x, y = data
    model = classifier(clip_norm=0.5)
    row = model.step(x, y)
    assert set(row) == {"step", "loss", "accuracy", "lr", "gradient_norm"}
    assert (row["step"], row["lr"]) == (1, 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_python_loss_equals_the_engine(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 4))
    y = x @ rng.normal(size=(4, 2))
    seen: list[tuple[Any, ...]] = []

    def loss(prediction: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
        seen.append((prediction.dtype, prediction.shape, target.shape))
        return squared_error(prediction, target)

    network = nn.Sequential(nn.Dense(8), nn.BatchNorm(), nn.ReLU(), nn.Dense(2))
    models = [tw.Model(network, 4, f, dtype=dtype) for f in (loss, "squared_error")]
    validation = (x[:20], y[:20])
    stopping = callbacks.EarlyStopping(patience=2)
    histories = [
        m.fit(x, y, epochs=3, validation_data=validation, early_stopping=stopping, verbose=False)
        for m in models
    ]
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(
        models[0].parameters, models[1].parameters, rtol=tolerance, atol=tolerance
    )
    for column in ("loss", "validation_loss"):
        assert histories[0][column] == pytest.approx(histories[1][column], rel=tolerance)
    results = [m.loss_and_grad(x, y, input_gradient=True) for m in models]
    for left, right in zip(*results, strict=True):
        np.testing.assert_allclose(left, right, rtol=10 * tolerance, atol=tolerance)
    assert models[0].evaluate(x, y)["loss"] == pytest.approx(
        models[1].evaluate(x, y)["loss"], rel=tolerance
    )
    assert models[0].step(x, y)["loss"] == pytest.approx(
        models[1].step(x, y)["loss"], rel=tolerance
    )
    assert {entry[0] for entry in seen} == {np.dtype(dtype)}
    assert all(entry[1] == entry[2] for entry in seen)


def test_python_loss_may_use_the_model() -> None:
    x, y = np.eye(4), np.ones((4, 1))

    def loss(prediction: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
        np.testing.assert_allclose(model.predict(x), prediction)
        return squared_error(prediction, target)

    model = tw.Model(nn.Dense(1), 4, loss)
    model.fit(x, y, batch_size=None, shuffle=False, verbose=False)
    model.loss_and_grad(x, y)


# ---- callbacks -----------------------------------------------------------------------------------


class Recorder:
    """Notes what it is told, and uses the model."""

    def __init__(self, data: Arrays) -> None:
        self.data = data
        self.events: list[tuple[Any, ...]] = []

    def on_train_begin(self, model: tw.Model) -> None:
        self.events.append(("begin", model.steps_done))

    def on_step(self, model: tw.Model, step: int, logs: dict[str, Any]) -> None:
        assert model.steps_done == step == logs["step"]
        self.events.append(("step", step))

    def on_epoch_end(self, model: tw.Model, epoch: int, logs: dict[str, Any]) -> None:
        assert model.evaluate(*self.data)["loss"] == pytest.approx(logs["validation_loss"])
        model.copy().fit(*self.data, verbose=False)
        self.events.append(("epoch", epoch))

    def on_train_end(self, model: tw.Model, history: tw.History) -> None:
        self.events.append(("end", len(history)))


def test_callbacks_are_called_in_order(data: Arrays) -> None:
    recorder = Recorder(data)
    classifier().fit(
        *data, epochs=2, validation_data=data, callbacks=[recorder], callback_every=4, verbose=False
    )
    assert recorder.events == [
        ("begin", 0), ("step", 4), ("step", 8), ("epoch", 1),
        ("step", 12), ("step", 16), ("step", 20), ("epoch", 2), ("end", 2),
    ]  # fmt: skip


def test_callback_exceptions_come_out_unchanged(data: Arrays) -> None:
    class Own(Exception):
        pass

    error = Own("mine")

    def fail(*arguments: Any) -> None:
        raise error

    for name in ("on_train_begin", "on_step", "on_epoch_end", "on_train_end"):
        model = classifier()
        with pytest.raises(Own) as caught:
            model.fit(*data, callbacks=[callbacks.LambdaCallback(**{name: fail})], verbose=False)
        assert caught.value is error
        model.fit(*data, verbose=False)
    custom = tw.Model(nn.Dense(2), 20, fail)
    for call in (
        custom.fit,
        custom.evaluate,
        custom.step,
        custom.loss_and_grad,
        custom.input_gradient,
    ):
        with pytest.raises(Own) as caught:
            call(*data, **({"verbose": False} if call == custom.fit else {}))
        assert caught.value is error


def test_callbacks_cannot_change_the_model(data: Arrays) -> None:
    def change(model: tw.Model, *_: Any) -> None:
        model.set_parameters(model.parameters)

    with pytest.raises(
        RuntimeError, match=r"\[set_parameters\] expected a model that no other call"
    ):
        classifier().fit(
            *data, callbacks=[callbacks.LambdaCallback(on_epoch_end=change)], verbose=False
        )


def test_checkpoint_and_csv_logger(data: Arrays, tmp_path: Path) -> None:
    model = classifier()
    log = tmp_path / "log.csv"
    every = callbacks.Checkpoint(tmp_path / "{epoch}.safetensors", every=2)
    best = callbacks.Checkpoint(tmp_path / "best.safetensors", monitor="validation_loss")
    history = model.fit(
        *data,
        epochs=5,
        validation_data=data,
        callbacks=[every, best, callbacks.CSVLogger(log)],
        verbose=False,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "2.safetensors", "4.safetensors", "best.safetensors", "log.csv",
    ]  # fmt: skip
    assert tw.Model.load(tmp_path / "4.safetensors").epochs_done == 4
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == history["loss"]


def test_progress_bar_moves(data: Arrays, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    classifier().fit(*data, epochs=3, verbose=True)
    output = capsys.readouterr()
    assert "30/30" in output.err
    assert len(output.out.splitlines()) == 4
    classifier().fit([data], epochs=2, verbose="bar")
    assert capsys.readouterr().out == ""
    classifier().fit(*data, verbose=False)
    assert capsys.readouterr() == ("", "")


# ---- evaluation ----------------------------------------------------------------------------------


def test_predictions_fit_together(data: Arrays) -> None:
    x, y = data
    model = classifier()
    model.fit(x, y, epochs=3, verbose=False)
    outputs = model.predict(x)
    assert outputs.shape == (300, 2)
    assert outputs.dtype == np.float32
    for size in (1, 7, 64, 300):
        np.testing.assert_array_equal(model.predict(x, batch_size=size), outputs)
    np.testing.assert_array_equal(model.forward(x), outputs)
    np.testing.assert_array_equal(model.predict_class(x), outputs.argmax(axis=1))
    np.testing.assert_allclose(model.predict_proba(x), ops.softmax(outputs), rtol=1e-6)
    layers = model.activations(x)
    assert [a.shape[1] for a in layers] == [32, 32, 32, 2]
    np.testing.assert_allclose(layers[-1], outputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layers[2], np.maximum(layers[1], 0))
    training = model.activations(x, training=True)
    np.testing.assert_allclose(training[0].std(axis=0) > 0, True)
    np.testing.assert_array_equal(model.forward(x, training=True), training[-1])


def test_evaluate(data: Arrays) -> None:
    x, y = data
    model = classifier(loss=losses.CrossEntropy(label_smoothing=0.1))
    model.fit(x, y, epochs=3, verbose=False)
    weights = np.linspace(0.0, 2.0, 300)
    metrics = model.evaluate(x, y, sample_weight=weights, top_k=1)
    outputs = model.predict(x).astype(np.float64)
    log_p = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
    likelihood = -(weights @ log_p[np.arange(300), y]) / weights.sum()
    assert metrics["perplexity"] == pytest.approx(np.exp(likelihood), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(
        weights @ (model.predict_class(x) == y) / weights.sum()
    )
    assert metrics["top_1_accuracy"] == pytest.approx(metrics["accuracy"])
    assert model.evaluate(x, y, top_k=2)["top_2_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("loss", "values"),
    [("binary_cross_entropy", (0, 1)), ("logistic", (-1, 1)), ("exponential", (-1, 1))],
)
def test_binary_losses(data: Arrays, loss: str, values: tuple[int, int]) -> None:
    x, labels = data
    y = np.array(values)[labels]
    model = tw.Model(nn.Dense(1), 20, loss, optim.Adam(0.05))
    model.fit(x, y, epochs=20, verbose=False)
    classes = model.predict_class(x)
    assert classes.shape == (300,)
    assert set(classes) == set(values)
    metrics = model.evaluate(x, y)
    assert "perplexity" not in metrics
    assert metrics["accuracy"] == pytest.approx((classes == y).mean())
    assert metrics["accuracy"] > 0.8
    scale = 2 if loss == "exponential" else 1
    probability = 1 / (1 + np.exp(-scale * model.predict(x)))
    np.testing.assert_allclose(model.predict_proba(x), probability, rtol=1e-5)


def test_regression_has_no_accuracy() -> None:
    model = tw.Model(nn.Dense(1), 2, "squared_error")
    assert list(model.evaluate(np.eye(2), [1.0, 2.0])) == ["loss"]
    assert "accuracy" not in model.fit(np.eye(2), [1.0, 2.0], verbose=False).epochs[0]


def test_evaluation_changes_nothing(data: Arrays) -> None:
    model = classifier()
    model.fit(*data, verbose=False)
    before = pickle.dumps(model)
    model.evaluate(*data)
    model.loss_and_grad(*data)
    model.input_gradient(*data)
    model.forward(data[0], training=True)
    objective = tw.Objective(model, *data)
    objective.grad(np.zeros(model.num_parameters))
    assert pickle.dumps(model) == before
    assert objective.value() == pytest.approx(model.loss_and_grad(*data)[0])
    np.testing.assert_array_equal(objective.grad(), model.loss_and_grad(*data)[1])
    frozen = tw.Objective(model, *data, statistics="frozen")
    assert frozen.value() == pytest.approx(model.evaluate(*data)["loss"], rel=1e-5)


def test_gradients_match_differences() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.integers(0, 2, 12)
    network = nn.Sequential(nn.Dense(5), nn.BatchNorm(), nn.Tanh(), nn.Dense(2))
    model = tw.Model(network, 3, dtype="float64")
    objective = tw.Objective(model, x, y)
    theta, gradient = model.parameters.copy(), objective.grad()
    direction = rng.normal(size=theta.shape)
    h = 1e-5
    difference = objective.value(theta + h * direction) - objective.value(theta - h * direction)
    assert difference / (2 * h) == pytest.approx(gradient @ direction, rel=1e-7)
    dx = model.input_gradient(x, y, training=True)
    step = np.zeros_like(x)
    step[3, 1] = h
    difference = model.loss_and_grad(x + step, y)[0] - model.loss_and_grad(x - step, y)[0]
    assert difference / (2 * h) == pytest.approx(dx[3, 1], rel=1e-6)


# ---- values and files ----------------------------------------------------------------------------


def test_values_by_name(data: Arrays) -> None:
    model = classifier()
    model.fit(*data, verbose=False)
    flat = model.parameters
    assert not flat.flags.writeable
    named = model.named_parameters()
    assert list(named) == [name for name, _, _ in model.layout()]
    for name, offset, shape in model.layout():
        assert named[name].shape == shape
        np.testing.assert_array_equal(named[name].ravel(), flat[offset : offset + named[name].size])
    state = model.named_state()
    assert {n.rsplit(".", 1)[1] for n in state} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert state["layers.1.num_batches_tracked"] == 10
    other = classifier(seed=9)
    other.load_weights({**named, **state})
    np.testing.assert_array_equal(other.predict(data[0]), model.predict(data[0]))
    assert set(model.optimizer_state()) == set(_core.optimizers()["adam"]["slots"])
    model.set_parameters({"layers.3.bias": [1.0, 2.0]})
    np.testing.assert_array_equal(model.named_parameters()["layers.3.bias"], [1, 2])
    model.set_parameters(list(flat))
    np.testing.assert_array_equal(model.parameters, flat)
    np.testing.assert_array_equal(flat, np.concatenate([a.ravel() for a in named.values()]))


def test_theta_undoes_look_ahead(data: Arrays) -> None:
    model = tw.Model(nn.Dense(2), 20, optimizer=optim.Nesterov(0.1, 0.5), dtype="float64")
    model.fit(*data, verbose=False)
    (velocity,) = model.optimizer_state().values()
    flat = np.concatenate([v.ravel() for v in velocity.values()])
    np.testing.assert_allclose(model.theta(), model.parameters - 0.5 * flat, rtol=1e-12)
    plain = tw.Model(nn.Dense(2), 20)
    np.testing.assert_array_equal(plain.theta(), plain.parameters)


def test_averaged(data: Arrays) -> None:
    model = classifier(averaging=optim.EMA(0.9))
    model.fit(*data, epochs=3, verbose=False)
    average = model.averaged(data[0])
    assert not np.array_equal(average.parameters, model.parameters)
    expected = average.copy()
    expected.recalibrate_batch_norm(data[0])
    np.testing.assert_array_equal(
        average.named_state()["layers.1.running_mean"],
        expected.named_state()["layers.1.running_mean"],
    )
    assert np.isfinite(average.evaluate(*data)["loss"])


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle", "file"])
def test_copies_train_on_bit_for_bit(data: Arrays, tmp_path: Path, how: str) -> None:
    model = classifier(averaging=optim.Polyak())
    model.fit(*data, epochs=3, max_steps=13, verbose=False)
    if how == "file":
        model.save(tmp_path / "model.safetensors")
        other = tw.Model.load(tmp_path / "model.safetensors", device=DEVICE)
    else:
        copies = {
            "copy": copy.copy,
            "deepcopy": copy.deepcopy,
            "pickle": lambda m: pickle.loads(pickle.dumps(m)),
        }
        other = copies[how](model)
    assert (other.steps_done, other.epochs_done) == (13, 1)
    for m in (model, other):
        m.fit(*data, epochs=2, verbose=False)
    np.testing.assert_array_equal(other.parameters, model.parameters)
    assert other.description == model.description


def test_python_loss_is_pickled_but_not_saved(tmp_path: Path) -> None:
    x, y = np.eye(3), np.ones((3, 2))
    model = tw.Model(nn.Dense(2), 3, squared_error)
    assert pickle.loads(pickle.dumps(model)).step(x, y) == model.copy().step(x, y)
    model.save(tmp_path / "m.safetensors")
    loaded = tw.Model.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    with pytest.raises(ValueError, match=r"Model.load\(path, loss=function\)"):
        loaded.step(x, y)
    tw.Model.load(tmp_path / "m.safetensors", loss=squared_error).step(x, y)


def test_set_optimizer(data: Arrays) -> None:
    model = classifier()
    model.fit(*data, verbose=False)
    model.set_optimizer(optim.SGD(0.5))
    assert model.optimizer == optim.SGD(0.5)
    assert model.optimizer_state() == {}
    assert model.step(*data)["lr"] == 0.5
    assert pickle.loads(pickle.dumps(model)).optimizer == optim.SGD(0.5)


def test_texts(data: Arrays) -> None:
    model = classifier()
    assert repr(model) == (
        f"Model(20 -> 2: dense, batch_norm, relu, dense; 770 parameters, float32, {DEVICE})"
    )
    lines = model.summary().splitlines()
    assert len(lines) == 6
    assert lines[-1].split() == ["total", "770"]
    assert "batch_norm" in model.plan()


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float32),
        lambda x: np.asfortranarray(x),
        lambda x: x[::-1][::-1],
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x.tolist(),
        lambda x: memoryview(np.ascontiguousarray(x)),
    ],
    ids=["float32", "fortran", "reversed", "strided", "lists", "memoryview"],
)
def test_x_of_any_layout(data: Arrays, convert: Any) -> None:
    x = data[0].astype(np.float32).astype(np.float64)
    model = classifier()
    np.testing.assert_array_equal(model.predict(convert(x)), model.predict(x))


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float16"]
)
def test_x_of_any_dtype(dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 2, (50, 20)).astype(dtype)
    model = classifier()
    np.testing.assert_array_equal(model.predict(x), model.predict(x.astype(np.float32)))


# ---- threads and signals -------------------------------------------------------------------------


def test_threads_predict_concurrently(data: Arrays) -> None:
    model = classifier()
    expected = model.predict(data[0])
    failures: list[Any] = []

    def work() -> None:
        try:
            for _ in range(50):
                if not np.array_equal(model.predict(data[0]), expected):
                    failures.append("different bits")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_one_writer_at_a_time(data: Arrays) -> None:
    model = classifier()
    inside, leave = threading.Event(), threading.Event()

    def hold(*_: Any) -> bool:
        inside.set()
        leave.wait(10)
        return True

    def train() -> None:
        model.fit(*data, callbacks=[callbacks.LambdaCallback(on_epoch_end=hold)], verbose=False)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        assert inside.wait(10)
        for write in (
            lambda: model.step(*data),
            model.reset,
            lambda: model.fit(*data, verbose=False),
        ):
            with pytest.raises(RuntimeError, match="no other call is using for writing"):
                write()
        # Between two updates the model can be read from any thread.
        assert np.isfinite(model.evaluate(*data)["loss"])
    finally:
        leave.set()
        thread.join()
    model.step(*data)


def test_readers_see_complete_epochs_only(data: Arrays) -> None:
    model = classifier()
    thread = threading.Thread(target=lambda: model.fit(*data, epochs=300, verbose=False))
    thread.start()
    seen = []
    while thread.is_alive():
        seen.append(model.steps_done)
    thread.join()
    assert {steps % 10 for steps in seen} == {0}


SIGNAL_PROGRAM = """
import os, signal, sys, threading, time
import numpy as np
import thalweg as tw
from thalweg import nn
rng = np.random.default_rng(0)
width, rows = int(sys.argv[1]), int(sys.argv[2])
x, y = rng.normal(size=(rows, width)).astype(np.float32), rng.integers(0, 2, rows)
model = tw.Model(nn.Sequential(nn.Dense(width), nn.ReLU(), nn.Dense(2)), width)
model.fit(x[:64], y[:64], verbose=False)
sent = []
def fire():
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)
threading.Timer(0.5, fire).start()
try:
    if sys.argv[3] == "fit":
        model.fit(x, y, epochs=10**9, verbose=False)
    else:
        model.predict(np.broadcast_to(x[:1], (10**9, width))[: 10**7], batch_size=int(sys.argv[4]))
except KeyboardInterrupt:
    delay = time.perf_counter() - sent[0]
    steps = model.steps_done
    model.step(x[:64], y[:64])
    assert model.steps_done == steps + 1
    assert np.isfinite(model.parameters).all()
    print(f"delay {delay:.4f}")
"""


@pytest.mark.parametrize(
    ("width", "rows", "call"), [(16, 256, "fit"), (512, 4096, "fit"), (64, 256, "predict")]
)
def test_ctrl_c(width: int, rows: int, call: str) -> None:
    # What is in flight has to end first, and emulated it takes its time.
    batch = 10**3 if EMULATED else 10**5
    arguments = [sys.executable, "-c", SIGNAL_PROGRAM, str(width), str(rows), call, str(batch)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    # The promise is 0.25 s; a loaded machine gets four times that.
    assert float(result.stdout.split()[1]) < 1.0


def test_other_signal_handlers_run_and_may_raise(data: Arrays) -> None:
    class Alarm(Exception):
        pass

    def handler(*_: Any) -> None:
        raise Alarm

    previous = signal.signal(signal.SIGALRM, handler)
    model = classifier()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Alarm):
            model.fit(*data, epochs=10**9, verbose=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    model.step(*data)


HANDLER_PROGRAM = """
import signal, sys
import numpy as np
import thalweg as tw
from thalweg import nn
model = tw.Model(nn.Sequential(nn.Dense(32), nn.ReLU(), nn.Dense(2)), 20)
x, y = np.broadcast_to(np.ones(20), (10**7, 20)), np.broadcast_to(1, 10**7)
signal.signal(signal.SIGALRM, lambda *_: model.save(sys.argv[1]))
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    model.fit(x, y, verbose=False)  # an epoch of several seconds without a callback
except RuntimeError as error:
    print(error)
model.save(sys.argv[1])
"""


def test_signal_handlers_that_use_the_model_do_not_hang(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", HANDLER_PROGRAM, str(tmp_path / "x")]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "a signal handler that leaves the model alone" in result.stdout


def test_training_lets_other_threads_run(data: Arrays) -> None:
    model = classifier()
    count = 0
    thread = threading.Thread(target=lambda: model.fit(*data, epochs=3000, verbose=False))
    thread.start()
    while thread.is_alive():
        count += 1
        time.sleep(0)
    thread.join()
    assert count > 100


# ---- the module ----------------------------------------------------------------------------------


def test_import_is_light() -> None:
    code = "import sys, thalweg; print(*sorted(m for m in sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"tqdm", "sklearn", "matplotlib", "torch", "scipy"} & set(modules)


def test_attributes() -> None:
    assert tw.__version__ == _core.__version__
    assert set(tw.__all__) <= set(dir(tw))
    for name in tw.__all__:
        assert getattr(tw, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Modell'"):
        tw.Modell  # noqa: B018
    assert os.path.isdir(os.path.dirname(_core.__file__))


@pytest.mark.parametrize(
    "name", ["nn", "optim", "schedules", "init", "losses", "callbacks", "model", "ops", "_fit"]
)
def test_docstring_examples(name: str) -> None:
    module = importlib.import_module(f"thalweg.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_docstring_example_of_the_package() -> None:
    assert doctest.testmod(tw).failed == 0


def test_ops_optimizer_step_is_the_models(data: Arrays) -> None:
    model = tw.Model(nn.Dense(2), 20, optimizer=optim.Adam(0.01), dtype="float64")
    before, gradient = model.parameters, model.loss_and_grad(*data)[1]
    model.step(*data)
    after, slots = ops.optimizer_step("adam", before, gradient, t=1, lr=0.01)
    np.testing.assert_allclose(model.parameters, after, rtol=1e-12)
    assert len(slots) == 2


# ---- the stub ------------------------------------------------------------------------------------

STUB = Path(tw.__file__).resolve().parent / "_core.pyi"


def stub_functions() -> dict[str, list[str]]:
    """Parameter names by qualified name, properties as ["self"]."""
    functions = {}
    for node in ast.parse(STUB.read_text()).body:
        owners = [("", node)] if isinstance(node, ast.FunctionDef) else []
        if isinstance(node, ast.ClassDef):
            owners = [(f"{node.name}.", n) for n in node.body if isinstance(n, ast.FunctionDef)]
        for prefix, function in owners:
            arguments = function.args
            names = [
                a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            ]
            functions[prefix + function.name] = names
    return functions


def module_functions() -> dict[str, list[str]]:
    """The same, from the signatures that pybind11 writes into docstrings."""
    functions = {}
    for prefix, owner in (
        ("", _core),
        ("DeviceArray.", _core.DeviceArray),
        ("Model.", _core.Model),
        ("Objective.", _core.Objective),
        ("ops.", _core.ops),
        ("_testing.", _core._testing),
    ):
        for name in vars(owner):
            member = getattr(owner, name)
            if isinstance(member, property):
                functions[prefix + name] = ["self"]
                continue
            text = getattr(member, "__doc__", None) or ""
            match = re.match(rf"{name}\((.*)\) -> ", text)
            if match is None or isinstance(member, type):
                continue
            functions[prefix + name] = re.findall(r"(\w+)(?=: )", match[1])
    return functions


def test_stub_is_what_the_module_has() -> None:
    assert stub_functions() == module_functions()
