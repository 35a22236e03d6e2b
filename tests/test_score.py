"""Score-based methods: guidance of the fake score, terms that begin later, and the losses of SiDA's
and Uni-Instruct's own code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sida_goldens
from quick import compiled

from fdistill import divergences
from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser, guide
from fdistill.methods import losses, method
from fdistill.methods.critic import Gan
from fdistill.methods.generator import Steps
from fdistill.methods.matching import Ratio
from fdistill.methods.method import Tracking
from fdistill.methods.score import Fisher, sid, sida, uni_instruct
from fdistill.networks import HEADS

LAW = noise.lognormal()


# The weights of Uni-Instruct.


def derivative(f):
    return lambda r: jax.jvp(f, (r,), (jnp.ones_like(r),))[1]


@pytest.mark.parametrize(
    ('name', 'sim', 'diff_instruct', 'sampling'),
    [
        (
            'js',
            lambda r: r / (r + 1),
            lambda r: 2 * r**2 / (r + 1) ** 3,
            lambda r: (r / (r + 1)) ** 2,
        ),
        ('pearson', lambda r: 2 * r**2, lambda r: -4 * r**2, lambda r: -2 * r**2),
        ('forward_kl', lambda r: r, jnp.zeros_like, jnp.zeros_like),
        ('jeffreys', lambda r: r + 1, jnp.zeros_like, jnp.ones_like),
    ],
)
def test_weights_are_those_of_uni_instructs_code(name, sim, diff_instruct, sampling, x64):
    """h of SIM, -r^2 h'' of Diff-Instruct and h - r h' of the gap's own square: the branches
    Jensen-Shannon, Chi-Square, Forward-KL and (up to its shares) Jeffrey-KL."""
    h, r = divergences.weight(divergences.get(name)), jnp.geomspace(0.1, 10, 9)
    slope = derivative(h)
    for ours, theirs in (
        (h(r), sim(r)),
        (-(r**2) * derivative(slope)(r), diff_instruct(r)),
        (h(r) - r * slope(r), sampling(r)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_ratio_moves_along_the_scores(x64):
    """dr = r (s_p - s_q) dx, whatever r was read from; its value stays."""
    rng = np.random.default_rng(0)
    x, d_teacher, d_fake = (jnp.asarray(rng.normal(size=(4, 3, 2))) for _ in range(3))
    r, sigma = jnp.asarray(rng.uniform(0.5, 2, 4)), jnp.asarray([0.5, 1.0, 2.0, 4.0])
    given = d_teacher, d_fake, sigma
    np.testing.assert_array_equal(losses.along(r, x, *given), r)
    found = jax.grad(lambda x: jnp.sum(losses.along(r, x, *given)))(x)
    gap = (r / sigma**2)[:, None, None] * (d_teacher - d_fake)
    np.testing.assert_allclose(found, gap, rtol=1e-12)


# Against SiDA's and Uni-Instruct's own code.


@pytest.mark.parametrize('case', ['sida', 'uni_instruct'])
def test_losses_are_those_of_the_code(case, x64):
    """Student's and critic's loss of one sample, and the student's gradient, to 1e-5: DMD's weight
    has a guard of 1e-6 here and a floor of 1e-5 there."""
    with np.load(sida_goldens.GOLDENS) as stored:
        told = {key.split('/')[1]: stored[key] for key in stored if key.split('/')[0] == case}
    d_teacher, d_fake, mean = sida_goldens.networks(jnp)
    x, elements = jnp.asarray(told['x']), told['x'][0].size

    def parts(x):
        x_t = x + told['x_t'] - told['x']
        of_teacher = d_teacher(x_t)
        weight = losses.dmd_weight(x, of_teacher)
        score = losses.sid(x, of_teacher, d_fake(x_t), weight, 1.0)
        return score, weight * losses.gan_generator(mean(x_t).reshape(len(x), -1))

    score, gan = parts(x)
    np.testing.assert_allclose(score * elements, told['score'], rtol=1e-5)
    np.testing.assert_allclose(0.01 * elements * gan, told['gan'], rtol=1e-5)
    weight = sida.keywords['gan'].gan_weight

    def total(x):
        return 50 * elements * jnp.sum(sum(part * w for part, w in zip(parts(x), (1, weight))))

    scale = np.abs(told['gradient']).max((1, 2, 3), keepdims=True)
    difference = np.abs(compiled(jax.grad(total))(x) - told['gradient']) / scale
    assert np.max(difference) <= 1e-5

    sigma = jnp.asarray(told['critic_sigma'])
    weight = noise.WEIGHTINGS['edm'](sigma, 0.5)
    fake_t, real_t = told['critic_fake_t'], told['critic_real_t']
    logits = (mean(jnp.asarray(x_t)).reshape(len(x), -1) for x_t in (fake_t, real_t))
    adversarial = losses.gan_discriminator(*logits)
    denoising = losses.denoising(d_fake(jnp.asarray(fake_t)), x, weight)
    np.testing.assert_allclose(denoising * elements, told['denoising'], rtol=1e-9)
    np.testing.assert_allclose(weight * adversarial / 2, told['adversarial'], rtol=1e-9)


def test_channel_mean_is_one_logit_a_place():
    features = np.random.default_rng(0).normal(size=(2, 5, 3, 3, 4)).astype(np.float32)
    head = HEADS['channel_mean']()
    assert head.init(None, features, None, None) == {}
    logits = head.apply({}, features, None, None)
    np.testing.assert_allclose(logits, features[-1].mean(-1).reshape(5, 9), rtol=1e-6)
    first = HEADS['channel_mean'](index=0).apply({}, (features[0, :, 0, 0], None), None, None)
    np.testing.assert_allclose(first, features[0, :, 0, 0].mean(-1)[:, None], rtol=1e-6)


# Terms of the student's loss.


def shifted():
    """x = tanh(z + offset), by a network whose feature is what it sees."""
    return Denoiser(
        lambda key, x, condition: {'offset': jnp.zeros(x.shape[-1])},
        lambda params, x, sigma, condition, key=None: (
            jnp.tanh(x + params['offset']),
            (x,),
        ),
    )


def student_gradient(made, step=0, discriminator=None):
    networks = [{'offset': jnp.asarray(offset)} for offset in ([0.3, 0.1], [-0.2, 0.4])]
    critic = {'fake_score': networks[1], 'discriminator': discriminator}
    context = method.Context({'teacher': {'offset': jnp.asarray([0.1, -0.1])}}, step=step)
    batch = {'x': jnp.zeros((64, 2)), 'condition': {}}

    def loss(student):
        params = {'student': student, 'critic': critic}
        return made.losses['student'](params, context, batch, jax.random.key(0))[0]

    return compiled(jax.grad(loss))(networks[0])['offset']


def test_reverse_kl_by_uni_instruct_is_sid():
    """It has no discriminator, also where one is given; alpha = 1/2 is the exact gradient."""
    networks, laws = (shifted(), shifted(), shifted()), dict(student_law=LAW, critic_law=LAW)
    head = HEADS['mlp'](width=4, layers=1)
    exact = dict(divergence='reverse_kl', fisher=Fisher(alpha=0.5))
    ours = uni_instruct(*networks, gan=Gan(head), **exact, **laws)
    batch = {'x': jnp.zeros((4, 2)), 'condition': {}}
    params, _ = ours.init(jax.random.key(0), batch, {'teacher': {'offset': jnp.zeros(2)}})
    assert params['critic'].keys() == {'fake_score'}
    theirs = sid(*networks, alpha=0.5, **laws)
    np.testing.assert_array_equal(student_gradient(ours), student_gradient(theirs))
    other = student_gradient(sid(*networks, alpha=1.0, **laws))
    assert np.max(np.abs(other - student_gradient(ours))) > 1e-3


@pytest.mark.parametrize('clips', [False, True])
def test_where_the_ratio_is_clipped_it_does_not_move(clips):
    """Then h is a constant, and with it nothing is left but h SIM and (h - r h') of the square."""
    head = HEADS['mlp'](width=4, layers=1)
    features = (jnp.zeros((4, 2)),)
    params = head.init(jax.random.key(1), features, jnp.zeros(4), {})
    logit = 1.0 if clips else 0.0
    params['output']['bias'] = jnp.full(1, logit)
    made = uni_instruct(
        *(shifted(), shifted(), shifted()),
        divergence='pearson',
        fisher=Fisher(alpha=0.5, moving_ratio=True),
        student_law=LAW,
        critic_law=LAW,
        ratio=Ratio(ratio_high=1.5, normalise=False),
        gan=Gan(head, features='input'),
    )
    r = 1.5 if clips else 1.0
    frozen = sid(shifted(), shifted(), shifted(), alpha=1.5, student_law=LAW, critic_law=LAW)
    ours = student_gradient(made, discriminator=params)
    theirs = 2 * r**2 * student_gradient(frozen)
    assert (np.max(np.abs(ours - theirs)) < 1e-4 * np.max(np.abs(theirs))) == clips


def test_the_gan_term_begins_when_it_is_told_to():
    networks, head = (shifted(), shifted(), shifted()), HEADS['channel_mean']()
    laws = dict(student_law=LAW, critic_law=LAW)

    def made(**gan):
        told = Gan(head, features='fake_score', gan_from=5, **gan)
        return sida(*networks, gan=told, **laws)

    with_it, without = made(gan_weight=0.5), made(gan_weight=0.0)
    alone = student_gradient(without, discriminator={})
    for step, begun in ((0, False), (4, False), (5, True), (9, True)):
        found = student_gradient(with_it, step, {})
        assert bool(np.any(found != alone)) == begun
    plain, scaled = (
        student_gradient(made(gan_weight=0.5, gan_weighting=name), 9, {}) - alone
        for name in ('unit', 'dmd')
    )
    assert np.max(np.abs(plain - scaled)) > 0.01


def test_an_unknown_weighting_of_the_gan_term_is_refused():
    with pytest.raises(ValueError, match='gan_weighting'):
        sida(
            *(shifted(), shifted(), shifted()),
            student_law=LAW,
            critic_law=LAW,
            gan=Gan(HEADS['channel_mean'](), gan_weighting='eps2'),
        )


# Long and short guidance.


def points(of_teacher=None):
    """A point for the label 0 and one without: of Gaussians N(c, s^2) and N(u, s^2) the limit of no
    deviation, of which the denoiser is the point."""

    def apply(params, x, sigma, condition, key=None):
        there = condition['label'][:, None] >= 0
        own = params if of_teacher is None else of_teacher
        return jnp.where(there, own['c'], own['u']) * jnp.ones_like(x), ()

    return Denoiser(lambda key, x, condition: {'c': jnp.zeros(()), 'u': jnp.zeros(())}, apply)


@pytest.mark.parametrize(
    ('teacher', 'critic', 'fake', 'expected'),
    [
        (1.0, 1.0, 1.0, 1.0),
        # Guidance as ever, and all three alike, as in the paper: the guided teacher.
        (3.0, 1.0, 1.0, 3.0),
        (3.0, 3.0, 3.0, 3.0),
        # The fake score guided as the teacher is, but not trained so: guidance cancels.
        (3.0, 1.0, 3.0, 1.0),
        (3.0, 2.0, 1.0, 6.0),
    ],
)
def test_fixed_point_of_long_and_short_guidance(teacher, critic, fake, expected, x64):
    """p_c = 1, p_u = 0 and a student that makes m with a label and 0 without: at rest at
    m = kappa_4 kappa_1/kappa_2, the teacher's guidance times the critic's over the fake score's."""
    of_teacher = guide(points({'c': 1.0, 'u': 0.0}), teacher)
    made = sid(
        *(points(), of_teacher, points()),
        student_law=LAW,
        critic_law=LAW,
        alpha=1.0,
        weighting='unit',
        steps=Steps(sigma_init=1.0),
        tracking=Tracking(critic_guidance=critic, fake_guidance=fake),
    )
    batch = {'x': jnp.zeros((64, 1)), 'condition': {'label': jnp.zeros(64, jnp.int32)}}

    @compiled
    def gradients(m, c):
        params = {
            'student': {'c': m, 'u': jnp.zeros_like(m)},
            'critic': {'fake_score': {'c': c, 'u': jnp.zeros_like(m)}},
        }

        def of(role):
            def loss(own):
                total, _ = made.losses[role](
                    {**params, role: own}, method.Context({}), batch, jax.random.key(0)
                )
                return total

            return jax.grad(loss)(params[role])

        return of('student')['c'], of('critic')['fake_score']

    # The fake score's own rest: guided, it is the student with a label, and without it the student.
    at_rest = expected / critic
    of_student, of_critic = gradients(jnp.asarray(expected), jnp.asarray(at_rest))
    assert abs(of_student) < 1e-12 and max(map(abs, jax.tree.leaves(of_critic))) < 1e-12
    above, _ = gradients(jnp.asarray(expected), jnp.asarray(at_rest + 0.1))
    _, moved = gradients(jnp.asarray(expected + 0.1), jnp.asarray(at_rest))
    assert above > 0.01 and moved['c'] < -0.01


def test_guidance_of_the_fake_score_needs_a_condition():
    made = sid(
        *(shifted(), shifted(), shifted()),
        student_law=LAW,
        critic_law=LAW,
        tracking=Tracking(fake_guidance=2.0),
    )
    offset = {'offset': jnp.zeros(2)}
    params = {'student': offset, 'critic': {'fake_score': offset}}
    batch = {'x': jnp.zeros((4, 2)), 'condition': {}}
    with pytest.raises(ValueError, match='no condition to guide by'):
        made.losses['critic'](params, method.Context({}), batch, jax.random.key(0))
