"""e28: the saddle-free Newton method beats Newton's and gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import MinimizeResult, Model, Objective, minimize, nn, optim

from .base import Context, Experiment, Outcome, small_digits

# Small networks end in many different minima: the smaller, the more starts.
_STARTS = {3: 5, 6: 3, 12: 1}
_ITERATIONS = 60
_DESCENT = 3000
_RATES = (0.1, 0.3, 1.0)
_EXACT = 400
_NAMES = ("saddle-free Newton", "Newton", "gradient descent", "Newton by Marquardt")


def _runs(context: Context, width: int, seed: int) -> tuple[int, list[MinimizeResult]]:
    """The number of parameters, and all methods from the same start, in the order of the names."""
    x, y = small_digits()
    model = Model(
        nn.Sequential(nn.Dense(width), nn.Tanh(), nn.Dense(10)),
        16,
        seed=seed,
        dtype="float64",
        threads=context.threads,
    )
    objective = Objective(model, x, y)
    runs = [
        minimize(
            objective.value_and_grad,
            model.parameters,
            method,
            hess=objective.hessian,
            max_iterations=context.steps(_ITERATIONS),
            gtol=0.0,
        )
        for method in (
            optim.SaddleFreeNewton(damping_search=True, exact_below=_EXACT),
            optim.Newton(damping_search=True, exact_below=_EXACT),
            optim.DampedNewton(exact_below=_EXACT),
        )
    ]
    descents = [
        minimize(
            objective.value_and_grad,
            model.parameters,
            optim.Momentum(rate),
            max_iterations=context.steps(_DESCENT),
            gtol=0.0,
        )
        for rate in _RATES
    ]
    best = min(descents, key=lambda run: run.fun)
    return model.num_parameters, [*runs[:2], best, runs[2]]


def run(context: Context) -> Outcome:
    """Minimize the same loss from the same starts by every method."""
    losses: dict[int, list[list[float]]] = {}
    curves: list[Any] = []
    for width in (3,) if context.quick else _STARTS:
        for start in range(1 if context.quick else _STARTS[width]):
            size, runs = _runs(context, width, context.seed + start)
            losses.setdefault(size, []).append([run.fun for run in runs])
            curves = [run.history["value"] for run in runs]
    sizes = list(losses)
    # [method, size], geometric means over the starts
    table = np.array([np.exp(np.log(losses[size]).mean(axis=0)) for size in sizes]).T
    passed = bool(np.all(table[0] < table[1:3]))
    ratios = (table[2] / table[0]).tolist()
    below = [sum(newton < descent for _, newton, descent, _ in losses[size]) for size in sizes]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for name, means, curve in zip(_NAMES, table, curves, strict=True):
            left.semilogy(sizes, means, "o-", label=name)
            right.loglog(np.arange(1, len(curve) + 1), curve, label=name)
        left.set(xlabel="parameters", ylabel="training loss at the end")
        right.set(xlabel="iterations + 1", ylabel=f"training loss, {sizes[-1]} parameters")
        left.legend()

    listed = "; ".join(
        f"{size} parameters: " + " / ".join(f"{value:.2g}" for value in column[:3])
        for size, column in zip(sizes, table.T, strict=True)
    )
    order = ", ".join(f"{n} of {len(losses[size])}" for n, size in zip(below, sizes, strict=True))
    return Outcome(
        f"loss of saddle-free Newton / Newton / gradient descent: {listed}; gradient descent over "
        f"saddle-free Newton {', '.join(f'{r:.2g}' for r in ratios)}; Newton below gradient "
        f"descent from {order} starts; Newton with Marquardt's damping reaches "
        f"{', '.join(f'{value:.2g}' for value in table[3])}",
        {
            "losses": {str(size): values for size, values in losses.items()},
            "means": {name: row.tolist() for name, row in zip(_NAMES, table, strict=True)},
            "ratios": ratios,
            "newton_below_descent": below,
        },
        passed,
        draw,
    )


EXPERIMENT = Experiment(
    "e28",
    "Saddle-free Newton beats Newton's method and gradient descent",
    "With the magnitudes of the Hessian's eigenvalues Newton's method leaves the saddles at which "
    "the plain one, and gradient descent, lose time: the more, the larger the network.",
    "Dauphin, Pascanu, Gulcehre, Cho, Ganguli, Bengio, Identifying and attacking the saddle point "
    "problem, 2014, Figure 3",
    "digits at 4 x 4, 16-h-10 tanh, h = 3, 6, 12, cross-entropy of all rows, float64; damping 1e-4 "
    "to 10 by search, 60 iterations; momentum 0.9, the best rate of 0.1, 0.3, 1, 3,000 steps; 5, 3 "
    "and 1 starts",
    "the loss of saddle-free Newton, a geometric mean over the starts, is below those of the other "
    "two at every size; the ratio, how often Newton is below gradient descent, and where Newton "
    "ends with Marquardt's damping in place of the search are reported",
    run,
)
