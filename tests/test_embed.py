"""Applications in C and C++ against the installed package: same checkpoint, same bits as Python."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import thalweg as tw
from conftest import ROOT
from thalweg import nn, optim


def run(command: list[str], cwd: Path) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(source: Path, folder: Path, cmake: list[str], compiler: str, flags: str = "") -> None:
    """Configure and build a project that does find_package(thalweg)."""
    options = [
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DCMAKE_CXX_FLAGS={flags}",
        f"-Dthalweg_DIR={tw.get_cmake_dir()}",
    ]
    run([*cmake, "-S", str(source), "-B", str(folder), *options], folder)
    run([*cmake, "--build", str(folder)], folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A checkpoint, inputs and the outputs that Python predicts, as files."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(157, 13)).astype(np.float32)
    y = rng.integers(0, 5, size=157)
    network = nn.Sequential(
        nn.Dense(40),
        nn.BatchNorm(),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Residual(nn.Dense(40), nn.GELU()),
        nn.Maxout(17),
        nn.Dense(5),
    )
    model = tw.Model(network, in_features=13, optimizer=optim.Adam(1e-2))
    model.fit(x, y, epochs=3, verbose=False)
    checkpoint = folder / "python.safetensors"
    model.save(str(checkpoint))
    x.tofile(folder / "inputs.bin")
    model.predict(x).astype(np.float32).tofile(folder / "outputs.bin")
    return [str(checkpoint), str(folder / "inputs.bin"), str(folder / "outputs.bin")]


@pytest.mark.parametrize(
    "flags", ["", "-D_GLIBCXX_USE_CXX11_ABI=0"], ids=["default_abi", "old_abi"]
)
def test_embedding(
    flags: str, trained: list[str], tmp_path: Path, cmake: list[str], compiler: str
) -> None:
    """The C++ and the C program train, predict, load, and see typed errors."""
    build(ROOT / "tests" / "embed", tmp_path, cmake, compiler, flags)
    for program in ("embed_cpp", "embed_c"):
        assert "all checks passed" in run([str(tmp_path / program), *trained], tmp_path)
    resumed = tw.Model.load(str(tmp_path / "cpp.safetensors"))
    assert resumed.epochs_done == 2
    assert resumed.in_features == 2


def test_example(tmp_path: Path, cmake: list[str], compiler: str) -> None:
    """The example of the documentation builds, trains, and its checkpoint opens in Python."""
    build(ROOT / "examples" / "cpp", tmp_path, cmake, compiler)
    output = run([str(tmp_path / "train_and_predict")], tmp_path)
    assert "accuracy" in output
    assert tw.Model.load(str(tmp_path / "spirals.safetensors")).out_features == 2


def test_every_listed_method_is_in_the_cpp_interface() -> None:
    """A method added to a list of math/ needs a struct in description.h and a line in cpp.md."""
    header = (ROOT / "csrc" / "include" / "thalweg" / "description.h").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "cpp.md").read_text(encoding="utf-8")
    formulas = [
        path
        for folder in ("activation", "loss", "optimizer")
        for path in sorted((ROOT / "csrc" / "math" / folder).glob("*.h"))
    ]
    names = [
        name
        for path in formulas
        for name in re.findall(r'char\* name = "(\w+)"', path.read_text(encoding="utf-8"))
    ]
    assert {"relu", "huber", "adam"} <= set(names)
    assert not [name for name in names if f'"{name}"' not in header]
    assert not [name for name in names if f'"{name}"' not in page]
