"""A random-network case evaluated by PyTorch autograd (the `oracle` extra).

Batch norm with frequency weights, dropout masks and maxout are spelled out in tensor operations;
their derivatives are left to autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks
import numpy as np
import numpy.typing as npt
import reference as ref
import torch
import torch.nn.functional as F
from torch import Tensor

Array = npt.NDArray[Any]

_ACTIVATIONS: dict[str, Callable[[Tensor, ref.Spec], Tensor]] = {
    "identity": lambda z, s: z,
    "relu": lambda z, s: F.relu(z),
    "leaky_relu": lambda z, s: F.leaky_relu(z, s.get("slope", 0.01)),
    "elu": lambda z, s: F.elu(z, s.get("alpha", 1.0)),
    "gelu": lambda z, s: F.gelu(z),
    "silu": lambda z, s: F.silu(z),
    "sigmoid": lambda z, s: torch.sigmoid(z),
    "tanh": lambda z, s: torch.tanh(z),
    "softplus": lambda z, s: torch.logaddexp(z, torch.zeros_like(z)),
}


class _Pass:
    """One forward pass through a case's description."""

    def __init__(self, case: networks.Case, training: bool, dtype: torch.dtype) -> None:
        self.case, self.training, self.dtype = case, training, dtype
        self.parameters = {
            n: torch.tensor(p, dtype=dtype, requires_grad=True) for n, p in case.parameters.items()
        }
        self.weight = None
        if case.sample_weight is not None:
            self.weight = self.tensor(case.sample_weight)

    def tensor(self, a: Array) -> Tensor:
        return torch.tensor(a, dtype=self.dtype)

    def chain(self, nodes: tuple[ref.Node, ...], h: Tensor) -> Tensor:
        for node in nodes:
            h = self.node(node, h)
        return h

    def node(self, node: ref.Node, h: Tensor) -> Tensor:
        kind, spec = node.kind, node.spec
        if kind in ("dense", "maxout"):
            weight = self.parameters[f"{node.name}.weight"]
            z = F.linear(h, weight, self.parameters.get(f"{node.name}.bias"))
            if kind == "dense":
                return z
            return z.reshape(len(z), node.out_width, -1).max(dim=-1).values
        if kind == "batch_norm":
            return self.batch_norm(node, h)
        if kind == "sequential":
            return self.chain(node.children, h)
        if kind == "residual":
            return h + self.chain(node.children, h)
        if kind == "dropout":
            if not self.training:
                return h
            scale = ref.dropout_scale(
                (h.shape[0], h.shape[1]),
                spec["p"],
                seed=self.case.description["seed"],
                stream=node.stream,
                step=self.case.step,
            )
            return h * self.tensor(scale)
        return _ACTIVATIONS[kind](h, spec)

    def batch_norm(self, node: ref.Node, z: Tensor) -> Tensor:
        gamma, beta = (self.parameters[f"{node.name}.{part}"] for part in ("weight", "bias"))
        eps = node.spec["eps"]
        if not self.training:
            mean = self.tensor(self.case.state[f"{node.name}.running_mean"])
            variance = self.tensor(self.case.state[f"{node.name}.running_var"])
            return F.batch_norm(z, mean, variance, gamma, beta, False, 0.0, eps)
        if self.weight is None or not node.spec["weighted"]:
            return F.batch_norm(z, None, None, gamma, beta, True, 0.0, eps)
        share = (self.weight / self.weight.sum())[:, None]
        centred = z - (share * z).sum(dim=0)
        variance = (share * centred**2).sum(dim=0)
        return gamma * centred / torch.sqrt(variance + eps) + beta

    def loss(self, z: Tensor) -> Tensor:
        spec, target = self.case.description["loss"], self.case.target
        rows = len(target)
        weight = torch.ones(rows, dtype=self.dtype) if self.weight is None else self.weight
        if spec["type"] == "cross_entropy":
            labels = torch.tensor(target) if target.ndim == 1 else self.tensor(target)
            smoothing = spec["label_smoothing"]
            each = F.cross_entropy(z, labels, reduction="none", label_smoothing=smoothing)
            return (weight * each).sum() / weight.sum()
        t = self.tensor(target)
        each = {
            "squared_error": lambda: F.mse_loss(z, t, reduction="none"),
            "huber": lambda: F.huber_loss(z, t, reduction="none", delta=spec.get("delta", 1.0)),
            "binary_cross_entropy": lambda: F.binary_cross_entropy_with_logits(
                z, t, reduction="none"
            ),
            "logistic": lambda: F.softplus(-t * z, threshold=1e9),
            "exponential": lambda: torch.exp(-t * z),
        }[spec["type"]]()
        total = (weight[:, None] * each).sum()
        if spec["reduction"] == "sum":
            return total
        return total / weight.sum() / (z.shape[1] if spec["reduction"] == "element_mean" else 1)


def evaluate(
    case: networks.Case, training: bool, dtype: torch.dtype
) -> tuple[Array, float, dict[str, Array], Array]:
    """Outputs, loss, gradients by name and input gradient, as NumPy values."""
    run = _Pass(case, training, dtype)
    x = torch.tensor(case.x, dtype=dtype, requires_grad=True)
    y = run.chain(ref.Network(case.description).nodes, x)
    loss = run.loss(y)
    leaves = [x, *run.parameters.values()]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    values = [
        np.zeros(tuple(a.shape)) if g is None else g.numpy()
        for a, g in zip(leaves, found, strict=True)
    ]
    return (
        y.detach().numpy(),
        loss.item(),
        dict(zip(run.parameters, values[1:], strict=True)),
        values[0],
    )


def products(case: networks.Case, training: bool, v: Array) -> tuple[Array, Array, Array]:
    """H v and J' L J v as flat vectors and J v [rows, out], in float64.

    Jacobians times vectors come from differentiating vectors times Jacobians once more.
    """
    run = _Pass(case, training, torch.float64)
    leaves = list(run.parameters.values())
    directions, offset = [], 0
    for leaf in leaves:
        part = v[offset : offset + leaf.numel()].reshape(tuple(leaf.shape))
        directions.append(torch.tensor(part))
        offset += leaf.numel()

    def flat(gradients: Any) -> Array:
        parts = [
            torch.zeros_like(a) if g is None else g for a, g in zip(leaves, gradients, strict=True)
        ]
        return torch.cat([part.reshape(-1) for part in parts]).detach().numpy()

    def grad(y: Tensor, x: Any, weight: Tensor | None = None) -> Any:
        if not y.requires_grad:
            return [None] * len(x)
        return torch.autograd.grad(
            y, x, weight, create_graph=True, retain_graph=True, allow_unused=True
        )

    y = run.chain(ref.Network(case.description).nodes, torch.tensor(case.x))
    loss = run.loss(y)
    slope = sum(
        (g * d).sum() for g, d in zip(grad(loss, leaves), directions, strict=True) if g is not None
    )
    hessian = flat(grad(slope, leaves) if isinstance(slope, Tensor) else [None] * len(leaves))

    dummy = torch.zeros_like(y, requires_grad=True)
    through = grad(y, leaves, dummy)
    linear = sum((g * d).sum() for g, d in zip(through, directions, strict=True) if g is not None)
    (tangent,) = grad(linear, [dummy])
    tangent = tangent.detach()

    outputs = y.detach().requires_grad_(True)
    (first,) = grad(run.loss(outputs), [outputs])
    (curved,) = grad((first * tangent).sum(), [outputs])
    curved = torch.zeros_like(y) if curved is None else curved.detach()
    return hessian, flat(grad(y, leaves, curved)), tangent.numpy()
