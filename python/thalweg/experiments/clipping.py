"""e26: clipping the norm of the gradient crosses cliffs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from thalweg import Model, NonFiniteError, nn, optim

from .base import Context, Experiment, Outcome, json_number

_DEPTH = 12
_RATES = tuple(10.0 ** (-7 + 0.5 * i) for i in range(13))
_STEPS = 2500
_CLIP = 1.0
_ROWS = 64


class _Curve:
    def __init__(self) -> None:
        self.loss: list[float] = []

    def on_step(self, model: Model, step: int, logs: dict[str, Any]) -> None:
        """Keep the loss before the update."""
        self.loss.append(float(logs["loss"]))


def _descend(context: Context, rate: float, clip: float | None) -> list[float]:
    """The losses of a run; it ends with infinity when it left the finite numbers."""
    rng = np.random.default_rng(context.seed)
    x = rng.normal(1.0, 0.2, (_ROWS, 1))
    model = Model(
        [nn.Dense(1, bias=False) for _ in range(_DEPTH)],
        1,
        "squared_error",
        optim.SGD(rate),
        dtype="float64",
        clip_norm=clip,
        threads=context.threads,
    )
    # A product of weights near 1.5: a steep wall next to the flat ground around the solution.
    model.set_parameters(1.5 + 0.05 * rng.standard_normal(_DEPTH))
    curve = _Curve()
    try:
        model.fit(
            x,
            x[:, 0],
            epochs=context.steps(_STEPS),
            batch_size=None,
            callbacks=[curve],
            verbose=False,
        )
        curve.loss.append(float(model.evaluate(x, x[:, 0])["loss"]))
    except NonFiniteError:
        curve.loss.append(math.inf)
    return curve.loss


def _works(loss: list[float]) -> bool:
    return math.isfinite(loss[-1]) and loss[-1] < loss[0]


def run(context: Context) -> Outcome:
    """Find the largest rate that works without clipping, and take ten times as much."""
    working = [rate for rate in _RATES if _works(_descend(context, rate, None))]
    best = max(working, default=_RATES[0])
    rate = 10.0 * best
    plain, clipped = _descend(context, rate, None), _descend(context, rate, _CLIP)
    shown = f"{plain[-1]:.3g}" if math.isfinite(plain[-1]) else "no longer finite"

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for loss, label in ((plain, "unclipped"), (clipped, "clipped to norm 1")):
            finite = [value for value in loss if math.isfinite(value)]
            axes.semilogy(finite, "o-", markersize=2, label=label)
        axes.set(xlabel="steps", ylabel="loss")
        axes.legend()

    return Outcome(
        f"largest rate that works unclipped {best:.1e}; at {rate:.1e} the loss goes from "
        f"{plain[0]:.3g} to {clipped[-1]:.2g} clipped, and is {shown} unclipped after "
        f"{len(plain) - 1} steps",
        {
            "rate": rate,
            "loss_at_start": plain[0],
            "loss_clipped": json_number(clipped[-1]),
            "loss_unclipped": json_number(plain[-1]),
            "steps_unclipped": len(plain) - 1,
        },
        bool(working) and _works(clipped) and not _works(plain),
        draw,
    )


EXPERIMENT = Experiment(
    "e26",
    "Clipping crosses cliffs",
    "At ten times the largest learning rate that works, a step on a cliff of a long product of "
    "weights throws the parameters far away; with the gradient's norm clipped the run stays finite "
    "and descends.",
    "Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, 2013",
    "product of 12 weights near 1.5, squared error to the identity, 2,500 full-batch SGD steps, "
    "float64, clip norm 1",
    "at 10 times the largest working rate: clipped finite and below the start, unclipped not",
    run,
)
