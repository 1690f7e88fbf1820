"""thalweg: gradients and products with the Hessian by `Objective`."""

from __future__ import annotations

import numpy as np
import thalweg as tw
from thalweg import nn

from bench.cases import BN_EPS, Problem


class ThalwegCurvature:
    granularity = 1

    def __init__(self, problem: Problem, mode: str) -> None:
        self._mode, case = mode, problem.case
        layers: list[nn.Layer] = []
        for width in case.widths[1:-1]:
            layers += [nn.Dense(width), nn.BatchNorm(eps=BN_EPS)][: 1 + case.batch_norm]
            layers.append(nn.ReLU())
        model = tw.Model(
            nn.Sequential(*layers, nn.Dense(case.widths[-1])),
            in_features=case.widths[0],
            threads=problem.threads,
        )
        x, y = problem.x[: problem.batch], problem.y[: problem.batch]
        self._objective = tw.Objective(model, x, y, chunk_size=problem.batch)
        values = {name: np.zeros(shape, np.float32) for name, _, shape in model.layout()}
        directions = {name: np.zeros_like(value) for name, value in values.items()}
        matrices = iter(zip(problem.weights, problem.directions(), strict=True))
        for name, value in values.items():
            if value.ndim == 2:
                value[:], directions[name][:] = next(matrices)
            elif name.endswith(".weight"):  # of a batch norm
                value[:] = 1
        self._theta = np.concatenate([value.ravel() for value in values.values()])
        self._v = np.concatenate([value.ravel() for value in directions.values()])
        self._weights = np.concatenate(
            [np.full(value.size, value.ndim == 2) for value in values.values()]
        )
        # A point that differs from the one before in every call.
        self._points = (self._theta, np.nextafter(self._theta, np.float32(np.inf)))

    def losses(self, steps: int) -> list[float]:
        del steps
        if self._mode == "gradient":
            return [float(np.linalg.norm(self._objective.grad(self._theta)[self._weights]))]
        product = self._objective.hvp(self._v, self._theta)[self._weights]
        return [float(np.linalg.norm(product)), float(product @ self._v[self._weights])]

    def run(self, steps: int) -> None:
        for k in range(steps):
            if self._mode == "gradient":
                self._objective.grad(self._points[k % 2])
            else:
                self._objective.hvp(self._v, self._points[k % 2 if self._mode == "product" else 0])

    def set_threads(self, threads: int) -> bool:
        """The plan chooses for itself how many of its threads to use."""
        del threads
        return False
