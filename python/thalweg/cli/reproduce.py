"""`thalweg reproduce`: runs experiments, prints their verdicts, writes rows and a page."""

from __future__ import annotations

import textwrap
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from thalweg.experiments import CORE, Context, Experiment
from thalweg.experiments.report import Row, has_figures, verdict, write

from .console import UserError, fields, note, table

# Experiments over several seeds take consecutive ones.
_SEED_STRIDE = 1000


def run(options: Namespace) -> int:
    """Run the chosen experiments; 1 when one of them fails."""
    if options.list:
        print(table(("id", "claim"), [(e.id, e.title) for e in CORE], left=2))
        return 0
    chosen = _choose(options)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    context = Context(seed=options.seed, threads=options.threads)
    seeds = [options.seed + _SEED_STRIDE * i for i in range(options.seeds)]
    rows: list[Row] = []
    started = time.perf_counter()
    for experiment in chosen:
        at = time.perf_counter()
        outcomes = [experiment.run(replace(context, seed=seed)) for seed in seeds]
        seconds = (time.perf_counter() - at) / len(seeds)
        rows.append(Row(experiment, outcomes[0], seconds, dict(zip(seeds, outcomes, strict=True))))
        print(_shown(rows[-1]), flush=True)
    files = write(folder, rows, context)
    if not has_figures():
        note("matplotlib is not installed: the page has no figures")
    failed = [row.experiment.id for row in rows if row.verdict == "fail"]
    passed = sum(row.verdict == "pass" for row in rows)
    reported = len(rows) - passed - len(failed)
    print(
        f"{passed} passed, {len(failed)} failed{''.join(f' {i}' for i in failed)}, {reported} "
        f"reported in {time.perf_counter() - started:.1f} s; {', '.join(map(str, files))}"
    )
    return 1 if failed else 0


def _choose(options: Namespace) -> list[Experiment]:
    known = {experiment.id: experiment for experiment in CORE}
    unknown = [name for name in options.ids if name not in known]
    if unknown:
        raise UserError(f"unknown experiment {unknown[0]}; there are {', '.join(known)}")
    if not options.core and not options.ids:
        raise UserError(f"choose experiments: --core for all, or IDs of {', '.join(known)}")
    return [e for e in CORE if options.core or e.id in options.ids]


def _shown(row: Row) -> str:
    experiment = row.experiment
    rows = [
        ("claim", experiment.claim),
        ("measured", row.outcome.measured),
        ("threshold", experiment.threshold),
        ("verdict", f"{row.verdict.upper()}  ({row.seconds:.1f} s)"),
    ]
    if len(row.seeds) > 1:
        rows[1:2] = [
            (f"seed {seed}", f"{verdict(outcome)}: {outcome.measured}")
            for seed, outcome in row.seeds.items()
        ]
    lines = fields(rows).split("\n")
    wrapped = [
        textwrap.fill(line, 100, subsequent_indent=" " * 11, break_on_hyphens=False)
        for line in lines
    ]
    body = textwrap.indent("\n".join(wrapped), "  ")
    return f"{experiment.id}  {experiment.title}\n{body}\n"
