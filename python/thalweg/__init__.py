"""thalweg trains dense networks at the speed of the hardware.

Layers, losses and optimizers are descriptions (`thalweg.nn`, `thalweg.losses`, `thalweg.optim`)
that `Model` compiles for the CPU or a GPU; `thalweg.ops` has the single operations, and `minimize`
runs the methods of `thalweg.optim` on any function.

Examples
--------
>>> import thalweg as tw
>>> from thalweg import nn, optim
>>> network = nn.Sequential(nn.Dense(64), nn.BatchNorm(), nn.ReLU(), nn.Dense(10))
>>> tw.Model(network, in_features=784, optimizer=optim.Adam(1e-3), device="cpu")
Model(784 -> 10: dense, batch_norm, relu, dense; 50,954 parameters, float32, cpu)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from thalweg._core import CheckpointError, DeviceArray, DeviceError, NonFiniteError, __version__

if TYPE_CHECKING:
    from thalweg import (
        callbacks,
        datasets,
        errors,
        init,
        landscape,
        losses,
        nn,
        ops,
        optim,
        schedules,
        surgery,
    )
    from thalweg._minimize import MinimizeProgress, MinimizeResult, minimize
    from thalweg.model import History, Model
    from thalweg.objective import Objective
    from thalweg.population import Population, PopulationHistory

__all__ = [
    "CheckpointError",
    "DeviceArray",
    "DeviceError",
    "History",
    "MinimizeProgress",
    "MinimizeResult",
    "Model",
    "NonFiniteError",
    "Objective",
    "Population",
    "PopulationHistory",
    "__version__",
    "callbacks",
    "datasets",
    "errors",
    "get_cmake_dir",
    "init",
    "landscape",
    "losses",
    "minimize",
    "nn",
    "ops",
    "optim",
    "schedules",
    "surgery",
]

_FROM_MINIMIZE = ("MinimizeProgress", "MinimizeResult", "minimize")
_FROM_MODEL = ("History", "Model")
_FROM_POPULATION = ("Population", "PopulationHistory")
_MODULES = (
    "callbacks",
    "datasets",
    "errors",
    "init",
    "landscape",
    "losses",
    "nn",
    "ops",
    "optim",
    "schedules",
    "sklearn",
    "surgery",
)


def __getattr__(name: str) -> Any:
    """Submodules and classes on first use: importing the package stays fast."""
    if name in _FROM_MINIMIZE:
        return getattr(importlib.import_module("thalweg._minimize"), name)
    if name in _FROM_MODEL:
        return getattr(importlib.import_module("thalweg.model"), name)
    if name == "Objective":
        return importlib.import_module("thalweg.objective").Objective
    if name in _FROM_POPULATION:
        return getattr(importlib.import_module("thalweg.population"), name)
    if name in _MODULES:
        return importlib.import_module(f"thalweg.{name}")
    raise AttributeError(f"module 'thalweg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


def get_cmake_dir() -> str:
    """Folder to give to CMake as ``thalweg_DIR``, for C and C++ programs that embed thalweg.

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        When this installation has no CMake package.
    """
    import os

    from thalweg import _core

    # The extension's folder: in an editable install the package's own is the source tree.
    folder = os.path.join(os.path.dirname(_core.__file__), "share", "cmake", "thalweg")
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"[get_cmake_dir] expected a CMake package at {folder}, got nothing"
        )
    return folder
