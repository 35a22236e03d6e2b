"""Rewards: where they take a Gaussian student is known in closed form; preferences, likewise.

The student is x = m + s z, the teacher N(0, v), and V = v + sigma^2. Expectations over (z, eps) are
Gauss-Hermite sums of what the library's losses return per sample.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from quick import compiled

from fdistill import build, cli, divergences, methods
from fdistill.build import rewarding
from fdistill.data import sources
from fdistill.diffusion import samplers
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.diffusion.oracle import GaussianMixture
from fdistill.errors import UserError
from fdistill.evaluation.features import Trained
from fdistill.methods import METHODS, Context, generator, losses, rewards
from fdistill.methods.generator import Generator
from fdistill.methods.matching import Preference
from fdistill.networks.classifier import classifier
from fdistill.report import collect
from fdistill.training import checkpoint

V0, SLOPE, WEIGHT = 1.5, 0.7, 0.4
CURVATURE, CENTRE = 0.8, 0.9
REWARDS = {
    'linear': rewards.linear(direction=(SLOPE,)),
    'quadratic': rewards.quadratic(curvature=CURVATURE, centre=(CENTRE,)),
}


def gaussian(mean, std):
    return GaussianMixture(jnp.ones(1), jnp.reshape(mean, (1, 1)), jnp.reshape(std, (1,)))


# The student's loss without a reward, (x, d_teacher, d_fake, sigma[B]) -> [B].
REGULARISERS = {
    'kl': lambda x, d_teacher, d_fake, sigma: losses.score_gap(x, d_teacher, d_fake, sigma**-2),
    'squared_l2': lambda x, d_teacher, d_fake, sigma: losses.implicit(
        x, d_teacher, d_fake, sigma**-2, losses.squared_l2
    ),
    'pseudo_huber': lambda x, d_teacher, d_fake, sigma: losses.implicit(
        x, d_teacher, d_fake, sigma**-2, losses.pseudo_huber(0.5)
    ),
}


def gradient(regulariser, reward, at, sigma, weight=WEIGHT):
    """Of E regulariser - weight E r in (m, s), with the exact fake score."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(40)
    z, eps = (grid.reshape(-1, 1) for grid in np.meshgrid(nodes, nodes))
    mass = np.outer(mass, mass).ravel() / (2 * np.pi)

    def total(params):
        x = params[0] + params[1] * z
        x_t, levels = x + sigma * eps, jnp.full(len(x), sigma)
        d_teacher = gaussian(0.0, V0**0.5).denoise(x_t, levels)
        d_fake = gaussian(*jax.lax.stop_gradient(params)).denoise(x_t, levels)
        loss = REGULARISERS[regulariser](x, d_teacher, d_fake, levels)
        wish, _ = losses.rewarded(lambda x: REWARDS[reward].apply({}, x, {}), x)
        return jnp.sum(mass * (loss + weight * wish))

    return np.asarray(compiled(jax.grad(total))(jnp.asarray(at, jnp.float64)))


def optimum(regulariser, reward, sigma):
    """(m, s) where the teacher's price and the reward balance."""
    V, u, b = V0 + sigma**2, WEIGHT * SLOPE, WEIGHT * CURVATURE
    if (regulariser, reward) == ('kl', 'linear'):
        return u * V, V0**0.5
    if (regulariser, reward) == ('kl', 'quadratic'):
        return b * CENTRE * V / (1 + b * V), (V / (1 + b * V) - sigma**2) ** 0.5
    if (regulariser, reward) == ('squared_l2', 'linear'):
        return u * V**2 / 2, V0**0.5
    if (regulariser, reward) == ('squared_l2', 'quadratic'):
        # Q = s^2 + sigma^2 with 4 (1/Q - 1/V)/Q = b, and 2 m/(V Q) = b (centre - m).
        Q = 2 / (1 / V + (V**-2 + b) ** 0.5)
        return b * CENTRE / (2 / (V * Q) + b), (Q - sigma**2) ** 0.5
    return 0.5 * u * V / (1 - (u * V) ** 2) ** 0.5 * V, V0**0.5  # y/V of the score gap y


OPTIMA = [
    ('kl', 'linear', 0.5, 0.49),
    ('kl', 'linear', 1.0, 0.70),
    ('kl', 'linear', 2.0, 1.54),
    ('squared_l2', 'linear', 0.5, 0.42875),
    ('squared_l2', 'linear', 1.0, 0.875),
    ('squared_l2', 'linear', 2.0, 4.235),
    ('pseudo_huber', 'linear', 0.5, 0.4918423386),
    ('pseudo_huber', 'linear', 1.0, 1.2252450735),
    ('kl', 'quadratic', 0.5, None),
    ('kl', 'quadratic', 1.0, None),
    ('squared_l2', 'quadratic', 0.5, None),
    ('squared_l2', 'quadratic', 1.0, None),
]


@pytest.mark.parametrize(('regulariser', 'reward', 'sigma', 'mean'), OPTIMA)
def test_gradient_vanishes_at_the_closed_form(regulariser, reward, sigma, mean, x64):
    """DI++ is the KL divergence, DI* a distance of scores; without the reward the gradient is not
    zero there."""
    at = optimum(regulariser, reward, sigma)
    if mean is not None:
        assert at[0] == pytest.approx(mean, rel=1e-9)
    assert np.max(np.abs(gradient(regulariser, reward, at, sigma))) <= 1e-12
    assert np.max(np.abs(gradient(regulariser, reward, at, sigma, weight=0.0))) > 0.1


@pytest.mark.parametrize('sigma', [0.5, 1.0])
def test_a_steep_bowl_has_a_point_as_its_optimum(sigma, x64):
    """A curvature beyond 1/sigma^2 - 1/V pays for no width: the student shrinks at every width."""
    V = V0 + sigma**2
    weight = 1.1 * (sigma**-2 - 1 / V) / CURVATURE
    mean = weight * CURVATURE * CENTRE * V / (1 + weight * CURVATURE * V)
    for std in (0.05, 0.5, 2.0):
        of_mean, of_std = gradient('kl', 'quadratic', (mean, std), sigma, weight)
        assert of_std > 0
    # Less than that leaves some.
    assert gradient('kl', 'quadratic', (mean, 0.05), sigma, 0.8 * weight)[1] < 0


def test_a_bounded_distance_lets_a_student_run_away(x64):
    """weight |dr/dx| V >= 1: the gradient in m tends to 1/V - weight slope and never changes its
    sign."""
    sigma, V = 2.0, V0 + 4.0
    means = (10.0, 1e3, 1e5)
    slopes = [gradient('pseudo_huber', 'linear', (m, V0**0.5), sigma)[0] for m in means]
    assert all(slope < 0 for slope in slopes)
    assert slopes[-1] == pytest.approx(1 / V - WEIGHT * SLOPE, abs=1e-8)
    assert slopes[-1] == pytest.approx(-0.0981818182, abs=1e-8)
    assert gradient('squared_l2', 'linear', (10.0, V0**0.5), sigma)[0] > 0


def test_normalised_gradient_has_unit_size(x64):
    """The direction alone, over n; 0 where the reward is flat."""
    x = jax.random.normal(jax.random.key(0), (5, 2, 3))
    steep = jnp.asarray([0.0, 1e-3, 1.0, 1e3, -2.0])[:, None, None]

    def reward(x):
        return jnp.sum(jnp.sin(steep * x), axis=(1, 2))

    g = jax.grad(lambda x: jnp.sum(reward(x)))(x)
    for normalised in (False, True):
        loss, r = losses.rewarded(reward, x, normalised)
        np.testing.assert_allclose(r, reward(x), rtol=1e-12)
        of = functools.partial(losses.rewarded, reward, normalised=normalised)
        found = jax.grad(lambda x, of=of: jnp.sum(of(x)[0]))(x)
        size = np.sqrt(np.mean(g**2, axis=(1, 2), keepdims=True))
        wanted = -g / np.where(size > 0, 6 * size, 1) if normalised else -g
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-15)


def trained(regulariser, reward, sigma, steps=800):
    """(m, s) that the library's methods find with an exact fake score: `exact`, or `sim` with the
    student's own denoiser put in the critic's place before each step."""
    model = Denoiser(
        None,
        lambda params, x, sigma, condition, key=None: (params['m'] + params['s'] * x, ()),
    )
    oracle = gaussian(0.0, V0**0.5)
    law = NoiseLaw(lambda key, n: jnp.full(n, sigma), lambda sigma: 0.5 * jnp.ones_like(sigma))
    preference = Preference(REWARDS[reward], WEIGHT)
    if regulariser == 'kl':
        method = methods.exact(model, oracle, student_law=law, preference=preference)
    else:
        fake = Denoiser(
            None,
            lambda params, x, sigma, condition, key=None: (
                gaussian(params['m'], params['s']).denoise(x, sigma),
                (),
            ),
        )
        method = methods.di_star(
            model,
            oracle.denoiser(),
            fake,
            student_law=law,
            critic_law=law,
            distance=regulariser,
            c=0.5,
            scale='score',
            steps=generator.Steps(1.0),
            preference=preference,
        )
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, steps))
    batch = {'x': jnp.zeros((8192, 1)), 'condition': {}}

    def step(carry, key):
        params, state = carry

        def loss(student):
            given = {'student': student, 'critic': {'fake_score': params}}
            value, (metrics, _) = method.losses['student'](given, Context({}), batch, key)
            return value, metrics['reward']

        grads, measured = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, measured)

    @jax.jit
    def run():
        params = {'m': jnp.array(-0.3), 's': jnp.array(0.6)}
        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    # The averages of the last quarter, as a run has averaged weights.
    path, measured = jax.tree.map(lambda x: float(np.mean(x[-steps // 4 :])), run())
    return path['m'], path['s'], measured


@pytest.mark.optimised
@pytest.mark.parametrize(
    ('regulariser', 'reward', 'sigma'),
    [
        ('kl', 'linear', 1.0),
        ('kl', 'quadratic', 1.0),
        ('squared_l2', 'linear', 1.0),
        ('squared_l2', 'quadratic', 0.5),
        ('pseudo_huber', 'linear', 0.5),
    ],
)
def test_training_finds_the_closed_form(regulariser, reward, sigma):
    """To 1e-3, DI++ and DI*; the reward that is logged is that of the student."""
    mean, std, measured = trained(regulariser, reward, sigma)
    wanted = optimum(regulariser, reward, sigma)
    np.testing.assert_allclose((mean, std), wanted, atol=1e-3)
    expected = SLOPE * mean
    if reward == 'quadratic':
        expected = -CURVATURE / 2 * ((mean - CENTRE) ** 2 + std**2)
    assert measured == pytest.approx(expected, abs=5e-3)


def test_training_runs_away_under_a_bounded_distance():
    """Twice as long, twice as far: V lambda a = 1.54."""
    means = [trained('pseudo_huber', 'linear', 2.0, steps)[0] for steps in (400, 800)]
    assert means[1] > 1.7 * means[0] > 3


# Rewards of images.


def test_rewards_of_images():
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1), minval=-1, maxval=1)
    condition = {'label': jnp.array([8, 3, 8, 0])}
    bright = rewards.REWARDS['brightness']()
    np.testing.assert_allclose(bright.apply({}, x, condition), x.mean((1, 2, 3)), rtol=1e-6)
    image = {'shape': (8, 8, 1), 'num_classes': 10}
    of = functools.partial(rewards.REWARDS['classifier'], **image)
    own = of()
    params = own.init(jax.random.key(1), x, condition)
    log_p = jnp.stack([of(wanted=k).apply(params, x, condition) for k in range(10)], axis=1)
    np.testing.assert_allclose(jnp.exp(log_p).sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        own.apply(params, x, condition), log_p[jnp.arange(4), condition['label']], rtol=1e-6
    )
    like = of(wanted=3, unwanted=8, only=8).apply(params, x, condition)
    difference = (log_p[:, 3] - log_p[:, 8]) * jnp.array([1, 0, 1, 0])
    np.testing.assert_allclose(like, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('linear', dict(direction=()), 'a number an element'),
        ('quadratic', dict(curvature=0.0), 'curvature=0.0'),
        ('classifier', dict(shape=(2,), num_classes=3), 'needs images'),
        ('classifier', dict(shape=(8, 8, 1), num_classes=1), 'needs images'),
        ('classifier', dict(shape=(8, 8, 1), num_classes=10, wanted=10), 'wanted=10'),
        ('classifier', dict(shape=(8, 8, 1), num_classes=10, seed=-1), 'seed=-1'),
    ],
)
def test_rewards_refuse(name, settings, message):
    with pytest.raises(ValueError, match=message):
        rewards.REWARDS[name](**settings)


# Preferences.

SHARES = np.array([0.4, 0.1, 0.2, 0.3])  # of the reference
GAINS = np.array([0.0, 1.0, 0.5, 2.0])
F_DPO = {
    'reverse_kl': (0.022146, 0.040909, 0.030099, 0.906845),
    'js': (0.005682, 0.011543, 0.007916, 0.974859),
    'forward_kl': (0.091497, 0.042163, 0.059317, 0.807023),
    'squared_hellinger': (0.005469, 0.004826, 0.004659, 0.985045),
    'alpha(0.5)': (0.059527, 0.039445, 0.045689, 0.855340),
}


@pytest.mark.parametrize('name', F_DPO)
def test_f_dpo_finds_the_best_model_at_the_price_of_a_divergence(name, x64):
    """Pairs of states, the winner drawn as Bradley and Terry say: the loss of all pairs is
    stationary at argmax E_pi r - beta D_f(reference || pi), which Newton's method finds."""
    beta, rho = 0.5, divergences.reward(divergences.get(name))
    won = jax.nn.sigmoid(GAINS[:, None] - GAINS[None, :]) * np.outer(SHARES, SHARES)

    def population(logits):
        r = SHARES / jax.nn.softmax(jnp.append(logits, 0.0))
        winner, loser = jnp.meshgrid(r, r, indexing='ij')
        return jnp.sum(won * losses.f_dpo(rho, winner, loser, beta))

    grad, hessian = compiled(jax.grad(population)), compiled(jax.hessian(population))
    found = np.log(np.asarray(F_DPO[name])[:3] / F_DPO[name][3])
    for _ in range(4):
        found = found - np.linalg.solve(hessian(found), grad(found))
    pi = np.asarray(jax.nn.softmax(jnp.append(found, 0.0)))
    np.testing.assert_allclose(pi, F_DPO[name], atol=1e-6)
    price = beta * np.asarray(rho(SHARES / pi))  # of either state: its gain, up to a constant
    np.testing.assert_allclose(price[0] - price, GAINS - GAINS[0], atol=1e-10)


@pytest.mark.parametrize('name', [*divergences.DIVERGENCES, 'alpha(1.5)', 'skew_js(0.3)'])
def test_slope_of_the_implicit_reward_is_the_weight(name, x64):
    f = divergences.get(name)
    r = jnp.geomspace(0.05, 20, 50)
    slope = jax.vmap(jax.grad(lambda log_r: divergences.reward(f)(jnp.exp(log_r))))(jnp.log(r))
    np.testing.assert_allclose(slope, divergences.weight(f)(r), rtol=1e-8)


@pytest.mark.parametrize(
    ('winner', 'loser', 'loss', 'slopes'),
    [
        (0.1, 0.1, 0.169315, (13.29, -12.29)),
        (0.1, 0.101, 0.157777, (11.79, -10.79)),
        (0.1, 0.11, 0.108228, (2.94, -1.94)),
        (0.1, 0.2, 0.1, (1.0, 0.0)),
        (0.2, 0.1, 2.637513, (25.17, -24.58)),
    ],
)
def test_mapo(winner, loser, loss, slopes, x64):
    """Against values of an independent implementation."""
    of = functools.partial(losses.mapo, beta=0.1, scale=0.5, temperature=1000.0)
    value, found = jax.value_and_grad(of, (0, 1))(jnp.float64(winner), jnp.float64(loser))
    assert value == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(found, slopes, atol=6e-3)


def test_mapo_without_an_error(x64):
    """phi(0) = 1 with the slope -scale/2."""
    of = functools.partial(losses.mapo, beta=1.0, scale=0.5, temperature=1.0)
    found = jax.grad(of, (0, 1))(jnp.float64(0.0), jnp.float64(0.0))
    np.testing.assert_allclose(found, (1 + 0.5 * 0.25, -0.5 * 0.25), rtol=1e-6)


# Best of M.

P, R = SHARES, GAINS  # a generator of four outcomes and their rewards


def outcomes():
    """Outcome k with probability P[k], of a noise in one dimension."""
    edges = jax.scipy.stats.norm.ppf(np.cumsum(P)[:3])

    def of(params, noise, condition):
        return jnp.sum(noise > edges, axis=1, keepdims=True) * 1.0

    return Generator(None, of, 2)


def gains(x, condition):
    return jnp.asarray(R, jnp.float32)[x[:, 0].astype(int)]


def shares(made):
    return np.bincount(np.asarray(made)[:, 0].astype(int), minlength=4) / len(made)


N = 200_000


@pytest.mark.parametrize(
    ('candidates', 'alpha', 'law'),
    [
        (1, 0.0, P),
        (2, 0.0, (0.16, 0.13, 0.20, 0.51)),
        (5, 0.0, (0.01024, 0.09031, 0.06752, 0.83193)),
        (2, 0.5, (0.216884, 0.116858, 0.173418, 0.492840)),
        (5, 0.5, (0.071934, 0.087235, 0.084351, 0.756480)),
        (5, 1e6, P),
        (2, 1e-6, (0.16, 0.13, 0.20, 0.51)),
    ],
)
def test_law_of_the_best(candidates, alpha, law):
    """Within four standard errors of the closed form: F(r)^M - F(r-)^M, or one draw of softmax."""
    best = generator.best_of(outcomes(), gains, candidates, alpha)
    noise = jax.random.normal(jax.random.key(candidates), (N, 1))
    found = shares(jax.jit(best.sample)({}, noise, {}))
    law = np.asarray(law)
    assert np.all(np.abs(found - law) <= 4 * np.sqrt(law * (1 - law) / N))
    assert best.nfe == 2 * candidates


def test_best_of_many_goes_to_the_tilted_law():
    tilted = P * np.exp(R / 0.5) / np.sum(P * np.exp(R / 0.5))
    noise = jax.random.normal(jax.random.key(0), (40_000, 1))

    def distance(candidates):
        best = generator.best_of(outcomes(), gains, candidates, 0.5)
        return np.abs(shares(jax.jit(best.sample)({}, noise, {})) - tilted).sum() / 2

    assert distance(40) < 0.025 < 0.1 < distance(5)


def test_the_best_is_a_function_of_the_noise():
    """Alone or in a batch; the first candidate is the generator's own sample."""
    plain = Generator(None, lambda params, noise, condition: params * noise, 1)
    noise = jax.random.normal(jax.random.key(0), (6, 3))

    def of(x, condition):
        return jnp.sum(x, axis=1)

    best = generator.best_of(plain, of, 4)
    made = best.sample(2.0, noise, {})
    np.testing.assert_array_equal(made[2:3], best.sample(2.0, noise[2:3], {}))
    assert np.all(of(made, {}) >= of(2 * noise, {})) and np.any(made != 2 * noise)
    np.testing.assert_array_equal(generator.best_of(plain, of, 1).sample(2.0, noise, {}), 2 * noise)
    drawn = best.draw(jax.random.key(1), 2.0, {'x': noise, 'condition': {}})
    assert drawn.shape == noise.shape


@pytest.mark.parametrize(('candidates', 'alpha'), [(0, 0.0), (2, -1.0), (2, np.inf), (2, np.nan)])
def test_best_of_refuses(candidates, alpha):
    with pytest.raises(ValueError, match=f'candidates={candidates}, alpha={alpha}'):
        generator.best_of(outcomes(), gains, candidates, alpha)


# Pairs.


def _tuned(name, **settings):
    """A method of pairs for a model D = a x of points, and a teacher that makes any point of its
    noise."""
    model = Denoiser(
        lambda key, x, condition: {'a': jnp.array(0.5)},
        lambda params, x, sigma, condition, key=None: (params.get('a', 0.0) * x, ()),
    )
    law = NoiseLaw(lambda key, n: jnp.full(n, 0.7), lambda sigma: 0.5 * jnp.ones_like(sigma))
    given = dict(law=law, sigmas=np.array([2.0, 0.0]), sampler=samplers.SAMPLERS['euler'])
    teacher = Denoiser(None, lambda params, x, sigma, condition, key=None: (0.6 * x, ()))
    reward = rewards.linear(direction=(1.0,))
    return METHODS[name](model, teacher, settings.pop('reward', reward), **given, **settings)


@pytest.mark.parametrize('name', ['mapo', 'f_dpo'])
def test_pairs_are_ranked_by_the_reward(name, x64):
    """The loss is that of the pair in which the reward names the winner, at one level and noise."""
    method, key = _tuned(name), jax.random.key(5)
    batch = {'x': jnp.zeros((64, 3)), 'condition': {}}
    value, (metrics, _) = method.losses['student']({'student': {'a': 0.5}}, Context({}), batch, key)
    key_one, key_other, _, key_noise = jax.random.split(key, 4)
    pair = np.stack([2.0 * 0.6 * jax.random.normal(k, (64, 3)) for k in (key_one, key_other)])
    best = np.argmax(pair.sum(2), axis=0)
    noise = 0.7 * np.asarray(jax.random.normal(key_noise, (64, 3)))

    def error(a, which):
        x = pair[which, np.arange(64)]
        return np.mean((a * (x + noise) - x) ** 2, axis=1) / 0.7**2

    won, lost = error(0.5, best), error(0.5, 1 - best)
    if name == 'mapo':
        wanted = losses.mapo(won, lost, 0.1, 0.5, 1000.0)
    else:
        log_r = [500.0 * (error(0.5, k) - error(0.6, k)) for k in (best, 1 - best)]
        r = np.exp(np.clip(log_r, -10, 10))
        wanted = losses.f_dpo(jnp.log, *r, 0.5)
    assert float(value) == pytest.approx(float(np.mean(wanted)), rel=1e-9)
    gap = np.mean(np.abs(pair[0].sum(1) - pair[1].sum(1)))
    assert float(metrics['reward_gap']) == pytest.approx(gap, rel=1e-9)


@pytest.mark.parametrize(
    'divergence', ['softened_reverse_kl', 'le_cam', 'smooth_tv', 'neyman', 'alpha(-0.1)']
)
def test_a_bounded_rho_is_refused(divergence):
    with pytest.raises(ValueError, match='is bounded'):
        _tuned('f_dpo', divergence=divergence)


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('mapo', dict(reward=None), 'ranked by a reward'),
        ('mapo', dict(beta=0.0), 'beta=0.0'),
        ('f_dpo', dict(temperature=-1.0), 'temperature=-1.0'),
    ],
)
def test_preferences_refuse(name, settings, message):
    with pytest.raises(ValueError, match=message):
        _tuned(name, **settings)


# Through configs and folders.


def _sections(**settings):
    law = dict(name='lognormal', mean=0.0, std=1.0)
    plain = dict(
        seed=0,
        data=dict(name='digits'),
        network=dict(name='mlp', width=8, blocks=1, embedding=8),
        method=dict(name='di_plus_plus', student_law=law, critic_law=law, from_teacher=False),
        reward=dict(name='classifier', wanted=3, unwanted=8, only=8),
        teacher=dict(oracle='ring'),
        image=dict(shape=[8, 8, 1], num_classes=10),
    )
    return plain | settings


def test_a_reward_of_a_config_has_the_parameters_of_another_classifier(monkeypatch):
    """Seed 1, where the evaluation has seed 0; what they were is noted like a teacher."""
    asked = []

    def trained_classifier(source, seed):
        asked.append((source.name, seed))
        model = classifier(num_classes=10, image_shape=(8, 8, 1))
        params = model.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))
        return Trained(f'{source.name}-clf-s{seed}', model.apply, params, np.ones(32))

    monkeypatch.setattr(rewarding, 'trained_classifier', trained_classifier)
    plain = _sections(teacher=dict(workdir='nowhere', network=dict(name='mlp'), denoiser={}))
    plain['method']['from_teacher'] = False
    built = build.experiment(plain)
    assert set(built.frozen) == {'teacher', 'reward'}
    params, digests = built.frozen['reward'](None)
    assert asked == [('digits', 1)] and digests == checkpoint.digests(params)
    shapes = jax.eval_shape(
        built.parts['reward'].init, jax.random.key(0), jnp.zeros((2, 8, 8, 1)), {}
    )
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    source = sources.load('digits')
    judged = rewarding.judges(plain, source)
    assert [of.features for of in judged.values()] == ['digits-clf-s1', 'digits-clf-s0']
    assert judged['reward'].name == 'reward-classifier(only=8,unwanted=8,wanted=3)'
    images, labels = sources.to_float(source.images[:20], 16), source.labels[:20]
    for seed, of in zip((1, 0), judged.values()):
        model = rewards.of_classifier(shape=(8, 8, 1), num_classes=10, wanted=3, unwanted=8, only=8)
        known = trained_classifier(source, seed).params
        wanted = model.apply(known, images, {'label': labels})
        np.testing.assert_allclose(of.apply(images, {'label': labels}), wanted, atol=1e-5)
    assert rewarding.judges({}, source) == {}


@pytest.mark.parametrize(
    ('sections', 'message'),
    [
        (dict(reward='brightnes'), "config.reward.name: unknown 'brightnes'; did you mean"),
        (dict(reward=dict(name='linear', slope=1.0)), 'config.reward.slope: unknown'),
        (dict(reward=dict(name='classifier', wanted=11)), 'config.reward: wanted=11'),
        (dict(reward=dict(name='quadratic', curvature=-1.0)), 'config.reward: curvature=-1.0'),
        (
            dict(image=dict(shape=[8, 8, 1], num_classes=10, latents={})),
            'config.reward: the samples are latents',
        ),
        (dict(reward=None), 'reward_weight=0.1, reward_normalised=False: this needs a reward'),
    ],
)
def test_mistakes_in_a_config(sections, message):
    plain = {name: value for name, value in _sections(**sections).items() if value is not None}
    with pytest.raises(UserError, match=message):
        build.experiment(plain | dict(teacher=dict(oracle='ring')))


def test_a_word_is_a_reward():
    words = {
        'brightness': {'name': 'brightness'},
        'classifier(wanted=3, only=8)': {'name': 'classifier', 'wanted': 3, 'only': 8},
        'linear(direction=(1.0,))': {'name': 'linear', 'direction': (1.0,)},
    }
    for word, section in words.items():
        assert build.read_reward(word) == section
        again = rewarding.title(section)
        assert build.read_reward(again) == section
    for word in ('brightness(3)', 'a.b', '', '3', 'linear(direction=x)'):
        with pytest.raises(UserError, match='--reward='):
            build.read_reward(word)


def test_best_of_a_run(tmp_path, capsys):
    """Through the command line: the samples, the row, which keeps the run's own, and its report."""
    workdir = tmp_path / 'run'
    data = dict(name='mixture', mixture='ring', labelled=False, n=100)
    config = _sections(data=data, reward=dict(name='linear', direction=(1.0, 0.0)))
    del config['image']
    rate = dict(learning_rate=1e-3)
    config |= dict(
        optimizer=dict(student=rate, critic=rate),
        training=dict(steps=2, batch_size=8, ema_half_life=1e2, checkpoint_every=0),
        evaluation=dict(samples=500, batch_size=250),
    )
    build.train(ConfigDict(config), workdir, quiet=True)
    words = f'--workdir={workdir}', '--quiet'
    assert cli.main(['evaluate', *words]) == 0
    own = json.loads(capsys.readouterr().out)
    assert own['protocol']['reward'] == (
        'reward-linear(direction=(1.0, 0.0))[pixels,500,alone,float,as-train,seed0]'
    )
    assert cli.main(['evaluate', *words, '--best-of=4']) == 0
    best = json.loads(capsys.readouterr().out)
    assert (own['nfe'], best['nfe']) == (1, 4) and best['reward'] > own['reward']
    assert best['details']['best_of'] == {'candidates': 4} and 'best_of' not in own['details']
    other = ('--best-of=4', '--reward=quadratic(centre=(9.0,))', '--alpha=0.5')
    assert cli.main(['evaluate', *words, *other]) == 0
    assert 'quadratic(centre=(9.0,))' in json.loads(capsys.readouterr().out)['protocol']['reward']
    assert len(list((workdir / 'eval').iterdir())) == 3
    # The report has the run as it is.
    assert collect.runs([workdir])[0].row['reward'] == own['reward']
    array = workdir / 'best.npy'
    given = [f'--workdir={workdir}', '--n=5', f'--out={array}', '--best-of=3']
    assert cli.main(['sample', *given]) == 0
    run = build.from_workdir(workdir, best_of={'candidates': 3})
    np.testing.assert_array_equal(np.load(array), run.generate(jax.random.key(0), 5))
    for wrong, message in (
        (['--reward=linear'], '--reward: is for --best-of'),
        (['--best-of=0'], 'candidates=0'),
        (['--best-of=2', '--reward=classifier'], 'a classifier needs images'),
        (['--best-of=2', '--alpha=-1'], 'alpha=-1'),
    ):
        capsys.readouterr()
        assert cli.main(['sample', f'--workdir={workdir}', *wrong]) == 2
        assert message in capsys.readouterr().err
