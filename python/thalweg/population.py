"""`Population`: many networks of one architecture, trained side by side, one per thread."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from thalweg import _check, _core, _fit, losses, nn, optim
from thalweg._core import CheckpointError, DeviceArray, NonFiniteError
from thalweg._fit import History
from thalweg.callbacks import EarlyStopping
from thalweg.model import Model

if TYPE_CHECKING:
    import numpy.typing as npt

    from thalweg.model import OnGpu

    Array = npt.NDArray[Any]
    ArrayLike = npt.ArrayLike
    PathLike = str | os.PathLike[str]

__all__ = ["Population", "PopulationHistory"]

_INDEX = "population.json"
_FORMAT = "thalweg population 1"
_log = logging.getLogger("thalweg")


@dataclass
class PopulationHistory(Sequence[History]):
    """What one call of `Population.fit` did: a sequence of the histories of the networks.

    Attributes
    ----------
    members : list of History
        One per network. ``stopped_because`` is also "non_finite".
    errors : dict of int to NonFiniteError
        By number, of the networks that stopped because they became non-finite.
    seconds : float
        Of the whole call.

    Examples
    --------
    >>> rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}]
    >>> history = PopulationHistory([History(rows, "epochs"), History(rows[:1], "stop_at_loss")])
    >>> history["loss"]
    array([[0.5 , 0.25],
           [0.5 ,  nan]])
    >>> history[1].stopped_because
    'stop_at_loss'
    """

    members: list[History] = field(default_factory=list)
    errors: dict[int, NonFiniteError] = field(default_factory=dict)
    seconds: float = 0.0

    @overload
    def __getitem__(self, key: int) -> History: ...
    @overload
    def __getitem__(self, key: slice) -> list[History]: ...
    @overload
    def __getitem__(self, key: str) -> Array: ...
    def __getitem__(self, key: int | slice | str) -> History | list[History] | Array:
        """The history of one network, or a column as an array ``[networks, epochs]``.

        Columns are float64; NaN stands after the last epoch of a network that stopped early.
        """
        if not isinstance(key, str):
            return self.members[key]
        longest = max((len(member) for member in self.members), default=0)
        column = np.full((len(self.members), longest), np.nan)
        for row, member in zip(column, self.members, strict=True):
            if member.epochs:
                row[: len(member)] = member[key]
        return column

    def __len__(self) -> int:
        return len(self.members)

    @property
    def samples_per_second(self) -> float:
        """Rows that all networks visited in training, per second of the whole call."""
        visited = sum(row["samples_per_second"] * row["seconds"] for m in self for row in m.epochs)
        return float(visited / max(self.seconds, 1e-9))


class Population:
    """Networks of one architecture that train side by side, each as if it were alone.

    One native call trains them all, one network per thread. What becomes of a network is what
    `Model.fit` would have made of it, bit for bit, whatever the number of threads.

    Parameters
    ----------
    network : nn.Sequential, a layer, a list of layers or a Model
        The architecture. A `Model` stands for its network and for every argument that is not given;
        its parameters are not taken over.
    n : int
        Number of networks.
    in_features : int
        Width of x. Needed unless `network` is a Model.
    loss : str or Loss, optional
        As for `Model`, default "cross_entropy"; not a Python function.
    optimizer : Optimizer, str or sequence of n of them, optional
        As for `Model`.
    seeds : sequence of n int, optional
        Seeds of the networks, default 0 .. n - 1.
    device, dtype, averaging, clip_norm, check_finite, matmul_precision
        As for `Model`.
    threads : int, optional
        CPU threads; None takes all that the process may use.
    **hyperparameters
        Fields of the optimizer other than groups, such as ``lr`` or ``momentum``: a sequence of n
        values, or one value for all.

    Raises
    ------
    ValueError, TypeError
        As `Model`, and for a sequence that does not have n values.

    Notes
    -----
    Where a few large networks leave threads idle, they train one after another on all threads
    instead: the same bits sooner.

    Examples
    --------
    >>> import numpy as np
    >>> import thalweg as tw
    >>> from thalweg import nn, optim
    >>> x = np.random.default_rng(0).normal(size=(256, 2))
    >>> y = (x[:, 0] * x[:, 1] > 0).astype(int)
    >>> network = nn.Sequential(nn.Dense(16), nn.Tanh(), nn.Dense(2))
    >>> rates = [0.001, 0.01, 0.1, 1.0]
    >>> population = tw.Population(network, 4, 2, optimizer=optim.Momentum(), lr=rates)
    >>> history = population.fit(x, y, epochs=20, verbose=False)
    >>> history["loss"].shape
    (4, 20)
    >>> population.best(x, y).optimizer.lr
    0.1
    """

    def __init__(
        self,
        network: nn.Layer | Iterable[nn.Layer] | Model,
        n: int,
        in_features: int | None = None,
        loss: str | losses.Loss | None = None,
        optimizer: optim.Optimizer | str | Sequence[optim.Optimizer | str] | None = None,
        *,
        seeds: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
        device: str | None = None,
        dtype: str | None = None,
        averaging: optim.Averaging | None = None,
        clip_norm: float | None = None,
        check_finite: str | None = None,
        matmul_precision: str | None = None,
        threads: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        count = _check.integer("Population", "n", n, 1)
        given: dict[str, Any] = {
            "in_features": in_features,
            "loss": loss,
            "optimizer": optimizer,
            "device": device,
            "dtype": dtype,
            "averaging": averaging,
            "clip_norm": clip_norm,
            "check_finite": check_finite,
            "matmul_precision": matmul_precision,
            "threads": threads,
        }
        options = {name: value for name, value in given.items() if value is not None}
        if isinstance(network, Model):
            options = {**_options_of(network), **options}
            network = network.network
        elif in_features is None:
            raise TypeError("[Population] expected in_features, got None; it is the width of x")
        elif not isinstance(network, nn.Layer) and isinstance(network, Iterable):
            network = list(network)
        if not isinstance(options.get("loss", ""), (str, losses.Loss)):
            raise TypeError(
                "[Population] expected a loss of thalweg.losses, got "
                f"{_check.shown(options['loss'])}; a Python function would hold all networks up: "
                "train them with Model"
            )
        optimizers = _optimizers(count, options.pop("optimizer", None), hyperparameters)
        numbers = range(count) if seeds is None else _values("seeds", seeds, count)
        self._adopt(
            [
                Model(network, optimizer=each, seed=seed, **options)
                for each, seed in zip(optimizers, numbers, strict=True)
            ]
        )

    def _adopt(self, models: list[Model], threads: int | None = None) -> None:
        self._models = models
        self._threads = models[0].threads if threads is None else threads

    @classmethod
    def of(cls, models: Iterable[Model], *, threads: int | None = None) -> Population:
        """A population of existing models, which it shares.

        Parameters
        ----------
        models : iterable of Model
            Of one architecture, loss and dtype; at least one, none of them twice.
        threads : int, optional
            CPU threads; None: those of the first model.

        Returns
        -------
        Population

        Examples
        --------
        >>> models = [Model(nn.Dense(2), 3, seed=seed) for seed in range(3)]
        >>> Population.of(models)[2] is models[2]
        True
        """
        members = list(models)
        hint = "a thalweg.Model"
        for member in members:
            _check.instance("Population.of", "a model", member, Model, hint)
        if not members:
            raise ValueError("[Population.of] expected at least one model, got none")
        if len(set(map(id, members))) < len(members):
            raise ValueError("[Population.of] expected different models, got one of them twice")
        first = _architecture(members[0])
        for i, member in enumerate(members):
            if member.loss_function is not None or member.loss is None:
                raise TypeError(
                    f"[Population.of] expected losses of thalweg.losses, got a function (model {i})"
                )
            if _architecture(member) != first:
                raise ValueError(
                    "[Population.of] expected models of one architecture, loss and dtype, "
                    f"got {members[0]} and {member} (model {i})"
                )
        population = cls.__new__(cls)
        count = None if threads is None else _check.integer("Population", "threads", threads, 1)
        population._adopt(members, count)
        return population

    # ---- a sequence of models --------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._models)

    @overload
    def __getitem__(self, index: int) -> Model: ...
    @overload
    def __getitem__(self, index: slice) -> Population: ...
    def __getitem__(self, index: int | slice) -> Model | Population:
        """One network, or a population of some; the models themselves, not copies."""
        if isinstance(index, slice):
            return self.of(self._models[index], threads=self._threads)
        return self._models[index]

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)

    def __repr__(self) -> str:
        return f"Population({len(self)} x {self._models[0]!r})"

    @property
    def models(self) -> list[Model]:
        """The networks."""
        return list(self._models)

    @property
    def threads(self) -> int:
        """CPU threads."""
        return self._threads

    @property
    def _cores(self) -> list[_core.Model]:
        return [model._core for model in self._models]

    # ---- training --------------------------------------------------------------------------------

    def fit(
        self,
        x: ArrayLike | Sequence[ArrayLike],
        y: ArrayLike | Sequence[ArrayLike],
        *,
        rows: Sequence[ArrayLike] | None = None,
        epochs: int = 1,
        batch_size: int | None = 32,
        validation_data: tuple[Any, ...] | None = None,
        sample_weight: ArrayLike | Sequence[ArrayLike] | None = None,
        shuffle: str | bool = "epoch",
        accumulate: int = 1,
        early_stopping: EarlyStopping | None = None,
        max_steps: int | None = None,
        stop_at_loss: float | None = None,
        on_epoch: Callable[[int, dict[str, Any]], object] | None = None,
        non_finite: str = "stop",
        verbose: bool = True,
    ) -> PopulationHistory:
        """Train all networks. A second call continues where the first stopped.

        Parameters
        ----------
        x : array ``[rows, in_features]``, or a list of n of them
            Shared by all networks, or own rows for each. Networks on "cuda" take x, y and
            sample_weight from their GPU too.
        y : array ``[rows]`` or ``[rows, out_features]``, or a list of n of them
            As in `Model.fit`. A list of arrays always holds one for each network.
        rows : sequence of n index arrays or boolean masks, optional
            The rows of x, y and sample_weight that each network trains on, in this order.
        sample_weight : array ``[rows]``, or a list of n of them, optional
        validation_data : (x, y) or (x, y, sample_weight), optional
            Arrays for all networks or lists of n. Evaluated after every epoch.
        epochs, batch_size, shuffle, accumulate, early_stopping, max_steps, stop_at_loss
            As in `Model.fit`, for each network.
        on_epoch : callable, optional
            ``on_epoch(number, logs)`` after each epoch of each network, with its row of the
            history; returning True stops this network. Runs in the thread that trains the network,
            one call at a time, and may use the network of that number, not the others.
        non_finite : str, default "stop"
            A network whose loss becomes NaN or infinite stops at its last good update and the
            others go on. "stop": with a line in the log "thalweg" and an entry in the history's
            ``errors``; "raise": then the error of the first one is raised.
        verbose : bool, default True
            Show a live bar on a terminal.

        Returns
        -------
        PopulationHistory

        Raises
        ------
        ValueError, TypeError
            As `Model.fit`, before any network has changed.
        NonFiniteError
            With ``non_finite="raise"``, when all other networks are done.
        KeyboardInterrupt
            Ctrl-C; each network is at its last update.

        Examples
        --------
        >>> x = np.linspace(-1, 1, 64)[:, None]
        >>> noise = np.random.default_rng(0)
        >>> population = Population(nn.Dense(1), 3, 1, "squared_error", optim.SGD(0.1))
        >>> draws = [noise.integers(0, 64, 64) for _ in range(3)]  # the bootstrap
        >>> history = population.fit(x, 3 * x[:, 0] + 1, rows=draws, epochs=100, verbose=False)
        >>> population.predict([[2.0]]).round(2).ravel()
        array([7., 7., 7.], dtype=float32)
        """
        options = _fit.Options.check(
            epochs, batch_size, shuffle, accumulate, early_stopping, max_steps, stop_at_loss
        )
        rule = options.early_stopping
        stopping = (
            None
            if rule is None
            else (rule.monitor, rule.patience, rule.min_delta, rule.restore_best)
        )
        _check.choice("fit", "non_finite", non_finite, ("stop", "raise"))
        if on_epoch is not None and not callable(on_epoch):
            raise TypeError(f"[fit] expected on_epoch to be callable, got {_check.shown(on_epoch)}")
        arrays = self._arrays("fit", x, y, sample_weight)
        chosen = self._rows(rows, arrays[0])
        validation = self._validation(validation_data)
        start = time.perf_counter()
        with _Bar(_check.flag("fit", "verbose", verbose), len(self), options.epochs) as bar:
            results = _core.fit_members(
                models=self._cores,
                threads=self._threads,
                arrays=arrays,
                rows=chosen,
                validation_arrays=validation,
                epochs=options.epochs,
                batch_size=options.batch_size,
                shuffle=options.shuffle,
                accumulate=options.accumulate,
                early_stopping=stopping,
                max_steps=options.max_steps,
                stop_at_loss=options.stop_at_loss,
                on_epoch=bar.listen(on_epoch),
            )
        history = PopulationHistory(seconds=time.perf_counter() - start)
        for number, result in enumerate(results):
            failure = result.pop("failure")
            history.members.append(History(**result))
            if failure is not None:
                history.errors[number] = _non_finite(number, *failure)
        self._report(history, non_finite)
        return history

    def _report(self, history: PopulationHistory, non_finite: str) -> None:
        for error in history.errors.values():
            if non_finite == "raise":
                raise error
            _log.warning("%s", error)
        skipped = sum(member.skipped_rows for member in history)
        if skipped:
            _log.warning(
                "fit skipped %d rows: a last minibatch of one row has no variance for batch norm",
                skipped,
            )

    def reset(self) -> None:
        """Parameters, optimizer state and counters of all networks as after construction."""
        for model in self._models:
            model.reset()

    # ---- evaluation ------------------------------------------------------------------------------

    def evaluate(
        self,
        x: ArrayLike | Sequence[ArrayLike],
        y: ArrayLike | Sequence[ArrayLike],
        *,
        sample_weight: ArrayLike | Sequence[ArrayLike] | None = None,
        batch_size: int = 1024,
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Loss and accuracy of every network.

        Parameters
        ----------
        x, y, sample_weight
            Arrays for all networks or lists of n, as in `fit`.
        batch_size : int, default 1024

        Returns
        -------
        dict of float64 array ``[n]``
            loss; accuracy where the loss has classes. Equal to those of `Model.evaluate`.
        """
        size = _check.integer("evaluate", "batch_size", batch_size, 1)
        arrays = self._arrays("evaluate", x, y, sample_weight)
        metrics = _core.evaluate_members(self._cores, self._threads, arrays, size)
        return {name: np.array([row[name] for row in metrics]) for name in metrics[0]}

    @overload
    def predict(self, x: OnGpu, *, batch_size: int = ...) -> DeviceArray: ...
    @overload
    def predict(self, x: ArrayLike, *, batch_size: int = ...) -> Array: ...
    def predict(self, x: Any, *, batch_size: int = 1024) -> Array | DeviceArray:
        """Raw outputs of every network: logits or values.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        batch_size : int, default 1024

        Returns
        -------
        array ``[n, rows, out_features]`` of the networks' dtype
            A `DeviceArray` where x lies on the GPU.
        """
        size = _check.integer("predict", "batch_size", batch_size, 1)
        out: Array | DeviceArray = _core.predict_members(self._cores, self._threads, x, size, False)
        return out

    @overload
    def predict_proba(self, x: OnGpu, *, batch_size: int = ...) -> DeviceArray: ...
    @overload
    def predict_proba(self, x: ArrayLike, *, batch_size: int = ...) -> Array: ...
    def predict_proba(self, x: Any, *, batch_size: int = 1024) -> Array | DeviceArray:
        """Probabilities of every network; their mean over axis 0 is that of the ensemble.

        Parameters
        ----------
        x : array ``[rows, in_features]``
        batch_size : int, default 1024

        Returns
        -------
        array ``[n, rows, out_features]``
            A `DeviceArray` where x lies on the GPU.

        Raises
        ------
        ValueError
            For losses without classes.
        """
        self._models[0]._class_values("predict_proba")
        size = _check.integer("predict_proba", "batch_size", batch_size, 1)
        out: Array | DeviceArray = _core.predict_members(self._cores, self._threads, x, size, True)
        return out

    def best(
        self,
        x: ArrayLike | Sequence[ArrayLike],
        y: ArrayLike | Sequence[ArrayLike],
        *,
        sample_weight: ArrayLike | Sequence[ArrayLike] | None = None,
        monitor: str = "loss",
    ) -> Model:
        """The network that does best on some data.

        Parameters
        ----------
        x, y, sample_weight
            As in `evaluate`.
        monitor : str, default "loss"
            "loss" (lowest) or "accuracy" (highest). NaN never wins; the first one of equals does.

        Returns
        -------
        Model
            The network itself, not a copy.
        """
        _check.choice("best", "monitor", monitor, ("loss", "accuracy"))
        metrics = self.evaluate(x, y, sample_weight=sample_weight)
        if monitor not in metrics:
            raise ValueError(
                "[best] expected a loss with classes to compare accuracies; use monitor='loss'"
            )
        scores = -metrics["loss"] if monitor == "loss" else metrics["accuracy"]
        return self._models[int(np.argmax(np.where(np.isnan(scores), -np.inf, scores)))]

    # ---- files -----------------------------------------------------------------------------------

    def save(self, folder: PathLike) -> None:
        """Write a checkpoint of every network, which `Model.load` reads too, and an index.

        The index is replaced last: after a crash the folder holds the old population or the new.

        Parameters
        ----------
        folder : str or os.PathLike
            Made if it is missing; the files of an older population in it are removed.

        Raises
        ------
        CheckpointError
            When it cannot be written.
        """
        try:
            path = os.fsdecode(folder)
            os.makedirs(path, exist_ok=True)
            outdated = _read_index(path) if os.path.exists(os.path.join(path, _INDEX)) else []
            generation = secrets.token_hex(4)
            names = [f"{generation}-{i:05d}.safetensors" for i in range(len(self))]
            for name, model in zip(names, self._models, strict=True):
                model.save(os.path.join(path, name))
            temporary = os.path.join(path, f"{generation}.tmp")
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump({"format": _FORMAT, "members": names}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, os.path.join(path, _INDEX))
            for name in outdated:
                if os.path.exists(os.path.join(path, name)):
                    os.remove(os.path.join(path, name))
        except OSError as error:
            raise CheckpointError(
                f"[save] expected a folder to write to at {os.fspath(folder)!r}, got {error}"
            ) from error

    @classmethod
    def load(
        cls, folder: PathLike, *, device: str = "auto", threads: int | None = None
    ) -> Population:
        """Read what `save` wrote; training goes on as if it had not stopped, bit for bit.

        Parameters
        ----------
        folder : str or os.PathLike
        device : str, default "auto"
        threads : int, optional

        Returns
        -------
        Population

        Raises
        ------
        CheckpointError
            When the index or a file is missing or corrupt.
        """
        path = os.fsdecode(folder)
        names = _read_index(path)
        return cls.of(
            Model.load(os.path.join(path, name), device=device, threads=threads) for name in names
        )

    # ---- arguments -------------------------------------------------------------------------------

    def _arrays(
        self, where: str, x: Any, y: Any, sample_weight: Any
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """For the engine: for each argument no array, one for all networks, or one for each."""
        if y is None:
            raise ValueError(f"[{where}] expected targets y, got None")
        return (
            self._each(where, "x", x, 2),
            self._each(where, "y", y, 1),
            self._each(where, "sample_weight", sample_weight, 1),
        )

    def _each(self, where: str, name: str, value: Any, least_dimensions: int) -> list[Any]:
        if value is None:
            return []
        own = isinstance(value, (list, tuple)) and all(
            _fit.is_array(entry) and len(getattr(entry, "shape", ())) >= least_dimensions
            for entry in value
        )
        if not own or not value:
            return [value]
        if len(value) != len(self):
            raise ValueError(
                f"[{where}] expected one array for all or a list of {len(self)} for {name}, "
                f"got {len(value)} arrays"
            )
        return list(value)

    def _rows(self, rows: Any, xs: list[Any]) -> list[npt.NDArray[np.int64]]:
        if rows is None:
            return []
        if len(rows) != len(self):
            raise ValueError(
                f"[fit] expected rows to hold {len(self)} index arrays, one per network, "
                f"got {len(rows)}"
            )
        chosen: list[npt.NDArray[np.int64]] = []
        for i, entry in enumerate(rows):
            index = np.asarray(entry)
            total = _fit.rows_of(xs[i if len(xs) > 1 else 0])
            if index.ndim != 1 or index.dtype.kind not in "biu" or index.size == 0:
                raise ValueError(
                    f"[fit] expected rows[{i}] to be indices or a mask, got shape {index.shape} "
                    f"and dtype {index.dtype}"
                )
            if index.dtype.kind == "b":
                if len(index) != total or not index.any():
                    raise ValueError(
                        f"[fit] expected rows[{i}] to be a mask of {total} rows that keeps one at "
                        f"least, got {len(index)} entries, {int(index.sum())} of them true"
                    )
                index = np.flatnonzero(index)
            chosen.append(np.ascontiguousarray(index, dtype=np.int64))
        return chosen

    def _validation(self, data: Any) -> tuple[list[Any], list[Any], list[Any]]:
        if data is None:
            return [], [], []
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise TypeError(
                "[fit] expected validation_data to be (x, y) or (x, y, sample_weight), "
                f"got {_check.shown(data)}"
            )
        return self._arrays("fit", data[0], data[1], data[2] if len(data) == 3 else None)


class _Bar:
    """A bar on standard error that counts the epochs of all networks."""

    def __init__(self, wanted: bool, members: int, epochs: int) -> None:
        self._tqdm: Any = None
        self._done = 0
        self._next = 0.0
        if wanted and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._tqdm = tqdm(
                total=members * epochs, unit=" epochs", leave=False, dynamic_ncols=True
            )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tqdm is not None:
            self._tqdm.close()

    def listen(
        self, on_epoch: Callable[[int, dict[str, Any]], object] | None
    ) -> Callable[[int, dict[str, Any]], object] | None:
        """`on_epoch` that also moves the bar."""
        if self._tqdm is None:
            return on_epoch

        def moved(number: int, row: dict[str, Any]) -> object:
            self._done += 1
            if time.perf_counter() >= self._next:
                self._tqdm.update(self._done - self._tqdm.n)
                self._next = time.perf_counter() + 0.1
            return None if on_epoch is None else on_epoch(number, row)

        return moved


def _options_of(model: Model) -> dict[str, Any]:
    """Arguments of `Model` that make a model like this one."""
    description = model.description
    return {
        "in_features": model.in_features,
        "loss": model.loss,
        "optimizer": model.optimizer,
        "device": model.device,
        "dtype": description["dtype"],
        "averaging": model.averaging,
        "clip_norm": description["clip_norm"],
        "check_finite": description["check_finite"],
        "matmul_precision": description["matmul_precision"],
        "threads": model.threads,
    }


def _architecture(model: Model) -> dict[str, Any]:
    return {key: model.description[key] for key in ("in_features", "dtype", "layers", "loss")}


def _values(name: str, value: Any, n: int) -> list[Any]:
    """`value` for each of n networks."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * n
    if len(value) != n:
        raise ValueError(f"[Population] expected {n} values of {name}, got {len(value)}")
    return list(value)


def _optimizers(n: int, optimizer: Any, hyperparameters: dict[str, Any]) -> list[optim.Optimizer]:
    resolved = [optim.resolve_optimizer(each) for each in _values("optimizer", optimizer, n)]
    columns = {name: _values(name, value, n) for name, value in hyperparameters.items()}
    optimizers: list[optim.Optimizer] = []
    for i, each in enumerate(resolved):
        known = {entry.name for entry in dataclasses.fields(each)} - {"groups"}
        unknown = sorted(columns.keys() - known)
        if unknown:
            raise TypeError(
                f"[Population] expected hyper-parameters of {type(each).__name__} "
                f"({', '.join(sorted(known))}), got {', '.join(unknown)}"
            )
        changed = {name: column[i] for name, column in columns.items()}
        optimizers.append(dataclasses.replace(each, **changed))
    return optimizers


def _non_finite(number: int, message: str, step: int, layer: str) -> NonFiniteError:
    error = NonFiniteError(f"{message} (network {number})")
    error.step, error.layer = step, layer
    return error


def _read_index(folder: str) -> list[str]:
    """Names of the files of a population."""
    path = os.path.join(folder, _INDEX)
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
        names = index["members"]
        sound = index["format"] == _FORMAT and bool(names)
        sound = sound and all(name == os.path.basename(name) and name for name in names)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"[load] expected the index of a population at {path!r}, got {error!r}"
        ) from error
    if not sound:
        raise CheckpointError(
            f"[load] expected an index of the format {_FORMAT!r} with file names at {path!r}"
        )
    return list(names)
