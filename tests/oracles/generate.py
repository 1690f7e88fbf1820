"""Writes the oracle files of this folder with PyTorch in float64 (the `oracle` extra).

    python tests/oracles/generate.py

Each file holds, per case, the inputs and what PyTorch answered, so that tests need neither PyTorch
nor its random numbers. Ids such as c14 are those of the method list. Rerunning gives identical
files on one machine; other processors may differ in the last bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOLDER = Path(__file__).parent
Case = dict[str, Any]


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Standard normal draws from NumPy, rounded to three digits to keep the files small."""
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return torch.tensor(np.round(values, 3), dtype=torch.float64)


def plain(value: Any) -> Any:
    """JSON form of a tensor or of a container of tensors."""
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def gradients(loss: Tensor, **leaves: Tensor) -> Case:
    """Gradient of `loss` for each named leaf, as d_<name>."""
    found = torch.autograd.grad(loss, list(leaves.values()))
    return {f"d_{name}": g for name, g in zip(leaves, found, strict=True)}


def leaf(t: Tensor) -> Tensor:
    """A copy of `t` that collects gradients."""
    return t.clone().requires_grad_(True)


# -- layers: c1, c2, c3, c7 ----------------------------------------------------------------------


def dense_case() -> Case:
    """c1: F.linear and its three gradients."""
    x, weight, bias, dy = (
        leaf(draw(1, 5, 4)),
        leaf(draw(2, 3, 4)),
        leaf(draw(3, 3)),
        draw(4, 5, 3),
    )
    y = F.linear(x, weight, bias)
    found = gradients((y * dy).sum(), x=x, weight=weight, bias=bias)
    return {"x": x, "weight": weight, "bias": bias, "dy": dy, "y": y, **found}


POSITIVE_POINTS = np.array([1e-9, 1e-3, 0.5, 1.0, 1.5, 3.0, 6.0, 20.0, 40.0, 1e4])


def activation_cases() -> dict[str, Case]:
    """c2, c3 and the other activations, with first and second derivatives."""
    functions: dict[str, tuple[Callable[[Tensor], Tensor], float | None]] = {
        "identity": (lambda z: z * 1.0, None),
        "relu": (F.relu, None),
        "leaky_relu": (lambda z: F.leaky_relu(z, 0.01), 0.01),
        "elu": (lambda z: F.elu(z, 1.3), 1.3),
        "gelu": (F.gelu, None),
        "silu": (F.silu, None),
        "sigmoid": (torch.sigmoid, None),
        "tanh": (torch.tanh, None),
        "softplus": (lambda z: F.softplus(z, threshold=1e9), None),
    }
    points = torch.tensor(
        np.concatenate([-POSITIVE_POINTS[::-1], [0.0], POSITIVE_POINTS]),
        dtype=torch.float64,
    )
    cases = {}
    for name, (function, parameter) in functions.items():
        # softplus of PyTorch overflows in exp when its threshold is lifted
        z = leaf(points[points.abs() < 500] if name == "softplus" else points)
        y = function(z)
        (first,) = torch.autograd.grad(y.sum(), z, create_graph=True)
        second = torch.zeros_like(z)
        if first.requires_grad:
            (found,) = torch.autograd.grad(first.sum(), z, allow_unused=True)
            second = second if found is None else found
        cases[name] = {
            "parameter": parameter,
            "z": z,
            "y": y,
            "derivative": first,
            "second_derivative": second,
        }
    return cases


def network_case() -> Case:
    """c7: a batch-normalized ReLU network with cross-entropy, all gradients and buffers."""
    network = nn.Sequential(
        nn.Linear(5, 7, bias=False),
        nn.BatchNorm1d(7),
        nn.ReLU(),
        nn.Linear(7, 6),
        nn.Tanh(),
        nn.Linear(6, 4),
    ).double()
    with torch.no_grad():
        for index, p in enumerate(network.parameters()):
            p.copy_(draw(20 + index, *p.shape, scale=0.7))
    x, labels = leaf(draw(30, 9, 5)), torch.arange(9) % 4
    z = network(x)
    loss = F.cross_entropy(z, labels, label_smoothing=0.1)
    parameters = {f"layers.{n}": p for n, p in network.named_parameters()}
    found = torch.autograd.grad(loss, [x, *parameters.values()])
    layers = ["dense", "batch_norm", "relu", "dense", "tanh", "dense"]
    units = [7, None, None, 6, None, 4]
    description = {
        "in_features": 5,
        "layers": [
            {"type": t, **({"units": u} if u else {})} for t, u in zip(layers, units, strict=True)
        ],
        "loss": {"type": "cross_entropy", "label_smoothing": 0.1},
    }
    return {
        "description": description,
        "parameters": parameters,
        "x": x,
        "labels": labels,
        "z": z,
        "loss": loss,
        "d_x": found[0],
        "gradients": dict(zip(parameters, found[1:], strict=True)),
        "state": {f"layers.{n}": b for n, b in network.named_buffers()},
    }


def layers() -> dict[str, Any]:
    """c1, c2, c3, c7, c15."""
    torch.manual_seed(0)
    weight = nn.Linear(16, 64, dtype=torch.float64).weight
    return {
        "dense": dense_case(),
        "activations": activation_cases(),
        "network": network_case(),
        "linear_default_init": {
            "fan_in": 16,
            "largest": weight.abs().max(),
            "variance": weight.var(unbiased=False),
        },
    }


# -- losses: c4, c5 ------------------------------------------------------------------------------


def loss_case(z: Tensor, loss: Callable[[Tensor], Tensor], **inputs: Any) -> Case:
    """Value and gradient of `loss` at z."""
    at = leaf(z)
    value = loss(at)
    return {"z": z, **inputs, "loss": value, **gradients(value, z=at)}


def losses() -> dict[str, Any]:
    """c4, c5, c6 and the other losses."""
    z, labels = draw(40, 6, 5, scale=3.0), torch.tensor([0, 4, 2, 2, 1, 3])
    big = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, 0.0], [-1e4, 0.0, -1e4]], dtype=torch.float64)
    probability = torch.softmax(draw(41, 6, 5), dim=1).round(decimals=3)
    class_weight = torch.tensor([0.5, 1.0, 2.0, 1.5, 3.0], dtype=torch.float64)
    target = draw(42, 6, 5)
    unit = torch.sigmoid(draw(43, 6, 5)).round(decimals=3)
    sign = torch.sign(draw(44, 6, 5))
    return {
        "cross_entropy": loss_case(z, lambda a: F.cross_entropy(a, labels), labels=labels),
        "cross_entropy_large": loss_case(
            big, lambda a: F.cross_entropy(a, torch.tensor([1, 0, 2])), labels=[1, 0, 2]
        ),
        "cross_entropy_smoothed": loss_case(
            z,
            lambda a: F.cross_entropy(a, labels, label_smoothing=0.2),
            labels=labels,
            label_smoothing=0.2,
        ),
        "cross_entropy_class_weight": loss_case(
            z,
            lambda a: F.cross_entropy(a, labels, weight=class_weight),
            labels=labels,
            class_weight=class_weight,
        ),
        "cross_entropy_probability": loss_case(
            z, lambda a: F.cross_entropy(a, probability), labels=probability
        ),
        "cross_entropy_probability_smoothed": loss_case(
            z,
            lambda a: F.cross_entropy(a, probability, label_smoothing=0.1),
            labels=probability,
            label_smoothing=0.1,
        ),
        "cross_entropy_unnormalized": loss_case(z, lambda a: F.cross_entropy(a, unit), labels=unit),
        "squared_error_sum": loss_case(
            z, lambda a: F.mse_loss(a, target, reduction="sum"), target=target
        ),
        "squared_error_element_mean": loss_case(z, lambda a: F.mse_loss(a, target), target=target),
        "huber_element_mean": loss_case(
            z, lambda a: F.huber_loss(a, target, delta=0.7), target=target, delta=0.7
        ),
        "binary_cross_entropy_element_mean": loss_case(
            z, lambda a: F.binary_cross_entropy_with_logits(a, unit), target=unit
        ),
        "logistic_sum": loss_case(
            z, lambda a: F.soft_margin_loss(a, sign, reduction="sum"), target=sign
        ),
    }


# -- batch norm: c21, c22 ------------------------------------------------------------------------


def batch_norm_case(momentum: float | None) -> Case:
    """Three training batches, then the evaluation form, with all gradients."""
    layer = nn.BatchNorm1d(3, eps=1e-5, momentum=momentum).double()
    with torch.no_grad():
        layer.weight.copy_(draw(50, 3))
        layer.bias.copy_(draw(51, 3))
    batches = []
    for index, rows in enumerate((6, 4, 9)):
        z, dy = leaf(draw(60 + index, rows, 3, scale=2.0)), draw(70 + index, rows, 3)
        y = layer(z)
        found = gradients((y * dy).sum(), z=z, gamma=layer.weight, beta=layer.bias)
        batches.append(
            {
                "z": z,
                "dy": dy,
                "y": y,
                **found,
                **{name: buffer.clone() for name, buffer in layer.named_buffers()},
            }
        )
    layer.eval()
    z, dy = leaf(draw(80, 5, 3)), draw(81, 5, 3)
    y = layer(z)
    found = gradients((y * dy).sum(), z=z, gamma=layer.weight, beta=layer.bias)
    return {
        "momentum": momentum,
        "eps": 1e-5,
        "gamma": layer.weight,
        "beta": layer.bias,
        "batches": batches,
        "eval": {"z": z, "dy": dy, "y": y, **found},
    }


def batch_norm() -> dict[str, Any]:
    """c21, c22 with both running rules."""
    return {"ema": batch_norm_case(0.1), "cumulative": batch_norm_case(None)}


# -- optimizers: c11-c14, c16, c17, c19, c20, c23, s1 --------------------------------------------

STEPS = 20
# thalweg description -> the PyTorch optimizer that must agree with it
OPTIMIZER_CASES: dict[str, tuple[Case, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "sgd": ({"type": "sgd", "lr": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd_weight_decay": (
        {"type": "sgd", "lr": 0.1, "weight_decay": 0.05},
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.05),
    ),
    "momentum": (
        {"type": "momentum", "lr": 0.1, "momentum": 0.9},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ),
    "momentum_torch_decayed": (
        {
            "type": "momentum",
            "lr": {"schedule": "linear", "start": 0.1, "end": 0.001, "tau": 10},
            "momentum": 0.9,
            "torch_compat": True,
            "weight_decay": 0.02,
        },
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02),
    ),
    "nesterov": (
        {"type": "nesterov", "lr": 0.1, "momentum": 0.9},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "nesterov_torch_decayed": (
        {
            "type": "nesterov",
            "lr": {"schedule": "linear", "start": 0.1, "end": 0.001, "tau": 10},
            "momentum": 0.9,
            "torch_compat": True,
        },
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "adagrad": (
        {"type": "adagrad", "lr": 0.05, "delta": 1e-7, "weight_decay": 0.01},
        lambda p: torch.optim.Adagrad(p, lr=0.05, eps=1e-7, weight_decay=0.01),
    ),
    "rmsprop": (
        {"type": "rmsprop", "lr": 0.01, "rho": 0.9, "delta": 1e-6, "weight_decay": 0.01},
        lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-6, weight_decay=0.01),
    ),
    "adadelta": (
        {"type": "adadelta", "lr": 1.0, "rho": 0.95, "delta": 1e-6, "weight_decay": 0.01},
        lambda p: torch.optim.Adadelta(p, lr=1.0, rho=0.95, eps=1e-6, weight_decay=0.01),
    ),
    "adam": (
        {"type": "adam", "lr": 0.01},
        lambda p: torch.optim.Adam(p, lr=0.01),
    ),
    "adam_weight_decay": (
        {"type": "adam", "lr": 0.01, "beta1": 0.8, "beta2": 0.99, "weight_decay": 0.05},
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), weight_decay=0.05),
    ),
    "adamw": (
        {"type": "adamw", "lr": 0.01, "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ),
}


def optimizer_gradients(steps: int) -> Tensor:
    """Gradients [steps, 5] that are fed to every optimizer, of very different sizes per column."""
    scale = torch.tensor([1.0, 0.1, 10.0, 1e-3, 1.0], dtype=torch.float64)
    return draw(90, steps, 5) * scale


def optimizer_path(
    description: Case,
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    start: Tensor,
    given: Tensor,
) -> Tensor:
    """Stored parameters after every update."""
    p = leaf(start)
    optimizer = make([p])
    scheduler = None
    if isinstance(description["lr"], dict):
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 10)
    path = []
    for g in given:
        p.grad = g.clone()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        path.append(p.detach().clone())
    return torch.stack(path)


def averaging_case(start: Tensor, given: Tensor) -> Case:
    """c23: equal-weight and exponential averages of SGD iterates by AveragedModel."""
    model = nn.Linear(5, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(start[None])
    ema = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    averages = {
        "polyak": torch.optim.swa_utils.AveragedModel(model),
        "ema": torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ema),
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    paths: dict[str, list[Tensor]] = {name: [] for name in averages}
    for g in given:
        model.weight.grad = g[None].clone()
        optimizer.step()
        for name, average in averages.items():
            average.update_parameters(model)
            paths[name].append(next(average.parameters()).detach()[0].clone())
    return {"lr": 0.1, "decay": 0.9, **paths}


def clipping_case() -> Case:
    """s1: clip_grad_norm_, which divides by norm + 1e-6."""
    tensors = [leaf(draw(100, 3, 2)), leaf(draw(101, 4))]
    raw = [draw(102, 3, 2), draw(103, 4)]
    for t, g in zip(tensors, raw, strict=True):
        t.grad = g.clone()
    norm = nn.utils.clip_grad_norm_(tensors, 1.0)
    return {"gradients": raw, "limit": 1.0, "norm": norm, "clipped": [t.grad for t in tensors]}


def optimizers() -> dict[str, Any]:
    """c11, c13, c14, c16, c17, c19, c20, c23, s1."""
    start, given = draw(91, 5), optimizer_gradients(STEPS)
    paths = {
        name: {"description": description, "path": optimizer_path(description, make, start, given)}
        for name, (description, make) in OPTIMIZER_CASES.items()
    }
    return {
        "start": start,
        "gradients": given,
        "paths": paths,
        "averaging": averaging_case(start, given),
        "clipping": clipping_case(),
    }


# -- schedules: c12 ------------------------------------------------------------------------------

SCHEDULE_CASES: dict[str, tuple[Case, Callable[[torch.optim.Optimizer], Any], int]] = {
    "linear": (
        {"schedule": "linear", "start": 0.1, "tau": 12},
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.01, 12),
        20,
    ),
    "step": (
        {"schedule": "step", "start": 0.1, "factor": 0.5, "every": 4},
        lambda o: torch.optim.lr_scheduler.StepLR(o, 4, 0.5),
        20,
    ),
    "cosine": (
        {"schedule": "cosine", "start": 0.1, "end": 0.01, "steps": 15},
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 15, 0.01),
        16,
    ),
    "one_cycle": (
        {"schedule": "one_cycle", "peak": 0.1, "steps": 20},
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        20,
    ),
}


def schedules() -> dict[str, Any]:
    """c12 and the schedules that PyTorch has too: the rate of update k = 0, 1, ..."""
    cases = {}
    for name, (description, make, count) in SCHEDULE_CASES.items():
        optimizer = torch.optim.SGD([leaf(draw(0, 1))], lr=0.1)
        scheduler = make(optimizer)
        values = []
        for k in range(count):
            values.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            if k + 1 < count:
                scheduler.step()
        cases[name] = {"description": description, "values": values}
    return cases


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "layers": layers,
    "losses": losses,
    "batch_norm": batch_norm,
    "optimizers": optimizers,
    "schedules": schedules,
}


def build(name: str) -> dict[str, Any]:
    """Content of the oracle file of this stem."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        content: dict[str, Any] = plain(FILES[name]())
        return content
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    """Write all files."""
    for name in FILES:
        text = json.dumps(build(name), separators=(",", ":"), sort_keys=True)
        (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
