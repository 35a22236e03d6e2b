"""Score-based distillation through the networks: SIM and SiD. The student's loss has no
stop_gradient anywhere."""

import functools
from typing import Annotated

import jax
import jax.numpy as jnp

from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.generator import Steps
from fdistill.methods.matching import Preference, matched
from fdistill.methods.method import Method, Tracking
from fdistill.types import Continuous


def _score_method(
    objective, student, teacher, fake_score, student_law, critic_law, steps, tracking, preference
):
    """A student trained by objective(x, d_teacher, d_fake, sigma) -> [B], where x, D_T(x_t) and
    D_F(x_t) all carry gradient."""

    def through(seen):
        values = objective(seen.x, seen.d_teacher, seen.d_fake, seen.sigma)
        gap = jnp.mean((seen.d_teacher - seen.d_fake) ** 2)
        return values, {'score': jnp.mean(values), 'denoiser_gap': gap}

    return matched(
        generator.student(student, steps),
        student,
        teacher,
        fake_score,
        objective=through,
        student_law=student_law,
        critic_law=critic_law,
        tracking=tracking,
        preference=preference,
    )


# scale(sigma) of the denoiser gap in SIM's y.
SCALES = {'score': lambda sigma: sigma**-2, 'eps': lambda sigma: 1 / sigma, 'unit': jnp.ones_like}


def sim(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    distance: str = 'pseudo_huber',
    c: Annotated[float, Continuous()] = 0.1,
    scale: str = 'eps',
    total_gradient: bool = False,
    steps: Steps = Steps(sigma_init=2.5),
    tracking: Tracking = Tracking(),
    preference: Preference = Preference(),
) -> Method:
    """Score implicit matching (SIM, arXiv 2410.16794), `losses.implicit`; data-free.

    The paper's c and w(sigma) are not published. Here y = (D_F - D_T)/sigma by default, the gap
    between the two noise predictions, which the pseudo-Huber distance normalises further.

    Args:
      student, teacher, fake_score: `Denoiser`.
      distance: 'pseudo_huber' or 'squared_l2'.
      c: of pseudo-Huber, > 0, on the scale of y; ignored by squared_l2.
      scale: key of `SCALES`, what y measures: scores, noise predictions or denoisers.
      total_gradient: add d(y), see `losses.implicit`.
      student_law, critic_law: `NoiseLaw` of sigma for the student's loss and the critic's.
      steps, tracking, preference: settings.

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

    return _score_method(
        objective,
        student,
        teacher,
        fake_score,
        student_law,
        critic_law,
        steps,
        tracking,
        preference,
    )


def sid(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    alpha: Annotated[float, Continuous()] = 1.2,
    weighting: str = 'dmd',
    steps: Steps = Steps(sigma_init=2.5),
    tracking: Tracking = Tracking(),
    preference: Preference = Preference(),
) -> Method:
    """Score identity distillation (SiD, arXiv 2404.04057), `losses.sid`; data-free.

    Args:
      student, teacher, fake_score: `Denoiser`.
      alpha: 1.2 in the paper, 1/2 for the exact Fisher gradient, 1 for SIM with squared l2.
      weighting: key of `losses.WEIGHTS`; 'dmd' is the paper's, but depends on x and so breaks the
        exact identities.
      student_law, critic_law, steps, tracking, preference: as for `sim`.

    Raises:
      ValueError: on an unknown weighting.
    """
    if weighting not in losses.WEIGHTS:
        raise ValueError(f'weighting={weighting!r}: known are {", ".join(losses.WEIGHTS)}')

    def objective(x, d_teacher, d_fake, sigma):
        weight = losses.WEIGHTS[weighting](x, d_teacher, sigma)
        return losses.sid(x, d_teacher, d_fake, jax.lax.stop_gradient(weight), alpha)

    return _score_method(
        objective,
        student,
        teacher,
        fake_score,
        student_law,
        critic_law,
        steps,
        tracking,
        preference,
    )


# Diff-Instruct* (arXiv 2410.20898): SIM with a reward on the student's samples. The guided teacher
# within the distance is the paper's DI*-IN. See `matching.Preference` for what reward_weight a
# pseudo-Huber distance can hold.
di_star = functools.partial(sim, preference=Preference(reward_weight=0.1))

# See `distribution.TINY`.
TINY = {
    name: {'method': {'cycle': 'alternate', 'student_every': 2}}
    for name in ('sim', 'sid', 'di_star')
}
TINY['di_star']['reward'] = {'name': 'linear', 'direction': (0.5,)}
