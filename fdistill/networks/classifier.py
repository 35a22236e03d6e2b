"""Small classifiers whose last hidden layer gives the features for Frechet distances on small
images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from fdistill.networks.layers import GroupNorm


class Classifier(NamedTuple):
    """A classifier as pure functions.

    init(key, x[B,H,W,C]) -> params
    apply(params, x[B,H,W,C], key=None) -> (logits[B, classes], features[B, d]), float32; the
      features are pre-activations, and `key` switches dropout on.
    layers(params, x[B,H,W,C]) -> activations of all hidden layers, each [B,h,w,channels] or
      [B,channels]
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    layers: Callable[..., Any]


# Full precision, or the features, and with them every distance, would depend on the accelerator.
PRECISION = 'highest'
FEATURES = 32


class _Perceptron(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, deterministic):
        layers = []
        for width in (256, 256):
            x = nn.tanh(nn.Dense(width, precision=PRECISION)(x.reshape(len(x), -1)))
            layers.append(x)
            x = nn.Dropout(0.3, deterministic=deterministic)(x)
        features = nn.Dense(FEATURES, precision=PRECISION)(x.reshape(len(x), -1))
        layers.append(nn.tanh(features))
        return nn.Dense(self.num_classes, precision=PRECISION)(layers[-1]), features, layers


class _Convolutional(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x, deterministic):
        # Half the side at once, and not normalised: layers of the full size take longest by far.
        width = self.width
        x = nn.silu(nn.Conv(width, (4, 4), strides=2, precision=PRECISION)(x))
        layers = [x]
        while max(x.shape[1:3]) > 4:
            x = nn.avg_pool(x, (2, 2), (2, 2), padding='SAME')
            width = min(2 * width, 4 * self.width)
            x = nn.Conv(width, (3, 3), precision=PRECISION)(x)
            x = nn.silu(GroupNorm(eps=1e-5)(x))
            layers.append(x)
        x = nn.Dropout(0.3, deterministic=deterministic)(x.reshape(len(x), -1))
        features = nn.Dense(FEATURES, precision=PRECISION)(x)
        layers.append(nn.silu(features))
        return nn.Dense(self.num_classes, precision=PRECISION)(layers[-1]), features, layers


def convolutional(image_shape: tuple[int, int, int]) -> bool:
    """Whether the classifier for images (H, W, C) has convolutions: from 16 x 16 pixels on."""
    return min(image_shape[:2]) >= 16


def classifier(num_classes: int, image_shape: tuple[int, int, int]) -> Classifier:
    """A classifier for images of this size.

    Below 16 x 16 pixels, a perceptron of widths 256, 256, 32 with dropout; from there on,
    convolutions of widths 32, 64, 128, 128, ... (twice that for colour), each at half the side of
    the one before, down to 4 pixels, dropout and then the 32.

    Args:
      num_classes: number of classes.
      image_shape: (H, W, C).

    Returns:
      Classifier with 32 features.
    """
    module = (
        _Convolutional(num_classes, 32 if image_shape[2] == 1 else 64)
        if convolutional(image_shape)
        else _Perceptron(num_classes)
    )
    return Classifier(
        init=lambda key, x: module.init(key, jnp.asarray(x), True),
        apply=lambda params, x, key=None: module.apply(
            params, x, key is None, rngs=None if key is None else {'dropout': key}
        )[:2],
        layers=lambda params, x: tuple(module.apply(params, x, True)[2]),
    )
