import itertools

import numpy as np
import pytest

from fdistill.evaluation.kernels import kid, mmd_rbf


def sets(n, m, d, dtype=np.float32):
    """Two sets of features that differ in mean and spread."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)).astype(dtype) + 1, (1.3 * rng.normal(size=(m, d)) + 0.8).astype(
        dtype
    )


def cubic(a, b):
    return (sum(float(s) * float(t) for s, t in zip(a, b, strict=True)) / len(a) + 1) ** 3


def mean_of_kernel(kernel, x, y, distinct=False):
    pairs = itertools.product(range(len(x)), range(len(y)))
    return np.mean([kernel(x[i], y[j]) for i, j in pairs if not distinct or i != j])


def naive_kid(x, y):
    """Unbiased MMD^2 of all features, by loops."""
    return (
        mean_of_kernel(cubic, x, x, True)
        + mean_of_kernel(cubic, y, y, True)
        - 2 * mean_of_kernel(cubic, x, y)
    )


def test_kid_of_one_full_subset_against_loops():
    x, y = sets(12, 12, 5)
    mean, std = kid(x, y, subsets=1, subset_size=12)
    assert mean == pytest.approx(naive_kid(x, y), rel=1e-12) and std == 0


def test_kid_averages_over_seeded_subsets():
    x, y = sets(30, 25, 4)
    mean, std = kid(x, y, subsets=7, subset_size=6, seed=3)
    rng = np.random.default_rng(3)
    values = [
        naive_kid(x[rng.choice(30, 6, replace=False)], y[rng.choice(25, 6, replace=False)])
        for _ in range(7)
    ]
    assert mean == pytest.approx(np.mean(values), rel=1e-12) and std == pytest.approx(
        np.std(values), rel=1e-12
    )
    assert kid(x, y, subsets=7, subset_size=6, seed=3) == (mean, std)
    assert kid(x, y, subsets=7, subset_size=6, seed=4)[0] != mean


def test_kid_is_unbiased():
    # Two sets of one distribution: the biased estimate would be 2 E[k(x, x) - k(x, y)] / 50 = .3
    # too high.
    rng = np.random.default_rng(0)
    values = [
        kid(rng.normal(size=(50, 8)), rng.normal(size=(50, 8)), subsets=1, subset_size=50)[0]
        for _ in range(200)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200) < 0.03


def test_kid_of_a_shift_is_that_of_polynomials():
    # One dimension, x = 0, y = a: k(x, x) = 1, k(y, y) = (a^2 + 1)^3, k(x, y) = 1.
    assert kid(np.zeros((5, 1)), np.full((4, 1), 2.0), subsets=3, subset_size=4) == (5.0**3 - 1, 0)


def naive_mmd(x, y, sigma):
    x, y = (features.astype(np.float64) for features in (x, y))
    x, y = (features / np.linalg.norm(features, axis=1)[:, None] for features in (x, y))

    def kernel(a, b):
        return np.exp(-np.square(a - b).sum() / (2 * sigma**2))

    return 1000 * (
        mean_of_kernel(kernel, x, x)
        + mean_of_kernel(kernel, y, y)
        - 2 * mean_of_kernel(kernel, x, y)
    )


@pytest.mark.parametrize('n, m, d', [(20, 31, 6), (7, 7, 1), (1, 1, 3), (1, 9, 2)])
@pytest.mark.parametrize('sigma', [10.0, 0.7])
@pytest.mark.parametrize('block', [1, 7, 31, 2000])
def test_mmd_against_loops(n, m, d, sigma, block):
    x, y = sets(n, m, d)
    expected = naive_mmd(x, y, sigma)
    assert mmd_rbf(x, y, sigma, block=block) == pytest.approx(expected, rel=1e-9, abs=1e-11)
    assert mmd_rbf(y, x, sigma, block=block) == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_mmd_of_two_points_and_of_copies():
    # Opposite directions are 2 apart: 1000 (1 + 1 - 2 exp(-4 / 200)).
    assert mmd_rbf(np.array([[3.0, 0]]), np.array([[-0.1, 0]])) == pytest.approx(
        2000 * -np.expm1(-0.02), rel=1e-12
    )
    x, _ = sets(40, 1, 5)
    assert mmd_rbf(x, 7 * x[::-1]) == pytest.approx(0, abs=1e-10)
    assert mmd_rbf(x, np.concatenate([x, x]), block=9) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    'function, minimum', [(lambda x, y: kid(x, y, subset_size=10), 10), (mmd_rbf, 1)]
)
def test_bad_features_are_named(function, minimum):
    x, y = sets(10, 10, 3)
    for few in (x[: minimum - 1], y[:0]):
        with pytest.raises(
            ValueError, match=f'{len(few)} features of the samples: at least {minimum}'
        ):
            function(few, y)
        with pytest.raises(
            ValueError, match=f'{len(few)} features of the reference: at least {minimum}'
        ):
            function(x, few)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match='reference are not finite'):
            function(x, np.where(y == y[3, 1], value, y))
    for bad in (y[:, :2], y[0], y[:, :, None]):
        with pytest.raises(ValueError, match='shapes'):
            function(x, bad)


def test_bad_settings_are_named():
    x, y = sets(10, 10, 3)
    for settings in ({'subsets': 0}, {'subset_size': 1}):
        with pytest.raises(ValueError, match='subset'):
            kid(x, y, **settings)
    for settings in ({'sigma': 0.0}, {'block': 0}):
        with pytest.raises(ValueError, match='sigma=.* block='):
            mmd_rbf(x, y, **settings)
    with pytest.raises(ValueError, match='zero'):
        mmd_rbf(x, np.zeros((2, 3)))
