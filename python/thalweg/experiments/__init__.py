"""Published claims about optimization, checked by experiment: what `thalweg reproduce` runs.

Each experiment states its claim, source, setting and threshold, trains with `thalweg.Model`, and
returns what it measured with a verdict.

Examples
--------
>>> from thalweg.experiments import CORE, Context
>>> chain = next(experiment for experiment in CORE if experiment.id == "e15")
>>> chain.title
'Batch normalization tames a product of weights'
>>> chain.run(Context()).passed
True
"""

from __future__ import annotations

from . import (
    adaptive_failure,
    architectures,
    batch_norm_steps,
    clipping,
    conditioning,
    factorization,
    geometry,
    gradient_error,
    gradient_norm,
    learning_rate,
    least_squares,
    linear_dynamics,
    linear_networks,
    linear_paths,
    margin_growth,
    net2net,
    optimizers,
    over_capacity,
    path_sgd,
    product_chain,
    rates,
    saddle_escape,
    saddle_free,
    saddle_index,
    shuffling,
)
from .base import Context, Experiment, Outcome

CORE: tuple[Experiment, ...] = (
    over_capacity.EXPERIMENT,
    path_sgd.EXPERIMENT,
    least_squares.EXPERIMENT,
    adaptive_failure.EXPERIMENT,
    margin_growth.EXPERIMENT,
    geometry.EXPERIMENT,
    factorization.EXPERIMENT,
    linear_networks.EXPERIMENT,
    saddle_escape.EXPERIMENT,
    saddle_index.EXPERIMENT,
    linear_paths.EXPERIMENT,
    batch_norm_steps.EXPERIMENT,
    product_chain.EXPERIMENT,
    net2net.EXPERIMENT,
    rates.EXPERIMENT,
    gradient_error.EXPERIMENT,
    learning_rate.EXPERIMENT,
    gradient_norm.EXPERIMENT,
    linear_dynamics.EXPERIMENT,
    shuffling.EXPERIMENT,
    clipping.EXPERIMENT,
    saddle_free.EXPERIMENT,
    optimizers.EXPERIMENT,
    architectures.EXPERIMENT,
    conditioning.EXPERIMENT,
)

__all__ = ["CORE", "Context", "Experiment", "Outcome"]
