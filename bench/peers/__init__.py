"""The libraries that are timed: one module each, imported only in the process that times it.

A peer does the work of one problem. `losses(steps)` restarts from the initial weights, takes the
minibatches in the order of the rows and returns the loss of each before its update. `run(steps)`
trains at the library's best on shuffled minibatches, gathered by index from arrays in memory, and
returns when the work is done. Where the work is inference, `losses` makes no updates, and `run`
computes class probabilities, with running statistics, of minibatches in the order of the rows.
Where it is curvature, a step is a gradient or a product with the Hessian of the loss of the first
minibatch, and `losses` returns its norm over the weights and, of a product, v'Hv.
"""

from __future__ import annotations

import importlib
from typing import Protocol

from bench.cases import Problem


class Peer(Protocol):
    """What a module of this package implements; the constructor takes the problem and the mode."""

    # Steps of one call into the library: `run` takes multiples of it.
    granularity: int

    def losses(self, steps: int) -> list[float]: ...

    def run(self, steps: int) -> None: ...

    def set_threads(self, threads: int) -> bool:
        """Use so many threads from now on; False when that is fixed at start."""
        ...


# Name: (module, class, mode).
PEERS = {
    "thalweg": ("thalweg_peer", "ThalwegPeer", "fit"),
    "thalweg-step": ("thalweg_peer", "ThalwegPeer", "step"),
    "thalweg-population": ("thalweg_peer", "ThalwegPeer", "population"),
    "torch": ("torch_peer", "TorchPeer", "default"),
    "torch-foreach": ("torch_peer", "TorchPeer", "foreach"),
    "torch-fused": ("torch_peer", "TorchPeer", "fused"),
    "torch-autocast": ("torch_peer", "TorchPeer", "autocast"),
    "torch-compile": ("torch_peer", "TorchPeer", "compile"),
    "torch-autotune": ("torch_peer", "TorchPeer", "autotune"),
    "torch-graph": ("torch_peer", "TorchPeer", "graph"),
    "jax-jit": ("jax_peer", "JaxPeer", "jit"),
    "jax-scan": ("jax_peer", "JaxPeer", "scan"),
    "sklearn": ("sklearn_peer", "SklearnPeer", ""),
    "numpy": ("numpy_peer", "NumpyPeer", ""),
}
# Those that compile for about a minute per case, are for GPUs, or do something else than the rest:
# they run only when named (or with "all").
ON_REQUEST = ("torch-compile", "torch-autotune", "torch-graph", "thalweg-population")

# The peers of `python -m bench curvature`. A product is at a point where nothing was computed
# before; "again" is one more with another vector, what is kept of the point being at hand.
CURVATURE = {
    "thalweg-gradient": ("thalweg_curvature", "ThalwegCurvature", "gradient"),
    "thalweg-product": ("thalweg_curvature", "ThalwegCurvature", "product"),
    "thalweg-again": ("thalweg_curvature", "ThalwegCurvature", "again"),
    "torch-gradient": ("torch_curvature", "TorchCurvature", "gradient"),
    "torch-product": ("torch_curvature", "TorchCurvature", "product"),
    "torch-again": ("torch_curvature", "TorchCurvature", "again"),
    "torch-functional": ("torch_curvature", "TorchCurvature", "functional"),
    "torch-forward": ("torch_curvature", "TorchCurvature", "forward"),
    "jax-gradient": ("jax_curvature", "JaxCurvature", "gradient"),
    "jax-product": ("jax_curvature", "JaxCurvature", "product"),
    "jax-again": ("jax_curvature", "JaxCurvature", "again"),
}

# Modes that differ from another only in how they train.
_TRAINING_ONLY = ("step", "population", "foreach", "fused", "graph", "scan")


class UnsupportedError(Exception):
    """The library has no way to do this case."""


def create(name: str, problem: Problem) -> Peer:
    """The peer of that name; ImportError when its library is not installed."""
    module, cls, mode = (CURVATURE if problem.work == "curvature" else PEERS)[name]
    if problem.work == "inference" and mode in _TRAINING_ONLY:
        raise UnsupportedError("a way to train")
    peer: Peer = getattr(importlib.import_module(f"bench.peers.{module}"), cls)(problem, mode)
    return peer


def family(name: str) -> str:
    """The library of a peer: modes of one library compete as one."""
    return name.split("-")[0]
