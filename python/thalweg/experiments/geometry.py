"""e7: steepest descent in a norm finds the largest margin of that norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import minimize, optim, schedules
from thalweg.landscape import linear_margins

from .base import Context, Experiment, Outcome
from .convex import cosine, largest_margin, log_sum_exp, quadratic_program

_ROWS, _COLUMNS = 40, 10
_STEPS = 100_000
# The norm of a method, and the dual norm that its gradients are measured in.
_NORMS: dict[str, tuple[float, float]] = {"l1": (1, np.inf), "l2": (2, 2), "linf": (np.inf, 1)}
_APART = 0.99
_CLASSES = 3


def _margin_ratios(directions: list[Any], z: Any, largest: list[float]) -> Any:
    """Margins ``[direction, norm]`` over the largest ones."""
    norms = [norm for norm, _ in _NORMS.values()]
    return np.array(
        [
            [
                linear_margins(w, z, np.ones(len(z)), norm=norm).margin / best
                for norm, best in zip(norms, largest, strict=True)
            ]
            for w in directions
        ]
    )


def _separable(rng: Any) -> tuple[Any, list[float]]:
    """Rows y x and their largest margins.

    The first draw in which the direction of the largest margin of one norm has less than 0.99 of
    that of another: in the others, a margin of 0.99 does not tell the norms apart.
    """
    while True:
        direction = rng.standard_normal(_COLUMNS)
        x = rng.standard_normal((_ROWS, _COLUMNS))
        z = np.where(x @ direction > 0, 1, -1)[:, None] * x
        best = [largest_margin(z, norm) for norm, _ in _NORMS.values()]
        largest = [margin for _, margin in best]
        ratios = _margin_ratios([w for w, _ in best], z, largest)
        if np.all(ratios - np.eye(len(_NORMS)) < _APART):
            return z, largest


def _multiclass(context: Context, rng: Any) -> float:
    """Cosine of gradient descent on cross-entropy with the multiclass hard margin."""
    centres = 4.0 * np.linalg.qr(rng.standard_normal((_COLUMNS, _CLASSES)))[0].T
    labels = np.arange(30) % _CLASSES
    x = centres[labels] + 0.5 * rng.standard_normal((30, _COLUMNS))
    rows, others = [], []
    for i, label in enumerate(labels):
        for other in range(_CLASSES):
            if other != label:
                row = np.zeros((_CLASSES, _COLUMNS))
                row[label], row[other] = x[i], -x[i]
                rows.append(row.ravel())
                others.append(i)
    z = np.array(rows)
    alpha = quadratic_program(z @ z.T, -np.ones(len(z)), np.zeros((0, len(z))), np.zeros(0))
    owner = np.eye(len(x))[others].T

    def log_loss(w: Any) -> tuple[float, Any]:
        # log of the sum of the losses log(1 + sum exp(-margin)), by their shares.
        scores = np.exp(-(z @ w))
        sums = owner @ scores
        losses = np.log1p(sums)
        slopes = scores / (1.0 + sums)[others] / losses.sum()
        return float(np.log(losses.sum())), -(z.T @ slopes)

    method = optim.SteepestDescent(
        schedules.RobbinsMonro(0.5, 1, power=0.5), norm="l2", normalized=True
    )
    start = np.zeros(z.shape[1])
    found = minimize(log_loss, start, method, max_iterations=context.steps(_STEPS), gtol=0.0)
    return cosine(found.x, z.T @ alpha)


def run(context: Context) -> Outcome:
    """Descend on the exponential loss in three norms and compare margins with the largest ones."""
    rng = np.random.default_rng(context.seed)
    z, largest = _separable(rng)

    def log_loss(w: Any) -> tuple[float, Any]:
        value, shares = log_sum_exp(-(z @ w))
        return value, -(z.T @ shares)

    found = []
    for name, (_, dual) in _NORMS.items():
        # The largest second derivative of the loss along a direction of norm 1 is at most this.
        smoothness = float(np.linalg.norm(z, dual, axis=1).max()) ** 2
        method = optim.SteepestDescent(1.0 / smoothness, norm=name, normalized=True)
        found.append(
            minimize(
                log_loss,
                np.zeros(_COLUMNS),
                method,
                max_iterations=context.steps(_STEPS),
                gtol=0.0,
            ).x
        )
    ratios = _margin_ratios(found, z, largest)
    own = np.diag(ratios)
    multiclass = _multiclass(context, rng)
    passed = (
        bool(np.all(own >= 0.99))
        and bool(np.all(ratios.argmax(axis=0) == np.arange(len(_NORMS))))
        and multiclass > 0.99
    )
    names = ("coordinate (L1)", "gradient (L2)", "sign (L-infinity)")

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        image = axes.imshow(ratios, vmin=0.0, vmax=1.0, cmap="viridis")
        for (i, j), value in np.ndenumerate(ratios):
            shade = "black" if value > 0.6 else "white"
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=shade)
        axes.set_xticks(range(3), ["L1 margin", "L2 margin", "L-infinity margin"])
        axes.set_yticks(range(3), [f"{name} descent" for name in names])
        axes.grid(False)
        figure.colorbar(image, label="share of the largest margin")

    return Outcome(
        "share of the largest margin of its own norm "
        + ", ".join(f"{v:.4f} ({n})" for n, v in zip(names, own, strict=True))
        + f"; cosine of gradient descent with the multiclass margin {multiclass:.4f}",
        {"ratios": ratios.tolist(), "multiclass_cosine": multiclass},
        passed,
        draw,
    )


EXPERIMENT = Experiment(
    "e7",
    "Each geometry has its own margin",
    "On separable data steepest descent in a norm converges to the largest margin of that norm: "
    "coordinate descent that of L1, gradient descent that of L2, sign descent that of L-infinity; "
    "cross-entropy leads to the multiclass margin.",
    "Gunasekar, Lee, Soudry, Srebro, Characterizing implicit bias in terms of optimization "
    "geometry, 2018",
    "40 x 10 Gaussian rows that a direction separates, the first draw in which no largest-margin "
    "direction has 0.99 of another norm's margin; exponential loss in the log domain, 100,000 "
    "normalized steps of 1 / max |x|_dual^2; cross-entropy on 30 rows of 3 classes, normalized "
    "steps of 0.5 / sqrt(t); largest margins by linear and quadratic programming",
    "own margin >= 0.99 of the largest, and larger than what the other two reach; multiclass "
    "cosine > 0.99",
    run,
)
