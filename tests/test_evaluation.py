import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from fdistill.data import cache
from fdistill.data.sources import MIXTURES, Source, load, mixture_parameters, quantise, to_float
from fdistill.evaluation import evaluate as evaluation
from fdistill.evaluation import features, metrics
from fdistill.evaluation.evaluate import evaluate, measures, reference, reference_rows, sample
from fdistill.evaluation.frechet import (
    Moments,
    _distance,
    _factor,
    frechet_distance,
    frechet_infinity,
)
from fdistill.evaluation.protocol import Protocol
from fdistill.networks.classifier import classifier

# A classifier takes 1500 steps.
pytestmark = pytest.mark.optimised


@pytest.fixture(scope='module')
def digits():
    """Reference of the digits; the classifier is trained once for all tests of this file."""
    return reference(load('digits'), load('digits', 'held_out'), progress=False)


def covariance(d, n, seed):
    """Sample covariance of n random vectors with correlated coordinates, of rank min(n - 1, d)."""
    rng = np.random.default_rng(seed)
    return np.cov(rng.normal(size=(n, d)) @ rng.normal(size=(d, d)), rowvar=False).reshape(d, d)


def moments_of(x):
    return Moments.empty(x.shape[1]).update(x)


@pytest.mark.parametrize('d', [1, 2, 32, 64])
def test_frechet_of_equal_gaussians_is_zero(d):
    mu, sigma = np.arange(d), covariance(d, 3 * d + 2, 0)
    assert 0 <= frechet_distance(mu, sigma, mu, sigma) < 1e-10 * np.trace(sigma)


def test_frechet_of_a_shift_is_its_square():
    sigma = covariance(5, 50, 0)
    shift = np.array([1.0, -2, 0, 0.5, 3])
    assert frechet_distance(np.zeros(5), sigma, shift, sigma) == pytest.approx(
        (shift**2).sum(), abs=1e-10
    )


def test_frechet_of_diagonal_covariances():
    a, b = np.array([1.0, 4, 0, 9]), np.array([4.0, 1, 2, 0])
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(np.zeros(4), np.diag(a), np.zeros(4), np.diag(b)) == pytest.approx(
        expected, abs=1e-12
    )


def test_frechet_of_commuting_covariances():
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    a, b = np.arange(1.0, 7), np.arange(6.0, 0, -1) ** 2
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet_distance(
        np.zeros(6), basis @ np.diag(a) @ basis.T, np.zeros(6), basis @ np.diag(b) @ basis.T
    )
    assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize('scale', [1e-6, 0.5, 1, 3e4])
def test_frechet_of_a_scaled_covariance(scale):
    sigma = covariance(9, 40, 0)
    expected = np.trace(sigma) * (scale - 1) ** 2
    found = frechet_distance(np.zeros(9), sigma, np.zeros(9), scale**2 * sigma)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-12 * np.trace(sigma))


@pytest.mark.parametrize('lowest', [1e-2, 1e-8, 1e-12, 1e-20])
def test_frechet_of_ill_conditioned_covariances(lowest):
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))
    a = np.geomspace(1, lowest, 24)
    for b in (a[::-1], np.roll(a, 5), np.ones(24)):
        expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
        found = frechet_distance(
            np.zeros(24), (basis * a) @ basis.T, np.zeros(24), (basis * b) @ basis.T
        )
        # Nobody can tell what eigenvalues below 1e-15 of the largest are in float64; their roots
        # are below 1e-7.
        assert found == pytest.approx(expected, rel=1e-10 if lowest > 1e-15 else 1e-6)


@pytest.mark.parametrize(
    'd, n', [(1, 5), (16, 100), (40, 10), (40, 41), (40, 40), (300, 7), (300, 200)]
)
def test_frechet_hides_nothing_when_it_takes_negative_values_for_zero(d, n):
    sigma = covariance(d, n, 0)
    for other in (sigma, sigma * (1 + 1e-15), sigma + 1e-16 * np.trace(sigma) * np.eye(d)):
        unclipped = _distance(np.zeros(d), _factor(sigma), np.zeros(d), _factor(other))
        assert abs(unclipped) <= 1e-12 * np.trace(sigma)


@pytest.mark.parametrize('d, n1, n2', [(3, 10, 20), (32, 100, 200), (64, 500, 355)])
def test_frechet_agrees_with_scipy(d, n1, n2):
    a, b = covariance(d, n1, 0), covariance(d, n2, 1)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(scipy.linalg.sqrtm(a @ b)).real
    assert frechet_distance(np.zeros(d), a, np.zeros(d), b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(np.zeros(d), b, np.zeros(d), a) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize('n1, n2', [(10, 10), (2, 100), (100, 2), (2, 2)])
def test_frechet_of_fewer_samples_than_dimensions(n1, n2):
    # tr (S1 S2)^(1/2) is the nuclear norm of X1 X2' for centred data X / sqrt(n - 1): no roots of
    # singular matrices.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n1, 40)), 2 * rng.normal(size=(n2, 40)) + 1
    one, other = moments_of(x), moments_of(y)
    root1, root2 = (x - x.mean(axis=0)) / np.sqrt(n1 - 1), (y - y.mean(axis=0)) / np.sqrt(n2 - 1)
    expected = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + (root1**2).sum() + (root2**2).sum()
    expected -= 2 * np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    found = frechet_distance(one.mean, one.covariance, other.mean, other.covariance)
    assert found == pytest.approx(expected, rel=1e-12)
    assert 0 <= frechet_distance(one.mean, one.covariance, one.mean, one.covariance) < 1e-11


def test_frechet_of_points_is_their_distance():
    zero = np.zeros((3, 3))
    assert frechet_distance(np.zeros(3), zero, np.ones(3), zero) == 3


@pytest.mark.parametrize(
    'change, message',
    [
        ({'mu1': np.zeros(2)}, 'shapes'),
        ({'sigma2': np.eye(4)}, 'shapes'),
        ({'sigma1': np.ones(3)}, 'shapes'),
        ({'mu1': 1.0}, 'shapes'),
        ({'mu1': [], 'sigma1': np.zeros((0, 0)), 'mu2': [], 'sigma2': np.zeros((0, 0))}, 'shapes'),
        ({'mu2': np.array([0, np.nan, 0])}, 'mu2 is not finite'),
        ({'sigma1': np.full((3, 3), np.inf)}, 'sigma1 is not finite'),
        ({'sigma1': np.triu(np.ones((3, 3)))}, 'not symmetric'),
    ],
)
def test_frechet_errors(change, message):
    good = {'mu1': np.zeros(3), 'sigma1': np.eye(3), 'mu2': np.zeros(3), 'sigma2': np.eye(3)}
    with pytest.raises(ValueError, match=message):
        frechet_distance(**{**good, **change})


@pytest.mark.parametrize('d', [8, 32])
def test_frechet_infinity_of_equal_gaussians(d):
    # To second order in S - I, whose squared norm is (d^2 + d) / N: E d^2 = d / N + (d^2 + d) / 4N,
    # and 0 in the limit.
    fits, finite = [], []
    for seed in range(20):
        x = np.random.default_rng([seed, d]).normal(size=(4000, d))
        fits.append(frechet_infinity(x, np.zeros(d), np.eye(d), smallest=500, seed=seed))
        finite.append(
            frechet_distance(x.mean(axis=0), np.cov(x, rowvar=False), np.zeros(d), np.eye(d))
        )
    value, slope, error = np.array(fits).T
    sem = value.std() / np.sqrt(20)
    assert abs(value.mean()) < 4 * sem < 0.5 * np.mean(finite)
    assert np.mean(finite) == pytest.approx((d + d * (d + 1) / 4) / 4000, rel=0.1)
    assert slope.mean() == pytest.approx(d + d * (d + 1) / 4, abs=4 * slope.std() / np.sqrt(20))
    assert (error > 0).all() and error.mean() < 3 * value.std()


@pytest.mark.parametrize('d', [8, 32])
def test_frechet_infinity_of_known_gaussians(d):
    rng = np.random.default_rng(d)
    shift, stds = np.full(d, 0.1), np.linspace(0.5, 1.5, d)
    exact = (shift**2).sum() + ((stds - 1) ** 2).sum()
    x = shift + stds * rng.normal(size=(20000, d))
    value, slope, error = frechet_infinity(x, np.zeros(d), np.eye(d), smallest=1000)
    # A random sample of 20000 leaves d^2 uncertain by 2 |shift|, 2 (std - 1) times the errors of
    # mean and std.
    noise = 2 * np.sqrt(((shift * stds) ** 2 + (stds - 1) ** 2 * stds**2 / 2).sum() / 20000)
    assert abs(value - exact) < 4 * noise + 4 * error and noise < 0.03 * exact
    # To second order, a root's error: with stds of 1 it would be d + d (d + 1) / 4.
    assert 0.5 < slope / (d + d * (d + 1) / 4) < 1.5
    assert frechet_infinity(x, np.zeros(d), np.eye(d), smallest=1000) == (value, slope, error)
    assert frechet_infinity(x, np.zeros(d), np.eye(d), smallest=1000, seed=1) != (
        value,
        slope,
        error,
    )


def test_frechet_infinity_is_the_line_of_numpy(monkeypatch):
    sizes = np.linspace(5, 50, 15).astype(int)
    distances = iter(3 + 2 / sizes + np.random.default_rng(0).normal(size=15))
    monkeypatch.setattr('fdistill.evaluation.frechet._distance', lambda *_: next(distances))
    found = frechet_infinity(
        np.random.default_rng(1).normal(size=(50, 2)), np.zeros(2), np.eye(2), smallest=5
    )
    line, cov = np.polyfit(
        1 / sizes, 3 + 2 / sizes + np.random.default_rng(0).normal(size=15), 1, cov=True
    )
    assert found == pytest.approx((line[1], line[0], np.sqrt(cov[1, 1])), rel=1e-9)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'points': 14}, 'points=14'),
        ({'smallest': 3}, 'above 3, below 40'),
        ({'smallest': 40}, 'above 3, below 40'),
        ({'features': np.zeros(40)}, 'shape'),
        ({'features': np.full((40, 3), np.nan)}, 'not finite'),
        ({'mu': np.zeros(4)}, 'shapes'),
        ({'sigma': np.full((3, 3), np.nan)}, 'sigma1 is not finite'),
    ],
)
def test_frechet_infinity_errors(change, message):
    good = {'features': np.zeros((40, 3)), 'mu': np.zeros(3), 'sigma': np.eye(3), 'smallest': 20}
    with pytest.raises(ValueError, match=message):
        frechet_infinity(**{**good, **change})


@pytest.mark.parametrize(
    'sizes', [[1000], [1, 999], [0, 500, 0, 500], [333, 333, 334], [1] * 50 + [950]]
)
def test_moments_in_any_pieces_are_those_of_numpy(sizes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 8)) @ rng.normal(size=(8, 8)) + 1000
    pieces = np.split(x, np.cumsum(sizes)[:-1])
    one_by_one = functools.reduce(
        lambda moments, piece: moments.update(piece), pieces, Moments.empty(8)
    )
    merged = functools.reduce(Moments.merge, [moments_of(piece) for piece in reversed(pieces)])
    for moments in (one_by_one, merged):
        assert moments.count == 1000
        np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(
            moments.covariance, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-10
        )


def test_moments_are_float64():
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) + 100
    expected = np.cov(x.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(moments_of(x).covariance, expected, rtol=1e-10, atol=1e-10)


def test_moments_errors():
    moments = Moments.empty(3)
    for bad in (np.zeros(3), np.zeros((2, 4)), np.array([[0, 0, np.nan]])):
        with pytest.raises(ValueError, match='features'):
            moments.update(bad)
    with pytest.raises(ValueError, match='merged'):
        moments.merge(Moments.empty(2))
    with pytest.raises(ValueError, match='at least two'):
        _ = moments.update(np.zeros((1, 3))).covariance


def test_accuracy_and_diversity_against_naive():
    rng = np.random.default_rng(0)
    images, labels, logits = (
        rng.normal(size=(60, 3, 3, 1)),
        rng.integers(0, 4, 60),
        rng.normal(size=(60, 4)),
    )
    assert metrics.accuracy(logits, labels) == np.mean(
        [np.argmax(z) == y for z, y in zip(logits, labels, strict=True)]
    )
    naive = [
        np.std([image[i, j, 0] for image, y in zip(images, labels, strict=True) if y == label])
        for label in range(4)
        for i, j in itertools.product(range(3), repeat=2)
    ]
    assert metrics.diversity(images, labels) == pytest.approx(np.mean(naive), rel=1e-12)
    assert metrics.diversity(images, np.zeros(60)) == pytest.approx(
        images.std(axis=0).mean(), rel=1e-12
    )


def naive_inception_score(p, splits):
    """By loops; p [N, classes] without zeros."""
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        marginal = [sum(row[c] for row in part) / len(part) for c in range(p.shape[1])]
        scores.append(
            np.exp(
                sum(q * np.log(q / m) for row in part for q, m in zip(row, marginal, strict=True))
                / len(part)
            )
        )
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize('n, splits', [(40, 10), (43, 10), (10, 10), (17, 1), (1, 1)])
@pytest.mark.parametrize('scale', [1, 30])
def test_inception_score_against_loops(n, splits, scale):
    logits = scale * np.random.default_rng(0).normal(size=(n, 6)).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    expected = pytest.approx(naive_inception_score(p, splits), rel=1e-12, abs=1e-12)
    assert metrics.inception_score(logits, splits) == expected
    assert metrics.inception_score(np.log(p), splits) == expected
    assert metrics.inception_score(logits + 1000, splits) == pytest.approx(
        naive_inception_score(p, splits), rel=1e-3
    )
    order = np.random.default_rng(5).permutation(n)
    assert metrics.inception_score(logits, splits, seed=5) == metrics.inception_score(
        logits[order], splits
    )


def test_inception_score_of_known_cases():
    sure = np.repeat(1e4 * np.eye(5, dtype=np.float32), 20, axis=0)
    # Sorted by class, ten splits see one class each; in one split, or shuffled, there are all five.
    assert metrics.inception_score(sure) == (1, 0)
    assert metrics.inception_score(sure, splits=1) == pytest.approx((5, 0), rel=1e-14)
    assert metrics.inception_score(sure, splits=2, seed=0)[0] > 4.5
    with np.errstate(divide='ignore'):
        assert metrics.inception_score(np.log(np.eye(5)), splits=1) == pytest.approx(
            (5, 0), rel=1e-14
        )
    assert metrics.inception_score(np.zeros((30, 5))) == pytest.approx((1, 0), abs=1e-14)


@pytest.mark.parametrize(
    'logits, splits, message',
    [
        (np.zeros((9, 5)), 10, 'splits=10'),
        (np.zeros((9, 5)), 0, 'splits=0'),
        (np.zeros(9), 1, 'shape'),
        (np.zeros((0, 5)), 1, 'shape'),
        (np.full((9, 5), np.nan), 1, 'not finite'),
        (np.array([[0, np.inf]]), 1, 'not finite'),
        (np.array([[-np.inf, -np.inf]]), 1, 'not finite'),
    ],
)
def test_inception_score_errors(logits, splits, message):
    with pytest.raises(ValueError, match=message):
        metrics.inception_score(logits, splits)


@pytest.mark.parametrize('block', [1, 7, 2000])
def test_nearest_neighbour_against_naive(block):
    rng = np.random.default_rng(0)
    train = rng.integers(0, 17, (50, 4, 4, 1), np.uint8)
    samples = np.concatenate([rng.normal(size=(30, 4, 4, 1)), to_float(train[3:5], 16)])
    naive = [
        min(np.sqrt(((x - t) ** 2).sum()) for t in to_float(train, 16).astype(np.float64))
        for x in samples
    ]
    found = metrics.nearest_neighbour(samples, train, 16, block=block)
    np.testing.assert_allclose(found, naive, rtol=1e-6)
    assert (found[-2:] == 0).all()
    ratio = metrics.nn_ratio(samples, to_float(train, 16), held_out_distance=2.0)
    assert ratio == pytest.approx(np.mean(naive) / 2, rel=1e-6)


def draw(name, n, keep=None, scale=1.0):
    """Exact samples of a named mixture, of some modes only, with another spread."""
    weights, means, stds = mixture_parameters(name)
    rng = np.random.default_rng(0)
    if keep is not None:
        weights = np.where(np.isin(np.arange(len(weights)), keep), weights, 0) / weights[keep].sum()
    mode = rng.choice(len(weights), size=n, p=weights)
    return means[mode] + scale * stds[mode, None] * rng.normal(size=(n, 2))


@pytest.mark.parametrize('name', MIXTURES)
def test_mode_coverage_of_exact_samples(name):
    n = 40000
    weights, means, stds = mixture_parameters(name)
    row = metrics.mode_coverage(draw(name, n), weights, means, stds)
    assert row['modes'] == len(weights)
    # Modes of the grid are 6.25 std apart: a point 3 std away may already belong to another one.
    assert row['high_quality'] == pytest.approx(1 - np.exp(-4.5), abs=4e-3)
    assert row['within'] == pytest.approx(np.sqrt(1 - 4.5 / np.expm1(4.5)), abs=0.01)
    # 2 n KL is chi-squared with K - 1 degrees of freedom, but for the few points nearer to another
    # mode.
    assert 0 <= row['kl'] < (len(weights) + 6 * np.sqrt(2 * len(weights))) / (2 * n)


def test_mode_coverage_of_bad_samples():
    parameters = mixture_parameters('ring')
    half = metrics.mode_coverage(draw('ring', 20000, keep=[0, 1, 2, 3]), *parameters)
    assert half['modes'] == 4 and half['kl'] == pytest.approx(np.log(2), abs=0.01)
    narrow = metrics.mode_coverage(draw('ring', 20000, scale=0.5), *parameters)
    assert narrow['within'] == pytest.approx(0.5, abs=0.01) and narrow[
        'high_quality'
    ] == pytest.approx(1, abs=1e-3)
    nowhere = metrics.mode_coverage(np.full((100, 2), 50.0), *parameters)
    assert nowhere['modes'] == 0 and nowhere['high_quality'] == 0 and np.isnan(nowhere['within'])


def test_protocol_names():
    protocol = Protocol('digits-clf', 2000, 'held-out', 16, 'balanced', 0)
    assert protocol.name('fd') == 'fd[digits-clf,2k,held-out,q16,balanced,seed0]'
    assert (
        protocol._replace(samples=355, levels=0).name('fd')
        == 'fd[digits-clf,355,held-out,float,balanced,seed0]'
    )
    # Whatever is different has another name.
    changes = {
        'features': 'pixels',
        'samples': 2001,
        'reference': 'train',
        'levels': 255,
        'labels': 'own',
        'seed': 1,
    }
    assert len(
        {protocol._replace(**{key: value}).name('fd') for key, value in changes.items()}
    ) == len(changes)


@pytest.mark.parametrize('name', features.FEATURES)
def test_every_feature_keeps_the_type(name):
    rng = np.random.default_rng(0)
    source = Source(
        rng.integers(0, 17, (40, 8, 8, 1), np.uint8),
        np.arange(40, dtype=np.int32) % 3,
        3,
        16,
        'noise',
    )
    options = {'steps': 3} if name in ('classifier', 'turns') else {}
    extractor = features.get(name, source, progress=False, **options)
    images = to_float(source.images, 16)
    values = extractor.apply(images)
    assert values.dtype == np.float32 and values.ndim == 2 and len(values) == 40
    np.testing.assert_allclose(extractor.apply(images[:7]), values[:7], rtol=1e-5, atol=1e-6)
    if extractor.classify is not None:
        assert extractor.classify(images).shape == (40, 3)


def test_unknown_features_are_named():
    with pytest.raises(ValueError, match="'pixel'.*pixels"):
        features.get('pixel', load('mixture', n=10))
    with pytest.raises(ValueError, match='ring'):
        features.get('classifier', load('mixture', n=10))


def test_blocks_are_padded_and_cut(monkeypatch):
    monkeypatch.setattr(features, 'BLOCK', 16)
    images = np.random.default_rng(0).integers(0, 256, (37, 16, 16, 3), np.uint8)
    source = Source(images, np.arange(37, dtype=np.int32) % 2, 2, 255, 'colour')
    extractor = features.get('classifier', source, steps=2, batch_size=8, progress=False)
    values = extractor.apply(to_float(source.images, 255))
    assert values.shape == (37, 32) and extractor.name == 'colour-clf2'
    np.testing.assert_allclose(values.std(axis=0), 1, rtol=1e-4)


def test_a_classifier_sees_its_images_shifted_within_reach():
    recipe, key = features.LARGE._replace(noise=0.0), jax.random.key(0)
    images = np.random.default_rng(0).normal(size=(64, 28, 20, 1)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (2, 2), (1, 1), (0, 0)), 'edge')
    places = list(itertools.product(range(5), range(3)))
    shifted = np.stack([padded[:, i : i + 28, j : j + 20] for i, j in places])
    same = (shifted == np.asarray(features._varied(key, images, recipe))).all(axis=(2, 3, 4))
    assert (same.sum(axis=0) == 1).all() and same.any(axis=1).sum() > 12
    small = features._varied(key, images, features.SMALL)
    np.testing.assert_array_equal(small, images + 0.2 * jax.random.normal(key, images.shape))


def test_classifiers_of_any_size_have_features_of_one_length():
    for shape in ((8, 8, 1), (16, 16, 1), (17, 30, 3), (64, 64, 3)):
        model, x = classifier(num_classes=3, image_shape=shape), jnp.zeros((2, *shape))
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        logits, found = jax.eval_shape(model.apply, params, x)
        assert (logits.shape, found.shape) == ((2, 3), (2, 32))


def test_classifier_is_kept_and_deterministic(monkeypatch):
    source, folder = load('digits'), cache.folder('classifiers')
    images = to_float(load('digits', 'held_out').images, 16)

    def values():
        return features.get('classifier', source, steps=50, progress=False).apply(images)

    before = set(folder.iterdir())
    first = values()
    (path,) = set(folder.iterdir()) - before
    assert path.name.startswith('digits-')
    with np.load(path) as file:
        assert all(file[key].dtype == np.float32 for key in file)
    monkeypatch.setattr(features, '_train', lambda *_: pytest.fail('trained again'))
    np.testing.assert_array_equal(values(), first)
    monkeypatch.undo()
    path.unlink()
    np.testing.assert_array_equal(values(), first)


def test_damaged_classifier_is_named(digits):
    source = load('digits', 'held_out')
    features.get('classifier', source, steps=1, progress=False)
    path = max(cache.folder('classifiers').iterdir(), key=lambda file: file.stat().st_mtime_ns)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match='delete the file'):
        features.get('classifier', source, steps=1)


def test_classifier_runs_in_full_precision():
    model = classifier(num_classes=2, image_shape=(16, 16, 1))
    x = np.zeros((1, 16, 16, 1), np.float32)
    text = str(jax.make_jaxpr(model.apply)(model.init(jax.random.key(0), x), x))
    assert (
        text.count('HIGHEST') >= text.count('conv_general_dilated') + text.count('dot_general') > 0
    )


def test_samples_do_not_depend_on_the_batch_size():
    labels = np.arange(23) % 10
    shapes = set()

    @jax.jit
    def generate(noise, condition):
        shapes.add(noise.shape)
        return noise * 0.5 + condition['label'][:, None, None, None]

    whole, _ = sample(generate, (2, 2, 1), {'label': labels}, 23, batch_size=23, progress=False)
    for batch_size in (1, 5, 500):
        shapes.clear()
        part, seconds = sample(
            generate, (2, 2, 1), {'label': labels}, 23, batch_size=batch_size, progress=False
        )
        np.testing.assert_array_equal(part, whole)
        assert len(shapes) == 1 and seconds > 0
    more = {'label': np.arange(40) % 10}
    longer, _ = sample(generate, (2, 2, 1), more, 40, batch_size=16, progress=False)
    np.testing.assert_array_equal(longer[:23], whole)
    for i in (0, 7, 22):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (2, 2, 1))
        np.testing.assert_allclose(whole[i], noise * 0.5 + labels[i], rtol=1e-6)
    other, _ = sample(generate, (2, 2, 1), {'label': labels}, 23, seed=1, progress=False)
    assert not np.isin(other, whole).any()


@pytest.mark.parametrize(
    'generate, message',
    [
        (lambda noise, condition: noise[:, 0], 'shape'),
        (lambda noise, condition: noise * np.nan, 'not finite'),
    ],
)
def test_broken_generators_are_named(generate, message):
    with pytest.raises(ValueError, match=message):
        sample(generate, (2, 2, 1), {}, 4, progress=False)


KEYS = {
    'nfe',
    'fd_held_out',
    'fd_train',
    'fd_ratio',
    'sliced_wasserstein',
    'pixel_fd',
    'precision',
    'recall',
    'density',
    'coverage',
    'accuracy',
    'diversity',
    'nn_ratio',
    'seconds',
    'protocol',
    'details',
}


def test_real_digits_get_the_numbers_of_real_digits(digits):
    rows = reference_rows(digits.train, digits.held_out, against=digits)
    assert all(set(row) == KEYS for row in rows.values())
    held_out, train = rows['held-out'], rows['train']
    assert held_out['accuracy'] > 0.96 and train['accuracy'] > 0.99
    assert held_out['fd_held_out'] < 1e-6 and held_out['nn_ratio'] == pytest.approx(1)
    assert train['fd_train'] < train['fd_held_out'] < 0.4 and held_out['fd_train'] < 0.4
    assert 0.3 < held_out['pixel_fd'] < 0.5 and train['pixel_fd'] < 0.1
    assert train['nn_ratio'] == 0
    assert 0.31 < held_out['diversity'] < 0.34 and 0.31 < train['diversity'] < 0.34
    assert 2.0 < digits.held_out_distance < 2.3
    for key in ('precision', 'recall', 'coverage'):
        assert held_out[key] > 0.5 and train[key] > 0.9, key
    assert held_out['density'] == pytest.approx(1, abs=0.2)


def test_neighbours_are_looked_for_among_some_of_many_and_their_names_say_so(digits, monkeypatch):
    monkeypatch.setattr(evaluation, 'SEARCHED', 300)
    against = digits._replace(searched=digits.searched[:300])
    row = reference_rows(digits.train, digits.held_out, samples=500, against=against)['train']
    assert row['protocol']['recall'] == 'recall-k3[digits-clf,300,train300,q16,balanced,seed0]'
    assert row['protocol']['coverage'] == 'coverage-k5[digits-clf,300,train300,q16,balanced,seed0]'
    assert 0.8 < row['coverage'] < 1 and row['recall'] > 0.8
    assert '[digits-clf,500,train,' in row['protocol']['fd_train']


def test_evaluating_a_copier_of_the_training_data(digits):
    # Sample i copies a training image of its label, so that everything but memorisation looks
    # right.
    members = np.stack([np.flatnonzero(digits.train.labels == label)[:130] for label in range(10)])

    def generate(noise, condition):
        choice = np.abs(noise[:, 0, 0, 0] * 1e6).astype(np.int64) % 130
        # Less than half a grey level away: quantisation takes it back.
        return to_float(digits.train.images[members[condition['label'], choice]], 16) + 0.06

    row = evaluate(
        generate, digits.train, digits.held_out, nfe=1, samples=1000, against=digits, progress=False
    )
    assert set(row) == KEYS and row['nfe'] == 1
    assert row['nn_ratio'] == 0 and row['accuracy'] > 0.99 and row['fd_train'] < 0.1
    assert row['protocol']['fd_train'] == 'fd[digits-clf,1k,train,q16,balanced,seed0]'
    assert set(row['protocol']) == KEYS - {'nfe', 'seconds', 'protocol', 'details'}
    assert measures(digits.train).keys() == row['protocol'].keys()
    again = evaluate(
        generate,
        digits.train,
        digits.held_out,
        nfe=1,
        samples=1000,
        batch_size=77,
        against=digits,
        progress=False,
    )
    timeless = {key: value for key, value in row.items() if key != 'seconds'}
    assert timeless == {key: value for key, value in again.items() if key != 'seconds'}


def test_samples_are_quantised_like_stored_images(digits):
    rng = np.random.default_rng(0)
    table = rng.uniform(-1.5, 1.5, (60, 8, 8, 1)).astype(np.float32)

    def rows(images):
        count = itertools.count()
        return evaluate(
            lambda noise, condition: images[30 * next(count) :][:30],
            digits.train,
            digits.held_out,
            nfe=1,
            samples=60,
            batch_size=30,
            against=digits,
            progress=False,
        )

    raw, stored = rows(table), rows(quantise(table, 16))
    assert raw['pixel_fd'] == stored['pixel_fd'] and raw['fd_train'] == stored['fd_train']


@pytest.mark.parametrize('name', MIXTURES)
def test_evaluating_points(name):
    train, held_out = (load('mixture', split, mixture=name) for split in ('train', 'held_out'))
    weights, means, stds = mixture_parameters(name)

    def generate(noise, condition):
        label = condition.get('label', np.zeros(len(noise), int))
        return means[label] + stds[label, None] * noise

    row = evaluate(
        generate,
        train,
        held_out,
        nfe=3,
        samples=4000,
        progress=False,
    )
    assert set(row) == {
        'nfe',
        'modes',
        'kl',
        'high_quality',
        'within',
        'spread',
        'pixel_fd',
        'seconds',
        'protocol',
    }
    assert measures(train).keys() == row['protocol'].keys()
    assert row['spread'] == pytest.approx(1, abs=0.03)
    assert (
        row['modes'] == len(weights)
        and row['high_quality'] > 0.98
        and row['kl'] < 0.02
        and row['pixel_fd'] < 0.01
    )
    assert row['protocol']['kl'] == f'kl[pixels,4k,{name},float,as-train,seed0]'


def test_points_of_no_mixture_have_a_distance_and_a_spread():
    rng = np.random.default_rng(0)
    points = Source(
        rng.normal(size=(500, 3)).astype(np.float32), np.zeros(500, np.int32), 1, 0, 'own'
    )
    row = evaluate(
        lambda noise, condition: noise, points, points, nfe=1, samples=500, progress=False
    )
    assert (
        set(row) == {'nfe', 'spread', 'pixel_fd', 'seconds', 'protocol'} and row['pixel_fd'] < 0.1
    )
    assert measures(points).keys() == row['protocol'].keys()


def test_evaluate_errors(digits):
    with pytest.raises(ValueError, match='samples=1'):
        evaluate(
            lambda noise, condition: noise,
            digits.train,
            digits.held_out,
            nfe=1,
            samples=1,
            against=digits,
        )
    with pytest.raises(ValueError, match='two splits'):
        reference(digits.train, load('mixture', n=10))
