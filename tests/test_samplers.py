"""Samplers against exact solutions, closed forms of their coefficients, and one another."""

import functools
import math
import time
import unittest.mock

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fdistill.diffusion import multistep, noise, samplers
from fdistill.diffusion.oracle import mixture
from fdistill.diffusion.samplers import BASES, COORDS, SAMPLERS

# Options under which a sampler draws noise.
RANDOM = {
    'heun': {'s_churn': 10.0},
    'ancestral': {},
    'dpmpp_2m': {'eta': 1.0},
    'dpmpp_3m': {'eta': 1.0},
    'consistency': {},
}
PLAIN = {name: {} for name in SAMPLERS} | {'ancestral': {'eta': 0.0}, 'consistency': {'eta': 0.0}}
KEY = jax.random.key(7)


def gaussian(mean=(0.3, -0.6), std=0.4):
    return mixture([1.0], [list(mean)], std)


def in_the_plane():
    return mixture([1.0, 2.0, 3.0], [[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], [0.1, 0.2, 0.3])


def points(batch=7, dimension=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, dimension)))


def solver(name, **options):
    return functools.partial(SAMPLERS[name].solve, **{**PLAIN[name], **options})


# Order of convergence. `order` is that of Karras' grid, on which constant weights have two at best
# in sigma.

CASES = [
    *[(name, {}, 1) for name in ('euler', 'ancestral', 'consistency')],
    ('heun', {}, 2),
    *[('adams_bashforth', {'order': r}, min(r, 2)) for r in range(1, 6)],
    *[('adams_bashforth', {'order': r, 'coords': 'index'}, r) for r in range(2, 6)],
    *[('lms', {'order': r}, r) for r in range(2, 6)],
    *[('deis', {'order': r}, r) for r in range(1, 5)],
    ('dpmpp_2m', {}, 2),
    ('dpmpp_3m', {}, 3),
    *[('unipc', {'order': r}, r + 1) for r in (1, 2, 3)],
    ('unipc', {'order': 2, 'variant': 'bh1'}, 3),
    *[('heavy_ball', {'base': base, 'order': 2, 'beta': 0.9}, 1) for base in BASES],
    ('heavy_ball', {'base': 'lms', 'order': 4, 'beta': 0.8}, 1),
    *[('ghvb', {'order': m}, min(math.ceil(m), 2)) for m in (0.8, 1.8, 2.8, 3.8, 4.8)],
    *[('ghvb', {'order': m, 'coords': 'index'}, math.ceil(m)) for m in (1.8, 2.8, 3.8, 4.8)],
]


@pytest.fixture(scope='module')
def oracles():
    """[(denoise, starts, exact ends)] of a Gaussian and a mixture, from sigma = 10,000, whence
    Euler's first step is harmless."""
    with jax.enable_x64(True):
        one, three = (
            gaussian(std=0.5),
            mixture([0.3, 0.3, 0.4], [[-1.0], [0.2], [1.0]], [0.4, 0.5, 0.45]),
        )
        x, y = 1e4 * points(100), 1e4 * points(200, 1)
        grid = noise.karras_grid(12_001, sigma_min=0.02, sigma_max=1e4)[:-1]
        exact = jax.jit(lambda y: samplers.unipc(three.denoise, y, grid, order=3))(y)
        return [(one.denoise, x, one.flow(x, 1e4, 0.02)), (three.denoise, y, exact)]


@pytest.mark.parametrize(('name', 'options', 'order'), CASES)
def test_order_of_convergence(name, options, order, oracles, x64):
    few, many = 800, 1200

    @functools.partial(jax.jit, static_argnums=0)
    def ends(steps):
        grid = noise.karras_grid(steps + 1, sigma_min=0.02, sigma_max=1e4)[:-1]
        return [solver(name, **options)(denoise, x, grid) for denoise, x, _ in oracles]

    errors = np.array(
        [
            [np.median(np.abs(end - exact)) for end, (_, _, exact) in zip(ends(steps), oracles)]
            for steps in (few, many)
        ]
    )
    slopes = -np.diff(np.log(errors), axis=0)[0] / np.log(many / few)
    np.testing.assert_allclose(slopes, order, atol=0.15)


def with_history(p, x, top, low, steps, before=400):
    """denoise, start and grid such that, at `top`, a multistep method looks back on the exact
    slopes of `before` levels."""
    step = (top - low) / steps
    early = top + step * np.arange(before, 0, -1)

    def denoise(x_now, sigma):
        # Before `top`, the slopes are those of the exact path, whatever the state.
        path = p.flow(x, top, sigma[0])
        return jnp.where(
            sigma[:, None] > top + step / 2,
            x_now + p.denoise(path, sigma) - path,
            p.denoise(x_now, sigma),
        )

    grid = np.concatenate([early, np.linspace(top, low, steps + 1)])
    return denoise, grid, before


@pytest.mark.parametrize(
    ('name', 'options', 'order', 'ratio'),
    [
        *[
            ('ghvb', {'order': r - 1 + 0.8}, r, 1 + (g - 1) * 0.25)
            for r, g in [(2, 2.2), (3, 2.11), (4, 2.08)]
        ],
        ('heavy_ball', {'order': 2, 'beta': 0.8}, 1, 0.5),
        ('heavy_ball', {'order': 3, 'beta': 0.8}, 1, 0.5),
        ('heavy_ball', {'order': 1, 'beta': 0.8}, 1, 1.5),
    ],
)
def test_order_and_error_constant_on_a_uniform_grid_with_history(name, options, order, ratio, x64):
    """Orders r of GHVB and 1 of HB, and errors against Adams-Bashforth's, or Euler's for HB (sheet:
    T-HB3 and T-HB4)."""
    p, x = gaussian((0.0,), 0.5), jnp.full((1, 1), 3.0)
    exact = p.flow(x, 3.0, 0.5)

    def error(steps, name, **options):
        denoise, grid, before = with_history(p, x, 3.0, 0.5, steps)
        solve = solver(name, **options)
        # Started so as to pass through x at 3: before, the state moves by a sum that does not
        # depend on it.
        shift = solve(denoise, x, grid[: before + 1]) - x
        return float((solve(denoise, x - shift, grid) - exact)[0, 0])

    slope = np.log(error(160, name, **options) / error(640, name, **options)) / np.log(4)
    assert slope == pytest.approx(order, abs=0.1 if name == 'ghvb' else 0.05)
    plain = error(640, 'adams_bashforth', order=order) if name == 'ghvb' else error(640, 'euler')
    assert error(640, name, **options) / plain == pytest.approx(ratio, rel=0.05)


# Coefficients.

BETAS = (1.0, 0.9, 0.8, 0.5, 0.1)


@pytest.mark.parametrize('beta', BETAS)
def test_coefficients_of_ghvb(beta):
    b = beta
    rows = [
        [1],
        np.array([2 + b, -(2 - b)]) / (2 * b),
        np.array([18 + 5 * b, -(24 - 8 * b), 6 - b]) / (12 * b),
        np.array([46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b)]) / (24 * b),
        np.array(
            [1650 + 251 * b, -(3420 - 646 * b), 2880 - 264 * b, -(1380 - 106 * b), 270 - 19 * b]
        )
        / (720 * b),
    ]
    for r, row in enumerate(rows, 1):
        weights = multistep.momentum_weights(r, beta)
        np.testing.assert_allclose(weights, row, rtol=1e-12)
        assert weights.sum() == pytest.approx(1, abs=1e-9)


def test_coefficients_of_adams_and_bashforth():
    for r, row in enumerate(
        [
            [1],
            [3 / 2, -1 / 2],
            np.array([23, -16, 5]) / 12,
            np.array([55, -59, 37, -9]) / 24,
            np.array([1901, -2774, 2616, -1274, 251]) / 720,
        ],
        1,
    ):
        np.testing.assert_allclose(multistep.momentum_weights(r), row, rtol=1e-12)


@pytest.mark.parametrize('order', [1, 2, 3, 4, 5])
def test_variable_steps_of_equal_size_are_adams_bashforth(order):
    table = multistep.lms(np.linspace(3, 1, 9), order)
    np.testing.assert_allclose(table.weights[-1], multistep.momentum_weights(order), rtol=1e-9)


def test_deis_is_the_closed_form():
    """The integral of t -> t (ln t - ln c - 1)/(ln b - ln c) (DEIS, two points)."""
    grid = noise.karras_grid(8)

    def primitive(t, b, c):
        return t * (np.log(t) - np.log(c) - 1) / (np.log(b) - np.log(c))

    table = multistep.deis(grid, 2)
    for n in range(1, 7):
        now, then, last = grid[n], grid[n + 1], grid[n - 1]
        first = primitive(then, now, last) - primitive(now, now, last)
        second = primitive(then, last, now) - primitive(now, last, now)
        np.testing.assert_allclose(table.gain[n] * table.weights[n], [first, second], rtol=1e-8)
    np.testing.assert_array_equal(table.weights[-1], [1, 0])


TABLES = {
    **{
        f'{base}{r}': functools.partial(method, order=r)
        for base, (method, most) in BASES.items()
        for r in range(1, most + 1)
    },
    'sde': lambda sigmas: multistep.dpmpp(sigmas, 3, 0.7),
    'ghvb': lambda sigmas: multistep.adams_bashforth(sigmas, 4, 0.8),
    'unipc': lambda sigmas: multistep.unipc(sigmas, 3, 'bh2')[0],
}


@pytest.mark.parametrize('name', TABLES)
def test_tables(name, x64):
    """Rows sum to one, use what history there is, and are the same for a grid that is traced."""
    for steps in (1, 2, 3, 9):
        for grid in (noise.karras_grid(steps), np.linspace(5, 1, steps + 1)):
            table = TABLES[name](grid)
            assert len(table.weights) == steps
            np.testing.assert_allclose(table.weights.sum(1), 1, rtol=1e-9)
            assert not np.any(np.triu(table.weights, 1)) and np.all(np.isfinite(table.weights))
            if steps == 9:
                traced = jax.jit(lambda grid: TABLES[name](grid)[1:])(jnp.asarray(grid))
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
                    traced,
                    table[1:],
                )


def test_corrector_of_order_one_is_the_trapezoid_like_rule():
    """With rho = 1/2: the mean of the two values."""
    _, corrector = multistep.unipc(np.linspace(5, 1, 5), 1, 'bh2')
    np.testing.assert_allclose(corrector, 0.5, rtol=1e-12)


# Limits of stability on the real axis: of x' = z x / h with step h, found by scanning z.

ADAMS_BASHFORTH = {1: -2, 2: -1, 3: -6 / 11, 4: -3 / 10, 5: -90 / 551}


def limit_of_hb(r, b):
    return ADAMS_BASHFORTH[r] * (2 - b) / b


def limit_of_ghvb(r, b):
    return {
        1: -2 * (2 - b) / b,
        2: -(2 - b),
        3: -6 * (2 - b) / (12 - b),
        4: -3 * (2 - b) / (11 - b),
        5: -90 * (2 - b) / (600 - 49 * b),
    }[r]


@pytest.mark.parametrize('beta', [1.0, 0.8, 0.5])
@pytest.mark.parametrize('r', [1, 2, 3, 4, 5])
@pytest.mark.parametrize('name', ['heavy_ball', 'ghvb'])
def test_limit_of_stability(name, r, beta, x64):
    exact = (limit_of_hb if name == 'heavy_ball' else limit_of_ghvb)(r, beta)
    options = {'order': r, 'beta': beta} if name == 'heavy_ball' else {'order': r - 1 + beta}
    z = exact * np.concatenate([np.linspace(0.02, 0.99, 60), np.linspace(0.99, 1.01, 201)])
    steps = 6000

    def denoise(x, sigma):
        return x * (1 + sigma * z)[:, None]

    x = solver(name, **options)(denoise, jnp.ones((len(z), 1)), np.arange(steps, -1.0, -1.0)[:-1])
    grew = ~(np.abs(np.asarray(x)[:, 0]) < 1)
    assert not np.any(grew[:60])
    assert z[np.argmax(grew)] == pytest.approx(exact, abs=1e-3)


A = np.array([[0.0, 1.0], [-9.0, -10.0]])


def stiff(name, steps=26, **options):
    """Error, in the maximum norm, at t = 3 of x' = A x, x(0) = (-1, 0), whose rates are -1 and -9;
    sigma = 3 - t."""
    exact = np.array([1, -9]) * np.exp(-27) / 8 + np.array([-1, 1]) * 9 / 8 * np.exp(-3)
    x = solver(name, **options)(
        lambda x, sigma: x + sigma[:, None] * (x @ A.T),
        jnp.asarray([[-1.0, 0.0]]),
        np.linspace(3, 0, steps + 1),
    )
    return float(np.max(np.abs(x - exact)))


@pytest.mark.parametrize(
    ('name', 'options', 'error'),
    [
        ('adams_bashforth', {'order': 2}, 1.43),
        ('heavy_ball', {'order': 2, 'beta': 0.9}, 2.3e-3),
        ('heavy_ball', {'order': 2, 'beta': 0.8}, 4.5e-3),
        ('ghvb', {'order': 1.9}, 4.7e-2),
        ('ghvb', {'order': 1.8}, 6.6e-4),
        ('euler', {}, 9.6e-3),
    ],
)
def test_stiff_toy(name, options, error, x64):
    assert stiff(name, **options) == pytest.approx(error, rel=0.05)


def test_momentum_stays_bounded_where_adams_bashforth_diverges(x64):
    # h = 3/82, so that 9 h = .329 lies between the limits .3 of AB4 and .353 of GHVB3.8 and .45 of
    # HB4(.8).
    assert stiff('adams_bashforth', 82, order=4) > 100 * stiff('ghvb', 82, order=3.8)
    assert stiff('adams_bashforth', 26, order=4) > 1e6
    assert stiff('heavy_ball', 82, order=4, beta=0.8) < 0.05
    assert stiff('ghvb', 82, order=3.8) < 0.05


# Relations between the methods.


def ends(solve, steps=12):
    grid = noise.karras_grid(steps)
    return solve(in_the_plane().denoise, grid[0] * points(), grid)


@pytest.mark.parametrize(
    ('base', 'order'), [(base, r) for base, (_, most) in BASES.items() for r in range(1, most + 1)]
)
def test_heavy_ball_of_beta_one_is_the_base(base, order, x64):
    names = {'dpmpp': {1: ('euler', {}), 2: ('dpmpp_2m', {}), 3: ('dpmpp_3m', {})}}
    name, options = names.get(base, {}).get(order, (base, {'order': order}))
    np.testing.assert_allclose(
        ends(solver('heavy_ball', base=base, order=order, beta=1.0)),
        ends(solver(name, **options)),
        atol=1e-10,
    )


@pytest.mark.parametrize('coords', COORDS)
@pytest.mark.parametrize('order', [1, 2, 3, 4, 5])
def test_ghvb_of_whole_order_is_adams_bashforth(order, coords, x64):
    x = ends(solver('ghvb', order=float(order), coords=coords))
    np.testing.assert_array_equal(x, ends(solver('adams_bashforth', order=order, coords=coords)))


@pytest.mark.parametrize('beta', [0.3, 0.8])
def test_ghvb_and_hb_of_order_one_are_the_same(beta, x64):
    np.testing.assert_allclose(
        ends(solver('ghvb', order=beta)), ends(solver('heavy_ball', order=1, beta=beta)), rtol=1e-12
    )


def test_hb_averages_after_the_combination_and_ghvb_before(x64):
    """By hand, three steps of order two with beta = 1/2."""
    f = [1.0, 4.0, 2.0]
    sigmas = np.array([4.0, 3.0, 2.0, 1.0])

    def denoise(x, sigma):
        return (
            x
            - sigma[:, None] * jnp.asarray([0.0, f[2], f[1], f[0]])[sigma.astype(int) - 1][:, None]
        )

    x = jnp.zeros((1, 1))
    g = [f[0], 1.5 * f[1] - 0.5 * f[0], 1.5 * f[2] - 0.5 * f[1]]
    v = [g[0]]
    v += [0.5 * v[0] + 0.5 * g[1]]
    v += [0.5 * v[1] + 0.5 * g[2]]
    assert float(
        solver('heavy_ball', order=2, beta=0.5)(denoise, x, sigmas)[0, 0]
    ) == pytest.approx(-sum(v))
    v = [f[0], 0.5 * f[0] + 0.5 * f[1]]
    v += [0.5 * v[1] + 0.5 * f[2]]
    moved = v[0] + (2.5 * v[1] - 1.5 * v[0]) + (2.5 * v[2] - 1.5 * v[1])
    assert float(solver('ghvb', order=1.5)(denoise, x, sigmas)[0, 0]) == pytest.approx(-moved)


# Whatever is registered.


@pytest.mark.parametrize('name', SAMPLERS)
def test_constant_denoiser_is_returned(name):
    """Straight paths: whatever the grid, the end is D."""
    target = points(seed=1)
    for grid in (noise.karras_grid(5), np.array([3.0, 0.0]), np.array([3.0, 1.0, 0.5, 0.0])):
        x0 = solver(name)(lambda x, sigma: target, grid[0] * points(), grid)
        np.testing.assert_allclose(x0, target, atol=1e-3)


@pytest.mark.parametrize('name', SAMPLERS)
def test_one_step_to_zero_is_the_denoiser(name):
    p, x = in_the_plane(), 2 * points()
    np.testing.assert_allclose(
        SAMPLERS[name].solve(p.denoise, x, [2.0, 0.0], KEY), p.denoise(x, 2.0), atol=1e-6
    )


@pytest.mark.parametrize('name', SAMPLERS)
def test_evaluations_and_trajectory(name):
    p, seen = gaussian(), []

    def denoise(x, sigma):
        seen.append(float(sigma[0]))
        assert sigma.shape == (3,)
        return p.denoise(x, sigma)

    for steps in (1, 2, 5):
        for grid in (noise.karras_grid(steps), np.linspace(3, 1, steps + 1)):
            seen.clear()
            with jax.disable_jit():
                x0, estimates = SAMPLERS[name].solve(
                    denoise, grid[0] * points(3), grid, KEY, trajectory=True
                )
            assert len(seen) == SAMPLERS[name].evaluations(steps) + (
                name == 'heun' and grid[-1] > 0
            )
            np.testing.assert_allclose(
                sorted(set(seen), reverse=True)[:steps], grid[:-1], rtol=1e-6
            )
            assert x0.shape == (3, 2) and estimates.shape == (steps, 3, 2)
            np.testing.assert_allclose(
                estimates[0], p.denoise(grid[0] * points(3), grid[0]), rtol=1e-5
            )
            if grid[-1] == 0 and name not in ('adams_bashforth', 'lms', 'heavy_ball', 'ghvb'):
                np.testing.assert_allclose(estimates[-1], x0, atol=1e-5)


MODES = (
    [(name, {}) for name in SAMPLERS if name not in RANDOM]
    + list(RANDOM.items())
    + [('heun', {}), ('ancestral', {'eta': 0.5})]
)


@pytest.mark.parametrize(('name', 'options'), MODES)
def test_samples_have_the_moments_of_the_data(name, options):
    # Renoising D, the mean given x, loses variance unless D is a sample; and first order converges
    # slowly.
    if name in ('consistency', 'same_noise'):
        pytest.skip('for students; see test_consistency_keeps_the_variance')
    p, n, grid = gaussian(), 20_000, noise.karras_grid(40, sigma_max=40.0)
    start = grid[0] * jax.random.normal(jax.random.key(0), (n, 2))
    x0 = np.asarray(
        jax.jit(lambda x: SAMPLERS[name].solve(p.denoise, x, grid, KEY, **options))(start)
    )
    np.testing.assert_allclose(x0.mean(0), [0.3, -0.6], atol=0.03)
    slow = name in ('euler', 'heavy_ball', 'ancestral')
    np.testing.assert_allclose(x0.std(0), [0.4, 0.4], rtol=0.15 if slow else 0.03)


@pytest.mark.parametrize(('name', 'options'), MODES)
def test_images_under_jit_vmap_and_a_traced_grid(name, options):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    grid = noise.karras_grid(4)

    def solve(x, grid, key=KEY):
        return SAMPLERS[name].solve(
            lambda x, sigma: x / (1 + sigma[:, None, None, None] ** 2), x, grid, key, **options
        )

    eager = solve(x, grid)
    assert eager.shape == x.shape and eager.dtype == x.dtype
    traced = jnp.asarray(grid, jnp.float32)
    several = jax.jit(jax.vmap(solve, in_axes=(0, None)))(jnp.stack([x, 2 * x]), traced)
    np.testing.assert_allclose(several[0], eager, rtol=1e-3, atol=1e-5)
    assert np.all(np.isfinite(several))


@pytest.mark.parametrize('name', SAMPLERS)
def test_float32_is_near_float64(name):
    p = in_the_plane()

    def end(dtype):
        q = mixture(*(np.asarray(value) for value in p))
        start = jnp.asarray(80 * np.random.default_rng(0).normal(size=(7, 2)), dtype)
        return solver(name)(q.denoise, start, noise.karras_grid(18))

    single = end(jnp.float32)
    with jax.enable_x64(True):
        double = end(jnp.float64)
    np.testing.assert_allclose(single, double, atol=1e-3)


# Under jit as users call it: at the default optimisation level XLA fuses multiplications and
# additions, which can turn a difference of squares negative, so each is run there.


def round_gaussian(x, sigma):
    """D of N(0.3, 0.5^2), for numpy as well."""
    sigma = sigma.reshape(-1, 1)
    return (0.25 * x + 0.3 * sigma**2) / (0.25 + sigma**2)


def in_float64(solve, x, grid):
    """solve(x, grid) in float64 and without jit, with the noise it draws in float32."""
    draws = samplers.draws

    def drawn_in_float32(key, x):
        draw = draws(key, x.astype(jnp.float32))
        return lambda n: draw(n).astype(x.dtype)

    with (
        jax.enable_x64(True),
        jax.disable_jit(),
        unittest.mock.patch.object(samplers, 'draws', drawn_in_float32),
    ):
        return np.asarray(solve(jnp.asarray(x, jnp.float64), np.asarray(grid, np.float64)))


def assert_near(found, exact):
    """To 1e-5 of the scale of the samples; not a NaN passes."""
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5 * np.max(np.abs(exact)))


@pytest.mark.optimised
@pytest.mark.parametrize(('name', 'options'), MODES)
def test_jit_in_float32_is_float64_without_jit(name, options, as_users):
    """For a grid that is known and one that is traced."""
    grid = noise.karras_grid(8).astype(np.float32)
    x = (80 * points()).astype(jnp.float32)

    def solve(x, grid):
        return SAMPLERS[name].solve(round_gaussian, x, grid, KEY, **options)

    def both(x, traced):
        return solve(x, grid), solve(x, traced)

    known, traced = jax.jit(both, compiler_options=as_users)(x, grid)
    exact = in_float64(solve, x, grid)
    assert_near(known, exact)
    assert_near(traced, exact)


@pytest.mark.optimised
@pytest.mark.parametrize('steps', [18, 256])
def test_edms_churn_is_algorithm_two(steps, as_users):
    """EDM's setting for ImageNet-64, of whose levels most lie in [s_min, s_max] and some do not,
    against a loop in numpy."""
    s_churn, s_min, s_max, s_noise = 40, 0.05, 50, 1.003
    grid = noise.karras_grid(steps).astype(np.float32)
    start = (80 * points()).astype(jnp.float32)

    def solve(x, grid):
        options = {'s_churn': s_churn, 's_min': s_min, 's_max': s_max, 's_noise': s_noise}
        return samplers.heun(round_gaussian, x, grid, KEY, **options)

    z = np.asarray(jax.vmap(samplers.draws(KEY, start))(jnp.arange(steps)), np.float64)
    x, levels = np.asarray(start, np.float64), grid.astype(np.float64)
    for n, (now, then) in enumerate(zip(levels[:-1], levels[1:])):
        gamma = min(s_churn / steps, math.sqrt(2) - 1) if s_min <= now <= s_max else 0.0
        raised = now * (1 + gamma)
        x = x + math.sqrt(raised**2 - now**2) * s_noise * z[n]
        d = (x - round_gaussian(x, raised)) / raised
        euler = x + (then - raised) * d
        if then:
            d = (d + (euler - round_gaussian(euler, then)) / then) / 2
        x = x + (then - raised) * d

    def both(x, traced):
        return solve(x, grid), solve(x, traced)

    known, traced = jax.jit(both, compiler_options=as_users)(start, grid)
    assert_near(known, x)
    assert_near(traced, x)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('ancestral', {}),
        ('ancestral', {'eta': 0.999}),
        ('dpmpp_2m', {'eta': 1.0}),
        ('dpmpp_3m', {'eta': 0.3}),
        ('consistency', {'eta': 0.01}),
    ],
)
def test_noise_of_any_step_under_jit(name, options, as_users):
    """On traced grids each of whose levels is a millionth to a millionfold below the last."""
    falls = np.geomspace(1e-6, 14, 200)
    grids = (77.7 * np.exp(-falls[:, None] * np.arange(4))).astype(np.float32)

    def solve(x, grids):
        return jax.vmap(lambda grid: SAMPLERS[name].solve(round_gaussian, x, grid, KEY, **options))(
            grids
        )

    x = (80 * points(1)).astype(jnp.float32)
    found = jax.jit(solve, compiler_options=as_users)(x, grids)
    assert_near(found, in_float64(solve, x, grids))


def test_grids_are_searched_without_compiling_again():
    """One program for all grids of one length, vmapped over the grids."""
    x, p = 80 * points(), gaussian()
    grids = jnp.stack(
        [jnp.asarray(noise.karras_grid(6, rho=rho), jnp.float32) for rho in (3.0, 5.0, 7.0)]
    )
    many = jax.jit(jax.vmap(lambda grid: samplers.dpmpp_2m(p.denoise, x, grid)))(grids)
    for grid, end in zip(grids, many, strict=True):
        np.testing.assert_allclose(
            end, samplers.dpmpp_2m(p.denoise, x, np.asarray(grid)), rtol=2e-3, atol=2e-4
        )


@pytest.mark.parametrize('name', ['ghvb', 'unipc', 'heun', 'ancestral'])
def test_sharded_batch(name, x64):
    p, grid = in_the_plane(), noise.karras_grid(5)
    x = grid[0] * points(16)
    solve = jax.jit(lambda x: SAMPLERS[name].solve(p.denoise, x, grid, KEY))
    spread = jax.device_put(x, NamedSharding(jax.make_mesh((8,), ('data',)), PartitionSpec('data')))
    x0 = solve(spread)
    assert len(x0.sharding.device_set) == 8
    np.testing.assert_allclose(x0, solve(x), rtol=1e-10, atol=1e-12)


# Noise.


@pytest.mark.parametrize(('name', 'options'), RANDOM.items())
def test_noise_is_a_samples_own(name, options):
    p, grid = in_the_plane(), noise.karras_grid(4)
    keys, x = jax.random.split(KEY, 6), grid[0] * points(6)
    solve = functools.partial(SAMPLERS[name].solve, p.denoise, **options)
    together = solve(x, grid, keys)
    np.testing.assert_array_equal(together, solve(x, grid, KEY))
    np.testing.assert_allclose(solve(x[2:4], grid, keys[2:4]), together[2:4], rtol=1e-5, atol=1e-6)
    assert not np.allclose(together, solve(x, grid, jax.random.key(8)))
    with pytest.raises(ValueError, match='key=None'):
        solve(x, grid)
    with pytest.raises(ValueError, match=r'key of shape \(6,\) for 5 samples'):
        solve(x[:5], grid, keys)


def test_keys_are_functions_of_each_samples_noise():
    unit = jax.random.normal(jax.random.key(0), (2000, 3))
    keys = jax.random.key_data(samplers.keys_of(unit))
    assert len(np.unique(np.asarray(keys), axis=0)) == 2000
    np.testing.assert_array_equal(jax.random.key_data(samplers.keys_of(unit[5:7])), keys[5:7])
    # Uncorrelated with the noise, and normal: four standard errors.
    drawn = np.asarray(jax.vmap(lambda key: jax.random.normal(key, (3,)))(samplers.keys_of(unit)))
    assert np.all(
        np.abs(np.corrcoef(np.concatenate([drawn, unit], 1).T) - np.eye(6)) < 4 / np.sqrt(2000)
    )
    np.testing.assert_allclose(drawn.std(), 1, atol=4 / np.sqrt(2 * 6000))


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('ancestral', {}),
        ('ancestral', {'eta': 0.4}),
        ('dpmpp_2m', {'eta': 1.0}),
        ('dpmpp_3m', {'eta': 0.3}),
        ('consistency', {}),
        ('consistency', {'eta': 0.3}),
    ],
)
def test_marginals_of_a_point_mass_are_exact(name, options):
    """For data at 0, D = 0 and x_n ~ N(0, sigma_n^2) at every level of every grid, however
    coarse."""
    n = 20_000
    start = 10 * jax.random.normal(jax.random.key(0), (n, 1))
    for grid in ([10.0, 2.0], [10.0, 6.0, 1.0, 0.3]):
        x = SAMPLERS[name].solve(lambda x, sigma: 0 * x, start, np.array(grid), KEY, **options)
        assert float(jnp.std(x)) == pytest.approx(grid[-1], rel=5 / np.sqrt(2 * n))


def test_churn_adds_the_noise_it_should():
    """With D = x nothing moves but by noise: variance sum (sigma_hat^2 - sigma^2) s_noise^2 over
    the levels in range."""
    n, grid = 20_000, np.array([8.0, 4.0, 2.0, 1.0, 0.0])
    x = jnp.zeros((n, 1))
    options = {'s_churn': 1.2, 's_min': 1.5, 's_max': 5.0, 's_noise': 1.1}
    end = samplers.heun(lambda x, sigma: x, x, grid, KEY, **options)
    variance = 1.1**2 * ((1 + 1.2 / 4) ** 2 - 1) * (4**2 + 2**2)
    assert float(jnp.var(end)) == pytest.approx(variance, rel=5 * np.sqrt(2 / n))
    # At most sqrt(2) - 1.
    end = samplers.heun(lambda x, sigma: x, x, grid, KEY, **(options | {'s_churn': 100.0}))
    assert float(jnp.var(end)) == pytest.approx(1.1**2 * (4**2 + 2**2), rel=5 * np.sqrt(2 / n))
    np.testing.assert_array_equal(samplers.heun(lambda x, sigma: x, x, grid, KEY), x)


# Students.


def consistency_function(p, sigma_min=0.0):
    """f(x, sigma), the exact end of the path through x."""
    return lambda x, sigma: p.flow(x, sigma[:, None], sigma_min)


def test_consistency_keeps_the_variance():
    """With the exact f of a Gaussian, for any number of steps (sheet: T-CM4)."""
    p, n = gaussian((0.0,), 0.5), 50_000
    start = 80 * jax.random.normal(jax.random.key(0), (n, 1))
    for levels in ([80.0, 0.0], [80.0, 0.821, 0.0]):
        x = samplers.consistency(consistency_function(p), start, np.array(levels), KEY)
        assert float(jnp.std(x)) == pytest.approx(
            0.5 * math.sqrt(80**2 / (80**2 + 0.5**2)), rel=5 / np.sqrt(2 * n)
        )


def test_consistency_to_sigma_min():
    p, n = gaussian((0.0,), 0.5), 50_000
    start = math.sqrt(80**2 + 0.5**2) * jax.random.normal(jax.random.key(0), (n, 1))
    f = consistency_function(p, 0.2)
    x = samplers.consistency(f, start, np.array([80.0, 0.821, 0.0]), KEY, sigma_min=0.2)
    assert float(jnp.std(x)) == pytest.approx(math.sqrt(0.5**2 + 0.2**2), rel=5 / np.sqrt(2 * n))


def test_consistency_without_noise_is_euler(x64):
    np.testing.assert_allclose(ends(solver('consistency')), ends(solver('euler')), atol=1e-12)


def exact_steps(p, grid):
    """A denoiser whose Euler steps on the grid lie on the exact paths of a Gaussian."""

    def denoise(x, sigma):
        then = jnp.asarray(grid)[jnp.searchsorted(-jnp.asarray(grid), -sigma, side='right')][
            :, None
        ]
        sigma = sigma[:, None]
        return (p.flow(x, sigma, then) - then / sigma * x) / (1 - then / sigma)

    return denoise


def test_hand_over_to_the_student_leaves_the_path_unchanged(x64):
    """Exact teacher, exact consistency student: the same sample wherever the student takes over
    (sheet: T-DV2)."""
    p, grid = gaussian(), noise.karras_grid(8)
    x = grid[0] * points()
    for k in range(9):
        x0 = samplers.hybrid(
            exact_steps(p, grid), consistency_function(p), x, grid, evaluations=k, eta=0.0
        )
        np.testing.assert_allclose(x0, p.flow(x, grid[0], 0.0), atol=1e-9)


def test_hybrid_ends_are_the_student_and_the_teacher(x64):
    grid, teacher, student = noise.karras_grid(4), in_the_plane().denoise, gaussian().denoise
    x = grid[0] * points()
    several = (5.0, 0.5, 0.0)
    alone = samplers.consistency(student, x, np.array([grid[0], *several]), KEY)
    np.testing.assert_array_equal(
        samplers.hybrid(teacher, student, x, grid, KEY, evaluations=0, student_sigmas=several),
        alone,
    )
    np.testing.assert_array_equal(
        samplers.hybrid(teacher, student, x, grid, evaluations=4), samplers.euler(teacher, x, grid)
    )
    calls = {'teacher': 0, 'student': 0}

    def counted(name, denoise):
        def call(x, sigma):
            calls[name] += 1
            return denoise(x, sigma)

        return call

    with jax.disable_jit():
        samplers.hybrid(
            counted('teacher', teacher),
            counted('student', student),
            x,
            grid,
            KEY,
            evaluations=2,
            student_sigmas=several,
        )
    # Of the student's levels, those below the hand-over are left.
    assert calls == {'teacher': 2, 'student': 1 + sum(0 < level < grid[2] for level in several)}
    for k in (-1, 5):
        with pytest.raises(ValueError, match='evaluations'):
            samplers.hybrid(teacher, student, x, grid, KEY, evaluations=k)


# Speed.


def digits_network():
    from fdistill.diffusion.denoiser import precondition
    from fdistill.networks import NETWORKS

    return precondition(NETWORKS['mlp'](num_classes=10))


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from primitives(inner)


def test_heun_is_one_program_without_the_host():
    """A batch of 4096 digits, 18 steps: one scan whose body evaluates the network twice, and
    nothing that calls back."""
    denoiser, label = digits_network(), {'label': jnp.zeros(4096, jnp.int32)}
    x = jax.ShapeDtypeStruct((4096, 8, 8, 1), jnp.float32)
    params = jax.eval_shape(
        lambda: denoiser.init(
            jax.random.key(0), jnp.zeros((1, 8, 8, 1)), {'label': jnp.zeros(1, jnp.int32)}
        )
    )
    grid = noise.karras_grid(18)
    traces = []

    def generate(params, x):
        traces.append(x.shape)
        return samplers.heun(
            lambda x, sigma: denoiser.apply(params, x, sigma, label)[0], grid[0] * x, grid
        )

    jitted = jax.jit(generate)
    names = list(primitives(jitted.trace(params, x).jaxpr.jaxpr))
    assert names.count('scan') == 1 and names.count('while') == 0
    assert not [
        name for name in names if 'callback' in name or 'infeed' in name or 'outfeed' in name
    ]
    once = list(
        primitives(
            jax.make_jaxpr(lambda p, x: denoiser.apply(p, x, jnp.ones(4096), label)[0])(
                params, x
            ).jaxpr
        )
    )
    assert names.count('dot_general') == 2 * once.count('dot_general')
    real = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    small = jnp.zeros((4096, 8, 8, 1))
    for _ in range(2):
        jitted(real, small)
    assert len(traces) == 1 and jitted._cache_size() == 1


@pytest.mark.slow
def test_heun_costs_its_evaluations():
    """4096 digits, 18 steps, against 35 evaluations of the network: the median of ratios measured
    turn by turn."""
    denoiser, label = digits_network(), {'label': jnp.zeros(4096, jnp.int32)}
    x = jax.random.normal(KEY, (4096, 8, 8, 1))
    params = denoiser.init(KEY, x[:1], {'label': jnp.zeros(1, jnp.int32)})
    grid = noise.karras_grid(18)
    once = jax.jit(lambda params, x: denoiser.apply(params, x, jnp.ones(4096), label)[0])
    whole = jax.jit(
        lambda params, x: samplers.heun(
            lambda x, sigma: denoiser.apply(params, x, sigma, label)[0], x, grid
        )
    )

    def seconds(function, times):
        began = time.perf_counter()
        for _ in range(times):
            function(params, x).block_until_ready()
        return time.perf_counter() - began

    seconds(once, 3), seconds(whole, 1)
    ratios = [seconds(whole, 1) / seconds(once, 35) for _ in range(9)]
    print(
        f'\nHeun against 35 evaluations: {np.median(ratios):.3f}, '
        f'from {min(ratios):.3f} to {max(ratios):.3f}'
    )
    assert np.median(ratios) < 1.1


# What is refused.


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize(
    'sigmas',
    [
        [1.0],
        1.0,
        [[2.0, 1.0]],
        [1.0, 2.0],
        [2.0, 2.0, 0.0],
        [1.0, -0.1],
        [np.inf, 1.0, 0.0],
        [1.0, np.nan],
    ],
)
def test_levels_are_checked(name, sigmas):
    with pytest.raises(ValueError, match='sigmas'):
        SAMPLERS[name].solve(lambda x, sigma: x, points(), np.asarray(sigmas), KEY)


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        *[
            ('adams_bashforth', {'order': r}, rf'order={r}: must be one of 1, 2, 3, 4, 5')
            for r in (0, 6, 2.5)
        ],
        *[('lms', {'order': r}, rf'order={r}: must be one of 1, 2, 3, 4, 5') for r in (0, 6)],
        *[('deis', {'order': r}, rf'order={r}: must be one of 1, 2, 3, 4') for r in (0, 5)],
        *[('unipc', {'order': r}, rf'order={r}: must be one of 1, 2, 3') for r in (0, 4)],
        *[
            ('ghvb', {'order': m}, rf'order={m}: must lie in \(0, 5\]')
            for m in (0, -1, 5.1, 6, math.nan)
        ],
        *[
            ('heavy_ball', {'beta': b}, rf'beta={b}: must lie in \(0, 1\]')
            for b in (0, -0.1, 1.5, math.nan)
        ],
        ('heavy_ball', {'base': 'heun'}, "base='heun': must be one of 'adams_bashforth', 'lms'"),
        ('heavy_ball', {'base': 'dpmpp', 'order': 4}, 'order=4: must be one of 1, 2, 3'),
        ('ghvb', {'coords': 'time'}, "coords='time': must be one of 'sigma', 'index'"),
        ('adams_bashforth', {'coords': 'time'}, "coords='time'"),
        ('unipc', {'variant': 'bh3'}, "variant='bh3': must be one of 'bh1', 'bh2'"),
        *[
            (name, {'eta': 1.1}, r'eta=1.1: must lie in \[0, 1\]')
            for name in ('ancestral', 'dpmpp_2m', 'dpmpp_3m', 'consistency')
        ],
        ('heun', {'s_churn': -1.0}, r's_churn=-1.0: must lie in \[0, inf\]'),
        ('heun', {'s_min': 2.0, 's_max': 1.0}, r's_min=2.0: must lie in \[0, 1.0\]'),
        ('heun', {'s_noise': 0.0}, r's_noise=0.0: must lie in \(0, inf\]'),
        ('consistency', {'sigma_min': -1.0}, 'sigma_min=-1.0'),
    ],
)
def test_options_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        SAMPLERS[name].solve(lambda x, sigma: x, points(), noise.karras_grid(4), KEY, **options)


@pytest.mark.parametrize('name', SAMPLERS)
def test_shapes_are_checked(name):
    grid = noise.karras_grid(3)
    for x in (jnp.float32(1.0), jnp.ones((2, 2), jnp.int32)):
        with pytest.raises(ValueError, match='x of shape'):
            SAMPLERS[name].solve(lambda x, sigma: x, x, grid, KEY)
    with pytest.raises(
        ValueError, match=r'denoise returned shape \(7, 1\) for x of shape \(7, 2\)'
    ):
        SAMPLERS[name].solve(lambda x, sigma: x[:, :1], points(), grid, KEY)
