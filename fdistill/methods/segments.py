"""Trajectory-segmented consistency distillation: a consistency model of each of several segments of
the path, made in stages of fewer and fewer of them."""

import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.diffusion import noise, samplers
from fdistill.diffusion.denoiser import Denoiser, column
from fdistill.diffusion.flow_map import jump
from fdistill.methods import generator
from fdistill.methods.consistency import (
    SOLVERS,
    Match,
    check,
    check_decay,
    compare,
    slope_of,
    with_target,
)
from fdistill.methods.method import Method, begin
from fdistill.types import Continuous

ENDS = ('floor', 'random')


def borders(steps: int, segments: int) -> np.ndarray:
    """Indices of the ends of the segments among the levels 0 .. steps, rising, [segments + 1]; the
    last segment is longer where the number of steps is no multiple."""
    return np.append(np.arange(segments) * (steps // segments), steps)


def tscd(
    student: Denoiser,
    teacher: Denoiser,
    *,
    sigmas: np.ndarray = noise.karras_grid(),
    segments: int = 1,
    end: str = 'floor',
    solver: str = 'euler',
    match: Match = Match('squared_l2'),
    target_decay: Annotated[float, Continuous()] = 0.95,
    eta: float = 0.0,
    from_teacher: bool = True,
) -> Method:
    """One stage of trajectory-segmented consistency distillation (TSCD of Hyper-SD, arXiv
    2404.13686, section 3.1), in sigma.

        min over D of E lambda d(J(x_n, sigma_n -> sigma_e) - J^-(x_{n-1}, sigma_{n-1} -> sigma_e))

    sigma_0 = 0 < ... < sigma_N are the levels of the grid, cut into segments of N/k steps. n is
    uniform on 1 .. N, x_n = x + sigma_n z, x_{n-1} one step of the frozen teacher's ODE from there,
    `jump` the student's, and e lies below n in the same segment: its lower end (`floor`), or drawn
    evenly from there to n - 1 (`random`). With one segment and its lower end this is consistency
    distillation. Stages go on from one another, as 8, 4, 2, 1 segments: section `start`.

    Samples jump from end to end: one evaluation a segment, by `samplers.consistency` with `eta`.
    (The paper's adversarial term has no published weight and is left out.)

    Args:
      student, teacher: `Denoiser`; the teacher's parameters are frozen['teacher'].
      sigmas: [N + 1], grid of `noise.GRIDS`, falling to 0.
      segments: k, in 1..N.
      end: of `ENDS`. A student that is not told e can fulfil `random` for straight paths alone: the
        D that leads to the path's point at e depends on e.
      solver: key of `consistency.SOLVERS`; the paper's is euler, which is DDIM.
      match: settings.
      target_decay: of the moving average in J^-, in [0, 1).
      eta: share of the noise in sampling, in [0, 1]; 0 is the paper's for its segments.
      from_teacher: start the student as a copy of the teacher; else from its own initialisation.
        With frozen['start'] it is a copy of that.

    Raises:
      ValueError: on unknown names or values out of range.
    """
    check(match, solver=(solver, SOLVERS), end=(end, ENDS))
    check_decay(target_decay)
    steps = len(sigmas) - 1
    if not 1 <= segments <= steps:
        raise ValueError(f'segments={segments}: must be in 1..{steps}, the steps of the grid')
    rising, advance = np.asarray(sigmas)[::-1], SOLVERS[solver]
    ends = borders(steps, segments)
    solve = functools.partial(samplers.consistency, eta=eta)
    sampler = samplers.SAMPLERS['consistency']._replace(solve=solve)
    generate = generator.solver(student, sampler, rising[ends][::-1])

    def loss(params, context, batch, key):
        x, condition = batch['x'], batch['condition']
        key_level, key_end, key_noise, key_dropout = jax.random.split(key, 4)
        levels = jnp.asarray(rising, x.dtype)
        n = jax.random.randint(key_level, x.shape[:1], 1, steps + 1)
        # The segment of n - 1: an end belongs to the segment above it as a target, to the one below
        # as a start.
        floor = jnp.asarray(ends)[jnp.minimum((n - 1) // (steps // segments), segments - 1)]
        e = floor if end == 'floor' else jax.random.randint(key_end, n.shape, floor, n)
        high, low, until = levels[n], levels[n - 1], levels[e]
        x_high = x + column(high, x) * jax.random.normal(key_noise, x.shape, x.dtype)
        x_low = advance(slope_of(teacher, context, condition), x_high, high, low)

        def jumped(params, x, sigma):
            D = student.apply(params, x, sigma, condition, key=key_dropout)[0]
            return jump(D, x, sigma, until)

        value, gap, made = compare(
            match,
            functools.partial(jumped, params['student']),
            functools.partial(jumped, context.averages['target']),
            x_high,
            high,
            x_low,
            low,
        )
        metrics = {'consistency': jnp.mean(value), 'gap': jnp.mean(gap)}
        return metrics['consistency'], (metrics | generator.spread(made, batch), context.aux)

    averages = with_target(lambda step: target_decay)
    init = begin(student, from_teacher)
    return Method(init, {'student': loss}, lambda step: ('student',), generate, averages)


# See `distribution.TINY`.
TINY = {
    'tscd': {
        'method': {
            'grid': {'name': 'karras', 'steps': 6, 'sigma_min': 0.02, 'sigma_max': 5.0},
            'segments': 2,
        }
    }
}
