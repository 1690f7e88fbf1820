"""PyTorch: a gradient, and products with the Hessian by double backward (mode "product"; "again"
keeps the graph of the gradient), by `torch.autograd.functional.hvp`, and forward over reverse by
`torch.func`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from bench.cases import BN_EPS, Problem


class TorchCurvature:
    granularity = 1

    def __init__(self, problem: Problem, mode: str) -> None:
        self._mode, self._case = mode, problem.case
        torch.set_num_threads(problem.threads)
        self._x = torch.from_numpy(problem.x[: problem.batch])
        self._y = torch.from_numpy(problem.y[: problem.batch])
        self._parameters: list[torch.Tensor] = []
        self._v: list[torch.Tensor] = []
        self._matrices: list[int] = []
        last = len(problem.weights) - 1
        for layer, (weight, v) in enumerate(
            zip(problem.weights, problem.directions(), strict=True)
        ):
            vectors = [torch.zeros(len(weight))]
            if problem.case.batch_norm and layer < last:
                vectors.insert(0, torch.ones(len(weight)))
            self._matrices.append(len(self._parameters))
            self._parameters += [torch.from_numpy(weight.copy()), *vectors]
            self._v += [torch.from_numpy(v), *(torch.zeros_like(each) for each in vectors)]
        for each in self._parameters:
            each.requires_grad_(True)
        self._graph: Any = None

    def _loss(self, *parameters: torch.Tensor) -> torch.Tensor:
        x, left = self._x, list(parameters)
        while True:
            weight = left.pop(0)
            if not self._case.batch_norm or len(left) == 1:
                x = functional.linear(x, weight, left.pop(0))
            else:
                gamma, beta = left.pop(0), left.pop(0)
                x = functional.linear(x, weight)
                x = functional.batch_norm(x, None, None, gamma, beta, True, eps=BN_EPS)
            if not left:
                return functional.cross_entropy(x, self._y)
            x = functional.relu(x)

    def _gradient(self, create_graph: bool = False) -> tuple[torch.Tensor, ...]:
        loss = self._loss(*self._parameters)
        return torch.autograd.grad(loss, self._parameters, create_graph=create_graph)

    def _backward_again(self, gradient: Any, keep: bool) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(gradient, self._parameters, self._v, retain_graph=keep)

    def _one(self) -> Sequence[torch.Tensor]:
        if self._mode == "gradient":
            return self._gradient()
        if self._mode == "product":
            return self._backward_again(self._gradient(create_graph=True), keep=False)
        if self._mode == "again":
            if self._graph is None:
                self._graph = self._gradient(create_graph=True)
            return self._backward_again(self._graph, keep=True)
        point, v = tuple(self._parameters), tuple(self._v)
        found: Sequence[torch.Tensor]
        if self._mode == "functional":
            found = torch.autograd.functional.hvp(self._loss, point, v)[1]
        else:
            slopes = torch.func.grad(self._loss, argnums=tuple(range(len(point))))
            found = torch.func.jvp(slopes, point, v)[1]
        return found

    def losses(self, steps: int) -> list[float]:
        del steps
        found = self._one()
        flat = torch.cat([found[i].detach().ravel() for i in self._matrices])
        if self._mode == "gradient":
            return [float(flat.norm())]
        v = torch.cat([self._v[i].ravel() for i in self._matrices])
        return [float(flat.norm()), float(flat @ v)]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._one()

    def set_threads(self, threads: int) -> bool:
        torch.set_num_threads(threads)
        return True
