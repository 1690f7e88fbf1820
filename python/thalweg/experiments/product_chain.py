"""e15: batch normalization tames a chain of products."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import Model, nn, optim

from .base import Context, Experiment, Outcome

_DEPTH = 12
_RATE = 0.25
_ROWS = 256


def _mean_output(prediction: Any, target: Any) -> tuple[float, Any]:
    """The mean of the outputs as a loss: the step tries to lower it."""
    return float(prediction.mean()), np.full_like(prediction, 1.0 / prediction.size)


def _step(context: Context, batch_norm: bool, x: Any) -> tuple[float, float, float]:
    """Predicted and actual change of one step, and the output's standard deviation after it."""
    layers: list[nn.Layer] = []
    for _ in range(_DEPTH):
        layers.append(nn.Dense(1, bias=False))
        if batch_norm:
            layers.append(nn.BatchNorm())
    model = Model(
        nn.Sequential(*layers),
        1,
        loss=_mean_output,
        optimizer=optim.SGD(_RATE),
        seed=context.seed,
        dtype="float64",
        threads=context.threads,
    )
    rng = np.random.default_rng(context.seed)
    weights = {
        name: 1.0 + 0.1 * rng.standard_normal(value.shape)
        for name, value in model.named_parameters().items()
        if name.endswith("weight") and value.ndim == 2
    }
    model.set_parameters({**model.named_parameters(), **weights})
    target = np.zeros_like(x)
    before, gradient = model.loss_and_grad(x, target)[:2]
    model.step(x, target)
    after = model.loss_and_grad(x, target)[0]
    spread = float(np.std(model.forward(x, training=True)))
    return -_RATE * float(np.sum(np.square(gradient))), float(after) - float(before), spread


def run(context: Context) -> Outcome:
    """Take one step on the product and compare the change with its first-order prediction."""
    x = np.random.default_rng(context.seed).normal(1.0, 0.5, (_ROWS, 1))
    predicted, actual, spread = _step(context, False, x)
    bn_predicted, bn_actual, bn_spread = _step(context, True, x)
    factor = predicted / actual if actual else float("inf")
    passed = (factor > 2 or factor < 0.5) and abs(bn_spread - 1.0) < 1e-3

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        places = np.arange(2)
        axes.bar(places - 0.2, [predicted, bn_predicted], 0.4, label="first-order prediction")
        axes.bar(places + 0.2, [actual, bn_actual], 0.4, label="actual")
        axes.set_xticks(places, ["product of 12 weights", "with batch norm"])
        axes.set_ylabel("change of the mean output")
        axes.legend()

    return Outcome(
        f"predicted change {predicted:.2f}, actual {actual:.2f} (off {factor:.1f} times); with "
        f"batch norm {bn_predicted:.2f} and {bn_actual:.2f}, output standard deviation "
        f"{bn_spread:.4f}",
        {
            "predicted": predicted,
            "actual": actual,
            "output_std": spread,
            "batch_norm_predicted": bn_predicted,
            "batch_norm_actual": bn_actual,
            "batch_norm_output_std": bn_spread,
        },
        passed,
        draw,
    )


EXPERIMENT = Experiment(
    "e15",
    "Batch normalization tames a product of weights",
    "In y = a b c d e f ... x the first-order prediction of a gradient step fails, because all "
    "factors move at once; batch normalization keeps the output at unit standard deviation.",
    "Goodfellow, Bengio, Courville, Deep Learning, section 8.7.1",
    "12 linear layers of one unit, weights 1 + N(0, 0.1), loss mean(y), one SGD step of rate 0.25, "
    "float64",
    "prediction off by more than 2 times; with batch norm output standard deviation 1 +- 0.001",
    run,
)
