"""Score-based distillation through the networks: SIM and SiD. No stop_gradient anywhere in the
student's loss."""

import jax
import jax.numpy as jnp

from fdistill.methods import losses
from fdistill.methods.critic import copy, make_critic, perturb
from fdistill.methods.method import Method, make_cycle, one_step


def _score_method(
    objective,
    student,
    teacher,
    fake_score,
    *,
    sigma_init,
    student_law,
    critic_law,
    critic_weighting='edm',
    sigma_data=0.5,
    from_teacher=True,
    cycle='alternate',
    student_every=1,
):
    """A student trained by objective(x, d_teacher, d_fake, sigma) -> [B], all of x, D_T(x_t),
    D_F(x_t) carrying gradient."""
    roles = make_cycle(cycle, student_every)
    generate = one_step(student, sigma_init)
    critic = make_critic(
        generate,
        teacher,
        fake_score,
        law=critic_law,
        weighting=critic_weighting,
        sigma_data=sigma_data,
        from_teacher=from_teacher,
    )

    def init(key, batch, frozen):
        key_student, key_critic = jax.random.split(key)
        image, label = batch['image'], batch['label']
        params = {
            'student': copy(frozen['teacher'])
            if from_teacher
            else student.init(key_student, image, label),
            'critic': critic.init(key_critic, batch, frozen),
        }
        return params, {}

    def loss(params, frozen, batch, key, aux):
        key_z, key_t = jax.random.split(key)
        image, label = batch['image'], batch['label']
        x = generate(params['student'], jax.random.normal(key_z, image.shape, image.dtype), label)
        x_t, sigma = perturb(key_t, x, student_law)
        d_teacher, d_fake, _ = critic.evaluate(params['critic'], frozen, x_t, sigma, label)
        value = jnp.mean(objective(x, d_teacher, d_fake, sigma))
        gap = jnp.mean((d_teacher - d_fake) ** 2)
        return value, ({'score': value, 'denoiser_gap': gap}, aux)

    return Method(init, {'critic': critic.loss, 'student': loss}, roles, generate, 1)


# scale(sigma) of the denoiser gap in SIM's y.
SCALES = {'score': lambda sigma: sigma**-2, 'eps': lambda sigma: 1 / sigma, 'unit': jnp.ones_like}


def sim(
    student,
    teacher,
    fake_score,
    *,
    distance='pseudo_huber',
    c=0.1,
    scale='eps',
    total_gradient=False,
    sigma_init=2.5,
    **options,
):
    """Score implicit matching (SIM, arXiv 2410.16794), `losses.implicit`; data-free.

    The paper's c and w(sigma) are not published. Here y = (D_F - D_T)/sigma by default, the gap
    between the two noise predictions, which the pseudo-Huber distance normalises further.

    Args:
      student, teacher, fake_score: `Denoiser`.
      distance: 'pseudo_huber' or 'squared_l2'.
      c: of pseudo-Huber, > 0, on the scale of y; ignored by squared_l2.
      scale: key of `SCALES`, what y measures: scores, noise predictions or denoisers.
      total_gradient: add d(y), see `losses.implicit`.
      sigma_init: the student is D(sigma_init z, sigma_init).
      options: student_law, critic_law (`NoiseLaw`), critic_weighting, sigma_data, from_teacher,
        cycle, student_every: as in `distribution.distribution_matching`.

    Raises:
      ValueError: on unknown names or c <= 0.
    """
    distances = {
        'pseudo_huber': lambda: losses.pseudo_huber(c),
        'squared_l2': lambda: losses.squared_l2,
    }
    if distance not in distances:
        raise ValueError(f'distance={distance!r}: known are {", ".join(distances)}')
    if scale not in SCALES:
        raise ValueError(f'scale={scale!r}: known are {", ".join(SCALES)}')
    d, scale_of = distances[distance](), SCALES[scale]

    def objective(x, d_teacher, d_fake, sigma):
        return losses.implicit(x, d_teacher, d_fake, scale_of(sigma), d, total_gradient)

    return _score_method(objective, student, teacher, fake_score, sigma_init=sigma_init, **options)


def sid(student, teacher, fake_score, *, alpha=1.2, weighting='dmd', sigma_init=2.5, **options):
    """Score identity distillation (SiD, arXiv 2404.04057), `losses.sid`; data-free.

    Args:
      student, teacher, fake_score: `Denoiser`.
      alpha: 1.2 in the paper, 1/2 for the exact Fisher gradient, 1 for SIM with squared l2.
      weighting: key of `losses.WEIGHTS`; 'dmd' is the paper's, but depends on x and so breaks the
        exact identities.
      sigma_init: the student is D(sigma_init z, sigma_init).
      options: as for `sim`.

    Raises:
      ValueError: on an unknown weighting.
    """
    if weighting not in losses.WEIGHTS:
        raise ValueError(f'weighting={weighting!r}: known are {", ".join(losses.WEIGHTS)}')

    def objective(x, d_teacher, d_fake, sigma):
        weight = losses.WEIGHTS[weighting](x, d_teacher, sigma)
        return losses.sid(x, d_teacher, d_fake, jax.lax.stop_gradient(weight), alpha)

    return _score_method(objective, student, teacher, fake_score, sigma_init=sigma_init, **options)
