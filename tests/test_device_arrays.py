"""Arrays in the memory of a GPU: intake by DLPack and __cuda_array_interface__, and results there.

Emulated device memory is lent by thalweg's own DeviceArray; the classes below pass it on in the
ways of other libraries. Streams on which something is still queued are tested in C++
(tests/cpp/cuda/device_arrays_test.cpp), PyTorch's tensors where there is a GPU for them.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import thalweg as tw
from support import assert_same, assert_same_in_threads, snapshot
from thalweg import _core, nn, optim

CUDA = _core.information()["cuda_available"]
EMULATED = "emulator" in _core.information()["cuda_report"]
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a GPU, or a build that emulates CUDA")

Array = npt.NDArray[Any]
FEATURES, CLASSES = 6, 4


def data(rows: int = 100) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, FEATURES)).astype(np.float32)
    return x, rng.integers(0, CLASSES, rows), rng.uniform(0.5, 2.0, rows)


def network(device: str = "cuda", **options: Any) -> tw.Model:
    layers = [nn.Dense(9), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(CLASSES)]
    defaults: dict[str, Any] = {"optimizer": optim.Adam(0.01), "seed": 5}
    return tw.Model(layers, FEATURES, "cross_entropy", device=device, **{**defaults, **options})


class Lender:
    """Another library's array by __cuda_array_interface__ alone."""

    def __init__(self, base: tw.DeviceArray, **changes: Any) -> None:
        self.base = base
        self.__cuda_array_interface__ = {**base.__cuda_array_interface__, **changes}


class Producer:
    """Another library's array by DLPack; `old` is one from before version 1.0."""

    def __init__(self, base: tw.DeviceArray, old: bool = False, ordinal: int = 0) -> None:
        self.base, self.old, self.ordinal = base, old, ordinal
        self.shape = base.shape
        self.asked: list[dict[str, Any]] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.ordinal

    def __dlpack__(self, **arguments: Any) -> Any:
        self.asked.append(arguments)
        if self.old and "max_version" in arguments:
            raise TypeError("unexpected keyword argument 'max_version'")
        return self.base.__dlpack__(**arguments)


def lend(kind: str, array: tw.DeviceArray) -> Any:
    return {"own": lambda a: a, "interface": Lender, "dlpack": Producer}[kind](array)


# ---- the array -----------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    ],
)
def test_device_arrays_hold_what_was_put_in(dtype: str) -> None:
    values = (np.arange(21).reshape(3, 7) % 5).astype(dtype)
    array = network().to_device(values)
    assert (array.shape, array.dtype, array.device) == ((3, 7), np.dtype(dtype), "cuda:0")
    assert (array.ndim, array.size, array.nbytes, len(array)) == (2, 21, values.nbytes, 3)
    assert repr(array) == f"DeviceArray(shape=(3, 7), dtype='{dtype}', device='cuda:0')"
    np.testing.assert_array_equal(array.numpy(), values)
    np.testing.assert_array_equal(np.asarray(array), values)
    assert np.asarray(array, dtype=np.float64).dtype == np.float64
    assert array.__dlpack_device__() == (2, 0)
    interface = array.__cuda_array_interface__
    assert interface["shape"] == (3, 7)
    assert interface["typestr"] == np.dtype(dtype).str
    assert (interface["version"], interface["stream"], interface["strides"]) == (3, None, None)
    transposed = network().to_device(values.T)
    np.testing.assert_array_equal(transposed.numpy(), values.T)


@needs_cuda
def test_scalars_and_empty_arrays() -> None:
    scalar = network().to_device(np.float64(2.5))
    assert (scalar.shape, scalar.size, scalar.numpy()) == ((), 1, 2.5)
    with pytest.raises(TypeError, match="0 dimensions"):
        len(scalar)
    empty = network().to_device(np.zeros((0, FEATURES)))
    assert (empty.shape, empty.nbytes, len(empty)) == ((0, FEATURES), 0, 0)
    np.testing.assert_array_equal(empty.numpy(), np.zeros((0, FEATURES)))
    with pytest.raises(ValueError, match="at least one row"):
        network().predict(empty)
    for wrong in ("text", [1j], object()):
        with pytest.raises(TypeError, match="to_device"):
            network().to_device(wrong)  # type: ignore[arg-type]


@needs_cuda
def test_export_keeps_to_the_protocol() -> None:
    array = network().to_device(np.arange(5.0))
    for stream in (None, -1, 1, 2, 4096):
        assert "dltensor" in repr(array.__dlpack__(stream=stream))
    assert "dltensor_versioned" in repr(array.__dlpack__(max_version=(1, 0)))
    assert "dltensor" in repr(array.__dlpack__(dl_device=(2, 0), copy=False))
    with pytest.raises(ValueError, match="stream"):
        array.__dlpack__(stream=0)
    with pytest.raises(TypeError, match="stream"):
        array.__dlpack__(stream="default")
    with pytest.raises(BufferError, match="dl_device"):
        array.__dlpack__(dl_device=(2, 1))
    with pytest.raises(BufferError, match="CPU"):
        array.__dlpack__(dl_device=(1, 0), copy=False)
    with pytest.raises(ValueError, match="copy"):
        array.__array__(copy=False)
    assert "dltensor" in repr(array.__dlpack__(dl_device=(1, 0)))


@needs_cuda
def test_copies_are_apart() -> None:
    """A capsule by default shares the memory: what is written through it shows."""
    model = tw.Model(nn.Dense(1), 4, "squared_error", device="cuda", dtype="float64")
    array = model.to_device(np.arange(5.0))

    class Capsule:
        def __init__(self, copy: bool) -> None:
            self.capsule = array.__dlpack__(copy=copy)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **arguments: Any) -> Any:
            return self.capsule

    for copy in (True, False):
        model.set_parameters(Capsule(copy))
        np.testing.assert_array_equal(model.parameters, np.arange(5.0))


# ---- intake --------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("kind", ["own", "interface", "dlpack"])
def test_data_on_the_gpu_train_as_data_on_the_host(kind: str) -> None:
    x, y, w = data()
    host, device = network(clip_norm=0.5), network(clip_norm=0.5)
    xd, yd, wd = (lend(kind, device.to_device(a)) for a in (x, y, w))
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "accumulate": 2, "verbose": False}
    one = host.fit(x, y, sample_weight=w, validation_data=(x, y, w), **options)
    two = device.fit(xd, yd, sample_weight=wd, validation_data=(xd, yd, wd), **options)
    for column in ("loss", "accuracy", "validation_loss", "validation_accuracy"):
        assert one[column] == two[column]
    for n in (7, 7, 12):
        parts = (lend(kind, device.to_device(a[:n])) for a in (x, y, w))
        assert host.step(x[:n], y[:n], w[:n]) == device.step(*parts)
    assert_same(host, device)
    assert host.evaluate(x, y, sample_weight=w, top_k=2) == device.evaluate(
        xd, yd, sample_weight=wd, top_k=2
    )
    host.recalibrate_batch_norm(x, batch_size=30)
    device.recalibrate_batch_norm(xd, batch_size=30)
    assert_same(host, device)


@needs_cuda
@pytest.mark.parametrize("kind", ["own", "interface", "dlpack"])
def test_results_lie_where_x_does(kind: str) -> None:
    x, y, w = data(70)
    model = network()
    model.fit(x, y, batch_size=16, verbose=False)
    xd, yd, wd = (lend(kind, model.to_device(a)) for a in (x, y, w))

    def same(on_device: Any, on_host: Array) -> None:
        assert isinstance(on_device, tw.DeviceArray)
        assert isinstance(on_host, np.ndarray)
        assert on_device.shape == on_host.shape
        assert on_device.dtype == on_host.dtype
        np.testing.assert_array_equal(on_device.numpy(), on_host)

    for batch_size in (1, 64, 1000):
        same(model.predict(xd, batch_size=batch_size), model.predict(x))
        same(model.predict_proba(xd, batch_size=batch_size), model.predict_proba(x))
    np.testing.assert_array_equal(model.predict_class(xd), model.predict_class(x))
    for training in (False, True):
        same(model.forward(xd, training=training), model.forward(x, training=training))
        for a, b in zip(
            model.activations(xd, training=training),
            model.activations(x, training=training),
            strict=True,
        ):
            same(a, b)
        on_device = model.loss_and_grad(
            xd, yd, sample_weight=wd, training=training, input_gradient=True
        )
        on_host = model.loss_and_grad(x, y, sample_weight=w, training=training, input_gradient=True)
        assert on_device[0] == on_host[0]
        same(on_device[1], on_host[1])
        same(on_device[2], on_host[2])  # type: ignore[misc]
    same(model.input_gradient(xd, yd), model.input_gradient(x, y))
    same(model.input_gradient(xd, y), model.input_gradient(x, y))  # y may come from the host
    same(model.device_parameters(), model.parameters)


@needs_cuda
@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint16", "bool"])
def test_other_types_are_cast_as_on_the_host(dtype: str) -> None:
    x = (4 * data()[0]).astype(dtype)
    model = network()
    array = model.predict(Lender(model.to_device(x)))
    np.testing.assert_array_equal(array.numpy(), model.predict(x))


def strided(base: tw.DeviceArray, offset: int, shape: Any, strides: Any) -> Lender:
    """A view of elements of `base`: offset and strides in bytes."""
    address = base.__cuda_array_interface__["data"][0] + offset
    return Lender(base, data=(address, True), shape=shape, strides=strides)


@needs_cuda
def test_any_strides_are_read_where_they_lie() -> None:
    rng = np.random.default_rng(1)
    big = rng.standard_normal((40, 20)).astype(np.float32)
    model = network()
    base = model.to_device(big)
    views = {
        "rows with a pitch": (big[:, 3 : 3 + FEATURES], 12, (80, 4)),
        "every third column": (big[:, : 3 * FEATURES : 3], 0, (80, 12)),
        "reversed rows": (big[::-1, :FEATURES], 39 * 80, (-80, 4)),
        "reversed columns": (big[:, FEATURES - 1 :: -1], 4 * (FEATURES - 1), (80, -4)),
        "one row for all": (np.broadcast_to(big[0, :FEATURES], (40, FEATURES)), 0, (0, 4)),
    }
    y = rng.integers(0, CLASSES, 40)
    labels = np.repeat(y, 2)
    every_second = strided(model.to_device(labels), 0, (40,), (16,))
    for name, (host, offset, strides) in views.items():
        view = strided(base, offset, host.shape, strides)
        np.testing.assert_array_equal(model.predict(view).numpy(), model.predict(host), name)
        one, two = network(), network()
        for a, b in ((one, (host, y)), (two, (view, every_second))):
            a.fit(*b, batch_size=16, shuffle="epoch", verbose=False)
            a.step(*b)
        assert_same(one, two)
    transposed = strided(model.to_device(big[:FEATURES]), 0, (20, FEATURES), (4, 80))
    np.testing.assert_array_equal(
        model.predict(transposed).numpy(), model.predict(big[:FEATURES].T)
    )


@needs_cuda
def test_producers_are_asked_for_the_stream_of_the_model() -> None:
    x, y, _ = data()
    one, two = network(), network()
    base, labels = one.to_device(x), one.to_device(y)
    first, second, old = Producer(base), Producer(base), Producer(base, old=True)
    one.predict(first)
    one.step(first, labels)
    two.predict(second)
    two.predict(old)
    assert [set(a) for a in first.asked] == [{"stream", "max_version"}] * 2
    streams = {a["stream"] for a in first.asked}
    assert len(streams) == 1  # every call of a model names the same
    assert all(isinstance(s, int) and s > 2 for s in streams)
    assert streams.isdisjoint(a["stream"] for a in second.asked)
    assert [set(a) for a in old.asked] == [{"stream", "max_version"}, {"stream"}]


@needs_cuda
def test_streams_of_the_interface_are_waited_for() -> None:
    x, _, _ = data()
    model = network()
    base = model.to_device(x)
    for stream in (None, 1, 2):
        out = model.predict(Lender(base, stream=stream))
        np.testing.assert_array_equal(out.numpy(), model.predict(x))
    old = Lender(base, version=2)
    del old.__cuda_array_interface__["stream"]
    np.testing.assert_array_equal(model.predict(old).numpy(), model.predict(x))


@needs_cuda
def test_labels_on_the_gpu_serve_what_the_host_computes() -> None:
    x, y, w = data()
    models = network(), network()
    for model, arrays in zip(
        models, ((x, y, w), [models[0].to_device(a) for a in (x, y, w)]), strict=True
    ):
        model.fit(
            arrays[0], arrays[1], sample_weight=arrays[2], class_weight="balanced", batch_size=16,
            verbose=False,
        )  # fmt: skip
        model.fit([arrays], class_weight={1: 2.0}, verbose=False)
    assert_same(*models)

    def loss(prediction: Array, target: Array) -> tuple[float, Array]:
        difference = prediction - target[:, None]
        return float((difference**2).mean()), 2 * difference / difference.size

    custom = [tw.Model(nn.Dense(1), FEATURES, loss, device="cuda") for _ in range(2)]
    custom[0].fit(x, w, batch_size=32, verbose=False)
    custom[1].fit(custom[1].to_device(x), custom[1].to_device(w), batch_size=32, verbose=False)
    assert_same(*custom)
    smoothed = tw.Model(
        nn.Dense(CLASSES), FEATURES, tw.losses.CrossEntropy(label_smoothing=0.1), device="cuda"
    )
    on_device = smoothed.evaluate(smoothed.to_device(x), smoothed.to_device(y))
    assert on_device == smoothed.evaluate(x, y)


@needs_cuda
@pytest.mark.parametrize(("batch_size", "drops"), [(100, False), (100, True), (32, False)])
def test_methods_take_data_on_the_gpu(batch_size: int, drops: bool) -> None:
    """All rows are read where they lie; minibatches are selected on the host."""
    x, y, w = data()
    layers = [nn.Dense(9), nn.Tanh(), *([nn.Dropout(0.2)] if drops else []), nn.Dense(CLASSES)]
    models = [
        tw.Model(layers, FEATURES, optimizer=optim.SteepestDescent(0.1), device="cuda")
        for _ in range(2)
    ]
    on_gpu = [models[1].to_device(a) for a in (x, y, w)]
    for model, (xs, ys, ws) in zip(models, ((x, y, w), on_gpu), strict=True):
        model.fit(xs, ys, sample_weight=ws, epochs=2, batch_size=batch_size, verbose=False)
        model.fit(xs, ys, class_weight={1: 2.0}, batch_size=batch_size, verbose=False)
        model.step(xs, ys)
    assert_same(*models)


@needs_cuda
@pytest.mark.parametrize("kind", ["own", "interface", "dlpack"])
@pytest.mark.parametrize("chunk_size", [None, 64])
def test_objectives_read_data_on_the_gpu(kind: str, chunk_size: int | None) -> None:
    """The same bits as of data on the host, and whatever lends the memory lives on."""
    x, y, w = data()
    model = network()
    options: dict[str, Any] = {"statistics": "frozen", "dropout": True, "chunk_size": chunk_size}
    host = tw.Objective(model, x, y, sample_weight=w, **options)
    lent = [lend(kind, model.to_device(a)) for a in (x, y, w)]
    device = tw.Objective(model, lent[0], lent[1], sample_weight=lent[2], **options)
    mixed = tw.Objective(model, x, lent[1], sample_weight=w, **options)
    del lent
    gc.collect()
    rng = np.random.default_rng(2)
    v, u = rng.standard_normal(model.num_parameters), rng.standard_normal((len(x), CLASSES))
    for other in (device, mixed):
        assert other.value() == host.value()
        for name, arguments in (
            ("grad", ()),
            ("hvp", (v,)),
            ("ggnvp", (v,)),
            ("jvp", (v,)),
            ("vjp", (u,)),
            ("per_example_grads", ()),
            ("per_example_grad_norms", ()),
        ):
            got, want = (getattr(o, name)(*arguments) for o in (other, host))
            assert isinstance(got, np.ndarray)
            np.testing.assert_array_equal(got, want, err_msg=name)
    point = model.device_parameters()
    np.testing.assert_array_equal(device.hvp(v, point), host.hvp(v))
    np.testing.assert_array_equal(
        device.hvp(model.to_device(v), point), host.hvp(v, model.parameters)
    )


@needs_cuda
def test_objectives_on_the_gpu_check_their_data() -> None:
    x, y, w = data()
    model = network()
    labels, weights = y.copy(), w.copy()
    labels[41], weights[99] = CLASSES, -0.5
    with pytest.raises(ValueError, match=r"\[Objective\].*y\[41\] = 4"):
        tw.Objective(model, model.to_device(x), model.to_device(labels))
    with pytest.raises(ValueError, match=r"sample_weight\[99\] = -0.5"):
        tw.Objective(model, x, y, sample_weight=model.to_device(weights))
    with pytest.raises(tw.DeviceError, match=r"v in CPU memory, got an array on GPU 0"):
        tw.Objective(network("cpu"), x, y).hvp(model.device_parameters())


def members(device: str = "cuda") -> tw.Population:
    layers = [nn.Dense(9), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(CLASSES)]
    return tw.Population(layers, 3, FEATURES, "cross_entropy", "adam", device=device, threads=2)


@needs_cuda
@pytest.mark.parametrize("kind", ["own", "dlpack"])
@pytest.mark.parametrize("shared", [True, False])
def test_populations_take_data_on_the_gpu(kind: str, shared: bool) -> None:
    x, y, w = data()
    one, two = members(), members()

    def lent(array: Array) -> Any:
        arrays = [lend(kind, model.to_device(array)) for model in two]
        return arrays[0] if shared else arrays

    xd, yd, wd = (lent(a) for a in (x, y, w))
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "verbose": False}
    first = one.fit(x, y, sample_weight=w, validation_data=(x, y), **options)
    second = two.fit(xd, yd, sample_weight=wd, validation_data=(xd, yd), **options)
    for column in ("loss", "validation_accuracy"):
        np.testing.assert_array_equal(second[column], first[column])
    rows = [range(50), range(20, 90), [3, 5, 7, 5]]
    one.fit(x, y, sample_weight=w, rows=rows, **options)
    two.fit(xd, yd, sample_weight=wd, rows=rows, **options)
    for a, b in zip(one, two, strict=True):
        assert_same(a, b)
    want, got = one.evaluate(x, y, sample_weight=w), two.evaluate(xd, yd, sample_weight=wd)
    for name, values in want.items():
        np.testing.assert_array_equal(got[name], values)
    assert one.best(x, y) is one[two.models.index(two.best(xd, yd))]
    if not shared:
        return
    for name in ("predict", "predict_proba"):
        on_device, on_host = getattr(two, name)(xd), getattr(one, name)(x)
        assert isinstance(on_device, tw.DeviceArray)
        assert isinstance(on_host, np.ndarray)
        np.testing.assert_array_equal(on_device.numpy(), on_host)


@needs_cuda
def test_parameters_come_from_the_gpu() -> None:
    trained, other = network(), network(seed=6)
    trained.fit(*data()[:2], batch_size=16, verbose=False)
    for kind in ("own", "interface", "dlpack"):
        other.reset()
        other.set_parameters(lend(kind, trained.device_parameters()))
        np.testing.assert_array_equal(other.parameters, trained.parameters)
    x = data()[0]
    other.set_state(trained.named_state())
    np.testing.assert_array_equal(other.predict(x), trained.predict(x))
    for wrong, error in (
        (other.to_device(np.zeros(other.num_parameters)), TypeError),
        (other.to_device(np.zeros(3, np.float32)), ValueError),
        (other.to_device(np.zeros((other.num_parameters, 1), np.float32)), ValueError),
    ):
        with pytest.raises(error, match="set_parameters"):
            other.set_parameters(wrong)
    np.testing.assert_array_equal(other.parameters, trained.parameters)


# ---- ownership -----------------------------------------------------------------------------------


@needs_cuda
def test_memory_lives_as_long_as_somebody_holds_it() -> None:
    """A use after free is a fault of the emulated device."""
    x = data()[0]
    model = network()
    expected = model.predict(x)
    array = model.predict(Producer(model.to_device(x)))  # nobody but the call holds x
    capsule = array.__dlpack__()
    view = Lender(array)
    del array, model
    gc.collect()
    np.testing.assert_array_equal(view.base.numpy(), expected)
    del view
    gc.collect()

    class Holder:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, **arguments: Any) -> Any:
            return capsule

    identity = tw.Model(nn.Dense(CLASSES), CLASSES, "squared_error", device="cuda")
    identity.set_parameters(
        {"layers.0.weight": np.eye(CLASSES), "layers.0.bias": np.zeros(CLASSES)}
    )
    np.testing.assert_array_equal(identity.predict(Holder()).numpy(), expected)


def run_with_memory(megabytes: int, code: str, folder: Path) -> None:
    """Runs code on an emulated device of that size."""
    if not EMULATED:
        pytest.skip("the emulator alone has a memory of chosen size")
    env = {**os.environ, "THALWEG_EMULATOR_MEMORY_MB": str(megabytes)}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=env, cwd=folder, check=True, timeout=300,
    )  # fmt: skip


@needs_cuda
def test_labels_on_the_gpu_go_with_data_beyond_its_memory(tmp_path: Path) -> None:
    code = """
        import numpy as np
        import thalweg as tw
        from thalweg import nn

        rng = np.random.default_rng(0)
        x = rng.standard_normal((6000, 256))  # 12 MB
        y, w = rng.integers(0, 3, 6000), rng.uniform(0.5, 1.5, 6000)
        model = tw.Model([nn.Dense(8), nn.ReLU(), nn.Dense(3)], 256, device="cuda", seed=1)
        labels, weights = (model.to_device(a) for a in (y, w)) if ON_GPU else (y, w)
        for accumulate in (1, 3):
            model.fit(x, labels, sample_weight=weights, batch_size=700, accumulate=accumulate,
                      validation_data=(x, labels), verbose=False)
        np.save("NAME.npy", model.parameters)
    """
    for name, megabytes, on_gpu in (("large", 256, False), ("small", 10, True)):
        text = code.replace("NAME", name).replace("ON_GPU", str(on_gpu))
        run_with_memory(megabytes, text, tmp_path)
    large, small = (np.load(tmp_path / f"{name}.npy") for name in ("large", "small"))
    np.testing.assert_array_equal(small, large)


@needs_cuda
def test_targets_that_do_not_fit_beside_x(tmp_path: Path) -> None:
    code = """
        import numpy as np
        import thalweg as tw
        from thalweg import nn

        model = tw.Model(nn.Dense(500), 16, "squared_error", device="cuda")
        x, y = model.to_device(np.zeros((6000, 16), np.float32)), np.zeros((6000, 500))  # 24 MB
        for _ in range(2):
            try:
                model.fit(x, y, batch_size=100, verbose=False)
            except MemoryError as error:
                assert "room for y" in str(error), error
            else:
                raise AssertionError("no error")
            assert model.steps_done == 0
        model.fit(x.numpy(), y, batch_size=100, verbose=False)
        assert model.steps_done == 60
    """
    run_with_memory(16, code, tmp_path)


@needs_cuda
def test_device_memory_comes_back(tmp_path: Path) -> None:
    code = """
        import numpy as np
        import thalweg as tw
        from thalweg import nn

        model = tw.Model(nn.Dense(4), 256, "squared_error", device="cuda")
        x = model.to_device(np.zeros((4000, 256), np.float32))  # 4 MB
        outputs = [model.predict(x) for _ in range(20)]
        for _ in range(200):  # 800 MB
            model.to_device(np.zeros((4000, 256), np.float32)).__dlpack__()
        try:
            kept = [model.to_device(np.zeros((4000, 256), np.float32)) for _ in range(20)]
        except MemoryError as error:
            assert "to_device" in str(error), error
        else:
            raise AssertionError("no error")
        model.fit(x, outputs[0], batch_size=1000, verbose=False)
        assert model.steps_done == 4
    """
    run_with_memory(32, code, tmp_path)


@needs_cuda
def test_a_lost_context_is_reported_as_what_it_is(tmp_path: Path) -> None:
    """A view beyond the memory that lends it; then no call works any more, of whatever model."""
    code = """
        import numpy as np
        import thalweg as tw
        from thalweg import nn

        x, y = np.zeros((10, 4), np.float32), np.zeros(10, np.int64)
        model, other = (tw.Model(nn.Dense(2), 4, device="cuda") for _ in range(2))
        base = model.to_device(x)

        class Beyond:
            __cuda_array_interface__ = {
                **base.__cuda_array_interface__, "shape": (1000, 4), "strides": (10**6, 4)
            }

        for attempt in (
            lambda: model.predict(Beyond()),
            lambda: model.predict(x),
            lambda: other.fit(x, y, verbose=False),
            lambda: other.save("model.safetensors"),
            lambda: tw.Model(nn.Dense(2), 4, device="cuda"),
        ):
            try:
                attempt()
            except tw.DeviceError as error:
                assert "cudaErrorIllegalAddress" in str(error), error
                assert "start a new process" in str(error), error
            else:
                raise AssertionError("no error")
        tw.Model(nn.Dense(2), 4, device="cpu").fit(x, y, verbose=False)
    """
    run_with_memory(256, code, tmp_path)
    assert not list(tmp_path.iterdir())


# ---- what cannot work ----------------------------------------------------------------------------


@needs_cuda
def test_models_on_the_cpu_refuse_arrays_of_a_gpu() -> None:
    x, y, _ = data()
    lender = network()
    on_gpu = lender.to_device(x), lender.to_device(y)
    model = network("cpu")
    before = snapshot(model)
    for kind in ("own", "interface", "dlpack"):
        xd, yd = (lend(kind, a) for a in on_gpu)
        for attempt in (
            lambda xd=xd: model.predict(xd),
            lambda xd=xd: model.fit(xd, y, verbose=False),
            lambda yd=yd: model.fit(x, yd, verbose=False),
            lambda xd=xd: model.evaluate(xd, y),
            lambda xd=xd, yd=yd: model.step(xd, yd),
            lambda xd=xd: model.loss_and_grad(xd, y),
            lambda xd=xd: tw.Objective(model, xd, y),
            lambda xd=xd: tw.Population(model, 2).predict(xd),
            lambda xd=xd: tw.Population(model, 2).fit(xd, y, verbose=False),
            lambda xd=xd: tw.ops.dense(xd, np.ones((2, FEATURES))),
        ):
            with pytest.raises(tw.DeviceError, match=r"CPU memory.*GPU 0"):
                attempt()
    for attempt in (
        lambda: model.to_device(x),
        model.device_parameters,
        lambda: model.set_parameters(lender.device_parameters()),
    ):
        with pytest.raises(tw.DeviceError, match="'cuda', got one on 'cpu'"):
            attempt()
    assert snapshot(model) == before


@needs_cuda
def test_arrays_elsewhere_are_refused() -> None:
    x = data()[0]
    model = network()
    with pytest.raises(tw.DeviceError, match="GPU 0, where the model is, got GPU 3"):
        model.predict(Producer(model.to_device(x), ordinal=3))
    host = x.ctypes.data
    with pytest.raises(tw.DeviceError, match="does not know"):
        model.predict(Lender(model.to_device(x), data=(host, False)))


@needs_cuda
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mask": object()}, ValueError, "without a mask"),
        ({"typestr": "<c8"}, TypeError, "<c8"),
        ({"typestr": ">f4"}, TypeError, "byte order"),
        ({"typestr": "|V2"}, TypeError, "real numbers"),
        ({"typestr": None}, TypeError, "'typestr'"),
        ({"data": None}, TypeError, "'data'"),
        ({"stream": 0}, ValueError, "ambiguous"),
        ({"strides": (25, 4)}, ValueError, "whole elements"),
        ({"strides": (4,)}, ValueError, "one stride per dimension"),
        ({"shape": (10, 2, 3)}, ValueError, "1 or 2 dimensions"),
        ({"shape": (600,)}, ValueError, r"shape \(n, 6\)"),
    ],
)
def test_interfaces_that_cannot_be_read(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = network()
    with pytest.raises(error, match=message):
        model.predict(Lender(model.to_device(data()[0]), **changes))


@needs_cuda
@pytest.mark.parametrize("kind", ["own", "interface", "dlpack"])
def test_elements_are_checked_on_the_gpu(kind: str) -> None:
    x, y, w = data()
    model = network()
    before = snapshot(model)

    def refused(message: str, *arrays: Array) -> None:
        on_gpu = [lend(kind, model.to_device(a)) for a in arrays]
        for attempt in (
            lambda: model.fit(*on_gpu[:2], sample_weight=[*on_gpu, None][2], verbose=False),
            lambda: model.step(*on_gpu),
        ):
            with pytest.raises(ValueError, match=message):
                attempt()

    bad = x.copy()
    bad[17, 3], bad[18, 0] = np.nan, np.inf
    refused(r"finite x, got x\[17, 3\] = nan", bad, y)
    labels = y.copy()
    labels[41] = CLASSES
    refused(r"labels in \[0, 4\), got y\[41\] = 4", x, labels)
    refused(r"y\[0\] = -1", x, y - 1 - y[0])
    weights = w.copy()
    weights[99] = -0.5
    refused(r"sample_weight\[99\] = -0.5", x, y, weights)
    refused("positive sum", x, y, 0 * w)
    refused(r"len\(y\) == len\(x\)", x, y[:-1])
    assert snapshot(model) == before


# ---- together ------------------------------------------------------------------------------------


@needs_cuda
def test_models_in_threads_do_not_disturb_each_other() -> None:
    x, y, _ = data()

    def work(seed: int) -> tuple[dict[str, bytes], bytes]:
        model = network(seed=seed)
        xd, yd = Producer(model.to_device(x)), Lender(model.to_device(y), stream=1 + seed % 2)
        for _ in range(2):
            model.fit(xd, yd, batch_size=16, verbose=False)
            model.step(xd, yd)
        return snapshot(model), model.predict(xd).numpy().tobytes()

    assert_same_in_threads(work)


@needs_cuda
def test_steps_on_new_arrays_replay_one_graph() -> None:
    x, y, _ = data()
    model = network()
    kept = []
    for i in range(5):
        kept.append((model.to_device(x[i:]), model.to_device(y[i:])))
        parts = (strided(a, 0, (20, *a.shape[1:]), None) for a in kept[-1])
        model.step(*parts)
    assert len(model._core.graph_nodes) == 1


@needs_cuda
def test_checkpoints_of_models_fed_on_the_gpu_move_bit_for_bit(tmp_path: Path) -> None:
    x, y, _ = data()
    model = network()
    model.fit(model.to_device(x), model.to_device(y), batch_size=16, max_steps=4, verbose=False)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    model.save(first)
    moved = tw.Model.load(first, device="cpu")
    moved.save(second)
    assert first.read_bytes() == second.read_bytes()
    back = tw.Model.load(second, device="cuda")
    for m in (model, back):  # where they stand in the data is in the file
        m.fit(m.to_device(x), m.to_device(y), batch_size=16, verbose=False)
    assert_same(model, back)


# ---- PyTorch, on a GPU ---------------------------------------------------------------------------


@pytest.mark.oracle
def test_tensors_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    if not CUDA or EMULATED or not torch.cuda.is_available():
        pytest.skip("needs a GPU, and a PyTorch that uses it")
    x, y, _ = data(2000)
    host, device = network(), network()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # the inputs are still being made when fit is called
        xt = torch.from_numpy(x).cuda(non_blocking=True)
        for _ in range(200):
            xt = xt * 2.0 / 2.0
        yt = torch.from_numpy(y).cuda(non_blocking=True)
        device.fit(xt, yt, batch_size=64, verbose=False)
        out = torch.from_dlpack(device.predict(xt))
    host.fit(x, y, batch_size=64, verbose=False)
    assert_same(host, device)
    assert out.is_cuda
    np.testing.assert_array_equal(out.cpu().numpy(), host.predict(x))
    half = torch.from_dlpack(device.predict(xt.half()))
    bfloat = torch.from_dlpack(device.predict(xt.bfloat16()))
    np.testing.assert_array_equal(half.cpu().numpy(), host.predict(x.astype(np.float16)))
    np.testing.assert_array_equal(
        bfloat.cpu().numpy(), host.predict(torch.from_numpy(x).bfloat16().float().numpy())
    )
    _, gradient = device.loss_and_grad(xt, yt)
    shared = torch.as_tensor(gradient, device="cuda")
    assert shared.data_ptr() == gradient.__cuda_array_interface__["data"][0]
    with pytest.raises((BufferError, RuntimeError)):
        device.predict(xt.clone().requires_grad_())
