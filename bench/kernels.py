"""Single CPU kernels on one thread: matrix products, optimizer steps, batch norm.

`cpp/kernels.cpp` does the timing; OpenBLAS and oneDNN take part where CMake finds them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from bench import machine
from bench.results import Row

KERNELS = ("gemm", "optimizer", "batch_norm")
_BUILD = machine.ROOT / "build" / "bench" / "programs"
Shape = tuple[tuple[str, Any], ...]
_MEASURED = ("library", "microseconds", "best", "ratio", "gflops", "gigabytes_per_second")


def _run(command: Sequence[str], **environment: str) -> str:
    done = subprocess.run(
        command, cwd=machine.ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise RuntimeError(
            f"[kernels] {command[0]} failed: {done.stdout[-400:]}{done.stderr[-800:]}"
        )
    return done.stdout


def build() -> str:
    """The path of the program, built on first use and after changes."""
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DTHALWEG_BENCH=ON", "-DTHALWEG_CUDA=OFF"]
    _run(["cmake", "-S", str(machine.ROOT), "-B", str(_BUILD), *options])
    _run(["cmake", "--build", str(_BUILD), "--target", "bench_kernels", "-j2"])
    return str(_BUILD / "bench_kernels")


def measure(kernel: str, seconds: float) -> Row:
    """One row with an entry per shape and library; `seconds` of timed work per shape."""
    program = build()
    # The last processor is the least likely to serve interrupts.
    pin = ["taskset", "-c", str(machine.processors()[-1])]
    text = _run([*pin, program, kernel, str(seconds)], OMP_NUM_THREADS="1")
    entries = [json.loads(line) for line in text.splitlines()]
    return {"kind": "kernels", "case": kernel, "threads": 1, **machine.stamp(), "entries": entries}


def shapes(row: Mapping[str, Any]) -> dict[Shape, dict[str, dict[str, Any]]]:
    """The entries of every shape, by library."""
    found: dict[Shape, dict[str, dict[str, Any]]] = {}
    for entry in row["entries"]:
        shape = tuple((k, v) for k, v in entry.items() if k not in _MEASURED)
        found.setdefault(shape, {})[entry["library"]] = entry
    return found


def rate(entry: Mapping[str, Any]) -> str:
    """GFLOP/s or GB/s of an entry."""
    if "gflops" in entry:
        return f"{entry['gflops']:.0f} GFLOP/s"
    return f"{entry['gigabytes_per_second']:.1f} GB/s"


def against_best(entries: Mapping[str, Mapping[str, Any]]) -> float | None:
    """How many times as long as thalweg the fastest other library takes."""
    return min((e["ratio"] for name, e in entries.items() if name != "thalweg"), default=None)


def describe(row: Mapping[str, Any]) -> str:
    """The row as a small table for the terminal."""
    lines = []
    for shape, entries in shapes(row).items():
        title = " ".join(str(value) for key, value in shape if key != "what")
        cells = [
            f"{name} {rate(entry)}" + (f" ({entry['ratio']:.2f}x)" if name != "thalweg" else "")
            for name, entry in entries.items()
        ]
        lines.append(f"{shape[0][1]:<10} {title:<28} {'   '.join(cells)}")
    if row["case"] == "gemm" and {entry["library"] for entry in row["entries"]} == {"thalweg"}:
        lines.append("CMake found nothing to compare with: install libopenblas-dev and libdnnl-dev")
    return "\n".join(lines)
