"""The divergences really differ: a student too poor for its target shows which one it was trained
with.

One Gaussian x = m + s z against two modes at -1 and 1. Everything is exact: teacher, fake score
(the student is one Gaussian) and density ratio; only the step is the library's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fdistill import divergences
from fdistill.diffusion import noise
from fdistill.diffusion.oracle import GaussianMixture, mixture
from fdistill.methods import losses

STEPS, BATCH = 600, 1024
MEAN, STD = 0.2, np.sqrt(0.25**2 + 1 - 0.2**2)  # of the two modes


@functools.cache
def trained(divergence, mean=-0.5, std=0.5, ratio_high=1e4):
    """(m, s) of the student at the end."""
    h = divergences.weight(divergences.get(divergence))
    law, p = noise.loguniform(0.02, 0.1), mixture([0.4, 0.6], [[-1.0], [1.0]], 0.25)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, STEPS))

    def loss(params, key):
        key_z, key_sigma, key_eps = jax.random.split(key, 3)
        m, s = params[0], jnp.exp(params[1])
        x = m + s * jax.random.normal(key_z, (BATCH, 1))
        sigma = law.sample(key_sigma, BATCH)
        x_t = x + sigma[:, None] * jax.random.normal(key_eps, x.shape)
        q = GaussianMixture(
            jnp.ones(1), jax.lax.stop_gradient(m)[None, None], jax.lax.stop_gradient(s)[None]
        )
        logits = (p.log_prob(x_t, sigma) - q.log_prob(x_t, sigma))[:, None]
        r = losses.ratio_from_logits(logits, low=1 / ratio_high, high=ratio_high)
        weight = h(r) / sigma**2
        return jnp.mean(losses.score_gap(x, p.denoise(x_t, sigma), q.denoise(x_t, sigma), weight))

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.asarray([mean, np.log(std)], jnp.float32)
    keys = jax.random.split(jax.random.key(0), STEPS)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(
        (params, optimizer.init(params))
    )
    return float(params[0]), float(jnp.exp(params[1]))


@pytest.mark.parametrize('divergence', ['reverse_kl', 'softened_reverse_kl', 'alpha(-0.5)'])
def test_mode_seeking_divergences_collapse(divergence):
    """Onto the mode nearer to the start, with its mean and its standard deviation."""
    mean, std = trained(divergence)
    assert mean == pytest.approx(-1, abs=0.02)
    assert std == pytest.approx(0.25, abs=0.02)


def test_reverse_kl_takes_the_other_mode_from_the_other_side():
    mean, std = trained('reverse_kl', mean=0.5)
    assert mean == pytest.approx(1, abs=0.02)
    assert std == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ('divergence', 'std'),
    [('forward_kl', STD), ('js', 0.997), ('squared_hellinger', 0.976), ('jeffreys', 0.878)],
)
def test_covering_divergences_cover(divergence, std):
    """Both modes; forward KL of a Gaussian matches the moments exactly, the others lie below it, in
    this order."""
    mean, actual = trained(divergence)
    assert mean == pytest.approx(MEAN, abs=0.06)
    assert actual == pytest.approx(std, abs=0.03)


def test_order_of_the_divergences():
    names = ('reverse_kl', 'jeffreys', 'squared_hellinger', 'js', 'forward_kl')
    stds = [trained(name)[1] for name in names]
    assert stds == sorted(stds)
    assert stds[0] < 0.35 and 0.95 <= stds[-1] <= 1.06


def test_clipping_the_ratio_pulls_towards_reverse_kl():
    assert trained('forward_kl', ratio_high=10.0)[1] < trained('forward_kl')[1] - 0.03
    # r clipped to 1 leaves no weight at all.
    assert trained('forward_kl', ratio_high=1.0) == pytest.approx(trained('reverse_kl'), abs=1e-3)
