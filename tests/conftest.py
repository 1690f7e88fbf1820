"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import thalweg._core
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# The device of every model whose test is not about a device.
DEVICE = os.environ.get("THALWEG_DEVICE", "cpu")
# Kernels run on the processor, ten to a thousand times as slowly as on a GPU.
EMULATED = DEVICE == "cuda" and "emulator" in thalweg._core.information()["cuda_report"]
# matmul_precision is a floor: a GPU without bfloat16 products computes "medium" in float32.
MEDIUM_ROUNDS = DEVICE == "cpu" or not re.search(
    r"compute capability 7\.", thalweg._core.information()["cuda_report"]
)
# On a machine that is there for its GPU, a test that misses it fails.
GPU_REQUIRED = os.environ.get("THALWEG_REQUIRE_GPU") == "1"

settings.register_profile(
    "thalweg",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("emulated", settings.get_profile("thalweg"), max_examples=10)
settings.load_profile("emulated" if EMULATED else "thalweg")


def scaled(count: int, least: int = 1) -> int:
    """`count` repetitions of something, or a tenth of them where kernels are emulated."""
    return max(least, count // 10) if EMULATED else count


def pytest_sessionstart() -> None:
    # A shell starts its background jobs with interrupts ignored, and some tests wait for one.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if GPU_REQUIRED and (EMULATED or not thalweg._core.information()["cuda_available"]):
        reason = "kernels are emulated" if EMULATED else thalweg._core.information()["why_not_cuda"]
        pytest.exit(f"THALWEG_REQUIRE_GPU=1, but there is no usable GPU: {reason}", returncode=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [m for m in ("torch", "scipy", "sklearn") if importlib.util.find_spec(m) is None]
    if not missing:
        return
    skip = pytest.mark.skip(reason=f"needs the extra `oracle`: no {', '.join(missing)}")
    for item in items:
        if "oracle" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if GPU_REQUIRED and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if "GPU" in reason or "CUDA" in reason or "nvcc" in reason:
            report.outcome, report.longrepr = "failed", f"THALWEG_REQUIRE_GPU=1, but {reason}"
    return report


@pytest.fixture
def rng() -> np.random.Generator:
    """Generator with a fixed seed, fresh for every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def package_dir() -> Path:
    """Folder of the compiled package; in an editable install it is not the source folder."""
    return Path(thalweg._core.__file__).resolve().parent


@pytest.fixture(scope="session")
def compiler() -> str:
    """C++ compiler: $CXX or the first of g++, c++, clang++."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and shutil.which(name):
            return name
    pytest.fail("no C++ compiler found: install g++ or set CXX")


@pytest.fixture(scope="session")
def cmake(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command line of CMake >= 3.25; installs one for the session where the machine has none."""
    found = shutil.which("cmake")
    if found:
        text = subprocess.run([found, "--version"], capture_output=True, text=True).stdout.split()
        if len(text) > 2 and tuple(map(int, text[2].split("-")[0].split(".")[:2])) >= (3, 25):
            return [found]
    target = tmp_path_factory.mktemp("cmake")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), "cmake>=3.25"],
        check=True,
    )
    return [str(next(target.glob("cmake/data/bin/cmake*")))]
