"""Corrections of sampling at inference time: of the level the network is told, and of where
sampling starts."""

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.types import Denoise


def time_shift(
    denoise: Denoise, *, variance: float, window: float = 0.1, cutoff: float = 0.0
) -> Denoise:
    """Time-Shift (arXiv 2305.15583) in this coordinate: tells the network the level that the state
    looks like.

    sigma_s^2 = Var(x) - variance, over the elements of each sample (unbiased), with sigma_s clipped
    to [sigma (1 - window), sigma (1 + window)]. The result is D(x, sigma_s), so that it goes with
    every sampler.

    The paper compares Var(x) with the noise alone, which is variance = 0 here: that takes sigma too
    high, by what the data's own variance adds. The paper's published codes do not feed the shifted
    time to the network. Where x = y + sigma_s eps, a step to sigma' then has the noise
    sigma_s sigma'/sigma: the relative error of the level stays what it was and does not grow.

    Args:
      denoise: denoise(x[B,...], sigma[B]) -> x0.
      variance: mean over the data of the variance within a sample, >= 0; see `variance_within`.
      window: in [0, 1); 0 is `denoise` itself.
      cutoff: levels at or below it are left alone, >= 0.

    Returns:
      A function like `denoise`.

    Raises:
      ValueError: on values out of range.
    """
    if not variance >= 0 or not 0 <= window < 1 or not cutoff >= 0:
        raise ValueError(
            f'variance={variance}, window={window}, cutoff={cutoff}: need >= 0, in [0, 1), >= 0'
        )

    def shifted(x, sigma):
        measured = jnp.var(x.reshape(x.shape[0], -1), axis=1, ddof=1) - variance
        seen = jnp.clip(
            jnp.sqrt(jnp.maximum(measured, 0)), sigma * (1 - window), sigma * (1 + window)
        )
        return denoise(x, jnp.where(sigma > cutoff, seen, sigma))

    return shifted


def variance_within(images: np.ndarray | jax.Array) -> float:
    """Mean over samples of the unbiased variance over the elements of one, for `time_shift`; images
    [N, ...] in [-1, 1]."""
    return float(jnp.mean(jnp.var(jnp.asarray(images).reshape(len(images), -1), axis=1, ddof=1)))


def analytic_init(
    unit_noise: jax.Array, sigma_max: float, mean: jax.typing.ArrayLike, variance: float
) -> jax.Array:
    """A start N(mean, (sigma_max^2 + variance) I). Among Gaussians of this round form it is nearest
    in KL to the data's distribution at sigma_max.

    Sampling from N(0, sigma_max^2 I) forgets the data's mean and variance, which shows where
    sigma_max is small compared with them (Analytic-Init of the paper on image-to-video leakage,
    arXiv 2406.15735).

    Args:
      unit_noise: [B, ...].
      sigma_max: first level, > 0.
      mean: E[x0], one number or of the shape of a sample.
      variance: tr Cov(x0)/D >= 0, D the number of elements.

    Raises:
      ValueError: on values out of range.
    """
    if not sigma_max > 0 or not variance >= 0:
        raise ValueError(f'sigma_max={sigma_max}, variance={variance}: need > 0 and >= 0')
    return mean + jnp.sqrt(sigma_max**2 + variance) * unit_noise
