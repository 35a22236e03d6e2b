"""Reflow, KD, SlimFlow and progressive distillation against closed forms of Gaussians, in float64,
and against the published codes.

The flow of N(0, s^2) is z -> s z. Its paths bend; those of the pairs (z, s z) are straight, and
D(x, sigma) = s x/(s + sigma) says where they end.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reflow_goldens
from quick import compiled

from fdistill.diffusion import noise, samplers
from fdistill.diffusion.denoiser import Denoiser, column, from_prediction, precondition
from fdistill.diffusion.flow_map import denoised, jump, straightness, velocity
from fdistill.diffusion.noise import NoiseLaw
from fdistill.diffusion.oracle import mixture
from fdistill.methods import generator, losses
from fdistill.methods.method import Context
from fdistill.methods.pairing import Pairing, recorded
from fdistill.methods.progressive import progressive, two_steps
from fdistill.methods.reflow import (
    ANNEALINGS,
    FIRST_HALVES,
    Annealing,
    Distance,
    Fit,
    annealed,
    flow_guided,
    kd,
    reflow,
)
from fdistill.networks import Encoder, Network

pytestmark = pytest.mark.usefixtures('x64')

S = 0.5
GRID = noise.even_time_grid(4, 1e6)
KEY = jax.random.key(5)


def straight(s=S):
    """The flow of the pairs (z, s z), times what `params` says."""

    def apply(params, x, sigma, condition, key=None):
        return params.get('gain', 1.0) * s * x / (s + column(sigma, x)), ()

    return Denoiser(lambda key, x, condition: {'gain': jnp.ones(())}, apply)


def bent(s=S, mean=0.0):
    """E[x0 | x] of N(mean, s^2)."""
    p = mixture([1.0], [[mean]], s)
    return Denoiser(
        lambda key, x, condition: {},
        lambda params, x, sigma, condition, key=None: (p.denoise(x, sigma), ()),
    )


def exact(s=S):
    """A flow map of N(0, s^2): at any level the end of the path."""

    def apply(params, x, sigma, condition, key=None):
        return params.get('gain', 1.0) * s * x / jnp.sqrt(s**2 + column(sigma, x) ** 2), ()

    return Denoiser(lambda key, x, condition: {}, apply)


def bound(model):
    return lambda x, sigma: model.apply({}, x, sigma, {})[0]


def pairs(s=S, count=64):
    z = jnp.asarray(np.random.default_rng(1).normal(size=(count, 1)))
    return Pairing(lambda key, frozen, batch: (z, s * z))


def at(sigma):
    """A law of levels that are known, [B]."""
    return NoiseLaw(lambda key, n: jnp.broadcast_to(jnp.asarray(sigma), (n,)), lambda sigma: sigma)


def value(method, params, count=64, step=0, frozen=None, key=KEY, batch=None):
    batch = batch or {'x': jnp.zeros((count, 1)), 'condition': {}}
    given = {'student': params}, Context(frozen or {}, step=step), batch, key
    return method.losses['student'](*given)[0]


LAW = noise.u_shaped_time()


# Rectified flow. T-RF1 to T-RF6 and M9 of the sheet.


def test_velocities_of_a_gaussian_and_of_its_reflow():
    """T-RF1 in the time tau = 1 - t of the paper, whose velocities lead to the data."""
    z_t, t = points(9), np.linspace(0.05, 0.95, 9)
    sigma, tau = jnp.asarray(t / (1 - t)), jnp.asarray(1 - t)[:, None]
    x = column(1 + sigma, z_t) * z_t
    for model, wanted in (
        (bent(), z_t * (tau * S**2 - (1 - tau)) / (tau**2 * S**2 + (1 - tau) ** 2)),
        (straight(), (S - 1) * z_t / ((1 - tau) + tau * S)),
    ):
        D = model.apply({}, x, sigma, {})[0]
        np.testing.assert_allclose(-velocity(D, x, sigma), wanted, rtol=1e-12)
        np.testing.assert_allclose(denoised(velocity(D, x, sigma), x, sigma), D, rtol=1e-12)


def points(count, dimension=1):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, dimension)))


def test_straightness_of_a_gaussian_and_of_its_reflow():
    """S = .214602 for s = 1/2, and 0 after reflow: E z^2 = 1 by the two nodes of Gauss."""
    z = jnp.asarray([[1.0], [-1.0]])
    found = straightness(bound(bent()), z, 1e9, 2000)
    np.testing.assert_allclose(found, 0.214602, atol=1e-6)
    assert np.max(straightness(bound(straight()), z, 1e9, 7)) < 1e-14
    # Over the elements of a sample, and by steps of second order.
    both = straightness(bound(bent()), jnp.asarray([[1.0, 2.0]]), 1e9, 2000)
    np.testing.assert_allclose(both, 2.5 * found[:1], rtol=1e-9)
    errors = [straightness(bound(bent()), z, 1e9, n)[0] - found[0] for n in (50, 100)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_straightness_in_float32_from_where_flows_start():
    z = jnp.asarray([[1.0], [-1.0]], jnp.float32)
    s = jnp.float32(S)
    bend = lambda x, sigma: x * s**2 / (s**2 + sigma[:, None] ** 2)  # noqa: E731
    found = straightness(bend, z, 1e5, 400)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 0.2146, atol=1e-4)
    # Nor is it below 0 where it is 0 but for rounding.
    flat = lambda x, sigma: x * s / (s + sigma[:, None])  # noqa: E731
    for highest in (40.0, 1e5):
        found = straightness(flat, points(64).astype(jnp.float32), highest, 50)
        assert np.all((found >= 0) & (found < 1e-10))


@pytest.mark.parametrize('name', ['euler', 'same_noise'])
@pytest.mark.parametrize('steps', [1, 2, 5])
def test_a_straight_flow_samples_exactly_in_any_number_of_steps(name, steps):
    z, grid = points(20), noise.even_time_grid(steps, 1e12)
    solve = samplers.SAMPLERS[name].solve
    np.testing.assert_allclose(solve(bound(straight()), grid[0] * z, grid), S * z, rtol=1e-10)
    # The control: a bent flow does not.
    wrong = solve(bound(bent()), grid[0] * z, grid)
    assert np.min(np.abs(wrong - S * z) / np.abs(z)) > 0.01


def test_same_noise_is_no_solver():
    """On bent paths more steps do not come nearer to the ODE, and Euler's do."""
    z, errors = points(50), {}
    for name in ('euler', 'same_noise'):
        ends = []
        for steps in (50, 200, 800):
            grid = noise.even_time_grid(steps, 1e6)
            end = samplers.SAMPLERS[name].solve(bound(bent()), grid[0] * z, grid)
            ends.append(float(np.median(np.abs(end - S * z))))
        errors[name] = ends
    assert errors['euler'][0] > 3 * errors['euler'][1] > 9 * errors['euler'][2]
    assert errors['same_noise'][0] < errors['same_noise'][1] < errors['same_noise'][2]


def test_one_step_of_the_first_flow_is_the_mean():
    """T-RF2."""
    p = mixture([0.3, 0.7], [[-1.0], [2.0]], [0.4, 0.5])
    grid, z = noise.even_time_grid(1, 1e8), points(20)
    found = samplers.euler(lambda x, sigma: p.denoise(x, sigma), grid[0] * z, grid)
    np.testing.assert_allclose(found, 0.3 * -1 + 0.7 * 2, atol=1e-6)


def test_an_edm_network_is_a_flow_without_singularities():
    """T-RF3: v = x_t (t - s^2 (1 - t))/q - s F/sqrt(q), q = t^2 + s^2 (1 - t)^2, and M13."""
    s = 0.7
    network = Network(
        lambda *given: {},
        lambda params, x, c_noise, condition, key=None: (
            jnp.sin(2 * x) + column(c_noise, x) * x,
            (),
        ),
    )
    t = jnp.asarray([1e-5, 1e-3, 0.3, 0.9, 1 - 1e-5])
    z_t, sigma = points(5), t / (1 - t)
    x = column(1 + sigma, z_t) * z_t
    D = precondition(network, sigma_data=s).apply({}, x, sigma, {})[0]
    u, q = t[:, None], (t**2 + s**2 * (1 - t) ** 2)[:, None]
    F = network.apply({}, z_t / jnp.sqrt(q), jnp.log(sigma) / 4, {})[0]
    wanted = z_t * (u - s**2 * (1 - u)) / q - s * F / jnp.sqrt(q)
    np.testing.assert_allclose(velocity(D, x, sigma), wanted, rtol=1e-9)
    # And back: a network that predicts that velocity is the same denoiser.
    flow = Network(lambda *given: {}, lambda params, x, t, condition, key=None: (wanted, ()))
    model = from_prediction(flow, prediction='flow', schedule=noise.flow())
    np.testing.assert_allclose(model.apply({}, x, sigma, {})[0], D, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('distance', ['squared_l2', 'pseudo_huber', 'l2'])
def test_reflow_of_a_gaussian_is_the_straight_flow(distance):
    """M9 and T-RF4: it has no loss, and no other has less; one Euler step of it is exact."""
    given = dict(law=LAW, sigmas=GRID, distance=Distance(distance))
    method = reflow(straight(), pairs(), **given)
    assert value(method, {}) < 1e-14
    assert value(method, {'gain': 1.01}) > 1e-8
    wrong = reflow(bent(), pairs(), **given)
    assert value(wrong, {}) > 1e-3
    loss = lambda gain: value(method, {'gain': gain})  # noqa: E731
    assert float(loss(1.02)) > float(loss(1.01)) < float(loss(0.98))
    one = reflow(straight(), pairs(), **given | dict(sigmas=noise.even_time_grid(1, 1e9)))
    z = points(9)
    np.testing.assert_allclose(one.generator.sample({}, z, {}), S * z, atol=1e-6)


def test_its_error_is_that_of_the_velocity():
    sigma = jnp.asarray(np.random.default_rng(2).uniform(0.1, 9, 64))
    method = reflow(bent(), pairs(), law=at(sigma), sigmas=GRID)
    z, x0 = pairs().draw(None, {}, {})
    x = x0 + sigma[:, None] * z
    error = velocity(bent().apply({}, x, sigma, {})[0], x, sigma) - (z - x0)
    np.testing.assert_allclose(value(method, {}), jnp.mean(error**2), rtol=1e-12)


def test_u_shaped_time():
    """T-RF5."""
    a, law = 4.0, noise.u_shaped_time(edge=1e-12)
    level = lambda t: float(law.cdf(jnp.asarray(t / (1 - t))))  # noqa: E731
    outside = level(0.1) + 1 - level(0.9)
    wanted = (np.exp(a) - np.exp(0.9 * a) + np.exp(0.1 * a) - 1) / (np.exp(a) - 1)
    assert outside == pytest.approx(wanted, abs=1e-9) == pytest.approx(0.3450, abs=5e-5)
    assert level(0.5) == 0.5 and level(0.2) == pytest.approx(1 - level(0.8), abs=1e-12)
    # Its density, by differences.
    u, h = 0.3, 1e-6
    density = a * (np.exp(a * u) + np.exp(a * (1 - u))) / (2 * (np.exp(a) - 1))
    assert (level(u + h) - level(u - h)) / (2 * h) == pytest.approx(density, rel=1e-6)
    sigma = noise.u_shaped_time().sample(KEY, 400_000)
    t = np.asarray(sigma / (1 + sigma))
    assert t.mean() == pytest.approx(0.5, abs=4 * t.std() / np.sqrt(t.size))
    assert np.mean((t < 0.1) | (t > 0.9)) == pytest.approx(0.345, abs=0.004)


def test_u_shaped_time_keeps_its_digits_at_both_ends():
    """In float32, where sigma = t/(1 - t) of a t that was rounded is wrong by 1e-3 at 1 - 1e-5."""
    with jax.enable_x64(False):
        sigma = noise.u_shaped_time().sample(KEY, 1_000_000)
        assert sigma.dtype == jnp.float32
    t = 1 / (1 + np.asarray(sigma, np.float64))
    ends = 1e-5 * (1 - 1e-6), (1 - 1e-5) * (1 + 1e-9)
    assert ends[0] <= t.min() < 1.2e-5 and 1 - 1.2e-5 < t.max() <= ends[1]
    near = np.sort(t[t < 1e-4])
    assert len(near) > 100 and len(np.unique(near)) > 0.9 * len(near)


def test_law_of_levels():
    law = noise.levels(tuple(noise.even_time_grid(4, 999.0)[:-1].tolist()))
    sigma = law.sample(KEY, 40_000)
    t = np.asarray(sigma / (1 + sigma))
    values, counts = np.unique(t.round(9), return_counts=True)
    np.testing.assert_allclose(values, 0.999 * np.array([0.25, 0.5, 0.75, 1]), atol=1e-9)
    np.testing.assert_allclose(counts / 40_000, 0.25, atol=0.01)
    np.testing.assert_allclose(law.cdf(jnp.asarray([0.1, 0.4, 5.0, 1e4])), [0, 0.25, 0.75, 1])


def test_noise_turns_over_with_its_image():
    """T-RF6: what knows neither left nor right has the same loss."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(6, 4, 4, 1)))
    pair = {'seed': jnp.full(6, 7, jnp.uint32), 'index': jnp.arange(6, dtype=jnp.uint32)}
    plain = {'x': x, 'condition': {}, 'pair': pair | {'mirrored': jnp.zeros(6, bool)}}
    turned = {'x': x[:, :, ::-1], 'condition': {}, 'pair': pair | {'mirrored': jnp.ones(6, bool)}}
    half = turned | {'pair': plain['pair']}
    model = Denoiser(
        lambda *given: {},
        lambda params, x, sigma, condition, key=None: (jnp.tanh(x) / column(1 + sigma, x), ()),
    )
    once = kd(model, recorded(), sigma_init=1.0)
    for method in (reflow(model, recorded(), law=LAW, sigmas=GRID), once):
        one, other, wrong = (float(value(method, {}, batch=b)) for b in (plain, turned, half))
        assert one == pytest.approx(other, rel=1e-12)
        assert abs(one - wrong) > 1e-3 * one


def test_conditions_are_left_out_as_in_pre_training():
    seen = []

    def apply(params, x, sigma, condition, key=None):
        seen.append(np.asarray(condition['label']))
        return jnp.zeros_like(x), ()

    model = straight()._replace(apply=apply, takes=('label',))
    batch = {'x': jnp.zeros((64, 1)), 'condition': {'label': jnp.arange(64)}}
    given = dict(law=LAW, sigmas=GRID)
    value(reflow(model, pairs(), label_dropout=0.5, **given), {}, batch=batch)
    assert 15 < np.sum(seen[0] == -1) < 50
    assert reflow(model, pairs(), label_dropout=0.5, guidance=2.0, **given).generator.nfe == 8
    with pytest.raises(ValueError, match='label_dropout'):
        reflow(model, pairs(), guidance=2.0, **given)


# SlimFlow. T-SL1 to T-SL3 of the sheet.


@pytest.mark.parametrize('beta', [0.0, 1e-9, 0.3, 0.9, 1.0])
def test_annealed_noise_is_unit_noise(beta):
    """T-SL1: its share of z and of the fresh noise have squares of sum 1."""
    share = [float(annealed(*pair, jnp.asarray(beta))) for pair in ((1.0, 0.0), (0.0, 1.0))]
    assert np.sum(np.square(share)) == pytest.approx(1, abs=1e-12) and share[1] == beta


@pytest.mark.parametrize('name', ['linear', 'cos', 'exp'])
def test_annealing_goes_from_flow_matching_to_reflow(name):
    """T-SL2: at beta = 1 the loss is that of independent noise, whose mean is known, and does not
    see the noise of the pairs; at beta = 0 it is reflow."""
    sigma = jnp.asarray(1.5)
    given = dict(law=at(sigma), sigmas=GRID)
    plain = reflow(bent(), pairs(), **given)
    method = reflow(bent(), pairs(), annealing=Annealing(name, 100), **given)
    x0 = pairs().draw(None, {}, {})[1]
    others = Pairing(lambda key, frozen, batch: (jnp.ones_like(x0), x0))
    same = reflow(bent(), others, annealing=Annealing(name, 100), **given)
    assert value(method, {}) == value(same, {}) != value(plain, {})
    late = 10_000 if name == 'exp' else 100
    np.testing.assert_allclose(value(method, {}, step=late), value(plain, {}), rtol=1e-12)
    assert abs(value(method, {}, step=50) / value(plain, {}, step=50) - 1) > 0.1
    # E |v - (xi - x0)|^2 = (1 + sigma)^2/sigma^2 E |x0 - k (x0 + sigma xi)|^2
    k = S**2 / (S**2 + sigma**2)
    wanted = (1 + 1 / sigma) ** 2 * jnp.mean((1 - k) ** 2 * x0**2 + k**2 * sigma**2)
    draw = compiled(jax.vmap(lambda key: value(method, {}, key=key)))
    found = draw(jax.random.split(KEY, 2000))
    error = float(np.std(found) / np.sqrt(len(found)))
    assert np.mean(found) == pytest.approx(float(wanted), abs=4 * error)


SIGMA_INIT = 80.0


def guided(student, teacher, half, pairs, **given):
    return flow_guided(
        student,
        teacher,
        pairs,
        first_half=half,
        sigma_init=SIGMA_INIT,
        from_teacher=False,
        **given,
    )


@pytest.mark.parametrize('half', FIRST_HALVES)
def test_flow_guidance_of_a_straight_flow_has_no_loss_at_its_map(half):
    """T-SL3, and the control, a bent flow."""
    assert value(guided(straight(), straight(), half, ends_of(straight())), {}) < 1e-20
    ends = ends_of(exact())
    assert value(kd(exact(), ends, sigma_init=SIGMA_INIT), {}) < 1e-20
    assert value(guided(exact(), bent(), half, ends), {}) > 1e-3


LEVEL = jnp.full(64, SIGMA_INIT)


def ends_of(model):
    """Pairs of noise and what a model makes of it at once."""
    z = points(64)
    return Pairing(lambda *given: (z, model.apply({}, SIGMA_INIT * z, LEVEL, {})[0]))


@pytest.mark.parametrize('half', FIRST_HALVES)
def test_first_half_of_flow_guidance(half, monkeypatch):
    """By the teacher the target is its own path's end whatever the student; by the student it is so
    on that path alone. Its gradient is that of p, with the target as a constant."""
    xi, sigma = points(64), jnp.asarray(0.7)
    monkeypatch.setattr(generator, 'unit_noise', lambda key, batch: xi)
    ends = Pairing(lambda *given: (xi, jnp.zeros_like(xi)))
    method = guided(straight(), straight(), half, ends, law=at(sigma), distance=Distance())
    plain = kd(straight(), ends, sigma_init=SIGMA_INIT)
    gain = 1.2

    def term(gain):
        return value(method, {'gain': gain}) - value(plain, {'gain': gain})

    path = straight().apply({}, SIGMA_INIT * xi, LEVEL, {})[0]
    first = path * (gain if half == 'student' else 1)
    x = jump(first, SIGMA_INIT * xi, LEVEL, jnp.full(64, sigma))
    target = straight().apply({}, x, jnp.full(64, sigma), {})[0]
    assert np.allclose(target, path, rtol=1e-9) == (half == 'teacher')
    np.testing.assert_allclose(term(gain), jnp.mean((gain * path - target) ** 2), rtol=1e-9)
    slope = jnp.mean(2 * (gain * path - target) * path)
    np.testing.assert_allclose(jax.grad(term)(gain), slope, rtol=1e-9)


def test_levels_between_the_two_steps():
    """t is uniform on (0.2, 0.8), and never above the start."""
    law = flow_guided.__kwdefaults__['law']
    sigma = law.sample(KEY, 1000)
    t = np.asarray(sigma / (1 + sigma))
    assert 0.2 <= t.min() < 0.21 and 0.79 < t.max() <= 0.8
    high = flow_guided(
        straight(), straight(), pairs(), law=at(9.0), sigma_init=1.0, from_teacher=False
    )
    assert np.isfinite(value(high, {}))


# KD.


def test_kd_is_the_distance_of_the_ends():
    z, x0 = pairs().draw(None, {}, {})
    model = straight()
    D = model.apply({}, 80 * z, jnp.full(64, 80.0), {})[0]
    half = kd(model, pairs(), distance=Distance(pixel_weight=0.5))
    np.testing.assert_allclose(value(half, {}), 0.5 * jnp.mean((D - x0) ** 2), rtol=1e-12)
    np.testing.assert_allclose(half.generator.sample({}, z, {}), D, rtol=1e-12)
    # In the limit of a high level a straight flow is the map itself, and has no loss.
    assert value(kd(model, pairs(), sigma_init=1e9), {}) < 1e-15 < value(half, {})


def test_a_perceptual_distance_is_added():
    seen = Encoder(lambda *given: {}, lambda params, x: (params * x**2, jnp.sin(2 * x)))
    z, x0 = pairs().draw(None, {}, {})
    D = straight().apply({}, 80 * z, jnp.full(64, 80.0), {})[0]
    own = jnp.mean(9 * (D**2 - x0**2) ** 2 + (jnp.sin(2 * D) - jnp.sin(2 * x0)) ** 2)
    both = Distance(pixel_weight=2.0, perceptual_weight=3.0, encoder=seen)
    found = value(kd(straight(), pairs(), distance=both), {}, frozen={'encoder': 3.0})
    np.testing.assert_allclose(found, 2 * jnp.mean((D - x0) ** 2) + 3 * own, rtol=1e-12)


# Progressive distillation.


def levels():
    rng = np.random.default_rng(4)
    a, b, c = np.sort(rng.uniform(0.1, 9, (3, 20)), axis=0)[::-1]
    return tuple(jnp.asarray(level) for level in (a, b, np.where(np.arange(20) < 3, 0, c)))


def test_one_step_is_two():
    """Of any two answers; the paper's form is the same, and loses digits."""
    a, b, c = levels()
    x, first, second = (points(20) + k for k in (0.0, 0.3, -0.7))
    end = jump(second, jump(first, x, a, b), b, c)
    D = two_steps(first, second, (a, b, c))
    np.testing.assert_allclose(jump(D, x, a, c), end, rtol=1e-12, atol=1e-13)
    share = column(c / a, x)
    np.testing.assert_allclose(D, (end - share * x) / (1 - share), rtol=1e-9, atol=1e-10)
    np.testing.assert_array_equal(D[:3], second[:3])


def test_exact_steps_make_an_exact_step():
    """Of a teacher whose steps are those of the ODE, the student's is, too."""
    a, b, c = levels()
    p, x = mixture([1.0], [[0.3]], S), points(20)

    def answer(x, high, low):
        share = column(low / high, x)
        return (p.flow(x, column(high, x), column(low, x)) - share * x) / (1 - share)

    middle = p.flow(x, column(a, x), column(b, x))
    D = two_steps(answer(x, a, b), answer(middle, b, c), (a, b, c))
    wanted = p.flow(x, column(a, x), column(c, x))
    np.testing.assert_allclose(jump(D, x, a, c), wanted, rtol=1e-9)


def halved(model, sigmas):
    """A student whose Euler steps on every second level are those of a model on all."""
    sigmas = np.asarray(sigmas)

    def apply(params, x, sigma, condition, key=None):
        index = jnp.argmin(jnp.abs(jnp.asarray(sigmas) - sigma[:, None]), axis=1)
        a, b, c = (jnp.asarray(sigmas)[jnp.minimum(index + k, len(sigmas) - 1)] for k in range(3))
        first = model.apply({}, x, a, {})[0]
        second = model.apply({}, jump(first, x, a, b), b, {})[0]
        return params.get('gain', 1.0) * two_steps(first, second, (a, b, c)), ()

    return Denoiser(lambda *given: {}, apply)


@pytest.mark.parametrize('weighting', ['truncated_snr', 'unit', 'eps', 'edm'])
def test_a_student_of_no_loss_samples_as_its_teacher(weighting):
    """In half of the steps, and over two stages in a quarter of them; every wrong one has a
    loss."""
    grid, z = noise.timesteps_grid(8, 'cosine', t_min=1 / 8, t_max=0.999), points(30)
    first, wanted = bent(mean=0.4), samplers.euler(bound(bent(mean=0.4)), grid[0] * z, grid)
    second, given = halved(first, grid), dict(sigmas=grid, weighting=weighting, from_teacher=False)
    third = halved(second, grid[::2])
    for stage, (student, teacher) in enumerate(((second, first), (third, second)), 1):
        method = progressive(student, teacher, stage=stage, **given)
        assert value(method, {}) < 1e-20 < 1e-6 < value(method, {'gain': 1.05})
        assert method.generator.nfe == 8 // 2**stage
        np.testing.assert_allclose(method.generator.sample({}, z, {}), wanted, rtol=1e-9)
    # The teacher itself is no such student.
    assert value(progressive(first, first, **given), {}) > 1e-6


# The published codes.


@pytest.fixture(scope='module')
def goldens():
    with np.load(reflow_goldens.GOLDENS) as stored:
        return {name: stored[name] for name in stored}


def toy(which):
    """A denoiser of the toy velocity, which leads to the data as t = 1/(1 + sigma) grows to 1."""
    network = reflow_goldens.networks(jnp)[which]

    def apply(params, x, sigma, condition, key=None):
        u = -network(x / column(1 + sigma, x), 1 / column(1 + sigma, x))
        return denoised(u, x, sigma), ()

    return Denoiser(lambda *given: {}, apply)


TOLD = reflow_goldens.drawn()
HIGHEST = 1 / reflow_goldens.EPS - 1  # of the codes' t = 1e-9


def of_code(distance, **weights):
    encoder = Encoder(
        lambda *given: {},
        lambda params, x: tuple(
            part.reshape(len(x), -1) for part in reflow_goldens.features(jnp, x)
        ),
    )
    return Distance(distance, encoder=encoder if weights else None, **weights)


def recorded_pairs():
    z, x = (jnp.asarray(TOLD[name]) for name in ('z', 'x'))
    return Pairing(lambda *given: (z, x))


def of_pairs(method, **given):
    batch = {'x': jnp.asarray(TOLD['x']), 'condition': {}}
    return value(method, {}, batch=batch, **given)


def sigma_of(t):
    return jnp.asarray((1 - t) / t)


BY_PERCEPTION = dict(perceptual_weight=1.0)
KINDS = {
    'l2': {},
    'lpips': BY_PERCEPTION | dict(pixel_weight=0.0),
    'both': BY_PERCEPTION,
}


def test_losses_of_rectified_flow(goldens):
    given = dict(sigmas=GRID)
    plain = reflow(toy(0), recorded_pairs(), law=at(sigma_of(TOLD['t'])), **given)
    np.testing.assert_allclose(of_pairs(plain), goldens['rectified/reflow'], rtol=1e-10)
    t = TOLD['k'] * (1 - 1e-3) / 4 + 1e-3
    steps = reflow(toy(0), recorded_pairs(), law=at(sigma_of(t)), **given)
    np.testing.assert_allclose(of_pairs(steps), goldens['rectified/steps'], rtol=1e-10)
    law = noise.levels(tuple(noise.even_time_grid(4, 999.0)[:-1].tolist()))
    np.testing.assert_allclose(np.unique(law.sample(KEY, 100)), np.unique(sigma_of(t)), rtol=1e-12)
    for name, weights in KINDS.items():
        method = kd(
            toy(0), recorded_pairs(), sigma_init=HIGHEST, distance=of_code('squared_l2', **weights)
        )
        np.testing.assert_allclose(of_pairs(method), goldens[f'rectified/distil_{name}'], rtol=1e-6)


@pytest.mark.parametrize('divided', [True, False])
def test_loss_of_2_rf_plus_plus(divided, goldens):
    distance = of_code('pseudo_huber', perceptual_weight=1.0)
    method = reflow(
        toy(0),
        recorded_pairs(),
        law=at(sigma_of(TOLD['t'])),
        sigmas=GRID,
        fit=Fit(fade=True, perceptual_by_time=divided),
        distance=distance,
    )
    wanted = goldens[f'rfpp/{"divided" if divided else "plain"}']
    np.testing.assert_allclose(of_pairs(method), wanted, rtol=1e-10)


def test_times_of_2_rf_plus_plus(goldens):
    """Kolmogorov's distance of 1000 of its draws, whose 1e-3 quantile is 1.95/sqrt(n)."""
    t, law = goldens['rfpp/times'], noise.u_shaped_time()
    u = np.asarray(law.cdf(jnp.asarray(t / (1 - t))))
    assert np.max(np.abs(u - (np.arange(len(u)) + 0.5) / len(u))) < 1.95 / np.sqrt(len(u))


@pytest.mark.parametrize('half', FIRST_HALVES)
@pytest.mark.parametrize('name', KINDS)
def test_flow_guided_term_of_slimflow(half, name, goldens, monkeypatch):
    monkeypatch.setattr(generator, 'unit_noise', lambda key, batch: jnp.asarray(TOLD['fresh']))
    distance = of_code('squared_l2', **KINDS[name])
    given = dict(sigma_init=HIGHEST, distance=distance)
    law = at(sigma_of(TOLD['t'] * 0.6 + 0.2))
    method = flow_guided(
        toy(0), toy(1), recorded_pairs(), law=law, first_half=half, from_teacher=False, **given
    )
    found = of_pairs(method) - of_pairs(kd(toy(0), recorded_pairs(), **given))
    wanted = goldens[f'slimflow/{half}_{"lpips+l2" if name == "both" else name}']
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize('name', ['linear', 'exp', 'cos'])
def test_annealing_of_slimflow(name, goldens, monkeypatch):
    monkeypatch.setattr(generator, 'unit_noise', lambda key, batch: jnp.asarray(TOLD['fresh']))
    law, schedule = at(sigma_of(TOLD['t'])), Annealing(name, reflow_goldens.WARMUP)
    method = reflow(toy(0), recorded_pairs(), law=law, sigmas=GRID, annealing=schedule)
    share = reflow_goldens.STEPS / reflow_goldens.WARMUP
    beta = ANNEALINGS[name](jnp.asarray(share))
    np.testing.assert_allclose(beta, goldens[f'slimflow/beta_{name}'], rtol=1e-12)
    found = of_pairs(method, step=reflow_goldens.STEPS)
    np.testing.assert_allclose(found, goldens[f'slimflow/annealed_{name}'], rtol=1e-10)


def test_kd_of_fastgen(goldens):
    model = Denoiser(
        lambda *given: {},
        lambda params, x, sigma, condition, key=None: (
            reflow_goldens.networks(jnp)[0](x / 80, 0.0),
            (),
        ),
    )
    method = kd(model, recorded_pairs(), distance=Distance(pixel_weight=0.5))
    np.testing.assert_allclose(of_pairs(method), goldens['fastgen/kd'], rtol=1e-12)


@pytest.mark.parametrize(
    ('name', 'weighting'),
    [*zip(reflow_goldens.WEIGHTS, ('unit', 'eps', 'truncated_snr', 'edm'))],
)
def test_losses_of_progressive_distillation(name, weighting, goldens):
    """Its levels are those of a grid here."""
    ends = np.exp(goldens['google/logsnr'][[0, -1]] / -2)
    t_min, t_max = (float(noise.cosine().time(jnp.asarray(end))) for end in ends)
    grid = noise.timesteps_grid(8, 'cosine', t_min=t_min, t_max=t_max)
    np.testing.assert_allclose(grid[-2::-1], np.exp(-goldens['google/logsnr'] / 2), rtol=1e-7)
    n = 6 - 2 * goldens['google/i']
    a, b, c = (jnp.asarray(grid[n + k]) for k in range(3))
    student, teacher = (
        lambda x, sigma, of=of: of(
            x / column(jnp.sqrt(1 + sigma**2), x), column(-2 * jnp.log(sigma), x)
        )
        for of in reflow_goldens.denoisers(jnp)
    )
    x0 = jnp.asarray(TOLD['x'])
    x = x0 + column(a, x0) * goldens['google/eps']
    first = teacher(x, a)
    target = two_steps(first, teacher(jump(first, x, a, b), b), (a, b, c))
    found = losses.denoising(student(x, a), target, noise.WEIGHTINGS[weighting](a, 1.0))
    np.testing.assert_allclose(found, goldens[f'google/{name}'], rtol=1e-5)


# What is refused.


@pytest.mark.parametrize(
    ('make', 'options', 'message'),
    [
        (reflow, dict(fit=Fit('none')), "weighting='none': known are"),
        (reflow, dict(annealing=Annealing('slow')), "annealing='slow': known are none, linear"),
        (reflow, dict(annealing=Annealing('cos', 0)), 'annealing_steps=0: must be >= 1'),
        (reflow, dict(distance=Distance('l3')), "distance='l3': known are"),
        (reflow, dict(distance=Distance(c=0.0)), 'c=0.0: must be > 0'),
        (reflow, dict(distance=Distance(pixel_weight=0.0)), 'one of them > 0'),
        (reflow, dict(distance=Distance(perceptual_weight=-1.0)), 'one of them > 0'),
        (reflow, dict(distance=Distance(perceptual_weight=1.0)), 'needs the section features'),
        (
            kd,
            dict(distance=Distance(encoder=Encoder(None, None))),
            'no use for the section features',
        ),
        (reflow, dict(label_dropout=1.0), r'label_dropout=1.0: must lie in \[0, 1\)'),
        (kd, dict(sigma_init=0.0), 'sigma_init=0.0: must be > 0'),
        (flow_guided, dict(first_half='both'), "first_half='both': known are student, teacher"),
        (flow_guided, dict(guided_weight=-1.0), 'guided_weight=-1.0: must be >= 0'),
        (progressive, dict(weighting='no'), "weighting='no': known are"),
        (progressive, dict(stage=0), 'stage=0: must be >= 1'),
        (progressive, dict(stage=3), r'the 4 steps of the grid a multiple of 2\^stage'),
    ],
)
def test_refused(make, options, message):
    parts = {reflow: [pairs()], kd: [pairs()], flow_guided: [straight(), pairs()]}
    given = {reflow: dict(law=LAW, sigmas=GRID), progressive: dict(sigmas=GRID)}
    with pytest.raises(ValueError, match=message):
        make(straight(), *parts.get(make, [straight()]), **given.get(make, {}), **options)
