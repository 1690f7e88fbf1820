"""Cold start and size (`python -m bench start`): import, first training step, memory, installation.

Every measurement is a fresh process; files are in the page cache after the first, which is left
out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.steps import quartiles

# The first update of 64-64-64-10 with SGD and momentum on 32 rows; `note` comes from _FRAME.
_FIRST_STEP = {
    "thalweg": """
import numpy as np
import thalweg as tw
from thalweg import nn, optim
note("imported")
layers = nn.Sequential(nn.Dense(64), nn.ReLU(), nn.Dense(64), nn.ReLU(), nn.Dense(10))
model = tw.Model(layers, in_features=64, optimizer=optim.Momentum(0.05), device="cpu")
model.step(np.ones((32, 64), np.float32), np.arange(32) % 10)
""",
    "torch": """
import torch
from torch import nn
note("imported")
hidden = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
layers = nn.Sequential(*hidden, nn.Linear(64, 10))
optimizer = torch.optim.SGD(layers.parameters(), 0.05, momentum=0.9)
nn.functional.cross_entropy(layers(torch.ones(32, 64)), torch.arange(32) % 10).backward()
optimizer.step()
""",
    "jax": """
import jax
import jax.numpy as jnp
note("imported")
keys = jax.random.split(jax.random.key(0), 3)
layers = [(jax.random.normal(k, (64, o)) / 8, jnp.zeros(o)) for k, o in zip(keys, (64, 64, 10))]

def loss(layers, x, y):
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    logits = x @ layers[-1][0] + layers[-1][1]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1).mean()

@jax.jit
def step(layers, velocity, x, y):
    velocity = jax.tree.map(lambda v, g: 0.9 * v - 0.05 * g, velocity, jax.grad(loss)(layers, x, y))
    return jax.tree.map(jnp.add, layers, velocity), velocity

velocity = jax.tree.map(jnp.zeros_like, layers)
jax.block_until_ready(step(layers, velocity, jnp.ones((32, 64)), jnp.arange(32) % 10))
""",
    "sklearn": """
import numpy as np
from sklearn.neural_network import MLPClassifier
note("imported")
model = MLPClassifier((64, 64), solver="sgd", learning_rate_init=0.05, batch_size=32)
model.partial_fit(np.ones((32, 64), np.float32), np.arange(32) % 10, classes=np.arange(10))
""",
}
_FRAME = """
import time
t0 = time.monotonic()
times = {{}}
def note(name):
    times[name] = time.monotonic()
{body}
note("stepped")
import json
from bench import machine
print(json.dumps({{"started": t0, **times, "peak_memory_mib": machine.peak_memory_mib()}}))
"""
# Two weights and two biases: what an update takes besides arithmetic.
_SMALLEST_UPDATE = """
import time
import numpy as np
import thalweg as tw
from thalweg import nn, optim
layers = nn.Sequential(nn.Dense(1), nn.ReLU(), nn.Dense(1))
model = tw.Model(layers, in_features=1, loss="squared_error", optimizer=optim.Adam(1e-3))
x = np.linspace(-1, 1, 4096, dtype=np.float32)[:, None]
updates = 50_000
for _ in range(2):
    begin = time.perf_counter()
    model.fit(x, x, batch_size=2, epochs=1000, max_steps=updates, verbose=False)
print(1e6 * (time.perf_counter() - begin) / updates)
"""
_PACKAGES = {"sklearn": "scikit-learn"}
LIBRARIES = tuple(_FIRST_STEP)


def _start(library: str, python: str) -> dict[str, float] | None:
    """Milliseconds of one process, or None when the library is not there."""
    environment = {**os.environ, "PYTHONPATH": str(machine.ROOT)}
    begin = time.monotonic()
    done = subprocess.run(
        [python, "-c", _FRAME.format(body=_FIRST_STEP[library])],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr:
            return None
        raise RuntimeError(f"[start] {library} failed: {done.stderr.strip().splitlines()[-1]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return {
        "import_ms": 1e3 * (answer["imported"] - answer["started"]),
        "process_to_import_ms": 1e3 * (answer["imported"] - begin),
        "process_to_first_step_ms": 1e3 * (answer["stepped"] - begin),
        "peak_memory_mib": answer["peak_memory_mib"],
    }


def _smallest_update_us(python: str) -> float:
    """Microseconds of one update by `fit` of the smallest network, in a process of its own."""
    done = subprocess.run(
        [python, "-c", _SMALLEST_UPDATE], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _files_bytes(distribution: importlib.metadata.Distribution) -> int:
    paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _editable_bytes(module: str) -> int:
    """Size of an editable install: its Python sources and the folder of its compiled module."""
    folders = set()
    for name in (module, f"{module}._core"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            folders.add(Path(spec.origin).resolve().parent)
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    return sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)


def installed_size(package: str) -> dict[str, Any] | None:
    """Megabytes of an installed distribution, alone and with what it requires (no extras)."""
    sizes: dict[str, int] = {}
    editable = False
    pending = [package]
    while pending:
        name = pending.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name == package:
                return None
            continue
        canonical = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if canonical in sizes:
            continue
        url = json.loads(distribution.read_text("direct_url.json") or "{}")
        if url.get("dir_info", {}).get("editable"):
            editable = editable or name == package
            sizes[canonical] = _editable_bytes(canonical)
        else:
            sizes[canonical] = _files_bytes(distribution)
        requirements = [text for text in distribution.requires or () if "extra ==" not in text]
        pending += [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements]
    own = re.sub(r"[-_.]+", "-", package).lower()
    return {
        "package_mb": round(sizes[own] / 1e6, 1),
        "with_dependencies_mb": round(sum(sizes.values()) / 1e6, 1),
        "editable": editable,
    }


def _installed_size_in(python: str, package: str) -> dict[str, Any] | None:
    """`installed_size` as another interpreter sees it."""
    code = "import json, sys; from bench import cold; "
    code += "print(json.dumps(cold.installed_size(sys.argv[1])))"
    done = subprocess.run(
        [python, "-c", code, package],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(machine.ROOT)},
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


def measure(
    libraries: Sequence[str], repetitions: int, python: Mapping[str, str]
) -> dict[str, Any]:
    """One row: all libraries in turns."""
    interpreters = {name: python.get(name, sys.executable) for name in libraries}
    present = [name for name in libraries if _start(name, interpreters[name]) is not None]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in present}
    for _ in range(repetitions):
        for name in present:
            run = _start(name, interpreters[name])
            assert run is not None
            runs[name].append(run)
    row: dict[str, Any] = {"kind": "start", **machine.stamp(), "repetitions": repetitions}
    row["skipped"] = {name: "not installed" for name in libraries if name not in present}
    row["libraries"] = {}
    for name in present:
        entry: dict[str, Any] = {
            column: quartiles([run[column] for run in runs[name]]) for column in runs[name][0]
        }
        entry["install"] = _installed_size_in(interpreters[name], _PACKAGES.get(name, name))
        if name == "thalweg":
            times = [_smallest_update_us(interpreters[name]) for _ in range(repetitions)]
            entry["smallest_update_us"] = quartiles(times)
        row["libraries"][name] = entry
    return row


def describe(row: Mapping[str, Any]) -> str:
    """The row as a small table for the terminal."""
    lines = [
        f"{'library':<10} {'import ms':>10} {'to import':>10} {'to first step':>14} "
        f"{'peak MiB':>9} {'install MB':>11} {'with deps':>10}"
    ]
    for name, entry in row["libraries"].items():
        install = entry["install"] or {}
        lines.append(
            f"{name:<10} {entry['import_ms']['median']:>10.0f} "
            f"{entry['process_to_import_ms']['median']:>10.0f} "
            f"{entry['process_to_first_step_ms']['median']:>14.0f} "
            f"{entry['peak_memory_mib']['median']:>9.0f} "
            f"{install.get('package_mb', '-'):>11} {install.get('with_dependencies_mb', '-'):>10}"
            + (" (editable)" if install.get("editable") else "")
        )
        if "smallest_update_us" in entry:
            median = entry["smallest_update_us"]["median"]
            lines.append(f"{'':<10} an update of the smallest network: {median:.1f} us")
    lines += [f"{name}: skipped, {reason}" for name, reason in row["skipped"].items()]
    return "\n".join(lines)
