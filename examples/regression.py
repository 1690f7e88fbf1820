"""Fit a noisy function of two variables, and stop when held-out data stops improving."""

import numpy as np
import thalweg as tw
from thalweg import callbacks, nn, optim

rng = np.random.default_rng(0)
x = rng.uniform(-2, 2, (4000, 2))
clean = np.sin(3 * x[:, 0]) * np.exp(-(x[:, 1] ** 2))
y = clean + 0.1 * rng.standard_normal(len(x))
train, held = slice(0, 3000), slice(3000, None)

model = tw.Model(
    nn.Sequential(nn.Dense(64), nn.Tanh(), nn.Dense(64), nn.Tanh(), nn.Dense(1)),
    in_features=2,
    loss="squared_error",
    optimizer=optim.AdamW(3e-3, weight_decay=1e-4),
)
history = model.fit(
    x[train],
    y[train],
    epochs=200,
    batch_size=64,
    validation_data=(x[held], y[held]),
    early_stopping=callbacks.EarlyStopping(patience=15),
    verbose=False,
)

error = model.predict(x[held])[:, 0] - clean[held]
print(f"{len(history.epochs)} epochs, best {history.best_epoch} ({history.stopped_because})")
print(f"validation loss {min(history['validation_loss']):.4f} (the noise alone has 0.0100)")
print(f"root mean square error against the clean function {np.sqrt(np.mean(error**2)):.4f}")
