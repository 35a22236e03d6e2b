"""Average velocities: flow maps that are trained by what they have to fulfil as functions of both
of their times.

All regress u, of `flow_map`, on a target without gradient. They differ in the velocity v that the
paths follow, of data and noise, guided or not, or of a teacher, and in the rule that makes a target
of it: derivatives of u itself, or u of a part of the way. Of conditional velocities all targets are
linear, so that their mean is that of the path's own velocity; a power of the error as weight
(`Weight`) spoils that where posteriors are not symmetric, and is exact with a teacher.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from fdistill.diffusion import flow_map
from fdistill.diffusion.denoiser import Denoiser, bind, column
from fdistill.diffusion.flow_map import INTERVAL
from fdistill.diffusion.noise import NoiseLaw
from fdistill.methods import generator, losses
from fdistill.methods.consistency import check_decay, with_target
from fdistill.methods.generator import Jumps
from fdistill.methods.method import Method, begin, check_guidable, evenly, leave_out
from fdistill.types import Continuous

# Two levels (sigma, until) out of two draws, [B], one of `law` and one of `until_law`.
PAIRINGS = {
    # arXiv 2505.13447, section 4.3; both draws are usually of one law.
    'sorted': lambda a, b: (jnp.maximum(a, b), jnp.minimum(a, b)),
    # The authors' code for CIFAR-10 ("v1"): a lower level above sigma is sigma.
    'independent': lambda a, b: (a, jnp.minimum(a, b)),
}


class Times(NamedTuple):
    """How the two levels of an average velocity are drawn.

    pairing: key of `PAIRINGS`, of a draw of `law` and one of `until_law`.
    share_equal: P(until = sigma), in [0, 1]: 0.75 on ImageNet, 0.25 on CIFAR-10. Those samples
      learn the instantaneous velocity.
    share_zero: P(until = `flow_map.LOWEST`), which stands for 0, in [0, 1 - share_equal]: 0.25 in
      AnyFlow, 0 elsewhere. Those samples learn to lead to the end in one jump.
    """

    pairing: str = 'sorted'
    share_equal: Annotated[float, Continuous()] = 0.75
    share_zero: Annotated[float, Continuous(off=0)] = 0.0


class Weight(NamedTuple):
    """e sg(e + c)^-p of the squared error e of a whole sample, summed over its elements (arXiv
    2505.13447, equation 22).

    power: p, in [0, 1]: 1 on ImageNet, 0.75 on CIFAR-10, 0 for the squared error itself.
    c: > 0, inside the power: 0.01 on ImageNet, 0.001 on CIFAR-10.
    """

    power: Annotated[float, Continuous()] = 1.0
    c: Annotated[float, Continuous()] = 0.01


class Guided(NamedTuple):
    """Classifier-free guidance inside the target (arXiv 2505.13447, equations 19 to 21 and appendix
    B), so that a sample takes one evaluation a step:

        v <- omega v + (1 - omega - kappa) u(z, t, t | nothing) + kappa u(z, t, t | condition)

    whose fixed point is guided by omega/(1 - kappa).

    guidance: omega; 1 with kappa 0 for none.
    mixing: kappa, in [0, 1).
    guidance_interval: (low, high) in sigma, guided where low < sigma <= high only; default:
      everywhere.
    condition_dropout: share of conditions left out, in [0, 1); those samples have the plain v.
    """

    guidance: Annotated[float, Continuous(off=1)] = 1.0
    mixing: Annotated[float, Continuous(off=0)] = 0.0
    guidance_interval: tuple[float, float] | None = None
    condition_dropout: Annotated[float, Continuous(off=0)] = 0.0


class At(NamedTuple):
    """Where, and with which velocities, a target is made.

    x: [B,...]; sigma, until: [B].
    v: [B,...], the velocity that is learned.
    direction: [B,...], that of the path along which u is differentiated.
    """

    x: jax.Array
    sigma: jax.Array
    until: jax.Array
    v: jax.Array
    direction: jax.Array


class Regression(NamedTuple):
    """What a rule makes: u [B,...] and its target; du/dt or du/dr, if it has one; a scale, [B], of
    which the squared residual has the square and the loss has one; further metrics."""

    u: jax.Array
    target: jax.Array
    tangent: jax.Array | None = None
    scale: jax.Array | float = 1.0
    metrics: dict[str, jax.Array] = {}


# u(x[B,...], sigma[B], until[B]) -> [B,...].
Velocity = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def eulerian(u: Velocity, at: At) -> Regression:
    """u = v - (t - r) du/dt, d/dt = v . d/dz + d/dt along the path (the MeanFlow identity, arXiv
    2505.13447, equation 6).

    Args:
      u: with parameters, condition and dropout fixed.
      at: where.
    """
    made, tangent = jax.jvp(
        lambda x, sigma: u(x, sigma, at.until),
        (at.x, at.sigma),
        flow_map.along(at.direction, at.x, at.sigma),
    )
    return Regression(made, at.v - _gap(at) * tangent, tangent)


def lagrangian(u: Velocity, at: At, v: Callable[[jax.Array, jax.Array], jax.Array]) -> Regression:
    """u = v(z_r, r) + (t - r) du/dr, z_r = z_t - (t - r) u being where u leads (the derivative of
    z_r in r; flow map matching, arXiv 2406.07507).

    Args:
      u, at: see `eulerian`.
      v: (x[B,...], sigma[B]) -> [B,...], of any level.
    """
    made, tangent = jax.jvp(
        lambda until: u(at.x, at.sigma, until), (at.until,), ((1 + at.until) ** 2,)
    )
    arrived = _moved(at, made, at.until)
    return Regression(made, v(arrived, at.until) + _gap(at) * tangent, tangent)


def _gap(at):
    return column(flow_map.span(at.sigma, at.until), at.x)


def _moved(at, u, until):
    """Where a velocity leads from x, in a straight line."""
    return flow_map.jump(flow_map.denoised(u, at.x, at.sigma), at.x, at.sigma, until)


def _bound(student, params, condition, key=None):
    """u(x, sigma, until) with parameters, condition and dropout fixed."""

    def u(x, sigma, until):
        D = student.apply(params, x, sigma, {**condition, 'until': until}, key=key)[0]
        return flow_map.velocity(D, x, sigma)

    return u


def _pairs(law, until_law, times):
    """(key, n, dtype) -> (sigma, until)."""
    pairing, share, zero = times
    if pairing not in PAIRINGS:
        raise ValueError(f'pairing={pairing!r}: known are {", ".join(PAIRINGS)}')
    if not (share >= 0 and zero >= 0 and share + zero <= 1):
        raise ValueError(
            f'share_equal={share}, share_zero={zero}: must be >= 0 and at most 1 together'
        )
    if pairing == 'independent' and until_law is None:
        raise ValueError(
            "pairing='independent': draws the lower level from a law of its own; give until_law, "
            "as dict(name='lognormal', mean=-4.0, std=1.6)"
        )

    def draw(key, n, dtype):
        first, second, third = jax.random.split(key, 3)
        kind = jax.random.uniform(third, (n,))
        sigma, until = PAIRINGS[pairing](law.sample(first, n), (until_law or law).sample(second, n))
        # Clipped alike, so that equal levels stay equal.
        sigma, until = (
            jnp.clip(level.astype(dtype), flow_map.LOWEST, flow_map.HIGHEST)
            for level in (sigma, until)
        )
        if zero:
            until = jnp.where(kind >= 1 - zero, flow_map.LOWEST, until)
        return sigma, jnp.where(kind < share, sigma, until)

    return draw


def _method(
    student,
    law,
    weight,
    jumps,
    draw,
    velocities,
    rule,
    *,
    init,
    averages=with_target(None),
    scaled=False,
):
    """A method that regresses u.

    draw: (key, n, dtype) -> (sigma, until).
    velocities: (params, context, x, sigma, v, condition, key) -> (v, direction, condition): the
      conditional velocity turned into that of the target, and what the student is told.
    rule: (u, at, params, context, condition, key) -> `Regression`.
    scaled: whether the scale of guidance is told in training.
    """
    power, c = weight
    if not (0 <= power <= 1 and c > 0):
        raise ValueError(f'power={power}, c={c}: need 0 <= power <= 1 and c > 0')
    generate = generator.flow_map(student, *jumps)
    if 'guidance' in student.takes and not scaled:
        raise ValueError(
            'the network takes the scale of guidance, which improved_mean_flow alone trains; leave '
            "it out of numbers=('until',)"
        )

    def loss(params, context, batch, key):
        x0, condition = batch['x'], batch['condition']
        key_level, key_noise, key_condition, key_dropout = jax.random.split(key, 4)
        sigma, until = draw(key_level, x0.shape[0], x0.dtype)
        noise = jax.random.normal(key_noise, x0.shape, x0.dtype)
        x = x0 + column(sigma, x0) * noise
        v, direction, condition = velocities(
            params, context, x, sigma, until, noise - x0, condition, key_condition
        )
        at = At(x, sigma, until, *map(stop_gradient, (v, direction)))
        u = _bound(student, params['student'], condition, key_dropout)
        made = rule(u, at, params, context, condition, key_dropout)
        error = losses.squared_l2(made.u - made.target) / made.scale**2
        value = made.scale * error * stop_gradient(error + c) ** -power
        metrics = {
            'flow_map': jnp.mean(value),
            'gap': jnp.mean(error),
            'share_equal': jnp.mean(until == sigma),
        }
        if made.tangent is not None:
            size = jnp.log(losses.l2(stop_gradient(made.tangent)))
            metrics['log_tangent'] = losses.histogram(size, law.cdf(sigma))
        metrics |= made.metrics | generator.spread(flow_map.denoised(made.u, x, sigma), batch)
        return metrics['flow_map'], (metrics, context.aux)

    return Method(init, {'student': loss}, lambda step: ('student',), generate, averages)


def _constant(regression):
    """Without gradient through the target."""
    return regression._replace(target=stop_gradient(regression.target))


def _mean_flow(u, at, *_):
    return _constant(eulerian(u, at))


def _guiding(student, guided):
    """`velocities` of data and noise, see `_method`."""
    omega, kappa, interval, share = guided
    if not (0 <= kappa < 1 and 0 <= share < 1):
        raise ValueError(f'mixing={kappa}, condition_dropout={share}: must lie in [0, 1)')
    guides = omega != 1 or kappa != 0
    if guides and not share:
        raise ValueError(
            f'guidance={omega}, mixing={kappa}: need samples without a condition; set '
            'condition_dropout, e.g. 0.1'
        )
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(f'guidance_interval={interval}: need (low, high) with 0 <= low < high')
    low, high = interval or (0.0, np.inf)

    def velocities(params, context, x, sigma, until, v, condition, key):
        plain, own = v, stop_gradient(params['student'])
        if guides:
            check_guidable(condition, f'guidance={omega}, mixing={kappa}')
            nothing = student.null(own, condition)
            without, with_it = (
                _bound(student, own, told)(x, sigma, sigma) for told in (nothing, condition)
            )
            inside = column((low < sigma) & (sigma <= high), x)
            made = omega * v + (1 - omega - kappa) * without + kappa * with_it
            v = jnp.where(inside, made, v)
        if share and condition:
            condition, dropped = leave_out(key, share, student, own, condition)
            v = jnp.where(column(dropped, x), plain, v)
        return v, v, condition

    return velocities


def mean_flow(
    student: Denoiser,
    law: NoiseLaw,
    until_law: NoiseLaw | None = None,
    *,
    times: Times = Times(),
    weight: Weight = Weight(),
    guided: Guided = Guided(),
    jumps: Jumps = Jumps(),
) -> Method:
    """MeanFlow (arXiv 2505.13447): an average velocity from data alone.

        min over u of E |u(z_t, r, t) - sg(v - (t - r) du/dt)|^2,  v = e - x,  z_t = (1 - t) x + t e

    The derivative is taken along v, `eulerian`. With r = t this is flow matching.

    Args:
      student: `Denoiser` that takes the condition `until`; frozen['start'] is what it begins as, if
        there is any.
      law: of sigma; lognormal is logit-normal in t: (-0.4, 1) on ImageNet, (-2, 2) on CIFAR-10, or
        there (-0.6, 1.6) with 'independent'.
      until_law: of the lower level, by default the same; (-4, 1.6) with 'independent'.
      times, weight, guided, jumps: settings.

    Raises:
      ValueError: on unknown names, values out of range, or a network without `until`.
    """
    draw, velocities = _pairs(law, until_law, times), _guiding(student, guided)
    given = student, law, weight, jumps, draw, velocities, _mean_flow
    return _method(*given, init=begin(student))


def _of_teacher(teacher):
    """(`velocities` of a teacher, its v of any level: (context, condition) -> v(x, sigma))."""

    def field(context, condition):
        denoise = bind(teacher, context.frozen.get('teacher', {}), condition)
        return lambda x, sigma: flow_map.velocity(denoise(x, sigma), x, sigma)

    def velocities(params, context, x, sigma, until, v, condition, key):
        v = field(context, condition)(x, sigma)
        return v, v, condition

    return velocities, field


FORMS = ('eulerian', 'lagrangian')


def flow_map_distill(
    student: Denoiser,
    teacher: Denoiser,
    law: NoiseLaw,
    until_law: NoiseLaw | None = None,
    *,
    form: str = 'lagrangian',
    full_gradient: bool = False,
    times: Times = Times(share_equal=0.25),
    weight: Weight = Weight(0.5),
    from_teacher: bool = True,
    jumps: Jumps = Jumps(),
) -> Method:
    """Flow map distillation: the average velocity of a teacher's ODE, by its derivative in either
    time.

        eulerian:   u = v_T(z_t, t) - (t - r) du/dt     (AYF-EMD; MeanFlow with a teacher)
        lagrangian: u = v_T(z_r, r) + (t - r) du/dr,  z_r = z_t - (t - r) u     (AYF-LMD)

    Align Your Flow (arXiv 2506.14603) regresses on the right side without gradient; its normalised
    tangent g/(|g| + c) is nearly the weight of power 1/2. With `full_gradient` the residual itself
    is squared, derivative and teacher included: flow map matching (arXiv 2406.07507).

    Args:
      student, teacher: `Denoiser`; the student takes the condition `until`, the teacher's
        parameters are frozen['teacher'].
      law, until_law: see `mean_flow`.
      form: of `FORMS`.
      full_gradient: see above.
      times, weight, jumps: settings.
      from_teacher: start the student as a copy of the teacher; else from its own initialisation.
        With frozen['start'] it is a copy of that.

    Raises:
      ValueError: on unknown names, values out of range, or a network without `until`.
    """
    if form not in FORMS:
        raise ValueError(f'form={form!r}: known are {", ".join(FORMS)}')
    draw = _pairs(law, until_law, times)
    velocities, field = _of_teacher(teacher)

    def rule(u, at, params, context, condition, key):
        if form == 'eulerian':
            made = eulerian(u, at)
        else:
            made = lagrangian(u, at, field(context, condition))
        return made if full_gradient else _constant(made)

    given = student, law, weight, jumps, draw, velocities, rule
    return _method(*given, init=begin(student, from_teacher))


def mean_flow_distill(
    student: Denoiser,
    teacher: Denoiser,
    law: NoiseLaw,
    until_law: NoiseLaw | None = None,
    *,
    times: Times = Times(),
    weight: Weight = Weight(),
    from_teacher: bool = True,
    jumps: Jumps = Jumps(),
) -> Method:
    """MeanFlow's identity with the velocity of a frozen teacher, its guidance included, in place of
    that of data and noise (FastGen's `use_cd`): the eulerian form of `flow_map_distill` with
    MeanFlow's times and weight.

    Args:
      student, teacher, law, until_law, times, weight, from_teacher, jumps: see there.

    Raises:
      ValueError: on unknown names, values out of range, or a network without `until`.
    """
    return flow_map_distill(
        student,
        teacher,
        law,
        until_law,
        form='eulerian',
        times=times,
        weight=weight,
        from_teacher=from_teacher,
        jumps=jumps,
    )


class Scales(NamedTuple):
    """Guidance as a condition (arXiv 2512.02012, section 4.2 and code).

    highest: of the scales omega that are trained, p(omega) ~ omega^-skew on [1, highest], > 1.
    skew: beta, >= 0; 1 is log-uniform.
    condition_dropout: see `Guided`.
    """

    highest: float = 8.0
    skew: Annotated[float, Continuous(off=1)] = 1.0
    condition_dropout: Annotated[float, Continuous(off=0)] = 0.1


def scales_of(key: jax.Array, n: int, highest: float, skew: float) -> jax.Array:
    """n draws of p(omega) ~ omega^-skew on [1, highest], by its quantiles.

    Args:
      key, n: of the draws.
      highest, skew: see `Scales`.
    """
    share = jax.random.uniform(key, (n,))
    if skew == 1:
        return highest**share
    return (1 + share * (highest ** (1 - skew) - 1)) ** (1 / (1 - skew))


def improved_mean_flow(
    student: Denoiser,
    law: NoiseLaw,
    until_law: NoiseLaw | None = None,
    *,
    times: Times = Times(share_equal=0.5),
    weight: Weight = Weight(),
    scales: Scales = Scales(),
    jumps: Jumps = Jumps(),
) -> Method:
    """Improved MeanFlow (arXiv 2512.02012): a regression on the data's velocity.

        min over u of E |V - v|^2,  V = u + (t - r) sg(du/dt)

    du/dt is taken along the network's own v = u(z_t, t, t), a function of z_t alone, where MeanFlow
    takes it along e - x. Where the network takes the condition `guidance`, a scale omega is drawn
    for each sample, told to the network, and the target is

        v + (1 - 1/omega) (u(z, t, t | condition, omega) - u(z, t, t | nothing, 1))

    whose fixed point is guided by omega; where it takes `guidance_low` and `guidance_high`, times
    of the flow drawn in [0, 1/2] and [1/2, 1], it is guided between them only. Samples have any
    scale and interval. (The paper's second head for v is left out; its other variant is this one.)

    Args:
      student, law, until_law: see `mean_flow`.
      times, weight, scales, jumps: settings.

    Raises:
      ValueError: on unknown names, values out of range, or a network without `until`.
    """
    highest, skew, share = scales
    if not (highest > 1 and skew >= 0 and 0 <= share < 1):
        raise ValueError(
            f'highest={highest}, skew={skew}, condition_dropout={share}: need > 1, >= 0, in [0, 1)'
        )
    guides, bounded = 'guidance' in student.takes, set(INTERVAL) <= set(student.takes)
    if guides and not share:
        raise ValueError(f'condition_dropout={share}: guidance needs samples without a condition')

    def velocities(params, context, x, sigma, until, v, condition, key):
        own = stop_gradient(params['student'])
        if not guides:
            return v, _bound(student, own, condition)(x, sigma, sigma), condition
        check_guidable(condition, "a network with numbers=('until', 'guidance')")
        key_scale, key_low, key_high, key_drop = jax.random.split(key, 4)
        omega = scales_of(key_scale, x.shape[0], highest, skew).astype(x.dtype)
        inside, told = True, {'guidance': omega}
        everywhere = dict(zip(INTERVAL, (jnp.zeros_like(sigma), jnp.ones_like(sigma))))
        if bounded:
            bounds = (
                jax.random.uniform(key_low, sigma.shape, x.dtype, 0, 0.5),
                jax.random.uniform(key_high, sigma.shape, x.dtype, 0.5, 1),
            )
            # Of r = t guidance is not bounded: what v(z, t) is for all intervals around t.
            equal, t = until == sigma, sigma / (1 + sigma)
            told |= {
                name: jnp.where(equal, everywhere[name], bound)
                for name, bound in zip(INTERVAL, bounds)
            }
            inside = (told[INTERVAL[0]] <= t) & (t <= told[INTERVAL[1]])
        else:
            everywhere = {}
        used = jnp.where(inside, omega, 1)
        one = jnp.ones_like(omega)
        nothing = student.null(own, condition)

        def v_of(condition, scale):
            of = _bound(student, own, {**condition, 'guidance': scale, **everywhere})
            return of(x, sigma, sigma)

        with_it, without = v_of(condition, used), v_of(nothing, one)
        guided = v + column(1 - 1 / used, x) * (with_it - without)
        condition, dropped = leave_out(key_drop, share, student, own, condition)
        v = jnp.where(column(dropped, x), v, guided)
        direction = jnp.where(column(dropped, x), without, with_it)
        return v, direction, {**condition, **told}

    draw = _pairs(law, until_law, times)
    settings = student, law, weight, jumps, draw, velocities, _mean_flow
    return _method(*settings, init=begin(student), scaled=True)


class Annealing(NamedTuple):
    """alpha of alpha-Flow, from 1 to 0 by a sigmoid of the step (arXiv 2510.20771, section 4.2 and
    code).

    alpha_from, alpha_until: steps before which it is 1 and after which it is 0.
    steepness: gamma of sigmoid(-gamma (step - middle)/(alpha_until - alpha_from)), > 0.
    clamp: eta, in [0, 1/2): alpha below it is 0, above 1 - eta it is 1.
    """

    alpha_from: int = 0
    alpha_until: int = 1000
    steepness: Annotated[float, Continuous()] = 25.0
    clamp: Annotated[float, Continuous()] = 0.005


def alpha_at(annealing: Annealing, step: jax.Array | int) -> jax.Array:
    """alpha after `step` steps, see `Annealing`."""
    first, last, steepness, clamp = annealing
    step = jnp.asarray(step)
    alpha = jax.nn.sigmoid(-steepness * (step - (first + last) / 2) / (last - first))
    alpha = jnp.where(step < first, 1, jnp.where(step > last, 0, alpha))
    return jnp.where(alpha < clamp, 0, jnp.where(alpha > 1 - clamp, 1, alpha))


def alpha_flow(
    student: Denoiser,
    law: NoiseLaw,
    until_law: NoiseLaw | None = None,
    *,
    annealing: Annealing = Annealing(),
    times: Times = Times(share_equal=0.5),
    weight: Weight = Weight(c=0.001),
    guided: Guided = Guided(),
    jumps: Jumps = Jumps(),
) -> Method:
    """alpha-Flow (arXiv 2510.20771): from trajectory flow matching, alpha = 1, to MeanFlow, alpha
    -> 0.

        min over u of E alpha^-1 |u(z_t, r, t) - sg(alpha v + (1 - alpha) u(z_s, r, s))|^2
        s = t - alpha (t - r),  z_s = z_t - (t - s) v

    The target is MeanFlow's with a difference in place of the derivative, which it becomes as
    alpha -> 0; at 0 MeanFlow's is taken. The weight sees the error divided by alpha^2, so that c
    is on the scale of MeanFlow's; the authors' code, alpha e/(e + c), differs in that alone. Where
    r = t, alpha counts as 1.

    Args:
      student, law, until_law: see `mean_flow`.
      annealing, times, weight, guided, jumps: settings.

    Raises:
      ValueError: on unknown names, values out of range, or a network without `until`.
    """
    first, last, steepness, clamp = annealing
    if not (0 <= first < last and steepness > 0 and 0 <= clamp < 0.5):
        raise ValueError(
            f'alpha_from={first}, alpha_until={last}, steepness={steepness}, clamp={clamp}: need '
            '0 <= alpha_from < alpha_until, > 0, in [0, 1/2)'
        )

    def rule(u, at, params, context, condition, key):
        alpha = alpha_at(annealing, context.step).astype(at.x.dtype)
        fixed = _bound(student, stop_gradient(params['student']), condition, key)
        apart = at.until < at.sigma

        def difference(alpha):
            between = flow_map.between(at.sigma, at.until, alpha)
            later = fixed(_moved(at, at.v, between), between, at.until)
            target = alpha * at.v + (1 - alpha) * later
            return jnp.where(column(apart, at.x), target, at.v)

        target = jax.lax.cond(
            alpha > 0, difference, lambda alpha: eulerian(fixed, at).target, alpha
        )
        # What stands for du/dt in it.
        tangent = (at.v - target) / jnp.where(column(apart, at.x), _gap(at), 1)
        scale = jnp.where(apart & (alpha > 0), alpha, 1)
        made = u(at.x, at.sigma, at.until)
        return Regression(made, stop_gradient(target), tangent, scale, {'alpha': alpha})

    draw, velocities = _pairs(law, until_law, times), _guiding(student, guided)
    given = student, law, weight, jumps, draw, velocities, rule
    return _method(*given, init=begin(student))


def shortcut(
    student: Denoiser,
    law: NoiseLaw,
    *,
    finest: int = 128,
    share: float = 0.25,
    target_decay: Annotated[float | None, Continuous()] = 0.999,
    weight: Weight = Weight(0.0),
    guided: Guided = Guided(),
    jumps: Jumps = Jumps(),
) -> Method:
    """Shortcut models (arXiv 2410.12557): a step is two half steps of the model itself.

        u(z_t, r, t) = sg(u(z_t, m, t) + u(z_m, r, m))/2,  m = (t + r)/2,  z_m = z_t - (t - m) u

    for a share of each batch, whose steps are 1/2^k of the way and begin at multiples of it; the
    rest of the batch learns the instantaneous velocity, r = t. The half steps of the shortest steps
    are the instantaneous velocity's own. The way is that from levels[0] to 0. (All samples of a
    batch make both targets, at the cost of two evaluations more.)

    Args:
      student: see `mean_flow`.
      law: of sigma where r = t. (The paper's are even in t.)
      finest: half steps on the way at most, a power of two >= 2; 128 in the paper.
      share: of the batch, in (0, 1); 1/4 in the paper.
      target_decay: of the moving average in the target, in [0, 1); None for the student itself.
      weight, guided, jumps: settings. The paper's weight is 1.

    Raises:
      ValueError: on values out of range, or a network without `until`.
    """
    if finest < 2 or finest & (finest - 1):
        raise ValueError(f'finest={finest}: must be a power of two, >= 2')
    if not 0 < share < 1:
        raise ValueError(f'share={share}: must lie in (0, 1)')
    if target_decay is not None:
        check_decay(target_decay)
    kinds = finest.bit_length() - 1
    way = jumps.levels[0] / (1 + jumps.levels[0]) if jumps.levels else 1.0

    def draw(key, n, dtype):
        key_law, key_kind, key_place = jax.random.split(key, 3)
        steps = evenly(n, share)
        parts = 2 ** jax.random.randint(key_kind, (n,), 0, kinds)
        i = jax.random.randint(key_place, (n,), 0, parts)
        t, r = (way * (i + more) / parts.astype(dtype) for more in (1, 0))
        drawn = jnp.clip(law.sample(key_law, n).astype(dtype), flow_map.LOWEST, flow_map.HIGHEST)
        return jnp.where(steps, t / (1 - t), drawn), jnp.where(steps, r / (1 - r), drawn)

    def rule(u, at, params, context, condition, key):
        fixed = stop_gradient(params['student'])
        if target_decay is not None:
            fixed = context.averages['target']
        half = _bound(student, fixed, condition, key)
        middle = flow_map.between(at.sigma, at.until, 0.5)
        shortest = flow_map.span(at.sigma, at.until) < 3 * way / finest
        first = half(at.x, at.sigma, jnp.where(shortest, at.sigma, middle))
        there = _moved(at, first, middle)
        second = half(there, middle, jnp.where(shortest, middle, at.until))
        apart = column(at.until < at.sigma, at.x)
        target = jnp.where(apart, (first + second) / 2, at.v)
        return Regression(u(at.x, at.sigma, at.until), stop_gradient(target))

    given = student, law, weight, jumps, draw, _guiding(student, guided), rule
    averages = with_target(None if target_decay is None else lambda step: target_decay)
    return _method(*given, init=begin(student), averages=averages)


# See `distribution.TINY`.
_NETWORK = {'name': 'mlp', 'width': 16, 'blocks': 1, 'embedding': 8, 'numbers': ('until',)}
_TINY = {'network': _NETWORK, 'method': {'levels': (5.0,)}}
TINY = {
    'mean_flow': _TINY,
    'mean_flow_distill': _TINY,
    'improved_mean_flow': _TINY,
    'alpha_flow': {'network': _NETWORK, 'method': {'levels': (5.0,), 'alpha_until': 6}},
    'shortcut': {'network': _NETWORK, 'method': {'levels': (5.0,), 'finest': 8}},
    'flow_map_distill': _TINY,
}
