"""LPIPS, version 0.1, as features: the squared distance of two images' features, summed over the
layers of a frozen classifier, is their LPIPS.

    phi_l(x) = sqrt(w_l / (H_l W_l)) a_l(x) / |a_l(x)|,
    LPIPS(x, y) = sum_l |phi_l(x) - phi_l(y)|^2 = sum_l mean over positions of w_l . (...)^2

a_l are activations behind a ReLU, of unit length over their channels at each position; w_l >= 0 was
learned from people's judgements. As there is a feature for each channel and position, it can be
matched by any loss that takes features.

Reference: Zhang et al., arXiv 1801.03924, equation 1. Names of arrays are those of torchvision's
  state dicts and of the files weights/v0.1/*.pth of github.com/richzhang/PerceptualSimilarity;
  shift and scale, which version 0.0 had not, are that code's.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.errors import pick

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-10  # of every length
# Otherwise TPUs and GPUs round the factors of float32 products, and the distance with them.
_HIGHEST = jax.lax.Precision.HIGHEST


class Perceptual(NamedTuple):
    """A network of LPIPS as pure functions.

    smallest: pixels of a side: below this the last layer has none left.
    shapes() -> {name: shape} of all float32 arrays, in torch's layouts.
    from_arrays({name: array}) -> params.
    init(key) -> params, random.
    apply(params, images float [B,H,W,3] in [-1,1]) -> (float32 [B, H_l W_l C_l], ...), a layer each
    """

    smallest: int
    shapes: Callable[..., Any]
    from_arrays: Callable[..., Any]
    init: Callable[..., Any]
    apply: Callable[..., Any]


class Convolution(NamedTuple):
    """A convolution of torchvision's `features`, with a ReLU behind it.

    index: in `features`.
    channels: that it makes.
    size, stride, padding: of its kernel, along both axes.
    """

    index: int
    channels: int
    size: int = 3
    stride: int = 1
    padding: int = 1


class Stage(NamedTuple):
    """What leads to an activation that is compared.

    pool: side of the windows, two pixels apart, that are pooled first; 0 where there are none.
    convolutions: one after another.
    """

    pool: int
    convolutions: tuple[Convolution, ...]


class Trunk(NamedTuple):
    """A classifier of torchvision, up to the last activation that is compared.

    stages: one after another.
    smallest: pixels of a side.
    """

    stages: tuple[Stage, ...]
    smallest: int


def _stage(pool, channels, *indices):
    return Stage(pool, tuple(Convolution(index, channels) for index in indices))


# VGG16, Simonyan and Zisserman, arXiv 1409.1556; AlexNet, Krizhevsky, arXiv 1404.5997.
TRUNKS = {
    'vgg': Trunk(
        (
            _stage(0, 64, 0, 2),
            _stage(2, 128, 5, 7),
            _stage(2, 256, 10, 12, 14),
            _stage(2, 512, 17, 19, 21),
            _stage(2, 512, 24, 26, 28),
        ),
        smallest=16,
    ),
    'alex': Trunk(
        (
            Stage(0, (Convolution(0, 64, 11, 4, 2),)),
            Stage(3, (Convolution(3, 192, 5, 1, 2),)),
            _stage(3, 384, 6),
            _stage(0, 256, 8),
            _stage(0, 256, 10),
        ),
        smallest=31,
    ),
}


def normalised(activation: jax.Array, weight: jax.Array | float = 1.0) -> jax.Array:
    """sqrt(weight / (h w)) a / |a| at each position, [B, h*w*C]; 0 where a is.

    Between two images the squared distance of these is the mean over positions of
    sum_c weight_c (a_c/|a| - b_c/|b|)^2. In the published code the gradient at a = 0 is not a
    number.

    Args:
      activation: a, [B, h, w, C], or [B, C] of a layer without positions.
      weight: >= 0, [C], of its channels.
    """
    square = jnp.sum(activation**2, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(square > 0, square, 1)) + _EPS
    positions = np.prod(activation.shape[1:-1])
    flat = activation / length * jnp.sqrt(jnp.asarray(weight / positions, activation.dtype))
    return flat.reshape(len(flat), -1)


def _convolve(params, layer, x):
    y = jax.lax.conv_general_dilated(
        x,
        params['kernel'],
        (layer.stride, layer.stride),
        [(layer.padding, layer.padding)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=_HIGHEST,
    )
    return jax.nn.relu(y + params['bias'])


def _windows(x, size, combine):
    """`combine` of neighbours along height, then along width; by slices, as XLA is several times
    slower with reduce_window on CPU."""
    for axis in (1, 2):
        count = (x.shape[axis] - size) // 2 + 1
        slices = (jax.lax.slice_in_dim(x, k, k + 2 * count - 1, 2, axis) for k in range(size))
        x = functools.reduce(combine, slices)
    return x


# name -> (x[B,h,w,C], side of the windows) -> the same at half the side.
POOLINGS = {
    'max': lambda x, size: _windows(x, size, jnp.maximum),
    'average': lambda x, size: _windows(x, size, jnp.add) / size**2,
}


def lpips(net: str = 'vgg', pooling: str = 'max') -> Perceptual:
    """LPIPS on a network of torchvision.

    Args:
      net: key of `TRUNKS`. Images of 32 x 32 pixels have 125,000 features on VGG16 and 5,800 on
        AlexNet, those of 224 x 224 pixels 49 and 84 times as many.
      pooling: key of `POOLINGS`. Published LPIPS has 'max'; 'average' is the distance that 2-RF++
        was trained by (piq's LPIPS with replace_pooling), smoother in the image.

    Raises:
      ValueError: unknown network or pooling.
    """
    stages, smallest = pick(TRUNKS, net, 'network of LPIPS')
    pool = pick(POOLINGS, pooling, 'pooling')
    layers = [layer for stage in stages for layer in stage.convolutions]

    def shapes():
        """Of the classifier's last layers, which LPIPS does not use, there are none."""
        table, channels = {}, 3
        for layer in layers:
            name = f'features.{layer.index}'
            table[f'{name}.weight'] = (layer.channels, channels, layer.size, layer.size)
            table[f'{name}.bias'] = (layer.channels,)
            channels = layer.channels
        for number, stage in enumerate(stages):
            table[_judgement(number)] = (1, stage.convolutions[-1].channels, 1, 1)
        return table

    def from_arrays(arrays):
        """Raises ValueError: an array is missing, too many or of another shape, or a channel weighs
        less than 0."""
        expected = shapes()
        found = {name: tuple(array.shape) for name, array in arrays.items()}
        wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
        if wrong:
            raise ValueError(
                f'arrays of LPIPS on {net}: {len(wrong)} missing, unknown or of another shape '
                f'({", ".join(wrong[:3])}); give those of its shapes()'
            )
        weights = [np.asarray(arrays[_judgement(number)]) for number in range(len(stages))]
        for number, weight in enumerate(weights):
            if not np.min(weight) >= 0:
                raise ValueError(
                    f'arrays of LPIPS: {_judgement(number)} has a weight of {np.min(weight)}; '
                    'those of a distance are not below 0'
                )
        params = {
            f'features.{layer.index}': {
                'kernel': np.asarray(arrays[f'features.{layer.index}.weight']).transpose(
                    2, 3, 1, 0
                ),
                'bias': arrays[f'features.{layer.index}.bias'],
            }
            for layer in layers
        } | {f'lin{number}': weight.reshape(-1) for number, weight in enumerate(weights)}
        return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params)

    def init(key):
        """Kernels N(0, 2/fan_in), biases 0, channels weighed from U(0, 1)."""
        table = shapes()

        def draw(key, name):
            shape = table[name]
            if name.startswith('lin'):
                return jax.random.uniform(key, shape)
            if len(shape) == 1:
                return jnp.zeros(shape)
            return jnp.sqrt(2 / np.prod(shape[1:])) * jax.random.normal(key, shape)

        keys = jax.random.split(key, len(table))
        return from_arrays({name: draw(key, name) for name, key in zip(table, keys, strict=True)})

    def apply(params, images):
        """Raises ValueError where the images do not fit."""
        if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < smallest:
            raise ValueError(
                f'images of shape {images.shape}: LPIPS on {net} takes [B, H, W, 3] of at least '
                f'{smallest} pixels a side; resize them'
            )
        x, seen = (images - jnp.array(SHIFT)) / jnp.array(SCALE), []
        for number, stage in enumerate(stages):
            x = pool(x, stage.pool) if stage.pool else x
            for layer in stage.convolutions:
                x = _convolve(params[f'features.{layer.index}'], layer, x)
            seen.append(normalised(x, params[f'lin{number}']))
        return tuple(seen)

    return Perceptual(smallest, shapes, from_arrays, init, apply)


def _judgement(number):
    """Name of the weights of a layer's channels."""
    return f'lin{number}.model.1.weight'
