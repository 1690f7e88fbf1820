"""Times training steps on a GPU, peer after peer, until the time is up.

The cases stand in an order in which any beginning of the list covers widths, batches and
precisions, so that a run that ends early is still of use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import machine
from bench.cases import Case, make_problem
from bench.gpu import device
from bench.results import Results
from bench.steps import FailedError, SkippedError, loss_deviation, quartiles, reference_losses

PEERS = ("thalweg", "torch-fused", "torch-graph", "jax-scan")
# Compiles for up to a minute per case: takes part in the cases that say so.
SLOW_PEERS = ("torch-autotune",)
# Steps of the loss check; beyond so many operations PyTorch's losses are the reference.
_CHECK_STEPS, _CHECK_FLOPS = 3, 2e10
# Relative deviation of a loss. "high" is TensorFloat-32 in PyTorch, "medium" bfloat16.
TOLERANCE = {"highest": 1e-3, "high": 1e-2, "medium": 5e-2}


@dataclass(frozen=True)
class Task:
    case: Case
    batch: int
    precision: str = "highest"
    slow_peers: bool = False


def _case(width: int, **changes: Any) -> Case:
    """Three hidden layers of one width, 10 classes."""
    lr = 1e-3 if width < 1024 else 1e-4
    case = Case(f"w{width}", (width,) * 4 + (10,), "adam", lr, False, (), _CHECK_STEPS)
    return dataclasses.replace(case, **changes)


def _with_batch_norm(width: int) -> Case:
    return _case(width, name=f"w{width}-bn", batch_norm=True)


MNIST = Case(
    "mnist", (784, 512, 512, 10), "adam", 1e-3, True, (), _CHECK_STEPS, least_rows=60000
)  # fmt: skip


def tasks() -> list[Task]:
    """Everything there is to time, the most telling first."""
    first = [
        Task(_case(512), 1024, slow_peers=True),
        Task(_case(64), 256),
        Task(_case(4096), 4096),
        Task(_case(4096), 4096, "medium"),
        Task(MNIST, 128),
        Task(_with_batch_norm(512), 1024, slow_peers=True),
        Task(_case(256), 65536, "medium"),
        Task(_case(1024), 16384, "high"),
        Task(_case(1024), 1024),
        Task(MNIST, 1024),
        Task(_with_batch_norm(1024), 16384, "medium"),
        Task(_case(4096, name="w4096-momentum", optimizer="momentum"), 256),
        Task(_case(4096), 256),
    ]
    grid = [
        Task(_case(width), batch, precision)
        for precision in ("highest", "medium", "high")
        for batch in (1024, 16384, 256, 4096, 65536)
        for width in (64, 1024, 256, 4096, 128, 2048, 512)
    ]
    chosen = {(task.case.name, task.batch, task.precision) for task in first}
    return first + [t for t in grid if (t.case.name, t.batch, t.precision) not in chosen]


TINY = Task(Case("tiny", (16, 16, 16, 10), "adam", 1e-3, True, (), 2, least_rows=64), 32)


@dataclass(frozen=True)
class Options:
    """How to measure: rounds of one turn of `turn` seconds per peer."""

    device: str = "cuda"
    rounds: int = 5
    turn: float = 0.06
    peers: tuple[str, ...] = PEERS
    slow_peers: tuple[str, ...] = SLOW_PEERS
    peer_seconds: float = 90.0  # of one peer and case, after which its process is given up


class Worker:
    """The process of one peer."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._log = (folder / f"{name}.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu.worker", name],
            cwd=machine.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        self.granularity = self.steps = 1

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """The answer; a process that does not give one within `limit` seconds is killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(max(limit, 0.1), self._process.kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(request) + "\n")
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise FailedError(f"no answer within {limit:.0f} s, or the process died")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise FailedError(answer["failed"])
        if "skipped" in answer:
            raise SkippedError(answer["skipped"])
        return answer

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def turn(self, limit: float) -> float:
        """Seconds per step of one turn."""
        answer = self.ask(limit, do="run", steps=self.steps, warm_up=0, realtime=False)
        return float(answer["seconds"]) / self.steps

    def calibrate(self, turn: float, limit: float) -> None:
        """Find the number of steps that fills a turn; the first turns compile and warm up."""
        deadline = time.monotonic() + limit
        self.steps = self.granularity
        for _ in range(2):
            self.turn(deadline - time.monotonic())
        while True:
            seconds = self.turn(deadline - time.monotonic())
            wanted = turn / max(seconds, 1e-9)
            steps = max(1, round(min(wanted, 10 * self.steps) / self.granularity))
            self.steps = steps * self.granularity
            if wanted <= 2 * self.steps:
                return

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


class Workers:
    """One process per peer, started again after it died."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._workers: dict[str, Worker] = {}

    def get(self, name: str) -> Worker:
        worker = self._workers.get(name)
        if worker is None or not worker.alive:
            if worker is not None:
                worker.close()
            worker = self._workers[name] = Worker(name, self._folder)
        return worker

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()


@contextlib.contextmanager
def _workers() -> Iterator[Workers]:
    with tempfile.TemporaryDirectory(prefix="thalweg-gpu-") as folder:
        workers = Workers(Path(folder))
        try:
            yield workers
        finally:
            workers.close()


def measure(task: Task, options: Options, workers: Workers, deadline: float) -> dict[str, Any]:
    """The row of one task: all peers, checked, then timed in turns."""
    case, threads = task.case, len(machine.processors())
    problem = make_problem(case, task.batch, threads)
    cheap = case.flops_per_sample * task.batch * case.check_steps <= _CHECK_FLOPS
    reference = reference_losses(problem) if cheap else None
    row: dict[str, Any] = {
        "kind": "gpu-step",
        "case": case.name,
        "title": case.title,
        "batch": task.batch,
        "precision": task.precision,
        "parameters": case.parameters,
        "flops_per_sample": case.flops_per_sample,
        "steps_per_epoch": problem.steps_per_epoch,
        **machine.stamp(),
        "gpu": device.describe(),
        "device": options.device,
        "versions": {},
        "loss_check": {
            "steps": case.check_steps,
            "tolerance": TOLERANCE[task.precision],
            "reference": "float64 NumPy" if cheap else "PyTorch",
        },
        "peers": {},
        "skipped": {},
        "failed": {},
    }
    names = [*options.peers, *(options.slow_peers if task.slow_peers else ())]
    # PyTorch first where it is the reference.
    names.sort(key=lambda name: cheap or not name.startswith("torch"))
    ready: list[Worker] = []
    deviations: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="thalweg-problem-") as folder:
        problem.save(Path(folder))
        request = {
            "case": dataclasses.asdict(case),
            "batch": task.batch,
            "folder": folder,
            "device": options.device,
            "precision": task.precision,
            "threads": threads,
        }
        for name in names:
            limit = min(options.peer_seconds, deadline - time.monotonic())
            worker = workers.get(name)
            try:
                answer = worker.ask(limit, do="problem", **request)
                worker.granularity = answer["granularity"]
                losses = worker.ask(limit, do="losses", steps=case.check_steps)["losses"]
                reference = reference or losses
                deviations[name] = loss_deviation(losses, reference)
                if deviations[name] > TOLERANCE[task.precision]:
                    raise FailedError(f"loss deviates by {deviations[name]:.2g}")
                worker.calibrate(options.turn, limit)
            except SkippedError as reason:
                row["skipped"][name] = str(reason)
            except FailedError as reason:
                row["failed"][name] = str(reason)
            else:
                row["versions"].update(answer["versions"])
                ready.append(worker)
    _time(ready, row, options, deadline)
    for name, entry in row["peers"].items():
        entry["loss_deviation"] = float(f"{deviations[name]:.2g}")
    return row


def _time(
    workers: Sequence[Worker], row: dict[str, Any], options: Options, deadline: float
) -> None:
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for _ in range(options.rounds):
        for worker in workers:
            if worker.name in row["failed"]:
                continue
            try:
                seconds[worker.name].append(worker.turn(deadline - time.monotonic()))
            except FailedError as reason:
                row["failed"][worker.name] = str(reason)
    ours = seconds.get("thalweg")
    for name, times in seconds.items():
        if not times:
            continue
        median = quartiles(times)["median"]
        entry = {
            "microseconds": quartiles([1e6 * one for one in times]),
            "samples_per_second": round(row["batch"] / median),
            "seconds_per_epoch": float(f"{median * row['steps_per_epoch']:.4g}"),
        }
        if ours:
            entry["ratio"] = quartiles([a / b for a, b in zip(times, ours, strict=False)])
        row["peers"][name] = entry


def describe(row: Mapping[str, Any]) -> str:
    """The row as lines for the terminal."""
    lines = [f"{row['case']}: {row['title']}; batch {row['batch']}, {row['precision']}"]
    for name, entry in row["peers"].items():
        tflops = entry["samples_per_second"] * row["flops_per_sample"] / 1e12
        ratio = entry.get("ratio", {}).get("median")
        lines.append(
            f"  {name:<15} {entry['microseconds']['median']:>10.1f} us/step {tflops:>8.2f} TFLOP/s"
            + (f" {ratio:>7.2f} x thalweg" if ratio else "")
        )
    lines += [f"  {name}: skipped, {reason}" for name, reason in row["skipped"].items()]
    lines += [f"  {name}: FAILED, {reason}" for name, reason in row["failed"].items()]
    return "\n".join(lines)


def run(todo: Sequence[Task], options: Options, results: Results, deadline: float) -> int:
    """Rows of as many tasks as there is time for: the number of rows with a failure."""
    failed = 0
    with _workers() as workers:
        for number, task in enumerate(todo):
            if time.monotonic() > deadline - 5:
                print(f"time is up: {len(todo) - number} of {len(todo)} cases not timed")
                break
            row = measure(task, options, workers, deadline)
            results.add(row)
            failed += bool(row["failed"])
            print(describe(row), flush=True)
    return failed
