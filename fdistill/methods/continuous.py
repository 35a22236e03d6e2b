"""Continuous-time consistency models (sCM, arXiv 2410.11081): the two levels of a consistency model
in the limit where they are one.

What consistency asks is that the student's f(x, sigma) = D does not change along a path of the ODE.
The paper's tangent g is cos(t) df/dt in TrigFlow (`diffusion.trigflow`), with a warm-up r of that
half which the student feeds back to itself. Its time derivative has the factor cos(t) sin(t), so
that no number within the network overflows; and d/d ln(sigma) is cos(t) sin(t) d/dt. Hence, in the
one sigma,

    g = ((1 - r) cos(t)^2 (D - D_T) + r dD/d ln(sigma)) / sin(t)

where dD/d ln(sigma) is the derivative of D(x, sigma) in the direction (x - D_T, sigma), and D_T the
teacher (sCD) or the data x itself (sCT), whose mean over the data at a given x_sigma is the exact
teacher. This is equation for equation the paper's

    g = -cos(t)^2 (sigma_data F - dx_t/dt) - r (cos(t) sin(t) x_t + J),
    J = cos(t) sin(t) sigma_data dF/dt

but for rounding: at high levels the cosine of a rounded t has lost digits, and sigma none.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from fdistill.diffusion import noise, trigflow
from fdistill.diffusion.denoiser import Denoiser, bind, column
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.distribution import distribution_matching, joined
from fdistill.methods.generator import Steps
from fdistill.methods.method import Method, Tracking, begin
from fdistill.types import Continuous

# The adaptive weight: bins of noise levels, even in the law's distribution function, and the decay
# of their running means.
BINS, DECAY = 20, 0.99


class Tangent(NamedTuple):
    """The tangent g and its weight: settings of every method here.

    warmup_steps: H >= 0; r = min(1, step/H), and 1 where H is 0.
    normalise: g/(|g| + c) in place of g. It holds the variance of a network's derivatives off, but
      moves the optimum of `scm` where the posterior of the data is not symmetric.
    c: > 0, on the scale of the norm of g.
    adaptive: divide the loss by its running mean at the level. That is the paper's adaptive weight
      exp(w(t))/n, a network of t trained by exp(w)/n |.|^2 - w, at its optimum
      w = -ln E |.|^2/n: here known at once, and needing no second optimizer. The factor
      1/(sigma_data tan(t)) that the paper multiplies it by stands in g already, with
      df/dF = -sin(t) sigma_data: g is cos(t) df/dt for that reason.
    """

    warmup_steps: int = 10_000
    normalise: bool = True
    c: Annotated[float, Continuous()] = 0.1
    adaptive: bool = True


def derivative(
    f: Callable[..., jax.Array],
    x: jax.Array,
    sigma: jax.Array,
    end: jax.Array,
    sigma_data: float,
    r: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """(D, g) of f at x, see above: [B,...] both. Gradient flows through D alone.

    Args:
      f: (x[B,...], sigma[B]) -> D[B,...], the student.
      x: [B,...], at level sigma.
      sigma: [B], > 0.
      end: D_T or data, [B,...].
      sigma_data: > 0.
      r: in [0, 1].
    """
    cos, sin = (column(of, x) for of in trigflow.cos_sin(sigma, sigma_data))
    made, change = jax.jvp(f, (x, sigma), (x - end, sigma))
    own = cos**2 * (made - end)
    return made, stop_gradient((own + r * (change - own)) / sin)


def difference(
    f: Callable[..., jax.Array],
    x: jax.Array,
    sigma: jax.Array,
    end: jax.Array,
    low: jax.Array,
    sigma_data: float,
    r: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """(D, g) with a difference in place of the derivative: dsCD of arXiv 2410.11081.

        g = cos(t) ((1 - r) cos(t')/sin(t) (D - D_T) + r (D - f(x_t', t'))/sin(t - t'))

    x_t' is the teacher's Euler step, in sigma, from x to the level `low`. As low tends to sigma,
    this is `derivative`; no derivative of a network is taken.

    Args:
      f, x, sigma, end, sigma_data, r: see `derivative`.
      low: [B], in [0, sigma); f(x, 0) is x.
    """
    (cos, sin), (cos_low, _) = (trigflow.cos_sin(of, sigma_data) for of in (sigma, low))
    below = x + column((low - sigma) / sigma, x) * (x - end)
    made, inside = f(x, sigma), low > 0
    target = jnp.where(column(inside, x), f(below, jnp.where(inside, low, sigma)), below)
    own = column(cos * cos_low / sin, x) * (made - end)
    whole = column(sigma_data / (cos_low * (sigma - low)), x) * (made - target)
    return made, stop_gradient(own + r * (whole - own))


def neighbours(sigmas: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two levels of a grid that a level lies between, (higher, lower), [B] each; the highest
    two for one above all.

    Args:
      sigmas: [N + 1], falling to 0.
      sigma: [B], > 0.
    """
    rising = sigmas[::-1]
    n = jnp.clip(jnp.searchsorted(rising, sigma), 1, len(rising) - 1)
    return rising[n], rising[n - 1]


def _check(tangent, sigma_data):
    if tangent.warmup_steps < 0 or not tangent.c > 0 or not sigma_data > 0:
        raise ValueError(
            f'warmup_steps={tangent.warmup_steps}, c={tangent.c}, sigma_data={sigma_data}: '
            'need >= 0, > 0, > 0'
        )


def _make(student, law, end, *, sigma_data, tangent, steps, from_teacher=False, sigmas=None):
    """A method whose paths have the slope (x - end)/sigma.

    end(x_t, sigma, batch, context) -> D_T; with a grid the tangent is a difference between its
    levels.
    """
    _check(tangent, sigma_data)
    generate, own = generator.student(student, steps), begin(student, from_teacher)

    def init(key, batch, frozen):
        params, aux = own(key, batch, frozen)
        return params, {'square': jnp.ones(BINS, batch['x'].dtype)} if tangent.adaptive else aux

    def loss(params, context, batch, key):
        x, condition = batch['x'], batch['condition']
        key_level, key_noise, key_dropout = jax.random.split(key, 3)
        sigma = law.sample(key_level, x.shape[0]).astype(x.dtype)
        r = jnp.ones((), x.dtype)
        if tangent.warmup_steps:
            r = jnp.minimum(r, context.step / tangent.warmup_steps).astype(x.dtype)
        if sigmas is not None:
            sigma, low = neighbours(jnp.asarray(sigmas, x.dtype), sigma)
        x_t = x + column(sigma, x) * jax.random.normal(key_noise, x.shape, x.dtype)

        f = bind(student, params['student'], condition, key_dropout)
        target = end(x_t, sigma, batch, context)
        if sigmas is None:
            made, g = derivative(f, x_t, sigma, target, sigma_data, r)
        else:
            made, g = difference(f, x_t, sigma, target, low, sigma_data, r)
        norm, position = losses.l2(g), law.cdf(sigma)
        if tangent.normalise:
            g = g / column(norm + tangent.c, g)
        F = trigflow.output(made, x_t, sigma, sigma_data)
        square, aux = losses.squared_l2(F - stop_gradient(F) - g), context.aux
        if tangent.adaptive:
            mean, bins = losses.mean_in_bins(square, position, aux['square'], DECAY)
            value, aux = square / (mean + losses.EPSILON), aux | {'square': bins}
        else:
            value = square / x[0].size
        metrics = {
            'consistency': jnp.mean(value),
            'gap': jnp.mean(norm),
            'tangent_warmup': r,
            'log_tangent': losses.histogram(jnp.log(norm), position),
        }
        return metrics['consistency'], (metrics | generator.spread(made, batch), aux)

    return Method(init, {'student': loss}, lambda step: ('student',), generate)


def scm(
    student: Denoiser,
    law: NoiseLaw,
    *,
    sigma_data: Annotated[float, Continuous()] = 0.5,
    tangent: Tangent = Tangent(),
    steps: Steps = Steps(sigma_init=80.0),
) -> Method:
    """Continuous-time consistency training (sCT of sCM, arXiv 2410.11081, algorithm 1), of the data
    alone.

        min over F of E |F - sg(F) - g/(|g| + c)|^2 / (its mean at the level)

    g is `derivative` along the path x + sigma z of a pair. Given x_sigma its mean is that of the
    probability-flow ODE, in which it is linear; normalised it is so only for symmetric posteriors.
    The student usually starts as a denoiser (section `start`). A network whose c_noise is the
    logarithm of sigma, as EDM's, has a derivative by ln(sigma) that does not vanish at the ends;
    the paper's networks take t instead.

    Args:
      student: `Denoiser`.
      law: of sigma; the paper's sigma_data tan(t) = exp(tau), tau ~ N(mean, std^2), is
        lognormal(mean, std) itself: (-1, 1.4) on CIFAR-10, (-1, 1.6) on ImageNet-64, 1.8 in place
        of 1.4 for EDM's networks.
      sigma_data: standard deviation of the data.
      tangent: settings.
      steps: sigma_init and levels; for two steps (sigma_data tan(1.1),), which is 1.965 sigma_data.

    Raises:
      ValueError: on values out of range.
    """
    return _make(
        student,
        law,
        lambda x_t, sigma, batch, context: batch['x'],
        sigma_data=sigma_data,
        tangent=tangent,
        steps=steps,
    )


def _of_teacher(teacher):
    """D_T of the frozen teacher, as `end` of `_make`."""

    def end(x_t, sigma, batch, context):
        frozen = context.frozen.get('teacher', {})
        return bind(teacher, frozen, batch['condition'])(x_t, sigma)

    return end


def scd(
    student: Denoiser,
    teacher: Denoiser,
    law: NoiseLaw,
    *,
    sigma_data: Annotated[float, Continuous()] = 0.5,
    tangent: Tangent = Tangent(),
    from_teacher: bool = True,
    steps: Steps = Steps(sigma_init=80.0),
) -> Method:
    """Continuous-time consistency distillation (sCD of sCM, arXiv 2410.11081, algorithm 1): as
    `scm`, along the paths of the teacher's ODE, whose guidance is part of the teacher.

    Args:
      student, teacher: `Denoiser`; the teacher's parameters are frozen['teacher'].
      law, sigma_data, tangent, steps: see `scm`.
      from_teacher: start the student as a copy of the teacher; else from its own initialisation.
        With frozen['start'] it is a copy of that.

    Raises:
      ValueError: on values out of range.
    """
    return _make(
        student,
        law,
        _of_teacher(teacher),
        sigma_data=sigma_data,
        tangent=tangent,
        steps=steps,
        from_teacher=from_teacher,
    )


def dscd(
    student: Denoiser,
    teacher: Denoiser,
    law: NoiseLaw,
    *,
    sigmas: np.ndarray = noise.karras_grid(1024),
    sigma_data: Annotated[float, Continuous()] = 0.5,
    tangent: Tangent = Tangent(),
    from_teacher: bool = True,
    steps: Steps = Steps(sigma_init=80.0),
) -> Method:
    """`scd` without a derivative of the network (dsCD of arXiv 2410.11081): `difference`
    between neighbouring levels of a grid.

    The more levels, the closer to `scd`, until rounding outweighs: up to about 1024 in float32.

    Args:
      student, teacher: `Denoiser`; the teacher's parameters are frozen['teacher'].
      law: a level is drawn, and is lifted to the next of the grid.
      sigmas: [N + 1], grid of `noise.GRIDS`, falling to 0.
      sigma_data, tangent, from_teacher, steps: see `scd`.

    Raises:
      ValueError: on values out of range.
    """
    return _make(
        student,
        law,
        _of_teacher(teacher),
        sigma_data=sigma_data,
        tangent=tangent,
        steps=steps,
        from_teacher=from_teacher,
        sigmas=np.asarray(sigmas),
    )


def rcm(
    student: Denoiser,
    teacher: Denoiser,
    fake_score: Denoiser,
    law: NoiseLaw,
    *,
    student_law: NoiseLaw,
    critic_law: NoiseLaw,
    score_weight: Annotated[float, Continuous()] = 0.02,
    tangent: Tangent = Tangent(warmup_steps=5000, adaptive=False),
    steps: Steps = Steps(sigma_init=80.0, last=0.0),
    tracking: Tracking = Tracking(cycle='fastgen', student_every=5),
) -> Method:
    """Score-regularised continuous-time consistency (rCM, arXiv 2510.08431).

        L = L_scd + score_weight L_dmd

    `scd` covers the teacher's modes, and DMD's score gap (`losses.score_gap`, reverse KL) makes its
    samples sharp. The second is `distribution.distribution_matching` on the student's own samples,
    with its fake score. Where the paper draws the levels of these samples' steps anew for each
    batch, they are `levels` here; and where it trains the student alone until the tangent is warm,
    the cycle is the same from the start.

    Args:
      student, teacher, fake_score: `Denoiser`; the teacher's parameters are frozen['teacher'].
      law: of the tangent's levels; lognormal(-0.8, 1.6) in the paper, for sigma_data = 1.
      student_law, critic_law: of the score gap's and of the fake score's; uniform in the flow time,
        shifted by 5, in the paper's code.
      score_weight: >= 0. 0.02 is the paper's lambda = 0.01, for it has twice `score_gap`'s loss.
      tangent: settings. The paper has no adaptive weight: normalised tangents need none. Its
        warm-up is 1000 updates of the student, which are 5000 steps of this cycle.
      steps: sigma_init and levels, as of few-step students; the paper's t = (1.3, 1, 0.6) are
        sigma_data tan(t).
      tracking: settings, also sigma_data and whether the student begins as the teacher.

    Raises:
      ValueError: on values out of range.
    """
    own = scd(
        student,
        teacher,
        law,
        sigma_data=tracking.sigma_data,
        tangent=tangent,
        from_teacher=tracking.from_teacher,
        steps=steps,
    )
    matched = distribution_matching(
        student,
        teacher,
        fake_score,
        student_law=student_law,
        critic_law=critic_law,
        steps=steps,
        tracking=tracking,
    )

    return joined(own, matched, score_weight)


# See `distribution.TINY`.
_GRID = {'name': 'karras', 'steps': 6, 'sigma_min': 0.02, 'sigma_max': 5.0}
TINY = {
    'scm': {'method': {'warmup_steps': 4}},
    'scd': {'method': {'warmup_steps': 4}},
    'dscd': {'method': {'warmup_steps': 4, 'grid': _GRID}},
    'rcm': {'method': {'warmup_steps': 4, 'cycle': 'alternate', 'student_every': 2}},
}
