"""thalweg: whole runs by `Model.fit` (mode "fit"), one call per minibatch (mode "step"), or many
networks by `Population.fit` (mode "population"), whose steps are those of all networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import thalweg as tw
from thalweg import callbacks, nn, optim

from bench.cases import ADAM_EPS, BETA1, BETA2, BN_EPS, BN_MOMENTUM, MOMENTUM, Problem

_NETWORKS = 32


class ThalwegPeer:
    def __init__(self, problem: Problem, mode: str) -> None:
        self._problem, self._mode = problem, mode
        self._names: list[str] = []  # of the weights
        # A step of the population is one of a network.
        self.granularity = _NETWORKS if mode == "population" else 1
        self._models = [self._make_model(seed) for seed in range(self.granularity)]
        self._model = self._models[0]
        self._rng = np.random.default_rng(1)
        self._order, self._position = np.empty(0, np.int64), 0

    def _make_model(self, seed: int) -> tw.Model:
        problem, case = self._problem, self._problem.case
        layers: list[nn.Layer] = []
        self._names = []
        for width in case.widths[1:-1]:
            self._names.append(f"layers.{len(layers)}.weight")
            layers.append(nn.Dense(width))
            if case.batch_norm:
                layers.append(nn.BatchNorm(eps=BN_EPS, momentum=BN_MOMENTUM))
            layers.append(nn.ReLU())
        self._names.append(f"layers.{len(layers)}.weight")
        layers.append(nn.Dense(case.widths[-1]))
        optimizer: optim.Optimizer = (
            optim.Adam(problem.lr, beta1=BETA1, beta2=BETA2, delta=ADAM_EPS)
            if case.optimizer == "adam"
            else optim.Momentum(problem.lr, momentum=MOMENTUM)
        )
        return tw.Model(
            nn.Sequential(*layers),
            in_features=case.widths[0],
            optimizer=optimizer,
            device=problem.device,
            threads=problem.threads,
            matmul_precision=problem.precision,
            seed=seed,
        )

    def _reset(self) -> None:
        self._model.reset()
        values = {name: np.zeros(shape, np.float32) for name, _, shape in self._model.layout()}
        if self._problem.case.batch_norm:
            for name in values:
                layer, kind = name.rsplit(".", 1)
                if kind == "weight" and f"{layer}.weight" not in self._names:
                    values[name][:] = 1
        values.update(zip(self._names, self._problem.weights, strict=True))
        for model in self._models:
            model.set_parameters(values)

    def losses(self, steps: int) -> list[float]:
        self._reset()
        x, y = self._problem.x, self._problem.y
        cuts = list(self._problem.cuts(steps))
        if self._problem.work == "inference":
            return [float(self._model.evaluate(x[cut], y[cut])["loss"]) for cut in cuts]
        if self._mode == "step":
            return [float(self._model.step(x[cut], y[cut])["loss"]) for cut in cuts]
        if self._mode == "population":
            last = len(self._models) - 1
            histories = [self._fit_population(x[cut], y[cut], 1, shuffle=False) for cut in cuts]
            return [float(history["loss"][last, 0]) for history in histories]
        seen: list[float] = []

        def note(model: tw.Model, step: int, logs: dict[str, Any]) -> None:
            del model, step
            seen.append(float(logs["loss"]))

        self._fit(steps, shuffle=False, callbacks=[callbacks.LambdaCallback(on_step=note)])
        return seen

    def run(self, steps: int) -> None:
        if self._problem.work == "inference":
            for cut in self._problem.cuts(steps):
                self._model.predict_proba(self._problem.x[cut], batch_size=self._problem.batch)
            return
        if self._mode == "fit":
            self._fit(steps)
            return
        if self._mode == "population":
            self._fit_population(self._problem.x, self._problem.y, steps // len(self._models))
            return
        x, y, size = self._problem.x, self._problem.y, self._problem.batch
        for _ in range(steps):
            if self._position + size > len(self._order):
                self._order, self._position = self._rng.permutation(len(x)), 0
            index = self._order[self._position : self._position + size]
            self._model.step(x.take(index, axis=0), y.take(index))
            self._position += size

    def _fit(self, steps: int, **options: Any) -> None:
        before = self._model.steps_done
        self._model.fit(
            self._problem.x,
            self._problem.y,
            # An epoch that an earlier turn began counts as one.
            epochs=steps // self._problem.steps_per_epoch + 2,
            batch_size=self._problem.batch,
            max_steps=steps,
            verbose=False,
            **options,
        )
        done = self._model.steps_done - before
        if done != steps:
            raise RuntimeError(f"expected {steps} timed steps, got {done}")

    def _fit_population(
        self, x: npt.NDArray[Any], y: npt.NDArray[Any], steps: int, **options: Any
    ) -> tw.PopulationHistory:
        """So many steps of each network."""
        population = tw.Population.of(self._models, threads=self._problem.threads)
        return population.fit(
            x,
            y,
            epochs=steps // self._problem.steps_per_epoch + 2,
            batch_size=self._problem.batch,
            max_steps=steps,
            verbose=False,
            **options,
        )

    def set_threads(self, threads: int) -> bool:
        """The plan chooses for itself how many of its threads to use."""
        del threads
        return False
