"""Models out of reference descriptions, and the state of a model in the reference's terms."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import networks
import numpy as np
import numpy.typing as npt
import reference as ref
import thalweg as tw
from conftest import DEVICE
from thalweg import _core, nn, optim

Array = npt.NDArray[Any]


def model_of(
    description: Mapping[str, Any], *, dtype: str | None = None, **options: Any
) -> tw.Model:
    """The model that a reference description means; `options` go to `tw.Model`."""
    d = dict(description)
    averaging = d.get("averaging")
    return tw.Model(
        [nn.from_dict(layer) for layer in d["layers"]],
        in_features=d["in_features"],
        loss=d["loss"],
        optimizer=d.get("optimizer"),
        seed=d.get("seed", 0),
        dtype=dtype or d.get("dtype", "float32"),
        averaging=None if averaging is None else optim.averaging_from_dict(averaging),
        clip_norm=d.get("clip_norm"),
        check_finite=d.get("check_finite", "loss"),
        matmul_precision=d.get("matmul_precision", "highest"),
        **{"device": DEVICE, **options},
    )


def set_values(
    model: tw.Model, parameters: Mapping[str, ref.Float], state: Mapping[str, ref.Float]
) -> None:
    """Give a model the parameters and batch-norm buffers of the reference."""
    model.set_parameters(parameters)
    counts = "num_batches_tracked"
    model.set_state({n: np.asarray(int(v)) if n.endswith(counts) else v for n, v in state.items()})


def at_step(model: tw.Model, step: int, folder: Path) -> tw.Model:
    """The same model with `step` updates behind it: the step keys the dropout masks."""
    path = str(folder / f"at_step_{step}.safetensors")
    model.save(path)
    metadata, tensors = _core._testing.read_checkpoint(path, True)
    counters = {"steps": step, "updates": step}
    metadata["training"] = json.dumps({**json.loads(metadata["training"]), **counters})
    _core._testing.write_checkpoint(path, metadata, tensors)
    return tw.Model.load(path, device=DEVICE, threads=model.threads)


def case_model(case: networks.Case, dtype: str, folder: Path, **options: Any) -> tw.Model:
    """The model of a random network, at its values and step."""
    model = model_of(case.description, dtype=dtype, **options)
    set_values(model, case.parameters, case.state)
    if case.step and "dropout" in case.layer_types:
        return at_step(model, case.step, folder)
    return model


def snapshot(model: tw.Model) -> dict[str, bytes]:
    """Every number that training changes, as bytes: equal snapshots are bitwise equal models."""
    core = model._core
    average = core.average()
    parts: dict[str, Any] = {
        "parameters": core.parameters(),
        "theta": core.theta(),
        "state": core.state(),
        "batches": np.array(core.batches_tracked(), dtype=np.int64),
        "average": np.zeros(0) if average is None else average,
        "counters": np.array([core.steps_done(), core.epochs_done()]),
    }
    parts.update({name: core.slot(i) for i, name in enumerate(core.slot_names())})
    return {name: np.asarray(value).tobytes() for name, value in parts.items()}


def assert_same(a: tw.Model, b: tw.Model) -> None:
    """Two models agree bit for bit."""
    first, second = snapshot(a), snapshot(b)
    assert first.keys() == second.keys()
    different = [name for name in first if first[name] != second[name]]
    assert not different, f"bits differ in {different}"


def assert_same_in_threads(work: Callable[[int], Any], count: int = 3) -> None:
    """`work(0)`, `work(1)`, ... give the same results alone and in threads at the same time."""
    alone = [work(i) for i in range(count)]
    start = threading.Barrier(count)

    def work_with_others(i: int) -> Any:
        start.wait()
        return work(i)

    with ThreadPoolExecutor(count) as pool:
        assert list(pool.map(work_with_others, range(count))) == alone
