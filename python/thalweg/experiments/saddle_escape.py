"""e10: which methods leave a saddle, and which one goes to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import minimize, optim

from .base import Context, Experiment, Outcome

_LIMIT = 2000
_METHODS: dict[str, Any] = {
    "saddle-free Newton": optim.SaddleFreeNewton(),
    "AdaGrad": optim.AdaGrad(0.1),
    "AdaDelta": optim.AdaDelta(),
    "Nesterov": optim.Nesterov(0.1),
    "momentum": optim.Momentum(0.1),
    "RMSProp": optim.RMSProp(0.01),
    "RMSProp + Nesterov": optim.RMSPropNesterov(0.01),
    "Adam": optim.Adam(0.01),
    "gradient descent": optim.SGD(0.1),
    "Newton": optim.Newton(),
}
_CURVATURE = np.array([1.0, -0.2])


def _saddle(p: Any) -> tuple[float, Any]:
    return 0.5 * float(_CURVATURE @ p**2), _CURVATURE * p


def run(context: Context) -> Outcome:
    """Start next to the saddle of x^2/2 - y^2/10 and count the steps to |y| >= 1."""
    steps: dict[str, int | None] = {}
    ends: dict[str, Any] = {}
    curves: dict[str, list[float]] = {}
    for name, method in _METHODS.items():
        curve = [1e-3]

        def escaped(progress: Any, curve: list[float] = curve) -> bool:
            curve.append(abs(float(progress.x[1])))
            return curve[-1] >= 1.0

        result = minimize(
            _saddle,
            [1.0, 1e-3],
            method,
            hvp=lambda p, v: _CURVATURE * v,
            max_iterations=_LIMIT,
            gtol=0.0,
            callback=escaped,
        )
        steps[name] = result.nit if result.status == "stopped" else None
        ends[name] = result.x
        curves[name] = curve
    newton = float(np.abs(ends["Newton"]).max())
    escapes = [name for name in _METHODS if name != "Newton"]
    order = [steps["saddle-free Newton"], steps["momentum"], steps["gradient descent"]]
    passed = (
        all(steps[name] is not None for name in escapes)
        and order == sorted(order, key=lambda n: n or 0)
        and len(set(order)) == 3
        and steps["Newton"] is None
        and newton < 1e-12
    )

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        for name, curve in curves.items():
            axes.loglog(np.arange(1, len(curve) + 1), np.maximum(curve, 1e-12), label=name)
        axes.set(xlabel="steps + 1", ylabel="|y|")
        axes.legend(fontsize=7)

    listed = ", ".join(f"{name} {steps[name]}" for name in escapes)
    return Outcome(
        f"steps to |y| = 1: {listed}; Newton ends at the saddle, {newton:.0e} from it",
        {"steps": steps, "newton_distance": newton},
        passed,
        draw,
    )


EXPERIMENT = Experiment(
    "e10",
    "Gradient descent flees saddles, Newton's method seeks them",
    "Next to a saddle Newton's method jumps onto it; every gradient method leaves it, and saddle-"
    "free Newton long before momentum and gradient descent.",
    "Dauphin, Pascanu, Gulcehre, Cho, Ganguli, Bengio, Identifying and attacking the saddle point "
    "problem, 2014; Goodfellow, Bengio, Courville, Deep Learning, section 8.2.3",
    "x^2/2 - y^2/10 from (1, 0.001), to |y| = 1, at most 2,000 steps; rate 0.1 (AdaDelta 1, "
    "RMSProp and Adam 0.01, Newton's methods 1)",
    "saddle-free Newton before momentum before gradient descent; every adaptive method escapes; "
    "Newton ends within 1e-12 of the saddle",
    run,
)
