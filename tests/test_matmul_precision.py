"""matmul_precision "medium": factors of products are rounded to bfloat16, nothing else.

An independent NumPy network rounds the same factors and computes in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import thalweg as tw
from conftest import DEVICE, MEDIUM_ROUNDS
from thalweg import nn, optim
from thalweg.datasets import load_digits

Array = npt.NDArray[Any]


def rounded(x: Array) -> Array:
    """To 8 significant bits, ties to even."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float32).astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256.0), exponent - 8)


def model(network: nn.Layer, features: int, **options: Any) -> tw.Model:
    options = {"matmul_precision": "medium", "device": DEVICE, "seed": 3, **options}
    return tw.Model(network, in_features=features, **options)


def data(rows: int, features: int, classes: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, features)).astype(np.float32)
    return x, rng.integers(0, classes, rows)


def relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.skipif(DEVICE != "cpu", reason="tensor cores take products of wide layers alone")
@pytest.mark.parametrize("rows", [1, 2, 65, 200])
def test_a_network_equals_one_with_rounded_factors(rows: int) -> None:
    network = nn.Sequential(nn.Dense(70), nn.ReLU(), nn.Dense(45), nn.Tanh(), nn.Dense(10))
    x, y = data(rows, 33, 10)
    medium = model(network, 33)
    loss, gradient = medium.loss_and_grad(x, y)
    p = {k: v.astype(np.float64) for k, v in medium.named_parameters().items()}
    w = {k: rounded(v) for k, v in p.items() if k.endswith("weight")}

    x0 = rounded(x)
    x1 = rounded(np.maximum(x0 @ w["layers.0.weight"].T + p["layers.0.bias"], 0))
    x2 = rounded(np.tanh(x1 @ w["layers.2.weight"].T + p["layers.2.bias"]))
    logits = x2 @ w["layers.4.weight"].T + p["layers.4.bias"]
    assert relative(medium.predict(x), logits) < 2e-3  # a value next to a tie may round apart
    shifted = logits - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(rows), y]).mean()
    assert loss == pytest.approx(expected, rel=2e-3)

    d2 = probabilities.copy()
    d2[np.arange(rows), y] -= 1
    d2 = rounded(d2 / rows)
    d1 = rounded((d2 @ w["layers.4.weight"]) * (1 - x2**2))
    d0 = rounded((d1 @ w["layers.2.weight"]) * (x1 > 0))
    parts = [d0.T @ x0, d0.sum(0), d1.T @ x1, d1.sum(0), d2.T @ x2, d2.sum(0)]
    assert relative(gradient, np.concatenate([part.ravel() for part in parts])) < 6e-3
    # The rounding is there: float32 products give something else.
    highest = model(network, 33, matmul_precision="highest")
    assert 1e-4 < relative(gradient, highest.loss_and_grad(x, y)[1]) < 0.05


LAYERS = [nn.Dense(40), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2)]
NETWORKS = {
    "batch norm": nn.Sequential(*LAYERS, nn.Dense(33), nn.BatchNorm(), nn.GELU(), nn.Dense(10)),
    "residual": nn.Sequential(
        nn.Dense(40), nn.ReLU(), nn.Residual(nn.Dense(40), nn.ReLU(), nn.Dense(40)), nn.Dense(10)
    ),
    "maxout": nn.Sequential(nn.Maxout(20, 3), nn.Dropout(0.1), nn.Sigmoid(), nn.Dense(10)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_close_to_float32_and_repeats_bitwise(name: str) -> None:
    x, y = data(333, 21, 10)
    flats = {}
    for key, options in {
        "one": {"threads": 1},
        "three": {"threads": 3},
        "unfused": {"threads": 2, "check_finite": "gradients"},
        "highest": {"matmul_precision": "highest"},
    }.items():
        trained = model(NETWORKS[name], 21, optimizer=optim.Momentum(0.02), **options)
        trained.fit(x, y, epochs=2, batch_size=50, verbose=False)
        flats[key] = trained.parameters
    assert (flats["one"] == flats["three"]).all()
    assert (flats["one"] == flats["unfused"]).all()
    difference = relative(flats["one"], flats["highest"])
    assert 1e-5 < difference < 0.02 if MEDIUM_ROUNDS else difference == 0


def test_copies_and_checkpoints_go_on_bitwise(tmp_path: Any) -> None:
    x, y = data(130, 21, 10)
    first = model(NETWORKS["batch norm"], 21, optimizer=optim.Adam(1e-2))
    first.fit(x, y, epochs=1, batch_size=32, verbose=False)
    first.save(tmp_path / "medium.safetensors")
    others = [first.copy(), tw.Model.load(tmp_path / "medium.safetensors", device=DEVICE)]
    for each in [first, *others]:
        each.fit(x, y, epochs=2, batch_size=32, verbose=False)
        assert (each.parameters == first.parameters).all()
        assert (each.predict(x) == first.predict(x)).all()
    assert (first.predict(x)[5:6] == first.predict(x[5:6])).all()


def test_a_custom_loss_sees_rounded_products() -> None:
    def squared(outputs: Array, targets: Array) -> tuple[float, Array]:
        difference = outputs - targets
        return float((difference**2).mean()), 2 * difference / outputs.size

    x, _ = data(64, 21, 10)
    y = np.zeros((64, 10), np.float32)
    losses = {}
    for precision in ("medium", "highest"):
        trained = model(NETWORKS["residual"], 21, loss=squared, matmul_precision=precision)
        trained.fit(x, y, epochs=3, batch_size=16, verbose=False)
        losses[precision] = float((trained.predict(x) ** 2).mean())
    assert losses["medium"] == pytest.approx(losses["highest"], rel=0.05)
    assert (losses["medium"] != losses["highest"]) == MEDIUM_ROUNDS


def test_digits_are_learned_as_well() -> None:
    x, y, x_test, y_test = load_digits()
    accuracy = {}
    for precision in ("medium", "highest"):
        network = nn.Sequential(nn.Dense(64), nn.BatchNorm(), nn.ReLU(), nn.Dense(10))
        trained = model(network, 64, matmul_precision=precision, optimizer=optim.Adam(3e-3))
        trained.fit(x, y, epochs=15, batch_size=64, verbose=False)
        accuracy[precision] = trained.evaluate(x_test, y_test)["accuracy"]
    assert accuracy["medium"] > 0.96
    assert abs(accuracy["medium"] - accuracy["highest"]) < 0.02
