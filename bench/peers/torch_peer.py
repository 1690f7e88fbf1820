"""PyTorch: eager with its three forms of the optimizer, with autocast to bfloat16, the loss
compiled with torch.compile, or a CUDA graph of the whole step.
"""

from __future__ import annotations

from typing import Any

import torch

from bench import peers
from bench.cases import ADAM_EPS, BETA1, BETA2, BN_EPS, BN_MOMENTUM, MOMENTUM, Problem


class TorchPeer:
    granularity = 1

    def __init__(self, problem: Problem, mode: str) -> None:
        self._problem, self._mode = problem, mode
        self._device = torch.device(problem.device)
        if mode == "graph" and self._device.type != "cuda":
            raise peers.UnsupportedError("CUDA graphs need a GPU")
        if mode == "autocast" and problem.precision != "medium":
            raise peers.UnsupportedError("autocast computes in bfloat16")
        torch.set_float32_matmul_precision(problem.precision)
        torch.set_num_threads(problem.threads)
        self._x = torch.from_numpy(problem.x).to(self._device)
        self._y = torch.from_numpy(problem.y).to(self._device)
        self._order, self._position = torch.empty(0, dtype=torch.int64), 0
        self._graph: Any = None
        self._reset()

    def _reset(self) -> None:
        case = self._problem.case
        layers: list[torch.nn.Module] = []
        for layer, values in enumerate(self._problem.weights):
            hidden = layer + 1 < len(self._problem.weights)
            normalized = hidden and case.batch_norm
            linear = torch.nn.Linear(values.shape[1], values.shape[0], bias=not normalized)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(values))
                if linear.bias is not None:
                    linear.bias.zero_()
            layers.append(linear)
            if normalized:
                width = values.shape[0]
                layers.append(torch.nn.BatchNorm1d(width, eps=BN_EPS, momentum=BN_MOMENTUM))
            if hidden:
                layers.append(torch.nn.ReLU(inplace=True))
        network = torch.nn.Sequential(*layers).to(self._device)
        form: dict[str, Any] = {
            "default": {},
            "foreach": {"foreach": True},
            "fused": {"fused": True},
            "autocast": {"fused": True},
            "compile": {"fused": True},
            "autotune": {"fused": True},
            "graph": {"fused": True, "capturable": True},
        }[self._mode]
        if case.optimizer == "momentum":
            form.pop("capturable", None)  # SGD always is
        parameters, lr = network.parameters(), self._problem.lr
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, lr, betas=(BETA1, BETA2), eps=ADAM_EPS, **form)
            if case.optimizer == "adam"
            else torch.optim.SGD(parameters, lr, momentum=MOMENTUM, **form)
        )

        low = self._mode == "autocast"

        def logits(x: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=low):
                found: torch.Tensor = network(x)
            return found

        def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(logits(x), y)

        def probabilities(x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(logits(x), dim=1)

        self._network = network
        self._loss: Any = loss
        self._probabilities: Any = probabilities
        compiler = {"compile": {}, "autotune": {"mode": "max-autotune"}}.get(self._mode)
        if compiler is not None:
            self._loss = torch.compile(loss, **compiler)
            self._probabilities = torch.compile(probabilities, **compiler)
        network.train(self._problem.work == "training")
        self._graph = None

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self._optimizer.zero_grad()
        loss: torch.Tensor = self._loss(x, y)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss

    def losses(self, steps: int) -> list[float]:
        self._reset()
        cuts = self._problem.cuts(steps)
        if self._problem.work == "inference":
            with torch.inference_mode():
                return [float(self._loss(self._x[cut], self._y[cut])) for cut in cuts]
        return [float(self._step(self._x[cut], self._y[cut]).detach()) for cut in cuts]

    def _gathered_step(self, index: torch.Tensor) -> None:
        self._step(self._x.index_select(0, index), self._y.index_select(0, index))

    def _capture(self) -> None:
        """Record a step on the rows that `_index` names; the optimizer's state has to exist."""
        self._index = torch.zeros(self._problem.batch, dtype=torch.int64, device=self._device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._gathered_step(self._index)
        torch.cuda.current_stream().wait_stream(stream)
        self._optimizer.zero_grad(set_to_none=True)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._gathered_step(self._index)

    def _infer(self, steps: int) -> None:
        with torch.inference_mode():
            for cut in self._problem.cuts(steps):
                self._probabilities(self._x[cut])

    def run(self, steps: int) -> None:
        size = self._problem.batch
        if self._problem.work == "inference":
            self._infer(steps)
            return
        if self._mode == "graph" and self._graph is None:
            self._capture()
        for _ in range(steps):
            if self._position + size > len(self._order):
                self._order = torch.randperm(len(self._x), device=self._device)
                self._position = 0
            index = self._order[self._position : self._position + size]
            if self._graph is not None:
                self._index.copy_(index)
                self._graph.replay()
            else:
                self._gathered_step(index)
            self._position += size
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def set_threads(self, threads: int) -> bool:
        torch.set_num_threads(threads)
        return True
