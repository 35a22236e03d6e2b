"""Time-Shift, starts of sampling and guidance in an interval against exact moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdistill.diffusion import noise, samplers
from fdistill.diffusion.corrections import analytic_init, time_shift, variance_within
from fdistill.diffusion.denoiser import Denoiser, guide
from fdistill.diffusion.oracle import mixture


def images(count=64, variance=0.25, size=3072):
    """Samples whose elements are +-1/2."""
    return np.sqrt(variance) * np.random.default_rng(0).choice([-1.0, 1.0], (count, size))


def coins(x, sigma):
    """The exact denoiser of independent elements +-1/2."""
    return 0.5 * jnp.tanh(0.5 * x / sigma[:, None] ** 2)


@pytest.mark.parametrize(
    ('sigma', 'mean', 'std'),
    [
        (40, 39.97, 0.57),
        (10, 9.97, 0.14),
        (2, 2.002, 0.026),
        (0.5, 0.499, 0.012),
        (0.1, 0.092, 0.038),
    ],
)
def test_level_is_read_from_the_state(sigma, mean, std):
    """Mean and standard deviation over 64 images as in the sheet's table, three standard errors."""
    told = []
    x = images() + sigma * np.random.default_rng(1).normal(size=(64, 3072))
    time_shift(lambda x, level: told.append(level), variance=0.25, window=0.999)(
        jnp.asarray(x), jnp.full(64, float(sigma))
    )
    assert np.mean(told[0]) == pytest.approx(
        mean, abs=3 * std / np.sqrt(64) + 3 * std / np.sqrt(64)
    )
    assert np.std(told[0]) <= 1.5 * std
    # The published rule takes the data's variance for noise.
    time_shift(lambda x, level: told.append(level), variance=0.0, window=0.999)(
        jnp.asarray(x), jnp.full(64, float(sigma))
    )
    np.testing.assert_allclose(
        np.mean(np.square(told[1])), min(sigma**2 + 0.25, (1.999 * sigma) ** 2), rtol=0.03
    )


def test_level_told_lies_in_the_window_above_the_cutoff_only():
    told = {}
    denoise = time_shift(
        lambda x, level: told.update(level=np.asarray(level)) or x,
        variance=0.25,
        window=0.1,
        cutoff=0.5,
    )
    sigma = np.geomspace(0.05, 50, 40)
    x = images(40) + 1.5 * sigma[:, None] * np.random.default_rng(1).normal(size=(40, 3072))
    denoise(jnp.asarray(x), jnp.asarray(sigma))
    ratio = told['level'] / sigma
    assert np.all((0.9 - 1e-6 <= ratio) & (ratio <= 1.1 + 1e-6))
    np.testing.assert_allclose(ratio[sigma <= 0.5], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[sigma > 2], 1.1, rtol=1e-6)


@pytest.mark.parametrize('options', [{'window': 0.0}, {'cutoff': 80.0}])
def test_no_window_or_a_high_cutoff_is_the_sampler_itself(options):
    grid = noise.karras_grid(5)
    x = grid[0] * jax.random.normal(jax.random.key(0), (8, 50))
    shifted = time_shift(coins, variance=0.25, **options)
    for sampler in (samplers.heun, samplers.ghvb):
        np.testing.assert_array_equal(sampler(shifted, x, grid), sampler(coins, x, grid))


def test_a_state_at_another_level_is_denoised_as_at_its_own():
    """x has 1.6 times the noise that the grid says: the estimate is that of the true level, the
    best there is."""
    y = images(32)
    x = jnp.asarray(y + 1.6 * 0.5 * np.random.default_rng(1).normal(size=y.shape), jnp.float32)
    shifted = time_shift(coins, variance=variance_within(y), window=0.7)
    plain, corrected = (
        float(jnp.mean((samplers.euler(d, x, np.array([0.5, 0.0])) - y) ** 2))
        for d in (coins, shifted)
    )
    assert corrected < 0.92 * plain
    assert corrected == pytest.approx(
        float(jnp.mean((coins(x, jnp.full(32, 0.8)) - y) ** 2)), rel=1e-3
    )
    assert variance_within(y) == pytest.approx(0.25, rel=1e-3)


def two():
    return mixture([0.3, 0.7], [[-1.0, 0.5], [2.0, 0.5]], 0.4)


def test_analytic_init_has_the_marginals_moments():
    p, n, sigma = two(), 100_000, 2.0
    mean = np.asarray(p.weights) @ np.asarray(p.means)
    covariance = np.einsum('k,ki,kj', p.weights, p.means - mean, p.means - mean) + 0.4**2 * np.eye(
        2
    )
    start = analytic_init(
        jax.random.normal(jax.random.key(0), (n, 2)), sigma, mean, np.trace(covariance) / 2
    )
    np.testing.assert_allclose(start.mean(0), mean, atol=5 * 2.3 / np.sqrt(n))
    exact = np.trace(
        np.cov(
            (
                p.sample(jax.random.key(1), n)
                + sigma * jax.random.normal(jax.random.key(2), (n, 2))
            ).T
        )
    )
    np.testing.assert_allclose(np.trace(np.cov(start.T)), exact, rtol=0.02)

    def bias(x):
        end = samplers.heun(p.denoise, x, noise.karras_grid(40, sigma_min=0.01, sigma_max=sigma))
        return np.abs(end.mean(0) - mean).max()

    assert bias(start) < 0.3 * bias(sigma * jax.random.normal(jax.random.key(0), (n, 2)))


def labelled():
    def apply(params, x, sigma, condition, key=None):
        label = condition['label']
        return jnp.where(label[:, None] < 0, 0.0, 1.0) * jnp.ones_like(x), (label,)

    return Denoiser(lambda key, x, label: {}, apply)


def test_guidance_in_an_interval():
    """Guided where low < sigma <= high, conditional elsewhere, sample by sample."""
    guided = guide(labelled(), 3.0, (0.3, 2.0))
    sigma = jnp.asarray([0.1, 0.3, 0.31, 2.0, 2.01, 50.0])
    x0, _ = guided.apply({}, jnp.zeros((6, 2)), sigma, {'label': jnp.zeros(6, jnp.int32)})
    np.testing.assert_allclose(x0[:, 0], [1, 1, 3, 3, 1, 1])
    everywhere, _ = guide(labelled(), 3.0).apply(
        {}, jnp.zeros((6, 2)), sigma, {'label': jnp.zeros(6, jnp.int32)}
    )
    np.testing.assert_allclose(everywhere, 3)
    plain = labelled()
    assert guide(plain, 1.0, (0.3, 2.0)) is plain


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (
            lambda: guide(labelled(), 2.0, (2.0, 1.0)),
            r'guidance_interval=\(2.0, 1.0\): need \(low, high\)',
        ),
        (lambda: guide(labelled(), 2.0, (1.0,)), 'guidance_interval'),
        (lambda: guide(labelled(), 2.0, (-1.0, 1.0)), 'guidance_interval'),
        (lambda: time_shift(coins, variance=-1.0), 'variance=-1.0'),
        (lambda: time_shift(coins, variance=0.0, window=1.0), 'window=1.0'),
        (lambda: time_shift(coins, variance=0.0, cutoff=float('nan')), 'cutoff=nan'),
        (lambda: analytic_init(jnp.zeros(2), 0.0, 0.0, 1.0), 'sigma_max=0.0'),
        (lambda: analytic_init(jnp.zeros(2), 1.0, 0.0, -1.0), 'variance=-1.0'),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
