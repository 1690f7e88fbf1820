"""The one-line score of a model on data with known targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg import Model
from thalweg.datasets import Preprocessing

from .console import quantity


def score(
    model: Model, preprocessing: Preprocessing, x: npt.NDArray[Any], y: npt.NDArray[Any]
) -> str:
    """Accuracy and loss of a classification, R2 and root mean square error of a regression."""
    if preprocessing.task == "classification":
        result = model.evaluate(x, y)
        wrong = round((1.0 - result["accuracy"]) * len(x))
        return (
            f"accuracy {100 * result['accuracy']:.2f} % ({wrong:,} of {len(x):,} wrong), "
            f"loss {result['loss']:.4f}"
        )
    error = preprocessing.values(model.predict(x)) - preprocessing.values(y)
    spread = preprocessing.values(y) - preprocessing.values(y).mean(axis=0)
    total = float(np.sum(spread**2))
    explained = f"R2 {1.0 - float(np.sum(error**2)) / total:.4f}, " if total > 0 else ""
    return f"{explained}root mean square error {quantity(float(np.sqrt(np.mean(error**2))))}"
