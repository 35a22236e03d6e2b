"""Distribution backtracking (DisBack, arXiv 2408.15991): a teacher is led astray to the samples of
an untrained student, and the student follows the way back.

Two runs: `degrade` leaves checkpoints on the way from the teacher to the student's distribution,
`disback` has them as teachers in turn, the last first.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from fdistill.diffusion import noise, samplers
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.critic import perturb
from fdistill.methods.distribution import distribution_matching
from fdistill.methods.generator import Steps
from fdistill.methods.method import Method, Tracking, begin
from fdistill.types import Continuous


def degrade(
    student: Denoiser,
    teacher: Denoiser,
    *,
    law: NoiseLaw,
    sigmas: np.ndarray,
    sigma_init: Annotated[float, Continuous()] = 80.0,
    sigma_data: Annotated[float, Continuous()] = 0.5,
    weighting: str = 'edm',
    from_teacher: bool = True,
    sampler: samplers.Sampler = samplers.SAMPLERS['heun'],
) -> Method:
    """Degradation recording, the first stage of DisBack (arXiv 2408.15991 and code):

        min over D of E weighting(sigma) mean|D(x + sigma eps, sigma) - x|^2,
        x = D_T(sigma_init z, sigma_init)

    from D = D_T: its checkpoints are the way from the teacher to the denoiser of the samples of the
    student that the second stage begins with. Keep as many as are to be targets (`training.keep`,
    `training.checkpoint_every`).

    Args:
      student: `Denoiser` to train, of the teacher's network; sampled by a solver, as a teacher is.
      teacher: frozen['teacher'], used once at sigma_init; without guidance, as a student is.
      law: `NoiseLaw` of sigma.
      sigmas, sampler: see `pretrain.pretrain`.
      sigma_init: level of the student's input noise, > 0: that of the second stage.
      sigma_data, weighting: of the squared error, key of `noise.WEIGHTINGS`.
      from_teacher: start as a copy of the teacher.

    Raises:
      ValueError: on an unknown weighting, or a level out of range.
    """
    if weighting not in noise.WEIGHTINGS:
        raise ValueError(f'weighting={weighting!r}: known are {", ".join(noise.WEIGHTINGS)}')
    untrained = generator.student(teacher, Steps(sigma_init))

    def loss(params, context, batch, key):
        key_z, key_noise, key_dropout = jax.random.split(key, 3)
        x = untrained.draw(key_z, context.frozen.get('teacher', {}), batch)
        x_t, sigma = perturb(key_noise, x, law)
        given = params['student'], x_t, sigma, batch['condition']
        denoised, _ = student.apply(*given, key=key_dropout)
        weight = noise.WEIGHTINGS[weighting](sigma, sigma_data)
        value = jnp.mean(losses.denoising(denoised, x, weight))
        return value, ({'denoising': value}, context.aux)

    solver = generator.solver(student, sampler, sigmas)
    return Method(
        begin(student, from_teacher), {'student': loss}, lambda step: ('student',), solver
    )


def backwards(teacher: Denoiser, path: Denoiser, interval: int) -> Denoiser:
    """The teacher of a student that has had `updates` of them: with the K checkpoints s_1, ..., s_K
    of a degradation s_{K-1}, ..., s_1, and then the teacher, each for `interval` updates. (s_K is
    where the student begins.) Its answers are targets, without gradient.

    Args:
      teacher: `Denoiser`.
      path: `Denoiser` of each of the checkpoints; its guidance is the teacher's.
      interval: updates of the student until the next target, >= 1.

    Returns:
      `Denoiser` of {'teacher': params, 'path': params with K in front of each, 'updates': int32}.

    Raises:
      ValueError: on an interval out of range.
    """
    if interval < 1:
        raise ValueError(f'interval={interval}: must be >= 1')

    def apply(params, x, sigma, condition, key=None):
        count = len(jax.tree.leaves(params['path'])[0])
        back, x = params['updates'] // interval, stop_gradient(x)  # Targets left behind.
        index = jnp.maximum(count - 2 - back, 0)
        of_path = jax.tree.map(lambda every: every[index], params['path'])
        return jax.lax.cond(
            back < count - 1,
            lambda: path.apply(of_path, x, sigma, condition)[0],
            lambda: teacher.apply(params['teacher'], x, sigma, condition)[0],
        ), ()

    return teacher._replace(apply=apply)


def disback(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    path: Denoiser,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    interval: int,
    weighting: str = 'dmd',
    steps: Steps = Steps(sigma_init=80.0),
    tracking: Tracking = Tracking(),
) -> Method:
    """Distribution backtracking, the second stage of DisBack (arXiv 2408.15991 and code): reverse
    KL by the score gap (`distribution.distribution_matching`) to the `backwards` teachers; the fake
    score begins as the last checkpoint of the degradation, which knows the student's samples.

    The released code has a GAN term besides, and because of two mistakes the original teacher
    throughout: its checkpoints are loaded under names that no network has, and it switches once.

    Args:
      student, teacher, fake_score: see `distribution_matching`.
      path: `Denoiser` of a checkpoint of `degrade`; those of frozen['path'] are stacked.
      student_law, critic_law, weighting, steps, tracking: see `distribution_matching`.
      interval: see `backwards`.

    Raises:
      ValueError: on values out of range.
    """
    target = backwards(teacher, path, interval)
    made = distribution_matching(
        student,
        target,
        fake_score,
        student_law=student_law,
        critic_law=critic_law,
        weighting=weighting,
        steps=steps,
        tracking=tracking,
    )

    def init(key, batch, frozen):
        params, aux = made.init(key, batch, frozen)
        last = jax.tree.map(lambda every: every[-1], frozen['path'])
        fake = params['critic'] | {'fake_score': last}
        return params | {'critic': fake}, aux | {'followed': jnp.zeros((), jnp.int32)}

    def loss(params, context, batch, key):
        frozen, followed = context.frozen, context.aux['followed']
        targets = {
            'teacher': frozen.get('teacher', {}),
            'path': frozen['path'],
            'updates': followed,
        }
        given = context._replace(frozen={**frozen, 'teacher': targets})
        value, (metrics, aux) = made.losses['student'](params, given, batch, key)
        back = jnp.minimum(followed // interval, len(jax.tree.leaves(frozen['path'])[0]) - 1)
        metrics |= {'target': back.astype(value.dtype)}
        return value, (metrics, aux | {'followed': followed + 1})

    return made._replace(init=init, losses=made.losses | {'student': loss})


# See `distribution.TINY`.
TINY = {
    'degrade': {
        'method': {
            'grid': {'name': 'karras', 'steps': 3, 'sigma_min': 0.02, 'sigma_max': 5.0},
            'sigma_init': 1.0,
        }
    },
    'disback': {
        'path': {'workdir': 'degraded', 'steps': (5, 10)},
        'method': {'interval': 2, 'cycle': 'alternate', 'student_every': 2, 'sigma_init': 1.0},
    },
}
