"""Interrupted and resumed training gives bit for bit the weights of uninterrupted training."""

import tempfile
from pathlib import Path

import numpy as np
import thalweg as tw
from thalweg import nn, optim
from thalweg.datasets import load_digits

x, y, x_test, y_test = load_digits()


def new_model():
    return tw.Model(
        nn.Sequential(nn.Dense(64), nn.BatchNorm(), nn.ReLU(), nn.Dropout(0.2), nn.Dense(10)),
        in_features=64,
        optimizer=optim.Adam(1e-3),
        seed=7,
    )


def train(model, epochs):
    model.fit(x, y, epochs=epochs, batch_size=32, verbose=False)


whole = new_model()
train(whole, 10)

path = Path(tempfile.mkdtemp()) / "half.safetensors"
first = new_model()
train(first, 4)
first.save(path)

second = tw.Model.load(path)
print(f"resumed after {second.epochs_done} epochs, {second.steps_done} steps")
train(second, 6)

same = np.array_equal(whole.parameters, second.parameters)
print(f"bitwise equal weights: {same}; accuracy {second.evaluate(x_test, y_test)['accuracy']:.4f}")
assert same
