import numpy as np
import pytest

from fdistill.evaluation.neighbours import prdc

BLOCKS = [1, 7, 40, 2000]


def naive(samples, reference, k=3, k_density=5):
    """The four by full matrices of distances from differences in float64: the two papers'
    definitions."""

    def distances(a, b):
        return np.sqrt([[np.square(p.astype(np.float64) - q).sum() for q in b] for p in a])

    def radii(a, k):
        # The nearest is the point itself.
        return np.sort(distances(a, a), axis=1)[:, k]

    cross = distances(reference, samples)
    inside = cross < radii(reference, k_density)[:, None]
    return {
        'precision': (cross <= radii(reference, k)[:, None]).any(axis=0).mean(),
        'recall': (cross <= radii(samples, k)).any(axis=1).mean(),
        'density': inside.sum(axis=0).mean() / k_density,
        'coverage': inside.any(axis=1).mean(),
    }


def sets(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    return 0.8 * rng.normal(size=(n, d)) + 0.3, rng.normal(size=(m, d))


@pytest.mark.parametrize('block', BLOCKS)
@pytest.mark.parametrize(
    'n, m, d, k, k_density',
    [(40, 57, 6, 3, 5), (80, 40, 3, 5, 2), (30, 33, 1, 1, 1), (4, 6, 2, 3, 5)],
)
def test_against_full_matrices(block, n, m, d, k, k_density):
    samples, reference = sets(n, m, d)
    expected = naive(samples, reference, k, k_density)
    assert prdc(samples, reference, k, k_density, block) == pytest.approx(expected, abs=1e-12)
    if n > 4:
        assert 0 < expected['precision'] < 1 or 0 < expected['recall'] < 1


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.int64])
def test_types_and_large_means_lose_nothing(dtype):
    # Squared norms are 1e12 times the squared distances: all digits of |x|^2 + |y|^2 - 2 x.y about
    # the origin.
    samples, reference = (
        np.round(64 * features + 6e7).astype(dtype) for features in sets(50, 60, 4)
    )
    expected = naive(samples, reference)
    assert 0.1 < expected['precision'] < 1 and 0.1 < expected['coverage'] < 1
    assert prdc(samples, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('block', BLOCKS)
def test_copies_lie_in_the_balls_they_are_on_the_edge_of(block):
    # Every sample is the k-th neighbour of some real point, exactly: only exact ties give the same
    # for all blocks.
    _, reference = sets(1, 60, 5)
    copies = reference.astype(np.float32)[::-1]
    assert prdc(copies, copies[::-1], block=block) == {
        'precision': 1,
        'recall': 1,
        'density': 1,
        'coverage': 1,
    }
    half = prdc(copies[:30], copies, block=block)
    assert half == pytest.approx(naive(copies[:30], copies), abs=1e-12) and half['precision'] == 1


@pytest.mark.parametrize('block', BLOCKS)
def test_ties_on_a_grid(block):
    # Nearly all distances occur many times.
    rng = np.random.default_rng(1)
    samples, reference = (
        rng.integers(0, 4, (size, 3)).astype(np.float32) + 1000 for size in (45, 50)
    )
    assert prdc(samples, reference, block=block) == pytest.approx(
        naive(samples, reference), abs=1e-12
    )


@pytest.mark.parametrize('block', BLOCKS)
def test_ties_in_rounded_units(block):
    # A third has no end in binary: equal distances come out unequal by the rounding of their sums,
    # and yet are ties.
    rng = np.random.default_rng(1)
    samples, reference = (rng.integers(0, 4, (size, 3)) for size in (45, 50))
    expected = naive(samples, reference)
    assert prdc(samples / 3, reference / 3, block=block) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('block', BLOCKS)
def test_collapsed_samples(block):
    _, reference = sets(1, 40, 5)
    reference = 100 * reference
    # All samples copy one real point: balls of radius 0 hold that one only.
    collapsed = np.repeat(reference[7:8], 20, axis=0)
    found = prdc(collapsed, reference, block=block)
    assert found == pytest.approx(naive(collapsed, reference), abs=1e-12)
    assert found['precision'] == 1 and found['recall'] == 1 / 40 and found['coverage'] < 0.5
    # Both are collapsed, to one point or to two that differ in the last digit only.
    assert prdc(collapsed, collapsed, block=block) == {
        'precision': 1,
        'recall': 1,
        'density': 0,
        'coverage': 0,
    }
    other = np.nextafter(collapsed, np.inf)
    assert prdc(other, collapsed, block=block) == {
        'precision': 0,
        'recall': 0,
        'density': 0,
        'coverage': 0,
    }


@pytest.mark.parametrize('block', BLOCKS)
def test_copies_are_told_from_near_misses_far_out(block):
    # Six copies of each far point, so that its ball has radius 0. About the mean, squares are 1e9
    # and their rounding is 1e-6, a thousand times the squared distance of the near misses.
    rng = np.random.default_rng(0)
    far = 1e4 * rng.normal(size=(12, 50))
    reference = np.concatenate([np.repeat(far, 6, axis=0), rng.normal(size=(20, 50))])
    samples = np.concatenate([far[:6], far[6:] + 1e-5 * rng.normal(size=(6, 50))])
    found = prdc(samples, reference, block=block)
    assert (
        found == pytest.approx(naive(samples, reference), abs=1e-12) and found['precision'] == 0.5
    )


def test_which_is_precision():
    # Samples of one of two modes: all good, half of the data missed.
    rng = np.random.default_rng(0)
    reference = np.concatenate([rng.normal(size=(50, 2)), rng.normal(size=(50, 2)) + 50])
    samples = 0.5 * rng.normal(size=(60, 2))
    found = prdc(samples, reference)
    assert found['precision'] == 1 and 0.2 < found['recall'] <= 0.5 and found['density'] > 1
    exchanged = prdc(reference, samples)
    assert (exchanged['precision'], exchanged['recall']) == (found['recall'], found['precision'])


def test_expected_values_for_equal_distributions():
    # Naeem et al.: E[density] = 1 and E[coverage] = 1 - (M - 1) ... (M - k) / ((N + M - 1) ... (N +
    # M - k)).
    n, m, k = 300, 200, 5
    rows = [
        prdc(
            *(
                np.random.default_rng([seed, i]).normal(size=(size, 3))
                for i, size in enumerate((n, m))
            )
        )
        for seed in range(30)
    ]
    density, coverage = (np.array([row[key] for row in rows]) for key in ('density', 'coverage'))
    expected = 1 - np.prod([(m - i) / (n + m - i) for i in range(1, k + 1)])
    assert abs(density.mean() - 1) < 4 * density.std() / np.sqrt(30) < 0.05
    assert abs(coverage.mean() - expected) < 4 * coverage.std() / np.sqrt(30) < 0.02


def test_errors():
    samples, reference = sets(10, 10, 3)
    prdc(samples[:4], reference[:6])
    with pytest.raises(ValueError, match='3 features of the samples: at least 4'):
        prdc(samples[:3], reference)
    with pytest.raises(ValueError, match='1 features of the samples'):
        prdc(samples[:1], reference)
    with pytest.raises(ValueError, match='5 features of the reference: at least 6'):
        prdc(samples, reference[:5])
    with pytest.raises(ValueError, match='samples are not finite'):
        prdc(np.where(samples == samples[2, 2], np.nan, samples), reference)
    with pytest.raises(ValueError, match='shapes'):
        prdc(samples[:, :2], reference)
    for settings in ({'k': 0}, {'k_density': 0}, {'block': 0}):
        with pytest.raises(ValueError, match='at least 1'):
            prdc(samples, reference, **settings)
