"""Seeded random networks with their float64 results, for the random-network test.

`random_case(seed)` draws a description, parameters and data; `Case.expected()` is what the
reference computes from them. All drawn numbers are exactly representable in float32, so that a
float32 run starts from the same values. Cases in which storing the outputs of the layers in float32
would alone move a result by more than `MAX_SENSITIVITY` (a preactivation next to a kink, a batch
norm of nearly equal rows, a loss near 0) are redrawn: no float32 program could agree on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import reference as ref

WIDTHS = (1, 3, 10, 31, 32, 33, 64, 100)
BATCHES = (1, 2, 3, 7, 16, 31, 32, 33, 63, 64, 65, 100, 128, 129, 200)
PLAIN_ACTIVATIONS = ("identity", "relu", "gelu", "silu", "sigmoid", "tanh", "softplus")

Rng = np.random.Generator
Layer = dict[str, Any]


class Sensitivity(NamedTuple):
    """Relative changes, the larger of training and evaluation, when layers round to float32."""

    outputs: float
    loss: float
    gradient: float


MAX_SENSITIVITY = Sensitivity(outputs=5e-7, loss=2.5e-7, gradient=1e-6)


@dataclass(frozen=True)
class Case:
    """One random network with its data.

    Attributes
    ----------
    description : the model description, without optimizer.
    parameters, state : float64 by name; the batch-norm buffers differ from their initial values.
    x : float64 [rows, in_features].
    target : int64 [rows], or float64 [rows, out].
    sample_weight : float64 [rows] or None.
    step : number that keys the dropout masks.
    sensitivity : relative changes when every layer stores its output in float32.
    """

    seed: int
    description: Layer
    parameters: ref.Parameters
    state: dict[str, ref.Float]
    x: ref.Float
    target: npt.NDArray[Any]
    sample_weight: ref.Float | None
    step: int = 0
    sensitivity: Sensitivity | None = None

    @property
    def layer_types(self) -> frozenset[str]:
        """Kinds of layers that occur, nested ones included."""
        return frozenset(node.kind for node in ref.Network(self.description).walk())

    def expected(
        self,
        *,
        training: bool = True,
        first_stream: int = 0,
        rounding: Callable[[ref.Float], ref.Float] | None = None,
    ) -> ref.Evaluation:
        """Outputs, loss, gradients and batch-norm buffers in float64."""
        network = ref.Network(self.description, first_stream)
        return network.evaluate(
            self.parameters,
            self.x,
            self.target,
            state=self.state,
            training=training,
            sample_weight=self.sample_weight,
            step=self.step,
            rounding=rounding,
        )

    def flat(self, values: Mapping[str, ref.Float]) -> ref.Float:
        """Canonical flat vector of named parameters or gradients."""
        return ref.Network(self.description).flatten(values)


def relative_error(actual: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Frobenius norm of the difference over that of `expected`; 1 when only the latter is 0."""
    a, e = ref.as_float(actual), ref.as_float(expected)
    difference, size = float(np.linalg.norm(a - e)), float(np.linalg.norm(e))
    return difference / size if size else float(difference != 0.0)


def _float32(a: npt.ArrayLike) -> ref.Float:
    return np.asarray(a, dtype=np.float32).astype(np.float64)


def _pick(rng: Rng, choices: tuple[Any, ...]) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _activation(rng: Rng) -> Layer:
    kind = _pick(rng, (*PLAIN_ACTIVATIONS, "relu", "relu", "leaky_relu", "elu"))
    if kind == "leaky_relu":
        return {"type": kind, "slope": _pick(rng, (0.01, 0.25))}
    if kind == "elu":
        return {"type": kind, "alpha": _pick(rng, (1.0, 0.5))}
    return {"type": kind}


def _batch_norm(rng: Rng) -> Layer:
    return {
        "type": "batch_norm",
        "eps": _pick(rng, (1e-5, 1e-3)),
        "momentum": _pick(rng, (0.1, 0.01, None)),
        "weighted": bool(rng.random() < 0.3),
    }


def _block(rng: Rng, width: int, norm: bool, depth: int) -> tuple[list[Layer], int]:
    """A few layers that belong together, and the width behind them."""
    roll = rng.random()
    if roll < 0.12:
        units, pieces = _pick(rng, WIDTHS), _pick(rng, (1, 2, 3))
        bias = bool(rng.random() < 0.8)
        return [{"type": "maxout", "units": units, "pieces": pieces, "bias": bias}], units
    if roll < 0.26 and depth == 0:
        inner, inner_width = _block(rng, width, norm, depth + 1)
        closing = {"type": "dense", "units": width, "bias": None}
        zero_init = bool(rng.random() < 0.5)
        branch = [*inner, closing] if inner_width != width else inner
        return [{"type": "residual", "layers": branch, "zero_init": zero_init}], width
    if roll < 0.36 and depth == 0:
        inner, inner_width = _block(rng, width, norm, depth + 1)
        return [{"type": "sequential", "layers": inner}], inner_width
    units = _pick(rng, WIDTHS)
    layers: list[Layer] = []
    if norm and rng.random() < 0.15:
        layers.append(_batch_norm(rng))
    layers.append({"type": "dense", "units": units, "bias": _pick(rng, (None, None, True, False))})
    if norm and rng.random() < 0.5:
        layers.append(_batch_norm(rng))
    if rng.random() < 0.9:
        layers.append(_activation(rng))
    if norm and rng.random() < 0.1:
        layers.append(_batch_norm(rng))
    if rng.random() < 0.2:
        layers.append({"type": "dropout", "p": _pick(rng, (0.0, 0.1, 0.5))})
    return layers, units


def _loss(rng: Rng) -> Layer:
    kind = _pick(rng, ("cross_entropy", "cross_entropy", *ref.ELEMENTWISE_LOSSES))
    if kind == "cross_entropy":
        return {"type": kind, "label_smoothing": _pick(rng, (0.0, 0.0, 0.1))}
    loss = {"type": kind, "reduction": _pick(rng, ("batch_mean", "sum", "element_mean"))}
    if kind == "huber":
        loss["delta"] = _pick(rng, (1.0, 0.5))
    return loss


def _description(rng: Rng, rows: int) -> Layer:
    in_features = width = _pick(rng, WIDTHS)
    norm = rows >= 16 and bool(rng.random() < 0.7)
    layers: list[Layer] = []
    for _ in range(int(rng.integers(0, 5))):
        block, width = _block(rng, width, norm, 0)
        layers += block
    loss = _loss(rng)
    outputs = (2, 3, 10, 33) if loss["type"] == "cross_entropy" else (1, 3, 10)
    layers.append({"type": "dense", "units": _pick(rng, outputs), "bias": None})
    return {
        "in_features": in_features,
        "dtype": "float32",
        "seed": int(rng.integers(0, 2**63)),
        "layers": layers,
        "loss": loss,
    }


def _parameters(rng: Rng, network: ref.Network) -> ref.Parameters:
    """Weights of unit gain, so that activations stay of order one; gamma away from 0."""
    norms = {node.name for node in network.walk() if node.kind == "batch_norm"}
    parameters = {}
    for name, shape in network.parameter_shapes().items():
        if name.rpartition(".")[0] in norms and name.endswith(".weight"):
            values = rng.uniform(0.5, 1.5, shape)
        elif name.endswith(".weight"):
            values = rng.standard_normal(shape) / np.sqrt(shape[1])
        else:
            values = 0.3 * rng.standard_normal(shape)
        parameters[name] = _float32(values)
    return parameters


def _state(rng: Rng, network: ref.Network) -> dict[str, ref.Float]:
    state = {}
    for name, initial in network.initial_state().items():
        if name.endswith(".running_mean"):
            state[name] = _float32(0.3 * rng.standard_normal(initial.shape))
        elif name.endswith(".running_var"):
            state[name] = _float32(rng.uniform(0.5, 2.0, initial.shape))
        else:
            state[name] = ref.as_float(rng.integers(0, 5))
    return state


def _target(rng: Rng, loss: Layer, rows: int, outputs: int) -> npt.NDArray[Any]:
    shape = (rows, outputs)
    if loss["type"] == "cross_entropy":
        if rng.random() < 0.7:
            return rng.integers(0, outputs, rows)
        return _float32(rng.dirichlet(np.ones(outputs), rows))
    kind = ref.ELEMENTWISE_LOSSES[loss["type"]].target
    if kind == "sign":
        return np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    if kind == "unit_interval":
        return _float32(rng.random(shape))
    return _float32(rng.standard_normal(shape))


def _sample_weight(rng: Rng, rows: int) -> ref.Float | None:
    """None, positive reals, or small integers with some zeros."""
    roll = rng.random()
    if roll < 0.6:
        return None
    if roll < 0.8:
        return _float32(rng.uniform(0.5, 2.0, rows))
    weight = ref.as_float(rng.integers(0, 4, rows))
    weight[0] = 2.0
    return weight


def _draw(rng: Rng, seed: int) -> Case:
    rows = _pick(rng, BATCHES)
    description = _description(rng, rows)
    network = ref.Network(description)
    return Case(
        seed=seed,
        description=description,
        parameters=_parameters(rng, network),
        state=_state(rng, network),
        x=_float32(rng.standard_normal((rows, network.in_features))),
        target=_target(rng, description["loss"], rows, network.out_features),
        sample_weight=_sample_weight(rng, rows),
        step=int(rng.integers(0, 1000)),
    )


def sensitivity(case: Case) -> Sensitivity:
    """What storing the output of every layer in float32 does to the results."""
    worst = np.zeros(3)
    for training in (True, False):
        exact = case.expected(training=training)
        rounded = case.expected(training=training, rounding=_float32)
        changes = (
            relative_error(rounded.outputs, exact.outputs),
            relative_error(rounded.loss, exact.loss),
            relative_error(case.flat(rounded.gradients), case.flat(exact.gradients)),
        )
        worst = np.maximum(worst, changes)
    return Sensitivity(*worst.tolist())


def random_case(seed: int) -> Case:
    """The random network of this seed."""
    rng = np.random.default_rng([20240607, seed])
    while True:
        case = _draw(rng, seed)
        try:
            change = sensitivity(case)
        except ValueError:  # frequency weights of a weighted batch norm that stand for one row
            continue
        if all(np.less_equal(change, MAX_SENSITIVITY)):
            return replace(case, sensitivity=change)


def random_cases(count: int, first_seed: int = 0) -> Iterator[Case]:
    """`count` cases with consecutive seeds."""
    for seed in range(first_seed, first_seed + count):
        yield random_case(seed)
