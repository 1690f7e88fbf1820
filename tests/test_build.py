"""The shape of the house: include rule, self-contained headers, exported symbols, package size."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import thalweg._core
from conftest import ROOT

CSRC = ROOT / "csrc"

# A folder may include itself and what stands in its set; DESIGN: math, core <- cpu | cuda | no_cuda
# | minimize <- ops <- network <- training <- api <- bindings.
BASE = {"math", "core"}
MAY_INCLUDE = {
    "include": set(),
    "math": set(),
    "core": {"math"},
    "cpu": BASE,
    "cuda": BASE,
    "no_cuda": BASE,
    "minimize": BASE,
    "ops": BASE | {"cpu", "cuda", "no_cuda"},
}
MAY_INCLUDE["network"] = MAY_INCLUDE["ops"] | {"ops", "minimize"}
MAY_INCLUDE["training"] = MAY_INCLUDE["network"] | {"network"}
MAY_INCLUDE["api"] = MAY_INCLUDE["training"] | {"training", "include"}
MAY_INCLUDE["bindings"] = MAY_INCLUDE["api"] | {"api"}
# What math/ may take from the standard library: the freestanding part and <cmath>.
FREESTANDING = {
    "bit", "cfloat", "climits", "cmath", "concepts", "cstddef", "cstdint", "cstring", "limits",
    "type_traits", "utility",
}  # fmt: skip
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
SUFFIXES = {".h", ".inc", ".cpp", ".cu", ".cuh", ".inl"}


def source_files() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in SUFFIXES)


def include_violations(relative: str, text: str) -> list[str]:
    """Every `#include` of one file (path relative to csrc/) that breaks the rule."""
    folder = relative.split("/")[0]
    found = []
    for bracket, target in INCLUDE.findall(text):
        if target.startswith("thalweg/"):
            top = "include"
        elif bracket == '"':
            top = target.split("/")[0]
            if not (CSRC / target).is_file():
                found.append(f'{relative}: "{target}" is not written from csrc/ or does not exist')
                continue
        else:
            if folder == "math" and target not in FREESTANDING:
                found.append(f"{relative}: <{target}> is not freestanding")
            if target.startswith("nanobind/") and relative != "bindings/arrays.h":
                found.append(f"{relative}: nanobind belongs to bindings/arrays.h alone")
            continue
        # The version is a header without code that everybody may read.
        if top != folder and top not in MAY_INCLUDE[folder] and target != "thalweg/version.h":
            found.append(f'{relative}: {folder}/ may not include "{target}"')
    return found


def test_include_rule() -> None:
    files = source_files()
    assert len(files) > 20
    violations = []
    for path in files:
        relative = path.relative_to(CSRC).as_posix()
        violations += include_violations(relative, path.read_text(encoding="utf-8"))
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("relative", "line"),
    [
        ("core/a.h", '#include "cpu/kernels.h"'),
        ("math/a.h", "#include <vector>"),
        ("math/a.h", '#include "core/error.h"'),
        ("cpu/a.cpp", '#include "ops/ops.h"'),
        ("minimize/a.cpp", '#include "network/plan.h"'),
        ("cpu/a.cpp", '#include "kernels.h"'),
        ("network/a.cpp", "#include <thalweg/thalweg_c.h>"),
        ("bindings/module.cpp", "#include <nanobind/ndarray.h>"),
    ],
)
def test_include_rule_catches(relative: str, line: str) -> None:
    assert include_violations(relative, f"#pragma once\n{line}\n")


def test_every_header_is_guarded() -> None:
    for path in source_files():
        if path.suffix in {".h", ".cuh"}:
            text = path.read_text(encoding="utf-8")
            # math/ headers guard their struct and repeat the list entry after the guard.
            assert "#pragma once" in text or "#ifndef" in text, path.relative_to(ROOT)


STRICT = ["-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
PUBLIC_HEADERS = sorted(path.name for path in (CSRC / "include" / "thalweg").glob("*.h"))


def check_syntax(command: list[str], header: str) -> None:
    result = subprocess.run(
        [*command, *STRICT, f"-I{CSRC / 'include'}", "-"],
        input=f"#include <thalweg/{header}>\nint main(void) {{ return 0; }}\n",
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("header", PUBLIC_HEADERS)
def test_public_header_compiles_alone(header: str, compiler: str) -> None:
    check_syntax([compiler, "-std=c++20", "-x", "c++"], header)


@pytest.mark.parametrize("header", ["thalweg_c.h", "version.h"])
def test_c_header_compiles_as_c(header: str, compiler: str) -> None:
    check_syntax([compiler, "-std=c11", "-x", "c"], header)


def test_installed_headers_are_the_public_ones(package_dir: Path) -> None:
    installed = sorted(path.name for path in (package_dir / "include" / "thalweg").iterdir())
    assert installed == PUBLIC_HEADERS


def test_package_holds_one_library_and_is_small(package_dir: Path) -> None:
    libraries = [path for path in (package_dir / "lib").iterdir() if path.is_file()]
    assert len(libraries) == 1
    extensions = list(package_dir.glob("_core*"))
    size = sum(path.stat().st_size for path in libraries + extensions if path.suffix != ".pyi")
    # Kernels for several GPUs take more than the rest together; emulated ones are tests alone.
    with_cuda = "compiled for" in thalweg._core.information()["cuda_report"]
    assert size < (24_000_000 if with_cuda else 8_000_000)


def test_library_exports_c_abi_and_marked_internals_only(package_dir: Path) -> None:
    nm = shutil.which("nm")
    assert nm, "nm not found: install binutils"
    (library,) = (package_dir / "lib").iterdir()
    listing = subprocess.run(
        [nm, "-D", "--defined-only", "--with-symbol-versions", str(library)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    symbols = [line.split()[-1] for line in listing.splitlines()]
    c_abi = [name for name in symbols if name.startswith("tw_")]
    assert c_abi
    assert all(name.endswith("@@THALWEG_0") for name in c_abi)
    rest = [name for name in symbols if not name.startswith(("tw_", "THALWEG_"))]
    stray = [name for name in rest if not name.endswith("@@THALWEG_INTERNAL")]
    assert not stray, stray


KERNEL = """
#include <cstddef>
{outside}
namespace thalweg {{ inline namespace TW_ISA {{
template <class T> __attribute__((noinline)) T twice(T x) {{ return x + x; }}
float run(float x) {{ return twice(x){call}; }}
}} }}
"""
STRAY = "template <class T> __attribute__((noinline)) T stray(T x) { return x * x; }"


@pytest.mark.parametrize("stray", [False, True])
def test_kernel_symbol_check(stray: bool, compiler: str, cmake: list[str], tmp_path: Path) -> None:
    """The build runs this check on the real kernel objects; here it meets a good and a bad one."""
    source, target = tmp_path / "kernel.cpp", tmp_path / "kernel.o"
    outside, call = (STRAY, " + stray(x)") if stray else ("", "")
    source.write_text(KERNEL.format(outside=outside, call=call))
    subprocess.run(
        [compiler, "-O3", "-std=c++20", "-DTW_ISA=x86_64_v3", "-c", source, "-o", target],
        check=True,
    )
    result = subprocess.run(
        [
            *cmake,
            f"-DNM={shutil.which('nm')}",
            f"-DOBJECTS={target}",
            "-DFATAL=1",
            "-DENABLED=1",
            "-P",
            str(CSRC / "cpu" / "check_symbols.cmake"),
        ],
        capture_output=True,
        text=True,
    )
    assert (result.returncode != 0) == stray, result.stderr
    assert ("kernel.o" in result.stderr) == stray


def test_version_is_the_headers() -> None:
    import thalweg

    text = (CSRC / "include" / "thalweg" / "version.h").read_text(encoding="utf-8")
    numbers = re.findall(r"#define TW_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text)
    assert thalweg.__version__ == ".".join(numbers)
