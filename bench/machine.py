"""What the numbers depend on: processor, versions, commit, cache-line hop and foreign load."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# One core complex answers in about 30 ns, one mesh in 60 to 70, two complexes in 100 to 500.
NEAR_NS = 80.0
_HOP_SOURCE = ROOT / "bench" / "cpp" / "hop.cpp"
_HOP_PROGRAM = ROOT / "build" / "bench" / "hop"


def processors() -> list[int]:
    """The processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def hardware() -> dict[str, Any]:
    """Processor, caches, memory and kernel."""
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", _read("/proc/cpuinfo"), re.M))
    model = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        model += f" (family {fields['cpu family']}, model {fields['model']})"
    cache = "/sys/devices/system/cpu/cpu0/cache/index{}/size"
    total = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    return {
        "processor": model,
        "processors": len(processors()),
        "l2": _read(cache.format(2)).strip(),
        "l3": _read(cache.format(3)).strip(),
        "memory_gib": round(int(total[1]) / 2**20, 1) if total else None,
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """Commit of the working tree, with "+" when tracked files differ from it; None outside git."""
    try:
        command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def stamp() -> dict[str, Any]:
    """The part every row shares."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
    }


def hop_program() -> tuple[Path | None, str]:
    """The program that measures the hop, built at first use, or None and why there is none."""
    try:
        if _HOP_PROGRAM.stat().st_mtime >= _HOP_SOURCE.stat().st_mtime:
            return _HOP_PROGRAM, ""
    except OSError:
        pass
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((name for name in names if name and shutil.which(name)), None)
    if compiler is None:
        return None, "no C++ compiler"
    _HOP_PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    options = ["-std=c++20", "-O2", "-pthread", str(_HOP_SOURCE), "-o", str(_HOP_PROGRAM)]
    done = subprocess.run([compiler, *options], capture_output=True, text=True)
    if done.returncode:
        return None, f"{compiler} fails on {_HOP_SOURCE.name}: {done.stderr.strip()[:200]}"
    return _HOP_PROGRAM, ""


def hop_ns(program: Path | None, pair: list[int]) -> float | None:
    """Nanoseconds that a cache line takes from one processor to the other."""
    if program is None or len(pair) < 2:
        return None
    try:
        command = [str(program), str(pair[0]), str(pair[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return float(done.stdout)


# Of two processors, as far as it stays the same: what rounds are compared within.
PLACEMENTS = ("near", "far", "unknown")


def placement(hops: list[float]) -> str:
    """ "near" or "far" when all hops agree, else "mixed"; "unknown" without a measurement."""
    if not hops:
        return "unknown"
    near = sum(hop < NEAR_NS for hop in hops)
    return "near" if near == len(hops) else "mixed" if near else "far"


def busy_seconds(cpus: list[int]) -> float | None:
    """Time that these processors have been busy for anyone, the host included (steal)."""
    total, found = 0, False
    for line in _read("/proc/stat").splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _, _, irq, softirq, steal = map(int, values[:8])
            total += user + nice + system + irq + softirq + steal
            found = True
    return total / os.sysconf("SC_CLK_TCK") if found else None


def peak_memory_mib() -> float | None:
    """Peak resident set of this process; unlike ru_maxrss it does not start at the parent's."""
    match = re.search(r"VmHWM:\s*(\d+)", _read("/proc/self/status"))
    return round(int(match[1]) / 1024, 1) if match else None
