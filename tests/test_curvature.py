"""Curvature in `thalweg.landscape` against dense eigenvalues, closed forms and finite steps."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import thalweg as tw
from conftest import DEVICE, scaled
from thalweg import landscape, nn

RNG = np.random.default_rng(11)
X = RNG.normal(size=(24, 4))
Y = np.arange(24) % 3


def objective(*, seed: int = 0, dtype: str = "float64", **options: Any) -> tw.Objective:
    layers = nn.Sequential(nn.Dense(6), nn.BatchNorm(), nn.Tanh(), nn.Dense(3))
    return tw.Objective(tw.Model(layers, 4, dtype=dtype, seed=seed, device=DEVICE), X, Y, **options)


def symmetric(spectrum: Any, seed: int = 0) -> np.ndarray:
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))[0]
    return (q * np.asarray(spectrum)) @ q.T


def chain(strengths: list[float], width: int) -> tuple[tw.Objective, int]:
    """Two linear layers on the identity: a landscape with known critical points."""
    n = len(strengths)
    model = tw.Model(
        [nn.Dense(width, bias=False), nn.Dense(n, bias=False)],
        n,
        "squared_error",
        dtype="float64",
        device=DEVICE,
    )
    return tw.Objective(model, np.eye(n), np.diag(strengths)), n


# ---- eigenpairs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_eigenpairs_of_a_hessian(method):
    f = objective()
    values, _ = np.linalg.eigh(f.hessian())
    found = landscape.eigenpairs(f, method=method, max_steps=2000, tolerance=1e-7)
    assert found.converged
    size = np.abs(values).max()
    assert found.largest == pytest.approx(values[-1], abs=1e-7 * size)
    assert found.smallest == pytest.approx(values[0], abs=1e-7 * size)
    for value, vector, residual in zip(found.values, found.vectors, found.residuals, strict=True):
        assert np.linalg.norm(vector) == pytest.approx(1.0)
        assert np.linalg.norm(f.hvp(vector) - value * vector) == pytest.approx(
            residual, rel=1e-3, abs=1e-13 * size
        )


def test_several_eigenpairs_and_another_point():
    f = objective()
    theta = RNG.normal(size=f.num_parameters)
    values = np.linalg.eigvalsh(f.hessian(theta))
    found = landscape.eigenpairs(f, theta=theta, top=3, bottom=2, tolerance=1e-9)
    np.testing.assert_allclose(found.values[:3], values[::-1][:3], rtol=1e-8)
    np.testing.assert_allclose(found.values[3:], values[:2], rtol=1e-8)
    gram = found.vectors @ found.vectors.T
    np.testing.assert_allclose(gram, np.eye(5), atol=1e-7)


def test_gauss_newton_has_no_negative_eigenvalue():
    f = objective()
    found = landscape.eigenpairs(f, matrix="gauss_newton", max_steps=200, tolerance=1e-8)
    assert found.smallest > -1e-9 * found.largest
    assert found.largest > 0


def test_power_iteration_is_shifted():
    spectrum = np.array([-10.0, 0.1, 0.3, 0.5])
    found = landscape.eigenpairs(
        lambda v: spectrum * v, n=4, method="power", max_steps=3000, tolerance=1e-6
    )
    # Unshifted it would give -10 for the top.
    np.testing.assert_allclose(found.values, [0.5, -10.0], atol=1e-4)


def test_power_iteration_that_ends_early_says_so():
    a = symmetric(np.linspace(-1.0, 1.0, 60))
    found = landscape.eigenpairs(lambda v: a @ v, n=60, method="power", max_steps=5)
    assert not found.converged
    assert found.residuals.max() > 1e-3
    assert found.products <= 10


def test_lanczos_has_the_sign_of_clustered_spectra():
    for seed in range(10):
        spectrum = np.concatenate([[-0.02], np.random.default_rng(seed).uniform(0, 1e-3, 80), [1]])
        a = symmetric(spectrum, seed)
        found = landscape.eigenpairs(lambda v, a=a: a @ v, n=82, max_steps=50, seed=seed)
        assert found.smallest == pytest.approx(-0.02, abs=1e-3)


def test_escape_direction_descends():
    f = objective(seed=2)
    theta = np.zeros(f.num_parameters)
    theta[:24] = 0.1 * RNG.normal(size=24)
    found = landscape.eigenpairs(f, theta=theta, tolerance=1e-8)
    assert found.smallest < 0
    gradient = f.grad(theta)
    step = 1e-2 * found.escape_direction(gradient)
    assert gradient @ step <= 0
    assert f.value(theta + step) < f.value(theta)
    np.testing.assert_allclose(np.abs(found.escape_direction()), np.abs(step / 1e-2))
    bowl = landscape.eigenpairs(lambda v: 2.0 * v, n=3)
    with pytest.raises(ValueError, match="negative bottom eigenvalue, got 2"):
        bowl.escape_direction()


# ---- spectral density ----------------------------------------------------------------------------


def test_spectral_density_of_a_dense_spectrum():
    spectrum = np.concatenate([np.linspace(-1, 0, 20), np.linspace(2, 3, 60), [9.0]])
    a = symmetric(spectrum)
    n = len(spectrum)
    found = landscape.spectral_density(lambda v: a @ v, n=n, steps=40, probes=400)
    assert found.weights.sum() == pytest.approx(1.0)
    for value in (-1.5, 1.0, 5.0):
        assert found.share_below(value) == pytest.approx(np.mean(spectrum < value), abs=0.03)
    for power in (1, 2, 3):
        assert found.moment(power) == pytest.approx(np.mean(spectrum**power), rel=0.1)
    assert abs(found.trace - spectrum.sum()) < 5 * n * found.standard_error
    # The smoothed density integrates to the same shares.
    below = found.grid < 1.0
    area = np.trapezoid(found.density[below], found.grid[below])
    assert area == pytest.approx(found.share_below(1.0), abs=0.01)


def test_quadrature_of_one_probe_is_exact_for_polynomials():
    a = symmetric(np.linspace(-2, 3, 30))
    found = landscape.spectral_density(lambda v: a @ v, n=30, steps=6, probes=1, seed=4)
    # The probe itself is not visible: its quadratic forms are, through more steps.
    longer = landscape.spectral_density(lambda v: a @ v, n=30, steps=30, probes=1, seed=4)
    for power in range(12):
        assert found.moment(power) == pytest.approx(longer.moment(power), rel=1e-10)
    assert found.moment(12) != pytest.approx(longer.moment(12), rel=1e-6)
    assert found.products == 6
    assert np.isnan(found.standard_error)


def test_spectral_density_of_a_network():
    f = objective()
    values = np.linalg.eigvalsh(f.hessian())
    probes = scaled(200)
    found = landscape.spectral_density(f, probes=probes)
    edge = values[-1] / 2
    spread = 0.28 / np.sqrt(probes)
    assert found.share_below(edge) == pytest.approx(np.mean(values < edge), abs=spread)
    assert found.trace == pytest.approx(values.sum(), abs=6 * len(values) * found.standard_error)


# ---- critical points -----------------------------------------------------------------------------


def test_index_of_all_critical_points_of_a_linear_network():
    """Baldi, Hornik 1989: for every set of modes one family, whose index is known."""
    strengths, width = [4.0, 3.0, 2.0, 1.0], 4
    f, n = chain(strengths, width)
    for kept in itertools.chain.from_iterable(
        itertools.combinations(range(n), r) for r in range(n + 1)
    ):
        first, second = np.zeros((width, n)), np.zeros((n, width))
        for unit, mode in enumerate(kept):
            first[unit, mode] = second[mode, unit] = np.sqrt(strengths[mode])
        found = landscape.critical_point(f, np.concatenate([first.ravel(), second.ravel()]))
        missing = [mode for mode in range(n) if mode not in kept]
        # A free unit can learn a missing mode; a kept mode can turn into a stronger missing one.
        turns = sum(strengths[m] > strengths[k] for m in missing for k in kept)
        expected = (width - len(kept)) * len(missing) + turns
        assert found.converged
        assert found.negative == expected
        assert found.negative + found.null + found.positive == 2 * n * width
        assert found.loss == pytest.approx(sum(strengths[m] ** 2 for m in missing) / n)
        assert (found.loss < 1e-20) == (expected == 0)


def test_null_directions_are_reported_apart():
    f, _ = chain([2.0, 1.0], 2)
    first = np.diag(np.sqrt([2.0, 1.0]))
    found = landscape.critical_point(f, np.concatenate([first.ravel(), first.ravel()]))
    assert (found.negative, found.null, found.positive) == (0, 4, 4)  # GL(2) acts on the minimum
    assert found.index == 0.0
    strict = landscape.critical_point(
        f, np.concatenate([first.ravel(), first.ravel()]), null_tolerance=0.0
    )
    assert strict.null <= 4


def test_symmetry_directions_are_null_directions_at_a_critical_point():
    f, _ = chain([3.0, 2.0, 1.0], 2)
    found = landscape.find_critical_point(f, 0.7 * RNG.normal(size=12), gradient_tolerance=1e-10)
    assert found.converged
    model = f.model.copy()
    model.set_parameters(found.theta)
    directions = landscape.symmetry_directions(model)
    assert len(directions)
    image = directions @ f.hessian(found.theta)
    assert np.abs(image).max() < 1e-8 * np.abs(found.eigenvalues).max()


def test_search_for_critical_points_finds_saddles():
    f, n = chain([3.0, 2.0, 1.0], 3)
    indices, losses = set(), set()
    for seed in range(12):
        start = np.random.default_rng(seed).normal(size=2 * n * 3) * 0.5
        found = landscape.find_critical_point(f, start, gradient_tolerance=1e-9)
        assert found.converged and found.residual <= 1e-9
        assert np.linalg.norm(f.grad(found.theta)) == pytest.approx(found.residual, abs=1e-15)
        indices.add(found.negative)
        losses.add(round(found.loss * n, 6))
    assert len(indices) > 1
    # Every critical value is a sum over the modes left out (Baldi, Hornik 1989).
    sums = {sum(c) for r in range(4) for c in itertools.combinations((9.0, 4.0, 1.0), r)}
    assert losses <= {round(s, 6) for s in sums}


def test_a_search_that_ends_early_says_so():
    f, n = chain([3.0, 2.0, 1.0], 3)
    found = landscape.find_critical_point(f, RNG.normal(size=2 * n * 3), max_iterations=1)
    assert not found.converged
    assert found.iterations == 1


# ---- the quadratic model -------------------------------------------------------------------------


def test_step_on_a_quadratic_is_predicted_exactly():
    model = tw.Model(nn.Dense(1), 4, "squared_error", dtype="float64", seed=1, device=DEVICE)
    f = tw.Objective(model, X, X[:, 0])
    theta = RNG.normal(size=5)
    a = np.column_stack([X, np.ones(24)])
    g = 2 * a.T @ (a @ theta - X[:, 0]) / 24
    h = 2 * a.T @ a / 24
    rates = np.array([0.01, 0.1, 1.0])
    found = landscape.predict_step(f, rates, theta=theta)
    np.testing.assert_allclose(found.first_order, rates * (g @ g), rtol=1e-12)
    np.testing.assert_allclose(found.second_order, rates**2 / 2 * (g @ h @ g), rtol=1e-12)
    np.testing.assert_allclose(found.predicted, found.actual, rtol=1e-11, atol=1e-12)
    assert found.critical_rate == pytest.approx(2 * (g @ g) / (g @ h @ g))
    around = landscape.predict_step(f, found.critical_rate * np.array([0.99, 1.01]), theta=theta)
    assert around.actual[0] < 0 < around.actual[1]


def test_step_of_a_network_is_predicted_to_second_order():
    f = objective()
    found = landscape.predict_step(f, [1e-3, 2e-3])
    error = found.actual - found.predicted
    assert abs(error[1] / error[0]) == pytest.approx(8.0, rel=0.1)  # third order remains


def test_gradient_flow_is_the_limit_of_small_steps():
    f = objective(seed=1)
    theta = f.model.parameters
    found = landscape.gradient_flow(f, [0.0, 0.5, 2.0])
    np.testing.assert_array_equal(found.theta[0], theta)
    h, g = f.hessian(), f.grad()
    for time, end, loss in zip(found.times[1:], found.theta[1:], found.loss[1:], strict=True):
        euler = []
        for steps in (20000, 40000):
            d = np.zeros_like(theta)
            for _ in range(steps):
                d = d - time / steps * (g + h @ d)
            euler.append(d)
        limit = 2 * euler[1] - euler[0]  # extrapolated to steps of length 0
        np.testing.assert_allclose(end - theta, limit, atol=1e-7 * np.linalg.norm(limit))
        d = end - theta
        assert loss == pytest.approx(f.value() + g @ d + d @ h @ d / 2, rel=1e-12)


def test_gradient_flow_along_null_and_negative_curvature():
    f, _ = chain([1.0], 1)
    # At (a, b) = (0, 0) the Hessian is [[0, -2], [-2, 0]] and the gradient vanishes.
    at_saddle = landscape.gradient_flow(f, [5.0], theta=[0.0, 0.0])
    np.testing.assert_array_equal(at_saddle.theta, [[0.0, 0.0]])
    near = landscape.gradient_flow(f, [0.0, 1.0, 2.0], theta=[1e-3, 1e-3])
    growth = np.diff(near.theta[:, 0])
    assert growth[1] / growth[0] == pytest.approx(np.exp(2.0), rel=1e-2)
    flat = tw.Model(nn.Dense(1), 1, "squared_error", dtype="float64", device=DEVICE)
    linear = tw.Objective(flat, [[0.0]], [1.0])  # the weight has no influence: eigenvalue 0
    found = landscape.gradient_flow(linear, [0.0, 3.0], theta=[2.0, 0.0])
    assert found.theta[1, 0] == 2.0
    assert found.theta[1, 1] == pytest.approx(1 - np.exp(-6.0))


# ---- results and bad input -----------------------------------------------------------------------


def results() -> list[Any]:
    f = objective()
    return [
        landscape.eigenpairs(f),
        landscape.spectral_density(f, probes=2),
        landscape.critical_point(f),
        landscape.predict_step(f, [0.1, 0.2]),
        landscape.gradient_flow(f, [0.0, 1.0]),
    ]


def test_results_are_read_only_and_become_json():
    for result in results():
        assert json.loads(result.to_json())["type"] == type(result).__name__
        for value in vars(result).values():
            assert not isinstance(value, np.ndarray) or not value.flags.writeable


def test_results_draw():
    figure_module = pytest.importorskip("matplotlib.figure")
    for result in results():
        axes = figure_module.Figure().add_subplot()
        result.plot(axes)
        assert axes.get_xlabel()


def test_float32_models_work():
    f = objective(dtype="float32")
    values = np.linalg.eigvalsh(f.hessian().astype(np.float64))
    found = landscape.eigenpairs(f, max_steps=60)
    assert found.largest == pytest.approx(values[-1], rel=1e-3)
    assert landscape.critical_point(f).null >= 6  # the scales before batch norm


def test_errors_of_an_operator_pass_through():
    def broken(v: np.ndarray) -> np.ndarray:
        raise RuntimeError("no product today")

    with pytest.raises(RuntimeError, match="no product today"):
        landscape.eigenpairs(broken, n=3)
    with pytest.raises(tw.NonFiniteError, match="finite product"):
        landscape.eigenpairs(lambda v: v * np.nan, n=3)
    with pytest.raises(tw.NonFiniteError):
        landscape.spectral_density(lambda v: v * np.inf, n=3)


F = objective()
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: landscape.eigenpairs(3), TypeError, "thalweg.Objective or a function"),
    (lambda: landscape.eigenpairs(lambda v: v), ValueError, "expected n, the dimension"),
    (lambda: landscape.eigenpairs(F, n=3), ValueError, "no n with an objective"),
    (lambda: landscape.eigenpairs(lambda v: v, n=3, theta=[1.0]), ValueError, "neither theta"),
    (lambda: landscape.eigenpairs(lambda v: v[:2], n=3), ValueError, r"3 real numbers, got .*\(2,"),
    (lambda: landscape.eigenpairs(lambda v: [[1], [1, 2]], n=2), ValueError, "result of the oper"),
    (lambda: landscape.eigenpairs(F, theta=[1.0]), ValueError, "theta with 57 parameters"),
    (lambda: landscape.eigenpairs(F, matrix="fisher"), ValueError, "'hessian', 'gauss_newton'"),
    (lambda: landscape.eigenpairs(F, method="qr"), ValueError, "'lanczos', 'power'"),
    (lambda: landscape.eigenpairs(F, method="power", top=2), ValueError, "'lanczos' finds several"),
    (lambda: landscape.eigenpairs(F, top=0, bottom=0), ValueError, "eigenpair"),
    (lambda: landscape.eigenpairs(F, method="power", top=0, bottom=0), ValueError, "top=0"),
    (lambda: landscape.eigenpairs(F, top=60, bottom=60), ValueError, "eigenpairs"),
    (lambda: landscape.eigenpairs(F, tolerance=-1.0), ValueError, "tolerance"),
    (lambda: landscape.spectral_density(F, probes=0), ValueError, "probes >= 1"),
    (lambda: landscape.spectral_density(F, width=-1.0), ValueError, "width"),
    (lambda: landscape.critical_point(F.model), TypeError, "thalweg.Objective"),
    (lambda: landscape.find_critical_point(F, damping=0.0), ValueError, "damping"),
    (lambda: landscape.predict_step(F, ["a"]), TypeError, "real numbers"),
    (lambda: landscape.predict_step(F, [[0.1]]), ValueError, r"rates \[rates\]"),
    (lambda: landscape.gradient_flow(F, [-1.0]), ValueError, "times >= 0, got -1"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input(number):
    call, error, message = BAD[number]
    with pytest.raises(error, match=message):
        call()


def test_a_flow_that_leaves_the_finite_numbers_says_when() -> None:
    chain = [nn.Dense(1, bias=False), nn.Dense(1, bias=False)]
    saddle = tw.Objective(
        tw.Model(chain, 1, "squared_error", dtype="float64", device=DEVICE), [[1.0]], [1.0]
    )
    at = np.full(2, 0.1)
    assert np.isfinite(landscape.gradient_flow(saddle, [1.0, 10.0], theta=at).theta).all()
    with pytest.raises(tw.NonFiniteError, match=r"finite, got 1000; .* exp\(\d"):
        landscape.gradient_flow(saddle, [1.0, 1e3, 1e4], theta=at)
