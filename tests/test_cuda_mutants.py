"""Planted faults in the CUDA kernels: the kernels' own tests have to notice every one of them.

Every row of `MUTANTS` changes one place of a source file in a copy of it. All changes that are
statements or expressions are compiled into one program per test, which THALWEG_MUTANT tells which
of them to make; without it the program is the product. The rest are compiled one by one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

CSRC = ROOT / "csrc"
PROGRAMS = ROOT / "tests" / "cpp" / "cuda"
SEEDS = range(4)  # 0: in order, copies and streams as late as possible
NUMBERS = r"^FAIL "
FLAGS = ["-std=c++20", "-O1", "-w", "-ffp-contract=off", "-fno-math-errno", "-DTW_CUDA_EMULATED"]
FLAGS += ["-DTW_WITH_CUDA=1"]


@dataclass(frozen=True)
class Mutant:
    """One planted fault."""

    name: str
    fault: str  # one of FAULTS
    file: str  # below csrc/
    old: str  # occurs once in the file
    new: str
    program: str  # tests/cpp/cuda/<program>.cu
    kind: str = "statement"  # or "expression", or "text": whatever else
    caught: str = NUMBERS  # pattern in what the program prints


# The faults that kernels are known for, and that the emulator can see.
FAULTS = {
    "wrong reduction": "a part of a sum is missing, or counts twice",
}

MUTANTS = [
    Mutant(
        name="probe_loses_a_distance",
        fault="wrong reduction",
        file="cuda/probe.cu",
        old="distance = kWarpThreads / 2;",
        new="distance = kWarpThreads / 4;",
        program="probe_test",
        kind="text",
    ),
]


def switch(mutant: Mutant, number: int) -> str:
    """The text that stands for `mutant.old` and makes the fault on demand."""
    active = f"thalweg_mutant({number})"
    if mutant.kind == "expression":
        return f"({active} ? ({mutant.new}) : ({mutant.old}))"
    return f"if ({active}) {{ {mutant.new} }} else {{ {mutant.old} }}"


SWITCH_HEADER = """
#include <cstdlib>
inline const int thalweg_chosen_mutant =
    std::getenv("THALWEG_MUTANT") ? std::atoi(std::getenv("THALWEG_MUTANT")) : -1;
inline bool thalweg_mutant(int number) { return number == thalweg_chosen_mutant; }
"""


def planted(mutants: list[Mutant]) -> dict[str, str]:
    """Text of every file that the mutants change, with all of them in it."""
    texts: dict[str, str] = {}
    for mutant in mutants:
        original = (CSRC / mutant.file).read_text(encoding="utf-8")
        assert original.count(mutant.old) == 1, (
            f"{mutant.name}: expected the text once in {mutant.file}, "
            f"got {original.count(mutant.old)} times: {mutant.old}"
        )
        text = texts.setdefault(mutant.file, original)
        assert text.count(mutant.old) == 1, f"{mutant.name}: overlaps another mutant"
        new = mutant.new if mutant.kind == "text" else switch(mutant, MUTANTS.index(mutant))
        texts[mutant.file] = text.replace(mutant.old, new)
    return texts


def includes(path: Path) -> set[str]:
    return set(re.findall(r'#include "((?:cuda|core|math)/[^"]+)"', path.read_text("utf-8")))


def closure(program: str) -> tuple[list[str], dict[str, set[str]]]:
    """The sources that a test program needs, and all files that each of them includes.

    A header stands for the sources beside it that have its name, or its name and a suffix.
    """
    headers: dict[str, set[str]] = {}

    def reach(path: Path, seen: set[str]) -> set[str]:
        for name in includes(path):
            if name not in seen and (CSRC / name).is_file():
                seen.add(name)
                reach(CSRC / name, seen)
        return seen

    found: list[str] = []
    pending = reach(PROGRAMS / f"{program}.cu", set())
    for helper in PROGRAMS.glob("*.h"):
        reach(helper, pending)
    headers[f"{program}.cu"] = set(pending)
    while pending:
        header = pending.pop()
        path = CSRC / header
        if header.startswith(("cuda/device/", "cuda/emulator/", "math/")):
            continue
        for source in sorted(path.parent.glob(f"{path.stem}*")):
            name = source.relative_to(CSRC).as_posix()
            if source.suffix not in {".cu", ".cpp"} or name in headers:
                continue
            headers[name] = reach(source, set())
            found.append(name)
            pending |= headers[name]
    emulator = sorted((CSRC / "cuda" / "emulator").glob("*.cpp"))
    found += [path.relative_to(CSRC).as_posix() for path in emulator]
    found.append("core/available_processors.cpp")
    return list(dict.fromkeys(found)), headers


class Workshop:
    """Compiles programs, each object file once."""

    def __init__(self, compiler: str, folder: Path) -> None:
        ccache = shutil.which("ccache")
        self.compiler = [compiler] if ccache is None else [ccache, compiler]
        self.folder = folder
        self.objects: dict[tuple[str, str], Path] = {}
        self.programs: dict[tuple[str, int | None], Path] = {}
        (folder / "switch.h").write_text(SWITCH_HEADER)
        self.overlay("all", planted([mutant for mutant in MUTANTS if mutant.kind != "text"]))

    def overlay(self, name: str, texts: dict[str, str]) -> None:
        for file, text in texts.items():
            target = self.folder / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)

    def object(self, source: Path, overlay: str) -> Path:
        key = (str(source), overlay)
        if key not in self.objects:
            target = self.folder / f"{source.stem}_{len(self.objects)}.o"
            self.objects[key] = target
            command = [*self.compiler, *FLAGS, "-include", str(self.folder / "switch.h")]
            command += [f"-I{path}" for path in (self.folder / overlay, CSRC)]
            done = subprocess.run(
                [*command, "-x", "c++", "-c", str(source), "-o", str(target)],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
        return self.objects[key]

    def program(self, name: str, number: int | None = None) -> Path:
        """The program `name`; with a number, the one that has that textual mutant in it."""
        key = (name, number)
        if key in self.programs:
            return self.programs[key]
        sources, headers = closure(name)
        touched = None
        if number is not None:
            touched = MUTANTS[number].file
            self.overlay(f"mutant_{number}", planted([MUTANTS[number]]))
        jobs = []
        for source in [f"{name}.cu", *sources]:
            changed = touched == source or touched in headers.get(source, ())
            overlay = f"mutant_{number}" if changed else "all"
            path = self.folder / overlay / source
            if not path.is_file():
                path = (PROGRAMS if source == f"{name}.cu" else CSRC) / source
            jobs.append((path, overlay))
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda job: self.object(*job), jobs))
        target = self.folder / (name if number is None else f"{name}_{number}")
        command = [self.compiler[-1], *map(str, objects), "-o", str(target), "-pthread"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.programs[key] = target
        return target


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Workshop:
    return Workshop(compiler, tmp_path_factory.mktemp("mutants"))


def run(program: Path, seed: int, mutant: int | None) -> tuple[int, str]:
    """Exit status and output of a program, which stops at its first failure."""
    environment = {**os.environ, "THALWEG_EMULATOR_SEED": str(seed), "THALWEG_TEST_STOP": "1"}
    if mutant is not None:
        environment["THALWEG_MUTANT"] = str(mutant)
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("program", sorted({mutant.program for mutant in MUTANTS}))
def test_unchanged_kernels_pass(program: str, workshop: Workshop) -> None:
    """Without a fault the same programs pass, so that it is the fault that a failure is about."""
    for seed in SEEDS:
        status, output = run(workshop.program(program), seed, None)
        assert status == 0, f"seed {seed}:\n{output}"


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=[mutant.name for mutant in MUTANTS])
def test_fault_is_caught(number: int, workshop: Workshop) -> None:
    mutant = MUTANTS[number]
    text = mutant.kind == "text"
    program = workshop.program(mutant.program, number if text else None)
    outputs = []
    for seed in SEEDS:
        status, output = run(program, seed, None if text else number)
        if status != 0 and re.search(mutant.caught, output, re.MULTILINE):
            return
        outputs.append(f"seed {seed}: status {status}\n{output[-2000:]}")
    pytest.fail("\n".join(outputs))


def test_every_fault_is_represented() -> None:
    assert {mutant.fault for mutant in MUTANTS} == set(FAULTS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
