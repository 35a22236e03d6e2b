"""The InceptionV3 of the FID: the classifier of 1008 classes of 2015-12-05, as pure functions of
JAX arrays.

It is not torchvision's network: average pools do not count their padding, the last block pools the
maximum, and there is no auxiliary classifier. Parameters have the names of pytorch-fid's state
dict; inside, batch norm is part of the convolutions.

Reference: Szegedy et al., arXiv 1512.00567; TensorFlow's graph inception-2015-12-05; for names and
  for what differs from torchvision, pytorch-fid's inception.py; for the spatial features,
  guided-diffusion's evaluations/evaluator.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CLASSES = 1008
SMALLEST = 75  # pixels: below this the last block has no pixel left
SPATIAL_CHANNELS = 7
_EPS = 1e-3  # of every batch norm
# Otherwise TPUs and GPUs round the factors of float32 products, and the features with them.
_HIGHEST = jax.lax.Precision.HIGHEST


class InceptionFeatures(NamedTuple):
    """What the metrics take from one forward pass, all float32.

    Args:
        pool: [B, 2048], TensorFlow's pool_3: the mean over the pixels of the last block; for FID,
          KID, precision and recall.
        spatial: [B, h*w*7], in the order h, w, channel; 17*17*7 = 2023 for 299 x 299. The first
          seven channels of TensorFlow's mixed_6/conv:0, for sFID. That node is the 1x1 branch after
          its batch norm and relu (the bare convolution is mixed_6/conv/Conv2D), hence the first
          channels of block Mixed_6d's output.
        logits: [B, 1008], of pool without the bias of the last layer ("unbiased"); for the
          inception score.
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array


_BLOCK_A = {
    'branch1x1': (64, 1, 1),
    'branch5x5_1': (48, 1, 1),
    'branch5x5_2': (64, 5, 5),
    'branch3x3dbl_1': (64, 1, 1),
    'branch3x3dbl_2': (96, 3, 3),
    'branch3x3dbl_3': (96, 3, 3),
    'branch_pool': (64, 1, 1),
}


def _block_c(width):
    return {
        'branch1x1': (192, 1, 1),
        'branch7x7_1': (width, 1, 1),
        'branch7x7_2': (width, 1, 7),
        'branch7x7_3': (192, 7, 1),
        'branch7x7dbl_1': (width, 1, 1),
        'branch7x7dbl_2': (width, 7, 1),
        'branch7x7dbl_3': (width, 1, 7),
        'branch7x7dbl_4': (width, 7, 1),
        'branch7x7dbl_5': (192, 1, 7),
        'branch_pool': (192, 1, 1),
    }


_BLOCK_B = {
    'branch3x3': (384, 3, 3),
    'branch3x3dbl_1': (64, 1, 1),
    'branch3x3dbl_2': (96, 3, 3),
    'branch3x3dbl_3': (96, 3, 3),
}
_BLOCK_D = {
    'branch3x3_1': (192, 1, 1),
    'branch3x3_2': (320, 3, 3),
    'branch7x7x3_1': (192, 1, 1),
    'branch7x7x3_2': (192, 1, 7),
    'branch7x7x3_3': (192, 7, 1),
    'branch7x7x3_4': (192, 3, 3),
}
_BLOCK_E = {
    'branch1x1': (320, 1, 1),
    'branch3x3_1': (384, 1, 1),
    'branch3x3_2a': (384, 1, 3),
    'branch3x3_2b': (384, 3, 1),
    'branch3x3dbl_1': (448, 1, 1),
    'branch3x3dbl_2': (384, 3, 3),
    'branch3x3dbl_3a': (384, 1, 3),
    'branch3x3dbl_3b': (384, 3, 1),
    'branch_pool': (192, 1, 1),
}
# Layer -> (input channels, features, height, width of its kernel).
_STEM = {
    'Conv2d_1a_3x3': (3, 32, 3, 3),
    'Conv2d_2a_3x3': (32, 32, 3, 3),
    'Conv2d_2b_3x3': (32, 64, 3, 3),
    'Conv2d_3b_1x1': (64, 80, 1, 1),
    'Conv2d_4a_3x3': (80, 192, 3, 3),
}
# Block -> (input channels, {branch: (features, height, width of its kernel)}). A branch's layers
# _2, _3, ... read the one numbered before; all others read the block's input.
_BLOCKS = {
    'Mixed_5b': (192, _BLOCK_A | {'branch_pool': (32, 1, 1)}),
    'Mixed_5c': (256, _BLOCK_A),
    'Mixed_5d': (288, _BLOCK_A),
    'Mixed_6a': (288, _BLOCK_B),
    'Mixed_6b': (768, _block_c(128)),
    'Mixed_6c': (768, _block_c(160)),
    'Mixed_6d': (768, _block_c(160)),
    'Mixed_6e': (768, _block_c(192)),
    'Mixed_7a': (768, _BLOCK_D),
    'Mixed_7b': (1280, _BLOCK_E),
    'Mixed_7c': (2048, _BLOCK_E),
}


def _inputs(block, branch):
    """Channels that a branch's layer reads."""
    channels, branches = _BLOCKS[block]
    stem, _, number = branch.rpartition('_')
    if not number.rstrip('ab').isdecimal() or number == '1':
        return channels
    return branches[f'{stem}_{int(number.rstrip("ab")) - 1}'][0]


def _kernels():
    """{layer: kernel's shape (features, input channels, height, width)}, in the order of the
    network."""
    kernels = {
        name: (features, channels, *size) for name, (channels, features, *size) in _STEM.items()
    }
    for block, (_, branches) in _BLOCKS.items():
        for branch, (features, *size) in branches.items():
            kernels[f'{block}.{branch}'] = (features, _inputs(block, branch), *size)
    return kernels


def shapes() -> dict[str, tuple[int, ...]]:
    """{name: shape} of the arrays that `from_arrays` takes: pytorch-fid's state dict, kernels as
    OIHW.

    `num_batches_tracked`, which no computation reads, is not among them.
    """
    table = {}
    for layer, shape in _kernels().items():
        table[f'{layer}.conv.weight'] = shape
        table.update(
            {
                f'{layer}.bn.{name}': shape[:1]
                for name in ('weight', 'bias', 'running_mean', 'running_var')
            }
        )
    return table | {'fc.weight': (CLASSES, 2048), 'fc.bias': (CLASSES,)}


def _check(arrays):
    expected = shapes()
    problems = {
        'missing': [name for name in expected if name not in arrays],
        'not of this network': [name for name in arrays if name not in expected],
        'of another shape': [
            f'{name} {tuple(arrays[name].shape)}, not {shape}'
            for name, shape in expected.items()
            if name in arrays and tuple(arrays[name].shape) != shape
        ],
    }
    said = [
        f'{len(names)} {problem} ({"; ".join(names[:3])}{"; ..." if len(names) > 3 else ""})'
        for problem, names in problems.items()
        if names
    ]
    if said:
        raise ValueError(
            f'arrays of the FID InceptionV3: {", ".join(said)}; give those of inception.shapes(), '
            "the network of 2015-12-05 with 1008 classes, not torchvision's"
        )


def from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, jax.Array]]:
    """Parameters of `apply`: batch norm is folded into the convolutions, and the 1x1 kernels that
    read one input are put side by side.

        conv(x, W) gamma/sqrt(var + eps) + beta - mean gamma/sqrt(var + eps) = conv(x, W') + b'

    computed in float64.

    Args:
        arrays: {name: array} with the names and shapes of `shapes`; any float type.

    Returns:
        {layer: {'kernel': float32 [h, w, in, out], 'bias': float32 [out]}}; 'Mixed_5b' itself holds
        the 1x1 kernels on that block's input. 'fc' has a kernel [2048, 1008] only.

    Raises:
        ValueError: an array is missing, of another shape, or not of this network.
    """
    _check(arrays)
    layers = {}
    for layer in _kernels():
        gamma, beta, mean, variance = (
            np.asarray(arrays[f'{layer}.bn.{name}'], np.float64)
            for name in ('weight', 'bias', 'running_mean', 'running_var')
        )
        scale = gamma / np.sqrt(variance + _EPS)
        kernel = np.asarray(arrays[f'{layer}.conv.weight']).transpose(2, 3, 1, 0)
        layers[layer] = {'kernel': kernel * scale, 'bias': beta - mean * scale}
    for block in _BLOCKS:
        parts = [layers.pop(f'{block}.{branch}') for branch in _entries(block)]
        layers[block] = {
            name: np.concatenate([part[name] for part in parts], -1) for name in ('kernel', 'bias')
        }
    layers['fc'] = {'kernel': np.asarray(arrays['fc.weight']).T}
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), layers)


def _entries(block):
    """Branches with a 1x1 kernel on the block's input. The last block's pool is not one of them, as
    a maximum does not commute with the kernel."""
    _, branches = _BLOCKS[block]
    return [
        branch
        for branch, (_, *size) in branches.items()
        if size == [1, 1] and (block, branch) != ('Mixed_7c', 'branch_pool')
    ]


def draw(key: jax.Array) -> dict[str, np.ndarray]:
    """Random arrays for `from_arrays` that keep activations of order one: kernels N(0, 2/fan_in),
    trivial norms."""
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    arrays = {}
    for name, shape in shapes().items():
        if len(shape) > 1:
            arrays[name] = random.standard_normal(shape, np.float32) * np.float32(
                np.sqrt(2 / np.prod(shape[1:]))
            )
        else:
            arrays[name] = np.full(
                shape, float(name.endswith(('bn.weight', 'running_var'))), np.float32
            )
    return arrays


def init(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
    """Random parameters of `apply`, for tests and benchmarks; drawn by numpy and so not under
    jit."""
    return from_arrays(draw(key))


def _convolve(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=_HIGHEST,
    )


def _same(params, layer, x):
    """relu(conv(x, kernel) + bias), padded so that the size stays."""
    kernel, bias = params[layer]['kernel'], params[layer]['bias']
    padding = [((size - 1) // 2,) * 2 for size in kernel.shape[:2]]
    return jax.nn.relu(_convolve(x, kernel, 1, padding) + bias)


def _valid(params, layer, x, stride=1):
    """relu(conv(x, kernel) + bias) with a 3x3 kernel and without padding.

    The row of zeros below is there for XLA's CPU compiler alone, which takes a convolution with
    padding to a routine up to four times faster; the row that it may add to the result is cut off
    again.
    """
    kernel, bias = params[layer]['kernel'], params[layer]['bias']
    y = _convolve(x, kernel, stride, [(0, 1), (0, 0)])
    return jax.nn.relu(y[:, : (x.shape[1] - 3) // stride + 1] + bias)


def _pointwise(params, layer, x):
    """1x1 convolution without relu, as the matrix product that it is."""
    kernel = params[layer]['kernel'][0, 0]
    return (
        jax.lax.dot_general(x, kernel, (((3,), (0,)), ((), ())), precision=_HIGHEST)
        + params[layer]['bias']
    )


def _windows(x, stride, padding, combine):
    """`combine` of three neighbours along height, then along width; x is padded with the value
    `padding`, unless that is None.

    By slices, as XLA is several times slower with reduce_window on CPU.
    """
    for axis in (1, 2):
        if padding is not None:
            x = jnp.pad(
                x, [(1, 1) if i == axis else (0, 0) for i in range(4)], constant_values=padding
            )
        size = (x.shape[axis] - 3) // stride + 1
        a, b, c = (
            jax.lax.slice_in_dim(x, k, k + stride * (size - 1) + 1, stride, axis) for k in range(3)
        )
        x = combine(combine(a, b), c)
    return x


def _max_pool(x, stride=2, padding=None):
    return _windows(x, stride, padding, jnp.maximum)


def _average_pool(x):
    """Mean over those of the 3x3 neighbours that lie inside the image."""
    rows, columns = (
        3.0 - (np.arange(size) == 0) - (np.arange(size) == size - 1) for size in x.shape[1:3]
    )
    return _windows(x, 1, 0.0, jnp.add) * (1 / np.outer(rows, columns)[:, :, None]).astype(
        np.float32
    )


def _enter(params, block, x):
    """{branch: its first 1x1 layer on the block's input}, in one product.

    A mean that leaves out the padding commutes with a 1x1 kernel and its bias, so the pool comes
    after, on fewer channels.
    """
    sizes = [_BLOCKS[block][1][branch][0] for branch in _entries(block)]
    parts = jnp.split(_pointwise(params, block, x), np.cumsum(sizes)[:-1], -1)
    return {
        branch: jax.nn.relu(_average_pool(part) if branch == 'branch_pool' else part)
        for branch, part in zip(_entries(block), parts)
    }


def _chain(params, block, x, branch, numbers):
    for number in numbers:
        x = _same(params, f'{block}.{branch}_{number}', x)
    return x


def _mixed_a(params, block, x):
    entry = _enter(params, block, x)
    branch5x5 = _chain(params, block, entry['branch5x5_1'], 'branch5x5', '2')
    branch3x3dbl = _chain(params, block, entry['branch3x3dbl_1'], 'branch3x3dbl', '23')
    return jnp.concatenate([entry['branch1x1'], branch5x5, branch3x3dbl, entry['branch_pool']], -1)


def _mixed_b(params, block, x):
    entry = _enter(params, block, x)
    branch3x3 = _valid(params, f'{block}.branch3x3', x, 2)
    branch3x3dbl = _chain(params, block, entry['branch3x3dbl_1'], 'branch3x3dbl', '2')
    branch3x3dbl = _valid(params, f'{block}.branch3x3dbl_3', branch3x3dbl, 2)
    return jnp.concatenate([branch3x3, branch3x3dbl, _max_pool(x)], -1)


def _mixed_c(params, block, x):
    entry = _enter(params, block, x)
    branch7x7 = _chain(params, block, entry['branch7x7_1'], 'branch7x7', '23')
    branch7x7dbl = _chain(params, block, entry['branch7x7dbl_1'], 'branch7x7dbl', '2345')
    return jnp.concatenate([entry['branch1x1'], branch7x7, branch7x7dbl, entry['branch_pool']], -1)


def _mixed_d(params, block, x):
    entry = _enter(params, block, x)
    branch3x3 = _valid(params, f'{block}.branch3x3_2', entry['branch3x3_1'], 2)
    branch7x7x3 = _chain(params, block, entry['branch7x7x3_1'], 'branch7x7x3', '23')
    branch7x7x3 = _valid(params, f'{block}.branch7x7x3_4', branch7x7x3, 2)
    return jnp.concatenate([branch3x3, branch7x7x3, _max_pool(x)], -1)


def _mixed_e(params, block, x):
    entry = _enter(params, block, x)
    branch3x3 = entry['branch3x3_1']
    branch3x3dbl = _chain(params, block, entry['branch3x3dbl_1'], 'branch3x3dbl', '2')
    if 'branch_pool' in entry:
        pool = entry['branch_pool']
    else:
        pool = jax.nn.relu(_pointwise(params, f'{block}.branch_pool', _max_pool(x, 1, -jnp.inf)))
    forks = [
        _same(params, f'{block}.{name}{half}', branch)
        for name, branch in (('branch3x3_2', branch3x3), ('branch3x3dbl_3', branch3x3dbl))
        for half in 'ab'
    ]
    return jnp.concatenate([entry['branch1x1'], *forks, pool], -1)


def apply(
    params: Mapping[str, Any], images: jax.Array, chunk: int | None = None
) -> InceptionFeatures:
    """Features of images, in float32 with products of the highest precision.

    Args:
        params: of `from_arrays` or `init`.
        images: float32 [B, H, W, 3], H and W >= 75, scaled to about [-1, 1]. They are not resized
          here; the FID's protocols make them 299 x 299.
        chunk: images that go through the network at a time. The default, all of them, is right for
          a GPU, a TPU and a batch that is sharded. A CPU takes a fifth less time for a large batch
          in chunks of 4, whose activations stay in its caches.

    Returns:
        InceptionFeatures.

    Raises:
        ValueError: images of another type or shape, or chunk < 1.
    """
    if (
        images.ndim != 4
        or images.shape[-1] != 3
        or min(images.shape[1:3]) < SMALLEST
        or images.dtype != jnp.float32
    ):
        raise ValueError(
            f'images of {images.dtype} {list(images.shape)}: need float32 '
            f'[B, H, W, 3] with H and W >= {SMALLEST}, scaled to about [-1, 1] and resized'
        )
    if chunk is None:
        return _features(params, images)
    if chunk < 1:
        raise ValueError(f'chunk={chunk}: need at least one image at a time')

    def one(image):
        return jax.tree.map(lambda array: array[0], _features(params, image[None]))

    return jax.lax.map(one, images, batch_size=chunk)


def _features(params, images):
    x = _valid(params, 'Conv2d_1a_3x3', images, 2)
    x = _valid(params, 'Conv2d_2a_3x3', x)
    x = _same(params, 'Conv2d_2b_3x3', x)
    x = _max_pool(x)
    x = jax.nn.relu(_pointwise(params, 'Conv2d_3b_1x1', x))
    x = _valid(params, 'Conv2d_4a_3x3', x)
    x = _max_pool(x)
    for block in ('Mixed_5b', 'Mixed_5c', 'Mixed_5d'):
        x = _mixed_a(params, block, x)
    x = _mixed_b(params, 'Mixed_6a', x)
    for block in ('Mixed_6b', 'Mixed_6c', 'Mixed_6d'):
        x = _mixed_c(params, block, x)
    spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    x = _mixed_c(params, 'Mixed_6e', x)
    x = _mixed_d(params, 'Mixed_7a', x)
    for block in ('Mixed_7b', 'Mixed_7c'):
        x = _mixed_e(params, block, x)
    pool = x.mean((1, 2))
    return InceptionFeatures(
        pool, spatial, jnp.dot(pool, params['fc']['kernel'], precision=_HIGHEST)
    )
