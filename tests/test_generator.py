"""Generators of few steps: they sample by the sampler of their name, and are trained on what
sampling makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fdistill.diffusion import samplers
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.oracle import mixture
from fdistill.methods.generator import Steps, few_step, one_step, spread, student
from fdistill.training.lanes import Number

LEVELS = (2.5, 0.9, 0.3)
MEAN, STD = np.array([0.3, -0.6]), 0.4
KEY = jax.random.key(3)


def batch(size, dimension=2):
    return {'x': jnp.zeros((size, dimension)), 'condition': {}}


def gaussian():
    return mixture([1.0], [MEAN], STD).denoiser()


def made_of(function):
    """A `Denoiser` of function(params, x, sigma[B, 1])."""
    return Denoiser(
        lambda key, x, condition: {},
        lambda params, x, sigma, condition, key=None: (function(params, x, sigma[:, None]), ()),
    )


def test_levels_decide_which_student_it_is():
    assert [student(gaussian(), Steps(2.5, LEVELS[1:n])).nfe for n in (1, 2, 3)] == [1, 2, 3]
    assert student(gaussian(), Steps(2.5)).trajectory is None
    noise = jax.random.normal(KEY, (5, 2))
    np.testing.assert_array_equal(
        student(gaussian(), Steps(2.5, (0.9, 0.3))).sample({}, noise, {}),
        few_step(gaussian(), LEVELS, 0.0).sample({}, noise, {}),
    )


def test_samples_are_those_of_consistency_sampling():
    """And of the formula, step by step; a sample is a function of its own noise."""
    generator, noise = few_step(gaussian(), LEVELS, 0.0), jax.random.normal(KEY, (7, 2))
    made = jax.jit(generator.sample)({}, noise, {})
    keys, sigmas = samplers.keys_of(noise), np.array([*LEVELS, 0.0])
    denoise = mixture([1.0], [MEAN], STD).denoise
    wanted = samplers.consistency(denoise, sigmas[0] * noise, sigmas, keys)
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-6)

    again, x, estimates = samplers.draws(keys, noise), LEVELS[0] * noise, []
    for step, (now, then) in enumerate(zip(sigmas, sigmas[1:])):
        estimates.append(denoise(x, now))
        x = estimates[-1] + then * again(step)
    np.testing.assert_allclose(made, x, rtol=1e-5, atol=1e-6)
    path = generator.trajectory({}, noise, {})
    np.testing.assert_allclose(path[0], made, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(path[1], jnp.stack(estimates), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(generator.sample({}, noise[2:4], {}), made[2:4], rtol=1e-5)


def moments():
    """Mean [2] and variance of x_k and of D_k at each level, in closed form: the oracle's denoiser
    of one Gaussian is linear."""
    mean, variance, starts, estimates = np.zeros(2), 0.0, [], []
    for sigma in LEVELS:
        variance += sigma**2
        starts.append((mean, variance))
        share = STD**2 / (STD**2 + sigma**2)
        mean, variance = share * mean + (1 - share) * MEAN, share**2 * variance
        estimates.append((mean, variance))
    return starts, estimates


def assert_moments(x, mean, variance):
    """Within five standard errors."""
    x = np.asarray(x, np.float64)
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / len(x)))
    assert np.all(np.abs(x.var(0) / variance - 1) < 5 * np.sqrt(2 / len(x)))


def test_training_starts_from_what_sampling_sees():
    """Two moments of the network's input at each level, and of what it makes of it."""
    seen, oracle = [], gaussian()

    def apply(params, x, sigma, condition, key=None):
        seen.append((x, sigma))
        return oracle.apply(params, x, sigma, condition)

    generator = few_step(oracle._replace(apply=apply), LEVELS, 0.0)
    made = generator.draw(KEY, {}, batch(60_000))
    start, sigma = map(
        np.asarray, seen[-1]
    )  # Of the step with gradient; what is scanned is traced.
    sampled = generator.trajectory({}, jax.random.normal(KEY, (20_000, 2)), {})[1]
    for level, of_start, of_estimate, estimates in zip(LEVELS, *moments(), sampled):
        chosen = np.isclose(sigma, level)
        assert_moments(start[chosen], *of_start)
        assert_moments(made[chosen], *of_estimate)
        assert_moments(estimates, *of_estimate)


@pytest.mark.parametrize('last', [0.0, 0.7, 1.0])
def test_steps_are_drawn_evenly_but_for_the_share_of_the_last(last):
    generator = few_step(made_of(lambda params, x, sigma: sigma + 0 * x), LEVELS, last)
    made = np.asarray(jax.jit(generator.draw)(KEY, {}, batch(30_000, 1)))[:, 0]
    counts = np.array([np.isclose(made, level).sum() for level in LEVELS])
    share = (1 - last) / 3 + last * np.array([0, 0, 1])
    assert counts.sum() == 30_000
    assert np.all(np.abs(counts - 30_000 * share) <= 5 * np.sqrt(30_000 * share * (1 - share)))


def test_gradient_is_that_of_the_last_step_alone():
    """D = a x: through the last step alone the derivative of a x_k is x_k."""
    generator = few_step(made_of(lambda a, x, sigma: a * x), LEVELS, 0.0)
    made = generator.draw(KEY, 0.7, batch(50))
    _, slope = jax.jvp(lambda a: generator.draw(KEY, a, batch(50)), (0.7,), (1.0,))
    np.testing.assert_allclose(slope, made / 0.7, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda a: jnp.sum(generator.draw(KEY, a, batch(50)))))(0.7)
    np.testing.assert_allclose(gradient, jnp.sum(made) / 0.7, rtol=1e-4)


def test_draws_under_jit_vmap_and_on_several_devices():
    generator, keys = few_step(gaussian(), LEVELS, 0.0), jax.random.split(KEY, 3)
    alone = jnp.stack([generator.draw(key, {}, batch(16)) for key in keys])

    def draw(key):
        return generator.draw(key, {}, batch(16))

    np.testing.assert_allclose(jax.jit(draw)(keys[0]), alone[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(draw)(keys), alone, rtol=1e-5, atol=1e-6)
    split = NamedSharding(jax.make_mesh((8,), ('data',)), PartitionSpec('data'))
    spread = jax.device_put(batch(16), split)
    made = jax.jit(generator.draw, out_shardings=split)(keys[0], {}, spread)
    np.testing.assert_allclose(made, alone[0], rtol=1e-5, atol=1e-6)


def test_settings_may_be_those_of_a_lane():
    """`sigma_init` and `last` are continuous: lanes of one program may differ in them."""
    values, shares = (2.5, 1.7), (0.0, 0.9)

    def draw(sigma_init, last):
        generator = student(gaussian(), Steps(sigma_init, (0.9, 0.3), last))
        return generator.draw(KEY, {}, batch(9))

    lanes = jax.jit(jax.vmap(lambda n: draw(Number(values, n), Number(shares, n))))(jnp.arange(2))
    alone = jnp.stack([*map(draw, values, shares)])
    np.testing.assert_allclose(lanes, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    'sigma_init, levels, last, message',
    [
        (2.5, (2.5,), 0, r'sigma_init=2.5, levels=\(2.5,\): need .* strictly falling'),
        (2.5, (3.0, 1.0), 0, 'strictly falling from below sigma_init'),
        (2.5, (0.5, 0.5), 0, 'strictly falling'),
        (2.5, (0.5, 0.0), 0, '> 0'),
        (2.5, (float('nan'),), 0, 'strictly falling'),
        (0.0, (), 0, 'sigma_init=0.0: must be > 0'),
        (float('inf'), (0.5,), 0, 'sigma_init=inf: must be > 0 and finite'),
        (2.5, (0.5,), 1.1, 'last=1.1: must lie in'),
    ],
)
def test_bad_levels_are_one_clear_line(sigma_init, levels, last, message):
    with pytest.raises(ValueError, match=message) as caught:
        student(gaussian(), Steps(sigma_init, levels, last))
    assert '\n' not in str(caught.value)


def test_one_step_is_the_first_step():
    noise = jax.random.normal(KEY, (5, 2))
    _, estimates = few_step(gaussian(), LEVELS, 0.0).trajectory({}, noise, {})
    first = one_step(gaussian(), LEVELS[0]).sample({}, noise, {})
    np.testing.assert_allclose(estimates[0], first, rtol=1e-5, atol=1e-6)


def test_spread_sees_a_collapse_whatever_its_contrast():
    """Of samples that are all one image the deviation is 0; else it is the elements' own."""
    data = np.random.default_rng(0).normal(0.5, [1.0, 3.0], (4000, 2)).astype(np.float32)
    found = spread(jnp.tile(jnp.array([[-1.0, 1.5]]), (4000, 1)), {'x': data})
    assert found['sample_mean'] == 0.25 and found['sample_std'] < 1e-6
    assert found['data_std'] == pytest.approx(5**0.5, rel=0.03)
    assert spread(jnp.asarray(data), {'x': data})['sample_std'] == found['data_std']


def test_spread_carries_no_gradient():
    gradient = jax.grad(lambda x: spread(x, batch(4))['sample_std'])(jnp.ones((4, 2)).at[0].set(3))
    np.testing.assert_array_equal(gradient, 0)
