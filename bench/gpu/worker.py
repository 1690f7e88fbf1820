"""The process of one peer on a GPU: `python -m bench.gpu.worker PEER`.

Loading a library takes longer than timing a case, so that one process goes through many problems.
Requests and answers are JSON lines; whatever a library prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from bench import peers, worker
from bench.cases import Case, Problem


def _problem(request: dict[str, Any]) -> Problem:
    case = Case(**{**request["case"], "widths": tuple(request["case"]["widths"])})
    problem = Problem.load(Path(request["folder"]), case, request["batch"], request["threads"])
    problem.device, problem.precision = request["device"], request["precision"]
    return problem


def main() -> None:
    name = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer: peers.Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "problem":
            # The memory of the problem before goes first.
            peer = None
            gc.collect()
            with contextlib.suppress(Exception):
                sys.modules["torch"].cuda.empty_cache()
            try:
                peer = peers.create(name, _problem(request))
                answer = {"granularity": peer.granularity, "versions": worker.versions(name)}
            except ImportError as error:
                answer = {"skipped": f"not installed ({error})"}
            except peers.UnsupportedError as error:
                answer = {"skipped": str(error)}
            except Exception as error:
                answer = {"failed": f"{type(error).__name__}: {error}"}
        else:
            assert peer is not None
            try:
                answer = worker.serve(peer, request)
            except Exception as error:
                answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
