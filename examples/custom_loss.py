"""Quantile regression: a loss written in Python as a function that returns value and gradient."""

import numpy as np
import thalweg as tw
from thalweg import nn, optim

QUANTILES = np.array([0.1, 0.5, 0.9], np.float32)


def pinball(prediction, target):
    """Mean over rows of the sum over quantiles of max(q e, (q - 1) e), e = target - prediction."""
    error = target.reshape(-1, 1) - prediction
    value = np.maximum(QUANTILES * error, (QUANTILES - 1) * error).sum(axis=1).mean()
    gradient = np.where(error > 0, -QUANTILES, 1 - QUANTILES) / len(prediction)
    return float(value), gradient


rng = np.random.default_rng(0)
x = rng.uniform(0, 1, (4000, 1)).astype(np.float32)
y = (np.sin(6 * x[:, 0]) + (0.1 + x[:, 0]) * rng.standard_normal(len(x))).astype(np.float32)

model = tw.Model(
    nn.Sequential(nn.Dense(64), nn.ReLU(), nn.Dense(64), nn.ReLU(), nn.Dense(len(QUANTILES))),
    in_features=1,
    loss=pinball,
    optimizer=optim.Adam(2e-3),
)
model.fit(x[:3000], y[:3000], epochs=40, batch_size=100, verbose=False)

below = (y[3000:, None] <= model.predict(x[3000:])).mean(axis=0)
for quantile, share in zip(QUANTILES, below, strict=True):
    print(f"quantile {quantile:.1f}: {100 * share:.1f} % of held-out targets lie below")
