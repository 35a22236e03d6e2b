"""Every loss against theory, in float64 and by quadrature: exact teacher, exact fake score, exact
density ratio.

The fixture is in one dimension: a teacher of two Gaussians and a student that draws component k as
x = m_k + s_k z, with parameters theta = (m_1, m_2, ln s_1, ln s_2). Expectations over (k, z, eps)
are Gauss-Hermite sums of what the library's loss returns per sample. x and x_t move with theta,
while teacher and fake score are those of THETA. Expected numbers are from an independent
implementation with finite differences, hence their fewer digits.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient
from jax.sharding import NamedSharding, PartitionSpec
from quick import compiled

from fdistill import divergences
from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.oracle import mixture
from fdistill.methods import losses, method
from fdistill.methods.critic import QUANTILES, Gan, perturb, relative_entropy
from fdistill.methods.critic import divergence as estimated_divergence
from fdistill.methods.distribution import dmd2, f_distill
from fdistill.methods.generator import Steps
from fdistill.methods.method import Tracking

pytestmark = pytest.mark.usefixtures('x64')


SIGMA = 0.6
THETA = np.array([-0.8, 0.7, np.log(0.45), np.log(0.40)])
TOLERANCE = 1e-6

# D_f and its gradient at THETA.
TABLE = {
    'reverse_kl': (0.10704083961, [0.13808123, -0.31224817, -0.05373658, -0.02676992]),
    'softened_reverse_kl': (0.05167962469, [0.07299715, -0.14385698, -0.02728149, -0.00667308]),
    'js': (0.05536121492, [0.06508409, -0.16839119, -0.02645509, -0.02009685]),
    'squared_hellinger': (0.02814129289, [0.03287963, -0.08741712, -0.01337946, -0.01123032]),
    'forward_kl': (0.12216744658, [0.12771260, -0.41713786, -0.05455120, -0.07490333]),
    'jeffreys': (0.22920828619, [0.26579384, -0.72938603, -0.10828778, -0.10167325]),
    'neyman': (0.20842982719, [0.32190489, -0.57891220, -0.11585670, -0.01170284]),
    'pearson': (0.32850622990, [0.25514950, -1.52007008, -0.12172367, -0.47830859]),
    'le_cam': (0.10748591232, [0.12755008, -0.31556566, -0.05174582, -0.03309475]),
    'softened_forward_kl': (0.06680623166, [0.06262852, -0.24874667, -0.02809612, -0.05480648]),
    'alpha(1.5)': (0.13797932882, [0.12644261, -0.53716102, -0.05693343, -0.12934366]),
    'alpha(-0.5)': (0.10446154251, [0.14773465, -0.29399626, -0.05518954, -0.01470384]),
    'skew_js(0.3)': (0.02390668895, [0.02700697, -0.07499368, -0.01118130, -0.01026042]),
}
OTHERS = ['alpha(0.5)', 'alpha(2)', 'skew_js(0.75)', 'smooth_tv(1)']
ALL = [*TABLE, *(name for name in divergences.DIVERGENCES if name not in TABLE), *OTHERS]

FISHER = 0.4304088896
FISHER_GRADIENT = [1.0220397089, -1.1823906630, -0.2133731925, -0.0760158726]


def close(actual, desired, tolerance=TOLERANCE):
    """Relative to the largest component: a component may be zero by symmetry."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.dtype == np.float64
    error = np.max(np.abs(actual - desired)) / np.max(np.abs(desired))
    assert error <= tolerance, f'relative error {error:.1e}: {actual} against {desired}'


def differs(actual, desired):
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert np.max(np.abs(actual - desired)) > 0.1 * np.max(np.abs(desired))


def teacher():
    return mixture([0.35, 0.65], [[-1.2], [1.0]], [0.35, 0.5])


def student(theta):
    """The student's density, a function of theta."""
    theta = jnp.asarray(theta)
    return mixture([0.5, 0.5], [[0.0], [0.0]], 1.0)._replace(
        means=theta[:2, None], stds=jnp.exp(theta[2:])
    )


def normal(nodes=100):
    """Nodes and weights of an expectation over N(0, 1)."""
    z, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return z, weights / np.sqrt(2 * np.pi)


def draws(theta, sigma=SIGMA, weights=(0.5, 0.5)):
    """All (x[N,1], x_t[N,1], mass[N]) of the student at noise level sigma, differentiable in
    theta."""
    theta, (z, mass) = jnp.asarray(theta), normal()
    z, eps = (grid.ravel() for grid in np.meshgrid(z, z, indexing='ij'))
    mass = np.outer(mass, mass).ravel()
    x = (theta[:2, None] + jnp.exp(theta[2:, None]) * z).reshape(-1, 1)
    return (
        x,
        x + sigma * np.tile(eps, 2)[:, None],
        np.concatenate([weights[0] * mass, weights[1] * mass]),
    )


def expectation(loss, stop=(), sigma=SIGMA):
    """E loss(x, d_teacher, d_fake, r) as a function of theta, the networks being those of THETA.

    `stop` names outputs that carry no gradient, as a mistaken implementation would have it.
    """

    def of(theta):
        x, x_t, mass = draws(theta, sigma)
        p, q = teacher(), student(THETA)
        outputs = {'teacher': p.denoise(x_t, sigma), 'fake': q.denoise(x_t, sigma)}
        outputs |= {name: stop_gradient(outputs[name]) for name in stop}
        r = jnp.exp(p.log_prob(x_t, sigma) - q.log_prob(x_t, sigma))
        return jnp.sum(mass * loss(x, outputs['teacher'], outputs['fake'], r))

    return of


def value_and_gradient(function):
    return compiled(jax.value_and_grad(function))(jnp.asarray(THETA))


def gradient(function):
    return value_and_gradient(function)[1]


def line(half_width=12.0, points=4001):
    """A grid for integrals over the real line: trapezoids converge geometrically for what vanishes
    at both ends."""
    x = np.linspace(-half_width, half_width, points)
    return x[:, None], x[1] - x[0]


def divergence(f, sigma=SIGMA):
    """D_f(p || q) by quadrature, a function of theta."""

    def of(theta):
        x, dx = line()
        log_q = student(theta).log_prob(x, sigma)
        return dx * jnp.sum(jnp.exp(log_q) * f(jnp.exp(teacher().log_prob(x, sigma) - log_q)))

    return of


def score_divergence(distance, sigma=SIGMA, frozen=False):
    """E_{q_t} d(s_q - s_p) by quadrature, a function of theta; with `frozen` the expectation is
    under q of THETA."""

    def of(theta):
        x, dx = line()
        density = jnp.exp(student(THETA if frozen else theta).log_prob(x, sigma))
        return dx * jnp.sum(
            density * distance(student(theta).score(x, sigma) - teacher().score(x, sigma))
        )

    return of


@functools.cache
def _score_gap_gradient(sigma):
    """(theta, weight per quadrature point) -> gradient of E score_gap, compiled once for all
    divergences."""

    def loss(theta, weight):
        def per_sample(x, d_teacher, d_fake, r):
            return losses.score_gap(x, d_teacher, d_fake, weight)

        return expectation(per_sample, sigma=sigma)(theta)

    return compiled(jax.grad(loss))


def score_gap_gradient(h, sigma=SIGMA):
    """The library's family A gradient, with weight h(r)/sigma^2 at the exact ratio."""
    return _score_gap_gradient(sigma)(jnp.asarray(THETA), h(ratio(sigma)) / sigma**2)


def ratio(sigma=SIGMA):
    _, x_t, _ = draws(THETA, sigma)
    return jnp.exp(teacher().log_prob(x_t, sigma) - student(THETA).log_prob(x_t, sigma))


# The gradient of an f-divergence.


@pytest.mark.parametrize('name', ALL)
def test_score_gap_is_the_gradient_of_the_divergence(name):
    f = divergences.get(name)
    value, exact = value_and_gradient(divergence(f))
    close(score_gap_gradient(divergences.weight(f)), exact)
    if name in TABLE:
        close(value, TABLE[name][0], 1e-9)
        close(exact, TABLE[name][1], 1e-7)


@pytest.mark.parametrize('name', ['reverse_kl', 'js', 'forward_kl'])
def test_score_gap_at_another_noise_level(name):
    """x_t = .8 x + .6 eps of a variance-preserving model lives at sigma = .75."""
    f = divergences.get(name)
    close(score_gap_gradient(divergences.weight(f), 0.75), gradient(divergence(f, 0.75)))


def test_sums_of_divergences_and_of_their_gradients():
    of = {}
    for name in (
        'reverse_kl',
        'softened_reverse_kl',
        'js',
        'forward_kl',
        'jeffreys',
        'softened_forward_kl',
    ):
        f = divergences.get(name)
        of[name] = np.append(divergence(f)(THETA), score_gap_gradient(divergences.weight(f)))
    close(of['js'] + of['softened_reverse_kl'], of['reverse_kl'])
    close(of['reverse_kl'] + of['forward_kl'], of['jeffreys'])
    close(of['forward_kl'] - of['js'], of['softened_forward_kl'])


def test_divergence_falls_along_the_step():
    """The sign: descent moves x towards the teacher's denoiser, whatever the divergence."""
    for name in divergences.DIVERGENCES:
        f = divergences.get(name)
        step = 0.01 * score_gap_gradient(divergences.weight(f))
        assert divergence(f)(THETA - step) < divergence(f)(THETA), name


# The de Bruijn identity: the same h governs how noise brings the two densities together.


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('reverse_kl', -0.2152044),
        ('js', -0.1072679),
        ('forward_kl', -0.2435372),
        ('squared_hellinger', -0.0553486),
        ('jeffreys', -0.4587417),
        ('le_cam', None),
        ('smooth_tv', None),
    ],
)
def test_de_bruijn(name, expected):
    """d D_f/d sigma^2 = -E_q[h |s_p - s_q|^2]/2, and minus half the square is what score_gap has as
    its value."""
    f = divergences.get(name)
    h = divergences.weight(f)
    exact = compiled(jax.grad(lambda variance: divergence(f, jnp.sqrt(variance))(THETA)))(SIGMA**2)

    def loss(x, d_teacher, d_fake, r):
        # At r = e^57, of no mass, rounding makes h negative.
        return losses.score_gap(x, d_teacher, d_fake, jnp.sqrt(jnp.abs(h(r))) / SIGMA**2)

    close(-expectation(loss)(jnp.asarray(THETA)), exact)
    if expected is not None:
        close(exact, expected, 6e-7)


# Its integral over the noise: what a run says of its divergence.

LAWS = {
    'loguniform': noise.loguniform(0.2, 1.5),
    'lognormal': noise.lognormal(-0.7, 0.4),
    'karras_uniform': noise.karras_uniform(sigma_min=0.2, sigma_max=1.5),
}
# D_F = D_q, and one that is not: it has learned neither mean nor noise.
CRITICS = {'exact': lambda D, x_t: D, 'behind': lambda D, x_t: 0.8 * D + 0.15 * jnp.tanh(x_t)}


def level_at(law, place):
    """sigma at which the distribution function of a law is `place`, by bisection."""
    low, high = (jnp.full_like(place, end) for end in (1e-3, 1e2))
    for _ in range(80):
        middle = jnp.sqrt(low * high)
        below = law.cdf(middle) < place
        low, high = jnp.where(below, middle, low), jnp.where(below, high, middle)
    return middle


def over_noise(name, critic, of):
    """E over a law and the student of of(x, x_t, D_T, D_F, D_q, sigma, law), values [N, ...]; and
    the law's levels at `QUANTILES`."""
    law, (a, b) = LAWS[name], QUANTILES
    nodes, mass_of_level = np.polynomial.legendre.leggauss(48)
    place = jnp.asarray(a + (b - a) * (nodes + 1) / 2)

    def at(sigma):
        x, x_t, mass = draws(THETA, sigma)
        own = student(THETA).denoise(x_t, sigma)
        sigma = jnp.full(len(x), sigma)
        seen = teacher().denoise(x_t, sigma), CRITICS[critic](own, x_t), own
        values = jnp.stack(of(x, x_t, *seen, sigma, law))
        return values @ mass

    found = compiled(lambda sigmas: jax.lax.map(at, sigmas))(level_at(law, place))
    ends = level_at(law, jnp.asarray(QUANTILES))
    return mass_of_level @ found * (b - a) / 2, ends


def rates(x, x_t, d_teacher, d_fake, d_student, sigma, law):
    """kl and `seen`, what they would be of the exact critic, the lag, and half the error that its
    lag makes in `seen`."""
    of_critic = relative_entropy(x, d_teacher, d_fake, sigma, law)
    of_student = relative_entropy(x, d_teacher, d_student, sigma, law)
    lag = relative_entropy(x, d_fake, d_student, sigma, law)
    weight = sigma**-3 / jax.vmap(jax.grad(law.cdf))(sigma)
    along = weight * jnp.sum((d_teacher - d_fake) * (d_student - d_fake), axis=1)
    return *of_critic, *of_student, *lag, along


@pytest.mark.parametrize('name', LAWS)
def test_relative_entropy_is_that_between_two_levels_of_noise(name):
    """Both ways of it, at the exact critic."""
    (kl, seen, *_), (low, high) = over_noise(name, 'exact', rates)
    f = divergences.get('reverse_kl')
    exact = divergence(f, low)(THETA) - divergence(f, high)(THETA)
    close(kl, exact)
    close(seen, exact)


@pytest.mark.parametrize('name', LAWS)
def test_a_critic_that_is_behind_lowers_the_relative_entropy_by_its_lag(name):
    (kl, seen, exact, _, lag, same, along), _ = over_noise(name, 'behind', rates)
    close(kl, exact - lag)
    close(lag, same)  # By |x - D_F|^2 - |x - D_q|^2, and by |D_F - D_q|^2.
    close(seen - kl, 2 * along)
    assert lag > 0.1 * exact
    differs(kl, exact)
    differs(seen, exact)


@pytest.mark.parametrize('name', ['js', 'forward_kl', 'squared_hellinger', 'jeffreys'])
def test_with_its_weight_it_is_any_divergence(name):
    f = divergences.get(name)
    h = divergences.weight(f)

    def of(x, x_t, d_teacher, d_fake, _, sigma, law):
        r = jnp.exp(teacher().log_prob(x_t, sigma) - student(THETA).log_prob(x_t, sigma))
        kl = relative_entropy(x, d_teacher, d_fake, sigma, law)[0]
        # Far outside, of no mass, the ratio is too large for a number.
        return (jnp.where(r < 1e30, h(jnp.minimum(r, 1e30)), 0) * kl, kl)

    (found, kl), (low, high) = over_noise('loguniform', 'exact', of)
    exact = divergence(f, low)(THETA) - divergence(f, high)(THETA)
    close(found, exact)
    differs(kl, exact)


def test_the_noise_of_an_estimate_is_what_is_said():
    """Batches of the fixture's samples: means within four standard errors of the exact value, and
    as far from each other as the variance beside them says."""
    law, runs, batch, theta = LAWS['loguniform'], 400, 512, jnp.asarray(THETA)

    def of(key):
        keys = jax.random.split(key, 4)
        second = jax.random.bernoulli(keys[0], shape=(batch,)).astype(int)
        z = jax.random.normal(keys[1], (batch,))
        x = (theta[:2][second] + jnp.exp(theta[2:])[second] * z)[:, None]
        x_t, sigma = perturb(keys[2], x, law)
        d_teacher, d_fake = (p.denoise(x_t, sigma) for p in (teacher(), student(THETA)))
        return estimated_divergence(x, d_teacher, d_fake, sigma, law)

    found = jax.jit(jax.vmap(of))(jax.random.split(jax.random.key(0), runs))
    low, high = level_at(law, jnp.asarray(QUANTILES))
    f = divergences.get('reverse_kl')
    exact = divergence(f, low)(THETA) - divergence(f, high)(THETA)
    mean, variance = jnp.mean(found['kl'], axis=0)
    assert abs(mean - exact) < 4 * jnp.sqrt(variance / runs)
    assert abs(jnp.var(found['kl'][:, 0]) / variance - 1) < 4 * np.sqrt(2 / runs)
    assert abs(jnp.mean(found['kl_seen']) - exact) < 4 * jnp.sqrt(variance / runs)


# The projection identity, on which SIM and SiD rest.


@pytest.mark.parametrize('u', ['one', 'tanh', 'square', 'teacher'])
def test_projection(u):
    """E[u(x_t) (D_q(x_t) - x)] = 0 for any u."""
    x, x_t, mass = draws(THETA)
    of_x_t = {
        'one': jnp.ones_like,
        'tanh': jnp.tanh,
        'square': jnp.square,
        'teacher': lambda x_t: teacher().score(x_t, SIGMA),
    }[u](x_t)
    gap = student(THETA).denoise(x_t, SIGMA) - x
    assert abs(jnp.sum(mass * (of_x_t * gap)[:, 0])) < 1e-13
    # In terms of scores: the conditional score of a draw is -eps/sigma.
    score_gap = student(THETA).score(x_t, SIGMA) + (x_t - x) / SIGMA**2
    assert abs(jnp.sum(mass * (of_x_t * score_gap)[:, 0])) < 1e-13


def test_projection_needs_a_weight_that_does_not_see_x():
    """Negative control: this is why DMD's weight makes SiD inexact."""
    x, x_t, mass = draws(THETA)
    gap = student(THETA).denoise(x_t, SIGMA) - x
    weight = 1 / (jnp.abs(x - teacher().denoise(x_t, SIGMA)) + 0.1)
    assert abs(jnp.sum(mass * (weight * gap)[:, 0])) > 0.01


# SIM.


def implicit(distance, total_gradient=False, sigma=SIGMA):
    def loss(x, d_teacher, d_fake, r):
        scale = jnp.full(x.shape[0], sigma**-2)
        return losses.implicit(x, d_teacher, d_fake, scale, distance, total_gradient)

    return loss


HUBER = 1.0
DISTANCES = {
    'squared_l2': lambda: losses.squared_l2,
    'pseudo_huber': lambda: losses.pseudo_huber(HUBER),
}
SIM = {
    'squared_l2': [1.0090561549, -1.2647782959, -0.2136356728, -0.0779072616],
    'pseudo_huber': [0.4200345158, -0.5078508333, -0.0919320686, -0.0264626307],
}
SIM_TOTAL = {
    'squared_l2': (FISHER, FISHER_GRADIENT),
    'pseudo_huber': (0.1930706644, [0.4249710194, -0.4734866834, -0.0918811461, -0.0262447179]),
}


@pytest.mark.parametrize('name', SIM)
@pytest.mark.parametrize('sigma', [SIGMA, 0.75])
def test_sim(name, sigma):
    distance = DISTANCES[name]()
    value, actual = value_and_gradient(expectation(implicit(distance, sigma=sigma), sigma=sigma))
    close(actual, gradient(score_divergence(distance, sigma, frozen=True)))
    assert abs(value) < 1e-9
    if sigma == SIGMA:
        close(actual, SIM[name], 2e-7)


@pytest.mark.parametrize('name', SIM)
def test_sim_with_the_total_gradient(name):
    distance = DISTANCES[name]()
    value, actual = value_and_gradient(expectation(implicit(distance, total_gradient=True)))
    exact_value, exact = value_and_gradient(score_divergence(distance))
    close(actual, exact)
    close(value, exact_value)
    close(actual, SIM_TOTAL[name][1], 2e-7)
    close(value, SIM_TOTAL[name][0], 2e-9)


@pytest.mark.parametrize('name', SIM)
@pytest.mark.parametrize('stop', [('teacher',), ('fake',), ('teacher', 'fake')])
def test_sim_breaks_with_a_stop_gradient(name, stop):
    differs(gradient(expectation(implicit(DISTANCES[name]()), stop)), SIM[name])


# SiD.


def sid(alpha, sigma=SIGMA):
    return lambda x, d_teacher, d_fake, r: losses.sid(
        x, d_teacher, d_fake, jnp.full(x.shape[0], sigma**-4), alpha
    )


SID = {
    0.0: [0.51751163, -0.55000152, -0.10655536, -0.03706224],
    0.5: [0.51101985, -0.59119533, -0.10668660, -0.03800794],
    1.0: [0.50452808, -0.63238915, -0.10681784, -0.03895363],
    1.2: [0.50193137, -0.64886667, -0.10687033, -0.03933191],
}


@pytest.mark.parametrize('alpha', SID)
def test_sid(alpha):
    value, actual = value_and_gradient(expectation(sid(alpha)))
    close(actual, SID[alpha], 2e-8)
    assert float(value) == pytest.approx((1 - alpha) * FISHER, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('sigma', [SIGMA, 0.75])
def test_sid_is_the_fisher_divergence_at_one_half_and_sim_at_one(sigma):
    at_zero, at_half, at_one = (
        gradient(expectation(sid(alpha, sigma), sigma=sigma)) for alpha in (0.0, 0.5, 1.0)
    )
    close(2 * at_half, gradient(score_divergence(losses.squared_l2, sigma)))
    close(2 * at_one, gradient(score_divergence(losses.squared_l2, sigma, frozen=True)))
    close(
        2 * at_one,
        gradient(expectation(implicit(losses.squared_l2, sigma=sigma), sigma=sigma)),
        1e-12,
    )
    close(at_zero + at_one, 2 * at_half, 1e-12)


@pytest.mark.parametrize(
    ('stop', 'expected', 'tolerance'),
    [
        # Both: the gradient of reverse KL over sigma^2, the bridge between the families.
        (('teacher', 'fake'), [0.38355898, -0.86735602, -0.14926828, -0.07436090], 2e-8),
        # The teacher only, a habit from family A: ascent.
        (('teacher',), [-0.44965, 0.32179, 0.08186, 0.03647], 3e-5),
        (('fake',), [1.33774, -1.82154, -0.33794, -0.14979], 1e-5),
    ],
)
def test_sid_breaks_with_a_stop_gradient(stop, expected, tolerance):
    actual = gradient(expectation(sid(1.0), stop))
    close(actual, expected, tolerance)
    differs(actual, SID[1.0])
    assert (np.dot(actual, SID[1.0]) < 0) == (stop == ('teacher',))


# Uni-Instruct.


def uni_instruct(h, sigma=SIGMA, moving=True):
    def loss(x, d_teacher, d_fake, r):
        level = jnp.full(x.shape[0], sigma)
        r = stop_gradient(r)
        r = losses.along(r, x, d_teacher, d_fake, level) if moving else r
        return losses.uni_instruct(x, d_teacher, d_fake, level**-4, r, h)

    return loss


def weighted_fisher(h, sigma=SIGMA):
    """E_q[h(r) |s_p - s_q|^2]/2 by quadrature, a function of theta."""

    def of(theta):
        x, dx = line()
        p, q = teacher(), student(theta)
        log_q = q.log_prob(x, sigma)
        r = jnp.exp(p.log_prob(x, sigma) - log_q)
        gap = losses.squared_l2(p.score(x, sigma) - q.score(x, sigma))
        return dx * jnp.sum(jnp.exp(log_q) * h(r) * gap) / 2

    return of


@pytest.mark.parametrize('name', ALL)
def test_uni_instruct(name):
    """The gradient is that of the weighted Fisher divergence, and with r frozen it is not."""
    h = divergences.weight(divergences.get(name))
    exact = gradient(weighted_fisher(h))
    close(gradient(expectation(uni_instruct(h))), exact)
    frozen = gradient(expectation(uni_instruct(h, moving=False)))
    error = np.max(np.abs(frozen - exact)) / np.max(np.abs(exact))
    assert error < 1e-9 if name == 'reverse_kl' else error > 0.03


@pytest.mark.parametrize('name', ['reverse_kl', 'js', 'forward_kl', 'squared_hellinger'])
def test_uni_instruct_at_all_levels_is_the_divergence_of_the_clean_distributions(name, monkeypatch):
    """The de Bruijn identity, D_f(p_0||q_0) = int_0^inf E_q[h |s_p - s_q|^2]/2 dsigma^2, and so its
    gradient: sigma^2 = u/(1 - u), u by Gauss and Legendre."""
    f = divergences.get(name)
    h = divergences.weight(f)
    # At low noise 100 nodes do not resolve where the components meet.
    monkeypatch.setitem(globals(), 'normal', functools.partial(normal, 160))
    at = compiled(
        jax.grad(lambda theta, sigma: expectation(uni_instruct(h, sigma), (), sigma)(theta))
    )
    nodes, mass = np.polynomial.legendre.leggauss(16)
    u, mass = (1 + nodes) / 2, mass / 2
    total = sum(
        share / (1 - level) ** 2 * at(jnp.asarray(THETA), jnp.sqrt(level / (1 - level)))
        for level, share in zip(u, mass, strict=True)
    )
    close(total, gradient(divergence(f, 0.0)))


@pytest.mark.parametrize('stop', [('teacher',), ('fake',), ('teacher', 'fake')])
def test_uni_instruct_breaks_with_a_stop_gradient(stop):
    h = divergences.weight(divergences.get('js'))
    differs(gradient(expectation(uni_instruct(h), stop)), gradient(weighted_fisher(h)))


def test_uni_instruct_of_reverse_kl_is_sid_at_one_half():
    """Which is half of the total gradient of SIM with squared l2."""
    h = divergences.weight(divergences.get('reverse_kl'))
    ours, theirs = (value_and_gradient(expectation(of)) for of in (uni_instruct(h), sid(0.5)))
    for one, other in zip(ours, theirs, strict=True):
        close(one, other, 1e-12)
    close(2 * ours[1], FISHER_GRADIENT, 2e-9)


def images(batch=5):
    """x, d_teacher, d_fake of images, and a weight per sample."""
    rng = np.random.default_rng(0)
    x, d_teacher, d_fake = (jnp.asarray(rng.normal(size=(batch, 3, 2, 2))) for _ in range(3))
    return x, d_teacher, d_fake, jnp.asarray(rng.uniform(0.5, 2, batch))


@pytest.mark.parametrize('alpha', SID)
def test_sid_without_the_networks_is_the_score_gap(alpha):
    """The bridge between the families: x's own part of the gradient is weight (D_F - D_T)/n for
    every alpha."""
    x, d_teacher, d_fake, weight = images()
    stopped = jax.grad(lambda x: jnp.sum(losses.sid(x, d_teacher, d_fake, weight, alpha)))(x)
    close(
        stopped,
        jax.grad(lambda x: jnp.sum(losses.score_gap(x, d_teacher, d_fake, weight)))(x),
        1e-14,
    )
    reverse_kl = gradient(divergence(divergences.get('reverse_kl')))
    close(gradient(expectation(sid(alpha), ('teacher', 'fake'))), reverse_kl / SIGMA**2)


# The pieces of variational score distillation.


def test_entropy_and_conditional_score():
    """A fake score alone is the entropy's gradient; a draw's own score, -eps/sigma, has none: SDS
    knows no entropy."""

    def entropy(theta):
        x, dx = line()
        log_q = student(theta).log_prob(x, SIGMA)
        return -dx * jnp.sum(jnp.exp(log_q) * log_q)

    exact = gradient(entropy)
    close(exact, [-0.30296001, 0.30296001, 0.09711096, 0.08486379], 5e-8)

    _, x_t, mass = draws(THETA)
    weight = jnp.full(len(mass), SIGMA**-2)

    def gap(of):
        def loss(theta):
            x, _, _ = draws(theta)
            return jnp.sum(mass * losses.score_gap(x, *of(stop_gradient(x)), weight))

        return gradient(loss)

    d_teacher, d_fake = teacher().denoise(x_t, SIGMA), student(THETA).denoise(x_t, SIGMA)
    # D = x_t is a score of zero.
    fake_part, teacher_part = gap(lambda x: (x_t, d_fake)), gap(lambda x: (d_teacher, x_t))
    close(fake_part, -exact)
    close(fake_part + teacher_part, gradient(divergence(divergences.get('reverse_kl'))))
    assert np.max(np.abs(gap(lambda x: (x_t, x)))) < 1e-13


# The fake score.


def test_denoising_error_splits_by_pythagoras():
    x, x_t, mass = draws(THETA)
    one = jnp.ones(len(mass))
    d_teacher, d_fake = teacher().denoise(x_t, SIGMA), student(THETA).denoise(x_t, SIGMA)
    best, other = (jnp.sum(mass * losses.denoising(d, x, one)) for d in (d_fake, d_teacher))
    close(best, 0.2291093138, 5e-10)
    close(other, 0.2848903059, 5e-10)
    close(other - best, 0.0557809921, 2e-9)
    close(other - best, jnp.sum(mass * losses.denoising(d_teacher, d_fake, one)), 1e-12)


@pytest.mark.parametrize('weighting', noise.WEIGHTINGS)
def test_denoising_is_minimised_by_the_posterior_mean(weighting):
    """No change of D, at several noise levels together, lowers the loss: for every weight."""
    sigmas = (0.3, 0.6, 1.5)

    def loss(change):
        total = 0.0
        for sigma in sigmas:
            x, x_t, mass = draws(THETA, sigma)
            features = jnp.concatenate(
                [jnp.ones_like(x_t), x_t, jnp.tanh(sigma * x_t), x_t**2 / sigma], axis=-1
            )
            denoised = student(THETA).denoise(x_t, sigma) + features @ change[:, None]
            weight = noise.WEIGHTINGS[weighting](jnp.full(len(mass), sigma), 0.5)
            total += jnp.sum(mass * losses.denoising(denoised, x, weight))
        return total

    slope, curvature = compiled(lambda at: (jax.grad(loss)(at), jax.hessian(loss)(at)))(
        jnp.zeros(4)
    )
    assert np.max(np.abs(slope)) < 1e-9
    assert np.min(np.linalg.eigvalsh(curvature)) > 0


# The discriminator and the ratio.


def teacher_draws():
    """(x_t[N,1], mass[N]) of the teacher."""
    means, stds = np.array([-1.2, 1.0]), np.array([0.35, 0.5])
    _, x_t, mass = draws(np.concatenate([means, np.log(stds)]), weights=(0.35, 0.65))
    return x_t, mass


def log_ratio(x_t):
    return teacher().log_prob(x_t, SIGMA) - student(THETA).log_prob(x_t, SIGMA)


def test_optimal_logit_is_the_log_ratio():
    """No change of the logit lowers the loss, with several heads as with one; a real sample's logit
    is positive."""
    (_, fake_t, fake_mass), (real_t, real_mass) = draws(THETA), teacher_draws()

    def loss(change, heads):
        def logits(x_t):
            features = jnp.concatenate([jnp.ones_like(x_t), x_t, jnp.tanh(x_t), x_t**2], axis=-1)
            return log_ratio(x_t)[:, None] + features @ change[:, None] * jnp.arange(1.0, heads + 1)

        fake, real = logits(fake_t), logits(real_t)
        # Draws of the two have different masses; a logit at infinity takes the other class out.
        of_fake = losses.gan_discriminator(fake, jnp.full_like(fake, jnp.inf))
        of_real = losses.gan_discriminator(jnp.full_like(real, -jnp.inf), real)
        return jnp.sum(fake_mass * of_fake) + jnp.sum(real_mass * of_real)

    for heads in (1, 3):
        derivatives = compiled(
            lambda at, heads=heads: (jax.grad(loss)(at, heads), jax.hessian(loss)(at, heads))
        )
        slope, curvature = derivatives(jnp.zeros(4))
        assert np.max(np.abs(slope)) < 1e-11
        assert np.min(np.linalg.eigvalsh(curvature)) > 0


@pytest.mark.parametrize(
    ('loss', 'name'),
    [
        (losses.gan_generator, 'softened_reverse_kl'),
        (lambda logits: -jax.nn.softplus(logits)[:, 0], 'js'),
        (lambda logits: -logits[:, 0], 'reverse_kl'),
        (lambda logits: -jnp.exp(logits)[:, 0], 'forward_kl'),
    ],
    ids=['gan_generator', 'saturating', 'logit', 'exp'],
)
def test_generator_loss_is_a_divergence(loss, name):
    """With the optimal discriminator each generator loss has the gradient of a divergence, whose h
    is known."""

    def total(theta):
        _, x_t, mass = draws(theta)
        return jnp.sum(mass * loss(log_ratio(x_t)[:, None]))

    actual = gradient(total)
    close(actual, TABLE[name][1], 1e-7)
    close(actual, score_gap_gradient(divergences.weight(divergences.get(name))), 1e-9)


def two_normals(theta):
    """(weights, means, stds) of p_t and of q_t."""
    spread = np.sqrt(np.exp(2 * theta[2:]) + SIGMA**2)
    teachers = [0.35, 0.65], [-1.2, 1.0], np.sqrt(np.array([0.35, 0.5]) ** 2 + SIGMA**2)
    return teachers, ([0.5, 0.5], theta[:2], spread)


def of_normals(weights, means, stds, z, mass):
    """(x[N,1], mass[N]) of a mixture, from nodes of N(0, 1)."""
    x = np.asarray(means)[:, None] + np.asarray(stds)[:, None] * z
    return jnp.asarray(x.reshape(-1, 1)), np.outer(weights, mass).ravel()


def sign_changes(theta=THETA):
    """Where p_t = q_t, by bisection."""

    def gap(x):
        p, q = (
            sum(w * math.exp(-(((x - m) / s) ** 2) / 2) / s for w, m, s in zip(*of))
            for of in two_normals(theta)
        )
        return p - q

    found = []
    for low, high in itertools.pairwise(np.linspace(-3.0, 3.0, 61)):
        if gap(low) * gap(high) < 0:
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if gap(middle) * gap(low) > 0 else (low, middle)
            found.append((low + high) / 2)
    return found


def between(ends, nodes=200):
    """Gauss-Legendre nodes and weights of the line, cut where the integrand jumps."""
    z, weights = np.polynomial.legendre.leggauss(nodes)
    parts = [
        ((high + low) / 2 + (high - low) / 2 * z, (high - low) / 2 * weights)
        for low, high in itertools.pairwise([-12.0, *ends, 12.0])
    ]
    return (np.concatenate(both) for both in zip(*parts))


def total_variation(theta):
    """Of p_t and q_t, from the distribution functions of normals between the points where p_t =
    q_t."""

    def below(x, of):
        return sum(w * 0.5 * math.erfc((m - x) / s / math.sqrt(2)) for w, m, s in zip(*of))

    ends = [-math.inf, *sign_changes(theta), math.inf]
    p, q = (np.diff([below(end, of) for end in ends]) for of in two_normals(theta))
    return 0.5 * np.abs(p - q).sum()


def test_hinge_is_the_total_variation():
    """Its optimal logit is sign(p - q), of loss 2 (1 - TV); the generator's loss changes as 2 TV
    does, along the density of the samples, while along a sample's path it does not change at all:
    what a student learns from is the way in which a network falls short of the optimum."""
    ends = sign_changes()
    x, weights = between(ends)
    x = jnp.asarray(x)[:, None]
    p = jnp.exp(teacher().log_prob(x, SIGMA))
    hinge, optimal = losses.GANS['hinge'], jnp.sign(log_ratio(x))[:, None]

    def loss(logits):
        real = hinge.discriminator(jnp.full_like(logits, -jnp.inf), logits)
        fake = hinge.discriminator(logits, jnp.full_like(logits, jnp.inf))
        q = jnp.exp(student(THETA).log_prob(x, SIGMA))
        return jnp.sum(weights * (p * real + q * fake))

    close(loss(optimal), 2 * (1 - total_variation(THETA)), 1e-10)
    for change in (0.1, -0.1, 0.1 * jnp.sin(x), 0.3 * x):
        assert loss(optimal + change) > loss(optimal) + 1e-4
    assert loss(1.2 * optimal) > loss(optimal) + 1e-4

    def generator(theta):
        q = jnp.exp(student(theta).log_prob(x, SIGMA))
        return jnp.sum(weights * q * hinge.generator(optimal, optimal))

    step = 1e-5
    expected = [
        (total_variation(THETA + step * unit) - total_variation(THETA - step * unit)) / (2 * step)
        for unit in np.eye(4)
    ]
    close(gradient(generator), 2 * np.array(expected), 1e-6)

    def along_paths(theta):
        _, x_t, mass = draws(theta)
        logits = jnp.sign(log_ratio(x_t))[:, None]
        return jnp.sum(mass * hinge.generator(logits, logits))

    assert not np.any(gradient(along_paths))


def test_relativistic_loss_has_the_log_ratio_for_its_optimum():
    """Up to a constant, which no pair sees; then its h is E_{y ~ p} r(y)/(r(y) + r), and not that
    of softplus."""
    relativistic, (z, mass) = losses.GANS['relativistic'], normal(60)
    # Fewer than `teacher_draws`: of p_t and q_t themselves, which are two normals each.
    (real_t, real_mass), (fake_t, fake_mass) = (
        of_normals(*of, z, mass) for of in two_normals(THETA)
    )
    real = log_ratio(real_t) + 0.7

    def against_all(loss, fake):
        """E over the real samples of each fake sample's loss."""

        def one(logit):
            return loss(fake, jnp.full_like(fake, logit))

        return real_mass @ jax.vmap(one)(real)

    def generator(theta):
        _, x_t, mass = draws(theta)
        fake = log_ratio(x_t)[:, None] + 0.7
        return jnp.sum(mass * against_all(relativistic.generator, fake))

    def h(r):
        of_real = jnp.exp(log_ratio(real_t))
        return real_mass @ (of_real[:, None] / (of_real[:, None] + r))

    actual = gradient(generator)
    close(actual, score_gap_gradient(h), 1e-8)
    assert np.max(np.abs(actual - np.array(TABLE['softened_reverse_kl'][1]))) > 8e-3

    def discriminator(change):
        def logits(x_t):
            features = jnp.concatenate([x_t, jnp.tanh(x_t), x_t**2], axis=-1)
            return log_ratio(x_t)[:, None] + features @ change[:, None]

        fake, of_real = logits(fake_t), logits(real_t)[:, 0]

        def one(logit):
            return relativistic.discriminator(fake, jnp.full_like(fake, logit))

        return real_mass @ jax.vmap(one)(of_real) @ fake_mass

    derivatives = compiled(lambda at: (jax.grad(discriminator)(at), jax.hessian(discriminator)(at)))
    slope, curvature = derivatives(jnp.zeros(3))
    assert np.max(np.abs(slope)) < 1e-8
    assert np.min(np.linalg.eigvalsh(curvature)) > 0


def test_softplus_of_the_table_is_that_of_the_critic():
    fake, real = jnp.asarray([[0.3, -1.0]]), jnp.asarray([[2.0, 0.1]])
    softplus = losses.GANS['softplus']
    np.testing.assert_array_equal(softplus.generator(fake, real), losses.gan_generator(fake))
    np.testing.assert_array_equal(
        softplus.discriminator(fake, real), losses.gan_discriminator(fake, real)
    )


def test_a_gradient_in_proportion():
    """Whatever the scale of a loss: the gradient has length 1/sqrt(N) where its square is its own,
    and the value is none."""
    rng = np.random.default_rng(0)
    x, gradient_ = jnp.asarray(rng.normal(size=(2, 4, 3)))
    for scale in (1e-3, 1.0, 1e3):
        square = gradient_.size * jnp.sum((scale * gradient_) ** 2)
        value, found = jax.value_and_grad(losses.in_proportion)(x, scale * gradient_, square)
        assert value == 0
        np.testing.assert_allclose(jnp.linalg.norm(found), 1 / np.sqrt(12), rtol=1e-4)
        np.testing.assert_allclose(found, found[0, 0] / gradient_[0, 0] * gradient_, rtol=1e-9)


UNCLIPPED = dict(logit_clip=1e3, low=0.0, high=np.inf)


def test_ratio_at_the_optimal_logit():
    _, x_t, mass = draws(THETA)
    r = losses.ratio_from_logits(log_ratio(x_t)[:, None], **UNCLIPPED)
    close(r, ratio(), 1e-12)
    close(jnp.sum(mass * r), 1.0, 1e-10)
    at = jnp.asarray([-4.0, -2, -1, 0, 1, 2, 3, 5])[:, None]
    expected = [2.01, 1.40, 0.750, 0.592, 1.241, 2.673, 7.315, 127]
    np.testing.assert_allclose(
        losses.ratio_from_logits(log_ratio(at)[:, None], **UNCLIPPED), expected, rtol=4e-3
    )


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('softened_reverse_kl', 0.52687148),
        ('js', 0.47312852),
        ('squared_hellinger', 0.24296468),
        ('forward_kl', 1.0),
        ('jeffreys', 2.0),
        ('neyman', 2.41685965),
        ('pearson', 2.65701246),
        ('le_cam', 0.90088),
    ],
)
def test_mean_weight(name, expected):
    _, _, mass = draws(THETA)
    mean = jnp.sum(mass * divergences.weight(divergences.get(name))(ratio()))
    close(mean, expected, 3e-6 if name == 'le_cam' else 3e-8)


def test_ratio_is_the_mean_logit_clipped_twice():
    logits = jnp.asarray([[1.0, 3.0], [0.0, 0.0], [-40.0, 0.0], [50.0, 50.0], [-2.0, -2.0]])
    np.testing.assert_allclose(
        losses.ratio_from_logits(logits), [np.exp(2.0), 1.0, 0.1, 20.0, np.exp(-2.0)], rtol=1e-12
    )
    by_logit = losses.ratio_from_logits(logits, logit_clip=1.0, low=0.0, high=np.inf)
    np.testing.assert_allclose(by_logit, np.exp([1.0, 0.0, -1.0, 1.0, -1.0]), rtol=1e-12)
    assert not np.any(jax.jacobian(losses.ratio_from_logits)(logits))


def share(r):
    """r by its mean, as the second stage has it where h(r) = r."""
    return losses.normalise_weight(lambda r: r, r)(r)


def ratios(batch=64):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.lognormal(size=batch)), jnp.asarray(rng.uniform(size=batch))


def test_constant_ratio_within_a_bin_becomes_one():
    position = jnp.asarray([0.0, 0.05, 0.3, 0.35, 0.99, 1.0])
    normalised, bins = losses.normalise_ratio(
        jnp.asarray([2.0, 2, 0.5, 0.5, 7, 7]), position, jnp.ones(10), 0.0
    )
    np.testing.assert_allclose(normalised, np.ones(6), rtol=3e-6)
    np.testing.assert_allclose(bins, [2, 1, 1, 0.5, 1, 1, 1, 1, 1, 7], rtol=1e-12)


def test_running_mean_of_the_bins():
    bins, expected = jnp.ones(2), np.ones(2)
    for ratio_of_first in (3.0, 5.0, 4.0):
        r = jnp.asarray([ratio_of_first, ratio_of_first + 2])
        normalised, bins = losses.normalise_ratio(r, jnp.asarray([0.1, 0.4]), bins, 0.9)
        # The second bin is empty and stays.
        expected = np.array([0.9 * expected[0] + 0.1 * (ratio_of_first + 1), 1.0])
        np.testing.assert_allclose(bins, expected, rtol=1e-12)
        np.testing.assert_allclose(normalised, r / expected[0], rtol=2e-6)


def test_positions_outside_the_law_fall_into_the_end_bins():
    _, bins = losses.normalise_ratio(
        jnp.asarray([3.0, 5.0]), jnp.asarray([-0.2, 1.3]), jnp.ones(4), 0.0
    )
    np.testing.assert_allclose(bins, [3, 1, 1, 5])


def test_normalisation_of_a_permuted_batch():
    r, position = ratios()
    order = np.random.default_rng(2).permutation(len(r))
    normalised, bins = losses.normalise_ratio(r, position, jnp.ones(10), 0.5)
    permuted, permuted_bins = losses.normalise_ratio(r[order], position[order], jnp.ones(10), 0.5)
    close(permuted, normalised[order], 1e-14)
    close(permuted_bins, bins, 1e-14)
    close(share(r[order]), share(r)[order], 1e-14)


def test_normalisation_of_a_sharded_batch_is_global():
    r, position = ratios()
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spread, whole = NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())

    def both(r, position):
        normalised, bins = losses.normalise_ratio(r, position, jnp.ones(10), 0.5)
        return normalised, bins, share(r)

    sharded = compiled(both, in_shardings=spread, out_shardings=(spread, whole, spread))(
        r, position
    )
    for actual, expected in zip(sharded, both(r, position), strict=True):
        close(actual, expected, 1e-14)


def test_normalised_weight_has_mean_one():
    r, _ = ratios()
    for f in divergences.DIVERGENCES.values():
        h = losses.normalise_weight(divergences.weight(f), r)
        assert float(jnp.mean(h(r))) == pytest.approx(1, abs=1e-5)


def test_normalisation_has_no_gradient():
    r, position = ratios()
    assert not np.any(
        jax.jacobian(lambda r: losses.normalise_ratio(r, position, jnp.ones(10), 0.5))(r)[0]
    )


# Two dimensions, where the norm in SIM is that of a vector.


def teacher_in_the_plane():
    return mixture([0.35, 0.65], [[-0.8, 0.3], [0.7, -0.2]], [0.35, 0.5])


@pytest.mark.parametrize('name', SIM)
def test_sim_in_the_plane(name):
    distance = DISTANCES[name]()
    p = teacher_in_the_plane()
    start = jnp.asarray([[-0.5, 0.2], [0.6, 0.1]])

    def q(means):
        return mixture([0.5, 0.5], np.zeros((2, 2)), [0.45, 0.40])._replace(means=means)

    def exact(means):
        x, dx = line(7.0, 141)
        plane = np.stack(np.meshgrid(x[:, 0], x[:, 0]), axis=-1).reshape(-1, 2)
        density = jnp.exp(q(start).log_prob(plane, SIGMA))
        return dx**2 * jnp.sum(
            density * distance(q(means).score(plane, SIGMA) - p.score(plane, SIGMA))
        )

    def loss(means):
        z, mass = normal(24)
        z = np.stack(np.meshgrid(z, z, z, z, indexing='ij'), axis=-1).reshape(-1, 4)
        mass = functools.reduce(np.multiply.outer, [mass] * 4).ravel()
        total = 0.0
        for k, std in enumerate((0.45, 0.40)):
            x = means[k] + std * z[:, :2]
            x_t = x + SIGMA * z[:, 2:]
            scale = jnp.full(len(z), SIGMA**-2)
            per_sample = losses.implicit(
                x, p.denoise(x_t, SIGMA), q(start).denoise(x_t, SIGMA), scale, distance
            )
            total += 0.5 * jnp.sum(mass * per_sample)
        return total

    close(compiled(jax.grad(loss))(start), compiled(jax.grad(exact))(start), 1e-6)


# The losses as functions of arrays, without distributions.


def test_score_gap_gradient_on_images():
    x, d_teacher, d_fake, weight = images()

    def loss(x, d_teacher, d_fake, weight):
        return jnp.mean(losses.score_gap(x, d_teacher, d_fake, weight))

    in_x, *others = jax.grad(loss, argnums=(0, 1, 2, 3))(x, d_teacher, d_fake, weight)
    g = weight[:, None, None, None] * (d_fake - d_teacher)
    close(in_x, g / x.size, 1e-14)
    assert not any(np.any(other) for other in others)
    close(loss(x, d_teacher, d_fake, weight), 0.5 * jnp.mean(g**2), 1e-14)


def test_score_gap_is_the_pseudo_target_loss():
    x, d_teacher, d_fake, weight = images()

    def pseudo_target(x):
        g = weight[:, None, None, None] * (d_fake - d_teacher)
        return 0.5 * jnp.mean((x - stop_gradient(x - g)) ** 2)

    for reference, actual in zip(
        jax.value_and_grad(pseudo_target)(x),
        jax.value_and_grad(lambda x: jnp.mean(losses.score_gap(x, d_teacher, d_fake, weight)))(x),
        strict=True,
    ):
        close(actual, reference, 1e-12)


def test_weights_of_the_gap():
    x, d_teacher, _, sigma = images()
    assert losses.WEIGHTS.keys() == {'dmd', 'unit', 'eps', 'score', 'flow'}
    expected = {
        'dmd': 1 / np.mean(np.abs(x - d_teacher), axis=(1, 2, 3)),
        'unit': np.ones(len(sigma)),
        'eps': 1 / sigma,
        'score': 1 / sigma**2,
        'flow': ((1 + sigma) / sigma) ** 2,
    }
    for name, of in losses.WEIGHTS.items():
        close(of(x, d_teacher, sigma), expected[name], 3e-6)
    assert not np.any(jax.jacobian(losses.dmd_weight)(x, d_teacher))


@pytest.mark.parametrize('alpha', SID)
def test_sid_in_its_other_form(alpha):
    x, d_teacher, d_fake, weight = images()
    delta = d_teacher - d_fake
    other = weight * jnp.mean(delta * ((d_teacher - x) - alpha * delta), axis=(1, 2, 3))
    close(losses.sid(x, d_teacher, d_fake, weight, alpha), other, 1e-13)


def test_sid_is_half_of_sim_on_images():
    x, d_teacher, d_fake, scale = images()
    n = x[0].size
    close(
        2 * losses.sid(x, d_teacher, d_fake, n * scale**2, 1.0),
        losses.implicit(x, d_teacher, d_fake, scale, losses.squared_l2),
        1e-13,
    )


def test_distances():
    y = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [3e-4, 4e-4]])
    np.testing.assert_allclose(losses.squared_l2(y), [25, 0, 25e-8], rtol=1e-12)
    np.testing.assert_allclose(losses.pseudo_huber(12.0)(y)[:2], [1, 0], rtol=1e-12)
    np.testing.assert_allclose(losses.pseudo_huber(0.1)(y)[2], 25e-8 / 0.2, rtol=1e-4)
    assert np.all(np.isfinite(jax.jacobian(losses.pseudo_huber(0.1))(y)))
    for c in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match='c must be > 0'):
            losses.pseudo_huber(c)


def affine():
    """A student x = shift + scale z, as a `Denoiser` at sigma_init = 1."""
    params = {'shift': jnp.asarray([0.2, -0.1]), 'scale': jnp.asarray(0.8)}
    return Denoiser(
        lambda key, x, condition: params,
        lambda params, x, sigma, condition, key=None: (
            params['shift'] + params['scale'] * x,
            (x,),
        ),
    )


def test_f_distill_with_a_constant_weight_is_dmd2():
    """Bitwise: h = 1 must cost nothing, not even rounding."""
    head = Denoiser(None, lambda params, features, c_noise, condition: features[0] @ params)
    law = noise.lognormal()
    options = dict(
        student_law=law,
        critic_law=law,
        steps=Steps(sigma_init=1.0),
        gan=Gan(head, gan_weight=0.1, features='input'),
        tracking=Tracking(from_teacher=False),
    )
    networks = affine(), teacher_in_the_plane().denoiser(), affine()
    methods = dmd2(*networks, **options), f_distill(*networks, divergence='reverse_kl', **options)
    params = {
        'student': affine().init(None, None, None),
        'critic': {
            'fake_score': affine().init(None, None, None),
            'discriminator': jnp.asarray([[0.3], [-0.2]]),
        },
    }
    batch = {'x': jnp.zeros((16, 2)), 'condition': {}}

    def student_gradient(chosen):
        def loss(student):
            return chosen.losses['student'](
                {**params, 'student': student}, method.Context({}), batch, jax.random.key(0)
            )[0]

        return compiled(jax.grad(loss))(params['student'])

    jax.tree.map(np.testing.assert_array_equal, *map(student_gradient, methods))


# Who is trained when.


@pytest.mark.parametrize(
    ('name', 'every', 'expected'),
    [
        ('alternate', 1, ['critic student'] * 10),
        ('alternate', 5, (['critic'] * 4 + ['critic student']) * 2),
        ('dmd2', 1, ['student critic'] * 10),
        ('dmd2', 5, (['student critic'] + ['critic'] * 4) * 2),
        ('fastgen', 5, (['critic'] * 4 + ['student']) * 2),
    ],
)
def test_cycle(name, every, expected):
    cycle = method.make_cycle(name, every)
    assert [' '.join(cycle(step)) for step in range(10)] == expected
    burning = method.make_cycle(name, every, burn_in=6)
    assert [' '.join(burning(step)) for step in range(10)] == ['critic'] * 6 + expected[6:]


def test_cycles_of_the_specification():
    dmd2_cycle, fastgen = method.make_cycle('dmd2', 5), method.make_cycle('fastgen', 5)
    assert [step for step in range(10) if 'student' in dmd2_cycle(step)] == [0, 5]
    assert all('critic' in dmd2_cycle(step) for step in range(10))
    # FastGen counts iterations from 1.
    assert [step + 1 for step in range(10) if fastgen(step) == ('student',)] == [5, 10]
    assert [step + 1 for step in range(10) if fastgen(step) == ('critic',)] == [
        1,
        2,
        3,
        4,
        6,
        7,
        8,
        9,
    ]


@pytest.mark.parametrize(
    ('name', 'every', 'message'),
    [
        ('dmd3', 5, 'known are alternate, dmd2, fastgen'),
        ('dmd2', 0, '>= 1'),
        ('fastgen', 1, '>= 2'),
        ('dmd2', 2.5, 'whole'),
    ],
)
def test_cycle_refuses(name, every, message):
    with pytest.raises(ValueError, match=message):
        method.make_cycle(name, every)


@pytest.mark.parametrize('steps', [-1, 2.5])
def test_burn_in_is_of_whole_steps(steps):
    with pytest.raises(ValueError, match='burn_in'):
        method.make_cycle('alternate', 1, steps)
