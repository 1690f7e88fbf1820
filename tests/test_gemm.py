"""The matrix products against exact ones: error bound, exact integers, every instruction set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thalweg import ops
from thalweg._core import _testing

Array = npt.NDArray[Any]
ISAS = _testing.instruction_sets()
FORMS = ("forward", "dgrad", "wgrad")
UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
# (M, N, K): odd sizes, one row, width 1, K = 0, and both sides of 32, 64 and 256
SHAPES = [
    (1, 1, 0), (5, 3, 0), (1, 1, 1), (1, 7, 5), (7, 1, 33), (1, 1, 300), (2, 3, 31), (3, 32, 32),
    (31, 33, 65), (32, 31, 64), (33, 64, 63), (63, 65, 129), (64, 32, 255), (65, 33, 256),
    (67, 35, 257), (129, 10, 512), (130, 97, 100), (200, 67, 784), (17, 41, 1024), (9, 40, 4096),
]  # fmt: skip


def operands(form: str, m: int, n: int, k: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of a and b."""
    return {
        "forward": ((m, k), (n, k)),
        "dgrad": ((m, k), (k, n)),
        "wgrad": ((k, m), (k, n)),
    }[form]


def product(form: str, a: Array, b: Array) -> Array:
    left, right = (a.T if form == "wgrad" else a), (b.T if form == "forward" else b)
    exact: Array = left @ right
    return exact


def exact_product(form: str, a: Array, b: Array) -> Array:
    """The product of float32 in float64, and of float64 with an 11 bits longer mantissa."""
    wide = np.float64 if a.dtype == np.float32 else np.longdouble
    return product(form, a.astype(wide), b.astype(wide))


def statistical(k: int) -> float:
    """Units of error where products are of one size; sequential sums fail it from K = 1024 on."""
    return 16.0 + math.sqrt(k) / 16.0


def guaranteed(k: int) -> float:
    """Units of error for any data: sums of at most 256 products, then sums of those."""
    return min(k, 256) + k / 256 + 1.0


def assert_bound(c: Array, form: str, a: Array, b: Array, units: Callable[[int], float]) -> None:
    k = a.shape[0] if form == "wgrad" else a.shape[1]
    size = product(form, np.abs(a).astype(np.float64), np.abs(b).astype(np.float64))
    bound = units(k) * UNIT[c.dtype.name] * size
    error = np.abs(c - exact_product(form, a, b))
    assert c.shape == size.shape
    assert (error <= bound).all(), f"{(error / np.maximum(bound, 1e-300)).max():.2f} bounds"


def fill(kind: str, shape: tuple[int, int], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if kind == "positive":
        return rng.uniform(0.5, 1.5, shape)
    if kind == "graded":  # magnitudes over 12 decades
        return rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 6, shape)
    return rng.standard_normal(shape)


BOUNDS = {"positive": statistical, "normal": statistical, "graded": guaranteed}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_error_bound(dtype: str, form: str, isa: str) -> None:
    for seed, (m, n, k) in enumerate(SHAPES):
        for kind, units in BOUNDS.items():
            a, b = (
                fill(kind, s, seed + i).astype(dtype) for i, s in enumerate(operands(form, m, n, k))
            )
            c = _testing.gemm(a, b, form, isa)
            assert c.dtype == dtype
            assert_bound(c, form, a, b, units)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_integers_are_exact(dtype: str, form: str, isa: str) -> None:
    rng = np.random.default_rng(0)
    for m, n, k in SHAPES:
        a, b = (rng.integers(-8, 9, s) for s in operands(form, m, n, k))
        c = _testing.gemm(a.astype(dtype), b.astype(dtype), form, isa)
        np.testing.assert_array_equal(c, product(form, a, b))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
def test_one_element_reaches_one_element(form: str, isa: str) -> None:
    """Unit matrices put every operand element in its place, the last lanes included."""
    for size in (1, 31, 32, 33, 70):
        b = np.arange(float(size * 45)).reshape(operands(form, size, 45, size)[1])
        c = _testing.gemm(np.eye(size), b, form, isa)
        np.testing.assert_array_equal(c, b.T if form == "forward" else b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_stay_in_their_row_and_column(form: str, isa: str, value: float) -> None:
    (a_shape, b_shape) = operands(form, 35, 37, 40)
    a, b = np.ones(a_shape, np.float32), np.ones(b_shape, np.float32)
    a[(5, 7) if form == "wgrad" else (7, 5)] = value
    c = _testing.gemm(a, b, form, isa)
    expected = np.full((35, 37), 40.0, np.float32)
    expected[7] = value
    np.testing.assert_array_equal(c, expected)
    a[...] = 1.0
    b[(3, 5) if form == "forward" else (5, 3)] = value
    c = _testing.gemm(a, b, form, isa)
    expected = np.full((35, 37), 40.0, np.float32)
    expected[:, 3] = value
    np.testing.assert_array_equal(c, expected)


def test_subnormal_results_are_not_flushed() -> None:
    a, b = np.full((1, 1), 1e-30, np.float32), np.full((1, 1), 1e-10, np.float32)
    for isa in ISAS:
        for form in FORMS:
            assert _testing.gemm(a, b, form, isa)[0, 0] == np.float32(1e-30) * np.float32(1e-10) > 0


LAYOUTS = ("c", "fortran", "reversed rows", "reversed columns", "strided", "broadcast")


def laid_out(values: Array, layout: str) -> Array:
    """The same values behind other strides; read-only."""
    out = values
    if layout == "fortran":
        out = np.asfortranarray(values)
    elif layout == "reversed rows":
        out = np.ascontiguousarray(values[::-1])[::-1]
    elif layout == "reversed columns":
        out = np.ascontiguousarray(values[:, ::-1])[:, ::-1]
    elif layout == "strided":
        wide = np.full((2 * values.shape[0], 3 * values.shape[1]), 77, values.dtype)
        wide[::2, ::3] = values
        out = wide[::2, ::3]
    elif layout == "broadcast":
        out = np.broadcast_to(values[:1], values.shape)
    out.flags.writeable = False
    return out


DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")


@given(
    form=st.sampled_from(FORMS),
    shape=st.tuples(*[st.integers(0, 70)] * 3),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 2),
    threads=st.sampled_from([0, 1, 2, 5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_layout_and_dtype(
    form: str,
    shape: tuple[int, int, int],
    layouts: tuple[str, str],
    dtypes: tuple[str, str],
    threads: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    a, b = (
        laid_out(rng.integers(0, 2 if dtype == "bool" else 9, s).astype(dtype), layout)
        for s, dtype, layout in zip(operands(form, *shape), dtypes, layouts, strict=True)
    )
    c = ops.gemm(a, b, form=form, threads=threads)
    assert c.dtype == (np.float64 if "float64" in dtypes else np.float32)
    np.testing.assert_array_equal(c, product(form, a.astype(np.int64), b.astype(np.int64)))


@pytest.mark.parametrize("form", FORMS)
def test_threads_do_not_change_bits(form: str) -> None:
    a, b = (fill("normal", s, i).astype("f4") for i, s in enumerate(operands(form, 200, 150, 300)))
    one = ops.gemm(a, b, form=form, threads=1)
    for threads in (2, 3, 4, 8):
        np.testing.assert_array_equal(ops.gemm(a, b, form=form, threads=threads), one)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[gemm\] expected"):
        ops.gemm(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"\[gemm\] expected"):
        ops.gemm(np.ones(3), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"\[gemm\] expected"):
        ops.gemm(np.ones((2, 3)), np.ones((2, 3)), form="backward")
    with pytest.raises(TypeError):
        ops.gemm(np.ones((2, 3), complex), np.ones((2, 3)))
