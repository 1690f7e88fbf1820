"""Train a batch-normalized network on the embedded digits, save it, load it, predict."""

import tempfile
from pathlib import Path

import thalweg as tw
from thalweg import nn, optim, schedules
from thalweg.datasets import load_digits

x, y, x_test, y_test = load_digits()

epochs, batch_size = 20, 64
steps = epochs * -(-len(x) // batch_size)
model = tw.Model(
    nn.Sequential(
        nn.Dense(128), nn.BatchNorm(), nn.ReLU(),
        nn.Dense(128), nn.BatchNorm(), nn.ReLU(),
        nn.Dense(10),
    ),
    in_features=64,
    loss="cross_entropy",
    optimizer=optim.Adam(schedules.Cosine(2e-3, steps)),
)  # fmt: skip
model.fit(x, y, epochs=epochs, batch_size=batch_size, validation_data=(x_test, y_test))

path = Path(tempfile.mkdtemp()) / "digits.safetensors"
model.save(path)
loaded = tw.Model.load(path)
assert (loaded.predict(x_test) == model.predict(x_test)).all()

result = loaded.evaluate(x_test, y_test)
print(f"test accuracy {100 * result['accuracy']:.2f} %, loss {result['loss']:.4f}")
print("first ten labels     ", y_test[:10])
print("first ten predictions", loaded.predict_class(x_test[:10]))
