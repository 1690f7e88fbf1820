"""The training step written by hand in NumPy: BLAS products, preallocated buffers, one flat Adam.

In float64 it is the reference of the loss check.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.blas import BlasThreads
from bench.cases import ADAM_EPS, BETA1, BETA2, BN_EPS, BN_MOMENTUM, MOMENTUM, Problem
from bench.peers import UnsupportedError

Array = npt.NDArray[Any]


class _Arena:
    """Parameters and gradients as views of two flat arrays, so that the optimizer is one pass."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: npt.DTypeLike) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes]
        self.values, self.gradients = np.zeros(sum(sizes), dtype), np.zeros(sum(sizes), dtype)
        ends = np.cumsum(sizes)
        cuts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self.p = [self.values[cut].reshape(s) for cut, s in zip(cuts, shapes, strict=True)]
        self.g = [self.gradients[cut].reshape(s) for cut, s in zip(cuts, shapes, strict=True)]


class NumpyPeer(BlasThreads):
    granularity = 1

    def __init__(self, problem: Problem, mode: str = "", dtype: npt.DTypeLike = np.float32) -> None:
        del mode
        if problem.precision != "highest" and dtype == np.float32:
            raise UnsupportedError("NumPy computes in float32")
        self._problem, self._case = problem, problem.case
        self._x, self._y = problem.x.astype(dtype, copy=False), problem.y
        self._rng = np.random.default_rng(1)
        widths, batch = self._case.widths, problem.batch
        self._depth = len(widths) - 1
        shapes: list[tuple[int, ...]] = []
        for layer, (i, o) in enumerate(itertools.pairwise(widths)):
            shapes += [(o, i), (o,)]
            if self._normalizes(layer):
                shapes.append((o,))
        self._arena = _Arena(shapes, dtype)
        self._slots = [np.zeros_like(self._arena.values) for _ in range(2)]
        self._scratch = np.empty_like(self._arena.values)
        # Per layer: input, and for batch norm the normalized values and 1/std.
        self._inputs = [np.empty((batch, w), dtype) for w in widths[:-1]]
        self._outputs = [np.empty((batch, w), dtype) for w in widths[1:]]
        self._normalized = [np.empty((batch, w), dtype) for w in widths[1:-1]]
        self._inverse_std: list[Array] = [np.empty(w, dtype) for w in widths[1:-1]]
        self._running = [(np.zeros(w, dtype), np.ones(w, dtype)) for w in widths[1:-1]]
        self._labels = np.empty(batch, self._y.dtype)
        self._rows = np.arange(batch)
        self._order, self._position = np.empty(0, np.int64), 0
        self._reset()

    def _normalizes(self, layer: int) -> bool:
        return self._case.batch_norm and layer < self._depth - 1

    def _of(self, arrays: list[Array], layer: int) -> list[Array]:
        per_layer = 3 if self._case.batch_norm else 2
        return arrays[per_layer * layer : per_layer * (layer + 1)]

    def _reset(self) -> None:
        self._arena.values[:] = 0
        for layer, weight in enumerate(self._problem.weights):
            parameters = self._of(self._arena.p, layer)
            parameters[0][:] = weight
            if self._normalizes(layer):
                parameters[1][:] = 1
        for slot in self._slots:
            slot[:] = 0
        self._updates = 0

    def losses(self, steps: int) -> list[float]:
        self._reset()
        one = self._step if self._problem.work == "training" else self._infer
        return [one(np.arange(cut.start, cut.stop)) for cut in self._problem.cuts(steps)]

    def run(self, steps: int) -> None:
        size = self._problem.batch
        if self._problem.work == "inference":
            for cut in self._problem.cuts(steps):
                self._inputs[0] = self._x[cut]
                self._forward()
            return
        for _ in range(steps):
            if self._position + size > len(self._order):
                self._order, self._position = self._rng.permutation(len(self._x)), 0
            self._step(self._order[self._position : self._position + size])
            self._position += size

    def _infer(self, index: Array) -> float:
        self._inputs[0], self._labels = self._x[index], self._y[index]
        return self._forward()

    def _step(self, index: Array) -> float:
        # mode="clip" lets take write to `out` without a buffer; the indices are in range.
        np.take(self._x, index, axis=0, out=self._inputs[0], mode="clip")
        np.take(self._y, index, out=self._labels, mode="clip")
        loss = self._forward()
        self._backward()
        self._updates += 1
        self._adam() if self._case.optimizer == "adam" else self._momentum()
        return loss

    def _forward(self) -> float:
        for layer in range(self._depth):
            weight, *vectors = self._of(self._arena.p, layer)
            z = self._outputs[layer]
            np.matmul(self._inputs[layer], weight.T, out=z)
            if self._normalizes(layer):
                gamma, beta = vectors
                running_mean, running_variance = self._running[layer]
                training = self._problem.work == "training"
                mean = z.mean(axis=0) if training else running_mean
                normalized = np.subtract(z, mean, out=self._normalized[layer])
                variance = running_variance
                if training:
                    variance = np.einsum("ij,ij->j", normalized, normalized) / len(z)
                    running_mean += BN_MOMENTUM * (mean - running_mean)
                    running_variance += BN_MOMENTUM * (
                        variance * (len(z) / (len(z) - 1)) - running_variance
                    )
                self._inverse_std[layer] = 1 / np.sqrt(variance + BN_EPS)
                normalized *= self._inverse_std[layer]
                np.multiply(normalized, gamma, out=z)
                z += beta
            else:
                z += vectors[0]
            if layer + 1 < self._depth:
                np.maximum(z, 0, out=self._inputs[layer + 1])
        z -= z.max(axis=1, keepdims=True)
        picked = z[self._rows, self._labels]
        np.exp(z, out=z)
        sums = z.sum(axis=1, keepdims=True)
        z /= sums
        return float(np.log(sums[:, 0]).sum() - picked.sum()) / len(z)

    def _backward(self) -> None:
        """The last output holds the probabilities; each output becomes its own gradient."""
        batch = self._problem.batch
        gradient = self._outputs[-1]
        gradient[self._rows, self._labels] -= 1
        gradient /= batch
        for layer in reversed(range(self._depth)):
            weight_gradient, *vector_gradients = self._of(self._arena.g, layer)
            if layer + 1 < self._depth:
                gradient *= self._inputs[layer + 1] > 0
            if self._normalizes(layer):
                gamma, normalized = self._of(self._arena.p, layer)[1], self._normalized[layer]
                gamma_gradient, beta_gradient = vector_gradients
                np.einsum("ij,ij->j", gradient, normalized, out=gamma_gradient)
                gradient.sum(axis=0, out=beta_gradient)
                normalized *= gamma_gradient / batch
                gradient -= normalized
                gradient -= beta_gradient / batch
                gradient *= gamma * self._inverse_std[layer]
            else:
                gradient.sum(axis=0, out=vector_gradients[0])
            np.matmul(gradient.T, self._inputs[layer], out=weight_gradient)
            if layer:
                weight = self._of(self._arena.p, layer)[0]
                gradient = np.matmul(gradient, weight, out=self._outputs[layer - 1])

    def _momentum(self) -> None:
        velocity, gradient = self._slots[0], self._arena.gradients
        velocity *= MOMENTUM
        gradient *= self._problem.lr
        velocity -= gradient
        self._arena.values += velocity

    def _adam(self) -> None:
        (first, second), gradient, t = self._slots, self._arena.gradients, self._scratch
        first *= BETA1
        np.multiply(gradient, 1 - BETA1, out=t)
        first += t
        second *= BETA2
        np.multiply(gradient, gradient, out=t)
        t *= 1 - BETA2
        second += t
        correction1, correction2 = 1 - BETA1**self._updates, 1 - BETA2**self._updates
        np.multiply(second, 1 / correction2, out=t)
        np.sqrt(t, out=t)
        t += ADAM_EPS
        np.divide(first, t, out=t)
        t *= self._problem.lr / correction1
        self._arena.values -= t
