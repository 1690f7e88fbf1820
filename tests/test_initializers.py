"""Initial parameters: distribution of every initializer, zeros where they belong, seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference as ref
import thalweg as tw
from conftest import DEVICE
from support import Array
from thalweg import init, nn

FAN_IN, FAN_OUT = 150, 220
INITIALIZERS: dict[str, str | init.Initializer] = {
    "deck": "deck",
    "glorot_uniform": "glorot_uniform",
    "he_normal": "he_normal",
    "lecun_normal": "lecun_normal",
    "normal": init.Normal(0.3),
    "uniform": init.Uniform(0.2),
}


def weight(initializer: str | init.Initializer, *, seed: int = 0, **options: Any) -> Array:
    model = tw.Model(
        [nn.Dense(FAN_OUT, init=initializer)],
        FAN_IN,
        seed=seed,
        dtype="float64",
        device=DEVICE,
        **options,
    )
    return model.named_parameters()["layers.0.weight"]


def kolmogorov_distance(sample: Array, cdf: Callable[[Array], Array]) -> float:
    """Kolmogorov-Smirnov statistic times sqrt(n); above 1.95 with probability 0.001."""
    values = np.sort(sample.ravel())
    n = values.size
    expected = cdf(values)
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * float(max((steps[1:] - expected).max(), (expected - steps[:-1]).max()))


def normal_cdf(z: Array) -> Array:
    return 0.5 * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0)))


@pytest.mark.parametrize("name", INITIALIZERS)
def test_distribution(name: str) -> None:
    value = INITIALIZERS[name]
    spec = value.to_dict() if isinstance(value, init.Initializer) else value
    expected = ref.weight_distribution(spec, FAN_IN, FAN_OUT)
    w = weight(value)
    n, deviation = w.size, math.sqrt(expected.variance)
    assert abs(w.mean()) < 4.0 * deviation / math.sqrt(n)
    fourth = 1.8 if expected.kind == "uniform" else 3.0  # kurtosis
    assert abs(w.var() / expected.variance - 1.0) < 4.0 * math.sqrt((fourth - 1.0) / n)
    if expected.kind == "uniform":
        bound = expected.scale
        assert np.abs(w).max() < bound
        assert np.abs(w).max() > 0.999 * bound
        assert kolmogorov_distance(w / bound, lambda u: (u + 1.0) / 2.0) < 1.95
    else:
        assert kolmogorov_distance(w / deviation, normal_cdf) < 1.95
    # entries are independent: rows, columns and neighbours do not correlate
    unit = w / deviation
    assert np.abs(unit.mean(axis=1)).max() < 5.0 / math.sqrt(FAN_IN)
    assert np.abs(unit.mean(axis=0)).max() < 5.0 / math.sqrt(FAN_OUT)
    assert abs((unit[:, 1:] * unit[:, :-1]).mean()) < 5.0 / math.sqrt(n)


@pytest.mark.parametrize("name", [*INITIALIZERS, "orthogonal"])
def test_no_equal_rows_or_columns(name: str) -> None:
    w = weight(INITIALIZERS.get(name, "orthogonal"))
    assert len(np.unique(w, axis=0)) == FAN_OUT
    assert len(np.unique(w, axis=1).T) == FAN_IN


@pytest.mark.parametrize(
    ("units", "features"), [(1, 1), (1, 9), (9, 1), (40, 7), (7, 40), (33, 33)]
)
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_orthogonal(units: int, features: int, gain: float) -> None:
    layer = nn.Dense(units, init=init.Orthogonal(gain))
    model = tw.Model([layer], features, "squared_error", dtype="float64", device=DEVICE)
    w = model.named_parameters()["layers.0.weight"]
    gram = w.T @ w if units >= features else w @ w.T
    np.testing.assert_allclose(gram, gain**2 * np.eye(min(units, features)), atol=1e-13)


def test_zeros() -> None:
    assert not weight("zeros").any()
    assert not weight(init.Zeros()).any()


@pytest.mark.parametrize("activation", tw._core.activations())
def test_auto_looks_at_the_activation(activation: str) -> None:
    """He's rule for the ReLU family, behind a batch norm too; Glorot's otherwise."""
    for between in ([], [nn.BatchNorm()], [nn.Dropout(0.5)]):
        layers = [nn.Dense(FAN_OUT), *between, nn.from_dict({"type": activation}), nn.Dense(3)]
        model = tw.Model(layers, FAN_IN, dtype="float64", device=DEVICE)
        w = model.named_parameters()["layers.0.weight"]
        he = ref.ACTIVATIONS[activation].he_family
        expected = weight("he_normal" if he else "glorot_uniform")
        np.testing.assert_array_equal(w, expected)
    last = model.named_parameters()[f"layers.{len(layers) - 1}.weight"]
    assert np.abs(last).max() < math.sqrt(6.0 / (FAN_OUT + 3))


def test_affine_parameters_start_neutral() -> None:
    layers = [
        nn.Dense(40), nn.BatchNorm(), nn.ReLU(),
        nn.Residual(nn.Dense(20), nn.ReLU(), nn.Dense(40)),
        nn.Residual(nn.Dense(40), nn.BatchNorm()),
        nn.Residual(nn.Dense(40), nn.Tanh(), nn.Dense(40), zero_init=False),
        nn.Maxout(5, 3), nn.Dense(2),
    ]  # fmt: skip
    model = tw.Model(layers, 6, device=DEVICE)
    named = model.named_parameters()
    zero_weights = {"layers.3.layers.2.weight", "layers.4.layers.1.weight"}
    for name, value in named.items():
        if name.endswith(".bias") or name in zero_weights:
            assert not value.any(), name
        elif value.ndim == 1:
            assert (value == 1.0).all(), name
        else:
            assert value.all(), name
    assert named["layers.6.weight"].shape == (15, 40)
    state = model.named_state()
    assert not state["layers.1.running_mean"].any()
    assert (state["layers.1.running_var"] == 1.0).all()
    assert state["layers.1.num_batches_tracked"] == 0
    # a residual block that starts at zero is the identity
    x = np.random.default_rng(0).standard_normal((9, 6))
    outputs = model.activations(x)
    np.testing.assert_array_equal(outputs[2], outputs[3])


def test_seeds() -> None:
    layers = [nn.Dense(30), nn.ReLU(), nn.Dense(30), nn.ReLU(), nn.Dense(3)]

    def parameters(seed: int, dtype: str = "float32") -> dict[str, Array]:
        return tw.Model(layers, 30, seed=seed, dtype=dtype, device=DEVICE).named_parameters()

    first = parameters(5)
    for seed in (5, 6, 5 + 2**32, 2**64 - 1):
        for name, value in parameters(seed).items():
            if value.ndim == 2:
                assert np.array_equal(value, first[name]) == (seed == 5)
    # layers of one shape differ, and float32 is the rounding of float64
    assert not np.array_equal(first["layers.0.weight"], first["layers.2.weight"])
    for name, value in parameters(5, "float64").items():
        np.testing.assert_array_equal(value.astype(np.float32), first[name])


def test_bad_initializers() -> None:
    for value, error in (("he", ValueError), ("normal", ValueError), (3, TypeError)):
        with pytest.raises(error, match="expected"):
            nn.Dense(3, init=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected"):
        init.Normal(-1.0)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            tw.Model([nn.Dense(2)], 2, seed=seed, device=DEVICE)
