"""What an experiment is, and the small things that several of them need."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg import Model, NonFiniteError
from thalweg.datasets import Dataset, load_digits, load_mnist


@dataclass(frozen=True)
class Context:
    """How to run: the seed, the threads, and whether only the code has to be exercised.

    Attributes
    ----------
    seed : int
        Experiments over several seeds use `seed`, `seed + 1`, ...
    threads : int or None
    quick : bool
        A few steps of the smallest networks; the verdict then means nothing.
    """

    seed: int = 0
    threads: int | None = None
    quick: bool = False

    def steps(self, count: int) -> int:
        """`count`, or a few when only exercised."""
        return min(count, 24) if self.quick else count


@dataclass(frozen=True)
class Outcome:
    """What an experiment measured.

    Attributes
    ----------
    measured : str
        For people: the figures that the threshold is about.
    values : dict
        The same and more, as JSON.
    passed : bool or None
        None where the experiment reports and gates nothing.
    draw : callable
        Draws on an empty matplotlib figure.
    table : list of rows of text
        The first row is the header; empty where the measured text says all.
    """

    measured: str
    values: dict[str, Any]
    passed: bool | None
    draw: Callable[[Any], None] = field(repr=False, compare=False)
    table: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Experiment:
    """A claim and the program that checks it."""

    id: str
    title: str
    claim: str
    source: str
    setting: str
    threshold: str
    run: Callable[[Context], Outcome] = field(repr=False, compare=False)


def digits() -> Dataset:
    """The embedded digits."""
    return load_digits()


def small_digits() -> tuple[Any, Any]:
    """The training digits at 4 x 4, means of 2 x 2 pixels, as float64, and their labels."""
    data = load_digits()
    pixels = np.asarray(data.x_train, dtype=np.float64).reshape(-1, 4, 2, 4, 2)
    return pixels.mean(axis=(2, 4)).reshape(len(pixels), 16), data.y_train


def mnist() -> Dataset | None:
    """MNIST when THALWEG_DATA names a folder that holds it."""
    return load_mnist() if os.environ.get("THALWEG_DATA") else None


def error_rate(model: Model, x: Any, y: Any) -> float:
    """Share of wrong decisions, in percent."""
    return 100.0 * (1.0 - float(model.evaluate(x, y)["accuracy"]))


def train(model: Model, x: Any, y: Any, steps: int, batch_size: int, **options: Any) -> bool:
    """Train for a number of updates; False when the loss left the finite numbers."""
    epochs = math.ceil(steps / max(1, len(x) // batch_size)) + 1
    try:
        model.fit(
            x,
            y,
            epochs=epochs,
            max_steps=steps,
            batch_size=batch_size,
            verbose=False,
            **options,
        )
    except NonFiniteError:
        return False
    return True


def loss_or_infinity(model: Model, x: Any, y: Any, finite: bool) -> float:
    """The loss on all of the data; infinite after a run that diverged."""
    if not finite:
        return math.inf
    loss = float(model.evaluate(x, y)["loss"])
    return loss if math.isfinite(loss) else math.inf


def json_number(value: float) -> float | None:
    """JSON has no infinity: None stands for a run that diverged."""
    return value if math.isfinite(value) else None


def listed(values: Sequence[float], form: str = "{:.3g}") -> str:
    """`1, 2, 3`."""
    return ", ".join(form.format(value) for value in values)
