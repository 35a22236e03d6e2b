"""Methods that learn from pairs of noise and samples (`pairs`): reflow, which makes straight
flows of them, and one-step students that learn their map, KD and SlimFlow.

A pair is (z, x0), x0 being where a teacher's ODE ends from sigma_max z. The straight way from one
to the other is x0 + sigma z, a point of rectified flow at t = sigma/(1 + sigma), and its velocity
z - x0. With v of D (`flow_map.velocity`) the error of the velocity is that of D in other units:

    v - (z - x0) = (x0 - D) (1 + sigma)/sigma
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from fdistill.diffusion import noise, samplers
from fdistill.diffusion.denoiser import Denoiser, column
from fdistill.diffusion.flow_map import jump
from fdistill.methods import generator, losses
from fdistill.methods.consistency import DISTANCES
from fdistill.methods.generator import Steps
from fdistill.methods.method import Method, begin
from fdistill.methods.pairing import Pairing
from fdistill.methods.pretrain import regression, sampled
from fdistill.types import Continuous


class Distance(NamedTuple):
    """How a sample is compared with that of its pair: settings of every method here.

        pixel_weight d(x - y)/n + perceptual_weight sum_l |phi_l(x) - phi_l(y)|^2

    distance: key of `consistency.DISTANCES`, d; squared_l2 over the n elements of a sample is the
      mean square, of which KD has one half, and rectified flow's codes all.
    c: of pseudo-Huber, > 0, to be multiplied by n (2-RF++, arXiv 2405.20320); ignored by others.
    pixel_weight, perceptual_weight: >= 0, not both 0. InstaFlow and SlimFlow distil by the one, the
      other or their sum.
    encoder: `Encoder`, of the section `features`, whose features phi_l are; its weights are
      frozen['encoder'].
    """

    distance: str = 'squared_l2'
    c: Annotated[float, Continuous()] = 0.00054
    pixel_weight: Annotated[float, Continuous(off=0)] = 1.0
    perceptual_weight: Annotated[float, Continuous(off=0)] = 0.0
    encoder: Any = None


def apart(by: Distance) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """A function (made[B,...], target[B,...], context, scale[B] = 1, weights = (1, 1)) -> ([B],
    metrics): `Distance` of the two, of scale (made - target) in d, either term times its weight
    [B]. No gradient flows through the target.

    Raises:
      ValueError: on an unknown distance, values out of range, or an encoder that is missing or of
        no use.
    """
    if by.distance not in DISTANCES:
        raise ValueError(f'distance={by.distance!r}: known are {", ".join(DISTANCES)}')
    if not by.c > 0:
        raise ValueError(f'c={by.c}: must be > 0')
    weights = by.pixel_weight, by.perceptual_weight
    if not (all(weight >= 0 for weight in weights) and any(weights)):
        raise ValueError(
            f'pixel_weight={by.pixel_weight}, perceptual_weight={by.perceptual_weight}: need >= 0, '
            'and one of them > 0'
        )
    if bool(by.perceptual_weight) != (by.encoder is not None):
        needs = 'needs' if by.perceptual_weight else 'has no use for'
        raise ValueError(
            f'perceptual_weight={by.perceptual_weight}: this {needs} the section features'
        )

    def of(made, target, context, scale=None, weights=(1, 1)):
        target, n = stop_gradient(target), made[0].size
        total, metrics = 0.0, {}
        if by.pixel_weight:
            gap = made - target if scale is None else column(scale, made) * (made - target)
            pixel = DISTANCES[by.distance](gap, by.c * n) / n
            total, metrics = by.pixel_weight * weights[0] * pixel, {'pixel': jnp.mean(pixel)}
        if by.perceptual_weight:
            frozen = context.frozen.get('encoder')
            seen, real = (by.encoder.apply(frozen, x) for x in (made, target))
            value = losses.perceptual(seen, real)
            total += by.perceptual_weight * weights[1] * value
            metrics |= {'perceptual': jnp.mean(value)}
        return total, metrics

    return of


class Fit(NamedTuple):
    """What an error of D weighs at a level: settings of `reflow`.

    weighting: key of `noise.WEIGHTINGS`, of the squared error in d: 'flow' compares velocities.
    sigma_data: standard deviation of the data, for the weighting.
    fade: multiply d by 1 - t (2-RF++).
    perceptual_by_time: divide the perceptual distance by t (2-RF++ on CIFAR-10).
    """

    weighting: str = 'flow'
    sigma_data: Annotated[float, Continuous()] = 0.5
    fade: bool = False
    perceptual_by_time: bool = False


# beta of k/K, the share of the annealing that is done (SlimFlow's code).
ANNEALINGS = {
    'none': None,
    'linear': lambda share: 1 - jnp.minimum(share, 1),
    'exp': lambda share: jnp.exp(-share),
    'cos': lambda share: (1 + jnp.cos(jnp.pi * jnp.minimum(share, 1))) / 2,
}


class Annealing(NamedTuple):
    """From independent pairs to those of the teacher, in the first steps: settings of `reflow`.

        z' = sqrt(1 - beta^2) z + beta xi,    xi ~ N(0, 1), beta from 1 to 0

    annealing: key of `ANNEALINGS`.
    annealing_steps: K >= 1, steps in which beta comes to 0, or for 'exp' to 1/e.
    """

    annealing: str = 'none'
    annealing_steps: int = 1000


def annealed(z: jax.Array, fresh: jax.Array, beta: jax.Array) -> jax.Array:
    """sqrt(1 - beta^2) z + beta xi, unit noise as both are.

    Args:
      z, fresh: independent unit noise, [B,...].
      beta: in [0, 1].
    """
    return jnp.sqrt((1 - beta) * (1 + beta)) * z + beta * fresh


def reflow(
    student: Denoiser,
    pairs: Pairing,
    *,
    law: noise.NoiseLaw,
    sigmas: np.ndarray,
    fit: Fit = Fit(),
    distance: Distance = Distance(),
    annealing: Annealing = Annealing(),
    label_dropout: Annotated[float, Continuous(off=0)] = 0.0,
    sampler: samplers.Sampler = samplers.SAMPLERS['euler'],
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Method:
    """Rectified flow on pairs (arXiv 2209.03003, algorithm 1; InstaFlow, arXiv 2309.06380; 2-RF++,
    arXiv 2405.20320):

        min over D of E d(v(x0 + sigma z, sigma) - (z - x0)),    v = (x - D)/sigma - D

    Straight ways that meet are bent by the mean at which they meet; pairs of an ODE do not meet at
    either end and hardly between, so that the new flow is straighter (`flow_map.straightness`), and
    few Euler steps are enough. Where z is drawn by itself this is `pretrain`, the first flow.

    With a law of `levels` it is the k-step distillation of these. With `annealing` it is SlimFlow's
    (arXiv 2407.12718, section 3.1), by which a student that starts from nothing begins with the
    easier task.

    Args:
      student: `Denoiser`; frozen['start'] is what it begins as, if there is any: the flow before.
      pairs: `Pairing`.
      law: `NoiseLaw` of sigma: uniform_time, or u_shaped_time in 2-RF++.
      fit, distance, annealing: settings.
      label_dropout: see `pretrain`.
      sigmas, sampler, guidance, guidance_interval: of its samples, see `pretrain`. The levels start
        where t is nearly 1, as dict(name='even_time', steps=4).

    Raises:
      ValueError: on unknown names or values out of range.
    """
    if fit.weighting not in noise.WEIGHTINGS:
        raise ValueError(f'weighting={fit.weighting!r}: known are {", ".join(noise.WEIGHTINGS)}')
    if annealing.annealing not in ANNEALINGS:
        raise ValueError(f'annealing={annealing.annealing!r}: known are {", ".join(ANNEALINGS)}')
    if annealing.annealing_steps < 1:
        raise ValueError(f'annealing_steps={annealing.annealing_steps}: must be >= 1')
    compare, beta_at = apart(distance), ANNEALINGS[annealing.annealing]

    def couple(key, context, batch):
        # Other keys than those of `regression`.
        key_pair, key_fresh = jax.random.split(jax.random.fold_in(key, 4))
        z, x0 = pairs.draw(key_pair, context.frozen, batch)
        if beta_at:
            beta = jnp.asarray(beta_at(context.step / annealing.annealing_steps), z.dtype)
            z = annealed(z, generator.unit_noise(key_fresh, batch), beta)
        return x0, z, batch['condition']

    def objective(denoised, x0, sigma, context, batch):
        scale = jnp.sqrt(noise.WEIGHTINGS[fit.weighting](sigma, fit.sigma_data))
        pixel = 1 / (1 + sigma) if fit.fade else 1
        perceptual = 1 + 1 / sigma if fit.perceptual_by_time else 1
        values, metrics = compare(denoised, x0, context, scale, (pixel, perceptual))
        return values, metrics | generator.spread(denoised, batch)

    generate = sampled(
        student,
        sampler,
        sigmas,
        label_dropout=label_dropout,
        guidance=guidance,
        guidance_interval=guidance_interval,
    )
    loss = regression(student, law, couple, objective, label_dropout)
    return Method(begin(student), {'student': loss}, lambda step: ('student',), generate)


def kd(
    student: Denoiser,
    pairs: Pairing,
    *,
    sigma_init: Annotated[float, Continuous()] = 80.0,
    distance: Distance = Distance(),
) -> Method:
    """Knowledge distillation of a teacher's ODE in one step (arXiv 2101.02388; the distillation of
    rectified flow, arXiv 2209.03003, and InstaFlow, arXiv 2309.06380):

        min over D of E d(D(sigma_init z, sigma_init), x0)

    The students of several steps are those of `reflow`.

    Args:
      student: `Denoiser`; frozen['start'] is what it begins as, if there is any.
      pairs: `Pairing`.
      sigma_init: level of the noise that it starts from, > 0. In the limit D is X0 + v(X0, 0) of
        rectified flow.
      distance: settings; pixel_weight = 1/2 with squared_l2 is FastGen's.

    Raises:
      ValueError: on unknown names or values out of range.
    """
    generate, compare = generator.student(student, Steps(sigma_init)), apart(distance)

    def loss(params, context, batch, key):
        key_pair, key_dropout = jax.random.split(key)
        z, x0 = pairs.draw(key_pair, context.frozen, batch)
        made = _once(student, params['student'], sigma_init, z, batch, key_dropout)
        values, metrics = compare(made, x0, context)
        return jnp.mean(values), (metrics | generator.spread(made, batch), context.aux)

    return Method(begin(student), {'student': loss}, lambda step: ('student',), generate)


def _once(model, params, sigma_init, z, batch, key=None):
    """D(sigma_init z, sigma_init)."""
    sigma = jnp.full(z.shape[:1], sigma_init, z.dtype)
    return model.apply(params, sigma_init * z, sigma, batch['condition'], key=key)[0]


FIRST_HALVES = ('student', 'teacher')


def flow_guided(
    student: Denoiser,
    teacher: Denoiser,
    pairs: Pairing,
    *,
    law: noise.NoiseLaw = noise.uniform_time(0.2, 0.8),
    first_half: str = 'student',
    guided_weight: Annotated[float, Continuous(off=0)] = 1.0,
    sigma_init: Annotated[float, Continuous()] = 80.0,
    distance: Distance = Distance(),
    from_teacher: bool = True,
) -> Method:
    """Flow-guided distillation, SlimFlow's second stage (arXiv 2407.12718, section 3.2): KD of the
    pairs, and of two Euler steps of the frozen flow from noise that has no pair.

        min over D of E d(D(sigma_init z, sigma_init), x0) + guided_weight E d(p, sg D_T(x, sigma)),
        p = D(sigma_init xi, sigma_init),    x = q + sigma/sigma_init (sigma_init xi - q)

    q, the first of the two steps, is the student's own sg p in the code, and the teacher's
    D_T(sigma_init xi, sigma_init) in the paper. Gradient flows through p alone.

    Args:
      student: `Denoiser`.
      teacher: `Denoiser` of the straight flow that the student begins as, a `reflow` of its own
        size; frozen['teacher'].
      pairs: `Pairing`; pairs of the data are of the large flow before, those that are made as
        they are needed of the teacher itself.
      law: `NoiseLaw` of the level between the two steps; in the code t is uniform on (0.2, 0.8), in
        the paper on (0, 1).
      first_half: of `FIRST_HALVES`, whose step is the first.
      guided_weight: >= 0; 1 in the code.
      sigma_init, distance: see `kd`.
      from_teacher: start the student as a copy of the teacher; else from its own initialisation.
        With frozen['start'] it is a copy of that.

    Raises:
      ValueError: on unknown names or values out of range.
    """
    if first_half not in FIRST_HALVES:
        raise ValueError(f'first_half={first_half!r}: known are {", ".join(FIRST_HALVES)}')
    if not guided_weight >= 0:
        raise ValueError(f'guided_weight={guided_weight}: must be >= 0')
    by_pairs, compare = (
        kd(student, pairs, sigma_init=sigma_init, distance=distance),
        apart(distance),
    )

    def loss(params, context, batch, key):
        key_pairs, key_noise, key_law, key_dropout = jax.random.split(key, 4)
        value, (metrics, aux) = by_pairs.losses['student'](params, context, batch, key_pairs)
        if not guided_weight:
            return value, (metrics, aux)
        frozen, xi = context.frozen.get('teacher', {}), generator.unit_noise(key_noise, batch)
        p = _once(student, params['student'], sigma_init, xi, batch, key_dropout)
        first = p if first_half == 'student' else _once(teacher, frozen, sigma_init, xi, batch)
        start = jnp.full(xi.shape[:1], sigma_init, xi.dtype)
        sigma = jnp.minimum(law.sample(key_law, len(xi)).astype(xi.dtype), start)
        x = jump(stop_gradient(first), sigma_init * xi, start, sigma)
        target = teacher.apply(frozen, x, sigma, batch['condition'])[0]
        values, more = compare(p, target, context)
        metrics |= {f'guided_{name}': value for name, value in more.items()}
        return value + guided_weight * jnp.mean(values), (metrics, aux)

    return by_pairs._replace(init=begin(student, from_teacher), losses={'student': loss})


# See `distribution.TINY`.
_PAIRS = {
    'pairs': {
        'sampler': 'euler',
        'grid': {'name': 'karras', 'steps': 3, 'sigma_min': 0.02, 'sigma_max': 5.0},
    }
}
TINY = {
    'reflow': _PAIRS
    | {
        'method': {
            'grid': {'name': 'even_time', 'steps': 2, 'sigma_max': 100.0},
            'annealing': 'linear',
            'annealing_steps': 6,
        }
    },
    'kd': _PAIRS | {'features': {'name': 'pixels'}, 'method': {'perceptual_weight': 0.5}},
    'flow_guided': _PAIRS,
}
