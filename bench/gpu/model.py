"""Predicted times of kernels, from their bytes and operations.

A kernel takes what the slower of memory and arithmetic takes, plus a fixed time; caches, waves and
tails are left out, so that every number is a lower bound of what a GPU will need.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from bench.cases import Case

# Measured on an H200 by others: what cuBLAS reaches in bfloat16, and what a copy reaches.
TENSOR_FLOPS = 790e12
BANDWIDTH = 4.3e12
# Of kernels with mma.sync on a Hopper GPU, about half of wgmma's.
MMA_SYNC_FLOPS = 400e12
# Fused multiply-adds of float32 on the SIMT units.
SIMT_FLOPS = 50e12
# A launch in a graph: start, tail and the first trip to memory.
FIXED_SECONDS = 2e-6

# Products and planes of a float32 product on the tensor cores.
PRODUCTS = {"highest": 6, "high": 3, "medium": 1}
PLANES = {"highest": 3, "high": 2, "medium": 1}


@dataclass(frozen=True)
class Work:
    """What one launch does."""

    name: str
    flops: float
    bytes: float
    tensor_cores: bool = False

    def seconds(self, tensor_flops: float = MMA_SYNC_FLOPS) -> float:
        peak = tensor_flops if self.tensor_cores else SIMT_FLOPS
        return max(self.flops / peak, self.bytes / BANDWIDTH) + FIXED_SECONDS


def product(form: str, rows: int, inputs: int, outputs: int, precision: str | None) -> Work:
    """One product of a dense layer; precision None is float32 on the SIMT units.

    Operands are read as planes and results written with theirs: the epilogue makes them.
    """
    planes = PLANES.get(precision or "", 0)
    read = 2 * planes if planes else 4
    written = 4 + 2 * planes
    x, w, y = rows * inputs, outputs * inputs, rows * outputs
    moved = {
        "forward": read * (x + w) + written * y,
        "input gradient": read * (y + w) + (written + 1 / 8) * x,  # and the sign of each output
        "weight gradient": read * (x + y) + 4 * w,
    }[form]
    flops = 2.0 * rows * inputs * outputs * PRODUCTS.get(precision or "", 1)
    return Work(form, flops, moved, tensor_cores=planes > 0)


def elementwise(name: str, elements: float, bytes_each: float) -> Work:
    return Work(name, 0.0, elements * bytes_each)


def adam(parameters: float, planes: int) -> Work:
    """Reads and writes p, m and v, reads g, writes the planes of p."""
    return elementwise("Adam", parameters, 28 + 2 * planes)


def batch_norm(rows: int, width: int, planes: int) -> list[Work]:
    """Statistics come with the product before; the backward pass reads x and dy twice."""
    size = rows * width
    return [
        elementwise("batch norm, forward", size, 8 + 2 * planes),
        elementwise("batch norm, backward", size, 20 + 2 * planes),
    ]


# What the kernels are compared at: a float32 matrix, or an arena of as many elements.
ROWS, COLUMNS = 8192, 1024

# Bytes that a kernel reads and writes per element of it: 4 per value, 2 per plane.
_PER_ELEMENT = {
    "copy_kernel": 8, "add_kernel": 12, "scale_kernel": 8, "axpy_kernel": 12, "dot_kernel": 8,
    "count_not_finite_kernel": 4, "add_compensated_kernel": 36, "copy_if_running_kernel": 8,
    "split_planes_kernel": 10, "gather_kernel": 8, "pack_kernel": 8, "scatter_kernel": 8,
    "check_elements_kernel": 4, "activation_kernel": 8, "activation_backward_kernel": 12,
    "activation_backward_tangent_kernel": 20, "dropout_kernel": 8, "column_sums_kernel": 4,
    "maxout_kernel": 6, "maxout_backward_kernel": 10, "maxout_tangent_kernel": 10,
    "column_statistics_kernel": 4, "batch_norm_kernel": 8, "batch_norm_slab_kernel": 8,
    "backward_sums_kernel": 12, "batch_norm_backward_kernel": 16, "backward_slab_kernel": 16,
    "tangent_sums_kernel": 16, "batch_norm_tangent_kernel": 12,
    "batch_norm_backward_tangent_kernel": 20, "softmax_kernel": 8, "cross_entropy_kernel": 8,
    "cross_entropy_tangent_kernel": 12, "elementwise_loss_kernel": 12,
    "elementwise_loss_tangent_kernel": 16, "optimizer_step_kernel": 28,
    "optimizer_theta_kernel": 12, "gradient_norm_kernel": 4,
}  # fmt: skip
# Per row or column of it.
_PER_ROW = {"gather_targets_kernel": 16}
_PER_COLUMN = {
    "fold_batch_norm_kernel": 28, "running_statistics_kernel": 32, "merge_tangent_sums_kernel": 24,
}  # fmt: skip
_NOTHING = ("advance_step_kernel", "probe_kernel")


def kernel(template: str) -> Work:
    """A launch on the matrix of ROWS x COLUMNS; products have as many inputs as outputs."""
    if template in ("simt_kernel", "mma_kernel"):
        precision = "medium" if template == "mma_kernel" else None
        return product("forward", ROWS, COLUMNS, COLUMNS, precision)
    for counts, elements in (
        (_PER_ELEMENT, ROWS * COLUMNS),
        (_PER_ROW, ROWS),
        (_PER_COLUMN, COLUMNS),
    ):
        if template in counts:
            return elementwise(template, elements, counts[template])
    if template in _NOTHING:
        return elementwise(template, 0, 0)
    raise ValueError(f"expected the bytes that {template} moves in {__file__}; add them there")


def step(case: Case, batch: int, precision: str | None) -> Iterator[Work]:
    """The launches of a training step that move most of its bytes."""
    planes = PLANES.get(precision or "", 0)
    yield elementwise("gather", batch * case.widths[0], 8 + 2 * planes)
    layers = list(itertools.pairwise(case.widths))
    for number, (i, o) in enumerate(layers):
        yield product("forward", batch, i, o, precision)
        if case.batch_norm and number + 1 < len(layers):
            yield from batch_norm(batch, o, planes)
    for number, (i, o) in enumerate(layers):
        yield product("weight gradient", batch, i, o, precision)
        if number:
            yield product("input gradient", batch, i, o, precision)
    yield adam(case.parameters, planes)
