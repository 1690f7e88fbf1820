"""Everything a user can get wrong: type and text of the error, and that nothing was changed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import thalweg as tw
from conftest import DEVICE
from thalweg import _core, callbacks, init, losses, nn, ops, optim, schedules

X = np.random.default_rng(0).normal(size=(40, 5))
Y = np.arange(40) % 3
W = np.ones(40)


def model(**options: Any) -> tw.Model:
    network = nn.Sequential(nn.Dense(8), nn.BatchNorm(), nn.ReLU(), nn.Dense(3))
    return tw.Model(network, 5, **{"device": DEVICE, **options})


def regression(**options: Any) -> tw.Model:
    return tw.Model(nn.Dense(2), 5, "squared_error", **options)


def with_nan(shape: tuple[int, ...], value: float = np.nan) -> np.ndarray:
    array = np.zeros(shape)
    array[(-1,) * len(shape)] = value
    return array


def masked(values: np.ndarray) -> np.ma.MaskedArray[Any, Any]:
    """Two elements of which are not there."""
    mask = np.zeros(values.shape, bool)
    mask.flat[[3, 7]] = True
    return np.ma.MaskedArray(values, mask)


# ---- descriptions: (expression, error, part of the message) --------------------------------------

DESCRIPTIONS: list[tuple[Any, type[Exception], str]] = [
    (lambda: nn.Dense(0), ValueError, r"\[Dense\] expected units >= 1, got 0"),
    (lambda: nn.Dense(-3), ValueError, r"units >= 1, got -3"),
    (lambda: nn.Dense(3.5), TypeError, r"units to be an integer, got 3.5 \(float\)"),
    (lambda: nn.Dense("3"), TypeError, r"units to be an integer, got '3' \(str\)"),
    (lambda: nn.Dense(True), TypeError, "units to be an integer"),
    (lambda: nn.Dense(2**70), ValueError, "2\\*\\*63"),
    (lambda: nn.Dense(3, bias="no"), TypeError, "bias to be True or False, got 'no'"),
    (lambda: nn.Dense(3, init="he"), ValueError, "'auto', 'deck', 'glorot_uniform', 'he_normal'"),
    (lambda: nn.Dense(3, init=7), TypeError, "initializer object of thalweg.init"),
    (lambda: nn.Dense(3, init="normal"), ValueError, "got 'normal'"),
    (lambda: init.Normal(-1.0), ValueError, r"\[Normal\] expected std .* \[0, inf\], got -1.0"),
    (lambda: nn.BatchNorm(eps=-1e-5), ValueError, r"\[BatchNorm\] expected eps"),
    (lambda: nn.BatchNorm(momentum=1.5), ValueError, r"momentum .* in \[0, 1\], got 1.5"),
    (lambda: nn.BatchNorm(eps=float("nan")), ValueError, "finite number"),
    (lambda: nn.Dropout(1.0), ValueError, r"expected p < 1, got 1.0"),
    (lambda: nn.Dropout("0.5"), TypeError, "p to be a number"),
    (lambda: nn.LeakyReLU(-0.1), ValueError, r"\[LeakyReLU\] expected slope"),
    (lambda: nn.Maxout(4, 0), ValueError, "pieces >= 1"),
    (lambda: nn.Sequential(), ValueError, r"\[Sequential\] expected at least one layer, got none"),
    (lambda: nn.Sequential(nn.Dense(3), nn.ReLU), TypeError, "layer 1 to be a layer of thalweg.nn"),
    (lambda: nn.Residual(), ValueError, r"\[Residual\]"),
    (lambda: nn.from_dict({"type": "conv"}), ValueError, "one of 'dense', .*got 'conv'"),
    (lambda: nn.from_dict({"units": 3}), ValueError, "the key 'type'"),
    (lambda: nn.from_dict({"type": "relu", "slope": 1}), ValueError, "unknown \\['slope'\\]"),
    (lambda: optim.SGD(-0.1), ValueError, r"\[SGD\] expected lr"),
    (lambda: optim.SGD("fast"), TypeError, "lr to be a number, got 'fast'"),
    (lambda: optim.Momentum(0.1, 1.0), ValueError, r"\[Momentum\] expected momentum"),
    (lambda: optim.Adam(beta1=1.0), ValueError, r"\[Adam\] expected beta1"),
    (lambda: optim.Adam(delta=0.0), ValueError, r"\[Adam\] expected delta"),
    (lambda: optim.Adam(beta1=schedules.Constant(0.5)), TypeError, "beta1 to be a number"),
    (lambda: optim.Adam(weight_decay=-1), ValueError, "weight_decay"),
    (lambda: optim.Momentum(torch_compat=1), TypeError, "torch_compat to be True or False"),
    (lambda: optim.SGD(groups="*.bias"), TypeError, "groups to be a list of optim.Group"),
    (lambda: optim.SGD(groups=["*.bias"]), TypeError, "optim.Group"),
    (lambda: optim.Group(3), TypeError, r"\[Group\] expected match to be a pattern"),
    (lambda: optim.Group("*", lr_scale=-1), ValueError, "lr_scale"),
    (lambda: optim.from_dict({"type": "lion"}), ValueError, "one of 'sgd', .*got 'lion'"),
    (lambda: optim.EMA(1.0), ValueError, "decay < 1"),
    (lambda: optim.Polyak(-1), ValueError, "start >= 0"),
    (lambda: schedules.Linear(0.1), ValueError, "exactly one of tau and tau_epochs"),
    (lambda: schedules.Linear(0.1, tau=1, tau_epochs=1), ValueError, "exactly one of"),
    (lambda: schedules.RobbinsMonro(0.1, 5, -1), ValueError, r"power .* in \[0, 1\], got -1.0"),
    (lambda: schedules.Step(0.1, 0.5, 0), ValueError, "every >= 1"),
    (lambda: schedules.Cosine(0.1, 2.5), TypeError, "steps to be an integer"),
    (lambda: schedules.Warmup("linear", 5), TypeError, "then to be a number"),
    (lambda: schedules.Constant(1.0)(-1), ValueError, "k >= 0"),
    (lambda: schedules.Linear(0.1, tau_epochs=1)(3), ValueError, "updates per epoch"),
    (lambda: losses.CrossEntropy(1.0), ValueError, "label_smoothing < 1"),
    (lambda: losses.Huber(-1.0), ValueError, r"\[Huber\] expected delta"),
    (
        lambda: losses.SquaredError("mean"),
        ValueError,
        "'batch_mean', 'sum', 'element_mean', got 'mean'",
    ),
    (lambda: callbacks.EarlyStopping("val_loss"), ValueError, "'validation_loss'"),
    (lambda: callbacks.EarlyStopping(patience=-1), ValueError, "patience >= 0"),
    (lambda: callbacks.Checkpoint("x", every=0), ValueError, "every >= 1"),
    (lambda: callbacks.LambdaCallback(on_step=3), TypeError, "on_step to be callable"),
]

MODELS: list[tuple[Any, type[Exception], str]] = [
    (lambda: tw.Model(nn.ReLU, 3), TypeError, "network to be an nn.Sequential, a layer or a list"),
    (lambda: tw.Model([], 3), ValueError, "at least one layer"),
    (lambda: model(seed=-1), ValueError, r"seed in \[0, 2\*\*64\), got -1"),
    (lambda: model(seed=0.5), TypeError, "seed to be an integer"),
    (lambda: tw.Model(nn.Dense(2), 0), ValueError, "in_features >= 1"),
    (lambda: tw.Model(nn.Dense(2), "4"), TypeError, "in_features to be an integer"),
    (lambda: model(dtype="float16"), ValueError, "'float32' or 'float64', got 'float16'"),
    (lambda: model(loss="crossentropy"), ValueError, "'cross_entropy', .*got 'crossentropy'"),
    (lambda: model(loss=3), TypeError, "a function loss"),
    (lambda: model(optimizer="adams"), ValueError, "one of 'sgd', .*got 'adams'"),
    (lambda: model(optimizer=optim.Adam), TypeError, "an optimizer of thalweg.optim"),
    (lambda: model(averaging=0.9), TypeError, r"optim.Polyak\(\), optim.EMA\(\) or None"),
    (lambda: model(clip_norm=0), ValueError, "clip_norm > 0"),
    (lambda: model(check_finite="all"), ValueError, "'loss', 'gradients'"),
    (lambda: model(matmul_precision="low"), ValueError, "'highest', 'high', 'medium', got 'low'"),
    (lambda: model(matmul_precision=1), TypeError, "matmul_precision"),
    (lambda: model(threads=0), ValueError, "threads >= 1"),
    (lambda: model(threads=100000), ValueError, "threads"),
    (lambda: model(device="gpu"), ValueError, "'auto', 'cpu', 'cuda', got 'gpu'"),
    (lambda: model(device=None), TypeError, "device"),
    (
        lambda: tw.Model(nn.Dense(1), 3),
        ValueError,
        "at least 2 outputs for cross_entropy.*binary_cross_entropy",
    ),
    (lambda: tw.Model(nn.Residual(nn.Dense(4)), 3), ValueError, "[Rr]esidual|width"),
    (
        lambda: tw.Model(nn.Dense(2), 3, optimizer=optim.SGD(groups=[optim.Group("*.weigth")])),
        ValueError,
        "weigth",
    ),
    (lambda: _core.canonical_description("{"), ValueError, "JSON|json"),
    (
        lambda: _core.canonical_description(
            '{"in_features": 1, "layers": [{"type": "dense", "units": -1}]}'
        ),
        ValueError,
        r"layers\[0\].units",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), DESCRIPTIONS + MODELS)
def test_descriptions_say_what_is_wrong(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        make()
    assert type(caught.value) is error
    assert str(caught.value).startswith("[")


def test_cuda_is_named_with_what_is_missing() -> None:
    if _core.information()["cuda_available"]:
        pytest.skip("CUDA works here")
    with pytest.raises(tw.DeviceError, match=r"\[device\] expected .*CUDA.*device='cpu'"):
        model(device="cuda")
    assert issubclass(tw.DeviceError, RuntimeError)
    assert model(device="auto").device == "cpu"


# ---- data ----------------------------------------------------------------------------------------

DATA: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": X[:, :4]}, ValueError, r"x.shape\[1\] == 5 .*got \(40, 4\)"),
    ({"x": X[0]}, ValueError, r"got \(5,\).*reshape"),
    ({"x": X[None]}, ValueError, r"\(1, 40, 5\)"),
    ({"x": X[:0], "y": Y[:0], "sample_weight": None}, ValueError, "at least one row"),
    (
        {"x": X[:1], "y": Y[:1], "sample_weight": None},
        ValueError,
        "at least 2 rows in a training batch with batch norm",
    ),
    ({"x": X.astype(complex)}, TypeError, "x to be an array of real numbers, got .*complex128"),
    ({"x": X.astype(object)}, TypeError, "got .*object"),
    ({"x": X.astype(str)}, TypeError, "real numbers"),
    ({"x": [[1.0, 2.0], [3.0]], "y": [0, 1]}, TypeError, "real numbers"),
    ({"x": "data.csv"}, TypeError, "real numbers"),
    ({"x": X.astype(X.dtype.newbyteorder())}, TypeError, "byte order"),
    ({"x": with_nan((40, 5))}, ValueError, r"finite x, got x\[39, 4\] = nan"),
    ({"x": with_nan((40, 5), np.inf).astype(np.float32)}, ValueError, r"x\[39, 4\] = inf"),
    ({"y": Y[:39]}, ValueError, r"len\(y\) == len\(x\) \(40\), got 39"),
    ({"y": Y + 1}, ValueError, r"labels in \[0, 3\), got y\[2\] = 3"),
    ({"y": Y - 1}, ValueError, r"got y\[0\] = -1"),
    ({"y": np.where(Y == 0, 2**31, Y)}, ValueError, r"y\[0\] = 2147483648"),
    ({"y": Y.astype(float)}, TypeError, r"integer labels or probabilities .*y.astype\(int\)"),
    ({"y": Y[:, None]}, ValueError, r"probabilities of shape \(40, 3\)"),
    ({"y": with_nan((40, 3))}, ValueError, r"y\[39, 2\] = nan"),
    ({"y": np.array(["a", "b"] * 20)}, TypeError, "y to be an array of real numbers"),
    ({"x": masked(X)}, ValueError, r"x without masked elements, got 2 of 200; .*filled"),
    ({"y": masked(Y)}, ValueError, r"y without masked elements, got 2 of 40"),
    ({"sample_weight": masked(W)}, ValueError, "sample_weight without masked elements, got 2 of"),
    ({"sample_weight": W[:39]}, ValueError, r"sample_weight of shape \(40,\), got \(39,\)"),
    ({"sample_weight": -W}, ValueError, r"sample_weight\[0\] = -1"),
    ({"sample_weight": with_nan((40,))}, ValueError, r"sample_weight\[39\] = nan"),
    ({"sample_weight": 0 * W}, ValueError, "positive sum"),
    ({"sample_weight": np.full(40, 1e-38)}, ValueError, "below 1.2e-38 count as zero"),
]


@pytest.mark.parametrize("operation", ["fit", "step", "validation", "evaluate", "loss_and_grad"])
@pytest.mark.parametrize(("change", "error", "message"), DATA)
def test_data(operation: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    subject = model()
    subject.fit(X, Y, verbose=False)
    before = pickle.dumps(subject)
    arguments = {"x": X, "y": Y, "sample_weight": None, **change}
    finite_only_in_training = "finite x" in message or "= inf" in message
    if operation in ("evaluate", "loss_and_grad", "validation") and (
        "batch norm" in message and operation != "loss_and_grad"
    ):
        pytest.skip("one row can be evaluated")
    if operation in ("evaluate", "loss_and_grad") and finite_only_in_training:
        pytest.skip("pure passes let NaN through")
    with pytest.raises(error, match=message) as caught:
        if operation == "validation":
            data = (arguments["x"], arguments["y"], arguments["sample_weight"])
            subject.fit(X, Y, validation_data=data, verbose=False)
        elif operation == "fit":
            subject.fit(**arguments, verbose=False)
        else:
            getattr(subject, operation)(**arguments)
    assert str(caught.value).startswith("[")
    assert pickle.dumps(subject) == before


def test_masks_that_hide_nothing() -> None:
    plain, covered = model(), model()
    plain.fit(X, Y, verbose=False)
    for mask in (np.ma.nomask, False):
        covered.reset()
        covered.fit(np.ma.MaskedArray(X, mask), np.ma.MaskedArray(Y, mask), verbose=False)
        np.testing.assert_array_equal(covered.parameters, plain.parameters)
    with pytest.raises(ValueError, match=r"\[softmax\] expected logits without masked elements"):
        ops.softmax(masked(X))
    with pytest.raises(ValueError, match=r"\[predict\] expected x without masked elements"):
        plain.predict(masked(X))
    function = tw.Model(nn.Dense(1), 5, lambda p, t: (0.0, 0 * p))
    with pytest.raises(ValueError, match=r"\[step\] expected y without masked elements"):
        function.step(X, masked(W))


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        ("squared_error", np.zeros((40, 3)), r"y.shape\[1\] == 2"),
        ("squared_error", np.zeros(40), r"y of shape \(40, 2\)"),
        ("huber", with_nan((40, 2)), r"finite targets, got y\[39, 1\] = nan"),
        (
            "binary_cross_entropy",
            np.full((40, 2), 1.5),
            r"targets in \[0, 1\].*got y\[0, 0\] = 1.5",
        ),
        ("logistic", np.zeros((40, 2)), r"targets -1 or \+1 for logistic, got y\[0, 0\] = 0"),
    ],
)
def test_targets_of_elementwise_losses(loss: str, y: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tw.Model(nn.Dense(2), 5, loss).fit(X, y, verbose=False)


def test_labels_of_class_weights() -> None:
    """Those of y and those of the loss; a batch need not have them all."""
    two = Y[Y < 2]
    model().fit(X[Y < 2], two, class_weight={0: 2.0, 2: 3.0}, verbose=False)
    model().fit([(X[Y < 2], two)], class_weight={2: 3.0}, verbose=False)
    rows = np.arange(40) % 2
    for loss, y in (("binary_cross_entropy", rows), ("logistic", 2 * rows - 1)):
        weights = dict.fromkeys(np.unique(y).tolist(), 2.0)
        tw.Model(nn.Dense(1), 5, loss).fit(X, y, class_weight=weights, verbose=False)
        with pytest.raises(ValueError, match="got 2 among labels"):
            tw.Model(nn.Dense(1), 5, loss).fit(X, y, class_weight={2: 1.0}, verbose=False)
    line = tw.Model(nn.Dense(1), 5, "squared_error")
    line.fit(X, Y / 2, class_weight={0.5: 2.0}, verbose=False)
    line.fit([(X, Y / 2)], class_weight={7.0: 2.0}, verbose=False)
    with pytest.raises(ValueError, match=r"got 7\.0 among labels 0\.0, 0\.5, 1\.0"):
        line.fit(X, Y / 2, class_weight={7.0: 2.0}, verbose=False)
    with pytest.raises(TypeError, match="y to be an array of real numbers"):
        line.fit(X, Y.astype(str), class_weight="balanced", verbose=False)


FIT_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"epochs": 0}, ValueError, "epochs >= 1"),
    ({"epochs": 1.5}, TypeError, "epochs to be an integer"),
    ({"batch_size": 0}, ValueError, "batch_size >= 1"),
    ({"batch_size": 1}, ValueError, "at least 2 rows in a training batch with batch norm"),
    ({"accumulate": 0}, ValueError, "accumulate >= 1"),
    ({"max_steps": 0}, ValueError, "max_steps >= 1"),
    ({"stop_at_loss": "low"}, TypeError, "stop_at_loss to be a number"),
    ({"shuffle": "random"}, ValueError, "'epoch', 'stack', 'iid', got 'random'"),
    ({"shuffle": 1}, TypeError, "shuffle"),
    ({"verbose": "quiet"}, ValueError, "'table', 'bar'"),
    ({"verbose": 2}, TypeError, "verbose"),
    ({"class_weight": "auto"}, ValueError, "'balanced'"),
    ({"class_weight": {"a": 1.0}}, TypeError, "map labels of y to weights"),
    ({"class_weight": {0: -1.0}}, ValueError, "class weights"),
    (
        {"class_weight": {0: 2.0, 3: 1.0, 1.5: 1.0}},
        ValueError,
        r"map labels of y to weights, got 3, 1\.5 among labels 0, 1, 2$",
    ),
    ({"class_weight": [1.0, 2.0, 3.0]}, TypeError, "class_weight"),
    (
        {"class_weight": {0: 1.0}, "y": np.eye(3)[Y]},
        ValueError,
        "one-dimensional labels with class_weight",
    ),
    ({"validation_data": X}, TypeError, r"validation_data to be \(x, y\)"),
    ({"early_stopping": 5}, TypeError, "callbacks.EarlyStopping"),
    ({"early_stopping": callbacks.EarlyStopping()}, ValueError, "validation"),
    ({"callbacks": print}, TypeError, "callbacks to be a list"),
    ({"callbacks": [print]}, TypeError, "on_train_begin, on_step, on_epoch_end, on_train_end"),
    ({"callbacks": [callbacks.EarlyStopping("loss")] * 2}, ValueError, "one EarlyStopping"),
    ({"callback_every": 0}, ValueError, "callback_every >= 1"),
    ({"y": None}, ValueError, "targets y next to the array x, got None"),
]


@pytest.mark.parametrize(("change", "error", "message"), FIT_OPTIONS)
def test_fit_options(change: dict[str, Any], error: type[Exception], message: str) -> None:
    subject = model()
    before = pickle.dumps(subject)
    with pytest.raises(error, match=message) as caught:
        subject.fit(**{"x": X, "y": Y, "verbose": False, **change})
    assert str(caught.value).startswith("[fit]")
    assert pickle.dumps(subject) == before


def test_batches() -> None:
    subject = model()
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ([], {}, ValueError, "at least one batch"),
        ([X, Y], {}, TypeError, r"an iterable of \(x, y\)"),
        ([(X,)], {}, TypeError, r"an iterable of \(x, y\)"),
        (3, {}, TypeError, "arrays or an iterable of batches"),
        (iter([(X, Y)]), {"epochs": 2}, ValueError, "expected epochs=1 with an iterator"),
        ([(X, Y)], {"accumulate": 2}, ValueError, "accumulate=1"),
        ([(X, Y)], {"class_weight": "balanced"}, ValueError, "'balanced'"),
        ([(X, Y)], {"class_weight": {-1: 2.0}}, ValueError, "got -1 among labels 0, 1, 2"),
        ([(X, Y)], {"sample_weight": W}, ValueError, r"give batches \(x, y, sample_weight\)"),
        ([(X[:, :3], Y)], {}, ValueError, r"x.shape\[1\] == 5"),
    ]
    for batches, options, error, message in cases:
        with pytest.raises(error, match=message):
            subject.fit(batches, verbose=False, **options)
    assert subject.steps_done == 0


# ---- other methods -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.predict(X[:, :2]), ValueError, r"\[predict\] expected x.shape\[1\] == 5"),
        (lambda m: m.predict(X, batch_size=0), ValueError, "batch_size >= 1"),
        (lambda m: m.predict_proba(X[0]), ValueError, r"\(5,\)"),
        (lambda m: m.activations(X[:, :2]), ValueError, "expected x"),
        (lambda m: m.forward(X, training="yes"), TypeError, "training to be True or False"),
        (lambda m: m.forward(X[:1], training=True), ValueError, "at least 2 rows"),
        (lambda m: m.evaluate(X, Y, top_k=0), ValueError, "top_k >= 1"),
        (lambda m: m.evaluate(X, np.eye(3)[Y], top_k=1), ValueError, "integer labels with top_k"),
        (lambda m: m.recalibrate_batch_norm(X[:1]), ValueError, "at least 2 rows"),
        (lambda m: m.set_parameters(np.zeros(3)), ValueError, r"shape \(83,\), got \(3,\)"),
        (lambda m: m.set_parameters(np.zeros(83, complex)), TypeError, "real numbers"),
        (
            lambda m: m.set_parameters({"layers.9.bias": 0}),
            ValueError,
            "names out of .*layers.0.weight",
        ),
        (
            lambda m: m.set_parameters({"layers.3.bias": np.zeros(4)}),
            ValueError,
            r"shape \(3,\), got \(4,\)",
        ),
        (lambda m: m.set_state({"layers.1.mean": np.zeros(8)}), ValueError, "running_mean"),
        (lambda m: m.set_state({"layers.1.num_batches_tracked": -1}), ValueError, "integer >= 0"),
        (lambda m: m.load_weights({"bias": np.zeros(3)}), ValueError, "names out of"),
        (lambda m: m.load_weights(5), TypeError, "a path"),
        (lambda m: m.save(None), TypeError, "a path"),
        (lambda m: m.averaged(), ValueError, "averaging=optim.EMA"),
        (lambda m: m.set_optimizer(None), TypeError, "optimizer of thalweg.optim"),
        (lambda m: m.set_optimizer(3), TypeError, "optimizer of thalweg.optim"),
        (lambda m: tw.Objective(m.network, X, Y), TypeError, "a thalweg.Model"),
        (lambda m: tw.Objective(m, X, Y).value(np.zeros(2)), ValueError, r"\(83,\), got \(2,\)"),
        (lambda m: regression().predict_class(X), ValueError, "a loss with classes"),
        (lambda m: regression().predict_proba(X), ValueError, "a loss with classes"),
    ],
)
def test_methods(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(model())


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda p, t: 1.0, TypeError, r"return \(value, gradient\)"),
        (lambda p, t: (1.0, p[:, :1]), ValueError, r"prediction's shape \(40, 2\), got \(40, 1\)"),
        (lambda p, t: ("low", p), ValueError, "could not convert"),
        (lambda p, t: (1.0, "steep"), ValueError, "could not convert"),
        (lambda p: (1.0, p), TypeError, "argument"),
    ],
)
def test_loss_functions(function: Any, error: type[Exception], message: str) -> None:
    subject = tw.Model(nn.Dense(2), 5, function)
    before = subject.parameters
    with pytest.raises(error, match=message):
        subject.fit(X, np.zeros((40, 2)), batch_size=None, verbose=False)
    np.testing.assert_array_equal(subject.parameters, before)


def test_loss_functions_take_no_weights() -> None:
    subject = tw.Model(nn.Dense(2), 5, lambda p, t: (0.0, 0 * p))
    for call in (subject.step, subject.evaluate, subject.loss_and_grad, subject.input_gradient):
        with pytest.raises(ValueError, match="no weights with a loss function"):
            call(X, np.zeros((40, 2)), sample_weight=W)
        with pytest.raises(ValueError, match=r"len\(y\) == len\(x\) \(40\)"):
            call(X, np.zeros((39, 2)))


# ---- non-finite training -------------------------------------------------------------------------


def test_non_finite_loss_leaves_the_last_good_step() -> None:
    subject = regression(optimizer=optim.SGD(1e9))
    y = np.ones((40, 2))
    steps: list[np.ndarray] = [subject.parameters]
    note = callbacks.LambdaCallback(on_step=lambda m, *_: steps.append(m.parameters))
    with pytest.raises(
        tw.NonFiniteError, match=r"\[fit\] expected a finite loss.*learning rate"
    ) as caught:
        subject.fit(X, y, epochs=100, callbacks=[note], verbose=False)
    error = caught.value
    assert isinstance(error, ArithmeticError)
    assert error.step == subject.steps_done + 1
    assert error.layer == "loss" or error.layer.startswith("layers.")
    np.testing.assert_array_equal(subject.parameters, steps[-1])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.step, copy.layer) == (str(error), error.step, error.layer)


def test_non_finite_python_loss() -> None:
    subject = tw.Model(nn.Dense(2), 5, lambda p, t: (float("nan"), 0 * p))
    with pytest.raises(tw.NonFiniteError):
        subject.step(X, np.zeros((40, 2)))
    assert subject.steps_done == 0


# ---- files ---------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    subject = model()
    subject.save(path)
    content = path.read_bytes()
    with pytest.raises(tw.CheckpointError, match="missing"):
        tw.Model.load(tmp_path / "missing")
    with pytest.raises(tw.CheckpointError):
        subject.save(tmp_path / "no" / "folder" / "x")
    with pytest.raises(TypeError, match=r"\[load\] expected a path"):
        tw.Model.load(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected no loss"):
        tw.Model.load(path, loss=lambda p, t: (0.0, p))
    for broken in (
        content[:-1],
        content[:100],
        content[:4],
        b"",
        content + b"\0",
        b"PK" + content[2:],
    ):
        path.write_bytes(broken)
        with pytest.raises(tw.CheckpointError) as caught:
            tw.Model.load(path)
        assert isinstance(caught.value, ValueError)
    flipped = bytearray(content)
    flipped[-3] ^= 16
    path.write_bytes(flipped)
    with pytest.raises(tw.CheckpointError):
        tw.Model.load(path)
    other = tw.Model(nn.Dense(3), 5)
    before = pickle.dumps(other)
    path.write_bytes(content)
    with pytest.raises(tw.CheckpointError, match=r"layers\.0\.(bias|weight)"):
        other.load_weights(path)
    assert pickle.dumps(other) == before


# ---- ops -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.dense(X, np.zeros((3, 4))), ValueError, r"\[dense\]"),
        (lambda: ops.dense(X, np.zeros((3, 5)), np.zeros(2)), ValueError, r"\[dense\].*bias"),
        (
            lambda: ops.dense(X, np.zeros((3, 5)), activation="mish"),
            ValueError,
            "'relu'.*got 'mish'",
        ),
        (
            lambda: ops.dense(X, np.zeros((3, 5)), parameter=0.1),
            ValueError,
            "no parameter for 'identity'",
        ),
        (lambda: ops.gemm(X, X, form="wgrads"), ValueError, "'forward', 'dgrad' or 'wgrad'"),
        (lambda: ops.gemm(X, X, form="dgrad"), ValueError, r"\[gemm\]"),
        (lambda: ops.activation("relu", [["a"]]), TypeError, "real numbers"),
        (lambda: ops.dropout(X, 1.0), ValueError, "p < 1"),
        (lambda: ops.dropout(X, 0.5, seed=-1), ValueError, "seed in"),
        (lambda: ops.dropout(X, 0.5, stream=2**16), ValueError, "stream in"),
        (lambda: ops.maxout(X, 2), ValueError, "pieces that divide the 5 columns"),
        (
            lambda: ops.softmax_cross_entropy(X, Y + 3),
            ValueError,
            "softmax_cross_entropy|cross_entropy",
        ),
        (lambda: ops.softmax_cross_entropy(X, Y.astype(float)), TypeError, "integer"),
        (lambda: ops.loss("mae", X, X), ValueError, "'squared_error'"),
        (lambda: ops.loss("huber", X, X, parameter=-1), ValueError, "delta"),
        (lambda: ops.loss("squared_error", X, X[:3]), ValueError, "target"),
        (lambda: ops.optimizer_step("adam", X[0], X[0], t=0), ValueError, "t >= 1"),
        (
            lambda: ops.optimizer_step("adam", X[0], X[1, :3], t=1),
            ValueError,
            r"g with shape \(5,\), got \(3,\)",
        ),
        (
            lambda: ops.optimizer_step("adam", X[0], X[0], [X[0]], t=1),
            ValueError,
            "2 slots for 'adam'",
        ),
        (lambda: ops.optimizer_step("adam", X[0], X[0], t=1, rate=1), ValueError, "got 'rate'"),
        (lambda: ops.optimizer_step("adam", X[0], X[0], t=1, lr=-1), ValueError, "lr"),
        (lambda: ops.batch_norm(X[:1], np.ones(5), np.zeros(5)), ValueError, r"\[batch_norm\]"),
        (lambda: ops.batch_norm(X, np.ones(4), np.zeros(5)), ValueError, r"\[batch_norm\].*gamma"),
        (lambda: ops.clip_by_global_norm(X[0], float("nan")), ValueError, "max_norm"),
        (lambda: ops.softmax(X, threads=-1), ValueError, "threads >= 0"),
    ],
)
def test_ops(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_messages_are_complete_sentences_for_machines_too() -> None:
    """A description error names the path inside the JSON text."""
    description = model().description
    description["optimizer"]["beta1"] = 2.0
    with pytest.raises(ValueError, match=r"\[description\] optimizer.beta1: expected .*got 2"):
        _core.canonical_description(json.dumps(description))


def test_labels_without_an_array():
    for x in (None, 3.0, iter([(X, Y)])):
        with pytest.raises(TypeError, match=r"x to be an array of shape \[rows, features\], got"):
            model().fit(x, Y, verbose=False)
