"""SuperDiff against exact densities of Gaussian mixtures."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdistill.diffusion import noise, samplers
from fdistill.diffusion.oracle import mixture
from fdistill.diffusion.superposition import superpose

KEY = jax.random.key(3)


def start(p, n, sigma, dimension=2):
    return p.sample(jax.random.key(1), n) + sigma * jax.random.normal(
        jax.random.key(2), (n, dimension)
    )


def alone(p, x, grid):
    """(x0, log q, log q with the square's sign wrong) of one model's reverse SDE, written as a
    loop."""
    draw, log_q, wrong = samplers.draws(KEY, x), 0.0, 0.0

    @jax.jit
    def step(x, n, sigma, variance):
        score = p.score(x, sigma)
        dx = variance * score + jnp.sqrt(variance) * draw(n)
        return x + dx, jnp.sum(score * dx, 1), 0.5 * variance * jnp.sum(score**2, 1)

    for n in range(np.count_nonzero(grid[1:])):
        x, along, square = step(x, n, grid[n], grid[n] ** 2 - grid[n + 1] ** 2)
        log_q, wrong = log_q + along - square, wrong + along + square
    return x if grid[-1] else p.denoise(x, grid[-2]), log_q, wrong


def left():
    return mixture([0.5, 0.5], [[-2.0, 1.0], [-2.0, -1.0]], 0.3)


def right():
    return mixture([0.2, 0.8], [[2.0, 1.5], [1.5, -1.0]], 0.3)


def test_density_estimator_converges_with_the_root_of_the_steps(x64):
    """RMS error of log q_i along the path against the exact densities: halved where steps are four
    times as many."""
    p, other = (
        mixture([1.0], [[0.5, 0.0]], 0.5),
        mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.3]], 0.4),
    )
    x = start(p, 400, 80.0)

    def error(steps):
        grid = noise.karras_grid(steps + 1, sigma_min=0.2)[:-1]
        end, log_q = jax.jit(lambda x: superpose((p.denoise, other.denoise), x, grid, KEY))(x)
        exact = jnp.stack([q.log_prob(end, 0.2) - q.log_prob(x, 80.0) for q in (p, other)])
        return np.sqrt(np.mean((log_q - exact) ** 2, axis=1))

    few, many = error(400), error(1600)
    np.testing.assert_allclose(few / many, 2, atol=0.3)
    assert np.all(many < 0.3)


@pytest.mark.parametrize('steps', [50, 200])
def test_the_sign_of_the_square_matters(steps, x64):
    """Added, as in one published script, it leaves an error that no number of steps removes."""
    p, grid = mixture([1.0], [[0.5, 0.0]], 0.5), noise.karras_grid(steps + 1, sigma_min=0.2)[:-1]
    x = start(p, 100, 80.0)
    end, log_q, wrong = alone(p, x, grid)
    exact = p.log_prob(end, 0.2) - p.log_prob(x, 80.0)
    assert np.sqrt(np.mean((log_q - exact) ** 2)) < 25 / math.sqrt(steps)
    assert np.sqrt(np.mean((wrong - exact) ** 2)) > 9


def test_or_is_a_sample_of_one_of_them_with_the_shares_of_the_weights():
    """Disjoint mixtures, 30 to 70: modes have the shares of the joint mixture."""
    weights = np.array([0.3, 0.7])
    x = 80 * jax.random.normal(jax.random.key(0), (20_000, 2))
    grid = noise.karras_grid(400, sigma_min=0.02)
    solve = functools.partial(
        superpose, (left().denoise, right().denoise), operator='or', bias=np.log(weights)
    )
    x0, log_q = jax.jit(lambda x: solve(x, grid, KEY))(x)
    means = np.concatenate([left().means, right().means])
    mode = np.argmin(np.linalg.norm(np.asarray(x0)[:, None] - means, axis=-1), axis=1)
    truth = np.concatenate([0.3 * np.asarray(left().weights), 0.7 * np.asarray(right().weights)])
    np.testing.assert_allclose(np.bincount(mode, minlength=4) / len(mode), truth, atol=0.03)
    # The estimate tells which of the two a sample is of.
    assert np.mean((np.asarray(log_q[1]) > np.asarray(log_q[0])) == (mode >= 2)) > 0.99


def test_or_of_temperature_one_is_the_score_of_the_mixture(x64):
    """One step with exact log q, given as the bias: D_mix of the joint mixture."""
    joint = mixture([0.15, 0.15, 0.14, 0.56], np.concatenate([left().means, right().means]), 0.3)
    x, sigma = 2 * jax.random.normal(jax.random.key(0), (9, 2)), 1.3
    for b in range(9):
        bias = jnp.log(jnp.asarray([0.3, 0.7])) + jnp.stack(
            [q.log_prob(x[b : b + 1], sigma)[0] for q in (left(), right())]
        )
        x0, log_q = superpose(
            (left().denoise, right().denoise), x[b : b + 1], [sigma, 0.0], KEY, bias=bias
        )
        np.testing.assert_allclose(x0, joint.denoise(x[b : b + 1], sigma), rtol=1e-9)
        np.testing.assert_array_equal(log_q, 0)


@pytest.mark.parametrize('lift', [0.0, 0.02])
@pytest.mark.parametrize('count', [2, 3])
def test_and_lets_all_densities_grow_alike(count, lift, x64):
    models = (left(), right(), mixture([1.0], [[0.0, 3.0]], 0.7))[:count]
    x, grid = (
        40 * jax.random.normal(jax.random.key(0), (50, 2)),
        noise.karras_grid(21, sigma_min=0.05, sigma_max=40),
    )
    _, log_q = superpose(tuple(m.denoise for m in models), x, grid, KEY, operator='and', lift=lift)
    np.testing.assert_allclose(log_q[:-1] - log_q[-1], 20 * lift, atol=1e-10)


def test_and_is_likely_under_both():
    """Two mixtures with one mode in common: that is where the samples are, and in float32 none is
    thrown out."""
    shared = [0.0, 2.0]
    one, two = (
        mixture([0.5, 0.5], [shared, [-2.0, -1.0]], 0.3),
        mixture([0.5, 0.5], [shared, [2.0, -1.0]], 0.3),
    )
    x = 80 * jax.random.normal(jax.random.key(0), (4000, 2))
    grid = noise.karras_grid(200, sigma_min=0.02)
    solve = jax.jit(
        lambda two, x: superpose((one.denoise, two.denoise), x, grid, KEY, operator='and')
    )
    x0, log_q = solve(two, x)
    near = np.linalg.norm(np.asarray(x0) - shared, axis=1) < 1.2
    assert near.mean() > 0.7
    np.testing.assert_allclose(log_q[0], log_q[1], atol=1e-3)
    # The others are where both are alike and low: between the modes that they do not share.
    assert np.all(np.abs(x0) < 4)
    only, _ = solve(one, x)
    assert np.mean(np.linalg.norm(np.asarray(only) - shared, axis=1) < 1.2) < 0.6


@pytest.mark.parametrize('operator', ['or', 'and'])
@pytest.mark.parametrize('rounding', [0, 2])
def test_one_model_twice_is_that_model(rounding, operator):
    """And so where the two differ by rounding, whose direction would else cost the noise along
    it."""
    p, grid = (
        mixture([0.3, 0.7], [[0.5, -0.5], [-1.0, 0.0]], 0.4),
        noise.karras_grid(30, sigma_min=0.02),
    )
    x, factor = start(p, 500, 80.0), 1 + rounding * np.finfo(np.float32).eps
    models = p.denoise, lambda x, sigma: factor * p.denoise(x, sigma)
    expected, exact, _ = alone(p, x, grid)
    x0, log_q = jax.jit(lambda x: superpose(models, x, grid, KEY, operator=operator, lift=0.1))(x)
    np.testing.assert_allclose(x0, expected, atol=2e-3)
    np.testing.assert_allclose(log_q, [exact] * 2, atol=2e-2)


@pytest.mark.parametrize('operator', ['or', 'and'])
def test_one_program_for_images_batches_and_vmap(operator, x64):
    """Eager, jitted with a traced grid, one sample alone and mapped: all the same numbers."""

    def one(x, sigma):
        return x / (1 + sigma[:, None, None, None] ** 2)

    def other(x, sigma):
        return 0.5 * jnp.tanh(one(x, sigma)) + 0.1

    x, keys, grid = (
        jax.random.normal(jax.random.key(0), (4, 3, 3, 1)),
        jax.random.split(KEY, 4),
        noise.karras_grid(4),
    )
    solve = functools.partial(superpose, (one, other), operator=operator)
    together, log_q = solve(x, grid, keys)
    assert together.shape == x.shape and log_q.shape == (2, 4)
    np.testing.assert_allclose(solve(x, grid, KEY)[0], together, rtol=1e-12)
    jitted = jax.jit(solve)
    for part in (slice(0, 4), slice(1, 2)):
        x0, grown = jitted(x[part], jnp.asarray(grid), keys[part])
        np.testing.assert_allclose(x0, together[part], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(grown, log_q[:, part], rtol=1e-9, atol=1e-9)
    mapped, grown = jax.vmap(lambda x, key: solve(x, grid, key))(x[:, None], keys[:, None])
    np.testing.assert_allclose(mapped[:, 0], together, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(grown[..., 0].T, log_q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ('count', 'options', 'message'),
    [
        (1, {}, '1 denoisers: a superposition needs at least two'),
        (2, {'operator': 'xor'}, "operator='xor': must be 'or' or 'and'"),
        (2, {'temperature': 0.0}, 'temperature=0.0: must be > 0'),
        (2, {'temperature': math.nan}, 'temperature=nan'),
        (2, {'temperature': math.inf}, 'temperature=inf: must be > 0 and finite'),
        (2, {'bias': [0.0]}, r'bias of shape \(1,\): need one number for each of the 2'),
        (2, {'lift': [0.0, 0.0], 'operator': 'and'}, r'lift of shape \(2,\): need one number'),
        (4, {'operator': 'and'}, '4 denoisers in 2 dimensions.*at most 3'),
        (2, {'sigmas': [1.0, 2.0]}, 'sigmas'),
        (2, {'key': None}, 'key=None'),
    ],
)
def test_refused(count, options, message):
    arguments = {'sigmas': [2.0, 1.0, 0.0], 'key': KEY} | options
    with pytest.raises(ValueError, match=message):
        superpose((left().denoise,) * count, jnp.ones((2, 2)), **arguments)
