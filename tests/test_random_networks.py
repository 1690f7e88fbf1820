"""Random networks against the float64 reference: outputs, loss, gradients, running statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest
import reference as ref
from conftest import scaled
from support import case_model

FORWARD, LOSS, GRADIENT = 4e-6, 1e-6, 3e-5
FLOAT64 = 1e-12
CASES = scaled(500, 100)
SEEDS_PER_TEST = CASES // 10


def check_evaluation(case: networks.Case, dtype: str, training: bool, folder: Path) -> None:
    """Loss, outputs and gradients of one pass, which must not change the model."""
    forward, loss, gradient = (
        (FORWARD, LOSS, GRADIENT) if dtype == "float32" else (FLOAT64, FLOAT64, FLOAT64)
    )
    expected = case.expected(training=training)
    model = case_model(case, dtype, folder)
    before = model.parameters, model.named_state()
    value, flat, dx = model.loss_and_grad(
        case.x,
        case.target,
        sample_weight=case.sample_weight,
        training=training,
        input_gradient=True,
    )
    errors = {
        "loss": (networks.relative_error(value, expected.loss), loss),
        "gradient": (networks.relative_error(flat, case.flat(expected.gradients)), gradient),
        "input gradient": (networks.relative_error(dx, expected.input_gradient), gradient),
    }
    weighted = any(
        node.kind == "batch_norm" and node.spec["weighted"]
        for node in ref.Network(case.description).walk()
    )
    if not (training and weighted and case.sample_weight is not None):
        outputs = model.forward(case.x, training=training)
        errors["outputs"] = (networks.relative_error(outputs, expected.outputs), forward)
    if not training:
        metrics = model.evaluate(case.x, case.target, sample_weight=case.sample_weight)
        errors["evaluate"] = (networks.relative_error(metrics["loss"], expected.loss), loss)
    wrong = {name: e for name, (e, bound) in errors.items() if not e <= bound}
    assert not wrong, f"seed {case.seed}, {dtype}, training={training}: {wrong}"
    np.testing.assert_array_equal(model.parameters, before[0])
    for name, values in model.named_state().items():
        np.testing.assert_array_equal(values, before[1][name])


def check_update(case: networks.Case, dtype: str, folder: Path) -> None:
    """An update goes through the fused plan: it subtracts the gradient and moves the statistics."""
    plain_sgd = {**case.description, "optimizer": {"type": "sgd", "lr": 1.0}}
    model = case_model(replace(case, description=plain_sgd), dtype, folder)
    expected = case.expected(training=True)
    result = model.step(case.x, case.target, case.sample_weight)
    assert networks.relative_error(result["loss"], expected.loss) <= (
        LOSS if dtype == "float32" else FLOAT64
    )
    state = model.named_state()
    assert state.keys() == expected.state.keys()
    for name, values in expected.state.items():
        error = np.abs(ref.as_float(state[name]) - values).max() / max(1.0, np.abs(values).max())
        assert error <= (FORWARD if dtype == "float32" else FLOAT64), (case.seed, name, error)
    if dtype == "float64":
        before = case.flat(case.parameters)
        change = networks.relative_error(before - model.parameters, case.flat(expected.gradients))
        assert change <= 1e-11, (case.seed, change)  # the subtraction rounds


@pytest.mark.parametrize("first", range(0, CASES, SEEDS_PER_TEST))
def test_random_networks(first: int, tmp_path: Path) -> None:
    for case in networks.random_cases(SEEDS_PER_TEST, first):
        for dtype in ("float32", "float64"):
            for training in (True, False):
                check_evaluation(case, dtype, training, tmp_path)
            check_update(case, dtype, tmp_path)
