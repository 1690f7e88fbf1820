"""Linear algebra of minimize/ against NumPy, closed forms and SciPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from thalweg import _core, landscape

Array = npt.NDArray[Any]
testing = _core._testing


def symmetric(values: Any, seed: int = 0) -> Array:
    """A matrix with that spectrum."""
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    matrix = rotation @ np.diag(values) @ rotation.T
    return (matrix + matrix.T) / 2


# ---- dense ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 31, 64, 100])
@pytest.mark.parametrize(
    "kind", ["random", "graded", "multiple", "zero", "diagonal", "huge", "tiny"]
)
def test_symmetric_eigensystem(n: int, kind: str) -> None:
    generator = np.random.default_rng(n)
    values = {
        "random": generator.standard_normal(n),
        "graded": 10.0 ** -np.linspace(0, 12, n) * (-1) ** np.arange(n),
        "multiple": np.repeat([-1.0, 2.0], [n // 2, n - n // 2]),
        "zero": np.zeros(n),
        "diagonal": np.arange(n, dtype=np.float64),
        "huge": 1e300 * generator.uniform(-1, 1, n),
        "tiny": 1e-300 * generator.uniform(-1, 1, n),
    }[kind]
    a = np.diag(values) if kind == "diagonal" else symmetric(values, seed=n)
    found, vectors = testing.symmetric_eigensystem(a)
    size = np.abs(values).max()
    assert np.all(np.diff(found) >= 0)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(a), atol=1e-14 * n * size, rtol=0)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(n), atol=1e-14 * n)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(a @ vectors.T, vectors.T * found, atol=1e-14 * n * size, rtol=0)


def test_eigensystem_wants_finite_numbers() -> None:
    with pytest.raises(ValueError, match="finite"):
        testing.symmetric_eigensystem(np.full((2, 2), np.nan))


@pytest.mark.parametrize("n", [1, 2, 7, 33, 120])
def test_cholesky(n: int) -> None:
    a = symmetric(np.geomspace(1e-3, 1e3, n), seed=n)
    b = np.random.default_rng(1).standard_normal(n)
    x = testing.cholesky_solve(a, b)
    np.testing.assert_allclose(a @ x, b, atol=1e-8)
    assert testing.cholesky_solve(a - 2e3 * np.eye(n), b) is None
    assert testing.cholesky_solve(np.ones((n + 1, n + 1)), np.ones(n + 1)) is None
    assert testing.cholesky_solve(np.full((n, n), np.nan), b) is None


@pytest.mark.parametrize("n", [0, 1, 7, 8, 511, 512, 513, 5000])
def test_sums_are_accurate(n: int) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.standard_normal((2, n)) * 10.0 ** generator.integers(-3, 4, (2, n))
    exact = math.fsum(x * y for x, y in zip(a, b, strict=True))
    assert testing.vector_sum("dot", a, b) == pytest.approx(
        exact, abs=2e-15 * float(np.abs(a) @ np.abs(b)) + 1e-300
    )
    assert testing.vector_sum("sum", a, b) == pytest.approx(math.fsum(np.abs(a)), rel=1e-14)
    for scale in (1e-170, 1.0, 1e170):
        expected = scale * math.sqrt(math.fsum(x * x for x in a))
        assert testing.vector_sum("norm", scale * a, b) == pytest.approx(expected, rel=1e-13)


def test_sums_keep_nan_and_infinity() -> None:
    a = np.ones(1000)
    a[700] = np.inf
    assert testing.vector_sum("dot", a, np.ones(1000)) == np.inf
    a[3] = np.nan
    assert np.isnan(testing.vector_sum("norm", a, a))


# ---- Krylov --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5, 40, 60])
def test_krylov_basis(steps: int) -> None:
    a = symmetric(np.concatenate([np.geomspace(1e-6, 1, 40), [-3.0, 50.0]]))
    start = np.random.default_rng(0).standard_normal(42)
    basis, diagonal, off, invariant = testing.krylov_basis(a, start, steps)
    m = len(diagonal)
    assert m == min(steps, 42) and invariant == (steps >= 42)
    np.testing.assert_allclose(basis @ basis.T, np.eye(m), atol=1e-13)
    t = np.diag(diagonal) + np.diag(off[: m - 1], 1) + np.diag(off[: m - 1], -1)
    np.testing.assert_allclose(basis @ a @ basis.T, t, atol=1e-11)
    np.testing.assert_allclose(basis[0], start / np.linalg.norm(start), atol=1e-15)


def test_krylov_space_of_an_invariant_start_ends() -> None:
    a = np.diag([1.0, 1.0, 2.0, 3.0])
    _, diagonal, off, invariant = testing.krylov_basis(a, np.array([1.0, 1.0, 0.0, 1.0]), 4)
    assert invariant and len(diagonal) == 2 and off[-1] == 0.0


@pytest.mark.parametrize("n", [1, 2, 10, 50])
def test_conjugate_gradient(n: int) -> None:
    a = symmetric(np.linspace(1, 10, n), seed=n)
    b = np.random.default_rng(0).standard_normal(n)
    end, x, _, iterations, residual = testing.conjugate_gradient(a, b, 1e-10, 2 * n)
    assert end == "converged" and iterations <= n
    np.testing.assert_allclose(x, np.linalg.solve(a, b), atol=1e-8)
    assert residual <= 1e-10 * np.linalg.norm(b)
    assert testing.conjugate_gradient(a, b, 1e-10, 0)[0] == "max_iterations"


def test_conjugate_gradient_finds_negative_curvature() -> None:
    a = symmetric([5.0, 2.0, 1.0, -0.5])
    end, _, direction, _, _ = testing.conjugate_gradient(a, np.ones(4), 1e-12, 10)
    assert end == "negative_curvature"
    assert direction @ a @ direction <= 0


SPECTRA = {
    "spread": np.linspace(-5, 10, 60),
    "clustered": np.concatenate([np.random.default_rng(0).normal(0, 0.05, 195), [3.0, 2.5, -0.4]]),
    "multiple": np.concatenate([np.zeros(50), [4.0, 4.0, -2.0, -2.0]]),
    "definite": np.geomspace(1e-4, 1.0, 80),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("seed", range(3))
def test_lanczos_extremes(name: str, seed: int) -> None:
    values = np.sort(SPECTRA[name])
    a = symmetric(values, seed)
    found = landscape.eigenpairs(
        lambda v: a @ v, n=len(a), top=2, bottom=2, tolerance=1e-6, seed=seed,
        max_steps=len(a),
    )  # fmt: skip
    expected = np.concatenate([values[::-1][:2], values[:2]])
    np.testing.assert_allclose(found.values, expected, atol=1e-5 * abs(values).max())
    assert found.converged and found.products <= len(a) + 4
    for value, vector, residual in zip(found.values, found.vectors, found.residuals, strict=True):
        assert np.linalg.norm(vector) == pytest.approx(1.0)
        assert np.linalg.norm(a @ vector - value * vector) == pytest.approx(residual, abs=1e-12)


def test_lanczos_on_a_clustered_spectrum_has_the_right_sign() -> None:
    """METHODS s4: 50 steps find the negative eigenvalue in every draw."""
    for draw in range(20):
        values = np.concatenate([np.random.default_rng(draw).normal(0, 0.1, 300), [8.0, -0.6]])
        a = symmetric(values, draw)
        found = landscape.eigenpairs(lambda v, a=a: a @ v, n=302, max_steps=50)
        assert found.values[1] == pytest.approx(-0.6, abs=0.02)


@pytest.mark.parametrize(("top", "bottom", "expected"), [(1, 0, 0.5), (0, 1, -10.0)])
def test_power_iteration_is_shifted(top: int, bottom: int, expected: float) -> None:
    """METHODS s4: without a shift, power iteration gives -10, the largest magnitude."""
    a = symmetric(np.linspace(-10, 0.5, 12))
    v = np.ones(12)
    for _ in range(500):
        v = a @ v / np.linalg.norm(a @ v)
    assert v @ a @ v == pytest.approx(-10.0)
    found = landscape.eigenpairs(
        lambda v: a @ v, n=12, top=top, bottom=bottom, method="power", max_steps=2000,
        tolerance=1e-6,
    )  # fmt: skip
    assert found.converged
    assert found.values[0] == pytest.approx(expected, abs=1e-4)
    assert found.residuals[0] <= 1e-5
    few = landscape.eigenpairs(
        lambda v: a @ v, n=12, top=top, bottom=bottom, method="power", max_steps=3,
        tolerance=1e-6,
    )  # fmt: skip
    assert not few.converged and few.products == 3


def test_same_bits_again() -> None:
    a = symmetric(np.linspace(-1, 1, 40))
    first, second = (landscape.eigenpairs(lambda v: a @ v, n=40, max_steps=20) for _ in range(2))
    assert first.vectors.tobytes() == second.vectors.tobytes()
    other = landscape.eigenpairs(lambda v: a @ v, n=40, max_steps=20, seed=1)
    assert other.vectors.tobytes() != first.vectors.tobytes()


# ---- oracles -------------------------------------------------------------------------------------


@pytest.mark.oracle
def test_eigensystem_is_scipys() -> None:
    from scipy.linalg import eigh

    a = symmetric(np.random.default_rng(0).standard_normal(80))
    values, vectors = eigh(a)
    ours, rows = testing.symmetric_eigensystem(a)
    np.testing.assert_allclose(ours, values, atol=1e-13)
    np.testing.assert_allclose(np.abs(np.sum(rows * vectors.T, axis=1)), 1.0, atol=1e-9)


@pytest.mark.oracle
def test_extremes_are_arpacks() -> None:
    from scipy.sparse.linalg import LinearOperator, eigsh

    a = symmetric(np.concatenate([np.random.default_rng(0).normal(0, 1, 500), [9.0, -7.0]]))
    operator = LinearOperator(a.shape, matvec=lambda v: a @ v, dtype=np.float64)
    theirs = np.sort(eigsh(operator, k=2, which="BE", return_eigenvectors=False))
    ours = landscape.eigenpairs(lambda v: a @ v, n=502, tolerance=1e-8)
    np.testing.assert_allclose(np.sort(ours.values), theirs, atol=1e-6)
