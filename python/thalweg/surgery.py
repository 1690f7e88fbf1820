"""Larger networks that compute the same function (Net2Net).

`widen` gives a hidden layer more units, `deepen` puts a layer behind one. Both return a new model
that predicts what the old one does, up to rounding, and has room to learn more: a trained network
is a start for a larger one. Source: Chen, Goodfellow, Shlens, *Net2Net: accelerating learning via
knowledge transfer*, 2016, here with batch norm and with an exact way to keep copies apart.

Optimizer state is not carried over: units that were split see other gradients, and inserted ones
have no past. Slots, schedules, averages and the counts of steps and epochs of the new model start
at zero, as after `Model.set_optimizer`; a learning rate of a tenth is a good start.

Examples
--------
>>> import numpy as np
>>> import thalweg as tw
>>> from thalweg import nn, surgery
>>> teacher = tw.Model([nn.Dense(4), nn.ReLU(), nn.Dense(2)], 3, dtype="float64")
>>> student = surgery.deepen(surgery.widen(teacher, "layers.0", 7), "layers.0")
>>> student
Model(3 -> 2: dense, relu, dense, relu, dense; 100 parameters, float64, cpu)
>>> x = np.random.default_rng(0).normal(size=(5, 3))
>>> np.allclose(student.predict(x), teacher.predict(x), rtol=1e-12)
True
"""

from __future__ import annotations

import copy
import fnmatch
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg import _check, _core, losses, nn, optim
from thalweg._chain import chain
from thalweg.errors import NonFiniteError
from thalweg.model import Model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from thalweg.model import Array, ArrayLike

__all__ = ["deepen", "widen"]

# Applied twice they are what they are once, so that an identity can stand between.
_IDEMPOTENT = (nn.ReLU, nn.Identity)
_Chain = list[tuple[str, nn.Layer]]


def widen(
    model: Model, layer: str, units: int, *, noise: float = 0.01, seed: int | None = None
) -> Model:
    """A model of the same function with more units in a hidden layer.

    Added units are copies of old ones, drawn with replacement, batch norm's parameters and
    statistics included. The weights that read a unit are shared out among its copies. With equal
    shares copies would get equal gradients for ever; shares that differ keep them apart and leave
    the function as it is. Minibatch statistics of batch norm are those of the old model; dropout
    draws a mask of its own for each copy.

    Parameters
    ----------
    model : Model
        Is not changed.
    layer : str
        Name of the dense layer, for example "layers.0". The next layer with weights must be dense
        or maxout; batch norm, activations and dropout may stand between.
    units : int
        New width, larger than the old one.
    noise : float, default 0.01
        In [0, 1]. A copy's share is 1 + noise * U(-1, 1), divided by the sum over the copies.
    seed : int, optional
        Of the copies and the shares; None takes the model's.

    Returns
    -------
    Model

    Raises
    ------
    ValueError, TypeError
        For an unknown layer, an output layer, a layer that is not dense or whose units are tied to
        others by a residual block, and a width that is not larger.

    Examples
    --------
    >>> from thalweg.landscape import path_norm
    >>> model = Model([nn.Dense(3), nn.ReLU(), nn.Dense(2)], 4, dtype="float64")
    >>> wider = widen(model, "layers.0", 8)
    >>> wider.named_parameters()["layers.0.weight"].shape
    (8, 4)
    >>> abs(path_norm(wider, p=1) / path_norm(model, p=1) - 1) < 1e-12
    True
    """
    where = "widen"
    layers, place = _find(where, model, layer)
    readers = [i for i in range(place + 1, len(layers)) if _has_weights(layers[i][1])]
    if not readers:
        raise ValueError(f"[{where}] expected a hidden layer, got {layer}, the output layer")
    reader, next_layer = layers[readers[0]]
    if isinstance(next_layer, nn.Residual):
        raise ValueError(
            f"[{where}] expected units that a dense layer reads, got {layer}, whose width the "
            f"residual block {reader} keeps"
        )
    values = _values(model)
    width = len(values[f"{layer}.weight"])
    count = _check.integer(where, "units", units, 1)
    if count <= width:
        raise ValueError(f"[{where}] expected units > {width}, the width of {layer}, got {count}")
    spread = _check.real(where, "noise", noise, 0.0, 1.0)
    start = model.seed if seed is None else _check.integer(where, "seed", seed, 0)
    rng = np.random.default_rng(start)
    source = np.concatenate([np.arange(width), rng.integers(0, width, count - width)])
    share = 1.0 + spread * rng.uniform(-1.0, 1.0, count)
    share /= np.bincount(source, weights=share)[source]

    copied = [name for name, _ in layers[place : readers[0]]]
    for name in values:
        if name.rsplit(".", 1)[0] in copied and values[name].ndim > 0:
            values[name] = values[name][source]
    values[f"{reader}.weight"] = values[f"{reader}.weight"][:, source] * share
    description = model.description
    siblings, index = _siblings(description, layer)
    siblings[index]["units"] = count
    return _built(model, description, values)


def deepen(
    model: Model, layer: str, x: ArrayLike | None = None, *, batch_norm: bool | None = None
) -> Model:
    """A model of the same function with one more layer behind a hidden one.

    The new dense layer is the identity, and the activation of `layer` follows it once more. With
    batch norm between them, its gamma and beta undo what it does to the calibration rows `x`:
    evaluation is the same for every input, training for the minibatch `x`; statistics of other
    minibatches differ from those of `x`, and so does what training sees.

    Parameters
    ----------
    model : Model
        Is not changed.
    layer : str
        Name of a hidden dense layer. The new one comes right behind its activation, which has to
        be ReLU, identity or none: f(f(z)) = f(z).
    x : array ``[rows, in_features]``, optional
        Calibration rows, needed with batch norm; at least two.
    batch_norm : bool, optional
        Whether the new layer has batch norm; None: if `layer` has.

    Returns
    -------
    Model

    Raises
    ------
    ValueError, TypeError
        For an unknown layer, an output layer, a layer that is not dense, another activation, batch
        norm without rows, and optimizer groups whose pattern would match other parameters, because
        the layers behind the new one change their names.
    NonFiniteError
        For rows on which the layers up to the new one are not finite.

    Examples
    --------
    >>> model = Model([nn.Dense(3), nn.ReLU(), nn.Dense(2)], 4)
    >>> [type(layer).__name__ for layer in deepen(model, "layers.0").network]
    ['Dense', 'ReLU', 'Dense', 'ReLU', 'Dense']
    """
    where = "deepen"
    layers, place = _find(where, model, layer)
    last, activation, norm = place, None, None
    for i in range(place + 1, len(layers)):
        following = layers[i][1]
        if isinstance(following, nn.BatchNorm):
            last, norm = i, following
        elif isinstance(following, nn.Activation):
            last, activation = i, following
            break
        elif _has_weights(following):
            break
    if not any(_has_weights(entry) for _, entry in layers[place + 1 :]):
        raise ValueError(f"[{where}] expected a hidden layer, got {layer}, the output layer")
    if activation is not None and not isinstance(activation, _IDEMPOTENT):
        raise ValueError(
            f"[{where}] expected ReLU, identity or nothing behind {layer}, got {activation.type} "
            f"({layers[last][0]}), which changes what it is applied to twice"
        )
    normed = (
        norm is not None if batch_norm is None else _check.flag(where, "batch_norm", batch_norm)
    )
    values = _values(model)
    width = len(values[f"{layer}.weight"])
    inserted: list[nn.Layer] = [nn.Dense(width, bias=not normed)]
    tensors: list[dict[str, Array]] = [{"weight": np.eye(width)}]
    if normed:
        inserted.append(norm or nn.BatchNorm())
        tensors.append(_undone(where, model, layers[last][0], x, norm or nn.BatchNorm()))
    else:
        tensors[0]["bias"] = np.zeros(width)
    if activation is not None:
        inserted.append(activation)
        tensors.append({})

    description = model.description
    siblings, index = _siblings(description, layers[last][0])
    siblings[index + 1 : index + 1] = [entry.to_dict() for entry in inserted]
    after = chain(nn.from_dict(entry) for entry in description["layers"])
    names = [name for name, _ in after]
    kept = names[: last + 1] + names[last + 1 + len(inserted) :]
    renamed = dict(zip([name for name, _ in layers], kept, strict=True))
    _check_groups(where, description, [name for name, _, _ in model.layout()], renamed)
    moved = {_renamed(name, renamed): value for name, value in values.items()}
    for name, own in zip(names[last + 1 :], tensors, strict=False):
        moved.update({f"{name}.{key}": value for key, value in own.items()})
    return _built(model, description, moved)


# ---- reading a model -----------------------------------------------------------------------------


def _has_weights(layer: nn.Layer) -> bool:
    return isinstance(layer, (nn.Dense, nn.Maxout, nn.Residual))


def _find(where: str, model: Model, layer: str) -> tuple[_Chain, int]:
    """The layers in order, and the place of a dense one."""
    layers = chain(_check.instance(where, "model", model, Model, "a thalweg.Model").network)
    dense = [name for name, entry in layers if isinstance(entry, nn.Dense)]
    if layer not in dense:
        raise ValueError(
            f"[{where}] expected layer to be one of {', '.join(dense)}, got {_check.shown(layer)}"
        )
    return layers, [name for name, _ in layers].index(layer)


def _values(model: Model) -> dict[str, Array]:
    """Parameters and batch-norm statistics, as float64."""
    named = {**model.named_parameters(), **model.named_state()}
    return {
        name: value if value.dtype.kind == "i" else value.astype(np.float64)
        for name, value in named.items()
    }


def _siblings(description: dict[str, Any], name: str) -> tuple[list[dict[str, Any]], int]:
    """The list of layers in a description that a layer stands in, and its place there."""
    *path, index = _indices(name)
    layers: list[dict[str, Any]] = description["layers"]
    for place in path:
        layers = layers[place]["layers"]
    return layers, index


def _indices(name: str) -> list[int]:
    """layers.3.layers.0: 3, 0."""
    return [int(part) for part in name.split(".")[1::2]]


def _renamed(name: str, renamed: Mapping[str, str]) -> str:
    """The new name of a parameter, by the new names of its layer."""
    owner = next(owner for owner in renamed if name.startswith(f"{owner}."))
    return renamed[owner] + name[len(owner) :]


# ---- making one ----------------------------------------------------------------------------------


def _built(model: Model, description: dict[str, Any], values: Mapping[str, Array]) -> Model:
    """A model of that description on the same device, with these parameters and statistics."""
    core = _core.Model(json.dumps(description), model.device, model.threads)
    built = Model._of(core, model.loss_function)
    built.load_weights(values)
    return built


def _undone(
    where: str, model: Model, behind: str, x: ArrayLike | None, norm: nn.BatchNorm
) -> dict[str, Array]:
    """Parameters and statistics of a batch norm that is the identity on what `behind` puts out."""
    if x is None:
        raise ValueError(
            f"[{where}] expected rows x to set the statistics of the new batch norm, got None; "
            "batch_norm=False does without"
        )
    if len(np.shape(x)) == 2 and np.shape(x)[0] < 2:
        raise ValueError(f"[{where}] expected at least two rows in x, got {np.shape(x)[0]}")
    description = model.description
    description["layers"] = _without_dropout(_up_to(description["layers"], _indices(behind)))
    description["optimizer"] = optim.SGD().to_dict()
    description["loss"] = losses.SquaredError().to_dict()
    known = {name for name, _ in chain(nn.from_dict(d) for d in description["layers"])}
    values = _values(model)
    kept = {n: v for n, v in values.items() if any(n.startswith(f"{name}.") for name in known)}
    outputs = _built(model, description, kept).forward(x, training=True).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, variance = outputs.mean(axis=0), outputs.var(axis=0)
    if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
        error = NonFiniteError(
            f"[{where}] expected finite outputs of {behind} on x, got NaN or infinity; look at the "
            "parameters and the data"
        )
        error.layer = behind
        raise error
    return {
        "weight": np.sqrt(variance + norm.eps),
        "bias": mean,
        "running_mean": mean,
        "running_var": variance,
        "num_batches_tracked": np.array(1),
    }


def _up_to(layers: list[dict[str, Any]], indices: list[int]) -> list[dict[str, Any]]:
    """The layers up to and with one of them, which may be nested."""
    kept = copy.deepcopy(layers[: indices[0] + 1])
    if len(indices) > 1:
        kept[-1]["layers"] = _up_to(kept[-1]["layers"], indices[1:])
    return kept


def _without_dropout(layers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same layers, none of them dropping anything."""
    result = []
    for layer in layers:
        changed = dict(layer)
        if changed["type"] == nn.Dropout.type:
            changed["p"] = 0.0
        if "layers" in changed:
            changed["layers"] = _without_dropout(changed["layers"])
        result.append(changed)
    return result


def _check_groups(
    where: str, description: dict[str, Any], parameters: list[str], renamed: Mapping[str, str]
) -> None:
    """Every optimizer group has to match the same parameters under their new names."""
    for group in description["optimizer"].get("groups", ()):
        pattern = group["match"]
        for name in parameters:
            new = _renamed(name, renamed)
            if fnmatch.fnmatchcase(name, pattern) != fnmatch.fnmatchcase(new, pattern):
                raise ValueError(
                    f"[{where}] expected optimizer groups that match the same parameters under "
                    f"their new names, got {pattern!r}, and {name} becomes {new}; take the groups "
                    "out with set_optimizer before and put them in after"
                )
