"""e4: which solution of an underdetermined system an optimizer finds."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import minimize, optim

from .base import Context, Experiment, Outcome
from .convex import least_l1

_ROWS, _COLUMNS = 20, 60
_DRAWS = 100
_STEPS = 20000


def _solutions(context: Context, a: Any, b: Any) -> dict[str, Any]:
    """Where six methods end that start at zero."""
    largest = float(np.linalg.norm(a, 2)) ** 2
    methods = {
        "gradient descent": optim.SGD(1.0 / largest),
        "momentum": optim.Momentum(1.0 / largest, momentum=0.9),
        "AdaGrad": optim.AdaGrad(0.1),
        "Adam": optim.Adam(0.01),
        "sign descent": optim.SteepestDescent(1.0 / (_COLUMNS * largest), norm="linf"),
        "coordinate descent": optim.CoordinateDescent(0.005, order="greedy", step="fixed"),
    }

    def residual(x: Any) -> tuple[float, Any]:
        r = a @ x - b
        return 0.5 * float(r @ r), a.T @ r

    return {
        name: minimize(
            residual,
            np.zeros(_COLUMNS),
            method,
            max_iterations=context.steps(_STEPS),
            gtol=1e-11,
        ).x
        for name, method in methods.items()
    }


def run(context: Context) -> Outcome:
    """Solve 20 x 60 Gaussian systems from zero."""
    rng = np.random.default_rng(context.seed)
    errors: dict[str, list[float]] = {}
    norms: dict[str, list[float]] = {}
    sums: dict[str, list[float]] = {}
    residuals: dict[str, list[float]] = {}
    for _ in range(2 if context.quick else _DRAWS):
        a, b = rng.standard_normal((_ROWS, _COLUMNS)), rng.standard_normal(_ROWS)
        least_norm = np.linalg.pinv(a) @ b
        size = float(np.linalg.norm(least_norm))
        least_sum = float(np.abs(least_l1(a, b)).sum())
        for name, x in _solutions(context, a, b).items():
            errors.setdefault(name, []).append(float(np.linalg.norm(x - least_norm)) / size)
            norms.setdefault(name, []).append(float(np.linalg.norm(x)) / size)
            sums.setdefault(name, []).append(float(np.abs(x).sum()) / least_sum)
            residuals.setdefault(name, []).append(float(np.linalg.norm(a @ x - b)))
    norm = {name: float(np.mean(values)) for name, values in norms.items()}
    total = {name: float(np.mean(values)) for name, values in sums.items()}
    farthest = max(*errors["gradient descent"], *errors["momentum"])
    passed = (
        farthest < 1e-10
        and norm["AdaGrad"] > 1.05
        and norm["sign descent"] > 1.05
        and total["coordinate descent"] < 1.05
        and max(residuals["coordinate descent"]) < 1e-6
    )

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        places = np.arange(len(norm))
        axes.bar(places - 0.2, list(norm.values()), 0.4, label="Euclidean norm / the least")
        axes.bar(places + 0.2, list(total.values()), 0.4, label="sum of magnitudes / the least")
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.set_xticks(places, list(norm), rotation=15)
        axes.legend()

    worst = max(sums["coordinate descent"])
    return Outcome(
        f"distance from the least-norm solution at most {farthest:.1e} (gradient descent, "
        f"momentum); norm {norm['AdaGrad']:.2f} (AdaGrad), {norm['Adam']:.2f} (Adam), "
        f"{norm['sign descent']:.2f} (sign descent) times the least; sum of magnitudes "
        f"{total['coordinate descent']:.3f} times the least (coordinate descent; {worst:.3f} in "
        f"the worst system)",
        {"errors": errors, "norms": norms, "sums": sums, "residuals": residuals},
        passed,
        draw,
    )


EXPERIMENT = Experiment(
    "e4",
    "Gradient descent finds the least norm; adaptive and sign descent do not",
    "On an underdetermined system gradient descent and momentum, started at zero, find the "
    "solution of least Euclidean norm, AdaGrad and sign descent another one, and greedy coordinate "
    "descent in small steps nearly that of least L1 norm: exactly where the path is monotone, "
    "else by an excess that depends on the system and not on the step.",
    "Wilson, Roelofs, Stern, Srebro, Recht, The marginal value of adaptive gradient methods, 2017",
    "100 Gaussian systems of 20 x 60, start 0, full gradients, 20,000 steps, float64; least L1 "
    "norm by linear programming",
    "relative distance < 1e-10 in every system; mean norm of AdaGrad and of sign descent > 1.05 "
    "times the least; mean L1 norm of coordinate descent < 1.05 times the least",
    run,
)
