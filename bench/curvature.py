"""Times gradients and products with the Hessian in turns (`python -m bench curvature`)."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import machine, peers, steps
from bench.cases import Array, Case, Problem, make_problem
from bench.peers.numpy_peer import NumpyPeer
from bench.results import Row

# Of norm and v'Hv from the float64 reference, a difference of two gradients.
TOLERANCE = 1e-3
_SHIFT = 1e-6


class _Gradient(NumpyPeer):
    """Gradients of the loss of the first minibatch in float64, by the weights alone."""

    def __init__(self, problem: Problem) -> None:
        # With the statistics of the minibatch, as in training.
        super().__init__(dataclasses.replace(problem, work="training"), dtype=np.float64)

    def at(self, shift: float) -> Array:
        """The gradient at the initial weights plus `shift` times the direction."""
        self._reset()
        depth = range(self._depth)
        for layer, direction in zip(depth, self._problem.directions(), strict=True):
            self._of(self._arena.p, layer)[0][:] += shift * direction.astype(np.float64)
        batch = self._problem.batch
        self._inputs[0], self._labels = self._x[:batch], self._y[:batch]
        self._forward()
        self._backward()
        return np.concatenate([self._of(self._arena.g, layer)[0].ravel() for layer in depth])


def reference(problem: Problem) -> dict[bool, list[float]]:
    """What `losses` of a peer has to return, for products (True) and for gradients."""
    gradient = _Gradient(problem)
    product = (gradient.at(_SHIFT) - gradient.at(-_SHIFT)) / (2.0 * _SHIFT)
    v = np.concatenate([each.ravel() for each in problem.directions()]).astype(np.float64)
    return {
        False: [float(np.linalg.norm(gradient.at(0.0)))],
        True: [float(np.linalg.norm(product)), float(product @ v)],
    }


def _kind(name: str) -> str:
    return name.partition("-")[2]


def measure(
    case: Case, batch: int, threads: int, names: Sequence[str], options: steps.Options
) -> Row:
    """The row of one case: all peers, checked, then timed in turns."""
    problem = make_problem(case, batch, threads, work="curvature")
    expected = reference(problem)
    row: Row = {
        "kind": "curvature",
        "case": case.name,
        "title": case.title,
        "batch": batch,
        "threads": threads,
        "precision": "highest",
        "parameters": case.parameters,
        **machine.stamp(),
        "versions": {},
        "check": {"tolerance": TOLERANCE, "product": expected[True], "gradient": expected[False]},
        "peers": {},
        "skipped": {},
        "failed": {},
    }
    workers: list[steps.Worker] = []
    deviations: dict[str, float] = {}

    def check(worker: steps.Worker) -> None:
        wanted = expected[_kind(worker.name) != "gradient"]
        worst = steps.loss_deviation(worker.losses(1), wanted)
        deviations[worker.name] = worst
        if worst > TOLERANCE:
            raise steps.FailedError(f"deviates by {worst:.2g} from the float64 reference")

    with tempfile.TemporaryDirectory(prefix="thalweg-bench-") as folder:
        problem.save(Path(folder))
        try:
            for name in names:
                steps.admit(workers, name, problem, Path(folder), options, check, row)
            rounds = steps.time_rounds(workers, row, options) if workers else []
        finally:
            for worker in workers:
                worker.close()
    for worker in workers:
        name = worker.name
        entry: dict[str, Any] = {
            "microseconds": steps.quartiles([one[name] for one in rounds]),
            "threads": worker.threads,
            "deviation": float(f"{deviations[name]:.2g}"),
        }
        # Functional and forward products are compared with thalweg's at a new point.
        kind = _kind(name) if _kind(name) in ("gradient", "again") else "product"
        others = {
            "over_gradient": f"{peers.family(name)}-gradient",
            "over_thalweg": f"thalweg-{kind}",
        }
        for key, other in others.items():
            if other in rounds[0]:
                entry[key] = steps.quartiles([one[name] / one[other] for one in rounds])
        row["peers"][name] = entry
    return row


def describe(row: Mapping[str, Any]) -> str:
    """The row as a small table for the terminal."""
    lines = [
        f"{row['case']}: {row['title'].rpartition(',')[0]}; {row['batch']} rows, "
        f"{row['threads']} thread(s), curvature"
    ]
    if row["peers"]:
        lines.append(
            f"  {'peer':<18} {'us':>10} {'quartiles':>21} {'/own gradient':>14} {'/thalweg':>9} "
            f"{'deviation':>9}"
        )
    for name, entry in row["peers"].items():
        time = entry["microseconds"]
        between = f"{time['q1']:.1f} .. {time['q3']:.1f}"
        ratios = [
            f"{entry[key]['median']:>{width}.2f}" if key in entry else " " * width
            for key, width in (("over_gradient", 14), ("over_thalweg", 9))
        ]
        lines.append(
            f"  {name:<18} {time['median']:>10.1f} {between:>21} {' '.join(ratios)} "
            f"{entry['deviation']:>9.0e}"
        )
    return "\n".join([*lines, *steps.remarks(row)])
