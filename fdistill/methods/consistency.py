"""Consistency models: a denoiser that maps every point of a path of the ODE to the start of that
path.

All compare the student at one level with itself, as it was or as it is, at a lower level of the
same path. They differ in how the two levels are drawn, in what leads from the one to the other, a
step of a teacher or the noise of the data, and in the distance. Those of the data alone
(`consistency_training`, `ect`, `tcm`) have a posterior's noise in their target, which only a
squared distance averages out: with another one they are exact for symmetric posteriors alone.
"""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from fdistill.diffusion import noise
from fdistill.diffusion.denoiser import Denoiser, bind, column
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.generator import Steps
from fdistill.methods.method import DEPLOYED, Average, Method, begin, evenly
from fdistill.types import Continuous


def _euler(slope, x, high, low):
    return x + column(low - high, x) * slope(x, high)


def _heun(slope, x, high, low):
    first = slope(x, high)
    euler = x + column(low - high, x) * first
    inside = low > 0
    second = slope(euler, jnp.where(inside, low, high))
    heun = x + column(low - high, x) * (first + second) / 2
    return jnp.where(column(inside, x), heun, euler)


# One step of dx/dsigma = slope(x, sigma), each sample from its own level to the next:
# (slope, x[B,...], high[B], low[B]) -> x[B,...]. A sampler has one level for all samples; those of
# `samplers.SAMPLERS` that are not here are one of these where they have made one step only.
SOLVERS = {'euler': _euler, 'heun': _heun}

# d(y), [B], of y[B,...], with c on the scale of the norm of y.
DISTANCES = {
    'squared_l2': lambda y, c: losses.squared_l2(y),
    'pseudo_huber': lambda y, c: losses.pseudo_huber(c)(y),
    'l2': lambda y, c: losses.l2(y),
}

# lambda of the two levels of a step.
WEIGHTINGS = {
    'unit': lambda high, low: jnp.ones_like(high),  # arXiv 2303.01469
    'step': lambda high, low: (
        1 / (high - low)
    ),  # arXiv 2310.14189, section 3.1; ECT, arXiv 2406.14548
    'root_step': lambda high, low: (high - low) ** -0.5,
    'eps': lambda high, low: high**-2,
}


class Match(NamedTuple):
    """How f is compared with its target: settings of every method here.

    distance: key of `DISTANCES`, d.
    c: of pseudo-Huber, > 0, to be multiplied by the square root of a sample's number of elements
      (arXiv 2310.14189, section 3.3); ignored by the others.
    weighting: key of `WEIGHTINGS`, lambda.
    """

    distance: str = 'pseudo_huber'
    c: Annotated[float, Continuous()] = 0.00054
    weighting: str = 'unit'


class Curriculum(NamedTuple):
    """Karras levels that become more while a student is trained.

    growth: key of `GROWTHS`.
    intervals: (s_0, s_1) between the levels at the start and at the end, 1 <= s_0 <= s_1; by `root`
      it starts with s_0 levels, >= 2.
    growth_steps: K, steps of the training in which they become more; all of them, usually.
    sigma_min, sigma_max, rho: of the levels, see `noise.karras_grid`.
    """

    growth: str = 'root'
    intervals: tuple[int, int] = (2, 150)
    growth_steps: int = 1000
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0


def _root(k, steps, first, last):
    spread = ((last + 1) ** 2 - first**2) / steps
    return jnp.ceil(jnp.sqrt(spread * k + first**2) - 1).astype(int) + 1


def _doubling(k, steps, first, last):
    stage = max(1, int(steps / (math.log2(last // first) + 1)))
    most = (last // first).bit_length()  # More doublings change nothing, and might overflow.
    return jnp.minimum(first * 2 ** jnp.minimum(k // stage, most), last) + 1


# N(k), the number of levels after k steps: (k, K, s_0, s_1) -> N.
GROWTHS = {
    'root': _root,  # arXiv 2303.01469, appendix C
    'doubling': _doubling,  # arXiv 2310.14189, section 3.4
    'none': lambda k, steps, first, last: jnp.full_like(k, last + 1),
}


def levels_at(curriculum: Curriculum, step: jax.Array | int) -> jax.Array:
    """N(k), the number of levels in a step of the training, int32.

    Args:
      curriculum: `Curriculum`.
      step: steps that are done.
    """
    growth, (first, last), steps = curriculum[:3]
    return GROWTHS[growth](jnp.minimum(jnp.asarray(step), steps), steps, first, last)


def level(curriculum: Curriculum, i: jax.Array, count: jax.Array, dtype: Any) -> jax.Array:
    """sigma_i of `count` levels, i = 0 .. count - 1, rising from sigma_min to sigma_max.

    Args:
      curriculum: `Curriculum`.
      i: any shape.
      count: N, a scalar.
      dtype: of the result.
    """
    lowest, highest = (
        value ** (1 / curriculum.rho) for value in (curriculum.sigma_min, curriculum.sigma_max)
    )
    share = jnp.minimum(i / jnp.asarray(count - 1, dtype), 1)
    return (lowest + share * (highest - lowest)) ** curriculum.rho


def edges(curriculum: Curriculum, law: NoiseLaw, count: jax.Array, dtype: Any) -> jax.Array:
    """The law's distribution function at all levels, rising, [s_1 + 1]; from the N-th on it stays.

    Args:
      curriculum: `Curriculum`.
      law: of sigma.
      count: N, a scalar.
      dtype: of the result.
    """
    i = jnp.arange(curriculum.intervals[1] + 1)
    return law.cdf(level(curriculum, i, count, dtype))


def draw(
    key: jax.Array,
    curriculum: Curriculum,
    law: NoiseLaw | None,
    count: jax.Array,
    n: int,
    dtype: Any,
) -> jax.Array:
    """Index of the lower of two levels, 0 .. N - 2, int32 [n]: evenly, or by the law's share of
    what lies between the two.

    Args:
      key: random key.
      curriculum, law, count, dtype: see `edges`; no law for evenly.
      n: draws.
    """
    if law is None:
        return jax.random.randint(key, (n,), 0, count - 1)
    shares = edges(curriculum, law, count, dtype)
    at = jax.random.uniform(key, (n,), dtype, shares[0], shares[-1])
    return jnp.clip(jnp.searchsorted(shares, at, side='right') - 1, 0, count - 2)


class Shrinking(NamedTuple):
    """Two levels that come closer while a student is trained: r/t = 1 - n(t)/q^(s + 1), at least
    0, with n(t) = 1 + k/(1 + exp(b t)) in stage s = step // stage_steps (ECT, arXiv 2406.14548,
    section 3.2 and appendix).

    q: > 1.
    k, b: >= 0; k = 0 is a constant ratio.
    stage_steps: >= 1.
    """

    q: Annotated[float, Continuous()] = 2.0
    k: Annotated[float, Continuous()] = 8.0
    b: Annotated[float, Continuous()] = 1.0
    stage_steps: int = 1000


# The closest that r may come to t, in units of t: float32 tells them apart.
CLOSEST = 2.0**-18


def lower_level(shrinking: Shrinking, t: jax.Array, step: jax.Array | int) -> jax.Array:
    """r of t, [B] -> [B], see `Shrinking`."""
    stage = jnp.asarray(step) // shrinking.stage_steps
    n = 1 + shrinking.k * jax.nn.sigmoid(-shrinking.b * t)
    gap = n * shrinking.q ** -(stage + 1.0)
    return t * (1 - jnp.clip(gap, CLOSEST, 1)).astype(t.dtype)


def compare(
    match: Match,
    f: Callable[..., jax.Array],
    target: Callable[..., jax.Array],
    x_high: jax.Array,
    high: jax.Array,
    x_low: jax.Array,
    low: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(lambda d(f(x_high, high) - f^-(x_low, low)), d alone, f(x_high, high)): [B], [B], [B,...].

    No gradient flows through the target, which is x_low itself at level 0.

    Args:
      match: settings.
      f, target: (x[B,...], sigma[B]) -> [B,...].
      x_high, x_low: [B,...], points of one path.
      high, low: [B], their levels, high > low >= 0.
    """
    inside = low > 0
    end = jnp.where(column(inside, x_low), target(x_low, jnp.where(inside, low, high)), x_low)
    made = f(x_high, high)
    gap = made - stop_gradient(end)
    distance = DISTANCES[match.distance](gap, match.c * np.sqrt(gap[0].size))
    return WEIGHTINGS[match.weighting](high, low) * distance, distance, made


def check(match: Match, **tables: Any) -> None:
    """Raises ValueError on unknown names, those of {name: (value, table)} among them, and on values
    out of range."""
    for name, value, table in (
        *((name, value, table) for name, (value, table) in tables.items()),
        ('distance', match.distance, DISTANCES),
        ('weighting', match.weighting, WEIGHTINGS),
    ):
        if value not in table:
            raise ValueError(f'{name}={value!r}: known are {", ".join(table)}')
    if not match.c > 0:
        raise ValueError(f'c={match.c}: must be > 0')


def check_decay(decay: float) -> None:
    """Raises ValueError unless a decay is in [0, 1)."""
    if not 0 <= decay < 1:
        raise ValueError(f'target_decay={decay}: must be in [0, 1)')


def _check_steps(steps, lowest, highest):
    low = (steps.sigma_init, *steps.levels)[-1]
    if steps.sigma_init > highest * (1 + 1e-6) or low < lowest * (1 - 1e-6):
        raise ValueError(
            f'sigma_init={steps.sigma_init}, levels={steps.levels}: the student is trained from '
            f'{lowest:g} to {highest:g} only; set sigma_init to the highest of the grid'
        )


def _noised(key, x, sigma):
    """(x + sigma z, z)."""
    z = jax.random.normal(key, x.shape, x.dtype)
    return x + column(sigma, x) * z, z


def with_target(decay: Callable[[Any], Any] | None) -> dict[str, Average]:
    """The averages of a method whose target has its own, of decay(step), or is the student itself,
    None."""
    own = {} if decay is None else {'target': Average('student', decay)}
    return {DEPLOYED: Average('student')} | own


def slope_of(teacher: Denoiser, context: Any, condition: Any) -> Callable[..., jax.Array]:
    """dx/dsigma of the teacher's ODE, (x[B,...], sigma[B]) -> [B,...]."""
    denoise = bind(teacher, context.frozen.get('teacher', {}), condition)
    return lambda x, sigma: (x - denoise(x, sigma)) / column(sigma, x)


def consistency(
    student: Denoiser,
    teacher: Denoiser,
    *,
    sigmas: np.ndarray = noise.karras_grid(),
    solver: str = 'heun',
    match: Match = Match(),
    target_decay: Annotated[float, Continuous()] = 0.95,
    from_teacher: bool = True,
    steps: Steps = Steps(sigma_init=80.0),
) -> Method:
    """Consistency distillation (arXiv 2303.01469, algorithm 2).

        min over f of E lambda(sigma_{n+1}, sigma_n) d(f(x_{n+1}, sigma_{n+1}) - f^-(x_n, sigma_n))

    The student f is the denoiser itself. n is uniform, x_{n+1} = x + sigma_{n+1} z of the data x,
    x_n one step of the frozen teacher's ODE from there to sigma_n, and f^- the student with a
    moving average of its parameters, through which no gradient flows. The boundary condition
    f(x, sigma_min) = x is that of EDM's preconditioning, whose c_out is about sigma_min there, and
    exact with its setting `boundary`. Samples are f(sigma_init z, sigma_init), or with further
    `levels` those of multistep consistency sampling (algorithm 1). Dropout is the same in f and
    f^- (arXiv 2310.14189, section 3.1).

    Args:
      student, teacher: `Denoiser`; the teacher's parameters are frozen['teacher'].
      sigmas: [N + 1], grid of `noise.GRIDS`, falling to 0, N >= 2; its N levels > 0 are trained on.
        The default is the paper's.
      solver: key of `SOLVERS`, the teacher's step.
      match: settings.
      target_decay: of the moving average f^- per step, in [0, 1); 0 is the student itself. The
        paper has 0 on CIFAR-10 and 0.95 on ImageNet-64.
      from_teacher: start the student as a copy of the teacher; else from its own initialisation.
        With frozen['start'] it is a copy of that.
      steps: sigma_init and levels, all within the trained levels; sigma_init usually their highest.

    Raises:
      ValueError: on unknown names or values out of range.
    """
    check(match, solver=(solver, SOLVERS))
    check_decay(target_decay)
    if len(sigmas) < 3:
        raise ValueError(f'sigmas={sigmas}: need at least two levels above the final 0')
    generate = generator.student(student, steps)
    trained, advance = sigmas[:-1], SOLVERS[solver]
    _check_steps(steps, trained[-1], trained[0])

    def loss(params, context, batch, key):
        x, condition = batch['x'], batch['condition']
        key_level, key_noise, key_dropout = jax.random.split(key, 3)
        levels = jnp.asarray(trained, x.dtype)
        n = jax.random.randint(key_level, x.shape[:1], 0, len(trained) - 1)
        high, low = levels[n], levels[n + 1]
        x_high, _ = _noised(key_noise, x, high)
        x_low = advance(slope_of(teacher, context, condition), x_high, high, low)
        f, target = (
            bind(student, own, condition, key_dropout)
            for own in (params['student'], context.averages['target'])
        )
        value, _, made = compare(match, f, target, x_high, high, x_low, low)
        metrics = {'consistency': jnp.mean(value)} | generator.spread(made, batch)
        return metrics['consistency'], (metrics, context.aux)

    averages = with_target(lambda step: target_decay)
    init = begin(student, from_teacher)
    return Method(init, {'student': loss}, lambda step: ('student',), generate, averages)


def consistency_training(
    student: Denoiser,
    law: NoiseLaw | None = None,
    *,
    curriculum: Curriculum = Curriculum(),
    match: Match = Match('squared_l2'),
    target_decay: Annotated[float | None, Continuous()] = 0.9,
    steps: Steps = Steps(sigma_init=80.0),
) -> Method:
    """Consistency training, without a teacher: CT (arXiv 2303.01469, algorithm 3) and, with the
    defaults of `ict`, improved consistency training (arXiv 2310.14189).

        min over f of E lambda d(f(x + sigma_{i+1} z, sigma_{i+1}) - f^-(x + sigma_i z, sigma_i))

    Both points have the same noise z, so that the lower one is an Euler step of the data's own
    slope (x_{i+1} - x)/sigma_{i+1}, whose mean is that of the ODE. The N(k) levels become more
    while the student is trained (`Curriculum`): fewer at first, for less variance, more at the end,
    for less bias. f^- is the student with a moving average of decay target_decay^(s_0/N(k)).

    Args:
      student: `Denoiser`; frozen['start'] is what it begins as, if there is any.
      law: i is drawn with the probability that the law gives to [sigma_i, sigma_{i+1}], over that
        of all; default: evenly.
      curriculum, match: settings.
      target_decay: mu_0, in [0, 1); 0.9 on CIFAR-10, 0.95 on ImageNet-64. None: the target is the
        student itself, as in iCT.
      steps: sigma_init and levels, within the curriculum's.

    Raises:
      ValueError: on unknown names or values out of range.
    """
    check(match, growth=(curriculum.growth, GROWTHS))
    if target_decay is not None:
        check_decay(target_decay)
    (first, last), low, high = curriculum.intervals, curriculum.sigma_min, curriculum.sigma_max
    # By `root` s_0 is the number of levels, of which there must be two.
    least = 2 if curriculum.growth == 'root' else 1
    if not least <= first <= last or curriculum.growth_steps < 1:
        raise ValueError(
            f'intervals={curriculum.intervals}, growth_steps={curriculum.growth_steps}: need '
            f'{least} <= s_0 <= s_1 and at least one step'
        )
    noise.karras_grid(2, low, high, curriculum.rho)  # Its settings are checked here.
    generate = generator.student(student, steps)
    _check_steps(steps, low, high)

    def loss(params, context, batch, key):
        x, condition = batch['x'], batch['condition']
        key_level, key_noise, key_dropout = jax.random.split(key, 3)
        count = levels_at(curriculum, context.step)
        i = draw(key_level, curriculum, law, count, x.shape[0], x.dtype)
        low, high = (level(curriculum, i + more, count, x.dtype) for more in (0, 1))
        x_high, z = _noised(key_noise, x, high)
        fixed = params['student'] if target_decay is None else context.averages['target']
        f, target = (
            bind(student, own, condition, key_dropout) for own in (params['student'], fixed)
        )
        value, gap, made = compare(match, f, target, x_high, high, x + column(low, x) * z, low)
        metrics = {
            'consistency': jnp.mean(value),
            'gap': jnp.mean(gap),
            'levels': count.astype(x.dtype),
        }
        return metrics['consistency'], (metrics | generator.spread(made, batch), context.aux)

    def decay(step):
        return target_decay ** (first / levels_at(curriculum, step))

    averages = with_target(None if target_decay is None else decay)
    return Method(begin(student), {'student': loss}, lambda step: ('student',), generate, averages)


# iCT: levels that double, those in the middle drawn more often, the student itself as target.
ict = functools.partial(
    consistency_training,
    law=noise.lognormal(-1.1, 2.0),
    curriculum=Curriculum('doubling', (10, 1280)),
    match=Match('pseudo_huber', weighting='step'),
    target_decay=None,
)


def ect(
    student: Denoiser,
    law: NoiseLaw,
    *,
    shrinking: Shrinking = Shrinking(),
    match: Match = Match('l2', weighting='step'),
    steps: Steps = Steps(sigma_init=80.0),
) -> Method:
    """Easy consistency tuning (ECT, arXiv 2406.14548): from diffusion, r = 0, to consistency, r ->
    t.

        min over f of E lambda(t, r) d(f(x + t z, t) - sg f(x + r z, r))

    t follows the law and r is `lower_level`; where it is 0 the target is x itself, and f learns to
    denoise. The student usually starts as a denoiser (frozen['start'], section `start`), with its
    own preconditioning and no exact boundary.

    Args:
      student: `Denoiser`.
      law: of t; lognormal(-1.1, 2) in the paper.
      shrinking, match: settings. The paper's distance is the norm itself, not its square.
      steps: sigma_init and levels; (0.821,) on CIFAR-10 and (1.526,) on ImageNet-64 for two steps.

    Raises:
      ValueError: on unknown names or values out of range.
    """
    check(match)
    _check_shrinking(shrinking)
    generate = generator.student(student, steps)

    def loss(params, context, batch, key):
        x, condition = batch['x'], batch['condition']
        key_level, key_noise, key_dropout = jax.random.split(key, 3)
        high = law.sample(key_level, x.shape[0]).astype(x.dtype)
        low = lower_level(shrinking, high, context.step)
        x_high, z = _noised(key_noise, x, high)
        f = bind(student, params['student'], condition, key_dropout)
        value, gap, made = compare(match, f, f, x_high, high, x + column(low, x) * z, low)
        metrics = {
            'consistency': jnp.mean(value),
            'gap': jnp.mean(gap),
            'ratio': jnp.mean(low / high),
        }
        return metrics['consistency'], (metrics | generator.spread(made, batch), context.aux)

    averages = with_target(None)
    return Method(begin(student), {'student': loss}, lambda step: ('student',), generate, averages)


def _check_shrinking(shrinking):
    q, k, b, every = shrinking
    if not (q > 1 and k >= 0 and b >= 0 and every >= 1):
        raise ValueError(f'q={q}, k={k}, b={b}, stage_steps={every}: need > 1, >= 0, >= 0, >= 1')


def tcm(
    student: Denoiser,
    teacher: Denoiser,
    law: NoiseLaw,
    *,
    transition: float = 1.0,
    boundary_share: float = 0.25,
    boundary_weight: Annotated[float, Continuous()] = 0.1,
    shrinking: Shrinking = Shrinking(),
    match: Match = Match(weighting='step'),
    from_teacher: bool = True,
    steps: Steps = Steps(sigma_init=80.0),
) -> Method:
    """Truncated consistency models (TCM, arXiv 2410.14895), the second stage: the student learns
    the levels above t' alone and has its whole capacity for them.

    The teacher is a consistency model of the first stage, f_1. With f_mixed = f above t' and f_1
    below,

        mean over t > t' of lambda d(f(x_t, t) - sg f_mixed(x_r, r))
          + boundary_weight mean over t = t' of the same

    The second term ties f to f_1, as all r are below t' there. A share of each batch is at t'.
    Below t' nothing is trained; a law of few such levels wastes none.

    Args:
      student, teacher: `Denoiser`; the teacher's parameters are frozen['teacher'].
      law: of t; log_student_t(0, 0.2, 0.01) in FastGen.
      transition: t', > 0; 1 on CIFAR-10.
      boundary_share: of the batch, in (0, 1).
      boundary_weight: w_b, > 0.
      shrinking, match: settings.
      from_teacher: start as a copy of f_1; else from its own initialisation, or frozen['start'].
      steps: sigma_init and levels, all >= t'.

    Raises:
      ValueError: on unknown names or values out of range.
    """
    check(match)
    _check_shrinking(shrinking)
    if not (transition > 0 and 0 < boundary_share < 1 and boundary_weight > 0):
        raise ValueError(
            f'transition={transition}, boundary_share={boundary_share}, '
            f'boundary_weight={boundary_weight}: need > 0, in (0, 1), > 0'
        )
    generate = generator.student(student, steps)
    if (steps.sigma_init, *steps.levels)[-1] < transition:
        raise ValueError(
            f'sigma_init={steps.sigma_init}, levels={steps.levels}: the student is trained above '
            f'transition={transition} only'
        )

    def loss(params, context, batch, key):
        x, condition = batch['x'], batch['condition']
        key_level, key_noise, key_dropout = jax.random.split(key, 3)
        at_boundary = evenly(x.shape[0], boundary_share)
        drawn = law.sample(key_level, x.shape[0]).astype(x.dtype)
        high = jnp.where(at_boundary, jnp.asarray(transition, x.dtype), drawn)
        low = lower_level(shrinking, high, context.step)
        x_high, z = _noised(key_noise, x, high)
        f = bind(student, params['student'], condition, key_dropout)
        first = bind(teacher, context.frozen.get('teacher', {}), condition, key_dropout)

        def mixed(x, sigma):
            return jnp.where(column(sigma >= transition, x), f(x, sigma), first(x, sigma))

        value, gap, made = compare(match, f, mixed, x_high, high, x + column(low, x) * z, low)
        inside = (high >= transition) & ~at_boundary

        def mean(of, where):
            return jnp.sum(jnp.where(where, of, 0)) / jnp.maximum(jnp.sum(where), 1)

        # Below t' the value is a constant that counts as a sample: the weight of the boundary does
        # not depend on how many levels a batch has there.
        above = jnp.sum(jnp.where(inside, value, 0)) / jnp.sum(~at_boundary)
        boundary = mean(value, at_boundary)
        metrics = {
            'consistency': above,
            'boundary': boundary,
            'gap': mean(gap, inside),
            'ratio': jnp.mean(low / high),
            'above': jnp.mean(high >= transition),
        }
        total = above + boundary_weight * boundary
        return total, (metrics | generator.spread(made, batch), context.aux)

    averages = with_target(None)
    init = begin(student, from_teacher)
    return Method(init, {'student': loss}, lambda step: ('student',), generate, averages)


# See `distribution.TINY`.
_GRID = {'name': 'karras', 'steps': 6, 'sigma_min': 0.02, 'sigma_max': 5.0}
_CURRICULUM = {
    'intervals': (2, 8),
    'growth_steps': 8,
    'sigma_min': 0.02,
    'sigma_max': 5.0,
    'sigma_init': 5.0,
}
TINY = {
    'consistency': {'method': {'grid': _GRID, 'sigma_init': 5.0}},
    'consistency_training': {'method': _CURRICULUM},
    'ict': {'method': _CURRICULUM},
    'ect': {'method': {'stage_steps': 3, 'sigma_init': 5.0}},
    'tcm': {'method': {'stage_steps': 3, 'transition': 0.5, 'sigma_init': 5.0}},
}
