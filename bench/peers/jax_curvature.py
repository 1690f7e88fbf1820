"""JAX under jit: a gradient, and products with the Hessian forward over reverse, jvp of grad (mode
"product"; "again" keeps the linearization of the gradient at a point).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.cases import Problem
from bench.peers.jax_peer import loss_of_layers


class JaxCurvature:
    granularity = 1

    def __init__(self, problem: Problem, mode: str) -> None:
        self._mode, case = mode, problem.case
        jax.config.update("jax_default_matmul_precision", "highest")
        x = jnp.asarray(problem.x[: problem.batch])
        y = jnp.asarray(problem.y[: problem.batch])
        self._layers: list[dict[str, Any]] = []
        self._v: list[dict[str, Any]] = []
        last = len(problem.weights) - 1
        for number, (weight, v) in enumerate(
            zip(problem.weights, problem.directions(), strict=True)
        ):
            layer = {"weight": jnp.asarray(weight.T.copy()), "bias": jnp.zeros(len(weight))}
            if case.batch_norm and number < last:
                layer["gamma"] = jnp.ones(len(weight))
            self._layers.append(layer)
            self._v.append(
                {**jax.tree.map(jnp.zeros_like, layer), "weight": jnp.asarray(v.T.copy())}
            )

        def gradient(layers: Any, x: Any, y: Any) -> Any:
            return jax.grad(lambda at: loss_of_layers(at, case, x, y)[0])(layers)

        def product(layers: Any, v: Any, x: Any, y: Any) -> Any:
            return jax.jvp(lambda at: gradient(at, x, y), (layers,), (v,))[1]

        def linearized(layers: Any, x: Any, y: Any) -> Any:
            return jax.linearize(lambda at: gradient(at, x, y), layers)[1]

        self._x, self._y = x, y
        self._gradient: Any = jax.jit(gradient)
        self._product: Any = jax.jit(product)
        self._apply: Any = jax.jit(lambda linear, v: linear(v))
        self._linear: Any = jax.jit(linearized)(self._layers, x, y) if mode == "again" else None

    def _one(self) -> Any:
        if self._mode == "gradient":
            return self._gradient(self._layers, self._x, self._y)
        if self._mode == "product":
            return self._product(self._layers, self._v, self._x, self._y)
        return self._apply(self._linear, self._v)

    def losses(self, steps: int) -> list[float]:
        del steps
        found = np.concatenate([np.asarray(layer["weight"]).ravel() for layer in self._one()])
        if self._mode == "gradient":
            return [float(np.linalg.norm(found))]
        v = np.concatenate([np.asarray(layer["weight"]).ravel() for layer in self._v])
        return [float(np.linalg.norm(found)), float(found @ v)]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            found = self._one()
        jax.block_until_ready(found)

    def set_threads(self, threads: int) -> bool:
        """XLA sizes its pool by the processors the process may use, once."""
        del threads
        return False
