"""Arguments, dispatch and exit codes. A command's module is imported when the command is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from .arguments import add_data_arguments, add_network_arguments, integer, positive_integer
from .console import UserError

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of the process.
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    try:
        if options.cmake_dir:
            from thalweg import get_cmake_dir

            print(get_cmake_dir())
            return EXIT_OK
        if options.version:
            from thalweg import __version__

            print(f"thalweg {__version__}")
            return EXIT_OK
        if options.command is None:
            _parser().print_help()
            return EXIT_USAGE
        command = importlib.import_module(f".{options.command}", __package__)
        code: int = command.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        print(f"thalweg: {stop or 'interrupted'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left; a second error at exit would only add noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (UserError, ArithmeticError, ImportError, MemoryError, OSError, ValueError) as error:
        if options.debug:
            raise
        return _report(error)
    except RuntimeError as error:
        from thalweg import DeviceError

        if options.debug or not isinstance(error, DeviceError):
            raise
        return _report(error)


def _report(error: BaseException) -> int:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        message = f"{error.strerror}: {error.filename}"
    else:
        message = str(error) or type(error).__name__
    print(f"thalweg: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USAGE


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="thalweg", description="Trains dense networks at the speed of the hardware."
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument(
        "--cmake-dir", action="store_true", help="print the folder of the CMake package"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a network on a CSV file, NumPy arrays, IDX files or the embedded digits",
        description="Trains a batch-normalized network and writes a checkpoint with its "
        "preprocessing. Without DATA: on the embedded handwritten digits.",
    )
    add_data_arguments(train, training=True)
    add_network_arguments(train)

    predict = commands.add_parser(
        "predict",
        help="apply a trained network to data",
        description="Writes one line per row: the predicted class or value. When DATA holds the "
        "target as well, the score is printed on the standard error stream.",
    )
    predict.add_argument("model", metavar="MODEL", help="checkpoint that `thalweg train` wrote")
    add_data_arguments(predict, training=False)
    predict.add_argument(
        "--output", metavar="FILE", help="write to a .csv or .npy file (default: standard output)"
    )
    predict.add_argument(
        "--probabilities", action="store_true", help="add one column per class (classification)"
    )
    predict.add_argument("--threads", type=positive_integer, metavar="N")
    predict.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))

    info = commands.add_parser("info", help="describe a checkpoint or any safetensors file")
    info.add_argument("file", metavar="FILE")
    info.add_argument("--json", action="store_true", help="print as JSON")

    doctor = commands.add_parser("doctor", help="check the installation and describe the machine")
    doctor.add_argument("--json", action="store_true", help="print as JSON")

    bench = commands.add_parser(
        "bench", help="time training steps on this machine, beside the peers that are installed"
    )
    bench.add_argument("--threads", type=positive_integer, metavar="N")
    bench.add_argument(
        "--seconds", type=float, default=1.0, help="per measurement (default: %(default)s)"
    )
    bench.add_argument("--json", metavar="FILE", help="also write the rows as JSON")

    reproduce = commands.add_parser(
        "reproduce",
        help="check published claims about optimization by experiment",
        description="Runs experiments and prints claim, measured value, threshold and verdict; "
        "writes JSON rows and a page with figures.",
    )
    reproduce.add_argument("ids", nargs="*", metavar="ID", help="experiments, for example e14 e25")
    reproduce.add_argument("--core", action="store_true", help="all experiments of the core")
    reproduce.add_argument("--list", action="store_true", help="list the experiments")
    reproduce.add_argument(
        "--output", default="reproduce", metavar="DIR", help="folder (default: %(default)s)"
    )
    reproduce.add_argument("--seed", type=integer, default=0, metavar="N")
    reproduce.add_argument(
        "--seeds",
        type=positive_integer,
        default=1,
        metavar="N",
        help="repeat with N seeds, 1000 apart; an experiment passes when it does with each",
    )
    reproduce.add_argument("--threads", type=positive_integer, metavar="N")
    return parser
