"""The compiled kernels, without a GPU: no spill, no local memory, the instructions they are for.

Needs nvcc; the instructions need nvdisasm too (`pip install nvidia-cuda-nvdisasm`). Where both must
be there, THALWEG_REQUIRE_NVCC=1 turns their absence into a failure.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bench.cases import CASES
from bench.gpu import model, objects, report
from bench.gpu.objects import Kernel

REQUIRED = os.environ.get("THALWEG_REQUIRE_NVCC") == "1"

needs_nvcc = pytest.mark.skipif(objects.nvcc() is None and not REQUIRED, reason="needs nvcc")
needs_disassembly = pytest.mark.skipif(
    (objects.nvcc() is None or objects.nvdisasm() is None) and not REQUIRED,
    reason="needs nvcc and nvdisasm",
)


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    """All kernels for sm_80 and sm_90. Warnings of nvcc and serialized products fail here."""
    return objects.compile_all(disassembler=objects.nvdisasm())


def violations(kernels: list[Kernel], broken: Callable[[Kernel], bool]) -> list[str]:
    return [f"{k.source} sm_{k.arch}: {k.name}" for k in kernels if broken(k)]


@needs_nvcc
def test_every_source_has_kernels_for_both_architectures(kernels: list[Kernel]) -> None:
    for source in objects.sources():
        architectures = {k.arch for k in kernels if k.source == source.name}
        text = source.read_text(encoding="utf-8")
        if "TW_KERNEL" in text:
            assert architectures == set(objects.ARCHITECTURES), source.name
    assert all(kernel.registers > 0 for kernel in kernels)


@needs_nvcc
def test_nothing_spills_or_has_a_stack(kernels: list[Kernel]) -> None:
    assert not violations(kernels, lambda k: k.spills > 0)
    assert not violations(kernels, lambda k: k.stack > 0)


@needs_disassembly
def test_no_kernel_uses_local_memory(kernels: list[Kernel]) -> None:
    assert all(kernel.instructions for kernel in kernels)
    assert not violations(kernels, lambda k: k.count("LDL") + k.count("STL") > 0)


@needs_disassembly
def test_products_use_the_units_they_are_for(kernels: list[Kernel]) -> None:
    """Tensor cores, or fused multiply-adds; operands that come by asynchronous copies."""
    products = [k for k in kernels if k.template in {"mma_kernel", "simt_kernel"}]
    assert {k.template for k in products} == {"mma_kernel", "simt_kernel"}
    for kernel in products:
        if kernel.template == "mma_kernel":
            units = ["HMMA", "LDSM"]
        else:
            units = ["DFMA" if "double" in kernel.name else "FFMA"]
        for unit, least in [*((unit, 8) for unit in units), ("LDGSTS", 4)]:
            assert kernel.count(unit) >= least, f"sm_{kernel.arch} {kernel.name}: {unit}"


@needs_disassembly
def test_optimizer_steps_move_whole_vectors(kernels: list[Kernel]) -> None:
    steps = [k for k in kernels if k.template == "optimizer_step_kernel"]
    assert steps
    # Generic or global; cache hints stand between the name and the size: LDG.E.EF.128.
    for access in (("LDG.", "LD."), ("STG.", "ST.")):
        assert not violations(
            steps,
            lambda k, access=access: (
                not any(name.startswith(access) and ".128" in name for name in k.instructions)
            ),
        )


@needs_disassembly
def test_nobody_adds_floating_point_numbers_atomically(kernels: list[Kernel]) -> None:
    """The order of such sums, and so their last bits, would vary from run to run."""
    atomic = re.compile(r"(ATOM|RED)\w*\..*ADD.*\.(F16|BF16|F32|F64)")
    assert not violations(kernels, lambda k: any(map(atomic.match, k.instructions)))


SPILLS = """
#include "cuda/device/device.h"
namespace thalweg::cuda {
TW_KERNEL_BOUNDS(1024, 2) void greedy_kernel(float* x, int n) {
  float values[96];
  TW_UNROLL
  for (int i = 0; i < 96; ++i) values[i] = x[i * n];
  for (int k = 0; k < n; ++k) {
    TW_UNROLL
    for (int i = 0; i < 96; ++i) values[i] = values[i] * values[(i + 7) % 96] + x[k];
  }
  TW_UNROLL
  for (int i = 0; i < 96; ++i) x[i * n] = values[i];
}
TW_KERNEL void indexed_kernel(float* x, int n) {
  float values[256];
  for (int i = 0; i < 256; ++i) values[i] = x[i];
  for (int i = 0; i < n; ++i) values[static_cast<int>(x[i]) % 256] += x[i];
  for (int i = 0; i < 256; ++i) x[i] = values[i];
}
}  // namespace thalweg::cuda
"""


@needs_nvcc
def test_spills_and_stacks_are_seen(tmp_path: Path) -> None:
    source = tmp_path / "greedy.cu"
    source.write_text(SPILLS)
    found = objects.compile_source(source, "90", tmp_path, None)
    greedy = next(kernel for kernel in found if kernel.template == "greedy_kernel")
    assert greedy.spills > 0
    indexed = next(kernel for kernel in found if kernel.template == "indexed_kernel")
    assert indexed.stack > 0


@needs_nvcc
def test_warnings_are_errors(tmp_path: Path) -> None:
    source = tmp_path / "careless.cu"
    source.write_text("__global__ void careless_kernel() { int unused; }\n")
    with pytest.raises(objects.CompilationError, match="never referenced"):
        objects.compile_source(source, "90", tmp_path, None)


def test_names_are_short() -> None:
    long = (
        "void thalweg::cuda::(anonymous namespace)::mma_kernel<thalweg::cuda::ForwardTask<float>, "
        "thalweg::cuda::(anonymous namespace)::Tile<(int)128, (int)64, (int)4>, (bool)1>(T1)"
    )
    assert objects.short_name(long) == "mma_kernel<ForwardTask<float>, Tile<128, 64, 4>, 1>"


def test_predicted_times() -> None:
    """Against the arithmetic of a page of paper: an H200 with 4.3 TB/s and 790 TFLOP/s."""
    adam = model.adam(4096**2, 0)
    assert adam.seconds() == pytest.approx(28 * 4096**2 / 4.3e12 + 2e-6)
    square = model.product("forward", 4096, 4096, 4096, "medium")
    assert square.seconds(model.TENSOR_FLOPS) == pytest.approx(2 * 4096**3 / 790e12 + 2e-6)
    assert model.product("forward", 4096, 4096, 4096, "highest").flops == 6 * square.flops
    narrow = model.product("forward", 65536, 1024, 10, None)
    assert narrow.bytes == 4 * (65536 * 1024 + 10240 + 655360)
    works = list(model.step(CASES["b"], 128, None))
    assert [work.name for work in works].count("batch norm, backward") == 2
    assert sum(work.flops for work in works) == 128 * CASES["b"].flops_per_sample


def test_tables_of_the_page() -> None:
    one = Kernel("copy_kernel<float>", "a.cu", "80", 40, 1024, 0, 0, Counter(HMMA=2))
    two = Kernel("copy_kernel<double>", "a.cu", "80", 60, 0, 8, 16, Counter())
    table = report.kernel_table([one, two, Kernel("copy_kernel<float>", "a.cu", "90", 44)], {})
    copied = 8 * 8192 * 1024 / 4.3e12 + 2e-6
    us = f"{1e6 * copied:.1f}"
    assert f"| `copy_kernel` (a.cu) | 2 | 40-60 | 44 | 0-1024 | 0 | 16 | 8 | 0-2 | {us} |" in table
    assert "| 0-1024 | 64-96 | 16 |" in report.kernel_table([one, two], {"copy_kernel": [96, 64]})
    with pytest.raises(ValueError, match="expected a launch of scale_kernel in"):
        report.kernel_table([Kernel("scale_kernel<float>", "gemm_mma.cu", "80", 40)], {})
    with pytest.raises(ValueError, match="expected the bytes that new_kernel moves"):
        report.kernel_table([Kernel("new_kernel<float>", "a.cu", "80", 40)], {})
    page = "x\n<!-- generated: steps -->\nold\n<!-- end -->\ny\n"
    filled = report.fill(page, {"steps": report.step_table()})
    assert "old" not in filled and filled.startswith("x\n") and filled.endswith("\ny\n")
    assert report.fill(filled, {"steps": report.step_table()}) == filled
    assert report.current(filled, "steps") == report.step_table()
    with pytest.raises(ValueError, match="expected the marks"):
        report.fill(page, {"kernels": ""})


@needs_nvcc
def test_dynamic_shared_memory_is_that_of_the_launches() -> None:
    """Against a page of paper: three stages of two operands' planes, of 128 rows of 64 bytes."""
    found = objects.dynamic_shared(8192, 1024, 1024)
    assert set(found["mma_kernel"]) == {3 * 2 * 128 * 128}
    assert max(found["simt_kernel"]) == 3 * 2 * 128 * (64 + 16)
    assert set(found["optimizer_step_kernel"]) == {12 * 4}
    # Four blocks share 1024 rows: 256 rows of 32 columns, once and twice.
    (forward,) = found["batch_norm_slab_kernel"]
    (backward,) = found["backward_slab_kernel"]
    assert backward - forward == 256 * 32 * 4 and forward > 256 * 32 * 4
    # Without it.
    assert found["column_statistics_kernel"] == [0] and found["gradient_norm_kernel"] == [0]


BUILD = """[1/2] Building CUDA object loss.cu.o
ptxas info    : Compiling entry function '_ZN7thalweg4cuda39_GLOBAL__N__{hash}_7_loss_cu_86c4a4da11loss_kernelIfEEvT_' for 'sm_{arch}'
ptxas info    : Function properties for loss_kernel
    {stack} bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used {registers} registers, used 0 barriers, {stack} bytes stack, 16 bytes smem
"""  # noqa: E501


def test_table_of_a_build() -> None:
    """A source that was built again counts once, as it is now."""
    before = BUILD.format(hash="c07f68fd", arch="90a", stack=8, registers=80)
    after = BUILD.format(hash="1107f8fd", arch="90a", stack=16, registers=70)
    other = BUILD.format(hash="1107f8fd", arch="100", stack=0, registers=60)
    kernels = objects.parse_build(before + after + other)
    assert [(k.source, k.arch, k.registers) for k in kernels] == [
        ("loss.cu", "90a", 70),
        ("loss.cu", "100", 60),
    ]
    table = report.release_table(kernels)
    assert "| sm_90a | 1 | 70 | 16 | 12 | 16 |" in table
    assert "| sm_100 | 1 | 60 | 16 | 12 | 0 |" in table
    with pytest.raises(objects.CompilationError, match="warnings"):
        objects.parse_build(after + "ptxas warning : Registers are spilled\n")
