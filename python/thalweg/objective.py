"""`Objective`: a model's loss on fixed data as a function of its parameters."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from thalweg import _check, _core
from thalweg.model import Model

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    ArrayLike = npt.ArrayLike

__all__ = ["Objective"]


class Objective:
    """The loss of a model on fixed data as a function of the parameters.

    Value, gradient, and products with second derivatives: the Hessian, the Gauss-Newton matrix and
    the Jacobian of the outputs, all exact and none of them formed (Pearlmutter 1994, Schraudolph
    2002). Evaluations never change the model or its batch-norm statistics.

    Everything is computed on the model's device, in its dtype, and with full precision: products of
    "high" and "medium" models are those of `matmul_precision="highest"` here, so that derivatives
    are derivatives of the value.

    Data of a model on "cuda" may lie on its GPU, where they are read; results are NumPy arrays.

    Vectors are flat, in the order of `Model.layout`. `theta` is where to evaluate; None is where
    the model's parameters are at the time of the call. Several products at one point cost less than
    the first, which runs the passes that all of them need.

    Parameters
    ----------
    model : Model
    x : array ``[rows, in_features]``
        May be larger than memory (`numpy.memmap`): it is read in chunks.
    y : array ``[rows]`` or ``[rows, out_features]``
    sample_weight : array ``[rows]``, optional
    statistics : str, default "batch"
        What batch norm normalizes by. "batch": mean and variance of these rows, as in training; the
        rows then depend on each other. "frozen": the model's running statistics, as in evaluation.
        The two are different functions with different Hessians. Without batch norm they are the
        same.
    dropout : bool, default False
        True: the masks of the update that the model would make next, the same in every call.
    chunk_size : int, optional
        Most rows in memory at a time, rounded up to whole blocks of 64; None takes 8192. Sums over
        chunks are compensated (Neumaier 1974). With batch statistics of a batch norm there is one
        chunk of all rows, and a smaller one is refused: it would be another function.

    Raises
    ------
    ValueError, TypeError
        For data that do not fit the model, or a chunk smaller than a batch norm needs.

    Notes
    -----
    x, y and sample_weight are borrowed, not copied: do not change them while the objective is in
    use. It may be used from many threads; calls wait for each other, release the GIL, and end with
    Ctrl-C.

    Examples
    --------
    >>> from thalweg import nn
    >>> model = Model(nn.Dense(1), 1, "squared_error", dtype="float64")
    >>> objective = Objective(model, [[1.0], [2.0]], [2.0, 4.0])
    >>> objective.value([2.0, 0.0]), objective.grad([2.0, 0.0])
    (0.0, array([0., 0.]))
    >>> objective.hvp([1.0, 0.0])
    array([5., 3.])
    >>> objective.hessian()
    array([[5., 3.],
           [3., 2.]])
    """

    def __init__(
        self,
        model: Model,
        x: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        statistics: str = "batch",
        dropout: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        self._model = _check.instance("Objective", "model", model, Model, "a thalweg.Model")
        self._statistics = _check.choice("Objective", "statistics", statistics, ("batch", "frozen"))
        model._check_weights("Objective", sample_weight, None)
        target, loss, targets = model._loss_arguments("Objective", x, y)
        self._core = _core.Objective(
            model=model._core,
            x=x,
            y=target,
            weights=sample_weight,
            batch_statistics=statistics == "batch",
            dropout=_check.flag("Objective", "dropout", dropout),
            chunk_rows=0
            if chunk_size is None
            else _check.integer("Objective", "chunk_size", chunk_size, 1),
            loss=loss,
            targets=targets,
        )
        self._lock = threading.Lock()
        self._thread: int | None = None  # that is inside a call

    @property
    def model(self) -> Model:
        """The model."""
        return self._model

    @property
    def num_parameters(self) -> int:
        """Length of the vectors."""
        return self._model.num_parameters

    @property
    def rows(self) -> int:
        """Number of rows of the data."""
        return self._core.rows

    @property
    def statistics(self) -> str:
        """What batch norm normalizes by: "batch" or "frozen"."""
        return self._statistics

    def __repr__(self) -> str:
        return (
            f"Objective({self.num_parameters:,} parameters, {self.rows:,} rows, "
            f"{self._statistics} statistics)"
        )

    # ---- value and gradient ----------------------------------------------------------------------

    def value(self, theta: ArrayLike | None = None) -> float:
        """The loss.

        Parameters
        ----------
        theta : array ``[num_parameters]``, optional

        Returns
        -------
        float
        """
        at = self._point("value", theta)
        with self._alone("value"):
            return self._core.value(at)

    def grad(self, theta: ArrayLike | None = None) -> Array:
        """The gradient of the loss.

        Parameters
        ----------
        theta : array ``[num_parameters]``, optional

        Returns
        -------
        array ``[num_parameters]`` of the model's dtype
        """
        return self.value_and_grad(theta)[1]

    def value_and_grad(self, theta: ArrayLike | None = None) -> tuple[float, Array]:
        """Loss and gradient in one pass.

        Parameters
        ----------
        theta : array ``[num_parameters]``, optional

        Returns
        -------
        value : float
        gradient : array ``[num_parameters]``
        """
        at = self._point("value_and_grad", theta)
        with self._alone("value_and_grad"):
            return self._core.value_and_gradient(at)

    # ---- second derivatives ----------------------------------------------------------------------

    def hvp(self, v: ArrayLike, theta: ArrayLike | None = None) -> Array:
        """The Hessian of the loss times a vector, by the R-operator (Pearlmutter 1994).

        Exact, not a difference of gradients. It takes 8 matrix products per layer where a gradient
        takes 3, and 6 from the second one at a point on. At a kink (ReLU at 0, equal pieces of a
        maxout unit) the derivatives are those of the side that the gradient takes.

        Parameters
        ----------
        v : array ``[num_parameters]``
        theta : array ``[num_parameters]``, optional

        Returns
        -------
        array ``[num_parameters]``

        Raises
        ------
        ValueError
            For a model whose loss is a Python function.
        NonFiniteError
            When the product is not finite; `layer` is where the first such value appears.

        Examples
        --------
        >>> from thalweg import nn
        >>> model = Model([nn.Dense(4), nn.BatchNorm(), nn.Dense(2)], 3, dtype="float64")
        >>> x, y = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2
        >>> objective = Objective(model, x, y)
        >>> u, v = np.random.default_rng(1).normal(size=(2, model.num_parameters))
        >>> bool(np.isclose(u @ objective.hvp(v), v @ objective.hvp(u), rtol=1e-12))
        True
        """
        return self._product("hvp", v, theta)

    def ggnvp(self, v: ArrayLike, theta: ArrayLike | None = None) -> Array:
        """The Gauss-Newton matrix J' L J times a vector (Schraudolph 2002).

        J is the Jacobian of the outputs, L the Hessian of the loss with respect to them. For the
        losses of `thalweg.losses`, which are convex in the outputs, the matrix is positive
        semidefinite, whatever the network; it is the Hessian where the outputs are linear in the
        parameters.

        Parameters
        ----------
        v : array ``[num_parameters]``
        theta : array ``[num_parameters]``, optional

        Returns
        -------
        array ``[num_parameters]``

        Raises
        ------
        ValueError, NonFiniteError
            As `hvp`.
        """
        return self._product("ggnvp", v, theta)

    def hessian(self, theta: ArrayLike | None = None) -> Array:
        """The Hessian as a matrix, from one product per parameter. For small networks.

        Parameters
        ----------
        theta : array ``[num_parameters]``, optional

        Returns
        -------
        array ``[num_parameters, num_parameters]``
            Exactly symmetric: the mean of the computed matrix and its transpose.

        Raises
        ------
        ValueError
            For more than 16,384 parameters, and as `hvp`.
        """
        at = self._point("hessian", theta)
        with self._alone("hessian"):
            return self._core.hessian(at)

    # ---- first derivatives of the outputs --------------------------------------------------------

    def jvp(self, v: ArrayLike, theta: ArrayLike | None = None) -> Array:
        """How the outputs change as the parameters move along `v`: J v.

        Parameters
        ----------
        v : array ``[num_parameters]``
        theta : array ``[num_parameters]``, optional

        Returns
        -------
        array ``[rows, out_features]``
        """
        direction, at = self._vector("jvp", v), self._point("jvp", theta)
        with self._alone("jvp"):
            return self._core.jacobian_product(direction, at)

    def vjp(self, u: ArrayLike, theta: ArrayLike | None = None) -> Array:
        """The gradient of ``sum(u * outputs)``: J' u.

        Parameters
        ----------
        u : array ``[rows, out_features]``
        theta : array ``[num_parameters]``, optional

        Returns
        -------
        array ``[num_parameters]``
        """
        shape = (self.rows, self._model.out_features)
        slopes = self._model._values("vjp", "u", u, shape)
        at = self._point("vjp", theta)
        with self._alone("vjp"):
            return self._core.jacobian_transposed_product(_finite("vjp", "u", slopes), at)

    # ---- single rows -----------------------------------------------------------------------------

    def per_example_grads(
        self, theta: ArrayLike | None = None, *, rows: tuple[int, int] | None = None
    ) -> Array:
        """The gradient of the loss of every row by itself.

        Their mean, weighted by `sample_weight`, is `grad`; for a loss that sums over rows, their
        weighted sum is.

        Parameters
        ----------
        theta : array ``[num_parameters]``, optional
        rows : (first, end), optional
            Only these rows: the result has ``num_parameters`` numbers for each.

        Returns
        -------
        array ``[rows, num_parameters]``

        Raises
        ------
        ValueError
            With batch statistics of a batch norm, whose rows have no loss of their own, and for a
            model whose loss is a Python function.
        """
        try:
            first, end = (0, self.rows) if rows is None else rows
        except (TypeError, ValueError):
            raise TypeError(
                f"[per_example_grads] expected rows to be (first, end), got {_check.shown(rows)}"
            ) from None
        first = _check.integer("per_example_grads", "rows[0]", first, 0)
        end = _check.integer("per_example_grads", "rows[1]", end, first)
        at = self._point("per_example_grads", theta)
        with self._alone("per_example_grads"):
            return self._core.example_gradients(first, end - first, at)

    def per_example_grad_norms(self, theta: ArrayLike | None = None) -> Array:
        """Euclidean norms of `per_example_grads`, without forming them (Goodfellow 2015).

        Parameters
        ----------
        theta : array ``[num_parameters]``, optional

        Returns
        -------
        array ``[rows]``

        Raises
        ------
        ValueError
            As `per_example_grads`.
        """
        at = self._point("per_example_grad_norms", theta)
        with self._alone("per_example_grad_norms"):
            return self._core.example_gradient_norms(at)

    # ---- arguments -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self, where: str) -> Iterator[None]:
        """One call at a time; a thread must not wait for itself."""
        if self._thread == threading.get_ident():
            raise RuntimeError(
                f"[{where}] expected an objective that is not in the middle of a call, got one "
                "that this thread is evaluating; a loss function or signal handler must not use it"
            )
        with self._lock:
            self._thread = threading.get_ident()
            try:
                yield
            finally:
                self._thread = None

    def _product(self, kind: str, v: ArrayLike, theta: ArrayLike | None) -> Array:
        direction, at = self._vector(kind, v), self._point(kind, theta)
        with self._alone(kind):
            return self._core.product(kind, direction, at)

    def _point(self, where: str, theta: ArrayLike | None) -> Array | None:
        if theta is None:
            return None
        return self._model._values(where, "theta", theta, (self.num_parameters,))

    def _vector(self, where: str, v: ArrayLike) -> Array:
        shape = (self.num_parameters,)
        return _finite(where, "v", self._model._values(where, "v", v, shape))


def _finite(where: str, name: str, values: Array) -> Array:
    if not np.isfinite(values).all():
        raise ValueError(f"[{where}] expected finite {name}, got NaN or infinity")
    return values
