"""`thalweg.minimize`: every method on known functions, its rules, its errors; SciPy as oracle."""

from __future__ import annotations

import itertools
import json
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference as ref
import thalweg as tw
from thalweg import _core, optim, schedules

Array = npt.NDArray[Any]

METHODS = [name for name, entry in _core.methods().items() if not entry["elementwise"]]
OPTIMIZERS = [name for name, entry in _core.methods().items() if entry["elementwise"]]


# ---- functions -----------------------------------------------------------------------------------


class Quadratic:
    """x'Ax/2 - b'x with a spectrum of one's choice."""

    def __init__(self, eigenvalues: Any, seed: int = 0) -> None:
        values = np.asarray(eigenvalues, dtype=np.float64)
        generator = np.random.default_rng(seed)
        rotation = np.linalg.qr(generator.standard_normal((len(values), len(values))))[0]
        self.a = rotation @ np.diag(values) @ rotation.T
        self.a = (self.a + self.a.T) / 2
        self.b = generator.standard_normal(len(values))
        self.solution = np.linalg.solve(self.a, self.b)

    def __call__(self, x: Array) -> tuple[float, Array]:
        image = self.a @ x
        return float(0.5 * x @ image - self.b @ x), image - self.b

    def hvp(self, x: Array, v: Array) -> Array:
        return self.a @ v


def parabola(x: Array) -> tuple[float, Array]:
    curvature = np.array([1.0, 4.0])
    return float(0.5 * curvature @ (x - 1) ** 2), curvature * (x - 1)


def parabola_hvp(x: Array, v: Array) -> Array:
    return np.array([1.0, 4.0]) * v


def rosenbrock(x: Array) -> tuple[float, Array]:
    a, b = x
    value = (1 - a) ** 2 + 100 * (b - a**2) ** 2
    return float(value), np.array([-2 * (1 - a) - 400 * a * (b - a**2), 200 * (b - a**2)])


def rosenbrock_hvp(x: Array, v: Array) -> Array:
    a, b = x
    hessian = np.array([[2 - 400 * (b - 3 * a**2), -400 * a], [-400 * a, 200.0]])
    return hessian @ v


def saddle(x: Array) -> tuple[float, Array]:
    return float(0.5 * x[0] ** 2 - 0.1 * x[1] ** 2), np.array([x[0], -0.2 * x[1]])


def saddle_hvp(x: Array, v: Array) -> Array:
    return np.array([v[0], -0.2 * v[1]])


def separable(x: Array, data: Array) -> tuple[float, Array]:
    """Logistic loss of margins `data @ x`."""
    margins = data @ x
    return float(np.logaddexp(0.0, -margins).sum()), -data.T @ (1 / (1 + np.exp(margins)))


# ---- every method --------------------------------------------------------------------------------

# (options, iterations) on the parabola and on Rosenbrock's function; None where the method is for
# quadratic functions, and for AdaDelta, whose steps grow until they leave the valley.
CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any] | None, int]] = {
    "steepest_descent": ({"lr": 0.3}, 100, {"step": "wolfe"}, 20_000),
    "coordinate_descent": ({}, 2, {"step": "fixed", "lr": 2e-3}, 60_000),
    "nonlinear_cg": ({}, 10, {}, 200),
    "linear_cg": ({}, 2, None, 0),
    "bfgs": ({}, 20, {}, 60),
    "lbfgs": ({}, 20, {}, 60),
    "newton": ({}, 1, {}, 20),
    "damped_newton": ({}, 10, {}, 60),
    "saddle_free_newton": ({}, 1, {"damping_search": True}, 60),
    "sgd": ({"lr": 0.3}, 100, {"lr": 2e-3}, 60_000),
    "momentum": ({"lr": 0.05}, 400, {"lr": 5e-4}, 20_000),
    "nesterov": ({"lr": 0.05}, 400, {"lr": 5e-4}, 20_000),
    "adagrad": ({"lr": 0.5}, 2000, {"lr": 0.5}, 60_000),
    "rmsprop": ({"lr": schedules.Cosine(0.1, 2000)}, 2000, {"lr": schedules.Cosine(0.02, 30_000)},
                30_000),
    "rmsprop_nesterov": ({"lr": schedules.Cosine(0.1, 2000)}, 2000,
                         {"lr": schedules.Cosine(0.01, 30_000)}, 30_000),
    "adadelta": ({}, 5000, None, 0),
    "adam": ({"lr": 0.1}, 1000, {"lr": 0.02}, 20_000),
    "adamw": ({"lr": 0.1, "weight_decay": 0.0}, 1000, {"lr": 0.02, "weight_decay": 0.0}, 20_000),
}  # fmt: skip


def test_every_method_has_a_case() -> None:
    assert CASES.keys() | {"path_sgd"} == _core.methods().keys()


@pytest.mark.parametrize("method", CASES)
def test_parabola(method: str) -> None:
    options, iterations, _, _ = CASES[method]
    result = tw.minimize(
        parabola,
        [-3.0, 2.0],
        method,
        hvp=parabola_hvp,
        max_iterations=iterations,
        gtol=1e-10,
        **options,
    )
    np.testing.assert_allclose(result.x, [1.0, 1.0], atol=1e-3)
    assert result.fun <= 1e-5


@pytest.mark.parametrize("method", [m for m, case in CASES.items() if case[2] is not None])
def test_rosenbrock(method: str) -> None:
    _, _, options, iterations = CASES[method]
    assert options is not None
    result = tw.minimize(
        rosenbrock,
        [-1.2, 1.0],
        method,
        hvp=rosenbrock_hvp,
        max_iterations=iterations,
        gtol=1e-8,
        **options,
    )
    np.testing.assert_allclose(result.x, [1.0, 1.0], atol=2e-2)


@pytest.mark.parametrize("method", METHODS)
def test_same_bits_again(method: str) -> None:
    if method == "path_sgd":
        return
    options = CASES[method][0]
    a, b = (
        tw.minimize(parabola, [5.0, 7.0], method, hvp=parabola_hvp, max_iterations=9, **options)
        for _ in range(2)
    )
    assert a.x.tobytes() == b.x.tobytes()
    assert all(a.history[k].tobytes() == b.history[k].tobytes() for k in a.history)


# ---- rules of methods ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 30])
@pytest.mark.parametrize("given", [True, False], ids=["hvp", "differences"])
def test_linear_cg_ends_in_n_steps(n: int, given: bool) -> None:
    f = Quadratic(np.linspace(1.0, 20.0, n))
    hvp = f.hvp if given else None
    result = tw.minimize(f, np.zeros(n), "linear_cg", hvp=hvp, gtol=1e-8, max_iterations=n)
    assert result.converged and result.nit <= n
    np.testing.assert_allclose(result.x, f.solution, atol=1e-7)
    assert result.nhev == (result.nit if given else 0)


@pytest.mark.parametrize("method", ["bfgs", "lbfgs", "nonlinear_cg"])
def test_quadratics_end_in_n_steps_with_exact_line_search(method: str) -> None:
    """With exact steps all three are conjugate gradients; the first trial step may miss."""
    f = Quadratic(np.linspace(1.0, 5.0, 8))
    options = {"history": 20} if method == "lbfgs" else {}
    result = tw.minimize(f, np.zeros(8), method, c1=1e-10, c2=1e-8, gtol=1e-6, **options)
    assert result.converged and result.nit <= 9
    np.testing.assert_allclose(result.x, f.solution, atol=1e-6)


def test_lbfgs_with_full_history_is_bfgs_on_a_quadratic() -> None:
    f = Quadratic(np.linspace(1.0, 30.0, 10), seed=3)
    paths: dict[str, list[Array]] = {"bfgs": [], "lbfgs": []}
    for method, path in paths.items():
        options = {"history": 50} if method == "lbfgs" else {}
        tw.minimize(
            f,
            np.zeros(10),
            method,
            c1=1e-10,
            c2=1e-9,
            max_iterations=7,
            callback=lambda p, path=path: path.append(p.x),
            **options,
        )
    np.testing.assert_allclose(paths["lbfgs"], paths["bfgs"], atol=1e-6)


def test_bfgs_step_is_the_formula() -> None:
    f = Quadratic([1.0, 3.0, 9.0], seed=1)
    points = [np.array([3.0, -2.0, 1.0])]
    tw.minimize(f, points[0], "bfgs", max_iterations=4, callback=lambda p: points.append(p.x))
    inverse = np.eye(3)
    for k in range(1, 4):
        s = points[k] - points[k - 1]
        y = f(points[k])[1] - f(points[k - 1])[1]
        rho = 1.0 / (y @ s)
        if k == 1:
            inverse *= (y @ s) / (y @ y)
        left = np.eye(3) - rho * np.outer(s, y)
        inverse = left @ inverse @ left.T + rho * np.outer(s, s)
        step = points[k + 1] - points[k]
        direction = -inverse @ f(points[k])[1]
        cosine = step @ direction / np.linalg.norm(step) / np.linalg.norm(direction)
        assert cosine == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("method", ["bfgs", "lbfgs", "nonlinear_cg", "steepest_descent"])
@pytest.mark.parametrize("conditions", [(1e-4, 0.9), (1e-3, 0.1), (0.1, 0.2)])
@pytest.mark.parametrize("seed", range(3))
def test_strong_wolfe_conditions_hold_at_accepted_steps(
    method: str, conditions: tuple[float, float], seed: int
) -> None:
    data = np.random.default_rng(seed).standard_normal((30, 6))

    def f(x: Array) -> tuple[float, Array]:
        value, gradient = separable(x, data)
        return value + 0.05 * float(np.sum(x**4)), gradient + 0.2 * x**3

    c1, c2 = conditions
    points = [np.full(6, 2.0)]
    options = {"step": "wolfe"} if method == "steepest_descent" else {}
    result = tw.minimize(
        f, points[0], method, c1=c1, c2=c2, gtol=1e-5, max_iterations=60,
        callback=lambda p: points.append(p.x), **options,
    )  # fmt: skip
    assert result.nit >= 3 and not result.fallbacks
    for before, after in itertools.pairwise(points):
        (f0, g0), (f1, g1) = f(before), f(after)
        step = after - before
        assert g0 @ step < 0
        assert f1 <= f0 + c1 * (g0 @ step) + 1e-12
        assert abs(g1 @ step) <= c2 * abs(g0 @ step) + 1e-12


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("normalized", [False, True])
def test_steepest_descent_direction(norm: str, normalized: bool) -> None:
    """d minimizes g'd + norm(d)^2 / 2, or g'd over the unit ball: checked by its value."""
    g = np.array([0.5, -3.0, 2.0, 0.0, 1.0])
    result = tw.minimize(
        lambda x: (float(g @ x), g),
        np.zeros(5),
        "steepest_descent",
        lr=1.0,
        norm=norm,
        normalized=normalized,
        max_iterations=1,
    )
    order = {"l1": 1, "l2": 2, "linf": np.inf}
    dual = {"l1": np.inf, "l2": 2, "linf": 1}
    d = result.x
    size, strength = np.linalg.norm(d, order[norm]), np.linalg.norm(g, dual[norm])
    if normalized:
        assert size == pytest.approx(1.0, rel=1e-14)
        assert g @ d == pytest.approx(-strength, rel=1e-14)
    else:
        assert g @ d + size**2 / 2 == pytest.approx(-(strength**2) / 2, rel=1e-14)
    assert d[3] == 0.0


@pytest.mark.parametrize("order", ["greedy", "cyclic"])
def test_coordinate_descent_is_gauss_southwell_or_gauss_seidel(order: str) -> None:
    f = Quadratic(np.linspace(1.0, 6.0, 5), seed=2)
    x = np.zeros(5)
    for k in range(12):
        g = f(x)[1]
        j = int(np.argmax(abs(g))) if order == "greedy" else k % 5
        x[j] -= g[j] / f.a[j, j]
    result = tw.minimize(
        f, np.zeros(5), "coordinate_descent", order=order, hvp=f.hvp, max_iterations=12, gtol=0.0
    )
    np.testing.assert_allclose(result.x, x, atol=1e-13)


@pytest.mark.parametrize("method", ["newton", "saddle_free_newton"])
@pytest.mark.parametrize("exact_below", [0, 100])
def test_newton_solves_a_quadratic_in_one_step(method: str, exact_below: int) -> None:
    f = Quadratic(np.geomspace(0.01, 10.0, 12))
    result = tw.minimize(
        f, np.ones(12), method, hvp=f.hvp, exact_below=exact_below, max_iterations=1, gtol=1e-9
    )
    np.testing.assert_allclose(result.x, f.solution, atol=1e-7)
    assert result.nhev == 12


@pytest.mark.parametrize("exact_below", [0, 100])
def test_saddle_free_step_is_minus_the_inverse_of_abs_h_times_g(exact_below: int) -> None:
    f = Quadratic([-5.0, -0.5, -0.1, 0.2, 1.0, 4.0, 9.0])
    start = np.linspace(-1, 1, 7)
    values, vectors = np.linalg.eigh(f.a)
    for method, divisor in (("newton", values), ("saddle_free_newton", abs(values))):
        expected = start - 0.5 * vectors @ ((vectors.T @ f(start)[1]) / (divisor + 0.05))
        result = tw.minimize(
            f, start, method, hvp=f.hvp, exact_below=exact_below, lr=0.5, damping=0.05,
            max_iterations=1,
        )  # fmt: skip
        np.testing.assert_allclose(result.x, expected, atol=1e-9)


def test_krylov_step_is_near_the_exact_one() -> None:
    values = np.concatenate([np.linspace(-1.0, -0.1, 5), np.geomspace(0.01, 10.0, 195)])
    f = Quadratic(values, seed=5)
    start = np.zeros(200)
    steps = []
    for exact_below in (0, 200):
        result = tw.minimize(
            f, start, "saddle_free_newton", hvp=f.hvp, exact_below=exact_below, krylov=50,
            damping=0.1, max_iterations=1,
        )  # fmt: skip
        steps.append(result.x / np.linalg.norm(result.x))
        assert result.nhev == (50 if exact_below == 0 else 200)
    assert steps[0] @ steps[1] > 0.9


def test_saddle_newton_lands_on_it_and_saddle_free_newton_flees() -> None:
    """METHODS e10: the step at which abs(y) first exceeds 1."""

    def escape(method: str, **options: Any) -> int | None:
        result = tw.minimize(
            saddle, [1.0, 1e-3], method, hvp=saddle_hvp, gtol=0.0, max_iterations=1000,
            callback=lambda p: abs(p.x[1]) > 1, **options,
        )  # fmt: skip
        return result.nit if result.status == "stopped" else None

    newton = tw.minimize(saddle, [1.0, 1e-3], "newton", hvp=saddle_hvp)
    np.testing.assert_allclose(newton.x, 0.0, atol=1e-12)
    assert newton.nit == 1 and newton.converged
    assert escape("saddle_free_newton") == 10
    assert escape("sgd", lr=0.1) == 349
    assert escape("momentum", lr=0.1) == 72


@pytest.mark.parametrize("exact_below", [0, 100])
def test_damped_newton_descends_where_the_hessian_is_indefinite(exact_below: int) -> None:
    def f(x: Array) -> tuple[float, Array]:
        return float(np.sum(x**4 / 4 - x**2 / 2)), x**3 - x

    result = tw.minimize(
        f, np.array([0.1, -0.2, 0.05]), "damped_newton", gtol=1e-9,
        hvp=lambda x, v: (3 * x**2 - 1) * v, exact_below=exact_below,
    )  # fmt: skip
    assert result.converged
    assert result.fallbacks["damping"] > 0
    np.testing.assert_allclose(abs(result.x), 1.0, atol=1e-8)
    assert np.all(np.diff(result.history["value"]) <= 1e-15)


def test_gauss_newton_on_least_squares() -> None:
    rng = np.random.default_rng(0)
    a, y = rng.standard_normal((20, 4)), rng.standard_normal(20)

    def residual(x: Array) -> tuple[Array, Array]:
        z = a @ x
        return np.tanh(z) - y / 3, (1 - np.tanh(z) ** 2)[:, None] * a

    def f(x: Array) -> tuple[float, Array]:
        r, jacobian = residual(x)
        return float(r @ r / 2), jacobian.T @ r

    def ggnvp(x: Array, v: Array) -> Array:
        jacobian = residual(x)[1]
        return jacobian.T @ (jacobian @ v)

    result = tw.minimize(
        f, np.zeros(4), "damped_newton", ggnvp=ggnvp, curvature="gauss_newton", gtol=1e-9
    )
    other = tw.minimize(f, np.zeros(4), "lbfgs", gtol=1e-9)
    assert result.converged and other.converged
    np.testing.assert_allclose(result.x, other.x, atol=1e-7)


@pytest.mark.parametrize("method", OPTIMIZERS)
def test_elementwise_optimizers_are_the_formulas(method: str) -> None:
    f = Quadratic([0.5, 1.0, 2.0, 3.0])
    spec = {"type": method, "lr": {"schedule": "step", "start": 0.02, "factor": 0.5, "every": 20}}
    rule = ref.OPTIMIZERS[method]
    p = np.array([1.0, -2.0, 0.5, 3.0])
    slots = tuple(np.zeros(4) for _ in rule.slots)

    def hyper(k: int) -> dict[str, float]:
        return {**rule.defaults, "lr": 0.02 * 0.5 ** (k // 20)}

    for k in range(50):
        p, slots = rule.update(p, f(p)[1], slots, hyper(k), hyper(k + 1), k + 1)
    expected = p if rule.theta is None else rule.theta(p, slots, hyper(49), hyper(50))
    result = tw.minimize(
        f, [1.0, -2.0, 0.5, 3.0], optim.from_dict(spec), max_iterations=50, gtol=0.0
    )
    np.testing.assert_allclose(result.x, expected, rtol=1e-12, atol=1e-12)
    assert result.fun == pytest.approx(f(expected)[0], rel=1e-12)


# ---- problems without a network ------------------------------------------------------------------


def test_underdetermined_least_squares() -> None:
    """METHODS s15: gradient descent and momentum find pinv(A) b, AdaGrad does not."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20, 60)), rng.standard_normal(20)
    shortest = np.linalg.pinv(a) @ b

    def f(x: Array) -> tuple[float, Array]:
        residual = a @ x - b
        return float(residual @ residual / 2), a.T @ residual

    lr = 1.0 / np.linalg.norm(a, 2) ** 2
    for method, options in (
        ("sgd", {"lr": lr}),
        ("momentum", {"lr": lr}),
        ("lbfgs", {}),
        ("linear_cg", {}),
        ("steepest_descent", {"lr": lr}),
    ):
        result = tw.minimize(f, np.zeros(60), method, gtol=1e-12, max_iterations=5000, **options)
        error = np.linalg.norm(result.x - shortest) / np.linalg.norm(shortest)
        assert error < 1e-10, method
    adagrad = tw.minimize(f, np.zeros(60), "adagrad", lr=0.1, gtol=1e-9, max_iterations=20_000)
    assert np.linalg.norm(adagrad.x) > 1.05 * np.linalg.norm(shortest)


def test_each_norm_has_its_margin() -> None:
    """METHODS s12: normalized steps on separable data maximize the margin of their own norm."""
    data = np.array([[2.0, 0.5, 0.1], [1.5, -0.4, 0.3], [1.8, 0.3, -0.5], [1.0, 1.2, 0.2]])

    def f(x: Array) -> tuple[float, Array]:
        margins = data @ x
        weights = np.exp(-margins - np.logaddexp.reduce(-margins))
        return float(np.logaddexp.reduce(-margins)), -data.T @ weights

    rate = schedules.Constant(0.05)
    orders = {"l1": 1, "l2": 2, "linf": np.inf}
    table = {}
    for norm in orders:
        w = tw.minimize(
            f, np.zeros(3), "steepest_descent", norm=norm, normalized=True, lr=rate,
            max_iterations=4000, gtol=0.0,
        ).x  # fmt: skip
        for other, order in orders.items():
            table[norm, other] = np.min(data @ w) / np.linalg.norm(w, order)
    for norm in orders:
        assert table[norm, norm] >= max(table[m, norm] for m in orders) - 1e-3


def test_matrix_problem_keeps_its_shape() -> None:
    rng = np.random.default_rng(1)
    target = rng.standard_normal((5, 2)) @ rng.standard_normal((2, 5))
    target = target + target.T

    def f(u: Array) -> tuple[float, Array]:
        assert u.shape == (5, 3)
        residual = u @ u.T - target
        return float(np.sum(residual**2) / 4), residual @ u

    result = tw.minimize(f, rng.standard_normal((5, 3)), gtol=1e-8)
    assert result.converged and result.x.shape == (5, 3) and result.grad.shape == (5, 3)


@pytest.mark.parametrize("method", ["sgd", "steepest_descent"])
def test_subnormal_numbers_are_kept(method: str) -> None:
    tiny = sys.float_info.min
    kept = []

    def slope(x: Array) -> tuple[float, Array]:
        kept.append(tiny / 2 > 0.0)
        return float(x[0]), np.ones(1)

    result = tw.minimize(slope, [0.0], method, lr=tiny / 2, max_iterations=1)
    assert kept and all(kept)
    assert result.x[0] == -tiny / 2 < 0.0


# ---- results -------------------------------------------------------------------------------------


def test_result_counts_and_history() -> None:
    calls = []

    def f(x: Array) -> tuple[float, Array]:
        calls.append(x)
        return rosenbrock(x)

    seen: list[tw.MinimizeProgress] = []
    result = tw.minimize(f, [-1.2, 1.0], callback=seen.append)
    assert result.converged and result.success and result.status == "converged"
    assert result.nfev == result.njev == len(calls) and result.nhev == 0
    assert len(seen) == result.nit
    assert result.history["value"].shape == (result.nit + 1,)
    assert result.history["step_size"].shape == (result.nit,)
    assert result.history["value"][0] == rosenbrock(np.array([-1.2, 1.0]))[0]
    assert [p.fun for p in seen] == list(result.history["value"][1:])
    assert [p.gradient_norm for p in seen] == list(result.history["gradient_norm"][1:])
    assert result.fun == rosenbrock(result.x)[0]
    np.testing.assert_array_equal(result.jac, rosenbrock(result.x)[1])
    assert np.max(abs(result.grad)) <= 1e-6
    plain = json.loads(result.to_json())
    assert plain["x"] == result.x.tolist() and plain["history"]["value"][-1] == result.fun


def test_separate_gradient_and_matrix() -> None:
    hessians = []

    def hess(x: Array) -> Array:
        hessians.append(x)
        return np.array([rosenbrock_hvp(x, e) for e in np.eye(2)])

    result = tw.minimize(
        lambda x: rosenbrock(x)[0], [-1.2, 1.0], "newton", jac=lambda x: rosenbrock(x)[1],
        hess=hess,
    )  # fmt: skip
    same = tw.minimize(rosenbrock, [-1.2, 1.0], "newton", hvp=rosenbrock_hvp)
    np.testing.assert_allclose(result.x, same.x, rtol=1e-12)
    assert len(hessians) == result.nit


def test_arguments_reach_the_functions() -> None:
    data = np.random.default_rng(0).standard_normal((9, 3))
    result = tw.minimize(
        lambda x, d, scale: (scale * np.sum((x - d.mean(0)) ** 2), 2 * scale * (x - d.mean(0))),
        np.zeros(3),
        args=(data, 3.0),
    )
    np.testing.assert_allclose(result.x, data.mean(0), atol=1e-6)


def test_float32_stays_float32() -> None:
    kinds = set()

    def f(x: Array) -> tuple[np.float32, Array]:
        kinds.add(x.dtype.name)
        return np.float32(np.sum((x - 1) ** 2)), 2 * (x - 1)

    result = tw.minimize(f, np.zeros(4, dtype=np.float32))
    assert kinds == {"float32"}
    assert result.x.dtype == result.grad.dtype == np.float32
    np.testing.assert_allclose(result.x, 1.0, rtol=1e-6)
    assert tw.minimize(parabola, [0, 0]).x.dtype == np.float64


@pytest.mark.parametrize(
    ("options", "status", "converged"),
    [
        ({"max_iterations": 3}, "max_iterations", False),
        ({"max_iterations": 0}, "max_iterations", False),
        ({"max_evaluations": 5}, "max_evaluations", False),
        ({"ftol": 1e-3}, "small_change", True),
        ({"callback": lambda p: p.nit == 4}, "stopped", False),
        ({"gtol": 1e10}, "converged", True),
    ],
)
def test_what_ends_a_minimization(options: dict[str, Any], status: str, converged: bool) -> None:
    result = tw.minimize(rosenbrock, [-1.2, 1.0], **options)
    assert (result.status, result.converged) == (status, converged)
    assert result.message


def test_stop_iteration_stops() -> None:
    def stop(progress: tw.MinimizeProgress) -> None:
        raise StopIteration

    assert tw.minimize(rosenbrock, [-1.2, 1.0], callback=stop).status == "stopped"


# ---- trouble -------------------------------------------------------------------------------------


def test_fallback_at_a_kink_is_visible() -> None:
    """abs(x) has no point that satisfies the curvature condition beyond its kink."""
    result = tw.minimize(
        lambda x: (float(np.sum(np.abs(x) + 0.1 * x**2)), np.sign(x) + 0.2 * x), [1.0, 0.3]
    )
    assert result.status == "no_decrease" and not result.converged
    assert "line search" in result.message
    assert result.fallbacks.keys() & {"sufficient_decrease", "steepest_descent"}
    assert result.fun < 1.3


def test_singular_hessian_is_visible() -> None:
    result = tw.minimize(
        lambda x: (0.5 * float(x[0] - x[1]) ** 2, np.array([x[0] - x[1], x[1] - x[0]])),
        [3.0, 1.0],
        "newton",
        hvp=lambda x, v: np.array([v[0] - v[1], v[1] - v[0]]),
    )
    np.testing.assert_allclose(result.x, [2.0, 2.0], atol=1e-12)
    assert result.fallbacks == {"singular": 1}


def test_negative_curvature_ends_an_exact_method() -> None:
    result = tw.minimize(saddle, [0.0, 1.0], "linear_cg", hvp=saddle_hvp)
    assert result.status == "no_decrease" and "curvature" in result.message


def test_line_search_avoids_non_finite_points() -> None:
    def f(x: Array) -> tuple[float, Array]:
        with np.errstate(all="ignore"):
            return float(x[0] - np.log(x[0] - 5)), np.array([1 - 1 / (x[0] - 5)])

    result = tw.minimize(f, [5.001], gtol=1e-8)
    assert result.converged and result.x[0] == pytest.approx(6.0, abs=1e-7)


def test_divergence_keeps_the_last_finite_iterate() -> None:
    def f(x: Array) -> tuple[float, Array]:
        with np.errstate(all="ignore"):
            return float(np.sum(x**4)), 4 * x**3

    for method in ("sgd", "nesterov", "steepest_descent"):
        result = tw.minimize(f, [3.0], method, lr=1.0)
        assert result.status == "non_finite" and not result.converged
        assert np.isfinite(result.x).all() and np.isfinite(result.fun)


def test_non_finite_start_and_curvature_are_errors() -> None:
    with pytest.raises(tw.NonFiniteError, match=r"\[minimize\] expected a finite value"):
        tw.minimize(lambda x: (np.nan, x), [1.0])
    with pytest.raises(tw.NonFiniteError, match="finite value and gradient"):
        tw.minimize(lambda x: (1.0, x * np.inf), [1.0])
    for method in ("newton", "damped_newton", "saddle_free_newton", "coordinate_descent"):
        with pytest.raises(tw.NonFiniteError, match="expected"):
            tw.minimize(parabola, [0.0, 0.0], method, hvp=lambda x, v: v * np.nan)
    for method in ("newton", "damped_newton", "saddle_free_newton"):
        with pytest.raises(tw.NonFiniteError, match="product"):
            tw.minimize(parabola, [0.0, 0.0], method, exact_below=0, hvp=lambda x, v: v * np.inf)


def test_exceptions_pass_through() -> None:
    class Special(Exception):
        pass

    def fail(*_: Any) -> Any:
        raise Special("mine")

    with pytest.raises(Special, match="mine"):
        tw.minimize(fail, [1.0])
    with pytest.raises(Special, match="mine"):
        tw.minimize(parabola, [0.0, 0.0], callback=fail)
    with pytest.raises(Special, match="mine"):
        tw.minimize(parabola, [0.0, 0.0], "newton", hvp=fail)


def test_interrupt() -> None:
    timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        tw.minimize(parabola, [9.0, 9.0], "sgd", lr=1e-12, max_iterations=10**9)
    timer.join()


BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: tw.minimize(parabola, []), ValueError, "at least one element"),
    (lambda: tw.minimize(parabola, [np.nan, 1]), ValueError, "finite"),
    (lambda: tw.minimize(parabola, [[0], [1, 2]]), ValueError, "x0 to be an array"),
    (lambda: tw.minimize(parabola, np.ma.masked_array([0, 1], [0, 1])), ValueError, "x0 without"),
    (lambda: tw.minimize(lambda x: (1.0, [[0], [1, 2]]), [1.0]), ValueError, "gradient to be an"),
    (lambda: tw.minimize(parabola, [0, 0], args=3), TypeError, "args to be a tuple"),
    (lambda: tw.minimize(parabola, [0, 0], args="ab"), TypeError, "args to be a tuple"),
    (lambda: tw.minimize(parabola, ["a", "b"]), TypeError, "real numbers"),
    (lambda: tw.minimize(parabola, [1j, 0]), TypeError, "real numbers"),
    (lambda: tw.minimize(3, [1.0]), TypeError, "fun to be a function"),  # type: ignore[arg-type]
    (lambda: tw.minimize(lambda x: 1.0, [1.0]), TypeError, r"\(value, gradient\)"),
    (lambda: tw.minimize(lambda x: ("a", x), [1.0]), TypeError, "value of fun"),
    (lambda: tw.minimize(lambda x: (x, x), [1.0]), ValueError, r"shape \(1,\)"),
    (lambda: tw.minimize(lambda x: (1.0, [1, 2]), [1.0]), ValueError, r"shape \(1,\), got \(2,\)"),
    (lambda: tw.minimize(lambda x: (1.0, None), [1.0]), TypeError, "gradient"),
    (lambda: tw.minimize(parabola, [0, 0], "sdg"), ValueError, "'sgd'"),
    (lambda: tw.minimize(parabola, [0, 0], 3), TypeError, "optim"),  # type: ignore[arg-type]
    (lambda: tw.minimize(parabola, [0, 0], "lbfgs", lr=1.0), TypeError, "history"),
    (lambda: tw.minimize(parabola, [0, 0], optim.LBFGS(), history=3), TypeError, "no options"),
    (lambda: tw.minimize(parabola, [0, 0], history=0), ValueError, "history"),
    (lambda: tw.minimize(parabola, [0, 0], history=1.5), TypeError, "history"),
    (lambda: tw.minimize(parabola, [0, 0], c1=0.3, c2=0.2), ValueError, "c1 < c2"),
    (lambda: tw.minimize(parabola, [0, 0], "newton"), ValueError, "hvp or hess"),
    (lambda: tw.minimize(parabola, [0, 0], "newton", hvp=parabola_hvp, curvature="gauss_newton"),
     ValueError, "ggnvp"),
    (lambda: tw.minimize(parabola, [0, 0], "newton", hvp=parabola_hvp, hess=parabola_hvp),
     ValueError, "got both"),
    (lambda: tw.minimize(parabola, [0, 0], "newton", hess=lambda x: np.ones(2)), ValueError,
     r"\(2, 2\)"),
    (lambda: tw.minimize(parabola, [0, 0], "path_sgd"), ValueError, "network"),
    (lambda: tw.minimize(lambda x: (0.5 * x @ x, x), np.ones(20_001), "bfgs"), ValueError, "lbfgs"),
    (lambda: tw.minimize(parabola, [0, 0], "steepest_descent", norm="l3"), ValueError, "'linf'"),
    (lambda: tw.minimize(parabola, [0, 0], jac=False), TypeError, "approximated"),
    (lambda: tw.minimize(parabola, [0, 0], gtol=-1.0), ValueError, "gtol"),
    (lambda: tw.minimize(parabola, [0, 0], max_iterations=-1), ValueError, "max_iterations"),
    (lambda: tw.minimize(parabola, [0, 0], max_evaluations=0), ValueError, "max_evaluations"),
    (lambda: tw.minimize(parabola, [0, 0], callback=lambda p: "x"), TypeError, "callback"),
    (lambda: tw.minimize(parabola, [0, 0], optim.SGD(groups=[optim.Group("*")])), ValueError,
     "groups"),
    (lambda: tw.minimize(parabola, [0, 0], optim.SGD(schedules.Linear(0.1, tau_epochs=3))),
     ValueError, "updates"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_arguments(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^\[\w+\] .*{message}|^\[.*{message}"):
        call()


def test_descriptions_agree_with_the_engine() -> None:
    for name, entry in _core.methods().items():
        if entry["elementwise"]:
            continue
        method = optim.from_dict({"type": name})
        values = method.to_dict()
        assert values.keys() == entry["parameters"].keys() | {"type"}
        for key, row in entry["parameters"].items():
            default = row["choices"][int(row["default"])] if row["choices"] else row["default"]
            assert values[key] == default, (name, key)
        assert optim.from_dict(values) == method


# ---- oracles -------------------------------------------------------------------------------------

SCIPY = {"lbfgs": "L-BFGS-B", "bfgs": "BFGS", "nonlinear_cg": "CG", "damped_newton": "Newton-CG"}


@pytest.mark.oracle
@pytest.mark.parametrize("method", SCIPY)
@pytest.mark.parametrize("seed", range(3))
def test_same_minimum_as_scipy(method: str, seed: int) -> None:
    from scipy.optimize import minimize

    data = np.random.default_rng(seed).standard_normal((40, 8))

    def f(x: Array) -> tuple[float, Array]:
        value, gradient = separable(x, data)
        return value + 0.5 * float(x @ x), gradient + x

    def hvp(x: Array, v: Array) -> Array:
        p = 1 / (1 + np.exp(data @ x))
        return data.T @ (p * (1 - p) * (data @ v)) + v

    options = {"jac": True, "tol": 1e-10}
    if method == "damped_newton":
        options["hessp"] = hvp
    theirs = minimize(f, np.ones(8), method=SCIPY[method], **options)
    ours = tw.minimize(f, np.ones(8), method, hvp=hvp, gtol=1e-9)
    assert ours.converged
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-5)
    assert ours.fun <= theirs.fun + 1e-10
    assert ours.nfev <= 2 * theirs.nfev + 5


@pytest.mark.oracle
@pytest.mark.parametrize(("method", "theirs"), [("lbfgs", "L-BFGS-B"), ("bfgs", "BFGS")])
def test_evaluations_on_rosenbrock_compare_with_scipy(method: str, theirs: str) -> None:
    from scipy.optimize import minimize, rosen, rosen_der

    start = np.tile([-1.2, 1.0], 10)
    other = minimize(rosen, start, jac=rosen_der, method=theirs, options={"gtol": 1e-6})
    ours = tw.minimize(rosen, start, method, jac=rosen_der)
    assert ours.converged and ours.fun < 1e-10
    assert ours.nfev <= 1.5 * other.nfev


@pytest.mark.oracle
def test_same_minimum_as_torch() -> None:
    import torch

    f = Quadratic(np.linspace(1.0, 12.0, 6))
    x = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    a, b = torch.tensor(f.a), torch.tensor(f.b)
    optimizer = torch.optim.LBFGS(
        [x], max_iter=60, tolerance_grad=1e-10, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Any:
        optimizer.zero_grad()
        loss = 0.5 * x @ a @ x - b @ x
        loss.backward()
        return loss

    optimizer.step(closure)
    ours = tw.minimize(f, np.zeros(6), gtol=1e-10)
    np.testing.assert_allclose(ours.x, x.detach().numpy(), atol=1e-9)
