"""Whole training runs against PyTorch in float64 (the extra `oracle`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import reference as ref
import thalweg as tw
from conftest import DEVICE
from support import Array, case_model
from thalweg import losses, nn, optim, schedules

torch = pytest.importorskip("torch", reason="needs the extra `oracle`")
from oracles import torch_network  # noqa: E402

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-10
ROWS, FEATURES, CLASSES, STEPS = 48, 7, 4, 40


def data(seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((ROWS, FEATURES)), rng.integers(0, CLASSES, ROWS)


def torch_twin(momentum: float | None = 0.1) -> Any:
    return torch.nn.Sequential(
        torch.nn.Linear(FEATURES, 12, bias=False),
        torch.nn.BatchNorm1d(12, momentum=momentum),
        torch.nn.ReLU(),
        torch.nn.Linear(12, 9),
        torch.nn.GELU(),
        torch.nn.Linear(9, 9),
        torch.nn.ELU(1.3),
        torch.nn.Linear(9, CLASSES),
    ).double()


def pair(
    optimizer: optim.Optimizer,
    *,
    loss: Any = "cross_entropy",
    momentum: float | None = 0.1,
    **options: Any,
) -> tuple[tw.Model, Any]:
    """A model and a PyTorch network with its initial values."""
    layers = [
        nn.Dense(12), nn.BatchNorm(momentum=momentum), nn.ReLU(), nn.Dense(9), nn.GELU(),
        nn.Dense(9), nn.ELU(1.3), nn.Dense(CLASSES),
    ]  # fmt: skip
    model = tw.Model(
        layers, FEATURES, loss, optimizer, dtype="float64", device=DEVICE, seed=3, **options
    )
    network = torch_twin(momentum)
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.copy_(torch.tensor(np.array(model.named_parameters()[f"layers.{name}"])))
    return model, network


def assert_equal(model: tw.Model, network: Any) -> None:
    """Parameters and buffers of both."""
    found = {**model.named_parameters(), **model.named_state()}
    expected = network.state_dict()
    assert found.keys() == {f"layers.{name}" for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[f"layers.{name}"], value.numpy(), rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )


def torch_loss(smoothing: float = 0.0) -> Callable[[Any, Any], Any]:
    return torch.nn.CrossEntropyLoss(label_smoothing=smoothing)  # type: ignore[no-any-return]


def train(
    model: tw.Model,
    network: Any,
    optimizer: Any,
    *,
    scheduler: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    after_backward: Callable[[], Any] = lambda: None,
    after_step: Callable[[], Any] = lambda: None,
) -> None:
    """The same minibatches through both, with the losses compared at every step."""
    x, y = data()
    criterion = loss or torch_loss()
    rng = np.random.default_rng(7)
    for _ in range(STEPS):
        rows = rng.integers(0, ROWS, 16)
        value = model.step(x[rows], y[rows])["loss"]
        optimizer.zero_grad()
        expected = criterion(network(torch.tensor(x[rows])), torch.tensor(y[rows]))
        expected.backward()
        after_backward()
        optimizer.step()
        after_step()
        if scheduler is not None:
            scheduler.step()
        assert math.isclose(value, expected.item(), rel_tol=1e-9)
    assert_equal(model, network)


T = torch.optim
CASES: dict[str, tuple[optim.Optimizer, Callable[[Any], Any]]] = {
    "sgd": (optim.SGD(0.05), lambda p: T.SGD(p, 0.05)),
    "sgd, decay": (optim.SGD(0.05, weight_decay=0.1), lambda p: T.SGD(p, 0.05, weight_decay=0.1)),
    "momentum": (optim.Momentum(0.05, 0.9), lambda p: T.SGD(p, 0.05, momentum=0.9)),
    "momentum, torch": (
        optim.Momentum(0.05, 0.8, torch_compat=True, weight_decay=0.01),
        lambda p: T.SGD(p, 0.05, momentum=0.8, weight_decay=0.01),
    ),
    "nesterov": (
        optim.Nesterov(0.05, 0.9), lambda p: T.SGD(p, 0.05, momentum=0.9, nesterov=True),
    ),
    "nesterov, torch": (
        optim.Nesterov(0.05, 0.9, torch_compat=True, weight_decay=0.01),
        lambda p: T.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adagrad": (
        optim.AdaGrad(0.02, weight_decay=0.01),
        lambda p: T.Adagrad(p, 0.02, eps=1e-7, weight_decay=0.01),
    ),
    "rmsprop": (
        optim.RMSProp(0.002, weight_decay=0.01),
        lambda p: T.RMSprop(p, 0.002, alpha=0.9, eps=1e-6, weight_decay=0.01),
    ),
    "adadelta": (
        optim.AdaDelta(weight_decay=0.01),
        lambda p: T.Adadelta(p, 1.0, rho=0.95, eps=1e-6, weight_decay=0.01),
    ),
    "adam": (optim.Adam(0.003), lambda p: T.Adam(p, 0.003)),
    "adam, decay": (
        optim.Adam(0.003, 0.8, 0.99, weight_decay=0.1),
        lambda p: T.Adam(p, 0.003, betas=(0.8, 0.99), weight_decay=0.1),
    ),
    "adamw": (
        optim.AdamW(0.003, weight_decay=0.2), lambda p: T.AdamW(p, 0.003, weight_decay=0.2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_trajectories(case: str) -> None:
    ours, theirs = CASES[case]
    model, network = pair(ours)
    train(model, network, theirs(network.parameters()))


@pytest.mark.parametrize("nesterov", [False, True])
def test_torch_compat_under_a_decaying_rate(nesterov: bool) -> None:
    rate = schedules.Linear(0.05, 0.0005, tau=25)
    kind = optim.Nesterov if nesterov else optim.Momentum
    model, network = pair(kind(rate, 0.9, torch_compat=True))
    optimizer = T.SGD(network.parameters(), 0.05, momentum=0.9, nesterov=nesterov)
    scheduler = T.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 25)
    train(model, network, optimizer, scheduler=scheduler)


def test_deck_momentum_differs_from_torch_under_a_decaying_rate() -> None:
    """The deck keeps the rate inside the velocity; the option exists because this matters."""
    rate = schedules.Linear(0.05, 0.0005, tau=25)
    deck, _ = pair(optim.Momentum(rate, 0.9))
    torch_rule, _ = pair(optim.Momentum(rate, 0.9, torch_compat=True))
    x, y = data()
    for _ in range(20):
        deck.step(x, y)
        torch_rule.step(x, y)
    assert np.abs(deck.parameters - torch_rule.parameters).max() > 1e-4


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedules.Step(0.1, 0.5, 7), lambda o: T.lr_scheduler.StepLR(o, 7, 0.5)),
        (schedules.Cosine(0.1, 30, 0.01), lambda o: T.lr_scheduler.CosineAnnealingLR(o, 30, 0.01)),
        (
            schedules.OneCycle(0.1, 50),
            lambda o: T.lr_scheduler.OneCycleLR(o, 0.1, total_steps=50, cycle_momentum=False),
        ),
    ],
    ids=["step", "cosine", "one cycle"],
)
def test_schedules(ours: schedules.Schedule, theirs: Callable[[Any], Any]) -> None:
    optimizer = T.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    scheduler = theirs(optimizer)
    for k in range(30):
        assert math.isclose(ours(k), optimizer.param_groups[0]["lr"], rel_tol=1e-12)
        optimizer.step()
        scheduler.step()


def test_parameter_groups() -> None:
    groups = [
        optim.Group("layers.0.*", lr_scale=0.1),
        optim.Group("*.bias", weight_decay=0.0),
        optim.Group("layers.5.weight", frozen=True),
    ]
    model, network = pair(optim.AdamW(0.003, weight_decay=0.2, groups=groups))
    named = dict(network.named_parameters())
    frozen = named.pop("5.weight")
    frozen.requires_grad_(False)
    first = [named.pop("0.weight")]
    biases = [p for n, p in named.items() if n.endswith("bias")]
    others = [p for n, p in named.items() if not n.endswith("bias")]
    optimizer = T.AdamW(
        [
            {"params": first, "lr": 0.0003},
            {"params": biases, "weight_decay": 0.0},
            {"params": others},
        ],
        lr=0.003,
        weight_decay=0.2,
    )
    train(model, network, optimizer)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_label_smoothing(smoothing: float) -> None:
    model, network = pair(optim.SGD(0.05), loss=losses.CrossEntropy(smoothing))
    train(model, network, T.SGD(network.parameters(), 0.05), loss=torch_loss(smoothing))


@pytest.mark.parametrize("momentum", [0.1, 0.37, None])
def test_batch_norm_buffers(momentum: float | None) -> None:
    model, network = pair(optim.SGD(0.05), momentum=momentum)
    train(model, network, T.SGD(network.parameters(), 0.05))
    x, y = data(5)
    network.eval()
    with torch.no_grad():
        outputs = network(torch.tensor(x))
        loss = torch_loss()(outputs, torch.tensor(y)).item()
    np.testing.assert_allclose(model.predict(x), outputs.numpy(), rtol=1e-9, atol=1e-10)
    found = model.evaluate(x, y)
    assert math.isclose(found["loss"], loss, rel_tol=1e-10)
    assert found["accuracy"] == (outputs.argmax(dim=1).numpy() == y).mean()


@pytest.mark.parametrize("kind", ["polyak", "ema"])
def test_averaged_model(kind: str) -> None:
    averaging = optim.Polyak() if kind == "polyak" else optim.EMA(0.9)
    model, network = pair(optim.Momentum(0.05), averaging=averaging)
    swa = torch.optim.swa_utils
    function = None if kind == "polyak" else swa.get_ema_multi_avg_fn(0.9)
    average = swa.AveragedModel(network, multi_avg_fn=function)
    optimizer = T.SGD(network.parameters(), 0.05, momentum=0.9)
    train(model, network, optimizer, after_step=lambda: average.update_parameters(network))
    found = model.averaged().named_parameters()
    for name, value in average.module.named_parameters():
        np.testing.assert_allclose(
            found[f"layers.{name}"], value.detach().numpy(), rtol=TOLERANCE, atol=TOLERANCE
        )


def test_update_bn() -> None:
    """Recalibration is PyTorch's update_bn where all minibatches have the same size."""
    averaging = optim.Polyak()
    model, network = pair(optim.SGD(0.1), averaging=averaging)
    average = torch.optim.swa_utils.AveragedModel(network)
    optimizer = T.SGD(network.parameters(), 0.1)
    train(model, network, optimizer, after_step=lambda: average.update_parameters(network))
    x, _ = data()
    torch.optim.swa_utils.update_bn(torch.tensor(x).split(16), average)
    found = model.averaged(x, batch_size=16).named_state()
    for name, value in average.module.named_buffers():
        np.testing.assert_allclose(found[f"layers.{name}"], value.numpy(), rtol=1e-9, atol=1e-10)


def test_gradient_clipping() -> None:
    """PyTorch adds 1e-6 to the norm: a gap of 1e-6 relative at a norm near 1."""
    model, network = pair(optim.SGD(0.1), clip_norm=0.5)
    x, y = data()
    before = model.parameters
    norm = model.step(x, y)["gradient_norm"]
    torch_loss()(network(torch.tensor(x)), torch.tensor(y)).backward()
    expected = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5).item()
    assert math.isclose(norm, expected, rel_tol=1e-12)
    clipped = np.concatenate([p.grad.numpy().ravel() for p in network.parameters()])
    np.testing.assert_allclose((before - model.parameters) / 0.1, clipped, rtol=1e-5, atol=1e-12)
    assert expected > 0.5


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_random_networks(training: bool, tmp_path: Path) -> None:
    """The library's float32 error is no more than three times PyTorch's own (99th percentile)."""
    ours, theirs = [], []
    for case in networks.random_cases(120, 50_000):
        outputs, loss, gradients, dx = torch_network.evaluate(case, training, torch.float64)
        model = case_model(case, "float64", tmp_path)
        value, flat, dx64 = model.loss_and_grad(
            case.x,
            case.target,
            sample_weight=case.sample_weight,
            training=training,
            input_gradient=True,
        )
        exact = case.flat(gradients)
        assert math.isclose(value, loss, rel_tol=1e-12, abs_tol=1e-14)
        assert networks.relative_error(flat, exact) <= 1e-12, case.seed
        assert networks.relative_error(dx64, dx) <= 1e-12, case.seed
        if not training:
            assert networks.relative_error(model.predict(case.x), outputs) <= 1e-12
        model32 = case_model(case, "float32", tmp_path)
        _, flat32 = model32.loss_and_grad(
            case.x, case.target, sample_weight=case.sample_weight, training=training
        )
        _, _, torch32, _ = torch_network.evaluate(case, training, torch.float32)
        ours.append(networks.relative_error(flat32, exact))
        theirs.append(networks.relative_error(case.flat(torch32), exact))
    assert np.quantile(ours, 0.99) <= 3.0 * np.quantile(theirs, 0.99)
    assert np.quantile(ours, 0.99) <= 3e-6


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_second_derivatives_of_random_networks(training: bool, tmp_path: Path) -> None:
    """Products with the Hessian and with Gauss-Newton against PyTorch's double backward."""
    seen: set[str] = set()
    for case in networks.random_cases(120, 60_000):
        seen |= {*case.layer_types, case.description["loss"]["type"]}
        size = ref.Network(case.description).flatten(case.parameters).size
        v = np.random.default_rng(case.seed).standard_normal(size) / math.sqrt(size)
        objective = tw.Objective(
            case_model(case, "float64", tmp_path),
            case.x,
            case.target,
            sample_weight=case.sample_weight,
            statistics="batch" if training else "frozen",
            dropout=training,
        )
        hessian, gauss_newton, tangent = torch_network.products(case, training, v)
        for found, expected in (
            (objective.hvp(v), hessian),
            (objective.ggnvp(v), gauss_newton),
            (objective.jvp(v), tangent),
        ):
            error = np.linalg.norm(found - expected)
            assert error <= TOLERANCE * max(float(np.linalg.norm(expected)), 1e-8), case.seed
    assert seen >= {
        "dense", "batch_norm", "relu", "residual", "maxout", "dropout", "cross_entropy"
    }  # fmt: skip


def test_state_dict_loads_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = torch_twin()
    network(torch.randn(30, FEATURES, dtype=torch.float64))
    path = tmp_path / "torch.safetensors"
    save_file(network.state_dict(), path)
    model, _ = pair(optim.SGD(0.1))
    model.load_weights(path)
    assert_equal(model, network)
