"""Methods of minimize/ on networks: fit, step, checkpoints, objectives, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thalweg as tw
from conftest import DEVICE
from support import snapshot
from thalweg import nn, optim, schedules

RNG = np.random.default_rng(5)
X = RNG.normal(size=(60, 4))
Y = (X[:, 0] * X[:, 1] > 0).astype(int)

METHODS: dict[str, optim.Method] = {
    "steepest_descent": optim.SteepestDescent(0.05, norm="linf"),
    "coordinate_descent": optim.CoordinateDescent(0.5, step="fixed"),
    "nonlinear_cg": optim.NonlinearCG(),
    "linear_cg": optim.LinearCG(),
    "bfgs": optim.BFGS(),
    "lbfgs": optim.LBFGS(history=4),
    "newton": optim.Newton(damping=1.0),
    "damped_newton": optim.DampedNewton(),
    "saddle_free_newton": optim.SaddleFreeNewton(damping=0.1),
    "path_sgd": optim.PathSGD(0.05),
}


def model(optimizer: optim.Optimizer, **options: Any) -> tw.Model:
    layers = options.pop("layers", [nn.Dense(6), nn.Tanh(), nn.Dense(2)])
    settings = {"dtype": "float64", "seed": 1, "device": DEVICE, **options}
    return tw.Model(layers, 4, optimizer=optimizer, **settings)


def fit(m: tw.Model, epochs: int = 3, **options: Any) -> tw.History:
    return m.fit(X, Y, epochs=epochs, **{"batch_size": 60, "verbose": False, **options})


def test_every_method_is_here() -> None:
    listed = {k for k, v in tw._core.methods().items() if not v["elementwise"]}
    assert METHODS.keys() == listed


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("batch_size", [60, 20])
def test_fit_is_one_step_per_update(name: str, batch_size: int) -> None:
    """Full batch: the same iterates as `minimize` on the objective, up to the order of sums."""
    if name == "linear_cg":
        return  # the loss is not quadratic
    m = model(METHODS[name])
    loss = tw.Objective(m, X, Y)
    start = m.parameters
    fit(m, 4, batch_size=batch_size)
    assert m.steps_done == 4 * 60 // batch_size
    if batch_size == 60:
        result = tw.minimize(loss, start, METHODS[name], max_iterations=4, gtol=0.0)
        np.testing.assert_allclose(m.parameters, result.x, rtol=1e-6, atol=1e-9)
    else:
        assert np.any(m.parameters != start) and np.isfinite(m.parameters).all()


def test_linear_cg_solves_least_squares_in_training() -> None:
    m = tw.Model(nn.Dense(1), 4, "squared_error", optim.LinearCG(), dtype="float64", device=DEVICE)
    target = X @ np.array([1.0, -2.0, 0.5, 3.0]) + 0.7
    m.fit(X, target, epochs=5, batch_size=60, verbose=False)
    np.testing.assert_allclose(m.parameters, [1.0, -2.0, 0.5, 3.0, 0.7], atol=1e-10)


def test_minibatches_use_their_own_objective() -> None:
    """By hand: rows of the epoch's order, one gradient step each."""
    m = model(optim.SteepestDescent(0.1))
    other = model(optim.SGD(0.1))
    for each in (m, other):
        fit(each, 3, batch_size=16)
    np.testing.assert_allclose(m.parameters, other.parameters, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("extra", ["dropout", "batch_norm", "weights", "class_weights"])
@pytest.mark.parametrize("shuffle", ["epoch", "stack", "iid", False])
def test_gradient_steps_are_those_of_sgd(extra: str, shuffle: str | bool) -> None:
    """Dropout masks, batch statistics, running statistics and weights are those of training."""
    middle = {"dropout": [nn.Dropout(0.3)], "batch_norm": [nn.BatchNorm()]}.get(extra, [])
    options: dict[str, Any] = {"batch_size": 20, "shuffle": shuffle}
    if extra == "weights":
        options["sample_weight"] = np.linspace(0.0, 2.0, 60)
    if extra == "class_weights":
        options["class_weight"] = {0: 1.0, 1: 3.0}
    models = [
        model(optimizer, layers=[nn.Dense(6), *middle, nn.Tanh(), nn.Dense(2)])
        for optimizer in (optim.SteepestDescent(0.1), optim.SGD(0.1))
    ]
    histories = [fit(each, 2, **options) for each in models]
    a, b = models
    np.testing.assert_allclose(a.parameters, b.parameters, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-9)
    for name, value in a.named_state().items():
        np.testing.assert_allclose(value, b.named_state()[name], rtol=1e-9)


def test_custom_loss_sees_its_rows() -> None:
    targets = np.eye(2)[Y]

    def loss(outputs: Any, target: Any) -> tuple[float, Any]:
        difference = outputs - target
        return float(np.mean(difference**2)), 2 * difference / difference.size

    models = [
        tw.Model(nn.Dense(2), 4, loss, each, dtype="float64", device=DEVICE)
        for each in (optim.SteepestDescent(0.2), optim.SGD(0.2))
    ]
    for each in models:
        each.fit(X, targets, epochs=3, batch_size=20, verbose=False)
    np.testing.assert_allclose(models[0].parameters, models[1].parameters, rtol=1e-10)
    quasi = tw.Model(nn.Dense(2), 4, loss, optim.LBFGS(), dtype="float64", device=DEVICE)
    quasi.fit(X, targets, epochs=20, batch_size=60, verbose=False)
    exact = np.linalg.lstsq(np.c_[X, np.ones(60)], targets, rcond=None)[0]
    np.testing.assert_allclose(quasi.parameters[:8].reshape(2, 4), exact[:4].T, atol=1e-5)


def test_schedules_drive_a_method() -> None:
    rate = schedules.Step(0.2, factor=0.5, every=2)
    a, b = model(optim.SteepestDescent(rate)), model(optim.SGD(rate))
    rates = [fit(each, 5)["lr"] for each in (a, b)]
    np.testing.assert_allclose(a.parameters, b.parameters, rtol=1e-9)
    assert list(rates[0]) == list(rates[1])


def test_lbfgs_reaches_what_sgd_does_not() -> None:
    m, other = model(optim.LBFGS()), model(optim.SGD(0.5))
    ends = [fit(each, 60)["loss"][-1] for each in (m, other)]
    assert ends[0] < 0.1 * ends[1]
    assert m.fallbacks.keys() <= {
        "approximate_wolfe", "sufficient_decrease", "steepest_descent", "skipped_update",
        "no_decrease",
    }  # fmt: skip
    assert other.fallbacks == {}


def test_float32() -> None:
    m = model(optim.LBFGS(), dtype="float32")
    history = fit(m, 60)
    assert history["loss"][-1] < 0.05


@pytest.mark.parametrize("name", METHODS)
def test_resume_is_bitwise(name: str, tmp_path: Path) -> None:
    if name == "linear_cg":
        return
    whole, part = model(METHODS[name]), model(METHODS[name])
    fit(whole, 6, batch_size=30)
    fit(part, 2, batch_size=30)
    part.fit(X, Y, epochs=1, batch_size=30, max_steps=1, verbose=False)
    part.save(tmp_path / "part.safetensors")
    loaded = tw.Model.load(tmp_path / "part.safetensors", device=DEVICE)
    assert loaded.optimizer == METHODS[name]
    copied = part.copy()
    for each in (part, loaded, copied):
        fit(each, 4, batch_size=30)
        assert snapshot(each) == snapshot(whole)


def test_reset_and_set_optimizer_forget() -> None:
    m, fresh = model(optim.LBFGS()), model(optim.LBFGS())
    fit(m, 5)
    m.reset()
    fit(m, 3)
    fit(fresh, 3)
    assert snapshot(m) == snapshot(fresh)
    m.set_optimizer(optim.Adam(0.01))
    fit(m, 1)
    assert m.fallbacks == {}
    m.set_optimizer("bfgs")
    assert m.optimizer == optim.BFGS()
    fit(m, 2)


def test_step() -> None:
    m = model(optim.LBFGS())
    losses = [m.step(X, Y)["loss"] for _ in range(10)]
    assert losses[-1] < losses[0] and m.steps_done == 10


def test_a_stalled_method_leaves_the_parameters() -> None:
    m = model(optim.NonlinearCG(), layers=[nn.Dense(2, bias=False)])
    constant = np.zeros((8, 4))
    before = m.parameters
    m.fit(constant, np.arange(8) % 2, epochs=2, batch_size=8, verbose=False)
    np.testing.assert_array_equal(m.parameters, before)
    assert m.fallbacks == {"no_decrease": 2}


def test_divergence_is_an_error_and_keeps_the_last_good_step() -> None:
    m = tw.Model(
        nn.Dense(1), 4, "squared_error", optim.SteepestDescent(1e9), dtype="float64", device=DEVICE
    )
    with pytest.raises(tw.NonFiniteError):
        m.fit(X, X[:, 0], epochs=50, batch_size=60, verbose=False)
    assert np.isfinite(m.parameters).all()


# ---- an objective as the function of `minimize`


def test_minimize_takes_an_objective() -> None:
    """In float64 to a critical point; in float32 as far as its rounding allows."""
    for dtype, gtol in (("float64", 1e-6), ("float32", 1e-3)):
        network = nn.Sequential(nn.Dense(6), nn.Tanh(), nn.Dense(3))
        model = tw.Model(network, 4, dtype=dtype, seed=2, device=DEVICE)
        loss = tw.Objective(model, X, Y)
        before = model.parameters
        result = tw.minimize(loss, max_iterations=300, gtol=gtol)
        assert result.x.dtype == dtype
        np.testing.assert_array_equal(model.parameters, before)
        assert result.fun < 1e-2
        model.set_parameters(result.x)
        assert loss.value() == pytest.approx(result.fun, rel=1e-5, abs=1e-7)
        newton = tw.minimize(loss, before, "saddle_free_newton", damping_search=True,
                             max_iterations=60, gtol=gtol)  # fmt: skip
        assert newton.fun < 1e-2 and newton.nhev > 0


def test_path_sgd_does_not_see_a_rescaling() -> None:
    """METHODS s14: trajectories are invariant, gradient descent's are not."""
    layers = [nn.Dense(6, bias=False), nn.ReLU(), nn.Dense(3, bias=False)]
    model = tw.Model(layers, 4, dtype="float64", seed=1, device=DEVICE)
    loss = tw.Objective(model, X, Y)
    scales = np.exp(np.random.default_rng(0).normal(size=6))
    values = model.named_parameters()
    rescaled = np.concatenate(
        [
            (values["layers.0.weight"] * scales[:, None]).ravel(),
            (values["layers.2.weight"] / scales).ravel(),
        ]
    )
    for method, lr, same in (("path_sgd", 0.05, True), ("sgd", 0.05, False)):
        ends = [
            tw.minimize(loss, start, method, lr=lr, max_iterations=20, gtol=0.0)
            for start in (model.parameters, rescaled)
        ]
        losses = [end.history["value"] for end in ends]
        assert np.allclose(losses[0], losses[1], rtol=1e-10) == same
        assert losses[0][-1] < losses[0][0]


def test_path_sgd_with_batch_norm_is_refused() -> None:
    model = tw.Model([nn.Dense(3), nn.BatchNorm(), nn.Dense(3)], 4, dtype="float64", device=DEVICE)
    with pytest.raises(ValueError, match="path"):
        tw.minimize(tw.Objective(model, X, Y), method="path_sgd")


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: model(optim.LBFGS(), averaging=optim.EMA(0.9)), ValueError, "averaging"),
    (lambda: model(optim.LBFGS(), clip_norm=1.0), ValueError, "clip_norm"),
    (lambda: fit(model(optim.LBFGS()), accumulate=2, batch_size=20), ValueError, "accumulate"),
    (lambda: fit(model(optim.PathSGD(), layers=[nn.Dense(3), nn.BatchNorm(), nn.Dense(2)])),
     ValueError, "path"),
    (lambda: fit(model(optim.LBFGS(c1=0.4, c2=0.3))), ValueError, "c1 < c2"),
    (lambda: optim.from_dict({"type": "lbfgs", "lr": 1.0}), ValueError, "unknown"),
    (lambda: optim.LBFGS(weight_decay=0.1), TypeError, "weight_decay"),  # type: ignore[call-arg]
    (lambda: tw.minimize(tw.Objective(model(optim.SGD()), X, Y), hvp=lambda x, v: v), TypeError,
     "beside an Objective"),
    (lambda: tw.minimize(tw.Objective(model(optim.SGD()), X, Y), [1.0]), ValueError, "x0 of shape"),
    (lambda: tw.minimize(lambda x: (1.0, x)), TypeError, "x0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_newton_wants_a_loss_with_second_derivatives() -> None:
    def loss(outputs: Any, target: Any) -> tuple[float, Any]:
        return float(np.mean((outputs - target) ** 2)), 2 * (outputs - target) / outputs.size

    m = tw.Model(nn.Dense(2), 4, loss, optim.Newton(), dtype="float64", device=DEVICE)
    before = snapshot(m)
    with pytest.raises(ValueError, match="Hessian-vector"):
        m.fit(X, np.eye(2)[Y], epochs=1, verbose=False)
    assert snapshot(m) == before
