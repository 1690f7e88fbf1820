"""Command line of the benchmarks: `python -m bench cpu|curvature|kernels|start|mnist|table`."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

from bench import cold, curvature, kernels, machine, mnist, peers, steps, table
from bench.cases import CASES, WORKS
from bench.results import Results


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected positive seconds, got {text!r}")
    return value


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _integers(text: str) -> list[int]:
    values = [int(part) for part in _list(text)]
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected positive integers, got {text!r}")
    return values


def _cases(text: str) -> list[str]:
    return _known(_list(text), CASES, "cases")


def _peers(text: str) -> list[str]:
    if text == "all":
        return list(peers.PEERS)
    return _known(_list(text), peers.PEERS, "peers")


def _known(names: list[str], known: object, what: str) -> list[str]:
    expected = list(known)  # type: ignore[call-overload]
    unknown = [name for name in names if name not in expected]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"expected {what} out of {', '.join(expected)}, got {', '.join(unknown) or 'none'}"
        )
    return names


def _interpreter(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"expected LIBRARY=PATH of an interpreter, got {text!r}")
    return name, path


def _add_turns(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seconds", type=float, default=4.0, help="timed work per peer and case")
    command.add_argument("--turn", type=float, default=0.2, help="seconds of one turn of a peer")
    command.add_argument(
        "--realtime",
        action="store_true",
        help="schedule the timed turns ahead of all other programs (needs CAP_SYS_NICE)",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--output", type=Path, help="JSON file that the rows are added to")
    shared.add_argument(
        "--python",
        type=_interpreter,
        action="append",
        default=[],
        metavar="LIBRARY=PATH",
        help="interpreter of a library that lives in another environment; may be repeated",
    )

    cpu = commands.add_parser("cpu", parents=[shared], help="training steps next to the peers")
    cpu.add_argument("--cases", type=_cases, default=list(CASES), help="out of a,b,c,d,e")
    cpu.add_argument("--batches", type=_integers, help="default: those of the case")
    cpu.add_argument("--threads", type=_integers, default=[1, 2])
    cpu.add_argument(
        "--peers",
        type=_peers,
        default=[name for name in peers.PEERS if name not in peers.ON_REQUEST],
        help=f"out of {', '.join(peers.PEERS)}, or all; default: all but "
        f"{', '.join(peers.ON_REQUEST)}",
    )
    cpu.add_argument(
        "--precision",
        choices=("highest", "high", "medium"),
        default="highest",
        help="of float32 products; medium: bfloat16, and PyTorch with autocast",
    )
    cpu.add_argument("--work", choices=WORKS, default="training")
    _add_turns(cpu)
    cpu.add_argument(
        "--placement",
        choices=("near", "far"),
        help="of two threads or more, count only rounds in which the processors are so, and "
        "wait for them",
    )
    cpu.add_argument(
        "--patience",
        type=_seconds,
        default=1800.0,
        help="seconds in which a case must get its rounds of --placement",
    )

    second = commands.add_parser(
        "curvature",
        parents=[shared],
        help="gradients and products with the Hessian next to PyTorch and JAX",
    )
    second.add_argument("--cases", type=_cases, default=["a", "b", "c"], help="out of a,b,c,d,e")
    second.add_argument("--threads", type=_integers, default=[1, 2])
    second.add_argument(
        "--peers",
        type=lambda text: _known(_list(text), peers.CURVATURE, "peers"),
        default=list(peers.CURVATURE),
        help=f"out of {', '.join(peers.CURVATURE)}",
    )
    _add_turns(second)

    single = commands.add_parser(
        "kernels",
        parents=[shared],
        help="single kernels on one thread, next to OpenBLAS and oneDNN",
    )
    single.add_argument(
        "--kernels",
        type=lambda text: _known(_list(text), kernels.KERNELS, "kernels"),
        default=list(kernels.KERNELS),
        help=f"out of {', '.join(kernels.KERNELS)}",
    )
    single.add_argument("--seconds", type=float, default=0.2, help="timed work per shape")

    start = commands.add_parser(
        "start", parents=[shared], help="import, first step, memory, installed size"
    )
    start.add_argument(
        "--libraries",
        type=lambda text: _known(_list(text), cold.LIBRARIES, "libraries"),
        default=list(cold.LIBRARIES),
    )
    start.add_argument("--repetitions", type=int, default=11)

    digits = commands.add_parser(
        "mnist", parents=[shared], help="accuracy, time and memory of MNIST (THALWEG_DATA)"
    )
    digits.add_argument(
        "--libraries",
        type=lambda text: _known(_list(text), mnist.LIBRARIES, "libraries"),
        default=["thalweg"],
        help=f"out of {', '.join(mnist.LIBRARIES)}",
    )
    digits.add_argument("--seeds", type=int, default=1)
    digits.add_argument("--epochs", type=int, default=10)
    digits.add_argument("--batch", type=int, default=128)
    digits.add_argument("--threads", type=int, default=len(machine.processors()))

    page = commands.add_parser("table", help="write docs/benchmarks.md from the rows")
    page.add_argument("--results", type=Path, default=machine.ROOT / "bench" / "results")
    page.add_argument("--output", type=Path, default=machine.ROOT / "docs" / "benchmarks.md")
    page.add_argument("--readme", type=Path, help="also fill this page's marked table")
    page.add_argument("--plot", type=Path, help="also draw training steps (.svg or .png)")
    return parser


def _available(threads: list[int]) -> list[int]:
    """Those numbers of threads that this machine has processors for."""
    available = len(machine.processors())
    kept = [count for count in threads if count <= available]
    for count in set(threads) - set(kept):
        print(f"{count} threads: skipped, this process may use {available} processors")
    return kept


def _turns(arguments: argparse.Namespace) -> steps.Options:
    return steps.Options(
        arguments.seconds, arguments.turn, arguments.realtime, dict(arguments.python)
    )


def _curvature(arguments: argparse.Namespace) -> int:
    results, failed = Results(arguments.output), False
    for name in arguments.cases:
        case = CASES[name]
        for count in _available(arguments.threads):
            batch = max(case.batches)
            row = curvature.measure(case, batch, count, arguments.peers, _turns(arguments))
            results.add(row)
            print(curvature.describe(row), end="\n\n", flush=True)
            failed = failed or bool(row["failed"])
    return int(failed)


def _cpu(arguments: argparse.Namespace) -> int:
    threads = _available(arguments.threads)
    if max(threads, default=1) > 1:
        reason = machine.hop_program()[1]
        if reason and arguments.placement:
            print(f"[cpu] --placement needs the cache-line hop: {reason}", file=sys.stderr)
            return 2
        if reason:
            print(f"cache-line hop: not measured, {reason}")
    options, results, failed = _turns(arguments), Results(arguments.output), False
    for name in arguments.cases:
        case = CASES[name]
        for batch in arguments.batches or case.batches:
            for count in threads:
                placement = arguments.placement if count > 1 else None
                options = replace(options, placement=placement, patience=arguments.patience)
                try:
                    row = steps.measure(
                        case,
                        batch,
                        count,
                        arguments.peers,
                        options,
                        precision=arguments.precision,
                        work=arguments.work,
                    )
                except steps.PlacementError as error:
                    print(f"{name}, batch {batch}, {count} thread(s): {error}", file=sys.stderr)
                    failed = True
                    continue
                results.add(row)
                print(steps.describe(row), end="\n\n", flush=True)
                failed = failed or bool(row["failed"])
    return int(failed)


def _kernels(arguments: argparse.Namespace) -> int:
    results = Results(arguments.output)
    for name in arguments.kernels:
        row = kernels.measure(name, arguments.seconds)
        results.add(row)
        print(kernels.describe(row), end="\n\n", flush=True)
    return 0


def _start(arguments: argparse.Namespace) -> int:
    row = cold.measure(arguments.libraries, arguments.repetitions, dict(arguments.python))
    Results(arguments.output).add(row)
    print(cold.describe(row))
    return 0


def _mnist(arguments: argparse.Namespace) -> int:
    try:
        row = mnist.measure(
            arguments.libraries,
            arguments.seeds,
            arguments.epochs,
            arguments.batch,
            arguments.threads,
            dict(arguments.python),
        )
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    Results(arguments.output).add(row)
    print(mnist.describe(row))
    return 0


def _table(arguments: argparse.Namespace) -> int:
    paths = sorted(arguments.results.glob("*.json"))
    if not paths:
        print(f"[table] expected rows in {arguments.results}, got no JSON file", file=sys.stderr)
        return 2
    try:
        written = table.write(paths, arguments.output, arguments.readme, arguments.plot)
    except ImportError as error:
        print(f"[table] --plot needs matplotlib ({error})", file=sys.stderr)
        return 2
    for path in written:
        print(f"wrote {path}")
    return 0


def main() -> int:
    arguments = _parser().parse_args()
    commands = {
        "cpu": _cpu,
        "curvature": _curvature,
        "kernels": _kernels,
        "start": _start,
        "mnist": _mnist,
        "table": _table,
    }
    return commands[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main())
