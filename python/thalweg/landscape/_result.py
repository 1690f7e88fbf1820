"""What every result of `thalweg.landscape` can do."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

# A field with this metadata is no part of the JSON form.
NOT_JSON = {"json": False}


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """Arrays and numbers of one analysis: read-only, drawn by `plot`, written by `to_json`."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def to_json(self) -> str:
        """The result as JSON text: arrays as lists, numbers that are not finite as null."""
        values: dict[str, Any] = {"type": type(self).__name__}
        for entry in dataclasses.fields(self):
            if entry.metadata.get("json", True):
                values[entry.name] = _plain(getattr(self, entry.name))
        return json.dumps(values, allow_nan=False)

    def plot(self, axes: Any = None) -> Any:
        """Draw the result with matplotlib.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            Where to; None opens a new figure.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            When matplotlib is missing.
        """
        if axes is None:
            try:
                from matplotlib import pyplot
            except ImportError:
                raise ImportError(
                    f"[{type(self).__name__}.plot] expected matplotlib, got none; "
                    "pip install thalweg[plot]"
                ) from None
            axes = pyplot.subplots(layout="constrained")[1]
        self._draw(axes)
        return axes

    def _draw(self, axes: Any) -> None:
        raise NotImplementedError


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return json.loads(value.to_json())
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
