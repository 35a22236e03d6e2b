"""Small classifiers whose last hidden layer gives the features for Frechet distances on small
images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp


class Classifier(NamedTuple):
    """A classifier as two pure functions.

    init(key, x[B,H,W,C]) -> params
    apply(params, x[B,H,W,C], key=None) -> (logits[B, classes], features[B, d]), float32; the
      features are pre-activations, and `key` switches dropout on.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


class _Classifier(nn.Module):
    num_classes: int
    widths: tuple
    convolutional: bool

    @nn.compact
    def __call__(self, x, deterministic):
        # Full precision, or the features, and with them every distance, would depend on the
        # accelerator.
        for width in self.widths[:-1]:
            if self.convolutional:
                x = nn.silu(nn.Conv(width, (3, 3), strides=(2, 2), precision='highest')(x))
            else:
                x = nn.tanh(nn.Dense(width, precision='highest')(x.reshape(len(x), -1)))
                x = nn.Dropout(0.3, deterministic=deterministic)(x)
        features = nn.Dense(self.widths[-1], precision='highest')(x.reshape(len(x), -1))
        activation = nn.silu if self.convolutional else nn.tanh
        return nn.Dense(self.num_classes, precision='highest')(activation(features)), features


def classifier(num_classes: int, image_shape: tuple[int, int, int]) -> Classifier:
    """A classifier for images of this size.

    Below 16 x 16 pixels, a perceptron of widths 256, 256, 32 with dropout; from there on, strided
    convolutions 32, 64, 128 and then the 32.

    Args:
      num_classes: number of classes.
      image_shape: (H, W, C).

    Returns:
      Classifier with 32 features.
    """
    large = min(image_shape[:2]) >= 16
    module = _Classifier(num_classes, (32, 64, 128, 32) if large else (256, 256, 32), large)
    return Classifier(
        init=lambda key, x: module.init(key, jnp.asarray(x), True),
        apply=lambda params, x, key=None: module.apply(
            params, x, key is None, rngs=None if key is None else {'dropout': key}
        ),
    )
