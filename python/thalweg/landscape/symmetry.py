"""Symmetries of networks: parameters that differ and mean the same function.

Hidden units may change places; where the activation is positively homogeneous (ReLU, leaky ReLU,
identity) the weights into a unit may be multiplied by c > 0 and those out of it divided by c; tanh
and identity allow c = -1; and batch norm undoes any scale of the weights before it. The canonical
form picks one member of each family. Sources: Hecht-Nielsen, *On the algebraic structure of
feedforward network weight spaces*, 1990; Neyshabur, Salakhutdinov, Srebro, *Path-SGD*, 2015;
Badrinarayanan, Mishra, Cipolla, *Symmetry-invariant optimization in deep networks*, 2015.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg import _check, nn
from thalweg._chain import chain
from thalweg.landscape import _arguments
from thalweg.landscape._result import NOT_JSON, Result

if TYPE_CHECKING:
    from thalweg.landscape._result import Array
    from thalweg.model import ArrayLike, Model

__all__ = [
    "CanonicalForm",
    "canonical_form",
    "function_distance",
    "hidden_layers",
    "permute_units",
    "rescale_units",
    "symmetry_directions",
]

_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity)
_ODD = (nn.Tanh, nn.Identity)


@dataclass(frozen=True)
class _Hidden:
    """One hidden layer: names of its parameters, and what its units allow."""

    dense: str
    width: int
    bias: bool
    batch_norm: str | None
    eps: float
    homogeneous: bool
    odd: bool
    next: str


def _hidden(where: str, model: Model) -> list[_Hidden]:
    """The hidden layers of a chain of dense layers."""
    layers = chain(_arguments.model(where, model).network)
    for name, layer in layers:
        if isinstance(layer, (nn.Residual, nn.Maxout)):
            raise ValueError(
                f"[{where}] expected dense layers, batch norm, activations and dropout, got "
                f"{layer.type} ({name}), whose units are tied to others"
            )
    places = [i for i, (_, layer) in enumerate(layers) if isinstance(layer, nn.Dense)]
    parameters = model.named_parameters()
    found = []
    for place, following in itertools.pairwise(places):
        name, dense = layers[place]
        between = layers[place + 1 : following]
        norms = [entry for entry in between if isinstance(entry[1], nn.BatchNorm)]
        for before, (norm_name, layer) in zip(layers[place:following], between, strict=False):
            if isinstance(layer, nn.BatchNorm) and before[0] != name:
                raise ValueError(
                    f"[{where}] expected batch norm right behind its dense layer, got {norm_name} "
                    f"behind {before[0]} ({before[1].type}); apply it before the activation"
                )
        acts = [layer for _, layer in between if isinstance(layer, nn.Activation)]
        assert isinstance(dense, nn.Dense)
        norm = norms[0][1] if norms else None
        found.append(
            _Hidden(
                name,
                dense.units,
                f"{name}.bias" in parameters,
                norms[0][0] if norms else None,
                norm.eps if isinstance(norm, nn.BatchNorm) else 0.0,
                all(isinstance(act, _HOMOGENEOUS) for act in acts),
                all(isinstance(act, _ODD) for act in acts),
                layers[following][0],
            )
        )
    return found


def hidden_layers(model: Model) -> list[str]:
    """Names of the hidden layers whose units can be permuted.

    Parameters
    ----------
    model : Model
        A chain of dense layers with batch norm, activations and dropout between them.

    Returns
    -------
    list of str
        The dense layer of each, for example "layers.0".

    Examples
    --------
    >>> import thalweg as tw
    >>> hidden_layers(tw.Model([tw.nn.Dense(8), tw.nn.ReLU(), tw.nn.Dense(2)], 3))
    ['layers.0']
    """
    return [layer.dense for layer in _hidden("hidden_layers", model)]


class _Values:
    """Named parameters and batch-norm statistics of a model as float64, to be changed."""

    def __init__(self, model: Model) -> None:
        named = {**model.named_parameters(), **model.named_state()}
        self.of = {
            name: value.astype(np.float64)
            for name, value in named.items()
            if not name.endswith("num_batches_tracked")
        }
        self._state = set(model.named_state())
        self._model = model

    def model(self) -> Model:
        """A copy of the model with these values."""
        copy = self._model.copy()
        copy.set_parameters({n: v for n, v in self.of.items() if n not in self._state})
        state = {n: v for n, v in self.of.items() if n in self._state}
        if state:
            copy.set_state(state)
        return copy

    def permute(self, layer: _Hidden, order: Array) -> None:
        """Unit order[i] takes place i."""
        owners = [layer.dense] + ([layer.batch_norm] if layer.batch_norm else [])
        for owner in owners:
            for name in ("weight", "bias", "running_mean", "running_var"):
                if f"{owner}.{name}" in self.of:
                    self.of[f"{owner}.{name}"] = self.of[f"{owner}.{name}"][order]
        name = f"{layer.next}.weight"
        self.of[name] = self.of[name][:, order]

    def scale_output(self, layer: _Hidden, factors: Array) -> None:
        """Multiply what a unit puts out, and divide the weights that read it."""
        owner = layer.batch_norm or layer.dense
        self.of[f"{owner}.weight"] *= factors if layer.batch_norm else factors[:, None]
        if f"{owner}.bias" in self.of:
            self.of[f"{owner}.bias"] *= factors
        self.of[f"{layer.next}.weight"] /= factors

    def scale_before_norm(self, layer: _Hidden, factors: Array) -> None:
        """Multiply what goes into batch norm; its running statistics follow, eps included."""
        norm = layer.batch_norm
        self.of[f"{layer.dense}.weight"] *= factors[:, None]
        if layer.bias:
            self.of[f"{layer.dense}.bias"] *= factors
        self.of[f"{norm}.running_mean"] *= factors
        variance = self.of[f"{norm}.running_var"] + layer.eps
        self.of[f"{norm}.running_var"] = factors**2 * variance - layer.eps
        self.of[f"{norm}.weight"] *= np.sign(factors)

    def incoming(self, layer: _Hidden) -> Array:
        """Weights and bias into each unit, ``[units, in + 1]``."""
        weight = self.of[f"{layer.dense}.weight"]
        bias = self.of[f"{layer.dense}.bias"] if layer.bias else np.zeros(layer.width)
        return np.column_stack([weight, bias])


def permute_units(model: Model, layer: str, order: ArrayLike) -> Model:
    """A model of the same function whose hidden units changed places.

    Parameters
    ----------
    model : Model
        Is not changed. The optimizer state of the copy keeps its order.
    layer : str
        One of `hidden_layers`.
    order : int array ``[units]``
        Unit order[i] takes place i.

    Returns
    -------
    Model

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model([tw.nn.Dense(3), tw.nn.ReLU(), tw.nn.Dense(2)], 4)
    >>> turned = permute_units(model, "layers.0", [2, 0, 1])
    >>> function_distance(model, turned, [[1.0, 2.0, 3.0, 4.0]]) < 1e-6
    True
    """
    where = "permute_units"
    hidden = _find(where, model, layer)
    indices = _check.array(where, "order", order)
    if indices.dtype.kind not in "iu" or not np.array_equal(
        np.sort(indices.ravel()), np.arange(hidden.width)
    ):
        raise ValueError(
            f"[{where}] expected order, a permutation of 0 .. {hidden.width - 1}, got "
            f"{_check.shown(order)}"
        )
    values = _Values(model)
    values.permute(hidden, indices.ravel())
    return values.model()


def rescale_units(model: Model, layer: str, factors: ArrayLike) -> Model:
    """A model of the same function with other scales of its hidden units.

    Units of ReLU, leaky ReLU and identity put out `factors` times as much, and the next weights are
    divided by it. Before batch norm, whatever the activation, the weights into it are multiplied,
    and nothing behind it changes: exactly so with running statistics, which follow; with batch
    statistics up to eps.

    Parameters
    ----------
    model : Model
        Is not changed.
    layer : str
        One of `hidden_layers`.
    factors : array ``[units]``
        Larger than 0.

    Returns
    -------
    Model

    Raises
    ------
    ValueError
        For activations that are not positively homogeneous, without batch norm before them.
    """
    where = "rescale_units"
    hidden = _find(where, model, layer)
    scale = _arguments.reals(where, "factors", factors, 1)
    if scale.size != hidden.width or not np.all(scale > 0.0):
        raise ValueError(
            f"[{where}] expected factors > 0 with shape ({hidden.width},), got "
            f"{_check.shown(factors)}"
        )
    values = _Values(model)
    if hidden.batch_norm:
        smallest = values.of[f"{hidden.batch_norm}.running_var"] + hidden.eps
        if np.any(scale**2 * smallest < hidden.eps):
            raise ValueError(
                f"[{where}] expected factors that keep the variance of {hidden.batch_norm} "
                f"above 0 (factor^2 (variance + eps) >= eps), got {scale.min():g}"
            )
        values.scale_before_norm(hidden, scale)
    elif hidden.homogeneous:
        values.scale_output(hidden, scale)
    else:
        raise ValueError(
            f"[{where}] expected a positively homogeneous activation behind {layer} (relu, "
            "leaky_relu, identity), got another; its units have no scale of their own"
        )
    return values.model()


def _find(where: str, model: Model, layer: Any) -> _Hidden:
    by_name = {hidden.dense: hidden for hidden in _hidden(where, model)}
    return by_name[_check.choice(where, "layer", layer, by_name)]


@dataclass(frozen=True, eq=False)
class CanonicalForm(Result):
    """The canonical member of a model's family, and how to get there.

    Attributes
    ----------
    model : Model
    orders : dict of int arrays by hidden layer
        Unit orders[layer][i] of the original takes place i.
    factors : dict of float64 arrays by hidden layer
        By what the weights into each unit, in the original order, were multiplied.
    """

    model: Model = field(repr=False, metadata=NOT_JSON)
    orders: dict[str, Array]
    factors: dict[str, Array]

    def _draw(self, axes: Any) -> None:
        for name, factors in self.factors.items():
            axes.plot(np.sort(np.abs(factors)), label=name)
        axes.set(xlabel="unit", ylabel="factor of its weights", yscale="log")
        axes.legend()


def canonical_form(model: Model) -> CanonicalForm:
    """The canonical form under permutations, rescalings, signs and batch norm's scales.

    Layer by layer: before batch norm, and where the activation is positively homogeneous, the
    weights and bias into a unit get norm 1; behind batch norm and such an activation |(gamma,
    beta)| becomes 1 instead; with tanh or identity the first weight of a unit that is not 0 (with
    batch norm gamma) becomes positive; then the units are sorted by their weights, first weight
    first. Two models of one family have the same canonical form, up to rounding, unless units tie.

    Parameters
    ----------
    model : Model
        A chain of dense layers with batch norm right behind them, activations and dropout. It is
        not changed; the copy has the same function.

    Returns
    -------
    CanonicalForm

    Raises
    ------
    ValueError
        For residual and maxout layers, by name.

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model([tw.nn.Dense(3), tw.nn.ReLU(), tw.nn.Dense(2)], 4, dtype="float64")
    >>> other = rescale_units(permute_units(model, "layers.0", [2, 0, 1]), "layers.0", [2, 3, 4])
    >>> a, b = canonical_form(model).model, canonical_form(other).model
    >>> bool(abs(a.parameters - b.parameters).max() < 1e-12)
    True
    """
    values = _Values(_arguments.model("canonical_form", model))
    orders: dict[str, Array] = {}
    scales: dict[str, Array] = {}
    for layer in _hidden("canonical_form", model):
        scales[layer.dense] = _normalize(values, layer)
        keys = values.incoming(layer)
        # lexsort takes the last key first.
        order = np.lexsort(keys.T[::-1])
        values.permute(layer, order)
        orders[layer.dense] = order.astype(np.int64)
    return CanonicalForm(values.model(), orders, scales)


def _inverse(norms: Array) -> Array:
    """1 / norm; 1 for units without weights."""
    return 1.0 / np.where(norms > 0.0, norms, 1.0)


def _signs(rows: Array) -> Array:
    """The sign of the first entry of each row that is not 0."""
    first = np.argmax(rows != 0.0, axis=1)
    return np.where(rows[np.arange(len(rows)), first] < 0.0, -1.0, 1.0)


def _normalize(values: _Values, layer: _Hidden) -> Array:
    """Fix scales and signs of one layer; by what its incoming weights were multiplied."""
    rows = values.incoming(layer)
    factors = np.ones(layer.width)
    if layer.batch_norm:
        factors = _inverse(np.linalg.norm(rows, axis=1))
        variance = values.of[f"{layer.batch_norm}.running_var"] + layer.eps
        factors = np.where(factors**2 * variance >= layer.eps, factors, 1.0)
        gamma = values.of[f"{layer.batch_norm}.weight"]
        # BN(-z) = -BN(z): the sign of gamma moves into the weights.
        factors = factors * np.where(gamma < 0.0, -1.0, 1.0)
        values.scale_before_norm(layer, factors)
        if layer.odd:
            signs = _signs(values.incoming(layer))
            values.scale_before_norm(layer, signs)
            values.scale_output(layer, signs)
            factors = factors * signs
        behind = np.stack([values.of[f"{layer.batch_norm}.{n}"] for n in ("weight", "bias")], 1)
        if layer.homogeneous:
            values.scale_output(layer, _inverse(np.linalg.norm(behind, axis=1)))
        return factors
    if layer.homogeneous:
        factors = _inverse(np.linalg.norm(rows, axis=1))
    if layer.odd:
        factors = factors * _signs(rows)
    values.scale_output(layer, factors)
    return factors


def function_distance(first: Model, second: Model, x: ArrayLike) -> float:
    """Largest difference of the outputs of two models on x.

    Parameters
    ----------
    first, second : Model
    x : array ``[rows, in_features]``

    Returns
    -------
    float
    """
    where = "function_distance"
    a = _arguments.model(where, first).predict(x).astype(np.float64)
    b = _arguments.model(where, second).predict(x).astype(np.float64)
    if a.shape != b.shape:
        raise ValueError(f"[{where}] expected outputs of one shape, got {a.shape} and {b.shape}")
    for outputs in (a, b):
        _arguments.all_finite(where, "outputs", outputs)
    return float(np.max(np.abs(a - b)))


def symmetry_directions(model: Model) -> Array:
    """Directions in which the parameters can move without changing the function, to first order.

    One per hidden unit of a positively homogeneous layer, (weights in, bias, -weights out), and one
    per unit before batch norm, (weights in, bias), the latter up to eps and with batch statistics.
    The gradient is orthogonal to all of them everywhere; at a critical point they are null
    directions of the Hessian.

    Parameters
    ----------
    model : Model
        As for `canonical_form`.

    Returns
    -------
    float64 array ``[directions, num_parameters]``
        Unit vectors; units without weights in and out are left out.

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model([tw.nn.Dense(3), tw.nn.ReLU(), tw.nn.Dense(2)], 4)
    >>> symmetry_directions(model).shape
    (3, 23)
    """
    where = "symmetry_directions"
    layers = _hidden(where, model)
    parameters = model.parameters.astype(np.float64)
    places = {
        name: np.arange(offset, offset + int(np.prod(shape))).reshape(shape)
        for name, offset, shape in model.layout()
    }
    found: list[Array] = []

    def add(positive: list[Array], negative: Array | None) -> None:
        direction = np.zeros(len(parameters))
        for place in positive:
            direction[place] = parameters[place]
        if negative is not None:
            direction[negative] = -parameters[negative]
        norm = float(np.linalg.norm(direction))
        if norm > 0.0:
            found.append(direction / norm)

    for layer in layers:
        for unit in range(layer.width):
            into = [places[f"{layer.dense}.weight"][unit]]
            if layer.bias:
                into.append(places[f"{layer.dense}.bias"][unit])
            out = places[f"{layer.next}.weight"][:, unit]
            if layer.batch_norm:
                add(into, None)
                into = [places[f"{layer.batch_norm}.{n}"][unit] for n in ("weight", "bias")]
            if layer.homogeneous:
                add(into, out)
    return np.stack(found) if found else np.zeros((0, len(parameters)))
