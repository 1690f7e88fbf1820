"""Checkpoints: the format, foreign weights, damage of every kind, and crashes while writing."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import thalweg as tw
from conftest import DEVICE
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import Array, assert_same, snapshot
from thalweg import nn, optim
from thalweg._core import _testing

FOLDER = Path(__file__).parent


def layers() -> list[nn.Layer]:
    return [
        nn.Dense(9), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.1),
        nn.Residual(nn.Dense(9), nn.BatchNorm(momentum=None), nn.Tanh()),
        nn.Maxout(5, 2), nn.Dense(3),
    ]  # fmt: skip


def model(**options: Any) -> tw.Model:
    defaults: dict[str, Any] = {
        "optimizer": optim.Adam(0.01), "averaging": optim.Polyak(), "device": DEVICE,
        "seed": 2**64 - 3,
    }  # fmt: skip
    return tw.Model(layers(), 6, **{**defaults, **options})


def data() -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((50, 6)), rng.integers(0, 3, 50)


def trained(**options: Any) -> tw.Model:
    m = model(**options)
    m.fit(*data(), epochs=3, batch_size=16, max_steps=7, verbose=False)
    return m


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


# -- the format ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_official_reader_loads_it(dtype: str, path: Path) -> None:
    m = trained(dtype=dtype)
    m.save(path)
    tensors = load_file(path)
    state = m.optimizer_state()
    expected = {
        **m.named_parameters(),
        **m.named_state(),
        **{f"optimizer.{s}.{n}": v for s, named in state.items() for n, v in named.items()},
        **{f"average.{n}": v for n, v in m.averaged().named_parameters().items()},
    }
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert (tensors[name].dtype, tensors[name].shape) == (value.dtype, value.shape), name
        np.testing.assert_array_equal(tensors[name], value)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"].startswith("thalweg")
    assert json.loads(metadata["description"]) == m.description
    raw = path.read_bytes()
    assert struct.unpack("<Q", raw[:8])[0] % 8 == 0


def test_the_checksum_is_over_the_file_with_zero_digits(path: Path) -> None:
    trained().save(path)
    raw = path.read_bytes()
    with safe_open(path, "numpy") as file:
        digits = file.metadata()["crc32c"]
    assert len(digits) == 8 and digits == digits.lower()
    assert raw.count(digits.encode()) == 1
    assert f"{_testing.crc32c(raw.replace(digits.encode(), b'00000000')):08x}" == digits
    assert _testing.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(dtype: str, path: Path) -> None:
    m = trained(dtype=dtype, clip_norm=2.5, check_finite="gradients")
    m.save(path)
    loaded = tw.Model.load(path, device=DEVICE, threads=1)
    assert_same(m, loaded)
    assert loaded.description == m.description
    assert (loaded.seed, loaded.steps_done, loaded.epochs_done) == (2**64 - 3, 7, 1)
    assert loaded.dtype == m.dtype
    loaded.save(path.with_name("again.safetensors"))
    assert path.read_bytes() == path.with_name("again.safetensors").read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == ["again.safetensors", path.name]


def test_every_kind_of_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = trained()
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "./dotted.x", "sp ace", "ünïcode-模型", "x" * 200):
        m.save(name)
        assert_same(tw.Model.load(name, device=DEVICE), m)
    m.save(os.fsencode(tmp_path / "bytes"))  # type: ignore[arg-type]
    assert (tmp_path / "bytes").exists()
    for bad in ("", "no/such/folder/x", str(tmp_path), "null\0byte"):
        with pytest.raises((tw.CheckpointError, ValueError)):
            m.save(bad)
        with pytest.raises((tw.CheckpointError, ValueError)):
            tw.Model.load(bad)
    with pytest.raises(TypeError):
        m.save(3)  # type: ignore[arg-type]


def test_a_custom_loss_is_given_again(path: Path) -> None:
    def loss(z: Array, t: Array) -> tuple[float, Array]:
        return float((z**2).sum()), 2 * z

    m = tw.Model([nn.Dense(2)], 6, loss, device=DEVICE)
    x, y = data()
    m.step(x, y)
    m.save(path)
    loaded = tw.Model.load(path, device=DEVICE)
    with pytest.raises(ValueError, match="loss"):
        loaded.step(x, y)
    loaded = tw.Model.load(path, device=DEVICE, loss=loss)
    m.step(x, y)
    loaded.step(x, y)
    assert_same(m, loaded)


# -- weights from elsewhere ----------------------------------------------------------------------


def foreign_tensors(m: tw.Model, prefix: str, dtype: str = "float32") -> dict[str, Array]:
    """Random values under the names of a PyTorch Sequential."""
    rng = np.random.default_rng(9)
    tensors: dict[str, Array] = {}
    for name, value in m.named_parameters().items():
        tensors[name] = rng.standard_normal(value.shape).astype(dtype)
    for name, value in m.named_state().items():
        if name.endswith("tracked"):
            tensors[name] = np.array(17, dtype=np.int64)
        else:
            tensors[name] = rng.uniform(0.5, 2.0, value.shape).astype(dtype)
    return {name.replace("layers.", prefix): value for name, value in tensors.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("prefix", ["layers.", ""])
def test_load_weights_of_the_safetensors_package(prefix: str, dtype: str, path: Path) -> None:
    m = trained()
    slots = m.optimizer_state()
    tensors = foreign_tensors(m, prefix, dtype)
    save_file({**tensors, "unrelated": np.zeros(3, np.float16)}, path)
    m.load_weights(path)
    expected = foreign_tensors(m, "layers.", dtype)
    found = {**m.named_parameters(), **m.named_state()}
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.astype(found[name].dtype), err_msg=name)
    for slot, named in m.optimizer_state().items():
        for name, value in named.items():
            np.testing.assert_array_equal(value, slots[slot][name])
    by_dict = trained()
    by_dict.load_weights(expected)
    assert_same(m, by_dict)
    x = data()[0]
    network = ref.Network(m.description)
    z, _, _ = network.forward(
        {n: ref.as_float(expected[n]) for n in network.parameter_shapes()},
        x.astype(np.float32).astype(float),
        state={n: ref.as_float(expected[n]) for n in network.initial_state()},
    )
    np.testing.assert_allclose(m.predict(x), z, rtol=1e-4, atol=1e-4)


def test_load_weights_takes_a_checkpoint(path: Path) -> None:
    source, m = trained(), model(seed=1)
    source.save(path)
    m.load_weights(path)
    np.testing.assert_array_equal(m.parameters, source.parameters)
    for name, value in source.named_state().items():
        np.testing.assert_array_equal(m.named_state()[name], value)
    assert m.steps_done == 0


BROKEN: dict[str, Callable[[dict[str, Array]], Any]] = {
    "missing weight": lambda t: t.pop("layers.0.weight"),
    "missing bias": lambda t: t.pop("layers.6.bias"),
    "missing statistics": lambda t: t.pop("layers.1.running_var"),
    "transposed": lambda t: t.update(
        {"layers.0.weight": np.ascontiguousarray(t["layers.0.weight"].T)}
    ),
    "flattened": lambda t: t.update({"layers.0.weight": t["layers.0.weight"].ravel()}),
    "integers": lambda t: t.update({"layers.0.weight": t["layers.0.weight"].astype(np.int32)}),
    "empty file": lambda t: t.clear(),
}


@pytest.mark.parametrize("case", BROKEN)
def test_load_weights_is_all_or_nothing(case: str, path: Path) -> None:
    m = trained()
    tensors = foreign_tensors(m, "layers.")
    BROKEN[case](tensors)
    save_file(tensors, path)
    before = snapshot(m)
    with pytest.raises(tw.CheckpointError, match="expected"):
        m.load_weights(path)
    assert snapshot(m) == before


def test_load_weights_of_a_bad_dict_changes_nothing() -> None:
    m = trained()
    before = snapshot(m)
    good = foreign_tensors(m, "layers.")
    for name, value in (
        ("layers.99.weight", np.zeros(3)),
        ("layers.6.weight", np.zeros((2, 2))),
        ("layers.1.running_var", np.zeros(2)),
        ("layers.1.num_batches_tracked", np.array(-1)),
    ):
        with pytest.raises(ValueError, match="expected"):
            m.load_weights({**good, name: value})
        assert snapshot(m) == before


# -- damage --------------------------------------------------------------------------------------


def assert_refused(path: Path, contents: bytes) -> None:
    path.write_bytes(contents)
    with pytest.raises(tw.CheckpointError) as caught:
        tw.Model.load(path, device=DEVICE)
    assert isinstance(caught.value, ValueError)


def test_truncation_at_any_length(path: Path) -> None:
    m = trained()
    m.save(path)
    raw = path.read_bytes()
    lengths = {0, 1, 7, 8, 9, 15, 16, len(raw) - 1, *range(0, len(raw), 97)}
    for length in sorted(lengths):
        assert_refused(path, raw[:length])
    assert_refused(path, raw + b"\0")
    assert_refused(path, raw + raw)


def test_every_single_bit_flip_is_detected(path: Path) -> None:
    m = trained()
    m.save(path)
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    header = struct.unpack("<Q", raw[:8])[0]
    positions = [
        *range(64),
        *rng.integers(64, 8 * (8 + header), 500).tolist(),
        *rng.integers(8 * (8 + header), 8 * len(raw), 700).tolist(),
        8 * len(raw) - 1,
    ]
    for position in positions:
        damaged = bytearray(raw)
        damaged[position // 8] ^= 1 << position % 8
        assert_refused(path, bytes(damaged))


def file_of(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(shape: list[Any], begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, bytes] = {
    "a header of 4 GiB": struct.pack("<Q", 2**32) + b"{}  ",
    "a header of 2^64 - 1": struct.pack("<Q", 2**64 - 1) + b"{}",
    "no header": file_of(b""),
    "not JSON": file_of(b"hello world"),
    "an array": file_of(b"[]"),
    "deep nesting": file_of(b'{"a":' * 100_000),
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "no metadata": file_of({"w": tensor([1], 0, 4)}, b"\0" * 4),
    "another format": file_of(
        {"__metadata__": {"format": "pt"}, "w": tensor([1], 0, 4)}, b"\0" * 4
    ),
    "a product of 2^64": file_of({"w": tensor([2**32, 2**32], 0, 4)}, b"\0" * 4),
    "a dimension of 2^63": file_of({"w": tensor([2**63, 0], 0, 0)}),
    "a negative dimension": file_of({"w": tensor([-1], 0, 4)}, b"\0" * 4),
    "a negative offset": file_of({"w": tensor([1], -4, 0)}),
    "offsets that overlap": file_of({"a": tensor([1], 0, 4), "b": tensor([1], 2, 6)}, b"\0" * 6),
    "a gap": file_of({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, b"\0" * 12),
    "data behind the end": file_of({"w": tensor([9], 0, 36)}, b"\0" * 4),
    "a fraction": file_of({"w": tensor([1.5], 0, 6)}, b"\0" * 6),
    "the same name twice": file_of(
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    ),
    "a dtype of the future": file_of({"w": tensor([1], 0, 4, "F4096")}, b"\0" * 4),
    "invalid UTF-8": file_of(b'{"\xff\xfe":1}'),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, path: Path) -> None:
    assert_refused(path, HOSTILE[case])
    m = model()
    before = snapshot(m)
    with pytest.raises(tw.CheckpointError):
        m.load_weights(path)
    assert snapshot(m) == before


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", ".", "pipe"):
        start = time.monotonic()
        with pytest.raises(tw.CheckpointError):
            tw.Model.load(tmp_path / name)
        assert time.monotonic() - start < 1.0


FORGED: dict[str, Callable[[dict[str, str], dict[str, Array]], Any]] = {
    "no description": lambda m, t: m.pop("description"),
    "a broken description": lambda m, t: m.update(description="{"),
    "an unknown layer": lambda m, t: m.update(
        description=m["description"].replace('"relu"', '"step"')
    ),
    "a huge layer": lambda m, t: m.update(
        description=m["description"].replace('"units":9', '"units":900000000000')
    ),
    "no training state": lambda m, t: m.pop("training"),
    "negative steps": lambda m, t: m.update(
        training=m["training"].replace('"steps":7', '"steps":-7')
    ),
    "steps of text": lambda m, t: m.update(
        training=m["training"].replace('"steps":7', '"steps":"7"')
    ),
    "a position past the end": lambda m, t: m.update(
        training=m["training"].replace('"rows":50', '"rows":5')
    ),
    "a missing slot": lambda m, t: t.pop(next(n for n in t if n.startswith("optimizer."))),
    "a missing average": lambda m, t: t.pop(next(n for n in t if n.startswith("average."))),
    "a missing weight": lambda m, t: t.pop("layers.0.weight"),
    "a wrong shape": lambda m, t: t.update({"layers.0.weight": t["layers.0.weight"][:-1].copy()}),
    "a wrong count": lambda m, t: t.update({"layers.1.num_batches_tracked": np.array(-1)}),
}


@pytest.mark.parametrize("case", FORGED)
def test_well_formed_files_with_wrong_content(case: str, path: Path) -> None:
    """Files with a right checksum that do not describe a model."""
    trained().save(path)
    metadata, tensors = _testing.read_checkpoint(str(path), True)
    before = dict(metadata), dict(tensors)
    FORGED[case](metadata, tensors)
    assert (metadata, tensors.keys()) != (before[0], before[1].keys()) or any(
        tensors[n] is not before[1][n] for n in tensors
    )
    _testing.write_checkpoint(str(path), metadata, tensors)
    with pytest.raises(tw.CheckpointError):
        tw.Model.load(path, device=DEVICE)


def test_loading_runs_no_code(path: Path) -> None:
    """Audit events of a load: none of exec, compile, import or unpickling."""
    trained().save(path)
    script = (
        "import sys, thalweg as tw\n"
        "tw.Model.load(sys.argv[1], device='cpu')\n"  # everything lazy is loaded now
        "seen = []\n"
        "sys.addaudithook(lambda event, arguments: seen.append(event))\n"
        "model = tw.Model.load(sys.argv[1], device='cpu')\n"
        "model.load_weights(sys.argv[1])\n"
        "bad = ('exec', 'compile', 'import', 'pickle', 'marshal', 'os.system', 'subprocess')\n"
        "print([e for e in seen if e.startswith(bad)])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


# -- crashes and full disks ----------------------------------------------------------------------


def test_a_full_device_is_a_typed_error() -> None:
    m = trained()
    before = snapshot(m)
    with pytest.raises(tw.CheckpointError):
        m.save("/dev/full/model")
    with pytest.raises(tw.CheckpointError):
        m.save("/proc/model.safetensors")
    assert snapshot(m) == before


def test_a_file_that_cannot_grow_leaves_the_old_one(path: Path) -> None:
    script = (
        "import resource, signal, sys, os\n"
        "import test_checkpoint as t, thalweg as tw\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "m = t.trained()\n"
        "m.save(sys.argv[1])\n"
        "old = open(sys.argv[1], 'rb').read()\n"
        "m.fit(*t.data(), verbose=False)\n"
        "for limit in (0, 1, 100, 4096, len(old) - 64):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        m.save(sys.argv[1])\n"
        "    except tw.CheckpointError:\n"
        "        pass\n"
        "    else:\n"
        "        raise SystemExit(f'saved with a limit of {limit}')\n"
        "    assert open(sys.argv[1], 'rb').read() == old\n"
        "    assert os.listdir(os.path.dirname(sys.argv[1])) == [os.path.basename(sys.argv[1])]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "m.save(sys.argv[1])\n"
        "t.assert_same(tw.Model.load(sys.argv[1]), m)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=FOLDER, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_a_read_only_folder(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    path.parent.chmod(0o500)
    with pytest.raises(tw.CheckpointError):
        trained().save(path)
    path.parent.chmod(0o700)


def test_kill_leaves_the_old_or_the_new_checkpoint(path: Path) -> None:
    """A process that trains and saves without pause is killed at random times."""
    script = (
        "import sys, test_checkpoint as t\n"
        "m = t.model()\n"
        "x, y = t.data()\n"
        "m.save(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    m.step(x, y)\n"
        "    m.save(sys.argv[1])\n"
    )
    expected = {0: snapshot(model())}
    follower = model()
    rng = np.random.default_rng(0)
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], cwd=FOLDER, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(float(rng.uniform(0.0, 0.15)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        survivor = tw.Model.load(path, device=DEVICE)
        while follower.steps_done < survivor.steps_done:
            follower.step(*data())
            expected[follower.steps_done] = snapshot(follower)
        assert snapshot(survivor) == expected[survivor.steps_done]
    follower.save(path)  # the next writer clears away what the killed ones left
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_saves_from_many_threads(path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    models = [trained(seed=s) for s in range(4)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: models[i % 4].save(path), range(40)))
    loaded = tw.Model.load(path, device=DEVICE)
    assert snapshot(loaded) in [snapshot(m) for m in models]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_memory_while_loading_is_the_file(path: Path) -> None:
    """A small file that claims much does not make the reader allocate it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in ("a header of 4 GiB", "a product of 2^64", "deep nesting"):
        assert_refused(path, HOSTILE[case])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
