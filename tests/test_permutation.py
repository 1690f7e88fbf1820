"""The order of an epoch: a bijection with an inverse, keyed by seed and epoch, and well mixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thalweg._core import _testing

KEY = st.integers(0, 2**64 - 1)


def order(
    n: int, seed: int, epoch: int, first: int = 0, count: int | None = None, inverse: bool = False
) -> npt.NDArray[Any]:
    return _testing.permutation(
        n, seed=seed, epoch=epoch, first=first, count=n if count is None else count, inverse=inverse
    )


@pytest.mark.parametrize(
    "n", [*range(1, 70), 255, 256, 257, 1000, 1023, 1025, 4096, 65537, 100_003]
)
def test_bijection(n: int) -> None:
    for seed, epoch in ((0, 0), (1, 5), (2**64 - 1, 2**64 - 1)):
        found = order(n, seed, epoch)
        np.testing.assert_array_equal(np.sort(found), np.arange(n))
        np.testing.assert_array_equal(order(n, seed, epoch, inverse=True)[found], np.arange(n))


@given(n=st.integers(1, 2**40), seed=KEY, epoch=KEY, data=st.data())
def test_inverse_at_any_size(n: int, seed: int, epoch: int, data: Any) -> None:
    count = min(n, 64)
    first = data.draw(st.integers(0, n - count))
    for i, place in enumerate(order(n, seed, epoch, first, count)):
        assert 0 <= place < n
        assert order(n, seed, epoch, int(place), 1, inverse=True)[0] == first + i


def test_seed_and_epoch_are_keys() -> None:
    first = order(1000, 3, 7)
    np.testing.assert_array_equal(first, order(1000, 3, 7))
    np.testing.assert_array_equal(first[100:200], order(1000, 3, 7, 100, 100))
    others = [
        order(1000, s, e) for s, e in ((3, 8), (4, 7), (7, 3), (3 + 2**32, 7), (3, 7 + 2**32))
    ]
    for other in others:
        assert (first == other).mean() < 0.02


@pytest.mark.parametrize("n", [2, 3, 5])
def test_small_permutations_all_occur(n: int) -> None:
    """Over many epochs every order of a few rows comes up about equally often."""
    epochs = 4000
    _, counts = np.unique([order(n, 0, e) for e in range(epochs)], axis=0, return_counts=True)
    total = int(np.prod(np.arange(1, n + 1)))
    assert len(counts) == total
    expected = epochs / total
    # chi-square, six standard deviations
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < (total - 1) + 6 * np.sqrt(2 * (total - 1)) + 6


@pytest.mark.parametrize("n", [100, 1024, 1500])
def test_mixing(n: int) -> None:
    """Neighbours separate, and every row comes to every part of the epoch."""
    orders = np.array([order(n, 1, e) for e in range(200)])
    quarter = (orders[:, : n // 4] < n // 4).mean()
    assert abs(quarter - 0.25) < 0.02
    assert (np.abs(np.diff(orders, axis=1)) == 1).mean() < 4 / n
    centred = orders - (n - 1) / 2
    serial = (centred[:, 1:] * centred[:, :-1]).mean() / (centred**2).mean()
    assert abs(serial) < 5 / np.sqrt(orders.size)
    places = orders.mean(axis=0)
    assert np.abs(places - (n - 1) / 2).max() < 6 * n / np.sqrt(12 * len(orders))


def test_bad_ranges() -> None:
    for n, first, count in ((0, 0, 0), (5, 3, 3), (5, -1, 2)):
        with pytest.raises(ValueError, match="expected"):
            order(n, 0, 0, first, count)
