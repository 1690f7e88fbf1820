"""e31: redesigning the model goes farther than redesigning the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg import Model, nn, optim

from .base import Context, Experiment, Outcome, digits, json_number, loss_or_infinity, train

_DEPTH = 10
_WIDTH = 64
_STEPS = 800
_BATCH = 50
_RATIO = 3.0
_OPTIMIZERS: dict[str, tuple[Callable[..., Any], tuple[float, ...]]] = {
    "SGD": (optim.SGD, (0.01, 0.1, 1.0)),
    "momentum": (optim.Momentum, (0.001, 0.01, 0.1)),
    "Adam": (optim.Adam, (1e-4, 1e-3, 1e-2)),
}


def _repeat(*make: Callable[[], nn.Layer]) -> list[nn.Layer]:
    return [layer() for _ in range(_DEPTH) for layer in make]


def _dense() -> nn.Layer:
    return nn.Dense(_WIDTH)


def _block() -> nn.Layer:
    return nn.Residual(nn.Dense(_WIDTH), nn.BatchNorm(), nn.ReLU(), nn.Dense(_WIDTH))


def _models() -> dict[str, list[nn.Layer]]:
    """Ten hidden layers each; the residual network has five blocks of two."""
    return {
        "sigmoid": _repeat(_dense, nn.Sigmoid),
        "tanh": _repeat(_dense, nn.Tanh),
        "ReLU": _repeat(_dense, nn.ReLU),
        "maxout": _repeat(lambda: nn.Maxout(_WIDTH // 2, pieces=2)),
        "ReLU + batch norm": _repeat(_dense, nn.BatchNorm, nn.ReLU),
        "residual": [_block() for _ in range(_DEPTH // 2)],
    }


def _spread(means: npt.NDArray[np.float64]) -> float:
    """Largest minus smallest; infinite when some runs diverged at every rate."""
    return float(means.max() - means.min()) if bool(np.isfinite(means).all()) else math.inf


def run(context: Context) -> Outcome:
    """Train every model with every optimizer, each at its best rate of three."""
    data = digits()
    models = _models()
    loss = np.empty((len(models), len(_OPTIMIZERS)))
    for i, layers in enumerate(models.values()):
        for j, (make, rates) in enumerate(_OPTIMIZERS.values()):
            results = []
            for rate in rates[1:2] if context.quick else rates:
                model = Model(
                    nn.Sequential(*layers, nn.Dense(10)),
                    64,
                    optimizer=make(rate),
                    seed=context.seed,
                    threads=context.threads,
                )
                x, y = data.x_train, data.y_train
                finite = train(model, x, y, context.steps(_STEPS), _BATCH)
                results.append(loss_or_infinity(model, x, y, finite))
            loss[i, j] = min(results)
    by_model, by_optimizer = loss.mean(axis=1), loss.mean(axis=0)
    across_models, across_optimizers = _spread(by_model), _spread(by_optimizer)
    ratio = across_models / across_optimizers if 0 < across_optimizers < math.inf else math.nan
    names = list(models)
    relu = float(loss[names.index("ReLU")].min())

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        image = axes.imshow(np.log10(np.clip(loss, 1e-8, 1e8)), cmap="viridis_r", aspect="auto")
        for (i, j), value in np.ndenumerate(loss):
            shade = "white" if value > math.sqrt(loss.min() * loss.max()) else "black"
            axes.text(j, i, f"{value:.1e}", ha="center", va="center", color=shade, fontsize=8)
        axes.set_xticks(range(len(_OPTIMIZERS)), list(_OPTIMIZERS))
        axes.set_yticks(range(len(names)), names)
        axes.grid(False)
        figure.colorbar(image, label="log10 of the final training loss")

    return Outcome(
        f"spread of the mean loss {across_models:.3g} across models, {across_optimizers:.3g} "
        f"across optimizers: {ratio:.1f} times; deep ReLU reaches {relu:.1e}",
        {
            "models": names,
            "optimizers": list(_OPTIMIZERS),
            "loss": [[json_number(v) for v in row] for row in loss.tolist()],
            "across_models": json_number(across_models),
            "across_optimizers": json_number(across_optimizers),
            "ratio": json_number(ratio),
            "claim_holds": ratio > _RATIO and relu < 0.1,
        },
        None,
        draw,
    )


EXPERIMENT = Experiment(
    "e31",
    "Redesigning the model goes farther than redesigning the optimizer",
    "The choice of units and connections changes the final loss more than the choice of the "
    "optimizer; a deep ReLU network trains without pretraining.",
    "Goodfellow, Bengio, Courville, Deep Learning, section 8.7.5",
    "digits, ten hidden layers of 64, minibatch 50, 800 steps, best of three rates per optimizer",
    "report: spread across models > 3 times the spread across optimizers",
    run,
)
