"""MNIST from its files to test accuracy (`python -m bench mnist`): accuracy, time, peak memory.

As a program (`python -m bench.mnist LIBRARY SEED EPOCHS BATCH THREADS`) it is the process that is
measured: 784-512-512-10 with batch norm and ReLU, Adam whose learning rate falls from 1e-3 to 0 by
a cosine, 10 epochs by default.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import machine

LIBRARIES = ("thalweg", "torch")
_HIDDEN, _LR = (512, 512), 1e-3


def _thalweg(seed: int, epochs: int, batch: int, threads: int) -> dict[str, float]:
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


def _torch(seed: int, epochs: int, batch: int, threads: int) -> dict[str, float]:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    pixels = [
        torch.from_numpy(_idx(f"{p}-images-idx3-ubyte", 16).copy()) for p in ("train", "t10k")
    ]
    x, x_test = (values.view(-1, 784).float().div_(255) for values in pixels)
    labels = [torch.from_numpy(_idx(f"{p}-labels-idx1-ubyte", 8).copy()) for p in ("train", "t10k")]
    y, y_test = (values.long() for values in labels)
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


def _process() -> None:
    library, seed, epochs, batch, threads = sys.argv[1:]
    train = {"thalweg": _thalweg, "torch": _torch}[library]
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
        f"  {'library':<10} {'seed':>4} {'accuracy':>9} {'training s':>11} {'process s':>10} "
        f"{'peak MiB':>9}"
    )
    for name, runs in row["libraries"].items():
        for run in runs:
            lines.append(
                f"  {name:<10} {run['seed']:>4.0f} {run['accuracy']:>9.4f} "
                f"{run['train_seconds']:>11.2f} {run['process_seconds']:>10.2f} "
                f"{run['peak_memory_mib']:>9.0f}"
            )
    lines += [f"  {name}: skipped, {reason}" for name, reason in row["skipped"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    _process()
