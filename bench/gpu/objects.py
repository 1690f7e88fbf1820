"""What nvcc makes of the kernels: registers, memory and instructions, without a GPU.

python -m bench.gpu.objects            one line per kernel, for sm_80 and sm_90
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine

CSRC = machine.ROOT / "csrc"
ARCHITECTURES = ("80", "90")
# As in CMakeLists.txt.
FLAGS = ("-std=c++20", "-fmad=false", "-Xcompiler", "-fno-math-errno,-ffp-contract=off")

# What launches.cpp links: the kernels that get dynamic shared memory, and their launchers.
LAUNCHED = ("batch_norm", "gemm", "gemm_mma", "gemm_simt", "optimizer_step", "probe")
# As C++, for the emulator; of its functions, which launches.cpp does not link, kernels call some.
HOST_FLAGS = ("-std=c++20", "-w", "-fno-pie", "-DTW_CUDA_EMULATED", "-DTW_WITH_CUDA=1")
LINK_FLAGS = ("-no-pie", "-Wl,--unresolved-symbols=ignore-all")

# What ptxas -v prints about an entry function.
_ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_SOURCE = re.compile(r"__N__[0-9a-f]+_\d+_(\w+)_cu_[0-9a-f]+")  # in the name of what is local to it
_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\S+?),")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
# wgmma made serial, setmaxnreg ignored, and their like.
SERIALIZATION = re.compile(r"C75\d\d")


@dataclass
class Kernel:
    """One entry function for one architecture."""

    name: str  # without namespaces and arguments: "mma_kernel<ForwardTask<float>, 1>"
    source: str  # "gemm_mma.cu"
    arch: str  # "80", "90a"
    registers: int = 0
    shared: int = 0  # bytes of static shared memory
    stack: int = 0
    spills: int = 0  # bytes stored and loaded
    instructions: Counter[str] = field(default_factory=Counter)  # when there is nvdisasm

    @property
    def template(self) -> str:
        return self.name.partition("<")[0]

    def count(self, prefix: str) -> int:
        """Instructions whose name begins so."""
        return sum(n for name, n in self.instructions.items() if name.startswith(prefix))


class CompilationError(Exception):
    """nvcc refused a source, or said something that must not be ignored."""


def sources() -> list[Path]:
    return sorted((CSRC / "cuda").glob("*.cu"))


def nvcc() -> str | None:
    found = shutil.which(os.environ.get("CUDACXX", "nvcc"))
    default = Path("/usr/local/cuda/bin/nvcc")
    return found or (str(default) if default.is_file() else None)


def nvcc_version() -> str:
    text = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", text)
    return match[1] if match else "unknown"


def nvdisasm() -> str | None:
    """The disassembler: on PATH, beside nvcc, or from the package nvidia-cuda-nvdisasm."""
    compiler = nvcc()
    beside = [str(Path(compiler).resolve().parent)] if compiler else []
    path = os.pathsep.join([os.environ.get("PATH", ""), *beside])
    if found := shutil.which("nvdisasm", path=path):
        return found
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(f.locate()) for f in files if f.name in ("nvdisasm", "nvdisasm.exe")), None)


def demangle(names: Sequence[str]) -> list[str]:
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def short_name(name: str) -> str:
    """A demangled function without return type, namespaces, arguments and casts of constants."""
    name = name.replace("(anonymous namespace)::", "")
    name = re.sub(r"\bthalweg::(?:\w+::)*", "", name)
    name = re.sub(r"\((?:unsigned )?(?:int|bool|long|[A-Z]\w*)\)", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    return name.removeprefix("void ").replace(" >", ">").strip()


def _parse_resources(source: str, log: str) -> list[Kernel]:
    kernels: list[Kernel] = []
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            kernels.append(Kernel(match[1], source, match[2]))
        if not kernels:
            continue
        current = kernels[-1]
        if match := _FRAME.search(line):
            current.stack, current.spills = int(match[1]), int(match[2]) + int(match[3])
        if match := _USED.search(line):
            current.registers = int(match[1])
            shared = _SHARED.search(line)
            current.shared = int(shared[1]) if shared else 0
    return kernels


def _shorten(kernels: list[Kernel]) -> None:
    for kernel, name in zip(kernels, demangle([k.name for k in kernels]), strict=True):
        kernel.name = short_name(name)


def parse_build(log: str) -> list[Kernel]:
    """The kernels of a whole build whose ptxas was told -v; of those built twice the last.

    CompilationError on any warning.
    """
    if SERIALIZATION.search(log) or "warning" in log:
        raise CompilationError("expected a build without warnings")
    kernels = _parse_resources("", log)
    for kernel in kernels:
        if match := _SOURCE.search(kernel.name):
            kernel.source = f"{match[1]}.cu"
    _shorten(kernels)
    return list({(k.source, k.name, k.arch): k for k in kernels}.values())


def _count_instructions(disassembler: str, cubin: Path, kernels: dict[str, Kernel]) -> None:
    done = subprocess.run([disassembler, str(cubin)], capture_output=True, text=True, check=True)
    current: Kernel | None = None
    for line in done.stdout.splitlines():
        if match := _SECTION.match(line):
            current = kernels.get(match[1])
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.instructions[match[1]] += 1


def compile_source(source: Path, arch: str, folder: Path, disassembler: str | None) -> list[Kernel]:
    """The kernels of one file; CompilationError on any warning of nvcc or ptxas."""
    cubin = folder / f"{source.stem}_{arch}.cubin"
    command = [str(nvcc()), *FLAGS, f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, f"-I{CSRC}", str(source), "-o", str(cubin)], capture_output=True, text=True
    )
    log = done.stdout + done.stderr
    if done.returncode != 0 or SERIALIZATION.search(log) or "warning" in log:
        raise CompilationError(f"{source.name} for sm_{arch}:\n{log[-4000:]}")
    kernels = _parse_resources(source.name, log)
    if disassembler and kernels:
        _count_instructions(disassembler, cubin, {kernel.name: kernel for kernel in kernels})
    _shorten(kernels)
    return kernels


def compile_all(
    architectures: Iterable[str] = ARCHITECTURES, disassembler: str | None = None
) -> list[Kernel]:
    """Every kernel of csrc/cuda for every architecture."""
    with (
        tempfile.TemporaryDirectory(prefix="thalweg-objects-") as folder,
        ThreadPoolExecutor(max_workers=len(machine.processors())) as pool,
    ):
        jobs = [
            pool.submit(compile_source, source, arch, Path(folder), disassembler)
            for source in sources()
            for arch in architectures
        ]
        return [kernel for job in jobs for kernel in job.result()]


def uses_dynamic_shared(source: str) -> bool:
    """Whether some kernel of that file has dynamic shared memory."""
    path = CSRC / "cuda" / source
    return path.is_file() and "dynamic_shared" in path.read_text(encoding="utf-8")


def dynamic_shared(rows: int, columns: int, slab_rows: int) -> dict[str, list[int]]:
    """Bytes of dynamic shared memory by kernel template, of the launches of launches.cpp."""
    compiler = os.environ.get("CXX", "c++")
    units = [CSRC / "cuda" / f"{name}.cu" for name in LAUNCHED]
    units.append(Path(__file__).with_name("launches.cpp"))

    def run(*command: object) -> str:
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            raise CompilationError(f"{' '.join(words)}:\n{done.stderr[-4000:]}")
        return done.stdout

    with tempfile.TemporaryDirectory(prefix="thalweg-launches-") as folder:
        made = [Path(folder) / f"{unit.stem}.o" for unit in units]
        with ThreadPoolExecutor(max_workers=len(machine.processors())) as pool:
            command = (compiler, *HOST_FLAGS, f"-I{CSRC}", "-x", "c++", "-c")
            jobs = [
                pool.submit(run, *command, unit, "-o", to)
                for unit, to in zip(units, made, strict=True)
            ]
            for job in jobs:
                job.result()
        program = Path(folder) / "launches"
        run(compiler, *LINK_FLAGS, *made, "-o", program)
        launches = [line.split() for line in run(program, rows, columns, slab_rows).splitlines()]
        symbols = [line.split() for line in run("nm", program).splitlines()]
    addresses = {int(words[0], 16): words[2] for words in symbols if len(words) == 3}
    names = demangle([addresses[int(address, 16)] for address, _ in launches])
    found: dict[str, list[int]] = {}
    for name, (_, size) in zip(names, launches, strict=True):
        found.setdefault(short_name(name).partition("<")[0], []).append(int(size))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", action="append", help="80, 90a, ...; may be repeated")
    arguments = parser.parse_args()
    for kernel in compile_all(arguments.arch or ARCHITECTURES, nvdisasm()):
        print(
            f"sm_{kernel.arch} {kernel.registers:>3} registers {kernel.shared:>6} B shared "
            f"{kernel.stack:>4} B stack {kernel.spills:>4} B spilled "
            f"{kernel.instructions.total():>6} instructions, {kernel.count('HMMA'):>4} HMMA  "
            f"{kernel.source}: {kernel.name}"
        )


if __name__ == "__main__":
    main()
