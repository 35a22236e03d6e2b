"""Noise levels, schedules, denoisers and samplers against the closed forms of a Gaussian
mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdistill.diffusion import noise, samplers
from fdistill.diffusion.denoiser import (
    PREDICTIONS,
    Denoiser,
    bind,
    from_prediction,
    guide,
    precondition,
)
from fdistill.diffusion.oracle import mixture
from fdistill.methods import losses
from fdistill.networks import Network


def two_modes():
    return mixture([0.35, 0.65], [[-1.2], [1.0]], [0.35, 0.5])


def in_the_plane():
    return mixture([1.0, 2.0, 3.0], [[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], [0.1, 0.2, 0.3])


def gaussian(mean=(0.3, -0.6), std=0.4):
    return mixture([1.0], [list(mean)], std)


def points(batch=7, dimension=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, dimension)))


def levels(batch=7):
    return jnp.asarray(np.geomspace(0.02, 20, batch))


LABELS = jnp.asarray([0, 1, 2, -1, 0, 1, -1])


# The oracle.


@pytest.mark.parametrize('label', [None, LABELS], ids=['mixture', 'labels'])
def test_tweedie_and_score(label, x64):
    p, x, sigma = in_the_plane(), points(), levels()
    score = p.score(x, sigma, label)
    np.testing.assert_allclose(
        p.denoise(x, sigma, label), x + sigma[:, None] ** 2 * score, rtol=1e-10, atol=1e-12
    )
    exact = jax.grad(lambda x: jnp.sum(p.log_prob(x, sigma, label)))(x)
    np.testing.assert_allclose(score, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('sigma', [0.0, 0.1, 0.6, 3.0])
def test_density_integrates_to_one(sigma, x64):
    x = np.linspace(-30, 30, 20001)[:, None]
    for label in (None, 0, 1, -1):
        labels = None if label is None else jnp.full(len(x), label)
        density = np.exp(two_modes().log_prob(x, sigma, labels))
        assert np.sum(density) * (x[1, 0] - x[0, 0]) == pytest.approx(1, abs=1e-12)


def test_density_of_one_gaussian(x64):
    x, p = points(), gaussian()
    variance = 0.4**2 + 0.5**2
    expected = -0.5 * np.sum((x - np.array([0.3, -0.6])) ** 2, axis=1) / variance - np.log(
        2 * np.pi * variance
    )
    np.testing.assert_allclose(p.log_prob(x, 0.5), expected, rtol=1e-12)


def test_denoiser_is_the_posterior_mean(x64):
    """E[x0 | x] by quadrature over x0."""
    p, sigma = two_modes(), 0.6
    x0 = np.linspace(-6, 6, 4001)
    prior = np.exp(p.log_prob(x0[:, None]))
    for x in (-3.0, -0.2, 0.0, 1.7):
        posterior = prior * np.exp(-0.5 * (x - x0) ** 2 / sigma**2)
        expected = np.sum(posterior * x0) / np.sum(posterior)
        assert float(p.denoise(jnp.asarray([[x]]), sigma)[0, 0]) == pytest.approx(
            expected, rel=1e-9
        )


def test_denoiser_ends_at_the_identity_and_at_the_mean(x64):
    p, x = in_the_plane(), points()
    np.testing.assert_allclose(p.denoise(x, 1e-6), x, atol=1e-9)
    mean = np.asarray(p.weights) @ np.asarray(p.means)
    np.testing.assert_allclose(p.denoise(x, 1e6), np.tile(mean, (7, 1)), atol=1e-5)


def test_labels_choose_components(x64):
    p, x, sigma = in_the_plane(), points(), levels()
    for k in range(3):
        alone = mixture([1.0], p.means[k : k + 1], p.stds[k : k + 1])
        for of in ('denoise', 'score', 'log_prob'):
            chosen = getattr(p, of)(x, sigma, jnp.full(7, k))
            np.testing.assert_allclose(chosen, getattr(alone, of)(x, sigma), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        p.denoise(x, sigma, jnp.full(7, -1)), p.denoise(x, sigma), rtol=1e-12
    )


def test_oracle_as_denoiser():
    p, x, sigma = in_the_plane(), points(), levels()
    for conditional, label in ((False, None), (True, LABELS)):
        denoiser = p.denoiser(conditional)
        assert denoiser.init(None, x, LABELS) == {}
        x0, features = denoiser.apply({}, x, sigma, {'label': LABELS})
        np.testing.assert_array_equal(x0, p.denoise(x, sigma, label))
        np.testing.assert_array_equal(features[0], x)


def test_oracle_far_away_is_finite():
    x = jnp.asarray([[300.0, -300.0], [0.0, 1e4]])
    for value in (
        in_the_plane().denoise(x, 0.01),
        in_the_plane().score(x, 0.01),
        in_the_plane().log_prob(x, 0.01),
    ):
        assert np.all(np.isfinite(value))


def test_moments_of_samples():
    p, n = in_the_plane(), 200_000
    x = np.asarray(p.sample(jax.random.key(0), n), np.float64)
    weights, means, stds = (np.asarray(a, np.float64) for a in p)
    mean = weights @ means
    covariance = np.einsum(
        'k,ki,kj->ij', weights, means - mean, means - mean
    ) + weights @ stds**2 * np.eye(2)
    # Five standard errors.
    np.testing.assert_allclose(x.mean(0), mean, atol=5 * np.sqrt(np.max(covariance) / n))
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=5 * np.sqrt(2 / n))
    assert np.mean(np.linalg.norm(x - means[0], axis=1) < 0.4) == pytest.approx(1 / 6, abs=0.01)


def test_flow_of_a_gaussian_solves_the_ode(x64):
    p = gaussian()
    x = 3 * points()
    sigmas = np.linspace(3, 0.5, 401)
    fine = samplers.heun(p.denoise, x, sigmas)
    np.testing.assert_allclose(p.flow(x, 3.0, 0.5), fine, atol=1e-5)
    np.testing.assert_allclose(p.flow(p.flow(x, 3.0, 0.5), 0.5, 3.0), x, rtol=1e-12)
    with pytest.raises(ValueError, match='2 components'):
        two_modes().flow(x[:, :1], 3.0, 0.5)


@pytest.mark.parametrize(
    ('weights', 'means', 'stds'),
    [
        ([1.0, 1.0], [[0.0]], 1.0),
        ([1.0], [0.0], 1.0),
        ([1.0, 0.0], [[0.0], [1.0]], 1.0),
        ([1.0, -1.0], [[0.0], [1.0]], 1.0),
        ([1.0], [[0.0]], 0.0),
        ([1.0], [[np.nan]], 1.0),
        ([np.nan], [[0.0]], 1.0),
    ],
)
def test_mixture_refuses(weights, means, stds):
    with pytest.raises(ValueError, match='mixture: '):
        mixture(weights, means, stds)


def test_mixture_normalises_weights():
    np.testing.assert_allclose(in_the_plane().weights, [1 / 6, 2 / 6, 3 / 6], rtol=1e-6)


# Laws of sigma.

VARIANTS = {
    'lognormal': [{}, {'mean': 0.5, 'std': 0.7}],
    'loguniform': [{}, {'sigma_min': 0.03, 'sigma_max': 3.0}],
    'karras_uniform': [{}, {'low': 0.02, 'high': 0.98}, {'low': 0.0, 'high': 0.8, 'rho': 5.0}],
    'uniform_time': [{}, {'low': 0.1, 'high': 0.5}],
    'log_student_t': [{}, {'mean': 0.5, 'scale': 0.7, 'df': 2.0}],
    'u_shaped_time': [{}, {'steepness': 1.0, 'edge': 0.01}, {'steepness': 40.0}],
    'levels': [],  # Steps, not a curve: test_reflow.py:test_law_of_levels.
}
LAWS = [(name, options) for name in noise.LAWS for options in VARIANTS[name]]


@pytest.mark.parametrize(('name', 'options'), LAWS)
def test_law_and_its_cdf(name, options):
    """cdf(sigma) is uniform: Kolmogorov's distance, whose 1e-6 quantile is 2.7/sqrt(n)."""
    law, n = noise.LAWS[name](**options), 20_000
    sigma = law.sample(jax.random.key(3), n)
    assert sigma.shape == (n,) and np.all(sigma > 0) and np.all(np.isfinite(sigma))
    u = np.sort(np.asarray(law.cdf(sigma), np.float64))
    assert -1e-5 < u[0] and u[-1] < 1 + 1e-5
    assert np.max(np.abs(u - (np.arange(n) + 0.5) / n)) < 2.7 / np.sqrt(n)
    assert np.all(np.diff(np.asarray(law.cdf(jnp.sort(sigma)))) >= -1e-6)
    np.testing.assert_array_equal(sigma, law.sample(jax.random.key(3), n))


def quantile(law, sigma):
    return float(law.cdf(jnp.asarray(sigma, jnp.float32)))


@pytest.mark.parametrize(
    ('index', 'sigma'),
    [(2, 0.00210), (20, 0.00323), (500, 2.527), (980, 72.05), (998, 79.56), (999, 80.0)],
)
def test_karras_levels(index, sigma, x64):
    """Of the 1000 levels that the published codes draw from."""
    exact = noise.karras_grid(1000)[999 - index]
    assert exact == pytest.approx(sigma, rel=3e-3)
    assert float(noise.karras_uniform().cdf(jnp.asarray(exact))) == pytest.approx(
        index / 999, abs=1e-9
    )


@pytest.mark.parametrize(
    ('u', 'sigma'),
    [
        (0.1, 0.0167),
        (0.2, 0.0851),
        (0.3, 0.318),
        (0.4, 0.965),
        (0.5, 2.515),
        (0.6, 5.84),
        (0.7, 12.4),
        (0.8, 24.4),
    ],
)
def test_sid_levels(u, sigma):
    assert quantile(noise.karras_uniform(), sigma) == pytest.approx(u, abs=1e-3)


def test_sid_law_ends_at_24():
    assert quantile(noise.karras_uniform(high=0.8), 24.4) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ('stds', 'sigma'), [(-2, 0.0273), (-1, 0.0907), (0, 0.301), (1, 1.0), (2, 3.32)]
)
def test_lognormal_quantiles(stds, sigma):
    expected = {-2: 0.02275, -1: 0.15866, 0: 0.5, 1: 0.84134, 2: 0.97725}[stds]
    assert quantile(noise.lognormal(), sigma) == pytest.approx(expected, abs=1e-3)


def test_uniform_time_is_uniform_in_flow_time():
    sigma = noise.uniform_time(0.2, 0.6).sample(jax.random.key(0), 50_000)
    t = np.asarray(sigma / (1 + sigma))
    assert 0.2 <= t.min() and t.max() <= 0.6 + 1e-6
    np.testing.assert_allclose(np.quantile(t, [0.25, 0.5, 0.75]), [0.3, 0.4, 0.5], atol=5e-3)


@pytest.mark.parametrize(
    ('make', 'options'),
    [
        (noise.lognormal, {'std': 0.0}),
        (noise.loguniform, {'sigma_min': 0.0}),
        (noise.loguniform, {'sigma_min': 2.0, 'sigma_max': 1.0}),
        (noise.karras_uniform, {'low': 0.5, 'high': 0.5}),
        (noise.karras_uniform, {'high': 1.1}),
        (noise.karras_uniform, {'sigma_max': np.nan}),
        (noise.uniform_time, {'low': 0.0}),
        (noise.uniform_time, {'high': 1.0}),
        (noise.u_shaped_time, {'steepness': 0.0}),
        (noise.u_shaped_time, {'steepness': 41.0}),
        (noise.u_shaped_time, {'edge': 0.5}),
        (noise.levels, {'sigmas': (1.0, 2.0)}),
        (noise.even_time_grid, {'steps': 0}),
        (noise.even_time_grid, {'sigma_max': np.inf}),
        (noise.karras_grid, {'steps': 0}),
        (noise.karras_grid, {'steps': 2.5}),
        (noise.karras_grid, {'rho': 0.0}),
        (noise.karras_grid, {'sigma_min': -1.0}),
        (noise.loguniform_grid, {'steps': 0}),
        (noise.loguniform_grid, {'sigma_min': 80.0}),
        (noise.vp_linear, {'beta_min': 0.0}),
        (noise.vp_linear, {'beta_min': 2.0, 'beta_max': 1.0}),
        (noise.discrete, {'alphas_cumprod': [0.9]}),
        (noise.discrete, {'alphas_cumprod': [0.5, 0.9]}),
        (noise.discrete, {'alphas_cumprod': [1.0, 0.5]}),
        (noise.discrete, {'alphas_cumprod': [0.9, 0.0]}),
        (noise.discrete, {'alphas_cumprod': [[0.9, 0.5]]}),
        (noise.flow, {'shift': 0.0}),
        (noise.betas, {'beta_schedule': 'sigmoid'}),
        (noise.betas, {'beta_start': 0.02}),
        (noise.betas, {'beta_end': 1.0}),
        (noise.betas, {'num_train_timesteps': 1}),
        (noise.betas, {'trained_betas': [0.1, 0.2]}),
        (noise.betas, {'zero_terminal_snr': 'keep'}),
    ],
)
def test_noise_refuses(make, options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=name):
        make(**options)


@pytest.mark.parametrize('name', ['karras', 'loguniform', 'linear'])
@pytest.mark.parametrize('steps', [1, 2, 18, 40])
def test_grid_falls_to_zero(name, steps):
    grid = noise.GRIDS[name](steps, sigma_min=0.01, sigma_max=50.0)
    assert grid.shape == (steps + 1,) and grid.dtype == np.float64
    assert grid[0] == pytest.approx(50, rel=1e-12) and grid[-1] == 0
    assert np.all(np.diff(grid) < 0)
    if steps > 1:
        assert grid[-2] == pytest.approx(0.01, rel=1e-9)


def test_spacing_of_the_grids():
    np.testing.assert_allclose(np.diff(noise.karras_grid(9)[:-1] ** (1 / 7), 2), 0, atol=1e-12)
    np.testing.assert_allclose(np.diff(noise.karras_grid(9, rho=1.0)[:-1], 2), 0, atol=1e-10)
    np.testing.assert_allclose(np.diff(np.log(noise.loguniform_grid(9)[:-1]), 2), 0, atol=1e-12)


def test_weightings():
    sigma, sigma_data = levels(), 0.5
    t = sigma / (1 + sigma)
    expected = {
        'edm': (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2,
        'unit': np.ones(7),
        'eps': 1 / sigma**2,
        'flow': 1 / t**2,
        'truncated_snr': np.maximum(1 / sigma**2, 1),
    }
    assert noise.WEIGHTINGS.keys() == expected.keys()
    for name, weighting in noise.WEIGHTINGS.items():
        np.testing.assert_allclose(weighting(sigma, sigma_data), expected[name], rtol=1e-5)


# Schedules.


def table(steps=1000):
    """DDPM's table of alpha^2."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, steps))


ARGUMENTS = {'discrete': (table(),)}
TABLES = ('discrete', 'betas')
VARIANCE_PRESERVING = ('vp_linear', 'cosine', *TABLES)


def schedule(name):
    return noise.SCHEDULES[name](*ARGUMENTS.get(name, ()))


def times(name):
    return np.linspace(1e-3, 0.999, 50) * (999 if name in TABLES else 1)


@pytest.mark.parametrize('name', noise.SCHEDULES)
def test_time_inverts_the_noise_ratio(name, x64):
    chosen, t = schedule(name), times(name)
    ratio = chosen.sigma(t) / chosen.alpha(t)
    assert np.all(np.diff(np.asarray(ratio)) > 0)
    np.testing.assert_allclose(chosen.time(ratio), t, rtol=1e-9)
    inside = jnp.asarray(np.geomspace(0.02, 50, 30))
    back = chosen.sigma(chosen.time(inside)) / chosen.alpha(chosen.time(inside))
    np.testing.assert_allclose(back, inside, rtol=1e-9)


@pytest.mark.parametrize('name', noise.SCHEDULES)
def test_time_in_float32(name):
    chosen, sigma = schedule(name), jnp.asarray(np.geomspace(0.02, 50, 30), jnp.float32)
    t = chosen.time(sigma)
    np.testing.assert_allclose(chosen.sigma(t) / chosen.alpha(t), sigma, rtol=3e-4)


@pytest.mark.parametrize('name', VARIANCE_PRESERVING)
def test_variance_preserving(name, x64):
    chosen, t = schedule(name), times(name)
    np.testing.assert_allclose(chosen.alpha(t) ** 2 + chosen.sigma(t) ** 2, 1, rtol=1e-12)


def test_every_schedule_is_variance_preserving_or_linear(x64):
    assert set(noise.SCHEDULES) == {*VARIANCE_PRESERVING, 'flow'}
    t = times('flow')
    np.testing.assert_allclose(noise.flow().alpha(t) + noise.flow().sigma(t), 1, rtol=1e-12)


def test_values_of_the_schedules(x64):
    linear, t = noise.vp_linear(0.2, 10.0), np.linspace(0.01, 1, 9)
    integral = 0.2 * t + 0.5 * (10 - 0.2) * t**2
    np.testing.assert_allclose(linear.alpha(t) ** 2, np.exp(-integral), rtol=1e-12)
    np.testing.assert_allclose(noise.cosine().alpha(t) ** 2, np.cos(np.pi / 2 * t) ** 2, rtol=1e-12)
    at = np.array([0, 10, 500, 999])
    np.testing.assert_allclose(noise.discrete(table()).alpha(at) ** 2, table()[at], rtol=1e-12)
    np.testing.assert_allclose(noise.betas().alpha(at) ** 2, table()[at], rtol=1e-12)


def ratio(chosen, t):
    t = np.asarray(t, np.float64)
    return np.asarray(chosen.sigma(t) / chosen.alpha(t))


STABLE = {'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.012}
# sigma/alpha at times of diffusers 0.42.1's DDPMScheduler, whose tables are float32.
PUBLISHED = [
    ({}, (0, 499, 799, 899, 980, 999), (0.0100, 3.424, 25.53, 60.27, 130.1, 157.4)),
    (STABLE, (0, 20, 249, 399, 499), (0.0292, 0.138, 0.6932, 1.1606, 1.6129)),
    (STABLE, (625, 749, 799, 980, 999), (2.5017, 4.0817, 5.0878, 13.043, 14.6146)),
    ({'beta_schedule': 'squaredcos_cap_v2'}, (0, 500, 998), (0.0064271, 1.0155508, 641.66)),
    (
        {**STABLE, 'zero_terminal_snr': 'floor'},
        (500, 997, 998, 999),
        (1.774558, 1124.5, 2254, 4096),
    ),
    ({**STABLE, 'zero_terminal_snr': 'drop'}, (0, 500, 998), (0.029167, 1.774558, 2254)),
]


@pytest.mark.parametrize('options, t, expected', PUBLISHED)
def test_tables_of_betas_are_the_published_ones(options, t, expected, x64):
    chosen = noise.betas(**options)
    np.testing.assert_allclose(ratio(chosen, t), expected, rtol=5e-3 if t[0] == 0 else 3e-4)
    assert chosen.span == (0, 998 if options.get('zero_terminal_snr') == 'drop' else 999)


def test_betas_that_were_trained_make_their_own_table(x64):
    chosen = noise.betas(num_train_timesteps=3, trained_betas=(0.1, 0.2, 0.5))
    np.testing.assert_allclose(chosen.alpha(np.arange(3.0)) ** 2, [0.9, 0.72, 0.36], rtol=1e-12)


@pytest.mark.parametrize('shift', [1.0, 3.0])
def test_a_shift_of_the_flow_multiplies_sigma(shift, x64):
    t = times('flow')
    np.testing.assert_allclose(ratio(noise.flow(shift), t), shift * t / (1 - t), rtol=1e-12)
    np.testing.assert_allclose(noise.flow(shift).time(shift * t / (1 - t)), t, rtol=1e-12)


# Denoisers.


def network(function):
    """A `Network` without parameters: function(x, c_noise, label) -> out."""
    return Network(
        lambda key, x, c_noise, label: {'shapes': (x.shape, c_noise.shape)},
        lambda params, x, c_noise, label, key=None: (
            function(x, c_noise, label),
            (c_noise,),
        ),
    )


def test_preconditioning_formula(x64):
    """EDM's table 1, and that of a network of zeros: the best linear denoiser of data with std
    sigma_data."""
    x, sigma, sigma_data = points(), levels(), 0.7
    denoiser = precondition(
        network(lambda x, c_noise, label: jnp.tanh(x) + c_noise[:, None]), sigma_data=sigma_data
    )
    total = np.sqrt(sigma**2 + sigma_data**2)[:, None]
    inner = np.tanh(x / total) + np.log(sigma)[:, None] / 4
    expected = sigma_data**2 / total**2 * x + sigma[:, None] * sigma_data / total * inner
    x0, features = denoiser.apply({}, x, sigma, LABELS)
    np.testing.assert_allclose(x0, expected, rtol=1e-12)
    np.testing.assert_allclose(features[0], np.log(sigma) / 4, rtol=1e-12)
    zero = precondition(network(lambda x, c_noise, label: 0 * x), sigma_data=sigma_data)
    wiener = gaussian((0.0, 0.0), sigma_data).denoise(x, sigma)
    np.testing.assert_allclose(zero.apply({}, x, sigma, LABELS)[0], wiener, rtol=1e-12)


@pytest.mark.parametrize('sigma', [0.002, 0.1, 1.0, 80.0])
def test_preconditioning_has_unit_variance(sigma, x64):
    """Of the network's input and of its target (x0 - c_skip x)/c_out; and the edm weight makes the
    loss' scale 1."""
    n, sigma_data = 100_000, 0.5
    rng = np.random.default_rng(0)
    x0 = sigma_data * rng.normal(size=(n, 1))
    x = x0 + sigma * rng.normal(size=(n, 1))
    seen = []
    denoiser = precondition(
        network(lambda x, c_noise, label: seen.append(x) or 0 * x), sigma_data=sigma_data
    )
    arguments = jnp.full(n, sigma), jnp.zeros(n, jnp.int32)
    skip = denoiser.apply({}, jnp.asarray(x), *arguments)[0]
    ones = precondition(network(lambda x, c_noise, label: jnp.ones_like(x)), sigma_data=sigma_data)
    c_out = float((ones.apply({}, jnp.asarray(x), *arguments)[0] - skip)[0, 0])
    # The standard error of a variance is sqrt(2/n) = .0045.
    assert np.var(seen[0]) == pytest.approx(1, abs=0.025)
    assert np.var((x0 - np.asarray(skip)) / c_out) == pytest.approx(1, abs=0.025)
    assert float(noise.WEIGHTINGS['edm'](sigma, sigma_data)) * c_out**2 == pytest.approx(
        1, rel=1e-9
    )


def test_preconditioning_broadcasts_over_images_and_passes_through():
    x = jnp.ones((3, 4, 4, 2))
    called = {}

    def apply(params, x, c_noise, condition, key=None):
        called.update(params=params, condition=condition, key=key)
        return x, ()

    denoiser = precondition(
        Network(lambda *given: [g if g is None else jnp.shape(g) for g in given], apply)
    )
    assert denoiser.init(None, x, jnp.zeros(3, jnp.int32)) == [None, (3, 4, 4, 2), (3,), (3,)]
    out, _ = denoiser.apply('params', x, jnp.asarray([0.1, 1.0, 10.0]), 'condition', key='key')
    assert out.shape == x.shape
    assert called == {'params': 'params', 'condition': 'condition', 'key': 'key'}


@pytest.mark.parametrize('sigma_data', [0.0, -1.0, np.nan])
def test_preconditioning_refuses(sigma_data):
    with pytest.raises(ValueError, match='sigma_data'):
        precondition(network(lambda x, c_noise, label: x), sigma_data=sigma_data)


def perfect(prediction, alpha, sigma, x_t, x0):
    """What a perfect network predicts: the posterior mean of its target, given that of x0."""
    eps = (x_t - alpha * x0) / sigma
    return {
        'x0': x0,
        'eps': eps,
        'v': alpha * eps - sigma * x0,
        'flow': eps - x0,
        'reverse_flow': x0 - eps,
    }[prediction]


@pytest.mark.parametrize('name', noise.SCHEDULES)
@pytest.mark.parametrize('prediction', PREDICTIONS)
def test_perfect_network_is_the_oracle(prediction, name, x64):
    """Under any schedule, with x_t = alpha x0 + sigma eps, E[x0 | x_t] computed in x_t's own
    coordinates."""
    chosen, time = schedule(name), {'time_scale': -3.0, 'time_offset': 0.5}
    mean, std = np.array([0.3, -0.6]), 0.4

    def predict(x_t, c_noise, label):
        t = (c_noise - time['time_offset']) / time['time_scale']
        alpha, sigma = chosen.alpha(t)[:, None], chosen.sigma(t)[:, None]
        x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x_t - alpha * mean)
        return perfect(prediction, alpha, sigma, x_t, x0)

    denoiser = from_prediction(network(predict), prediction=prediction, schedule=chosen, **time)
    x, sigma = points(), levels()
    x0, features = denoiser.apply({}, x, sigma, LABELS)
    np.testing.assert_allclose(x0, gaussian(mean, std).denoise(x, sigma), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(features[0], 0.5 - 3 * chosen.time(sigma), rtol=1e-12)


def test_a_perfect_sit_is_the_oracle(x64):
    """Its time is 0 at noise and 1 at data, x_t = t x0 + (1 - t) eps, and it predicts dx_t/dt."""
    mean, std = np.array([0.3, -0.6]), 0.4

    def velocity(x_t, t, label):
        t = t[:, None]
        noisy = t**2 * std**2 + (1 - t) ** 2
        # E[x0 - eps | x_t], by the covariance of each with x_t.
        return mean + (t * std**2 - (1 - t)) / noisy * (x_t - t * mean)

    sit = {'prediction': 'reverse_flow', 'time_scale': -1.0, 'time_offset': 1.0}
    denoiser = from_prediction(network(velocity), schedule=noise.flow(), **sit)
    x, sigma = points(), levels()
    x0, _ = denoiser.apply({}, x, sigma, LABELS)
    np.testing.assert_allclose(x0, gaussian(mean, std).denoise(x, sigma), rtol=1e-8, atol=1e-10)


def test_unknown_prediction():
    with pytest.raises(ValueError, match="'score'.*x0, eps, v, flow"):
        from_prediction(
            network(lambda x, c_noise, label: x), prediction='score', schedule=noise.flow()
        )


def guided_gaussians():
    """p(x | label 0) = N(1, 1) and p(x) = N(0, 1)."""
    conditional, unconditional = gaussian((1.0,), 1.0), gaussian((0.0,), 1.0)

    def apply(params, x, sigma, condition, key=None):
        choose = condition['label'][:, None] < 0
        x0 = jnp.where(choose, unconditional.denoise(x, sigma), conditional.denoise(x, sigma))
        return x0, (jnp.where(choose, -1.0, 1.0),)

    return Denoiser(lambda key, x, label: 'params', apply)


def test_guidance_of_one_is_the_denoiser_itself():
    denoiser = guided_gaussians()
    assert guide(denoiser, 1) is denoiser and guide(denoiser, 1.0) is denoiser


@pytest.mark.parametrize('scale', [0.0, 0.5, 1.75, 7.5])
def test_guidance_extrapolates(scale, x64):
    denoiser, x, sigma = guided_gaussians(), points(7, 1), levels()
    label = {'label': jnp.zeros(7, jnp.int32)}
    nothing = {'label': jnp.full(7, -1)}
    conditional, _ = denoiser.apply({}, x, sigma, label)
    unconditional, _ = denoiser.apply({}, x, sigma, nothing)
    guided = guide(denoiser, scale)
    x0, features = guided.apply({}, x, sigma, label)
    np.testing.assert_allclose(
        x0, conditional + (scale - 1) * (conditional - unconditional), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_array_equal(features[0], np.ones((7, 1)))
    assert guided.init(None, x, label) == 'params'
    # A sample without a label has nothing to be guided by.
    np.testing.assert_allclose(
        guided.apply({}, x, sigma, nothing)[0], unconditional, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize('scale', [1.0, 2.0, 3.5])
def test_fixed_point_of_guided_distribution_matching(scale, x64):
    """A student N(m, 1) comes to rest at m = scale: guidance moves the mean beyond the
    conditional's."""
    teacher, sigma = guide(guided_gaussians(), scale), 0.8
    z, mass = np.polynomial.hermite_e.hermegauss(20)
    mass = jnp.asarray(np.outer(mass, mass).ravel() / (2 * np.pi))
    z, eps = (jnp.asarray(grid.reshape(-1, 1)) for grid in np.meshgrid(z, z))
    level, label = jnp.full(len(mass), sigma), {'label': jnp.zeros(len(mass), jnp.int32)}

    def gradient(m):
        def loss(moving):
            x_t = m + z + sigma * eps
            d_fake = gaussian((m,), 1.0).denoise(x_t, level)
            d_teacher, _ = teacher.apply({}, x_t, level, label)
            return jnp.sum(mass * losses.score_gap(moving + z, d_teacher, d_fake, level**-2))

        return float(jax.grad(loss)(m))

    assert abs(gradient(scale)) < 1e-12
    # Elsewhere it is the gradient of (m - scale)^2 / (2 (1 + sigma^2)).
    for m in (scale - 0.5, scale + 2.0):
        assert gradient(m) == pytest.approx((m - scale) / (1 + sigma**2), rel=1e-9)


def test_bound_denoiser():
    denoise = bind(guided_gaussians(), {}, {'label': jnp.asarray([0, -1])})
    x, sigma = jnp.zeros((2, 1)), jnp.ones(2)
    np.testing.assert_allclose(denoise(x, sigma), [[0.5], [0.0]], rtol=1e-6)
