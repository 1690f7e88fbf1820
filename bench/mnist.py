"""MNIST from its files to test accuracy (`python -m bench mnist`): accuracy, time, peak memory.

As a program (`python -m bench.mnist LIBRARY SEED EPOCHS BATCH THREADS`) it is the process that is
measured: 784-512-512-10 with batch norm and ReLU, Adam whose learning rate falls from 1e-3 to 0 by
a cosine, 10 epochs by default.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import machine

LIBRARIES = ("thalweg", "thalweg-medium", "torch", "jax")
_HIDDEN, _LR = (512, 512), 1e-3


def _thalweg(
    seed: int, epochs: int, batch: int, threads: int, precision: str = "highest"
) -> dict[str, float]:
    import thalweg as tw
    from thalweg import datasets, nn, optim, schedules

    data = datasets.load_mnist()
    layers: list[nn.Layer] = []
    for width in _HIDDEN:
        layers += [nn.Dense(width), nn.BatchNorm(), nn.ReLU()]
    steps = epochs * -(-len(data.x_train) // batch)
    model = tw.Model(
        nn.Sequential(*layers, nn.Dense(10)),
        in_features=784,
        optimizer=optim.Adam(schedules.Cosine(_LR, steps)),
        device="cpu",
        seed=seed,
        threads=threads,
        matmul_precision=precision,
    )
    start = time.perf_counter()
    model.fit(data.x_train, data.y_train, epochs=epochs, batch_size=batch, verbose=False)
    seconds = time.perf_counter() - start
    accuracy = model.evaluate(data.x_test, data.y_test)["accuracy"]
    return {"train_seconds": seconds, "accuracy": accuracy}


def _idx(name: str, header: int) -> Any:
    import numpy as np

    folder = Path(os.environ["THALWEG_DATA"]) / "mnist"
    packed = folder / f"{name}.gz"
    data = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
    return np.frombuffer(data, np.uint8, offset=header)


def _arrays() -> list[Any]:
    """Pixels in [0, 1] of the training and test examples, and their labels."""
    import numpy as np

    pixels = [_idx(f"{part}-images-idx3-ubyte", 16) for part in ("train", "t10k")]
    labels = [_idx(f"{part}-labels-idx1-ubyte", 8) for part in ("train", "t10k")]
    images = [values.reshape(-1, 784).astype(np.float32) / np.float32(255) for values in pixels]
    return images + [values.astype(np.int64) for values in labels]


def _torch(seed: int, epochs: int, batch: int, threads: int) -> dict[str, float]:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    x, x_test, y, y_test = map(torch.from_numpy, _arrays())
    layers: list[nn.Module] = []
    for i, o in zip((784, *_HIDDEN[:-1]), _HIDDEN, strict=True):
        layers += [nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.ReLU(inplace=True)]
    network = nn.Sequential(*layers, nn.Linear(_HIDDEN[-1], 10))
    optimizer = torch.optim.Adam(network.parameters(), _LR, fused=True)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    start = time.perf_counter()
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(batch):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            output = network(x.index_select(0, index))
            loss = nn.functional.cross_entropy(output, y.index_select(0, index))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - start
    network.eval()
    with torch.no_grad():
        accuracy = float((network(x_test).argmax(dim=1) == y_test).float().mean())
    return {"train_seconds": seconds, "accuracy": accuracy}


def _jax(seed: int, epochs: int, batch: int, threads: int) -> dict[str, float]:
    """A jitted scan over the full minibatches of an epoch, and a step for what is left."""
    del threads  # XLA takes the processors that the process may use
    import jax
    import jax.numpy as jnp
    import numpy as np

    from bench.cases import CASES
    from bench.peers import jax_peer

    x, x_test, y, y_test = map(jnp.asarray, _arrays())
    case, rng = CASES["b"], np.random.default_rng(seed)
    steps = epochs * -(-len(x) // batch)
    full = len(x) // batch

    def step(state: Any, index: Any) -> Any:
        lr = 0.5 * _LR * (1 + jnp.cos(jnp.pi * state["updates"] / steps))
        return jax_peer.step(case, lr, state, x, y, index)[0]

    def epoch(state: Any, order: Any) -> Any:
        index = order[: full * batch].reshape(full, batch)
        state, _ = jax.lax.scan(lambda s, i: (step(s, i), None), state, index)
        return step(state, order[full * batch :]) if len(x) % batch else state

    weights = [
        rng.normal(0, (2 / i) ** 0.5, (o, i)).astype(np.float32)
        for i, o in itertools.pairwise(case.widths)
    ]
    state = jax_peer.initial_state(case, weights)
    order = jnp.arange(len(x), dtype=jnp.int32)
    run = jax.jit(epoch, donate_argnums=0).lower(state, order).compile()
    start = time.perf_counter()
    for _ in range(epochs):
        state = run(state, jnp.asarray(rng.permutation(len(x)).astype(np.int32)))
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    logits, _ = jax_peer.forward(case, state["layers"], x_test, state["running"])
    return {"train_seconds": seconds, "accuracy": float((logits.argmax(axis=1) == y_test).mean())}


def _process() -> None:
    library, seed, epochs, batch, threads = sys.argv[1:]
    train = {
        "thalweg": _thalweg,
        "thalweg-medium": functools.partial(_thalweg, precision="medium"),
        "torch": _torch,
        "jax": _jax,
    }[library]
    answer = train(int(seed), int(epochs), int(batch), int(threads))
    print(json.dumps({**answer, "peak_memory_mib": machine.peak_memory_mib()}))


def measure(
    libraries: Sequence[str],
    seeds: int,
    epochs: int,
    batch: int,
    threads: int,
    python: Mapping[str, str],
) -> dict[str, Any]:
    """One row: the libraries in turns over the seeds."""
    folder = os.environ.get("THALWEG_DATA")
    if not folder or not (Path(folder) / "mnist").is_dir():
        raise FileNotFoundError(
            "[mnist] expected THALWEG_DATA to name a folder that holds mnist/ with the four IDX "
            f"files, got {folder!r}"
        )
    row: dict[str, Any] = {
        "kind": "mnist",
        "title": "MNIST, 784-512-512-10, batch norm, ReLU, Adam with a cosine from 1e-3 to 0",
        "epochs": epochs,
        "batch": batch,
        "threads": threads,
        **machine.stamp(),
        "libraries": {},
        "skipped": {},
    }
    for seed in range(seeds):
        for name in libraries:
            if name in row["skipped"]:
                continue
            arguments = map(str, (seed, epochs, batch, threads))
            begin = time.monotonic()
            done = subprocess.run(
                [python.get(name, sys.executable), "-m", "bench.mnist", name, *arguments],
                cwd=machine.ROOT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                capture_output=True,
                text=True,
            )
            wall = time.monotonic() - begin
            if done.returncode:
                if "ModuleNotFoundError" not in done.stderr:
                    last = done.stderr.strip().splitlines()[-1]
                    raise RuntimeError(f"[mnist] {name} failed: {last}")
                row["skipped"][name] = "not installed"
                continue
            answer = json.loads(done.stdout.splitlines()[-1])
            run = {"seed": seed, "process_seconds": wall, **answer}
            row["libraries"].setdefault(name, []).append(
                {key: float(f"{value:.5g}") for key, value in run.items()}
            )
    return row


def describe(row: Mapping[str, Any]) -> str:
    """The row as a small table for the terminal."""
    lines = [f"{row['title']}; {row['epochs']} epochs, batch {row['batch']}"]
    lines.append(
        f"  {'library':<14} {'seed':>4} {'accuracy':>9} {'training s':>11} {'process s':>10} "
        f"{'peak MiB':>9}"
    )
    for name, runs in row["libraries"].items():
        for run in runs:
            lines.append(
                f"  {name:<14} {run['seed']:>4.0f} {run['accuracy']:>9.4f} "
                f"{run['train_seconds']:>11.2f} {run['process_seconds']:>10.2f} "
                f"{run['peak_memory_mib']:>9.0f}"
            )
    lines += [f"  {name}: skipped, {reason}" for name, reason in row["skipped"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    _process()
