"""`Model`: a compiled network with its parameters, optimizer state and place in the data."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from thalweg import _check, _core, _fit, losses, nn, optim
from thalweg._core import DeviceArray
from thalweg._fit import Data, History
from thalweg.callbacks import EarlyStopping

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    ArrayLike = npt.ArrayLike
    PathLike = str | os.PathLike[str]

    class OnGpu(Protocol):
        """An array in the memory of a GPU: of PyTorch, CuPy, Numba, JAX, or a `DeviceArray`."""

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]: ...


__all__ = ["History", "Model"]

_DEVICES = ("auto", "cpu", "cuda")
_log = logging.getLogger("thalweg")


class Model:
    """A network that trains and predicts.

    Parameters
    ----------
    network : nn.Sequential, a layer or a list of layers
        The layers. The last one should be linear: softmax and sigmoid belong to the loss.
    in_features : int
        Width of x.
    loss : str, Loss or callable, default "cross_entropy"
        What to minimize, see `thalweg.losses`. A function ``loss(prediction, target)`` gets arrays
        ``[rows, out]`` and the same rows of y, and returns the value and its gradient. The arrays
        are NumPy's on every device: on "cuda" an update waits in its middle for the function.
    optimizer : Optimizer or str, optional
        See `thalweg.optim`; None is ``optim.Adam()``.
    device : str, default "auto"
        "cpu", "cuda", or "auto": what the environment variable THALWEG_DEVICE says, else CUDA where
        it is usable, with one line in the log "thalweg" that says why when it is not.
    seed : int, default 0
        Initial parameters, order of the minibatches and dropout masks follow from it.
    dtype : str, default "float32"
        "float32" or "float64": type of parameters, gradients and outputs.
    averaging : optim.Polyak, optim.EMA or None
        Keep an average of the parameters, see `averaged`.
    clip_norm : float, optional
        Scale gradients down to this Euclidean norm.
    check_finite : str, default "loss"
        "loss": an update with a non-finite loss is not made. "gradients": nor one with a non-finite
        gradient, at the price of a separate pass over the gradients.
    matmul_precision : str, default "highest"
        Accuracy of matrix products in float32; float64 is not affected. "highest": that of float32
        arithmetic. "high": operands may be rounded to 16 significant bits. "medium": operands and
        stored activations are rounded to bfloat16 (8 bits); sums, parameters, gradients and losses
        stay float32. A device takes what is fastest at that accuracy or a better one: on the CPU,
        "high" computes as "highest", and "medium" is faster where the processor multiplies bfloat16
        (AVX512-BF16, AMX).
    threads : int, optional
        CPU threads; None takes all that the process may use (``THALWEG_NUM_THREADS``,
        ``OMP_NUM_THREADS``, affinity, cgroup). Results do not depend on it.

    Raises
    ------
    ValueError, TypeError
        For a description that does not fit together.
    DeviceError
        When the device is missing.

    Notes
    -----
    Methods that compute release the GIL. Methods that only read may run in many threads at once; a
    method that writes (`fit`, `step`, `set_parameters`, ...) makes them wait, and raises
    RuntimeError when another thread is writing the same model. Ctrl-C ends any of them within
    250 ms and leaves the model usable.

    Examples
    --------
    >>> import numpy as np
    >>> import thalweg as tw
    >>> from thalweg import nn, optim
    >>> x = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    >>> y = np.array([0, 1, 1, 0])
    >>> network = nn.Sequential(nn.Dense(16), nn.Tanh(), nn.Dense(2))
    >>> model = tw.Model(network, in_features=2, optimizer=optim.Adam(0.05), seed=0)
    >>> history = model.fit(x, y, epochs=100, batch_size=None, verbose=False)
    >>> model.predict_class(x)
    array([0, 1, 1, 0])
    """

    def __init__(
        self,
        network: nn.Layer | Iterable[nn.Layer],
        in_features: int,
        loss: str | losses.Loss | losses.LossFunction = "cross_entropy",
        optimizer: optim.Optimizer | str | None = None,
        *,
        device: str = "auto",
        seed: int = 0,
        dtype: str = "float32",
        averaging: optim.Averaging | None = None,
        clip_norm: float | None = None,
        check_finite: str = "loss",
        matmul_precision: str = "highest",
        threads: int | None = None,
    ) -> None:
        resolved = losses.resolve_loss(loss)
        if averaging is not None:
            hint = "optim.Polyak(), optim.EMA() or None"
            _check.instance("Model", "averaging", averaging, optim.Averaging, hint)
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
            raise TypeError(f"[Model] expected seed to be an integer, got {_check.shown(seed)}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"[Model] expected seed in [0, 2**64), got {seed}")
        description = {
            "in_features": _check.integer("Model", "in_features", in_features, 1),
            "dtype": _dtype_name(dtype),
            "seed": int(seed),
            "layers": _network(network).to_dict()["layers"],
            "loss": resolved.to_dict() if isinstance(resolved, losses.Loss) else {"type": "custom"},
            "optimizer": optim.resolve_optimizer(optimizer).to_dict(),
            "averaging": None if averaging is None else averaging.to_dict(),
            "clip_norm": None if clip_norm is None else _clip_norm(clip_norm),
            "check_finite": _check.choice(
                "Model", "check_finite", check_finite, ("loss", "gradients")
            ),
            "matmul_precision": _check.choice(
                "Model", "matmul_precision", matmul_precision, ("highest", "high", "medium")
            ),
        }
        core = _core.Model(json.dumps(description), *_place(device, threads))
        _note_device(device, core.device)
        self._adopt(core, None if isinstance(resolved, losses.Loss) else resolved)

    def _adopt(self, core: _core.Model, loss_function: losses.LossFunction | None) -> None:
        """Make this object the owner of an engine model."""
        self._core = core
        self._loss_function = loss_function
        self._description: dict[str, Any] = json.loads(core.description())

    @classmethod
    def _of(cls, core: _core.Model, loss_function: losses.LossFunction | None) -> Model:
        model = cls.__new__(cls)
        model._adopt(core, loss_function)
        return model

    # ---- what it is ------------------------------------------------------------------------------

    @property
    def description(self) -> dict[str, Any]:
        """The description of the model, all defaults filled in; `json.dumps` takes it."""
        copy: dict[str, Any] = json.loads(json.dumps(self._description))
        return copy

    @property
    def network(self) -> nn.Sequential:
        """The layers."""
        return nn.Sequential(*(nn.from_dict(layer) for layer in self._description["layers"]))

    @property
    def loss(self) -> losses.Loss | losses.LossFunction | None:
        """The loss; None for a loaded model whose loss was a Python function."""
        if self._custom:
            return self._loss_function
        return losses.from_dict(self._description["loss"])

    @property
    def loss_function(self) -> losses.LossFunction | None:
        """The loss if it is a Python function."""
        return self._loss_function

    @property
    def optimizer(self) -> optim.Optimizer:
        """The optimizer; `set_optimizer` replaces it."""
        return optim.from_dict(self._description["optimizer"])

    @property
    def fallbacks(self) -> dict[str, int]:
        """How often an `optim.Method` left its rule since it began, by name.

        The names are those of `MinimizeResult.fallbacks`, and ``"no_decrease"``: updates in which
        no step decreased the minibatch's loss, and the parameters stayed. Empty for elementwise
        optimizers.
        """
        return self._core.fallbacks()

    @property
    def averaging(self) -> optim.Averaging | None:
        """The averaging, or None."""
        value = self._description["averaging"]
        return None if value is None else optim.averaging_from_dict(value)

    @property
    def in_features(self) -> int:
        """Width of x."""
        return int(self._description["in_features"])

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self._core.out_features

    @property
    def num_parameters(self) -> int:
        """Number of trainable numbers."""
        return self._core.num_parameters

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of parameters and outputs."""
        return np.dtype(self._core.dtype)

    @property
    def device(self) -> str:
        """Where it runs: "cpu" or "cuda"."""
        return self._core.device

    @property
    def threads(self) -> int:
        """CPU threads."""
        return self._core.threads

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self._description["seed"])

    @property
    def steps_done(self) -> int:
        """Updates done over the life of the model."""
        return self._core.steps_done()

    @property
    def epochs_done(self) -> int:
        """Complete epochs over arrays done over the life of the model."""
        return self._core.epochs_done()

    @property
    def has_batch_norm(self) -> bool:
        """Whether training needs at least two rows per batch."""
        return bool(self._core.batches_tracked())

    @property
    def sums_loss(self) -> bool:
        """Whether the loss is a sum over rows rather than a mean."""
        return bool(self._description["loss"].get("reduction") == "sum")

    @property
    def _custom(self) -> bool:
        return bool(self._description["loss"]["type"] == "custom")

    def layout(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """Name, offset and shape of every parameter in the flat vector.

        Returns
        -------
        list of (str, int, tuple of int)
            In checkpoint order, without gaps.
        """
        return list(self._core.tensors)

    def summary(self) -> str:
        """A table of the layers: name, type, output width, parameters."""
        rows = [("layer", "type", "output", "parameters")]
        rows += [
            (name, kind, str(width), f"{size:,}") for name, kind, width, size in self._core.layers
        ]
        rows.append(("total", "", "", f"{self.num_parameters:,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {width:>{widths[2]}}  {size:>{widths[3]}}"
            for name, kind, width, size in rows
        )

    def plan(self) -> str:
        """What the engine runs: one line per planned node."""
        return self._core.plan_summary.rstrip("\n")

    def __repr__(self) -> str:
        kinds = ", ".join(kind for _, kind, _, _ in self._core.layers)
        return (
            f"Model({self.in_features} -> {self.out_features}: {kinds}; "
            f"{self.num_parameters:,} parameters, {self._core.dtype}, {self.device})"
        )

    # ---- training --------------------------------------------------------------------------------

    def fit(
        self,
        x: ArrayLike | Iterable[Any],
        y: ArrayLike | None = None,
        *,
        epochs: int = 1,
        batch_size: int | None = 32,
        validation_data: tuple[Any, ...] | None = None,
        sample_weight: ArrayLike | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        shuffle: str | bool = "epoch",
        accumulate: int = 1,
        early_stopping: EarlyStopping | None = None,
        max_steps: int | None = None,
        stop_at_loss: float | None = None,
        callbacks: Iterable[Any] = (),
        callback_every: int | None = None,
        verbose: bool | str = True,
    ) -> History:
        """Train. A second call continues where the first stopped.

        Parameters
        ----------
        x : array ``[rows, in_features]``, or an iterable of batches
            Any real dtype and strides; cast when it is read. Batches are tuples (x, y) or
            (x, y, sample_weight), each one update; `batch_size` and `shuffle` do not apply to them.
            A model on "cuda" takes every array of data from its GPU as well, by DLPack or
            ``__cuda_array_interface__``, and reads it where it lies.
        y : array ``[rows]`` or ``[rows, out_features]``
            Integer labels or probabilities for cross-entropy, values otherwise.
        epochs : int, default 1
            Passes over the data.
        batch_size : int or None, default 32
            Rows per minibatch, the last one may be smaller; None for all rows at once.
        validation_data : (x, y) or (x, y, sample_weight), optional
            Evaluated after every epoch.
        sample_weight : array ``[rows]``, optional
            Weights >= 0 of the rows in loss and accuracy. A weight below 1.2e-38, the smallest
            normal float32, counts as 0.
        class_weight : dict or "balanced", optional
            Factor on the weight of the rows by label; labels left out have 1, and a label that
            neither y nor the model has is an error. "balanced" is rows / (classes * rows of the
            class).
        shuffle : str or bool, default "epoch"
            "epoch" (or True): a new order every epoch; "stack": one order, copied once and read
            consecutively; "iid": rows drawn with replacement; False: the order of x.
        accumulate : int, default 1
            Minibatches whose gradients make one update.
        early_stopping : EarlyStopping, optional
        max_steps : int, optional
            Most updates in this call.
        stop_at_loss : float, optional
            Stop after an epoch whose training loss is below.
        callbacks : iterable of objects, default ()
            See `thalweg.callbacks`.
        callback_every : int, optional
            Updates between calls of on_step; None calls after each.
        verbose : bool or str, default True
            True: live bar and a line per epoch; "bar" or "table": one of them; False: silence.

        Returns
        -------
        History

        Raises
        ------
        ValueError
            Wrong shapes, non-finite x or y, labels out of range, no rows, one row with batch norm.
        TypeError
            Arrays of objects, complex numbers or text.
        NonFiniteError
            The loss became NaN or infinite; the model is at its last good update.
        KeyboardInterrupt
            Ctrl-C; the model is at its last update.

        Examples
        --------
        >>> model = Model(nn.Sequential(nn.Dense(1)), 1, "squared_error", optim.SGD(0.1))
        >>> x = np.linspace(-1, 1, 64)[:, None]
        >>> history = model.fit(x, 3 * x[:, 0] + 1, epochs=100, verbose=False)
        >>> model.predict([[2.0]]).round(2)
        array([[7.]], dtype=float32)
        """
        plain_callbacks, stopping = _split_stopping(callbacks, early_stopping)
        options = _fit.Options.check(
            epochs, batch_size, shuffle, accumulate, stopping, max_steps, stop_at_loss
        )
        validation = self._validation(validation_data)
        self._check_weights("fit", sample_weight, class_weight)
        total: int | None = None
        if y is not None:
            if class_weight is not None:
                y = self._on_host("fit", "y", y)
                sample_weight = self._on_host("fit", "sample_weight", sample_weight)
            labels = _fit.labels_of(self)
            data = Data(x, y, _fit.class_weighted(y, sample_weight, class_weight, labels))
            rows = _fit.rows_of(x)
            total = options.epochs * math.ceil(
                math.ceil(rows / (options.batch_size or max(rows, 1))) / options.accumulate
            )
            total = total if options.max_steps is None else min(total, options.max_steps)
        elif _fit.is_array(x):
            raise ValueError("[fit] expected targets y next to the array x, got None")
        elif sample_weight is not None:
            raise ValueError(
                "[fit] expected no sample_weight with an iterable of batches; "
                "give batches (x, y, sample_weight)"
            )
        progress = _fit.progress_bar(verbose, total)
        listener = _fit.Listener(self, plain_callbacks, progress, callback_every)
        try:
            listener.begin()
            if y is not None:
                _fit.fit_arrays(self, data, validation, options, listener)
            else:
                _fit.fit_batches(self, x, validation, class_weight, options, listener)  # type: ignore[arg-type]
            listener.end()
        finally:
            listener.close()
        if listener.history.skipped_rows:
            _log.warning(
                "fit skipped %d rows: a last minibatch of one row has no variance for batch norm",
                listener.history.skipped_rows,
            )
        return listener.history

    def step(
        self, x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> dict[str, Any]:
        """One update on one minibatch.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        y : array ``[rows]`` or ``[rows, out_features]``
        sample_weight : array ``[rows]``, optional

        Returns
        -------
        dict
            step (number of the update), loss and accuracy before it, lr, and gradient_norm when the
            model clips or checks gradients.

        Raises
        ------
        ValueError, TypeError, NonFiniteError
            As `fit`; the model is then as before.
        """
        self._check_weights("step", sample_weight, None)
        row = self._step(Data(x, y, sample_weight))
        del row["weight"]
        return row

    def _step(self, data: Data) -> dict[str, Any]:
        y, loss, targets = self._loss_arguments("step", data.x, data.y)
        return self._core.step(data.x, y, data.weights, loss, targets)

    def reset(self) -> None:
        """Parameters, optimizer state, averages and counters as after construction."""
        self._core.reset()

    def set_optimizer(self, optimizer: optim.Optimizer | str) -> None:
        """Continue with another optimizer; its state and its schedules start at zero.

        Parameters
        ----------
        optimizer : Optimizer or str
        """
        if optimizer is None:
            raise TypeError("[set_optimizer] expected an optimizer of thalweg.optim, got None")
        description = self.description
        description["optimizer"] = optim.resolve_optimizer(optimizer).to_dict()
        self._core.set_optimizer(json.dumps(description))
        self._description = json.loads(self._core.description())

    def recalibrate_batch_norm(self, x: ArrayLike, *, batch_size: int = 1024) -> None:
        """Set the running statistics of all batch norms to those of `x` under the present weights.

        The statistics are means over minibatches of the mean and the unbiased variance (Ioffe and
        Szegedy 2015, algorithm 2). Needed after the weights were averaged or set by hand.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        batch_size : int, default 1024
        """
        size = _check.integer("recalibrate_batch_norm", "batch_size", batch_size, 1)
        self._core.recalibrate_batch_norm(x, size)

    # ---- evaluation ------------------------------------------------------------------------------

    def evaluate(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        batch_size: int = 1024,
        top_k: int | None = None,
    ) -> dict[str, float]:
        """Loss and metrics with running batch-norm statistics and without dropout.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        y : array ``[rows]`` or ``[rows, out_features]``
        sample_weight : array ``[rows]``, optional
        batch_size : int, default 1024
            Most rows per pass; the result does not depend on it beyond rounding.
        top_k : int, optional
            With integer labels: also the share of rows whose label is among the k largest outputs.

        Returns
        -------
        dict
            loss; accuracy where the loss has classes; perplexity, the exponential of the mean
            negative log-likelihood, for cross-entropy; top_{k}_accuracy when asked for.
        """
        self._check_weights("evaluate", sample_weight, None)
        size = _check.integer("evaluate", "batch_size", batch_size, 1)
        metrics = self._evaluate(Data(x, y, sample_weight), size)
        weight = metrics.pop("weight")
        if self._description["loss"]["type"] == "cross_entropy":
            likelihood = metrics["loss"]
            if self._description["loss"]["label_smoothing"]:
                likelihood, _ = _core.ops.softmax_cross_entropy(
                    np.asarray(self.predict(x, batch_size=size)),
                    self._on_host("evaluate", "y", y),
                    self._on_host("evaluate", "sample_weight", sample_weight),
                    0.0,
                    self.threads,
                )
            metrics["perplexity"] = math.exp(likelihood) if likelihood < 700.0 else math.inf
        if top_k is not None:
            k = _check.integer("evaluate", "top_k", top_k, 1)
            outputs = np.asarray(self.predict(x, batch_size=size))
            labels = np.asarray(self._on_host("evaluate", "y", y))
            weights = self._on_host("evaluate", "sample_weight", sample_weight)
            metrics[f"top_{k}_accuracy"] = _top_k(outputs, labels, k, weights, weight)
        return metrics

    def _evaluate(self, data: Data, batch_size: int) -> dict[str, float]:
        y, loss, targets = self._loss_arguments("evaluate", data.x, data.y)
        return self._core.evaluate(data.x, y, data.weights, batch_size, loss, targets)

    @overload
    def predict(self, x: OnGpu, *, batch_size: int = ...) -> DeviceArray: ...
    @overload
    def predict(self, x: ArrayLike, *, batch_size: int = ...) -> Array: ...
    def predict(self, x: Any, *, batch_size: int = 1024) -> Array | DeviceArray:
        """Raw outputs of the last layer: logits or values.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        batch_size : int, default 1024
            Most rows per pass; a row's output does not depend on it, bit for bit.

        Returns
        -------
        array ``[rows, out_features]`` of the model's dtype
            A `DeviceArray` where x lies on the GPU.
        """
        out: Array | DeviceArray = self._core.predict(
            x, _check.integer("predict", "batch_size", batch_size, 1), False
        )
        return out

    @overload
    def predict_proba(self, x: OnGpu, *, batch_size: int = ...) -> DeviceArray: ...
    @overload
    def predict_proba(self, x: ArrayLike, *, batch_size: int = ...) -> Array: ...
    def predict_proba(self, x: Any, *, batch_size: int = 1024) -> Array | DeviceArray:
        """Probabilities: softmax of the outputs for cross-entropy, sigmoid for the binary losses.

        The exponential loss is least at half the log odds, so there it is the sigmoid of twice the
        output (Friedman, Hastie, Tibshirani 2000).

        Parameters
        ----------
        x : array ``[rows, in_features]``
        batch_size : int, default 1024

        Returns
        -------
        array ``[rows, out_features]``
            A `DeviceArray` where x lies on the GPU.

        Raises
        ------
        ValueError
            For losses without classes.
        """
        self._class_values("predict_proba")
        size = _check.integer("predict_proba", "batch_size", batch_size, 1)
        out: Array | DeviceArray = self._core.predict(x, size, True)
        return out

    def predict_class(self, x: ArrayLike, *, batch_size: int = 1024) -> npt.NDArray[np.int64]:
        """The most probable class of every row.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        batch_size : int, default 1024

        Returns
        -------
        int64 array
            Cross-entropy: labels ``[rows]``. Binary cross-entropy: 0 or 1; logistic and exponential
            loss: -1 or +1; ``[rows]`` for one output, else ``[rows, out_features]``.

        Raises
        ------
        ValueError
            For losses without classes.
        """
        values = self._class_values("predict_class")
        outputs = np.asarray(self.predict(x, batch_size=batch_size))
        if values is None:
            labels: npt.NDArray[np.int64] = np.argmax(outputs, axis=1)
            return labels
        classes = np.array(values, dtype=np.int64)[(outputs > 0).astype(np.intp)]
        return classes[:, 0] if self.out_features == 1 else classes

    def _class_values(self, where: str) -> tuple[int, int] | None:
        """The two classes of a binary loss; None for cross-entropy."""
        kind = self._description["loss"]["type"]
        if kind == "cross_entropy":
            return None
        classes = {"binary_cross_entropy": (0, 1), "logistic": (-1, 1), "exponential": (-1, 1)}
        if kind not in classes:
            raise ValueError(
                f"[{where}] expected a loss with classes (cross_entropy, {', '.join(classes)}), "
                f"got {kind}; use predict"
            )
        return classes[kind]

    @overload
    def forward(self, x: OnGpu, *, training: bool = ...) -> DeviceArray: ...
    @overload
    def forward(self, x: ArrayLike, *, training: bool = ...) -> Array: ...
    def forward(self, x: Any, *, training: bool = False) -> Array | DeviceArray:
        """Outputs of one pass over all rows of x, changing nothing.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        training : bool, default False
            Use the statistics of this batch and the dropout masks of the next update.

        Returns
        -------
        array ``[rows, out_features]``
            A `DeviceArray` where x lies on the GPU.
        """
        out: Array | DeviceArray
        if _check.flag("forward", "training", training):
            out = self.activations(x, training=True)[-1]
        else:
            out = self._core.predict(x, max(_fit.rows_of(x), 1), False)
        return out

    def activations(self, x: Any, *, training: bool = False) -> list[Any]:
        """Outputs of every top-level layer for one batch.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        training : bool, default False
            As in `forward`.

        Returns
        -------
        list of array ``[rows, width]``
            Each a `DeviceArray` where x lies on the GPU.
        """
        return self._core.activations(x, _check.flag("activations", "training", training))

    def loss_and_grad(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        training: bool = True,
        input_gradient: bool = False,
    ) -> tuple[float, Any] | tuple[float, Any, Any]:
        """Loss of one batch and its gradient, changing nothing, running statistics included.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        y : array ``[rows]`` or ``[rows, out_features]``
        sample_weight : array ``[rows]``, optional
        training : bool, default True
            Batch statistics and the dropout of the next update; False: the evaluation network.
        input_gradient : bool, default False
            Also return the gradient with respect to x.

        Returns
        -------
        loss : float
        gradient : array ``[num_parameters]``
            In the order of `layout`, of the model's dtype.
        dx : array ``[rows, in_features]``
            Only with `input_gradient`. Both arrays are a `DeviceArray` where x lies on the GPU.
        """
        metrics, gradient, dx = self._gradients(
            "loss_and_grad", Data(x, y, sample_weight), training, True, input_gradient
        )
        return (metrics["loss"], gradient, dx) if input_gradient else (metrics["loss"], gradient)

    def input_gradient(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        training: bool = False,
    ) -> Any:
        """Gradient of the loss with respect to x.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        y : array ``[rows]`` or ``[rows, out_features]``
        sample_weight : array ``[rows]``, optional
        training : bool, default False
            As in `loss_and_grad`.

        Returns
        -------
        array ``[rows, in_features]``
            A `DeviceArray` where x lies on the GPU.
        """
        data = Data(x, y, sample_weight)
        dx = self._gradients("input_gradient", data, training, False, True)[2]
        return dx

    def _gradients(
        self, where: str, data: Data, training: bool, parameters: bool, inputs: bool
    ) -> tuple[dict[str, float], Any, Any]:
        self._check_weights(where, data.weights, None)
        y, loss, targets = self._loss_arguments(where, data.x, data.y)
        return self._core.loss_and_gradient(
            data.x,
            y,
            data.weights,
            _check.flag(where, "training", training),
            parameters,
            _check.flag(where, "input_gradient", inputs),
            loss,
            targets,
        )

    # ---- values ----------------------------------------------------------------------------------

    @property
    def parameters(self) -> Array:
        """All parameters as one vector: a read-only copy ``[num_parameters]``, ordered as `layout`.

        Look-ahead optimizers store the point of the gradient; `theta` is the iterate.
        """
        return self._core.parameters()

    def device_parameters(self) -> DeviceArray:
        """All parameters of a model on "cuda", as `parameters`, without a way through the host.

        Returns
        -------
        DeviceArray ``[num_parameters]``
            A copy: training does not change it, and writing to it does not change the model.

        Raises
        ------
        DeviceError
            When the model is on the CPU.
        """
        return self._core.device_parameters()

    def to_device(self, array: ArrayLike) -> DeviceArray:
        """A copy of an array on the GPU of a model on "cuda", for many calls with the same data.

        Parameters
        ----------
        array : array of real numbers, any shape

        Returns
        -------
        DeviceArray
            Of the same shape and dtype.

        Raises
        ------
        DeviceError
            When the model is on the CPU.
        """
        return self._core.to_device(np.asarray(array))

    def theta(self) -> Array:
        """The iterate of the optimizer as one read-only vector ``[num_parameters]``."""
        return self._core.theta()

    def set_parameters(self, values: ArrayLike | Mapping[str, ArrayLike]) -> None:
        """Replace parameters; the optimizer state stays.

        Parameters
        ----------
        values : array ``[num_parameters]``, or dict from names to arrays
            A dict may leave parameters out. A vector on the GPU of the model, of its dtype, is
            copied there.

        Examples
        --------
        >>> model = Model(nn.Dense(2), 3)
        >>> model.set_parameters({"layers.0.bias": [1.0, -1.0]})
        >>> model.named_parameters()["layers.0.bias"]
        array([ 1., -1.], dtype=float32)
        """
        if not isinstance(values, Mapping):
            if _fit.on_gpu(values):
                self._core.set_device_parameters(values)
                return
            self._core.set_parameters(
                self._values("set_parameters", "values", values, (self.num_parameters,))
            )
            return
        flat = self.parameters.copy()
        self._fill("set_parameters", flat, self._core.tensors, values)
        self._core.set_parameters(flat)

    def named_parameters(self) -> dict[str, Array]:
        """Parameters by name: read-only arrays ``[out, in]`` and ``[width]``."""
        return _named(self.parameters, self._core.tensors)

    def named_state(self) -> dict[str, Array]:
        """Batch-norm statistics by name: running_mean, running_var and num_batches_tracked."""
        named = _named(self._core.state(), self._core.state_tensors)
        owners = dict.fromkeys(name.rsplit(".", 1)[0] for name in named)
        for owner, count in zip(owners, self._core.batches_tracked(), strict=True):
            named[f"{owner}.num_batches_tracked"] = np.array(count, dtype=np.int64)
        return named

    def set_state(self, values: Mapping[str, ArrayLike]) -> None:
        """Replace batch-norm statistics by name; names left out stay.

        Parameters
        ----------
        values : dict
            With the names of `named_state`.
        """
        tensors = self._core.state_tensors
        flat = self._core.state().copy()
        owners = list(dict.fromkeys(name.rsplit(".", 1)[0] for name, _, _ in tensors))
        counts = dict(zip(owners, self._core.batches_tracked(), strict=True))
        remaining = dict(values)
        for owner in owners:
            name = f"{owner}.num_batches_tracked"
            if name in remaining:
                count = np.asarray(remaining.pop(name))
                if count.size != 1 or count.dtype.kind not in "iu" or count.item() < 0:
                    raise ValueError(
                        f"[set_state] expected {name} to be an integer >= 0, got {count}"
                    )
                counts[owner] = int(count.item())
        self._fill("set_state", flat, tensors, remaining)
        self._core.set_state(flat, list(counts.values()))

    def optimizer_state(self) -> dict[str, dict[str, Array]]:
        """State of the optimizer: for every slot, read-only arrays by parameter name."""
        return {
            name: _named(self._core.slot(i), self._core.tensors)
            for i, name in enumerate(self._core.slot_names())
        }

    def averaged(self, x: ArrayLike | None = None, *, batch_size: int = 1024) -> Model:
        """A copy of the model whose parameters are the average (Polyak and Juditsky 1992, or EMA).

        Parameters
        ----------
        x : array ``[rows, in_features]``, optional
            Data to recompute batch-norm statistics on, which belong to other weights otherwise.
        batch_size : int, default 1024

        Returns
        -------
        Model

        Raises
        ------
        ValueError
            When the model was made without `averaging`.
        """
        average = self._core.average()
        if average is None:
            raise ValueError(
                "[averaged] expected a model with averaging, got one without; "
                "make it with Model(..., averaging=optim.EMA(0.999)) or optim.Polyak()"
            )
        model = self.copy()
        model._core.set_parameters(average)
        if x is not None:
            model.recalibrate_batch_norm(x, batch_size=batch_size)
        return model

    def copy(self) -> Model:
        """An independent model in the same state, optimizer and place in the data included."""
        return self._of(self._core.copy(), self._loss_function)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        return self.copy()

    def _values(self, where: str, name: str, values: ArrayLike, shape: tuple[int, ...]) -> Array:
        """`values` as a contiguous array of the model's dtype."""
        array = _check.array(where, name, self._on_host(where, name, values))
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"[{where}] expected {name} to hold real numbers, got dtype {array.dtype}"
            )
        if array.shape != shape:
            raise ValueError(f"[{where}] expected {name} with shape {shape}, got {array.shape}")
        return np.ascontiguousarray(array, dtype=self.dtype)

    def _fill(
        self,
        where: str,
        flat: Array,
        tensors: Iterable[tuple[str, int, tuple[int, ...]]],
        values: Mapping[str, ArrayLike],
    ) -> None:
        """Write named arrays into a flat vector."""
        known = {name: (offset, shape) for name, offset, shape in tensors}
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(f"[{where}] expected names out of {list(known)}, got {unknown}")
        for name, value in values.items():
            offset, shape = known[name]
            array = self._values(where, name, value, shape)
            flat[offset : offset + array.size] = array.ravel()

    # ---- files -----------------------------------------------------------------------------------

    def save(self, path: PathLike) -> None:
        """Write a checkpoint: a safetensors file with everything that training needs to go on.

        The file is written next to `path` and renamed: after a crash the old one is whole. A loss
        that is a Python function is not in it.

        Parameters
        ----------
        path : str or os.PathLike

        Raises
        ------
        CheckpointError
            When it cannot be written.
        """
        self._core.save(_path("save", path))

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        device: str = "auto",
        threads: int | None = None,
        loss: losses.LossFunction | None = None,
    ) -> Model:
        """Read a checkpoint of `save`; training goes on as if it had not stopped, bit for bit.

        Parameters
        ----------
        path : str or os.PathLike
        device : str, default "auto"
        threads : int, optional
        loss : callable, optional
            The loss function of a model whose loss was one.

        Returns
        -------
        Model

        Raises
        ------
        CheckpointError
            When the file is missing, not of thalweg, truncated or corrupt.
        ValueError
            When the device does not have the model's `matmul_precision`; a model of another
            precision can `load_weights`.
        """
        if loss is not None and not callable(loss):
            raise TypeError(f"[load] expected loss to be a function, got {_check.shown(loss)}")
        core = _core.Model.load(_path("load", path), *_place(device, threads))
        _note_device(device, core.device)
        model = cls._of(core, loss)
        if loss is not None and not model._custom:
            raise ValueError(
                f"[load] expected no loss for {os.fspath(path)}: its loss is "
                f"{model._description['loss']['type']}"
            )
        return model

    def load_weights(self, source: PathLike | Mapping[str, ArrayLike]) -> None:
        """Parameters and batch-norm statistics by name, from any safetensors file or a dict.

        The names are those of a PyTorch Sequential called ``layers``. The optimizer state stays.

        Parameters
        ----------
        source : str, os.PathLike or dict of arrays

        Raises
        ------
        CheckpointError
            When the file cannot be read or does not have every parameter in its shape.
        ValueError
            When the dict has unknown names or wrong shapes.
        """
        if not isinstance(source, Mapping):
            self._core.load_weights(_path("load_weights", source))
            return
        state_names = set(self.named_state())
        state = {name: value for name, value in source.items() if name in state_names}
        parameters = {name: value for name, value in source.items() if name not in state_names}
        flat = self.parameters.copy()
        self._fill("load_weights", flat, self._core.tensors, parameters)
        if state:
            self.set_state(state)
        self._core.set_parameters(flat)

    def __getstate__(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.safetensors")
            self._core.save(path)
            with open(path, "rb") as file:
                checkpoint = file.read()
        return {
            "checkpoint": checkpoint,
            "device": self.device,
            "threads": self.threads,
            "loss_function": self._loss_function,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.safetensors")
            with open(path, "wb") as file:
                file.write(state["checkpoint"])
            core = _core.Model.load(path, state["device"], state["threads"])
        self._adopt(core, state["loss_function"])

    # ---- checks ----------------------------------------------------------------------------------

    def _loss_arguments(self, where: str, x: Any, y: Any) -> tuple[Any, Any, Any]:
        """Targets for the engine, and the loss function with its targets where there is one."""
        if not self._custom:
            return y, None, None
        if self._loss_function is None:
            raise ValueError(
                f"[{where}] expected the loss function of this model, got none: it was loaded from "
                "a file; pass it to Model.load(path, loss=function)"
            )
        if y is None:
            raise ValueError(f"[{where}] expected targets y, got None")
        _check.unmasked(where, "y", y)
        targets = np.asarray(self._on_host(where, "y", y))
        rows = _fit.rows_of(x)
        if targets.ndim == 0 or len(targets) != rows:
            raise ValueError(
                f"[{where}] expected len(y) == len(x) ({rows}), got shape {targets.shape}"
            )
        return None, self._loss_function, targets

    def _on_host(self, where: str, name: str, value: Any) -> Any:
        """`value`, or its copy in host memory where it lies on the GPU: for what NumPy computes."""
        return self._core.to_host(value, where, name) if _fit.on_gpu(value) else value

    def _check_weights(self, where: str, sample_weight: Any, class_weight: Any) -> None:
        if self._custom and (sample_weight is not None or class_weight is not None):
            raise ValueError(
                f"[{where}] expected no weights with a loss function: put them into the target and "
                "apply them inside the function"
            )

    def _validation(self, validation_data: Any) -> Data | None:
        if validation_data is None:
            return None
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
            raise TypeError(
                "[fit] expected validation_data to be (x, y) or (x, y, sample_weight), "
                f"got {_check.shown(validation_data)}"
            )
        x, y, *weights = validation_data
        self._check_weights("fit", weights[0] if weights else None, None)
        return Data(x, y, weights[0] if weights else None)


def _network(network: Any) -> nn.Sequential:
    if isinstance(network, nn.Sequential):
        return network
    if isinstance(network, (list, tuple)):
        return nn.Sequential(*network)
    hint = "an nn.Sequential, a layer or a list of layers"
    return nn.Sequential(_check.instance("Model", "network", network, nn.Layer, hint))


def _dtype_name(dtype: Any) -> str:
    name = dtype if isinstance(dtype, str) else None
    if name is None:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = ""
    if name not in ("float32", "float64"):
        raise ValueError(f"[Model] expected dtype 'float32' or 'float64', got {dtype!r}")
    return name


def _clip_norm(value: float) -> float:
    norm = _check.real("Model", "clip_norm", value, 0.0)
    if norm == 0.0:
        raise ValueError(
            "[Model] expected clip_norm > 0 or None, got 0.0; nothing would be learned"
        )
    return norm


def _place(device: str, threads: int | None) -> tuple[str, int]:
    """Checked device and threads for the engine."""
    count = 0 if threads is None else _check.integer("Model", "threads", threads, 1)
    return _check.choice("Model", "device", device, _DEVICES), count


def _note_device(asked: str, got: str) -> None:
    if asked == "auto" and got == "cpu" and _log.isEnabledFor(logging.INFO):
        chosen = os.environ.get("THALWEG_DEVICE")
        why = "THALWEG_DEVICE says so" if chosen else _core.information()["why_not_cuda"]
        _log.info("device 'auto' is the CPU: %s", why)


def _path(where: str, path: Any) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(f"[{where}] expected a path, got {_check.shown(path)}") from None


def _named(flat: Array, tensors: Iterable[tuple[str, int, tuple[int, ...]]]) -> dict[str, Array]:
    """Views of the tensors in a flat vector."""
    return {
        name: flat[offset : offset + math.prod(shape)].reshape(shape)
        for name, offset, shape in tensors
    }


def _split_stopping(
    callbacks: Iterable[Any], early_stopping: EarlyStopping | None
) -> tuple[list[Any], EarlyStopping | None]:
    """Callbacks without `EarlyStopping`, which the engine does itself."""
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"[fit] expected callbacks to be a list, got {_check.shown(callbacks)}")
    others: list[Any] = []
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping):
            others.append(callback)
        elif early_stopping is None:
            early_stopping = callback
        else:
            raise ValueError("[fit] expected one EarlyStopping, got several")
    return others, early_stopping


def _top_k(outputs: Array, labels: Array, k: int, sample_weight: Any, weight: float) -> float:
    """Weighted share of rows whose label has fewer than k larger outputs."""
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        raise ValueError(
            f"[evaluate] expected integer labels with top_k, got y of shape {labels.shape} and "
            f"dtype {labels.dtype}"
        )
    own = outputs[np.arange(len(outputs)), labels]
    hits = (outputs > own[:, None]).sum(axis=1) < k
    weights = np.ones(len(hits)) if sample_weight is None else np.asarray(sample_weight)
    return float(hits @ weights / weight)
