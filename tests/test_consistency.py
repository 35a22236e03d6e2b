"""Consistency models against the exact map of one Gaussian, and against the tables of their papers,
in float64 through the library's own losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import compiled

from fdistill import networks
from fdistill.diffusion import flow_map, noise, samplers
from fdistill.diffusion.denoiser import Denoiser, precondition
from fdistill.diffusion.oracle import mixture
from fdistill.methods import losses, segments
from fdistill.methods.consistency import (
    DISTANCES,
    SOLVERS,
    WEIGHTINGS,
    Curriculum,
    Match,
    Shrinking,
    compare,
    consistency,
    consistency_training,
    draw,
    ect,
    edges,
    ict,
    level,
    levels_at,
    lower_level,
    slope_of,
    tcm,
)
from fdistill.methods.generator import Steps
from fdistill.methods.method import Context
from fdistill.methods.segments import tscd

pytestmark = pytest.mark.usefixtures('x64')


# One Gaussian, along whose paths the exact consistency function is known; the student is that
# function and a shift, its only parameter.
LOWEST, HIGHEST, DIMENSIONS, SAMPLES = 0.05, 5.0, 3, 4096


def close(actual, desired, tolerance=1e-6):
    """Relative to the largest component."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    error = np.max(np.abs(actual - desired)) / np.max(np.abs(desired))
    assert error <= tolerance, f'relative error {error:.1e}: {actual} against {desired}'


def one_gaussian():
    return mixture([1.0], [[0.3, -0.2, 0.5]], 0.8)


def consistency_loss(grid, **settings):
    """The loss as a function of the student's shift; that of the target is 0."""
    p = one_gaussian()

    def apply(shift, x, sigma, condition, key=None):
        return p.flow(x, sigma[:, None], LOWEST) + shift, (x,)

    made = consistency(
        Denoiser(lambda key, x, condition: jnp.zeros(()), apply),
        p.denoiser(),
        sigmas=grid,
        steps=Steps(sigma_init=HIGHEST),
        **settings,
    )
    context = Context({}, {'target': jnp.zeros(())})
    batch = {'x': p.sample(jax.random.key(0), SAMPLES), 'condition': {}}

    def loss(shift):
        return made.losses['student']({'student': shift}, context, batch, jax.random.key(1))[0]

    return loss


@pytest.mark.parametrize(('solver', 'order'), [('euler', 1), ('heun', 2)])
def test_exact_consistency_function_has_no_loss_in_the_limit_of_small_steps(solver, order):
    """What is left is the square of the local error of the teacher's step."""
    found = []
    for steps in (64, 128):
        grid = noise.karras_grid(steps, LOWEST, HIGHEST)
        loss = consistency_loss(grid, solver=solver, match=Match('squared_l2'))
        found.append(compiled(loss)(0.0))
    assert found[1] < 1e-6
    assert np.log2(found[0] / found[1]) == pytest.approx(2 * (order + 1), abs=0.3)


@pytest.mark.parametrize('weighting', ['unit', 'step'])
def test_consistency_loss_of_a_shift(weighting):
    """lambda d(shift), and no gradient through the target."""
    grid = noise.linear_grid(2001, LOWEST, HIGHEST)
    weight, shift, c = {'unit': 1.0, 'step': 1 / (grid[0] - grid[1])}[weighting], 0.02, 0.01
    square, offset = DIMENSIONS * shift**2, c**2 * DIMENSIONS
    for distance, value, slope in (
        ('squared_l2', square, 2 * DIMENSIONS * shift),
        (
            'pseudo_huber',
            np.sqrt(square + offset) - np.sqrt(offset),
            DIMENSIONS * shift / np.sqrt(square + offset),
        ),
    ):
        loss = consistency_loss(grid, match=Match(distance, c, weighting))
        found, gradient = compiled(jax.value_and_grad(loss))(shift)
        close(found, weight * value)
        close(gradient, weight * slope)


@pytest.mark.parametrize('solver', SOLVERS)
def test_step_of_the_teacher_is_that_of_the_sampler(solver):
    """Each sample at its own level."""
    p = mixture([0.35, 0.65], [[-1.2], [0.9]], [0.3, 0.5])
    high, low = np.array([3.0, 1.0, 0.2]), np.array([2.0, 0.7, 0.1])
    x = jnp.asarray([[2.0], [-1.0], [0.4]])

    def slope(x, sigma):
        return (x - p.denoise(x, sigma)) / sigma[:, None]

    found = SOLVERS[solver](slope, x, jnp.asarray(high), jnp.asarray(low))
    for i in range(3):
        sampler = samplers.SAMPLERS[solver]
        close(found[i], sampler.solve(p.denoise, x[i : i + 1], np.array([high[i], low[i]]))[0])


def test_target_of_consistency_distillation_has_a_decay_of_its_own():
    p = one_gaussian().denoiser()
    averages = consistency(p, p, target_decay=0.9).averages
    assert averages['target'].decay(jnp.zeros((), jnp.int32)) == 0.9
    assert averages['ema'].decay is None


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'solver': 'rk4'}, 'known are euler, heun'),
        ({'match': Match('l1')}, 'known are squared_l2, pseudo_huber'),
        ({'match': Match(weighting='edm')}, 'known are unit, step'),
        ({'match': Match(c=0.0)}, 'must be > 0'),
        ({'target_decay': 1.0}, r'in \[0, 1\)'),
        ({'sigmas': np.array([80.0, 0.0])}, 'at least two levels'),
        ({'steps': Steps(sigma_init=100.0)}, 'from 0.002 to 80 only'),
        ({'steps': Steps(80.0, (1.0, 0.001))}, 'from 0.002 to 80 only'),
    ],
)
def test_consistency_refuses(settings, message):
    p = one_gaussian().denoiser()
    with pytest.raises(ValueError, match=message):
        consistency(p, p, **settings)


# Student and target as functions of theta = (shift, scale) of the exact map's deviation from the
# mean: at theta = 0 every loss is stationary.
MEAN, SPREAD = np.array([0.3, -0.2, 0.5]), 0.8


def shrink(sigma, until):
    """Of the deviation from the mean, along a path."""
    return jnp.sqrt((SPREAD**2 + until**2) / (SPREAD**2 + sigma**2))[:, None]


def student(until=0.0):
    def apply(theta, x, sigma, condition, key=None):
        exact = (x - MEAN) * shrink(sigma, until)
        return MEAN + theta[0] + (1 + theta[1]) * exact, (x,)

    return Denoiser(lambda key, x, condition: jnp.zeros(2), apply)


def gradients(made, count, step=0, averages=True, frozen=None, batches=16):
    """Gradients in theta at 0, [batches, 2], each of `count` samples of the Gaussian."""
    p = one_gaussian()
    target = {'target': jnp.zeros(2)} if averages else {}
    context = Context(frozen or {}, target, step=step)

    def loss(theta, key):
        batch = {'x': p.sample(key, count), 'condition': {}}
        return made.losses['student']({'student': theta}, context, batch, jax.random.key(7))[0]

    keys = jax.random.split(jax.random.key(3), batches)

    # The second key is that of the draws: another one for each batch.
    def one(key):
        batch_key, draw_key = jax.random.split(key)
        batch = {'x': p.sample(batch_key, count), 'condition': {}}

        def loss(theta):
            return made.losses['student']({'student': theta}, context, batch, draw_key)[0]

        return jax.grad(loss)(jnp.zeros(2))

    return np.asarray(compiled(lambda keys: jax.lax.map(one, keys))(keys))


def within(found, wanted, sigmas=3.5):
    """The mean over batches is what is wanted, to the deviation of that mean."""
    error = np.abs(found.mean(axis=0) - wanted)
    assert np.all(error <= sigmas * found.std(axis=0, ddof=1) / np.sqrt(len(found))), error


@pytest.mark.parametrize('boundary', [0.0, 0.02])
def test_boundary_of_the_preconditioning(boundary):
    """D(x, boundary) = x exactly, for any parameters; without one, nearly at a small level."""
    network = networks.NETWORKS['mlp'](width=16, blocks=1, embedding=8)
    x = jax.random.normal(jax.random.key(0), (5, 3))
    made = precondition(network, sigma_data=0.7, boundary=boundary)
    params = made.init(jax.random.key(1), x, {})
    params = jax.tree.map(lambda a: a + 0.3, params)
    out, _ = made.apply(params, x, jnp.full(5, 0.02), {})
    np.testing.assert_allclose(out, x, atol=1e-12 if boundary else 0.2)
    assert boundary or np.abs(out - x).max() > 1e-4


def test_levels_of_consistency_training():
    """arXiv 2303.01469, appendix C, with s_0, s_1 = 2, 150."""
    curriculum = Curriculum('root', (2, 150), 10_000)
    steps = [0, 100, 1000, 2500, 5000, 7500, 10_000, 20_000]
    found = [int(levels_at(curriculum, k)) for k in steps]
    assert found == [2, 16, 48, 76, 107, 131, 151, 151]
    p = one_gaussian().denoiser()
    decay = consistency_training(p, curriculum=curriculum).averages['target'].decay
    close(decay(jnp.asarray(0)), 0.9)  # mu_0^(s_0/N) with N = 2
    close(decay(jnp.asarray(10_000)), np.exp(2 * np.log(0.9) / 151))


def test_levels_of_improved_consistency_training():
    """arXiv 2310.14189, section 3.4."""
    curriculum = Curriculum('doubling', (10, 1280), 400_000)
    found = [int(levels_at(curriculum, k)) for k in range(0, 400_001, 50_000)]
    assert found == [11, 21, 41, 81, 161, 321, 641, 1281, 1281]
    assert int(levels_at(curriculum, 49_999)) == 11
    assert int(levels_at(Curriculum('none', (2, 17)), 5)) == 18


def test_levels_and_their_probabilities():
    """The table of eleven levels under lognormal(-1.1, 2), and draws that follow it."""
    curriculum = Curriculum('doubling', (10, 1280), 400_000)
    count = levels_at(curriculum, 0)
    levels = level(curriculum, jnp.arange(11), count, jnp.float64)
    wanted = [0.002, 0.0167, 0.0851, 0.3183, 0.9654, 2.515, 5.839, 12.38, 24.41, 45.31, 80]
    np.testing.assert_allclose(levels, wanted, rtol=3e-3)
    law = noise.lognormal(-1.1, 2.0)
    found = edges(curriculum, law, count, jnp.float64)
    shares = np.diff(found) / (found[-1] - found[0])
    table = [0.0626, 0.1817, 0.2455, 0.2135, 0.1424, 0.0806, 0.0411, 0.0196, 0.0089, 0.0040]
    np.testing.assert_allclose(shares[:10], table, atol=1e-3)
    assert len(shares) == 1280 and np.all(shares[10:] == 0)

    made = ict(student(), law=law, curriculum=curriculum)
    drawn = np.asarray(draw(jax.random.key(0), curriculum, law, count, 100_000, jnp.float64))
    found = np.bincount(drawn, minlength=10) / len(drawn)
    assert len(found) == 10
    assert np.all(np.abs(found - shares[:10]) < 4 * np.sqrt(shares[:10] / len(drawn)))
    assert set(made.averages) == {'ema'}


def test_weightings():
    high, low = jnp.array([3.0, 1.0]), jnp.array([1.0, 0.75])
    for name, wanted in (
        ('unit', [1, 1]),
        ('step', [0.5, 4]),
        ('root_step', [0.5**0.5, 2]),
        ('eps', [1 / 9, 1]),
    ):
        close(WEIGHTINGS[name](high, low), np.array(wanted, float))


def test_distances_are_of_whole_samples():
    """Their value is that of the norm, so that a rotation changes nothing; a distance summed over
    elements fails that."""
    u = jax.random.normal(jax.random.key(0), (4, 6))
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    c = 0.3
    for name in DISTANCES:
        d = DISTANCES[name]
        close(d(u @ turn, c), d(u, c), 1e-12)
    elementwise = [jnp.sum(jnp.sqrt(v**2 + c**2) - c, axis=1) for v in (u @ turn, u)]
    assert np.abs(elementwise[0] - elementwise[1]).max() > 1e-2

    d, norm = DISTANCES['pseudo_huber'], jnp.linalg.norm(u, axis=1)
    close(d(1e-4 * u, c), 1e-8 * norm**2 / (2 * c), 1e-5)
    close(d(1e4 * u, c), 1e4 * norm - c, 1e-6)
    close(DISTANCES['l2'](u, c), norm)
    assert np.all(jax.grad(lambda u: losses.l2(u).sum())(jnp.zeros((2, 3))) == 0)


METHODS = {
    'consistency': lambda s, p, grid: consistency(
        s, p, sigmas=grid, match=SQUARE, steps=Steps(HIGHEST)
    ),
    'ct': lambda s, p, grid: consistency_training(
        s, curriculum=FIXED, match=SQUARE, steps=Steps(HIGHEST)
    ),
    'ict': lambda s, p, grid: ict(s, law=LAW, curriculum=FIXED, match=SQUARE, steps=Steps(HIGHEST)),
    'ect': lambda s, p, grid: ect(s, LAW, match=SQUARE, steps=Steps(HIGHEST)),
    'tcm': lambda s, p, grid: tcm(
        s, student(), LAW, transition=0.5, match=SQUARE, steps=Steps(HIGHEST)
    ),
    'tscd': lambda s, p, grid: tscd(s, p, sigmas=grid, segments=2, match=SQUARE),
}
SQUARE, LAW = Match('squared_l2'), noise.lognormal(0.0, 1.0)
FIXED = Curriculum('none', (2, 8), 1, LOWEST, HIGHEST)


@pytest.mark.parametrize('name', METHODS)
def test_no_gradient_through_the_target(name):
    """The gradient is that of a student whose target has parameters of its own; the derivative of
    the value, which moves the target too, is another where the target is the student itself."""
    p, deviation = one_gaussian(), jnp.array([0.1, 0.2])
    batch = {'x': p.sample(jax.random.key(0), 64), 'condition': {}}
    context = Context({'teacher': jnp.zeros(2)}, {'target': deviation})
    grid = noise.karras_grid(8, LOWEST, HIGHEST)

    def loss(theta, target=None):
        """With `target`, the first of the two evaluations, which is the target's, has that."""
        calls = []

        def apply(own, x, sigma, condition, key=None):
            calls.append(0)
            first = target is not None and len(calls) == 1
            return student().apply(target if first else own, x, sigma, condition)

        made = METHODS[name](student()._replace(apply=apply), p.denoiser(), grid)
        return made.losses['student']({'student': theta}, context, batch, jax.random.key(1))[0]

    def derivative(loss):
        e = 1e-5
        return [(loss(deviation + e * d) - loss(deviation - e * d)) / (2 * e) for d in np.eye(2)]

    found = jax.grad(loss)(deviation)
    wanted = derivative(lambda theta: loss(theta, deviation))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-8)
    if name in ('ict', 'ect', 'tcm'):
        assert np.abs(np.subtract(derivative(loss), found)).max() > 1e-2 * np.abs(found).max()


def test_bias_of_consistency_training_falls_with_the_step():
    """At the exact map the gradient is that of levels too far apart, in closed form; divided by the
    step it falls in proportion to it."""
    found = []
    for count in (16, 32, 64):
        grid = noise.linear_grid(count, 1.0, 2.0)
        # Levels of a linear grid: rho = 1.
        curriculum = Curriculum('none', (count - 1, count - 1), 1, 1.0, 2.0, 1.0)
        made = consistency_training(
            student(), curriculum=curriculum, match=Match('squared_l2'), steps=Steps(2.0)
        )
        high, low = grid[:-2], grid[1:-1]
        inner = (SPREAD**2 + high * low) / np.sqrt((SPREAD**2 + high**2) * (SPREAD**2 + low**2))
        wanted = 2 * DIMENSIONS * np.mean(SPREAD**2 * (1 - inner))
        within(gradients(made, 8192), [0, wanted])
        found.append(wanted / (high[0] - low[0]))
    slopes = np.log2(np.divide(found[:-1], found[1:]))
    np.testing.assert_allclose(slopes, 1, atol=0.15)


def test_bias_of_ect_falls_with_the_gap():
    """Stationary in the limit r -> t, by the squared distance."""
    found = []
    for stage in (3, 4, 5):
        shrinking = Shrinking(q=2.0, k=0.0, stage_steps=1)
        made = ect(
            student(),
            noise.loguniform(0.999, 1.001),
            shrinking=shrinking,
            match=Match('squared_l2', weighting='step'),
            steps=Steps(1.0),
        )
        low = 1 - 2.0 ** -(stage + 1)
        inner = (SPREAD**2 + low) / np.sqrt((SPREAD**2 + 1) * (SPREAD**2 + low**2))
        wanted = 2 * DIMENSIONS * SPREAD**2 * (1 - inner) / (1 - low)
        within(gradients(made, 4096, step=stage), [0, wanted])
        found.append(wanted)
    np.testing.assert_allclose(np.log2(np.divide(found[:-1], found[1:])), 1, atol=0.15)


def test_levels_of_ect():
    """r rises with t and with the stage, up to t; in the first it is 0 from ln 7 on downwards."""
    t = jnp.asarray(np.geomspace(0.01, 80, 200))
    r = np.stack([lower_level(Shrinking(stage_steps=10), t, s) for s in (0, 9, 10, 20, 400)])
    assert np.all(r[0] == r[1]) and np.all(np.diff(r[[0, 2, 3, 4]], axis=0) >= 0)
    # With two units of n(t) the ratio falls to 0.
    assert np.all((r[0] == 0) == (np.asarray(t) <= np.log(7)))
    assert np.all(np.diff(r[0]) >= 0) and np.all(r[-1] < t)
    np.testing.assert_allclose(r[-1], t, rtol=1e-5)
    one = np.asarray(lower_level(Shrinking(k=0.0, q=256.0), t, 0))
    np.testing.assert_allclose(one, t * 255 / 256)


def test_ect_begins_as_a_denoiser():
    """Where r is 0 the loss is the norm of D - x over t: no square."""
    p = one_gaussian()
    law = noise.lognormal(-1.1, 0.5)
    made = ect(p.denoiser(), law, shrinking=Shrinking(q=1.01, k=200.0), steps=Steps(HIGHEST))
    batch = {'x': p.sample(jax.random.key(0), 32), 'condition': {}}
    key = jax.random.key(5)
    value, (metrics, _) = made.losses['student']({'student': {}}, Context({}), batch, key)
    key_level, key_noise, _ = jax.random.split(key, 3)
    t = law.sample(key_level, 32)
    x_t = batch['x'] + t[:, None] * jax.random.normal(key_noise, batch['x'].shape)
    gap = jnp.linalg.norm(p.denoise(x_t, t) - batch['x'], axis=1)
    close(value, jnp.mean(gap / t))
    close(metrics['gap'], jnp.mean(gap))
    assert metrics['ratio'] == 0


def test_dropout_is_the_same_at_both_levels():
    """Levels that nearly coincide leave no gap; with two masks there is one."""
    network = networks.NETWORKS['mlp'](width=32, blocks=1, embedding=8, dropout=0.5)
    model = precondition(network)
    x = jax.random.normal(jax.random.key(0), (16, 3))
    params = model.init(jax.random.key(1), x, {})
    params = jax.tree.map(lambda a: a + 0.05, params)
    made = ect(
        model,
        noise.lognormal(0.0, 1.0),
        shrinking=Shrinking(q=1e9, k=0.0),
        match=Match('l2'),
        steps=Steps(1.0),
    )
    batch = {'x': x, 'condition': {}}
    gap = made.losses['student']({'student': params}, Context({}), batch, jax.random.key(2))[0]
    assert gap < 1e-3
    sigma = jnp.ones(16)
    apart = [model.apply(params, x, sigma, {}, key=jax.random.key(n))[0] for n in (0, 1)]
    assert np.abs(apart[0] - apart[1]).max() > 1e-2


def test_tcm_trains_above_the_transition_alone():
    p, transition = one_gaussian(), 1.0
    match = Match('squared_l2', weighting='step')

    def at(t, share):
        made = tcm(
            student(),
            student(),
            noise.loguniform(t * 0.999, t * 1.001),
            transition=transition,
            boundary_share=share,
            shrinking=Shrinking(q=16.0, k=0.0),
            match=match,
            steps=Steps(HIGHEST),
        )
        batch = {'x': p.sample(jax.random.key(0), 64), 'condition': {}}
        frozen = {'teacher': jnp.array([0.3, 0.1])}

        def loss(theta):
            value, (metrics, _) = made.losses['student'](
                {'student': theta}, Context(frozen), batch, jax.random.key(1)
            )
            return value, metrics

        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.array([0.1, -0.2]))
        return metrics, np.asarray(gradient)

    below, gradient = at(0.5, 0.25)
    assert below['consistency'] == 0 and below['above'] == 0.25
    # What is left is the boundary's, whose target is f_1.
    _, more = at(0.2, 0.25)
    np.testing.assert_allclose(gradient, more, rtol=1e-10)
    assert np.abs(gradient).max() > 0
    above, other = at(3.0, 0.25)
    assert above['consistency'] > 0 and above['above'] == 1
    assert np.abs(other - gradient).max() > 1e-2
    close(above['boundary'], below['boundary'])


def test_boundary_of_tcm_has_the_first_stage_as_target():
    p = one_gaussian()
    made = tcm(
        student(),
        student(),
        noise.loguniform(3.0, 4.0),
        transition=1.0,
        boundary_share=0.5,
        shrinking=Shrinking(q=16.0, k=0.0),
        match=Match('squared_l2', weighting='unit'),
        steps=Steps(HIGHEST),
    )
    frozen, theta = {'teacher': jnp.array([0.3, 0.1])}, jnp.array([0.1, -0.2])
    batch, key = {'x': p.sample(jax.random.key(0), 64), 'condition': {}}, jax.random.key(1)
    _, (metrics, _) = made.losses['student']({'student': theta}, Context(frozen), batch, key)
    z = jax.random.normal(jax.random.split(key, 3)[1], batch['x'].shape)
    one, low = jnp.ones(64), jnp.full(64, 15 / 16)
    f = student().apply(theta, batch['x'] + z, one, {})[0]
    first = student().apply(frozen['teacher'], batch['x'] + low[:, None] * z, low, {})[0]
    # Every second sample is at the boundary.
    square = np.sum(np.asarray(f - first) ** 2, axis=1)
    assert any(
        np.isclose(metrics['boundary'], square[half].mean(), rtol=1e-10)
        for half in (slice(0, None, 2), slice(1, None, 2))
    )


def exact_segments(sigmas, count):
    """D whose jump leads to the exact point of the path at the lower end of its segment."""
    rising = np.asarray(sigmas)[::-1]
    ends = rising[segments.borders(len(rising) - 1, count)]

    def apply(theta, x, sigma, condition, key=None):
        # A border belongs to the segment below it.
        end = jnp.asarray(ends)[jnp.searchsorted(jnp.asarray(ends), sigma * (1 - 1e-9)) - 1]
        share = (end / sigma)[:, None]
        at_end = MEAN + (x - MEAN) * shrink(sigma, end)
        return (1 + theta[1]) * (at_end - share * x) / (1 - share) + theta[0], (x,)

    return Denoiser(lambda key, x, condition: jnp.zeros(2), apply)


@pytest.mark.parametrize('count', [1, 2, 3, 8])
def test_exact_segments_have_no_loss_and_sample_exactly(count):
    """With the teacher's exact step in place of a solver's, by `floor`; samples are the exact map
    from the highest level to 0."""
    grid = noise.karras_grid(8, LOWEST, HIGHEST)
    p = one_gaussian()

    def exact(slope, x, high, low):
        return MEAN + (x - MEAN) * shrink(high, low)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOLVERS, 'exact', exact)
        made = tscd(
            exact_segments(grid, count),
            p.denoiser(),
            sigmas=grid,
            segments=count,
            solver='exact',
        )
    batch = {'x': p.sample(jax.random.key(0), 512), 'condition': {}}
    context = Context({'teacher': {}}, {'target': jnp.zeros(2)})

    def loss(theta):
        return made.losses['student']({'student': theta}, context, batch, jax.random.key(2))[0]

    value, gradient = jax.value_and_grad(loss)(jnp.zeros(2))
    assert value < 1e-20 and np.abs(gradient).max() < 1e-10
    assert loss(jnp.array([0.0, 0.01])) > 1e-8
    noise_ = jax.random.normal(jax.random.key(1), (16, 3))
    x0 = made.generator.sample(jnp.zeros(2), noise_, {})
    top = jnp.full(16, HIGHEST)
    close(x0, MEAN + (HIGHEST * noise_ - MEAN) * shrink(top, 0.0), 1e-9)
    assert made.generator.nfe == count


def test_one_segment_is_consistency_distillation():
    """Of the same draws, the two losses are the same but for the lowest level, which consistency
    distillation never starts from."""
    grid = noise.karras_grid(6, LOWEST, HIGHEST)
    p, theta = one_gaussian(), jnp.array([0.1, 0.2])
    high, low = jnp.asarray(grid[:-2]), jnp.asarray(grid[1:-1])
    x = p.sample(jax.random.key(0), 5) + high[:, None] * 0.7
    below = SOLVERS['heun'](slope_of(p.denoiser(), Context({}), {}), x, high, low)

    def f(theta, x, sigma):
        return student().apply(theta, x, sigma, {})[0]

    def jumped(theta, x, sigma):
        return flow_map.jump(f(theta, x, sigma), x, sigma, jnp.zeros(5))

    pairs = [[functools.partial(of, own) for own in (theta, 0.5 * theta)] for of in (jumped, f)]
    for a, b in zip(*(compare(SQUARE, *pair, x, high, below, low) for pair in pairs), strict=True):
        close(a, b, 1e-12)


@pytest.mark.parametrize(('steps', 'count'), [(8, 1), (8, 2), (8, 8), (10, 4), (7, 3)])
def test_ends_of_segments(steps, count):
    """b < n, and e in b .. n - 1, also where a start is a border or the segments are unequal."""
    ends = segments.borders(steps, count)
    assert ends[0] == 0 and ends[-1] == steps and np.all(np.diff(ends) >= steps // count)
    for n in range(1, steps + 1):
        floor = ends[min((n - 1) // (steps // count), count - 1)]
        assert floor == ends[ends < n][-1]


def test_target_at_the_next_level_is_the_teachers_step():
    """e = n - 1."""
    x, sigma = jax.random.normal(jax.random.key(0), (4, 3)), jnp.array([2.0, 1.0, 0.5, 0.0])
    close(flow_map.jump(jnp.full((4, 3), 9.0), x, sigma, sigma), x, 1e-12)


def test_random_ends_have_no_exact_student():
    """The D that leads to the path's point depends on where it is to lead."""
    x, sigma, spread = 1.3, 5.0, 0.5
    found = []
    for until in (0.0, 1.0, 3.0):
        at_end = x * np.sqrt((spread**2 + until**2) / (spread**2 + sigma**2))
        found.append((at_end - until / sigma * x) / (1 - until / sigma))
    np.testing.assert_allclose(found, [0.129, 0.037, 0.017], atol=1e-3)


@pytest.mark.slow
@pytest.mark.optimised
def test_ict_learns_the_map_of_a_gaussian():
    """A small network on one dimension: |f - f*| < 0.03 at low, middle and high levels."""
    import optax

    spread = 0.5
    network = networks.NETWORKS['mlp'](width=32, blocks=2, embedding=32)
    model = precondition(network, sigma_data=spread, boundary=0.002)
    steps = 4000
    made = ict(model, curriculum=Curriculum('doubling', (20, 640), steps))
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, steps))
    with jax.enable_x64(False):
        params = model.init(jax.random.key(0), jnp.zeros((1, 1)), {})

        def step(carry, n):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(1), n)
            key_x, key = jax.random.split(key)
            batch = {'x': spread * jax.random.normal(key_x, (512, 1)), 'condition': {}}

            def loss(params):
                context = Context({}, step=n)
                return made.losses['student']({'student': params}, context, batch, key)[0]

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        run = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), jnp.arange(steps)))
        (params, _), _ = run(params)
        for sigma in (0.1, 1.0, 10.0):
            x = jnp.linspace(-2, 2, 41)[:, None] * np.hypot(spread, sigma)
            found = model.apply(params, x, jnp.full(41, sigma), {})[0]
            wanted = x * np.sqrt((spread**2 + 0.002**2) / (spread**2 + sigma**2))
            assert np.abs(found - wanted).max() < 0.03
