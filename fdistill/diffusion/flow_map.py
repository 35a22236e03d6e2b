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
    t = highest / (1 + highest) * (1 - np.arange(steps) / steps)
    return (float(highest), *(t[1:] / (1 - t[1:])).tolist())
