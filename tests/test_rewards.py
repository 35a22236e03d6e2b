"""Rewards: where they take a Gaussian student is known in closed form; preferences, likewise.

The student is x = m + s z, the teacher N(0, v), and V = v + sigma^2. Expectations over (z, eps) are
Gauss-Hermite sums of what the library's losses return per sample.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import compiled

from fdistill import divergences, methods
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.diffusion.oracle import GaussianMixture
from fdistill.methods import Context, generator, losses, rewards
from fdistill.methods.generator import Generator
from fdistill.methods.matching import Preference

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
