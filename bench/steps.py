"""Times training steps, or inference, of all peers in turns (`python -m bench cpu`)."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, peers
from bench.cases import Case, Problem, make_problem
from bench.peers.numpy_peer import NumpyPeer

# A round in which others had more than this share of the processors is done again.
QUIET_SHARE = 0.1
_PAUSE_SECONDS = 0.01
_POLL_SECONDS = 1.0  # while waiting for a placement
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "THALWEG_NUM_THREADS",
)


@dataclass(frozen=True)
class Options:
    """How to measure: seconds of timed work per peer, in turns of `turn` seconds.

    With a `placement`, "near" or "far", only rounds between processors that are so count, and a
    case must get them within `patience` seconds.
    """

    seconds: float = 4.0
    turn: float = 0.2
    realtime: bool = False
    python: Mapping[str, str] = field(default_factory=dict)  # peer family: interpreter
    placement: str | None = None
    patience: float = 1800.0

    @property
    def rounds(self) -> int:
        return max(2, round(self.seconds / self.turn))


class SkippedError(Exception):
    """This peer does not take part: not installed, or it cannot do the case."""


class FailedError(Exception):
    """The peer's process died."""


class PlacementError(Exception):
    """The processors were not placed as wanted for long enough."""


class Worker:
    """The process of one peer."""

    def __init__(self, name: str, problem: Problem, folder: Path, options: Options) -> None:
        self.name, self.threads = name, problem.threads
        self._most_threads = problem.threads
        self._options = options
        cpus = machine.processors()[: problem.threads]
        self._log = folder / f"{name}.log"
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(problem.threads))}
        python = options.python.get(peers.family(name), sys.executable)
        arguments = [problem.case.name, str(problem.batch), str(problem.threads), str(folder)]
        arguments += [problem.precision, problem.work]

        def pin() -> None:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, cpus)

        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, "-m", "bench.worker", name, *arguments],
                cwd=machine.ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                preexec_fn=pin,
            )
        try:
            ready = self._answer()
            if "skipped" in ready:
                raise SkippedError(ready["skipped"])
        except BaseException:
            self.close()
            raise
        self.versions: dict[str, str] = ready["versions"]
        self._granularity: int = ready["granularity"]
        self.steps = self._granularity

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            last = self._log.read_text().strip().splitlines()[-1:]
            raise FailedError(f"exit status {self._process.returncode}: {''.join(last)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        # When the process has died, the answer says why.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
        return self._answer()

    def losses(self, steps: int) -> list[float]:
        return [float(loss) for loss in self._ask(do="losses", steps=steps)["losses"]]

    def turn(self) -> tuple[float, float]:
        """Seconds of one timed turn of `steps` steps, and those that others took meanwhile."""
        warm_up = self._granularity * max(1, self.steps // (10 * self._granularity))
        answer = self._ask(
            do="run", steps=self.steps, warm_up=warm_up, realtime=self._options.realtime
        )
        return answer["seconds"], answer["foreign_seconds"]

    def calibrate(self) -> None:
        """Find the number of steps that fills a turn, and the fastest number of threads."""
        self._fill(self._options.turn / 4)
        best = math.inf
        most = self._most_threads
        candidates = {1 << k for k in range(most.bit_length())} | {most}
        fastest = most
        for threads in sorted(candidates):
            if not self._ask(do="threads", threads=threads)["set"]:
                break
            seconds = min(self.turn()[0] for _ in range(3))
            if seconds < best:
                best, fastest = seconds, threads
        self._ask(do="threads", threads=fastest)
        self.threads = fastest
        self._fill(self._options.turn)

    def _fill(self, seconds: float) -> None:
        self.turn()
        while True:
            taken = self.turn()[0]
            wanted = self.steps * seconds / taken
            if taken > seconds / 2:
                break
            self.steps = self._whole(min(wanted, 20 * self.steps))
        self.steps = self._whole(wanted)

    def _whole(self, steps: float) -> int:
        return self._granularity * max(1, round(steps / self._granularity))

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def reference_losses(problem: Problem) -> list[float]:
    """Losses of the first minibatches, computed in float64."""
    return NumpyPeer(problem, dtype=np.float64).losses(problem.case.check_steps)


def loss_deviation(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Largest relative deviation of a step's loss; infinite when it is not a number."""
    expected = np.asarray(reference)
    worst = float(np.max(np.abs(np.asarray(losses) - expected) / np.abs(expected)))
    return worst if math.isfinite(worst) else math.inf


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, to four significant digits."""
    q1, median, q3 = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75))
    return {
        "median": float(f"{median:.4g}"),
        "q1": float(f"{q1:.4g}"),
        "q3": float(f"{q3:.4g}"),
    }


@dataclass
class _Round:
    microseconds: dict[str, float]  # per step
    foreign: float
    hops: list[float]  # before and after

    @property
    def placement(self) -> str:
        return machine.placement(self.hops)


class _Patience:
    """Waits for the placement that is asked for, until the time for it is up."""

    def __init__(self, options: Options, hop: Callable[[], float | None]) -> None:
        self._options, self._hop = options, hop
        self._end = time.monotonic() + options.patience

    def for_placement(self, rounds: int = 0) -> float:
        """The hop that is as wanted; so many rounds are done."""
        while True:
            if time.monotonic() > self._end:
                raise PlacementError(
                    f"expected {self._options.rounds} quiet rounds between "
                    f"{self._options.placement} processors, got {rounds} in "
                    f"{self._options.patience:g} s; raise --patience"
                )
            hop = self._hop()
            # A measurement that fails once may succeed later.
            if hop is not None and machine.placement([hop]) == self._options.placement:
                return hop
            time.sleep(_POLL_SECONDS)

    def for_calibration(self, worker: Worker) -> None:
        """The fastest number of threads may be another where the processors are far apart."""
        while True:
            self.for_placement()
            worker.calibrate()
            hop = self._hop()
            if hop is not None and machine.placement([hop]) == self._options.placement:
                return


def run_rounds(
    workers: Sequence[Worker], options: Options, hop: Callable[[], float | None]
) -> tuple[list[_Round], int]:
    """The rounds that count and the number of quiet ones.

    Rounds that are noisy, or of another placement than most, are replaced, up to twice as many
    rounds. When too few are left, those of all placements count, then the noisy ones, too. Of a
    wanted placement there are enough, or it is an error.
    """
    order = random.Random(0)
    done: list[_Round] = []
    wait = _Patience(options, hop)
    for worker in workers if options.placement else ():
        wait.for_calibration(worker)
    while True:
        quiet = [one for one in done if one.foreign <= QUIET_SHARE]
        wanted = [options.placement] if options.placement else machine.PLACEMENTS
        kinds = ([one for one in quiet if one.placement == kind] for kind in wanted)
        alike = max(kinds, key=len)
        if len(alike) >= options.rounds:
            return alike, len(alike)
        if options.placement:
            before: float | None = wait.for_placement(len(alike))
        elif len(done) < 2 * options.rounds:
            before = hop()
        else:
            enough = [some for some in (alike, quiet) if 2 * len(some) >= options.rounds]
            return enough[0] if enough else done, len(enough[0] if enough else quiet)
        one = _Round({}, 0.0, [before] if before is not None else [])
        elapsed = foreign = 0.0
        for worker in order.sample(workers, len(workers)):
            # Threads of the peer before stop spinning meanwhile.
            time.sleep(_PAUSE_SECONDS)
            seconds, others = worker.turn()
            one.microseconds[worker.name] = 1e6 * seconds / worker.steps
            elapsed, foreign = elapsed + seconds, foreign + others
        one.foreign = foreign / elapsed
        if (after := hop()) is not None:
            one.hops.append(after)
        done.append(one)


def admit(
    workers: list[Worker],
    name: str,
    problem: Problem,
    folder: Path,
    options: Options,
    check: Callable[[Worker], None],
    row: dict[str, Any],
) -> None:
    """Start a peer and let it take part when `check` does not object; else the row says why not."""
    worker = None
    try:
        worker = Worker(name, problem, folder, options)
        check(worker)
        worker.calibrate()
    except SkippedError as reason:
        row["skipped"][name] = str(reason)
    except FailedError as reason:
        row["failed"][name] = str(reason)
    else:
        workers.append(worker)
        row["versions"].update(worker.versions)
        return
    if worker is not None:
        worker.close()


def measure(
    case: Case,
    batch: int,
    threads: int,
    names: Sequence[str],
    options: Options,
    *,
    precision: str = "highest",
    work: str = "training",
) -> dict[str, Any]:
    """The row of one case: all peers, checked, then timed in turns."""
    problem = make_problem(case, batch, threads, precision=precision, work=work)
    reference = reference_losses(problem)
    row: dict[str, Any] = {
        "kind": "step" if work == "training" else work,
        "case": case.name,
        "title": case.title,
        "batch": batch,
        "threads": threads,
        "precision": precision,
        "parameters": case.parameters,
        "flops_per_sample": problem.flops_per_sample,
        "rows": len(problem.x),
        **machine.stamp(),
        "versions": {},
        "loss_check": {
            "steps": case.check_steps,
            "tolerance": problem.tolerance,
            "reference": [float(f"{loss:.6g}") for loss in reference],
        },
        "peers": {},
        "skipped": {},
        "failed": {},
    }
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="thalweg-bench-") as folder:
        problem.save(Path(folder))
        try:
            deviations: dict[str, float] = {}
            for name in names:

                def check(worker: Worker) -> None:
                    worst = loss_deviation(worker.losses(case.check_steps), reference)
                    deviations[worker.name] = worst
                    if worst > problem.tolerance:
                        raise FailedError(
                            f"loss deviates by {worst:.2g} from the float64 reference"
                        )

                admit(workers, name, problem, Path(folder), options, check, row)
            if workers:
                _time(workers, row, options)
                for name, entry in row["peers"].items():
                    entry["loss_deviation"] = float(f"{deviations[name]:.2g}")
        finally:
            for worker in workers:
                worker.close()
    return row


def time_rounds(
    workers: Sequence[Worker], row: dict[str, Any], options: Options
) -> list[dict[str, float]]:
    """Microseconds per step of every worker, by round; the row says how quiet the rounds were."""
    pair = machine.processors()[: row["threads"]]
    program = machine.hop_program()[0] if len(pair) > 1 else None
    rounds, quiet = run_rounds(workers, options, lambda: machine.hop_ns(program, pair))
    hops = [hop for one in rounds for hop in one.hops]
    row["hop_ns"] = quartiles(hops) if hops else None
    row["placement"] = machine.placement(hops) if row["threads"] > 1 else "one processor"
    row["rounds"] = {"used": len(rounds), "quiet": quiet, "turn_seconds": options.turn}
    row["foreign_share"] = round(float(np.median([one.foreign for one in rounds])), 3)
    row["noisy"] = quiet < len(rounds)
    row["realtime"] = options.realtime
    return [one.microseconds for one in rounds]


def _time(workers: Sequence[Worker], row: dict[str, Any], options: Options) -> None:
    rounds = time_rounds(workers, row, options)
    for worker in workers:
        times = [one[worker.name] for one in rounds]
        entry: dict[str, Any] = {
            "microseconds": quartiles(times),
            "samples_per_second": round(row["batch"] / np.median(times) * 1e6),
            "threads": worker.threads,
        }
        if any(other.name == "thalweg" for other in workers):
            entry["ratio"] = quartiles([one[worker.name] / one["thalweg"] for one in rounds])
        row["peers"][worker.name] = entry


def describe(row: Mapping[str, Any]) -> str:
    """The row as a small table for the terminal."""
    hop = row.get("hop_ns")
    lines = [
        f"{row['case']}: {row['title']}; batch {row['batch']}, {row['threads']} thread(s), "
        f"{row['kind']}, {row['precision']} precision"
        + (f", hop {hop['median']:.0f} ns ({row['placement']})" if hop else "")
    ]
    if row["peers"]:
        lines.append(
            f"  {'peer':<14} {'us/step':>10} {'quartiles':>21} {'samples/s':>11} {'GFLOP/s':>8} "
            f"{'time/thalweg':>12} {'quartiles':>13} {'threads':>7} {'loss dev':>8}"
        )
    for name, entry in row["peers"].items():
        time_, ratio = entry["microseconds"], entry.get("ratio")
        gflops = entry["samples_per_second"] * row["flops_per_sample"] / 1e9
        between = f"{time_['q1']:.1f} .. {time_['q3']:.1f}"
        lines.append(
            f"  {name:<14} {time_['median']:>10.1f} {between:>21} "
            f"{entry['samples_per_second']:>11,} {gflops:>8.1f} "
            + (f"{ratio['median']:>12.2f} " if ratio else f"{'':>12} ")
            + (f"{ratio['q1']:>5.2f} .. {ratio['q3']:<4.2f}" if ratio else f"{'':>13}")
            + f" {entry['threads']:>7} {entry['loss_deviation']:>8.0e}"
        )
    return "\n".join([*lines, *remarks(row)])


def remarks(row: Mapping[str, Any]) -> list[str]:
    """How quiet the rounds were, and who did not take part."""
    lines = []
    if row["peers"]:
        rounds = row["rounds"]
        lines.append(
            f"  {rounds['used']} rounds, {rounds['quiet']} quiet; others used "
            f"{row['foreign_share']:.0%} of the processors"
            + ("; NOISY, do not quote" if row["noisy"] else "")
        )
    lines += [f"  {name}: skipped, {reason}" for name, reason in row["skipped"].items()]
    lines += [f"  {name}: FAILED, {reason}" for name, reason in row["failed"].items()]
    return lines
