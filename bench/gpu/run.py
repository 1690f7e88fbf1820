"""Build, test, sanitize and benchmark the CUDA back end (bench/gpu/run.sh).

Every stage has a share of the time, a row in the results, and cannot take the others down: what
fails or runs out of time is recorded, and the next stage begins.

Exit status: 0 passed, 1 a stage failed or ran out of time, 3 none failed but some did not finish
all of its parts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.gpu import device
from bench.results import Results

BUILD = machine.ROOT / "build" / "gpu"
WHEELS = BUILD / "wheels"
# What `pip install --no-build-isolation .` and the tests import, and the packages that bring them.
TOOLS = {
    "scikit_build_core": "scikit-build-core>=1.1,<2",
    "pybind11": "pybind11>=3,<4",
    "nanobind": "nanobind==3.1.0",
    "cmake": "cmake>=3.25",
    "ninja": "ninja",
    "numpy": "numpy>=1.23",
    "tqdm": "tqdm>=4.60",
    "pytest": "pytest>=8",
    "hypothesis": "hypothesis>=6.100",
    "safetensors": "safetensors>=0.4",
}
# The tests that are about models.
TESTS = [
    line.split()[1]
    for line in (machine.ROOT / "tests" / "on_gpu.txt").read_text().splitlines()
    if not line.startswith("#")
]
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# The most that a stage may take, of the nine minutes.
SECONDS = {"environment": 60, "build": 200, "kernels": 60, "tests": 120, "sanitizers": 70}
RESERVE = 5  # at the end, to write the results
INCOMPLETE = 3  # exit status; 2 is argparse's


class Runner:
    """Runs the stages against one clock and keeps a row of each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.deadline = time.monotonic() + 60 * options.minutes - RESERVE
        self.results = Results(options.output)
        self.failed: list[str] = []
        self.incomplete: list[str] = []
        self.python = sys.executable

    def left(self, stage: str) -> float:
        return max(1.0, min(SECONDS.get(stage, 1e9), self.deadline - time.monotonic()))

    def command(
        self,
        arguments: Sequence[object],
        limit: float,
        environment: Mapping[str, str] | None = None,
    ) -> tuple[str, str]:
        """Outcome of a command, "passed", "failed" or "timeout", and what it printed."""
        words = [str(word) for word in arguments]
        print("$", *words, flush=True)
        process = subprocess.Popen(
            words,
            cwd=machine.ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=max(limit, 1.0))
        except subprocess.TimeoutExpired:
            # The whole group: compilers and workers too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return "timeout", output
        return ("passed" if process.returncode == 0 else "failed"), output

    def record(self, stage: str, outcome: str, begin: float, text: str, **more: Any) -> None:
        row = {
            "kind": "gpu-stage",
            "stage": stage,
            "outcome": outcome,
            "seconds": round(time.monotonic() - begin, 1),
            **machine.stamp(),
            "gpu": device.describe(),
            "dry_run": self.options.dry_run,
            **more,
            "output": text.strip().splitlines()[-40:],
        }
        self.results.add(row)
        if outcome in ("failed", "timeout"):
            self.failed.append(stage)
        if outcome == "incomplete":
            self.incomplete.append(stage)
        if outcome in ("failed", "timeout", "incomplete"):
            print("\n".join(row["output"]))
        print(f"==== {stage}: {outcome}, {row['seconds']} s", flush=True)

    def status(self) -> int:
        """Says what did not pass; the exit status."""
        if self.incomplete:
            print(f"INCOMPLETE: {', '.join(self.incomplete)}")
        if self.failed:
            print(f"FAILED: {', '.join(self.failed)}")
        return 1 if self.failed else INCOMPLETE if self.incomplete else 0


def prepare() -> int:
    """Collect the build tools as wheels, for a machine without a network."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--dest", str(WHEELS)]
    return subprocess.run([*command, "--only-binary=:all:", *TOOLS.values()]).returncode


def environment(runner: Runner) -> bool:
    """A virtual environment over the Python at hand, with the build tools it lacks."""
    begin = time.monotonic()
    target = BUILD / "venv"
    log = ""
    if not (target / "bin" / "python").exists():
        command = [sys.executable, "-m", "venv", "--system-site-packages", target]
        outcome, log = runner.command(command, runner.left("environment"))
        if outcome != "passed":
            runner.record("environment", outcome, begin, log)
            return False
    runner.python = str(target / "bin" / "python")
    # A virtual environment sees the base interpreter's packages, not those of another one.
    sites = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    for folder in target.glob("lib/python*/site-packages"):
        (folder / "base.pth").write_text("\n".join(sites) + "\n")
    missing = [
        TOOLS[name]
        for name in TOOLS
        if importlib.util.find_spec(name) is None
        and not (name in ("cmake", "ninja") and shutil.which(name))
    ]
    outcome = "passed"
    if missing:
        command = [runner.python, "-m", "pip", "install", "--no-index", "--find-links", WHEELS]
        outcome, output = runner.command([*command, *missing], runner.left("environment"))
        log += output
        if outcome != "passed":
            log += f"\nmissing: {', '.join(missing)}; run `bash bench/gpu/run.sh --prepare` where "
            log += "there is a network, and bring build/gpu/wheels along"
    runner.record("environment", outcome, begin, log)
    return outcome == "passed"


def build(runner: Runner) -> bool:
    """Install thalweg with CUDA for this GPU, and compile the tests of kernels."""
    begin = time.monotonic()
    capability = str(device.describe().get("compute_capability", "9.0")).replace(".", "")
    define = "-Ccmake.define."
    bin_folder = Path(runner.python).parent
    path = {"PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    if nvcc := shutil.which("nvcc", path="/usr/local/cuda/bin"):
        path["PATH"] += os.pathsep + str(Path(nvcc).parent)
    command = [runner.python, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    command += ["--no-index", f"-Cbuild-dir={BUILD / 'cmake'}", f"{define}THALWEG_CUDA=ON"]
    command += [f"{define}THALWEG_TESTS=ON", f"{define}CMAKE_CUDA_ARCHITECTURES={capability}"]
    outcome, log = runner.command([*command, "--force-reinstall", "."], runner.left("build"), path)
    if outcome == "passed":
        jobs = f"-j{len(machine.processors())}"
        command = ["cmake", "--build", str(BUILD / "cmake"), "--target", "cuda_tests", jobs]
        limit = runner.left("build") - (time.monotonic() - begin)
        outcome, more = runner.command(command, limit, path)
        log += more
    runner.record("build", outcome, begin, log, architecture=capability)
    return outcome == "passed"


def kernels(runner: Runner) -> None:
    """The kernels' own tests."""
    begin = time.monotonic()
    command = ["ctest", "--test-dir", str(BUILD / "cmake"), "-R", "^cuda_", "--output-on-failure"]
    path = {"PATH": f"{Path(runner.python).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    limits = ["--timeout", "50", "-j4"]
    outcome, log = runner.command(
        [*command, *limits], runner.left("kernels"), {**path, "THALWEG_REQUIRE_GPU": "1"}
    )
    if outcome == "passed" and not re.search(r"100% tests passed.* out of [1-9]", log):
        outcome = "failed"
    runner.record("kernels", outcome, begin, log)


def tests(runner: Runner) -> None:
    """The Python test-suite on the GPU; a test that skips for lack of one fails."""
    begin = time.monotonic()
    chosen = [f"tests/test_{name}.py" for name in TESTS]
    settings = {"THALWEG_DEVICE": "cuda", "THALWEG_REQUIRE_GPU": "1"}
    if runner.options.dry_run:
        chosen, settings = ["tests/test_build.py", "-k", "version_is_the_headers"], {}
    command = [runner.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not oracle"]
    limit = runner.left("tests")
    outcome, log = runner.command([*command, *chosen], limit, settings)
    summary = re.search(r"(\d+) passed", log)
    runner.record("tests", outcome, begin, log, passed=int(summary[1]) if summary else 0)


def sanitizers(runner: Runner) -> None:
    """compute-sanitizer's tools over the tests of kernels, the small ones first."""
    begin = time.monotonic()
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    tool = shutil.which("compute-sanitizer", path=path)
    programs = sorted(BUILD.glob("cmake/cuda_*_test"), key=lambda program: program.stat().st_size)
    if tool is None or not programs:
        reason = "no compute-sanitizer here" if tool is None else "no test program was built"
        runner.record("sanitizers", "skipped", begin, reason)
        return
    limit = time.monotonic() + runner.left("sanitizers")
    found: dict[str, dict[str, str]] = {}
    log = ""
    for program in programs:
        for name in SANITIZERS:
            left = limit - time.monotonic()
            if left < 2:
                found.setdefault(program.name, {})[name] = "not run"
                continue
            command = [tool, "--tool", name, "--error-exitcode", "9", "--print-limit", "5", program]
            outcome, output = runner.command(command, min(left, 25.0))
            found.setdefault(program.name, {})[name] = outcome
            if outcome == "failed":
                log += f"{program.name}, {name}:\n{output[-3000:]}\n"
    outcomes = {outcome for tools in found.values() for outcome in tools.values()}
    unfinished = [
        f"{program}, {name}: {outcome}"
        for program, tools in found.items()
        for name, outcome in tools.items()
        if outcome in ("timeout", "not run")
    ]
    log += "\n".join(["not finished:", *unfinished]) if unfinished else ""
    outcome = "failed" if "failed" in outcomes else "incomplete" if unfinished else "passed"
    runner.record("sanitizers", outcome, begin, log, programs=found)


def benchmark(runner: Runner) -> None:
    """Training steps next to PyTorch and JAX, in the interpreter that has them all."""
    begin = time.monotonic()
    left = runner.deadline - time.monotonic()
    command = [runner.python, "-m", "bench.gpu.run", "--only-steps", "--seconds", f"{left:.0f}"]
    if runner.options.output is not None:
        command += ["--output", str(runner.options.output)]
    if runner.options.dry_run:
        command.append("--dry-run")
    outcome, log = runner.command(command, left + RESERVE)
    # The other process has added its rows.
    runner.results = Results(runner.options.output)
    print(log)
    runner.record("benchmark", outcome, begin, log)


def only_steps(options: argparse.Namespace) -> int:
    """The process of `benchmark`."""
    import thalweg._core

    from bench.gpu import steps

    todo, settings = steps.tasks(), steps.Options()
    if options.dry_run:
        here = not thalweg._core.information()["why_not_cuda"]  # an emulated GPU has no peers
        todo = [steps.TINY]
        settings = steps.Options(
            "cuda" if here else "cpu", rounds=2, turn=0.01, peers=steps.PEERS[:3], slow_peers=()
        )
    if options.tasks:
        todo = todo[: options.tasks]
    deadline = time.monotonic() + options.seconds
    return int(steps.run(todo, settings, Results(options.output), deadline) > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bash bench/gpu/run.sh", description=__doc__)
    parser.add_argument("--output", type=Path, default=BUILD / "results.json")
    parser.add_argument("--minutes", type=float, default=8.8, help="for everything (default: 8.8)")
    parser.add_argument("--dry-run", action="store_true", help="in miniature, builds nothing")
    parser.add_argument("--prepare", action="store_true", help="collect the build tools as wheels")
    parser.add_argument("--tasks", type=int, help="time only the first so many cases")
    parser.add_argument("--only-steps", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=240.0, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    options = _parser().parse_args()
    options.output = options.output.resolve()
    if options.prepare:
        return prepare()
    if options.only_steps:
        return only_steps(options)
    options.output.unlink(missing_ok=True)
    runner = Runner(options)
    if options.dry_run or (environment(runner) and build(runner)):
        if not options.dry_run:
            kernels(runner)
        tests(runner)
        sanitizers(runner)
        benchmark(runner)
    print(f"results: {options.output}")
    return runner.status()


if __name__ == "__main__":
    sys.exit(main())
