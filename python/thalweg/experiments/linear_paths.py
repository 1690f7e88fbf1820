"""e12: the straight way from initialization to solution has no obstacles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from thalweg import Model, nn, optim
from thalweg.landscape import LinearPath, linear_path

from .base import Context, Experiment, Outcome, digits, train

_STEPS = 1500
_BATCH = 40
_EPSILON = 0.15
_RISE = 0.01
_GATED = ("ReLU", "sigmoid", "batch norm", "adversarial")
_REPORTED = ("maxout", "factored linear")


def _network(name: str) -> tuple[list[nn.Layer], float]:
    """Layers and learning rate."""
    if name == "sigmoid":
        return [nn.Dense(64), nn.Sigmoid(), nn.Dense(64), nn.Sigmoid()], 0.3
    if name == "batch norm":
        return [nn.Dense(64), nn.BatchNorm(), nn.ReLU()] * 2, 0.05
    if name == "maxout":
        return [nn.Maxout(64, pieces=2), nn.Maxout(64, pieces=2)], 0.05
    if name == "factored linear":
        return [nn.Dense(64), nn.Dense(64)], 0.05
    return [nn.Dense(64), nn.ReLU(), nn.Dense(64), nn.ReLU()], 0.05


def _adversarial_batches(model: Model, x: Any, y: Any, steps: int, seed: int) -> Iterator[Any]:
    """Minibatches of which half is moved along the sign of the input gradient (Goodfellow 2015)."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, len(x), _BATCH // 2)
        moved = x[rows] + _EPSILON * np.sign(model.input_gradient(x[rows], y[rows]))
        yield np.concatenate([x[rows], moved]), np.concatenate([y[rows], y[rows]])


def run(context: Context) -> Outcome:
    """Train each network and evaluate the loss on the line from its start to its end."""
    data = digits()
    steps = context.steps(_STEPS)
    paths: dict[str, LinearPath] = {}
    for name in (*_GATED, *_REPORTED):
        layers, rate = _network(name)
        model = Model(
            nn.Sequential(*layers, nn.Dense(10)),
            64,
            optimizer=optim.Momentum(rate, momentum=0.9),
            seed=context.seed,
            threads=context.threads,
        )
        start = model.parameters
        if name == "adversarial":
            batches = _adversarial_batches(model, data.x_train, data.y_train, steps, context.seed)
            model.fit(batches, verbose=False)
        else:
            train(model, data.x_train, data.y_train, steps, _BATCH)
        paths[name] = linear_path(model, start, model, data.x_train, data.y_train)
    rises = {name: path.max_rise for name, path in paths.items()}

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for name, path in paths.items():
            axes.plot(path.alpha, path.loss, label=name)
        axes.set(xlabel="position between start and end", ylabel="training loss", yscale="log")
        axes.legend()

    gated = max(rises[name] for name in _GATED)
    reported = ", ".join(f"{name} {rises[name]:.2g}" for name in _REPORTED)
    return Outcome(
        f"largest rise above the running minimum {gated:.2g} over {', '.join(_GATED)}; {reported}",
        {
            "max_rise": rises,
            "start_loss": {name: float(path.loss[0]) for name, path in paths.items()},
            "end_loss": {name: float(path.loss[-1]) for name, path in paths.items()},
        },
        gated < _RISE,
        draw,
    )


EXPERIMENT = Experiment(
    "e12",
    "The straight path is easy",
    "On the line from the initial to the final weights the loss falls without an obstacle: "
    "training does not have to find its way around barriers.",
    "Goodfellow, Vinyals, Saxe, Qualitatively characterizing neural network optimization problems, "
    "2015",
    "digits, two hidden layers of 64, SGD with momentum 0.9, minibatch 40, 1,500 steps; 101 "
    "points, batch-norm statistics recomputed at each; adversarial: half of each batch moved 0.15 "
    "along the sign of its gradient",
    "rise above the running minimum < 0.01 for ReLU, sigmoid, batch norm and adversarial training; "
    "maxout and factored linear are reported",
    run,
)
