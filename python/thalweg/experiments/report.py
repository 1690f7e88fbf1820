"""What `thalweg reproduce` writes: JSON rows, and one self-contained page with a figure each."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import thalweg

from .base import Context, Experiment, Outcome

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; }
h2 { margin: 2.5rem 0 .3rem; border-top: 1px solid #8884; padding-top: 1.2rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #8883;
  vertical-align: top; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0; }
dt { opacity: .65; } dd { margin: 0; }
img { max-width: 100%; border-radius: 4px; }
.pass { color: #1a7f37; } .fail { color: #c62828; } .report { opacity: .75; }
.verdict { font-weight: 600; }
"""


def verdict(outcome: Outcome) -> str:
    """`pass`, `fail`, or `report` for experiments that gate nothing."""
    return {True: "pass", False: "fail", None: "report"}[outcome.passed]


@dataclass(frozen=True)
class Row:
    """One finished experiment.

    Attributes
    ----------
    experiment : Experiment
    outcome : Outcome
        With the first seed: the one that is drawn.
    seconds : float
        Per seed.
    seeds : dict of Outcome by seed
        Where it was repeated.
    """

    experiment: Experiment
    outcome: Outcome
    seconds: float
    seeds: dict[int, Outcome] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst over the seeds."""
        found = [verdict(outcome) for outcome in (self.outcome, *self.seeds.values())]
        return "fail" if "fail" in found else found[0]


def write(folder: Path, rows: Sequence[Row], context: Context) -> list[Path]:
    """Write `results.json` and `index.html`, each whole or not at all.

    Parameters
    ----------
    folder : Path
        Exists.
    rows : sequence of Row
    context : Context

    Returns
    -------
    list of Path
        The files.
    """
    results, page = folder / "results.json", folder / "index.html"
    text = json.dumps([_json_row(row, context) for row in rows], indent=1, allow_nan=False)
    _replace(results, text + "\n")
    _replace(page, _page(rows, context))
    return [results, page]


def has_figures() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _json_row(row: Row, context: Context) -> dict[str, Any]:
    experiment = row.experiment
    return {
        "id": experiment.id,
        "claim": experiment.claim,
        "source": experiment.source,
        "setting": experiment.setting,
        "seed": context.seed,
        "measured": row.outcome.measured,
        "values": row.outcome.values,
        "threshold": experiment.threshold,
        "pass": {"pass": True, "fail": False, "report": None}[row.verdict],
        "verdict": row.verdict,
        "seconds": round(row.seconds, 3),
        "version": thalweg.__version__,
        "commit": _commit(),
        "seeds": {
            str(seed): {"verdict": verdict(outcome), "measured": outcome.measured}
            for seed, outcome in row.seeds.items()
        },
    }


def _commit() -> str | None:
    """The commit of a development checkout; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not ((root / ".git").exists() and (root / "csrc").is_dir()):
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _page(rows: Sequence[Row], context: Context) -> str:
    info = thalweg._core.information()
    machine = (
        f"thalweg {thalweg.__version__}, {info['processor']}, instruction set "
        f"{info['instruction_set']}, {context.threads or info['threads']} threads, Python "
        f"{platform.python_version()}, seed {context.seed}"
    )
    overview = "".join(
        f'<tr><td><a href="#{row.experiment.id}">{row.experiment.id}</a></td>'
        f"<td>{html.escape(row.experiment.title)}</td><td>{html.escape(row.outcome.measured)}</td>"
        f"<td>{html.escape(row.experiment.threshold)}</td>"
        f'<td class="verdict {row.verdict}">{row.verdict}</td><td>{row.seconds:.1f} s</td></tr>'
        for row in rows
    )
    missing = "" if has_figures() else "<p>matplotlib is not installed: there are no figures.</p>"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>thalweg: claims and measurements</title><style>{_STYLE}</style>"
        f"<h1>Claims and measurements</h1><p>{html.escape(machine)}</p>{missing}"
        "<table><tr><th></th><th>claim</th><th>measured</th><th>threshold</th><th>verdict</th>"
        f"<th>time</th></tr>{overview}</table>{''.join(map(_section, rows))}</html>\n"
    )


def _section(row: Row) -> str:
    experiment, outcome = row.experiment, row.outcome
    entries = (
        ("source", experiment.source),
        ("setting", experiment.setting),
        ("measured", outcome.measured),
        ("threshold", experiment.threshold),
    )
    listed = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in entries)
    return (
        f'<h2 id="{experiment.id}">{experiment.id}: {html.escape(experiment.title)}</h2>'
        f"<p>{html.escape(experiment.claim)}</p><dl>{listed}<dt>verdict</dt>"
        f'<dd class="verdict {row.verdict}">{row.verdict}</dd></dl>'
        f"{_table(_seeds(row))}{_table(outcome.table)}{_figure(row)}"
    )


def _seeds(row: Row) -> list[tuple[str, ...]]:
    if len(row.seeds) < 2:
        return []
    found = [(str(seed), o.measured, verdict(o)) for seed, o in row.seeds.items()]
    return [("seed", "measured", "verdict"), *found]


def _table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(row: Row) -> str:
    if not has_figures():
        return ""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "font.size": 10,
    }
    with rc_context(style):
        figure = Figure(figsize=(8.5, 3.8), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        row.outcome.draw(figure)
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    label = html.escape(row.experiment.title)
    return f'<img alt="{label}" src="data:image/png;base64,{data}">'


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
