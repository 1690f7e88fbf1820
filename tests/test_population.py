"""Populations: every network ends where training it alone would have taken it, bit for bit."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thalweg as tw
from conftest import DEVICE, scaled
from support import assert_same
from thalweg import callbacks, losses, nn, optim, schedules

N = 5
ROWS = 203
THREADS = [1, 2, 3]
NETWORKS = {
    "plain": nn.Sequential(nn.Dense(33), nn.ReLU(), nn.Dense(4)),
    "batch norm, dropout": nn.Sequential(
        nn.Dense(40), nn.BatchNorm(), nn.GELU(), nn.Dropout(0.3), nn.Dense(4)
    ),
}
OPTIMIZERS = [
    optim.SGD(0.1),
    optim.Nesterov(0.05, momentum=schedules.NesterovConvex()),
    optim.RMSProp(1e-3),
    optim.AdamW(1e-2, groups=[optim.Group("*.bias", weight_decay=0.0)]),
]
RATES = [0.1, 0.03, 0.01, 0.003, 0.001]


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Inputs with eight columns and labels below four."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, 8)).astype(np.float32)
    return x, np.argmax(x[:, :4] + 0.1 * x[:, 4:], axis=1)


def population(network: str = "plain", **options: Any) -> tw.Population:
    options = {"optimizer": optim.Momentum(0.05), "threads": 2, "device": DEVICE, **options}
    return tw.Population(NETWORKS[network], N, 8, **options)


def alone(member: tw.Model) -> tw.Model:
    """A new model of the same description."""
    return tw.Model(
        member.network,
        member.in_features,
        member.loss,
        member.optimizer,
        seed=member.seed,
        averaging=member.averaging,
        clip_norm=member.description["clip_norm"],
        device=DEVICE,
        threads=1,
    )


def without_times(history: tw.History) -> list[dict[str, Any]]:
    timed = ("seconds", "samples_per_second")
    return [{k: v for k, v in row.items() if k not in timed} for row in history.epochs]


def compare(
    networks: tw.Population,
    history: tw.PopulationHistory,
    fit: Callable[[int, tw.Model], tw.History],
) -> None:
    """Every network and its history are those of `fit` on a model of its own."""
    for i, member in enumerate(networks):
        single = alone(member)
        own = fit(i, single)
        assert_same(single, member)
        assert without_times(own) == without_times(history[i])
        assert own.stopped_because == history[i].stopped_because
        assert own.best_epoch == history[i].best_epoch


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.type)
def test_equals_training_alone(data, threads, name, optimizer):
    networks = population(name, optimizer=optimizer, seeds=range(10, 10 + N), threads=threads)
    options = {"epochs": 3, "batch_size": 32, "validation_data": data, "verbose": False}
    history = networks.fit(*data, **options)
    compare(networks, history, lambda _, model: model.fit(*data, **options))


def test_own_hyperparameters(data):
    momentum = np.linspace(0.5, 0.9, N)
    decay = [schedules.Linear(0.1, tau=20)] * N
    networks = population(lr=decay, momentum=momentum, weight_decay=1e-4, seeds=[7] * N)
    assert [m.optimizer.momentum for m in networks] == momentum.tolist()
    assert {m.optimizer.weight_decay for m in networks} == {1e-4}
    history = networks.fit(*data, epochs=2, verbose=False)
    compare(networks, history, lambda _, m: m.fit(*data, epochs=2, verbose=False))


def test_own_optimizers_averages_and_clipping(data):
    optimizers = [optim.SGD(0.1), "adam", optim.AdaDelta(), optim.AdaGrad(), optim.Momentum()]
    networks = population(optimizer=optimizers, averaging=optim.EMA(0.9), clip_norm=0.5)
    options = {"epochs": 2, "accumulate": 2, "shuffle": "stack", "verbose": False}
    history = networks.fit(*data, **options)
    compare(networks, history, lambda _, m: m.fit(*data, **options))


@pytest.mark.parametrize("threads", THREADS)
def test_early_stopping_and_continuing(data, threads):
    rule = callbacks.EarlyStopping(patience=1)
    networks = population("batch norm, dropout", lr=RATES, threads=threads)
    options = {"epochs": 12, "early_stopping": rule, "validation_data": data, "verbose": False}
    networks.fit(*data, epochs=1, max_steps=3, verbose=False)
    history = networks.fit(*data, **options)

    def both(_: int, model: tw.Model) -> tw.History:
        model.fit(*data, epochs=1, max_steps=3, verbose=False)
        return model.fit(*data, **options)

    compare(networks, history, both)
    assert history["loss"].shape == (N, max(map(len, history)))
    assert np.isnan(history["loss"]).sum() == sum(len(history["loss"][0]) - len(h) for h in history)


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_each(data, weighted):
    x, y = data
    rng = np.random.default_rng(2)
    w = rng.uniform(0.5, 2.0, ROWS) if weighted else None
    mask = np.arange(ROWS) % 3 == 0
    rows = [mask, np.arange(50), rng.integers(0, ROWS, ROWS), range(ROWS - 1, 0, -1), [5, 6, 7]]
    networks = population("batch norm, dropout")
    wide = np.asfortranarray(np.repeat(x, 2, axis=1))[:, ::2]  # any strides
    history = networks.fit(wide, y, rows=rows, epochs=2, sample_weight=w, verbose=False)

    def fit(i: int, model: tw.Model) -> tw.History:
        index = np.flatnonzero(mask) if i == 0 else np.asarray(rows[i])
        weights = None if w is None else w[index]
        return model.fit(x[index], y[index], sample_weight=weights, epochs=2, verbose=False)

    compare(networks, history, fit)


def test_own_arrays(data):
    x, y = data
    xs = [x[i : i + 100].astype(np.float64) for i in range(N)]
    ys = [y[i : i + 100] for i in range(N)]
    networks = population()
    tests = ([x[-40:]] * N, [y[-40:]] * N)
    history = networks.fit(xs, ys, epochs=2, validation_data=tests, verbose=False)
    compare(
        networks,
        history,
        lambda i, m: m.fit(
            xs[i], ys[i], epochs=2, validation_data=(x[-40:], y[-40:]), verbose=False
        ),
    )
    metrics = networks.evaluate(xs, ys)
    for i, member in enumerate(networks):
        expected = member.evaluate(xs[i], ys[i])
        assert metrics["loss"][i] == expected["loss"]
        assert metrics["accuracy"][i] == expected["accuracy"]


def test_few_large_networks(data):
    """Where a team is faster, networks train one after another: the same bits."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(512, 8)), rng.integers(0, 4, 512)
    width = scaled(512)
    network = nn.Sequential(nn.Dense(width), nn.ReLU(), nn.Dense(width), nn.ReLU(), nn.Dense(4))
    networks = tw.Population(network, 2, 8, threads=8, device=DEVICE)
    history = networks.fit(x, y, batch_size=512, epochs=2, verbose=False)
    compare(networks, history, lambda _, m: m.fit(x, y, batch_size=512, epochs=2, verbose=False))


def test_predictions(data):
    x, y = data
    networks = population("batch norm, dropout")
    networks.fit(*data, verbose=False)
    outputs, chances = networks.predict(x), networks.predict_proba(x)
    assert outputs.shape == (N, ROWS, 4)
    metrics = networks.evaluate(x, y)
    for i, member in enumerate(networks):
        assert np.array_equal(outputs[i], member.predict(x))
        assert np.array_equal(chances[i], member.predict_proba(x))
        assert metrics["loss"][i] == member.evaluate(x, y)["loss"]
    assert networks.best(x, y) is networks[int(np.argmin(metrics["loss"]))]
    best = networks.best(x, y, monitor="accuracy")
    assert best is networks[int(np.argmax(metrics["accuracy"]))]


def test_sequence_of_models():
    networks = population()
    assert len(networks) == N
    assert networks[-1] is networks.models[-1]
    assert [m.seed for m in networks] == list(range(N))
    assert [m.seed for m in networks[1:3]] == [1, 2]
    assert networks[1:3][0] is networks[1]
    assert repr(networks).startswith("Population(5 x Model(8 -> 4")


def test_template_model(data):
    model = tw.Model(
        NETWORKS["plain"], 8, losses.CrossEntropy(0.1), optim.SGD(0.5), seed=9, dtype="float64"
    )
    networks = tw.Population(model, 2, momentum=0.5, optimizer="momentum", seeds=[9, 3])
    assert networks[0].loss == model.loss
    assert networks[0].dtype == np.float64
    assert networks[0].optimizer == optim.Momentum(momentum=0.5)
    assert np.array_equal(networks[0].parameters, model.parameters)


@pytest.mark.parametrize("threads", THREADS)
def test_one_network_that_diverges(data, threads, caplog):
    networks = population(lr=[0.05, 1e9, 0.05, 0.05, 0.05], threads=threads)
    with caplog.at_level(logging.WARNING, "thalweg"):
        history = networks.fit(*data, epochs=2, verbose=False)
    assert "(network 1)" in caplog.text
    assert list(history.errors) == [1]
    assert history.errors[1].step >= 1
    assert [h.stopped_because for h in history] == ["epochs", "non_finite", *["epochs"] * 3]
    for i, member in enumerate(networks):
        single = alone(member)
        if i == 1:
            with pytest.raises(tw.NonFiniteError):
                single.fit(*data, epochs=2, verbose=False)
        else:
            single.fit(*data, epochs=2, verbose=False)
        assert_same(single, member)
    networks.reset()
    with pytest.raises(tw.NonFiniteError, match=r"\(network 1\)"):
        networks.fit(*data, epochs=2, non_finite="raise", verbose=False)
    assert networks[4].epochs_done == 2
    assert networks.best(*data) is not networks[1]


def test_bad_data_changes_nothing(data):
    x, y = data
    networks = population()
    before = networks.predict(x)
    poisoned = x.copy()
    poisoned[17, 3] = np.nan
    with pytest.raises(ValueError, match=r"finite x, got x\[17, 3\]"):
        networks.fit(poisoned, y, verbose=False)
    with pytest.raises(ValueError, match=r"x\[17, 3\] = nan \(network 3\)"):
        networks.fit([x, x, x, poisoned, x], y, verbose=False)
    with pytest.raises(ValueError, match=r"rows in \[0, 203\), got 203 \(network 4\)"):
        networks.fit(x, y, rows=[[0, 1]] * 4 + [[203]], verbose=False)
    with pytest.raises(ValueError, match="all zeros in rows"):
        networks.fit(x, y, rows=[[0, 1]] * N, sample_weight=np.arange(ROWS) > 5, verbose=False)
    with pytest.raises(ValueError, match="validation"):
        networks.fit(x, y, validation_data=(poisoned, y), verbose=False)
    with pytest.raises(ValueError, match="at least 2 rows"):
        population("batch norm, dropout").fit(x, y, rows=[[0, 1]] * 4 + [[3]], verbose=False)
    assert np.array_equal(networks.predict(x), before)
    assert {m.steps_done for m in networks} == {0}


def test_bad_arguments(data):
    x, y = data
    networks = population()
    with pytest.raises(ValueError, match="expected 5 values of lr, got 2"):
        population(lr=[0.1, 0.2])
    with pytest.raises(TypeError, match=r"hyper-parameters of Momentum \(lr, .*got rho"):
        population(rho=0.9)
    with pytest.raises(TypeError, match="in_features"):
        tw.Population(NETWORKS["plain"], 3)
    with pytest.raises(TypeError, match="expected a loss of thalweg"):
        population(loss=lambda prediction, target: (0.0, prediction))
    with pytest.raises(ValueError, match="list of 5 for x, got 2"):
        networks.fit([x, x], y)
    with pytest.raises(ValueError, match="5 index arrays"):
        networks.fit(x, y, rows=[[0]])
    with pytest.raises(ValueError, match="mask of 203 rows"):
        networks.fit(x, y, rows=[np.ones(3, dtype=bool)] * N)
    with pytest.raises(ValueError, match=r"rows\[0\] to be indices or a mask"):
        networks.fit(x, y, rows=[[0.5]] * N)
    with pytest.raises(TypeError, match="on_epoch"):
        networks.fit(x, y, on_epoch=3)
    with pytest.raises(ValueError, match="'stop', 'raise'"):
        networks.fit(x, y, non_finite="ignore")
    with pytest.raises(ValueError, match="one of them twice"):
        tw.Population.of([networks[0], networks[0]])
    with pytest.raises(ValueError, match="at least one"):
        tw.Population.of([])
    with pytest.raises(ValueError, match="one architecture"):
        tw.Population.of([networks[0], population("batch norm, dropout")[1]])
    with pytest.raises(ValueError, match="classes"):
        tw.Population(nn.Dense(1), 2, 8, "squared_error").best(x, x[:, 0], monitor="accuracy")


@pytest.mark.parametrize("threads", THREADS)
def test_on_epoch(data, threads):
    networks = population(threads=threads)
    seen: list[tuple[int, int]] = []
    busy = threading.Lock()

    def on_epoch(number: int, row: dict[str, Any]) -> bool:
        assert busy.acquire(blocking=False), "calls overlap"
        seen.append((number, row["epoch"]))
        assert networks[number].epochs_done == row["epoch"]
        busy.release()
        return number == 2 and row["epoch"] == 2

    history = networks.fit(*data, epochs=3, on_epoch=on_epoch, verbose=False)
    assert sorted(seen) == [(n, e) for n in range(N) for e in (1, 2, 3) if (n, e) != (2, 3)]
    assert [h.stopped_because for h in history] == ["epochs", "epochs", "callback", *["epochs"] * 2]
    assert np.isnan(history["loss"][2, 2])


@pytest.mark.parametrize("threads", THREADS)
def test_error_in_a_callback(data, threads):
    networks = population(threads=threads)

    def on_epoch(number: int, row: dict[str, Any]) -> None:
        if number == 1:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        networks.fit(*data, epochs=scaled(1000), on_epoch=on_epoch, verbose=False)
    assert networks[1].epochs_done == 1
    networks.fit(*data, verbose=False)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("members", [2, N])
def test_interrupt(data, threads, members):
    """Also when the main thread's network is done and the others are not."""
    networks = population(threads=threads)[:members]
    x, y = data
    rows = [np.zeros(4, dtype=int) + i for i in range(members)]
    rows[-1] = np.tile(np.arange(ROWS), 50)
    sent: list[float] = []

    def press() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.6, press)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        networks.fit(x, y, rows=rows, epochs=3000, batch_size=64, verbose=False)
    late = time.perf_counter() - sent[0]
    timer.join()
    assert late < 1.0  # 250 ms on a machine with nothing else to do
    networks.fit(x, y, verbose=False)  # still usable


def test_a_network_in_use_is_refused(data):
    networks = population()
    inside = threading.Event()
    refused: list[BaseException] = []

    def on_epoch(number: int, row: dict[str, Any]) -> bool:
        if not inside.is_set():
            inside.set()
            other = threading.Thread(target=attempt)
            other.start()
            other.join()
        return True

    def attempt() -> None:
        try:
            networks[0].fit(*data, verbose=False)
        except RuntimeError as error:
            refused.append(error)

    networks.fit(*data, on_epoch=on_epoch, verbose=False)
    assert "no other call is using for writing" in str(refused[0])


def test_trains_from_another_thread(data):
    networks = population()
    thread = threading.Thread(target=lambda: networks.fit(*data, epochs=2, verbose=False))
    thread.start()
    thread.join()
    assert {m.epochs_done for m in networks} == {2}


def test_files(data, tmp_path: Path):
    folder = tmp_path / "runs" / "population"
    networks = population("batch norm, dropout", optimizer="adam", lr=RATES)
    networks.fit(*data, epochs=1, verbose=False)
    networks.save(folder)
    first = set(os.listdir(folder))
    (folder / "mine.txt").write_text("kept")
    loaded = tw.Population.load(folder, device=DEVICE, threads=2)
    pickled = pickle.loads(pickle.dumps(networks))
    for other in (loaded, pickled):
        assert other.threads == networks.threads
        other.fit(*data, epochs=2, verbose=False)
    networks.fit(*data, epochs=2, verbose=False)
    for i, member in enumerate(networks):
        assert_same(member, loaded[i])
        assert_same(member, pickled[i])
    networks[:2].save(folder)
    names = json.loads((folder / "population.json").read_text())["members"]
    assert set(os.listdir(folder)) == {"population.json", "mine.txt", *names}
    assert first & {*names} == set()
    assert len(tw.Population.load(folder)) == 2
    assert_same(tw.Model.load(folder / names[1], device=DEVICE), networks[1])


def test_bad_files(tmp_path: Path):
    networks = population()
    with pytest.raises(tw.CheckpointError, match="index of a population"):
        tw.Population.load(tmp_path)
    networks.save(tmp_path)
    index = tmp_path / "population.json"
    content = json.loads(index.read_text())
    for members in ([], ["../other"], [3], "abc/"):
        index.write_text(json.dumps({**content, "members": members}))
        with pytest.raises(tw.CheckpointError):
            tw.Population.load(tmp_path)
    index.write_text(json.dumps(content))
    (tmp_path / content["members"][2]).unlink()
    with pytest.raises(tw.CheckpointError):
        tw.Population.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(tw.CheckpointError, match="folder to write to"):
        networks.save(tmp_path / "file")


def test_history():
    history = tw.PopulationHistory([tw.History([{"epoch": 1, "loss": 0.5}]), tw.History()])
    np.testing.assert_array_equal(history["loss"], [[0.5], [np.nan]])
    assert len(history) == 2
    assert history[0:1] == [history[0]]
    with pytest.raises(KeyError):
        history["accuracy"]
