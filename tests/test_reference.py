"""Checks of the float64 reference: published vectors, identities, differences, oracles."""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import reference as ref

ORACLES = Path(__file__).parent / "oracles"
ORACLE_FILES = ("layers", "losses", "batch_norm", "optimizers", "schedules")
KINK_DISTANCE = 1e-3
GRADIENT_ERROR = 1e-7


def oracle(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ORACLES / f"{name}.json").read_text())
    return content


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-13) -> None:
    np.testing.assert_allclose(
        ref.as_float(actual), ref.as_float(expected), rtol=tolerance, atol=tolerance
    )


def assert_gradient(actual: ref.Float, expected: ref.Float) -> None:
    """Maximum error relative to the largest entry."""
    largest = np.abs(expected).max(initial=1e-3)
    assert np.abs(actual - expected).max(initial=0.0) / largest <= GRADIENT_ERROR


# -- Philox and dropout --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000" * 4, "00000000" * 2, "6627e8d5e169c58dbc57ac4c9b00dbd8"),
        ("ffffffff" * 4, "ffffffff" * 2, "408f276d41c83b0ea20bc7c66d5451fd"),
        (
            "243f6a8885a308d313198a2e03707344",
            "a4093822299f31d0",
            "d16cfe0994fdcceb5001e42024126ea1",
        ),
    ],
)
def test_philox_known_answers(counter: str, key: str, words: str) -> None:
    def split(text: str) -> list[int]:
        return [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]

    k0, k1 = split(key)
    assert ref.philox4x32(split(counter), (k0, k1)).tolist() == split(words)


def test_random_words_use_every_counter_field() -> None:
    element = 4 * 0x0000_1234_89AB_CDEF + 2
    found = ref.random_words(
        [element], seed=0x0123_4567_89AB_CDEF, stream=0xBEEF, step=0xFEDC_BA98_7654_3210
    )
    counter = [0x89ABCDEF, 0xBEEF1234, 0x76543210, 0xFEDCBA98]
    assert int(found[0]) == int(ref.philox4x32(counter, (0x89ABCDEF, 0x01234567))[2])


def test_dropout_scale() -> None:
    place: dict[str, int] = {"seed": 3, "stream": 1, "step": 5}
    scale = ref.dropout_scale((501, 33), 0.3, **place)
    kept = scale > 0
    assert abs(kept.mean() - 0.7) < 4 * math.sqrt(0.21 / kept.size)
    assert_close(scale[kept], 1 / 0.7)
    shard = ref.dropout_scale((100, 33), 0.3, **place, first_row=200)
    np.testing.assert_array_equal(shard, scale[200:300])
    assert (ref.dropout_scale((5, 7), 0.0, **place) == 1.0).all()
    for other in ({"seed": 4}, {"stream": 2}, {"step": 6}):
        assert (ref.dropout_scale((501, 33), 0.3, **{**place, **other}) != scale).any()


# -- activations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ref.ACTIVATIONS)
def test_activation_derivatives(name: str) -> None:
    rule = ref.ACTIVATIONS[name]
    z = rng(1).uniform(-6, 6, 400)
    z = z[np.abs(z) > KINK_DISTANCE]
    a = 0.7 if rule.parameter else 0.0
    h = 1e-5
    for low, high in ((rule.value, rule.derivative), (rule.derivative, rule.second_derivative)):
        assert_gradient(high(z, a), (low(z + h, a) - low(z - h, a)) / (2 * h))


@pytest.mark.parametrize("name", ref.ACTIVATIONS)
def test_activation_oracle(name: str) -> None:
    case = oracle("layers")["activations"][name]
    rule, a = ref.ACTIVATIONS[name], case["parameter"] or 0.0
    z = ref.as_float(case["z"])
    assert_close(rule.value(z, a), case["y"])
    assert_close(rule.derivative(z, a), case["derivative"])
    smooth = z != 0.0  # PyTorch takes the second derivative of ELU at its kink from the other side
    assert_close(
        rule.second_derivative(z, a)[smooth], ref.as_float(case["second_derivative"])[smooth]
    )


@pytest.mark.parametrize("name", ref.ACTIVATIONS)
def test_activation_extremes(name: str) -> None:
    rule = ref.ACTIVATIONS[name]
    with np.errstate(all="raise", under="ignore"):
        for part in (rule.value, rule.derivative, rule.second_derivative):
            assert np.isfinite(part(np.array([-1e4, -800.0, 0.0, 800.0, 1e4]), 0.5)).all()
    assert np.isnan(rule.value(np.array([np.nan]), 0.5)).all()


def test_activation_identities() -> None:
    z = np.linspace(-30, 30, 301)
    value = {name: rule.value(z, rule.default) for name, rule in ref.ACTIVATIONS.items()}
    assert_close(value["tanh"], 2 * ref.sigmoid(2 * z) - 1, 1e-15)
    assert_close(value["relu"] * 3, ref.ACTIVATIONS["relu"].value(3 * z, 0.0))
    assert_close(value["softplus"] - ref.softplus(-z), z)
    assert_close(value["gelu"] - ref.ACTIVATIONS["gelu"].value(-z, 0.0), z)
    assert ref.ACTIVATIONS["relu"].derivative(np.zeros(1), 0.0) == 0.0


# -- dense and maxout ----------------------------------------------------------------------------


def test_dense_oracle() -> None:
    case = {k: ref.as_float(v) for k, v in oracle("layers")["dense"].items()}
    assert_close(ref.dense(case["x"], case["weight"], case["bias"]), case["y"])
    found = ref.dense_backward(case["dy"], case["x"], case["weight"])
    assert_close(found.x, case["d_x"])
    assert_close(found.weight, case["d_weight"])
    assert_close(found.bias, case["d_bias"])


def test_dense_of_no_rows_and_no_inputs() -> None:
    assert ref.dense(np.zeros((0, 3)), np.ones((2, 3))).shape == (0, 2)
    assert_close(ref.dense(np.zeros((4, 0)), np.zeros((2, 0)), np.array([1.0, 2.0]))[3], [1, 2])


def test_maxout() -> None:
    z = rng(2).standard_normal((6, 12))
    y = ref.maxout(z, 3)
    assert y.shape == (6, 4)
    assert y[2, 1] == max(z[2, 3:6])
    dy = rng(3).standard_normal((6, 4))
    numeric = ref.central_difference(lambda at: float((dy * ref.maxout(at, 3)).sum()), z)
    assert_gradient(ref.maxout_backward(dy, z, 3), numeric)
    with_zero = np.stack([z, np.zeros_like(z)], axis=-1).reshape(6, 24)
    np.testing.assert_array_equal(ref.maxout(with_zero, 2), np.maximum(z, 0))
    tie = ref.maxout_backward(np.ones((1, 1)), np.array([[1.0, 2.0, 2.0]]), 3)
    np.testing.assert_array_equal(tie, [[0, 1, 0]])


# -- batch norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["ema", "cumulative"])
def test_batch_norm_oracle(rule: str) -> None:
    case = oracle("batch_norm")[rule]
    gamma, beta, eps = ref.as_float(case["gamma"]), ref.as_float(case["beta"]), case["eps"]
    running = ref.RunningStatistics(np.zeros(3), np.ones(3), 0)
    for batch in case["batches"]:
        y, cache = ref.batch_norm(ref.as_float(batch["z"]), gamma, beta, eps)
        found = ref.batch_norm_backward(ref.as_float(batch["dy"]), cache)
        running = ref.update_running_statistics(running, cache.statistics, case["momentum"])
        assert_close(y, batch["y"])
        assert_close(found.z, batch["d_z"])
        assert_close(found.gamma, batch["d_gamma"])
        assert_close(found.beta, batch["d_beta"])
        assert_close(running.mean, batch["running_mean"])
        assert_close(running.variance, batch["running_var"])
    last = case["eval"]
    z, dy = ref.as_float(last["z"]), ref.as_float(last["dy"])
    frozen = (gamma, running.mean, running.variance, eps)
    assert_close(ref.batch_norm_eval(z, gamma, beta, *frozen[1:]), last["y"])
    found = ref.batch_norm_eval_backward(dy, z, *frozen)
    assert_close(found.z, last["d_z"])
    assert_close(found.gamma, last["d_gamma"])
    assert_close(found.beta, last["d_beta"])


@pytest.mark.parametrize("weighted", [False, True])
def test_batch_norm_central_differences(weighted: bool) -> None:
    r = rng(4)
    z, dy = r.standard_normal((9, 3)), r.standard_normal((9, 3))
    gamma, beta = r.uniform(0.5, 1.5, 3), r.standard_normal(3)
    weights = r.uniform(0.0, 3.0, 9) if weighted else None

    def value(z: ref.Float, gamma: ref.Float, beta: ref.Float) -> float:
        return float((dy * ref.batch_norm(z, gamma, beta, 1e-5, weights)[0]).sum())

    found = ref.batch_norm_backward(dy, ref.batch_norm(z, gamma, beta, 1e-5, weights)[1])
    assert_gradient(found.z, ref.central_difference(lambda at: value(at, gamma, beta), z))
    assert_gradient(found.gamma, ref.central_difference(lambda at: value(z, at, beta), gamma))
    assert_gradient(found.beta, ref.central_difference(lambda at: value(z, gamma, at), beta))


def test_weighted_batch_norm_equals_repeated_rows() -> None:
    r = rng(5)
    z, dy = r.standard_normal((8, 4)), r.standard_normal((8, 4))
    gamma, beta = r.uniform(0.5, 1.5, 4), r.standard_normal(4)
    counts = np.array([2, 0, 1, 3, 1, 0, 4, 1])
    owner = np.repeat(np.arange(8), counts)
    weights = ref.as_float(counts)
    y, cache = ref.batch_norm(z, gamma, beta, 1e-5, weights)
    y_long, cache_long = ref.batch_norm(z[owner], gamma, beta, 1e-5)
    assert_close(y[owner], y_long)
    # a row of weight w carries w times the gradient of one of its copies
    found = ref.batch_norm_backward(dy * weights[:, None], cache)
    long = ref.batch_norm_backward(dy[owner], cache_long)
    summed = np.zeros_like(z)
    np.add.at(summed, owner, long.z)
    assert_close(found.z, summed)
    assert_close(found.gamma, long.gamma)
    assert_close(found.beta, long.beta)
    start = ref.RunningStatistics(np.zeros(4), np.ones(4), 0)
    for momentum in (0.1, None):
        short = ref.update_running_statistics(start, cache.statistics, momentum)
        full = ref.update_running_statistics(start, cache_long.statistics, momentum)
        assert_close(short.variance, full.variance)
        assert_close(short.mean, full.mean)


def test_batch_norm_projector() -> None:
    r = rng(6)
    _, cache = ref.batch_norm(r.standard_normal((20, 3)), np.ones(3), np.zeros(3), 0.0)
    q, p = r.standard_normal((2, 20, 3))
    once = ref.batch_norm_project(q, cache)
    assert_close(ref.batch_norm_project(once, cache), once)
    assert_close((p * once).sum(axis=0), (ref.batch_norm_project(p, cache) * q).sum(axis=0))
    assert_close((once * cache.normalized).sum(axis=0), np.zeros(3))


def test_batch_norm_ignores_weight_scale() -> None:
    r = rng(7)
    x, weight, dy = (
        r.standard_normal((30, 5)),
        r.standard_normal((4, 5)),
        r.standard_normal((30, 4)),
    )
    y, cache = ref.batch_norm(ref.dense(x, weight), np.ones(4), np.zeros(4), 0.0)
    scaled, _ = ref.batch_norm(ref.dense(x, 3.7 * weight), np.ones(4), np.zeros(4), 0.0)
    assert_close(scaled, y)
    d_weight = ref.dense_backward(ref.batch_norm_backward(dy, cache).z, x, weight).weight
    assert np.abs((weight * d_weight).sum(axis=1)).max() < 1e-12


def test_batch_norm_constant_column_and_large_mean() -> None:
    z = np.stack([np.full(50, 0.1), 1e4 + rng(8).standard_normal(50)], axis=1)
    y, cache = ref.batch_norm(z, np.array([2.0, 1.0]), np.array([0.3, 0.0]))
    assert (y[:, 0] == 0.3).all()
    assert_close(cache.statistics.variance[1], np.var(z[:, 1] - 1e4), 1e-11)
    with pytest.raises(ValueError, match="more than one row"):
        ref.batch_norm(z[:1], np.ones(2), np.zeros(2))


def test_cumulative_running_statistics() -> None:
    running = ref.RunningStatistics(np.full(2, 9.0), np.full(2, 9.0), 0)
    batches = rng(9).standard_normal((4, 5, 2))
    for z in batches:
        running = ref.update_running_statistics(running, ref.batch_norm_statistics(z), None)
    assert_close(running.mean, batches.mean(axis=(0, 1)))
    assert_close(running.variance, 5 / 4 * batches.var(axis=1).mean(axis=0))


# -- losses --------------------------------------------------------------------------------------


def loss_arguments(name: str, case: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Loss name, target and options of an oracle case."""
    options: dict[str, Any] = {}
    if name.startswith("cross_entropy"):
        if "label_smoothing" in case:
            options["label_smoothing"] = case["label_smoothing"]
        if "class_weight" in case:
            options["class_weight"] = dict(enumerate(case["class_weight"]))
        return "cross_entropy", np.asarray(case["labels"]), options
    kind = next(k for k in ref.ELEMENTWISE_LOSSES if name.startswith(k))
    options["reduction"] = name.removeprefix(f"{kind}_")
    if "delta" in case:
        options["delta"] = case["delta"]
    return kind, case["target"], options


@pytest.mark.parametrize("name", oracle("losses"))
def test_loss_oracle(name: str) -> None:
    case = oracle("losses")[name]
    kind, target, options = loss_arguments(name, case)
    found = ref.LOSSES[kind](ref.as_float(case["z"]), target, **options)
    assert_close(found.value, case["loss"])
    assert_close(found.gradient, case["d_z"])


def loss_target(name: str, r: np.random.Generator, shape: tuple[int, int]) -> Any:
    if name == "cross_entropy":
        return r.integers(0, shape[1], shape[0])
    return {
        "real": r.standard_normal(shape),
        "unit_interval": r.random(shape),
        "sign": np.where(r.random(shape) < 0.5, -1.0, 1.0),
    }[ref.ELEMENTWISE_LOSSES[name].target]


@pytest.mark.parametrize("name", ref.LOSSES)
def test_loss_central_differences(name: str) -> None:
    r = rng(10)
    z, weight = r.standard_normal((7, 4)), r.uniform(0.5, 2.0, 7)
    target = loss_target(name, r, (7, 4))
    settings: list[dict[str, Any]] = [{"label_smoothing": 0.0}, {"label_smoothing": 0.3}]
    if name != "cross_entropy":
        settings = [{"reduction": n} for n in ("batch_mean", "sum", "element_mean")]
    for options in settings:
        loss = partial(ref.LOSSES[name], target=target, sample_weight=weight, **options)
        numeric = ref.central_difference(lambda at: loss(at).value, z)  # noqa: B023
        assert_gradient(loss(z).gradient, numeric)


@pytest.mark.parametrize("name", ref.ELEMENTWISE_LOSSES)
def test_elementwise_second_derivative(name: str) -> None:
    rule, r, h = ref.ELEMENTWISE_LOSSES[name], rng(11), 1e-5
    z, t = 2 * r.standard_normal((50, 4)), loss_target(name, r, (50, 4))
    a = rule.default
    numeric = (rule.gradient(z + h, t, a) - rule.gradient(z - h, t, a)) / (2 * h)
    assert_gradient(rule.second_derivative(z, t, a), numeric)


@pytest.mark.parametrize("name", ref.LOSSES)
def test_sample_weight_equals_repeated_rows(name: str) -> None:
    r = rng(12)
    z, counts = r.standard_normal((5, 3)), np.array([2, 0, 1, 3, 1])
    target = loss_target(name, r, (5, 3))
    owner = np.repeat(np.arange(5), counts)
    weighted = ref.LOSSES[name](z, target, ref.as_float(counts))
    repeated = ref.LOSSES[name](z[owner], target[owner])
    assert_close(weighted.value, repeated.value)
    summed = np.zeros_like(z)
    np.add.at(summed, owner, repeated.gradient)
    assert_close(weighted.gradient, summed)


def test_cross_entropy_identities() -> None:
    r = rng(13)
    z, labels = 5 * r.standard_normal((6, 4)), r.integers(0, 4, 6)
    base = ref.cross_entropy(z, labels)
    shifted = ref.cross_entropy(z + r.standard_normal((6, 1)) * 100, labels)
    assert_close(base.value, shifted.value, 1e-12)
    assert_close(base.gradient, shifted.gradient, 1e-12)
    assert_close(base.gradient.sum(axis=1), np.zeros(6))
    assert_close(base.value, ref.cross_entropy(z, np.eye(4)[labels]).value)
    a = ref.softmax(z)[0]
    jacobian = np.diag(a) - np.outer(a, a)
    direction = r.standard_normal(4)
    numeric = ref.central_difference(lambda at: float(ref.softmax(at)[0] @ direction), z[:1])
    assert_gradient(jacobian @ direction, numeric[0])
    assert_close(np.exp(ref.log_softmax(z)), ref.softmax(z))
    class_weight = {0: 0.5, 2: 3.0}
    weights = np.array([class_weight.get(int(c), 1.0) for c in labels])
    assert_close(
        ref.cross_entropy(z, labels, class_weight=class_weight).value,
        ref.cross_entropy(z, labels, weights).value,
    )


@pytest.mark.parametrize("labels", [[-1, 0], [0, 3], [0, 2**31]])
def test_cross_entropy_rejects_labels(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="expected labels in"):
        ref.cross_entropy(np.zeros((2, 3)), np.array(labels))


def test_losses_are_finite_at_large_margins() -> None:
    z = np.array([[-1e4], [1e4]])
    for target in ([[1.0], [1.0]], [[-1.0], [-1.0]]):
        assert np.isfinite(ref.LOSSES["logistic"](z, target).value)
        assert np.isfinite(ref.LOSSES["binary_cross_entropy"](z, np.maximum(target, 0)).value)
        log_loss = ref.log_exponential(z, target)
        assert np.isfinite(log_loss.value)
        assert np.isfinite(log_loss.gradient).all()
    z, t = rng(14).standard_normal((5, 1)), np.array([1.0, -1, 1, 1, -1])
    plain, log_loss = ref.LOSSES["exponential"](z, t), ref.log_exponential(z, t)
    assert_close(log_loss.value, math.log(plain.value))
    assert_close(log_loss.gradient, plain.gradient / plain.value)


def test_reductions() -> None:
    r = rng(15)
    z, t, w = r.standard_normal((4, 3)), r.standard_normal((4, 3)), np.array([1.0, 2, 0, 0.5])
    rows = ((z - t) ** 2).sum(axis=1)
    loss = ref.LOSSES["squared_error"]
    assert_close(loss(z, t).value, rows.mean())
    assert_close(loss(z, t, w).value, w @ rows / w.sum())
    assert_close(loss(z, t, w, reduction="sum").value, w @ rows)
    assert_close(loss(z, t, w, reduction="element_mean").value, w @ rows / w.sum() / 3)


def test_metrics() -> None:
    z = np.array([[1.0, 3, 2], [5, 5, 0], [0, 1, 2]])
    labels = np.array([2, 1, 2])
    assert ref.top_k_accuracy(z, labels) == pytest.approx(1 / 3)
    assert ref.top_k_accuracy(z, labels, 2) == 1.0
    assert ref.top_k_accuracy(z, labels, 1, np.array([0, 1.0, 3.0])) == 0.75
    assert ref.perplexity(math.log(5.0)) == pytest.approx(5.0)
    assert ref.balanced_class_weight(np.array([0, 0, 0, 2])) == {0: 4 / 6, 2: 2.0}


# -- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", oracle("schedules"))
def test_schedule_oracle(name: str) -> None:
    case = oracle("schedules")[name]
    found = [ref.schedule_value(case["description"], k) for k in range(len(case["values"]))]
    assert_close(found, case["values"])


def test_schedule_values() -> None:
    def value(k: int, schedule: str, **options: Any) -> float:
        return ref.schedule_value({"schedule": schedule, **options}, k, steps_per_epoch=10)

    assert ref.schedule_value(0.3, 100) == 0.3
    assert value(7, "constant", value=0.2) == 0.2
    assert value(0, "linear", start=1.0, tau=4) == 1.0
    assert value(9, "linear", start=1.0, tau=4) == pytest.approx(0.01)
    assert value(20, "linear", start=1.0, end=0.0, tau_epochs=4) == 0.5
    assert value(5, "robbins_monro", start=1.0, k0=5) == pytest.approx(0.5)
    assert value(8, "robbins_monro", start=3.0, k0=1, power=0.5) == pytest.approx(1.0)
    assert value(99, "cosine", start=1.0, end=0.1, steps=10) == pytest.approx(0.1)
    assert value(3, "nesterov_convex") == 0.5
    inner = {"schedule": "step", "start": 1.0, "factor": 0.1, "every": 2}
    found = [value(k, "warmup", steps=4, then=inner) for k in range(7)]
    assert_close(found, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.1])
    peak = [value(k, "one_cycle", peak=2.0, steps=100) for k in range(101)]
    assert max(peak) == 2.0
    assert peak[0] == pytest.approx(2.0 / 25)
    assert peak[99] == pytest.approx(2.0 / 25 / 1e4) == peak[100]


# -- optimizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", oracle("optimizers")["paths"])
def test_optimizer_oracle(name: str) -> None:
    content = oracle("optimizers")
    case = content["paths"][name]
    optimizer = ref.Optimizer(case["description"])
    parameters = {"p": ref.as_float(content["start"])}
    for g, expected in zip(content["gradients"], case["path"], strict=True):
        parameters = optimizer.step(parameters, {"p": ref.as_float(g)})
        assert_close(parameters["p"], expected, 1e-12)


def quadratic(seed: int = 16, size: int = 6) -> tuple[ref.Float, ref.Float]:
    """Positive definite matrix and a start."""
    r = rng(seed)
    q, _ = np.linalg.qr(r.standard_normal((size, size)))
    return q @ np.diag(np.geomspace(0.05, 1.0, size)) @ q.T, r.standard_normal(size)


MOMENTA: list[Any] = [0.9, {"schedule": "nesterov_convex"}]


@pytest.mark.parametrize("momentum", MOMENTA, ids=["constant", "schedule"])
def test_nesterov_matches_look_ahead_form(momentum: Any) -> None:
    hessian, theta = quadratic()
    lr = {"schedule": "linear", "start": 0.5, "end": 0.1, "tau": 30}
    optimizer = ref.Optimizer({"type": "nesterov", "lr": lr, "momentum": momentum})
    stored, v = {"p": theta.copy()}, np.zeros_like(theta)
    for k in range(60):
        a, e = ref.schedule_value(momentum, k), ref.schedule_value(lr, k)
        v = a * v - e * (hessian @ (theta + a * v))
        theta = theta + v
        stored = optimizer.step(stored, {"p": hessian @ stored["p"]})
        assert_close(optimizer.theta(stored)["p"], theta)


@pytest.mark.parametrize("momentum", MOMENTA, ids=["constant", "schedule"])
def test_rmsprop_nesterov_matches_look_ahead_form(momentum: Any) -> None:
    hessian, theta = quadratic()
    optimizer = ref.Optimizer({"type": "rmsprop_nesterov", "lr": 0.01, "momentum": momentum})
    stored, v, r = {"p": theta.copy()}, np.zeros_like(theta), np.zeros_like(theta)
    for k in range(60):
        a = ref.schedule_value(momentum, k)
        g = hessian @ (theta + a * v)
        r = 0.9 * r + 0.1 * g * g
        v = a * v - 0.01 * g / (1e-6 + np.sqrt(r))
        theta = theta + v
        stored = optimizer.step(stored, {"p": hessian @ stored["p"]})
        assert_close(optimizer.theta(stored)["p"], theta)


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_torch_compat_agrees_for_a_constant_rate_only(name: str) -> None:
    hessian, start = quadratic()

    def run(lr: Any, compat: bool) -> tuple[ref.Float, ref.Float]:
        optimizer = ref.Optimizer({"type": name, "lr": lr, "torch_compat": compat})
        stored = {"p": start}
        for _ in range(20):
            stored = optimizer.step(stored, {"p": hessian @ stored["p"]})
        return stored["p"], optimizer.theta(stored)["p"]

    assert_close(run(0.1, True), run(0.1, False))
    decayed = {"schedule": "linear", "start": 0.5, "tau": 10}
    assert np.abs(run(decayed, True)[0] - run(decayed, False)[0]).max() > 1e-3


@pytest.mark.parametrize("name", ref.OPTIMIZERS)
def test_optimizer_descends_and_decays(name: str) -> None:
    hessian, start = quadratic()
    optimizer = ref.Optimizer({"type": name})
    stored = {"p": start}
    for _ in range(200):
        stored = optimizer.step(stored, {"p": hessian @ stored["p"]})
    theta = optimizer.theta(stored)["p"]
    assert theta @ hessian @ theta < start @ hessian @ start
    decayed = ref.Optimizer({"type": name, "weight_decay": 0.1})
    plain = ref.Optimizer({"type": name, "weight_decay": 0.0})
    g = {"p": hessian @ start}
    if name == "adamw":
        expected = plain.step({"p": start * (1 - 1e-3 * 0.1)}, g)
    else:
        expected = plain.step({"p": start}, {"p": g["p"] + 0.1 * start})
    assert_close(decayed.step({"p": start}, g)["p"], expected["p"])


def test_rmsprop_delta_inside_the_root() -> None:
    optimizer = ref.Optimizer({"type": "rmsprop", "lr": 1.0, "delta": 0.3, "delta_inside": True})
    found = optimizer.step({"p": np.zeros(1)}, {"p": np.array([2.0])})["p"]
    assert_close(found, [-2.0 / math.sqrt(0.1 * 4.0 + 0.3)])


def test_adam_bias_correction_far_out() -> None:
    rule = ref.OPTIMIZERS["adam"]
    hyper = dict(rule.defaults)
    slots = (np.array([0.2]), np.array([0.5]))
    one, g = np.ones(1), np.array([0.1])
    late, _ = rule.update(one, g, slots, hyper, hyper, 10**9)
    s, r = 0.9 * 0.2 + 0.1 * 0.1, 0.999 * 0.5 + 0.001 * 0.01
    assert_close(late, [1 - 1e-3 * s / (math.sqrt(r) + 1e-8)])


def test_groups() -> None:
    description = {
        "type": "momentum",
        "lr": 0.1,
        "weight_decay": 0.2,
        "groups": [
            {"match": "layers.0.*", "frozen": True},
            {"match": "*.bias", "lr_scale": 0.5, "weight_decay": 0.0},
        ],
    }
    names = ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    optimizer = ref.Optimizer(description)
    before = {name: np.ones(1) for name in names}
    after = optimizer.step(before, {name: np.ones(1) for name in names})
    assert_close([float(after[n][0]) for n in names], [1, 1, 1 - 0.1 * 1.2, 1 - 0.05])
    assert set(optimizer.slots) == set(names[2:])


def test_clipping() -> None:
    case = oracle("optimizers")["clipping"]
    gradients = {str(i): ref.as_float(g) for i, g in enumerate(case["gradients"])}
    clipped, norm = ref.clip_by_global_norm(gradients, case["limit"])
    assert_close(norm, case["norm"])
    for found, expected in zip(clipped.values(), case["clipped"], strict=True):
        assert_close(found, expected, 1e-6)  # PyTorch adds 1e-6 to the norm
    assert_close(ref.global_norm(clipped), 1.0)
    assert ref.clip_by_global_norm(gradients, 100.0)[0]["0"].tolist() == gradients["0"].tolist()
    assert ref.global_norm({"huge": np.full(4, 1e200)}) == pytest.approx(2e200)


def test_averaging_oracle() -> None:
    content = oracle("optimizers")
    case = content["averaging"]
    p = ref.as_float(content["start"])
    polyak = ref.Averager({"type": "polyak", "start": 0})
    ema = ref.Averager({"type": "ema", "decay": case["decay"]})
    for k, g in enumerate(content["gradients"]):
        p = p - case["lr"] * ref.as_float(g)
        assert_close(polyak.update({"p": p})["p"], case["polyak"][k])
        assert_close(ema.update({"p": p})["p"], case["ema"][k])


def test_polyak_start() -> None:
    averager = ref.Averager({"type": "polyak", "start": 3})
    found = [float(averager.update({"p": np.array([k])})["p"][0]) for k in (1.0, 2, 3, 4, 5, 6)]
    assert found == [1, 2, 3, 4, 4.5, 5]


# -- initializers --------------------------------------------------------------------------------


def test_weight_distributions() -> None:
    case = oracle("layers")["linear_default_init"]
    deck = ref.weight_distribution("deck", case["fan_in"], 64)
    assert 0.98 * deck.scale < case["largest"] <= deck.scale
    assert case["variance"] == pytest.approx(deck.variance, rel=0.1)
    assert ref.weight_distribution("glorot_uniform", 4, 8).variance == pytest.approx(2 / 12)
    assert ref.weight_distribution("he_normal", 8, 4).variance == pytest.approx(2 / 8)
    assert ref.weight_distribution("lecun_normal", 8, 4).variance == pytest.approx(1 / 8)
    auto = [ref.weight_distribution("auto", 8, 4, he_family=he).kind for he in (True, False)]
    assert auto == ["normal", "uniform"]
    assert ref.weight_distribution({"type": "uniform", "bound": 0.1}, 8, 4).scale == 0.1
    assert ref.weight_distribution("zeros", 8, 4).variance == 0.0


# -- networks ------------------------------------------------------------------------------------


def test_network_oracle() -> None:
    case = oracle("layers")["network"]
    network = ref.Network(case["description"])
    assert set(network.parameter_shapes()) == set(case["parameters"])
    parameters = {name: ref.as_float(p) for name, p in case["parameters"].items()}
    found = network.evaluate(parameters, ref.as_float(case["x"]), np.asarray(case["labels"]))
    assert_close(found.outputs, case["z"])
    assert_close(found.loss, case["loss"])
    assert_close(found.input_gradient, case["d_x"])
    for name, expected in case["gradients"].items():
        assert_close(found.gradients[name], expected)
    for name, expected in case["state"].items():
        assert_close(found.state[name], expected)


def test_parameter_names_and_bias_rule() -> None:
    description = {
        "in_features": 3,
        "layers": [
            {"type": "dense", "units": 4, "bias": None},
            {"type": "batch_norm"},
            {"type": "residual", "layers": [{"type": "relu"}, {"type": "dense", "units": 4}]},
            {"type": "maxout", "units": 2, "pieces": 3, "bias": True},
        ],
        "loss": {"type": "squared_error"},
    }
    network = ref.Network(description)
    assert network.parameter_shapes() == {
        "layers.0.weight": (4, 3),
        "layers.1.weight": (4,),
        "layers.1.bias": (4,),
        "layers.2.layers.1.weight": (4, 4),
        "layers.2.layers.1.bias": (4,),
        "layers.3.weight": (6, 4),
        "layers.3.bias": (6,),
    }
    flat = np.arange(12 + 8 + 20 + 30, dtype=np.float64)
    np.testing.assert_array_equal(network.flatten(network.unflatten(flat)), flat)


def test_residual_with_zero_branch_is_identity() -> None:
    case = next(c for c in networks.random_cases(50) if "residual" in c.layer_types)
    spec = next(s for s in case.description["layers"] if s["type"] == "residual")
    x = rng(17).standard_normal((5, 4))
    layers = [{"type": "dense", "units": 4}]
    network = ref.Network({"in_features": 4, "layers": [{**spec, "layers": layers}]})
    zero = {n: np.zeros(s) for n, s in network.parameter_shapes().items()}
    np.testing.assert_array_equal(network.forward(zero, x)[0], x)


def differentiable_cases(count: int) -> list[networks.Case]:
    """Small random networks none of whose values is near a kink."""
    found = []
    for seed in range(10_000):
        case = networks.random_case(seed)
        small = sum(p.size for p in case.parameters.values()) < 1500 and len(case.x) <= 33
        if small and case.expected().kink_margin > KINK_DISTANCE:
            found.append(case)
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize("case", differentiable_cases(24), ids=lambda c: f"seed{c.seed}")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_network_directional_derivatives(case: networks.Case, training: bool) -> None:
    network, r, h = ref.Network(case.description), rng(18), 1e-5
    found = case.expected(training=training)
    flat = case.flat(case.parameters)

    def loss(at: ref.Float, x: ref.Float) -> float:
        return network.evaluate(
            network.unflatten(at),
            x,
            case.target,
            state=case.state,
            training=training,
            sample_weight=case.sample_weight,
            step=case.step,
        ).loss

    gradient = case.flat(found.gradients)
    for _ in range(4):
        d, dx = r.standard_normal(flat.size), r.standard_normal(case.x.shape)
        d, dx = d / np.linalg.norm(d), dx / np.linalg.norm(dx)
        numeric = (loss(flat + h * d, case.x) - loss(flat - h * d, case.x)) / (2 * h)
        assert abs(numeric - gradient @ d) <= GRADIENT_ERROR * np.linalg.norm(gradient) + 1e-9
        numeric = (loss(flat, case.x + h * dx) - loss(flat, case.x - h * dx)) / (2 * h)
        size = np.linalg.norm(found.input_gradient)
        assert abs(numeric - (found.input_gradient * dx).sum()) <= GRADIENT_ERROR * size + 1e-9


@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives_of_random_networks(training: bool) -> None:
    """Products with the Hessian against differences of gradients; Gauss-Newton against both."""
    for case in networks.random_cases(25, 70_000):
        network = ref.Network(case.description)
        options: dict[str, Any] = {
            "state": case.state,
            "training": training,
            "sample_weight": case.sample_weight,
            "step": case.step,
        }
        theta = network.flatten(case.parameters)
        v = rng(case.seed).standard_normal(theta.size) / math.sqrt(theta.size)

        def gradient(
            at: ref.Float,
            network: ref.Network = network,
            case: networks.Case = case,
            options: dict[str, Any] = options,
        ) -> ref.Float:
            found = network.evaluate(network.unflatten(at), case.x, case.target, **options)
            return network.flatten(found.gradients)

        product = ref.hessian_product(network, case.parameters, v, case.x, case.target, **options)
        difference = (gradient(theta + 1e-5 * v) - gradient(theta - 1e-5 * v)) / 2e-5
        assert networks.relative_error(product, difference) <= 1e-5, case.seed
        newton = ref.gauss_newton_product(
            network, case.parameters, v, case.x, case.target, **options
        )
        assert v @ newton >= -1e-12
        outputs = [
            network.forward(network.unflatten(theta + h * v), case.x, **options)[0]
            for h in (1e-5, -1e-5)
        ]
        tangent = ref.output_tangent(network, case.parameters, v, case.x, **options)
        assert networks.relative_error(tangent, (outputs[0] - outputs[1]) / 2e-5) <= 1e-5


def test_random_networks_cover_everything() -> None:
    kinds: Counter[str] = Counter()
    losses: Counter[str] = Counter()
    widths: set[int] = set()
    rows: set[int] = set()
    for case in networks.random_cases(200):
        kinds.update(case.layer_types)
        losses[case.description["loss"]["type"]] += 1
        widths.update(node.out_width for node in ref.Network(case.description).walk())
        rows.add(len(case.x))
        assert json.loads(json.dumps(case.description)) == case.description
        for p in (*case.parameters.values(), case.x):
            np.testing.assert_array_equal(p, p.astype(np.float32))
    assert set(kinds) == ref.LAYERS
    assert set(losses) == set(ref.LOSSES)
    assert widths >= set(networks.WIDTHS)
    assert rows == set(networks.BATCHES)


@pytest.mark.oracle
def test_random_network_bounds_are_met_by_float32_torch() -> None:
    """The bounds of the random-network test are neither hopeless nor idle."""
    torch = pytest.importorskip("torch")
    from oracles import torch_network

    errors = []
    for case in networks.random_cases(100):
        found = case.expected()
        y, loss, gradients, _ = torch_network.evaluate(case, True, torch.float32)
        flat = np.concatenate([gradients[name].ravel() for name in found.gradients])
        errors.append(
            (
                networks.relative_error(y, found.outputs),
                networks.relative_error(loss, found.loss),
                networks.relative_error(flat, case.flat(found.gradients)),
            )
        )
    assert (np.max(errors, axis=0) <= (4e-6, 1e-6, 3e-5)).all()
    assert (np.median(errors, axis=0) > 1e-8).all()


def test_random_case_is_a_function_of_its_seed() -> None:
    one, two = networks.random_case(7), networks.random_case(7)
    assert one.description == two.description
    np.testing.assert_array_equal(one.flat(one.parameters), two.flat(two.parameters))
    np.testing.assert_array_equal(one.x, two.x)


def test_evaluation_is_pure() -> None:
    case = next(c for c in networks.random_cases(50) if "batch_norm" in c.layer_types)
    parameters = {n: p.copy() for n, p in case.parameters.items()}
    state = {n: s.copy() for n, s in case.state.items()}
    first, second = case.expected(), case.expected()
    assert first.loss == second.loss
    for name in parameters:
        np.testing.assert_array_equal(parameters[name], case.parameters[name])
    for name in state:
        np.testing.assert_array_equal(state[name], case.state[name])
    assert any((first.state[n] != state[n]).any() for n in state)


# -- training step -------------------------------------------------------------------------------


def small_trainer(**options: Any) -> tuple[ref.Trainer, ref.Minibatch]:
    r = rng(19)
    description = {
        "in_features": 5,
        "layers": [{"type": "dense", "units": 8}, {"type": "tanh"}, {"type": "dense", "units": 3}],
        "loss": {"type": "cross_entropy"},
        "optimizer": {"type": "sgd", "lr": 0.5},
        **options,
    }
    shapes = ref.Network(description).parameter_shapes()
    parameters = {n: 0.5 * r.standard_normal(s) for n, s in shapes.items()}
    batch = ref.Minibatch(r.standard_normal((12, 5)), r.integers(0, 3, 12), r.uniform(0.5, 2.0, 12))
    return ref.Trainer(description, parameters), batch


def test_accumulated_batches_equal_one_batch() -> None:
    whole, batch = small_trainer()
    parts, _ = small_trainer()
    assert batch.sample_weight is not None
    pieces = [
        ref.Minibatch(batch.x[i:j], batch.target[i:j], batch.sample_weight[i:j])
        for i, j in ((0, 5), (5, 6), (6, 12))
    ]
    for _ in range(3):
        loss = ref.train_step(whole, batch, class_weight={1: 3.0})
        assert_close(ref.train_step(parts, *pieces, class_weight={1: 3.0}), loss)
    for name, p in whole.parameters.items():
        assert_close(parts.parameters[name], p)


@pytest.mark.parametrize("name", ref.OPTIMIZERS)
def test_training_reduces_the_loss(name: str) -> None:
    trainer, batch = small_trainer(
        optimizer={"type": name, "groups": [{"match": "layers.0.bias", "frozen": True}]},
        averaging={"type": "ema", "decay": 0.5},
        clip_norm=1.0,
    )
    frozen = trainer.parameters["layers.0.bias"].copy()
    losses = [ref.train_step(trainer, batch) for _ in range(60)]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(trainer.parameters["layers.0.bias"], frozen)
    assert trainer.averager is not None
    assert trainer.averager.updates == 60


def test_training_step_is_the_formula() -> None:
    trainer, batch = small_trainer(clip_norm=1e-3)
    before = dict(trainer.parameters)
    found = trainer.network.evaluate(
        before, batch.x, batch.target, sample_weight=batch.sample_weight
    )
    norm = ref.global_norm(found.gradients)
    ref.train_step(trainer, batch)
    for name, p in before.items():
        assert_close(trainer.parameters[name], p - 0.5 * 1e-3 / norm * found.gradients[name])


def test_non_finite_loss_leaves_everything_unchanged() -> None:
    trainer, batch = small_trainer()
    before = dict(trainer.parameters)
    batch.x[3, 2] = np.nan
    with pytest.raises(ArithmeticError, match="finite loss"):
        ref.train_step(trainer, batch)
    assert trainer.optimizer.updates_done == 0
    for name, p in before.items():
        np.testing.assert_array_equal(trainer.parameters[name], p)


def test_two_linear_layers_have_the_closed_form_gradient() -> None:
    r = rng(20)
    description = {
        "in_features": 4,
        "layers": [
            {"type": "dense", "units": 5, "bias": False},
            {"type": "dense", "units": 3, "bias": False},
        ],
        "loss": {"type": "squared_error", "reduction": "sum"},
    }
    x, t = r.standard_normal((7, 4)), r.standard_normal((7, 3))
    w1, w2 = r.standard_normal((5, 4)), r.standard_normal((3, 5))
    found = ref.Network(description).evaluate({"layers.0.weight": w1, "layers.1.weight": w2}, x, t)
    error = 2 * (x @ w1.T @ w2.T - t)
    assert_close(found.gradients["layers.1.weight"], error.T @ (x @ w1.T))
    assert_close(found.gradients["layers.0.weight"], w2.T @ error.T @ x)


# -- PyTorch, when it is installed ---------------------------------------------------------------


def assert_same_content(found: Any, stored: Any) -> None:
    if isinstance(stored, dict):
        assert found.keys() == stored.keys()
        for key in stored:
            assert_same_content(found[key], stored[key])
    elif isinstance(stored, list):
        for one, other in zip(found, stored, strict=True):
            assert_same_content(one, other)
    elif isinstance(stored, float):
        assert_close(found, stored, 1e-12)
    else:
        assert found == stored


@pytest.mark.oracle
@pytest.mark.parametrize("name", ORACLE_FILES)
def test_oracle_files_have_not_drifted(name: str) -> None:
    pytest.importorskip("torch")
    from oracles import generate

    assert set(generate.FILES) == set(ORACLE_FILES)
    assert_same_content(json.loads(json.dumps(generate.build(name))), oracle(name))


def test_oracle_files_are_small() -> None:
    assert sum(path.stat().st_size for path in ORACLES.glob("*.json")) < 200_000


@pytest.mark.oracle
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_random_networks_against_torch_autograd(training: bool) -> None:
    torch = pytest.importorskip("torch")
    from oracles import torch_network

    for case in networks.random_cases(60, first_seed=1000):
        found = case.expected(training=training)
        y, loss, gradients, dx = torch_network.evaluate(case, training, torch.float64)
        assert networks.relative_error(found.outputs, y) < 1e-12
        assert abs(found.loss - loss) <= 1e-12 * max(1.0, abs(loss))
        assert networks.relative_error(found.input_gradient, dx) < 1e-11
        flat = np.concatenate([gradients[name].ravel() for name in found.gradients])
        assert networks.relative_error(case.flat(found.gradients), flat) < 1e-11


@pytest.mark.oracle
@pytest.mark.parametrize("name", oracle("optimizers")["paths"])
def test_optimizer_against_torch_over_100_steps(name: str) -> None:
    torch = pytest.importorskip("torch")
    from oracles import generate

    description, make = generate.OPTIMIZER_CASES[name]
    start, given = generate.draw(7, 5), generate.optimizer_gradients(100)
    path = generate.optimizer_path(description, make, start, given)
    assert path.dtype == torch.float64
    optimizer, parameters = ref.Optimizer(description), {"p": start.numpy()}
    for g, expected in zip(given.numpy(), path.numpy(), strict=True):
        parameters = optimizer.step(parameters, {"p": g})
        assert_close(parameters["p"], expected, 1e-12)
