"""`thalweg info`: what is in a checkpoint."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from thalweg.datasets import Preprocessing

from .console import fields, plural, size, table
from .safetensors_header import Header, read_header

_SUMMARIZED = ("description", "format", "crc32c")


def run(options: Namespace) -> int:
    """Print description, tensors and training state."""
    path = Path(options.file)
    header = read_header(path)
    if options.json:
        print(json.dumps(_as_json(path, header), indent=1))
        return 0
    rows: list[tuple[str, object]] = [("file", f"{path} ({size(path.stat().st_size)})")]
    description = _description(header)
    if description is not None:
        rows += _describe(path, description)
    else:
        rows.append(("kind", "safetensors, not written by thalweg"))
    for name, value in header.metadata.items():
        if name not in _SUMMARIZED:
            shown = " ".join(value.split())
            rows.append((name, shown if len(shown) <= 80 else f"{shown[:77]}..."))
    print(fields(rows))
    print()
    print(
        table(
            ("tensor", "type", "shape", "elements"),
            [
                (t.name, t.dtype, " x ".join(map(str, t.shape)) or "scalar", f"{t.elements:,}")
                for t in header.tensors
            ],
            left=2,
        )
    )
    return 0


def _description(header: Header) -> dict[str, Any] | None:
    try:
        description = json.loads(header.metadata["description"])
    except (KeyError, ValueError, RecursionError):
        return None
    return description if isinstance(description, dict) and "layers" in description else None


def _describe(path: Path, description: dict[str, Any]) -> list[tuple[str, object]]:
    """Loads the file, so that its checksum is verified as well."""
    from thalweg import Model

    model = Model.load(path)
    optimizer = dict(description.get("optimizer", {}))
    lr = optimizer.get("lr")
    if isinstance(lr, dict):
        lr = ", ".join(f"{name} {value}" for name, value in lr.items())
    loss = description.get("loss", {})
    rows: list[tuple[str, object]] = [
        ("kind", "thalweg checkpoint, checksum correct"),
        ("network", _layers_text(description["layers"], description.get("in_features"))),
        ("parameters", f"{model.num_parameters:,} ({description.get('dtype', 'float32')})"),
        ("loss", loss.get("type", "?")),
        ("optimizer", f"{optimizer.get('type', '?')}, lr {lr}"),
        (
            "training",
            f"{plural(model.epochs_done, 'epoch')}, {plural(model.steps_done, 'step')}, "
            f"seed {description.get('seed')}",
        ),
    ]
    sidecar = Preprocessing.path_for(path)
    if sidecar.exists():
        preprocessing = Preprocessing.load(sidecar)
        columns = preprocessing.columns
        if columns is not None:
            rows.append(("columns", _cut([name for name, _ in columns])))
        if preprocessing.target:
            rows.append(("target", preprocessing.target))
        if preprocessing.classes:
            rows.append(("classes", _cut(preprocessing.classes)))
    return rows


def _layers_text(layers: list[dict[str, Any]], in_features: object) -> str:
    parts = [str(in_features)]
    for layer in layers:
        kind = str(layer.get("type", "?"))
        if "layers" in layer:
            parts.append(f"{kind}({_layers_text(layer['layers'], '')})")
        elif "units" in layer:
            parts.append(f"{kind} {layer['units']}")
        else:
            parts.append(kind)
    return " > ".join(part for part in parts if part)


def _cut(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f", ... ({len(names)})" if len(names) > 12 else "")


def _as_json(path: Path, header: Header) -> dict[str, Any]:
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "description": _description(header),
        "metadata": {k: v for k, v in header.metadata.items() if k != "description"},
        "tensors": [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in header.tensors
        ],
    }
