"""Where a network is in its loss landscape, and how it came there.

Paths and planes (`linear_path`, `plane`, `Recorder`, `project`, `function_trajectories`), gradients
and activations (`gradient_diagnostics`, `activation_diagnostics`), `linear_margins` and
`output_margins`, curvature (`eigenpairs`, `spectral_density`, `critical_point`, `predict_step`,
`gradient_flow`), sharpness (`worst_rise`), and symmetries (`canonical_form`). Every analysis
returns a read-only object with arrays, a method `plot` (matplotlib, an optional extra) and a
method `to_json`.

Examples
--------
>>> import thalweg as tw
>>> from thalweg import landscape
>>> model = tw.Model(tw.nn.Dense(1), 1, "squared_error", tw.optim.SGD(0.1))
>>> start = model.copy()
>>> history = model.fit([[1.0], [2.0]], [2.0, 4.0], epochs=20, verbose=False)
>>> path = landscape.linear_path(model, start, model, [[1.0], [2.0]], [2.0, 4.0])
>>> path.max_rise
0.0
"""

from __future__ import annotations

from .curvature import (
    CriticalPoint,
    Eigenpairs,
    GradientFlow,
    SpectralDensity,
    StepPrediction,
    critical_point,
    eigenpairs,
    find_critical_point,
    gradient_flow,
    predict_step,
    spectral_density,
)
from .diagnostics import (
    ActivationDiagnostics,
    GradientDiagnostics,
    activation_diagnostics,
    gradient_diagnostics,
)
from .margins import Margins, linear_margins, output_margins
from .path_sums import path_norm, path_scales
from .paths import (
    FunctionTrajectories,
    LinearPath,
    Plane,
    Projection,
    Recorder,
    Trajectory,
    function_trajectories,
    linear_path,
    plane,
    principal_components,
    project,
    random_direction,
    trajectory_plane,
)
from .sharpness import WorstRise, worst_rise
from .symmetry import (
    CanonicalForm,
    canonical_form,
    function_distance,
    hidden_layers,
    permute_units,
    rescale_units,
    symmetry_directions,
)

__all__ = [
    "ActivationDiagnostics",
    "CanonicalForm",
    "CriticalPoint",
    "Eigenpairs",
    "FunctionTrajectories",
    "GradientDiagnostics",
    "GradientFlow",
    "LinearPath",
    "Margins",
    "Plane",
    "Projection",
    "Recorder",
    "SpectralDensity",
    "StepPrediction",
    "Trajectory",
    "WorstRise",
    "activation_diagnostics",
    "canonical_form",
    "critical_point",
    "eigenpairs",
    "find_critical_point",
    "function_distance",
    "function_trajectories",
    "gradient_diagnostics",
    "gradient_flow",
    "hidden_layers",
    "linear_margins",
    "linear_path",
    "output_margins",
    "path_norm",
    "path_scales",
    "permute_units",
    "plane",
    "predict_step",
    "principal_components",
    "project",
    "random_direction",
    "rescale_units",
    "spectral_density",
    "symmetry_directions",
    "trajectory_plane",
    "worst_rise",
]
