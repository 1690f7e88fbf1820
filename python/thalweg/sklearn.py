"""Multilayer perceptrons with the scikit-learn estimator contract.

`MLPClassifier` and `MLPRegressor` are drop-in relatives of scikit-learn's own, with batch
normalization, dropout, every optimizer of thalweg, class and sample weights, validation data of the
caller's choice, and training in the native core. Importing this module needs scikit-learn.

Examples
--------
>>> from thalweg.datasets import load_digits
>>> from thalweg.sklearn import MLPClassifier
>>> x, y, x_test, y_test = load_digits()
>>> classifier = MLPClassifier((64,), max_epochs=20, random_state=0).fit(x, y)
>>> bool(classifier.score(x_test, y_test) > 0.95)
True
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _check, callbacks, nn, optim
from .model import Model

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import DataConversionWarning
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state, compute_sample_weight
    from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
    from sklearn.utils.validation import (
        _check_sample_weight,
        check_array,
        check_is_fitted,
        validate_data,
    )
except ImportError as error:
    raise ImportError(
        "[thalweg.sklearn] expected scikit-learn >= 1.6; install it with "
        "pip install 'thalweg[sklearn]'"
    ) from error

__all__ = ["MLPClassifier", "MLPRegressor"]

_SMALLEST_AUTOMATIC_BATCH, _LARGEST_AUTOMATIC_BATCH = 32, 128
_UPDATES_PER_EPOCH = 40
_SEED_BOUND = 2**31 - 1

Array = npt.NDArray[Any]


class _BaseMLP(BaseEstimator):  # type: ignore[misc]
    """What the classifier and the regressor share; the model lives in `model_`."""

    def __init__(
        self,
        hidden_layer_sizes: int | Iterable[int] = (128,),
        *,
        activation: str = "relu",
        batch_norm: bool = True,
        dropout: float = 0.0,
        optimizer: Any = "adam",
        learning_rate: Any = None,
        weight_decay: float = 0.0,
        batch_size: int | str = "auto",
        max_epochs: int = 100,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        warm_start: bool = False,
        random_state: Any = None,
        device: str = "auto",
        dtype: str = "float32",
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.batch_norm = batch_norm
        self.dropout = dropout
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.warm_start = warm_start
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.threads = threads
        self.verbose = verbose

    # ---- description --------------------------------------------------------------------------

    def _network(self, outputs: int) -> nn.Sequential:
        """Batch norm on the inputs, in place of a scaler, and before every activation."""
        sizes = self.hidden_layer_sizes
        widths = [sizes] if isinstance(sizes, (int, np.integer)) else list(sizes)
        # Cumulative statistics: exact for inputs, and free of the start that a moving average has.
        layers: list[nn.Layer] = [nn.BatchNorm(momentum=None)] if self.batch_norm else []
        for width in widths:
            layers.append(nn.Dense(width))
            if self.batch_norm:
                layers.append(nn.BatchNorm())
            layers.append(nn.activation(self.activation))
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
        layers.append(nn.Dense(outputs))
        return nn.Sequential(*layers)

    def _make_optimizer(self) -> Any:
        if not isinstance(self.optimizer, str):
            if self.learning_rate is not None or self.weight_decay:
                raise ValueError(
                    f"[{type(self).__name__}] expected learning_rate=None and weight_decay=0 "
                    f"beside an optimizer object, which has its own"
                )
            return self.optimizer
        settings: dict[str, Any] = {"type": self.optimizer}
        if self.learning_rate is not None:
            settings["lr"] = self.learning_rate
        if self.weight_decay:
            settings["weight_decay"] = self.weight_decay
        return optim.from_dict(settings)

    def _make_model(self, features: int, outputs: int, loss: str) -> Model:
        seed = int(check_random_state(self.random_state).randint(_SEED_BOUND))
        return Model(
            self._network(outputs),
            in_features=features,
            loss=loss,
            optimizer=self._make_optimizer(),
            device=self.device,
            seed=seed,
            dtype=self.dtype,
            threads=self.threads,
        )

    def _batch(self, rows: int) -> int:
        if self.batch_size == "auto":
            batch = min(rows, max(_SMALLEST_AUTOMATIC_BATCH, rows // _UPDATES_PER_EPOCH))
            batch = min(batch, _LARGEST_AUTOMATIC_BATCH)
            # Batch norm would leave out a last minibatch of one row.
            return batch + 1 if rows % batch == 1 else batch
        if isinstance(self.batch_size, str) or self.batch_size < 1:
            raise ValueError(
                f"[{type(self).__name__}] expected batch_size 'auto' or a number >= 1, "
                f"got {self.batch_size!r}"
            )
        return int(self.batch_size)

    # ---- training -----------------------------------------------------------------------------

    def _check_input(self, x: Any, y: Any, *, reset: bool, **options: Any) -> Any:
        for name, value in (("X", x), ("y", y)):
            _check.unmasked(type(self).__name__, name, value)
        return validate_data(
            self, x, y, reset=reset, dtype=(np.float32, np.float64), order="C", **options
        )

    def _train(
        self,
        x: Array,
        y: Array,
        weights: Array | None,
        epochs: int,
        validation: tuple[Any, ...] | None,
        stop_early: bool,
    ) -> None:
        """Fit `model_`, with rows held out for early stopping when no validation data is given."""
        if self.batch_norm and len(x) < 2:
            raise ValueError(
                f"[{type(self).__name__}] expected at least 2 rows for batch normalization, got "
                f"n_samples = {len(x)}; use batch_norm=False"
            )
        if stop_early and validation is None:
            x, y, weights, validation = self._hold_out(x, y, weights)
        stopping = None
        if stop_early:
            stopping = callbacks.EarlyStopping(patience=self.patience)
        history = self.model_.fit(
            x,
            y,
            epochs=epochs,
            batch_size=self._batch(len(x)),
            sample_weight=weights,
            validation_data=validation,
            early_stopping=stopping,
            verbose=self.verbose,
        )
        rows = history.epochs
        self.loss_curve_ = [*getattr(self, "loss_curve_", []), *[row["loss"] for row in rows]]
        if validation is not None:
            self.validation_loss_curve_ = [
                *getattr(self, "validation_loss_curve_", []),
                *[row["validation_loss"] for row in rows],
            ]
        self.n_iter_ = len(self.loss_curve_)
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else float("nan")

    def _hold_out(
        self, x: Array, y: Array, weights: Array | None
    ) -> tuple[Array, Array, Array | None, tuple[Any, ...]]:
        rows = np.arange(len(x))
        seed = int(check_random_state(self.random_state).randint(_SEED_BOUND))
        options: dict[str, Any] = {"test_size": self.validation_fraction, "random_state": seed}
        labels = y if y.ndim == 1 and y.dtype.kind in "iu" else None
        try:
            training, held = train_test_split(rows, stratify=labels, **options)
        except ValueError:
            # A class with a single row cannot be divided.
            training, held = train_test_split(rows, **options)
        if weights is None:
            return x[training], y[training], None, (x[held], y[held])
        return x[training], y[training], weights[training], (x[held], y[held], weights[held])

    def _restart(self) -> None:
        for name in ("loss_curve_", "validation_loss_curve_"):
            if hasattr(self, name):
                delattr(self, name)

    def _outputs(self, x: Any) -> Array:
        check_is_fitted(self, "model_")
        x = self._check_input(x, "no_validation", reset=False)
        outputs: Array = self.model_.predict(x)
        return outputs

    # ---- contract -----------------------------------------------------------------------------

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if "model_" in state:
            state = dict(state)
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "model.safetensors")
                state.pop("model_").save(path)
                with open(path, "rb") as file:
                    state["_checkpoint"] = file.read()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        checkpoint = state.pop("_checkpoint", None)
        super().__setstate__(state)
        if checkpoint is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "model.safetensors")
                with open(path, "wb") as file:
                    file.write(checkpoint)
                self.model_ = Model.load(path, device=self.device, threads=self.threads)


class MLPClassifier(ClassifierMixin, _BaseMLP):  # type: ignore[misc]
    """Classifier: a batch-normalized multilayer perceptron.

    Parameters
    ----------
    hidden_layer_sizes : int or iterable of int, default (128,)
        Width of each hidden layer; () is multinomial logistic regression.
    activation : str, default "relu"
        Also "leaky_relu", "elu", "gelu", "silu", "sigmoid", "tanh", "softplus", "identity".
    batch_norm : bool, default True
        Normalize the inputs and every hidden layer; the features then need no scaling.
    dropout : float in [0, 1), default 0
        Probability of dropping a hidden unit during training.
    optimizer : str or object of `thalweg.optim`, default "adam"
        Also "adamw", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "rmsprop_nesterov",
        "adadelta".
    learning_rate : float or schedule, optional
        Default: the optimizer's own.
    weight_decay : float, default 0
    batch_size : int or "auto", default "auto"
        "auto": about 40 minibatches per epoch, of 32 to 128 rows.
    max_epochs : int, default 100
    early_stopping : bool, default False
        Stop when the validation loss has not improved for `patience` epochs, and keep the best
        weights. Rows are held out for it unless `fit` receives `validation_data`.
    validation_fraction : float, default 0.1
    patience : int, default 10
    class_weight : dict, "balanced" or None, default None
        By class; "balanced": inversely proportional to the class frequencies.
    warm_start : bool, default False
        Let `fit` continue from the weights of the last call.
    random_state : int, RandomState or None, default None
        Initial weights, order of rows, dropout, and rows held out.
    device : {"auto", "cpu", "cuda"}
    dtype : {"float32", "float64"}
    threads : int, optional
        Default: all that the process may use.
    verbose : bool, default False

    Attributes
    ----------
    classes_ : ndarray [classes]
    loss_curve_ : list of float
        Training loss of each epoch; `validation_loss_curve_` where there is validation data.
    loss_ : float
        Last value of `loss_curve_`.
    n_iter_ : int
        Epochs trained.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        When fitted on a data frame with text column names.
    model_ : thalweg.Model

    Notes
    -----
    `y` may be a label per row, or a 0/1 matrix [rows, labels] (multilabel). Pickling stores the
    checkpoint. Batch normalization: Ioffe and Szegedy, 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from thalweg.sklearn import MLPClassifier
    >>> x = np.array([[0.0], [0.1], [0.9], [1.0]])
    >>> y = np.array(["low", "low", "high", "high"])
    >>> MLPClassifier((8,), random_state=0).fit(x, y).predict([[0.05], [0.95]]).tolist()
    ['low', 'high']
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Iterable[int] = (128,),
        *,
        activation: str = "relu",
        batch_norm: bool = True,
        dropout: float = 0.0,
        optimizer: Any = "adam",
        learning_rate: Any = None,
        weight_decay: float = 0.0,
        batch_size: int | str = "auto",
        max_epochs: int = 100,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        class_weight: Mapping[Any, float] | str | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        device: str = "auto",
        dtype: str = "float32",
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation=activation,
            batch_norm=batch_norm,
            dropout=dropout,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
            max_epochs=max_epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            patience=patience,
            warm_start=warm_start,
            random_state=random_state,
            device=device,
            dtype=dtype,
            threads=threads,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        validation_data: tuple[Any, Any] | None = None,
    ) -> MLPClassifier:
        """Train on rows X [rows, features] with labels y [rows], or 0/1 [rows, labels].

        Parameters
        ----------
        X : array-like of float
        y : array-like
        sample_weight : array-like [rows], optional
            Weights >= 0 in the loss.
        validation_data : (X, y), optional
            Evaluated after every epoch, and used by early stopping.

        Returns
        -------
        MLPClassifier
            Itself.
        """
        fresh = not (self.warm_start and hasattr(self, "model_"))
        X, y = self._check_input(X, y, reset=fresh, multi_output=True)
        check_classification_targets(y)
        if fresh:
            self._restart()
            self._set_classes(y, unique_labels(y))
            self.model_ = self._make_classifier(X.shape[1])
        targets = self._targets(y)
        weights = self._weights(y, sample_weight, X)
        validation = None
        if validation_data is not None:
            vx, vy = self._check_input(*validation_data, reset=False, multi_output=True)
            validation = (vx, self._targets(vy))
        self._train(X, targets, weights, self.max_epochs, validation, self.early_stopping)
        return self

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
    ) -> MLPClassifier:
        """Train one epoch on more rows; the first call needs all `classes` that will occur.

        Parameters
        ----------
        X : array-like [rows, features]
        y : array-like [rows] or 0/1 [rows, labels]
        classes : array-like, optional
        sample_weight : array-like [rows], optional
        """
        first = not hasattr(self, "model_")
        X, y = self._check_input(X, y, reset=first, multi_output=True)
        check_classification_targets(y)
        if first:
            if classes is None and type_of_target(y) != "multilabel-indicator":
                raise ValueError(
                    "[partial_fit] expected classes in the first call, got None; pass all labels "
                    "that will occur"
                )
            self._set_classes(y, unique_labels(y) if classes is None else np.unique(classes))
            self.model_ = self._make_classifier(X.shape[1])
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"[partial_fit] expected the classes of the first call {self.classes_.tolist()}, "
                f"got {np.unique(classes).tolist()}"
            )
        self._train(X, self._targets(y), self._weights(y, sample_weight, X), 1, None, False)
        return self

    def predict_proba(self, X: Any) -> Array:
        """Class probabilities, float64 [rows, classes]; multilabel: of each label."""
        check_is_fitted(self, "model_")
        x = self._check_input(X, "no_validation", reset=False)
        proba: Array = self.model_.predict_proba(x).astype(np.float64)
        if self._multilabel:
            return proba
        # The sums of float32 probabilities are off by a few units in the last place.
        return np.asarray(proba / proba.sum(axis=1, keepdims=True))

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.predict_proba(X)))

    def predict(self, X: Any) -> Array:
        """Classes [rows], or 0/1 [rows, labels]."""
        outputs = self._outputs(X)
        if self._multilabel:
            return (outputs > 0).astype(np.int64)
        return np.asarray(self.classes_[outputs.argmax(axis=1)])

    # ---- targets ------------------------------------------------------------------------------

    def _set_classes(self, y: Array, classes: Array) -> None:
        self._multilabel = type_of_target(y) == "multilabel-indicator"
        self.classes_ = classes
        if not self._multilabel and len(classes) < 2:
            raise ValueError(
                f"[{type(self).__name__}] expected at least 2 classes, got 1 class: "
                f"{classes.tolist()}"
            )

    def _make_classifier(self, features: int) -> Model:
        loss = "binary_cross_entropy" if self._multilabel else "cross_entropy"
        return self._make_model(features, len(self.classes_), loss)

    def _targets(self, y: Array) -> Array:
        if self._multilabel:
            if y.ndim != 2 or y.shape[1] != len(self.classes_):
                raise ValueError(
                    f"[{type(self).__name__}] expected {len(self.classes_)} labels per row, got "
                    f"shape {y.shape}"
                )
            return y.astype(np.float32)
        if y.ndim == 2 and y.shape[1] == 1:
            warnings.warn(
                "A column-vector y was passed when a 1d array was expected. Please change the "
                "shape of y to (n_samples,), for example using ravel().",
                DataConversionWarning,
                stacklevel=4,
            )
            y = y.ravel()
        if y.ndim != 1:
            raise ValueError(
                f"[{type(self).__name__}] expected one label per row, got shape {y.shape}"
            )
        position = np.searchsorted(self.classes_, y)
        position = np.minimum(position, len(self.classes_) - 1)
        if not np.array_equal(self.classes_[position], y):
            unknown = np.setdiff1d(y, self.classes_)
            raise ValueError(
                f"[{type(self).__name__}] expected labels of {self.classes_.tolist()}, got "
                f"{unknown.tolist()[:5]}"
            )
        return position.astype(np.int64)

    def _weights(self, y: Array, sample_weight: Any, x: Array) -> Array | None:
        if sample_weight is None and self.class_weight is None:
            return None
        weights = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
        if self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, y)
        return np.asarray(weights)


class MLPRegressor(RegressorMixin, _BaseMLP):  # type: ignore[misc]
    """Regressor: a batch-normalized multilayer perceptron with the squared or the Huber loss.

    The targets are standardized inside, so that their unit does not matter.

    Parameters
    ----------
    loss : {"squared_error", "huber"}, default "squared_error"
    hidden_layer_sizes, activation, batch_norm, dropout, optimizer, learning_rate, weight_decay, \
batch_size, max_epochs, early_stopping, validation_fraction, patience, warm_start, random_state, \
device, dtype, threads, verbose
        As in `MLPClassifier`.

    Attributes
    ----------
    loss_curve_, loss_, n_iter_, n_features_in_, feature_names_in_, model_
        As in `MLPClassifier`; losses are of the standardized targets.
    target_mean_, target_scale_ : ndarray [outputs]

    Examples
    --------
    >>> import numpy as np
    >>> from thalweg.sklearn import MLPRegressor
    >>> x = np.linspace(-1, 1, 200)[:, None]
    >>> y = 1000 * np.sin(3 * x[:, 0])
    >>> regressor = MLPRegressor((64, 64), learning_rate=0.01, random_state=0)
    >>> bool(regressor.fit(x, y).score(x, y) > 0.95)
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Iterable[int] = (128,),
        *,
        loss: str = "squared_error",
        activation: str = "relu",
        batch_norm: bool = True,
        dropout: float = 0.0,
        optimizer: Any = "adam",
        learning_rate: Any = None,
        weight_decay: float = 0.0,
        batch_size: int | str = "auto",
        max_epochs: int = 100,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        warm_start: bool = False,
        random_state: Any = None,
        device: str = "auto",
        dtype: str = "float32",
        threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation=activation,
            batch_norm=batch_norm,
            dropout=dropout,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=batch_size,
            max_epochs=max_epochs,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            patience=patience,
            warm_start=warm_start,
            random_state=random_state,
            device=device,
            dtype=dtype,
            threads=threads,
            verbose=verbose,
        )
        self.loss = loss

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        validation_data: tuple[Any, Any] | None = None,
    ) -> MLPRegressor:
        """Train on rows X [rows, features] with targets y [rows] or [rows, outputs].

        Parameters
        ----------
        X, y : array-like of float
        sample_weight : array-like [rows], optional
            Weights >= 0 in the loss.
        validation_data : (X, y), optional
            Evaluated after every epoch, and used by early stopping.

        Returns
        -------
        MLPRegressor
            Itself.
        """
        fresh = not (self.warm_start and hasattr(self, "model_"))
        X, y = self._check_input(X, y, reset=fresh, multi_output=True, y_numeric=True)
        if fresh:
            self._restart()
            self._start(X, y)
        validation = None
        if validation_data is not None:
            vx, vy = self._check_input(
                *validation_data, reset=False, multi_output=True, y_numeric=True
            )
            validation = (vx, self._scaled(vy))
        weights = self._weights(sample_weight, X)
        self._train(X, self._scaled(y), weights, self.max_epochs, validation, self.early_stopping)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Train one epoch on more rows; the first call fixes the scale of the targets.

        Parameters
        ----------
        X : array-like [rows, features]
        y : array-like [rows] or [rows, outputs]
        sample_weight : array-like [rows], optional
        """
        first = not hasattr(self, "model_")
        X, y = self._check_input(X, y, reset=first, multi_output=True, y_numeric=True)
        if first:
            self._start(X, y)
        self._train(X, self._scaled(y), self._weights(sample_weight, X), 1, None, False)
        return self

    def predict(self, X: Any) -> Array:
        """Values, float64 [rows], or [rows, outputs] when trained on such targets."""
        outputs = self._outputs(X).astype(np.float64)
        values = outputs * self.target_scale_ + self.target_mean_
        return np.asarray(values[:, 0] if self._single else values)

    def _start(self, x: Array, y: Array) -> None:
        if self.loss not in ("squared_error", "huber"):
            raise ValueError(
                f"[MLPRegressor] expected loss 'squared_error' or 'huber', got {self.loss!r}"
            )
        self._single = y.ndim == 1
        columns = check_array(y, ensure_2d=False, dtype=np.float64).reshape(len(y), -1)
        self.target_mean_ = columns.mean(axis=0)
        scale = columns.std(axis=0)
        self.target_scale_ = np.where(scale > 1e-12 * np.abs(self.target_mean_), scale, 1.0)
        self.target_scale_[self.target_scale_ == 0] = 1.0
        self.model_ = self._make_model(x.shape[1], columns.shape[1], self.loss)

    def _scaled(self, y: Array) -> Array:
        columns = y.reshape(len(y), -1)
        if columns.shape[1] != len(self.target_mean_):
            raise ValueError(
                f"[MLPRegressor] expected {len(self.target_mean_)} targets per row, got "
                f"{columns.shape[1]}"
            )
        return np.asarray((columns - self.target_mean_) / self.target_scale_, self.dtype)

    def _weights(self, sample_weight: Any, x: Array) -> Array | None:
        if sample_weight is None:
            return None
        weights = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
        return np.asarray(weights)
