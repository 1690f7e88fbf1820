"""Training against the reference trainer: `step`, `fit`, its orders, ways to stop and errors."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference as ref
import thalweg as tw
from conftest import DEVICE
from support import Array, assert_same, model_of, set_values, snapshot
from thalweg import callbacks, losses, nn, optim, schedules
from thalweg._core import _testing

# Of float64 trajectories: rounding is all that may differ. A bias in front of batch norm amplifies
# it most: its gradient is zero but for rounding, 1e-17, and Adam's first update multiplies that by
# lr / delta, 2e6 at a rate of 0.02.
TOLERANCE = 1e-10
ROWS, FEATURES, CLASSES = 70, 6, 4

NETWORK: list[dict[str, Any]] = [
    {"type": "dense", "units": 9},
    {"type": "batch_norm", "momentum": 0.1},
    {"type": "relu"},
    {"type": "dropout", "p": 0.25},
    {"type": "residual", "layers": [{"type": "dense", "units": 9}, {"type": "tanh"}]},
    {"type": "maxout", "units": 7, "pieces": 3},
    {"type": "batch_norm", "momentum": None, "weighted": True},
    {"type": "dense", "units": CLASSES},
]
PLAIN: list[dict[str, Any]] = [
    {"type": "dense", "units": 5},
    {"type": "tanh"},
    {"type": "dense", "units": CLASSES},
]


def describe(**changes: Any) -> dict[str, Any]:
    return {
        "in_features": FEATURES,
        "dtype": "float64",
        "seed": 11,
        "layers": NETWORK,
        "loss": {"type": "cross_entropy", "label_smoothing": 0.05},
        "optimizer": {"type": "sgd", "lr": 0.05},
        **changes,
    }


def data(rows: int = ROWS, seed: int = 0) -> tuple[Array, Array, Array]:
    """x, labels and weights."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((rows, FEATURES)),
        rng.integers(0, CLASSES, rows),
        rng.uniform(0.5, 2.0, rows),
    )


def pair(
    description: dict[str, Any], *, steps_per_epoch: int | None = None
) -> tuple[tw.Model, ref.Trainer]:
    """A model and a reference trainer that start from the same values."""
    model = model_of(description)
    rng = np.random.default_rng(5)
    parameters = {
        name: ref.as_float(value) + 0.1 * rng.standard_normal(value.shape)
        for name, value in model.named_parameters().items()
    }
    state = ref.Network(description).initial_state()
    set_values(model, parameters, state)
    return model, ref.Trainer(description, parameters, state, steps_per_epoch=steps_per_epoch)


def assert_close(
    actual: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float, what: str
) -> None:
    a, e = ref.as_float(actual), ref.as_float(expected)
    assert a.shape == e.shape, what
    error = np.abs(a - e).max(initial=0.0) / max(1.0, np.abs(e).max(initial=0.0))
    assert error <= tolerance, f"{what}: {error:.1e}"


def assert_follows(model: tw.Model, trainer: ref.Trainer, tolerance: float = TOLERANCE) -> None:
    """Parameters, theta, slots, average and batch-norm buffers agree with the reference."""
    named = model.named_parameters()
    theta = trainer.optimizer.theta(trainer.parameters)
    for name, value in trainer.parameters.items():
        assert_close(named[name], value, tolerance, name)
    assert_close(model.theta(), trainer.network.flatten(theta), tolerance, "theta")
    for name, value in trainer.state.items():
        assert_close(model.named_state()[name], value, tolerance, name)
    slots = list(model.optimizer_state().values())
    for name, expected in trainer.optimizer.slots.items():
        assert len(slots) == len(expected)
        for slot, value in zip(slots, expected, strict=True):
            assert_close(slot[name], value, tolerance, f"slot of {name}")
    if trainer.averager is not None:
        averaged = model.averaged().named_parameters()
        for name, value in trainer.averager.average.items():
            assert_close(averaged[name], value, tolerance, f"average of {name}")
    assert model.steps_done == trainer.optimizer.updates_done


def batches_of(order: Sequence[int] | Array, size: int) -> Iterator[Array]:
    rows = np.asarray(order)
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def train(
    trainer: ref.Trainer,
    x: Array,
    y: Array,
    order: Sequence[int] | Array,
    size: int,
    *,
    accumulate: int = 1,
    weight: Array | None = None,
    class_weight: dict[int, float] | None = None,
    skip_single: bool = True,
) -> tuple[float, float]:
    """One epoch of the reference: mean loss and total weight of what it saw."""
    minibatches = list(batches_of(order, size))
    total = mean = 0.0
    for group in batches_of(np.arange(len(minibatches)), accumulate):
        parts = [minibatches[i] for i in group]
        parts = [rows for rows in parts if len(rows) > 1 or not skip_single]
        if not parts:
            continue
        loss = ref.train_step(
            trainer,
            *(ref.Minibatch(x[r], y[r], None if weight is None else weight[r]) for r in parts),
            class_weight=class_weight,
        )
        seen = float(
            sum(
                ref.row_weights(
                    len(r), None if weight is None else weight[r], y[r], class_weight
                ).sum()
                for r in parts
            )
        )
        total, mean = total + seen, mean + seen * loss
    return mean / total, total


# -- one update after the other ------------------------------------------------------------------

LR_SCHEDULE = {
    "warmup": {
        "schedule": "warmup",
        "steps": 5,
        "then": {"schedule": "cosine", "start": 0.05, "steps": 20, "end": 0.001},
    },
    "linear": {"schedule": "linear", "start": 0.05, "end": 0.005, "tau": 15},
    "one_cycle": {"schedule": "one_cycle", "peak": 0.05, "steps": 25},
    "step": {"schedule": "step", "start": 0.05, "factor": 0.5, "every": 7},
    "robbins_monro": {"schedule": "robbins_monro", "start": 0.05, "k0": 10.0, "power": 0.75},
}
GROUPS = [
    {"match": "layers.0.*", "lr_scale": 0.5},
    {"match": "layers.1.weight", "frozen": True},
    {"match": "*.bias", "lr_scale": 2.0, "weight_decay": 0.0},
    {"match": "layers.?.*", "weight_decay": 0.03},
    {"match": "layers.7.weight", "frozen": True},  # the pattern before has it
]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scheduled": {"optimizer": {"lr": LR_SCHEDULE["warmup"], "weight_decay": 0.02}},
    "grouped": {"optimizer": {"lr": 0.01, "weight_decay": 0.1, "groups": GROUPS}},
    "clipped": {"clip_norm": 0.3, "averaging": {"type": "ema", "decay": 0.9}},
    "grouped, clipped, averaged": {
        "optimizer": {"lr": LR_SCHEDULE["linear"], "groups": GROUPS},
        "clip_norm": 0.2,
        "averaging": {"type": "polyak", "start": 4},
        "check_finite": "gradients",
    },
    "averaged, frozen": {
        "optimizer": {"lr": 0.01, "groups": GROUPS},
        "averaging": {"type": "polyak", "start": 0},
    },
}


def flags_of(name: str) -> list[str]:
    """Boolean options of an optimizer."""
    rows = tw._core.optimizers()[name]["parameters"]
    return [key for key, row in rows.items() if row["kind"] == "flag"]


def variants() -> Iterator[Any]:
    for name in tw._core.optimizers():
        for setting in SETTINGS:
            yield pytest.param(name, {}, setting, id=f"{name}-{setting}")
        for flag in flags_of(name):
            for setting in ("plain", "scheduled", "grouped, clipped, averaged"):
                yield pytest.param(name, {flag: True}, setting, id=f"{name}-{flag}-{setting}")


@pytest.mark.parametrize(("name", "options", "setting"), list(variants()))
def test_steps_follow_the_reference(name: str, options: dict[str, Any], setting: str) -> None:
    changes = SETTINGS[setting]
    optimizer = {"type": name, **changes.get("optimizer", {}), **options}
    if "momentum" in ref.OPTIMIZERS[name].defaults and setting != "plain":
        optimizer["momentum"] = {"schedule": "nesterov_convex"}
    model, trainer = pair(describe(**{**changes, "optimizer": optimizer}))
    x, y, weight = data(40)
    rng = np.random.default_rng(1)
    for step in range(30):
        rows = rng.integers(0, len(x), 16)
        w = weight[rows] if step % 2 else None
        result = model.step(x[rows], y[rows], w)
        expected = ref.train_step(trainer, ref.Minibatch(x[rows], y[rows], w))
        assert result["step"] == step + 1
        assert_close(result["loss"], expected, TOLERANCE, f"loss of step {step}")
        assert_close(result["lr"], trainer.optimizer.hyper("none", step)["lr"], 1e-15, "lr")
    assert_follows(model, trainer)


@pytest.mark.parametrize("schedule", LR_SCHEDULE)
def test_learning_rate_schedules(schedule: str) -> None:
    optimizer = {"type": "momentum", "lr": LR_SCHEDULE[schedule], "momentum": 0.8}
    model, trainer = pair(describe(optimizer=optimizer))
    x, y, _ = data(32)
    for step in range(40):
        assert_close(
            model.step(x, y)["lr"], ref.schedule_value(LR_SCHEDULE[schedule], step), 1e-14, "lr"
        )
        ref.train_step(trainer, ref.Minibatch(x, y))
    assert_follows(model, trainer)


@pytest.mark.parametrize("name", tw._core.losses())
@pytest.mark.parametrize("reduction", ["batch_mean", "sum", "element_mean"])
def test_elementwise_losses_train(name: str, reduction: str) -> None:
    loss = {"type": name, "reduction": reduction}
    model, trainer = pair(describe(loss=loss, layers=PLAIN, optimizer={"type": "sgd", "lr": 1e-3}))
    x, _, weight = data(33)
    rng = np.random.default_rng(2)
    y = {
        "sign": rng.choice([-1.0, 1.0], (33, CLASSES)),
        "unit_interval": rng.random((33, CLASSES)),
        "real": rng.standard_normal((33, CLASSES)),
    }[ref.ELEMENTWISE_LOSSES[name].target]
    for _ in range(10):
        result = model.step(x, y, weight)
        assert_close(
            result["loss"], ref.train_step(trainer, ref.Minibatch(x, y, weight)), TOLERANCE, "loss"
        )
    assert_follows(model, trainer)


def test_float32_stays_near_the_reference() -> None:
    model32, trainer = pair(describe(dtype="float32", optimizer={"type": "momentum", "lr": 0.05}))
    x, y, _ = data(64)
    x = x.astype(np.float32).astype(np.float64)
    trainer.parameters = {n: ref.as_float(v) for n, v in model32.named_parameters().items()}
    for _ in range(20):
        model32.step(x, y)
        ref.train_step(trainer, ref.Minibatch(x, y))
    assert_follows(model32, trainer, 2e-5)


def test_large_step_counts_of_adam(tmp_path: Any) -> None:
    from support import at_step

    model = at_step(model_of(describe(layers=PLAIN, optimizer={"type": "adam"})), 10**9, tmp_path)
    _, trainer = pair(describe(layers=PLAIN, optimizer={"type": "adam"}))
    trainer.parameters = {n: v.copy() for n, v in model.named_parameters().items()}
    trainer.optimizer.updates_done = 10**9
    x, y, _ = data()
    for _ in range(3):
        model.step(x, y)
        ref.train_step(trainer, ref.Minibatch(x, y))
    assert_follows(model, trainer)


def test_unfused_updates_are_the_fused_ones() -> None:
    x, y, _ = data()
    fused, unfused, high = (
        model_of(describe(dtype="float32", optimizer={"type": "adam"}, **changes))
        for changes in ({}, {"check_finite": "gradients"}, {"clip_norm": 1e9})
    )
    for model in (fused, unfused, high):
        for _ in range(5):
            model.step(x, y)
    assert_same(fused, unfused)
    assert_same(fused, high)


def test_gradient_norm_is_reported_before_clipping() -> None:
    model, trainer = pair(describe(clip_norm=0.1, layers=PLAIN))
    x, y, _ = data()
    expected = trainer.network.evaluate(trainer.parameters, x, y)
    result = model.step(x, y)
    assert_close(result["gradient_norm"], ref.global_norm(expected.gradients), 1e-12, "norm")
    assert "gradient_norm" not in model_of(describe()).step(x, y)


# -- fit -----------------------------------------------------------------------------------------


def epoch_order(seed: int, epoch: int, rows: int) -> Array:
    return _testing.permutation(rows, seed=seed, epoch=epoch, first=0, count=rows, inverse=False)


def iid_order(seed: int, epoch: int, rows: int) -> Array:
    """Uniform draws: the high half of 64 random bits times the number of rows."""
    element = 4 * np.arange(rows)
    low = ref.random_words(element, seed=seed, stream=0xFFFE, step=epoch)
    high = ref.random_words(element + 1, seed=seed, stream=0xFFFE, step=epoch)
    return np.array(
        [((int(h) << 32 | int(w)) * rows) >> 64 for h, w in zip(high, low, strict=True)]
    )


ORDERS: dict[str | bool, Callable[[int, int, int], Array]] = {
    "epoch": epoch_order,
    True: epoch_order,
    "stack": lambda seed, _, rows: epoch_order(seed, 0, rows),
    "iid": iid_order,
    False: lambda _, __, rows: np.arange(rows),
}


@pytest.mark.parametrize("shuffle", list(ORDERS), ids=str)
@pytest.mark.parametrize(
    ("size", "accumulate", "weighting"),
    [
        (16, 1, "none"),
        (16, 3, "sample"),
        (23, 1, "class"),
        (None, 1, "both"),
        (7, 4, "balanced"),
        (23, 2, "none"),  # the last update has one minibatch of the two, the tail a single row
    ],
)
def test_fit_follows_the_reference(
    shuffle: str | bool, size: int | None, accumulate: int, weighting: str
) -> None:
    optimizer = {
        "type": "nesterov",
        "lr": {"schedule": "linear", "start": 0.05, "end": 0.01, "tau_epochs": 2},
        "momentum": {"schedule": "nesterov_convex"},
    }
    per_epoch = math.ceil(math.ceil(ROWS / (size or ROWS)) / accumulate)
    description = describe(optimizer=optimizer, averaging={"type": "ema", "decay": 0.8})
    model, trainer = pair(description, steps_per_epoch=per_epoch)
    x, y, w = data()
    sample = w if weighting in ("sample", "both") else None
    class_weight: Any = None
    if weighting in ("class", "both"):
        class_weight = {0: 2.0, 3: 0.25}
    if weighting == "balanced":
        class_weight = "balanced"
    by_class = ref.balanced_class_weight(y) if weighting == "balanced" else class_weight
    history = model.fit(
        x,
        y,
        epochs=3,
        batch_size=size,
        shuffle=shuffle,
        accumulate=accumulate,
        sample_weight=sample,
        class_weight=class_weight,
        verbose=False,
    )
    for epoch, row in enumerate(history.epochs):
        order = ORDERS[shuffle](11, epoch, ROWS)
        loss, _ = train(
            trainer,
            x,
            y,
            order,
            size or ROWS,
            accumulate=accumulate,
            weight=sample,
            class_weight=by_class,
        )
        assert_close(row["loss"], loss, TOLERANCE, f"loss of epoch {epoch}")
        assert row["epoch"] == epoch + 1
        assert row["skipped_rows"] == (1 if size == 23 else 0)
    assert history.skipped_rows == (3 if size == 23 else 0)
    assert history.stopped_because == "epochs"
    assert (len(history), model.epochs_done) == (3, 3)
    assert_follows(model, trainer)


def test_fit_is_a_loop_of_steps() -> None:
    x, y, w = data()
    fitted, stepped = model_of(describe(dtype="float32")), model_of(describe(dtype="float32"))
    fitted.fit(x, y, epochs=2, batch_size=16, shuffle=False, sample_weight=w, verbose=False)
    for _ in range(2):
        for rows in batches_of(np.arange(ROWS), 16):
            stepped.step(x[rows], y[rows], w[rows])
    np.testing.assert_array_equal(fitted.parameters, stepped.parameters)
    for name, value in fitted.named_state().items():
        np.testing.assert_array_equal(stepped.named_state()[name], value)


def test_fit_on_batches_is_a_loop_of_steps() -> None:
    x, y, w = data()
    given = [(x[r], y[r], w[r]) for r in batches_of(np.arange(ROWS), 23)]  # the last has one row
    arrays, listed, generated = (model_of(describe(dtype="float32")) for _ in range(3))
    first = arrays.fit(x, y, sample_weight=w, epochs=2, batch_size=23, shuffle=False, verbose=False)
    second = listed.fit(given, epochs=2, verbose=False)
    generated.fit((b for b in given), verbose=False)
    np.testing.assert_array_equal(arrays.parameters, listed.parameters)
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-6)
    np.testing.assert_allclose(first["accuracy"], second["accuracy"], rtol=1e-12)
    assert second.skipped_rows == first.skipped_rows == 2
    generated.fit((b for b in given), verbose=False)
    np.testing.assert_array_equal(arrays.parameters, generated.parameters)
    with pytest.raises(ValueError, match="iterator"):
        generated.fit((b for b in given), epochs=2, verbose=False)


class Recorder:
    """A squared loss that notes which rows it saw, given their numbers as target."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, z: Array, rows: Array) -> tuple[float, Array]:
        self.seen.append(rows.tolist())
        return float((z**2).mean()), 2.0 * z / z.size


def visited(shuffle: str | bool, epochs: int, seed: int, calls: int = 1) -> list[list[list[int]]]:
    """Row numbers of every minibatch of every epoch."""
    recorder = Recorder()
    model = tw.Model([nn.Dense(2)], FEATURES, recorder, optim.SGD(1e-3), seed=seed, device=DEVICE)
    x = np.zeros((ROWS, FEATURES))
    for _ in range(calls):
        model.fit(
            x,
            np.arange(ROWS),
            batch_size=32,
            shuffle=shuffle,
            epochs=epochs // calls,
            verbose=False,
        )
    per_epoch = math.ceil(ROWS / 32)
    return [recorder.seen[i : i + per_epoch] for i in range(0, len(recorder.seen), per_epoch)]


@pytest.mark.parametrize("shuffle", ["epoch", "stack", "iid", False])
def test_orders(shuffle: str | bool) -> None:
    epochs = visited(shuffle, 4, seed=3)
    assert epochs == visited(shuffle, 4, seed=3)  # the seed replays
    assert epochs == visited(shuffle, 4, seed=3, calls=2)  # a second call continues
    assert [[len(b) for b in e] for e in epochs] == [[32, 32, 6]] * 4
    flat = [list(itertools.chain.from_iterable(e)) for e in epochs]
    if shuffle is False:
        assert flat == [list(range(ROWS))] * 4
        return
    assert epochs != visited(shuffle, 4, seed=4)
    assert flat[0] != list(range(ROWS))
    if shuffle == "iid":
        assert all(set(rows) <= set(range(ROWS)) and len(set(rows)) < ROWS for rows in flat)
        assert len({tuple(rows) for rows in flat}) == 4
    else:
        assert all(sorted(rows) == list(range(ROWS)) for rows in flat)
        assert len({tuple(rows) for rows in flat}) == (1 if shuffle == "stack" else 4)


def test_stack_reads_a_permuted_copy() -> None:
    x, y, w = data()
    order = epoch_order(11, 0, ROWS)
    stacked, copied = model_of(describe(dtype="float32")), model_of(describe(dtype="float32"))
    kept = x.copy()
    options: dict[str, Any] = {"epochs": 3, "batch_size": 16, "verbose": False}
    stacked.fit(x, y, sample_weight=w, shuffle="stack", **options)
    copied.fit(x[order], y[order], sample_weight=w[order], shuffle=False, **options)
    assert_same(stacked, copied)
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize(
    "layout", ["fortran", "reversed", "strided", "float32", "int8", "bool", "offset"]
)
def test_fit_reads_any_layout(layout: str) -> None:
    x, y, _ = data()
    x = np.round(4 * x)
    if layout == "bool":
        x = x > 0
    wide = np.zeros((2 * ROWS, 2 * FEATURES))
    wide[::2, ::2] = x
    raw = bytearray(8 * x.size + 1)
    odd = np.frombuffer(raw, dtype=np.float64, offset=1, count=x.size).reshape(x.shape)
    odd[:] = x
    given = {
        "fortran": np.asfortranarray(x),
        "reversed": np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
        "strided": wide[::2, ::2],
        "float32": x.astype(np.float32),
        "int8": x.astype(np.int8),
        "bool": x,
        "offset": odd,
    }[layout]
    given.flags.writeable = False
    model, plain = model_of(describe(dtype="float32")), model_of(describe(dtype="float32"))
    for target, array in ((model, given), (plain, x.astype(np.float64))):
        target.fit(array, y, epochs=2, batch_size=16, verbose=False)
    assert_same(model, plain)


def test_a_second_fit_continues() -> None:
    x, y, _ = data()
    once, twice = model_of(describe()), model_of(describe())
    once.fit(x, y, epochs=4, batch_size=16, verbose=False)
    twice.fit(x, y, epochs=1, batch_size=16, verbose=False)
    history = twice.fit(x, y, epochs=3, batch_size=16, verbose=False)
    assert history["epoch"] == [2, 3, 4]
    assert_same(once, twice)


def test_reset_starts_again() -> None:
    x, y, _ = data()
    averaging = {"type": "polyak", "start": 0}
    model = model_of(describe(optimizer={"type": "adam"}, averaging=averaging))
    fresh = snapshot(model)
    model.fit(x, y, epochs=2, verbose=False)
    trained = snapshot(model)
    model.reset()
    assert snapshot(model) == fresh
    model.fit(x, y, epochs=2, verbose=False)
    assert snapshot(model) == trained != fresh


def test_copies_are_independent() -> None:
    x, y, _ = data()
    model = model_of(describe(optimizer={"type": "adam"}, averaging={"type": "ema", "decay": 0.9}))
    model.fit(x, y, verbose=False)
    twin = model.copy()
    before = snapshot(model)
    twin.fit(x, y, verbose=False)
    assert snapshot(model) == before
    model.fit(x, y, verbose=False)
    assert_same(model, twin)


def test_a_new_optimizer_starts_from_its_first_update() -> None:
    """Bias corrections and velocities must fit the zero state, whatever was done before."""
    x, y, _ = data()
    model = model_of(describe(layers=PLAIN))
    for _ in range(50):
        model.step(x, y)
    model.set_optimizer(optim.Adam(0.01))
    description = describe(layers=PLAIN, optimizer={"type": "adam", "lr": 0.01})
    trainer = ref.Trainer(description, dict(model.named_parameters()))
    for _ in range(3):
        model.step(x, y)
        ref.train_step(trainer, ref.Minibatch(x, y))
    for name, value in trainer.parameters.items():
        assert_close(model.named_parameters()[name], value, TOLERANCE, name)


# -- ways to stop --------------------------------------------------------------------------------


def diverging() -> tw.Model:
    """Its loss grows from the first update on, slowly."""
    return tw.Model(
        [nn.Dense(1, init="zeros")],
        1,
        "squared_error",
        optim.SGD(1.05),
        dtype="float64",
        device=DEVICE,
    )


def grow(**options: Any) -> tuple[tw.Model, tw.History]:
    model = diverging()
    x, y = np.array([[1.0], [-1.0]]), np.array([1.0, -1.0])
    options = {"epochs": 20, "batch_size": None, "verbose": False, **options}
    return model, model.fit(x, y, validation_data=(x, y), **options)


@pytest.mark.parametrize("restore", [True, False])
@pytest.mark.parametrize("patience", [0, 1, 3])
def test_early_stopping(patience: int, restore: bool) -> None:
    rule = callbacks.EarlyStopping(patience=patience, restore_best=restore)
    model, history = grow(early_stopping=rule)
    assert history["validation_loss"] == sorted(history["validation_loss"])
    assert history.stopped_because == "early_stopping"
    assert (history.best_epoch, len(history)) == (1, 1 + max(patience, 1))
    kept, _ = grow(epochs=1 if restore else len(history))
    np.testing.assert_array_equal(model.parameters, kept.parameters)
    same_as_callback, again = grow(callbacks=[rule])
    assert again["loss"] == history["loss"]
    assert_same(model, same_as_callback)


def test_early_stopping_wants_min_delta_and_maximizes_accuracy() -> None:
    x, y, _ = data()
    model = model_of(describe())
    rule = callbacks.EarlyStopping("loss", patience=2, min_delta=100.0)
    assert len(model.fit(x, y, epochs=9, early_stopping=rule, verbose=False)) == 3
    rule = callbacks.EarlyStopping("validation_accuracy", patience=3)
    history = model.fit(x, y, epochs=60, validation_data=(x, y), early_stopping=rule, verbose=False)
    best = int(np.argmax(history["validation_accuracy"]))
    assert history.best_epoch == history["epoch"][best]
    if history.stopped_because == "early_stopping":
        assert len(history) == best + 1 + 3
    assert model.evaluate(x, y)["accuracy"] == history["validation_accuracy"][best]
    with pytest.raises(ValueError, match="validation_data"):
        model.fit(x, y, early_stopping=callbacks.EarlyStopping(), verbose=False)


def test_early_stopping_restores_batch_norm_statistics() -> None:
    x, y, _ = data()
    options = describe(optimizer={"type": "sgd", "lr": 3.0}, layers=NETWORK)
    model, kept = model_of(options), model_of(options)
    rule = callbacks.EarlyStopping(patience=4)
    history = model.fit(x, y, epochs=30, validation_data=(x, y), early_stopping=rule, verbose=False)
    kept.fit(x, y, epochs=history.best_epoch, verbose=False)
    np.testing.assert_array_equal(model.parameters, kept.parameters)
    for name, value in model.named_state().items():
        np.testing.assert_array_equal(value, kept.named_state()[name])
    assert model.evaluate(x, y)["loss"] == min(history["validation_loss"])


def test_max_steps_and_resume_inside_an_epoch() -> None:
    x, y, w = data()
    whole = model_of(describe(optimizer={"type": "adam"}))
    rows = whole.fit(x, y, sample_weight=w, epochs=3, batch_size=16, verbose=False).epochs
    parts = model_of(describe(optimizer={"type": "adam"}))
    last: dict[str, Any] = {}
    for steps in (1, 3, 4, 2, 5):
        history = parts.fit(
            x, y, sample_weight=w, epochs=3, batch_size=16, max_steps=steps, verbose=False
        )
        assert history.stopped_because == "max_steps"
        last = history.epochs[-1]
        assert sum(history["steps"]) == steps
    assert_same(whole, parts)
    assert last["loss"] == rows[-1]["loss"]  # the sums of the epoch in progress go on
    assert last["accuracy"] == rows[-1]["accuracy"]


def test_tiny_weights_count_as_zero() -> None:
    x, y, w = data()
    tiny = np.where(np.arange(len(w)) < 32, 1e-39, w.astype(np.float64))
    models = [model_of(describe(layers=PLAIN)) for _ in range(2)]
    rows = [
        model.fit(
            x, y, sample_weight=weights, epochs=2, batch_size=16, shuffle=False, verbose=False
        )
        for model, weights in zip(models, (tiny, np.where(tiny < 1e-38, 0, tiny)), strict=True)
    ]
    assert_same(*models)
    assert (
        rows[0].skipped_rows == rows[1].skipped_rows == 2 * 32
    )  # whole minibatches without weight
    assert rows[0].epochs[-1]["loss"] == rows[1].epochs[-1]["loss"]
    assert np.isfinite(rows[0]["loss"]).all()


def test_stop_at_loss() -> None:
    x, y, _ = data()
    model = model_of(describe(layers=PLAIN, optimizer={"type": "adam", "lr": 0.01}))
    history = model.fit(x, y, epochs=500, stop_at_loss=1.2, verbose=False)
    assert history.stopped_because == "stop_at_loss"
    assert history["loss"][-1] < 1.2 <= min(history["loss"][:-1])


class Log:
    """Notes every call; asks to stop after a number of updates or epochs."""

    def __init__(self, stop_step: int | None = None, stop_epoch: int | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self.stop_step, self.stop_epoch = stop_step, stop_epoch

    def on_train_begin(self, model: tw.Model) -> None:
        self.calls.append(("begin", model.steps_done))

    def on_step(self, model: tw.Model, step: int, logs: dict[str, Any]) -> bool:
        assert model.steps_done == step == logs["step"]
        assert {"loss", "accuracy", "lr"} <= logs.keys()
        self.calls.append(("step", step))
        return step == self.stop_step

    def on_epoch_end(self, model: tw.Model, epoch: int, logs: dict[str, Any]) -> bool:
        assert logs["epoch"] == epoch
        model.predict(np.zeros((3, FEATURES)))  # reading inside a callback is allowed
        self.calls.append(("epoch", epoch))
        return epoch == self.stop_epoch

    def on_train_end(self, model: tw.Model, history: tw.History) -> None:
        self.calls.append(("end", len(history)))


def test_callbacks_are_called_in_order() -> None:
    x, y, _ = data()
    log, every_third = Log(), Log()
    model_of(describe()).fit(x, y, epochs=2, batch_size=35, callbacks=[log], verbose=False)
    assert log.calls == [
        ("begin", 0), ("step", 1), ("step", 2), ("epoch", 1),
        ("step", 3), ("step", 4), ("epoch", 2), ("end", 2),
    ]  # fmt: skip
    model_of(describe()).fit(
        x, y, epochs=2, batch_size=16, callbacks=[every_third], callback_every=3, verbose=False
    )
    assert [n for kind, n in every_third.calls if kind == "step"] == [3, 6, 9]


@pytest.mark.parametrize("source", ["arrays", "batches"])
def test_callbacks_stop_the_training(source: str) -> None:
    x, y, _ = data()
    batches = [(x[r], y[r]) for r in batches_of(np.arange(ROWS), 35)]

    def fit(log: Log) -> tuple[tw.Model, tw.History]:
        model = model_of(describe())
        options: dict[str, Any] = {"epochs": 5, "callbacks": [log], "verbose": False}
        if source == "batches":
            return model, model.fit(batches, **options)
        return model, model.fit(x, y, batch_size=35, **options)

    model, history = fit(Log(stop_step=3))
    assert (model.steps_done, history.stopped_because) == (3, "callback")
    model, history = fit(Log(stop_epoch=2))
    assert (model.steps_done, history.stopped_because) == (4, "callback")


def test_errors_in_callbacks_come_through() -> None:
    x, y, _ = data()
    model = model_of(describe())

    def fail(model: tw.Model, step: int, logs: dict[str, Any]) -> None:
        if step == 2:
            raise KeyError("from the callback")

    with pytest.raises(KeyError, match="from the callback"):
        model.fit(
            x, y, callbacks=[callbacks.LambdaCallback(on_step=fail)], batch_size=16, verbose=False
        )
    assert model.steps_done == 2
    model.fit(x, y, verbose=False)


def test_callbacks_cannot_change_the_model() -> None:
    x, y, _ = data()
    model = model_of(describe())

    def change(model: tw.Model, epoch: int, logs: dict[str, Any]) -> None:
        model.reset()

    with pytest.raises(RuntimeError):
        model.fit(x, y, callbacks=[callbacks.LambdaCallback(on_epoch_end=change)], verbose=False)


# -- non-finite values ---------------------------------------------------------------------------


def test_a_non_finite_loss_changes_nothing() -> None:
    x, y, _ = data()
    model = model_of(
        describe(
            dtype="float32", optimizer={"type": "adam"}, averaging={"type": "polyak", "start": 0}
        )
    )
    model.fit(x, y, epochs=2, verbose=False)
    name = "layers.4.layers.0.weight"
    broken = np.full(model.named_parameters()[name].shape, np.inf, dtype=np.float32)
    model.set_parameters({name: broken})
    before = snapshot(model)
    for attempt in (lambda: model.step(x, y), lambda: model.fit(x, y, verbose=False)):
        with pytest.raises(tw.NonFiniteError) as caught:
            attempt()
        assert caught.value.step == model.steps_done + 1
        assert caught.value.layer.startswith("layers.4")
        assert snapshot(model) == before
    assert isinstance(caught.value, ArithmeticError)


@pytest.mark.parametrize("check", ["loss", "gradients"])
def test_divergence_ends_at_the_last_good_step(check: str) -> None:
    x = np.full((64, 4), 3.0)
    y = np.ones((64, 1))

    def model() -> tw.Model:
        return tw.Model(
            [nn.Dense(5), nn.Softplus(), nn.Dense(1)],
            4, "squared_error", optim.SGD(1e4), check_finite=check, device=DEVICE,
        )  # fmt: skip

    broken = model()
    with pytest.raises(tw.NonFiniteError):
        broken.fit(x, y, epochs=100, batch_size=32, shuffle=False, verbose=False)
    good = model()
    assert broken.steps_done >= 1
    good.fit(
        x, y, epochs=100, batch_size=32, shuffle=False, max_steps=broken.steps_done, verbose=False
    )
    assert_same(broken, good)
    assert np.isfinite(broken.parameters).all()


def poisoned(z: Array, target: Array) -> tuple[float, Array]:
    """A finite loss whose gradient is NaN for one output."""
    gradient = np.ones_like(z)
    gradient[:, 1] = np.nan
    return 1.0, gradient


def test_a_non_finite_gradient_element_skips_its_own_update() -> None:
    model = tw.Model([nn.Dense(3)], 2, poisoned, optim.SGD(0.5), dtype="float64", device=DEVICE)
    before = model.named_parameters()
    x, y = np.ones((4, 2)), np.zeros(4)
    with pytest.raises(tw.NonFiniteError) as caught:
        model.step(x, y)
    assert caught.value.step == 1
    after = model.named_parameters()
    assert model.steps_done == 1
    for name in before:
        np.testing.assert_array_equal(after[name][1], before[name][1])
        np.testing.assert_array_equal(after[name][[0, 2]], before[name][[0, 2]] - 2.0)


def test_check_finite_gradients_keeps_the_whole_update_back() -> None:
    layers = [nn.Dense(5), nn.BatchNorm(), nn.ReLU(), nn.Dense(3)]
    model = tw.Model(layers, 2, poisoned, optim.Adam(), check_finite="gradients", device=DEVICE)
    before = snapshot(model)
    with pytest.raises(tw.NonFiniteError) as caught:
        model.step(np.random.default_rng(0).standard_normal((8, 2)), np.zeros(8))
    assert caught.value.step == 1
    assert caught.value.layer.startswith("layers.")
    assert snapshot(model) == before


def test_clipping_survives_huge_gradients() -> None:
    """Gradients of 1e20 have squares beyond float32; the norm is finite, the update its limit."""

    def steep(z: Array, target: Array) -> tuple[float, Array]:
        return 0.0, np.full_like(z, 1e20)

    model = tw.Model([nn.Dense(4)], 3, steep, optim.SGD(1.0), clip_norm=0.5, device=DEVICE)
    before = ref.as_float(model.parameters)
    model.step(np.ones((8, 3)), np.zeros(8))
    np.testing.assert_allclose(np.linalg.norm(before - model.parameters), 0.5, rtol=1e-5)


# -- losses written in Python --------------------------------------------------------------------


def half_squares(z: Array, t: Array) -> tuple[float, Array]:
    difference = z - t
    return float((difference**2).sum() / len(z)), 2.0 * difference / len(z)


def cross_entropy(z: Array, labels: Array) -> tuple[float, Array]:
    value, gradient = ref.cross_entropy(ref.as_float(z), labels, label_smoothing=0.05)
    return value, gradient


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("shuffle", ["epoch", "stack", "iid", False])
def test_a_custom_loss_equals_the_built_in_one(shuffle: str | bool, accumulate: int) -> None:
    x, y, _ = data()
    built_in = model_of(describe())
    layers = [nn.from_dict(layer) for layer in NETWORK]
    custom = tw.Model(
        layers, FEATURES, cross_entropy, optim.SGD(0.05), seed=11, dtype="float64", device=DEVICE
    )
    options: dict[str, Any] = {
        "epochs": 3, "batch_size": 16, "shuffle": shuffle, "accumulate": accumulate,
        "verbose": False, "validation_data": (x, y),
    }  # fmt: skip
    first, second = built_in.fit(x, y, **options), custom.fit(x, y, **options)
    assert_close(custom.parameters, built_in.parameters, TOLERANCE, "parameters")
    for column in ("loss", "validation_loss"):
        assert_close(first[column], second[column], TOLERANCE, column)
    one, gradient, dx = built_in.loss_and_grad(x, y, input_gradient=True)
    other, custom_gradient, custom_dx = custom.loss_and_grad(x, y, input_gradient=True)
    assert_close(one, other, TOLERANCE, "loss")
    assert_close(gradient, custom_gradient, TOLERANCE, "gradient")
    assert_close(dx, custom_dx, TOLERANCE, "input gradient")
    assert_close(built_in.evaluate(x, y)["loss"], custom.evaluate(x, y)["loss"], TOLERANCE, "eval")


def test_custom_losses_fail_cleanly() -> None:
    def model(loss: Any) -> tw.Model:
        return tw.Model([nn.Dense(2)], 3, loss, device=DEVICE)

    x, y = np.ones((4, 3)), np.zeros((4, 2))

    def wrong_shape(z: Array, t: Array) -> Any:
        return 0.0, np.zeros(3)

    def wrong_type(z: Array, t: Array) -> Any:
        return 0.0

    def broken(z: Array, t: Array) -> Any:
        raise ZeroDivisionError

    def infinite(z: Array, t: Array) -> Any:
        return math.inf, np.zeros_like(z)

    for loss, error in (
        (wrong_shape, ValueError),
        (wrong_type, TypeError),
        (broken, ZeroDivisionError),
        (infinite, tw.NonFiniteError),
    ):
        m = model(loss)
        before = snapshot(m)
        for call in (m.step, m.fit):
            with pytest.raises(error):
                call(x, y)
            assert snapshot(m) == before


# -- averages, statistics, metrics ---------------------------------------------------------------


def test_recalibration_is_the_mean_over_batches() -> None:
    x, y, _ = data()
    model, trainer = pair(describe(averaging={"type": "polyak", "start": 2}))
    for _ in range(6):
        model.step(x, y)
        ref.train_step(trainer, ref.Minibatch(x, y))
    assert trainer.averager is not None
    averaged = model.averaged(x, batch_size=24)
    assert_close(
        averaged.parameters, trainer.network.flatten(trainer.averager.average), TOLERANCE, "average"
    )
    means: dict[str, list[ref.Float]] = {}
    for first in range(0, ROWS, 24):
        _, __, run = trainer.network.forward(
            trainer.averager.average,
            x[first : first + 24],
            training=True,
            step=model.steps_done,
            first_row=first,
        )
        z = {"layers.1": run.outputs["layers.0"], "layers.6": run.outputs["layers.5"]}
        for name, value in z.items():
            means.setdefault(f"{name}.running_mean", []).append(value.mean(axis=0))
            means.setdefault(f"{name}.running_var", []).append(value.var(axis=0, ddof=1))
    for name, values in means.items():
        assert_close(averaged.named_state()[name], np.mean(values, axis=0), TOLERANCE, name)
    # the model itself is untouched
    for name, value in trainer.state.items():
        assert_close(model.named_state()[name], value, TOLERANCE, name)


def test_evaluate_and_its_metrics() -> None:
    x, y, w = data(333)
    model, trainer = pair(
        describe(layers=PLAIN, loss={"type": "cross_entropy", "label_smoothing": 0.1})
    )
    z, _, _ = trainer.network.forward(trainer.parameters, x)
    for weight in (None, w):
        found = model.evaluate(x, y, sample_weight=weight, batch_size=64, top_k=2)
        assert_close(found["loss"], trainer.network.loss(z, y, weight).value, 1e-12, "loss")
        assert_close(found["accuracy"], ref.top_k_accuracy(z, y, 1, weight), 1e-12, "accuracy")
        assert_close(found["top_2_accuracy"], ref.top_k_accuracy(z, y, 2, weight), 1e-12, "top 2")
        plain = ref.cross_entropy(z, y, weight).value
        assert_close(found["perplexity"], ref.perplexity(plain), 1e-12, "perplexity")
    assert_close(model.predict(x), z, 1e-12, "outputs")
    assert_close(model.predict_proba(x), ref.softmax(z), 1e-12, "probabilities")
    np.testing.assert_array_equal(model.predict_class(x), z.argmax(axis=1))


def test_the_objective_is_pure() -> None:
    x, y, w = data()
    model = model_of(describe(), device="cpu")
    objective = tw.Objective(model, x, y, sample_weight=w, dropout=True)
    before = snapshot(model)
    theta = model.parameters + 0.1
    value, gradient = objective.value_and_grad(theta)
    assert snapshot(model) == before
    assert objective.value() == model.loss_and_grad(x, y, sample_weight=w)[0]
    model.set_parameters(theta)
    expected, flat = model.loss_and_grad(x, y, sample_weight=w)
    assert value == objective.value(theta) == expected
    np.testing.assert_array_equal(gradient, flat)
    np.testing.assert_array_equal(objective.grad(theta), flat)


def test_activations_are_the_layer_outputs() -> None:
    x, _, __ = data()
    model, trainer = pair(describe())
    for training in (True, False):
        _, __, run = trainer.network.forward(trainer.parameters, x, training=training)
        found = model.activations(x, training=training)
        assert len(found) == len(NETWORK)
        for index, value in enumerate(found):
            assert_close(value, run.outputs[f"layers.{index}"], 1e-12, f"layers.{index}")


# -- bad input -----------------------------------------------------------------------------------

BadData = Callable[[Array, Array, Array], tuple[Any, Any, Any]]
BAD_DATA: dict[str, tuple[type[Exception], BadData]] = {
    "x is one-dimensional": (ValueError, lambda x, y, w: (x[0], y, None)),
    "x is too wide": (ValueError, lambda x, y, w: (np.hstack([x, x]), y, None)),
    "x is empty": (ValueError, lambda x, y, w: (x[:0], y[:0], None)),
    "x has NaN": (ValueError, lambda x, y, w: (np.where(x > 2, np.nan, x), y, None)),
    "x has Inf": (ValueError, lambda x, y, w: (np.where(x > 2, np.inf, x), y, None)),
    "x is complex": (TypeError, lambda x, y, w: (x + 1j, y, None)),
    "x is text": (TypeError, lambda x, y, w: (x.astype(str), y, None)),
    "x is objects": (TypeError, lambda x, y, w: (x.astype(object), y, None)),
    "one row": (ValueError, lambda x, y, w: (x[:1], y[:1], None)),
    "y is short": (ValueError, lambda x, y, w: (x, y[:-1], None)),
    "y has -1": (ValueError, lambda x, y, w: (x, y - 1, None)),
    "y has a class too many": (ValueError, lambda x, y, w: (x, y + 1, None)),
    "y has 2**31": (ValueError, lambda x, y, w: (x, np.where(y == 1, 2**31, y), None)),
    "y is float labels": (TypeError, lambda x, y, w: (x, y.astype(float), None)),
    "y has too many columns": (ValueError, lambda x, y, w: (x, np.ones((ROWS, 9)), None)),
    "y is text": (TypeError, lambda x, y, w: (x, y.astype(str), None)),
    "weights are negative": (ValueError, lambda x, y, w: (x, y, -w)),
    "weights are NaN": (ValueError, lambda x, y, w: (x, y, w * np.nan)),
    "weights are zero": (ValueError, lambda x, y, w: (x, y, w * 0)),
    "weights are short": (ValueError, lambda x, y, w: (x, y, w[:-1])),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_changes_nothing(case: str) -> None:
    error, change = BAD_DATA[case]
    x, y, w = data()
    assert x.max() > 2
    model = model_of(describe())
    before = snapshot(model)
    bad_x, bad_y, bad_w = change(x, y, w)
    with pytest.raises(error, match=r"^\[.*\] expected"):
        model.fit(bad_x, bad_y, sample_weight=bad_w, epochs=2, verbose=False)
    with pytest.raises(error, match=r"^\[.*\] expected"):
        model.step(bad_x, bad_y, bad_w)
    assert snapshot(model) == before
    good = model.fit(x, y, verbose=False)
    assert len(good) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"epochs": 0}, ValueError),
        ({"epochs": 1.5}, TypeError),
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 1}, ValueError),  # batch norm
        ({"shuffle": "sorted"}, ValueError),
        ({"accumulate": 0}, ValueError),
        ({"max_steps": 0}, ValueError),
        ({"class_weight": "even"}, ValueError),
        ({"class_weight": {"a": 1.0}}, TypeError),
        ({"class_weight": {0: -1.0}}, ValueError),
        ({"callbacks": [object()]}, TypeError),
        ({"callback_every": 0}, ValueError),
        ({"validation_data": (1, 2, 3, 4)}, TypeError),
        ({"verbose": "loud"}, ValueError),
        ({"stop_at_loss": math.nan}, ValueError),
    ],
    ids=str,
)
def test_bad_options_change_nothing(options: dict[str, Any], error: type[Exception]) -> None:
    x, y, _ = data()
    model = model_of(describe())
    before = snapshot(model)
    with pytest.raises(error, match="expected"):
        model.fit(x, y, **{"verbose": False, **options})
    assert snapshot(model) == before


def test_a_tail_of_one_row_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    x, y, _ = data(33)
    with caplog.at_level(logging.WARNING, "thalweg"):
        history = model_of(describe()).fit(x, y, batch_size=16, verbose=False)
    assert history.skipped_rows == 1
    assert "1" in caplog.text and "batch norm" in caplog.text
    plain = model_of(describe(layers=PLAIN)).fit(x, y, batch_size=16, verbose=False)
    assert (plain.skipped_rows, plain["steps"]) == (0, [3])


def test_one_epoch_of_every_public_description() -> None:
    """The classes of the public modules build what the descriptions build."""
    x, y, _ = data()
    model = tw.Model(
        nn.Sequential(*(nn.from_dict(layer) for layer in NETWORK)),
        FEATURES,
        losses.CrossEntropy(label_smoothing=0.05),
        optim.Nesterov(schedules.Linear(0.1, 0.01, tau=9), schedules.NesterovConvex()),
        averaging=optim.EMA(0.9),
        clip_norm=1.0,
        seed=11,
        device=DEVICE,
    )
    again = model_of(model.description)
    assert again.description == model.description
    for m in (model, again):
        m.fit(x, y, epochs=2, verbose=False)
    assert_same(model, again)


@pytest.mark.parametrize("changes", [{}, {"dtype": "float32", "matmul_precision": "medium"}])
def test_input_gradients_after_training(changes: dict[str, Any]) -> None:
    """The weights behind an input gradient are those of the last update, set or restored."""
    x, y, _ = data()
    described = describe(**changes)
    model = model_of(described)
    for change in (
        lambda: model.step(x, y),
        lambda: model.fit(x, y, batch_size=16, verbose=False),
        lambda: model.set_parameters(model.parameters + 0.1),
        model.reset,
    ):
        model.input_gradient(x, y)
        change()
        fresh = model_of(described)
        set_values(fresh, model.named_parameters(), model.named_state())
        expected = fresh.input_gradient(x, y)
        np.testing.assert_array_equal(model.input_gradient(x, y), expected)
        np.testing.assert_array_equal(model.copy().input_gradient(x, y), expected)
