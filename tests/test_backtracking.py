"""DisBack: the way of a degradation, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import compiled

from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser, column
from fdistill.methods.backtracking import backwards, degrade, disback
from fdistill.methods.generator import Steps
from fdistill.methods.method import Context, Tracking

MEANS = np.array([0.5, 1.5, 2.5, 3.5])  # of s_1, ..., s_4; that of the teacher is 0
INTERVAL = 5


def gaussian():
    """The denoiser of N(mean, std^2)."""

    def apply(params, x, sigma, condition, key=None):
        variance = column(jnp.exp(2 * params['log_std']) / sigma**2, x)
        return (params['mean'] + x * variance) / (1 + variance), ()

    def init(key, x, condition):
        return {'mean': jnp.zeros(()), 'log_std': jnp.zeros(())}

    return Denoiser(init, apply)


def shift():
    """A student x = mean + z, at sigma = 1."""
    return gaussian()._replace(
        apply=lambda params, x, sigma, condition, key=None: (params['mean'] + x, ())
    )


def of(mean):
    return {'mean': jnp.asarray(mean), 'log_std': jnp.zeros_like(jnp.asarray(mean))}


FROZEN = {'teacher': of(0.0), 'path': of(MEANS)}
BATCH = {'x': jnp.zeros((4, 1)), 'condition': {}}


def made(weighting='unit'):
    law = noise.loguniform(sigma_min=0.3, sigma_max=2.0)
    return disback(
        shift(),
        gaussian(),
        gaussian(),
        gaussian(),
        student_law=law,
        critic_law=law,
        interval=INTERVAL,
        weighting=weighting,
        steps=Steps(1.0),
        tracking=Tracking(from_teacher=True),
    )


def slope(method, mean, followed):
    """(Gradient in the student's mean where the fake score is exact, aux after, target)."""
    params = {'student': of(mean), 'critic': {'fake_score': of(mean)}}
    context = Context(FROZEN, aux={'followed': jnp.asarray(followed, jnp.int32)})

    def loss(student):
        given = {**params, 'student': student}, context, BATCH, jax.random.key(0)
        return method.losses['student'](*given)

    grads, (metrics, aux) = jax.grad(loss, has_aux=True)(params['student'])
    return grads['mean'], aux['followed'], metrics['target']


def test_targets_come_back_to_the_teacher():
    """s_3, s_2, s_1 and then the teacher for ever, each for `interval` updates: of four checkpoints
    the last is where the student begins. (The released code never leaves the teacher.)"""
    target = backwards(gaussian(), gaussian(), INTERVAL)
    x, sigma = jnp.ones((2, 1)), jnp.ones(2)
    answer = compiled(
        lambda updates: target.apply(
            {'teacher': of(0.0), 'path': of(MEANS), 'updates': updates}, x, sigma, {}
        )[0][0, 0]
    )
    # D = (mean + x)/2 at sigma = std = 1.
    found = [2 * float(answer(updates)) - 1 for updates in range(6 * INTERVAL)]
    np.testing.assert_allclose(found, np.repeat([2.5, 1.5, 0.5, 0, 0, 0], INTERVAL), atol=1e-6)


def test_one_checkpoint_is_the_beginning_alone():
    target = backwards(gaussian(), gaussian(), INTERVAL)
    params = {'teacher': of(0.0), 'path': of(MEANS[:1]), 'updates': jnp.int32(0)}
    np.testing.assert_allclose(target.apply(params, jnp.ones((1, 1)), jnp.ones(1), {})[0], 0.5)


def test_a_target_leaves_no_gradient():
    target = backwards(gaussian(), gaussian(), INTERVAL)
    params = {'teacher': of(0.0), 'path': of(MEANS), 'updates': jnp.int32(0)}
    slope = jax.grad(lambda x: jnp.sum(target.apply(params, x, jnp.ones(1), {})[0]))
    assert not np.any(slope(jnp.ones((1, 1))))


@pytest.mark.parametrize('weighting', ['unit', 'dmd'])
def test_a_student_is_drawn_to_the_target_of_its_stage(weighting):
    """The gradient has the sign of mean - mean of the target, in every stage and on both sides of
    it; without a weight it is E sigma^2/(1 + sigma^2) of that."""
    method = made(weighting)
    step = compiled(lambda mean, followed: slope(method, mean, followed))
    for stage, target in enumerate([2.5, 1.5, 0.5, 0.0]):
        for mean in (target - 0.4, target + 0.4):
            found, after, told = step(mean, stage * INTERVAL)
            assert np.sign(found) == np.sign(mean - target)
            assert (after, told) == (stage * INTERVAL + 1, stage)
        assert abs(step(target, stage * INTERVAL)[0]) < 1e-5


def test_it_ends_at_the_teacher():
    """With a critic that keeps up, the student passes the targets one by one."""
    method, mean, seen = made(), jnp.asarray(3.5), []
    step = compiled(lambda mean, followed: mean - 1.5 * slope(method, mean, followed)[0])
    for followed in range(8 * INTERVAL):
        mean = step(mean, followed)
        seen.append(float(mean))
    at_switches = seen[INTERVAL - 1 :: INTERVAL]
    assert all(one > other for one, other in zip(at_switches, at_switches[1:4]))
    assert abs(seen[-1]) < 1e-2


def test_it_begins_where_the_degradation_ended():
    params, aux = made().init(jax.random.key(0), BATCH, FROZEN)
    assert params['critic']['fake_score']['mean'] == MEANS[-1]
    assert params['student']['mean'] == FROZEN['teacher']['mean'] and aux == {'followed': 0}


def test_a_degradation_ends_at_the_untrained_student():
    """The teacher N(m, s^2), used once at sigma_init, makes N(m (1 - k), (k sigma_init)^2) with
    k = s^2/(s^2 + sigma_init^2), and that is what D becomes the denoiser of."""
    mean, std, sigma_init = 1.2, 0.9, 1.5
    law = noise.loguniform(sigma_min=0.2, sigma_max=3.0)
    method = degrade(
        gaussian(), gaussian(), law=law, sigmas=np.array([2.0, 1.0, 0.0]), sigma_init=sigma_init
    )
    frozen = {'teacher': {'mean': jnp.asarray(mean), 'log_std': jnp.log(std)}}
    batch = {'x': jnp.zeros((1024, 1)), 'condition': {}}
    params, aux = method.init(jax.random.key(0), batch, frozen)
    assert params['student'] == frozen['teacher']  # The way begins at the teacher.
    adam = optax.adam(optax.cosine_decay_schedule(0.03, 400))

    def advance(carry, key):
        params, state = carry
        grads = jax.grad(lambda p: method.losses['student'](p, Context(frozen), batch, key)[0])
        change, state = adam.update(grads(params), state)
        return (optax.apply_updates(params, change), state), params['student']['mean']

    keys = jax.random.split(jax.random.key(1), 400)
    run = compiled(lambda carry: jax.lax.scan(advance, carry, keys))
    (params, _), way = run((params, adam.init(params)))
    k = std**2 / (std**2 + sigma_init**2)
    assert params['student']['mean'] == pytest.approx(mean * (1 - k), abs=0.01)
    assert jnp.exp(params['student']['log_std']) == pytest.approx(k * sigma_init, rel=0.02)
    assert way[0] > way[10] > way[20]


def test_refused():
    with pytest.raises(ValueError, match='interval=0: must be >= 1'):
        backwards(gaussian(), gaussian(), 0)
    law = noise.loguniform(sigma_min=0.3, sigma_max=2.0)
    grid = np.array([1.0, 0.0])
    with pytest.raises(ValueError, match="weighting='edn': known are"):
        degrade(gaussian(), gaussian(), law=law, sigmas=grid, weighting='edn')
    with pytest.raises(ValueError, match='sigma_init=0'):
        degrade(gaussian(), gaussian(), law=law, sigmas=grid, sigma_init=0.0)
