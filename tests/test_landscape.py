"""`thalweg.landscape` against NumPy written here, closed forms and invariants."""

from __future__ import annotations

import builtins
import json
import sys
from typing import Any

import numpy as np
import pytest
import thalweg as tw
from conftest import DEVICE, scaled
from thalweg import landscape, nn, optim

RNG = np.random.default_rng(7)
X = RNG.normal(size=(40, 5))
Y = np.arange(40) % 3
SIGNS = np.where(X @ np.ones(5) > 0, 1, -1)


def network(*, batch_norm: bool = True, act: nn.Layer | None = None) -> nn.Sequential:
    middle = [nn.BatchNorm()] if batch_norm else []
    act = act or nn.ReLU()
    return nn.Sequential(nn.Dense(7), *middle, act, nn.Dense(6), *middle, act, nn.Dense(3))


def model(**options: Any) -> tw.Model:
    layers = options.pop("layers", None) or network()
    return tw.Model(layers, 5, **{"dtype": "float64", "device": DEVICE, "seed": 3, **options})


def trained(**options: Any) -> tuple[tw.Model, tw.Model]:
    start = model(**options)
    end = start.copy()
    end.fit(X, Y, epochs=8, batch_size=8, verbose=False)
    return start, end


def fresh_statistics(m: tw.Model, theta: np.ndarray) -> float:
    """Loss with the mean and unbiased variance of all rows in batch norm: NumPy alone."""
    values = {
        name: theta[offset : offset + int(np.prod(shape))].reshape(shape)
        for name, offset, shape in m.layout()
    }
    trained = h = X  # the statistics come from a pass of training, with biased variances
    for i, layer in enumerate(m.network):
        own = f"layers.{i}"
        if isinstance(layer, nn.Dense):
            weight, bias = values[f"{own}.weight"], values.get(f"{own}.bias", 0.0)
            trained, h = trained @ weight.T + bias, h @ weight.T + bias
        elif isinstance(layer, nn.BatchNorm):
            mean, biased = trained.mean(axis=0), trained.var(axis=0)
            unbiased = trained.var(axis=0, ddof=1)
            gamma, beta = values[f"{own}.weight"], values[f"{own}.bias"]
            h = (h - mean) / np.sqrt(unbiased + layer.eps) * gamma + beta
            trained = (trained - mean) / np.sqrt(biased + layer.eps) * gamma + beta
        else:
            trained, h = np.maximum(trained, 0.0), np.maximum(h, 0.0)
    top = h.max(axis=1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(h - top).sum(axis=1))
    return float(np.mean(log_sum - h[np.arange(len(h)), Y]))


# ---- paths ---------------------------------------------------------------------------------------


def test_linear_path_is_the_loss_at_every_point():
    start, end = trained()
    before = end.parameters.copy(), end.named_state()["layers.1.running_mean"].copy()
    path = landscape.linear_path(end, start, end, X, Y, points=5)
    a, b = start.parameters, end.parameters
    expected = [fresh_statistics(end, (1 - t) * a + t * b) for t in (0, 0.25, 0.5, 0.75, 1)]
    np.testing.assert_allclose(path.loss, expected, rtol=1e-12)
    np.testing.assert_array_equal(path.alpha, [0, 0.25, 0.5, 0.75, 1])
    assert path.distance == pytest.approx(np.linalg.norm(b - a))
    np.testing.assert_array_equal(end.parameters, before[0])
    np.testing.assert_array_equal(end.named_state()["layers.1.running_mean"], before[1])


def test_ends_of_a_linear_path_are_the_losses_of_the_models():
    start, end = trained(layers=network(batch_norm=False), dtype="float32")
    path = landscape.linear_path(end, start, end, X, Y)
    assert len(path.loss) == 101
    assert path.loss[0] == start.evaluate(X, Y)["loss"]
    assert path.loss[-1] == end.evaluate(X, Y)["loss"]


def test_linear_path_may_keep_the_running_statistics():
    start, end = trained()
    kept = landscape.linear_path(end, start, end, X, Y, points=2, recalibrate=False)
    assert kept.loss[-1] == end.evaluate(X, Y)["loss"]
    fresh = landscape.linear_path(end, start, end, X, Y, points=2)
    assert abs(fresh.loss[-1] - kept.loss[-1]) > 1e-6


def test_rise_and_barrier_of_a_path():
    path = landscape.LinearPath(np.linspace(0, 1, 5), np.array([4.0, 1.0, 3.0, 2.0, 0.0]), 1.0)
    assert path.max_rise == 2.0
    assert path.barrier == 1.0
    assert landscape.LinearPath(np.array([0.0, 1.0]), np.array([2.0, 1.0]), 1.0).max_rise == 0.0


def test_plane_is_the_loss_at_every_point():
    start, end = trained()
    direction, other = RNG.normal(size=(2, end.num_parameters))
    found = landscape.plane(
        end, start, direction, other, X, Y, extent=(-1.0, 2.0, -3.0, 0.5), points=4
    )
    u = direction / np.linalg.norm(direction)
    v = other - (other @ u) * u
    v /= np.linalg.norm(v)
    np.testing.assert_allclose(found.axes, [u, v], atol=1e-13)
    for i in (0, 3):
        for j in (1, 2):
            theta = start.parameters + found.first[j] * u + found.second[i] * v
            assert found.loss[i, j] == pytest.approx(fresh_statistics(end, theta), rel=1e-11)
    np.testing.assert_allclose(found.first, [-1, 0, 1, 2])
    np.testing.assert_allclose(found.second[[0, -1]], [-3, 0.5])


def test_plane_of_nearly_parallel_directions_is_orthonormal():
    m = model()
    first = RNG.normal(size=m.num_parameters)
    second = first + 1e-6 * RNG.normal(size=m.num_parameters)
    axes = landscape.plane(m, m, first, second, X, Y, points=2).axes
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-14)


def test_random_directions_have_the_norms_of_the_units():
    m = model()
    direction = landscape.random_direction(m, seed=5)
    for name, offset, shape in m.layout():
        part = direction[offset : offset + int(np.prod(shape))].reshape(shape)
        if len(shape) == 2:
            own = np.linalg.norm(m.named_parameters()[name], axis=1)
            np.testing.assert_allclose(np.linalg.norm(part, axis=1), own, rtol=1e-12)
        else:
            assert not part.any()
    plain = landscape.random_direction(m, seed=5, normalize=False)
    assert np.count_nonzero(plain) == plain.size
    assert not np.array_equal(plain, landscape.random_direction(m, seed=6, normalize=False))


# ---- trajectories --------------------------------------------------------------------------------


def recorded(every: int = 1, epochs: int = 3, **options: Any) -> tuple[tw.Model, Any]:
    m = model(**options)
    recorder = landscape.Recorder(every)
    m.fit(X, Y, epochs=epochs, batch_size=8, callbacks=[recorder], verbose=False)
    return m, recorder


def test_recorder_keeps_what_training_passed_through():
    m, recorder = recorded()
    trajectory = recorder.trajectory()
    np.testing.assert_array_equal(trajectory.steps, np.arange(16))
    twin = model()
    np.testing.assert_array_equal(trajectory.parameters[0], twin.parameters)
    twin.fit(X, Y, epochs=3, max_steps=7, batch_size=8, verbose=False)
    np.testing.assert_array_equal(trajectory.parameters[7], twin.parameters)
    seventh = trajectory.at(m, 7)
    assert seventh.evaluate(X, Y) == twin.evaluate(X, Y)  # batch-norm statistics too
    assert np.isnan(trajectory.loss[0])
    assert np.isfinite(trajectory.loss[1:]).all()


def test_recorder_skips_steps_and_goes_on():
    m, recorder = recorded(every=4, epochs=2)
    np.testing.assert_array_equal(recorder.trajectory().steps, [0, 4, 8, 10])
    m.fit(X, Y, epochs=1, batch_size=8, callbacks=[recorder], verbose=False)
    np.testing.assert_array_equal(recorder.trajectory().steps, [0, 4, 8, 10, 12, 15])


def test_projection_of_a_trajectory():
    _, recorder = recorded()
    trajectory = recorder.trajectory()
    found = landscape.project(trajectory)
    start, end = trajectory.parameters[0], trajectory.parameters[-1]
    assert found.residual[0] == found.residual[-1] == 0.0
    assert found.along[0] == 0.0
    assert found.along[-1] == pytest.approx(np.linalg.norm(end - start))
    moved = trajectory.parameters[5] - start
    # Pythagoras, and the definition.
    assert np.hypot(found.along[5], found.residual[5]) == pytest.approx(np.linalg.norm(moved))
    assert found.along[5] == pytest.approx(moved @ (end - start) / found.distance)


def test_plane_of_a_trajectory_holds_it():
    m, recorder = recorded(epochs=4)
    trajectory = recorder.trajectory()
    found = landscape.trajectory_plane(m, trajectory, X, Y, points=3)
    projected = landscape.project(trajectory)
    farthest = int(np.argmax(projected.residual))
    np.testing.assert_allclose(found.path[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(found.path[:, 0], projected.along, atol=1e-10)
    # Both ends and the farthest checkpoint lie in the plane.
    for i in (farthest, -1):
        back = found.origin + found.path[i] @ found.axes
        np.testing.assert_allclose(back, trajectory.parameters[i], atol=1e-11)
    assert found.first[0] < found.path[:, 0].min() and found.first[-1] > found.path[:, 0].max()
    assert found.second[0] < found.path[:, 1].min() and found.second[-1] > found.path[:, 1].max()


def test_function_trajectories_of_equal_seeds_coincide():
    runs = [recorded(seed=seed)[1].trajectory() for seed in (1, 1, 2)]
    m = model()
    found = landscape.function_trajectories(m, runs, X[:11])
    assert [run.shape for run in found.coordinates] == [(16, 2)] * 3
    np.testing.assert_allclose(found.coordinates[0], found.coordinates[1], atol=1e-14)
    ends = [run[-1] for run in found.coordinates]
    assert np.linalg.norm(ends[0] - ends[2]) > 0.1
    # Against the eigenvectors of the covariance.
    points = np.stack([r.at(m, i).predict_proba(X[:11]).ravel() for r in runs for i in range(16)])
    centred = points - points.mean(axis=0)
    variances, vectors = np.linalg.eigh(centred.T @ centred)
    np.testing.assert_allclose(
        np.abs(np.concatenate(found.coordinates)),
        np.abs(centred @ vectors[:, [-1, -2]]),
        atol=1e-10,
    )
    np.testing.assert_allclose(found.explained, variances[[-1, -2]] / variances.sum())


def test_function_trajectories_ignore_symmetries():
    first = recorded(layers=network(batch_norm=False))[1].trajectory()
    m = model(layers=network(batch_norm=False))
    turned = [
        landscape.permute_units(first.at(m, i), "layers.0", np.arange(7)[::-1]).parameters
        for i in range(len(first))
    ]
    second = landscape.Trajectory(first.steps, np.stack(turned), first.loss, first.states)
    found = landscape.function_trajectories(m, [first, second], X)
    np.testing.assert_allclose(found.coordinates[0], found.coordinates[1], atol=1e-12)


def test_principal_components_beyond_the_rank_are_zero():
    coordinates, explained = landscape.principal_components(np.outer([1, 2, 4], [1.0, 1.0]), 2)
    np.testing.assert_allclose(coordinates[:, 1], 0.0, atol=1e-14)
    np.testing.assert_allclose(explained, [1.0, 0.0], atol=1e-14)
    assert coordinates[:, 0].max() == pytest.approx(np.sqrt(2) * (4 - 7 / 3))
    same = landscape.principal_components(np.ones((3, 4)), 3)
    assert not same[0].any() and not same[1].any()


def test_t_sne_needs_scikit_learn(monkeypatch):
    run = recorded()[1].trajectory()
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r"scikit-learn .* pip install thalweg\[sklearn\]"):
        landscape.function_trajectories(model(), [run], X, method="tsne", perplexity=5)


@pytest.mark.oracle
def test_t_sne():
    run = recorded()[1].trajectory()
    found = landscape.function_trajectories(model(), [run], X, method="tsne", perplexity=5)
    assert found.coordinates[0].shape == (16, 2)
    assert np.isnan(found.explained).all()


# ---- diagnostics ---------------------------------------------------------------------------------


def test_gradient_norms_are_those_of_the_gradient():
    m = model()
    found = landscape.gradient_diagnostics(m, X, Y, draws=2)
    loss, gradient = m.loss_and_grad(X, Y)
    assert found.loss == loss
    assert found.norm == pytest.approx(np.linalg.norm(gradient))
    assert np.linalg.norm(found.norms) == pytest.approx(found.norm)
    offset, size = next((o, int(np.prod(s))) for n, o, s in m.layout() if n == "layers.3.weight")
    place = found.names.index("layers.3.weight")
    assert found.norms[place] == pytest.approx(np.linalg.norm(gradient[offset : offset + size]))
    assert found.parameter_norms[place] == pytest.approx(
        np.linalg.norm(m.named_parameters()["layers.3.weight"])
    )


@pytest.mark.parametrize("reduction", ["batch_mean", "sum"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_standard_error_is_the_root_of_the_covariance(reduction, batch_size):
    m = tw.Model(
        nn.Dense(1),
        5,
        {"type": "squared_error", "reduction": reduction},
        dtype="float64",
        seed=1,
        device=DEVICE,
    )
    target = X[:, 0] ** 2
    weight, bias = m.parameters[:5], m.parameters[5]
    residual = 2 * (X @ weight + bias - target)
    single = residual[:, None] * np.column_stack([X, np.ones(len(X))])
    covariance = np.trace(np.cov(single.T, bias=True))
    scale = len(X) if reduction == "sum" else 1.0
    found = landscape.gradient_diagnostics(m, X, target, batch_size=batch_size, draws=scaled(4000))
    expected = scale * np.sqrt(covariance / batch_size)
    spread = 1.9 / np.sqrt(scaled(4000))  # of a standard deviation out of so many draws
    assert found.standard_error == pytest.approx(expected, rel=spread)
    full = scale * single.mean(axis=0)
    assert found.noise_scale == pytest.approx(
        scale**2 * covariance / float(full @ full), rel=2 * spread
    )


def test_activation_percentiles_and_dead_units():
    m = model(layers=network(batch_norm=False))
    values = m.named_parameters()
    bias = values["layers.0.bias"].copy()
    bias[[1, 4]] = -100.0
    m.set_parameters({"layers.0.bias": bias})
    found = landscape.activation_diagnostics(m, X)
    z = X @ values["layers.0.weight"].T + bias
    h = np.maximum(z, 0.0)
    assert found.layers[:2] == ("0 dense", "1 relu")
    np.testing.assert_allclose(found.percentiles[0], np.percentile(z, [15, 50, 85]), rtol=1e-12)
    np.testing.assert_allclose(found.percentiles[1], np.percentile(h, [15, 50, 85]), rtol=1e-12)
    assert found.dead[1] == np.sum(np.all(h == 0, axis=0)) >= 2
    assert found.zeros[1] == pytest.approx(np.mean(h == 0))
    assert found.mean[0] == pytest.approx(z.mean()) and found.std[0] == pytest.approx(z.std())
    np.testing.assert_array_equal(found.width, [7, 7, 6, 6, 3])


# ---- margins -------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_linear_margin_is_a_distance_in_the_dual_norm(norm):
    w = RNG.normal(size=5)
    found = landscape.linear_margins(w, X, SIGNS, norm=norm)
    size = {1: np.abs(w).sum(), 2: np.sqrt(w @ w), np.inf: np.abs(w).max()}[norm]
    np.testing.assert_allclose(found.values, SIGNS * (X @ w) / size, rtol=1e-13)
    assert found.margin == found.values.min()
    # Scale-free, and the step to the boundary along the maximizer of <w, d> has that dual length.
    np.testing.assert_allclose(
        landscape.linear_margins(7 * w, X, SIGNS, norm=norm).values, found.values
    )
    d = {1: np.sign(w), 2: w / np.sqrt(w @ w), np.inf: np.eye(5)[np.argmax(np.abs(w))]}[norm]
    d = d * np.sign(w @ d)
    on = X - np.outer(found.values * SIGNS, d)
    reached = {1: on @ w, 2: on @ w, np.inf: None}[norm]
    if reached is not None:
        np.testing.assert_allclose(reached, 0.0, atol=1e-12)


def test_multiclass_margins():
    w = RNG.normal(size=(3, 5))
    found = landscape.linear_margins(w, X, Y)
    scores = X @ w.T
    expected = [
        min(scores[i, Y[i]] - scores[i, k] for k in range(3) if k != Y[i]) for i in range(len(X))
    ]
    np.testing.assert_allclose(found.values, np.array(expected) / np.sqrt((w**2).sum()))
    assert found.errors == np.mean(np.argmax(scores, axis=1) != Y)
    assert found.values.argmin() in found.support


def test_output_margins():
    m = model()
    outputs = m.predict(X)
    found = landscape.output_margins(m, X, Y)
    assert np.array_equal(found.values > 0, np.argmax(outputs, axis=1) == Y)
    assert found.errors == pytest.approx(1 - m.evaluate(X, Y)["accuracy"])
    for loss, targets in (("binary_cross_entropy", (SIGNS + 1) // 2), ("logistic", SIGNS)):
        binary = tw.Model(nn.Dense(1), 5, loss, dtype="float64", device=DEVICE)
        values = landscape.output_margins(binary, X, targets).values
        np.testing.assert_allclose(values, SIGNS * binary.predict(X)[:, 0])


# ---- sharpness -----------------------------------------------------------------------------------


def quadratic(norm: float) -> tuple[tw.Objective, np.ndarray, np.ndarray]:
    """mean (x'w - t)^2: a quadratic with known Hessian and gradient, at some w."""
    m = tw.Model(
        nn.Dense(1, bias=False), 5, "squared_error", dtype="float64", seed=2, device=DEVICE
    )
    target = X @ np.arange(5.0)
    w = np.array([0.5, 1.0, 2.5, 2.0, 4.5])
    hessian = 2 * X.T @ X / len(X)
    gradient = 2 * X.T @ (X @ w - target) / len(X)
    m.set_parameters(w)
    return tw.Objective(m, X, target), hessian, gradient


def test_worst_rise_within_a_ball_of_a_quadratic():
    objective, h, g = quadratic(2.0)
    found = landscape.worst_rise(objective, 0.7, iterations=2000, tolerance=1e-6)
    # The maximizer satisfies (mu - H) d = g with mu above the spectrum and |d| = radius.
    values, vectors = np.linalg.eigh(h)
    part = vectors.T @ g
    low, high = values[-1], values[-1] + np.linalg.norm(g) / 0.7 + 1
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(part / (mu - values)) > 0.7 else (low, mu)
    d = vectors @ (part / (mu - values))
    best = g @ d + d @ h @ d / 2
    assert found.converged and found.residual <= 1e-6
    assert found.rise == pytest.approx(best, rel=1e-5)
    assert np.linalg.norm(found.direction) == pytest.approx(0.7)
    assert found.loss == pytest.approx(objective.value())
    assert found.keskar == pytest.approx(100 * found.rise / (1 + found.loss))


def test_worst_rise_within_a_box_of_a_quadratic():
    objective, h, g = quadratic(np.inf)
    found = landscape.worst_rise(objective, 0.3, norm=np.inf, starts=8)
    corners = 0.3 * np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    best = max(g @ d + d @ h @ d / 2 for d in corners)
    assert found.rise == pytest.approx(best, rel=1e-10)
    np.testing.assert_allclose(np.abs(found.direction), 0.3)
    assert found.converged and found.residual == 0.0


@pytest.mark.parametrize(("norm", "dual"), [(2.0, 2), (np.inf, 1)])
def test_residual_of_a_worst_rise_is_the_relative_gap(norm, dual):
    x = X @ np.array([[1.0, 0.9, 0, 0, 0]] * 2 + [[0, 0, 1, 0, 0.5]] * 3) + 0.1 * X
    m = tw.Model(nn.Dense(1, bias=False), 5, "squared_error", dtype="float64", device=DEVICE)
    h = 2 * x.T @ x / len(x)
    for off in np.random.default_rng(1).normal(size=(1000, 5)):  # until a corner is no end
        g = h @ off
        if np.any(np.sign(g + 0.5 * h @ np.sign(g)) != np.sign(g)):
            break
    found = landscape.worst_rise(
        tw.Objective(m, x, np.zeros(40)),
        0.5,
        norm=norm,
        starts=1,
        iterations=1,
        tolerance=1.0,
        theta=off,
    )
    d = 0.5 * (np.sign(h @ off) if dual == 1 else h @ off / np.linalg.norm(h @ off))
    slope = h @ (off + d)
    size = 0.5 * np.linalg.norm(slope, dual)
    assert found.residual == pytest.approx((size - slope @ d) / size, abs=1e-13)
    assert found.residual > 1e-6


def test_worst_rise_at_a_minimum_is_that_of_the_top_eigenvector():
    objective, h, _ = quadratic(2.0)
    found = landscape.worst_rise(
        objective, 0.1, theta=np.arange(5.0), iterations=3000, tolerance=1e-7
    )
    assert found.rise == pytest.approx(0.5 * 0.01 * np.linalg.eigvalsh(h)[-1], rel=1e-6)


def test_worst_rise_of_a_network_is_reached_and_not_exceeded():
    m = trained()[1]
    objective = tw.Objective(m, X, Y, statistics="frozen")
    found = landscape.worst_rise(objective, 0.2)
    theta = m.parameters
    assert objective.value(theta + found.direction) - found.loss == pytest.approx(found.rise)
    tried = [d * (0.2 / np.linalg.norm(d)) for d in RNG.normal(size=(200, m.num_parameters))]
    assert found.rise > max(objective.value(theta + d) for d in tried) - found.loss
    assert found.rise == found.starts.max() and len(found.starts) == 3


# ---- symmetries ----------------------------------------------------------------------------------


def busy(layers: nn.Sequential, seed: int = 0, **options: Any) -> tw.Model:
    """A model with every number off its initial value."""
    m = model(layers=layers, **options)
    rng = np.random.default_rng(seed)
    m.set_parameters(rng.normal(size=m.num_parameters))
    state = m.named_state()
    m.set_state(
        {
            name: rng.uniform(0.5, 2.0, value.shape)
            for name, value in state.items()
            if not name.endswith("tracked")
        }
    )
    return m


CHAINS = {
    "relu": network(batch_norm=False),
    "leaky": network(batch_norm=False, act=nn.LeakyReLU(0.2)),
    "tanh": network(batch_norm=False, act=nn.Tanh()),
    "sigmoid": network(batch_norm=False, act=nn.Sigmoid()),
    "linear": nn.Sequential(nn.Dense(7), nn.Dense(6), nn.Dense(3)),
    "norm relu": network(),
    "norm tanh": network(act=nn.Tanh()),
    "norm sigmoid": network(act=nn.Sigmoid()),
    "nested": nn.Sequential(
        nn.Sequential(nn.Dense(7, bias=True), nn.BatchNorm()), nn.ReLU(), nn.Dense(3)
    ),
    "no bias": nn.Sequential(nn.Dense(7, bias=False), nn.ReLU(), nn.Dense(3)),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_canonical_form_keeps_the_function_and_forgets_the_member(kind):
    original = busy(CHAINS[kind])
    form = landscape.canonical_form(original)
    assert landscape.function_distance(original, form.model, X) < 1e-11
    rng = np.random.default_rng(11)
    other = original
    for layer in landscape.hidden_layers(original):
        width = original.named_parameters()[f"{layer}.weight"].shape[0]
        other = landscape.permute_units(other, layer, rng.permutation(width))
        if kind not in ("tanh", "sigmoid"):
            other = landscape.rescale_units(other, layer, rng.uniform(0.5, 3.0, width))
    assert landscape.function_distance(original, other, X) < 1e-11
    assert np.abs(original.parameters - other.parameters).max() > 0.1
    again = landscape.canonical_form(other).model
    np.testing.assert_allclose(again.parameters, form.model.parameters, atol=1e-11)
    for name, value in form.model.named_state().items():
        np.testing.assert_allclose(again.named_state()[name], value, atol=1e-11)
    twice = landscape.canonical_form(form.model).model
    np.testing.assert_allclose(twice.parameters, form.model.parameters, atol=1e-12)


@pytest.mark.parametrize("kind", ["tanh", "norm tanh", "linear"])
def test_canonical_form_forgets_signs(kind):
    m = busy(CHAINS[kind])
    values = {n: v.copy() for n, v in m.named_parameters().items()}
    owner = "layers.1" if kind == "norm tanh" else "layers.0"
    following = {"tanh": "layers.2", "norm tanh": "layers.3", "linear": "layers.1"}[kind]
    values[f"{owner}.weight"][2] *= -1
    values[f"{owner}.bias"][2] *= -1
    values[f"{following}.weight"][:, 2] *= -1
    turned = m.copy()
    turned.set_parameters(values)
    assert landscape.function_distance(m, turned, X) < 1e-12
    a, b = (landscape.canonical_form(each).model.parameters for each in (m, turned))
    np.testing.assert_allclose(a, b, atol=1e-12)


def test_canonical_form_is_normal():
    values = landscape.canonical_form(busy(CHAINS["relu"])).model.named_parameters()
    for name in ("layers.0", "layers.2"):
        rows = np.column_stack([values[f"{name}.weight"], values[f"{name}.bias"]])
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-12)
        assert np.all(np.diff(rows[:, 0]) >= 0)
    form = landscape.canonical_form(busy(CHAINS["norm relu"]))
    values = form.model.named_parameters()
    np.testing.assert_allclose(np.linalg.norm(values["layers.0.weight"], axis=1), 1.0)
    assert np.all(values["layers.1.weight"] >= 0)
    pair = np.stack([values["layers.1.weight"], values["layers.1.bias"]])
    np.testing.assert_allclose(np.linalg.norm(pair, axis=0), 1.0)
    assert sorted(form.orders["layers.0"]) == list(range(7))


def test_units_without_weights_stay():
    m = busy(CHAINS["relu"])
    values = {n: v.copy() for n, v in m.named_parameters().items()}
    values["layers.0.weight"][3] = 0.0
    values["layers.0.bias"][3] = 0.0
    m.set_parameters(values)
    form = landscape.canonical_form(m).model
    assert landscape.function_distance(m, form, X) < 1e-12
    assert np.isfinite(form.parameters).all()
    assert len(landscape.symmetry_directions(m)) == 13


@pytest.mark.parametrize("kind", ["relu", "leaky", "linear"])
def test_gradient_is_orthogonal_to_the_symmetries(kind):
    m = busy(CHAINS[kind])
    directions = landscape.symmetry_directions(m)
    assert directions.shape == (13, m.num_parameters)
    gradient = m.loss_and_grad(X, Y)[1]
    np.testing.assert_allclose(directions @ gradient, 0.0, atol=1e-12 * np.linalg.norm(gradient))
    assert np.linalg.matrix_rank(directions) == 13


def test_gradient_is_orthogonal_to_the_scales_before_batch_norm():
    layers = nn.Sequential(nn.Dense(7), nn.BatchNorm(eps=1e-30), nn.ReLU(), nn.Dense(3))
    m = busy(layers)
    directions = landscape.symmetry_directions(m)
    assert directions.shape == (14, m.num_parameters)
    gradient = m.loss_and_grad(X, Y, training=True)[1]
    np.testing.assert_allclose(directions @ gradient, 0.0, atol=1e-12 * np.linalg.norm(gradient))


# ---- results -------------------------------------------------------------------------------------


def results() -> dict[str, Any]:
    m, recorder = recorded()
    trajectory = recorder.trajectory()
    start = trajectory.at(m, 0)
    objective = tw.Objective(m, X, Y)
    return {
        "path": landscape.linear_path(m, start, m, X, Y, points=3),
        "plane": landscape.trajectory_plane(m, trajectory, X, Y, points=3),
        "trajectory": trajectory,
        "projection": landscape.project(trajectory),
        "functions": landscape.function_trajectories(m, [trajectory], X),
        "gradient": landscape.gradient_diagnostics(m, X, Y, draws=2),
        "activations": landscape.activation_diagnostics(m, X),
        "margins": landscape.output_margins(m, X, Y),
        "rise": landscape.worst_rise(objective, iterations=2, starts=1),
        "form": landscape.canonical_form(m),
    }


def test_results_are_read_only_and_become_json():
    for name, result in results().items():
        values = json.loads(result.to_json())
        assert values["type"] == type(result).__name__, name
        for field, value in vars(result).items():
            if isinstance(value, np.ndarray):
                assert not value.flags.writeable, (name, field)
    with pytest.raises(AttributeError):
        results()["path"].distance = 2.0
    path = landscape.LinearPath(np.array([0.0, 1.0]), np.array([np.inf, 1.0]), 1.0)
    assert json.loads(path.to_json())["loss"] == [None, 1.0]


def test_results_draw():
    figure_module = pytest.importorskip("matplotlib.figure")
    for name, result in results().items():
        axes = figure_module.Figure().add_subplot()
        assert result.plot(axes) is axes
        assert axes.get_xlabel() or axes.get_ylabel(), name


def test_plot_without_matplotlib(monkeypatch):
    path = landscape.LinearPath(np.array([0.0, 1.0]), np.array([2.0, 1.0]), 1.0)
    plain = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"\[LinearPath.plot\] .* thalweg\[plot\]"):
        path.plot()


def test_importing_thalweg_does_not_import_the_landscape():
    import subprocess

    code = "import sys, thalweg; thalweg.Model; print('thalweg.landscape' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- bad input -----------------------------------------------------------------------------------

M = model()
P = M.num_parameters
RESIDUAL = tw.Model(
    [nn.Dense(5), nn.Residual(nn.Dense(5), nn.ReLU()), nn.Dense(3)], 5, device=DEVICE
)
LATE = tw.Model([nn.Dense(5), nn.ReLU(), nn.BatchNorm(), nn.Dense(3)], 5, device=DEVICE)
SIGMOID = model(layers=network(batch_norm=False, act=nn.Sigmoid()))

BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: landscape.linear_path(3, M, M, X, Y), TypeError, "model to be a thalweg.Model, got 3"),
    (lambda: landscape.linear_path(M, M, [1.0], X, Y), ValueError, f"end with {P} parameters"),
    (
        lambda: landscape.linear_path(M, np.full(P, np.nan), M, X, Y),
        ValueError,
        "finite numbers in start",
    ),
    (lambda: landscape.linear_path(M, M, M, X, Y, points=1), ValueError, "points >= 2, got 1"),
    (lambda: landscape.linear_path(M, M, M, X, Y[:3]), ValueError, "y"),
    (
        lambda: landscape.linear_path(M, np.ma.masked_less(np.arange(P), 2), M, X, Y),
        ValueError,
        f"start without masked elements, got 2 of {P}",
    ),
    (lambda: landscape.linear_path(M, ["a"], M, X, Y), TypeError, "real numbers"),
    (lambda: landscape.linear_path(M, [[1.0], [1.0, 2.0]], M, X, Y), ValueError, "start to be an"),
    (
        lambda: landscape.plane(M, M, np.zeros(P), np.ones(P), X, Y),
        ValueError,
        r"\[plane\] expected first that is not zero",
    ),
    (
        lambda: landscape.plane(M, M, np.ones(P), 2 * np.ones(P), X, Y),
        ValueError,
        "span a plane, got parallel",
    ),
    (
        lambda: landscape.plane(M, M, np.ones(P), np.ones(P), X, Y, extent=(1, 0, 0, 1)),
        ValueError,
        "low < high",
    ),
    (lambda: landscape.Recorder(0), ValueError, "every >= 1"),
    (lambda: landscape.Recorder().trajectory(), ValueError, "recorded training, got nothing"),
    (lambda: landscape.project(M), TypeError, "trajectory"),
    (lambda: landscape.function_trajectories(M, [], X), TypeError, "list of Trajectory"),
    (lambda: landscape.function_trajectories(M, [M], X), TypeError, "runs"),
    (lambda: landscape.function_trajectories(M, [], X, method="umap"), ValueError, "'pca', 'tsne'"),
    (lambda: landscape.gradient_diagnostics(M, X, Y, batch_size=0), ValueError, "batch_size >= 1"),
    (lambda: landscape.gradient_diagnostics(M, X[:0], Y[:0]), ValueError, "row"),
    (lambda: landscape.activation_diagnostics(M, X[:, :2]), ValueError, "x"),
    (lambda: landscape.linear_margins(np.zeros(5), X, SIGNS), ValueError, "weights that are not"),
    (lambda: landscape.linear_margins(np.ones(4), X, SIGNS), ValueError, r"features, got .*\(4,\)"),
    (lambda: landscape.linear_margins(np.ones(5), X, SIGNS, norm=3), ValueError, "1, 2, inf"),
    (lambda: landscape.linear_margins(np.ones(5), X, SIGNS, norm=[2]), ValueError, "1, 2, inf"),
    (lambda: landscape.linear_margins(np.ones(5), X, Y), ValueError, "labels -1 or"),
    (lambda: landscape.linear_margins(np.ones((2, 5)), X, Y), ValueError, r"labels in \[0, 2\)"),
    (
        lambda: landscape.output_margins(
            tw.Model(nn.Dense(1), 5, "squared_error", device=DEVICE), X, Y
        ),
        ValueError,
        "got squared_error",
    ),
    (lambda: landscape.worst_rise(M), TypeError, "thalweg.Objective"),
    (lambda: landscape.worst_rise(tw.Objective(M, X, Y), 0.0), ValueError, "radius > 0"),
    (lambda: landscape.worst_rise(tw.Objective(M, X, Y), norm=1), ValueError, "norm 2 or inf"),
    (
        lambda: landscape.canonical_form(RESIDUAL),
        ValueError,
        r"\[canonical_form\] .* got residual \(layers.1\)",
    ),
    (lambda: landscape.canonical_form(LATE), ValueError, "layers.2 behind layers.1"),
    (lambda: landscape.permute_units(M, "layers.1", [0]), ValueError, "'layers.0', 'layers.3'"),
    (lambda: landscape.permute_units(M, "layers.0", [0] * 7), ValueError, "permutation of 0 .. 6"),
    (lambda: landscape.permute_units(M, "layers.0", [[0], [1, 2]]), ValueError, "order to be an"),
    (lambda: landscape.rescale_units(M, "layers.0", -np.ones(7)), ValueError, "factors > 0"),
    (lambda: landscape.rescale_units(M, "layers.0", np.full(7, 1e-9)), ValueError, "variance"),
    (
        lambda: landscape.rescale_units(SIGMOID, "layers.0", np.ones(7)),
        ValueError,
        "positively homogeneous activation behind layers.0",
    ),
    (
        lambda: landscape.function_distance(M, tw.Model(nn.Dense(2), 5, device=DEVICE), X),
        ValueError,
        "one shape",
    ),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_bad_input(number):
    call, error, message = BAD[number]
    with pytest.raises(error, match=message):
        call()


def test_a_training_that_did_not_move_has_no_projection():
    m = model(optimizer=optim.SGD(0.0))
    recorder = landscape.Recorder()
    m.fit(X, Y, epochs=1, batch_size=20, callbacks=[recorder], verbose=False)
    with pytest.raises(ValueError, match="ends differ, got 3 checkpoint"):
        landscape.project(recorder.trajectory())
    straight = landscape.Trajectory(
        np.arange(3), np.outer([0.0, 1.0, 2.0], np.ones(P)), np.zeros(3), ({}, {}, {})
    )
    with pytest.raises(ValueError, match="straight one; use linear_path"):
        landscape.trajectory_plane(M, straight, X, Y)


def test_a_loss_that_is_not_finite_at_the_centre():
    m = tw.Model(nn.Dense(1), 1, "exponential", dtype="float32", device=DEVICE)
    objective = tw.Objective(m, [[1.0]], [-1])
    with pytest.raises(tw.NonFiniteError, match="centre"):
        landscape.worst_rise(objective, theta=[1e4, 0.0])


@pytest.mark.parametrize(
    "call",
    [
        lambda m: landscape.activation_diagnostics(m, X),
        lambda m: landscape.gradient_diagnostics(m, X, Y),
        lambda m: landscape.output_margins(m, X, Y),
        lambda m: landscape.function_distance(M, m, X),
    ],
    ids=["activations", "gradients", "margins", "distance"],
)
def test_what_is_not_finite_is_no_result(call):
    """Rows without a number would be neither right nor wrong, units neither dead nor alive."""
    broken = model(layers=network(batch_norm=False))
    values = {name: value.copy() for name, value in broken.named_parameters().items()}
    values["layers.2.weight"][0, 0] = np.nan
    broken.set_parameters(values)
    with pytest.raises(tw.NonFiniteError, match="got NaN or infinity") as caught:
        call(broken)
    assert caught.value.layer in ("", "layers.2")


def test_the_first_layer_that_is_not_finite_is_named():
    broken = model(layers=network(batch_norm=False))
    values = {name: value.copy() for name, value in broken.named_parameters().items()}
    values["layers.2.weight"][0, 0] = np.inf
    broken.set_parameters(values)
    with pytest.raises(tw.NonFiniteError, match=r"out of layers\.2;") as caught:
        landscape.activation_diagnostics(broken, X)
    assert caught.value.layer == "layers.2"


def test_axes_of_a_plane_do_not_depend_on_the_length_of_the_directions():
    rng = np.random.default_rng(4)
    first, second = rng.standard_normal((2, P))
    expected = landscape.plane(M, M, first, second, X, Y, points=2)
    for factor in (1e200, 1e-200):
        found = landscape.plane(M, M, factor * first, second, X, Y, points=2)
        np.testing.assert_allclose(found.axes, expected.axes, atol=1e-12)


def test_an_ascent_that_leaves_the_finite_numbers_has_not_converged():
    class Steep:
        """exp beyond the finite numbers one step away from the centre."""

        num_parameters = 1
        parameters = np.zeros(1)

        def __init__(self):
            self._model = self

        def value(self, theta):
            return float(theta[0])

        def value_and_grad(self, theta):
            return self.value(theta), np.ones(1)

        def grad(self, theta):
            return np.full(1, np.inf if theta[0] > 0.1 else 1.0)

    from thalweg.landscape import sharpness

    climb = sharpness._Climb(Steep(), np.zeros(1), 1.0, 2.0, 10, 1e-3)
    assert climb.run(np.ones(1))[2] == np.inf


def test_trajectories_that_say_nothing():
    m = model()
    recorder = landscape.Recorder()
    m.fit(X, Y, epochs=1, batch_size=20, callbacks=[recorder], verbose=False)
    good = recorder.trajectory()
    nothing = landscape.Trajectory(good.steps[:0], good.parameters[:0], good.loss[:0], ())
    broken = landscape.Trajectory(
        good.steps, np.full_like(good.parameters, np.nan), good.loss, good.states
    )
    with pytest.raises(ValueError, match="finite numbers in the checkpoints"):
        landscape.project(broken)
    with pytest.raises(ValueError, match="ends differ, got 0 checkpoint"):
        landscape.project(nothing)
    with pytest.raises(ValueError, match="runs with checkpoints"):
        landscape.function_trajectories(m, [nothing], X)
    with pytest.raises(ValueError, match="components <= 3"):
        landscape.function_trajectories(m, [good], X, method="tsne", components=4, perplexity=1.5)
    with pytest.raises(IndexError, match=r"index in \[-3, 3\), got 3"):
        good.at(m, 3)
