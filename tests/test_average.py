"""Average velocities against exact flow maps, of one Gaussian in closed form and of a mixture by
its ODE, in float64 through the library's own losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtr
from quick import compiled
from scipy.integrate import solve_ivp

from fdistill.diffusion import flow_map, noise
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.oracle import mixture
from fdistill.methods import average as family
from fdistill.methods import generator
from fdistill.methods.average import (
    Annealing,
    Guided,
    Jumps,
    Scales,
    Times,
    Weight,
    alpha_flow,
    flow_map_distill,
    improved_mean_flow,
    mean_flow,
    mean_flow_distill,
    shortcut,
)
from fdistill.methods.critic import perturb
from fdistill.methods.method import Context
from fdistill.methods.on_policy import OnPolicy, any_flow

pytestmark = pytest.mark.usefixtures('x64')


LAW = noise.lognormal(-0.4, 1.0)
MEAN, SPREAD = np.array([0.3, -0.2, 0.5]), 0.8
SQUARE, APART = Weight(0.0), Times(share_equal=0.25)


def gaussian():
    return mixture([1.0], MEAN[None], SPREAD)


def close(actual, desired, tolerance=1e-9):
    """Relative to the largest component."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    error = np.max(np.abs(actual - desired)) / np.max(np.abs(desired))
    assert error <= tolerance, f'relative error {error:.1e}: {actual} against {desired}'


def told(of):
    """A flow map with parameters theta = (shift, scale): exact at theta = 0."""

    def apply(theta, x, sigma, condition, key=None):
        D = of(x, sigma, condition.get('until', sigma))
        return D + theta[0] + theta[1] * D, (x,)

    return Denoiser(lambda key, x, condition: jnp.zeros(2), apply, ('until',))


def gaussian_map(x, sigma, until):
    """D whose jump is m + (x - m) k, k^2 = (s^2 + rho^2)/(s^2 + sigma^2), also at rho = sigma."""
    sigma, until = sigma[:, None], until[:, None]
    k = jnp.sqrt((SPREAD**2 + until**2) / (SPREAD**2 + sigma**2))
    share = SPREAD**2 * (sigma + until) / ((SPREAD**2 + sigma**2) * (k * sigma + until))
    return MEAN + (x - MEAN) * share


def of_gaussian():
    return told(gaussian_map)


MIXED = [0.35, 0.65], [[-1.2], [0.9]], [0.3, 0.5]


def quantile_map(x, sigma, until):
    """In one dimension a path of the ODE stays at its quantile: F_rho(J) = F_sigma(x)."""
    p = mixture(*MIXED)

    def below(x, level):
        deviation = jnp.sqrt(p.stds**2 + level[:, None] ** 2)
        return jnp.sum(p.weights * ndtr((x - p.means[:, 0]) / deviation), axis=1)

    wanted = below(x, sigma)
    fixed = jax.lax.stop_gradient((wanted, until))

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        above = below(middle[:, None], fixed[1]) > fixed[0]
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    reach = jnp.full_like(until, 50.0)
    low, _ = jax.lax.fori_loop(0, 60, halve, (-reach, reach))
    # One step of Newton's, whose derivatives are those of the implicit function.
    found = jax.lax.stop_gradient(low)
    density = jnp.exp(p.log_prob(found[:, None], fixed[1]))
    at_end = found - (below(found[:, None], until) - wanted) / density
    share = jnp.where(until < sigma, until / sigma, 0)[:, None]
    D = (at_end[:, None] - share * x) / (1 - share)
    return jnp.where((until < sigma)[:, None], D, p.denoise(x, sigma))


def gradients(made, p=None, count=4096, batches=25, step=0, thetas=((0.0, 0.0),), batch_of=None):
    """Gradients at some theta, [thetas, batches, 2], each of `count` samples."""
    p = p or gaussian()
    batch_of = batch_of or (lambda key, n: {'x': p.sample(key, n), 'condition': {}})
    context = Context({'teacher': {}}, {'target': jnp.zeros(2)}, step=step)

    def one(given):
        theta, key = given
        batch_key, draw_key = jax.random.split(key)
        batch = batch_of(batch_key, count)

        def loss(theta):
            return made.losses['student']({'student': theta}, context, batch, draw_key)[0]

        return jax.grad(loss)(theta)

    keys = jnp.tile(jax.random.split(jax.random.key(3), batches), len(thetas))
    given = jnp.repeat(jnp.asarray(thetas), batches, axis=0), keys
    found = compiled(lambda given: jax.lax.map(one, given))(given)
    return np.asarray(found).reshape(len(thetas), batches, 2)


def within(found, wanted=0.0, sigmas=3.0):
    """The mean over batches is what is wanted, to the deviation of that mean."""
    error = np.abs(found.mean(axis=0) - wanted)
    deviation = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    assert np.all(error <= sigmas * deviation), (error, deviation)


OFF = (0.1, 0.1)


def stationary(made, p=None):
    """A loss of deterministic targets has no gradient at the exact map, sample by sample: relative
    to that of a student that is 10 % off."""
    found, off = gradients(made, p, 512, 1, thetas=((0.0, 0.0), OFF))
    assert np.abs(found).max() <= 1e-6 * np.abs(off).max(), (found, off)


def test_views_of_a_denoiser_in_the_time_of_a_flow():
    """z_t = (1 - t) x, u = (z_t - D)/t, J = (z_t - (t - r) u)(1 + rho), and back."""
    x = jax.random.normal(jax.random.key(0), (5, 3))
    D = jax.random.normal(jax.random.key(1), (5, 3))
    sigma = jnp.array([1e-3, 0.2, 1.0, 7.0, 1e4])
    until = jnp.array([1e-3, 0.0, 0.3, 6.9, 80.0])
    t, r = (level / (1 + level) for level in (sigma, until))
    z = (1 - t)[:, None] * x
    u = flow_map.velocity(D, x, sigma)
    close(u, (z - D) / t[:, None])
    close(flow_map.denoised(u, x, sigma), D)
    close(flow_map.span(sigma, until), t - r)
    assert flow_map.span(sigma, until)[0] == 0
    for share in (0.0, 0.3, 1.0):
        level = flow_map.between(sigma, until, share)
        close(level / (1 + level), t - share * (t - r))
    arrived = flow_map.jump(D, x, sigma, until)
    close(arrived, (z - (t - r)[:, None] * u) * (1 + until)[:, None])
    # Of the path with that velocity: x(t) = z(t)/(1 - t), sigma(t) = t/(1 - t).
    e = 1e-6

    def path(e):
        return (z + e * u) / (1 - t - e)[:, None], (t + e) / (1 - t - e)

    for exact, *ends in zip(flow_map.along(u, x, sigma), path(-e), path(e), strict=True):
        close(exact[:4], ((ends[1] - ends[0]) / (2 * e))[:4], 1e-7)


def test_velocity_keeps_its_digits_in_float32():
    """At t = 1e-3 and t = 0.9999, as at levels between."""
    rng = np.random.default_rng(0)
    for t in (1e-3, 0.5, 0.99, 0.9999):
        sigma = np.full(64, t / (1 - t))
        x = MEAN + np.hypot(SPREAD, sigma)[:, None] * rng.standard_normal((64, 3))
        exact = flow_map.velocity(gaussian_map(x, sigma, 0 * sigma), x, sigma)
        given = [jnp.asarray(a, jnp.float32) for a in (x, sigma)]
        D = gaussian_map(x, sigma, 0 * sigma).astype(np.float32)
        close(flow_map.velocity(D, *given), exact, 3e-4)


def test_levels_of_even_jumps():
    levels = np.array(flow_map.even_levels(4, 80.0))
    t = levels / (1 + levels)
    np.testing.assert_allclose(t, 80 / 81 * np.array([1, 0.75, 0.5, 0.25]))
    assert flow_map.even_levels(1, 40.0) == (40.0,)
    with pytest.raises(ValueError, match='steps=0'):
        flow_map.even_levels(0, 80.0)


def exact_at():
    """A point of T-MF1, s = 0.7 and mean 0."""
    z, r, t, s = 1.3, 0.2, 0.8, 0.7
    sigma, until = jnp.array([t / (1 - t)]), jnp.array([r / (1 - r)])
    x = jnp.array([[z / (1 - t)]])

    def u(x, sigma, until):
        k = jnp.sqrt((s**2 + until**2) / (s**2 + sigma**2))
        D = s**2 * (sigma + until) / ((s**2 + sigma**2) * (k * sigma + until))
        return flow_map.velocity(x * D[:, None], x, sigma)

    def v(x, sigma):
        return u(x, sigma, sigma)

    return u, v, family.At(x, sigma, until, v(x, sigma), v(x, sigma))


def test_average_velocity_of_a_gaussian():
    """T-MF1: u = z (1 - c_r/c_t)/(t - r), c_t^2 = (1 - t)^2 s^2 + t^2, and both identities."""
    u, v, at = exact_at()
    found = u(at.x, at.sigma, at.until)
    np.testing.assert_allclose(found, 0.5802842, atol=5e-8)
    c_t2 = 0.2**2 * 0.7**2 + 0.8**2
    np.testing.assert_allclose(at.v, 1.3 * (0.8 - 0.2 * 0.7**2) / c_t2, rtol=1e-12)
    assert np.abs(family.eulerian(u, at).target - found) < 1e-9
    assert np.abs(family.lagrangian(u, at, v).target - found) < 1e-9


def test_identity_fails_with_another_derivative():
    """Tangents of the times exchanged, none of the time, one against the path: each leaves a
    residual that the identity has not."""
    u, _, at = exact_at()
    found = u(at.x, at.sigma, at.until)
    space, time = flow_map.along(at.v, at.x, at.sigma)
    gap = flow_map.span(at.sigma, at.until)
    primal, nothing = (at.x, at.sigma, at.until), jnp.zeros(1)
    for tangents, right in (
        ((space, time, nothing), True),
        ((space, nothing, (1 + at.until) ** 2), False),
        ((space, nothing, nothing), False),
        ((0 * space, time, nothing), False),
    ):
        residual = np.abs(at.v - gap * jax.jvp(u, primal, tangents)[1] - found).max()
        assert residual < 1e-9 if right else residual > 1e-2


def test_map_of_a_mixture_is_that_of_its_ode():
    """By quadrature of dx/dsigma = (x - D)/sigma."""
    p = mixture(*MIXED)
    x = jnp.array([[-4.0], [0.1], [0.3], [2.5]])
    sigma, until = jnp.full(4, 3.0), jnp.full(4, 0.2)
    found = flow_map.jump(quantile_map(x, sigma, until), x, sigma, until)
    denoise = compiled(lambda x, level: p.denoise(x, jnp.full(4, level)))

    def slope(level, x):
        return (x - np.asarray(denoise(x[:, None], level))[:, 0]) / level

    path = solve_ivp(slope, (3.0, 0.2), x[:, 0], 'DOP853', rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found[:, 0], path.y[:, -1], atol=1e-10)
    # And its derivatives, of which the targets are made.
    e = 1e-5
    moved = [quantile_map(x + e * s, sigma - 2 * e * s, until + 3 * e * s) for s in (1, -1)]
    _, tangent = jax.jvp(
        quantile_map, (x, sigma, until), (jnp.ones_like(x), jnp.full(4, -2.0), jnp.full(4, 3.0))
    )
    close(tangent, (moved[0] - moved[1]) / (2 * e), 1e-7)


def distilled(p, student, **settings):
    return flow_map_distill(student, p.denoiser(), LAW, times=APART, **settings)


@pytest.mark.parametrize(
    ('data', 'form', 'full'),
    [
        *(('gaussian', form, full) for form in family.FORMS for full in (False, True)),
        *(('mixture', form, False) for form in family.FORMS),
    ],
)
def test_distillation_is_stationary_at_the_exact_map(data, form, full):
    p, student = {
        'gaussian': (gaussian(), of_gaussian()),
        'mixture': (mixture(*MIXED), told(quantile_map)),
    }[data]
    stationary(distilled(p, student, form=form, full_gradient=full), p)


def test_mean_flow_distillation_is_the_eulerian_form():
    p, theta = gaussian(), jnp.array([0.1, 0.2])
    batch = {'x': p.sample(jax.random.key(0), 64), 'condition': {}}
    context, key = Context({'teacher': {}}), jax.random.key(1)
    short, long = mean_flow_distill, functools.partial(flow_map_distill, form='eulerian')
    values = [
        made(of_gaussian(), p.denoiser(), LAW, times=Times(), weight=Weight()).losses['student'](
            {'student': theta}, context, batch, key
        )[0]
        for made in (short, long)
    ]
    assert values[0] == values[1] > 0
    stationary(short(of_gaussian(), p.denoiser(), LAW))


METHODS = {
    'sorted': lambda s: mean_flow(s, LAW, times=APART, weight=SQUARE),
    'independent': lambda s: mean_flow(
        s, LAW, noise.lognormal(-2, 1.6), times=Times('independent', 0.25), weight=SQUARE
    ),
    'improved': lambda s: improved_mean_flow(s, LAW, times=APART, weight=SQUARE),
    'alpha=0': lambda s: alpha_flow(s, LAW, annealing=Annealing(0, 1), times=APART, weight=SQUARE),
}


@pytest.mark.parametrize('name', METHODS)
def test_training_is_stationary_at_the_exact_map(name):
    """In the mean over 1e5 draws of data and noise; a student that is off has a gradient."""
    exact, off = gradients(METHODS[name](of_gaussian()), step=10, thetas=((0.0, 0.0), OFF))
    within(exact)
    with pytest.raises(AssertionError):
        within(off)


def test_mean_flow_is_stationary_at_the_exact_map_of_a_mixture():
    p = mixture(*MIXED)
    made = mean_flow(told(quantile_map), LAW, times=APART, weight=SQUARE)
    within(gradients(made, p)[0])


@pytest.mark.parametrize('control', ['no time', 'exchanged', 'gradient'])
def test_training_is_not_stationary_with_another_target(control, monkeypatch):
    """Each of these makes the assertion above fail."""
    if control == 'no time':
        along = flow_map.along
        monkeypatch.setattr(
            flow_map, 'along', lambda v, x, sigma: (along(v, x, sigma)[0], jnp.zeros_like(sigma))
        )
    if control == 'exchanged':

        def exchanged(u, at):
            rates = flow_map.along(at.direction, at.x, at.sigma)[0], (1 + at.until) ** 2
            made, tangent = jax.jvp(lambda x, until: u(x, at.sigma, until), (at.x, at.until), rates)
            return family.Regression(made, at.v - family._gap(at) * tangent)

        monkeypatch.setattr(family, 'eulerian', exchanged)
    if control == 'gradient':
        monkeypatch.setattr(family, '_constant', lambda made: made)
    (found,) = gradients(mean_flow(of_gaussian(), LAW, times=APART, weight=SQUARE))
    with pytest.raises(AssertionError):
        within(found)


@pytest.mark.parametrize('name', [*METHODS, 'alpha=0.5', 'eulerian', 'lagrangian', 'shortcut'])
def test_no_gradient_through_the_target(name, monkeypatch):
    """The gradient is 2 (u - target) . du/dtheta, with du/dtheta = -(1 + 1/sigma) (1, D)."""
    p, theta = gaussian(), jnp.array([0.1, 0.2])
    make = METHODS | {
        'alpha=0.5': lambda s: alpha_flow(
            s, LAW, annealing=Annealing(0, 20), times=Times(share_equal=0.0), weight=SQUARE
        ),
        'shortcut': lambda s: shortcut(s, LAW, finest=8, target_decay=None),
    }
    if name in family.FORMS:
        made = distilled(p, of_gaussian(), form=name, weight=SQUARE)
    else:
        made = make[name](of_gaussian())
    batch, key = {'x': p.sample(jax.random.key(0), 64), 'condition': {}}, jax.random.key(1)
    seen = {}

    def see(name, of):
        def seeing(*given):
            seen.setdefault(name, []).append(given)
            return of(*given)

        return seeing

    monkeypatch.setattr(family.losses, 'squared_l2', see('gap', family.losses.squared_l2))
    monkeypatch.setattr(flow_map, 'denoised', see('u', flow_map.denoised))

    def loss(theta):
        context = Context({'teacher': {}}, step=10)
        value = made.losses['student']({'student': theta}, context, batch, key)[0]
        # Of the error first; of the samples, for their spread, last.
        return value, (seen['gap'][0][0], *seen['u'][-1])

    found, (gap, u, x, sigma) = compiled(jax.grad(loss, has_aux=True))(theta)
    D = (x - sigma[:, None] * u) / (1 + sigma[:, None])
    exact = (D - theta[0]) / (1 + theta[1])
    weight = 2 * gap * -(1 + 1 / sigma)[:, None]
    if name == 'alpha=0.5':
        weight /= 0.5
    by_hand = [jnp.mean(jnp.sum(weight * of, axis=1)) for of in (1.0, exact)]
    close(found, by_hand)


def test_flow_matching_where_both_times_are_equal():
    """T-MF2."""
    p, theta = gaussian(), jnp.array([0.1, 0.2])
    made = mean_flow(of_gaussian(), LAW, times=Times(share_equal=1.0), weight=SQUARE)
    batch, key = {'x': p.sample(jax.random.key(0), 64), 'condition': {}}, jax.random.key(1)
    value, (metrics, _) = compiled(made.losses['student'])(
        {'student': theta}, Context({}), batch, key
    )
    key_level, key_noise, *_ = jax.random.split(key, 4)
    first, second, _ = jax.random.split(key_level, 3)
    sigma = jnp.maximum(LAW.sample(first, 64), LAW.sample(second, 64))
    e = jax.random.normal(key_noise, batch['x'].shape)
    x = batch['x'] + sigma[:, None] * e
    D = of_gaussian().apply(theta, x, sigma, {'until': sigma})[0]
    v = flow_map.velocity(D, x, sigma)
    close(value, jnp.mean(jnp.sum((v - (e - batch['x'])) ** 2, axis=1)))
    assert metrics['share_equal'] == 1


def test_weight_of_the_error():
    """e/(e + c)^p of whole samples: c inside the power, no gradient through the weight."""
    power, c = 0.75, 0.3
    p, theta = gaussian(), jnp.array([0.1, 0.2])
    batch, key = {'x': p.sample(jax.random.key(0), 1), 'condition': {}}, jax.random.key(1)

    def of(weight):
        made = mean_flow(of_gaussian(), LAW, weight=weight)

        def loss(theta):
            return made.losses['student']({'student': theta}, Context({}), batch, key)[0]

        return compiled(jax.value_and_grad(loss))(theta)

    (e, slope), (value, weighted) = of(SQUARE), of(Weight(power, c))
    close(value, e / (e + c) ** power)
    close(weighted, slope / (e + c) ** power)


def test_one_jump_and_many_make_the_same_sample():
    """T-MF3, T-MF4: of the exact map, any number of jumps leads to the path's end; from all noise,
    e -> m + s e."""
    z = jax.random.normal(jax.random.key(0), (8, 3))
    wanted = gaussian().flow(80.0 * z, 80.0, 0.0)
    for levels in ((80.0,), (80.0, 1.0), (80.0, 24.0, 0.9, 0.02), flow_map.even_levels(16, 80.0)):
        made = generator.flow_map(of_gaussian(), levels)
        close(made.sample(jnp.zeros(2), z, {}), wanted, 1e-12)
        assert made.nfe == len(levels)
    x0, D = made.trajectory(jnp.zeros(2), z, {})
    close(x0, wanted, 1e-12)
    assert D.shape == (16, 8, 3)
    close(D[-1], wanted, 1e-12)  # The last chord ends at 0.
    assert generator.flow_map(of_gaussian(), (80.0,)).trajectory is None
    far = generator.flow_map(of_gaussian(), (1e5,)).sample(jnp.zeros(2), z, {})
    close(far, MEAN + SPREAD * z, 1e-4)
    # A map that is not exact has not this property.
    off = [
        generator.flow_map(of_gaussian(), flow_map.even_levels(n, 80.0)).sample(
            jnp.array([0.0, 0.1]), z, {}
        )
        for n in (1, 4)
    ]
    assert np.abs(off[0] - off[1]).max() > 1e-2


def test_conditional_targets_average_to_that_of_the_path():
    """T-MF5: over the posterior of data and noise at one point, linear in v."""
    x, sigma, until, n = np.array([1.0, -0.4, 0.2]), 1.7, 0.3, 100_000
    deviation = SPREAD * sigma / np.hypot(SPREAD, sigma)
    at = [jnp.full(n, level) for level in (sigma, until)]
    points = jnp.broadcast_to(jnp.asarray(x), (n, 3))
    u = family._bound(of_gaussian(), jnp.zeros(2), {})
    D = gaussian().denoise(points[:1], sigma)
    data = D + deviation * jax.random.normal(jax.random.key(0), (n, 3))
    v = flow_map.velocity(data, points, at[0])
    conditional = compiled(lambda v: family.eulerian(u, family.At(points, *at, v, v)).target)(v)
    v = flow_map.velocity(D, points[:1], at[0][:1])
    one = [level[:1] for level in at]
    wanted = family.eulerian(u, family.At(points[:1], *one, v, v)).target
    within(np.asarray(conditional), np.asarray(wanted)[0])
    close(wanted, u(points[:1], *one))


@pytest.mark.parametrize('pairing', family.PAIRINGS)
def test_levels(pairing):
    """T-MF6: until <= sigma, and equal with the share that is asked for, besides those that the law
    of `until` puts above sigma."""
    n, share, below = 100_000, 0.4, noise.lognormal(-2.0, 1.6)
    draw = family._pairs(LAW, below, Times(pairing, share))
    sigma, until = map(np.asarray, draw(jax.random.key(0), n, jnp.float32))
    assert np.all(until <= sigma) and np.all(until > 0)
    equal = np.mean(until == sigma)
    # P(until's draw is the larger), of two normal logarithms.
    above = float(ndtr((-2.0 + 0.4) / np.hypot(1.0, 1.6)))
    wanted = share if pairing == 'sorted' else share + (1 - share) * above
    assert abs(equal - wanted) < 3 * np.sqrt(wanted * (1 - wanted) / n)
    if pairing == 'independent':
        assert abs(np.mean(np.log(sigma)) + 0.4) < 3 / np.sqrt(n)


def test_metrics():
    """Of each level of the noise, the tangent's norm; what is learned where r = t."""
    p = gaussian()
    made = mean_flow(of_gaussian(), LAW, times=APART)
    batch = {'x': p.sample(jax.random.key(0), 512), 'condition': {}}
    given = {'student': jnp.zeros(2)}, Context({}), batch, jax.random.key(1)
    _, (metrics, _) = compiled(made.losses['student'])(*given)
    assert metrics['log_tangent'].shape[0] == family.losses.LEVELS
    assert metrics['log_tangent'].sum() == 512
    assert 0.15 < metrics['share_equal'] < 0.35
    assert {'flow_map', 'gap', 'sample_std', 'data_std'} <= metrics.keys()


# Two classes, of which the network knows guided and plain denoisers.
CLASSES = mixture([0.5, 0.5], [[-1.0], [0.8]], [0.5, 0.7])


def classes(key, n):
    """A batch with labels."""
    key_label, key_noise = jax.random.split(key)
    label = jax.random.randint(key_label, (n,), 0, 2)
    z = jax.random.normal(key_noise, (n, 1))
    return {
        'x': CLASSES.means[label] + CLASSES.stds[label, None] * z,
        'condition': {'label': label},
    }


def guided(scale_of, takes=('label', 'until')):
    """D_u + scale (D_c - D_u), plain without a label, with parameters as of `told`."""

    def apply(theta, x, sigma, condition, key=None):
        label, scale = condition['label'], scale_of(condition, sigma)
        plain = CLASSES.denoise(x, sigma, jnp.full_like(label, -1))
        D = plain + jnp.where(label < 0, 1.0, scale)[:, None] * (
            CLASSES.denoise(x, sigma, label) - plain
        )
        return D + theta[0] + theta[1] * D, (x,)

    return Denoiser(lambda key, x, condition: jnp.zeros(2), apply, takes)


EQUAL = Times(share_equal=1.0)


@pytest.mark.parametrize(('omega', 'kappa', 'interval'), [(1.0, 0.5, None), (2.0, 0.0, (0.3, 2.0))])
def test_guidance_inside_the_target(omega, kappa, interval):
    """Its fixed point is guided by omega/(1 - kappa), within the interval, and plain without a
    label."""

    def scale_of(condition, sigma):
        low, high = interval or (0.0, np.inf)
        return jnp.where((sigma > low) & (sigma <= high), omega / (1 - kappa), 1)

    def found(scale_of, share):
        made = mean_flow(
            guided(scale_of),
            LAW,
            times=EQUAL,
            weight=SQUARE,
            guided=Guided(omega, kappa, interval, share),
        )
        return gradients(made, batch_of=classes)[0]

    within(found(scale_of, 0.2))
    with pytest.raises(AssertionError):
        within(found(lambda condition, sigma: jnp.ones_like(sigma), 0.2))


@pytest.mark.parametrize('bounded', [False, True])
def test_scale_of_guidance_as_a_condition(bounded):
    """The fixed point is guided by the scale that the network is told, between the times that it is
    told."""

    def scale_of(condition, sigma):
        omega = condition['guidance']
        if not bounded:
            return omega
        t = sigma / (1 + sigma)
        low, high = (condition[name] for name in flow_map.INTERVAL)
        return jnp.where((low <= t) & (t <= high), omega, 1)

    takes = ('label', 'until', 'guidance', *(flow_map.INTERVAL if bounded else ()))
    made = [
        improved_mean_flow(
            guided(of, takes), LAW, times=EQUAL, weight=SQUARE, scales=Scales(highest=3.0)
        )
        for of in (scale_of, lambda condition, sigma: 2.0 * jnp.ones_like(sigma))
    ]
    within(gradients(made[0], batch_of=classes)[0])
    with pytest.raises(AssertionError):
        within(gradients(made[1], batch_of=classes)[0])


def test_scales_of_guidance():
    """Quantiles of p(omega) ~ omega^-beta, and what samples are told."""
    omega = np.sort(np.asarray(family.scales_of(jax.random.key(0), 100_000, 8.0, 1.0)))
    np.testing.assert_allclose(np.log(omega[[25_000, 50_000]]) / np.log(8), [0.25, 0.5], atol=6e-3)
    omega = np.asarray(family.scales_of(jax.random.key(0), 100_000, 8.0, 2.0))
    wanted = (1 - 1 / 2.0) / (1 - 1 / 8.0)
    assert abs(np.mean(omega < 2) - wanted) < 3 * np.sqrt(wanted * (1 - wanted) / 1e5)
    seen = {}

    def apply(params, x, sigma, condition, key=None):
        seen.update(condition)
        return x, ()

    student = Denoiser(None, apply, ('label', 'until', 'guidance', *flow_map.INTERVAL))
    made = improved_mean_flow(student, LAW, jumps=Jumps((5.0,), 2.5, (0.25, 4.0)))
    with jax.disable_jit():
        made.generator.sample({}, jnp.ones((2, 1)), {})
    assert seen['guidance'][0] == 2.5 and seen['until'][0] == 0
    np.testing.assert_allclose([seen[name][0] for name in flow_map.INTERVAL], [0.2, 0.8])


def test_alpha_falls_from_one_to_zero():
    """By sigmoid(-gamma (k - K/2)/K), clamped near its ends (appendix of arXiv 2510.20771)."""
    annealing = Annealing(100, 300, 25.0, 0.005)
    found = [float(family.alpha_at(annealing, step)) for step in (0, 100, 200, 220, 300, 301)]
    np.testing.assert_allclose(found, [1, 1, 0.5, 1 / (1 + np.exp(2.5)), 0, 0], rtol=1e-12)
    steps = np.arange(0, 400, 5)
    alpha = np.asarray(family.alpha_at(annealing, steps))
    assert np.all(np.diff(alpha) <= 0) and np.all((alpha == 0) | (alpha >= 0.005))


def test_alpha_flow_leads_to_mean_flow(monkeypatch):
    """Its target has a difference for MeanFlow's derivative: the gradients of alpha^-1 e differ in
    the first order of alpha."""
    made = alpha_flow(of_gaussian(), LAW, times=Times(share_equal=0.0), weight=SQUARE)
    batch = {'x': gaussian().sample(jax.random.key(0), 64), 'condition': {}}
    monkeypatch.setattr(family, 'alpha_at', lambda annealing, step: step)

    @compiled
    @functools.partial(jax.grad, has_aux=True)
    def gradient(theta, alpha):
        context = Context({}, step=alpha)
        value, (metrics, _) = made.losses['student'](
            {'student': theta}, context, batch, jax.random.key(1)
        )
        return value, (value, metrics)

    theta, errors = jnp.array([0.1, 0.2]), []
    wanted, (value, metrics) = gradient(theta, 0.0)
    close(value, metrics['gap'])
    for alpha in (0.02, 0.01, 0.005):
        found, (value, metrics) = gradient(theta, alpha)
        close(value, alpha * metrics['gap'])
        errors.append(np.abs(found - wanted).max())
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 1, atol=0.15)


def shortcut_residuals(monkeypatch, made, theta, n=1024):
    """u - target of the samples that learn two half steps, [n', 3]; those whose half steps are the
    shortest are the others."""
    seen = []
    squared_l2 = family.losses.squared_l2
    batch = {'x': gaussian().sample(jax.random.key(0), n), 'condition': {}}

    def run(key):
        given = {'student': theta}, Context({}), batch, key
        return made.losses['student'](*given)[1][0], seen[0]

    with monkeypatch.context() as patch:
        patch.setattr(family.losses, 'squared_l2', lambda y: seen.append(y) or squared_l2(y))
        metrics, gap = compiled(run)(jax.random.key(1))
    assert metrics['share_equal'] == 0.5
    # Every second sample, see `shortcut`.
    return np.asarray(gap)[1::2]


def test_bias_of_shortcuts_falls_with_the_finest_step(monkeypatch):
    """At the exact map none but the shortest steps have a residual, Euler's of order 1."""
    found = []
    for finest in (16, 32, 64):
        made = shortcut(of_gaussian(), LAW, finest=finest, share=0.5, target_decay=None)
        gap = np.abs(shortcut_residuals(monkeypatch, made, jnp.zeros(2))).max(axis=1)
        assert np.all((gap < 1e-12) | (gap > 1e-8))
        shortest = gap > 1e-8
        kinds = np.log2(finest)
        assert abs(shortest.mean() - 1 / kinds) < 4 * np.sqrt(1 / kinds / len(gap))
        found.append(np.sqrt(np.mean(gap[shortest] ** 2)))
    np.testing.assert_allclose(np.log2(np.divide(found[:-1], found[1:])), 1, atol=0.15)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda s: mean_flow(s, LAW, times=Times('uniform')), 'known are sorted, independent'),
        (lambda s: mean_flow(s, LAW, times=Times(share_equal=1.5)), 'at most 1 together'),
        (lambda s: mean_flow(s, LAW, times=Times('independent')), 'give until_law'),
        (lambda s: mean_flow(s, LAW, weight=Weight(c=0.0)), 'c > 0'),
        (lambda s: mean_flow(s, LAW, guided=Guided(2.0)), 'set condition_dropout'),
        (lambda s: mean_flow(s, LAW, guided=Guided(1.0, 1.0)), r'in \[0, 1\)'),
        (lambda s: mean_flow(s, LAW, jumps=Jumps(())), 'at least one'),
        (lambda s: mean_flow(s, LAW, jumps=Jumps((1.0, 2.0))), 'strictly falling'),
        (lambda s: mean_flow(s, LAW, jumps=Jumps(sample_guidance=2.0)), 'is not told a scale'),
        (lambda s: mean_flow(gaussian().denoiser(), LAW), "numbers=.'until',."),
        (lambda s: distilled(gaussian(), s, form='euler'), 'known are eulerian, lagrangian'),
        (lambda s: alpha_flow(s, LAW, annealing=Annealing(5, 5)), 'alpha_from < alpha_until'),
        (lambda s: shortcut(s, LAW, finest=6), 'power of two'),
        (lambda s: shortcut(s, LAW, share=1.0), r'in \(0, 1\)'),
        (lambda s: improved_mean_flow(s, LAW, scales=Scales(highest=1.0)), 'need > 1'),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(of_gaussian())


def test_levels_that_lead_to_zero():
    n, times = 100_000, Times(share_equal=0.5, share_zero=0.25)
    sigma, until = family._pairs(LAW, None, times)(jax.random.key(0), n, jnp.float64)
    for share, found in ((0.25, until == flow_map.LOWEST), (0.5, until == sigma)):
        assert abs(np.mean(found) - share) < 3 * np.sqrt(share * (1 - share) / n)
    plain = family._pairs(LAW, None, Times(share_equal=0.5))(jax.random.key(0), n, jnp.float64)
    np.testing.assert_array_equal(sigma, plain[0])
    for shares in ((0.5, 0.6), (0.5, -0.1)):
        with pytest.raises(ValueError, match='at most 1 together'):
            family._pairs(LAW, None, Times('sorted', *shares))


# Of an exact map; of one that is off.
THETAS = np.zeros(2), np.array([0.05, 0.1])


def by_hand(theta, z, count, place):
    """z - (t - r) u in the time of the flow, from 1 to t_k, from there to t_{k+1} and to 0."""
    ends = [1.0, 1 - place / count, 1 - (place + 1) / count, 0.0]
    scale = 80 / 81
    point, student = z * scale, of_gaussian()
    for t, r in zip(ends, ends[1:]):
        t, r = t * scale, r * scale
        if r < t:
            sigma, until = (jnp.full(len(z), level / (1 - level)) for level in (t, r))
            x = point / (1 - t)
            D = student.apply(theta, x, sigma, {'until': until})[0]
            point = point - (t - r) * flow_map.velocity(D, x, sigma)
    return point


def test_a_rollout_is_three_jumps():
    """For each sample the one step of a drawn number of steps, and the way before and after it, in
    values and gradients; of an exact map every draw makes the same sample."""
    batch, key, counts = {'x': jnp.zeros((64, 3)), 'condition': {}}, jax.random.key(1), (1, 3)
    draw = generator.rollout(of_gaussian(), 80.0, counts)
    z = jax.random.normal(jax.random.split(key, 3)[0], (64, 3))
    close(draw(key, THETAS[0], batch), gaussian().flow(80.0 * z, 80.0, 0.0), 1e-12)
    kinds = [(count, place) for count in counts for place in range(count)]
    made, slopes = (
        [
            transform(functools.partial(by_hand, z=z, count=count, place=place))(THETAS[1])
            for count, place in kinds
        ]
        for transform in (lambda f: f, jax.jacfwd)
    )
    found = draw(key, THETAS[1], batch)
    apart = np.array([np.abs(found - each).max(axis=1) for each in made])
    # The first of three steps and the only one are different ways.
    kind = apart.argmin(axis=0)
    assert apart.min(axis=0).max() < 1e-12 and set(kind) == set(range(len(kinds)))
    slope = jax.jacrev(lambda theta: draw(key, theta, batch))(THETAS[1])
    wanted = np.stack(slopes)[kind, np.arange(64)]
    close(slope, wanted, 1e-11)
    for bad in ((), (0,), (4, -1)):
        with pytest.raises(ValueError, match='rollouts'):
            generator.rollout(of_gaussian(), 80.0, bad)


@pytest.mark.parametrize('count', [1, 50])
def test_a_rollout_keeps_to_its_levels_in_float32(count):
    """Where a rounded level lies above the one before it, or there is no way, too."""
    with jax.enable_x64(False):
        batch, key = {'x': jnp.zeros((256, 3)), 'condition': {}}, jax.random.key(1)
        draw = generator.rollout(of_gaussian(), 80.0, (count,))
        z = jax.random.normal(jax.random.split(key, 3)[0], (256, 3))
        found = draw(key, jnp.zeros(2), batch)
        slope = jax.jacrev(lambda theta: draw(key, theta, batch))(jnp.zeros(2))
    assert found.dtype == slope.dtype == jnp.float32
    x = 80 * np.asarray(z, float)
    close(found, MEAN + (x - MEAN) * SPREAD / np.hypot(SPREAD, 80), 1e-4)
    assert np.isfinite(slope).all() and np.abs(slope).max() < 100


def any_flow_of(p, **settings):
    networks = of_gaussian(), p.denoiser(), p.denoiser()
    settings = {'student_law': LAW, 'critic_law': LAW, 'times': APART} | settings
    return any_flow(*networks, LAW, **settings)


def test_any_flow_is_a_flow_map_and_a_score_gap():
    """The gradient is the sum of those of `flow_map_distill` and of DMD2 on rollouts; at the exact
    map, with the fake score that belongs to it, there is none."""
    p = gaussian()
    policy = OnPolicy(0.7, (1, 4))
    made = any_flow_of(p, on_policy=policy)
    params = {'critic': {'fake_score': {}}}
    batch = {'x': p.sample(jax.random.key(0), 64), 'condition': {}}
    # A fake score that is off by a constant.
    off = Denoiser(
        None, lambda params, x, sigma, condition, key=None: (p.denoise(x, sigma) + 0.2, ())
    )
    apart = any_flow(
        of_gaussian(),
        p.denoiser(),
        off,
        LAW,
        times=APART,
        student_law=LAW,
        critic_law=LAW,
        on_policy=policy,
    )
    alone = mean_flow_distill(of_gaussian(), p.denoiser(), LAW, times=APART)

    def gradient(method, theta, key):
        def loss(theta):
            own = params | {'student': theta}
            return method.losses['student'](own, Context({'teacher': {}}), batch, key)[0]

        return jax.grad(loss)(theta)

    def gap(theta, key):
        key_z, key_t, _ = jax.random.split(key, 3)
        x = generator.rollout(of_gaussian(), 80.0, (1, 4))(key_z, theta, batch)
        x_t, sigma = perturb(key_t, x, LAW)
        fake, exact = off.apply({}, x_t, sigma, {})[0], p.denoise(x_t, sigma)
        scale = 1 / jnp.mean(jnp.abs(x - exact), axis=1, keepdims=True)
        return jnp.mean(jnp.sum(jax.lax.stop_gradient(scale * (fake - exact)) * x, axis=1)) / 3

    @compiled
    def all_of(theta):
        keys = jax.random.split(jax.random.key(1))
        return (
            gradient(made, theta, jax.random.key(1)),
            gradient(apart, theta, jax.random.key(1)),
            gradient(alone, theta, keys[0]),
            jax.grad(gap)(theta, keys[1]),
        )

    at_zero, at_off = (all_of(theta) for theta in THETAS)
    assert np.abs(at_zero[0]).max() <= 1e-6 * np.abs(at_off[0]).max()
    for _, found, own, score in (at_zero, at_off):
        close(found, own + 0.7 * score, 1e-4)  # DMD's weight has a guard of 1e-6.
        assert np.abs(score).max() > 1e-2
    assert made.generator.nfe == 1 and set(made.losses) == {'student', 'critic'}
    # It learns from rollouts, and samples as any flow map.
    key_z, one = jax.random.key(2), generator.flow_map(of_gaussian(), (80.0,))
    close(
        made.generator.draw(key_z, THETAS[1], batch),
        generator.rollout(of_gaussian(), 80.0, (1, 4))(key_z, THETAS[1], batch),
    )
    z = jax.random.normal(key_z, (4, 3))
    close(made.generator.sample(THETAS[1], z, {}), one.sample(THETAS[1], z, {}))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'on_policy': OnPolicy(-1.0)}, 'score_weight'),
        ({'on_policy': OnPolicy(1.0, (0,))}, 'rollouts'),
        ({'form': 'x'}, 'form'),
        ({'times': Times('independent')}, 'must be .sorted.'),
    ],
)
def test_any_flow_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        any_flow_of(gaussian(), **settings)
