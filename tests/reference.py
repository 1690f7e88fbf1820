"""Float64 NumPy reference of everything in the core: the independent second opinion of the tests.

It is written from the definitions, shares no code with the library and favours the plainest exact
form over speed. Arrays are row-major ``[rows, features]`` and weights ``[out, in]``.
``ACTIVATIONS``, ``LOSSES`` and ``OPTIMIZERS`` are keyed by the names of the model description, so
that a test can find a listed item that has no reference.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dual import Dual, erfc

Float = npt.NDArray[np.float64]
UInt64 = npt.NDArray[np.uint64]
Spec = Mapping[str, Any]
Parameters = dict[str, Float]


def as_float(a: Any) -> Float:
    """`a` as a float64 array; dual numbers stay what they are."""
    return a if isinstance(a, Dual) else np.asarray(a, dtype=np.float64)  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------
# Philox4x32-10 (Salmon et al. 2011) and the dropout mask
# --------------------------------------------------------------------------------------------------

_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW32 = 0xFFFFFFFF


def philox4x32(counter: npt.ArrayLike, key: tuple[int, int]) -> UInt64:
    """Ten rounds of Philox4x32.

    Parameters
    ----------
    counter : integers [..., 4], the 32-bit counter words c0..c3.
    key : the two 32-bit key words.

    Returns
    -------
    uint64 [..., 4] holding the four 32-bit results.
    """
    words = np.asarray(counter, dtype=np.uint64)
    c0, c1, c2, c3 = (words[..., lane] for lane in range(4))
    k0, k1 = key
    low, half = np.uint64(_LOW32), np.uint64(32)
    for _ in range(10):
        product0 = np.uint64(_PHILOX_MULTIPLIERS[0]) * c0
        product1 = np.uint64(_PHILOX_MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (
            (product1 >> half) ^ c1 ^ np.uint64(k0),
            product1 & low,
            (product0 >> half) ^ c3 ^ np.uint64(k1),
            product0 & low,
        )
        k0 = (k0 + _PHILOX_KEY_STEPS[0]) & _LOW32
        k1 = (k1 + _PHILOX_KEY_STEPS[1]) & _LOW32
    return np.stack([c0, c1, c2, c3], axis=-1)


def random_words(elements: npt.ArrayLike, *, seed: int, stream: int, step: int) -> UInt64:
    """The 32-bit random word that belongs to each element index."""
    index = np.asarray(elements, dtype=np.uint64)
    block = index // np.uint64(4)
    counter = np.empty((*index.shape, 4), dtype=np.uint64)
    counter[..., 0] = block & np.uint64(_LOW32)
    counter[..., 1] = (block >> np.uint64(32)) | np.uint64(stream << 16)
    counter[..., 2] = step & _LOW32
    counter[..., 3] = step >> 32
    words = philox4x32(counter, (seed & _LOW32, seed >> 32))
    lane = (index % np.uint64(4)).astype(np.intp)
    return np.take_along_axis(words, lane[..., None], axis=-1)[..., 0]


def dropout_scale(
    shape: tuple[int, int], p: float, *, seed: int, stream: int, step: int, first_row: int = 0
) -> Float:
    """Inverted-dropout factors [rows, width]: 1/(1-p) where the element is kept, else 0.

    `first_row` is the index in the global minibatch of the first row of this shard.
    """
    rows, width = shape
    row = np.arange(first_row, first_row + rows, dtype=np.uint64)[:, None]
    column = np.arange(width, dtype=np.uint64)[None, :]
    words = random_words(row * np.uint64(width) + column, seed=seed, stream=stream, step=step)
    keep = words >= np.uint64(round(p * 2**32))
    return np.where(keep, 1.0 / (1.0 - p), 0.0)


# --------------------------------------------------------------------------------------------------
# Activations
# --------------------------------------------------------------------------------------------------


def sigmoid(z: Float) -> Float:
    """1/(1+exp(-z)) without overflow."""
    e = np.exp(-np.abs(z))
    return np.where(z < 0, e, 1.0) / (1.0 + e)


def softplus(z: Float) -> Float:
    """log(1+exp(z)) without overflow."""
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))


def _sigmoid_slope(z: Float) -> Float:
    return sigmoid(z) * sigmoid(-z)


def _normal_cdf(z: Float) -> Float:
    return as_float(0.5 * erfc(-z / math.sqrt(2.0)))


def _normal_pdf(z: Float) -> Float:
    return np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def _sech_squared(z: Float) -> Float:
    return 4.0 * sigmoid(2.0 * z) * sigmoid(-2.0 * z)


ScalarRule = Callable[[Float, float], Float]


class Activation(NamedTuple):
    """phi(z, a), two derivatives in z (one-sided from below at kinks) and its parameter a."""

    value: ScalarRule
    derivative: ScalarRule
    second_derivative: ScalarRule
    parameter: str | None = None
    default: float = 0.0
    he_family: bool = False
    kink: bool = False


def _zero(z: Float, _: float) -> Float:
    return z * 0.0


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda z, _: z, lambda z, _: np.ones_like(z), _zero),
    "relu": Activation(
        lambda z, _: np.maximum(z, 0.0),
        lambda z, _: np.where(z > 0, 1.0, 0.0),
        _zero,
        he_family=True,
        kink=True,
    ),
    "leaky_relu": Activation(
        lambda z, a: np.where(z > 0, z, a * z),
        lambda z, a: np.where(z > 0, 1.0, a),
        _zero,
        parameter="slope",
        default=0.01,
        he_family=True,
        kink=True,
    ),
    "elu": Activation(
        lambda z, a: np.where(z > 0, z, a * np.expm1(np.minimum(z, 0.0))),
        lambda z, a: np.where(z > 0, 1.0, a * np.exp(np.minimum(z, 0.0))),
        lambda z, a: np.where(z > 0, 0.0, a * np.exp(np.minimum(z, 0.0))),
        parameter="alpha",
        default=1.0,
        he_family=True,
        kink=True,
    ),
    "gelu": Activation(
        lambda z, _: z * _normal_cdf(z),
        lambda z, _: _normal_cdf(z) + z * _normal_pdf(z),
        lambda z, _: _normal_pdf(z) * (2.0 - z * z),
        he_family=True,
    ),
    "silu": Activation(
        lambda z, _: z * sigmoid(z),
        lambda z, _: sigmoid(z) + z * _sigmoid_slope(z),
        lambda z, _: _sigmoid_slope(z) * (2.0 - z * np.tanh(0.5 * z)),
        he_family=True,
    ),
    "sigmoid": Activation(
        lambda z, _: sigmoid(z),
        lambda z, _: _sigmoid_slope(z),
        lambda z, _: -_sigmoid_slope(z) * np.tanh(0.5 * z),
    ),
    "tanh": Activation(
        lambda z, _: np.tanh(z),
        lambda z, _: _sech_squared(z),
        lambda z, _: -2.0 * np.tanh(z) * _sech_squared(z),
    ),
    "softplus": Activation(
        lambda z, _: softplus(z), lambda z, _: sigmoid(z), lambda z, _: _sigmoid_slope(z)
    ),
}


# --------------------------------------------------------------------------------------------------
# Dense and maxout
# --------------------------------------------------------------------------------------------------


def dense(x: Float, weight: Float, bias: Float | None = None) -> Float:
    """x weight' + bias for x [rows, in], weight [out, in], bias [out]."""
    y: Float = x @ weight.T
    return y if bias is None else y + bias


class DenseGradients(NamedTuple):
    """Gradients of `dense` with respect to its three arguments."""

    x: Float
    weight: Float
    bias: Float


def dense_backward(dy: Float, x: Float, weight: Float) -> DenseGradients:
    """Gradients of sum(dy * dense(x, weight, bias))."""
    return DenseGradients(dy @ weight, dy.T @ x, dy.sum(axis=0))


def maxout(z: Float, pieces: int) -> Float:
    """Maximum over the consecutive `pieces` columns of every unit (Goodfellow et al. 2013)."""
    return as_float(z.reshape(z.shape[0], -1, pieces).max(axis=-1))


def maxout_backward(dy: Float, z: Float, pieces: int) -> Float:
    """Gradient with respect to z: dy goes to the first maximal piece."""
    grouped = z.reshape(z.shape[0], -1, pieces)
    dz = np.zeros_like(grouped)
    np.put_along_axis(dz, grouped.argmax(axis=-1)[..., None], dy[..., None], axis=-1)
    return dz.reshape(z.shape)


# --------------------------------------------------------------------------------------------------
# Batch normalization (Ioffe & Szegedy 2015)
# --------------------------------------------------------------------------------------------------


class BatchNormStatistics(NamedTuple):
    """Mean and biased variance of every column, and the number of rows they stand for."""

    mean: Float
    variance: Float
    rows: float


def batch_norm_statistics(z: Float, weights: Float | None = None) -> BatchNormStatistics:
    """Column statistics of z [rows, features].

    `weights` [rows] are frequency weights: weight 2 is the same as the row given twice.
    """
    w = np.ones(z.shape[0]) if weights is None else weights
    count = float(w.sum())
    if count <= 1.0:
        raise ValueError(f"[batch_norm] expected more than one row in training, got {count}")
    shifted = z - z[0]
    mean = w @ shifted / count
    variance = w @ (shifted - mean) ** 2 / count
    return BatchNormStatistics(z[0] + mean, variance, count)


class BatchNormCache(NamedTuple):
    """What the backward pass of a training batch norm needs."""

    normalized: Float
    inverse_std: Float
    gamma: Float
    row_share: Float
    statistics: BatchNormStatistics


def batch_norm(
    z: Float, gamma: Float, beta: Float, eps: float = 1e-5, weights: Float | None = None
) -> tuple[Float, BatchNormCache]:
    """Training form: normalize by the statistics of the batch."""
    statistics = batch_norm_statistics(z, weights)
    inverse_std = 1.0 / np.sqrt(statistics.variance + eps)
    normalized = (z - statistics.mean) * inverse_std
    w = np.ones(z.shape[0]) if weights is None else weights
    cache = BatchNormCache(normalized, inverse_std, gamma, w[:, None] / statistics.rows, statistics)
    return gamma * normalized + beta, cache


class BatchNormGradients(NamedTuple):
    """Gradients of batch norm with respect to input, gamma and beta."""

    z: Float
    gamma: Float
    beta: Float


def batch_norm_project(q: Float, cache: BatchNormCache) -> Float:
    """P(q) = q - mean q - xh mean(xh q), spread over the rows by their share of the weight."""
    xh = cache.normalized
    return as_float(q - cache.row_share * (q.sum(axis=0) + xh * (xh * q).sum(axis=0)))


def batch_norm_backward(dy: Float, cache: BatchNormCache) -> BatchNormGradients:
    """Gradients of sum(dy * y); dy already carries the weight of its row."""
    dz = cache.gamma * cache.inverse_std * batch_norm_project(dy, cache)
    return BatchNormGradients(dz, (dy * cache.normalized).sum(axis=0), dy.sum(axis=0))


def batch_norm_eval(
    z: Float, gamma: Float, beta: Float, mean: Float, variance: Float, eps: float = 1e-5
) -> Float:
    """Evaluation form: normalize by running statistics."""
    return gamma * (z - mean) / np.sqrt(variance + eps) + beta


def batch_norm_eval_backward(
    dy: Float, z: Float, gamma: Float, mean: Float, variance: Float, eps: float = 1e-5
) -> BatchNormGradients:
    """Gradients of the evaluation form, whose statistics are constants."""
    inverse_std = 1.0 / np.sqrt(variance + eps)
    normalized = (z - mean) * inverse_std
    return BatchNormGradients(
        dy * gamma * inverse_std, (dy * normalized).sum(axis=0), dy.sum(axis=0)
    )


class RunningStatistics(NamedTuple):
    """State of a batch-norm layer."""

    mean: Float
    variance: Float
    batches: int


def update_running_statistics(
    running: RunningStatistics, batch: BatchNormStatistics, momentum: float | None
) -> RunningStatistics:
    """One batch into the running estimate, with the unbiased variance.

    `momentum` is the weight of the new batch; None takes the plain average over all batches.
    """
    batches = running.batches + 1
    share = 1.0 / batches if momentum is None else momentum
    unbiased = batch.variance * batch.rows / (batch.rows - 1.0)
    return RunningStatistics(
        (1.0 - share) * running.mean + share * batch.mean,
        (1.0 - share) * running.variance + share * unbiased,
        batches,
    )


# --------------------------------------------------------------------------------------------------
# Losses
# --------------------------------------------------------------------------------------------------


class LossResult(NamedTuple):
    """Loss and its gradient with respect to the network's output."""

    value: float
    gradient: Float


def log_softmax(z: Float) -> Float:
    """log softmax of every row, shifted by its maximum."""
    shifted = z - z.max(axis=1, keepdims=True)
    return as_float(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def softmax(z: Float) -> Float:
    """softmax of every row."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return as_float(e / e.sum(axis=1, keepdims=True))


def row_weights(
    rows: int,
    sample_weight: npt.ArrayLike | None = None,
    labels: npt.NDArray[Any] | None = None,
    class_weight: Mapping[int, float] | None = None,
) -> Float:
    """Weight of every row: sample weight times the weight of the row's class (1 when not given)."""
    weights = np.ones(rows) if sample_weight is None else as_float(sample_weight).copy()
    if class_weight is not None:
        if labels is None or labels.ndim != 1:
            raise ValueError("[row_weights] expected integer labels with class weights")
        weights *= [class_weight.get(int(label), 1.0) for label in labels]
    return weights


def balanced_class_weight(labels: npt.NDArray[Any]) -> dict[int, float]:
    """rows / (classes present * rows of the class)."""
    classes, counts = np.unique(labels, return_counts=True)
    return {
        int(c): len(labels) / (len(classes) * int(n)) for c, n in zip(classes, counts, strict=True)
    }


def class_targets(target: npt.ArrayLike, classes: int, label_smoothing: float = 0.0) -> Float:
    """Target rows [rows, classes] from integer labels [rows] or probability labels."""
    t = np.asarray(target)
    if t.ndim == 1:
        if not np.issubdtype(t.dtype, np.integer):
            raise TypeError(f"[cross_entropy] expected integer labels, got {t.dtype}")
        if t.size and (t.min() < 0 or t.max() >= classes):
            raise ValueError(
                f"[cross_entropy] expected labels in [0, {classes}), got {t.min()}..{t.max()}"
            )
        t = np.eye(classes)[t]
    return (1.0 - label_smoothing) * as_float(t) + label_smoothing / classes


def cross_entropy(
    z: Float,
    target: npt.ArrayLike,
    sample_weight: npt.ArrayLike | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weight: Mapping[int, float] | None = None,
) -> LossResult:
    """Softmax cross-entropy of logits z [rows, classes]; probability rows need not sum to 1."""
    a = class_targets(target, z.shape[1], label_smoothing)
    w = row_weights(len(z), sample_weight, np.asarray(target), class_weight)
    shifted = z - z.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    rows = a.sum(axis=1) * log_sum - (a * shifted).sum(axis=1)
    total = w.sum()
    gradient = (softmax(z) * a.sum(axis=1, keepdims=True) - a) * (w / total)[:, None]
    return LossResult(float(w @ rows / total), gradient)


ElementRule = Callable[[Float, Float, float], Float]


class ElementwiseLoss(NamedTuple):
    """l(z, t, a) of one output z, target t and parameter a, with two derivatives in z."""

    value: ElementRule
    gradient: ElementRule
    second_derivative: ElementRule
    target: str
    reduction: str = "batch_mean"
    parameter: str | None = None
    default: float = 0.0


def _huber(z: Float, t: Float, delta: float) -> Float:
    distance = np.abs(z - t)
    return np.where(distance <= delta, 0.5 * distance * distance, delta * (distance - 0.5 * delta))


ELEMENTWISE_LOSSES: dict[str, ElementwiseLoss] = {
    "squared_error": ElementwiseLoss(
        lambda z, t, _: (z - t) ** 2,
        lambda z, t, _: 2.0 * (z - t),
        lambda z, t, _: np.full_like(z, 2.0),
        target="real",
    ),
    "huber": ElementwiseLoss(
        _huber,
        lambda z, t, delta: np.clip(z - t, -delta, delta),
        lambda z, t, delta: np.where(np.abs(z - t) <= delta, 1.0, 0.0),
        target="real",
        parameter="delta",
        default=1.0,
    ),
    "binary_cross_entropy": ElementwiseLoss(
        lambda z, t, _: (1.0 - t) * softplus(z) + t * softplus(-z),
        lambda z, t, _: (1.0 - t) * sigmoid(z) - t * sigmoid(-z),
        lambda z, t, _: _sigmoid_slope(z),
        target="unit_interval",
    ),
    "logistic": ElementwiseLoss(
        lambda z, t, _: softplus(-t * z),
        lambda z, t, _: -t * sigmoid(-t * z),
        lambda z, t, _: t * t * _sigmoid_slope(z),
        target="sign",
        reduction="sum",
    ),
    "exponential": ElementwiseLoss(
        lambda z, t, _: np.exp(-t * z),
        lambda z, t, _: -t * np.exp(-t * z),
        lambda z, t, _: t * t * np.exp(-t * z),
        target="sign",
        reduction="sum",
    ),
}


def reduction_factors(reduction: str, weights: Float, outputs: int) -> Float:
    """Factor [rows] of every element of a row in the reduced loss."""
    if reduction == "sum":
        return weights
    if reduction == "batch_mean":
        return weights / float(weights.sum())
    if reduction == "element_mean":
        return weights / (float(weights.sum()) * outputs)
    raise ValueError(f"[loss] expected batch_mean, sum or element_mean, got {reduction!r}")


def elementwise_loss(
    name: str,
    z: Float,
    target: npt.ArrayLike,
    sample_weight: npt.ArrayLike | None = None,
    *,
    reduction: str | None = None,
    parameter: float | None = None,
) -> LossResult:
    """Loss `name` of z [rows, outputs] for targets of that shape ([rows] for one output)."""
    rule = ELEMENTWISE_LOSSES[name]
    t = as_float(target).reshape(z.shape)
    a = rule.default if parameter is None else parameter
    weights = row_weights(len(z), sample_weight)
    factor = reduction_factors(reduction or rule.reduction, weights, z.shape[1])[:, None]
    return LossResult(float((factor * rule.value(z, t, a)).sum()), factor * rule.gradient(z, t, a))


def log_exponential(
    z: Float, target: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
) -> LossResult:
    """log of the summed exponential loss and its gradient, finite for any margin."""
    t = as_float(target).reshape(z.shape)
    weights = row_weights(len(z), sample_weight)[:, None]
    exponent = -t * z
    top = exponent.max()
    terms = weights * np.exp(exponent - top)
    return LossResult(float(top + np.log(terms.sum())), -t * terms / terms.sum())


Loss = Callable[..., LossResult]


def _named_elementwise(name: str) -> Loss:
    rule = ELEMENTWISE_LOSSES[name]

    def loss(
        z: Float,
        target: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
        *,
        reduction: str | None = None,
        **options: float,
    ) -> LossResult:
        parameter = options.pop(rule.parameter, None) if rule.parameter else None
        if options:
            raise TypeError(f"[{name}] unknown option {sorted(options)}")
        return elementwise_loss(
            name, z, target, sample_weight, reduction=reduction, parameter=parameter
        )

    return loss


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    **{name: _named_elementwise(name) for name in ELEMENTWISE_LOSSES},
}


# --------------------------------------------------------------------------------------------------
# Metrics
# --------------------------------------------------------------------------------------------------


def top_k_accuracy(
    z: Float, labels: npt.NDArray[Any], k: int = 1, sample_weight: npt.ArrayLike | None = None
) -> float:
    """Weighted share of labels among the k largest outputs; ties go to the lower class."""
    own = z[np.arange(len(z)), labels][:, None]
    earlier = np.arange(z.shape[1])[None, :] < np.asarray(labels)[:, None]
    rank = ((z > own) | ((z == own) & earlier)).sum(axis=1)
    weights = row_weights(len(z), sample_weight)
    return float(weights @ (rank < k) / weights.sum())


def perplexity(mean_cross_entropy: float) -> float:
    """exp of the mean negative log-likelihood."""
    return math.exp(mean_cross_entropy)


# --------------------------------------------------------------------------------------------------
# Schedules: functions of k = updates already done
# --------------------------------------------------------------------------------------------------


def _cosine_between(start: float, end: float, fraction: float) -> float:
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * fraction))


def _linear(s: Spec, k: int, steps_per_epoch: int | None) -> float:
    tau = s.get("tau")
    if tau is None:
        if steps_per_epoch is None:
            raise ValueError("[linear] expected steps_per_epoch with tau_epochs")
        tau = s["tau_epochs"] * steps_per_epoch
    end = s.get("end")
    end = 0.01 * s["start"] if end is None else end
    fraction = min(k / tau, 1.0)
    return float((1.0 - fraction) * s["start"] + fraction * end)


def _warmup(s: Spec, k: int, steps_per_epoch: int | None) -> float:
    steps = int(s["steps"])
    if k < steps:
        return schedule_value(s["then"], 0, steps_per_epoch) * (k + 1) / steps
    return schedule_value(s["then"], k - steps, steps_per_epoch)


def _one_cycle(s: Spec, k: int, _: int | None) -> float:
    """Smith & Topin 2018 with cosine phases: rise to the peak, then fall far below the start."""
    peak, last = s["peak"], s["steps"] - 1
    start = peak / s.get("initial_divisor", 25.0)
    end = start / s.get("final_divisor", 1e4)
    summit = s.get("start_fraction", 0.3) * s["steps"] - 1
    if k <= summit:
        return _cosine_between(start, peak, k / summit)
    return _cosine_between(peak, end, min((k - summit) / (last - summit), 1.0))


SCHEDULES: dict[str, Callable[[Spec, int, int | None], float]] = {
    "constant": lambda s, k, _: float(s["value"]),
    "linear": _linear,
    "robbins_monro": lambda s, k, _: float(
        s["start"] * np.exp(-s.get("power", 1.0) * np.log1p(k / s["k0"]))
    ),
    "step": lambda s, k, _: float(s["start"] * s["factor"] ** (k // s["every"])),
    "cosine": lambda s, k, _: _cosine_between(
        s["start"], s.get("end", 0.0), min(k / s["steps"], 1.0)
    ),
    "warmup": _warmup,
    "one_cycle": _one_cycle,
    "nesterov_convex": lambda s, k, _: k / (k + 3.0),
}


def schedule_value(value: float | Spec, k: int, steps_per_epoch: int | None = None) -> float:
    """A hyper-parameter, number or schedule object, after k updates."""
    if isinstance(value, Mapping):
        return SCHEDULES[value["schedule"]](value, k, steps_per_epoch)
    return float(value)


# --------------------------------------------------------------------------------------------------
# Optimizers
# --------------------------------------------------------------------------------------------------

Hyper = Mapping[str, float]
Slots = tuple[Float, ...]
# (p, g, slots, h, h_next, t) -> (p, slots); t = 1 is the first update and h_next belongs to t + 1.
Update = Callable[[Float, Float, Slots, Hyper, Hyper, int], tuple[Float, Slots]]
# (p, slots, h, h_next) of the last update -> theta
Theta = Callable[[Float, Slots, Hyper, Hyper], Float]


class OptimizerRule(NamedTuple):
    """One update rule; look-ahead methods store the point p of the gradient and have `theta`."""

    slots: tuple[str, ...]
    defaults: Mapping[str, float]
    update: Update
    theta: Theta | None = None
    decoupled: bool = False


def _sgd(p: Float, g: Float, slots: Slots, h: Hyper, h_next: Hyper, t: int) -> tuple[Float, Slots]:
    return p - h["lr"] * g, slots


def _momentum(
    p: Float, g: Float, slots: Slots, h: Hyper, h_next: Hyper, t: int
) -> tuple[Float, Slots]:
    (v,) = slots
    if h["torch_compat"]:
        v = h["momentum"] * v + g
        return p - h["lr"] * v, (v,)
    v = h["momentum"] * v - h["lr"] * g
    return p + v, (v,)


def _nesterov(
    p: Float, g: Float, slots: Slots, h: Hyper, h_next: Hyper, t: int
) -> tuple[Float, Slots]:
    (v,) = slots
    if h["torch_compat"]:
        v = h["momentum"] * v + g
        return p - h["lr"] * (g + h["momentum"] * v), (v,)
    v = h["momentum"] * v - h["lr"] * g
    return p - h["lr"] * g + h_next["momentum"] * v, (v,)


def _nesterov_theta(p: Float, slots: Slots, h: Hyper, h_next: Hyper) -> Float:
    if h["torch_compat"]:
        return p + h["lr"] * h["momentum"] * slots[0]
    return p - h_next["momentum"] * slots[0]


def _adagrad(
    p: Float, g: Float, slots: Slots, h: Hyper, h_next: Hyper, t: int
) -> tuple[Float, Slots]:
    r = slots[0] + g * g
    return p - h["lr"] * g / (h["delta"] + np.sqrt(r)), (r,)


def _rmsprop(
    p: Float, g: Float, slots: Slots, h: Hyper, h_next: Hyper, t: int
) -> tuple[Float, Slots]:
    r = h["rho"] * slots[0] + (1.0 - h["rho"]) * g * g
    root = np.sqrt(r + h["delta"]) if h["delta_inside"] else h["delta"] + np.sqrt(r)
    return p - h["lr"] * g / root, (r,)


def _rmsprop_nesterov(
    p: Float, g: Float, slots: Slots, h: Hyper, h_next: Hyper, t: int
) -> tuple[Float, Slots]:
    r, v = slots
    r = h["rho"] * r + (1.0 - h["rho"]) * g * g
    u = h["lr"] * g / (h["delta"] + np.sqrt(r))
    v = h["momentum"] * v - u
    return p - u + h_next["momentum"] * v, (r, v)


def _rmsprop_nesterov_theta(p: Float, slots: Slots, h: Hyper, h_next: Hyper) -> Float:
    return p - h_next["momentum"] * slots[1]


def _adadelta(
    p: Float, g: Float, slots: Slots, h: Hyper, h_next: Hyper, t: int
) -> tuple[Float, Slots]:
    r, s = slots
    r = h["rho"] * r + (1.0 - h["rho"]) * g * g
    change = -np.sqrt(s + h["delta"]) / np.sqrt(r + h["delta"]) * g
    s = h["rho"] * s + (1.0 - h["rho"]) * change * change
    return p + h["lr"] * change, (r, s)


def _adam(p: Float, g: Float, slots: Slots, h: Hyper, h_next: Hyper, t: int) -> tuple[Float, Slots]:
    s, r = slots
    s = h["beta1"] * s + (1.0 - h["beta1"]) * g
    r = h["beta2"] * r + (1.0 - h["beta2"]) * g * g
    s_hat = s / -math.expm1(t * math.log(h["beta1"])) if h["beta1"] else s
    r_hat = r / -math.expm1(t * math.log(h["beta2"])) if h["beta2"] else r
    return p - h["lr"] * s_hat / (np.sqrt(r_hat) + h["delta"]), (s, r)


def _adamw(
    p: Float, g: Float, slots: Slots, h: Hyper, h_next: Hyper, t: int
) -> tuple[Float, Slots]:
    return _adam(p * (1.0 - h["lr"] * h["weight_decay"]), g, slots, h, h_next, t)


_MOMENTUM_DEFAULTS = {"lr": 0.1, "momentum": 0.9, "torch_compat": 0.0, "weight_decay": 0.0}
_ADAM_DEFAULTS = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "delta": 1e-8}

OPTIMIZERS: dict[str, OptimizerRule] = {
    "sgd": OptimizerRule((), {"lr": 0.1, "weight_decay": 0.0}, _sgd),
    "momentum": OptimizerRule(("velocity",), _MOMENTUM_DEFAULTS, _momentum),
    "nesterov": OptimizerRule(("velocity",), _MOMENTUM_DEFAULTS, _nesterov, _nesterov_theta),
    "adagrad": OptimizerRule(
        ("square_sum",), {"lr": 0.01, "delta": 1e-7, "weight_decay": 0.0}, _adagrad
    ),
    "rmsprop": OptimizerRule(
        ("square_average",),
        {"lr": 1e-3, "rho": 0.9, "delta": 1e-6, "delta_inside": 0.0, "weight_decay": 0.0},
        _rmsprop,
    ),
    "rmsprop_nesterov": OptimizerRule(
        ("square_average", "velocity"),
        {"lr": 1e-3, "rho": 0.9, "momentum": 0.9, "delta": 1e-6, "weight_decay": 0.0},
        _rmsprop_nesterov,
        _rmsprop_nesterov_theta,
    ),
    "adadelta": OptimizerRule(
        ("square_average", "delta_average"),
        {"lr": 1.0, "rho": 0.95, "delta": 1e-6, "weight_decay": 0.0},
        _adadelta,
    ),
    "adam": OptimizerRule(
        ("first_moment", "second_moment"), {**_ADAM_DEFAULTS, "weight_decay": 0.0}, _adam
    ),
    "adamw": OptimizerRule(
        ("first_moment", "second_moment"),
        {**_ADAM_DEFAULTS, "weight_decay": 0.01},
        _adamw,
        decoupled=True,
    ),
}


class Optimizer:
    """An optimizer description applied to a dictionary of parameters.

    Parameters
    ----------
    description : {"type": ..., hyper-parameters as numbers or schedules, "groups": [...]}.
        A parameter belongs to the first group whose `match` pattern fits its name.
    steps_per_epoch : needed by schedules in epochs.
    """

    def __init__(self, description: Spec, steps_per_epoch: int | None = None) -> None:
        self.rule = OPTIMIZERS[description["type"]]
        self.steps_per_epoch = steps_per_epoch
        self.groups: list[Spec] = list(description.get("groups", ()))
        given = {k: v for k, v in description.items() if k not in ("type", "groups")}
        unknown = given.keys() - self.rule.defaults.keys()
        if unknown:
            raise TypeError(f"[{description['type']}] unknown option {sorted(unknown)}")
        self.values: dict[str, Any] = {**self.rule.defaults, **given}
        self.slots: dict[str, Slots] = {}
        self.updates_done = 0

    def group(self, name: str) -> Spec:
        """Group of a parameter; an empty mapping when no pattern fits."""
        return next((g for g in self.groups if fnmatch.fnmatchcase(name, g["match"])), {})

    def frozen(self, name: str) -> bool:
        """Whether updates skip this parameter."""
        return bool(self.group(name).get("frozen", False))

    def hyper(self, name: str, k: int) -> dict[str, float]:
        """Hyper-parameters of a parameter after k updates."""
        h = {key: schedule_value(v, k, self.steps_per_epoch) for key, v in self.values.items()}
        group = self.group(name)
        h["lr"] *= group.get("lr_scale", 1.0)
        if group.get("weight_decay") is not None:
            h["weight_decay"] = group["weight_decay"]
        return h

    def step(self, parameters: Parameters, gradients: Mapping[str, Float]) -> Parameters:
        """One update; returns the new stored parameters."""
        k = self.updates_done
        updated = dict(parameters)
        for name, p in parameters.items():
            if self.frozen(name):
                continue
            h, h_next = self.hyper(name, k), self.hyper(name, k + 1)
            g = gradients[name]
            if h["weight_decay"] and not self.rule.decoupled:
                g = g + h["weight_decay"] * p
            slots = self.slots.get(name, tuple(np.zeros_like(p) for _ in self.rule.slots))
            updated[name], self.slots[name] = self.rule.update(p, g, slots, h, h_next, k + 1)
        self.updates_done = k + 1
        return updated

    def theta(self, parameters: Parameters) -> Parameters:
        """The iterate theta behind the stored parameters; themselves without look-ahead."""
        if self.rule.theta is None or self.updates_done == 0:
            return dict(parameters)
        k = self.updates_done
        return {
            name: p
            if self.frozen(name)
            else self.rule.theta(p, self.slots[name], self.hyper(name, k - 1), self.hyper(name, k))
            for name, p in parameters.items()
        }


def global_norm(gradients: Mapping[str, Float]) -> float:
    """Euclidean norm of all gradients together, without overflow."""
    largest = max((float(np.abs(g).max()) for g in gradients.values() if g.size), default=0.0)
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * math.sqrt(sum(float(((g / largest) ** 2).sum()) for g in gradients.values()))


def clip_by_global_norm(
    gradients: Mapping[str, Float], limit: float
) -> tuple[dict[str, Float], float]:
    """Gradients times limit/norm when norm > limit, and the norm (Pascanu et al. 2013)."""
    norm = global_norm(gradients)
    scale = limit / norm if norm > limit else 1.0
    return {name: g * scale for name, g in gradients.items()}, norm


class Averager:
    """Average of the iterates theta: {"type": "polyak", "start"} or {"type": "ema", "decay"}.

    The first update that counts copies theta; with Polyak averaging that is update `start` + 1 and
    until then the average is theta itself (Polyak & Juditsky 1992).
    """

    def __init__(self, description: Spec) -> None:
        self.description = description
        self.updates = 0
        self.average: Parameters = {}

    def update(self, theta: Parameters) -> Parameters:
        """Take in theta after an update; returns the average."""
        self.updates += 1
        if self.description["type"] == "polyak":
            share = 1.0 / max(self.updates - self.description.get("start", 0), 1)
        else:
            share = 1.0 if self.updates == 1 else 1.0 - self.description.get("decay", 0.999)
        self.average = {
            name: value + 0.0
            if share == 1.0
            else self.average[name] + share * (value - self.average[name])
            for name, value in theta.items()
        }
        return self.average


# --------------------------------------------------------------------------------------------------
# Initializers
# --------------------------------------------------------------------------------------------------


class WeightDistribution(NamedTuple):
    """Distribution of the weights: `scale` is bound, standard deviation or gain."""

    kind: str
    scale: float

    @property
    def variance(self) -> float:
        """Variance of one entry (independent entries only)."""
        return self.scale**2 / 3.0 if self.kind == "uniform" else self.scale**2


def weight_distribution(
    init: str | Spec, fan_in: int, fan_out: int, *, he_family: bool = False
) -> WeightDistribution:
    """Distribution behind an initializer; `he_family` tells "auto" what activation follows."""
    if isinstance(init, Mapping):
        scale = {"normal": "std", "uniform": "bound", "orthogonal": "gain"}[init["type"]]
        return WeightDistribution(init["type"], float(init[scale]))
    if init == "auto":
        init = "he_normal" if he_family else "glorot_uniform"
    return {
        "deck": WeightDistribution("uniform", 1.0 / math.sqrt(fan_in)),
        "glorot_uniform": WeightDistribution("uniform", math.sqrt(6.0 / (fan_in + fan_out))),
        "he_normal": WeightDistribution("normal", math.sqrt(2.0 / fan_in)),
        "lecun_normal": WeightDistribution("normal", math.sqrt(1.0 / fan_in)),
        "orthogonal": WeightDistribution("orthogonal", 1.0),
        "zeros": WeightDistribution("uniform", 0.0),
    }[init]


# --------------------------------------------------------------------------------------------------
# Networks from the model description
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """One entry of the description with its widths and names resolved."""

    kind: str
    name: str
    spec: Spec
    in_width: int
    out_width: int
    has_bias: bool = False
    stream: int = 0
    children: tuple[Node, ...] = ()


@dataclass
class Run:
    """Everything one forward pass reads and what it records on the way."""

    parameters: Mapping[str, Float]
    state: Mapping[str, Float]
    training: bool
    seed: int
    step: int
    first_row: int
    sample_weight: Float | None
    rounding: Callable[[Float], Float] | None = None
    new_state: dict[str, Float] = field(default_factory=dict)
    outputs: dict[str, Float] = field(default_factory=dict)
    kink_margin: float = math.inf

    def note_kink(self, distance: Float) -> None:
        """Record how near any value came to a point without derivative."""
        if distance.size:
            self.kink_margin = min(self.kink_margin, float(distance.min()))


Backward = Callable[[Float, dict[str, Float]], Float]


@dataclass(frozen=True)
class Evaluation:
    """Result of one pure evaluation: nothing that was passed in has changed."""

    outputs: Float
    loss: float
    gradients: Parameters
    input_gradient: Float
    state: dict[str, Float]
    layer_outputs: dict[str, Float]
    kink_margin: float


class Network:
    """Forward and backward pass of a model description over named float64 parameters.

    Parameters
    ----------
    description : see the model description format.
    first_stream : random stream of the first dropout layer; the next follow in depth-first order.
    """

    def __init__(self, description: Spec, first_stream: int = 0) -> None:
        self.description = description
        self.in_features = int(description["in_features"])
        self.seed = int(description.get("seed", 0))
        self._next_stream = first_stream
        self.nodes = self._resolve(description["layers"], "", self.in_features)
        self.out_features = self.nodes[-1].out_width if self.nodes else self.in_features

    def _resolve(self, layers: list[Spec], prefix: str, width: int) -> tuple[Node, ...]:
        nodes = []
        for index, spec in enumerate(layers):
            following = layers[index + 1]["type"] if index + 1 < len(layers) else None
            node = self._node(spec, f"{prefix}layers.{index}", width, following)
            nodes.append(node)
            width = node.out_width
        return tuple(nodes)

    def _node(self, spec: Spec, name: str, width: int, following: str | None) -> Node:
        kind = spec["type"]
        if kind in ("dense", "maxout"):
            bias = spec.get("bias")
            automatic = kind == "maxout" or following != "batch_norm"
            has_bias = automatic if bias is None else bool(bias)
            return Node(kind, name, spec, width, int(spec["units"]), has_bias)
        if kind in ("residual", "sequential"):
            children = self._resolve(spec["layers"], f"{name}.", width)
            out_width = children[-1].out_width if children else width
            if kind == "residual" and out_width != width:
                raise ValueError(f"[residual] expected {width} outputs, got {out_width}")
            return Node(kind, name, spec, width, out_width, children=children)
        if kind == "dropout":
            self._next_stream += 1
            return Node(kind, name, spec, width, width, stream=self._next_stream - 1)
        if kind != "batch_norm" and kind not in ACTIVATIONS:
            raise ValueError(f"[network] unknown layer {kind!r}")
        return Node(kind, name, spec, width, width)

    def walk(self, nodes: tuple[Node, ...] | None = None) -> Iterator[Node]:
        """All nodes, parents before their children."""
        for node in self.nodes if nodes is None else nodes:
            yield node
            yield from self.walk(node.children)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Trainable parameters in checkpoint order."""
        shapes: dict[str, tuple[int, ...]] = {}
        for node in self.walk():
            if node.kind in ("dense", "maxout"):
                pieces = int(node.spec.get("pieces", 2)) if node.kind == "maxout" else 1
                features = node.out_width * pieces
                shapes[f"{node.name}.weight"] = (features, node.in_width)
                if node.has_bias:
                    shapes[f"{node.name}.bias"] = (features,)
            elif node.kind == "batch_norm":
                shapes[f"{node.name}.weight"] = (node.in_width,)
                shapes[f"{node.name}.bias"] = (node.in_width,)
        return shapes

    def initial_state(self) -> dict[str, Float]:
        """Batch-norm buffers before the first batch."""
        state: dict[str, Float] = {}
        for node in self.walk():
            if node.kind == "batch_norm":
                state[f"{node.name}.running_mean"] = np.zeros(node.in_width)
                state[f"{node.name}.running_var"] = np.ones(node.in_width)
                state[f"{node.name}.num_batches_tracked"] = np.zeros(())
        return state

    def flatten(self, parameters: Mapping[str, Float]) -> Float:
        """Canonical flat vector."""
        parts = [parameters[name].ravel() for name in self.parameter_shapes()]
        return np.concatenate(parts) if parts else np.zeros(0)

    def unflatten(self, flat: Float) -> Parameters:
        """Named parameters of a canonical flat vector."""
        parameters, offset = {}, 0
        for name, shape in self.parameter_shapes().items():
            size = math.prod(shape)
            parameters[name] = flat[offset : offset + size].reshape(shape)
            offset += size
        return parameters

    def forward(
        self,
        parameters: Mapping[str, Float],
        x: Float,
        *,
        state: Mapping[str, Float] | None = None,
        training: bool = False,
        sample_weight: npt.ArrayLike | None = None,
        step: int = 0,
        first_row: int = 0,
        rounding: Callable[[Float], Float] | None = None,
    ) -> tuple[Float, Backward, Run]:
        """Outputs [rows, out], the backward function and the record of the pass.

        `rounding` is applied to the output of every layer, to study shorter number formats.
        """
        run = Run(
            parameters,
            self.initial_state() if state is None else state,
            training,
            self.seed,
            step,
            first_row,
            None if sample_weight is None else as_float(sample_weight),
            rounding,
        )
        run.new_state = {name: value.copy() for name, value in run.state.items()}
        y, backward = _chain_forward(self.nodes, as_float(x), run)
        return y, backward, run

    def loss(
        self,
        outputs: Float,
        target: npt.ArrayLike,
        sample_weight: npt.ArrayLike | None = None,
    ) -> LossResult:
        """The described loss of given outputs."""
        options = dict(self.description["loss"])
        return LOSSES[options.pop("type")](outputs, target, sample_weight, **options)

    def evaluate(
        self,
        parameters: Mapping[str, Float],
        x: Float,
        target: npt.ArrayLike,
        *,
        state: Mapping[str, Float] | None = None,
        training: bool = True,
        sample_weight: npt.ArrayLike | None = None,
        step: int = 0,
        rounding: Callable[[Float], Float] | None = None,
    ) -> Evaluation:
        """Loss, gradients and staged batch-norm buffers."""
        y, backward, run = self.forward(
            parameters,
            x,
            state=state,
            training=training,
            sample_weight=sample_weight,
            step=step,
            rounding=rounding,
        )
        value, dy = self.loss(y, target, sample_weight)
        if self.description["loss"]["type"] == "huber":
            delta = self.description["loss"].get("delta", 1.0)
            run.note_kink(np.abs(np.abs(y - as_float(target).reshape(y.shape)) - delta))
        gradients: Parameters = {}
        dx = backward(dy, gradients)
        ordered = {name: gradients[name] for name in self.parameter_shapes()}
        return Evaluation(y, value, ordered, dx, run.new_state, run.outputs, run.kink_margin)


def _chain_forward(nodes: tuple[Node, ...], x: Float, run: Run) -> tuple[Float, Backward]:
    steps: list[Backward] = []
    h = x
    for node in nodes:
        h, back = _FORWARD.get(node.kind, _activation_forward)(node, h, run)
        if run.rounding is not None:
            h = run.rounding(h)
        run.outputs[node.name] = h
        steps.append(back)

    def backward(dy: Float, gradients: dict[str, Float]) -> Float:
        for back in reversed(steps):
            dy = back(dy, gradients)
        return dy

    return h, backward


def _dense_forward(node: Node, x: Float, run: Run) -> tuple[Float, Backward]:
    weight = run.parameters[f"{node.name}.weight"]
    bias = run.parameters[f"{node.name}.bias"] if node.has_bias else None

    def backward(dy: Float, gradients: dict[str, Float]) -> Float:
        d = dense_backward(dy, x, weight)
        gradients[f"{node.name}.weight"] = d.weight
        if node.has_bias:
            gradients[f"{node.name}.bias"] = d.bias
        return d.x

    return dense(x, weight, bias), backward


def _maxout_forward(node: Node, x: Float, run: Run) -> tuple[Float, Backward]:
    pieces = int(node.spec.get("pieces", 2))
    z, dense_back = _dense_forward(node, x, run)
    if pieces > 1:
        ordered = np.sort(z.reshape(len(z), -1, pieces), axis=-1)
        run.note_kink(ordered[..., -1] - ordered[..., -2])

    def backward(dy: Float, gradients: dict[str, Float]) -> Float:
        return dense_back(maxout_backward(dy, z, pieces), gradients)

    return maxout(z, pieces), backward


def _batch_norm_forward(node: Node, z: Float, run: Run) -> tuple[Float, Backward]:
    gamma = run.parameters[f"{node.name}.weight"]
    beta = run.parameters[f"{node.name}.bias"]
    eps = node.spec.get("eps", 1e-5)
    running = RunningStatistics(
        run.state[f"{node.name}.running_mean"],
        run.state[f"{node.name}.running_var"],
        int(run.state[f"{node.name}.num_batches_tracked"]),
    )
    if run.training:
        weights = run.sample_weight if node.spec.get("weighted", False) else None
        y, cache = batch_norm(z, gamma, beta, eps, weights)
        new = update_running_statistics(running, cache.statistics, node.spec.get("momentum", 0.1))
        run.new_state[f"{node.name}.running_mean"] = new.mean
        run.new_state[f"{node.name}.running_var"] = new.variance
        run.new_state[f"{node.name}.num_batches_tracked"] = as_float(new.batches)
    else:
        y = batch_norm_eval(z, gamma, beta, running.mean, running.variance, eps)

    def backward(dy: Float, gradients: dict[str, Float]) -> Float:
        if run.training:
            d = batch_norm_backward(dy, cache)
        else:
            d = batch_norm_eval_backward(dy, z, gamma, running.mean, running.variance, eps)
        gradients[f"{node.name}.weight"] = d.gamma
        gradients[f"{node.name}.bias"] = d.beta
        return d.z

    return y, backward


def _dropout_forward(node: Node, x: Float, run: Run) -> tuple[Float, Backward]:
    if not run.training:
        return x, lambda dy, _: dy
    scale = dropout_scale(
        (x.shape[0], x.shape[1]),
        node.spec.get("p", 0.5),
        seed=run.seed,
        stream=node.stream,
        step=run.step,
        first_row=run.first_row,
    )
    return x * scale, lambda dy, _: dy * scale


def _residual_forward(node: Node, x: Float, run: Run) -> tuple[Float, Backward]:
    branch, branch_back = _chain_forward(node.children, x, run)
    return x + branch, lambda dy, gradients: dy + branch_back(dy, gradients)


def _sequential_forward(node: Node, x: Float, run: Run) -> tuple[Float, Backward]:
    return _chain_forward(node.children, x, run)


def _activation_forward(node: Node, z: Float, run: Run) -> tuple[Float, Backward]:
    rule = ACTIVATIONS[node.kind]
    a = float(node.spec.get(rule.parameter, rule.default)) if rule.parameter else 0.0
    if rule.kink:
        run.note_kink(np.abs(z))
    return rule.value(z, a), lambda dy, _: dy * rule.derivative(z, a)


_FORWARD: dict[str, Callable[[Node, Float, Run], tuple[Float, Backward]]] = {
    "dense": _dense_forward,
    "maxout": _maxout_forward,
    "batch_norm": _batch_norm_forward,
    "dropout": _dropout_forward,
    "residual": _residual_forward,
    "sequential": _sequential_forward,
}
LAYERS: frozenset[str] = frozenset(_FORWARD) | frozenset(ACTIVATIONS)


# --------------------------------------------------------------------------------------------------
# Training step
# --------------------------------------------------------------------------------------------------


class Minibatch(NamedTuple):
    """One batch of rows; several of them in one step are accumulated."""

    x: Float
    target: npt.NDArray[Any]
    sample_weight: Float | None = None


class Trainer:
    """A description with its parameters, optimizer and average: the state of a training run."""

    def __init__(
        self,
        description: Spec,
        parameters: Mapping[str, Float],
        state: Mapping[str, Float] | None = None,
        *,
        steps_per_epoch: int | None = None,
        first_stream: int = 0,
    ) -> None:
        self.network = Network(description, first_stream)
        self.parameters: Parameters = {n: as_float(p).copy() for n, p in parameters.items()}
        self.state = dict(self.network.initial_state() if state is None else state)
        self.optimizer = Optimizer(description["optimizer"], steps_per_epoch)
        averaging = description.get("averaging")
        self.averager = None if averaging is None else Averager(averaging)
        self.clip_norm: float | None = description.get("clip_norm")


def train_step(
    trainer: Trainer,
    *batches: Minibatch,
    class_weight: Mapping[int, float] | None = None,
) -> float:
    """One update from one or more accumulated batches; returns the loss before the update.

    The loss of the step is the loss of all rows together, but batch norm sees each batch alone.
    Clipping looks at the parameters that are not frozen.
    """
    network = trainer.network
    loss_spec = network.description["loss"]
    reduction = "batch_mean"
    if loss_spec["type"] in ELEMENTWISE_LOSSES:
        default = ELEMENTWISE_LOSSES[loss_spec["type"]].reduction
        reduction = loss_spec.get("reduction", default)
    weights = [
        row_weights(len(b.x), b.sample_weight, np.asarray(b.target), class_weight) for b in batches
    ]
    total = sum(float(w.sum()) for w in weights)
    loss, state, first_row = 0.0, trainer.state, 0
    gradients = {name: np.zeros_like(p) for name, p in trainer.parameters.items()}
    for batch, w in zip(batches, weights, strict=True):
        y, backward, run = network.forward(
            trainer.parameters,
            batch.x,
            state=state,
            training=True,
            sample_weight=w,
            step=trainer.optimizer.updates_done,
            first_row=first_row,
        )
        value, dy = network.loss(y, batch.target, w)
        share = 1.0 if reduction == "sum" else float(w.sum()) / total
        part: Parameters = {}
        backward(dy * share, part)
        loss += share * value
        gradients = {name: g + part[name] for name, g in gradients.items()}
        state, first_row = run.new_state, first_row + len(batch.x)
    if not math.isfinite(loss):
        raise ArithmeticError(f"[train_step] expected a finite loss, got {loss}")
    if trainer.clip_norm is not None:
        active = {n: g for n, g in gradients.items() if not trainer.optimizer.frozen(n)}
        gradients.update(clip_by_global_norm(active, trainer.clip_norm)[0])
    trainer.parameters = trainer.optimizer.step(trainer.parameters, gradients)
    trainer.state = dict(state)
    if trainer.averager is not None:
        trainer.averager.update(trainer.optimizer.theta(trainer.parameters))
    return loss


# --------------------------------------------------------------------------------------------------
# Second derivatives, by dual numbers
# --------------------------------------------------------------------------------------------------


def _dual_parameters(network: Network, parameters: Mapping[str, Float], v: Float) -> Any:
    directions = network.unflatten(as_float(v))
    return {name: Dual(p, directions[name]) for name, p in parameters.items()}


def hessian_product(
    network: Network, parameters: Mapping[str, Float], v: Float, *data: Any, **options: Any
) -> Float:
    """H v for the Hessian of the loss; `data` and `options` are those of `Network.evaluate`."""
    found = network.evaluate(_dual_parameters(network, parameters, v), *data, **options)
    return np.concatenate([as_float(g.tangent).ravel() for g in found.gradients.values()])  # type: ignore[attr-defined]


def output_tangent(
    network: Network, parameters: Mapping[str, Float], v: Float, x: Float, **options: Any
) -> Float:
    """J v for the Jacobian J of the outputs [rows, out] with respect to the parameters."""
    y, _, _ = network.forward(_dual_parameters(network, parameters, v), x, **options)
    return as_float(y.tangent)  # type: ignore[attr-defined]


def gauss_newton_product(
    network: Network,
    parameters: Mapping[str, Float],
    v: Float,
    x: Float,
    target: npt.ArrayLike,
    **options: Any,
) -> Float:
    """J' L J v with the Hessian L of the loss with respect to the outputs."""
    y, backward, _ = network.forward(parameters, x, **options)
    tangent = output_tangent(network, parameters, v, x, **options)
    gradient: Any = network.loss(Dual(y, tangent), target, options.get("sample_weight")).gradient  # type: ignore[arg-type]
    gradients: Parameters = {}
    backward(gradient.tangent, gradients)
    return network.flatten({name: gradients[name] for name in network.parameter_shapes()})


# --------------------------------------------------------------------------------------------------
# Numerical differentiation
# --------------------------------------------------------------------------------------------------


def central_difference(f: Callable[[Float], float], at: Float, h: float = 1e-5) -> Float:
    """Gradient of f at `at` by central differences of step h in every entry."""
    gradient = np.empty_like(at)
    point = at.copy()
    for index in np.ndindex(*at.shape):
        keep = point[index]
        point[index] = keep + h
        above = f(point)
        point[index] = keep - h
        gradient[index] = (above - f(point)) / (2.0 * h)
        point[index] = keep
    return gradient
