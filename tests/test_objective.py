"""`Objective`: second derivatives, Jacobians, gradients of single rows, chunks; paths."""

from __future__ import annotations

import itertools
import math
import signal
import threading
import time
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import reference as ref
import thalweg as tw
from conftest import DEVICE, EMULATED, MEDIUM_ROUNDS
from support import Array, assert_same_in_threads, case_model, model_of, set_values, snapshot
from test_gradients import LOSSES, NETWORKS, setup
from thalweg import landscape, nn

EXACT = 1e-11
CASES = 40


def options_of(training: bool) -> dict[str, Any]:
    """What the reference calls training, in the words of an objective."""
    return {"statistics": "batch" if training else "frozen", "dropout": training}


def direction(size: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(size) / math.sqrt(size)


def small(
    layers: list[nn.Layer] | None = None, *, rows: int = 12, **options: Any
) -> tuple[tw.Model, Array, Array]:
    """A float64 model of 3 inputs and 2 outputs, and data."""
    rng = np.random.default_rng(5)
    layers = [nn.Dense(5), nn.BatchNorm(), nn.Tanh(), nn.Dense(2)] if layers is None else layers
    model = tw.Model(layers, 3, **{"dtype": "float64", "seed": 2, "device": DEVICE, **options})
    model.set_parameters(model.parameters + 0.3 * rng.standard_normal(model.num_parameters))
    target = rng.integers(0, 2, rows)
    if model.description["loss"]["type"] != "cross_entropy":
        target = rng.standard_normal((rows, 2))
    return model, rng.standard_normal((rows, 3)), target


# ---- against the reference -----------------------------------------------------------------------


def check_products(
    objective: tw.Objective,
    network: ref.Network,
    parameters: ref.Parameters,
    x: Array,
    y: Array,
    limit: float,
    **options: Any,
) -> None:
    v = direction(objective.num_parameters)
    pairs = {
        "hvp": (objective.hvp(v), ref.hessian_product(network, parameters, v, x, y, **options)),
        "ggnvp": (
            objective.ggnvp(v),
            ref.gauss_newton_product(network, parameters, v, x, y, **options),
        ),
        "jvp": (objective.jvp(v), ref.output_tangent(network, parameters, v, x, **options)),
    }
    for name, (found, expected) in pairs.items():
        scale = max(float(np.linalg.norm(expected)), 1e-6)
        assert np.linalg.norm(found - expected) <= limit * scale, name


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_random_networks(training: bool, tmp_path: Path) -> None:
    for case in networks.random_cases(CASES, 80_000):
        model = case_model(case, "float64", tmp_path)
        objective = tw.Objective(
            model, case.x, case.target, sample_weight=case.sample_weight, **options_of(training)
        )
        check_products(
            objective,
            ref.Network(case.description),
            case.parameters,
            case.x,
            case.target,
            EXACT,
            state=case.state,
            training=training,
            sample_weight=case.sample_weight,
            step=case.step,
        )


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(network: str, training: bool) -> None:
    layers = NETWORKS[network]
    model, x, y, weight = setup(layers, "cross_entropy", training)
    reference = ref.Network(model.description)
    state = {name: ref.as_float(value) for name, value in model.named_state().items()}
    check_products(
        tw.Objective(model, x, y, sample_weight=weight, **options_of(training)),
        reference,
        reference.unflatten(model.parameters),
        x,
        y,
        EXACT,
        state=state,
        training=training,
        sample_weight=weight,
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss: str) -> None:
    layers = [{"type": "dense", "units": 5}, {"type": "batch_norm"}, {"type": "tanh"}]
    model, x, y, weight = setup(layers, loss, True)
    reference = ref.Network(model.description)
    check_products(
        tw.Objective(model, x, y, sample_weight=weight),
        reference,
        reference.unflatten(model.parameters),
        x,
        y,
        EXACT,
        training=True,
        sample_weight=weight,
    )


def test_float32_networks(tmp_path: Path) -> None:
    """The error of a product is that of a gradient, a few times over."""
    errors = []
    for case in networks.random_cases(CASES, 80_000):
        v = direction(ref.Network(case.description).flatten(case.parameters).size)
        exact, found = (
            tw.Objective(
                case_model(case, dtype, tmp_path),
                case.x,
                case.target,
                sample_weight=case.sample_weight,
                dropout=True,
            ).hvp(v.astype(np.float32))
            for dtype in ("float64", "float32")
        )
        assert found.dtype == np.float32
        errors.append(networks.relative_error(found, exact))
    assert np.median(errors) <= 2e-6
    assert np.max(errors) <= 1e-4


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_objectives_multiply_with_full_precision(precision: str) -> None:
    """The bits of a "highest" model, not rounded values with exact tangents."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 40)), rng.integers(0, 3, 20)
    layers = [nn.Dense(33), nn.BatchNorm(), nn.ReLU(), nn.Dense(3)]
    found = []
    for each in (precision, "highest"):
        model = tw.Model(layers, 40, device=DEVICE, matmul_precision=each)
        objective = tw.Objective(model, x, y)
        v = direction(model.num_parameters)
        found.append([objective.grad(), objective.hvp(v), objective.jvp(v)])
        trained = networks.relative_error(model.loss_and_grad(x, y)[1], found[-1][0])
        rounds = each == "medium" and MEDIUM_ROUNDS
        assert trained > 1e-4 if rounds else trained <= 1e-4
    for reduced, full in zip(*found, strict=True):
        np.testing.assert_array_equal(reduced, full)


# ---- identities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["batch", "frozen"])
def test_the_hessian_is_symmetric_and_linear(statistics: str) -> None:
    model, x, y = small(
        [nn.Dense(6), nn.BatchNorm(), nn.SiLU(), nn.Residual([nn.Dense(6), nn.Tanh()]), nn.Dense(2)]
    )
    objective = tw.Objective(model, x, y, statistics=statistics)
    u, v, w = (direction(model.num_parameters, seed) for seed in (1, 2, 3))
    for product in (objective.hvp, objective.ggnvp):
        left, right = u @ product(v), v @ product(u)
        assert math.isclose(left, right, rel_tol=1e-11, abs_tol=1e-14)
        combined = 0.7 * product(v) - 1.3 * product(w)
        scale = np.abs(combined).max()
        assert np.abs(product(0.7 * v - 1.3 * w) - combined).max() <= 1e-13 * max(scale, 1.0)
    np.testing.assert_array_equal(objective.hvp(np.zeros_like(v)), 0.0)
    hessian = objective.hessian()
    np.testing.assert_array_equal(hessian, hessian.T)
    np.testing.assert_allclose(hessian @ v, objective.hvp(v), rtol=1e-11, atol=1e-13)


def test_products_are_derivatives_of_the_gradient() -> None:
    model, x, y = small()
    objective = tw.Objective(model, x, y)
    theta, v, h = model.parameters, direction(model.num_parameters), 1e-5
    difference = (objective.grad(theta + h * v) - objective.grad(theta - h * v)) / (2 * h)
    np.testing.assert_allclose(objective.hvp(v), difference, rtol=1e-7, atol=1e-9)


def test_a_layer_under_batch_norm() -> None:
    """The loss does not change with the scale of W: H_WW W = -dW, and nothing else moves."""
    model, x, y = small([nn.Dense(5), nn.BatchNorm(eps=1e-30), nn.Tanh(), nn.Dense(2)])
    objective = tw.Objective(model, x, y)
    (_, first, shape), *_ = model.layout()
    end = first + math.prod(shape)
    v = np.zeros(model.num_parameters)
    v[first:end] = model.parameters[first:end]
    product, gradient = objective.hvp(v), objective.grad()
    np.testing.assert_allclose(product[first:end], -gradient[first:end], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(product[end:], 0.0, atol=1e-13)


def test_gauss_newton_is_the_hessian_of_linear_networks() -> None:
    model, x, y = small([nn.Dense(2)], loss="squared_error")
    objective = tw.Objective(model, x, y)
    v = direction(model.num_parameters)
    np.testing.assert_allclose(objective.ggnvp(v), objective.hvp(v), rtol=1e-12)
    deep, x, y = small([nn.Dense(4), nn.Dense(2)], loss="squared_error")
    objective = tw.Objective(deep, x, y)
    assert not np.allclose(
        objective.ggnvp(direction(deep.num_parameters)),
        objective.hvp(direction(deep.num_parameters)),
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error", "huber"])
def test_gauss_newton_is_positive_semidefinite(loss: str) -> None:
    model, x, y = small(loss=loss)
    objective = tw.Objective(model, x, y)
    n = model.num_parameters
    matrix = np.array([objective.ggnvp(row) for row in np.eye(n)])
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    values = np.linalg.eigvalsh(matrix)
    assert values[0] >= -1e-12 * values[-1]
    assert np.linalg.eigvalsh(objective.hessian())[0] < -1e-4 or loss != "cross_entropy"
    # J' L J with the Jacobian in full.
    jacobian = np.array([objective.jvp(row).ravel() for row in np.eye(n)]).T
    outputs = objective.jvp(np.zeros(n))
    assert outputs.shape == (len(x), 2)
    for seed in range(3):
        u = np.random.default_rng(seed).standard_normal((len(x), 2))
        np.testing.assert_allclose(objective.vjp(u), jacobian.T @ u.ravel(), atol=1e-12)


def test_the_hessian_of_a_quadratic_is_exact() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(-3, 4, (16, 3)).astype(float), rng.integers(-3, 4, (16, 1)).astype(float)
    model = tw.Model(nn.Dense(1), 3, "squared_error", dtype="float64", device=DEVICE)
    objective = tw.Objective(model, x, y)
    extended = np.hstack([x, np.ones((16, 1))])
    np.testing.assert_array_equal(objective.hessian(), 2.0 * extended.T @ extended / 16)
    np.testing.assert_array_equal(objective.hessian(rng.standard_normal(4)), objective.hessian())


def test_frozen_and_batch_statistics_are_different_functions() -> None:
    model, x, y = small()
    model.recalibrate_batch_norm(x)
    v = direction(model.num_parameters)
    batch, frozen = (tw.Objective(model, x, y, statistics=s) for s in ("batch", "frozen"))
    assert not np.allclose(batch.hvp(v), frozen.hvp(v), rtol=1e-2)
    plain, x, y = small([nn.Dense(4), nn.Tanh(), nn.Dense(2)])
    batch, frozen = (tw.Objective(plain, x, y, statistics=s) for s in ("batch", "frozen"))
    v = direction(plain.num_parameters)
    np.testing.assert_array_equal(batch.hvp(v), frozen.hvp(v))


def test_dropout_masks_are_fixed_and_optional() -> None:
    model, x, y = small([nn.Dense(9), nn.Dropout(0.5), nn.BatchNorm(), nn.Dense(2)])
    v = direction(model.num_parameters)
    for statistics in ("batch", "frozen"):
        kept = tw.Objective(model, x, y, statistics=statistics)
        dropped = tw.Objective(model, x, y, statistics=statistics, dropout=True)
        assert kept.value() != dropped.value()
        np.testing.assert_array_equal(dropped.hvp(v), dropped.hvp(v))
        assert not np.allclose(kept.hvp(v), dropped.hvp(v))
    assert tw.Objective(model, x, y, dropout=True).value() == model.loss_and_grad(x, y)[0]
    frozen = tw.Objective(model, x, y, statistics="frozen").value()
    assert math.isclose(frozen, model.evaluate(x, y)["loss"], rel_tol=1e-12)


# ---- single rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["batch_mean", "sum", "element_mean"])
def test_gradients_of_single_rows(reduction: str) -> None:
    layers = [nn.Dense(5), nn.BatchNorm(), nn.GELU(), nn.Maxout(4, pieces=3), nn.Dense(2)]
    model, x, y = small(
        layers, rows=70, loss=tw.losses.SquaredError(reduction=reduction), threads=3
    )
    model.recalibrate_batch_norm(x)
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(x))
    objective = tw.Objective(model, x, y, sample_weight=weight, statistics="frozen")
    rows = objective.per_example_grads()
    assert rows.shape == (len(x), model.num_parameters)
    total = 1.0 if reduction == "sum" else weight.sum()
    np.testing.assert_allclose(weight @ rows / total, objective.grad(), rtol=1e-11, atol=1e-13)
    for r in (0, 33, 69):
        alone = tw.Objective(model, x[r : r + 1], y[r : r + 1], statistics="frozen").grad()
        np.testing.assert_allclose(rows[r], alone, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(objective.per_example_grads(rows=(30, 41)), rows[30:41])
    np.testing.assert_allclose(
        objective.per_example_grad_norms(), np.linalg.norm(rows, axis=1), rtol=1e-12
    )
    chunked = tw.Objective(model, x, y, sample_weight=weight, statistics="frozen", chunk_size=64)
    np.testing.assert_array_equal(chunked.per_example_grads(), rows)
    assert objective.per_example_grads(rows=(5, 5)).shape == (0, model.num_parameters)


# ---- chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_chunks_are_sums(dtype: str) -> None:
    layers = [nn.Dense(9), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.3), nn.Dense(2)]
    model, x, y = small(layers, rows=500, dtype=dtype)
    weight = np.random.default_rng(1).uniform(0.5, 2.0, len(x))
    options = {"sample_weight": weight, "statistics": "frozen", "dropout": True}
    whole = tw.Objective(model, x, y, **options)
    parts = tw.Objective(model, x, y, chunk_size=100, **options)
    v = direction(model.num_parameters).astype(dtype)
    u = np.random.default_rng(2).standard_normal((len(x), 2)).astype(dtype)
    limit = 1e-13 if dtype == "float64" else 1e-6
    assert math.isclose(whole.value(), parts.value(), rel_tol=limit)
    assert whole.value() == whole.value_and_grad()[0]
    for name, argument in (("grad", None), ("hvp", v), ("ggnvp", v), ("vjp", u)):
        found = [
            getattr(o, name)() if argument is None else getattr(o, name)(argument)
            for o in (whole, parts)
        ]
        assert networks.relative_error(found[1], found[0]) <= limit, name
    np.testing.assert_array_equal(whole.jvp(v), parts.jvp(v))


def test_compensated_sums() -> None:
    """Chunks whose gradients cancel leave the sum of the small ones, in between and after them."""
    model = tw.Model(nn.Dense(1, bias=False), 1, "squared_error", dtype="float64", device=DEVICE)
    x = np.ones((64 * 4, 1))
    y = np.full((64 * 4, 1), 0.5)
    y[:64], y[128:192] = 1e17, -1e17
    objective = tw.Objective(model, x, y, chunk_size=64)
    gradient = objective.grad([0.0])
    assert gradient[0] == -2.0 * 0.5 * 128 / 256


def test_data_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    rows = 20_000
    x = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, 3))
    x[:] = np.random.default_rng(0).standard_normal((rows, 3))
    y = np.random.default_rng(1).integers(0, 2, rows)
    model, _, _ = small([nn.Dense(4), nn.Tanh(), nn.Dense(2)])
    v = direction(model.num_parameters)
    mapped = tw.Objective(model, np.load(path, mmap_mode="r"), y)
    whole = tw.Objective(model, np.array(x), y, chunk_size=rows)
    np.testing.assert_allclose(mapped.hvp(v), whole.hvp(v), rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(mapped.grad(), whole.grad(), rtol=1e-11, atol=1e-15)


# ---- purity, repeatability -----------------------------------------------------------------------


def test_nothing_changes_the_model() -> None:
    model, x, y = small()
    model.fit(x, y, epochs=2, verbose=False)
    before = snapshot(model)
    objective = tw.Objective(model, x, y)
    v = direction(model.num_parameters)
    theta = model.parameters + 0.1
    objective.value_and_grad(theta)
    objective.hvp(v, theta)
    objective.ggnvp(v)
    objective.hessian()
    objective.jvp(v, theta)
    objective.vjp(np.ones((len(x), 2)))
    tw.Objective(model, x, y, statistics="frozen").per_example_grads(theta)
    assert snapshot(model) == before


def test_points_are_remembered_and_told_apart() -> None:
    model, x, y = small()
    v = direction(model.num_parameters)
    near, far = model.parameters, model.parameters + 0.5
    fresh = {
        key: getattr(tw.Objective(model, x, y), name)(v, at)
        for key, name, at in (
            ("h near", "hvp", near), ("h far", "hvp", far),
            ("g near", "ggnvp", near), ("g far", "ggnvp", far),
        )
    }  # fmt: skip
    objective = tw.Objective(model, x, y)
    for key in ("h near", "h near", "g near", "h near", "h far", "g far", "g near", "h near"):
        at = near if key.endswith("near") else far
        found = objective.hvp(v, at) if key.startswith("h") else objective.ggnvp(v, at)
        np.testing.assert_array_equal(found, fresh[key])
    objective.vjp(np.ones((len(x), 2)), near)
    objective.grad(far)
    np.testing.assert_array_equal(objective.hvp(v, near), fresh["h near"])


def test_the_model_is_followed() -> None:
    model, x, y = small()
    v = direction(model.num_parameters)
    frozen = tw.Objective(model, x, y, statistics="frozen")
    first = frozen.hvp(v)
    model.recalibrate_batch_norm(x)
    second = frozen.hvp(v)
    assert not np.allclose(first, second)
    model.fit(x, y, epochs=1, verbose=False)
    np.testing.assert_array_equal(
        frozen.hvp(v), tw.Objective(model, x, y, statistics="frozen").hvp(v)
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bits_do_not_depend_on_threads(dtype: str) -> None:
    rng = np.random.default_rng(0)
    rows = 150 if EMULATED else 400
    x, y = rng.standard_normal((rows, 50)), rng.integers(0, 10, rows)
    layers = [nn.Dense(70), nn.BatchNorm(), nn.ReLU(), nn.Maxout(40), nn.Dense(10)]
    results = []
    for threads in (1, 3) if EMULATED else (1, 2, 3, 4, 8):
        model = tw.Model(layers, 50, dtype=dtype, device=DEVICE, threads=threads)
        objective = tw.Objective(model, x, y)
        frozen = tw.Objective(model, x, y, statistics="frozen", chunk_size=128)
        v = direction(model.num_parameters)
        results.append(
            b"".join(
                a.tobytes()
                for a in (
                    objective.hvp(v), objective.ggnvp(v), objective.grad(), objective.jvp(v),
                    frozen.hvp(v), frozen.grad(), frozen.per_example_grad_norms(),
                )
            )
        )  # fmt: skip
    assert len(set(results)) == 1


def test_many_threads_share_an_objective() -> None:
    model, x, y = small()
    objective = tw.Objective(model, x, y)
    vectors = [direction(model.num_parameters, seed) for seed in range(8)]
    assert_same_in_threads(lambda i: objective.hvp(vectors[i]).tobytes(), 8)


def test_interrupt() -> None:
    rng = np.random.default_rng(0)
    layers = [nn.Dense(60), nn.Tanh(), nn.Dense(60), nn.Tanh(), nn.Dense(5)]
    model = tw.Model(layers, 60, dtype="float64", device=DEVICE, threads=2)
    objective = tw.Objective(model, rng.standard_normal((4000, 60)), rng.integers(0, 5, 4000))
    v = direction(model.num_parameters)
    expected = objective.hvp(v)
    timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        objective.hessian()
    assert time.monotonic() - start < 10.0
    timer.join()
    np.testing.assert_array_equal(objective.hvp(v), expected)


def test_data_that_spoil_are_noticed() -> None:
    model, x, y = small()
    objective = tw.Objective(model, x, y)
    y[3] = 2
    with pytest.raises(ValueError, match="changed while it was in use"):
        objective.value()
    y[3] = 1
    assert np.isfinite(objective.value())


# ---- errors --------------------------------------------------------------------------------------


def python_loss(prediction: Array, target: Array) -> tuple[float, Array]:
    difference = prediction - target
    return float((difference**2).sum() / len(difference)), 2 * difference / len(difference)


def test_losses_in_python_have_a_gradient_only() -> None:
    model, x, y = small(loss=python_loss)
    described, _, _ = small(loss="squared_error")
    objective, expected = tw.Objective(model, x, y), tw.Objective(described, x, y)
    assert math.isclose(objective.value(), expected.value(), rel_tol=1e-12)
    np.testing.assert_allclose(objective.grad(), expected.grad(), rtol=1e-12, atol=1e-15)
    v = direction(model.num_parameters)
    np.testing.assert_array_equal(objective.jvp(v), expected.jvp(v))
    for call in (objective.hvp, objective.ggnvp):
        with pytest.raises(ValueError, match="second derivatives, got a loss function"):
            call(v)
    with pytest.raises(ValueError, match="second derivatives"):
        objective.hessian()

    def failing(prediction: Array, target: Array) -> tuple[float, Array]:
        raise LookupError("in the loss")

    failed, x, y = small(loss=failing)
    with pytest.raises(LookupError, match="in the loss"):
        tw.Objective(failed, x, y).value()


def test_a_call_inside_a_call_is_refused() -> None:
    def curious(prediction: Array, target: Array) -> tuple[float, Array]:
        return objective.value(), np.zeros_like(prediction)

    model, x, y = small(loss=curious)
    objective = tw.Objective(model, x, y)
    with pytest.raises(RuntimeError, match="not in the middle of a call"):
        objective.value()
    assert objective.jvp(np.zeros(model.num_parameters)).shape == (len(x), 2)


def test_non_finite_products_name_the_layer() -> None:
    model, x, y = small([nn.Dense(4), nn.Softplus(), nn.Dense(2)], loss="squared_error")
    v = np.ones(model.num_parameters)
    wide = v.copy()
    wide[16:] = 1e160
    cases = {"layers.0": 1e308 * v, "the gradient of layers.1": wide}
    for layer, theta in cases.items():
        objective = tw.Objective(model, x, y)
        with pytest.raises(tw.NonFiniteError, match=rf"\[hvp\].*come out of {layer}") as error:
            objective.hvp(v, theta)
        assert error.value.layer.startswith(layer)
        assert np.isfinite(objective.hvp(v)).all()


NORMED, X, Y = small()
PLAIN = small([nn.Dense(4), nn.Tanh(), nn.Dense(2)])[0]
V = np.ones(NORMED.num_parameters)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tw.Objective(NORMED, X, Y, statistics="both"), ValueError, "'batch', 'frozen'"),
        (lambda: tw.Objective(NORMED, X, Y, statistics=1), TypeError, "statistics"),
        (lambda: tw.Objective(NORMED, X, Y, dropout=1), TypeError, "True or False"),
        (lambda: tw.Objective(NORMED, X, Y, chunk_size=0), ValueError, "chunk_size >= 1"),
        (
            lambda: tw.Objective(NORMED, X, Y, chunk_size=4),
            ValueError,
            r"all 12 rows.*layers\.1 normalizes over the rows: use frozen statistics",
        ),
        (lambda: tw.Objective(NORMED, X[:1], Y[:1]), ValueError, "at least 2 rows"),
        (lambda: tw.Objective(NORMED, X, Y[:3]), ValueError, "rows|len"),
        (lambda: tw.Objective(NORMED, X[:, :2], Y), ValueError, "features|columns"),
        (
            lambda: tw.Objective(NORMED, X, Y, sample_weight=np.zeros(12)),
            ValueError,
            "a positive sum, got all zeros",
        ),
        (lambda: tw.Objective(NORMED, X, Y).hvp(V[:3]), ValueError, r"v with shape"),
        (lambda: tw.Objective(NORMED, X, Y).hvp(V * np.nan), ValueError, "finite v"),
        (lambda: tw.Objective(NORMED, X, Y).hvp("v"), TypeError, "real numbers"),
        (
            lambda: tw.Objective(NORMED, X, Y).hvp(np.ma.masked_array(V, np.arange(V.size) < 3)),
            ValueError,
            "v without masked elements, got 3 of",
        ),
        (lambda: tw.Objective(NORMED, X, Y).hvp(V, V[:3]), ValueError, "theta with shape"),
        (lambda: tw.Objective(NORMED, X, Y).vjp(X), ValueError, r"\(12, 2\)"),
        (
            lambda: tw.Objective(NORMED, X, Y).per_example_grads(),
            ValueError,
            r"do not depend on each other, got batch statistics in layers\.1",
        ),
        (
            lambda: tw.Objective(NORMED, X, Y).per_example_grad_norms(),
            ValueError,
            "use frozen statistics",
        ),
        (
            lambda: tw.Objective(PLAIN, X, Y).per_example_grads(rows=(3, 13)),
            ValueError,
            r"inside \[0, 12\)",
        ),
        (lambda: tw.Objective(PLAIN, X, Y).per_example_grads(rows=(3, 1)), ValueError, ">= 3"),
        (lambda: tw.Objective(PLAIN, X, Y).per_example_grads(rows=3), TypeError, "first, end"),
        (lambda: tw.Objective(PLAIN, X, Y).hvp([[0], [1, 2]]), ValueError, "v to be an array"),
        (
            lambda: tw.Objective(
                tw.Model(nn.Dense(200), 100, dtype="float64", device=DEVICE),
                np.zeros((2, 100)),
                [0, 1],
            ).hessian(),
            ValueError,
            "at most 16384 parameters, got 20200",
        ),
        (lambda: landscape.path_norm(NORMED), ValueError, r"batch norm at layers\.1"),
        (lambda: landscape.path_scales(NORMED), ValueError, r"batch norm at layers\.1"),
        (lambda: landscape.path_norm(PLAIN, p=0.0), ValueError, "p > 0"),
        (lambda: landscape.path_norm(PLAIN, p=np.nan), ValueError, "finite"),
        (lambda: landscape.path_norm(X), TypeError, "a thalweg.Model"),
        (lambda: landscape.path_norm(PLAIN, theta=V[:2]), ValueError, "theta with shape"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- paths ---------------------------------------------------------------------------------------


def brute_force(model: tw.Model, p: float, biases: bool) -> tuple[float, Array]:
    """gamma_p^p of a chain of Dense layers by enumeration, and the paths through every weight."""
    named = model.named_parameters()
    weights = [np.abs(w) ** p for name, w in named.items() if name.endswith("weight")]
    bias = [np.abs(b) ** p for name, b in named.items() if name.endswith("bias")]
    total = 0.0
    through = {name: np.zeros(w.shape) for name, w in named.items()}
    names = [name for name in named if name.endswith("weight")]
    depth = len(weights)
    for start in range(depth + 1):
        # A path begins at an input (start 0) or at the bias of layer start - 1.
        if start > 0 and not biases:
            continue
        layers = list(range(max(start - 1, 0), depth))
        widths = [weights[0].shape[1]] if start == 0 else []
        widths += [weights[layer].shape[0] for layer in layers]
        for units in itertools.product(*map(range, widths)):
            product, used = 1.0, []
            chain = list(units)
            if start > 0:
                product *= bias[start - 1][chain[0]]
                used.append((names[start - 1].replace("weight", "bias"), (chain[0],)))
                layers_left = layers[1:]
            else:
                layers_left = layers
            for (i, o), layer in zip(itertools.pairwise(chain), layers_left, strict=True):
                product *= weights[layer][o, i]
                used.append((names[layer], (o, i)))
            total += product
            for name, place in used:
                through[name][place] += product
    flat = np.concatenate([through[name].ravel() for name in named])
    return total, flat


def chain(bias: bool = True) -> tw.Model:
    layers = [nn.Dense(4, bias=bias), nn.ReLU(), nn.Dense(3, bias=bias), nn.ReLU(), nn.Dense(2)]
    model = tw.Model(layers, 3, dtype="float64", device=DEVICE, seed=4)
    model.set_parameters(model.parameters + 0.3 * direction(model.num_parameters) * 5)
    return model


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("biases", [True, False])
def test_path_norm_is_the_sum_over_paths(p: float, biases: bool) -> None:
    model = chain()
    total, _ = brute_force(model, p, biases)
    found = landscape.path_norm(model, p=p, biases=biases)
    assert math.isclose(found, total ** (1 / p), rel_tol=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_path_scales(p: float) -> None:
    """in_u out_v is the sum over the paths through a weight, without that weight."""
    model = chain()
    _, through = brute_force(model, p, True)
    expected = (through / np.abs(model.parameters) ** p) ** (2 / p)
    np.testing.assert_allclose(landscape.path_scales(model, p=p), expected, rtol=1e-11)
    # kappa = (d gamma_2^2 / d w) / (2 w)
    if p == 2.0:
        gradient = ref.central_difference(
            lambda at: landscape.path_norm(model, theta=at) ** 2, model.parameters.copy()
        )
        np.testing.assert_allclose(
            landscape.path_scales(model), gradient / (2 * model.parameters), rtol=1e-7
        )


def test_path_norm_does_not_change_with_the_scale_of_units() -> None:
    model = chain()
    named = {name: np.array(w) for name, w in model.named_parameters().items()}
    factor = np.array([0.1, 3.0, 7.0, 0.5])
    named["layers.0.weight"] *= factor[:, None]
    named["layers.0.bias"] *= factor
    named["layers.2.weight"] /= factor
    scaled = model.copy()
    scaled.set_parameters(named)
    x = np.random.default_rng(0).standard_normal((5, 3))
    np.testing.assert_allclose(model.predict(x), scaled.predict(x), rtol=1e-12)
    for p, biases in itertools.product((1.0, 2.0), (True, False)):
        assert math.isclose(
            landscape.path_norm(model, p=p, biases=biases),
            landscape.path_norm(scaled, p=p, biases=biases),
            rel_tol=1e-12,
        )


def test_dead_paths_have_no_scale() -> None:
    model = chain()
    theta = model.parameters.copy()
    theta[12:16] = 0.0
    offset = {name: first for name, first, _ in model.layout()}
    theta[offset["layers.2.weight"] : offset["layers.2.bias"]] = 0.0
    scales = landscape.path_scales(model, theta=theta)
    assert (scales[: offset["layers.2.weight"]] == 0.0).all()
    assert (scales[offset["layers.4.bias"] :] == 1.0).all()


def test_paths_of_residual_and_maxout_layers() -> None:
    residual = tw.Model(
        [nn.Dense(3), nn.Residual([nn.Dense(3, bias=False), nn.ReLU()], zero_init=False)],
        2, "squared_error", dtype="float64", device=DEVICE,
    )  # fmt: skip
    w, _, v = residual.named_parameters().values()
    total = np.sum((np.eye(3) + v**2) @ w**2)
    assert math.isclose(landscape.path_norm(residual, biases=False) ** 2, total, rel_tol=1e-12)
    maxout = tw.Model(
        [nn.Maxout(3, pieces=2, bias=False), nn.Dense(1, bias=False)],
        2, "squared_error", dtype="float64", device=DEVICE,
    )  # fmt: skip
    w, v = maxout.named_parameters().values()
    total = np.sum(v**2 @ (w**2).reshape(3, 2, 2).sum(axis=1))
    assert math.isclose(landscape.path_norm(maxout) ** 2, total, rel_tol=1e-12)
    kappa = landscape.path_scales(maxout)
    np.testing.assert_allclose(kappa[:12].reshape(3, 2, 2), np.broadcast_to(
        (v**2).ravel()[:, None, None], (3, 2, 2)
    ), rtol=1e-12)  # fmt: skip


def test_models_of_reference_descriptions_have_paths() -> None:
    """`model_of` and `set_values` are what other tests make networks with."""
    description = {
        "in_features": 3,
        "layers": [{"type": "dense", "units": 2}],
        "loss": {"type": "squared_error"},
    }
    model = model_of(description, dtype="float64")
    set_values(model, {"layers.0.weight": np.ones((2, 3)), "layers.0.bias": np.zeros(2)}, {})
    assert landscape.path_norm(model) == math.sqrt(6.0)
