"""e5: a problem that gradient descent learns and adaptive methods do not."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import minimize, optim

from .base import Context, Experiment, Outcome
from .convex import cosine

_ROWS, _TEST = 60, 20000
_SHARE = 0.7
_STEPS = 5000


def _labels(rng: Any, count: int) -> Any:
    return np.where(rng.random(count) < _SHARE, 1.0, -1.0)


def _features(y: Any) -> Any:
    """y, 1, 1, then one private feature for a positive row and five for a negative one."""
    n = len(y)
    x = np.zeros((n, 3 + 5 * n))
    x[:, 0], x[:, 1:3] = y, 1.0
    for i in range(n):
        x[i, 3 + 5 * i : 3 + 5 * i + (1 if y[i] > 0 else 5)] = 1.0
    return x


def run(context: Context) -> Outcome:
    """Fit least squares and classify rows whose private features are new."""
    rng = np.random.default_rng(context.seed)
    y, test = _labels(rng, _ROWS), _labels(rng, _TEST)
    x = _features(y)
    rate = 1.0 / float(np.linalg.norm(x, 2)) ** 2
    methods = {
        "gradient descent": optim.SGD(rate),
        "momentum": optim.Momentum(rate, momentum=0.9),
        "AdaGrad": optim.AdaGrad(0.01),
        "RMSProp": optim.RMSProp(1e-4),
        "Adam": optim.Adam(1e-3),
    }

    def squared_error(w: Any) -> tuple[float, Any]:
        r = x @ w - y
        return 0.5 * float(r @ r), x.T @ r

    direction = np.sign(x.T @ y)
    errors, cosines = {}, {}
    for name, method in methods.items():
        w = minimize(
            squared_error,
            np.zeros(x.shape[1]),
            method,
            max_iterations=context.steps(_STEPS),
            gtol=1e-12,
        ).x
        # A new row has y, 1, 1, and private features that nothing was learned about.
        shown = np.sign(w[0] * test + w[1] + w[2])
        errors[name] = float(np.mean(shown != test))
        cosines[name] = cosine(w, direction)
    minority = float(np.mean(test < 0))
    adaptive = ("AdaGrad", "RMSProp", "Adam")
    passed = (
        errors["gradient descent"] == errors["momentum"] == 0.0
        and all(errors[name] == minority for name in adaptive)
        and all(cosines[name] > 0.999 for name in adaptive)
    )

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.bar(list(errors), [100 * e for e in errors.values()])
        axes.axhline(100 * minority, color="grey", linewidth=0.8, label="share of the minority")
        axes.set(ylabel="test error, %")
        axes.legend()

    least = min(cosines[name] for name in adaptive)
    return Outcome(
        f"test error {errors['gradient descent']:.4f} (gradient descent, momentum), "
        f"{max(errors[name] for name in adaptive):.4f} (AdaGrad, RMSProp, Adam; the minority is "
        f"{minority:.4f}); cosine with sign(X'y) at least {least:.5f}",
        {"errors": errors, "cosines": cosines, "minority": minority},
        passed,
        draw,
    )


EXPERIMENT = Experiment(
    "e5",
    "Adaptive methods can fail where gradient descent is perfect",
    "When the sign of X'y solves the training set, adaptive methods go in its direction, whatever "
    "it means for new rows; gradient descent finds the feature that generalizes.",
    "Wilson, Roelofs, Stern, Srebro, Recht, The marginal value of adaptive gradient methods, 2017, "
    "section 3",
    "60 rows, labels +1 with probability 0.7; features y, 1, 1, and 1 (positive) or 5 (negative) "
    "of the row's own; least squares from 0, full gradients; 20,000 new rows",
    "test error 0 for gradient descent and momentum; the share of the minority, and cosine > 0.999 "
    "with sign(X'y), for AdaGrad, RMSProp and Adam",
    run,
)
