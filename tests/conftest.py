"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile(
    "thalweg",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("thalweg")


@pytest.fixture(scope="session")
def device() -> str:
    """Device under test: THALWEG_TEST_DEVICE, default "cpu"."""
    return os.environ.get("THALWEG_TEST_DEVICE", "cpu")


@pytest.fixture
def rng() -> np.random.Generator:
    """Generator with a fixed seed, fresh for every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def package_dir() -> Path:
    """Folder of the compiled package; in an editable install it is not the source folder."""
    import thalweg._core

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
