"""The loss on lines and planes through parameter space, and the way that training took.

Formulas: `docs/landscape.md`. Source: Goodfellow, Vinyals, Saxe, *Qualitatively characterizing
neural network optimization problems*, 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg import _check
from thalweg.landscape import _arguments
from thalweg.landscape._result import NOT_JSON, Result
from thalweg.model import Model

if TYPE_CHECKING:
    from thalweg.landscape._result import Array
    from thalweg.model import ArrayLike, History


class _Probe:
    """The loss of a copy of a model at any parameters, batch-norm statistics recomputed."""

    def __init__(
        self, where: str, model: Model, x: Any, y: Any, weights: Any, recalibrate: bool
    ) -> None:
        self._model = _arguments.model(where, model).copy()
        self._x, self._y, self._weights = x, y, weights
        self._recalibrate = recalibrate and model.has_batch_norm

    def loss(self, theta: Array) -> float:
        self._model.set_parameters(theta)
        if self._recalibrate:
            self._model.recalibrate_batch_norm(self._x)
        return self._model.evaluate(self._x, self._y, sample_weight=self._weights)["loss"]


@dataclass(frozen=True, eq=False)
class LinearPath(Result):
    """The loss on the straight line between two parameter vectors.

    Attributes
    ----------
    alpha : float64 array ``[points]``
        0 at the start, 1 at the end.
    loss : float64 array ``[points]``
    distance : float
        Euclidean length of the line.
    """

    alpha: Array
    loss: Array
    distance: float

    @property
    def max_rise(self) -> float:
        """How far the loss climbs above the lowest point before: 0 for a path that only falls."""
        return float(np.max(self.loss - np.minimum.accumulate(self.loss)))

    @property
    def barrier(self) -> float:
        """How far the loss lies above the chord between its ends at most (Frankle et al. 2020)."""
        chord = (1.0 - self.alpha) * self.loss[0] + self.alpha * self.loss[-1]
        return float(np.max(self.loss - chord))

    def _draw(self, axes: Any) -> None:
        axes.plot(self.alpha, self.loss)
        axes.set(xlabel="position between start and end", ylabel="loss")


def linear_path(
    model: Model,
    start: Model | ArrayLike,
    end: Model | ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    points: int = 101,
    sample_weight: ArrayLike | None = None,
    recalibrate: bool = True,
) -> LinearPath:
    """The loss J((1 - a) start + a end) for a from 0 to 1 (Goodfellow et al. 2015).

    Parameters
    ----------
    model : Model
        Network and loss; it is not changed.
    start, end : Model or array ``[num_parameters]``
    x : array ``[rows, in_features]``
    y : array ``[rows]`` or ``[rows, out_features]``
    points : int, default 101
        Points on the line, both ends included, at least 2.
    sample_weight : array ``[rows]``, optional
    recalibrate : bool, default True
        Recompute the statistics of batch norm on x at every point: those of the model belong to
        its own weights only. False keeps them.

    Returns
    -------
    LinearPath

    Raises
    ------
    ValueError
        When an end does not have the parameters of the network.

    Examples
    --------
    >>> import numpy as np
    >>> import thalweg as tw
    >>> model = tw.Model(tw.nn.Dense(1, bias=False), 1, "squared_error", dtype="float64")
    >>> path = linear_path(model, [0.0], [2.0], [[1.0]], [2.0], points=3)
    >>> path.loss, path.max_rise
    (array([4., 1., 0.]), 0.0)
    """
    where = "linear_path"
    size = _arguments.model(where, model).num_parameters
    first = _arguments.vector(where, "start", start, size)
    last = _arguments.vector(where, "end", end, size)
    alpha = np.linspace(0.0, 1.0, _check.integer(where, "points", points, 2))
    recalibrate = _check.flag(where, "recalibrate", recalibrate)
    probe = _Probe(where, model, x, y, sample_weight, recalibrate)
    loss = np.array([probe.loss((1.0 - a) * first + a * last) for a in alpha])
    return LinearPath(alpha, loss, float(np.linalg.norm(last - first)))


@dataclass(frozen=True, eq=False)
class Plane(Result):
    """The loss on a rectangle of a plane in parameter space.

    Attributes
    ----------
    first, second : float64 arrays ``[columns]`` and ``[rows]``
        Coordinates along the two axes, in units of Euclidean length.
    loss : float64 array ``[rows, columns]``
        ``loss[i, j]`` at ``origin + first[j] * axes[0] + second[i] * axes[1]``.
    origin : float64 array ``[num_parameters]``
    axes : float64 array ``[2, num_parameters]``
        Orthonormal.
    path : float64 array ``[checkpoints, 2]`` or None
        Coordinates of a trajectory in the plane.
    """

    first: Array
    second: Array
    loss: Array
    origin: Array = field(repr=False, metadata=NOT_JSON)
    axes: Array = field(repr=False, metadata=NOT_JSON)
    path: Array | None = None

    def _draw(self, axes: Any) -> None:
        lowest = float(np.nanmin(self.loss))
        positive = lowest > 0.0
        values = np.log10(self.loss) if positive else self.loss
        image = axes.contourf(self.first, self.second, values, levels=30, cmap="viridis")
        label = "log10 of the loss" if positive else "loss"
        axes.figure.colorbar(image, ax=axes, label=label)
        if self.path is not None:
            axes.plot(self.path[:, 0], self.path[:, 1], "o-", color="white", markersize=2)
        axes.set(xlabel="first direction", ylabel="second direction")


def plane(
    model: Model,
    origin: Model | ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    extent: tuple[float, float, float, float] = (-1.0, 1.0, -1.0, 1.0),
    points: int = 25,
    sample_weight: ArrayLike | None = None,
    recalibrate: bool = True,
) -> Plane:
    """The loss on a plane through `origin` that two directions span.

    Parameters
    ----------
    model : Model
        Network and loss; it is not changed.
    origin : Model or array ``[num_parameters]``
    first, second : array ``[num_parameters]``
        Directions. The axes are the unit vector of `first` and that of the part of `second` that is
        orthogonal to it.
    x : array ``[rows, in_features]``
    y : array ``[rows]`` or ``[rows, out_features]``
    extent : four floats, default (-1, 1, -1, 1)
        Lowest and highest coordinate along the first axis, then along the second.
    points : int, default 25
        Points along each axis, at least 2.
    sample_weight : array ``[rows]``, optional
    recalibrate : bool, default True
        As in `linear_path`.

    Returns
    -------
    Plane

    Raises
    ------
    ValueError
        When the directions are zero or parallel.

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model(tw.nn.Dense(1), 1, "squared_error", dtype="float64")
    >>> bowl = plane(model, [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [[0.0]], [0.0], points=3)
    >>> bowl.loss
    array([[1., 1., 1.],
           [0., 0., 0.],
           [1., 1., 1.]])
    """
    where = "plane"
    size = _arguments.model(where, model).num_parameters
    center = _arguments.vector(where, "origin", origin, size)
    along = _arguments.vector(where, "first", first, size)
    across = _arguments.vector(where, "second", second, size)
    count = _check.integer(where, "points", points, 2)
    limits = _arguments.reals(where, "extent", extent, 1)
    if limits.size != 4 or not (limits[0] < limits[1] and limits[2] < limits[3]):
        raise ValueError(
            f"[{where}] expected extent (low, high, low, high), low < high, got {extent}"
        )
    basis = _orthonormal(where, along, across)
    u, v = np.linspace(limits[0], limits[1], count), np.linspace(limits[2], limits[3], count)
    recalibrate = _check.flag(where, "recalibrate", recalibrate)
    probe = _Probe(where, model, x, y, sample_weight, recalibrate)
    loss = np.array([[probe.loss(center + a * basis[0] + b * basis[1]) for a in u] for b in v])
    return Plane(u, v, loss, center, basis)


def random_direction(model: Model, *, seed: int = 0, normalize: bool = True) -> Array:
    """A Gaussian direction for `plane`.

    Parameters
    ----------
    model : Model
    seed : int, default 0
    normalize : bool, default True
        Scale the weights of every unit to the norm of that unit's own weights and leave biases and
        batch norm out (filter normalization; Li et al., *Visualizing the loss landscape of neural
        nets*, 2018), so that pictures of networks of different scale compare.

    Returns
    -------
    float64 array ``[num_parameters]``

    Examples
    --------
    >>> import thalweg as tw
    >>> random_direction(tw.Model(tw.nn.Dense(2), 3), seed=1).shape
    (8,)
    """
    where = "random_direction"
    _arguments.model(where, model)
    rng = np.random.default_rng(_check.integer(where, "seed", seed, 0))
    direction = rng.standard_normal(model.num_parameters)
    if not _check.flag(where, "normalize", normalize):
        return direction
    values = model.parameters.astype(np.float64)
    for _, offset, shape in model.layout():
        here = slice(offset, offset + int(np.prod(shape)))
        if len(shape) < 2:
            direction[here] = 0.0
            continue
        rows = direction[here].reshape(shape[0], -1)
        own = np.linalg.norm(values[here].reshape(rows.shape), axis=1, keepdims=True)
        direction[here] = (rows * (own / np.linalg.norm(rows, axis=1, keepdims=True))).ravel()
    return direction


def _orthonormal(where: str, first: Array, second: Array) -> Array:
    u = _arguments.unit(where, "first", first)
    rest = second - u * (u @ second)
    if np.linalg.norm(rest) <= 1e-9 * np.linalg.norm(second):
        raise ValueError(f"[{where}] expected two directions that span a plane, got parallel ones")
    v = rest / np.linalg.norm(rest)
    v -= u * (u @ v)  # a second pass: the first leaves rounding when the directions nearly agree
    return np.stack([u, v / np.linalg.norm(v)])


# ---- trajectories --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trajectory(Result):
    """Checkpoints of a training run, in order.

    Attributes
    ----------
    steps : int64 array ``[checkpoints]``
        Updates done at each checkpoint.
    parameters : array ``[checkpoints, num_parameters]`` of the model's dtype
    loss : float64 array ``[checkpoints]``
        Of the minibatch before the update that led to the checkpoint; NaN where there was none.
    states : tuple of dict
        Batch-norm statistics of each checkpoint, as `Model.named_state`.
    """

    steps: Array
    parameters: Array = field(repr=False)
    loss: Array
    states: tuple[dict[str, Array], ...] = field(repr=False, metadata=NOT_JSON)

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, model: Model, index: int) -> Model:
        """A copy of `model` with the parameters and batch-norm statistics of a checkpoint.

        Parameters
        ----------
        model : Model
        index : int
            Negative ones count from the end.

        Raises
        ------
        IndexError
            Where there is no such checkpoint.
        """
        where = "Trajectory.at"
        copy = _arguments.model(where, model).copy()
        place = _check.integer(where, "index", index)
        if not -len(self) <= place < len(self):
            raise IndexError(
                f"[{where}] expected index in [{-len(self)}, {len(self)}), got {place}"
            )
        copy.set_parameters(self.parameters[index])
        if self.states[index]:
            copy.set_state(self.states[index])
        return copy

    def _draw(self, axes: Any) -> None:
        axes.plot(self.steps, self.loss)
        axes.set(xlabel="updates", ylabel="loss of the minibatch")


class Recorder:
    """A callback for `Model.fit` that keeps checkpoints in memory.

    The first checkpoint is the state before training, the last one that after it.

    Parameters
    ----------
    every : int, default 1
        Updates between checkpoints; with `callback_every` of `fit`, multiples of it count.

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model(tw.nn.Dense(1), 1, "squared_error", tw.optim.SGD(0.1))
    >>> recorder = Recorder(every=2)
    >>> history = model.fit([[1.0]], [2.0], epochs=5, callbacks=[recorder], verbose=False)
    >>> recorder.trajectory().steps
    array([0, 2, 4, 5])
    """

    def __init__(self, every: int = 1) -> None:
        self.every = _check.integer("Recorder", "every", every, 1)
        self._steps: list[int] = []
        self._parameters: list[Array] = []
        self._loss: list[float] = []
        self._states: list[dict[str, Array]] = []
        self._last_loss = np.nan

    def on_train_begin(self, model: Model) -> None:
        """Keep the state before the first update, unless it is the last of an earlier call."""
        self._last_loss = np.nan
        self._keep(model, model.steps_done)

    def on_step(self, model: Model, step: int, logs: dict[str, Any]) -> None:
        """Keep a checkpoint after update `step` if it is time to; `logs` has its loss."""
        self._last_loss = float(logs["loss"])
        first, last = self._steps[0], self._steps[-1]
        if (step - first) // self.every > (last - first) // self.every:
            self._keep(model, step)

    def on_train_end(self, model: Model, history: History) -> None:
        """Keep the last state."""
        self._keep(model, model.steps_done)

    def _keep(self, model: Model, step: int) -> None:
        if self._steps and self._steps[-1] == step:
            return
        self._steps.append(step)
        self._parameters.append(model.parameters)
        self._loss.append(self._last_loss)
        self._states.append(model.named_state())

    def trajectory(self) -> Trajectory:
        """What was recorded so far.

        Returns
        -------
        Trajectory

        Raises
        ------
        ValueError
            When nothing was.
        """
        if not self._steps:
            raise ValueError(
                "[Recorder.trajectory] expected a recorded training, got nothing; give it to "
                "fit(callbacks=[recorder])"
            )
        return Trajectory(
            np.array(self._steps, dtype=np.int64),
            np.stack(self._parameters),
            np.array(self._loss),
            tuple(self._states),
        )


@dataclass(frozen=True, eq=False)
class Projection(Result):
    """A trajectory in two dimensions.

    Attributes
    ----------
    along : float64 array ``[checkpoints]``
        Coordinate on the line from the first checkpoint to the last, in units of length.
    residual : float64 array ``[checkpoints]``
        Distance from that line: 0 at both ends.
    steps : int64 array ``[checkpoints]``
    distance : float
        Between the first and the last checkpoint.
    """

    along: Array
    residual: Array
    steps: Array
    distance: float

    def _draw(self, axes: Any) -> None:
        axes.plot(self.along, self.residual, "o-", markersize=3)
        axes.set(xlabel="along the line from start to end", ylabel="distance from the line")


def project(trajectory: Trajectory) -> Projection:
    """Coordinate along u = unit(end - start) and distance from that line, per checkpoint.

    Goodfellow, Vinyals, Saxe 2015: with theta - start = (u . (theta - start)) u + r the pair is
    (u . (theta - start), norm(r)).

    Parameters
    ----------
    trajectory : Trajectory
        Of a training that moved: its ends differ.

    Returns
    -------
    Projection

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model(tw.nn.Dense(1), 1, "squared_error", tw.optim.SGD(0.1))
    >>> recorder = Recorder()
    >>> history = model.fit([[1.0]], [2.0], epochs=3, callbacks=[recorder], verbose=False)
    >>> float(project(recorder.trajectory()).residual[-1])
    0.0
    """
    moved, u = _moved(trajectory, "project")
    along = moved @ u
    rest = moved - np.outer(along, u)
    residual = np.linalg.norm(rest, axis=1)
    residual[[0, -1]] = 0.0  # by definition; what is left of rounding says nothing
    return Projection(along, residual, trajectory.steps.copy(), float(np.linalg.norm(moved[-1])))


def _moved(trajectory: Trajectory, where: str) -> tuple[Array, Array]:
    """Checkpoints relative to the first, and the unit vector to the last."""
    _check.instance(where, "trajectory", trajectory, Trajectory, "Recorder().trajectory()")
    points = _arguments.reals(where, "the checkpoints", trajectory.parameters, 2)
    moved = points - points[:1]
    if not np.any(moved[-1:]):
        raise ValueError(
            f"[{where}] expected a trajectory whose ends differ, got {len(trajectory)} "
            "checkpoint(s) that end where they began"
        )
    return moved, _arguments.unit(where, "end - start", moved[-1])


def trajectory_plane(
    model: Model,
    trajectory: Trajectory,
    x: ArrayLike,
    y: ArrayLike,
    *,
    points: int = 25,
    margin: float = 0.2,
    sample_weight: ArrayLike | None = None,
    recalibrate: bool = True,
) -> Plane:
    """The loss on the plane through both ends of a trajectory and its farthest checkpoint.

    The first axis points from start to end, the second to the checkpoint that is farthest from that
    line; the trajectory is projected onto the plane.

    Parameters
    ----------
    model : Model
    trajectory : Trajectory
        Not a straight line.
    x : array ``[rows, in_features]``
    y : array ``[rows]`` or ``[rows, out_features]``
    points : int, default 25
        Points along each axis.
    margin : float, default 0.2
        Room around the trajectory as a fraction of its extent.
    sample_weight : array ``[rows]``, optional
    recalibrate : bool, default True
        As in `linear_path`.

    Returns
    -------
    Plane
        With `path`.
    """
    where = "trajectory_plane"
    moved, u = _moved(trajectory, where)
    margin = _check.real(where, "margin", margin, 0.0)
    rest = moved - np.outer(moved @ u, u)
    distance = np.linalg.norm(rest, axis=1)
    farthest = int(np.argmax(distance[1:-1])) + 1 if len(moved) > 2 else 0
    if distance[farthest] <= 1e-9 * np.linalg.norm(moved[-1]):
        raise ValueError(
            f"[{where}] expected a trajectory that leaves the straight line, got a straight one; "
            "use linear_path"
        )
    basis = _orthonormal(where, u, rest[farthest])
    path = moved @ basis.T
    low, high = path.min(axis=0), path.max(axis=0)
    room = margin * (high - low) + 1e-12
    found = plane(
        model,
        trajectory.parameters[0],
        basis[0],
        basis[1],
        x,
        y,
        extent=(low[0] - room[0], high[0] + room[0], low[1] - room[1], high[1] + room[1]),
        points=points,
        sample_weight=sample_weight,
        recalibrate=recalibrate,
    )
    return Plane(found.first, found.second, found.loss, found.origin, found.axes, path)


@dataclass(frozen=True, eq=False)
class FunctionTrajectories(Result):
    """Training runs as curves of functions, in few dimensions.

    Attributes
    ----------
    coordinates : tuple of float64 arrays ``[checkpoints, components]``
        One per run.
    explained : float64 array ``[components]``
        Share of the variance by component; NaN for t-SNE, which has none.
    method : str
    """

    coordinates: tuple[Array, ...]
    explained: Array
    method: str

    def __post_init__(self) -> None:
        super().__post_init__()
        for run in self.coordinates:
            run.setflags(write=False)

    def _draw(self, axes: Any) -> None:
        for number, run in enumerate(self.coordinates):
            second = run[:, 1] if run.shape[1] > 1 else np.zeros(len(run))
            (line,) = axes.plot(run[:, 0], second, "-", linewidth=0.8, label=f"run {number}")
            axes.plot(run[-1, 0], second[-1], "o", color=line.get_color())
        axes.set(xlabel="first component", ylabel="second component")


def function_trajectories(
    model: Model,
    runs: Sequence[Trajectory],
    probe: ArrayLike,
    *,
    method: str = "pca",
    components: int = 2,
    perplexity: float = 30.0,
    seed: int = 0,
) -> FunctionTrajectories:
    """Where runs go in the space of functions: their predictions on a probe set, projected.

    Each checkpoint is the vector of all predictions on the probe (probabilities where the loss has
    classes), so that networks that differ by a symmetry alone coincide (Erhan et al., *Why does
    unsupervised pre-training help deep learning?*, 2010).

    Parameters
    ----------
    model : Model
        The network of all runs.
    runs : sequence of Trajectory
    probe : array ``[rows, in_features]``
    method : str, default "pca"
        "pca": principal components by SVD; "tsne": t-SNE of scikit-learn, an optional extra.
    components : int, default 2
    perplexity : float, default 30
        Of t-SNE; less than the number of checkpoints.
    seed : int, default 0
        Of t-SNE.

    Returns
    -------
    FunctionTrajectories

    Raises
    ------
    ImportError
        For "tsne" without scikit-learn.

    Examples
    --------
    >>> import thalweg as tw
    >>> model = tw.Model(tw.nn.Dense(2), 1, "squared_error", tw.optim.SGD(0.1))
    >>> recorder = Recorder()
    >>> x, y = [[1.0], [2.0]], [[2.0, 0.0], [3.0, 1.0]]
    >>> history = model.fit(x, y, epochs=4, callbacks=[recorder], verbose=False)
    >>> found = function_trajectories(model, [recorder.trajectory()], x)
    >>> found.coordinates[0].shape
    (5, 2)
    """
    where = "function_trajectories"
    _arguments.model(where, model)
    _check.choice(where, "method", method, ("pca", "tsne"))
    count = _check.integer(where, "components", components, 1)
    if not isinstance(runs, Sequence) or not runs:
        raise TypeError(f"[{where}] expected runs, a list of Trajectory, got {_check.shown(runs)}")
    for run in runs:
        _check.instance(where, "runs", run, Trajectory, "a list of Recorder().trajectory()")
        if not len(run):
            raise ValueError(f"[{where}] expected runs with checkpoints, got one without")
    classes = model.description["loss"]["type"] in (
        "cross_entropy",
        "binary_cross_entropy",
        "logistic",
        "exponential",
    )
    stacked = np.stack(
        [
            _prediction(run.at(model, i), probe, classes)
            for run in runs
            for i in range(len(run.steps))
        ]
    )
    explained = np.full(count, np.nan)
    if method == "tsne":
        flat = _tsne(where, stacked, count, perplexity, seed)
    else:
        flat, explained = principal_components(stacked, count)
    ends = np.cumsum([len(run.steps) for run in runs])[:-1]
    return FunctionTrajectories(tuple(np.split(flat, ends)), explained, method)


def _prediction(model: Model, probe: Any, classes: bool) -> Array:
    outputs: Array = model.predict_proba(probe) if classes else model.predict(probe)
    return outputs.astype(np.float64).ravel()


def principal_components(points: ArrayLike, components: int = 2) -> tuple[Array, Array]:
    """Coordinates of points on their first principal components, by SVD.

    Parameters
    ----------
    points : array ``[points, dimensions]``
    components : int, default 2
        More than the points span gives columns of zeros.

    Returns
    -------
    coordinates : float64 array ``[points, components]``
        The sign is such that the coordinate of largest size is positive.
    explained : float64 array ``[components]``
        Share of the variance.

    Examples
    --------
    >>> principal_components([[0.0, 0.0], [3.0, 4.0]], 1)[0].round(6)
    array([[-2.5],
           [ 2.5]])
    """
    where = "principal_components"
    values = _arguments.reals(where, "points", points, 2)
    count = _check.integer(where, "components", components, 1)
    left, sizes, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    kept = min(count, len(sizes))
    coordinates = np.zeros((len(values), count))
    coordinates[:, :kept] = left[:, :kept] * sizes[:kept]
    # The last one of equals: two opposite points come out in their order.
    backwards = np.abs(coordinates[::-1])
    largest = len(values) - 1 - np.argmax(backwards >= backwards.max(axis=0) * (1 - 1e-9), axis=0)
    coordinates *= np.where(coordinates[largest, np.arange(count)] < 0.0, -1.0, 1.0)
    total = float(np.sum(sizes**2))
    explained = np.zeros(count)
    if total > 0.0:
        explained[:kept] = sizes[:kept] ** 2 / total
    return coordinates, explained


def _tsne(where: str, points: Array, components: int, perplexity: Any, seed: Any) -> Array:
    if components > 3:
        raise ValueError(
            f"[{where}] expected components <= 3 for 'tsne', got {components}; 'pca' has more"
        )
    perplexity = _check.real(where, "perplexity", perplexity, 1.0)
    seed = _check.integer(where, "seed", seed, 0)
    if perplexity >= len(points):
        raise ValueError(
            f"[{where}] expected perplexity < number of checkpoints ({len(points)}), "
            f"got {perplexity:g}"
        )
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ImportError(
            f"[{where}] expected scikit-learn for method 'tsne', got none; "
            "pip install thalweg[sklearn], or take 'pca'"
        ) from None
    fitted = TSNE(components, perplexity=perplexity, init="pca", random_state=seed)
    result: Array = fitted.fit_transform(points).astype(np.float64)
    return result
