"""`thalweg.surgery`: the same function from a larger network, against NumPy and by invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import thalweg as tw
from thalweg import landscape, nn, optim, surgery

RNG = np.random.default_rng(11)
X = RNG.normal(size=(60, 5))
Y = np.arange(60) % 3

CHAINS: dict[str, list[nn.Layer]] = {
    "relu": [nn.Dense(7), nn.ReLU(), nn.Dense(6), nn.ReLU(), nn.Dense(3)],
    "batch norm": [nn.Dense(7), nn.BatchNorm(), nn.ReLU(), nn.Dense(6), nn.ReLU(), nn.Dense(3)],
    "norm behind": [nn.Dense(7), nn.ReLU(), nn.BatchNorm(momentum=None), nn.Dense(3)],
    "linear": [nn.Dense(7), nn.Dense(3)],
    "no bias": [nn.Dense(7, bias=False), nn.Identity(), nn.Dense(3, bias=False)],
    "nested": [
        nn.Sequential(nn.Dense(7), nn.Sequential(nn.BatchNorm(), nn.ReLU()), nn.Dropout(0.3)),
        nn.Dense(6),
        nn.Tanh(),
        nn.Residual(nn.Dense(6), nn.BatchNorm(), nn.ReLU(), nn.Dense(6), zero_init=False),
        nn.Dense(3),
    ],
    "maxout reads": [nn.Dense(7), nn.ReLU(), nn.Maxout(4, pieces=3), nn.Dense(3)],
}
FIRST = {name: "layers.0.layers.0" if name == "nested" else "layers.0" for name in CHAINS}


def trained(layers: list[nn.Layer], **options: Any) -> tw.Model:
    """A model whose parameters and statistics are not those of the start."""
    model = tw.Model(
        layers, 5, **{"dtype": "float64", "device": "cpu", "optimizer": optim.SGD(0.1), **options}
    )
    model.fit(X, Y, epochs=3, batch_size=20, verbose=False)
    return model


# ---- widen ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("units", [8, 33])
def test_a_wider_network_is_the_same_function(name: str, noise: float, units: int) -> None:
    model = trained(CHAINS[name])
    before = model.parameters
    wider = surgery.widen(model, FIRST[name], units, noise=noise, seed=5)
    np.testing.assert_allclose(wider.predict(X), model.predict(X), rtol=1e-12, atol=1e-13)
    assert wider.named_parameters()[f"{FIRST[name]}.weight"].shape == (units, 5)
    np.testing.assert_array_equal(model.parameters, before)
    if name != "nested":  # dropout draws other masks
        np.testing.assert_allclose(
            wider.forward(X, training=True), model.forward(X, training=True), rtol=1e-11, atol=1e-12
        )


def test_gradients_of_copies_are_shares_of_the_unit_that_was_copied() -> None:
    model = trained(CHAINS["batch norm"])
    wider = surgery.widen(model, "layers.0", 12, noise=0.5)
    old, new = model.named_parameters(), wider.named_parameters()
    # The copies, found by their incoming weights.
    apart = np.abs(new["layers.0.weight"][:, None] - old["layers.0.weight"]).max(axis=2)
    source = apart.argmin(axis=1)
    assert apart.min(axis=1).max() == 0.0
    np.testing.assert_array_equal(source[:7], np.arange(7))
    share = new["layers.3.weight"][0] / old["layers.3.weight"][0, source]
    assert share.min() > 0.0
    np.testing.assert_allclose(np.bincount(source, weights=share), 1.0, rtol=1e-14)

    def gradients(m: tw.Model) -> dict[str, Any]:
        flat = m.loss_and_grad(X, Y)[1]
        return {n: flat[o : o + int(np.prod(s))].reshape(s) for n, o, s in m.layout()}

    was, now = gradients(model), gradients(wider)
    weight = was["layers.0.weight"][source] * share[:, None]
    np.testing.assert_allclose(now["layers.0.weight"], weight, rtol=1e-9, atol=1e-13)
    for name in ("layers.1.weight", "layers.1.bias"):
        np.testing.assert_allclose(now[name], was[name][source] * share, rtol=1e-9, atol=1e-13)
    read = was["layers.3.weight"][:, source]
    np.testing.assert_allclose(now["layers.3.weight"], read, rtol=1e-9, atol=1e-13)
    for name in ("running_mean", "running_var"):
        copied = model.named_state()[f"layers.1.{name}"][source]
        np.testing.assert_array_equal(wider.named_state()[f"layers.1.{name}"], copied)


@pytest.mark.parametrize(("noise", "same"), [(0.0, True), (0.01, False)])
def test_noise_keeps_copies_apart(noise: float, same: bool) -> None:
    model = surgery.widen(trained(CHAINS["relu"]), "layers.0", 14, noise=noise)
    weight = model.named_parameters()["layers.0.weight"]
    first, second = next(
        (i, j) for j in range(7, 14) for i in range(7) if np.array_equal(weight[i], weight[j])
    )
    # Equal shares are equal up to rounding, which training with noise would amplify.
    model.fit(X, Y, epochs=5, batch_size=20, verbose=False)
    weight = model.named_parameters()["layers.0.weight"]
    distance = np.abs(weight[first] - weight[second]).max()
    assert (distance < 1e-12) == same


def test_path_norm_of_a_wider_network() -> None:
    model = trained(CHAINS["relu"])
    wider = surgery.widen(model, "layers.2", 20)
    assert landscape.path_norm(wider, p=1) == pytest.approx(landscape.path_norm(model, p=1))
    assert landscape.path_norm(wider, p=2) < landscape.path_norm(model, p=2)


def test_seeds_of_widen() -> None:
    model = trained(CHAINS["relu"], seed=3)
    one, same, other = (surgery.widen(model, "layers.0", 20, seed=s) for s in (None, 3, 4))
    np.testing.assert_array_equal(one.parameters, same.parameters)
    assert not np.array_equal(one.parameters, other.parameters)


# ---- deepen --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("batch_norm", [None, True, False])
def test_a_deeper_network_is_the_same_function(name: str, batch_norm: bool | None) -> None:
    model = trained(CHAINS[name])
    before = model.parameters
    deeper = surgery.deepen(model, FIRST[name], X[:40], batch_norm=batch_norm)
    np.testing.assert_allclose(deeper.predict(X), model.predict(X), rtol=1e-12, atol=1e-13)
    assert deeper.num_parameters > model.num_parameters
    np.testing.assert_array_equal(model.parameters, before)
    if name != "nested":
        rows = X[:40]
        np.testing.assert_allclose(
            deeper.forward(rows, training=True),
            model.forward(rows, training=True),
            rtol=1e-10,
            atol=1e-11,
        )


def test_what_deepen_puts_in() -> None:
    model = trained(CHAINS["batch norm"])
    deeper = surgery.deepen(model, "layers.0", X)
    kinds = ["Dense", "BatchNorm", "ReLU", "Dense", "BatchNorm", "ReLU", "Dense", "ReLU", "Dense"]
    assert [type(layer).__name__ for layer in deeper.network] == kinds
    named = {**deeper.named_parameters(), **deeper.named_state()}
    np.testing.assert_array_equal(named["layers.3.weight"], np.eye(7))
    # Statistics by NumPy: batch norm of the rows, ReLU, mean and biased variance.
    old = {**model.named_parameters(), **model.named_state()}
    z = X @ old["layers.0.weight"].T
    z = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-5)
    h = np.maximum(z * old["layers.1.weight"] + old["layers.1.bias"], 0.0)
    np.testing.assert_allclose(named["layers.4.running_mean"], h.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(named["layers.4.running_var"], h.var(axis=0), rtol=1e-10)
    np.testing.assert_allclose(named["layers.4.bias"], h.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(named["layers.4.weight"], np.sqrt(h.var(axis=0) + 1e-5), rtol=1e-10)
    for old_name, new_name in (("layers.3", "layers.6"), ("layers.5", "layers.8")):
        np.testing.assert_array_equal(named[f"{new_name}.weight"], old[f"{old_name}.weight"])


def test_dropout_stays_behind_and_does_not_touch_the_statistics() -> None:
    def layers(p: float) -> list[nn.Layer]:
        return [nn.Dense(7), nn.Dropout(p), nn.BatchNorm(), nn.ReLU(), nn.Dense(3)]

    model = trained(layers(0.5))
    deeper = surgery.deepen(model, "layers.0", X)
    np.testing.assert_allclose(deeper.predict(X), model.predict(X), rtol=1e-12, atol=1e-13)
    dry = tw.Model(layers(0.0), 5, dtype="float64")
    dry.load_weights({**model.named_parameters(), **model.named_state()})
    for name, value in surgery.deepen(dry, "layers.0", X).named_state().items():
        np.testing.assert_allclose(deeper.named_state()[name], value, rtol=1e-14)
    nested = surgery.deepen(trained(CHAINS["nested"]), "layers.0.layers.0", X)
    first = nested.network[0]
    assert isinstance(first, nn.Sequential)
    assert [type(layer).__name__ for layer in first] == ["Dense", "Sequential", "Dropout"]


def test_a_dead_unit_stays_dead() -> None:
    model = trained(CHAINS["relu"])
    model.set_parameters({"layers.0.bias": np.full(7, -1e3)})
    deeper = surgery.deepen(model, "layers.0", X, batch_norm=True)
    np.testing.assert_allclose(deeper.predict(X), model.predict(X), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        deeper.forward(X, training=True), model.predict(X), rtol=1e-12, atol=1e-13
    )


# ---- both ----------------------------------------------------------------------------------------


def test_float32_is_preserved_to_rounding() -> None:
    model = trained(CHAINS["batch norm"], dtype="float32")
    larger = surgery.deepen(surgery.widen(model, "layers.0", 40), "layers.0", X)
    assert larger.dtype == np.float32
    np.testing.assert_allclose(larger.predict(X), model.predict(X), rtol=2e-5, atol=2e-6)


def test_state_starts_anew_and_settings_stay() -> None:
    groups = [optim.Group("*.bias", lr_scale=0.5)]
    model = trained(
        CHAINS["batch norm"],
        optimizer=optim.Adam(0.01, groups=groups),
        averaging=optim.EMA(0.9),
        clip_norm=2.0,
        seed=9,
    )
    for larger in (surgery.widen(model, "layers.0", 9), surgery.deepen(model, "layers.0", X)):
        assert larger.optimizer == model.optimizer
        assert (larger.averaging, larger.seed) == (model.averaging, 9)
        assert larger.description["clip_norm"] == 2.0
        assert (larger.steps_done, larger.epochs_done) == (0, 0)
        slots = larger.optimizer_state()["exp_avg"].values()
        assert not any(slot.any() for slot in slots)
        larger.fit(X, Y, epochs=2, batch_size=20, verbose=False)
        assert larger.steps_done == 6


def test_a_loss_that_is_a_function_stays() -> None:
    def loss(prediction: Any, target: Any) -> tuple[float, Any]:
        return float(np.sum(prediction**2)), 2.0 * prediction

    model = tw.Model(CHAINS["relu"], 5, loss, optim.LBFGS(), dtype="float64")
    larger = surgery.deepen(model, "layers.0", X, batch_norm=True)
    assert larger.loss is loss
    assert surgery.widen(model, "layers.0", 9).loss is loss


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: surgery.widen(m, "layers.1", 9), ValueError, r"\[widen\] expected layer to be"),
        (lambda m: surgery.widen(m, 0, 9), ValueError, r"layers\.0, layers\.3, layers\.5"),
        (lambda m: surgery.widen(m, "layers.0", 7), ValueError, r"units > 7"),
        (lambda m: surgery.widen(m, "layers.0", 8.5), TypeError, r"\[widen\] expected units"),
        (lambda m: surgery.widen(m, "layers.5", 9), ValueError, r"output layer"),
        (lambda m: surgery.widen(m, "layers.0", 9, noise=2.0), ValueError, r"noise"),
        (lambda m: surgery.widen(m, "layers.0", 9, seed=-1), ValueError, r"seed"),
        (lambda m: surgery.widen("model", "layers.0", 9), TypeError, r"thalweg\.Model"),
        (lambda m: surgery.deepen(m, "layers.5", X), ValueError, r"output layer"),
        (lambda m: surgery.deepen(m, "layers.0"), ValueError, r"\[deepen\] expected rows x"),
        (lambda m: surgery.deepen(m, "layers.0", X[:1]), ValueError, r"at least two rows"),
        (lambda m: surgery.deepen(m, "layers.0", X[:, :4]), ValueError, r"5"),
        (lambda m: surgery.deepen(m, "layers.0", X, batch_norm=1), TypeError, r"batch_norm"),
        (lambda m: surgery.deepen(m, "layers.9", X), ValueError, r"expected layer"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], match: str) -> None:
    model = tw.Model(CHAINS["batch norm"], 5, dtype="float64")
    with pytest.raises(error, match=match):
        call(model)


def test_a_deeper_network_wants_finite_rows() -> None:
    model = tw.Model(CHAINS["batch norm"], 5, dtype="float64")
    rows = np.array(X)
    rows[3, 2] = np.nan
    with pytest.raises(tw.NonFiniteError, match=r"outputs of layers\.2 on x") as caught:
        surgery.deepen(model, "layers.0", rows)
    assert caught.value.layer == "layers.2"


def test_layers_that_cannot_be_operated_on() -> None:
    tied = tw.Model(CHAINS["nested"], 5)
    with pytest.raises(ValueError, match=r"residual block layers\.3"):
        surgery.widen(tied, "layers.1", 9)
    with pytest.raises(ValueError, match=r"tanh \(layers\.2\)"):
        surgery.deepen(tied, "layers.1")
    with pytest.raises(ValueError, match="expected layer to be"):
        surgery.widen(tw.Model([nn.Maxout(4), nn.Dense(2)], 5), "layers.0", 8)


def test_groups_by_number() -> None:
    groups = [optim.Group("layers.2.*", frozen=True)]
    model = trained(CHAINS["relu"], optimizer=optim.SGD(0.1, groups=groups))
    surgery.widen(model, "layers.0", 9)
    with pytest.raises(ValueError, match=r"layers\.2\.weight becomes layers\.4\.weight"):
        surgery.deepen(model, "layers.0")
