"""Flow maps: a denoiser that is told to which level it leads, and what it is in the time of a flow.

D(x, sigma, condition) with condition['until'] = rho <= sigma says where the path of the ODE through
x is at rho: at J = D + (rho/sigma) (x - D), `jump`. With rho = sigma it is the ordinary denoiser.
In the time of rectified flow (arXiv 2209.03003), t = sigma/(1 + sigma) and r = rho/(1 + rho), the
point is z_t = x/(1 + sigma), and the same D is the average velocity from r to t (arXiv 2505.13447),

    u(z_t, r, t) = (z_t - z_r)/(t - r) = (z_t - D)/t = (x - D)/sigma - D

with r = t the instantaneous one, v. Levels stay sigma throughout: 1 - t = 1/(1 + sigma) has all
digits where t is nearly 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.diffusion.denoiser import column
from fdistill.diffusion.noise import even_time_grid
from fdistill.types import Denoise

# Levels of training: t in [1e-4, 1 - 1e-5]. Below, (x - D)/sigma has lost its digits in float32.
LOWEST, HIGHEST = 1e-4, 1e5

# Conditions of a network that is told where it is guided by the scale `guidance`: flow times.
INTERVAL = ('guidance_low', 'guidance_high')


def jump(denoised: jax.Array, x: jax.Array, sigma: jax.Array, until: jax.Array) -> jax.Array:
    """J = D + (until/sigma) (x - D), an Euler step from sigma to `until` in one go; x itself where
    both are 0.

    Args:
      denoised, x: [B,...].
      sigma, until: [B], sigma >= until >= 0.
    """
    share = jnp.where(sigma > 0, until / jnp.where(sigma > 0, sigma, 1), 1)
    return denoised + column(share, x) * (x - denoised)


def velocity(denoised: jax.Array, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """u = (x - D)/sigma - D, average or instantaneous as D is, [B,...].

    Args:
      denoised, x: [B,...].
      sigma: [B], > 0.
    """
    return (x - denoised) / column(sigma, x) - denoised


def denoised(u: jax.Array, x: jax.Array, sigma: jax.Array) -> jax.Array:
    """D = z_t - t u = (x - sigma u)/(1 + sigma), the inverse of `velocity`."""
    return (x - column(sigma, x) * u) / column(1 + sigma, x)


def along(v: jax.Array, x: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(dx/dt, dsigma/dt) of a path with dz/dt = v: ((1 + sigma) (x + v), (1 + sigma)^2), [B,...]
    and [B]."""
    rate = 1 + sigma
    return column(rate, x) * (x + v), rate**2


def span(sigma: jax.Array, until: jax.Array) -> jax.Array:
    """t - r = (sigma - rho)/((1 + sigma) (1 + rho)), [B]; 0 exactly where both are equal."""
    return (sigma - until) / ((1 + sigma) * (1 + until))


def between(sigma: jax.Array, until: jax.Array, share: jax.Array | float) -> jax.Array:
    """The level at t - share (t - r), [B].

    Args:
      sigma, until: [B], sigma >= until >= 0.
      share: in [0, 1]; 0 is sigma itself.
    """
    high, low = 1 / (1 + sigma), 1 / (1 + until)
    return ((1 - share) * sigma * high + share * until * low) / ((1 - share) * high + share * low)


def even_levels(steps: int, highest: float) -> tuple[float, ...]:
    """Levels of as many jumps that are even in t, from `highest` downwards: [steps], the 0 at their
    end left out.

    Raises:
      ValueError: steps < 1, or a level that is not finite and > 0.
    """
    if steps < 1 or not 0 < highest < np.inf:
        raise ValueError(f'steps={steps}, level {highest}: need >= 1 and a level in (0, inf)')
    return tuple(even_time_grid(steps, highest)[:-1].tolist())


def straightness(denoise: Denoise, noise: jax.Array, highest: float, steps: int) -> jax.Array:
    """S = int |(z_1 - z_0) - v(z_t, t)|^2 dt along the path of the ODE from each noise, over the
    elements of a sample, [B] (rectified flow, arXiv 2209.03003, section 2.2).

    It is the variance of the velocity in time, and 0 where one Euler step is exact. The path is
    that of the midpoint rule, in steps that are even in t, and its chord the mean of the same
    velocities, so that S is never below 0.

    Args:
      denoise: (x[B,...], sigma[B]) -> x0[B,...].
      noise: z_t at the first level, ~ N(0, 1), [B,...].
      highest: level of the noise, > 0: t goes from highest/(1 + highest) to 0, and the mean is that
        over this time.
      steps: >= 1; twice as many evaluations.
    """
    # As in `between`: 1 - t = 1/(1 + sigma) keeps its digits.
    k = np.arange(2 * steps)
    rest = 1 / (1 + highest) + (1 - 1 / (1 + highest)) * k / (2 * steps)
    sigmas = jnp.asarray((1 - rest) / rest, noise.dtype).at[0].set(highest)
    width = highest / (1 + highest) / steps

    def v(z, sigma):
        level = jnp.full(z.shape[:1], sigma, z.dtype)
        x = column(1 + level, z) * z
        return velocity(denoise(x, level), x, level)

    def step(carry, now):
        (z, mean, square), (first, second, n) = carry, now
        middle = v(z - width / 2 * v(z, first), second)
        # By the mean so far (Welford): a difference of squares would be below 0 where S is small.
        apart = middle - mean
        square = square + (n - 1) / n * apart**2
        return (z - width * middle, mean + apart / n, square), ()

    zero = jnp.zeros_like(noise)
    levels = *sigmas.reshape(steps, 2).T, jnp.arange(1, steps + 1, dtype=noise.dtype)
    (_, _, square), _ = jax.lax.scan(step, (noise, zero, zero), levels)
    return jnp.mean(square, axis=tuple(range(1, noise.ndim))) / steps
