"""Continuous-time consistency models against the exact maps of one Gaussian and of a mixture of
two, and against the paper's formulas in TrigFlow, in float64 through the library's own losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient
from jax.scipy.special import ndtr
from quick import compiled
from scipy.integrate import solve_ivp

from fdistill import networks
from fdistill.diffusion import noise, trigflow
from fdistill.diffusion.denoiser import Denoiser, precondition
from fdistill.diffusion.oracle import mixture
from fdistill.methods import continuous, losses
from fdistill.methods.continuous import Tangent, derivative, difference, dscd, rcm, scd, scm
from fdistill.methods.distribution import distribution_matching
from fdistill.methods.generator import Steps
from fdistill.methods.method import Context, Tracking

pytestmark = pytest.mark.usefixtures('x64')


SIGMA_DATA = 0.7
LAW = noise.lognormal(-0.5, 1.0)
EXACT = Tangent(warmup_steps=0, normalise=False, adaptive=False)  # A mean of tangents is the mean.


def gaussian():
    return mixture([1.0], [[0.3, -0.2, 0.5]], 0.8)


def pair():
    return mixture([0.7, 0.3], [[-0.6], [0.9]], [0.25, 0.4])


def pair_map(x, sigma):
    """The end of the path of the ODE through x at sigma: in one dimension paths do not cross, so
    that the share of the samples below one of them stays what it is.

    Found by bisection, the share being that of the nearer tail; the last step is Newton's, which
    has the derivatives.
    """
    p = pair()
    weights, means, stds = p.weights, p.means[:, 0], p.stds

    def below(y, level, sign):
        scaled = sign[:, None] * (y[:, None] - means) / jnp.sqrt(stds**2 + level[:, None] ** 2)
        return jnp.sum(weights * ndtr(scaled), axis=-1)

    x, zero = x[:, 0], jnp.zeros_like(sigma)
    sign = jnp.where(below(x, sigma, jnp.ones_like(x)) > 0.5, -1.0, 1.0)
    share = below(x, sigma, sign)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        under = sign * (below(middle, zero, sign) - stop_gradient(share)) < 0
        return jnp.where(under, middle, low), jnp.where(under, high, middle)

    low, _ = jax.lax.fori_loop(0, 60, halve, (zero - 8.0, zero + 8.0))
    y = stop_gradient(low)
    density = jnp.exp(p.log_prob(y[:, None]))
    return (y - sign * (below(y, zero, sign) - share) / density)[:, None]


def gaussian_map(x, sigma):
    return gaussian().flow(x, sigma[:, None], 0.0)


CASES = {'gaussian': (gaussian, gaussian_map), 'pair': (pair, pair_map)}


def student(name):
    """theta = (shift, scale) of F of the exact map: at 0 every loss is stationary. Of D itself they
    would leave it constant along each path, and no tangent could tell."""

    def apply(theta, x, sigma, condition, key=None):
        exact = CASES[name][1](x, sigma)
        F = trigflow.output(exact, x, sigma, SIGMA_DATA)
        _, sin = trigflow.cos_sin(sigma, SIGMA_DATA)
        return exact - (SIGMA_DATA * sin)[:, None] * (theta[0] + theta[1] * F), (x,)

    return Denoiser(lambda key, x, condition: jnp.zeros(2), apply)


def close(actual, desired, tolerance=1e-10):
    """Relative to the largest component."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    error = np.max(np.abs(actual - desired)) / np.max(np.abs(desired))
    assert error <= tolerance, f'relative error {error:.1e}: {actual} against {desired}'


def gradients(made, name, count, batches, theta=(0.0, 0.0), aux=None):
    """Gradients in theta, [batches, 2], of `count` samples of the data each."""
    context = Context({'teacher': {}}, {}, aux or {})

    def one(key):
        key_data, key_draw = jax.random.split(key)
        batch = {'x': CASES[name][0]().sample(key_data, count), 'condition': {}}

        def loss(theta):
            return made.losses['student']({'student': theta}, context, batch, key_draw)[0]

        return jax.grad(loss)(jnp.asarray(theta))

    keys = jax.random.split(jax.random.key(3), batches)
    return np.asarray(compiled(lambda keys: jax.lax.map(one, keys))(keys))


def assert_stationary(made, name):
    """Of distillation: to 1e-6 of the gradient a little beside the exact map."""
    found, beside = (gradients(made, name, 256, 1, theta) for theta in ((0.0, 0.0), (0.1, 0.1)))
    assert np.abs(found).max() <= 1e-6 * np.abs(beside).max()


def assert_stationary_in_the_mean(made, name):
    """Of training on data: within three standard deviations of the mean of 1e5 draws."""
    found = gradients(made, name, 4096, 25)
    error = np.abs(found.mean(axis=0)) / (found.std(axis=0, ddof=1) / np.sqrt(len(found)))
    assert error.max() <= 3, error


def wrong_sign(f, x, sigma, end, sigma_data, r=1.0):
    """As if F were minus itself: the ODE runs backwards."""
    cos, _ = trigflow.cos_sin(sigma, sigma_data)
    return derivative(f, x, sigma, 2 * cos[:, None] ** 2 * x - end, sigma_data, r)


def without_time(f, x, sigma, end, sigma_data, r=1.0):
    return derivative(lambda x, level: f(x, stop_gradient(level)), x, sigma, end, sigma_data, r)


WRONG = {
    'wrong sign': ('derivative', wrong_sign),
    'without time': ('derivative', without_time),
    'target with gradient': ('stop_gradient', lambda value: value),
}


# TrigFlow


def test_trigflow_is_a_view_on_sigma():
    """arXiv 2410.11081, section 3: t and sigma, x_t and its velocity, and F = -F_edm at the same
    input."""
    network = networks.NETWORKS['mlp'](width=16, blocks=1, embedding=8)
    key_x, key_z, key_init = jax.random.split(jax.random.key(0), 3)
    y, sigma = jax.random.normal(key_x, (6, 3)), jnp.asarray([0.01, 0.2, 0.7, 2.0, 9.0, 80.0])
    z = SIGMA_DATA * jax.random.normal(key_z, (6, 3))
    t = trigflow.time(sigma, SIGMA_DATA)
    cos, sin = jnp.cos(t)[:, None], jnp.sin(t)[:, None]
    close(trigflow.level(t, SIGMA_DATA), sigma)
    for found, wanted in zip(trigflow.cos_sin(sigma, SIGMA_DATA), (cos[:, 0], sin[:, 0])):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    x = y + sigma[:, None] * z / SIGMA_DATA
    x_t = cos * y + sin * z
    close(cos * x, x_t)
    # Where D is the data, the velocity of the pair.
    velocity = SIGMA_DATA * trigflow.output(y, x, sigma, SIGMA_DATA)
    close(velocity, cos * z - sin * y)
    shapes = jax.eval_shape(lambda: network.init(key_init, x, sigma, {}))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)
    model = precondition(network, sigma_data=SIGMA_DATA)

    @compiled
    def outputs():
        F = trigflow.view(lambda x, s: model.apply(params, x, s, {})[0], SIGMA_DATA)(x_t, t)
        F_edm, _ = network.apply(params, x_t / SIGMA_DATA, jnp.log(sigma) / 4, {})
        return F, F_edm, model.apply(params, x, sigma, {})[0]

    F, F_edm, denoised = outputs()
    close(F, -F_edm, 1e-9)
    close(denoised, cos * x_t - sin * SIGMA_DATA * F, 1e-9)


def test_trigflow_turns_where_sigma_steps():
    """The ODE is dx_t/dt = sigma_data F, and a turn of (x_t, F) an Euler step in sigma."""
    p, t, low = gaussian(), jnp.asarray([0.3, 1.1]), jnp.asarray([0.2, 0.6])
    x = jax.random.normal(jax.random.key(0), (2, 3))

    def path(t):
        sigma = trigflow.level(t, SIGMA_DATA)[:, None]
        return jnp.cos(t)[:, None] * p.flow(x, 1.0, sigma)

    F = trigflow.view(p.denoise, SIGMA_DATA)
    close(jax.jvp(path, (t,), (jnp.ones(2),))[1], SIGMA_DATA * F(path(t), t))
    sigma, until = (trigflow.level(of, SIGMA_DATA)[:, None] for of in (t, low))
    x_sigma = path(t) / jnp.cos(t)[:, None]
    slope = (x_sigma - p.denoise(x_sigma, sigma[:, 0])) / sigma
    by = (t - low)[:, None]
    turned = jnp.cos(by) * path(t) - jnp.sin(by) * SIGMA_DATA * F(path(t), t)
    close(turned, jnp.cos(low)[:, None] * (x_sigma + (until - sigma) * slope))


# The tangent


def some_network(seed):
    """(denoise, x, sigma, D_T) of a random network, which is no one's exact map."""
    network = networks.NETWORKS['mlp'](width=16, blocks=1, embedding=8)
    model = precondition(network, sigma_data=SIGMA_DATA)
    keys = jax.random.split(jax.random.key(seed), 3)
    sigma = jnp.asarray([0.02, 0.1, 0.5, 1.0, 4.0, 60.0])
    x = jax.random.normal(keys[0], (6, 3)) * jnp.sqrt(1 + sigma**2)[:, None]
    leaves, shape = jax.tree.flatten(jax.eval_shape(lambda: model.init(keys[1], x, {})))
    drawn = np.random.default_rng(seed)
    params = jax.tree.unflatten(shape, [0.4 * drawn.standard_normal(a.shape) for a in leaves])
    end = jax.random.normal(keys[2], (6, 3))
    return lambda x, sigma: model.apply(params, x, sigma, {})[0], x, sigma, end


def papers(denoise, x, sigma, end, r):
    """g as section 7 of the methods' sheet has it, by a jvp of F in TrigFlow."""
    t = trigflow.time(sigma, SIGMA_DATA)
    cos, sin = jnp.cos(t)[:, None], jnp.sin(t)[:, None]
    x_t, F = cos * x, trigflow.view(denoise, SIGMA_DATA)
    velocity = SIGMA_DATA * trigflow.output(end, x, sigma, SIGMA_DATA)
    tangents = (cos * sin * velocity, jnp.cos(t) * jnp.sin(t))
    value, J = jax.jvp(F, (x_t, t), tangents)
    own = -(cos**2) * (SIGMA_DATA * value - velocity)
    return own - r * (cos * sin * x_t + SIGMA_DATA * J)


def test_tangent_is_the_papers():
    """Step 4 of the algorithm, at every level and r; not with F's sign turned, nor without the part
    of time."""
    f, *given = some_network(1)
    forms = (derivative, wrong_sign, without_time)
    at = compiled(
        lambda r: (papers(f, *given, r), *(of(f, *given, SIGMA_DATA, r)[1] for of in forms))
    )
    for r in (0.0, 0.3, 1.0):
        wanted, g, *wrong = at(r)
        for found, row in zip(g, wanted):
            close(found, row, 1e-9)
        apart = [np.abs(of - wanted).max() for of in wrong]
        assert apart[0] > 0.1 and (apart[1] > 0.1 or r == 0)


def test_tangent_is_fastgens():
    """Loss and gradient of F as FastGen's `_scm_pred_to_loss` has them of the same tensors, at
    iteration 3000 of 10000, without its weight 1/sigma and its factors of n (recorded at torch
    2.13.0 in float64)."""
    theirs = {
        'loss': [0.33176773274251, 0.32853179213007, 0.23540409773118]
        + [0.27813465652889, 0.11198976898162, 0.08421542282311],
        'gradient': [-0.45633200479443, 0.06013538361362, 0.26209562396126]
        + [0.34020444149980, 0.23876035714663, 0.26292681179312],
    }
    f, *given = some_network(5)
    g = compiled(lambda: derivative(f, *given, SIGMA_DATA, 0.3)[1])()
    g = g / (losses.l2(g)[:, None] + Tangent().c)
    close(jnp.mean(g**2, axis=1), theirs['loss'])
    close(-2 * g[:, 0] / 3, theirs['gradient'])


def test_tangent_is_the_slope_along_the_path():
    """By central differences in ln(sigma): cos(t) df/dt, df/dt = df/d ln(sigma)/(cos sin). On the
    line to D_T the slope stays."""
    f, x, sigma, end = some_network(2)
    h = 1e-4
    along = compiled(lambda e: f(end + (x - end) * (1 + e), sigma * (1 + e)))
    _, sin = trigflow.cos_sin(sigma, SIGMA_DATA)
    g = compiled(lambda: derivative(f, x, sigma, end, SIGMA_DATA)[1])()
    close(g, (along(h) - along(-h)) / (2 * h * sin[:, None]), 1e-5)


@pytest.mark.parametrize('name', CASES)
def test_exact_map_has_no_tangent(name):
    p, exact = CASES[name]
    sigma = jnp.asarray(np.geomspace(0.05, 20, 12))
    x = p().sample(jax.random.key(0), 12)
    x = x + sigma[:, None] * jax.random.normal(jax.random.key(1), x.shape)
    end = p().denoise(x, sigma)

    @compiled
    def at(r):
        tangents = [
            derivative(f, x, sigma, end, SIGMA_DATA, r)[1] for f in (exact, p().denoise)
        ]  # Without what the network feeds back to itself, the denoiser's has none.
        return *tangents, [
            wrong(exact, x, sigma, end, SIGMA_DATA)[1] for wrong in (wrong_sign, without_time)
        ]

    (of_map, of_denoiser, wrong), (cold_map, cold_denoiser, _) = at(1.0), at(0.0)
    assert np.abs(of_map).max() < 1e-9 and np.abs(of_denoiser).max() > 0.01
    assert np.abs(cold_denoiser).max() < 1e-12 and np.abs(cold_map).max() > 0.01
    assert all(np.abs(g).max() > 0.1 for g in wrong)


def test_map_of_the_pair_is_the_end_of_its_ode():
    """By quadrature, to 1e-10."""
    p = pair()
    x, sigma = jnp.asarray([[-2.0], [-0.3], [0.1], [0.6], [3.0], [7.0]]), jnp.full(6, 3.0)
    denoise = compiled(p.denoise)

    # In t, which is finite at both ends.
    def slope(t, x_t):
        level = np.full(6, SIGMA_DATA * np.tan(t))
        x = x_t[:, None] / np.cos(t)
        F = trigflow.output(denoise(x, level), x, level, SIGMA_DATA)
        return SIGMA_DATA * np.asarray(F)[:, 0]

    t = float(trigflow.time(sigma[0], SIGMA_DATA))
    found = solve_ivp(
        slope, (t, 1e-7), np.asarray(x)[:, 0] * np.cos(t), 'DOP853', rtol=1e-13, atol=1e-13
    )
    # The rest of the way is straight, x_0 = D.
    last = np.full(6, SIGMA_DATA * np.tan(1e-7))
    wanted = denoise(found.y[:, -1:] / np.cos(1e-7), last)
    np.testing.assert_allclose(pair_map(x, sigma), wanted, atol=1e-10)


def test_map_of_data_of_sigma_data():
    """T-sCM2: the ODE stands still in TrigFlow, and F = -tan(t/2) x_t/sigma_data."""
    p = mixture([1.0], [[0.0, 0.0]], SIGMA_DATA)
    t = jnp.asarray([0.2, 0.9, 1.5])
    x_t = jax.random.normal(jax.random.key(0), (3, 2))
    still = trigflow.view(p.denoise, SIGMA_DATA)(x_t, t)
    np.testing.assert_allclose(still, 0, atol=1e-12)
    found = trigflow.view(lambda x, s: p.flow(x, s[:, None], 0.0), SIGMA_DATA)(x_t, t)
    close(found, -jnp.tan(t / 2)[:, None] * x_t / SIGMA_DATA)


def test_data_and_teacher_have_the_same_mean_tangent():
    """T-sCM6: given x_sigma, over 1e5 draws of the data's posterior; normalised, not so."""
    p, n = pair(), 100_000
    f, (x, sigma) = student('pair'), (jnp.asarray([[0.2]]), jnp.asarray([0.6]))
    f = lambda x, s, apply=f.apply: apply(jnp.asarray([0.1, 0.2]), x, s, {})[0]  # noqa: E731
    wanted = derivative(f, x, sigma, p.denoise(x, sigma), SIGMA_DATA)[1][0, 0]
    joint = np.exp(np.asarray(p._log_joint(x, sigma))[0])
    rng = np.random.default_rng(0)
    which = rng.choice(2, n, p=joint / joint.sum())
    data, level = np.asarray(p.stds)[which] ** 2, 0.6**2
    mean = (data * 0.2 + level * np.asarray(p.means)[which, 0]) / (data + level)
    y = mean + rng.standard_normal(n) * np.sqrt(data * level / (data + level))
    many = jnp.full((n, 1), 0.2), jnp.full(n, 0.6)
    g = np.asarray(compiled(lambda y: derivative(f, *many, y, SIGMA_DATA)[1])(y[:, None]))[:, 0]
    deviation = g.std() / np.sqrt(n)
    assert abs(g.mean() - wanted) < 3 * deviation
    normalised = g / (np.abs(g) + 0.1)
    assert abs(normalised.mean() - wanted / (abs(wanted) + 0.1)) > 10 * deviation


# The losses


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('tangent', [EXACT, Tangent(0)])
def test_distillation_is_stationary_at_the_exact_map(name, tangent):
    made = scd(student(name), CASES[name][0]().denoiser(), LAW, tangent=tangent)
    if tangent.adaptive:
        made = made._replace(losses={'student': with_aux(made)})
    assert_stationary(made, name)


def with_aux(made):
    def loss(params, context, batch, key):
        context = context._replace(aux={'square': jnp.ones(continuous.BINS)})
        return made.losses['student'](params, context, batch, key)

    return loss


@pytest.mark.parametrize('name', CASES)
def test_training_is_stationary_at_the_exact_map_in_the_mean(name):
    made = scm(student(name), LAW, sigma_data=SIGMA_DATA, tangent=EXACT)
    assert_stationary_in_the_mean(made, name)


@pytest.mark.parametrize('wrong', WRONG)
def test_what_is_wrong_is_not_stationary(wrong, monkeypatch):
    monkeypatch.setattr(continuous, *WRONG[wrong])
    trained = scm(student('gaussian'), LAW, tangent=EXACT)
    with pytest.raises(AssertionError):
        assert_stationary_in_the_mean(trained, 'gaussian')
    if wrong != 'target with gradient':  # Of a teacher, where g is 0 so is its square's gradient.
        distilled = scd(student('gaussian'), gaussian().denoiser(), LAW, tangent=EXACT)
        with pytest.raises(AssertionError):
            assert_stationary(distilled, 'gaussian')


def test_normalised_tangents_of_data_move_the_optimum():
    """Where the posterior is not symmetric: the price of what holds their variance off."""
    made = scm(student('pair'), LAW, tangent=EXACT._replace(normalise=True))
    with pytest.raises(AssertionError):
        assert_stationary_in_the_mean(made, 'pair')


@pytest.mark.parametrize(('normalise', 'adaptive'), [(False, False), (True, True)])
def test_gradient_of_the_loss(normalise, adaptive):
    """T-sCM4: -2 exp(w)/n <dF/dtheta, g>, where exp(w)/n is 1 over the mean at the level."""
    model, theta = student('gaussian'), jnp.asarray([0.1, -0.2])
    tangent = Tangent(0, normalise, 0.1, adaptive)
    made = scd(model, gaussian().denoiser(), LAW, sigma_data=SIGMA_DATA, tangent=tangent)
    batch = {'x': gaussian().sample(jax.random.key(0), 64), 'condition': {}}
    bins = jnp.linspace(0.5, 1.5, continuous.BINS)
    context = Context({}, {}, {'square': bins} if adaptive else {})
    key = jax.random.key(1)

    def loss(theta):
        return made.losses['student']({'student': theta}, context, batch, key)

    run = compiled(jax.value_and_grad(loss, has_aux=True))
    (value, (metrics, aux)), found = run(theta)
    key_level, key_noise, _ = jax.random.split(key, 3)
    sigma = LAW.sample(key_level, 64)
    x = batch['x'] + sigma[:, None] * jax.random.normal(key_noise, (64, 3))

    @compiled
    def by_hand():
        f = lambda x, sigma, theta=theta: model.apply(theta, x, sigma, {})[0]  # noqa: E731
        g = derivative(f, x, sigma, gaussian().denoise(x, sigma), SIGMA_DATA)[1]
        F = lambda theta: trigflow.output(f(x, sigma, theta), x, sigma, SIGMA_DATA)  # noqa: E731
        return g, jax.jacfwd(F)(theta)

    g, jacobian = by_hand()
    norm = jnp.linalg.norm(g, axis=1)
    if normalise:
        g = g / (norm[:, None] + 0.1)
    square = jnp.sum(g**2, axis=1)
    weight = jnp.full(64, 1 / 3)
    if adaptive:
        mean, bins = losses.mean_in_bins(square, LAW.cdf(sigma), bins, continuous.DECAY)
        weight = 1 / mean
        close(aux['square'], bins)
    wanted = -2 * jnp.mean(weight[:, None] * jnp.sum(jacobian * g[..., None], axis=1), axis=0)
    close(found, wanted, 1e-5)
    close(value, jnp.mean(weight * square), 1e-5)
    close(metrics['gap'], jnp.mean(norm))
    assert metrics['log_tangent'].sum() == 64 and metrics['tangent_warmup'] == 1
    # Downhill is along g: a small step makes the tangent smaller.
    (_, (after, _)), _ = run(theta - 0.02 * found)
    assert after['gap'] < metrics['gap']


def test_adaptive_weight_is_the_papers_at_its_optimum():
    """The w that minimises the mean of exp(w)/n |.|^2 - w at a level."""
    square, position = jnp.asarray([1.0, 3.0, 8.0, 4.0]), jnp.asarray([0.1, 0.2, 0.7, 0.9])
    mean, bins = losses.mean_in_bins(square, position, jnp.ones(2), 0.0)
    np.testing.assert_allclose(mean, [2, 2, 6, 6])
    n = 3
    for level, of in enumerate((square[:2], square[2:])):
        w = jnp.log(n / bins[level])
        objective = lambda w, of=of: jnp.mean(jnp.exp(w) / n * of - w)  # noqa: E731
        assert abs(jax.grad(objective)(w)) < 1e-12
    _, kept = losses.mean_in_bins(square[:2], position[:2], bins, 0.9)
    np.testing.assert_allclose(kept, [2, 6])


def test_warm_up_of_the_tangent():
    """At first the gap is that of the two denoisers, as of plain distillation."""
    made = scd(
        student('gaussian'), gaussian().denoiser(), LAW, tangent=Tangent(100, adaptive=False)
    )
    batch = {'x': gaussian().sample(jax.random.key(0), 32), 'condition': {}}

    @compiled
    def measured(step):
        context, params = Context({}, step=step), {'student': jnp.zeros(2)}
        return made.losses['student'](params, context, batch, jax.random.key(1))[1][0]

    metrics = [measured(jnp.asarray(step)) for step in (0, 50, 100, 1000)]
    np.testing.assert_allclose([m['tangent_warmup'] for m in metrics], [0, 0.5, 1, 1])
    # The exact map's tangent has the second half alone, which takes the first away as it warms.
    gaps = [m['gap'] for m in metrics]
    close(gaps[1], gaps[0] / 2)
    assert gaps[0] > 0.01 and gaps[2] < 1e-10 and gaps[3] < 1e-10


# Without a derivative


def papers_difference(f, x, sigma, end, low, r):
    """cos(t) Delta of arXiv 2410.11081's discrete form, in TrigFlow."""
    t, t_low = (trigflow.time(of, SIGMA_DATA) for of in (sigma, low))
    d, cos = (t - t_low)[:, None], jnp.cos(t)[:, None]
    cos_low, sin_low = jnp.cos(t_low)[:, None], jnp.sin(t_low)[:, None]
    x_t, F = cos * x, trigflow.view(f, SIGMA_DATA)
    before = trigflow.output(end, x, sigma, SIGMA_DATA)
    x_low = jnp.cos(d) * x_t - jnp.sin(d) * SIGMA_DATA * before
    here, there = SIGMA_DATA * F(x_t, t), SIGMA_DATA * F(x_low, t_low)
    change = -cos_low * (here - SIGMA_DATA * before) - r * sin_low * (
        x_t + (jnp.cos(d) * here - there) / jnp.sin(d)
    )
    return cos * change


def test_difference_is_the_papers_and_tends_to_the_derivative():
    """With slope 1 in the step, for any student."""
    f, x, sigma, end = some_network(3)
    steps = jnp.asarray([0.02, 0.01, 0.005, 0.0025])

    @compiled
    def at(r):
        low = sigma * 0.8
        found = difference(f, x, sigma, end, low, SIGMA_DATA, r)[1]
        ends = difference(f, x, sigma, end, 0 * sigma, SIGMA_DATA, r)[1]
        limit = derivative(f, x, sigma, end, SIGMA_DATA, r)[1]

        def error(h):
            near = difference(f, x, sigma, end, sigma * (1 - h), SIGMA_DATA, r)[1]
            return jnp.abs(near - limit).max()

        return found, papers_difference(f, x, sigma, end, low, r), ends, jax.lax.map(error, steps)

    ends = []
    for r in (0.0, 0.4, 1.0):
        found, wanted, whole, error = at(r)
        close(found, wanted, 1e-8)
        np.testing.assert_allclose(np.log2(error[:-1] / error[1:]), 1, atol=0.15)
        ends.append(whole)
    close(ends[2], ends[0])  # The step to 0 is the whole way to D_T.


def test_discrete_distillation_is_stationary_in_the_limit():
    """Gradient at the exact map: falls with the step."""
    found = []
    for steps in (64, 128):
        made = dscd(
            student('gaussian'),
            gaussian().denoiser(),
            LAW,
            sigmas=noise.karras_grid(steps, 0.01, 20.0),
            tangent=EXACT,
        )
        found.append(np.abs(gradients(made, 'gaussian', 4096, 1)[0, 1]))
    assert np.log2(found[0] / found[1]) == pytest.approx(1, abs=0.15)


def test_neighbouring_levels():
    grid = jnp.asarray([4.0, 2.0, 1.0, 0.5, 0.0])
    high, low = continuous.neighbours(grid, jnp.asarray([0.3, 0.5, 0.6, 2.0, 3.0, 9.0]))
    np.testing.assert_array_equal(high, [0.5, 0.5, 1, 2, 4, 4])
    np.testing.assert_array_equal(low, [0, 0, 0.5, 1, 2, 2])


# With a score


def test_score_regularised_form_is_the_sum_of_two_methods():
    p, law, theta = gaussian(), noise.lognormal(0.0, 1.0), jnp.asarray([0.1, 0.2])
    steps, fake = Steps(5.0, (1.0,), 0.0), mixture([1.0], [[0.4, 0.0, 0.5]], 0.6)
    tracking = Tracking(sigma_data=SIGMA_DATA, from_teacher=False)
    tangent = Tangent(0, adaptive=False)
    laws = dict(student_law=law, critic_law=law)
    networks_ = student('gaussian'), p.denoiser(), fake.denoiser()
    made = rcm(
        *networks_, LAW, **laws, score_weight=0.3, tangent=tangent, steps=steps, tracking=tracking
    )
    alone = scd(*networks_[:2], LAW, sigma_data=SIGMA_DATA, tangent=tangent, steps=steps)
    gap = distribution_matching(*networks_, **laws, steps=steps, tracking=tracking)
    batch = {'x': p.sample(jax.random.key(0), 16), 'condition': {}}
    key = jax.random.key(1)
    params = {'student': theta, 'critic': {'fake_score': {}}}

    def gradient(method, key):
        def loss(theta):
            own = params | {'student': theta}
            return method.losses['student'](own, Context({}), batch, key)[0]

        return jax.grad(loss)(theta)

    @compiled
    def both(key):
        keys = jax.random.split(key)
        return gradient(made, key), gradient(alone, keys[0]), gradient(gap, keys[1])

    found, own, score = both(key)
    close(found, own + 0.3 * score)
    assert np.abs(score).max() > 1e-3
    assert set(made.losses) == {'student', 'critic'} and made.generator.nfe == 2
    with pytest.raises(ValueError, match='score_weight'):
        rcm(*networks_, LAW, **laws, score_weight=-1.0)


@pytest.mark.parametrize(
    'settings',
    [
        {'tangent': Tangent(-1)},
        {'tangent': Tangent(c=0.0)},
        {'sigma_data': 0.0},
        {'steps': Steps(0.0)},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match='need|must'):
        scm(student('gaussian'), LAW, **settings)
