"""Pages out of rows (`python -m bench table`): docs/benchmarks.md and the README's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bench import kernels, peers
from bench.cases import CASES
from bench.results import Row, read_all

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
_LIBRARIES = {
    "thalweg": "thalweg",
    "torch": "PyTorch",
    "jax": "JAX",
    "sklearn": "scikit-learn",
    "numpy": "NumPy",
}
_INTRODUCTION = """# Benchmarks

Written by `python -m bench table` from the rows in `bench/results/`; do not edit. What is timed and
how, what counts as the same work and what is not measured: [bench/README.md](../bench/README.md).

![Times of other libraries over thalweg's, per training step](benchmarks.svg)
"""


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(value: float) -> str:
    """Three significant digits with k or M."""
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            value /= unit
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}{suffix}"
    return f"{value:.0f}"


def _best_modes(row: Row) -> dict[str, str]:
    """The fastest peer of every library; thalweg's is `fit`, its plain use."""
    best: dict[str, str] = {}
    for name, entry in row["peers"].items():
        library = peers.family(name)
        time = entry["microseconds"]["median"]
        if name == "thalweg" or (
            library not in best
            or (best[library] != "thalweg" and time < _median(row, best[library]))
        ):
            best[library] = name
    return best


def _median(row: Row, name: str) -> float:
    return float(row["peers"][name]["microseconds"]["median"])


def _ratio(row: Row, name: str) -> str:
    ratio = row["peers"][name].get("ratio")
    return f"{ratio['median']:.2f}x" if ratio else ""


def _where(row: Row) -> str:
    hop = row["hop_ns"]
    return f"{hop['median']:.0f} ns, {row['placement']}" if hop else "-"


def step_table(rows: Sequence[Row]) -> str:
    """Samples per second of every library's best mode and how many times as fast thalweg is."""
    libraries = [name for name in _LIBRARIES if any(name in _best_modes(row) for row in rows)]
    lines = []
    for row in rows:
        best = _best_modes(row)
        cells = []
        for library in libraries:
            name = best.get(library)
            if name is None:
                cells.append("-")
                continue
            rate = short(row["peers"][name]["samples_per_second"])
            cells.append(rate if library == "thalweg" else f"{rate} ({_ratio(row, name)})")
        noisy = " (noisy)" if row["noisy"] else ""
        lines.append(
            [
                f"{row['case']}: {row['title']}{noisy}",
                str(row["batch"]),
                str(row["threads"]),
                _where(row),
                *cells,
            ]
        )
    return _grid(
        ["case", "batch", "threads", "hop", *(_LIBRARIES[name] for name in libraries)], lines
    )


def _mode_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for name, entry in row["peers"].items():
            time, ratio = entry["microseconds"], entry.get("ratio")
            lines.append(
                [
                    f"{row['case']}, batch {row['batch']}, {row['threads']} threads",
                    name,
                    f"{time['median']:,.4g}",
                    f"{time['q1']:,.4g} .. {time['q3']:,.4g}",
                    f"{ratio['median']:.2f} ({ratio['q1']:.2f} .. {ratio['q3']:.2f})"
                    if ratio
                    else "-",
                    str(entry["threads"]),
                    f"{entry['loss_deviation']:.0e}",
                ]
            )
    head = [
        "case",
        "peer",
        "µs per step",
        "quartiles",
        "time / thalweg",
        "threads",
        "loss deviation",
    ]
    return _grid(head, lines)


def _start_table(row: Row) -> str:
    lines = []
    for name, entry in row["libraries"].items():
        install = entry["install"]
        size = "-"
        if install:
            size = f"{install['package_mb']:g} ({install['with_dependencies_mb']:g})"
            size += ", editable" if install["editable"] else ""
        lines.append(
            [
                _LIBRARIES[name],
                *(
                    f"{entry[column]['median']:.0f}"
                    for column in (
                        "import_ms",
                        "process_to_import_ms",
                        "process_to_first_step_ms",
                        "peak_memory_mib",
                    )
                ),
                size,
            ]
        )
    head = [
        "library",
        "import, ms",
        "process start to imported, ms",
        "process start to first step, ms",
        "peak memory then, MiB",
        "installed, MB (with dependencies)",
    ]
    return _grid(head, lines)


def _mnist_name(library: str) -> str:
    name, _, precision = library.partition("-")
    return _LIBRARIES[name] + (f', `matmul_precision="{precision}"`' if precision else "")


def _mnist_table(row: Row) -> str:
    lines = [
        [
            _mnist_name(name),
            f"{run['seed']:.0f}",
            f"{100 * run['accuracy']:.2f} %",
            f"{run['train_seconds']:.1f}",
            f"{run['process_seconds']:.1f}",
            f"{run['peak_memory_mib']:.0f}",
        ]
        for name, runs in row["libraries"].items()
        for run in runs
    ]
    head = [
        "library",
        "seed",
        "test accuracy",
        "training, s",
        "whole process, s",
        "peak memory, MiB",
    ]
    return _grid(head, lines)


def _between(values: Mapping[str, float] | None) -> str:
    if values is None:
        return "-"
    return f"{values['median']:.2f} ({values['q1']:.2f} .. {values['q3']:.2f})"


def _curvature_table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        noisy = " (noisy)" if row["noisy"] else ""
        for name, entry in row["peers"].items():
            time = entry["microseconds"]["median"]
            lines.append(
                [
                    f"{row['case']}, {row['batch']} rows, {row['threads']} threads{noisy}",
                    name,
                    f"{time:,.0f}" if time >= 1000 else f"{time:.4g}",
                    _between(entry.get("over_gradient")),
                    _between(entry.get("over_thalweg")),
                    f"{entry['deviation']:.0e}",
                ]
            )
    head = ["case", "peer", "µs", "time / own gradient", "time / thalweg", "deviation"]
    return _grid(head, lines)


def _curvature_section(rows: Sequence[Row]) -> list[str]:
    found = [row for row in rows if row["kind"] == "curvature" and row["peers"]]
    found.sort(key=lambda row: (row["case"], -row["threads"]))
    if not found:
        return []
    versions = {k: v for row in found for k, v in row["versions"].items()}
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return [
        "### Gradients and products with the Hessian\n\nFloat32, the loss of one minibatch; "
        "`product` at a new point, `again` one more at the same point. PyTorch by double backward, "
        "`torch.autograd.functional.hvp` and forward over reverse, JAX forward over reverse under "
        f"jit. {listed}. Reproduce: `python -m bench curvature`.",
        _curvature_table(found),
    ]


def _kernel_table(row: Row) -> str:
    libraries = list(dict.fromkeys(entry["library"] for entry in row["entries"]))
    lines = []
    for shape, entries in kernels.shapes(row).items():
        cells = []
        for name in libraries:
            entry = entries.get(name)
            ratio = f" ({entry['ratio']:.2f}x)" if entry and name != "thalweg" else ""
            cells.append(kernels.rate(entry) + ratio if entry else "-")
        lines.append([", ".join(str(value) for _, value in shape), *cells])
    return _grid([", ".join(key for key, _ in next(iter(kernels.shapes(row)))), *libraries], lines)


def _precision(row: Row) -> str:
    return str(row.get("precision", "highest"))


def _times_thalweg(
    library: str, case: str, batch: int, precision: str
) -> Callable[[Row], float | None]:
    """Time of a library's best mode over thalweg's, both on two threads."""

    def value(row: Row) -> float | None:
        if (row["kind"], row.get("case"), row.get("batch")) != ("step", case, batch):
            return None
        name = _best_modes(row).get(library)
        if row["threads"] != 2 or _precision(row) != precision or name is None:
            return None
        ratio = row["peers"][name].get("ratio")
        return ratio and float(ratio["median"])

    return value


def _population(row: Row) -> float | None:
    """How many times as fast as PyTorch's best mode the networks of a population are trained."""
    if (row["kind"], row.get("case"), row.get("batch"), row.get("threads")) != ("step", "c", 32, 2):
        return None
    name = _best_modes(row).get("torch")
    if name is None or "thalweg-population" not in row["peers"]:
        return None
    return _median(row, name) / _median(row, "thalweg-population")


def _product_over_gradient(case: str) -> Callable[[Row], float | None]:
    """Time of a product with the Hessian at a new point over that of a gradient."""

    def value(row: Row) -> float | None:
        if (row["kind"], row.get("case"), row.get("threads")) != ("curvature", case, 2):
            return None
        ratio = row["peers"].get("thalweg-product", {}).get("over_gradient")
        return ratio and float(ratio["median"])

    return value


def _start(column: str) -> Callable[[Row], float | None]:
    """Reads a median of thalweg's cold start."""

    def read(row: Row) -> float | None:
        if row["kind"] != "start" or column not in row["libraries"].get("thalweg", {}):
            return None
        return float(row["libraries"]["thalweg"][column]["median"])

    return read


def _mnist_runs(row: Row, library: str = "thalweg") -> list[Mapping[str, float]]:
    full = row["kind"] == "mnist" and row["epochs"] == 10
    return row["libraries"].get(library, []) if full else []


def _accuracy(row: Row) -> float | None:
    return min((100 * run["accuracy"] for run in _mnist_runs(row)), default=None)


def _mnist_mean(row: Row, library: str, column: str) -> float | None:
    runs = _mnist_runs(row, library)
    return sum(run[column] for run in runs) / len(runs) if runs else None


def _mnist_time(row: Row) -> float | None:
    """The fastest other library's training time over thalweg's."""
    own = _mnist_mean(row, "thalweg", "train_seconds")
    peers = [_mnist_mean(row, name, "train_seconds") for name in ("torch", "jax")]
    found = [seconds for seconds in peers if seconds is not None]
    return min(found) / own if own and found else None


def _medium_loss_of_accuracy(row: Row) -> float | None:
    """Points of mean test accuracy that bfloat16 products cost."""
    full = _mnist_mean(row, "thalweg", "accuracy")
    medium = _mnist_mean(row, "thalweg-medium", "accuracy")
    return None if full is None or medium is None else 100 * abs(full - medium)


def _memory(row: Row) -> float | None:
    return max((run["peak_memory_mib"] for run in _mnist_runs(row)), default=None)


# (case, batch, precision): least times of JAX's and PyTorch's best modes over thalweg's.
_GOALS = {
    ("a", 128, "highest"): {"jax": 1.30, "torch": 1.65},
    ("a", 1024, "highest"): {"jax": 1.13, "torch": 1.30},
    ("b", 128, "highest"): {"jax": 1.40, "torch": 1.70},
    ("b", 1024, "highest"): {"jax": 1.30, "torch": 1.40},
    ("c", 32, "highest"): {"jax": 3.5, "torch": 35.0},
    ("c", 256, "highest"): {"jax": 3.0, "torch": 7.0},
    ("d", 512, "highest"): {"jax": 1.15, "torch": 1.20},
    ("e", 128, "highest"): {"jax": 2.8, "torch": 3.0},
    ("a", 128, "medium"): {"torch": 2.0},
    ("a", 1024, "medium"): {"torch": 1.2},
    ("d", 512, "medium"): {"torch": 1.15},
}
# What is asked, how to read it from a row, unit, limit, and whether the limit is the least.
_REQUIREMENTS: tuple[tuple[str, Callable[[Row], float | None], str, float, bool], ...] = (
    *(
        (
            f"{case}, batch {batch}, {precision} precision, 2 threads: "
            f"{_LIBRARIES[library]}'s best time / thalweg's",
            _times_thalweg(library, case, batch, precision),
            "x",
            least,
            True,
        )
        for (case, batch, precision), goals in _GOALS.items()
        for library, least in goals.items()
    ),
    (
        "c, batch 32, 2 threads: 32 networks, PyTorch / `Population`",
        _population,
        "x",
        25,
        True,
    ),
    *(
        (
            f"{case}, 2 threads: time of a product with the Hessian / of a gradient",
            _product_over_gradient(case),
            "x",
            3.5,
            False,
        )
        for case in ("a", "b", "c")
    ),
    ("`import thalweg`", _start("import_ms"), " ms", 150.0, False),
    ("process start to first step", _start("process_to_first_step_ms"), " ms", 300.0, False),
    ("peak memory at the first step", _start("peak_memory_mib"), " MiB", 80e6 / 2**20, False),
    ("an update of the smallest network", _start("smallest_update_us"), " µs", 5.0, False),
    ("MNIST, 10 epochs: worst test accuracy", _accuracy, " %", 98.3, True),
    ("MNIST, 10 epochs: peak memory with the data", _memory, " MiB", 350.0, False),
    ("MNIST, 10 epochs: the fastest other library's time / thalweg's", _mnist_time, "x", 1.5, True),
    (
        'MNIST, 10 epochs: mean test accuracy, "highest" against "medium"',
        _medium_loss_of_accuracy,
        " points",
        0.1,
        False,
    ),
)


def _requirement_table(rows: Sequence[Row]) -> str:
    # The limits are about processors that are near each other: others count where none are.
    rows = sorted(rows, key=lambda row: row.get("placement") == "near")
    lines = []
    for title, read, unit, limit, least in _REQUIREMENTS:
        found = [value for value in map(read, rows) if value is not None]
        if not found:
            continue
        value = found[-1]
        met = value >= limit if least else value <= limit
        sign = "≥" if least else "≤"
        verdict = "yes" if met else "**no**"
        lines.append([title, f"{sign} {limit:g}{unit}", f"{value:.4g}{unit}", verdict])
    return _grid(["requirement", "limit", "measured", "met"], lines) if lines else ""


def _setting(row: Row) -> str:
    hardware = row["hardware"]
    parts = [
        f"{hardware['processor']}, {hardware['processors']} processors",
        f"L2 {hardware['l2']}, L3 {hardware['l3']}",
        f"{hardware['memory_gib']} GiB",
        hardware["system"],
        f"Python {hardware['python']}",
    ]
    return "; ".join(parts)


def _newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of every measurement; near and far processors are different measurements."""
    columns = ("kind", "case", "batch", "threads", "placement", "epochs")
    return list(
        {(_precision(row), *(row.get(column) for column in columns)): row for row in rows}.values()
    )


def _step_sections(rows: Sequence[Row]) -> list[str]:
    """Training steps, by precision, and inference."""
    parts = []
    for kind, precision, title, options in (
        ("step", "highest", "Training steps", ""),
        ("step", "high", 'Training steps, `matmul_precision="high"`', " --precision high"),
        ("step", "medium", 'Training steps, `matmul_precision="medium"`', " --precision medium"),
        ("inference", "highest", "Inference", " --work inference"),
        (
            "inference",
            "medium",
            'Inference, `matmul_precision="medium"`',
            " --work inference --precision medium",
        ),
    ):
        found = [row for row in rows if (row["kind"], _precision(row)) == (kind, precision)]
        found = [row for row in found if row["peers"]]
        found.sort(key=lambda row: (row["case"], row["batch"], -row["threads"]))
        if not found:
            continue
        versions = {k: v for row in found for k, v in row["versions"].items()}
        listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        batches = _batches_to_name(found)
        parts += [
            f"### {title}\n\nSamples per second, each library in its fastest mode; in "
            "brackets how many times as long as thalweg it takes (median over the rounds of "
            f"one run). {listed}. Reproduce: `python -m bench cpu{options}`{batches}.",
            step_table(found),
            "Every mode, with quartiles:",
            _mode_table(found),
        ]
    return parts


def page(rows: Sequence[Row]) -> str:
    """docs/benchmarks.md: a section per machine, newest rows only."""
    parts = [_INTRODUCTION]
    machines: dict[str, list[Row]] = {}
    for row in rows:
        machines.setdefault(_setting(row), []).append(row)
    for setting, measured in machines.items():
        newest = _newest(measured)
        commits = sorted({row["commit"] or "unknown" for row in newest})
        parts.append(f"## {setting}\n\nCommit {', '.join(commits)}.")
        parts.append(_requirement_table(newest))
        parts += _step_sections(newest)
        parts += _curvature_section(newest)
        for kind, title, command, build in (
            ("kernels", "Single kernels", "kernels", _kernel_table),
            ("start", "Cold start and size", "start", _start_table),
            ("mnist", "MNIST from files to accuracy", "mnist", _mnist_table),
        ):
            chosen = [row for row in newest if row["kind"] == kind]
            if chosen:
                parts.append(f"### {title}\n\nReproduce: `python -m bench {command}`.")
            for row in chosen:
                if kind == "mnist":
                    parts.append(
                        f"{row['title']}, batch {row['batch']}, {row['epochs']} epochs, "
                        f"{row['threads']} threads:"
                    )
                parts.append(build(row))
    return "\n\n".join(part for part in parts if part).replace("\n\n\n", "\n\n") + "\n"


def _is_default(row: Row) -> bool:
    """Whether the command measures this batch without being asked."""
    return row["case"] in CASES and row["batch"] in CASES[row["case"]].batches


def _batches_to_name(rows: Iterable[Row]) -> str:
    """How the command measures the batches that are not a case's own."""
    others = [row for row in rows if not _is_default(row)]
    cases = ",".join(sorted({row["case"] for row in others}))
    batches = ",".join(map(str, sorted({row["batch"] for row in others})))
    return f"; large minibatches: `--cases {cases} --batches {batches}`" if others else ""


def _of_last_machine(rows: Iterable[Row]) -> list[Row]:
    """Training steps of the machine measured last: one row per number of threads, case and batch.

    It is the newest quiet one of near processors, of a batch that is a case's own. Noisy ones count
    where none is quiet, those of far processors where none is near.
    """
    steps = [row for row in rows if row["kind"] == "step" and _precision(row) == "highest"]
    steps = [row for row in steps if "thalweg" in row["peers"] and _is_default(row)]
    steps = [row for row in steps if _setting(row) == _setting(steps[-1])]
    # Keeps the order by date.
    steps.sort(key=lambda row: (not row["noisy"], row.get("placement") == "near"))
    chosen = {(row["threads"], row["case"], row["batch"]): row for row in steps}
    return [chosen[key] for key in sorted(chosen)]


def _draw(rows: Sequence[Row], path: Path) -> None:
    from bench import plot

    chosen = _of_last_machine(rows)
    ratios = [
        {
            library: float(row["peers"][name]["ratio"]["median"])
            for library, name in _best_modes(row).items()
            if library != "thalweg"
        }
        for row in chosen
    ]
    plot.save(chosen, ratios, _LIBRARIES, path)


def write(
    paths: Iterable[Path], output: Path, readme: Path | None = None, picture: Path | None = None
) -> list[Path]:
    """Write the page, and on request the table between the two marks of a README and the picture.

    Returns what it wrote.
    """
    rows = read_all(paths)
    output.write_text(page(rows))
    written = [output]
    if picture is not None:
        _draw(rows, picture)
        written.append(picture)
    if readme is None:
        return written
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"[table] expected the marks {BEGIN} and {END} in {readme}")
    steps = _of_last_machine(rows)
    if steps:
        chosen = [row for row in steps if row["threads"] == steps[-1]["threads"]]
        before, after = text.split(BEGIN)[0], text.split(END, 1)[1]
        readme.write_text(f"{before}{BEGIN}\n{step_table(chosen)}\n{END}{after}")
        written.append(readme)
    return written
