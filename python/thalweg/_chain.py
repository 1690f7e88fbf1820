"""The layers of a network in order, by the names that their parameters have."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg import nn

__all__ = ["chain"]


def chain(layers: Iterable[nn.Layer], prefix: str = "layers") -> list[tuple[str, nn.Layer]]:
    """All layers of nested Sequentials; a residual block is one of them."""
    found: list[tuple[str, nn.Layer]] = []
    for i, layer in enumerate(layers):
        name = f"{prefix}.{i}"
        if isinstance(layer, nn.Sequential):
            found += chain(layer, f"{name}.layers")
        else:
            found.append((name, layer))
    return found
