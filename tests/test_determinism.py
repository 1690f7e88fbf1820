"""The same bits from run to run, for any number of threads, after a resume and under load."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import thalweg as tw
from conftest import DEVICE, EMULATED, scaled
from support import Array, assert_same, case_model, model_of, snapshot
from thalweg import callbacks, nn, optim, schedules
from thalweg._core import _testing

ROWS, WIDTH = (150, 66) if EMULATED else (530, 130)
FEATURES, CLASSES = 45, 10
THREADS = (1, 3) if DEVICE == "cuda" else (1, 2, 3, 4, 8)  # what runs on a GPU does not see them


def data(rows: int = ROWS) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(3)
    return (
        rng.standard_normal((rows, FEATURES)).astype(np.float32),
        rng.integers(0, CLASSES, rows),
        rng.uniform(0.5, 2.0, rows),
    )


def network() -> list[nn.Layer]:
    return [
        nn.Dense(WIDTH), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2),
        nn.Residual(nn.Dense(WIDTH), nn.BatchNorm(weighted=True), nn.GELU()),
        nn.Maxout(70, 2), nn.Dense(CLASSES),
    ]  # fmt: skip


def model(threads: int | None = None, **options: Any) -> tw.Model:
    defaults: dict[str, Any] = {
        "optimizer": optim.Nesterov(
            schedules.Cosine(0.05, 40), schedules.NesterovConvex(), weight_decay=1e-3
        ),
        "averaging": optim.EMA(0.9),
        "seed": 2**63 + 5,
        "device": DEVICE,
        "threads": threads,
    }
    return tw.Model(network(), FEATURES, **{**defaults, **options})


SETTINGS: dict[str, dict[str, Any]] = {
    "fused": {},
    "clipped": {"clip_norm": 0.5},
    "float64": {"dtype": "float64", "optimizer": optim.Adam()},
}


def check_threads(build: Callable[[int], tw.Model], x: Array, y: Array, **fit: Any) -> None:
    """Models of 1 to 8 threads end with the same bits."""
    states = {}
    for threads in THREADS:
        m = build(threads)
        history = m.fit(x, y, verbose=False, **fit)
        assert np.isfinite(history["loss"]).all()
        states[threads] = (snapshot(m), history["loss"])
    assert all(state == states[1] for state in states.values())


def test_the_pool_runs_as_many_threads_as_asked() -> None:
    assert [_testing.team_size(threads) for threads in THREADS] == list(THREADS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_threads_do_not_change_bits(setting: str) -> None:
    x, y, w = data()
    states = {}
    for threads in THREADS:
        m = model(threads, **SETTINGS[setting])
        assert m.threads == threads
        history = m.fit(
            x, y, sample_weight=w, epochs=2, batch_size=66 if EMULATED else 192, accumulate=2,
            validation_data=(x, y), verbose=False,
        )  # fmt: skip
        loss, gradient, dx = m.loss_and_grad(x, y, sample_weight=w, input_gradient=True)
        states[threads] = (
            snapshot(m), history["loss"], history["validation_loss"], loss,
            gradient.tobytes(), dx.tobytes(), m.predict(x).tobytes(),
        )  # fmt: skip
    assert all(state == states[1] for state in states.values())


@pytest.mark.skipif(DEVICE == "cuda", reason="how threads of the CPU divide a minibatch")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "float64", "optimizer": optim.Adam()},
        {"matmul_precision": "medium"},
        {"custom_loss": True},
        {
            "averaging": optim.EMA(0.9),
            "optimizer": optim.Adam(groups=[optim.Group("layers.0.*", frozen=True)]),
        },
    ],
    ids=lambda options: next(iter(options), "fused"),
)
@pytest.mark.parametrize("batch_size", [1024, 1000, 769, 512])
def test_threads_that_keep_to_their_rows_change_no_bits(
    options: dict[str, Any], batch_size: int
) -> None:
    """Minibatches so high that 2, 4 and 8 threads divide the rows, and 3 do not."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2100, 128)).astype(np.float32)
    y = rng.integers(0, CLASSES, len(x))

    def squared_error(z: Array, labels: Array) -> tuple[float, Array]:
        error = np.asarray(z) - np.eye(CLASSES, dtype=np.float32)[labels]
        return float((error**2).mean()), 2 * error / error.size

    if "custom_loss" in options:
        options = {"loss": squared_error}
    layers: list[nn.Layer] = [
        nn.Dense(96), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.1),
        nn.Residual(nn.Dense(96), nn.BatchNorm(weighted=True), nn.GELU()),
        nn.Maxout(70, 2), nn.Dense(CLASSES),
    ]  # fmt: skip
    weights = None if "loss" in options else rng.random(len(x))
    options = {"optimizer": optim.Momentum(0.05), **options}
    check_threads(
        lambda threads: tw.Model(layers, 128, threads=threads, **options),
        x, y, sample_weight=weights, epochs=2, batch_size=batch_size,
    )  # fmt: skip


@pytest.mark.skipif(DEVICE == "cuda", reason="how the CPU makes gradients of many rows")
@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": "float64"}, {"matmul_precision": "medium"}],
    ids=lambda options: next(iter(options), "float32"),
)
@pytest.mark.parametrize("batch_size", [1025, 2400])
def test_gradients_in_groups_of_tiles_change_no_bits(
    options: dict[str, Any], batch_size: int
) -> None:
    """A limit that clips nothing keeps gradient and optimizer apart, and so makes groups."""
    rng = np.random.default_rng(11)
    x = rng.standard_normal((2400, 200)).astype(np.float32)
    y = rng.integers(0, CLASSES, len(x))
    states = []
    for clip_norm, threads in ((None, 1), (1e9, 1), (1e9, 2), (1e9, 3)):
        m = tw.Model(
            [nn.Dense(170), nn.BatchNorm(), nn.ReLU(), nn.Dense(140), nn.ReLU(), nn.Dense(CLASSES)],
            200, optimizer=optim.Momentum(0.05), clip_norm=clip_norm, threads=threads, **options,
        )  # fmt: skip
        m.fit(x, y, epochs=2, batch_size=batch_size, verbose=False)
        states.append(snapshot(m))
    assert all(state == states[0] for state in states)


@pytest.mark.skipif(DEVICE == "cuda", reason="how threads of the CPU divide a minibatch")
@pytest.mark.parametrize("loss", ["cross_entropy", "probabilities", "squared_error", "bfloat16"])
@pytest.mark.parametrize("batch_size", [17, 32, 50, 90])
def test_threads_that_share_a_small_minibatch_change_no_bits(loss: str, batch_size: int) -> None:
    """Layers wide enough for 8 threads, and a last one with fewer blocks than threads."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal((180, 128)).astype(np.float32)
    y = rng.integers(0, CLASSES, len(x))
    options: dict[str, Any] = {"matmul_precision": "medium"} if loss == "bfloat16" else {}
    if loss == "probabilities":
        y = rng.dirichlet(np.ones(CLASSES), len(x)).astype(np.float32)
    if loss == "squared_error":
        y = rng.standard_normal((len(x), CLASSES)).astype(np.float32)
        options["loss"] = "squared_error"
    layers: list[nn.Layer] = [
        nn.Dense(544), nn.BatchNorm(), nn.ReLU(), nn.Dense(256), nn.ReLU(),
        nn.Dense(2 * CLASSES), nn.Maxout(CLASSES, 2),
    ]  # fmt: skip
    check_threads(
        lambda threads: tw.Model(
            layers, 128, threads=threads, optimizer=optim.Momentum(0.01), **options
        ),
        x, y, epochs=3, batch_size=batch_size,
    )  # fmt: skip


@pytest.mark.skipif(DEVICE == "cuda", reason="how threads of the CPU divide a minibatch")
@pytest.mark.parametrize(
    "options",
    [{}, {"clip_norm": 0.5}, {"dtype": "float64"}, {"matmul_precision": "medium"}],
    ids=lambda options: next(iter(options), "fused"),
)
@pytest.mark.parametrize("batch_size", [33, 64, 100])
def test_threads_that_keep_to_columns_of_batch_norm_change_no_bits(
    options: dict[str, Any], batch_size: int
) -> None:
    """Batch norm of whole columns per thread, first, after and before a dense layer."""
    rng = np.random.default_rng(10)
    x = rng.standard_normal((200, 256)).astype(np.float32)
    y = rng.integers(0, CLASSES, len(x))
    layers: list[nn.Layer] = [
        nn.BatchNorm(), nn.Dense(256), nn.BatchNorm(), nn.GELU(),
        nn.Dense(256), nn.BatchNorm(weighted=True), nn.ReLU(), nn.Dense(256),
        nn.Residual(nn.BatchNorm(), nn.Tanh(), nn.Dense(256)), nn.Dense(CLASSES),
    ]  # fmt: skip
    check_threads(
        lambda threads: tw.Model(
            layers, 256, threads=threads, optimizer=optim.Momentum(0.01), **options
        ),
        x, y, epochs=4, batch_size=batch_size,
    )  # fmt: skip


@pytest.mark.skipif(DEVICE == "cuda", reason="how threads of the CPU divide a pass")
@pytest.mark.parametrize("batch_size", [64, 192, 448, 1000])
def test_threads_that_share_inference_change_no_bits(batch_size: int) -> None:
    """Passes whose rows some numbers of threads share, and others have to share every layer."""
    x, y, w = data(1000)
    states = {}
    for threads in THREADS:
        m = model(threads)
        m.fit(x, y, epochs=1, batch_size=500, verbose=False)
        states[threads] = (
            m.predict(x, batch_size=batch_size).tobytes(),
            m.predict_proba(x, batch_size=batch_size).tobytes(),
            m.evaluate(x, y, sample_weight=w, batch_size=batch_size),
        )
    assert all(state == states[1] for state in states.values())


def test_twenty_runs_give_one_result() -> None:
    x, y, w = data(200)

    def run() -> dict[str, bytes]:
        m = model(2)
        m.fit(x, y, sample_weight=w, epochs=2, batch_size=64, verbose=False)
        return snapshot(m)

    first = run()
    assert all(run() == first for _ in range(scaled(19, 3)))


def test_random_networks_on_any_number_of_threads(tmp_path: Path) -> None:
    for case in networks.random_cases(scaled(15, 4), 9000):
        results = set()
        repeats = -(-scaled(2000) // len(case.x))  # enough work for a team
        x, y = (np.concatenate([a] * repeats) for a in (case.x, case.target))
        w = None if case.sample_weight is None else np.tile(case.sample_weight, repeats)
        for threads in THREADS[:3]:
            m = case_model(case, "float32", tmp_path, threads=threads)
            loss, gradient = m.loss_and_grad(x, y, sample_weight=w)
            m.step(x, y, w)
            results.add((loss, gradient.tobytes(), m.parameters.tobytes()))
        assert len(results) == 1, case.seed


def test_a_new_process_gives_the_same_bits(tmp_path: Path) -> None:
    """Also with one thread by the environment and with address-space randomization."""
    script = (
        "import sys, hashlib, test_determinism as t\n"
        "x, y, w = t.data(200)\n"
        "m = t.model()\n"
        "m.fit(x, y, sample_weight=w, epochs=2, batch_size=64, verbose=False)\n"
        "print(hashlib.sha256(b''.join(t.snapshot(m).values())).hexdigest())\n"
    )
    hashes = set()
    for threads in THREADS[:3]:
        environment = {**os.environ, "THALWEG_NUM_THREADS": str(threads)}
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, cwd=Path(__file__).parent,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        hashes.add(run.stdout)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "options",
    [{"dtype": "float32"}, {"dtype": "float64"}, {"matmul_precision": "medium", "device": "cpu"}],
    ids=["float32", "float64", "medium"],
)
def test_outputs_do_not_depend_on_the_batch(options: dict[str, Any]) -> None:
    x, y, w = data()
    m = model(**options)
    m.fit(x, y, epochs=1, verbose=False)
    whole = m.predict(x)
    for size in (1, 2, 31, 63, 64, 65, 100, 10_000):
        np.testing.assert_array_equal(m.predict(x, batch_size=size), whole)
    for first, last in ((0, 1), (7, 8), (ROWS - 1, ROWS), (3, 68), (ROWS - 130, ROWS - 1)):
        np.testing.assert_array_equal(m.predict(x[first:last]), whole[first:last])
        np.testing.assert_array_equal(m.forward(x[first:last]), whole[first:last])
        np.testing.assert_array_equal(
            m.predict_proba(x[first:last]), m.predict_proba(x)[first:last]
        )
    losses = {
        m.evaluate(x, y, sample_weight=w, batch_size=size)["loss"] for size in (1, 64, 100, 999)
    }
    assert max(losses) - min(losses) <= 1e-12


def test_passes_cut_to_the_caches_change_nothing() -> None:
    # What lies between these layers takes 1 MiB for 200 rows.
    rng = np.random.default_rng(3)
    rows, width = 1500, 1200
    x = rng.normal(size=(rows, 30)).astype(np.float32)
    y = rng.integers(0, 5, rows)
    found = set()
    for threads in (1, 2):
        network = [nn.Dense(width), nn.BatchNorm(), nn.ReLU(), nn.Dense(5)]
        m = tw.Model(network, 30, device="cpu", seed=2, threads=threads)
        m.fit(x[:200], y[:200], epochs=1, verbose=False)
        for size in (1, 64, 500, rows):
            outputs = m.predict(x, batch_size=size).tobytes()
            found.add((outputs, str(m.evaluate(x, y, batch_size=size))))
    assert len(found) == 1


def test_a_loss_of_the_callers_gets_whole_batches() -> None:
    seen = []

    def loss(prediction: Any, target: Any) -> tuple[float, Any]:
        seen.append(len(prediction))
        difference = prediction - target
        return float(np.mean(difference**2)), 2 * difference / difference.size

    m = tw.Model([nn.Dense(1500), nn.ReLU(), nn.Dense(2)], 3, loss=loss, device="cpu")
    m.evaluate(np.ones((1000, 3)), np.zeros((1000, 2)), batch_size=640)
    assert seen == [640, 360]


def test_outputs_of_random_networks_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    for case in networks.random_cases(scaled(20, 4), 9100):
        m = case_model(case, "float32", tmp_path)
        whole = m.predict(case.x)
        rows = [m.predict(case.x[i : i + 1]) for i in range(len(case.x))]
        np.testing.assert_array_equal(np.concatenate(rows), whole, err_msg=f"seed {case.seed}")


@pytest.mark.parametrize("through", ["memory", "checkpoint", "copy"])
@pytest.mark.parametrize("shuffle", ["epoch", "stack", "iid", False])
def test_resume_at_any_step(shuffle: str | bool, through: str, tmp_path: Path) -> None:
    """Stop after every number of updates, go on from what was kept: the bits of one run."""
    x, y, w = data(100)
    options: dict[str, Any] = {
        "sample_weight": w, "batch_size": 33, "shuffle": shuffle, "accumulate": 2, "verbose": False,
    }  # fmt: skip
    whole = model(1)
    rows = whole.fit(x, y, epochs=3, **options).epochs
    total = whole.steps_done
    assert total == 6
    for stop in range(1, total, 2 if EMULATED else 1):
        m = model(1)
        m.fit(x, y, epochs=3, max_steps=stop, **options)
        if through == "checkpoint":
            m.save(tmp_path / "resume.safetensors")
            m = tw.Model.load(tmp_path / "resume.safetensors", device=DEVICE, threads=2)
        elif through == "copy":
            m = m.copy()
        history = m.fit(x, y, epochs=3 - m.epochs_done, **options)
        assert_same(m, whole)
        for column in ("loss", "accuracy", "lr", "epoch"):
            assert history.epochs[-1][column] == rows[-1][column]


@pytest.mark.parametrize("optimizer", tw._core.optimizers())
def test_every_optimizer_resumes_from_a_file(optimizer: str, tmp_path: Path) -> None:
    x, y, _ = data(64)
    description = {
        "in_features": FEATURES,
        "layers": [layer.to_dict() for layer in network()],
        "loss": {"type": "cross_entropy"},
        "optimizer": {"type": optimizer},
        "averaging": {"type": "polyak", "start": 2},
        "clip_norm": 1.0,
    }
    whole, parts = model_of(description), model_of(description)
    for _ in range(6):
        whole.step(x, y)
    for _ in range(3):
        parts.step(x, y)
        parts.step(x, y)
        parts.save(tmp_path / "parts.safetensors")
        parts = tw.Model.load(tmp_path / "parts.safetensors", device=DEVICE)
        assert_same(parts, tw.Model.load(tmp_path / "parts.safetensors", device=DEVICE))
    assert_same(whole, parts)


def test_a_checkpoint_inside_an_epoch(tmp_path: Path) -> None:
    """Saved by a callback in the middle of an epoch while training goes on."""
    x, y, _ = data(200)
    path = tmp_path / "middle.safetensors"

    def save(m: tw.Model, step: int, logs: dict[str, Any]) -> None:
        if step == 9:
            m.save(path)

    whole = model()
    options: dict[str, Any] = {"batch_size": 32, "verbose": False}
    note = callbacks.LambdaCallback(on_step=save)
    whole.fit(x, y, epochs=3, callbacks=[note], **options)
    resumed = tw.Model.load(path, device=DEVICE)
    assert (resumed.steps_done, resumed.epochs_done) == (9, 1)
    resumed.fit(x, y, epochs=2, **options)
    assert_same(resumed, whole)


def test_a_busy_pool_gives_the_same_bits() -> None:
    """Models that train at the same time share the pool; who finds it busy runs alone."""
    x, y, w = data(300)

    def train(_: int) -> dict[str, bytes]:
        m = model(4)
        m.fit(x, y, sample_weight=w, epochs=2, batch_size=100, verbose=False)
        return snapshot(m)

    alone = train(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(result == alone for result in pool.map(train, range(scaled(8, 4))))


def test_predictions_from_many_threads() -> None:
    x, y, _ = data()
    m = model()
    m.fit(x, y, verbose=False)
    expected, gradient = m.predict(x), m.loss_and_grad(x, y)[1]
    start = threading.Barrier(16)

    def work(index: int) -> bool:
        start.wait()
        good = True
        for i in range(scaled(12, 2)):
            size = 1 + (index * 37 + i * 61) % ROWS
            good &= np.array_equal(m.predict(x[:size], batch_size=128), expected[:size])
        return good and np.array_equal(m.loss_and_grad(x, y)[1], gradient)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


def test_readers_see_whole_updates() -> None:
    """Predictions while another thread trains come from one of its updates, never from between."""
    x, y, _ = data(128)
    m, mirror = model(2), model(2)
    outputs = {mirror.predict(x).tobytes()}
    steps = scaled(40, 10)
    for _ in range(steps):
        mirror.step(x, y)
        outputs.add(mirror.predict(x).tobytes())
    seen: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(m.predict(x).tobytes())

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(steps):
        m.step(x, y)
    done.set()
    for reader in readers:
        reader.join()
    assert seen and set(seen) <= outputs
    assert_same(m, mirror)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(DEVICE != "cpu", reason="no device of a parent works in its children")
def test_children_train_after_a_fork() -> None:
    """A child of a process that has used the pool trains, and gets the same bits."""
    script = (
        "import os, warnings, test_determinism as t\n"
        "warnings.simplefilter('ignore')\n"
        "x, y, w = t.data(200)\n"
        "def run():\n"
        "    m = t.model(4)\n"
        "    m.fit(x, y, epochs=1, batch_size=100, verbose=False)\n"
        "    return t.snapshot(m)\n"
        "expected = run()\n"
        "for _ in range(5):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if run() == expected else 1)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "assert run() == expected\n"
    )
    folder = Path(__file__).parent
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, timeout=60)
