"""Argument types and the arguments that commands share."""

from __future__ import annotations

import argparse
import math


def integer(text: str) -> int:
    """A whole number >= 0."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text!r}")
    return value


def positive_integer(text: str) -> int:
    """A whole number >= 1."""
    value = integer(text)
    if value == 0:
        raise argparse.ArgumentTypeError("expected a whole number >= 1, got '0'")
    return value


def positive_number(text: str) -> float:
    """A finite number > 0."""
    value = _number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number > 0, got {text!r}")
    return value


def non_negative_number(text: str) -> float:
    """A finite number >= 0."""
    value = _number(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected a number >= 0, got {text!r}")
    return value


def fraction(text: str) -> float:
    """A number in [0, 1)."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a fraction in [0, 1), got {text!r}")
    return value


def widths(text: str) -> tuple[int, ...]:
    """Comma-separated layer widths; "" or "none" for a linear model."""
    if text in ("", "none"):
        return ()
    return tuple(positive_integer(part) for part in text.split(","))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    return value if math.isfinite(value) else math.nan


def add_data_arguments(parser: argparse.ArgumentParser, *, training: bool) -> None:
    """Arguments that say where rows come from and how a table is read."""
    formats = "CSV/TSV file, .npz with x and y, .npy, or folder of IDX files"
    if training:
        parser.add_argument("data", nargs="?", metavar="DATA", help=f"{formats}; default: digits")
    else:
        parser.add_argument("data", metavar="DATA", help=formats)
    group = parser.add_argument_group("data")
    group.add_argument("--delimiter", metavar="C", help="of a table (default: detected)")
    if not training:
        return
    group.add_argument("--target", metavar="COLUMN", help="the column of a table to predict")
    group.add_argument("--labels", metavar="FILE", help=".npy file with y, when DATA is a .npy")
    group.add_argument(
        "--task", choices=("classification", "regression"), help="default: from the target"
    )
    group.add_argument(
        "--header", choices=("yes", "no"), help="whether a table's first line names columns"
    )
    group.add_argument("--drop", action="append", default=[], metavar="COLUMN", help="leave out")
    group.add_argument(
        "--categorical",
        action="append",
        default=[],
        metavar="COLUMN",
        help="codes, not numbers",
    )
    group.add_argument(
        "--impute", action="store_true", help="replace missing numbers by the column's mean"
    )
    group.add_argument(
        "--validation-split",
        type=fraction,
        metavar="F",
        help="part of the rows held out (default: 0.2, or the data's own test part)",
    )


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that describe the network and its training."""
    group = parser.add_argument_group("network")
    group.add_argument("--hidden", type=widths, metavar="W,W", help="widths (default: 256,256)")
    group.add_argument(
        "--activation", metavar="NAME", help="relu, gelu, tanh, ... of thalweg.nn (default: relu)"
    )
    group.add_argument("--no-batch-norm", action="store_true", help="plain layers with biases")
    group.add_argument("--dropout", type=fraction, metavar="P", help="default: 0")

    group = parser.add_argument_group("training")
    group.add_argument(
        "--epochs", type=positive_integer, default=30, metavar="N", help="in all (default: 30)"
    )
    group.add_argument("--batch-size", type=positive_integer, metavar="N", help="default: 64")
    group.add_argument(
        "--optimizer", metavar="NAME", help="sgd, momentum, ... of thalweg.optim (default: adam)"
    )
    group.add_argument("--lr", type=positive_number, metavar="X", help="default: the optimizer's")
    group.add_argument("--weight-decay", type=non_negative_number, metavar="X", help="default: 0")
    group.add_argument(
        "--schedule", choices=("cosine", "constant"), help="of the learning rate (default: cosine)"
    )
    group.add_argument(
        "--class-weight", choices=("balanced",), help="weigh classes by 1 / frequency"
    )
    group.add_argument(
        "--patience",
        type=positive_integer,
        metavar="N",
        help="stop after N epochs without improvement and keep the best weights",
    )
    group.add_argument("--seed", type=integer, metavar="N", help="default: 0")
    group.add_argument("--threads", type=positive_integer, metavar="N", help="default: all")
    group.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))

    group = parser.add_argument_group("files")
    group.add_argument(
        "--output", metavar="FILE", help="checkpoint (default: DATA's name with .safetensors)"
    )
    group.add_argument("--resume", metavar="FILE", help="continue the training of a checkpoint")
    group.add_argument(
        "--plot", metavar="FILE", help="learning curves (default: beside the checkpoint, .png)"
    )
    group.add_argument("--no-plot", action="store_true")
    group.add_argument("--quiet", action="store_true", help="print the last line only")
