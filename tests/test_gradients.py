"""Gradients of the whole model in float64 against central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference as ref
import thalweg as tw
from conftest import DEVICE
from support import Array, model_of

STEP = 1e-5
KINK_DISTANCE = 1e-3
LIMIT = 1e-7
ROWS, FEATURES = 7, 4

Layers = list[dict[str, Any]]
DENSE = {"type": "dense", "units": 5}
NETWORKS: dict[str, Layers] = {
    "linear": [],
    **{f"dense, {name}": [DENSE, {"type": name}] for name in tw._core.activations()},
    **{
        f"batch norm, {name}": [DENSE, {"type": "batch_norm"}, {"type": name}]
        for name in tw._core.activations()
    },
    "batch norm first": [{"type": "batch_norm"}, DENSE, {"type": "tanh"}],
    "batch norm after the activation": [DENSE, {"type": "silu"}, {"type": "batch_norm"}],
    "batch norm last": [
        DENSE,
        {"type": "tanh"},
        {"type": "dense", "units": 3, "bias": True},
        {"type": "batch_norm"},
    ],
    "two batch norms": [DENSE, {"type": "batch_norm"}, {"type": "batch_norm", "weighted": True}],
    "weighted batch norm": [DENSE, {"type": "batch_norm", "weighted": True}, {"type": "relu"}],
    "dropout": [DENSE, {"type": "tanh"}, {"type": "dropout", "p": 0.4}],
    "dropout first": [{"type": "dropout", "p": 0.3}, DENSE, {"type": "dropout", "p": 0.3}],
    "maxout": [{"type": "maxout", "units": 4, "pieces": 3}],
    "maxout, batch norm": [{"type": "maxout", "units": 4}, {"type": "batch_norm"}],
    "residual": [
        DENSE,
        {"type": "residual", "layers": [DENSE, {"type": "gelu"}, DENSE], "zero_init": False},
    ],
    "residual first": [
        {"type": "residual", "layers": [{"type": "dense", "units": FEATURES}, {"type": "relu"}]}
    ],
    "residual in residual": [
        DENSE,
        {
            "type": "residual",
            "layers": [
                {"type": "batch_norm"},
                {"type": "residual", "layers": [DENSE, {"type": "softplus"}]},
                {"type": "dropout", "p": 0.3},
            ],
        },
        {"type": "elu"},
    ],
    "residual of a batch norm": [DENSE, {"type": "residual", "layers": [{"type": "batch_norm"}]}],
    "nested": [
        {"type": "sequential", "layers": [DENSE, {"type": "batch_norm"}, {"type": "relu"}]},
        {"type": "sequential", "layers": [{"type": "identity"}]},
        {"type": "sequential", "layers": [{"type": "maxout", "units": 3}]},
    ],
    "activations in a row": [
        DENSE,
        {"type": "tanh"},
        {"type": "leaky_relu", "slope": 0.2},
        {"type": "elu", "alpha": 0.7},
    ],
    "deep": [DENSE, {"type": "tanh"}] * 6,
}
LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy": {"type": "cross_entropy"},
    "smoothed": {"type": "cross_entropy", "label_smoothing": 0.2},
    "probabilities": {"type": "cross_entropy", "label_smoothing": 0.1},
    **{
        f"{name}, {reduction}": {"type": name, "reduction": reduction}
        for name in tw._core.losses()
        for reduction in ("batch_mean", "sum", "element_mean")
    },
}


def targets(loss: str, rng: np.random.Generator) -> npt.NDArray[Any]:
    if loss == "probabilities":
        return rng.dirichlet(np.ones(3), ROWS)
    kind = LOSSES[loss]["type"]
    if kind == "cross_entropy":
        return rng.integers(0, 3, ROWS)
    return {
        "sign": rng.choice([-1.0, 1.0], (ROWS, 3)),
        "unit_interval": rng.random((ROWS, 3)),
        "real": rng.standard_normal((ROWS, 3)),
    }[ref.ELEMENTWISE_LOSSES[kind].target]


def setup(layers: Layers, loss: str, training: bool) -> tuple[tw.Model, Array, Any, Array]:
    """A model and data on which no value is near a kink."""
    closed = any(layer["type"] == "dense" and layer["units"] == 3 for layer in layers)
    description = {
        "in_features": FEATURES,
        "layers": layers if closed else [*layers, {"type": "dense", "units": 3}],
        "loss": LOSSES[loss],
    }
    for seed in range(2000):
        rng = np.random.default_rng(seed)
        model = model_of({**description, "seed": seed}, dtype="float64")
        network = ref.Network({**description, "seed": seed})
        flat = model.parameters + 0.3 * rng.standard_normal(model.num_parameters)
        model.set_parameters(flat)
        state = {
            name: np.abs(value) + rng.random(value.shape)
            for name, value in network.initial_state().items()
            if not name.endswith("tracked")
        }
        model.set_state(state)
        x, y = rng.standard_normal((ROWS, FEATURES)), targets(loss, rng)
        weight = rng.uniform(0.5, 2.0, ROWS)
        found = network.evaluate(
            network.unflatten(flat),
            x,
            y,
            state={**network.initial_state(), **state},
            training=training,
            sample_weight=weight,
        )
        if found.kink_margin > KINK_DISTANCE:
            return model, x, y, weight
    raise AssertionError("no data away from the kinks")


def assert_gradient(gradient: Array, f: Callable[[Array], float], at: Array) -> None:
    numerical = ref.central_difference(f, ref.as_float(at), STEP)
    error = np.abs(gradient - numerical).max(initial=0.0)
    assert error <= LIMIT * max(np.abs(numerical).max(initial=0.0), 1e-3), error


def check(layers: Layers, loss: str, training: bool) -> None:
    model, x, y, weight = setup(layers, loss, training)
    objective = tw.Objective(
        model,
        x,
        y,
        sample_weight=weight,
        statistics="batch" if training else "frozen",
        dropout=training,
    )
    theta = model.parameters
    assert_gradient(objective.grad(theta), objective.value, theta)

    def at_input(values: Array) -> float:
        value: float = model.loss_and_grad(values, y, sample_weight=weight, training=training)[0]
        return value

    _, gradient, dx = model.loss_and_grad(
        x, y, sample_weight=weight, training=training, input_gradient=True
    )
    assert_gradient(dx, at_input, x)
    # Objectives on CUDA walk the network without fused layers: rounding apart, the same numbers.
    rounding = 0.0 if DEVICE == "cpu" else 1e-13
    np.testing.assert_allclose(
        gradient, objective.grad(theta), rtol=0, atol=rounding * np.abs(gradient).max()
    )
    only = model.input_gradient(x, y, sample_weight=weight, training=training)
    np.testing.assert_array_equal(only, dx)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(network: str, training: bool) -> None:
    check(NETWORKS[network], "cross_entropy", training)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss: str) -> None:
    check([DENSE, {"type": "batch_norm"}, {"type": "tanh"}], loss, True)
