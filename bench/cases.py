"""The training problems that are timed: networks, data and the initial weights all peers share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

WORKS = ("training", "inference")

# The same numbers in every peer. Batch-norm momentum is the weight of the new batch.
BETA1, BETA2, ADAM_EPS, MOMENTUM = 0.9, 0.999, 1e-8, 0.9
BN_EPS, BN_MOMENTUM = 1e-5, 0.1
# Of the loss over five steps, with operands of 8 significant bits.
BF16_TOLERANCE = 3e-2


@dataclass(frozen=True)
class Case:
    """Dense (+ BatchNorm) + ReLU layers, softmax cross-entropy on integer labels."""

    name: str
    widths: tuple[int, ...]
    optimizer: str  # "adam" or "momentum"
    lr: float
    batch_norm: bool
    batches: tuple[int, ...]
    # The loss check: updates and relative deviation. Deep batch norm amplifies rounding from
    # update to update, the more the larger they are.
    check_steps: int = 5
    tolerance: float = 1e-4
    least_rows: int = 16384

    @property
    def title(self) -> str:
        hidden = self.widths[1:-1]
        shape = (
            f"{self.widths[0]}-{len(hidden)}x{hidden[0]}-{self.widths[-1]}"
            if len(hidden) > 3
            else "-".join(map(str, self.widths))
        )
        optimizer = {"adam": "Adam", "momentum": "SGD with momentum"}[self.optimizer]
        return f"{shape}, {'batch norm, ' if self.batch_norm else ''}ReLU, {optimizer}"

    @property
    def parameters(self) -> int:
        """Trainable numbers; a layer has either a bias or a batch norm's weight and bias."""
        pairs = list(itertools.pairwise(self.widths))
        vectors = [2 if self.batch_norm else 1] * (len(pairs) - 1) + [1]
        return sum(i * o + v * o for (i, o), v in zip(pairs, vectors, strict=True))

    @property
    def forward_flops_per_sample(self) -> int:
        """Of the matrix products of a forward pass."""
        return 2 * sum(i * o for i, o in itertools.pairwise(self.widths))

    @property
    def flops_per_sample(self) -> int:
        """Of the matrix products of one training step: forward, weight and input gradients."""
        return 3 * self.forward_flops_per_sample - 2 * self.widths[0] * self.widths[1]

    def rows(self, batch: int) -> int:
        """Rows of the data: whole minibatches, so that no peer meets a tail."""
        return -(-self.least_rows // batch) * batch


CASES = {
    case.name: case
    for case in (
        Case("a", (784, 512, 512, 10), "adam", 1e-3, False, (128, 1024)),
        Case("b", (784, 512, 512, 10), "adam", 1e-3, True, (128, 1024)),
        Case("c", (64, 64, 64, 10), "momentum", 0.05, False, (32, 256)),
        Case("d", (784, 1024, 1024, 1024, 1024, 10), "adam", 1e-4, False, (512,)),
        Case("e", (128,) * 21 + (10,), "adam", 1e-4, True, (128,), 3, 1e-3),
    )
}


@dataclass
class Problem:
    """A case with its minibatch size, data and initial weights (float32, weights [out, in]).

    `precision` is what float32 products may be computed from: "highest", "high" or "medium", as
    PyTorch means it. `work` is "training", "inference": class probabilities of minibatches, or
    "curvature": gradients and products with the Hessian of the loss of the first minibatch.
    """

    case: Case
    batch: int
    threads: int
    x: Array
    y: Array
    weights: list[Array]
    lr: float
    device: str = "cpu"
    precision: str = "highest"
    work: str = "training"

    @property
    def tolerance(self) -> float:
        """Relative deviation of a loss that rounding may cause."""
        return self.case.tolerance if self.precision == "highest" else BF16_TOLERANCE

    @property
    def flops_per_sample(self) -> int:
        case = self.case
        training = self.work == "training"
        return case.flops_per_sample if training else case.forward_flops_per_sample

    @property
    def steps_per_epoch(self) -> int:
        return len(self.x) // self.batch

    def cuts(self, count: int) -> Iterator[slice]:
        """The rows of so many minibatches in the order of the rows, again and again."""
        for k in range(count):
            first = k % self.steps_per_epoch * self.batch
            yield slice(first, first + self.batch)

    def directions(self) -> list[Array]:
        """What the Hessian is multiplied by: Gaussian in the weights, zero elsewhere."""
        rng = np.random.default_rng(2)
        return [
            rng.standard_normal(w.shape, dtype=np.float32) / np.float32(w.size**0.5)
            for w in self.weights
        ]

    def save(self, folder: Path) -> None:
        weights: dict[str, Any] = {f"weight{i}": w for i, w in enumerate(self.weights)}
        np.savez(folder / "problem.npz", x=self.x, y=self.y, **weights)

    @classmethod
    def load(cls, folder: Path, case: Case, batch: int, threads: int, **options: str) -> Problem:
        with np.load(folder / "problem.npz") as file:
            weights = [file[f"weight{i}"] for i in range(len(case.widths) - 1)]
            return cls(case, batch, threads, file["x"], file["y"], weights, case.lr, **options)


def make_problem(case: Case, batch: int, threads: int, **options: str) -> Problem:
    """Gaussian x, labels of a random linear teacher, He-normal weights; biases start at zero."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((case.rows(batch), case.widths[0]), dtype=np.float32)
    teacher = rng.standard_normal((case.widths[0], case.widths[-1]), dtype=np.float32)
    y = (x @ teacher).argmax(axis=1)
    weights = [
        rng.standard_normal((o, i), dtype=np.float32) * np.float32((2 / i) ** 0.5)
        for i, o in itertools.pairwise(case.widths)
    ]
    return Problem(case, batch, threads, x, y, weights, case.lr, **options)
