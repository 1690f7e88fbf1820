"""e22: what the norm of the gradient does while the loss falls."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import Model, nn, optim

from .base import Context, Experiment, Outcome, digits, train

_STEPS = 6000
_EVERY = 60
_BATCH = 32


class _Trace:
    """Loss and gradient norm on all training rows, at intervals."""

    def __init__(self, x: Any, y: Any) -> None:
        self._x, self._y = x, y
        self.steps: list[int] = []
        self.loss: list[float] = []
        self.norm: list[float] = []
        self.minibatch_norm: list[float] = []

    def on_train_begin(self, model: Model) -> None:
        """Before the first update."""
        self._note(model, 0)

    def on_step(self, model: Model, step: int, logs: dict[str, Any]) -> None:
        """After some updates."""
        self._note(model, step)

    def _note(self, model: Model, step: int) -> None:
        loss, gradient = model.loss_and_grad(self._x, self._y)[:2]
        rows = np.random.default_rng(step).integers(0, len(self._x), _BATCH)
        batch = model.loss_and_grad(self._x[rows], self._y[rows])[1]
        self.steps.append(step)
        self.loss.append(float(loss))
        self.norm.append(float(np.linalg.norm(gradient)))
        self.minibatch_norm.append(float(np.linalg.norm(batch)))


def run(context: Context) -> Outcome:
    """Train and trace the norm of the full gradient."""
    data = digits()
    model = Model(
        nn.Sequential(nn.Dense(100), nn.ReLU(), nn.Dense(10)),
        64,
        optimizer=optim.SGD(0.1),
        seed=context.seed,
        threads=context.threads,
    )
    trace = _Trace(data.x_train, data.y_train)
    train(
        model,
        data.x_train,
        data.y_train,
        context.steps(_STEPS),
        _BATCH,
        callbacks=[trace],
        callback_every=_EVERY,
    )
    peak = int(np.argmax(trace.norm))

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.semilogy(trace.steps, trace.minibatch_norm, alpha=0.4, label="gradient of a minibatch")
        axes.semilogy(trace.steps, trace.norm, label="gradient of all rows")
        axes.semilogy(trace.steps, trace.loss, label="training loss")
        axes.set(xlabel="steps")
        axes.legend()

    return Outcome(
        f"gradient norm {trace.norm[0]:.2f} at the start, {trace.norm[peak]:.2f} at most (step "
        f"{trace.steps[peak]}), {trace.norm[-1]:.3f} at the end, while the loss fell from "
        f"{trace.loss[0]:.2f} to {trace.loss[-1]:.4f}",
        {
            "steps": trace.steps,
            "norm": trace.norm,
            "minibatch_norm": trace.minibatch_norm,
            "loss": trace.loss,
        },
        None,
        draw,
    )


EXPERIMENT = Experiment(
    "e22",
    "The gradient norm while the loss falls",
    "In training that works well the gradient norm need not fall with the loss: the book's figure "
    "shows it growing for a convolutional network.",
    "Goodfellow, Bengio, Courville, Deep Learning, section 8.2.2, Figure 8.1",
    "digits, 64-100-10 ReLU, SGD of rate 0.1, minibatch 32, 6,000 steps",
    "report only",
    run,
)
