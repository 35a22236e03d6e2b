"""Consistency distillation: a denoiser that maps every point of a path of the teacher's ODE to the
start of that path."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser, column
from fdistill.methods import generator, losses
from fdistill.methods.generator import Steps
from fdistill.methods.method import DEPLOYED, Average, Method, start
from fdistill.types import Continuous


def _euler(slope, x, high, low):
    return x + column(low - high, x) * slope(x, high)


def _heun(slope, x, high, low):
    first = slope(x, high)
    second = slope(x + column(low - high, x) * first, low)
    return x + column(low - high, x) * (first + second) / 2


# One step of dx/dsigma = slope(x, sigma), each sample from its own level to the next:
# (slope, x[B,...], high[B], low[B]) -> x[B,...]. A sampler has one level for all samples.
SOLVERS = {'euler': _euler, 'heun': _heun}

# d(y), [B], of y[B,...], with c on the scale of the norm of y.
DISTANCES = {
    'squared_l2': lambda y, c: losses.squared_l2(y),
    'pseudo_huber': lambda y, c: losses.pseudo_huber(c)(y),
}

# lambda of the two levels of a step.
WEIGHTINGS = {
    'unit': lambda high, low: jnp.ones_like(high),  # arXiv 2303.01469
    'step': lambda high, low: 1 / (high - low),  # arXiv 2310.14189, section 3.1
}


def consistency(
    student: Denoiser,
    teacher: Denoiser,
    *,
    sigmas: np.ndarray = noise.karras_grid(),
    solver: str = 'heun',
    distance: str = 'pseudo_huber',
    c: Annotated[float, Continuous()] = 0.00054,
    weighting: str = 'unit',
    target_decay: Annotated[float, Continuous()] = 0.95,
    from_teacher: bool = True,
    steps: Steps = Steps(sigma_init=80.0),
) -> Method:
    """Consistency distillation (arXiv 2303.01469, algorithm 2).

        min over f of E lambda(sigma_{n+1}, sigma_n) d(f(x_{n+1}, sigma_{n+1}) - f^-(x_n, sigma_n))

    The student f is the denoiser itself. n is uniform, x_{n+1} = x + sigma_{n+1} z of the data x,
    x_n one step of the frozen teacher's ODE from there to sigma_n, and f^- the student with a
    moving average of its parameters, through which no gradient flows. The boundary condition
    f(x, sigma_min) = x is that of EDM's preconditioning, whose c_out is about sigma_min there.
    Samples are f(sigma_init z, sigma_init), or with further `levels` those of multistep consistency
    sampling (algorithm 1). Dropout is the same in f and f^- (arXiv 2310.14189, section 3.1).

    Args:
      student, teacher: `Denoiser`; the teacher's parameters are frozen['teacher'].
      sigmas: [N + 1], grid of `noise.GRIDS`, falling to 0, N >= 2; its N levels > 0 are trained on.
        The default is the paper's.
      solver: key of `SOLVERS`, the teacher's step.
      distance: key of `DISTANCES`, d.
      c: of pseudo-Huber, > 0, to be multiplied by the square root of a sample's number of elements
        (arXiv 2310.14189, section 3.3); ignored by squared_l2.
      weighting: key of `WEIGHTINGS`, lambda.
      target_decay: of the moving average f^- per step, in [0, 1); 0 is the student itself. The
        paper has 0 on CIFAR-10 and 0.95 on ImageNet-64.
      from_teacher: start the student as a copy of the teacher; else from its own initialisation.
        With frozen['start'] it is a copy of that.
      steps: sigma_init and levels, all within the trained levels; sigma_init usually their highest.

    Raises:
      ValueError: on unknown names or values out of range.
    """
    for name, value, table in (
        ('solver', solver, SOLVERS),
        ('distance', distance, DISTANCES),
        ('weighting', weighting, WEIGHTINGS),
    ):
        if value not in table:
            raise ValueError(f'{name}={value!r}: known are {", ".join(table)}')
    if not c > 0 or not 0 <= target_decay < 1:
        raise ValueError(f'c={c} must be > 0, target_decay={target_decay} in [0, 1)')
    if len(sigmas) < 3:
        raise ValueError(f'sigmas={sigmas}: need at least two levels above the final 0')
    generate = generator.student(student, steps)
    trained = sigmas[:-1]
    highest, lowest = steps.sigma_init, (steps.sigma_init, *steps.levels)[-1]
    if highest > trained[0] * (1 + 1e-6) or lowest < trained[-1] * (1 - 1e-6):
        raise ValueError(
            f'sigma_init={highest}, levels={steps.levels}: the student is trained from '
            f'{trained[-1]:g} to {trained[0]:g} only; set sigma_init to the highest of the grid'
        )
    advance, d, weigh = SOLVERS[solver], DISTANCES[distance], WEIGHTINGS[weighting]

    def init(key, batch, frozen):
        base = frozen.get('start', frozen['teacher'] if from_teacher else None)
        return {'student': start(key, student, batch, base)}, {}

    def loss(params, context, batch, key):
        x, condition = batch['x'], batch['condition']
        key_level, key_noise, key_dropout = jax.random.split(key, 3)
        levels = jnp.asarray(trained, x.dtype)
        n = jax.random.randint(key_level, x.shape[:1], 0, len(trained) - 1)
        high, low = levels[n], levels[n + 1]
        x_high = x + column(high, x) * jax.random.normal(key_noise, x.shape, x.dtype)

        def slope(x, sigma):
            frozen = context.frozen.get('teacher', {})
            return (x - teacher.apply(frozen, x, sigma, condition)[0]) / column(sigma, x)

        def f(params, x, sigma):
            # The same dropout at both levels.
            return student.apply(params, x, sigma, condition, key=key_dropout)[0]

        target = f(context.averages['target'], advance(slope, x_high, high, low), low)
        made = f(params['student'], x_high, high)
        gap = made - target
        value = jnp.mean(weigh(high, low) * d(gap, c * np.sqrt(gap[0].size)))
        return value, ({'consistency': value} | generator.spread(made, batch), context.aux)

    averages = {
        DEPLOYED: Average('student'),
        'target': Average('student', lambda step: target_decay),
    }
    return Method(init, {'student': loss}, lambda step: ('student',), generate, averages)


# See `distribution.TINY`.
TINY = {
    'consistency': {
        'method': {
            'grid': {'name': 'karras', 'steps': 6, 'sigma_min': 0.02, 'sigma_max': 5.0},
            'sigma_init': 5.0,
        }
    }
}
