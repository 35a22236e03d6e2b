"""Adversarial distillation against closed forms of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import compiled

from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.oracle import mixture
from fdistill.methods import adversarial, losses
from fdistill.methods.adversarial import Adversary, Transport
from fdistill.methods.generator import Steps
from fdistill.methods.method import Context
from fdistill.networks import Head

MEAN, STD, SIGMA = 0.4, 0.8, 0.6


@pytest.fixture
def draws(x64):
    """(z, eps, mass) of an expectation over two unit normals."""
    z, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    z, eps = (grid.ravel()[:, None] for grid in np.meshgrid(z, z, indexing='ij'))
    return z, eps, np.outer(weights, weights).ravel()


def fixed_point(theta, z, eps, mass, c, weight):
    """The gradient of ADD in (mean, ln std) of a Gaussian student, whose discriminator is optimal
    and whose loss is -l, so that the game is reverse KL."""
    p = mixture([1.0], [[MEAN]], STD)

    def loss(theta):
        mean, std = theta[0], jnp.exp(theta[1])
        x = mean + std * z
        x_t = x + SIGMA * eps
        q = jax.lax.stop_gradient(p._replace(means=mean.reshape(1, 1), stds=std.reshape(1)))
        logits = (p.log_prob(x_t, SIGMA) - q.log_prob(x_t, SIGMA))[:, None]
        target = jax.lax.stop_gradient(p.denoise(x_t, SIGMA))
        distilled = losses.denoising(x, target, jnp.full(len(z), c))
        return mass @ (losses.GANS['hinge'].generator(logits, logits) + weight * distilled)

    return compiled(jax.grad(loss))(theta)


@pytest.mark.parametrize('distillation', adversarial.DISTILLATIONS)
@pytest.mark.parametrize('weight', [0.0, 0.3, 2.5])
def test_fixed_point_of_add(distillation, weight, draws):
    """std^2 + sigma^2 = (STD^2 + sigma^2)/(1 + 2 weight c sigma^2), at the teacher's mean: without
    the game a point, without the regression the teacher."""
    c = float(adversarial.DISTILLATIONS[distillation](jnp.asarray(SIGMA)))
    assert c == pytest.approx(
        {'exponential': (1 + SIGMA**2) ** -0.5, 'sds': 0.5 / SIGMA}[distillation]
    )
    variance = (STD**2 + SIGMA**2) / (1 + 2 * weight * c * SIGMA**2) - SIGMA**2
    if variance <= 0:  # Then the student is a point.
        at_point = fixed_point(jnp.asarray([MEAN, np.log(1e-3)]), *draws, c, weight)
        assert at_point[1] > 0
        return
    exact = jnp.asarray([MEAN, 0.5 * np.log(variance)])
    assert np.max(np.abs(fixed_point(exact, *draws, c, weight))) < 1e-12
    off = fixed_point(exact + 0.1, *draws, c, weight)
    assert np.min(off) > 1e-3


def affine():
    """x = A z, z of unit variance, the network told sigma = 1."""
    return Denoiser(
        lambda key, x, condition: {'A': jnp.eye(x.shape[-1])},
        lambda params, x, sigma, condition, key=None: (x @ params['A'].T, (x,)),
    )


def nothing():
    """A discriminator that cannot tell, as the optimal one where both distributions are the
    same."""
    return Head(None, lambda params, seen, c_noise, condition: params * seen[0][:, :1])


def turned(angle):
    cos, sin = np.cos(angle), np.sin(angle)
    return STD * jnp.asarray([[cos, -sin], [sin, cos]])


@pytest.mark.parametrize('weights', [(0.2, 0.005), (0.0, 0.0)])
def test_only_the_way_says_how_a_flow_turns(weights, x64):
    """Every turn of the noise makes the same samples, so that the game has no gradient in the
    angle; the way has: 2 s sin(angle) on the mean of two elements, at the weight of the step. It
    leads to the one map that is the optimal transport."""
    made = adversarial.adversarial_flow(
        affine(), nothing(), transport=Transport(*weights, ot_steps=100)
    )
    batch, aux = {'x': jnp.zeros((4096, 2)), 'condition': {}}, {'gradient_square': jnp.zeros(())}

    def slope(angle, step):
        def loss(angle):
            cos, sin = jnp.cos(angle), jnp.sin(angle)
            A = STD * jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
            params = {'student': {'A': A}, 'critic': {'discriminator': jnp.zeros(())}}
            context = Context({}, aux=aux, step=step)
            return made.losses['student'](params, context, batch, jax.random.key(0))[0]

        return jax.grad(loss)(angle)

    slope = compiled(slope)
    for step, weight in ((0, weights[0]), (50, sum(weights) / 2), (1000, weights[1])):
        for angle in (0.0, 0.7, -2.0):
            expected = weight * 2 * STD * np.sin(angle)
            assert slope(angle, step) == pytest.approx(expected, rel=0.05, abs=0.02 * weight)
    if weights[0]:
        angle = 3.0
        for _ in range(60):
            angle -= 5.0 * float(slope(angle, 0))
        assert abs(angle) < 0.05


def test_map_of_a_flow_in_one_dimension(x64):
    """x = a z, reverse KL and weight (a - 1)^2: 1/s^2 + 2 weight (1 - 1/a) = 1/a^2 at either sign
    of a, and the rising map has the lower loss by 4 weight |a|; for weight -> 0, a -> s."""
    z, weights = np.polynomial.hermite_e.hermegauss(40)
    z, mass = jnp.asarray(z)[:, None], weights / weights.sum()
    p = mixture([1.0], [[0.0]], STD)

    def loss(a, weight):
        x = a * z
        q = p._replace(stds=jax.lax.stop_gradient(jnp.abs(a)).reshape(1))
        logits = (p.log_prob(x, 0.0) - q.log_prob(x, 0.0))[:, None]
        way = losses.denoising(x, z, jnp.full(len(z), weight))
        return mass @ (losses.GANS['hinge'].generator(logits, logits) + way)

    for weight in (0.3, 1e-2, 1e-5):
        # a^2 (1/s^2 + 2 weight) - 2 weight a - 1 = 0
        square = STD**-2 + 2 * weight
        root = np.sqrt(weight**2 + square)
        rising, falling = (weight + root) / square, (weight - root) / square
        for a in (rising, falling):
            assert abs(jax.grad(loss)(jnp.asarray(a), weight)) < 1e-12
        assert abs(jax.grad(loss)(jnp.asarray(1.1 * rising), weight)) > 1e-2
        assert loss(rising, weight) < loss(falling, weight)
    assert rising == pytest.approx(STD, rel=1e-5)


def game_of(discriminator, **settings):
    return adversarial.game(
        adversarial.generator.student(affine(), Steps(1.0)),
        affine(),
        None,
        discriminator,
        law=None,
        adversary=Adversary(features='input', **settings),
    )


def linear():
    """l = w . x."""
    return Head(
        lambda key, seen, c_noise, condition: jnp.asarray([0.3, -0.4]),
        lambda params, seen, c_noise, condition: seen[0] @ params[:, None],
    )


@pytest.mark.parametrize('step', [0.1, 0.01])
def test_finite_differences_are_penalties_of_the_gradient(step, x64):
    """Of l = w . x, E (l(x + step n) - l(x))^2 = step^2 |w|^2 at data and at samples; the centre is
    E (l_fake + l_real)^2."""
    weights = dict(r1_weight=2 / step**2, r2_weight=3 / step**2)
    plain, rough = (game_of(linear(), penalty_step=step, **more) for more in ({}, weights))
    centred = game_of(linear(), center_weight=0.7)
    batch = {'x': jax.random.normal(jax.random.key(5), (50_000, 2)), 'condition': {}}
    params, aux = plain.init(jax.random.key(0), batch, {})
    given = params, Context({}, aux=aux), batch, jax.random.key(1)
    value, rougher, around = (
        compiled(made.losses['critic'])(*given)[0] for made in (plain, rough, centred)
    )
    assert rougher - value == pytest.approx(5 * 0.25, rel=0.03)
    # Independent samples and data, both of unit variance.
    assert around - value == pytest.approx(0.7 * 2 * 0.25, rel=0.03)


def test_the_scale_of_the_game_does_not_matter_in_proportion(x64):
    """With gradient_decay the student's gradient is the same however steep the discriminator."""
    batch = {'x': jnp.ones((16, 2)), 'condition': {}}
    made = game_of(linear(), gan_loss='hinge', gradient_decay=0.9)
    params, aux = made.init(jax.random.key(0), batch, {})
    assert aux['gradient_square'] == 0

    def after(scale):
        judged = params | {'critic': {'discriminator': scale * params['critic']['discriminator']}}

        def loss(student):
            given = {**judged, 'student': student}, Context({}, aux=aux), batch, jax.random.key(2)
            value, (metrics, new) = made.losses['student'](*given)
            return value, new

        return jax.grad(loss, has_aux=True)(params['student'])

    (one, first), (other, second) = after(1.0), after(100.0)
    np.testing.assert_allclose(one['A'], other['A'], rtol=1e-6)
    np.testing.assert_allclose(second['gradient_square'], 1e4 * first['gradient_square'], rtol=1e-6)


def test_a_pair_has_one_level_and_one_noise(x64):
    """So that a relativistic discriminator sees nothing but the images."""
    seen = []
    spy = Head(
        lambda key, features, c_noise, condition: jnp.zeros(()),
        lambda params, features, c_noise, condition: (
            seen.append((features[0], c_noise)) or params * features[0][:, :1]
        ),
    )
    law = noise.lognormal(mean=0.0, std=1.0)
    made = adversarial.ladd(
        affine(),
        affine(),
        spy,
        critic_law=law,
        from_teacher=False,
        steps=Steps(1.0),
        adversary=Adversary(features='input'),
    )
    batch = {'x': jnp.zeros((8, 2)), 'condition': {}}
    # A student of nothing but zeros, as the data.
    params = {'student': {'A': jnp.zeros((2, 2))}, 'critic': {'discriminator': jnp.ones(())}}
    for role in ('critic', 'student'):
        seen.clear()
        made.losses[role](params, Context({}), batch, jax.random.key(0))
        (fake, at), (real, level) = seen[:2]
        np.testing.assert_array_equal(fake, real)
        np.testing.assert_array_equal(at, level)
        assert len(np.unique(at)) == 8


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(gan_loss='hingge'), "gan_loss='hingge': known are softplus, hinge, relativistic"),
        (dict(r2_weight=-1.0), 'must be >= 0'),
        (dict(penalty_step=0.0), 'penalty_step=0.0 > 0'),
        (dict(gradient_decay=1.0), r'gradient_decay=1.0 in \[0, 1\)'),
        (dict(student_every=0), 'student_every=0'),
    ],
)
def test_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        game_of(linear(), **settings)


def test_refused_parts():
    with pytest.raises(ValueError, match='needs a discriminator'):
        game_of(None)
    with pytest.raises(ValueError, match='are those of noised images'):
        adversarial.adversarial_flow(affine(), linear(), adversary=Adversary())
    law = noise.lognormal(mean=0.0, std=1.0)
    with pytest.raises(ValueError, match="features='input2': known are input"):
        adversarial.adversarial_flow(
            affine(), linear(), critic_law=law, adversary=Adversary(features='input2')
        )
    with pytest.raises(ValueError, match='ot_steps >= 1'):
        adversarial.adversarial_flow(affine(), linear(), transport=Transport(ot_steps=0))
    parts = (affine(), affine(), linear())
    with pytest.raises(ValueError, match="distillation='sd': known are exponential, sds"):
        adversarial.add(*parts, student_law=law, critic_law=law, distillation='sd')
    with pytest.raises(ValueError, match='distillation_weight=-1'):
        adversarial.add(*parts, student_law=law, critic_law=law, distillation_weight=-1.0)
