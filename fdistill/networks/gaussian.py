"""The smallest generator there is: one scale and one offset, so that noise becomes one round
Gaussian."""

import jax
import jax.numpy as jnp

from fdistill.networks import Network


def gaussian(
    *, num_classes: int = 0, scale: float = 0.0, offset: float = 0.0, spread: float = 0.0
) -> Network:
    """F(x) = scale x + offset: a student too poor for any mixture, which shows what its divergence
    prefers.

    Args:
      num_classes: must be 0 or 1; it has no labels.
      scale, offset: at the start.
      spread: standard deviation of the offset's own start, a dimension, >= 0: other seeds start
        elsewhere.

    Raises:
      ValueError: if there are classes or spread < 0.
    """
    if num_classes > 1:
        raise ValueError(
            f'num_classes={num_classes}: one Gaussian has no classes; use data without labels'
        )
    if not spread >= 0:
        raise ValueError(f'spread={spread}: must be >= 0')

    def init(key, x, c_noise, condition):
        start = offset + spread * jax.random.normal(key, x.shape[1:], x.dtype)
        return {'scale': jnp.full((), scale, x.dtype), 'offset': start}

    def apply(params, x, c_noise, condition, key=None):
        return params['scale'] * x + params['offset'], ()

    return Network(init, apply)
