"""`thalweg.sklearn`: the estimator contract, and what goes beyond it."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

from conftest import EMULATED
from sklearn.base import clone
from sklearn.datasets import make_regression
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from thalweg import optim, schedules
from thalweg.datasets import load_digits
from thalweg.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.oracle  # scikit-learn comes with that extra

X, Y, X_TEST, Y_TEST = load_digits()
REASON = "minibatch statistics and float32 sums differ between a row of weight 2 and the row twice"


CONTRACT = {"hidden_layer_sizes": (32,), "max_epochs": 50} if EMULATED else {}


@parametrize_with_checks(
    [MLPClassifier(**CONTRACT), MLPRegressor(**CONTRACT)],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": REASON
    },
)
@pytest.mark.filterwarnings("ignore")
def test_estimator_contract(estimator, check):
    check(estimator)


def test_masked_arrays_are_refused():
    x = np.ma.MaskedArray(X[:50], np.zeros((50, X.shape[1]), bool))
    estimator = MLPClassifier(max_epochs=1).fit(x, Y[:50])
    x[3, 2] = np.ma.masked
    with pytest.raises(ValueError, match=r"\[MLPClassifier\] expected X without masked elements"):
        estimator.fit(x, Y[:50])
    with pytest.raises(ValueError, match=r"\[MLPClassifier\] expected X without masked elements"):
        estimator.predict(x)


def small(**options):
    return MLPClassifier((32,), **{"max_epochs": 10, "random_state": 0, **options})


def test_digits_score_and_attributes():
    classifier = MLPClassifier((128,), max_epochs=20, random_state=0).fit(X, Y)
    assert classifier.score(X_TEST, Y_TEST) > 0.97
    assert classifier.classes_.tolist() == list(range(10))
    assert len(classifier.loss_curve_) == classifier.n_iter_ == 20
    assert classifier.loss_ == classifier.loss_curve_[-1]
    assert classifier.n_features_in_ == 64
    proba = classifier.predict_proba(X_TEST)
    assert proba.shape == (597, 10)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(classifier.predict_log_proba(X_TEST), np.log(proba))
    np.testing.assert_array_equal(proba.argmax(axis=1), classifier.predict(X_TEST))


def test_features_need_no_scaling():
    offset = 1e4 + 100 * X
    plain, shifted = small().fit(X, Y), small().fit(offset, Y)
    assert shifted.score(1e4 + 100 * X_TEST, Y_TEST) > plain.score(X_TEST, Y_TEST) - 0.02


def test_text_labels_and_class_weight():
    names = np.array(["zero", "one"])[(Y > 0).astype(int)]
    balanced = small(class_weight="balanced").fit(X, names)
    assert balanced.classes_.tolist() == ["one", "zero"]
    assert balanced.score(X_TEST, np.array(["zero", "one"])[(Y_TEST > 0).astype(int)]) > 0.95
    heavy = small(max_epochs=3, class_weight={"zero": 1000.0, "one": 1e-3}).fit(X, names)
    assert (heavy.predict(X_TEST) == "zero").mean() > (Y_TEST == 0).mean()


def test_zero_weight_rows_do_not_matter():
    weights = np.r_[np.ones(600), np.zeros(600)]
    labels = np.r_[Y[:600], (Y[600:] + 1) % 10]
    assert small(max_epochs=20).fit(X, labels, weights).score(X_TEST, Y_TEST) > 0.9


def test_early_stopping_and_validation_data():
    x, y = (X[::3], Y[::3]) if EMULATED else (X, Y)
    classifier = small(max_epochs=300, early_stopping=True, patience=3).fit(x, y)
    assert classifier.n_iter_ < 300
    assert len(classifier.validation_loss_curve_) == classifier.n_iter_
    own = small(max_epochs=300, early_stopping=True, patience=3)
    own.fit(x, y, validation_data=(X_TEST, Y_TEST))
    best = min(own.validation_loss_curve_)
    assert own.model_.evaluate(X_TEST, Y_TEST)["loss"] == pytest.approx(best, rel=1e-5)


def test_partial_fit_and_warm_start():
    stream = small()
    for _ in range(6):
        for at in range(0, len(X), 400):
            stream.partial_fit(X[at : at + 400], Y[at : at + 400], classes=range(10))
    assert stream.score(X_TEST, Y_TEST) > 0.9
    with pytest.raises(ValueError, match="classes of the first call"):
        stream.partial_fit(X, Y, classes=range(3))
    with pytest.raises(ValueError, match="expected classes in the first call"):
        small().partial_fit(X, Y)
    warm = small(warm_start=True, max_epochs=2)
    warm.fit(X, Y).fit(X, Y)
    assert warm.n_iter_ == 4
    assert warm.loss_curve_[-1] < warm.loss_curve_[0]
    with pytest.raises(ValueError, match="expected labels of"):
        warm.fit(X, Y + 5)


def test_multilabel():
    labels = np.stack([Y > 4, Y % 2, Y == 3], axis=1).astype(int)
    classifier = small(max_epochs=30).fit(X, labels)
    expected = np.stack([Y_TEST > 4, Y_TEST % 2, Y_TEST == 3], axis=1).astype(int)
    assert classifier.predict(X_TEST).shape == (597, 3)
    assert (classifier.predict(X_TEST) == expected).mean() > 0.95
    assert classifier.predict_proba(X_TEST).shape == (597, 3)


@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_regression_in_large_units(loss):
    x, y = make_regression(300, 5, noise=1.0, random_state=0)
    regressor = MLPRegressor((64,), loss=loss, random_state=0).fit(x, 1e6 + 1e3 * y)
    assert regressor.score(x, 1e6 + 1e3 * y) > 0.97
    assert regressor.predict(x).shape == (300,)


def test_regression_of_several_outputs():
    x, y = make_regression(300, 5, n_targets=3, random_state=0)
    regressor = MLPRegressor((64,), random_state=0).fit(x, y)
    assert regressor.predict(x).shape == (300, 3)
    assert regressor.score(x, y) > 0.95
    with pytest.raises(ValueError, match="expected 3 targets"):
        MLPRegressor((8,), warm_start=True, max_epochs=1).fit(x, y).fit(x, y[:, :2])


def test_seeds_repeat_and_differ():
    first, second, other = (small(random_state=s, max_epochs=2).fit(X, Y) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.predict_proba(X_TEST), second.predict_proba(X_TEST))
    assert not np.array_equal(first.predict_proba(X_TEST), other.predict_proba(X_TEST))


def test_pickle_continues_exactly():
    fitted = small(max_epochs=2, warm_start=True).fit(X, Y)
    copy = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copy.predict_proba(X_TEST), fitted.predict_proba(X_TEST))
    np.testing.assert_array_equal(
        copy.fit(X, Y).predict_proba(X_TEST), fitted.fit(X, Y).predict_proba(X_TEST)
    )
    with pytest.raises(NotFittedError):
        clone(fitted).predict(X)


def test_composition():
    pipeline = make_pipeline(StandardScaler(), small())
    assert cross_val_score(pipeline, X, Y, cv=3).mean() > 0.8
    grid = GridSearchCV(small(max_epochs=2), {"hidden_layer_sizes": [(8,), (64,)]}, cv=2)
    assert grid.fit(X, Y).best_params_ == {"hidden_layer_sizes": (64,)}


def test_optimizer_objects_and_options():
    schedule = schedules.Cosine(0.1, 100)
    classifier = small(optimizer=optim.Momentum(schedule), activation="tanh", dropout=0.1)
    assert classifier.fit(X, Y).score(X_TEST, Y_TEST) > 0.9
    linear = MLPClassifier((), batch_norm=False, dtype="float64", max_epochs=20, random_state=0)
    assert linear.fit(X, Y).score(X_TEST, Y_TEST) > 0.8
    assert linear.model_.dtype == np.float64


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"activation": "swoosh"}, "activation"),
        ({"optimizer": "magic"}, "magic"),
        ({"batch_size": "large"}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"optimizer": optim.SGD(0.1), "learning_rate": 0.1}, "learning_rate=None"),
    ],
)
def test_wrong_options(options, match):
    with pytest.raises(ValueError, match=match):
        small(**options).fit(X, Y)
    with pytest.raises(ValueError, match="squared_error"):
        MLPRegressor(loss="absolute").fit(X, Y)
    for widths in ((8.5,), "8"):
        with pytest.raises(TypeError, match="units to be an integer"):
            MLPRegressor(widths).fit(X, Y)
