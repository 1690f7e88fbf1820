"""Types of the native module; tests/test_stub.py compares it with what the module says of itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str

class DeviceError(RuntimeError): ...

class NonFiniteError(ArithmeticError):
    step: int
    layer: str

class CheckpointError(ValueError): ...

def activations() -> dict[str, Any]: ...
def canonical_description(json: str) -> str: ...
def information() -> dict[str, Any]: ...
def check_cuda() -> str: ...
def losses() -> dict[str, Any]: ...
def methods() -> dict[str, Any]: ...
def minimize(
    method: str,
    x0: NDArray[np.float64],
    value_and_gradient: Callable[[NDArray[Any]], tuple[float, NDArray[Any]]],
    value: Callable[[NDArray[Any]], float] | None,
    hvp: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]] | None,
    ggnvp: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]] | None,
    path_scales: Callable[[NDArray[Any]], NDArray[Any]] | None,
    noise: float,
    max_iterations: int,
    max_evaluations: int,
    gtol: float,
    ftol: float,
    callback: Callable[[int, NDArray[Any], float, float], bool] | None,
) -> dict[str, Any]: ...
def eigenpairs(
    product: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    n: int,
    top: int,
    bottom: int,
    max_steps: int,
    tolerance: float,
    seed: int,
    power: bool,
) -> dict[str, Any]: ...
def spectral_quadrature(
    product: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    n: int,
    steps: int,
    probes: int,
    seed: int,
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]: ...
def optimizers() -> dict[str, Any]: ...
def schedule_value(json: str, k: int, steps_per_epoch: float) -> float: ...

_Rows = list[tuple[str, int, tuple[int, ...]]]
_Loss = Callable[[NDArray[Any], NDArray[Any]], tuple[float, NDArray[Any]]]

class Model:
    def __init__(self, description: str, device: str, threads: int) -> None: ...
    @staticmethod
    def load(path: str, device: str, threads: int) -> Model: ...
    def copy(self) -> Model: ...
    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def out_features(self) -> int: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def plan_summary(self) -> str: ...
    @property
    def graph_nodes(self) -> list[int]: ...
    @property
    def tensors(self) -> _Rows: ...
    @property
    def state_tensors(self) -> _Rows: ...
    @property
    def layers(self) -> list[tuple[str, str, int, int]]: ...
    def description(self) -> str: ...
    def steps_done(self) -> int: ...
    def epochs_done(self) -> int: ...
    def parameters(self) -> NDArray[Any]: ...
    def theta(self) -> NDArray[Any]: ...
    def average(self) -> NDArray[Any] | None: ...
    def fallbacks(self) -> dict[str, int]: ...
    def slot_names(self) -> list[str]: ...
    def slot(self, index: int) -> NDArray[Any]: ...
    def state(self) -> NDArray[Any]: ...
    def batches_tracked(self) -> list[int]: ...
    def set_parameters(self, values: NDArray[Any]) -> None: ...
    def set_state(self, values: NDArray[Any], batches_tracked: Sequence[int]) -> None: ...
    def set_optimizer(self, description: str) -> None: ...
    def reset(self) -> None: ...
    def fit(
        self,
        *,
        x: Any,
        y: Any,
        weights: Any,
        validation_x: Any,
        validation_y: Any,
        validation_weights: Any,
        epochs: int,
        batch_size: int,
        shuffle: str,
        accumulate: int,
        early_stopping: tuple[str, int, float, bool] | None,
        max_steps: int | None,
        stop_at_loss: float | None,
        on_epoch: Callable[[dict[str, Any]], object] | None,
        on_step: Callable[[dict[str, Any]], object] | None,
        every: int,
        on_progress: Callable[[dict[str, Any]], object] | None,
        loss: _Loss | None,
        targets: NDArray[Any] | None,
    ) -> dict[str, Any]: ...
    def step(
        self, x: Any, y: Any, weights: Any, loss: _Loss | None, targets: NDArray[Any] | None
    ) -> dict[str, Any]: ...
    def recalibrate_batch_norm(self, x: Any, batch_size: int) -> None: ...
    def evaluate(
        self,
        x: Any,
        y: Any,
        weights: Any,
        batch_size: int,
        loss: _Loss | None,
        targets: NDArray[Any] | None,
    ) -> dict[str, float]: ...
    def predict(self, x: Any, batch_size: int, probabilities: bool) -> NDArray[Any]: ...
    def activations(self, x: Any, training: bool) -> list[NDArray[Any]]: ...
    def loss_and_gradient(
        self,
        x: Any,
        y: Any,
        weights: Any,
        training: bool,
        parameter_gradient: bool,
        input_gradient: bool,
        loss: _Loss | None,
        targets: NDArray[Any] | None,
    ) -> tuple[dict[str, float], NDArray[Any] | None, NDArray[Any] | None]: ...
    def save(self, path: str) -> None: ...
    def load_weights(self, path: str) -> None: ...

class Objective:
    def __init__(
        self,
        *,
        model: Model,
        x: Any,
        y: Any,
        weights: Any,
        batch_statistics: bool,
        dropout: bool,
        chunk_rows: int,
        loss: _Loss | None,
        targets: NDArray[Any] | None,
    ) -> None: ...
    @property
    def rows(self) -> int: ...
    def value(self, theta: NDArray[Any] | None) -> float: ...
    def value_and_gradient(self, theta: NDArray[Any] | None) -> tuple[float, NDArray[Any]]: ...
    def product(
        self, kind: str, v: NDArray[Any], theta: NDArray[Any] | None
    ) -> NDArray[Any]: ...
    def hessian(self, theta: NDArray[Any] | None) -> NDArray[Any]: ...
    def jacobian_product(
        self, v: NDArray[Any], theta: NDArray[Any] | None
    ) -> NDArray[Any]: ...
    def jacobian_transposed_product(
        self, u: NDArray[Any], theta: NDArray[Any] | None
    ) -> NDArray[Any]: ...
    def example_gradients(
        self, first: int, count: int, theta: NDArray[Any] | None
    ) -> NDArray[Any]: ...
    def example_gradient_norms(self, theta: NDArray[Any] | None) -> NDArray[Any]: ...

def path_norm(model: Model, theta: NDArray[Any] | None, p: float, biases: bool) -> float: ...
def path_scales(model: Model, theta: NDArray[Any] | None, p: float) -> NDArray[Any]: ...

_Arrays = tuple[list[Any], list[Any], list[Any]]

def fit_members(
    *,
    models: list[Model],
    threads: int,
    arrays: _Arrays,
    rows: Sequence[NDArray[np.int64]],
    validation_arrays: _Arrays,
    epochs: int,
    batch_size: int,
    shuffle: str,
    accumulate: int,
    early_stopping: tuple[str, int, float, bool] | None,
    max_steps: int | None,
    stop_at_loss: float | None,
    on_epoch: Callable[[int, dict[str, Any]], object] | None,
) -> list[dict[str, Any]]: ...
def evaluate_members(
    models: list[Model], threads: int, arrays: _Arrays, batch_size: int
) -> list[dict[str, float]]: ...
def predict_members(
    models: list[Model], threads: int, x: Any, batch_size: int, probabilities: bool
) -> NDArray[Any]: ...

class ops:
    """A submodule."""

    @staticmethod
    def gemm(a: Any, b: Any, form: str, threads: int) -> NDArray[Any]: ...
    @staticmethod
    def dense(
        x: Any, weight: Any, bias: Any, activation: str, parameter: float, threads: int
    ) -> NDArray[Any]: ...
    @staticmethod
    def dense_backward(
        x: Any, weight: Any, dy: Any, threads: int
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
    @staticmethod
    def batch_norm(
        x: Any, gamma: Any, beta: Any, sample_weight: Any, eps: float, threads: int
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
    @staticmethod
    def batch_norm_inference(
        x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, eps: float, threads: int
    ) -> NDArray[Any]: ...
    @staticmethod
    def batch_norm_backward(
        x: Any, gamma: Any, dy: Any, sample_weight: Any, eps: float, threads: int
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
    @staticmethod
    def activation(name: str, z: Any, parameter: float, threads: int) -> NDArray[Any]: ...
    @staticmethod
    def activation_backward(
        name: str, z: Any, dy: Any, parameter: float, threads: int
    ) -> NDArray[Any]: ...
    @staticmethod
    def dropout(
        x: Any, p: float, seed: int, step: int, stream: int, first_row: int, threads: int
    ) -> NDArray[Any]: ...
    @staticmethod
    def maxout(z: Any, pieces: int, threads: int) -> NDArray[Any]: ...
    @staticmethod
    def maxout_backward(z: Any, dy: Any, pieces: int, threads: int) -> NDArray[Any]: ...
    @staticmethod
    def softmax(logits: Any, threads: int) -> NDArray[Any]: ...
    @staticmethod
    def softmax_cross_entropy(
        logits: Any, target: Any, sample_weight: Any, label_smoothing: float, threads: int
    ) -> tuple[float, NDArray[Any]]: ...
    @staticmethod
    def elementwise_loss(
        name: str,
        output: Any,
        target: Any,
        parameter: float,
        reduction: str,
        sample_weight: Any,
        threads: int,
    ) -> tuple[float, NDArray[Any]]: ...
    @staticmethod
    def optimizer_step(
        name: str,
        hyper: Sequence[float],
        next_hyper: Sequence[float],
        t: int,
        p: Any,
        g: Any,
        slots: Sequence[Any],
        threads: int,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]: ...
    @staticmethod
    def clip_by_global_norm(
        g: Any, max_norm: float, threads: int
    ) -> tuple[NDArray[Any], float]: ...

class _testing:
    """A submodule."""

    @staticmethod
    def philox_block(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
    @staticmethod
    def random(
        kind: str, *, seed: int, stream: int, step: int, first: int, count: int
    ) -> NDArray[Any]: ...
    @staticmethod
    def permutation(
        n: int, *, seed: int, epoch: int, first: int, count: int, inverse: bool
    ) -> NDArray[np.int64]: ...
    @staticmethod
    def elementary(name: str, x: NDArray[Any]) -> NDArray[Any]: ...
    @staticmethod
    def activation_terms(name: str, z: float, parameter: float) -> list[float]: ...
    @staticmethod
    def loss_terms(name: str, z: float, t: float, parameter: float) -> list[float]: ...
    @staticmethod
    def optimizer_coefficients(
        name: str, hyper: Sequence[float], next_hyper: Sequence[float], t: int
    ) -> list[float]: ...
    @staticmethod
    def instruction_sets() -> list[str]: ...
    @staticmethod
    def gemm(a: Any, b: Any, form: str, instruction_set: str) -> NDArray[Any]: ...
    @staticmethod
    def team_size(threads: int) -> int: ...
    @staticmethod
    def write_checkpoint(
        path: str, metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]
    ) -> None: ...
    @staticmethod
    def read_checkpoint(
        path: str, require_thalweg: bool
    ) -> tuple[dict[str, str], dict[str, NDArray[Any]]]: ...
    @staticmethod
    def crc32c(data: bytes) -> int: ...
    @staticmethod
    def symmetric_eigensystem(a: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]: ...
    @staticmethod
    def cholesky_solve(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[Any] | None: ...
    @staticmethod
    def conjugate_gradient(
        a: NDArray[np.float64], b: NDArray[np.float64], tolerance: float, max_iterations: int
    ) -> tuple[str, NDArray[Any], NDArray[Any], int, float]: ...
    @staticmethod
    def krylov_basis(
        a: NDArray[np.float64], start: NDArray[np.float64], steps: int
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], bool]: ...
    @staticmethod
    def vector_sum(kind: str, a: NDArray[np.float64], b: NDArray[np.float64]) -> float: ...
