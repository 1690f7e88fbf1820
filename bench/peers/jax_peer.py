"""JAX: the whole step under jit, one call per minibatch ("jit") or a scan over many ("scan")."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import peers
from bench.cases import ADAM_EPS, BETA1, BETA2, BN_EPS, BN_MOMENTUM, MOMENTUM, Case, Problem

# A scan is compiled for one length: long enough to hide the call, short enough to time.
_SCAN_FLOPS = 5e9


def forward(
    case: Case, layers: list[dict[str, Any]], x: Any, running: list[Any] | None = None
) -> tuple[Any, list[Any]]:
    """Logits, and mean and unbiased variance of every batch norm; inference with `running` ones."""
    statistics = []
    for number, layer in enumerate(layers[:-1]):
        z = x @ layer["weight"]
        if case.batch_norm:
            if running is None:
                mean, variance = z.mean(axis=0), z.var(axis=0)
                statistics.append((mean, variance * (len(z) / (len(z) - 1))))
            else:
                mean, variance = running[number]
            z = (z - mean) * jax.lax.rsqrt(variance + BN_EPS) * layer["gamma"]
        x = jax.nn.relu(z + layer["bias"])
    return x @ layers[-1]["weight"] + layers[-1]["bias"], statistics


def loss_of_layers(
    layers: list[dict[str, Any]], case: Case, x: Any, y: Any, running: list[Any] | None = None
) -> tuple[Any, list[Any]]:
    """Mean cross-entropy, and what `forward` says of every batch norm."""
    logits, statistics = forward(case, layers, x, running)
    picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - picked).mean(), statistics


def _adam(lr: float, state: dict[str, Any], gradients: Any) -> dict[str, Any]:
    t = state["updates"] + 1
    tree = jax.tree.map
    first = tree(lambda m, g: BETA1 * m + (1 - BETA1) * g, state["first"], gradients)
    second = tree(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, state["second"], gradients)
    rate, correction = lr / (1 - BETA1**t), 1 / (1 - BETA2**t)
    layers = tree(
        lambda p, m, v: p - rate * m / (jnp.sqrt(v * correction) + ADAM_EPS),
        state["layers"],
        first,
        second,
    )
    return {"layers": layers, "first": first, "second": second, "updates": t}


def _momentum(lr: float, state: dict[str, Any], gradients: Any) -> dict[str, Any]:
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v - lr * g, state["first"], gradients)
    layers = jax.tree.map(jnp.add, state["layers"], velocity)
    return {"layers": layers, "first": velocity, "updates": state["updates"] + 1}


def step(case: Case, lr: float, state: dict[str, Any], x: Any, y: Any, index: Any) -> Any:
    """One update on the rows of `index`: the new state and the loss before."""
    gradient = jax.value_and_grad(loss_of_layers, has_aux=True)
    (loss, statistics), gradients = gradient(state["layers"], case, x[index], y[index])
    update = _adam if case.optimizer == "adam" else _momentum
    running = jax.tree.map(
        lambda old, new: old + BN_MOMENTUM * (new - old), state["running"], statistics
    )
    return {**update(lr, state, gradients), "running": running}, loss


def initial_state(case: Case, weights: list[Any]) -> dict[str, Any]:
    """What `step` carries along, from weights [out, in]."""
    layers, running = [], []
    for number, weight in enumerate(weights):
        # [in, out]: the layout in which XLA's products are fastest.
        layer = {"weight": jnp.asarray(weight.T.copy()), "bias": jnp.zeros(len(weight))}
        if case.batch_norm and number + 1 < len(weights):
            layer["gamma"] = jnp.ones(len(weight))
            running.append((jnp.zeros(len(weight)), jnp.ones(len(weight))))
        layers.append(layer)
    state: dict[str, Any] = {
        "layers": layers,
        "first": jax.tree.map(jnp.zeros_like, layers),
        "running": running,
        "updates": jnp.zeros((), jnp.int32),
    }
    if case.optimizer == "adam":
        state["second"] = jax.tree.map(jnp.zeros_like, layers)
    return state


class JaxPeer:
    def __init__(self, problem: Problem, mode: str) -> None:
        self._problem = problem
        case = problem.case
        precision = {"highest": "highest", "high": "high", "medium": "bfloat16"}
        jax.config.update("jax_default_matmul_precision", precision[problem.precision])
        if problem.device == "cuda" and jax.default_backend() != "gpu":
            raise peers.UnsupportedError("this JAX has no GPU back end")
        self._x, self._y = jnp.asarray(problem.x), jnp.asarray(problem.y)
        self._rng = np.random.default_rng(1)
        self._order, self._position = jnp.empty(0, jnp.int32), 0
        update = functools.partial(step, case, problem.lr)
        self._step: Any = jax.jit(update, donate_argnums=0)
        self._scan: Any = None
        self.granularity = 1
        if mode == "scan":
            flops = case.flops_per_sample * problem.batch
            length = min(problem.steps_per_epoch, max(2, int(_SCAN_FLOPS / flops)))
            while problem.steps_per_epoch % length:
                length -= 1
            self.granularity = length

            def scan(state: Any, x: Any, y: Any, order: Any, start: Any) -> Any:
                size = length * problem.batch
                rows = jax.lax.dynamic_slice(order, (start,), (size,))
                return jax.lax.scan(
                    lambda s, index: update(s, x, y, index), state, rows.reshape(length, -1)
                )

            self._scan = jax.jit(scan, donate_argnums=0)

        def take(state: Any, x: Any, y: Any, order: Any, start: Any) -> Any:
            return update(state, x, y, jax.lax.dynamic_slice(order, (start,), (problem.batch,)))

        self._take: Any = jax.jit(take, donate_argnums=0)

        def probabilities(state: Any, x: Any, start: Any) -> Any:
            rows = jax.lax.dynamic_slice_in_dim(x, start, problem.batch)
            return jax.nn.softmax(forward(case, state["layers"], rows, state["running"])[0])

        self._probabilities: Any = jax.jit(probabilities)
        self._reset()

    def _reset(self) -> None:
        self._state = initial_state(self._problem.case, self._problem.weights)

    def losses(self, steps: int) -> list[float]:
        self._reset()
        seen = []
        for cut in self._problem.cuts(steps):
            if self._problem.work == "inference":
                running = self._state["running"]
                layers, x, y = self._state["layers"], self._x[cut], self._y[cut]
                seen.append(float(loss_of_layers(layers, self._problem.case, x, y, running)[0]))
                continue
            index = jnp.arange(cut.start, cut.stop)
            self._state, loss = self._step(self._state, self._x, self._y, index)
            seen.append(float(loss))
        return seen

    def run(self, steps: int) -> None:
        if self._problem.work == "inference":
            for cut in self._problem.cuts(steps):
                found = self._probabilities(self._state, self._x, np.int32(cut.start))
            jax.block_until_ready(found)
            return
        function = self._scan or self._take
        rows = self.granularity * self._problem.batch
        for _ in range(steps // self.granularity):
            if self._position + rows > len(self._order):
                order = self._rng.permutation(len(self._x)).astype(np.int32)
                self._order, self._position = jnp.asarray(order), 0
            start = np.int32(self._position)
            self._state, _ = function(self._state, self._x, self._y, self._order, start)
            self._position += rows
        jax.block_until_ready(self._state)

    def set_threads(self, threads: int) -> bool:
        """XLA sizes its pool by the processors the process may use, once."""
        del threads
        return False
