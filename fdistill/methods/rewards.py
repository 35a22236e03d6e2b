"""Rewards: what a sample is to be like besides being the teacher's. Frozen; a method takes their
gradient, or only ranks samples by them.

A new reward needs one row of `REWARDS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.networks.classifier import classifier


class Reward(NamedTuple):
    """A reward as two pure functions.

    init(key, x[B,...], condition) -> params, of the shapes that `apply` takes; {} for none.
    apply(params, x[B,...], condition) -> r[B], the more the better.
    trained: the seed of the classifier of the data whose parameters `apply` takes; None where it
      takes none.
    """

    init: Callable[..., Any]
    apply: Callable[..., jax.Array]
    trained: int | None = None


def _of_x(function):
    """A `Reward` of the sample alone, without parameters."""
    return Reward(lambda key, x, condition: {}, lambda params, x, condition: function(x))


def _flat(x):
    return x.reshape(len(x), -1)


def _fitting(numbers, x, name):
    """x flattened, [B, n]; numbers must be n or one."""
    flat = _flat(x)
    if len(numbers) not in (1, flat.shape[1]):
        raise ValueError(
            f'{name} has {len(numbers)} numbers: give {flat.shape[1]}, or one for all elements'
        )
    return flat


def linear(*, direction: tuple[float, ...] = (1.0,)) -> Reward:
    """r = direction . x, over the n elements of a sample.

    Args:
      direction: [n], or one number for all elements.

    Raises:
      ValueError: an empty direction.
    """
    if not direction:
        raise ValueError('direction=(): give a number an element, or one for all')
    slope = np.asarray(direction)

    def dot(x):
        flat = _fitting(slope, x, 'direction')
        return jnp.sum(flat * jnp.asarray(slope, x.dtype), axis=1)

    return _of_x(dot)


def quadratic(*, curvature: float = 1.0, centre: tuple[float, ...] = (0.0,)) -> Reward:
    """r = -curvature/2 |x - centre|^2.

    Args:
      curvature: > 0.
      centre: [n], or one number for all elements.

    Raises:
      ValueError: a curvature <= 0, or an empty centre.
    """
    if not curvature > 0 or not centre:
        raise ValueError(f'curvature={curvature}, centre={centre}: need > 0, and a number or more')
    middle = np.asarray(centre)

    def bowl(x):
        flat = _fitting(middle, x, 'centre')
        return -curvature / 2 * jnp.sum((flat - jnp.asarray(middle, x.dtype)) ** 2, axis=1)

    return _of_x(bowl)


def brightness() -> Reward:
    """r = mean of x: of grey levels in [-1, 1], 1 for white."""
    return _of_x(lambda x: jnp.mean(_flat(x), axis=1))


def of_classifier(
    *,
    shape: tuple[int, ...],
    num_classes: int,
    seed: int = 1,
    wanted: int | None = None,
    unwanted: int | None = None,
    only: int | None = None,
) -> Reward:
    """r = log p(wanted | x) - log p(unwanted | x), by a classifier of the data.

    `wanted=3, unwanted=8, only=8` says "be a 3-like 8". The difference is that of two logits, and
    has no upper bound; log p(wanted | x) alone ends at 0.

    Args:
      shape: of an image.
      num_classes: of the data, >= 2.
      seed: of the classifier, >= 0. The evaluation's own is that of seed 0, so that a student is
        not judged by what it was trained on.
      wanted: a class; default: that of the sample's label.
      unwanted: a class whose log-probability is subtracted; default: none.
      only: the class whose samples have this reward, all others 0; default: all have it.

    Raises:
      ValueError: on data without images or classes, or a class that they do not have.
    """
    if len(shape) != 3 or num_classes < 2:
        raise ValueError(
            f'a classifier needs images of several classes; the data have shape {shape} and '
            f'{num_classes} classes'
        )
    for name, value in (('wanted', wanted), ('unwanted', unwanted), ('only', only)):
        if value is not None and not 0 <= value < num_classes:
            raise ValueError(f'{name}={value}: must be a class, 0..{num_classes - 1}')
    if seed < 0:
        raise ValueError(f'seed={seed}: must be >= 0')
    model = classifier(num_classes=num_classes, image_shape=shape)

    def apply(params, x, condition):
        log_p = jax.nn.log_softmax(model.apply(params, x)[0])
        if wanted is None:
            label = condition['label']
            r = jnp.take_along_axis(log_p, jnp.maximum(label, 0)[:, None], axis=1)[:, 0]
            r = jnp.where(label >= 0, r, 0)  # Without a label nothing is wanted.
        else:
            r = log_p[:, wanted]
        if unwanted is not None:
            r = r - log_p[:, unwanted]
        return r if only is None else jnp.where(condition['label'] == only, r, 0)

    return Reward(lambda key, x, condition: model.init(key, x), apply, seed)


# name -> function of settings, and of what a sample is, that makes a `Reward`.
REWARDS = {
    'linear': linear,
    'quadratic': quadratic,
    'brightness': brightness,
    'classifier': of_classifier,
}
