"""Every operation of `thalweg.ops`, and every listed formula, against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import networks
import numpy as np
import numpy.typing as npt
import pytest
import reference as ref
import thalweg as tw
from hypothesis import given
from hypothesis import strategies as st
from thalweg import ops
from thalweg._core import _testing, information

Array = npt.NDArray[Any]
ACTIVATIONS, LOSSES, OPTIMIZERS = tw._core.activations(), tw._core.losses(), tw._core.optimizers()
SIZES = [(1, 1), (2, 3), (7, 31), (33, 32), (64, 33), (65, 64), (130, 65), (1, 100), (200, 1)]
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}
DTYPES = ["float32", "float64"]


def matrix(shape: tuple[int, ...], dtype: str, seed: int = 0, scale: float = 1.0) -> Array:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def assert_close(actual: npt.ArrayLike, expected: npt.ArrayLike, rtol: float, atol: float) -> None:
    np.testing.assert_allclose(ref.as_float(actual), ref.as_float(expected), rtol=rtol, atol=atol)


# -- the lists -----------------------------------------------------------------------------------


def test_everything_listed_has_a_reference() -> None:
    assert set(ACTIVATIONS) == set(ref.ACTIVATIONS)
    assert set(LOSSES) == set(ref.ELEMENTWISE_LOSSES)
    assert {*LOSSES, "cross_entropy"} == set(ref.LOSSES)
    assert set(OPTIMIZERS) == set(ref.OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_tables(name: str) -> None:
    entry, rule = OPTIMIZERS[name], ref.OPTIMIZERS[name]
    defaults = {key: row["default"] for key, row in entry["parameters"].items()}
    assert defaults == dict(rule.defaults)
    assert next(iter(defaults)) == "lr"
    assert len(entry["slots"]) == len(rule.slots)
    assert entry["look_ahead"] == (rule.theta is not None)


def test_other_tables() -> None:
    for name, rule in ref.ACTIVATIONS.items():
        rows = ACTIVATIONS[name]["parameters"]
        assert list(rows) == ([rule.parameter] if rule.parameter else [])
        assert all(row["default"] == rule.default for row in rows.values())
    for name, loss in ref.ELEMENTWISE_LOSSES.items():
        assert list(LOSSES[name]["parameters"]) == ([loss.parameter] if loss.parameter else [])
        assert LOSSES[name]["target"] == loss.target


# -- dense ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense(name: str, dtype: str) -> None:
    rule = ref.ACTIVATIONS[name]
    for rows, out in SIZES:
        x, w, b = matrix((rows, 40), dtype), matrix((out, 40), dtype, 1), matrix((out,), dtype, 2)
        for bias in (b, None):
            wide = [None if v is None else ref.as_float(v) for v in (x, w, bias)]
            z = ref.dense(*wide)
            y = ops.dense(x, w, bias, activation=name)
            assert y.dtype == dtype
            # the bound of the product, and what the activation makes of it (slopes reach 1.13)
            units = 9.0 * ref.dense(*(None if v is None else np.abs(v) for v in wide)) + 4.0
            exact = rule.value(z, rule.default)
            assert (np.abs(y - exact) <= 1.2 * units * EPSILON[dtype]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_backward(dtype: str) -> None:
    for rows, out in SIZES:
        x, w, dy = (
            matrix((rows, 40), dtype),
            matrix((out, 40), dtype, 1),
            matrix((rows, out), dtype, 2),
        )
        wide = [ref.as_float(v) for v in (dy, x, w)]
        expected, sizes = ref.dense_backward(*wide), ref.dense_backward(*map(np.abs, wide))
        for found, value, size in zip(ops.dense_backward(x, w, dy), expected, sizes, strict=True):
            assert found.dtype == dtype
            assert (np.abs(found - value) <= 9.0 * EPSILON[dtype] * size).all()


# -- activations ---------------------------------------------------------------------------------

POINTS = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, -90.0, -1e-7, 0.0, 1e-7, 90.0, 1e4]])


def parameters_of(name: str) -> list[float]:
    rule = ref.ACTIVATIONS[name]
    return [rule.default, 0.3] if rule.parameter else [0.0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_formulas(name: str) -> None:
    rule = ref.ACTIVATIONS[name]
    for a in parameters_of(name):
        for z in POINTS[::7]:
            point = np.array([z])
            expected = [
                f(point, a)[0] for f in (rule.value, rule.derivative, rule.second_derivative)
            ]
            assert_close(_testing.activation_terms(name, z, a), expected, 1e-12, 1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, dtype: str) -> None:
    rule = ref.ACTIVATIONS[name]
    z = POINTS.astype(dtype)[:, None]
    wide, dy = ref.as_float(z), matrix(z.shape, dtype)
    for a in parameters_of(name):
        parameter = a if rule.parameter else None
        tolerance = 8 * EPSILON[dtype]
        y = ops.activation(name, z, parameter=parameter)
        assert_close(y, rule.value(wide, a), tolerance, tolerance)
        dz = ops.activation_backward(name, z, dy, parameter=parameter)
        assert_close(dz, ref.as_float(dy) * rule.derivative(wide, a), tolerance, tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_pass_nan_and_limits(name: str, dtype: str) -> None:
    z = np.array([[np.nan, np.inf, -np.inf, 1.0]], dtype)
    y = ops.activation(name, z)[0]
    assert np.isnan(y[0])
    assert y[1] == (1.0 if name in ("sigmoid", "tanh") else np.inf)
    lowest = {
        "identity": -np.inf, "leaky_relu": -np.inf, "elu": -1.0, "tanh": -1.0,
    }.get(name, 0.0)  # fmt: skip
    assert y[2] == lowest or (name in ("gelu", "silu") and np.isnan(y[2]))
    dy = np.array([[np.nan, 1.0, 1.0, 1.0]], dtype)
    assert np.isnan(ops.activation_backward(name, np.ones_like(z), dy)[0, 0])
    if name != "identity":
        assert np.isnan(ops.activation_backward(name, z, np.ones_like(z))[0, 0]) or (
            name in ("relu", "leaky_relu")  # their derivative at NaN is one of two constants
        )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_shapes(name: str) -> None:
    rule = ref.ACTIVATIONS[name]
    for shape in [*SIZES, (0, 5), (5, 0)]:
        z = matrix(shape, "float64")
        assert_close(ops.activation(name, z), rule.value(z, rule.default), 1e-13, 1e-14)


# -- batch norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_batch_norm(dtype: str, weighted: bool) -> None:
    for rows, width in [(2, 1), (3, 33), (64, 32), (65, 31), (200, 70)]:
        rng = np.random.default_rng(rows)
        x, dy = matrix((rows, width), dtype, 1) + 3, matrix((rows, width), dtype, 2)
        gamma, beta = matrix((width,), dtype, 3), matrix((width,), dtype, 4)
        w = rng.integers(0, 4, rows) + (np.arange(rows) < 2) if weighted else None
        wide = [ref.as_float(v) for v in (x, gamma, beta)]
        weights = None if w is None else ref.as_float(w)
        expected, cache = ref.batch_norm(*wide, 1e-3, weights)
        y, mean, variance = ops.batch_norm(x, gamma, beta, sample_weight=w, eps=1e-3)
        tolerance = 400 * EPSILON[dtype]
        assert_close(y, expected, tolerance, tolerance)
        assert_close(mean, cache.statistics.mean, tolerance, 0)
        assert_close(variance, cache.statistics.variance, tolerance, 0)
        row_weight = 1.0 if w is None else ref.as_float(w)[:, None]
        dy = (dy * row_weight).astype(dtype)
        gradients = ref.batch_norm_backward(ref.as_float(dy), cache)
        found = ops.batch_norm_backward(x, gamma, dy, sample_weight=w, eps=1e-3)
        for value, exact in zip(found, gradients, strict=True):
            assert networks.relative_error(value, exact) <= tolerance
        given = ops.batch_norm_inference(x, gamma, beta, mean, variance, eps=1e-3)
        assert_close(given, expected, 2 * tolerance, 2 * tolerance)


def test_weights_count_rows() -> None:
    """Weight 2 is the row given twice; weight 0 the row left out."""
    x, gamma, beta = matrix((40, 35), "float64"), np.ones(35), np.zeros(35)
    w = np.random.default_rng(0).integers(0, 3, 40)
    _, mean, variance = ops.batch_norm(x, gamma, beta, sample_weight=w)
    _, mean2, variance2 = ops.batch_norm(np.repeat(x, w, axis=0), gamma, beta)
    assert_close(mean, mean2, 1e-13, 1e-14)
    assert_close(variance, variance2, 1e-13, 0)


@pytest.mark.parametrize("rows", [50, 4096, 262_144])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e2, 1e3, 1e4, -1e4])
def test_batch_norm_mean_sweep(mean: float, rows: int) -> None:
    x = (mean + matrix((rows, 3), "float64", rows)).astype(np.float32)
    exact = ref.batch_norm_statistics(ref.as_float(x))
    y, found_mean, variance = ops.batch_norm(x, np.ones(3), np.zeros(3))
    assert np.abs(variance - exact.variance).max() <= 1e-5 * exact.variance.min()
    assert_close(found_mean, exact.mean, 1e-7, 1e-7)
    expected, _ = ref.batch_norm(ref.as_float(x), np.ones(3), np.zeros(3))
    assert np.abs(y - expected).max() <= 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 1e30, 1e-30])
def test_a_constant_column_gives_beta(value: float, dtype: str) -> None:
    for rows in (2, 63, 64, 65, 1000):
        x = matrix((rows, 34), dtype)
        x[:, 33] = value
        beta = matrix((34,), dtype, 1)
        y, mean, variance = ops.batch_norm(x, np.full(34, 3.0, dtype), beta)
        np.testing.assert_array_equal(y[:, 33], beta[33])
        assert (variance[33], mean[33]) == (0.0, np.asarray(value, dtype))


def test_batch_norm_propagates() -> None:
    x = matrix((70, 34), "float32")
    x[66, 33] = np.nan
    y, mean, variance = ops.batch_norm(x, np.ones(34), np.zeros(34))
    assert np.isnan(y[:, 33]).all() and np.isnan([mean[33], variance[33]]).all()
    assert np.isfinite(y[:, :33]).all()
    with pytest.raises(ValueError, match="2 rows"):
        ops.batch_norm(x[:1], np.ones(34), np.zeros(34))


# -- dropout, maxout -----------------------------------------------------------------------------


@given(
    rows=st.integers(0, 70),
    width=st.integers(1, 70),
    p=st.sampled_from([0.0, 1e-9, 0.1, 0.5, 0.9, 1 - 2**-33]),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**16 - 1),
    first_row=st.sampled_from([0, 1, 64, 2**33]),
    dtype=st.sampled_from(DTYPES),
)
def test_dropout_mask_bit_for_bit(
    rows: int, width: int, p: float, seed: int, step: int, stream: int, first_row: int, dtype: str
) -> None:
    x = matrix((rows, width), dtype, 5)
    place = {"seed": seed, "step": step, "stream": stream, "first_row": first_row}
    y = ops.dropout(x, p, **place)
    scale = ref.dropout_scale((rows, width), p, **place)
    np.testing.assert_array_equal(y, x * scale.astype(dtype))


def test_philox_known_answers() -> None:
    for counter, key in (
        ((0,) * 4, (0, 0)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2),
        ((1, 2, 3, 4), (5, 6)),
    ):
        expected = ref.philox4x32(counter, key).tolist()
        assert list(_testing.philox_block(list(counter), list(key))) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_maxout(dtype: str) -> None:
    for rows, units in SIZES:
        for pieces in (1, 2, 3, 5):
            z = np.round(matrix((rows, units * pieces), dtype))  # with ties
            dy = matrix((rows, units), dtype, 1)
            np.testing.assert_array_equal(ops.maxout(z, pieces), ref.maxout(z, pieces))
            np.testing.assert_array_equal(
                ops.maxout_backward(z, dy, pieces),
                ref.maxout_backward(ref.as_float(dy), ref.as_float(z), pieces),
            )
    z = np.array([[1.0, np.nan, 0.0, 3.0]], dtype)
    assert np.isnan(ops.maxout(z, 2)[0, 0]) and ops.maxout(z, 2)[0, 1] == 3.0


# -- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
@pytest.mark.parametrize("classes", [2, 10, 33, 100])
def test_softmax_cross_entropy(classes: int, scale: float, dtype: str) -> None:
    rng = np.random.default_rng(classes)
    for rows in (1, 7, 64, 65, 130):
        z = rng.uniform(-scale, scale, (rows, classes)).astype(dtype)
        wide = ref.as_float(z)
        weight = rng.uniform(0.1, 3.0, rows).astype(dtype)
        labels = rng.integers(0, classes, rows)
        probabilities = rng.dirichlet(np.ones(classes), rows).astype(dtype)
        for target in (labels, labels.astype(np.int8), probabilities):
            for w in (None, weight):
                for smoothing in (0.0, 0.1):
                    expected = ref.cross_entropy(
                        wide,
                        target,
                        None if w is None else ref.as_float(w),
                        label_smoothing=smoothing,
                    )
                    value, gradient = ops.softmax_cross_entropy(
                        z, target, sample_weight=w, label_smoothing=smoothing
                    )
                    bound = 1e-6 if dtype == "float32" else 1e-13
                    assert abs(value - expected.value) <= bound * max(1.0, abs(expected.value))
                    assert np.abs(gradient - expected.gradient).max() <= bound
        assert_close(ops.softmax(z), ref.softmax(wide), 0, 1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_extremes(dtype: str) -> None:
    z = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, 0.0]], dtype)
    value, gradient = ops.softmax_cross_entropy(z, [1, 0, 2])
    expected = ref.cross_entropy(ref.as_float(z), np.array([1, 0, 2]))
    assert_close(value, expected.value, 1e-6, 0)
    assert_close(gradient, expected.gradient, 0, 1e-7)
    value, _ = ops.softmax_cross_entropy(np.array([[np.nan, 1.0]], dtype), [1])
    assert np.isnan(value)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0, 2**31], [0, -(2**62)]])
def test_labels_out_of_range(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="labels"):
        ops.softmax_cross_entropy(np.zeros((2, 3)), np.array(labels))
    with pytest.raises(TypeError, match="labels"):
        ops.softmax_cross_entropy(np.zeros((2, 3)), np.zeros(2))


def targets_of(name: str, shape: tuple[int, int], dtype: str) -> Array:
    rng = np.random.default_rng(8)
    values = {
        "sign": rng.choice([-1.0, 1.0], shape),
        "unit_interval": rng.random(shape),
        "real": rng.standard_normal(shape),
    }[ref.ELEMENTWISE_LOSSES[name].target]
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["batch_mean", "sum", "element_mean"])
@pytest.mark.parametrize("name", LOSSES)
def test_elementwise_losses(name: str, reduction: str, dtype: str) -> None:
    rule = ref.ELEMENTWISE_LOSSES[name]
    for shape in SIZES:
        z, t = matrix(shape, dtype, 1, 3.0), targets_of(name, shape, dtype)
        weight = np.random.default_rng(2).uniform(0.1, 3.0, shape[0]).astype(dtype)
        for w in (None, weight):
            for a in (None, 0.5) if rule.parameter else (None,):
                expected = ref.elementwise_loss(
                    name, ref.as_float(z), t, w, reduction=reduction, parameter=a
                )
                value, gradient = ops.loss(
                    name, z, t, parameter=a, reduction=reduction, sample_weight=w
                )
                tolerance = 20 * EPSILON[dtype]
                assert_close(value, expected.value, tolerance, tolerance)
                assert networks.relative_error(gradient, expected.gradient) <= tolerance


@pytest.mark.parametrize("name", LOSSES)
def test_loss_formulas(name: str) -> None:
    rule = ref.ELEMENTWISE_LOSSES[name]
    t = float(targets_of(name, (1, 1), "float64")[0, 0])
    for a in (rule.default, 0.5) if rule.parameter else (0.0,):
        for z in np.concatenate([np.linspace(-20, 20, 201), [-600.0, 600.0]]):
            at = (np.array([z]), np.array([t]), a)
            expected = [f(*at)[0] for f in (rule.value, rule.gradient, rule.second_derivative)]
            assert_close(_testing.loss_terms(name, z, t, a), expected, 1e-12, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_margin_losses_far_out(dtype: str) -> None:
    """log(1 + exp(-u)) is finite for |u| <= 1e4; exp(-u) overflows to infinity and not to NaN."""
    z = np.array([[-1e4], [1e4]], dtype)
    value, gradient = ops.loss("logistic", z, np.ones((2, 1)), reduction="sum")
    assert value == 1e4
    np.testing.assert_array_equal(gradient, [[-1.0], [0.0]])
    value, gradient = ops.loss("exponential", z, np.ones((2, 1)), reduction="sum")
    assert value == np.inf
    np.testing.assert_array_equal(gradient, [[-np.inf], [0.0]])


@pytest.mark.parametrize("name", LOSSES)
def test_losses_propagate(name: str) -> None:
    z = np.zeros((3, 2))
    z[1, 1] = np.nan
    value, gradient = ops.loss(name, z, np.ones((3, 2)))
    assert np.isnan(value) and np.isnan(gradient[1, 1])
    assert np.isfinite(gradient[[0, 2]]).all()


# -- optimizers ----------------------------------------------------------------------------------

DECAY = {"schedule": "linear", "start": 0.02, "end": 0.002, "tau": 60}


def optimizer_cases() -> list[Any]:
    cases = []
    for name, entry in OPTIMIZERS.items():
        flags = [key for key, row in entry["parameters"].items() if row["kind"] == "flag"]
        for options in ({}, {"weight_decay": 0.1}, *({flag: True} for flag in flags)):
            cases.append(pytest.param(name, options, id="-".join([name, *options])))
    return cases


def gradients(steps: int, count: int, dtype: str) -> Array:
    """Noise of very different sizes, and in float64 a constant, a zero and a sparse column."""
    rng = np.random.default_rng(3)
    if dtype == "float32":  # a constant makes every rounding of a plain sum the same
        return rng.standard_normal((steps, count)).astype(dtype)
    g = rng.standard_normal((steps, count)) * 10.0 ** rng.uniform(-3, 1, count)
    g[:, 0] = 0.5
    g[:, 1] = 0.0
    g[:, 2] *= np.arange(steps) % 10 == 0
    return g.astype(dtype)


def run_optimizer(
    name: str, options: dict[str, Any], steps: int, dtype: str, count: int = 300
) -> tuple[Array, Array, Array]:
    """Final parameters and slots, found and expected, and the largest parameters on the way.

    Learning rate and momentum change.
    """
    description: dict[str, Any] = {"type": name, "lr": DECAY, **options}
    if "momentum" in OPTIMIZERS[name]["parameters"]:
        description["momentum"] = {"schedule": "nesterov_convex"}
    optimizer = ref.Optimizer(description)
    p = matrix((count,), dtype, 4)
    largest = np.ones(count)
    expected = {"p": ref.as_float(p)}
    slots: tuple[Array, ...] | None = None
    for step, g in enumerate(gradients(steps, count, dtype)):
        flags = {key: bool(value) for key, value in options.items() if isinstance(value, bool)}
        hyper, following = ({**optimizer.hyper("p", k), **flags} for k in (step, step + 1))
        for row, values in ((key, h) for h in (hyper, following) for key in h):
            if OPTIMIZERS[name]["parameters"][row]["kind"] == "flag":
                values[row] = bool(values[row])
        p, slots = ops.optimizer_step(name, p, g, slots, t=step + 1, next_hyper=following, **hyper)
        expected = optimizer.step(expected, {"p": ref.as_float(g)})
        largest = np.maximum(largest, np.abs(expected["p"]))
    assert slots is not None and p.dtype == dtype
    return np.stack([p, *slots]), np.stack([expected["p"], *optimizer.slots["p"]]), largest


@pytest.mark.parametrize(("name", "options"), optimizer_cases())
def test_optimizers_float64(name: str, options: dict[str, Any]) -> None:
    found, expected, _ = run_optimizer(name, options, 100, "float64")
    size = np.maximum(1.0, np.abs(expected).max(axis=1, keepdims=True))
    assert (np.abs(found - expected) <= 1e-12 * size).all()


@pytest.mark.parametrize(("name", "options"), optimizer_cases())
def test_optimizers_float32(name: str, options: dict[str, Any]) -> None:
    found, expected, largest = run_optimizer(name, options, 2000, "float32", 64)
    assert (np.abs(found[0] - expected[0]) <= 48 * 2.0**-23 * largest).all()


@pytest.mark.parametrize("t", [1, 2, 10, 1000, 2**24, 2**24 + 1, 10**9])
def test_bias_corrections(t: int) -> None:
    """The size of Adam's step at t, from a state that makes it lr times the two corrections."""
    for beta1, beta2 in ((0.9, 0.999), (0.0, 0.9), (0.99, 0.9999999)):
        p, _ = ops.optimizer_step(
            "adam", np.zeros(1), np.ones(1), [np.ones(1), np.ones(1)],
            t=t, lr=1.0, beta1=beta1, beta2=beta2, delta=1e-30,
        )  # fmt: skip

        def correction(beta: float) -> float:
            return float(-np.expm1(t * np.log(beta))) if beta else 1.0

        assert_close(p[0], -np.sqrt(correction(beta2)) / correction(beta1), 1e-12, 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_sizes(name: str) -> None:
    for count in (0, 1, 255, 256, 257, 1024, 5000):
        p, g = matrix((count,), "float64"), matrix((count,), "float64", 1)
        expected = ref.Optimizer({"type": name}).step({"p": p}, {"p": g})["p"]
        assert_close(ops.optimizer_step(name, p, g, t=1)[0], expected, 1e-13, 1e-14)


def test_optimizer_errors() -> None:
    p = np.zeros(3)
    for error, options in (
        (ValueError, {"t": 0}),
        (ValueError, {"t": 1, "lr": -1.0}),
        (ValueError, {"t": 1, "beta1": 1.0}),
        (ValueError, {"t": 1, "speed": 1.0}),
        (ValueError, {"t": 1, "slots": [p]}),
        (TypeError, {"t": 1, "lr": "fast"}),
    ):
        with pytest.raises(error, match="expected"):
            ops.optimizer_step("adam", p, p, **options)
    with pytest.raises(ValueError, match="expected"):
        ops.optimizer_step("newton", p, p, t=1)


# -- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e20, 1e-30])
def test_clip_by_global_norm(scale: float, dtype: str) -> None:
    for count in (1, 255, 1000, 5000):
        g = matrix((count,), dtype, count, scale)
        wide = ref.as_float(g)
        for limit in (0.5 * np.linalg.norm(wide), 2.0 * np.linalg.norm(wide)):
            clipped, norm = ops.clip_by_global_norm(g, float(limit))
            expected, exact = ref.clip_by_global_norm({"g": wide}, float(limit))
            assert_close(norm, exact, 1e-14, 0)
            assert_close(clipped, expected["g"], 2 * EPSILON[dtype], 0)
            assert ref.as_float(clipped).dtype == np.float64
    np.testing.assert_array_equal(ops.clip_by_global_norm(np.zeros(5), 1.0)[0], np.zeros(5))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_clipping_does_not_hide_a_non_finite_norm(value: float) -> None:
    g = np.array([1.0, value, 2.0])
    clipped, norm = ops.clip_by_global_norm(g, 0.5)
    np.testing.assert_array_equal(clipped, g)
    assert not np.isfinite(norm)


# -- arguments and instruction sets --------------------------------------------------------------


def test_inputs_are_not_written() -> None:
    x = matrix((5, 4), "float32")
    x.flags.writeable = False
    v = np.arange(4.0, dtype=np.float32)
    v.flags.writeable = False
    ops.dense(x, x)
    ops.batch_norm(x, v, v)
    ops.activation("relu", x)
    ops.dropout(x, 0.5)
    ops.clip_by_global_norm(v, 0.1)
    ops.optimizer_step("adam", v, v, [v, v], t=1)
    np.testing.assert_array_equal(v, np.arange(4.0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.dense(np.ones((2, 3)), np.ones((4, 2))),
        lambda: ops.dense(np.ones(3), np.ones((4, 3))),
        lambda: ops.dense(np.ones((2, 3)), np.ones((4, 3)), np.ones(3)),
        lambda: ops.dense_backward(np.ones((2, 3)), np.ones((4, 3)), np.ones((2, 3))),
        lambda: ops.batch_norm(np.ones((4, 3)), np.ones(2), np.ones(3)),
        lambda: ops.batch_norm(np.ones((4, 3)), np.ones(3), np.ones(3), sample_weight=np.ones(3)),
        lambda: ops.batch_norm(np.ones((4, 3)), np.ones(3), np.ones(3), eps=-1.0),
        lambda: ops.activation("step", np.ones((2, 2))),
        lambda: ops.activation("relu", np.ones((2, 2)), parameter=1.0),
        lambda: ops.activation_backward("relu", np.ones((2, 2)), np.ones((2, 3))),
        lambda: ops.dropout(np.ones((2, 2)), 1.0),
        lambda: ops.dropout(np.ones((2, 2)), 0.5, seed=-1),
        lambda: ops.maxout(np.ones((2, 3)), 2),
        lambda: ops.maxout(np.ones((2, 3)), 0),
        lambda: ops.softmax_cross_entropy(np.ones((2, 3)), [0]),
        lambda: ops.softmax_cross_entropy(np.ones((2, 3)), [0, 1], sample_weight=[0, 0]),
        lambda: ops.softmax_cross_entropy(np.ones((2, 3)), [0, 1], label_smoothing=2.0),
        lambda: ops.loss("squared_error", np.ones((2, 1)), np.ones((3, 1))),
        lambda: ops.loss("squared_error", np.ones((2, 1)), np.ones((2, 1)), reduction="max"),
        lambda: ops.loss("logistic", np.ones((2, 1)), np.zeros((2, 1))),
        lambda: ops.loss("binary_cross_entropy", np.ones((2, 1)), np.full((2, 1), 1.5)),
        lambda: ops.clip_by_global_norm(np.ones(3), 0.0),
        lambda: ops.clip_by_global_norm(np.ones(3), -1.0),
    ],
)  # fmt: skip
def test_bad_arguments(call: Any) -> None:
    with pytest.raises(ValueError, match=r"^\[\w+\] expected .* got "):
        call()


@pytest.mark.parametrize(
    "bad", [np.ones((2, 3), complex), np.ones((2, 3), object), [["a"]], "text"]
)
def test_bad_types(bad: Any) -> None:
    with pytest.raises(TypeError):
        ops.dense(bad, np.ones((4, 3)))


def test_required_arrays() -> None:
    a, v, nothing = np.ones((3, 3)), np.ones(3), cast(Any, None)
    for call in (
        lambda: ops.gemm(nothing, a),
        lambda: ops.gemm(a, nothing),
        lambda: ops.dense(nothing, a),
        lambda: ops.dense(a, nothing),
        lambda: ops.dense_backward(a, a, nothing),
        lambda: ops.batch_norm(nothing, v, v),
        lambda: ops.batch_norm_inference(a, v, v, nothing, v),
        lambda: ops.batch_norm_backward(a, v, nothing),
        lambda: ops.activation("relu", nothing),
        lambda: ops.activation_backward("relu", a, nothing),
        lambda: ops.dropout(nothing, 0.5),
        lambda: ops.maxout_backward(a, nothing, 3),
        lambda: ops.softmax(nothing),
        lambda: ops.softmax_cross_entropy(a, nothing),
        lambda: ops.loss("huber", a, nothing),
        lambda: ops.optimizer_step("adam", v, nothing, t=1),
        lambda: ops.clip_by_global_norm(nothing, 1.0),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()


# -- subnormal numbers ---------------------------------------------------------------------------

# Every one computes q out of q, which has the shape [1, 1].
IDENTITIES: dict[str, Callable[[Array], Any]] = {
    "gemm": lambda q: ops.gemm(q, [[1]]),
    "dense": lambda q: ops.dense(q, [[1]]),
    "dense_backward": lambda q: ops.dense_backward([[1]], [[1]], q),
    "batch_norm": lambda q: ops.batch_norm([[0], [0]], [1], q[0])[0],
    "batch_norm_inference": lambda q: ops.batch_norm_inference([[1]], q[0], [0], [0], [1], eps=0),
    "batch_norm_backward": lambda q: ops.batch_norm_backward([[1], [2]], [1], np.r_[0 * q, q])[2],
    "activation": lambda q: -ops.activation("leaky_relu", -2 * q, parameter=0.5),
    "activation_backward": lambda q: ops.activation_backward(
        "leaky_relu", [[-1]], 2 * q, parameter=0.5
    ),
    "dropout": lambda q: ops.dropout(q, 0.0),
    "maxout": lambda q: ops.maxout(np.c_[-q, q], 2),
    "maxout_backward": lambda q: ops.maxout_backward([[0, 1]], q, 2)[:, 1:],
    "softmax": lambda q: ops.softmax(np.c_[0 * q, np.log(q)])[:, 1:],
    "softmax_cross_entropy": lambda q: ops.softmax_cross_entropy(np.c_[0 * q, np.log(q)], [0])[1][
        :, 1:
    ],
    "loss": lambda q: ops.loss("squared_error", q / 2, [[0]])[1],
    "optimizer_step": lambda q: ops.optimizer_step("sgd", [0], -q[0], t=1, lr=1.0)[0],
    "clip_by_global_norm": lambda q: ops.clip_by_global_norm(np.r_[2 * q[0], 2], 1.0)[0][:1],
}


def test_every_operation_has_an_identity() -> None:
    assert set(IDENTITIES) == set(ops.__all__)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", IDENTITIES)
def test_operations_keep_subnormal_numbers(name: str, dtype: str) -> None:
    q = np.full((1, 1), np.finfo(dtype).tiny / 8, dtype)
    results = IDENTITIES[name](q)
    for result in results if isinstance(results, tuple) else (results,):
        assert result.dtype == dtype
        np.testing.assert_allclose(result, np.full_like(result, q[0, 0]), rtol=1e-4, atol=0)


@pytest.mark.skipif("THALWEG_ISA" in os.environ, reason="already runs on a chosen instruction set")
@pytest.mark.parametrize("isa", _testing.instruction_sets())
def test_on_every_instruction_set(isa: str, tmp_path: Path) -> None:
    """This file and random networks once more in a process that may use only this set."""
    if isa == information()["instruction_set"]:
        pytest.skip("this process runs it")
    folder = Path(__file__).parent
    files = [
        str(folder / "test_ops.py"),
        f"{folder / 'test_random_networks.py'}::test_random_networks[0]",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "THALWEG_ISA": isa}
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
