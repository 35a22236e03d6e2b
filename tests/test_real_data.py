"""Methods with real data against theory, in float64 and by quadrature, with the fixture of
test_identities: data that neither the teacher nor the student has, exact networks, and the fake
score that the critic's regression leads to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import compiled
from test_identities import (
    ALL,
    FISHER_GRADIENT,
    SIGMA,
    TABLE,
    THETA,
    close,
    differs,
    divergence,
    draws,
    gradient,
    images,
    line,
    log_ratio,
    student,
    teacher,
    value_and_gradient,
)

from fdistill import divergences
from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.oracle import mixture
from fdistill.methods import losses, method, real_data
from fdistill.methods.critic import Gan, make_critic
from fdistill.methods.method import Tracking
from fdistill.networks import Head

pytestmark = pytest.mark.usefixtures('x64')

DATA = np.array([-0.9, 1.2, np.log(0.4), np.log(0.45)])
SHARES = (0.6, 0.4)
# (alpha, beta): within what the paper's code advises, equal, and beyond.
PAIRS = [(0.92, 0.94), (0.9, 0.8), (0.85, 0.85), (0.5, 0.9), (0.9, 1.1)]


def data():
    return mixture(SHARES, DATA[:2, None], np.exp(DATA[2:]))


def density(of, x, sigma=SIGMA):
    return jnp.exp(of.log_prob(x, sigma))[:, None]


def minimiser(real, x_t, sigma=SIGMA, q=None):
    """D_F of the regression `real` on the student of THETA, and on data: the mean of the targets,
    each linear in x, under the posterior of x."""
    q, p = q or student(THETA), data()
    means = q.denoise(x_t, sigma), p.denoise(x_t, sigma)
    targets = [
        target(mean, x_t, jnp.full(len(x_t), sigma), lambda: teacher().denoise(x_t, sigma))
        for target, mean in zip(real.targets, means, strict=True)
    ]
    shares = jax.nn.softmax(
        jnp.stack(
            [
                jnp.log(weight) + of.log_prob(x_t, sigma)
                for weight, of in zip(real.weights, (q, p), strict=True)
            ]
        ),
        axis=0,
    )
    return sum(share[:, None] * target for share, target in zip(shares, targets, strict=True))


REGRESSIONS = {
    'split': (real_data.split, PAIRS),
    'reflected': (real_data.reflected, [(0.3,), (1.0,)]),
}


@functools.cache
def _slope_and_curvature(name):
    of_student, of_data = draws(THETA), draws(DATA, weights=SHARES)

    def loss(change, settings):
        total, real = 0.0, REGRESSIONS[name][0](*settings)
        for weight, target, (x, x_t, mass) in zip(
            real.weights, real.targets, (of_student, of_data), strict=True
        ):
            features = jnp.concatenate(
                [jnp.ones_like(x_t), x_t, jnp.tanh(x_t), jnp.cos(x_t)], axis=-1
            )
            denoised = minimiser(real, x_t) + features @ change[:, None]
            sigma = jnp.full(len(mass), SIGMA)
            y = target(x, x_t, sigma, lambda x_t=x_t: teacher().denoise(x_t, SIGMA))
            total += weight * jnp.sum(mass * losses.denoising(denoised, y, jnp.ones(len(mass))))
        return total

    return compiled(lambda *at: (jax.grad(loss)(*at), jax.hessian(loss)(*at)))


@pytest.mark.parametrize(
    ('name', 'settings'), [(name, row) for name, (_, rows) in REGRESSIONS.items() for row in rows]
)
def test_regression_on_two_kinds_of_samples_has_this_minimiser(name, settings):
    """No change of D lowers the loss, summed over the two kinds of samples."""
    slope, curvature = _slope_and_curvature(name)(jnp.zeros(4), settings)
    assert np.max(np.abs(slope)) < 1e-9
    assert np.min(np.linalg.eigvalsh(curvature)) > 0


# RealUID.


def uid(theta, alpha, beta, sigma=SIGMA, stop=()):
    """E of the student's loss, the networks being those of THETA."""
    x, x_t, mass = draws(theta, sigma)
    d_teacher, d_fake = (
        jax.lax.stop_gradient(d) if name in stop else d
        for name, d in (
            ('teacher', teacher().denoise(x_t, sigma)),
            ('fake', minimiser(real_data.split(alpha, beta), x_t, sigma)),
        )
    )
    level, weight = jnp.full(len(mass), sigma), jnp.full(len(mass), (1 + 1 / sigma) ** 2)
    return jnp.sum(mass * losses.real_uid(x, x_t, level, d_teacher, d_fake, weight, alpha, beta))


def uid_divergence(theta, alpha, beta, sigma=SIGMA):
    """E_m weight |D_F - D_T|^2 by quadrature."""
    x, dx = line()
    q, p = (density(of, x, sigma) for of in (student(theta), data()))
    d_q, d_p, d_t = (of.denoise(x, sigma) for of in (student(theta), data(), teacher()))
    gap = beta * q * (d_q - d_t) + (1 - beta) * p * (d_p - d_t)
    gap += (beta - alpha) * (q - p) * (d_t - x / (1 + sigma))
    return dx * (1 + 1 / sigma) ** 2 * jnp.sum(gap**2 / (alpha * q + (1 - alpha) * p))


_uid_gradient, _uid_exact = (compiled(jax.grad(of)) for of in (uid, uid_divergence))


@pytest.mark.parametrize(
    ('alpha', 'beta', 'sigma'), [*((*pair, SIGMA) for pair in PAIRS), (*PAIRS[0], 0.75)]
)
def test_real_uid_is_the_gradient_of_its_divergence(alpha, beta, sigma):
    at = jnp.asarray(THETA), alpha, beta, sigma
    close(_uid_gradient(*at), _uid_exact(*at))


def test_real_uid_without_data_is_the_fisher_divergence():
    """The limit alpha = beta = 1, for weight n/sigma^4."""
    close(
        _uid_exact(jnp.asarray(THETA), 1.0, 1.0, SIGMA),
        np.array(FISHER_GRADIENT) * SIGMA**4 * (1 + 1 / SIGMA) ** 2,
        2e-7,
    )


@pytest.mark.parametrize('stop', [('teacher',), ('fake',), ('teacher', 'fake')])
def test_real_uid_breaks_with_a_stop_gradient(stop):
    stopped = compiled(jax.grad(functools.partial(uid, stop=stop)))
    differs(stopped(jnp.asarray(THETA), 0.9, 0.8), _uid_exact(jnp.asarray(THETA), 0.9, 0.8, SIGMA))


def test_real_uid_without_data_is_sid_at_one_half():
    x, d_teacher, d_fake, weight = images()
    sigma = weight[::-1]
    close(
        losses.real_uid(x, x + 1, sigma, d_teacher, d_fake, weight, 1.0, 1.0),
        2 * losses.sid(x, d_teacher, d_fake, weight, 0.5),
        1e-13,
    )


@pytest.mark.parametrize(('alpha', 'beta'), PAIRS)
def test_real_uid_in_velocities(alpha, beta):
    """The paper's form: velocities u of t = 1/(1 + sigma) against beta/alpha times x - eps."""
    x, d_teacher, d_fake, weight = images()
    sigma = weight[::-1]
    level = sigma[:, None, None, None]
    eps = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))

    def velocity(d):
        return d - (x + level * eps - d) / level

    def error(d):
        return jnp.mean((velocity(d) - beta / alpha * (x - eps)) ** 2, axis=(1, 2, 3))

    flow = losses.WEIGHTS['flow'](x, d_teacher, sigma)
    actual = losses.real_uid(x, x + level * eps, sigma, d_teacher, d_fake, flow, alpha, beta)
    close(actual, alpha * (error(d_teacher) - error(d_fake)), 1e-12)


# (alpha, beta): the student's loss and the norm of its gradient in x, the critic's and that in the
# network's weights, of `dist_loss` of the paper's code on the tensors of `_recorded`, in float64.
RECORDED = {
    (1.0, 1.0): (29.4664459622, 9.84250068859, 119.32429998, 56.3678697399),
    (0.92, 0.94): (27.5847926837, 9.25911834047, 119.954727963, 53.6879219222),
    (0.98, 0.96): (28.4014546445, 9.44247536484, 121.013051071, 54.7353763092),
    (0.9, 0.88): (26.0441389676, 8.65511325272, 119.592472916, 51.5028572285),
    (0.92, 0.86): (25.6821430899, 8.44851967302, 123.306764379, 50.9663422676),
}


@functools.cache
def _recorded(alone):
    """(alpha, beta) -> what `RECORDED` has, of two velocity networks; `alone`: without data."""
    rng = np.random.default_rng(0)
    eps, generated, real = (rng.normal(size=(6, 48)) for _ in range(3))
    t = rng.uniform(0.05, 0.95, 6)
    weights, of_teacher = (rng.normal(size=(48, 48)) / 7 for _ in range(2))
    sigma, n = (1 - t) / t, 48
    flow = losses.WEIGHTS['flow'](None, None, sigma)

    def denoise(weights, x_t):
        z = x_t * t[:, None]
        velocity = jnp.tanh(z @ weights) * (1 + t[:, None]) + 0.3 * z
        return (sigma[:, None] * velocity + x_t) * t[:, None]

    def noised(x):
        return x + sigma[:, None] * eps

    def student_loss(x, alpha, beta):
        x_t = noised(x)
        pair = denoise(of_teacher, x_t), denoise(weights, x_t)
        return n * jnp.mean(losses.real_uid(x, x_t, sigma, *pair, flow, alpha, beta))

    def critic_loss(weights, alpha, beta):
        kinds = [(1.0, lambda x, *_: x, generated)]
        if not alone:
            kinds = zip(*real_data.split(alpha, beta), (generated, real), strict=True)
        total = 0.0
        for share, target, x in kinds:
            y, d_fake = target(x, noised(x), sigma, None), denoise(weights, noised(x))
            total += share * n * jnp.mean(losses.denoising(d_fake, y, flow))
        return total

    def all_of(alpha, beta):
        value, in_x = jax.value_and_grad(student_loss)(jnp.asarray(generated), alpha, beta)
        error, in_weights = jax.value_and_grad(critic_loss)(jnp.asarray(weights), alpha, beta)
        return jnp.stack([value, jnp.linalg.norm(in_x), error, jnp.linalg.norm(in_weights)])

    return compiled(all_of)


@pytest.mark.parametrize(('alpha', 'beta'), RECORDED)
def test_real_uid_is_what_the_papers_code_computes(alpha, beta):
    found = _recorded(alpha == 1)(alpha, beta)
    np.testing.assert_allclose(found, RECORDED[alpha, beta], rtol=1e-10)


@pytest.mark.parametrize(('alpha', 'beta'), PAIRS)
def test_real_uid_rests_at_the_data_of_an_exact_teacher(alpha, beta):
    """With student and teacher the data, the fake score is the teacher."""
    x, _ = line(4.0, 101)
    d_fake = minimiser(real_data.split(alpha, beta), x, q=data())
    close(d_fake, data().denoise(x, SIGMA), 1e-12)


def test_real_uid_with_equal_shares_leads_away_from_the_data():
    """A flawed teacher: with beta = alpha the student that fits lies on the other side of it."""
    alpha = 0.8
    p, p_t = data(), teacher()
    x, dx = line()
    beyond = (density(p_t, x) - (1 - alpha) * density(p, x)) / alpha
    means = [jnp.sum(x * of) * dx for of in (density(p, x), density(p_t, x), beyond)]
    assert means[0] < means[1] < means[2]
    # Its own regression is then met by the teacher: alpha q + (1 - alpha) p = p_T.
    slope = jnp.gradient(beyond[:, 0], dx)[:, None]
    masses = alpha * beyond, (1 - alpha) * density(p, x)
    d_beyond = x + SIGMA**2 * slope / beyond
    d_fake = (masses[0] * d_beyond + masses[1] * p.denoise(x, SIGMA)) / sum(masses)
    inner = np.abs(x[:, 0]) < 2
    np.testing.assert_allclose(d_fake[inner], p_t.denoise(x, SIGMA)[inner], atol=1e-4)


def test_real_uid_does_not_mend_a_teacher_without_a_mode():
    """Of two equal modes the teacher knows one. The divergence of a student with share w of the
    other is least at w = 0; far beyond what the paper advises, (beta - alpha)/(1 - alpha) = 11,
    still far from 1/2, where that of data forcing is 0."""
    rests = {(0.92, 0.94): 0, (0.98, 0.96): 0, (0.9, 0.8): 0, (0.9, 1.1): 0, (0.9, 2.0): 0.15}
    shares = np.linspace(0, 0.5, 11)
    x, dx = line(8.0, 801)
    of_uid, of_forcing = {pair: np.zeros(11) for pair in rests}, np.zeros(11)

    @jax.jit
    def parts(share, sigma):
        weights = jnp.stack([1 - share, share])
        of = mixture([0.5, 0.5], [[-1.0], [1.0]], 0.25)._replace(weights=weights)
        return density(of, x, sigma), of.denoise(x, sigma)

    for sigma in (0.1, 0.3, 1.0, 3.0):
        (p, d_p), (p_t, d_t) = (map(np.asarray, parts(share, sigma)) for share in (0.5, 1e-6))
        for i, share in enumerate(np.maximum(shares, 1e-6)):
            q, d_q = map(np.asarray, parts(share, sigma))
            of_forcing[i] += dx * np.sum((q - p) ** 2 / p_t)
            for (alpha, beta), found in of_uid.items():
                gap = beta * q * (d_q - d_t) + (1 - beta) * p * (d_p - d_t)
                gap += (beta - alpha) * (q - p) * (d_t - x / (1 + sigma))
                found[i] += dx * np.sum(gap**2 / (alpha * q + (1 - alpha) * p))
    for pair, found in of_uid.items():
        assert shares[np.argmin(found)] == pytest.approx(rests[pair]), pair
    assert np.argmin(of_forcing) == 10 and of_forcing[10] == 0


# Data forcing.


def forced_gap(theta, forcing, weight):
    """E of score_gap with the fake score of THETA, a function of theta."""
    x, x_t, mass = draws(theta)
    d_fake = minimiser(real_data.reflected(forcing), x_t)
    return jnp.sum(mass * losses.score_gap(x, teacher().denoise(x_t, SIGMA), d_fake, weight))


@pytest.mark.parametrize('forcing', [0.3, 1.0])
def test_data_forcing_is_a_gradient_up_to_a_weight(forcing):
    """Of int (q - k p)^2/(2 p_T), with weight m/(sigma^2 p_T) in x_t."""

    def chi(theta):
        x, dx = line()
        q, p, p_t = (density(of, x) for of in (student(theta), data(), teacher()))
        return 0.5 * dx * jnp.sum((q - forcing * p) ** 2 / p_t)

    _, x_t, _ = draws(THETA)
    q, p, p_t = (density(of, x_t)[:, 0] for of in (student(THETA), data(), teacher()))
    weight = (q + forcing * p) / p_t / SIGMA**2
    actual = gradient(lambda theta: forced_gap(theta, forcing, weight))
    close(actual, gradient(chi))
    differs(gradient(lambda theta: forced_gap(theta, 0.6, weight)), gradient(chi))


def mixed(share):
    """share p + (1 - share) p_T."""
    p, p_t = data(), teacher()
    if share in (0, 1):
        return p if share else p_t
    weights = np.concatenate([share * p.weights, (1 - share) * p_t.weights])
    return mixture(
        weights, np.concatenate([p.means, p_t.means]), np.concatenate([p.stds, p_t.stds])
    )


@pytest.mark.parametrize('forcing', [0.3, 1.0])
def test_data_forcing_rests_where_it_should(forcing):
    """There the fake score is the flawed teacher everywhere, and nowhere else."""
    x, _ = line(4.0, 101)
    real, d_teacher = real_data.reflected(forcing), teacher().denoise(x, SIGMA)
    close(minimiser(real, x, q=mixed(forcing)), d_teacher, 1e-12)
    for other in (mixed(0.0), mixed(forcing - 0.2), student(THETA)):
        assert np.max(np.abs(minimiser(real, x, q=other) - d_teacher)) > 0.01


def test_difference_of_the_teacher_between_two_samples_does_not_rest_at_the_data():
    """Negative control: D_T at a real sample less D_T at the student's, added to DMD's gap, moves
    a student that is right, even with an exact teacher."""
    _, real_t, real_mass = draws(DATA, weights=SHARES)
    d_data = jnp.sum(real_mass * data().denoise(real_t, SIGMA)[:, 0])
    close(d_data, np.dot(SHARES, DATA[:2]), 1e-9)
    x, _ = line(2.0, 41)
    assert np.max(np.abs(d_data - data().denoise(x, SIGMA))) > 1


@pytest.mark.parametrize('forcing', [0.3, 1.0])
def test_data_forcing_with_an_exact_teacher_is_a_divergence(forcing, monkeypatch):
    """h = 1/(1 + k r); softened reverse KL for k = 1."""
    exact = teacher()
    monkeypatch.setitem(globals(), 'data', lambda: exact)
    _, x_t, _ = draws(THETA)
    weight = jnp.full(len(x_t), SIGMA**-2)
    actual = gradient(lambda theta: forced_gap(theta, forcing, weight))
    if forcing == 1:
        close(actual, TABLE['softened_reverse_kl'][1], 1e-7)
    else:
        # f'' = h/r^2 = 1/(r^2 (1 + k r)).
        k = forcing

        def f(r):
            return (k * r + 1) * jnp.log((k + 1 / r) / (1 + k))

        close(actual, gradient(divergence(f)))


# DiffRatio.


def ratio_critic(heads=1):
    """A critic whose logit is log p/q, with several heads of that mean."""

    def apply(params, features, c_noise, condition):
        sigma = jnp.exp(4 * c_noise)
        x_t = features[0] * jnp.sqrt(1 + sigma**2)[:, None]
        offsets = jnp.arange(heads) - (heads - 1) / 2
        return log_ratio(x_t)[:, None] * (1 + offsets)

    head = Head(lambda *given: {}, apply)
    tracking = Tracking(from_teacher=False)
    law = noise.lognormal()
    return make_critic(
        None, None, None, law=law, tracking=tracking, gan=Gan(head, features='input')
    )


@pytest.mark.parametrize('heads', [1, 3])
def test_gap_of_the_ratio_is_that_of_the_denoisers(heads):
    _, x_t, _ = draws(THETA)
    params, sigma = {'discriminator': {}}, jnp.full(len(x_t), SIGMA)
    critic = ratio_critic(heads)
    gap, none, logits = critic.evaluate(params, method.Context({}), x_t, sigma, {})
    close(gap - none, teacher().denoise(x_t, SIGMA) - student(THETA).denoise(x_t, SIGMA), 1e-10)
    close(jnp.mean(logits, axis=-1), log_ratio(x_t), 1e-12)


@functools.cache
def _ratio_gradient():
    def loss(theta, weight):
        x, x_t, mass = draws(theta)
        sigma = jnp.full(len(mass), SIGMA)
        params = {'discriminator': {}}
        gap, none, _ = ratio_critic().evaluate(params, method.Context({}), x_t, sigma, {})
        return jnp.sum(mass * losses.score_gap(x, gap, none, weight))

    return compiled(jax.grad(loss))


@pytest.mark.parametrize('name', ALL)
def test_diff_ratio_is_the_gradient_of_the_divergence(name):
    f = divergences.get(name)
    _, x_t, _ = draws(THETA)
    weight = divergences.weight(f)(jnp.exp(log_ratio(x_t))) / SIGMA**2
    exact = value_and_gradient(divergence(f))[1]
    close(_ratio_gradient()(jnp.asarray(THETA), weight), exact)


# What is refused.


LAW = noise.lognormal()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(alpha=0.0), 'alpha in'),
        (dict(alpha=1.1), 'alpha in'),
        (dict(alpha=1.0), 'beta must then be 1'),
        (dict(beta=0.0), 'beta > 0'),
        (dict(weighting='none'), 'known are'),
    ],
)
def test_real_uid_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        real_data.real_uid(None, None, None, student_law=LAW, critic_law=LAW, **options)


@pytest.mark.parametrize('forcing', [0.0, -1.0, 1.5])
def test_data_forcing_refuses(forcing):
    with pytest.raises(ValueError, match=r'must lie in \(0, 1\]'):
        real_data.data_forcing(None, None, None, student_law=LAW, critic_law=LAW, forcing=forcing)


GIVEN = Gan(Denoiser(None, None))


@pytest.mark.parametrize(
    ('gan', 'options', 'message'),
    [
        (Gan(features='input'), {}, 'needs? a discriminator|add one to the config'),
        (GIVEN._replace(features='input'), dict(weighting='dmd'), 'needs a teacher'),
        (GIVEN._replace(features='input', gan_weighting='dmd'), {}, 'needs a teacher'),
        (GIVEN, {}, "features='teacher'"),
    ],
)
def test_diff_ratio_refuses(gan, options, message):
    with pytest.raises(ValueError, match=message):
        real_data.diff_ratio(
            Denoiser(None, None), student_law=LAW, critic_law=LAW, gan=gan, **options
        )
