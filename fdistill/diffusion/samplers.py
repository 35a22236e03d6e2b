"""Samplers of the probability-flow ODE dx/dsigma = eps(x, sigma) = (x - D(x, sigma))/sigma (EDM,
arXiv 2206.00364, equation 1).

All have the signature sampler(denoise, x[B,...], sigmas[N+1], key=None, *, trajectory=False,
**options) -> x0:
  denoise(x[B,...], sigma[B]) -> x0[B,...]
  x: noise at level sigmas[0], so sigmas[0] times unit noise for a model without a prior mean.
  sigmas: strictly falling, >= 0, usually ending in 0, from `noise.GRIDS`. Known or traced: one
    program serves all grids of one length.
  key: of the samplers that add noise; one for all samples, or one a sample, [B], which then does
    not depend on its batch.
  trajectory: return (x0, D[N,B,...]) with the network's estimates of x0 at each level, from
    sigmas[0] on.
They step with lax.scan, so a program is as long for a hundred steps as for one, and raise
ValueError on bad levels, shapes and options. The final step to 0 is exact for an Euler step: it
returns D.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.diffusion import multistep
from fdistill.types import Denoise, Sigmas


class Sampler(NamedTuple):
    """solve: as above, without options. evaluations(steps): of the network, in `steps` steps that
    end in 0."""

    solve: Callable[..., Any]
    evaluations: Callable[[int], int]


def _sampler(function):
    """Checks what every sampler is given, and returns the trajectory only if it is asked for."""
    parameters = inspect.signature(function).parameters.values()
    parameter = inspect.Parameter('trajectory', inspect.Parameter.KEYWORD_ONLY, default=False)

    @functools.wraps(function)
    def sampler(denoise, x, sigmas, key=None, *, trajectory=False, **options):
        (denoise,), x, sigmas = prepare((denoise,), x, sigmas)
        x0, denoised = function(denoise, x, sigmas, key, **options)
        return (x0, denoised) if trajectory else x0

    sampler.__signature__ = inspect.Signature([*parameters, parameter])
    return sampler


def prepare(
    denoisers: Sequence[Denoise], x: jax.Array, sigmas: Sigmas
) -> tuple[tuple[Callable[..., jax.Array], ...], jax.Array, Sigmas]:
    """Checks all three; returns denoisers that take one sigma for all samples and check the shape
    of what they return, x as an array, and sigmas."""
    x = jnp.asarray(x)
    if not x.ndim or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f'x of shape {x.shape} and dtype {x.dtype}: need floats with a leading batch dimension'
        )

    def checked(denoise):
        def call(x, sigma):
            denoised = denoise(x, jnp.full(x.shape[:1], sigma, x.dtype))
            if denoised.shape != x.shape:
                raise ValueError(
                    f'denoise returned shape {denoised.shape} for x of shape {x.shape}: '
                    'they must be equal'
                )
            return denoised.astype(x.dtype)

        return call

    return tuple(checked(denoise) for denoise in denoisers), x, _levels(sigmas, x.dtype)


def _levels(sigmas, dtype):
    """sigmas, in float64 where they are known. Only there, that is outside jit, are their values
    checked."""
    if np.ndim(sigmas) != 1 or np.shape(sigmas)[0] < 2:
        raise ValueError(
            f'sigmas of shape {np.shape(sigmas)}: need at least two levels in one dimension'
        )
    if isinstance(sigmas, jax.core.Tracer):
        return sigmas.astype(dtype)
    values = np.asarray(sigmas, np.float64)
    if not (np.all(np.isfinite(values)) and np.all(np.diff(values) < 0) and values[-1] >= 0):
        raise ValueError(f'sigmas={values}: need finite, strictly falling levels >= 0')
    return values


def _among(name, value, allowed):
    if value not in allowed:
        raise ValueError(f'{name}={value!r}: must be one of {", ".join(map(repr, allowed))}')


def _within(name, value, low, high, *, above=False):
    """Refuses a value outside [low, high], or with `above` outside (low, high]."""
    if not (low < value <= high if above else low <= value <= high):
        raise ValueError(f'{name}={value}: must lie in {"(" if above else "["}{low}, {high}]')


def draws(key: jax.Array | None, x: jax.Array) -> Callable[[Any], jax.Array]:
    """noise(n) -> unit noise like x for step n; each sample has its own, whatever its batch."""
    if key is None:
        raise ValueError(
            'key=None: this sampler draws noise; give a jax.random.key, or one a sample'
        )
    if key.ndim not in (0, 1) or key.shape not in ((), x.shape[:1]):
        raise ValueError(
            f'key of shape {key.shape} for {x.shape[0]} samples: give one key, or one a sample'
        )
    keys = jax.random.split(key, x.shape[0]) if key.ndim == 0 else key
    return lambda n: jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, n), x.shape[1:], x.dtype)
    )(keys)


def keys_of(noise: jax.Array) -> jax.Array:
    """A key for each sample, [B], drawn from the bits of its noise[B,...], so that a random sampler
    is a function of its start.

    The keys are independent of the noise for all practical purposes: Threefry keyed by two sums of
    the sample's mixed float32 bits.
    """
    bits = jax.lax.bitcast_convert_type(noise.astype(jnp.float32), jnp.uint32).reshape(
        noise.shape[0], -1
    )
    position = jnp.arange(bits.shape[1], dtype=jnp.uint32)
    mixed = (bits ^ (bits >> 15)) * (2 * position + jnp.uint32(0x9E3779B1))
    words = jnp.stack(
        [jnp.sum(mixed, 1, dtype=jnp.uint32), jnp.sum(mixed >> 7, 1, dtype=jnp.uint32)], 1
    )
    return jax.random.wrap_key_data(words, impl='threefry2x32')


def scan(step: Callable[..., Any], carry: Any, levels: Any, dtype: Any) -> tuple[Any, Any]:
    """lax.scan over values of each step, which are computed in float64 where the grid is known and
    used in x's dtype."""
    cast = jax.tree.map(
        lambda value: (
            value if jnp.issubdtype(value.dtype, jnp.integer) else jnp.asarray(value, dtype)
        ),
        levels,
    )
    return jax.lax.scan(step, carry, cast)


def _slope(x, denoised, sigma):
    return (x - denoised) / sigma


def _run(table, denoise, x, sigmas, key=None, *, before=1.0, after=1.0):
    """Steps through a `multistep.Table`. Moving averages v <- (1 - beta) v + beta y smooth y before
    the sum and the sum itself.

    Args:
      before: beta of y, in (0, 1]; 1 is no average. Other values are GHVB.
      after: beta of the sum; other values than 1 are HB.
    """
    steps, order = table.weights.shape
    noise = None if table.noise is None else draws(key, x)
    # The first velocity is the first slope itself.
    first = np.arange(steps) == 0
    levels = {
        'n': np.arange(steps),
        'sigma': sigmas[:-1],
        'table': table._replace(of=()),
        'before': np.where(first, 1.0, before),
        'after': np.where(first, 1.0, after),
    }

    def step(carry, now):
        x, history, velocity = carry
        row = now['table']
        denoised = denoise(x, now['sigma'])
        y = denoised if table.of == 'x0' else _slope(x, denoised, now['sigma'])
        # In index coordinates the speed dsigma/du goes through the same averages and sums as the
        # slopes.
        y = (y,) if row.scale is None else (row.scale * y, row.scale)
        y = jax.tree.map(lambda new, old: old + now['before'] * (new - old), y, history[0])
        history = (y, *history[:-1])
        g = jax.tree.map(
            lambda *values: sum(w * value for w, value in zip(row.weights, values, strict=True)),
            *history,
        )
        g = jax.tree.map(lambda new, old: old + now['after'] * (new - old), g, velocity)
        x = row.keep * x + row.gain * (g[0] if row.scale is None else g[0] / g[1])
        if noise is not None:
            x = x + row.noise * noise(now['n'])
        return (x, history, g), denoised

    zero = (
        (jnp.zeros_like(x),) if table.scale is None else (jnp.zeros_like(x), jnp.zeros((), x.dtype))
    )
    (x, _, _), denoised = scan(step, (x, (zero,) * order, zero), levels, x.dtype)
    return x, denoised


@_sampler
def euler(denoise: Denoise, x: jax.Array, sigmas: Sigmas, key: jax.Array | None = None):
    """Euler steps, which are DDIM's in this coordinate; order 1, N network evaluations.

    As x <- (sigma'/sigma) x + (1 - sigma'/sigma) D, so that also a step from a level of 1e5, where
    flows start, leaves D its digits.
    """
    return _run(multistep.dpmpp(sigmas, 1), denoise, x, sigmas)


@_sampler
def heun(
    denoise: Denoise,
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array | None = None,
    *,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
):
    """Heun's method, Euler on a step to sigma = 0; order 2, 2N - 1 evaluations when sigmas end in 0
    (EDM, algorithm 2).

    With s_churn = 0 this is EDM's deterministic algorithm 1. Otherwise each step from a level in
    [s_min, s_max] begins by raising it to sigma_hat = sigma (1 + gamma), gamma = min(s_churn/N,
    sqrt(2) - 1), with noise of standard deviation s_noise sqrt(sigma_hat^2 - sigma^2) = s_noise
    sigma sqrt(gamma (2 + gamma)), which corrects errors made before.

    Args:
      s_churn: amount of noise, >= 0; 40 with s_min=0.05, s_max=50, s_noise=1.003 and 256 steps is
        EDM's for ImageNet-64.
      s_min, s_max: levels at which noise is added, 0 <= s_min <= s_max.
      s_noise: > 0.
    """
    _within('s_churn', s_churn, 0, math.inf)
    _within('s_min', s_min, 0, s_max)
    _within('s_noise', s_noise, 0, math.inf, above=True)
    noise = draws(key, x) if s_churn else None
    steps = len(sigmas) - 1
    now, then = sigmas[:-1], sigmas[1:]
    gamma = min(s_churn / steps, math.sqrt(2) - 1) * ((s_min <= now) & (now <= s_max))
    # Not sqrt(raised**2 - now**2): a fused multiply-add can make that negative where gamma is 0.
    added = s_noise * now * (gamma * (2 + gamma)) ** 0.5

    def step(x, now):
        n, sigma, added, sigma_next = now
        if noise is not None:
            x = x + added * noise(n)
        denoised = denoise(x, sigma)
        d = _slope(x, denoised, sigma)
        x_euler = x + (sigma_next - sigma) * d

        def corrected():
            # The guard matters under vmap only, where both branches run and 0 would make a NaN.
            level = jnp.maximum(sigma_next, jnp.finfo(x.dtype).tiny)
            d_prime = _slope(x_euler, denoise(x_euler, level), level)
            return x + (sigma_next - sigma) * (d + d_prime) / 2

        return jax.lax.cond(sigma_next > 0, corrected, lambda: x_euler), denoised

    return scan(step, x, (np.arange(steps), now * (1 + gamma), added, then), x.dtype)


@_sampler
def ancestral(
    denoise: Denoise,
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array | None = None,
    *,
    eta: float = 1.0,
):
    """Euler steps to sigma_down, then noise of standard deviation sigma_up up to the next level;
    order 1 of the SDE.

    sigma_up = eta sqrt(sigma_{n+1}^2 (sigma_n^2 - sigma_{n+1}^2)/sigma_n^2), sigma_down^2 =
    sigma_{n+1}^2 - sigma_up^2 (DDPM's posterior for eta = 1, arXiv 2006.11239, equation 7, in this
    coordinate; DDIM for eta = 0).

    Args:
      eta: share of the noise, in [0, 1].
    """
    _within('eta', eta, 0, 1)
    now, then = sigmas[:-1], sigmas[1:]
    # Both written so that no rounding makes a root's argument negative; in the second, sigma_up is
    # put in.
    up = eta * then / now * ((now - then) * (now + then)) ** 0.5
    down = then * (1 - eta**2 + (eta * then / now) ** 2) ** 0.5
    table = multistep.adams_bashforth(sigmas, 1)
    return _run(table._replace(gain=down - now, noise=up if eta else None), denoise, x, sigmas, key)


@_sampler
def adams_bashforth(
    denoise: Denoise,
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array | None = None,
    *,
    order: int = 4,
    coords: str = 'sigma',
):
    """Adams-Bashforth with the weights of a uniform grid: PLMS and iPNDM (arXiv 2202.09778); N
    evaluations.

    While the history holds only 1, ..., order - 1 values, the order is that number. Constant
    weights are of order two at best on a grid that is not uniform in the coordinate, such as
    Karras' in sigma. `lms`, or coords='index', keeps the order.

    Args:
      order: 1, ..., 5.
      coords: 'sigma', or 'index' to integrate over the index of the grid.
    """
    _among('order', order, (1, 2, 3, 4, 5))
    _among('coords', coords, COORDS)
    return _run(multistep.adams_bashforth(sigmas, order, coords=coords), denoise, x, sigmas)


@_sampler
def lms(
    denoise: Denoise, x: jax.Array, sigmas: Sigmas, key: jax.Array | None = None, *, order: int = 4
):
    """Adams-Bashforth of variable step: eps interpolated in sigma and integrated exactly; of full
    order on any grid, N evaluations.

    Args:
      order: 1, ..., 5.
    """
    _among('order', order, (1, 2, 3, 4, 5))
    return _run(multistep.lms(sigmas, order), denoise, x, sigmas)


@_sampler
def deis(
    denoise: Denoise, x: jax.Array, sigmas: Sigmas, key: jax.Array | None = None, *, order: int = 2
):
    """DEIS, tAB in log rho (arXiv 2204.13902): eps interpolated in ln sigma and integrated exactly;
    N evaluations.

    Args:
      order: 1, ..., 4.
    """
    _among('order', order, (1, 2, 3, 4))
    return _run(multistep.deis(sigmas, order), denoise, x, sigmas)


@_sampler
def dpmpp_2m(
    denoise: Denoise,
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array | None = None,
    *,
    eta: float = 0.0,
):
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2); order 2, N evaluations.

    Args:
      eta: 0 for the ODE, 1 for the SDE (2M SDE, section 5), or between; in [0, 1].
    """
    _within('eta', eta, 0, 1)
    return _run(multistep.dpmpp(sigmas, 2, eta), denoise, x, sigmas, key)


@_sampler
def dpmpp_3m(
    denoise: Denoise,
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array | None = None,
    *,
    eta: float = 0.0,
):
    """DPM-Solver++(3M): D interpolated by a parabola in -ln sigma and integrated exactly; order 3,
    N evaluations.

    The published codes halve the parabola's quadratic term and are of order 2.

    Args:
      eta: as in `dpmpp_2m`.
    """
    _within('eta', eta, 0, 1)
    return _run(multistep.dpmpp(sigmas, 3, eta), denoise, x, sigmas, key)


@_sampler
def unipc(
    denoise: Denoise,
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array | None = None,
    *,
    order: int = 2,
    variant: str = 'bh2',
):
    """UniPC (arXiv 2302.04867), predicting D; order + 1, N evaluations: the corrector uses what the
    next step evaluates.

    Args:
      order: of the predictor, 1, ..., 3.
      variant: 'bh1' or 'bh2', the paper's B(h) = h or e^h - 1.
    """
    _among('order', order, (1, 2, 3))
    _among('variant', variant, ('bh1', 'bh2'))
    table, corrector = multistep.unipc(sigmas, order, variant)
    # Level n is corrected by the row of the step that led to it; the first has none and stays.
    arrived = (
        multistep.delayed(table.keep, 1),
        multistep.delayed(table.gain, 0),
        multistep.delayed(corrector, 0),
    )
    levels = {
        'sigma': sigmas[:-1],
        'table': table._replace(of=()),
        'came': multistep.Table((), *arrived),
    }

    def combine(row, history):
        return row.gain * sum(w * value for w, value in zip(row.weights, history, strict=True))

    def step(carry, now):
        predicted, x, history = carry
        denoised = denoise(predicted, now['sigma'])
        came = now['came']
        x = came.keep * x + combine(came, (denoised, *history))
        history = (denoised, *history[:-1])
        row = now['table']
        return (row.keep * x + combine(row, history), x, history), denoised

    carry = x, x, (jnp.zeros_like(x),) * order
    (x, _, _), denoised = scan(step, carry, levels, x.dtype)
    return x, denoised


@_sampler
def heavy_ball(
    denoise: Denoise,
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array | None = None,
    *,
    base: str = 'adams_bashforth',
    order: int = 2,
    beta: float = 0.8,
):
    """HB(beta) (Diffusion Sampling with Momentum, arXiv 2307.11118, algorithm 1) over a multistep
    method; N evaluations.

    v_{n+1} = (1 - beta) v_n + beta g_n, where g_n is the base's combination of its history, and
    x_{n+1} = keep x_n + gain v_{n+1}, v_1 = g_0. Damping makes the interval of stability
    (2 - beta)/beta times as wide and costs the order: it is 1 for beta < 1.

    Args:
      base: key of `BASES`.
      order: of the base: 1 to 5, of 'deis' 1 to 4, of 'dpmpp' 1 to 3.
      beta: in (0, 1]; 1 is the base itself. The paper recommends 0.8 to 0.9.
    """
    _among('base', base, BASES)
    method, orders = BASES[base]
    _among('order', order, tuple(range(1, orders + 1)))
    _within('beta', beta, 0, 1, above=True)
    return _run(method(sigmas, order), denoise, x, sigmas, after=beta)


@_sampler
def ghvb(
    denoise: Denoise,
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array | None = None,
    *,
    order: float = 3.8,
    coords: str = 'sigma',
):
    """GHVB of real order m (arXiv 2307.11118, algorithm 2 and theorem 2); N evaluations.

    r = ceil(m) and beta = m - floor(m), or 1 for a whole m, which is Adams-Bashforth. Slopes are
    averaged before they are combined: v_{n+1} = (1 - beta) v_n + beta eps_n, v_1 = eps_0, and
    x_{n+1} = x_n + delta_n sum_j c_j v_{n+1-j}. Of order r where the grid is uniform in the
    coordinate, of two at best elsewhere (see `adams_bashforth`).

    Args:
      order: m in (0, 5]. The paper recommends 1.8, 1.9, 3.8 or 3.9.
      coords: as in `adams_bashforth`.
    """
    _within('order', order, 0, 5, above=True)
    _among('coords', coords, COORDS)
    r = math.ceil(order)
    beta = order - math.floor(order) or 1.0
    return _run(multistep.adams_bashforth(sigmas, r, beta, coords), denoise, x, sigmas, before=beta)


@_sampler
def consistency(
    denoise: Denoise,
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array | None = None,
    *,
    eta: float = 1.0,
    sigma_min: float = 0.0,
):
    """Multistep sampling of a student that denoises in one jump; N evaluations, no noise after the
    last.

        x_{n+1} = J + sqrt(sigma_{n+1}^2 - max(s, sigma_min)^2) z,
        J = D + s/sigma_n (x_n - D),    s = (1 - eta) sigma_{n+1}

    eta = 1 adds noise to D again: consistency models' algorithm 1 (arXiv 2303.01469), and LCM's.
    0 < eta < 1 jumps to a lower level first, as TCD does (arXiv 2402.19159, which takes the share
    of the timestep). eta = 0 is Euler.

    Args:
      eta: in [0, 1].
      sigma_min: level of the student's own output, >= 0.
    """
    _within('eta', eta, 0, 1)
    _within('sigma_min', sigma_min, 0, math.inf)
    noise = draws(key, x) if eta else None
    now, then = sigmas[:-1], sigmas[1:]
    jump = (1 - eta) * then

    def step(x, now):
        n, sigma, jump, sigma_next = now
        denoised = denoise(x, sigma)
        x = denoised + jump / sigma * (x - denoised)
        if noise is not None:
            kept = jnp.minimum(jnp.maximum(jump, sigma_min), sigma_next)
            x = x + jnp.sqrt((sigma_next - kept) * (sigma_next + kept)) * noise(n)
        return x, denoised

    return scan(step, x, (np.arange(len(sigmas) - 1), now, jump, then), x.dtype)


@_sampler
def same_noise(denoise: Denoise, x: jax.Array, sigmas: Sigmas, key: jax.Array | None = None):
    """x_{n+1} = D + sigma_{n+1} z with the noise z = x_0/sigma_0 of the start (the new sampler of
    2-RF++, arXiv 2405.20320, section 5); N evaluations.

    For models of pairs, as `reflow` trains them, which know x0 + sigma z alone: an error of a step
    does not lead away from such points. On straight paths all numbers of steps give the same
    sample, which is Euler's. It is no solver: on others it does not converge to the ODE.
    """
    z = x / jnp.asarray(sigmas[0], x.dtype)

    def step(x, now):
        sigma, sigma_next = now
        denoised = denoise(x, sigma)
        return denoised + sigma_next * z, denoised

    return scan(step, x, (sigmas[:-1], sigmas[1:]), x.dtype)


def hybrid(
    teacher: Denoise,
    student: Denoise,
    x: jax.Array,
    sigmas: Sigmas,
    key: jax.Array | None = None,
    *,
    evaluations: int = 1,
    student_sigmas: Sequence[float] | np.ndarray = (0.0,),
    eta: float = 1.0,
) -> jax.Array:
    """Diversity distillation (arXiv 2503.10637): first steps by the teacher, which fix the layout,
    the rest by the student.

    The teacher takes Euler steps from sigmas[0] to sigmas[evaluations]; from there the student goes
    on by `consistency`.

    Args:
      teacher, student: denoise(x, sigma[B]); the student must be usable at sigmas[evaluations].
      x, sigmas, key: as of any sampler.
      evaluations: of the teacher, 0 (the student alone) to N (the teacher alone).
      student_sigmas: the levels on which the student goes on; those that do not lie below the
        hand-over are left out. They end in 0 and must be known, not traced. (0,) is one jump.
      eta: see `consistency`.

    Raises:
      ValueError: on evaluations or student_sigmas out of range.
    """
    steps = len(sigmas) - 1
    _among('evaluations', evaluations, range(steps + 1))
    if evaluations == steps:
        return euler(teacher, x, sigmas)
    below = np.asarray(student_sigmas, np.float64)
    if isinstance(sigmas, jax.core.Tracer):
        raise ValueError(
            'sigmas: hybrid needs to know where the student takes over; '
            'give a grid that is not traced'
        )
    hand_over = float(sigmas[evaluations])
    if evaluations:
        x = euler(teacher, x, sigmas[: evaluations + 1])
    return consistency(student, x, np.append(hand_over, below[below < hand_over]), key, eta=eta)


COORDS = ('sigma', 'index')

# Of heavy_ball: name -> (table of a grid and an order, highest order).
BASES = {
    'adams_bashforth': (multistep.adams_bashforth, 5),
    'lms': (multistep.lms, 5),
    'deis': (multistep.deis, 4),
    'dpmpp': (multistep.dpmpp, 3),
}

# name -> Sampler with the default options
SAMPLERS = {
    'euler': Sampler(euler, lambda steps: steps),
    'heun': Sampler(heun, lambda steps: 2 * steps - 1),
    'ancestral': Sampler(ancestral, lambda steps: steps),
    'adams_bashforth': Sampler(adams_bashforth, lambda steps: steps),
    'lms': Sampler(lms, lambda steps: steps),
    'deis': Sampler(deis, lambda steps: steps),
    'dpmpp_2m': Sampler(dpmpp_2m, lambda steps: steps),
    'dpmpp_3m': Sampler(dpmpp_3m, lambda steps: steps),
    'unipc': Sampler(unipc, lambda steps: steps),
    'heavy_ball': Sampler(heavy_ball, lambda steps: steps),
    'ghvb': Sampler(ghvb, lambda steps: steps),
    'consistency': Sampler(consistency, lambda steps: steps),
    'same_noise': Sampler(same_noise, lambda steps: steps),
}
