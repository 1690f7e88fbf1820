"""e30: which optimizer? All of them, tuned with an equal budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from thalweg import Model, nn, optim
from thalweg.datasets import Dataset

from .base import (
    Context,
    Experiment,
    Outcome,
    digits,
    error_rate,
    json_number,
    loss_or_infinity,
    mnist,
    train,
)

_OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": optim.SGD,
    "momentum": optim.Momentum,
    "Nesterov": optim.Nesterov,
    "AdaGrad": optim.AdaGrad,
    "RMSProp": optim.RMSProp,
    "RMSProp + Nesterov": optim.RMSPropNesterov,
    "AdaDelta": optim.AdaDelta,
    "Adam": optim.Adam,
    "AdamW": optim.AdamW,
}
_RATES = tuple(float(10 ** (k / 4)) for k in range(-18, 7))
_STEPS = 600
_BATCH = 32
_WITHIN = 2.0
_SEEDS = 3


class _Effective:
    """AdaGrad's rate per parameter, e / (delta + sqrt r), as it shrinks."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self.steps: list[int] = []
        self.median: list[float] = []

    def on_step(self, model: Model, step: int, logs: dict[str, Any]) -> None:
        """Record the median over the parameters that have moved."""
        slots = next(iter(model.optimizer_state().values()))
        sums = np.concatenate([np.ravel(value) for value in slots.values()])
        self.steps.append(step)
        self.median.append(float(self._rate / np.sqrt(np.median(sums[sums > 0]))))


def _model(context: Context, data: Dataset, optimizer: Any, seed: int) -> Model:
    return Model(
        nn.Sequential(nn.Dense(100), nn.ReLU(), nn.Dense(10)),
        data.x_train.shape[1],
        optimizer=optimizer,
        seed=seed,
        threads=context.threads,
    )


def _compare(context: Context, data: Dataset, seeds: int) -> dict[str, dict[str, Any]]:
    """One row per optimizer: geometric mean of the loss over the seeds at every rate."""
    steps = context.steps(_STEPS)
    rates = _RATES[::8] if context.quick else _RATES
    rows: dict[str, dict[str, Any]] = {}
    for name, make in _OPTIMIZERS.items():
        losses: list[float] = []
        errors: list[float] = []
        seconds: list[float] = []
        for rate in rates:
            logs: list[float] = []
            wrong: list[float] = []
            started = time.perf_counter()
            for seed in range(context.seed, context.seed + seeds):
                model = _model(context, data, make(rate), seed)
                finite = train(model, data.x_train, data.y_train, steps, _BATCH)
                loss = loss_or_infinity(model, data.x_train, data.y_train, finite)
                logs.append(math.log(max(loss, 1e-12)))
                wrong.append(error_rate(model, data.x_test, data.y_test) if finite else 100.0)
            seconds.append((time.perf_counter() - started) / seeds)
            losses.append(math.exp(float(np.mean(logs))))
            errors.append(float(np.mean(wrong)))
        best = int(np.argmin(losses))
        rows[name] = {
            "rates": list(rates),
            "loss_by_rate": [json_number(v) for v in losses],
            "best_rate": rates[best],
            "loss": json_number(losses[best]),
            "test_error": errors[best],
            "seconds": seconds[best],
            "decades_within_2x": _decades(rates, [v <= _WITHIN * losses[best] for v in losses]),
            "decades_within_1pt": _decades(rates, [e <= min(errors) + 1.0 for e in errors]),
        }
    return rows


def _decades(rates: Sequence[float], good: Sequence[bool]) -> float:
    """Width of the range of good rates; every rate stands for one step of the grid."""
    if len(rates) < 2:
        return 0.0
    return sum(good) * math.log10(rates[1] / rates[0])


def _table(data_sets: dict[str, dict[str, dict[str, Any]]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            "data",
            "optimizer",
            "best rate",
            "training loss",
            "test error, %",
            "seconds",
            "decades with loss within 2x",
            "decades with test error within 1 point",
        )
    ]
    for data, optimizers in data_sets.items():
        for name, row in optimizers.items():
            rows.append(
                (
                    data,
                    name,
                    f"{row['best_rate']:.2g}",
                    f"{row['loss']:.2e}",
                    f"{row['test_error']:.2f}",
                    f"{row['seconds']:.3f}",
                    f"{row['decades_within_2x']:.2f}",
                    f"{row['decades_within_1pt']:.2f}",
                )
            )
    return rows


def run(context: Context) -> Outcome:
    """Train every optimizer at every rate of one grid and tabulate."""
    data = digits()
    data_sets = {"digits": _compare(context, data, 1 if context.quick else _SEEDS)}
    large = None if context.quick else mnist()
    if large is not None:
        data_sets["MNIST"] = _compare(context, large, 1)

    rate = data_sets["digits"]["AdaGrad"]["best_rate"]
    effective = _Effective(rate)
    model = _model(context, data, optim.AdaGrad(rate), context.seed)
    train(
        model,
        data.x_train,
        data.y_train,
        context.steps(_STEPS),
        _BATCH,
        callbacks=[effective],
        callback_every=1,
    )
    shrinks = effective.median[0] / effective.median[-1]
    values: dict[str, Any] = {
        **data_sets,
        "adagrad_effective_rate": {"steps": effective.steps, "median": effective.median},
    }

    rows = data_sets["digits"]
    best = min(rows, key=lambda name: rows[name]["loss"])
    width = {name: row["decades_within_1pt"] for name, row in rows.items()}
    widest = max(width, key=lambda name: width[name])
    measured = (
        f"digits: lowest loss {rows[best]['loss']:.2e} by {best}; rates with a test error within a "
        f"point of the best: {width[widest]:.2f} decades by {widest} (Adam {width['Adam']:.2f}, "
        f"SGD {width['SGD']:.2f}); AdaGrad's median rate shrinks {shrinks:.1f} times over the run"
    )

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(2, 1))
        for i, (name, row) in enumerate(rows.items()):
            pairs = zip(row["rates"], row["loss_by_rate"], strict=True)
            shown = [(r, v) for r, v in pairs if v is not None]
            style = "--" if i >= 5 else "-"
            left.loglog([r for r, _ in shown], [v for _, v in shown], style, label=name)
        left.set(xlabel="learning rate", ylabel=f"training loss after {_STEPS} steps")
        left.legend(fontsize="x-small", ncols=2)
        right.loglog(effective.steps, effective.median)
        right.set(xlabel="step", ylabel="AdaGrad: median of e / sqrt(r)")

    return Outcome(measured, values, None, draw, _table(data_sets))


EXPERIMENT = Experiment(
    "e30",
    "Which optimizer?",
    "No optimizer is best by every measure: training loss, test error, and how wide the range of "
    "good learning rates is; AdaGrad's effective rate only shrinks.",
    "Goodfellow, Bengio, Courville, Deep Learning, section 8.5.4; Kingma, Ba, 2015",
    "digits (and MNIST where THALWEG_DATA is set), 64-100-10 ReLU, minibatch 32, 600 steps, the "
    "same 25 rates from 3e-5 to 30 for every optimizer, mean over 3 seeds (MNIST: 1)",
    "report",
    run,
)
