"""Samplers of the probability-flow ODE dx/dsigma = (x - D(x, sigma))/sigma (EDM, arXiv 2206.00364, equation 1).

All have the signature sampler(denoise, x[B,...], sigmas[N+1], key=None) -> x0: `denoise(x, sigma[B]) -> x0`, `x` noise at
level sigmas[0], `sigmas` falling, usually to 0. They step with lax.scan, so one program serves any number of steps.
"""

import jax
import jax.numpy as jnp
import numpy as np


def _checked(x, sigmas):
    """sigmas in the dtype of x. Values are checked only where they are known, that is outside jit."""
    if np.ndim(sigmas) != 1 or np.shape(sigmas)[0] < 2:
        raise ValueError(f'sigmas of shape {np.shape(sigmas)}: need at least two levels in one dimension')
    if not isinstance(sigmas, jax.core.Tracer):
        values = np.asarray(sigmas)
        if not (np.all(np.isfinite(values)) and np.all(np.diff(values) < 0) and values[-1] >= 0):
            raise ValueError(f'sigmas={values}: need finite, strictly falling levels >= 0')
    return jnp.asarray(sigmas, x.dtype)


def _slope(denoise, x, sigma):
    return (x - denoise(x, jnp.full(x.shape[0], sigma))) / sigma


def euler(denoise, x, sigmas, key=None):
    """Euler steps, which are DDIM's in this coordinate; order 1, N network evaluations."""
    sigmas = _checked(x, sigmas)

    def step(x, levels):
        sigma, sigma_next = levels
        return x + (sigma_next - sigma) * _slope(denoise, x, sigma), None

    return jax.lax.scan(step, x, (sigmas[:-1], sigmas[1:]))[0]


def heun(denoise, x, sigmas, key=None):
    """Heun's method, Euler on a step to sigma = 0 (EDM, algorithm 1); order 2, 2N - 1 evaluations when sigmas end in 0."""
    sigmas = _checked(x, sigmas)

    def step(x, levels):
        sigma, sigma_next = levels
        d = _slope(denoise, x, sigma)
        x_euler = x + (sigma_next - sigma) * d

        def corrected():
            # The guard matters under vmap only, where both branches run and 0 would make a NaN.
            d_prime = _slope(denoise, x_euler, jnp.maximum(sigma_next, jnp.finfo(x.dtype).tiny))
            return x + (sigma_next - sigma) * (d + d_prime) / 2

        return jax.lax.cond(sigma_next > 0, corrected, lambda: x_euler), None

    return jax.lax.scan(step, x, (sigmas[:-1], sigmas[1:]))[0]


# name -> (sampler, network evaluations of N steps that end at 0)
SAMPLERS = {'euler': (euler, lambda steps: steps), 'heun': (heun, lambda steps: 2 * steps - 1)}
