"""Diffusion transformers: DiT, and SiT, which is the same network trained on another target.

Parameters are a flat dict under the names and in the layouts of the published checkpoints, so that
weights are read and written as they are.

Reference: Peebles and Xie, arXiv 2212.09748 (DiT); Ma et al., arXiv 2401.08740 (SiT). Names,
  layouts and arithmetic are those of github.com/facebookresearch/DiT at ed81ce2 and, for the
  variant 'diffusers', of DiTTransformer2DModel of diffusers 0.42.1.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.networks import MOST_BLOCKS, MOST_WIDTH, Network, label_of
from fdistill.networks.compute import REMAT, Compute, check
from fdistill.networks.layers import (
    NUMBER_FEATURES,
    attention,
    check_numbers,
    features_of,
    wide,
)

FREQUENCIES = 256  # Channels of the embedding of time, half of them sines.
EPS = 1e-6  # Of all norms but one, see `Variant`.
NUMBER = 'number_embedder'  # Before the name of a number: of the arrays that no publication has.
POSITIONS = ('sincos', 'learned')


class Shape(NamedTuple):
    """How large a transformer is.

    size: of `SIZES`, and the side of a patch in pixels: 'XL/2'.
    width, depth, heads, patch: channels, blocks, heads of the attention and side of a patch; where
      one is given, it takes the place of what `size` says.
    """

    size: str = 'XL/2'
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: int | None = None


# Table 1 of DiT: (width, depth, heads).
SIZES = {'S': (384, 12, 6), 'B': (768, 12, 12), 'L': (1024, 24, 16), 'XL': (1152, 28, 16)}


class Variant(NamedTuple):
    """What distinguishes the published implementations.

    own_embedders: each block embeds time and class itself; the output uses the first block's.
    second_eps: of the norm before a block's perceptron.
    endpoint: the frequencies of time go down to 1/10000 and not nearly so.
    """

    own_embedders: bool
    second_eps: float
    endpoint: bool


VARIANTS = {'facebook': Variant(False, EPS, False), 'diffusers': Variant(True, 1e-5, True)}


class Transformer(NamedTuple):
    """What is known of a network before it sees an image; see `dit`."""

    resolution: int
    channels: int
    num_classes: int
    width: int
    depth: int
    heads: int
    patch: int
    positions: str
    outputs: int
    variant: Variant
    features: tuple[int, ...]
    numbers: tuple[str, ...]
    compute: Compute


def _affine_shapes(name, inputs, outputs):
    return {f'{name}.weight': (outputs, inputs), f'{name}.bias': (outputs,)}


def _shapes(net):
    """{name: shape} of all parameters."""
    width = net.width
    embedders = {
        **_affine_shapes('t_embedder.mlp.0', FREQUENCIES, width),
        **_affine_shapes('t_embedder.mlp.2', width, width),
        **{f'{NUMBER}.{name}.weight': (width, NUMBER_FEATURES) for name in net.numbers},
    }
    if net.num_classes:
        embedders['y_embedder.embedding_table.weight'] = (net.num_classes + 1, width)
    block = {
        **_affine_shapes('attn.qkv', width, 3 * width),
        **_affine_shapes('attn.proj', width, width),
        **_affine_shapes('mlp.fc1', width, 4 * width),
        **_affine_shapes('mlp.fc2', 4 * width, width),
        **_affine_shapes('adaLN_modulation.1', width, 6 * width),
    }
    own = net.variant.own_embedders
    once = {
        'x_embedder.proj.weight': (width, net.channels, net.patch, net.patch),
        'x_embedder.proj.bias': (width,),
        **({} if own else embedders),
        **_affine_shapes('final_layer.adaLN_modulation.1', width, 2 * width),
        **_affine_shapes('final_layer.linear', width, net.patch**2 * net.outputs),
    }
    if net.positions == 'learned':
        once['pos_embed'] = (1, (net.resolution // net.patch) ** 2, width)
    block |= embedders if own else {}
    return once | {
        f'blocks.{i}.{name}': shape for i in range(net.depth) for name, shape in block.items()
    }


def sincos(width: int, rows: int, columns: int, side: int) -> np.ndarray:
    """Sines and cosines of the place of each patch, float32 [1, rows*columns, width].

    The first half of the channels is of the column and the second of the row; of place p, each has

        sin(p w_k), then cos(p w_k),   w_k = 10000^(-k/(width/4)),   k = 0 .. width/4 - 1

    Args:
      width: channels, a multiple of 4.
      rows, columns: patches.
      side: patches along a side in training. Another number is spread over the same range.
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.mgrid[:rows, :columns].reshape(2, -1, 1)
    angles = (column * side / columns * frequencies, row * side / rows * frequencies)
    parts = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(parts, axis=-1, dtype=np.float32)[None]


def _affine(params, name, x):
    """W x + b in the type of x, [...,inputs] -> [...,outputs]."""
    weight, bias = (params[f'{name}.{leaf}'].astype(x.dtype) for leaf in ('weight', 'bias'))
    return jnp.einsum('...i,oi->...o', x, weight) + bias


def _modulated(x, eps, shift, scale):
    """(1 + scale) (x - mean)/sqrt(variance + eps) + shift over the channels, float32."""
    x = wide(x)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + eps) * (1 + scale) + shift


def _embedding(net, params, c_noise, label, numbers):
    """Embedding of time, with further numbers, plus that of the class, float32 [B,width]; label -1
    is the last row."""
    half = FREQUENCIES // 2
    # In float64 and rounded once: at a time of 1000, a last digit of a frequency shows.
    frequencies = 10000.0 ** (-np.arange(half) / (half - net.variant.endpoint))
    angles = wide(c_noise)[:, None] * frequencies.astype(np.float32)
    h = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    h = _affine(params, 't_embedder.mlp.0', h)
    for name, features in numbers.items():
        h += jnp.einsum('bi,oi->bo', features, params[f'{NUMBER}.{name}.weight'])
    h = _affine(params, 't_embedder.mlp.2', jax.nn.silu(h))
    if net.num_classes:
        table = params['y_embedder.embedding_table.weight']
        # A product and no look-up: the gradient of one adds up in any order on a GPU.
        row = jax.nn.one_hot(jnp.where(label < 0, net.num_classes, label), len(table))
        h = h + jnp.matmul(row, table, precision='highest')
    return h


def _block(net, x, params, embedding):
    """x' = x + gate1 attention(norm1(x)); x'' = x' + gate2 mlp(norm2(x')), [B,N,width] -> same;
    shifts, scales and gates are a linear map of silu(embedding)."""
    modulation = _affine(params, 'adaLN_modulation.1', jax.nn.silu(embedding))
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation[:, None], 6, axis=-1)

    h = _modulated(x, EPS, shift1, scale1).astype(x.dtype)
    qkv = _affine(params, 'attn.qkv', h).reshape(*x.shape[:2], 3, net.heads, -1)
    h = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], net.compute.attention)
    h = h.reshape(x.shape)
    x = x + gate1.astype(x.dtype) * _affine(params, 'attn.proj', h)

    h = _modulated(x, net.variant.second_eps, shift2, scale2).astype(x.dtype)
    h = jax.nn.gelu(_affine(params, 'mlp.fc1', h), approximate=True)
    return x + gate2.astype(x.dtype) * _affine(params, 'mlp.fc2', h)


@functools.partial(jax.jit, static_argnames='net')
def _apply(net, params, x, c_noise, label, numbers):
    batch, height, width, _ = x.shape
    patch, rows, columns = net.patch, height // net.patch, width // net.patch
    dtype = net.compute.type_for(x)

    h = x.reshape(batch, rows, patch, columns, patch, net.channels).astype(dtype)
    h = jnp.einsum('bhywxc,dcyx->bhwd', h, params['x_embedder.proj.weight'].astype(dtype))
    h = h.reshape(batch, -1, net.width) + params['x_embedder.proj.bias'].astype(dtype)
    if net.positions == 'learned':
        places = params['pos_embed']
    else:
        places = sincos(net.width, rows, columns, net.resolution // patch)
    h = h + places.astype(dtype)

    blocks = [_of_block(params, i) for i in range(net.depth)]
    own = blocks if net.variant.own_embedders else [params]
    embeddings = [_embedding(net, one, c_noise, label, numbers) for one in own]
    run = REMAT[net.compute.remat].function(functools.partial(_block, net))
    features = []
    for i, block in enumerate(blocks):
        h = run(h, block, embeddings[i % len(embeddings)])
        if i in net.features:
            features.append(wide(h.reshape(batch, rows, columns, -1)))

    modulation = _affine(params, 'final_layer.adaLN_modulation.1', jax.nn.silu(embeddings[0]))
    shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
    out = _affine(params, 'final_layer.linear', _modulated(h, EPS, shift, scale))
    out = out.reshape(batch, rows, columns, patch, patch, -1)
    out = jnp.swapaxes(out, 2, 3).reshape(batch, height, width, -1)
    # What follows the channels of the image is the learned variance.
    return out[..., : net.channels], tuple(features)


def _of_block(params: Mapping[str, Any], i: int) -> dict[str, Any]:
    prefix = f'blocks.{i}.'
    return {
        name.removeprefix(prefix): value
        for name, value in params.items()
        if name.startswith(prefix)
    }


def _drawn(net, key, name, shape):
    """A parameter as DiT starts it: all modulations and the output are 0, so that each block begins
    as the identity."""
    if name == 'pos_embed':
        side = net.resolution // net.patch
        return jnp.asarray(sincos(net.width, side, side, side))
    if name.endswith('.bias') or 'adaLN' in name or name.startswith('final_layer.'):
        return jnp.zeros(shape)
    if 't_embedder' in name or 'y_embedder' in name:
        return 0.02 * jax.random.normal(key, shape)
    bound = math.sqrt(6 / (shape[0] + math.prod(shape[1:])))  # Xavier's, of patches too.
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def sized(shape: Shape) -> tuple[int, ...]:
    """(width, depth, heads, patch) of a `Shape`; ValueError on an unknown size."""
    name, _, patch = shape.size.partition('/')
    if name not in SIZES or not patch.isdecimal():
        raise ValueError(
            f'size={shape.size!r}: need one of {", ".join(SIZES)}, a slash and the side of a '
            "patch, as in 'XL/2'"
        )
    usual = (*SIZES[name], int(patch))
    return tuple(own if said is None else said for said, own in zip(shape[1:], usual, strict=True))


def dit(
    *,
    resolution: int,
    channels: int = 4,
    num_classes: int = 0,
    shape: Shape = Shape(),
    positions: str = 'sincos',
    learned_variance: bool = False,
    variant: str = 'facebook',
    features: tuple[int, ...] | None = None,
    numbers: tuple[str, ...] = (),
    compute: Compute = Compute(),
) -> Network:
    """DiT with adaLN-Zero, which is SiT too.

    Published, with 674,834,720 parameters and the fixed positions besides:
        ImageNet-256, DiT-XL/2 and SiT-XL/2 (latents): dict(resolution=32, num_classes=1000,
          learned_variance=True)
        ImageNet-512, DiT-XL/2: resolution=64

    DiT predicts eps under `discrete`, its time being 0 .. 999; SiT the velocity towards the data,
    its time being 1 less that of `flow`: see `denoiser.from_prediction`.

    Args:
      resolution: of the square images, a multiple of the patch. With fixed positions, images of
        other sizes that are multiples of it are taken too; their patches are spread over the same
        range.
      channels: of the images.
      num_classes: classes K, 0 for none; label -1 is "no label".
      shape: see `Shape`.
      positions: 'sincos', fixed, or 'learned'.
      learned_variance: the last layer has twice the channels of the image. The second half, which
        DiT takes for a variance, is left out of the output; its parameters are kept.
      variant: of `VARIANTS`.
      features: blocks whose outputs are features, 0 .. depth - 1; default: after each quarter.
      numbers: further numbers of a condition that are embedded beside time, as ('until',
        'guidance'), see `layers.features_of`. Each begins without effect; published files have
        none.
      compute: see `Compute`; the last layer is float32 too.

    Returns:
      `Network`; its features are float32 [B,resolution/patch,resolution/patch,width].

    Raises:
      ValueError: an argument is out of range.
    """
    width, depth, heads, patch = sized(shape)
    for name, value, most in (
        ('width', width, MOST_WIDTH),
        ('depth', depth, MOST_BLOCKS),
        ('heads', heads, MOST_WIDTH),
        ('patch', patch, resolution),
        ('channels', channels, MOST_WIDTH),
    ):
        if not 1 <= value <= most:
            raise ValueError(f'{name}={value}: must be in 1..{most}')
    if resolution % patch:
        raise ValueError(
            f'resolution={resolution}: is no multiple of patch={patch}; choose another patch'
        )
    if width % heads or width % 4:
        raise ValueError(f'width={width}: must be a multiple of heads={heads} and of 4')
    if num_classes < 0:
        raise ValueError(f'num_classes={num_classes}: must be >= 0')
    for name, value, known in (
        ('positions', positions, POSITIONS),
        ('variant', variant, VARIANTS),
    ):
        if value not in known:
            raise ValueError(f'{name}={value!r}: known are {", ".join(known)}')
    if features is None:
        features = tuple(sorted({-(-depth * quarter // 4) - 1 for quarter in (1, 2, 3, 4)}))
    if sorted(set(features)) != list(features) or not set(features) <= set(range(depth)):
        raise ValueError(f'features={features}: must be rising blocks in 0..{depth - 1}')
    check(compute)
    if numbers:
        check_numbers(numbers)

    net = Transformer(
        resolution,
        channels,
        num_classes,
        width,
        depth,
        heads,
        patch,
        positions,
        channels * (2 if learned_variance else 1),
        VARIANTS[variant],
        tuple(features),
        tuple(numbers),
        compute,
    )

    def init(key, x, c_noise, condition):
        _check_images(net, x)
        shapes = _shapes(net)
        zeros = {name: jnp.zeros(shapes.pop(name)) for name in list(shapes) if NUMBER in name}
        keys = jax.random.split(key, len(shapes))
        return zeros | {
            name: _drawn(net, one, name, shape)
            for one, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def apply(params, x, c_noise, condition, key=None):
        _check_images(net, x)
        numbers = features_of(condition, net.numbers, c_noise)
        return _apply(net, params, x, c_noise, label_of(condition, x), numbers)

    return Network(init, apply, (*(('label',) if num_classes else ()), *net.numbers))


def _check_images(net, x):
    """Raises ValueError where the images do not fit."""
    sides = [side % net.patch for side in x.shape[1:3]]
    if net.positions == 'learned':
        sides = [side - net.resolution for side in x.shape[1:3]]
    if x.ndim != 4 or x.shape[-1] != net.channels or any(sides):
        raise ValueError(
            f'x has shape {x.shape}, the network was built for [B, {net.resolution}, '
            f'{net.resolution}, {net.channels}]'
        )
