"""What is special about device="cuda": graphs, queues, memory, and the way back to the CPU.

The rest of the suite runs on CUDA with THALWEG_DEVICE=cuda.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import thalweg as tw
from support import assert_same, assert_same_in_threads, snapshot
from thalweg import _core, callbacks, nn, optim

pytestmark = pytest.mark.skipif(
    not _core.information()["cuda_available"], reason="needs a GPU, or a build that emulates CUDA"
)
EMULATED = "emulator" in _core.information()["cuda_report"]

Array = npt.NDArray[Any]


def data(rows: int = 100, features: int = 6, classes: int = 4) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, features)).astype(np.float32)
    return x, rng.integers(0, classes, rows)


def network(device: str = "cuda", **options: Any) -> tw.Model:
    """Batch norm, dropout and a look-ahead optimizer with an average."""
    layers = [nn.Dense(9), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(4)]
    defaults: dict[str, Any] = {
        "optimizer": optim.Nesterov(0.05),
        "averaging": optim.Polyak(),
        "seed": 5,
    }
    return tw.Model(layers, 6, "cross_entropy", device=device, **{**defaults, **options})


# ---- graphs --------------------------------------------------------------------------------------


def plain_layers() -> list[nn.Layer]:
    return [nn.Dense(128), nn.ReLU(), nn.Dense(128), nn.ReLU(), nn.Dense(10)]


def dropping_layers() -> list[nn.Layer]:
    hidden = [layer for _ in range(2) for layer in (nn.Dense(128), nn.ReLU(), nn.Dropout(0.2))]
    return [*hidden, nn.Dense(10)]


def normalized_layers() -> list[nn.Layer]:
    hidden = [layer for _ in range(2) for layer in (nn.Dense(128), nn.BatchNorm(), nn.ReLU())]
    return [*hidden, nn.Dense(10)]


# gather and labels; three products, the last with the loss; two input gradients; three weight
# gradients; the optimizer. Batch norm: two passes forward, two backward, running statistics.
# Dropout runs in the products beside it, and clipping adds the norm.
@pytest.mark.parametrize(
    ("layers", "options", "nodes"),
    [
        (plain_layers(), {}, 11),
        (plain_layers(), {"clip_norm": 1.0}, 12),
        (dropping_layers(), {}, 11),
        (normalized_layers(), {}, 16),
        (normalized_layers(), {"clip_norm": 1.0, "averaging": optim.EMA(0.9)}, 17),
    ],
    ids=["plain", "clipped", "dropout", "batch norm", "batch norm, clipped, averaged"],
)
def test_nodes_of_a_step(layers: list[nn.Layer], options: dict[str, Any], nodes: int) -> None:
    x, y = data(20, 784, 10)
    model = tw.Model(layers, 784, "cross_entropy", optim.Adam(), device="cuda", **options)
    model.fit(x, y, batch_size=8, verbose=False)
    assert model._core.graph_nodes == [nodes, nodes]  # the last minibatch has a shape of its own


def test_steps_of_one_shape_are_captured_once() -> None:
    x, y = data()
    model = network()
    model.fit(x, y, epochs=3, batch_size=25, verbose=False)
    for _ in range(3):
        model.step(x[:10], y[:10])
    assert len(model._core.graph_nodes) == 2
    model.fit(x, y, batch_size=10, accumulate=4, verbose=False)
    assert len(model._core.graph_nodes) == 4  # four minibatches, and the two that are left


# ---- the same results, however they are queued ---------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"shuffle": "stack"}, {"every": 2}])
def test_results_do_not_depend_on_the_runs(options: dict[str, Any]) -> None:
    """Interrupted by nothing, by callbacks, or continued from a checkpoint: the same bits."""

    class Watch:
        def __init__(self) -> None:
            self.steps = 0

        def on_step(self, model: tw.Model, step: int, logs: dict[str, Any]) -> None:
            self.steps += 1

    x, y = data()
    watch = Watch()
    every = options.pop("every", 1)
    whole, watched, resumed = network(), network(), network()
    one = whole.fit(x, y, epochs=2, batch_size=8, verbose=False, **options)
    two = watched.fit(
        x,
        y,
        epochs=2,
        batch_size=8,
        verbose=False,
        callbacks=[watch],
        callback_every=every,
        **options,
    )
    assert watch.steps == whole.steps_done // every
    assert_same(whole, watched)
    assert one["loss"] == two["loss"]
    resumed.fit(x, y, epochs=2, batch_size=8, max_steps=3, verbose=False, **options)
    resumed = pickle.loads(pickle.dumps(resumed))
    assert resumed.device == "cuda"
    resumed.fit(x, y, epochs=2, batch_size=8, verbose=False, **options)
    assert_same(whole, resumed)


def test_training_agrees_with_the_cpu() -> None:
    x, y = data()
    weights = np.random.default_rng(1).uniform(0.5, 2.0, len(x))
    models = [network(device, dtype="float64", clip_norm=0.5) for device in ("cpu", "cuda")]
    for model in models:
        model.fit(
            x, y, sample_weight=weights, class_weight={1: 2.0}, epochs=3, batch_size=16,
            accumulate=2, verbose=False,
        )  # fmt: skip
    np.testing.assert_allclose(models[1].parameters, models[0].parameters, rtol=0, atol=1e-12)
    assert models[0]._core.batches_tracked() == models[1]._core.batches_tracked()


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_norms_of_gradients(precision: str) -> None:
    """Products leave their squares: of an update's minibatches together, of what moves alone."""
    x, y = data(600, 40)
    layers = [nn.Dense(70), nn.Tanh(), nn.Dense(33), nn.Tanh(), nn.Dense(4)]

    def frozen(*patterns: str) -> optim.SGD:
        return optim.SGD(0.1, groups=[optim.Group(p, frozen=True) for p in patterns])

    def moving(model: tw.Model, patterns: tuple[str, ...]) -> Array:
        parts = [
            np.full(shape, not any(fnmatch(name, p) for p in patterns)).ravel()
            for name, _, shape in model.layout()
        ]
        return np.concatenate(parts)

    def norms(*cases: tuple[str, ...]) -> list[float]:
        model = tw.Model(
            layers, 40, optimizer=frozen(), clip_norm=0.5, device="cuda", matmul_precision=precision
        )
        seen = []
        for patterns in cases:
            model.set_optimizer(frozen(*patterns))
            for batch_size, accumulate in ((600, 1), (250, 3)):
                gradient = model.loss_and_grad(x, y)[1]
                watch = callbacks.LambdaCallback(
                    on_step=lambda m, step, logs: seen.append(logs["gradient_norm"])
                )
                model.fit(
                    x, y, batch_size=batch_size, accumulate=accumulate, callbacks=[watch],
                    verbose=False,
                )  # fmt: skip
                limit = 1e-5 if precision == "highest" else 0.02
                want = np.linalg.norm(gradient[moving(model, patterns)])
                assert seen[-1] == pytest.approx(want, rel=limit), patterns
        return seen

    weights, tail = ("*.weight",), ("layers.2.*", "layers.4.*")
    first = norms((), ("layers.2.weight",), ("*.bias",), weights, tail)
    assert len(first) == 10
    assert norms(()) == first[:2]


OBJECTIVES: dict[str, dict[str, Any]] = {
    "batch": {},
    "batch, dropout": {"dropout": True},
    "frozen": {"statistics": "frozen"},
    "frozen, dropout, chunks": {"statistics": "frozen", "dropout": True, "chunk_size": 64},
}


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 3e-5)])
def test_objectives_agree_with_the_cpu(dtype: str, limit: float, options: dict[str, Any]) -> None:
    """Every product, one of them again and some at a second point: launches come out of graphs."""
    rng = np.random.default_rng(2)
    layers = [
        nn.Dense(33), nn.BatchNorm(weighted=True), nn.SiLU(), nn.Dropout(0.2),
        nn.Residual(nn.Dense(33), nn.BatchNorm(), nn.Tanh()), nn.Maxout(9), nn.Dense(3),
    ]  # fmt: skip
    x, y = rng.standard_normal((70, 7)), rng.integers(0, 3, 70)
    weights = rng.uniform(0.5, 2.0, len(x))
    models = [tw.Model(layers, 7, dtype=dtype, device=d, seed=1) for d in ("cpu", "cuda")]
    u, v = rng.standard_normal((70, 3)), rng.standard_normal(models[0].num_parameters)
    objectives = [tw.Objective(m, x, y, sample_weight=weights, **options) for m in models]
    arguments = {"hvp": (v,), "ggnvp": (v,), "jvp": (v,), "vjp": (u,)}
    names = ["value", "grad", *arguments]
    if options.get("statistics") == "frozen":
        names += ["per_example_grads", "per_example_grad_norms"]
    near = models[0].parameters
    for theta, called in ((near, [*names, "hvp"]), (near + 0.1 * v, ["ggnvp", "hvp", "grad"])):
        for name in called:
            exact, found = (
                np.asarray(getattr(o, name)(*arguments.get(name, ()), theta)) for o in objectives
            )
            error = np.linalg.norm(found - exact)
            assert error <= limit * np.linalg.norm(exact), name
    state = models[1].named_state()
    assert all(np.array_equal(state[name], b) for name, b in models[0].named_state().items())


def same_on_both(work: Any, layers: list[nn.Layer], **options: Any) -> None:
    """work(model) leaves the same parameters and running statistics in float64."""
    models = [
        tw.Model(layers, 6, "cross_entropy", device=device, dtype="float64", seed=2, **options)
        for device in ("cpu", "cuda")
    ]
    for model in models:
        work(model)
    cpu, cuda = models
    np.testing.assert_allclose(cuda.parameters, cpu.parameters, rtol=0, atol=1e-12)
    for name, value in cpu.named_state().items():
        np.testing.assert_allclose(cuda.named_state()[name], value, rtol=0, atol=1e-12)


def test_minibatches_of_other_sizes_and_types() -> None:
    """A graph belongs to one size and one memory layout of the data."""
    x, y = data(61)

    def work(model: tw.Model) -> None:
        for rows in (10, 60, 10, 11):
            model.step(x[:rows], y[:rows])
        for rows in (10, 61, 10):
            model.fit(x, y, batch_size=rows, verbose=False)
        for form in (x.astype(np.int8), x, x.astype(np.int32), np.asfortranarray(x), x[::-1]):
            model.fit(form, y, batch_size=25, verbose=False)
            model.fit(form, y.astype(np.int32), batch_size=7, accumulate=3, verbose=False)

    layers = [
        nn.Dense(9), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2),
        nn.Dense(7), nn.ReLU(), nn.Dropout(0.3), nn.Dense(4),
    ]  # fmt: skip
    same_on_both(work, layers, optimizer=optim.Momentum(0.05))


def test_more_batch_norms_than_one_launch_takes() -> None:
    x, y = data(20)
    hidden = [layer for _ in range(26) for layer in (nn.Dense(3), nn.BatchNorm(), nn.Tanh())]

    results: list[Array] = []

    def both(model: tw.Model) -> None:
        model.fit(x, y, batch_size=10, verbose=False)
        assert list(model._core.batches_tracked()) == [2] * 26
        results.append(model.predict(x))

    same_on_both(both, [*hidden, nn.Dense(4)], optimizer=optim.SGD(1e-3))
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-11)


# Relative differences after the updates; what each precision is for.
@pytest.mark.parametrize(
    ("precision", "bound"), [("highest", 2e-6), ("high", 1e-5), ("medium", 5e-2)]
)
def test_tensor_cores_see_every_update(precision: str, bound: float) -> None:
    """Weights are kept in bfloat16 planes beside the float32 ones."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 40)).astype(np.float32), rng.integers(0, 4, 64)
    layers = [nn.Dense(64), nn.Tanh(), nn.Residual(nn.Dense(64), nn.Tanh()), nn.Dense(4)]

    def trained(device: str, **options: Any) -> tw.Model:
        model = tw.Model(
            layers, 40, "cross_entropy", optim.SGD(0.3), device=device, seed=3, **options
        )
        start = model.parameters
        model.fit(x, y, epochs=4, batch_size=32, verbose=False)
        moved = np.linalg.norm(model.parameters - start) / np.linalg.norm(start)
        assert moved > 0.1, moved
        return model

    exact = trained("cpu", dtype="float64")
    model = trained("cuda", matmul_precision=precision)
    for found, expected in (
        (model.parameters, exact.parameters),
        (model.predict(x), exact.predict(x)),
    ):
        assert np.linalg.norm(found - expected) <= bound * np.linalg.norm(expected)
    outputs = model.predict(x)
    model.set_parameters(model.parameters)
    np.testing.assert_array_equal(model.predict(x), outputs)
    model.set_parameters(exact.parameters)
    error = np.linalg.norm(model.predict(x) - exact.predict(x))
    assert error <= bound * np.linalg.norm(exact.predict(x))


# ---- failures in the middle of a queue -----------------------------------------------------------


@pytest.mark.parametrize("check", ["loss", "gradients"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_failure_behind_good_updates(check: str, accumulate: int) -> None:
    """The queue is many updates ahead when one of them fails; the model is that of the last good
    one, and the message is the CPU's."""
    x = np.full((400, 4), 3.0)
    y = np.ones((400, 1))

    def model(device: str) -> tw.Model:
        return tw.Model(
            [nn.Dense(5), nn.Softplus(), nn.Dense(1)],
            4, "squared_error", optim.SGD(2.0), check_finite=check, device=device,
        )  # fmt: skip

    errors = []
    for device in ("cpu", "cuda"):
        broken = model(device)
        with pytest.raises(tw.NonFiniteError) as caught:
            broken.fit(x, y, epochs=9, batch_size=2, accumulate=accumulate, verbose=False)
        errors.append(caught.value)
        assert broken.steps_done >= 3
        good = model(device)
        good.fit(
            x, y, epochs=9, batch_size=2, accumulate=accumulate, max_steps=broken.steps_done,
            verbose=False,
        )  # fmt: skip
        assert_same(broken, good)
    assert errors[0].step == errors[1].step
    assert errors[0].layer == errors[1].layer
    assert str(errors[0]).split("got")[0] == str(errors[1]).split("got")[0]


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.GELU()], ids=["none", "relu", "gelu"])
@pytest.mark.parametrize("loss", ["squared_error", lambda z, t: (float(z.sum()), 0 * z)])
def test_dropout_is_not_to_blame(activation: nn.Layer | None, loss: Any) -> None:
    """The layer before it is named, although the two are one kernel."""
    x, y = np.full((40, 4), 1e30, np.float32), np.ones((40, 1))
    hidden = [nn.Dense(64)] if activation is None else [nn.Dense(64), activation]
    layers: list[nn.Layer] = [nn.Dense(4), *hidden, nn.Dropout(0.5), nn.Dense(1)]
    names = []
    for device in ("cpu", "cuda"):
        model = tw.Model(layers, 4, loss, device=device)
        weights = model.named_parameters()
        model.set_parameters({**weights, "layers.1.weight": np.full((64, 4), 1e30)})
        with pytest.raises(tw.NonFiniteError) as caught:
            model.step(x, y)
        names.append(caught.value.layer)
    assert names == ["layers.1", "layers.1"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_statistics_of_a_failed_update(accumulate: int) -> None:
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    y = np.ones((60, 1), np.float32)
    y[45] = 1e30
    layers = [nn.Dense(5), nn.BatchNorm(), nn.Tanh(), nn.Dense(1)]
    broken, good = (
        tw.Model(layers, 4, "squared_error", optim.SGD(1e-3), device="cuda") for _ in range(2)
    )
    options = {"batch_size": 10, "accumulate": accumulate, "shuffle": False, "verbose": False}
    with pytest.raises(tw.NonFiniteError):
        broken.fit(x, y, **options)
    assert broken.steps_done == 4 // accumulate
    good.fit(x, y, max_steps=broken.steps_done, **options)
    assert_same(broken, good)


def test_an_interrupt_leaves_complete_updates() -> None:
    class Stop(Exception):
        pass

    class Raise:
        def on_step(self, model: tw.Model, step: int, logs: dict[str, Any]) -> None:
            if step == 5:
                raise Stop

    x, y = data()
    stopped, good = network(), network()
    with pytest.raises(Stop):
        stopped.fit(x, y, epochs=9, batch_size=8, callbacks=[Raise()], verbose=False)
    good.fit(x, y, epochs=9, batch_size=8, max_steps=5, verbose=False)
    assert_same(stopped, good)


# ---- between devices -----------------------------------------------------------------------------


def test_checkpoints_move_bit_for_bit(tmp_path: Path) -> None:
    x, y = data()
    for source, target in (("cuda", "cpu"), ("cpu", "cuda")):
        model = network(source)
        model.fit(x, y, batch_size=16, max_steps=4, verbose=False)
        first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
        model.save(first)
        moved = tw.Model.load(first, device=target)
        assert moved.device == target
        before, after = snapshot(model), snapshot(moved)
        # Not a value of its own: each device computes it, one perhaps with a fused multiply-add.
        before.pop("theta"), after.pop("theta")
        assert after == before
        moved.save(second)
        assert first.read_bytes() == second.read_bytes()
        assert_same(model, model.copy())
        moved.fit(x, y, batch_size=16, verbose=False)


# ---- several models ------------------------------------------------------------------------------


def test_models_in_threads_do_not_disturb_each_other() -> None:
    x, y = data()

    def work(seed: int) -> tuple[dict[str, bytes], bytes]:
        model = network(seed=seed)
        model.fit(x, y, epochs=2, batch_size=16, verbose=False)
        return snapshot(model), model.predict(x, batch_size=64).tobytes()

    assert_same_in_threads(work)


def test_many_threads_predict_from_one_model() -> None:
    x, _ = data(300)
    model = network()

    def predict(i: int) -> bytes:
        return model.predict(x, batch_size=64 * (1 + i % 2)).tobytes()

    assert predict(0) == predict(1) == model.predict(x).tobytes()
    assert_same_in_threads(predict, 6)


# ---- memory --------------------------------------------------------------------------------------


def run_with_memory(megabytes: int, code: str, folder: Path) -> None:
    """Runs code on an emulated device of that size."""
    prelude = """
        import sys
        import numpy as np
        import thalweg as tw
        from thalweg import nn, optim

        def model():
            layers = [nn.Dense(8), nn.ReLU(), nn.Dense(3)]
            return tw.Model(layers, 256, "cross_entropy", optim.Adam(), device="cuda", seed=1)

        rng = np.random.default_rng(0)
        x = rng.standard_normal((6000, 256))  # 12 MB
        y = rng.integers(0, 3, 6000)
        w = rng.uniform(0.5, 1.5, 6000)
    """
    env = {**os.environ, "THALWEG_EMULATOR_MEMORY_MB": str(megabytes)}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        env=env, cwd=folder, check=True, timeout=300,
    )  # fmt: skip


@pytest.mark.skipif(not EMULATED, reason="the emulator alone has a memory of chosen size")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_data_beyond_the_memory_are_streamed(tmp_path: Path, accumulate: int) -> None:
    code = f"""
        trained = model()
        trained.fit(x, y, sample_weight=w, class_weight={{0: 2.0}}, batch_size=100, epochs=2,
                    accumulate={accumulate}, validation_data=(x, y), verbose=False)
        np.save(sys.argv[0] + "NAME", trained.parameters)
    """
    for name, megabytes in (("large", 256), ("small", 10)):
        run_with_memory(megabytes, code.replace("NAME", name), tmp_path)
    large, small = (np.load(tmp_path / f"-c{name}.npy") for name in ("large", "small"))
    np.testing.assert_array_equal(small, large)


@pytest.mark.skipif(not EMULATED, reason="the emulator alone has a memory of chosen size")
def test_products_over_data_beyond_the_memory(tmp_path: Path) -> None:
    code = """
        objective = tw.Objective(model(), x, y, sample_weight=w, chunk_size=640)
        v = np.arange(model().num_parameters) % 5 - 2.0
        found = np.concatenate([objective.hvp(v), objective.grad(), objective.vjp(x[:, :3])])
        np.save(sys.argv[0] + "NAME", found)
    """
    for name, megabytes in (("large", 256), ("small", 10)):
        run_with_memory(megabytes, code.replace("NAME", name), tmp_path)
    large, small = (np.load(tmp_path / f"-c{name}.npy") for name in ("large", "small"))
    np.testing.assert_array_equal(small, large)


@pytest.mark.skipif(not EMULATED, reason="the emulator alone has a memory of chosen size")
def test_labels_that_spoil_while_they_are_streamed(tmp_path: Path) -> None:
    code = """
        class Spoil:
            def on_epoch_end(self, model, epoch, logs):
                y[:] = 3
        trained = model()
        try:
            trained.fit(x, y, batch_size=700, epochs=3, callbacks=[Spoil()], verbose=False)
        except ValueError as error:
            assert "changed while it was in use" in str(error), error
        else:
            raise AssertionError("no error")
        assert trained.epochs_done == 1
    """
    run_with_memory(10, code, tmp_path)


@pytest.mark.skipif(not EMULATED, reason="the emulator alone has a memory of chosen size")
def test_memory_that_runs_out_is_an_error_one_recovers_from(tmp_path: Path) -> None:
    code = """
        trained, other = model(), model()
        for attempt in (
            lambda: trained.fit(x, y, batch_size=6000, verbose=False),
            lambda: trained.step(x, y),
            lambda: trained.predict(x, batch_size=6000),
            lambda: trained.loss_and_grad(x, y),
            lambda: tw.Objective(trained, x, y).hvp(trained.parameters),
            lambda: tw.Model([nn.Dense(8192), nn.Dense(3)], 256, "cross_entropy", device="cuda"),
        ):
            try:
                attempt()
            except MemoryError as error:
                assert "memory" in str(error), error
            else:
                raise AssertionError("no error")
            assert trained.steps_done == 0
        for m in (trained, other):
            m.fit(x[:500], y[:500], batch_size=100, verbose=False)
        np.testing.assert_array_equal(trained.parameters, other.parameters)
    """
    run_with_memory(10, code, tmp_path)


# ---- architectures -------------------------------------------------------------------------------


@pytest.mark.skipif(not EMULATED, reason="the emulator alone is of any architecture")
@pytest.mark.parametrize(("device", "code"), [(90, 80), (80, 75)])
def test_kernels_compiled_for_an_older_gpu(device: int, code: int) -> None:
    """Clusters and tensor cores are used where the kernels have them, not where the GPU has."""
    program = """
        import numpy as np
        import thalweg as tw
        from thalweg import nn, optim

        layers = [nn.Dense(32), nn.BatchNorm(), nn.ReLU(), nn.Dense(3)]
        model = tw.Model(layers, 32, "cross_entropy", optim.SGD(0.1), device="cuda", seed=1)
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((1024, 32)), rng.integers(0, 3, 1024)
        for _ in range(2):
            model.step(x, y)
        print(model.parameters.tobytes().hex())
    """

    def parameters(device: int, code: int) -> str:
        env = {"THALWEG_EMULATOR_ARCH": str(device), "THALWEG_EMULATOR_CODE": str(code)}
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env={**os.environ, **env}, check=True, timeout=300, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip

    assert parameters(device, code) == parameters(code, code)
