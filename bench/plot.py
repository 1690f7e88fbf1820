"""The picture of the rows (`python -m bench table --plot FILE`); needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.results import Row

_COLORS = {"torch": "#c44e52", "jax": "#4c72b0", "sklearn": "#dd8452", "numpy": "#8c8c8c"}


def save(
    rows: Sequence[Row],
    ratios: Sequence[Mapping[str, float]],
    names: Mapping[str, str],
    path: Path,
) -> None:
    """Bars: how many times as long as thalweg each library takes, per row."""
    libraries = [name for name in _COLORS if any(name in ratio for ratio in ratios)]
    figure = Figure(figsize=(8, 0.8 + 0.55 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    height = 0.8 / max(1, len(libraries))
    for k, library in enumerate(libraries):
        places = [i + (k - (len(libraries) - 1) / 2) * height for i in range(len(rows))]
        values = [ratio.get(library, float("nan")) for ratio in ratios]
        bars = axes.barh(places, values, height, color=_COLORS[library], label=names[library])
        labels = [f"{value:.2g}" if value == value else "" for value in values]
        axes.bar_label(bars, labels, padding=2, fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks((1, 2, 5, 10, 20, 50), ("1", "2", "5", "10", "20", "50"))
    axes.set_xlabel("time / thalweg's time (logarithmic)")
    axes.set_yticks(
        range(len(rows)),
        [
            f"{row['case']}, batch {row['batch']}, {row['threads']} thr."
            + (" (noisy)" if row["noisy"] else "")
            for row in rows
        ],
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    # The same rows give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "thalweg"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
