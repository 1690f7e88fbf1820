"""The GPU of this machine, as nvidia-smi and nvcc describe it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from bench.gpu import objects

# Names in the results, and nvidia-smi's.
_FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "compute_capability": "compute_cap",
    "memory_mib": "memory.total",
    "sm_clock_mhz": "clocks.sm",
    "sm_clock_max_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}


def describe() -> dict[str, Any]:
    """What the numbers depend on; {} where there is no GPU. Clocks are those of this moment."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS.values())}", "--format=csv,noheader"]
    done = subprocess.run([*query, "--id=0"], capture_output=True, text=True)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if done.returncode != 0 or len(values) != len(_FIELDS):
        return {}
    found: dict[str, Any] = dict(zip(_FIELDS, values, strict=True))
    found["nvcc"] = objects.nvcc_version() if objects.nvcc() else None
    return found
