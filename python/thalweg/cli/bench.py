"""`thalweg bench`: training steps per second here, beside the peers that are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import thalweg
from thalweg import nn, optim
from thalweg.cli.console import UserError, note, table

_REPEATS = 5


@dataclass(frozen=True)
class Case:
    """A network and how it is trained."""

    name: str
    widths: tuple[int, ...]
    batch: int
    optimizer: str


@dataclass(frozen=True)
class Result:
    """Time of one training step of one library, median of repeats."""

    case: str
    library: str
    microseconds: float
    samples_per_second: float


_CASES = (
    Case("784-512-512-10, batch 128, Adam", (784, 512, 512, 10), 128, "adam"),
    Case("64-64-64-10, batch 32, momentum", (64, 64, 64, 10), 32, "momentum"),
)


def run(options: Namespace) -> int:
    """Measure, each library in a process of its own, and print."""
    information = thalweg._core.information()
    threads = options.threads or information["threads"]
    note(
        f"{information['processor']}, instruction set {information['instruction_set']}, "
        f"{threads} threads, thalweg {thalweg.__version__}"
    )
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.5 * processors:
        note(f"load average {load:.1f} on {processors} processors: times will not be trustworthy")
    results = [
        _measure(case, library, threads, options.seconds)
        for case in _CASES
        for library, (_, module) in _LIBRARIES.items()
        if importlib.util.find_spec(module)
    ]
    best = {r.case: r.microseconds for r in results if r.library == "thalweg"}
    rows = []
    for r in results:
        factor = r.microseconds / best[r.case]
        compared = "" if r.library == "thalweg" else f"{factor:.2f} x as fast"
        speed = f"{r.samples_per_second:,.0f}"
        rows.append((r.case, r.library, f"{r.microseconds:,.0f}", speed, compared))
    print(table(("training step", "library", "us/step", "samples/s", "thalweg is"), rows, left=2))
    if options.json:
        text = json.dumps({"machine": information, "rows": [asdict(r) for r in results]}, indent=1)
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 0


def _measure(case: Case, library: str, threads: int, seconds: float) -> Result:
    """Thread pools of different libraries in one process would disturb each other."""
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "thalweg.cli.bench",
            str(_CASES.index(case)),
            library,
            str(threads),
            str(seconds),
        ],
        env={**os.environ, **dict.fromkeys(variables, str(threads))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UserError(f"the measurement of {library} failed: {lines[-1]}")
    each = float(done.stdout)
    return Result(case.name, library, 1e6 * each, case.batch / each)


def _step_seconds(train: Callable[[int], None], seconds: float) -> float:
    """Median over repeats of the time per step; `train(n)` does n steps, a multiple of 8."""
    train(8)
    started = time.perf_counter()
    train(32)
    each = (time.perf_counter() - started) / 32
    steps = 8 * max(1, min(int(seconds / _REPEATS / each / 8), 1 << 12))
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        train(steps)
        times.append((time.perf_counter() - started) / steps)
    return statistics.median(times)


def _data(case: Case, steps: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps * case.batch, case.widths[0]), np.float32)
    return x, rng.integers(0, case.widths[-1], len(x))


def _chunks(case: Case, epoch: Callable[[Any, Any], None]) -> Callable[[int], None]:
    """Epochs over one resident data set, so that the time is of training alone."""
    x, y = _data(case, 8)

    def train(steps: int) -> None:
        for _ in range(steps // 8):
            epoch(x, y)

    return train


def _thalweg(case: Case, threads: int) -> Callable[[int], None]:
    layers: list[nn.Layer] = []
    for width in case.widths[1:-1]:
        layers += [nn.Dense(width), nn.ReLU()]
    model = thalweg.Model(
        nn.Sequential(*layers, nn.Dense(case.widths[-1])),
        case.widths[0],
        optimizer=optim.from_dict({"type": case.optimizer, "lr": 1e-3}),
        device="cpu",
        threads=threads,
    )
    x, y = _data(case, 8)

    def train(steps: int) -> None:
        model.fit(x, y, epochs=steps // 8, batch_size=case.batch, verbose=False)

    return train


def _torch(case: Case, threads: int) -> Callable[[int], None]:
    import torch

    torch.set_num_threads(threads)
    layers: list[Any] = []
    for i, o in zip(case.widths[:-2], case.widths[1:-1], strict=True):
        layers += [torch.nn.Linear(i, o), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(case.widths[-2], case.widths[-1]))
    if case.optimizer == "adam":
        optimizer: Any = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    else:
        optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, fused=True)

    def epoch(x: Any, y: Any) -> None:
        for at in range(0, len(x), case.batch):
            rows = slice(at, at + case.batch)
            loss: Any = torch.nn.functional.cross_entropy(
                network(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return _chunks(case, epoch)


def _sklearn(case: Case, threads: int) -> Callable[[int], None]:
    from sklearn.neural_network import MLPClassifier

    solver = "adam" if case.optimizer == "adam" else "sgd"
    model = MLPClassifier(
        case.widths[1:-1],
        solver=solver,
        batch_size=case.batch,
        nesterovs_momentum=False,
        alpha=0.0,
    )
    classes = np.arange(case.widths[-1])
    return _chunks(case, lambda x, y: model.partial_fit(x, y, classes=classes))


_LIBRARIES: dict[str, tuple[Callable[[Case, int], Callable[[int], None]], str]] = {
    "thalweg": (_thalweg, "thalweg"),
    "PyTorch (eager)": (_torch, "torch"),
    "scikit-learn": (_sklearn, "sklearn"),
}

if __name__ == "__main__":
    case_index, name, thread_count, duration = sys.argv[1:]
    make = _LIBRARIES[name][0]
    print(_step_seconds(make(_CASES[int(case_index)], int(thread_count)), float(duration)))
