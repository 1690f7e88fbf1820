"""e20: the learning rate that looks best early is not above the one that is best in the end."""

from __future__ import annotations

import math
from typing import Any

from thalweg import Model, nn, optim

from .base import Context, Experiment, Outcome, digits, json_number, loss_or_infinity, train

_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_EARLY, _FINAL = 100, 6000
_BATCH = 32


def run(context: Context) -> Outcome:
    """Train at six rates and compare the loss after 100 and after 6,000 steps."""
    data = digits()
    early: list[float] = []
    final: list[float] = []
    for rate in _RATES:
        model = Model(
            nn.Sequential(nn.Dense(100), nn.ReLU(), nn.Dense(10)),
            64,
            optimizer=optim.SGD(rate),
            seed=context.seed,
            threads=context.threads,
        )
        x, y = data.x_train, data.y_train
        finite = train(model, x, y, context.steps(_EARLY), _BATCH)
        early.append(loss_or_infinity(model, x, y, finite))
        finite = finite and train(model, x, y, context.steps(_FINAL - _EARLY), _BATCH)
        final.append(loss_or_infinity(model, x, y, finite))
    best_early = _RATES[early.index(min(early))]
    best_final = _RATES[final.index(min(final))]

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for losses, label in ((early, "100 steps"), (final, "6,000 steps")):
            shown = [(r, v) for r, v in zip(_RATES, losses, strict=True) if math.isfinite(v)]
            axes.loglog([r for r, _ in shown], [v for _, v in shown], "o-", label=label)
        axes.set(xlabel="learning rate", ylabel="training loss")
        axes.legend()

    return Outcome(
        f"best rate {best_early:g} after 100 steps, {best_final:g} after 6,000",
        {
            "rates": list(_RATES),
            "loss_early": [json_number(v) for v in early],
            "loss_final": [json_number(v) for v in final],
            "best_early": best_early,
            "best_final": best_final,
        },
        best_final >= best_early,
        draw,
    )


EXPERIMENT = Experiment(
    "e20",
    "The best early learning rate is not too low a choice",
    "The rate with the best loss after about a hundred steps is not above the rate that is best at "
    "the end: the early winner is a lower bound for tuning.",
    "Goodfellow, Bengio, Courville, Deep Learning, section 8.3.1",
    "digits, 64-100-10 ReLU, SGD, minibatch 32, rates 0.01 to 3, training loss after 100 and 6,000 "
    "steps",
    "best final rate >= best early rate",
    run,
)
