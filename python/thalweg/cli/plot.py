"""The picture of the learning curves. Importing this module needs matplotlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_TRAINING, _VALIDATION = "#1f5fa8", "#d95f02"


def learning_curves(path: Path, history: Any, has_validation: bool) -> None:
    """Draw loss and, for a classification, error against the epoch.

    Parameters
    ----------
    path : Path
        PNG, SVG or PDF by its suffix; replaced atomically.
    history : History
    has_validation : bool
    """
    rows = history.epochs
    epochs = [row["epoch"] for row in rows]
    panels = [("loss", "loss", 1.0)]
    if rows and "accuracy" in rows[0]:
        panels.append(("accuracy", "accuracy, %", 100.0))
    figure = Figure(figsize=(4.6 * len(panels), 3.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, label, factor) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        axes.plot(epochs, [factor * r[name] for r in rows], color=_TRAINING, label="training")
        if has_validation:
            values = [factor * r[f"validation_{name}"] for r in rows]
            axes.plot(epochs, values, color=_VALIDATION, label="validation")
        if name == "loss" and all(row["loss"] > 0 for row in rows):
            axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
