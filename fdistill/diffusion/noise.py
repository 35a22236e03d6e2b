"""Noise: laws of sigma for training, weightings, grids for sampling, and alpha/sigma schedules.

The one coordinate is sigma of x_sigma = x + sigma eps, eps ~ N(0, I) (EDM, arXiv 2206.00364). A
model trained on x_t = alpha_t x + sigma_t eps lives at sigma = sigma_t / alpha_t after division by
alpha_t.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import expit, logit, ndtr
from scipy import special

from fdistill.types import Continuous

Number = Annotated[float, Continuous()]  # a setting of a law


class NoiseLaw(NamedTuple):
    """A distribution of sigma, as two functions: sample(key, n) -> sigma[n], and its distribution
    function cdf(sigma) -> [0, 1].

    cdf is the coordinate in which statistics per noise level are binned: it rises with sigma and
    fills the bins evenly. Bins uniform in sigma would put two thirds of EDM's samples into the
    first.
    """

    sample: Callable
    cdf: Callable


def _positive(**values):
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f'{name}={value}: must be > 0')


def _ordered(**values):
    (low_name, low), (high_name, high) = values.items()
    _positive(**{low_name: low})
    if not high > low:
        raise ValueError(f'{low_name}={low}, {high_name}={high}: need {low_name} < {high_name}')


def lognormal(mean: Number = -1.2, std: Number = 1.2) -> NoiseLaw:
    """ln sigma ~ N(mean, std^2) (EDM, table 1). For rectified flow, t = sigma/(1+sigma) is then
    logit-normal(mean, std)."""
    _positive(std=std)
    return NoiseLaw(
        lambda key, n: jnp.exp(mean + std * jax.random.normal(key, (n,))),
        lambda sigma: ndtr((jnp.log(sigma) - mean) / std),
    )


def loguniform(sigma_min: Number = 0.002, sigma_max: Number = 80.0) -> NoiseLaw:
    """ln sigma uniform on [ln sigma_min, ln sigma_max]."""
    _ordered(sigma_min=sigma_min, sigma_max=sigma_max)
    low, width = np.log(sigma_min), np.log(sigma_max / sigma_min)
    return NoiseLaw(
        lambda key, n: jnp.exp(low + width * jax.random.uniform(key, (n,))),
        lambda sigma: (jnp.log(sigma) - low) / width,
    )


def karras_uniform(
    low: Number = 0.0,
    high: Number = 1.0,
    sigma_min: Number = 0.002,
    sigma_max: Number = 80.0,
    rho: Number = 7.0,
) -> NoiseLaw:
    """A level of the Karras schedule at a uniform place: with u uniform on [low, high],

        sigma = (sigma_min^(1/rho) + u (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho

    The continuous form of "an index uniform over the 1000 Karras levels". DMD2's student has low,
    high = .02, .98, FastGen's .002, .998. SiD's student has .2, 1 in the reverse index, which is
    0, .8 here (sigma <= 24.4).
    """
    _ordered(sigma_min=sigma_min, sigma_max=sigma_max)
    if not 0 <= low < high <= 1:
        raise ValueError(f'low={low}, high={high}: need 0 <= low < high <= 1')
    a, b = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return NoiseLaw(
        lambda key, n: (a + (b - a) * (low + (high - low) * jax.random.uniform(key, (n,)))) ** rho,
        lambda sigma: ((sigma ** (1 / rho) - a) / (b - a) - low) / (high - low),
    )


def uniform_time(low: Number = 0.001, high: Number = 0.999) -> NoiseLaw:
    """t uniform on [low, high] for rectified flow's t = sigma/(1+sigma): ln sigma is logistic
    (arXiv 2209.03003)."""
    if not 0 < low < high < 1:
        raise ValueError(f'low={low}, high={high}: need 0 < low < high < 1')
    return NoiseLaw(
        lambda key, n: jnp.exp(logit(low + (high - low) * jax.random.uniform(key, (n,)))),
        lambda sigma: (expit(jnp.log(sigma)) - low) / (high - low),
    )


def log_student_t(
    mean: float = 0.0,
    scale: float = 0.2,
    df: float = 0.01,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> NoiseLaw:
    """(ln sigma - mean)/scale ~ Student's t with `df` degrees of freedom, within [sigma_min,
    sigma_max] (truncated consistency models, arXiv 2410.14895): most levels are near exp(mean), and
    few degrees of freedom leave some for all others.

    Its quantiles are a table of 4,097, between which ln sigma is linear.
    """
    _positive(scale=scale, df=df)
    _ordered(sigma_min=sigma_min, sigma_max=sigma_max)
    ends = np.log([sigma_min, sigma_max])
    low, high = special.stdtr(df, (ends - mean) / scale)
    share = np.linspace(low, high, 4097)
    table = mean + scale * special.stdtrit(df, share)
    table[[0, -1]] = ends
    return NoiseLaw(
        lambda key, n: jnp.exp(
            jnp.interp(low + (high - low) * jax.random.uniform(key, (n,)), share, table)
        ),
        lambda sigma: (jnp.interp(jnp.log(sigma), table, share) - low) / (high - low),
    )


def u_shaped_time(steepness: Number = 4.0, edge: Number = 1e-5) -> NoiseLaw:
    """t = edge + (1 - 2 edge) u of rectified flow's t = sigma/(1+sigma), with the density of u in
    (0, 1) proportional to e^(a u) + e^(a (1 - u)): most levels near both ends (2-RF++, arXiv
    2405.20320, section 4.1 and code).

        F(u) = (e^(a u) - 1 + e^a (1 - e^(-a u)))/(2 (e^a - 1)) = 1 - F(1 - u)

    It is drawn and measured from the nearer end, so that both keep their digits in float32.

    Args:
      steepness: a in (0, 40], where e^(2 a) is a float32; 4 in the paper.
      edge: of t at both ends, in (0, 1/2); 1e-5 in the code.
    """
    if not 0 < steepness <= 40:
        raise ValueError(f'steepness={steepness}: must lie in (0, 40]')
    if not 0 < edge < 0.5:
        raise ValueError(f'edge={edge}: must lie in (0, 0.5)')
    a, rise = steepness, np.expm1(steepness)

    def sample(key, n):
        key_share, key_side = jax.random.split(key)
        share = jax.random.uniform(key_share, (n,)) / 2  # F(u) of the lower half
        # e^(a u) - 1 = d with d^2 + (2 - c) d = 2 F (e^a - 1), c = (2 F - 1) (e^a - 1) < 0.
        linear = 2 + (1 - 2 * share) * rise
        constant = 2 * share * rise
        d = 2 * constant / (linear + jnp.sqrt(linear**2 + 4 * constant))
        t = edge + (1 - 2 * edge) * jnp.log1p(d) / a
        low = t / (1 - t)
        return jnp.where(jax.random.bernoulli(key_side, shape=(n,)), low, 1 / low)

    def cdf(sigma):
        near = jnp.minimum(sigma, 1 / sigma)
        u = (near / (1 + near) - edge) / (1 - 2 * edge)
        share = (jnp.expm1(a * u) - (1 + rise) * jnp.expm1(-a * u)) / (2 * rise)
        return jnp.where(sigma <= 1, share, 1 - share)

    return NoiseLaw(sample, cdf)


def levels(sigmas: tuple[float, ...]) -> NoiseLaw:
    """Each of the given levels, evenly: those of a sampler of few steps, as t = 1, ..., 2/k, 1/k of
    k-step distillation (arXiv 2209.03003).

    Args:
      sigmas: [N], as of `levels_grid`.
    """
    falling = levels_grid(sigmas)[:-1]
    return NoiseLaw(
        lambda key, n: jax.random.choice(key, jnp.asarray(falling), (n,)),
        lambda sigma: jnp.mean(jnp.asarray(sigma)[..., None] >= jnp.asarray(falling), axis=-1),
    )


LAWS = {
    'lognormal': lognormal,
    'loguniform': loguniform,
    'karras_uniform': karras_uniform,
    'uniform_time': uniform_time,
    'log_student_t': log_student_t,
    'u_shaped_time': u_shaped_time,
    'levels': levels,
}

# Weights of the squared error of the x0-prediction, (sigma, sigma_data) -> weight.
WEIGHTINGS = {
    # EDM, table 1: unit variance of the network's target.
    'edm': lambda sigma, sigma_data: sigma**-2 + sigma_data**-2,
    'unit': lambda sigma, sigma_data: jnp.ones_like(sigma),
    # |eps - eps_hat|^2, DDPM's simple loss.
    'eps': lambda sigma, sigma_data: sigma**-2,
    # |v - v_hat|^2 with v = (x_t - D)/t, t = sigma/(1+sigma).
    'flow': lambda sigma, sigma_data: (1 + sigma) ** 2 / sigma**2,
    # The larger of the errors of D and eps (progressive distillation, arXiv 2202.00512, section 4).
    'truncated_snr': lambda sigma, sigma_data: jnp.maximum(sigma**-2, 1),
}


def karras_grid(
    steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> np.ndarray:
    """Levels of EDM (equation 5), then 0.

        sigma_i = (sigma_max^(1/rho) + i/(steps-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    Args:
      steps: number of levels before the final 0, >= 1.
      sigma_min, sigma_max: 0 < sigma_min < sigma_max.
      rho: > 0; 7 spaces the levels evenly in perceived error, 1 evenly in sigma.

    Returns:
      sigmas[steps + 1], float64 numpy, falling, ending in 0.
    """
    _ordered(sigma_min=sigma_min, sigma_max=sigma_max)
    _positive(rho=rho)
    return _with_zero(
        np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), _counted(steps)) ** rho
    )


def loguniform_grid(
    steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> np.ndarray:
    """Levels from sigma_max to sigma_min evenly spaced in ln sigma, then 0.

    This is even spacing in lambda = ln(alpha/sigma) = -ln sigma: the grid of DPM-Solver (arXiv
    2206.00927), which steps evenly in lambda.
    """
    _ordered(sigma_min=sigma_min, sigma_max=sigma_max)
    return _with_zero(np.geomspace(sigma_max, sigma_min, _counted(steps)))


def linear_grid(steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0) -> np.ndarray:
    """Levels from sigma_max to sigma_min evenly spaced in sigma, then 0: the Karras grid of
    rho = 1."""
    _ordered(sigma_min=sigma_min, sigma_max=sigma_max)
    return _with_zero(np.linspace(sigma_max, sigma_min, _counted(steps)))


def timesteps_grid(
    steps: int = 18,
    schedule: str = 'vp_linear',
    power: float = 1.0,
    t_min: float | None = None,
    t_max: float | None = None,
    **options: Any,
) -> np.ndarray:
    """sigma(t_i)/alpha(t_i) at the times of a schedule, then 0.

        t_i = (t_max^(1/power) + i/(steps-1) (t_min^(1/power) - t_max^(1/power)))^power

    A teacher trained under an alpha/sigma schedule is sampled at its own timesteps; in this
    coordinate the Euler step is DDIM's. power = 1 is DDIM's linear, 2 its quadratic selection
    (arXiv 2010.02502).

    Args:
      steps: number of levels before the final 0, >= 1.
      schedule: key of `SCHEDULES`.
      power: > 0; the larger, the more of the times are small.
      t_min, t_max: 0 <= t_min < t_max in the schedule's unit of time, with sigma/alpha positive and
        finite at both; default: the schedule's `span`. Times between the entries of a table are
        interpolated, not rounded.
      **options: arguments of the schedule.

    Returns:
      sigmas[steps + 1], float64 numpy, falling, ending in 0.

    Raises:
      ValueError: on an unknown schedule or values out of range.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f'schedule={schedule!r}: known are {", ".join(SCHEDULES)}')
    _positive(power=power)
    chosen = SCHEDULES[schedule](**options)
    t_min, t_max = (chosen.span[i] if t is None else t for i, t in enumerate((t_min, t_max)))
    if not 0 <= t_min < t_max:
        raise ValueError(f't_min={t_min}, t_max={t_max}: need 0 <= t_min < t_max')
    with jax.enable_x64(True), np.errstate(divide='ignore', invalid='ignore'):
        ends = np.array([t_min, t_max])
        ratio = np.asarray(chosen.sigma(ends) / chosen.alpha(ends))
        # Beyond a table or a pole the way back leads elsewhere.
        if not (
            ratio[0] > 0
            and np.isfinite(ratio[1])
            and np.allclose(chosen.time(ratio), ends, rtol=1e-6, atol=1e-9)
        ):
            raise ValueError(
                f't_min={t_min}, t_max={t_max}: sigma/alpha of {schedule!r} must be positive and '
                f'finite there; its usual times are {chosen.span[0]} to {chosen.span[1]}'
            )
        times = np.linspace(t_max ** (1 / power), t_min ** (1 / power), _counted(steps)) ** power
        return _with_zero(chosen.sigma(times) / chosen.alpha(times))


def even_time_grid(steps: int = 4, sigma_max: float = 1e5) -> np.ndarray:
    """Levels from sigma_max that are even in rectified flow's t = sigma/(1 + sigma) down to 0: its
    Euler steps (arXiv 2209.03003).

    Unlike those of `timesteps` with the schedule `flow`, whose last level is near 0, the last of
    them is as long as the others.

    Args:
      steps: number of levels before the final 0, >= 1.
      sigma_max: > 0 and finite; 1e5 is t = 1 - 1e-5.
    """
    if not 0 < sigma_max < np.inf:
        raise ValueError(f'sigma_max={sigma_max}: must be > 0 and finite')
    t = sigma_max / (1 + sigma_max) * (1 - np.arange(_counted(steps)) / steps)
    return _with_zero([sigma_max, *(t[1:] / (1 - t[1:]))])


def levels_grid(sigmas: tuple[float, ...]) -> np.ndarray:
    """The given levels, then 0; for example a grid found by `search`.

    Args:
      sigmas: [N], N >= 1, strictly falling, positive and finite; without the final 0.

    Returns:
      sigmas[N + 1], float64 numpy.

    Raises:
      ValueError: on levels that do not fulfil this.
    """
    levels = np.asarray(sigmas, np.float64)
    if (
        levels.ndim != 1
        or not len(levels)
        or not (np.isfinite(levels[0]) and levels[-1] > 0 and np.all(np.diff(levels) < 0))
    ):
        raise ValueError(
            f'sigmas={sigmas}: need at least one level, strictly falling, > 0 and finite; '
            'the last 0 is left out'
        )
    return _with_zero(levels)


def _counted(steps):
    if steps < 1 or steps != int(steps):
        raise ValueError(f'steps={steps}: need a whole number >= 1')
    return int(steps)


def _with_zero(levels):
    return np.append(np.asarray(levels, np.float64), 0.0)


GRIDS = {
    'karras': karras_grid,
    'loguniform': loguniform_grid,
    'linear': linear_grid,
    'timesteps': timesteps_grid,
    'even_time': even_time_grid,
    'levels': levels_grid,
}


class Schedule(NamedTuple):
    """x_t = alpha(t) x + sigma(t) eps, with time(s) the t at which sigma(t)/alpha(t) = s.

    span: (first, last) time usually sampled at, where sigma/alpha is neither 0 nor infinite.
    limits: (lowest, highest) sigma/alpha that it can express; None: any.
    """

    alpha: Callable
    sigma: Callable
    time: Callable
    span: tuple[float, float] = (1e-3, 0.999)
    limits: tuple[float, float] | None = None


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Variance preserving, beta(t) = beta_min + t (beta_max - beta_min), t in (0, 1] (score SDE,
    arXiv 2011.13456, eq. 32).

    alpha^2 = exp(-(beta_max - beta_min) t^2/2 - beta_min t), sigma^2 = 1 - alpha^2.
    """
    _ordered(beta_min=beta_min, beta_max=beta_max)
    slope = beta_max - beta_min

    def log_alpha(t):
        return -0.25 * slope * t**2 - 0.5 * beta_min * t

    return Schedule(
        lambda t: jnp.exp(log_alpha(t)),
        lambda t: jnp.sqrt(-jnp.expm1(2 * log_alpha(t))),
        # 1 + s^2 = alpha^-2 solved for t; the rationalised root keeps its digits for small s.
        lambda s: (
            2 * jnp.log1p(s**2) / (jnp.sqrt(beta_min**2 + 2 * slope * jnp.log1p(s**2)) + beta_min)
        ),
        (1e-3, 1.0),
    )


def cosine() -> Schedule:
    """Variance preserving, alpha = cos(pi t/2), sigma = sin(pi t/2), t in [0, 1) (improved DDPM
    without its offset)."""
    return Schedule(
        lambda t: jnp.cos(jnp.pi / 2 * t),
        lambda t: jnp.sin(jnp.pi / 2 * t),
        lambda s: 2 / jnp.pi * jnp.arctan(s),
    )


def flow(shift: float = 1.0) -> Schedule:
    """Rectified flow with t the fraction of noise: alpha = 1 - t, sigma = t (arXiv 2209.03003).

    With a shift the fraction is shift t/(1 + (shift - 1) t), as images of higher resolution want it
    (arXiv 2403.03206, equation 23): sigma/alpha is `shift` times as large. It belongs to a grid and
    not to a denoiser: networks of diffusers are told the fraction, so that theirs is that of
    shift 1.

    Args:
      shift: > 0; 3 for Stable Diffusion 3.
    """
    _positive(shift=shift)

    def fraction(t):
        return shift * t / (1 + (shift - 1) * t)

    return Schedule(lambda t: 1 - fraction(t), fraction, lambda s: s / (shift + s))


# alpha^2 at t = 0 .. 999 for betas linear from 1e-4 to .02 (DDPM, arXiv 2006.11239, section 4).
DDPM_TABLE = tuple(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)).tolist())


def discrete(alphas_cumprod: tuple[float, ...] = DDPM_TABLE) -> Schedule:
    """A DDPM table: at integer t, alpha^2 = alphas_cumprod[t]; linear in ln(sigma/alpha) between
    the entries.

    Args:
      alphas_cumprod: [T], falling, in (0, 1); default: DDPM's own of 1000 linear betas.

    Raises:
      ValueError: if the table does not fall strictly inside (0, 1).
    """
    table = np.asarray(alphas_cumprod, np.float64)
    if (
        table.ndim != 1
        or len(table) < 2
        or not (np.all(np.diff(table) < 0) and 0 < table[-1] and table[0] < 1)
    ):
        raise ValueError(
            'alphas_cumprod: need a strictly falling table of at least two values inside (0, 1)'
        )
    log_s = 0.5 * np.log((1 - table) / table)
    steps = np.arange(len(table), dtype=np.float64)

    def ratio(t):
        return jnp.exp(jnp.interp(t, steps, log_s))

    return Schedule(
        lambda t: 1 / jnp.sqrt(1 + ratio(t) ** 2),
        lambda t: ratio(t) / jnp.sqrt(1 + ratio(t) ** 2),
        lambda s: jnp.interp(jnp.log(s), log_s, steps),
        (0.0, len(table) - 1.0),
        (float(np.exp(log_s[0])), float(np.exp(log_s[-1]))),
    )


# (beta_start, beta_end, T) -> betas float64 [T]; the names are diffusers'.
BETAS = {
    'linear': np.linspace,
    'scaled_linear': lambda start, end, count: np.linspace(start**0.5, end**0.5, count) ** 2,
    # Improved DDPM, arXiv 2102.09672, equation 17, which takes neither start nor end.
    'squaredcos_cap_v2': lambda start, end, count: np.minimum(
        1
        - _cosine_squared(np.arange(1, count + 1) / count)
        / _cosine_squared(np.arange(count) / count),
        0.999,
    ),
}
TERMINALS = {'drop': lambda table: table[:-1], 'floor': lambda table: [*table[:-1], 2.0**-24]}


def _cosine_squared(t):
    return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2


def betas(
    beta_schedule: str = 'linear',
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    num_train_timesteps: int = 1000,
    trained_betas: tuple[float, ...] | None = None,
    zero_terminal_snr: str | None = None,
) -> Schedule:
    """`discrete` of the table that betas make, alpha_t^2 = prod_{i <= t} (1 - beta_i), in float64.

    With a terminal signal-to-noise ratio of zero (arXiv 2305.08891, algorithm 1) the table is

        alpha_t' = (alpha_t - alpha_T) alpha_0/(alpha_0 - alpha_T)

    whose last entry, pure noise, is sigma = infinity in the coordinate here. It is therefore left
    out or replaced by alpha^2 = 2^-24, sigma = 4096, as diffusers' Euler sampler does.

    Args:
      beta_schedule: key of `BETAS`. Stable Diffusion's is 'scaled_linear' from .00085 to .012.
      beta_start, beta_end: 0 < beta_start < beta_end < 1.
      num_train_timesteps: T, entries of the table, in 2..1,000,000.
      trained_betas: the betas themselves [T], in (0, 1), in place of those before.
      zero_terminal_snr: key of `TERMINALS`, 'drop' or 'floor'; None: the table stays as it is.

    Raises:
      ValueError: on values out of range, or a table that does not fall strictly inside (0, 1).
    """
    for name, key, table in (
        ('beta_schedule', beta_schedule, BETAS),
        ('zero_terminal_snr', zero_terminal_snr, {None: None} | TERMINALS),
    ):
        if key not in table:
            raise ValueError(f'{name}={key!r:.80}: known are {", ".join(map(str, table))}')
    _ordered(beta_start=beta_start, beta_end=beta_end)
    if beta_end >= 1:
        raise ValueError(f'beta_end={beta_end}: must be < 1')
    if not 2 <= num_train_timesteps <= 10**6:
        raise ValueError(f'num_train_timesteps={num_train_timesteps}: must lie in 2..1000000')
    if trained_betas is None:
        table = BETAS[beta_schedule](beta_start, beta_end, num_train_timesteps)
    else:
        table = np.asarray(trained_betas, np.float64)
        if table.shape != (num_train_timesteps,):
            raise ValueError(
                f'trained_betas has {table.size} numbers: need one for each of '
                f'num_train_timesteps={num_train_timesteps}'
            )
    alphas_cumprod = np.cumprod(1 - table)
    if zero_terminal_snr is not None:
        alpha = np.sqrt(alphas_cumprod)
        rescaled = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        alphas_cumprod = TERMINALS[zero_terminal_snr](rescaled**2)
    return discrete(tuple(alphas_cumprod))


SCHEDULES = {
    'vp_linear': vp_linear,
    'cosine': cosine,
    'flow': flow,
    'discrete': discrete,
    'betas': betas,
}
