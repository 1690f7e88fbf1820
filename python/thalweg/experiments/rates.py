"""e17: rates of convergence, as theory has them."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import minimize, optim, schedules

from .base import Context, Experiment, Outcome

_RUNS = 2000
_NOISY_STEPS = 3000
_CHAIN = 2000
_CHAIN_STEPS = 300


def _slope(k: Any, values: Any) -> float:
    """Slope of log values against log k over the second half of the decades."""
    late = k >= np.sqrt(k[-1])
    return float(np.polyfit(np.log(k[late]), np.log(values[late]), 1)[0])


def _noisy(context: Context, function: Any, schedule: Any, average: bool) -> tuple[Any, Any]:
    """Mean over many runs, side by side, of the excess of the iterate or of the average."""
    steps = context.steps(_NOISY_STEPS)
    rng = np.random.default_rng(context.seed)
    total = np.zeros(_RUNS)
    means: list[float] = []

    def noisy(x: Any) -> tuple[float, Any]:
        value, gradient = function(x)
        return float(value.sum()), gradient + rng.standard_normal(x.shape)

    def note(progress: Any) -> None:
        total[:] += progress.x
        shown = total / progress.nit if average else progress.x
        means.append(float(function(shown)[0].mean()))

    start = np.full(_RUNS, 2.0)
    minimize(noisy, start, optim.SGD(schedule), max_iterations=steps, gtol=0.0, callback=note)
    return np.arange(1, steps + 1), np.array(means)


def _quadratic(x: Any) -> tuple[Any, Any]:
    return 0.5 * x**2, x


def _absolute(x: Any) -> tuple[Any, Any]:
    return np.abs(x), np.sign(x)


def _chain(x: Any) -> tuple[float, Any]:
    """Nesterov's worst quadratic, x'T x / 2 - x_1 with T = tridiag(-1, 2, -1), T < 4."""
    product = 2.0 * x
    product[1:] -= x[:-1]
    product[:-1] -= x[1:]
    return 0.5 * float(x @ product) - float(x[0]), product - np.eye(1, len(x))[0]


def run(context: Context) -> Outcome:
    """Measure four slopes and hold Nesterov's bound at every step."""
    # Strongly convex with modulus 1: steps 1 / k.
    k, strong = _noisy(context, _quadratic, schedules.RobbinsMonro(1.0, 1.0), average=False)
    strong_slope = _slope(k, strong)
    _, averaged = _noisy(
        context, _absolute, schedules.RobbinsMonro(1.0, 1.0, power=0.5), average=True
    )
    averaged_slope = _slope(k, averaged)
    solution = 1.0 - np.arange(1, _CHAIN + 1) / (_CHAIN + 1.0)
    least = -0.5 * solution[0]
    distance = float(solution @ solution)
    excess = {}
    for name, method in (
        ("gradient descent", optim.SGD(0.25)),
        ("Nesterov", optim.Nesterov(0.25, momentum=schedules.NesterovConvex())),
    ):
        values: list[float] = []

        def watched(x: Any, values: list[float] = values) -> tuple[float, Any]:
            value, gradient = _chain(x)
            # The iterate after the step from the gradient's point x, of which the bound speaks.
            values.append(_chain(x - 0.25 * gradient)[0])
            return value, gradient

        minimize(
            watched,
            np.zeros(_CHAIN),
            method,
            max_iterations=context.steps(_CHAIN_STEPS),
            gtol=0.0,
        )
        # Some methods look at the last gradient's point, some do not.
        excess[name] = np.array(values[: context.steps(_CHAIN_STEPS)]) - least
    steps = np.arange(1, len(excess["Nesterov"]) + 1)
    plain_slope, fast_slope = (_slope(steps, e) for e in excess.values())
    # 2 L |x0 - x*|^2 / (k + 1)^2 with L = 4 (Nesterov 1983; Beck, Teboulle 2009).
    bound = 8.0 * distance / (steps + 1.0) ** 2
    broken = int(np.sum(excess["Nesterov"] > bound))
    ratio = fast_slope / plain_slope
    passed = (
        abs(strong_slope + 1.0) <= 0.1
        and averaged_slope <= -0.45
        and abs(ratio - 2.0) <= 0.2
        and broken == 0
    )

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        left.loglog(k, strong, label="strongly convex, steps 1/k")
        left.loglog(k, averaged, label="convex, steps 1/sqrt(k), averaged")
        left.set(xlabel="steps", ylabel="mean excess")
        left.legend()
        for name, values in excess.items():
            right.loglog(steps, values, label=name)
        right.loglog(steps, bound, "k--", label="Nesterov's bound")
        right.set(xlabel="steps", ylabel="excess")
        right.legend()

    return Outcome(
        f"slope {strong_slope:.2f} (strongly convex, steps 1/k), {averaged_slope:.2f} (convex, "
        f"averaged), {plain_slope:.2f} and {fast_slope:.2f} (gradient descent and Nesterov on the "
        f"chain); Nesterov's bound broken {broken} times",
        {
            "strongly_convex": strong_slope,
            "averaged": averaged_slope,
            "gradient_descent": plain_slope,
            "nesterov": fast_slope,
            "bound_broken": broken,
        },
        passed,
        draw,
    )


EXPERIMENT = Experiment(
    "e17",
    "Convergence at the rates of theory",
    "Stochastic gradients reach 1/k on strongly convex functions and 1/sqrt(k) averaged on convex "
    "ones; on the hardest quadratic Nesterov's method has twice the slope of gradient descent.",
    "Goodfellow, Bengio, Courville, Deep Learning, section 8.1.3 and 8.3.3; Nesterov, A method of "
    "solving a convex programming problem with convergence rate O(1/k^2), 1983",
    "x^2/2 and |x| with standard normal gradient noise, 2,000 runs of 3,000 steps; tridiagonal "
    "quadratic of 2,000 variables, rate 1/L, 300 steps, momentum k/(k+3); float64",
    "slope -1 +- 0.1; averaged <= -0.45; Nesterov's slope 2 +- 0.2 times gradient descent's, its "
    "bound 2 L d^2 / (k+1)^2 never broken",
    run,
)
