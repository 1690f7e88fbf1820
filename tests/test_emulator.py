"""The CUDA emulator, by kernels that are right and kernels with a planted fault.

`cpp/emulator/cases.cu` holds both. g++ compiles it with the emulator, plain and under
AddressSanitizer; where there is nvcc, it has to compile for real GPUs too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

CSRC = ROOT / "csrc"
CASES = ROOT / "tests" / "cpp" / "emulator" / "cases.cu"
SOURCES = [
    *sorted((CSRC / "cuda" / "emulator").glob("*.cpp")),
    CSRC / "core/available_processors.cpp",
]
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wno-restrict"]
FLAGS += ["-ffp-contract=off", "-DTW_CUDA_EMULATED", f"-I{CSRC}"]
VARIANTS = {
    "plain": [],
    "sanitized": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
SEEDS = range(8)  # 0: in order, copies and streams as late as possible

GOOD = [
    "axpy",
    "row_sums",
    "gemm",
    "mma_forms",
    "matrix_transposes",
    "column_means",
    "against_total",
    "cluster_sums",
    "producer_consumer",
    "graph_replay",
    "capture_rules",
    "stream_order",
    "pitched_copies",
    "recoverable_errors",
    "sticky_error",
]
WRONG_NUMBERS = r"^element \d+: expected \S+, got "
# What catches a fault: a pattern in the output of some variant under some seed.
FAULTS = {
    "axpy_global_overrun": r"wrote \d+ bytes after the end of an allocation",
    "axpy_read_beyond_page": r"illegal access to global memory: \d+ bytes after the end",
    "axpy_write_beyond_page": r"illegal access to global memory: \d+ bytes after the end",
    "axpy_misaligned_vector": r"cudaErrorMisalignedAddress.*multiple of 16, got one 4 bytes",
    "axpy_host_pointer": r"cudaErrorInvalidDevicePointer",
    "row_sums_missing_barrier": WRONG_NUMBERS,
    "row_sums_missing_reuse_barrier": WRONG_NUMBERS,
    "row_sums_divergent_barrier": r"divergent block barrier: \d+ threads wait at cases\.cu:\d+",
    "row_sums_divergent_shuffle": r"warp divergence: shuffle_xor .* at cases\.cu:\d+",
    "row_sums_exited_lane": r"warp divergence: .* lane 31",
    "row_sums_shared_overrun": r"wrote to shared memory \d+ bytes after the end of static variable",
    "row_sums_shared_read_overrun": r"index 8 out of bounds|use-after-poison",
    "gemm_missing_barrier": WRONG_NUMBERS,
    "gemm_early_release": WRONG_NUMBERS,
    "gemm_missing_copy_wait": WRONG_NUMBERS,
    "gemm_late_wait": WRONG_NUMBERS,
    "gemm_wrong_stage": WRONG_NUMBERS,
    "gemm_wrong_stride": WRONG_NUMBERS,
    "column_means_tail_rows": WRONG_NUMBERS,
    "column_means_semaphore_not_reset": WRONG_NUMBERS,
    "column_means_missing_barrier": WRONG_NUMBERS,
    "against_total_not_cooperative": r"deadlock: all threads that can run poll",
    "against_total_missing_barrier": WRONG_NUMBERS,
    "cluster_sums_missing_barrier": WRONG_NUMBERS,
    "cluster_sums_early_exit": r"distributed shared memory: block .* has exited",
    "producer_consumer_barrier_count": r"deadlock: no thread can run",
    "producer_consumer_wrong_phase": WRONG_NUMBERS,
    "graph_replay_missing_edge": WRONG_NUMBERS,
    "graph_replay_missing_synchronize": WRONG_NUMBERS,
    "use_after_free": r"illegal access to global memory: byte \d+ of a freed allocation",
    "host_access": r"host code accesses device memory",
}


def compile_variant(compiler: str, variant: str, folder: Path) -> Path:
    """Build the program of all cases."""
    folder.mkdir()
    program = folder / "cases"
    command = [compiler, *FLAGS, *VARIANTS[variant], "-c"]
    objects = []
    with ThreadPoolExecutor(2) as pool:
        jobs = []
        for source in [CASES, *SOURCES]:
            objects.append(str(folder / f"{source.stem}.o"))
            jobs.append(
                pool.submit(
                    subprocess.run,
                    [*command, "-x", "c++", str(source), "-o", objects[-1]],
                    capture_output=True,
                    text=True,
                )
            )
        for job in jobs:
            assert job.result().returncode == 0, job.result().stderr
    subprocess.run(
        [compiler, *VARIANTS[variant], *objects, "-o", str(program), "-pthread"], check=True
    )
    return program


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> dict[str, Path]:
    """The program of all cases, by variant."""
    folder = tmp_path_factory.mktemp("emulator")
    return {name: compile_variant(compiler, name, folder / name) for name in VARIANTS}


def run(program: Path, case: str, **environment: object) -> tuple[int, str]:
    """Exit status and output of one case; `environment` sets THALWEG_EMULATOR_... variables."""
    settings = {f"THALWEG_EMULATOR_{name}": str(value) for name, value in environment.items()}
    done = subprocess.run(
        [str(program), case],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_lists_are_complete(programs: dict[str, Path]) -> None:
    """Every case of the program is tested below."""
    listed = subprocess.run([programs["plain"]], capture_output=True, text=True).stdout.split()
    assert listed == [*GOOD, *(f"fault:{name}" for name in FAULTS)]


@pytest.mark.parametrize("case", GOOD)
def test_good_kernels_pass(case: str, programs: dict[str, Path]) -> None:
    """Right results in order, under random schedules and with several threads."""
    for variant, program in programs.items():
        for seed in SEEDS if variant == "plain" else range(3):
            status, output = run(program, case, SEED=seed)
            assert status == 0, f"{variant}, seed {seed}: {output}"
        status, output = run(program, case, THREADS=3)
        assert status == 0, f"{variant}, 3 threads: {output}"


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_caught(fault: str, programs: dict[str, Path]) -> None:
    """Every planted fault fails, and says why, under some schedule."""
    outputs = []
    for program in programs.values():
        for seed in SEEDS:
            status, output = run(program, f"fault:{fault}", SEED=seed)
            if status != 0 and re.search(FAULTS[fault], output, re.MULTILINE):
                return
            outputs.append(f"exit status {status}: {output}")
    pytest.fail("\n".join(outputs))


def test_sanitizer_names_the_line(programs: dict[str, Path]) -> None:
    """AddressSanitizer sees an overrun of global memory in the kernel that makes it."""
    status, output = run(programs["sanitized"], "fault:axpy_global_overrun")
    assert status != 0
    assert re.search(r"use-after-poison", output)
    assert "axpy_kernel" in output


def test_deadlock_report_names_lines(programs: dict[str, Path]) -> None:
    """One entry per warp, with its lanes, its line and the state of the barrier."""
    status, output = run(programs["plain"], "fault:producer_consumer_barrier_count")
    assert status == 2
    assert "cudaErrorLaunchTimeout" in output
    for warp, call in enumerate(["sync_barrier(kEmptyBarrier", "sync_barrier(kFullBarrier"]):
        entry = (
            rf"block \(0,0,0\) warp {warp}: lanes 0-31 wait at cases\.cu:(\d+) \(named barrier\)"
        )
        found = re.search(entry, output)
        assert found, output
        assert call in CASES.read_text(encoding="utf-8").splitlines()[int(found[1]) - 1]
    assert "barrier 1: 64 of 96 threads have arrived" in output


def test_seed_repeats(programs: dict[str, Path]) -> None:
    """A seed gives the same schedule again, another seed another one."""
    outputs = {
        seed: {run(programs["plain"], "fault:row_sums_exited_lane", SEED=seed) for _ in range(3)}
        for seed in (1, 2, 3)
    }
    assert all(len(output) == 1 for output in outputs.values())
    assert len({re.sub(r"seed \d", "", str(output)) for output in outputs.values()}) > 1


@pytest.mark.parametrize(
    ("case", "settings", "pattern"),
    [
        ("matrix_transposes", {"ARCH": 80}, r"stmatrix: expected sm_90 or newer, got sm_80"),
        ("cluster_sums", {"ARCH": 80}, r"cudaErrorInvalidClusterSize"),
        ("gemm", {"ARCH": 75}, r"mma\.sync: expected sm_80"),
        ("against_total", {"MULTIPROCESSORS": 0}, r"expected a whole number from 1 to"),
        ("axpy", {"SEED": "x"}, r"\[THALWEG_EMULATOR_SEED\] expected a whole number"),
    ],
)
def test_settings(
    case: str, settings: dict[str, object], pattern: str, programs: dict[str, Path]
) -> None:
    """Old architectures lack instructions; wrong settings are errors."""
    status, output = run(programs["plain"], case, **settings)
    assert status == 2
    assert re.search(pattern, output)


def test_inline_assembly_only_in_device() -> None:
    """cuda/device/ is the one place that knows PTX."""
    for path in (CSRC / "cuda").rglob("*"):
        if path.is_dir() or path.parent.name == "device" or path.name == "fiber.cpp":
            continue
        assert not re.search(r"\basm\b", path.read_text(encoding="utf-8")), path


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("arch", [80, 90])
def test_compiles_for_gpus(arch: int, tmp_path: Path) -> None:
    """The same source is clean under nvcc: no warning, no spill, no stack frame."""
    command = [
        "nvcc",
        "-std=c++20",
        f"-arch=sm_{arch}",
        "-Xptxas",
        "-v",
        "-Xcompiler",
        "-Wall,-Wextra",
    ]
    done = subprocess.run(
        [*command, f"-I{CSRC}", "-c", str(CASES), "-o", str(tmp_path / "cases.o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    frames = re.findall(r"\d+ bytes stack frame.*", done.stderr)
    assert len(frames) > 10
    clean = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
    assert set(frames) == {clean}
