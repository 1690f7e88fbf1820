"""e3: Path-SGD does not notice how the weights are balanced."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from thalweg import Model, nn, optim
from thalweg.landscape import hidden_layers, rescale_units

from .base import Context, Experiment, Outcome, digits, json_number, loss_or_infinity, train

_WIDTH = 100
_EPOCHS = 40
_BATCH = 100
_RATES = (10.0, 1.0, 0.1, 0.01, 0.001)
_STARTS = 5
_OPTIMIZERS: dict[str, Callable[[float], optim.Optimizer]] = {
    "Path-SGD": optim.PathSGD,
    "SGD": optim.SGD,
    "AdaGrad": optim.AdaGrad,
}


def _unbalanced(model: Model, seed: int) -> Model:
    """The same function; a quarter of each layer's units, drawn with replacement, rescaled."""
    rng = np.random.default_rng(seed)
    for layer in hidden_layers(model):
        factors = np.ones(_WIDTH)
        for unit in rng.integers(0, _WIDTH, _WIDTH // 4):
            factors[unit] *= 10.0 * math.exp(rng.standard_normal())
        model = rescale_units(model, layer, factors)
    return model


def _curve(context: Context, start: Model, optimizer: optim.Optimizer) -> list[float]:
    """Training loss after every epoch; infinite from where the run diverged."""
    data = digits()
    model = start.copy()
    model.set_optimizer(optimizer)
    losses = []
    for _ in range(2 if context.quick else _EPOCHS):
        finite = train(
            model, data.x_train, data.y_train, len(data.x_train) // _BATCH, _BATCH, shuffle="epoch"
        )
        losses.append(loss_or_infinity(model, data.x_train, data.y_train, finite))
        if not math.isfinite(losses[-1]):
            break
    return losses


def _best(context: Context, start: Model, make: Callable[[float], Any]) -> tuple[float, Any]:
    """The rate with the lowest loss at the end, and its curve."""
    rates = _RATES[2:3] if context.quick else _RATES
    curves = {rate: _curve(context, start, make(rate)) for rate in rates}
    best = min(rates, key=lambda rate: curves[rate][-1])
    return best, np.array(curves[best])


def run(context: Context) -> Outcome:
    """Train from balanced and from unbalanced starts, each method at its best rate."""
    layers = [nn.Dense(_WIDTH), nn.ReLU(), nn.Dense(_WIDTH), nn.ReLU(), nn.Dense(10)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _OPTIMIZERS}
    for seed in range(context.seed, context.seed + (1 if context.quick else _STARTS)):
        balanced = Model(layers, 64, seed=seed, dtype="float64", threads=context.threads)
        starts = {"balanced": balanced, "unbalanced": _unbalanced(balanced, seed)}
        for name, make in _OPTIMIZERS.items():
            runs = {kind: _best(context, start, make) for kind, start in starts.items()}
            found[name].append(
                {
                    "rates": {kind: rate for kind, (rate, _) in runs.items()},
                    "curves": {kind: curve for kind, (_, curve) in runs.items()},
                }
            )
    final = {
        name: {
            kind: [float(run["curves"][kind][-1]) for run in runs]
            for kind in ("balanced", "unbalanced")
        }
        for name, runs in found.items()
    }
    apart = max(
        float(np.max(np.abs(run["curves"]["unbalanced"] / run["curves"]["balanced"] - 1.0)))
        for run in found["Path-SGD"]
    )
    ratios = np.array(final["SGD"]["unbalanced"]) / np.array(final["SGD"]["balanced"])
    ratio = _geometric_mean(ratios)
    passed = apart < 1e-6 and ratio > 10.0

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for name, runs in found.items():
            for (kind, curve), style in zip(runs[0]["curves"].items(), ("-", "--"), strict=True):
                axes.semilogy(range(1, len(curve) + 1), curve, style, label=f"{name}, {kind}")
        axes.set(xlabel="epochs", ylabel="training loss, first start")
        axes.legend()

    listed = ", ".join(
        f"{_geometric_mean(losses['balanced']):.2g} / {_geometric_mean(losses['unbalanced']):.2g} "
        f"({name})"
        for name, losses in final.items()
    )
    return Outcome(
        f"Path-SGD's curves differ by {apart:.0e} at most; loss after {_EPOCHS} epochs, balanced / "
        f"unbalanced, geometric mean of {len(ratios)} starts: {listed}; SGD loses a factor of "
        f"{ratio:.0f} ({ratios.min():.1f} to {ratios.max():.0f})",
        {
            "path_difference": apart,
            "sgd_ratios": ratios.tolist(),
            "rates": {name: [run["rates"] for run in runs] for name, runs in found.items()},
            "losses": {
                name: {kind: [json_number(v) for v in values] for kind, values in losses.items()}
                for name, losses in final.items()
            },
        },
        passed,
        draw,
    )


def _geometric_mean(values: Any) -> float:
    return float(np.exp(np.mean(np.log(values))))


EXPERIMENT = Experiment(
    "e3",
    "Path-SGD is indifferent to unbalanced weights",
    "Rescaling units of a ReLU network leaves its function as it is and ruins gradient descent; "
    "Path-SGD makes the same run from both starts.",
    "Neyshabur, Salakhutdinov, Srebro, Path-SGD: path-normalized optimization in deep neural "
    "networks, 2015, Figures 1 to 3",
    "digits, 64-100-100-10 ReLU, minibatch 100, 40 epochs, float64; unbalanced: 25 draws of a unit "
    "in each layer, the weights into it times 10 exp(N(0, 1)), those out of it divided; best rate "
    "of 10, 1, ..., 0.001 for every method and start; 5 starts",
    "relative difference of Path-SGD's loss curves < 1e-6; SGD's loss more than 10 times higher "
    "from the unbalanced starts, in the geometric mean",
    run,
)
