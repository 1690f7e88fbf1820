"""scikit-learn: `MLPClassifier.partial_fit`, one call per epoch or part of one."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier

from bench.blas import BlasThreads
from bench.cases import ADAM_EPS, BETA1, BETA2, MOMENTUM, Problem
from bench.peers import UnsupportedError


class SklearnPeer(BlasThreads):
    granularity = 1

    def __init__(self, problem: Problem, mode: str) -> None:
        del mode
        case = problem.case
        if case.batch_norm:
            raise UnsupportedError("scikit-learn has no batch norm")
        if problem.precision != "highest":
            raise UnsupportedError("scikit-learn computes in float32")
        self._problem = problem
        self._model: Any = MLPClassifier(
            hidden_layer_sizes=case.widths[1:-1],
            activation="relu",
            solver="adam" if case.optimizer == "adam" else "sgd",
            alpha=0.0,
            batch_size=problem.batch,
            learning_rate_init=problem.lr,
            momentum=MOMENTUM,
            nesterovs_momentum=False,
            beta_1=BETA1,
            beta_2=BETA2,
            # Added before the bias correction: equal to the others' at the first step.
            epsilon=ADAM_EPS * (1 - BETA2) ** 0.5,
            random_state=0,
        )
        self._labels = np.arange(case.widths[-1])
        size = problem.batch
        self._model.partial_fit(problem.x[:size], problem.y[:size], classes=self._labels)

    def _reset(self) -> None:
        # The parameters are updated in place and a missing optimizer is made anew.
        for values, weight in zip(self._model.coefs_, self._problem.weights, strict=True):
            values[:] = weight.T
        for values in self._model.intercepts_:
            values[:] = 0
        del self._model._optimizer

    def losses(self, steps: int) -> list[float]:
        self._reset()
        x, y = self._problem.x, self._problem.y
        seen = []
        for cut in self._problem.cuts(steps):
            if self._problem.work == "inference":
                seen.append(
                    float(log_loss(y[cut], self._model.predict_proba(x[cut]), labels=self._labels))
                )
                continue
            seen.append(float(self._model.partial_fit(x[cut], y[cut]).loss_))
        return seen

    def run(self, steps: int) -> None:
        """Shuffles inside the call; a part of an epoch shuffles among its own rows."""
        if self._problem.work == "inference":
            for cut in self._problem.cuts(steps):
                self._model.predict_proba(self._problem.x[cut])
            return
        x, y, epoch = self._problem.x, self._problem.y, self._problem.steps_per_epoch
        for first in range(0, steps, epoch):
            rows = min(epoch, steps - first) * self._problem.batch
            self._model.partial_fit(x[:rows], y[:rows])
