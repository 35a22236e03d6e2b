"""TrigFlow, the coordinate of continuous-time consistency models, as a view on the one sigma.

    t = arctan(sigma/sigma_data) in [0, pi/2),  x_t = cos(t) x_sigma = cos(t) x + sin(t) z
    D(x_sigma, sigma) = cos(t) x_t - sin(t) sigma_data F(x_t, t)

with z ~ N(0, sigma_data^2 I). x_t has the standard deviation sigma_data at every t, and where D is
the posterior mean, sigma_data F is the velocity dx_t/dt of the probability-flow ODE; where D is x
itself, it is the velocity cos(t) z - sin(t) x of that pair. Under EDM's preconditioning F is minus
the network's output, at the same input c_in x_sigma = x_t/sigma_data. A turn of (x_t, F) by an
angle is an Euler step in sigma.

Reference: arXiv 2410.11081, section 3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fdistill.diffusion.denoiser import column
from fdistill.types import Denoise


def time(sigma: jax.Array, sigma_data: float) -> jax.Array:
    """t = arctan(sigma/sigma_data), in [0, pi/2) for sigma >= 0."""
    return jnp.arctan(sigma / sigma_data)


def level(t: jax.Array, sigma_data: float) -> jax.Array:
    """sigma = sigma_data tan(t), for t in [0, pi/2)."""
    return sigma_data * jnp.tan(t)


def cos_sin(sigma: jax.Array, sigma_data: float) -> tuple[jax.Array, jax.Array]:
    """(cos(t), sin(t)) of a level, each as exact as sigma is: near pi/2 the cosine of a rounded t
    is not."""
    total = jnp.sqrt(sigma**2 + sigma_data**2)
    return sigma_data / total, sigma / total


def output(denoised: jax.Array, x: jax.Array, sigma: jax.Array, sigma_data: float) -> jax.Array:
    """F = (cos(t) x_t - D)/(sin(t) sigma_data), [B,...].

    Args:
      denoised: D(x, sigma), [B,...].
      x: x_sigma, [B,...].
      sigma: [B], > 0.
      sigma_data: > 0.
    """
    cos, sin = (column(of, x) for of in cos_sin(sigma, sigma_data))
    return (cos**2 * x - denoised) / (sin * sigma_data)


def view(denoise: Denoise, sigma_data: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """F(x_t[B,...], t[B]) -> [B,...] of a denoiser, for t in (0, pi/2)."""

    def network(x_t, t):
        x, sigma = x_t / column(jnp.cos(t), x_t), level(t, sigma_data)
        return output(denoise(x, sigma), x, sigma, sigma_data)

    return network
