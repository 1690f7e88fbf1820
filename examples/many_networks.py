"""Many small networks: search widths and learning rates in a second, then average the best."""

import itertools
import time

import numpy as np
import thalweg as tw
from thalweg import nn, optim
from thalweg.datasets import load_digits

x, y, x_test, y_test = load_digits()
x, y, x_held, y_held = x[:1000], y[:1000], x[1000:], y[1000:]

started = time.perf_counter()
candidates = []
for width, lr, seed in itertools.product((16, 32, 64), (1e-3, 3e-3, 1e-2), range(4)):
    model = tw.Model(
        nn.Sequential(nn.Dense(width), nn.BatchNorm(), nn.ReLU(), nn.Dense(10)),
        in_features=64,
        optimizer=optim.Adam(lr),
        seed=seed,
    )
    model.fit(x, y, epochs=15, batch_size=32, verbose=False)
    candidates.append((model.evaluate(x_held, y_held)["loss"], width, lr, model))
seconds = time.perf_counter() - started

candidates.sort(key=lambda entry: entry[0])
loss, width, lr, best = candidates[0]
print(f"{len(candidates)} networks in {seconds:.2f} s")
print(f"best: width {width}, rate {lr}, loss {loss:.4f}")
print(f"best alone   {100 * best.evaluate(x_test, y_test)['accuracy']:.2f} % on the test rows")
proba = np.mean([entry[3].predict_proba(x_test) for entry in candidates[:8]], axis=0)
print(f"mean of 8    {100 * np.mean(proba.argmax(axis=1) == y_test):.2f} %")
