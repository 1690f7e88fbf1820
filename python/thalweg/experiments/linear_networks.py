"""e9: what linear networks of other shapes prefer."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg import minimize, optim, schedules

from .base import Context, Experiment, Outcome
from .convex import cosine, largest_margin, log_sum_exp, quadratic_program

_WIDTH, _ROWS = 8, 16
_STEPS = 30000
# The norm of the weights has to grow far for the direction to settle, so steps grow with it.
_RATE = schedules.Linear(0.01, 1.0, tau=_STEPS)


def _dense(context: Context, z: Any, depth: int, rng: Any) -> Any:
    """The product of the weights of a fully connected linear network, on the log of the loss."""
    shapes = [(_WIDTH, _WIDTH)] * (depth - 1) + [(1, _WIDTH)]
    ends = np.cumsum([a * b for a, b in shapes])[:-1]

    def split(flat: Any) -> list[Any]:
        return [p.reshape(s) for p, s in zip(np.split(flat, ends), shapes, strict=True)]

    def function(flat: Any) -> tuple[float, Any]:
        weights = split(flat)
        below = [np.eye(_WIDTH)]
        for w in weights:
            below.append(w @ below[-1])
        value, shares = log_sum_exp(-(z @ below[-1][0]))
        above = -(shares @ z)[None, :]  # the slope of the product [1, width]
        slopes = []
        left = np.eye(1)
        for w, lower in zip(weights[::-1], below[-2::-1], strict=True):
            slopes.append((left.T @ above @ lower.T).ravel())
            left = left @ w
        return value, np.concatenate(slopes[::-1])

    start = 0.3 * rng.standard_normal(sum(a * b for a, b in shapes))
    flat = minimize(
        function,
        start,
        optim.SteepestDescent(_RATE, normalized=True),
        max_iterations=context.steps(_STEPS),
        gtol=0.0,
    ).x
    product = np.eye(_WIDTH)
    for w in split(flat):
        product = w @ product
    return product[0]


def _convolution(context: Context, z: Any, rng: Any) -> Any:
    """The circular convolution of two full-width filters, on the log of the loss."""

    def function(pair: Any) -> tuple[float, Any]:
        u, v = np.fft.fft(pair[0]), np.fft.fft(pair[1])
        value, shares = log_sum_exp(-(z @ np.fft.ifft(u * v).real))
        slope = np.fft.fft(-(shares @ z))
        gradient = [np.fft.ifft(slope * np.conj(other)).real for other in (v, u)]
        return value, np.stack(gradient)

    pair = minimize(
        function,
        0.1 * rng.standard_normal((2, _WIDTH)),
        optim.SteepestDescent(_RATE, normalized=True),
        max_iterations=context.steps(_STEPS),
        gtol=0.0,
    ).x
    return np.fft.ifft(np.fft.fft(pair[0]) * np.fft.fft(pair[1])).real


def _spectral_sum(beta: Any) -> float:
    return float(np.abs(np.fft.fft(beta)).sum())


def _least_spectral_sum(z: Any) -> float:
    """The least sum of |DFT(beta)| with all margins >= 1, by reweighted quadratic programs."""
    basis = np.fft.fft(np.eye(_WIDTH))
    beta, smooth = largest_margin(z, 2)[0], 1e-2
    for _ in range(200):
        weights = 1.0 / np.sqrt(np.abs(basis @ beta) ** 2 + smooth**2)
        inverse = np.linalg.inv((basis.conj().T * weights @ basis).real)
        alpha = quadratic_program(
            z @ inverse @ z.T, -np.ones(len(z)), np.zeros((0, len(z))), np.zeros(0)
        )
        beta = inverse @ z.T @ alpha
        beta = beta / float((z @ beta).min())
        smooth = max(0.8 * smooth, 1e-8)
    return _spectral_sum(beta)


def run(context: Context) -> Outcome:
    """Train dense networks of depth 2 and 3, and a convolutional one, on separable rows."""
    rng = np.random.default_rng(context.seed)
    x = rng.standard_normal((_ROWS, _WIDTH))
    z = np.where(x @ rng.standard_normal(_WIDTH) > 0, 1.0, -1.0)[:, None] * x
    best = largest_margin(z, 2)[0]
    products = {depth: _dense(context, z, depth, rng) for depth in (2, 3)}
    cosines = {depth: cosine(beta, best) for depth, beta in products.items()}
    beta = _convolution(context, z, rng)
    reached = _spectral_sum(beta) / float((z @ beta).min())
    excess = reached / _least_spectral_sum(z) - 1.0
    passed = min(cosines.values()) > 0.999 and abs(excess) < 0.01

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for depth, product in products.items():
            left.plot(product / np.linalg.norm(product), "o-", label=f"dense, depth {depth}")
        left.plot(best, "k--", label="L2 hard margin")
        left.set(xlabel="input", ylabel="direction of the product")
        left.legend()
        for vector, label in ((beta, "convolution"), (best, "L2 hard margin")):
            right.plot(np.abs(np.fft.fft(vector / (z @ vector).min())), "o-", label=label)
        right.set(xlabel="frequency", ylabel="|DFT| at margin 1")
        right.legend()

    return Outcome(
        f"cosine with the L2 hard margin {cosines[2]:.5f} at depth 2, {cosines[3]:.5f} at depth 3; "
        f"convolution: sum of |DFT| {100 * excess:.2f} % above the least",
        {"cosines": {str(k): v for k, v in cosines.items()}, "excess": excess},
        passed,
        draw,
    )


EXPERIMENT = Experiment(
    "e9",
    "Linear networks: the architecture chooses the norm",
    "Gradient descent on a fully connected linear network converges to the L2 margin whatever its "
    "depth; on a full-width convolutional one to the least L1 norm of the discrete Fourier "
    "transform.",
    "Gunasekar, Lee, Soudry, Srebro, Implicit bias of gradient descent on linear convolutional "
    "networks, 2018",
    "16 separable Gaussian rows of width 8, exponential loss in the log domain, 30,000 normalized "
    "steps that grow from 0.01 to 1, float64",
    "cosine > 0.999 at depth 2 and 3; sum of |DFT| within 1 % of the least",
    run,
)
