"""Reference solutions of small convex programs, by an interior-point method.

The experiments compare what an optimizer finds with these; they share nothing with the optimizers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_ITERATIONS = 200
_TOLERANCE = 1e-11


def quadratic_program(q: Array, c: Array, a: Array, b: Array) -> Array:
    """The x >= 0 with a x = b that minimizes x'q x / 2 + c'x, q positive semidefinite.

    Mehrotra's predictor and corrector (1992). RuntimeError when it does not converge.
    """
    n, m = len(c), len(b)
    x, s, y = np.ones(n), np.ones(n), np.zeros(m)
    matrix = np.zeros((n + m, n + m))
    matrix[:n, :n], matrix[:n, n:], matrix[n:, :n] = q, -a.T, a
    scale = 1.0 + max(float(np.abs(c).max()), float(np.abs(b).max(initial=0.0)))
    for _ in range(_ITERATIONS):
        primal, dual = a @ x - b, q @ x + c - a.T @ y - s
        gap = float(x @ s) / n
        worst = max(float(np.abs(primal).max(initial=0.0)), float(np.abs(dual).max()))
        if worst <= _TOLERANCE * scale and gap <= _TOLERANCE * scale:
            return x
        if not gap > 0.0:
            break
        matrix[np.arange(n), np.arange(n)] = np.diag(q) + s / x
        centering = np.zeros(n)
        for corrected in (False, True):
            complement = x * s + centering
            step = _solve(matrix, np.concatenate([-dual - complement / x, -primal]))
            dx, dy = step[:n], step[n:]
            ds = -(complement + s * dx) / x
            length = min(_reach(x, dx), _reach(s, ds))
            if not corrected:
                after = float((x + length * dx) @ (s + length * ds)) / n
                centering = dx * ds - gap * (after / gap) ** 3
        length = min(1.0, 0.995 * length)
        x, y, s = x + length * dx, y + length * dy, s + length * ds
    raise RuntimeError("[quadratic_program] expected convergence, got none; is it feasible?")


def _solve(matrix: Array, right: Array) -> Array:
    step: Array
    try:
        step = np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        step = np.linalg.lstsq(matrix, right, rcond=None)[0]
    return step


def _reach(x: Array, step: Array) -> float:
    falling = step < 0.0
    return min(1.0, float(np.min(-x[falling] / step[falling], initial=np.inf)))


def linear_program(c: Array, a: Array, b: Array) -> Array:
    """The x >= 0 with a x = b that minimizes c'x."""
    return quadratic_program(np.zeros((len(c), len(c))), c, a, b)


def least_l1(a: Array, b: Array) -> Array:
    """The solution of a x = b with the least sum of magnitudes."""
    n = a.shape[1]
    parts = linear_program(np.ones(2 * n), np.hstack([a, -a]), b)
    return parts[:n] - parts[n:]


def largest_margin(z: Array, norm: float) -> tuple[Array, float]:
    """The w of norm 1 with the largest min(z w), and that margin; norm is 1, 2 or infinity.

    Rows of z are y x. RuntimeError when no w separates.
    """
    rows, n = z.shape
    one = np.ones(rows)
    if norm == 2:
        alpha = quadratic_program(z @ z.T, -one, np.zeros((0, rows)), np.zeros(0))
        w = z.T @ alpha
    elif norm == 1:
        found = linear_program(
            np.concatenate([np.ones(2 * n), np.zeros(rows)]),
            np.hstack([z, -z, -np.eye(rows)]),
            one,
        )
        w = found[:n] - found[n : 2 * n]
    else:  # w = u - t, 0 <= u <= 2 t, the least t
        cost = np.zeros(2 * n + 1 + rows)
        cost[n] = 1.0
        margins = np.hstack([z, -z.sum(axis=1, keepdims=True), np.zeros((rows, n)), -np.eye(rows)])
        bounds = np.hstack([np.eye(n), np.full((n, 1), -2.0), np.eye(n), np.zeros((n, rows))])
        found = linear_program(cost, np.vstack([margins, bounds]), np.append(one, np.zeros(n)))
        w = found[:n] - found[n]
    w = w / np.linalg.norm(w, norm)
    return w, float((z @ w).min())


def log_sum_exp(values: Array) -> tuple[float, Array]:
    """log(sum(exp(values))), and the shares exp(value) / sum: its gradient."""
    top = float(values.max())
    shares = np.exp(values - top)
    total = float(shares.sum())
    return top + float(np.log(total)), shares / total


def cosine(a: Any, b: Any) -> float:
    """Cosine of the angle between two vectors."""
    return float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
