"""Progressive distillation: a student whose one step is two of its teacher's, stage by stage."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.diffusion import noise, samplers
from fdistill.diffusion.denoiser import Denoiser, bind, column
from fdistill.diffusion.flow_map import jump
from fdistill.methods import generator, losses
from fdistill.methods.method import Method, begin
from fdistill.types import Continuous


def two_steps(first: jax.Array, second: jax.Array, levels: tuple[jax.Array, ...]) -> jax.Array:
    """The D whose one Euler step from the first level to the third is one of D_1 to the second and
    one of D_2 from there, [B,...] (arXiv 2202.00512, appendix G, in sigma):

        D = D_2 + (c (a - b))/(b (a - c)) (D_1 - D_2),    levels a > b > c >= 0

    which is (x_c - (c/a) x_a)/(1 - c/a) without the difference of two points.

    Args:
      first, second: D_1 at a and D_2 at b, [B,...].
      levels: (a, b, c), each [B].
    """
    a, b, c = levels
    return second + column(c * (a - b) / (b * (a - c)), first) * (first - second)


def progressive(
    student: Denoiser,
    teacher: Denoiser,
    *,
    sigmas: np.ndarray,
    stage: int = 1,
    weighting: str = 'truncated_snr',
    sigma_data: Annotated[float, Continuous()] = 0.5,
    from_teacher: bool = True,
) -> Method:
    """One stage of progressive distillation (arXiv 2202.00512, algorithm 2):

        min over D of E w(sigma) mean|D(x + sigma z, sigma) - D~|^2

    sigma is one of the student's N levels, x of the data, and D~ that of `two_steps` of the frozen
    teacher, which takes 2N. Stages follow one another, each with the student of the one before as
    its teacher (section `teacher`), from M/2 steps to M/4 and so on to 1. Guidance is distilled in
    the first of them, by that of its teacher.

    Args:
      student, teacher: `Denoiser`; the teacher's parameters are frozen['teacher'].
      sigmas: [M + 1], grid of `noise.GRIDS`, falling to 0: the levels of the first teacher, M a
        multiple of 2^stage; the paper's is dict(name='timesteps', schedule='cosine').
      stage: s >= 1; the teacher steps on every 2^(s-1)-th level, the student on every 2^s-th.
      weighting: key of `noise.WEIGHTINGS`: 'truncated_snr', max(SNR, 1), or with sigma_data = 1
        'edm', SNR + 1.
      sigma_data: standard deviation of the data, for the weighting.
      from_teacher: start the student as a copy of the teacher; else from its own initialisation.
        With frozen['start'] it is a copy of that.

    Raises:
      ValueError: on an unknown weighting, or a grid that cannot be halved so often.
    """
    if weighting not in noise.WEIGHTINGS:
        raise ValueError(f'weighting={weighting!r}: known are {", ".join(noise.WEIGHTINGS)}')
    steps = len(sigmas) - 1
    if stage < 1 or steps % 2**stage:
        raise ValueError(
            f'stage={stage}: must be >= 1, and the {steps} steps of the grid a multiple of '
            f'2^stage = {2 ** max(stage, 0)}'
        )
    theirs = np.asarray(sigmas)[:: 2 ** (stage - 1)]
    generate = generator.solver(student, samplers.SAMPLERS['euler'], theirs[::2])

    def loss(params, context, batch, key):
        x, condition = batch['x'], batch['condition']
        key_level, key_noise, key_dropout = jax.random.split(key, 3)
        n = 2 * jax.random.randint(key_level, x.shape[:1], 0, len(theirs) // 2)
        levels = jnp.asarray(theirs, x.dtype)
        high, middle, low = (levels[n + k] for k in range(3))
        x_high = x + column(high, x) * jax.random.normal(key_noise, x.shape, x.dtype)
        denoise = bind(teacher, context.frozen.get('teacher', {}), condition)
        first = denoise(x_high, high)
        second = denoise(jump(first, x_high, high, middle), middle)
        made = student.apply(params['student'], x_high, high, condition, key=key_dropout)[0]
        weight = noise.WEIGHTINGS[weighting](high, sigma_data)
        target = two_steps(first, second, (high, middle, low))
        value = jnp.mean(losses.denoising(made, target, weight))
        return value, ({'two_steps': value} | generator.spread(made, batch), context.aux)

    init = begin(student, from_teacher)
    return Method(init, {'student': loss}, lambda step: ('student',), generate)


# See `distribution.TINY`.
TINY = {
    'progressive': {
        'method': {
            'grid': {'name': 'karras', 'steps': 4, 'sigma_min': 0.02, 'sigma_max': 5.0},
            'stage': 1,
        }
    }
}
