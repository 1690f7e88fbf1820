"""`thalweg doctor`: what is installed, what the machine is, and whether training computes right."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sysconfig
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

import thalweg
from thalweg import nn, optim

from .console import fields, size

_PACKAGES = ("numpy", "tqdm", "scikit-learn", "matplotlib")
_VARIABLES = ("THALWEG_NUM_THREADS", "OMP_NUM_THREADS", "THALWEG_ISA", "THALWEG_DATA")
# Losses of `_check_training` before each of its steps, by an independent float64 computation.
_EXPECTED = (2.2515467, 1.9107840, 1.6399358, 1.4306615, 1.2897175)
_TOLERANCE = 2e-5


def run(options: Namespace) -> int:
    """Print the report; 1 when the self-check fails."""
    report = _report()
    devices = ["cpu"]
    if thalweg._core.information()["cuda_available"]:
        devices.append("cuda")
    passed = True
    for device in devices:
        good, report[f"self-check on {device}"] = _check(device)
        passed = passed and good
    print(json.dumps(report, indent=1) if options.json else fields(list(report.items())))
    return 0 if passed else 1


def _check(device: str) -> tuple[bool, str]:
    """Whether training on the device gives the known losses, and a line about it."""
    fault = thalweg._core.check_cuda() if device == "cuda" else ""
    if fault:
        return False, f"FAILED: {fault}"
    losses = _check_training(device)
    error = max(abs(a - b) for a, b in zip(losses, _EXPECTED, strict=True))
    good = error <= _TOLERANCE
    return good, (
        f"{'passed' if good else 'FAILED'}: five training steps within {error:.1e} of the "
        f"expected losses (allowed {_TOLERANCE:.0e})"
    )


def _report() -> dict[str, Any]:
    information = thalweg._core.information()
    best, used = information["best_instruction_set"], information["instruction_set"]
    packages = {name: _version(name) for name in _PACKAGES}
    variables = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    return {
        "thalweg": f"{thalweg.__version__} ({information['compiler']})",
        "installed in": str(_folder()),
        "install size": size(_install_size()),
        "python": f"{platform.python_version()} {platform.python_implementation()}"
        + (", free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""),
        "platform": platform.platform(),
        "packages": ", ".join(f"{k} {v or 'not installed'}" for k, v in packages.items()),
        "processor": information["processor"],
        "instruction set": used if used == best else f"{used} (the processor has {best})",
        "threads": information["threads"],
        "cuda": "available" if information["cuda_available"] else information["why_not_cuda"],
        **dict(line.split(": ", 1) for line in information["cuda_report"].splitlines()),
        "environment": ", ".join(variables) or "no variable of thalweg is set",
        "cmake package": _cmake_dir(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _folder() -> Path:
    return Path(thalweg.__file__).resolve().parent


def _install_size() -> int:
    """Bytes of the package and of what the build put beside the extension."""
    folders = {_folder(), Path(thalweg._core.__file__).resolve().parent}
    files = {
        file
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink() and "__pycache__" not in file.parts
    }
    return sum(file.stat().st_size for file in files)


def _cmake_dir() -> str:
    try:
        return thalweg.get_cmake_dir()
    except FileNotFoundError:
        return "not part of this installation"


def _check_training(device: str) -> list[float]:
    """Loss before each of five Adam steps of a small batch-normalized network."""
    model = thalweg.Model(
        nn.Sequential(nn.Dense(8), nn.BatchNorm(), nn.ReLU(), nn.Dense(3)),
        4,
        optimizer=optim.Adam(0.05),
        device=device,
    )
    count = model.num_parameters
    model.set_parameters(np.sin(1.0 + np.arange(count)).astype(np.float32))
    rows = np.arange(12)
    x = np.cos(0.7 * rows[:, None] + 1.3 * np.arange(4)).astype(np.float32)
    return [float(model.step(x, rows % 3)["loss"]) for _ in _EXPECTED]
