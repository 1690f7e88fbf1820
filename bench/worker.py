"""The process in which one peer runs: `python -m bench.worker PEER CASE BATCH THREADS
FOLDER PRECISION WORK`.

Every peer has its own process, so that no library's threads, allocator or settings touch another's,
and libraries may live in different environments. Requests and answers are JSON lines; whatever a
library prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench import machine, peers
from bench.cases import CASES, Problem

_DISTRIBUTIONS = {"sklearn": ("scikit-learn", "numpy"), "jax": ("jax", "jaxlib")}


def versions(peer: str) -> dict[str, str]:
    family = peers.family(peer)
    names = _DISTRIBUTIONS.get(family, (family,))
    return {name: importlib.metadata.version(name) for name in names}


def _set_realtime(on: bool) -> None:
    """Schedule all threads of this process ahead of everyone else's, or as usual."""
    policy, priority = (os.SCHED_RR, 1) if on else (os.SCHED_OTHER, 0)
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))


def _timed(peer: peers.Peer, steps: int, warm_up: int, realtime: bool) -> dict[str, float]:
    cpus = machine.processors()
    if realtime:
        _set_realtime(True)
    try:
        if warm_up:
            peer.run(warm_up)
        busy, own, start = machine.busy_seconds(cpus), time.process_time(), time.perf_counter()
        peer.run(steps)
        seconds = time.perf_counter() - start
        own = time.process_time() - own
        after = machine.busy_seconds(cpus)
    finally:
        if realtime:
            _set_realtime(False)
    foreign = 0.0 if busy is None or after is None else max(0.0, after - busy - own)
    return {"seconds": seconds, "foreign_seconds": foreign / len(cpus)}


def serve(peer: peers.Peer, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "losses":
        return {"losses": peer.losses(request["steps"])}
    if request["do"] == "threads":
        return {"set": peer.set_threads(request["threads"])}
    return dict(_timed(peer, request["steps"], request["warm_up"], request["realtime"]))


def main() -> None:
    name, case, batch, threads, folder, precision, work = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        problem = Problem.load(
            Path(folder), CASES[case], int(batch), int(threads), precision=precision, work=work
        )
        peer = peers.create(name, problem)
        ready = {"granularity": peer.granularity, "versions": versions(name)}
    except ImportError as error:
        ready = {"skipped": f"not installed ({error})"}
    except peers.UnsupportedError as error:
        ready = {"skipped": str(error)}
    print(json.dumps(ready), file=answers)
    if "skipped" in ready:
        return
    for line in sys.stdin:
        print(json.dumps(serve(peer, json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
