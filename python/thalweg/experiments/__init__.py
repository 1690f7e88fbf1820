"""Published claims about optimization, checked by experiment: what `thalweg reproduce` runs.

Each experiment states its claim, source, setting and threshold, trains with `thalweg.Model`, and
returns what it measured with a verdict.

Examples
--------
>>> from thalweg.experiments import CORE, Context
>>> [experiment.id for experiment in CORE]
['e2', 'e14', 'e15', 'e18', 'e20', 'e25', 'e30', 'e31']
>>> CORE[2].run(Context()).passed
True
"""

from __future__ import annotations

from . import (
    architectures,
    batch_norm_steps,
    gradient_error,
    learning_rate,
    optimizers,
    over_capacity,
    product_chain,
    shuffling,
)
from .base import Context, Experiment, Outcome

CORE: tuple[Experiment, ...] = (
    over_capacity.EXPERIMENT,
    batch_norm_steps.EXPERIMENT,
    product_chain.EXPERIMENT,
    gradient_error.EXPERIMENT,
    learning_rate.EXPERIMENT,
    shuffling.EXPERIMENT,
    optimizers.EXPERIMENT,
    architectures.EXPERIMENT,
)

__all__ = ["CORE", "Context", "Experiment", "Outcome"]
