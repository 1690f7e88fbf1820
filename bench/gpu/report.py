"""Fills the tables of docs/gpu.md: what the compiler made of the kernels, and predicted times.

python -m bench.gpu.report                needs nvcc; nvdisasm adds the column of HMMA
python -m bench.gpu.report --release LOG  only the table of a release, from its build's output
python -m bench.gpu.report --check        only say whether the page is stale
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench import machine
from bench.cases import CASES
from bench.gpu import model, objects, steps
from bench.gpu.objects import Kernel

PAGE = machine.ROOT / "docs" / "gpu.md"
_MARK = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

# Batch, inputs, outputs of a dense layer.
SHAPES = (
    (256, 784, 512), (1024, 784, 512), (8192, 784, 1024), (65536, 784, 1024), (65536, 1024, 10),
    (1024, 256, 256), (65536, 256, 256), (1024, 1024, 1024), (8192, 1024, 1024),
    (65536, 1024, 1024), (256, 4096, 4096), (1024, 4096, 4096), (4096, 4096, 4096),
)  # fmt: skip
# Of batch norm in shared memory, where more rows do not fit.
SLAB_ROWS = 1024
FORMS = ("forward", "input gradient", "weight gradient")


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(lines[0]) - 1))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _range(values: Iterable[int]) -> str:
    ordered = sorted(set(values))
    if not ordered:
        return "-"
    return str(ordered[0]) if len(ordered) == 1 else f"{ordered[0]}-{ordered[-1]}"


def _dynamic_shared(kernel: Kernel, launched: Mapping[str, Iterable[int]]) -> str:
    if kernel.template in launched:
        return _range(launched[kernel.template])
    if objects.uses_dynamic_shared(kernel.source):
        raise ValueError(f"expected a launch of {kernel.template} in bench/gpu/launches.cpp")
    return "0"


def kernel_table(kernels: list[Kernel], launched: Mapping[str, Iterable[int]]) -> str:
    """One row per kernel template: its instances for both architectures.

    launched: bytes of dynamic shared memory of its launches, by template.
    """
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.source, kernel.template), []).append(kernel)
    rows = []
    for (source, template), group in groups.items():
        by_arch = {a: [k for k in group if k.arch == a] for a in objects.ARCHITECTURES}
        rows.append(
            [
                f"`{template}` ({source})",
                max(map(len, by_arch.values())),
                *(_range(k.registers for k in by_arch[a]) for a in objects.ARCHITECTURES),
                _range(k.shared for k in group),
                _dynamic_shared(group[0], launched),
                max(k.spills for k in group),
                max(k.stack for k in group),
                _range(k.count("HMMA") for k in group),
                _microseconds(model.kernel(template).seconds()),
            ]
        )
    registers = [f"registers, sm_{a}" for a in objects.ARCHITECTURES]
    shared = ["static shared", "dynamic shared"]
    header = ["kernel", "instances", *registers, *shared, "spilled", "stack", "HMMA", "us"]
    version = (
        f"nvcc {objects.nvcc_version()}; bytes of memory; ranges are over the instances. Dynamic "
        "shared memory is that of the\nlaunches in bench/gpu/launches.cpp, as for an H200, and us "
        f"predicted as below: for a float32 matrix of\n{model.ROWS} x {model.COLUMNS}, of which "
        f"batch norm's slabs have {SLAB_ROWS} rows, or an arena of as many elements.\n\n"
    )
    return version + _table(header, rows)


def release_table(kernels: list[Kernel]) -> str:
    """One row per architecture of a build."""
    by_arch: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        by_arch.setdefault(kernel.arch, []).append(kernel)
    rows = [
        [
            f"sm_{arch}",
            len(group),
            _range(k.registers for k in group),
            max(k.shared for k in group),
            max(k.spills for k in group),
            max(k.stack for k in group),
        ]
        for arch, group in by_arch.items()
    ]
    header = ["architecture", "kernels", "registers", "static shared", "spilled", "stack"]
    return f"nvcc {objects.nvcc_version()}; bytes of memory, the most of a kernel.\n\n" + _table(
        header, rows
    )


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}" if seconds < 1e-4 else f"{1e6 * seconds:.0f}"


def product_table() -> str:
    """The three products of a dense layer in every arithmetic, in microseconds."""
    arithmetics = [None, *model.PRODUCTS]
    rows = []
    for batch, inputs, outputs in SHAPES:
        for form in FORMS:
            works = [model.product(form, batch, inputs, outputs, one) for one in arithmetics]
            floor = model.product(form, batch, inputs, outputs, "medium")
            rows.append(
                [
                    f"{form}, {batch} x {inputs} -> {outputs}",
                    *(_microseconds(work.seconds()) for work in works),
                    _microseconds(floor.seconds(model.TENSOR_FLOPS)),
                ]
            )
    names = ["float32 SIMT", *model.PRODUCTS]
    return _table(["product", *names, "medium at 790 TFLOP/s"], rows)


def memory_table() -> str:
    """Kernels that memory bounds, in microseconds."""
    rows = []
    for batch, width in ((1024, 512), (8192, 1024), (65536, 1024)):
        for work in model.batch_norm(batch, width, 0):
            rows.append([f"{work.name}, {batch} x {width}", work.bytes, work.seconds()])
    for parameters in (10**6, 16 * 2**20):
        work = model.adam(parameters, 0)
        rows.append([f"{work.name}, {parameters:,} parameters", work.bytes, work.seconds()])
    return _table(
        ["kernel, float32", "MB", "us"],
        [[name, f"{moved / 1e6:.1f}", _microseconds(seconds)] for name, moved, seconds in rows],
    )


def step_table() -> str:
    """Whole training steps, in microseconds."""
    chosen = [(CASES[name], batch) for name in "abcd" for batch in CASES[name].batches]
    chosen += [(steps.MNIST, 128), (steps.MNIST, 1024)]
    rows = []
    for case, batch in chosen:
        cells = []
        for precision in (None, *model.PRODUCTS):
            works = list(model.step(case, batch, precision))
            cells.append(_microseconds(sum(work.seconds() for work in works)))
        rows.append([f"{case.name}: {case.title}, batch {batch}", len(works), *cells])
    return _table(["step", "launches", "float32 SIMT", *model.PRODUCTS], rows)


def current(page: str, name: str) -> str:
    """A table as it stands in the page."""
    return next(match[3][1:-1] for match in _MARK.finditer(page) if match[2] == name)


def fill(page: str, tables: dict[str, str]) -> str:
    """The page with every marked table replaced by its namesake."""
    names = {match[1] for match in _MARK.findall(page)}
    if names != set(tables):
        raise ValueError(f"expected the marks {sorted(tables)} in the page, got {sorted(names)}")
    return _MARK.sub(lambda match: f"{match[1]}\n{tables[match[2]]}\n{match[4]}", page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--release", metavar="LOG", type=Path)
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    version = re.search(r"nvcc (\d\S+);", text)
    if arguments.check and version and version[1] != objects.nvcc_version():
        print(
            f"docs/gpu.md is of nvcc {version[1]}; this is {objects.nvcc_version()}, not compared"
        )
        return 0
    disassembler = objects.nvdisasm()
    if arguments.check and disassembler is None:
        print("--check needs nvdisasm: pip install nvidia-cuda-nvdisasm", file=sys.stderr)
        return 2
    if arguments.release:
        names = [match[1] for match in _MARK.findall(text)]
        tables = {name: current(text, name) for name in names}
        tables["release"] = release_table(objects.parse_build(arguments.release.read_text()))
        Path(PAGE).write_text(fill(text, tables), encoding="utf-8")
        return 0
    tables = {
        "release": current(text, "release"),
        "kernels": kernel_table(
            objects.compile_all(disassembler=disassembler),
            objects.dynamic_shared(model.ROWS, model.COLUMNS, SLAB_ROWS),
        ),
        "products": product_table(),
        "memory": memory_table(),
        "steps": step_table(),
    }
    filled = fill(text, tables)
    if filled == text:
        return 0
    if arguments.check:
        print("docs/gpu.md is stale: run `python -m bench.gpu.report`", file=sys.stderr)
        return 1
    Path(PAGE).write_text(filled, encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
