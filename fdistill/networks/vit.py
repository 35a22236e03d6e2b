"""The vision transformer of DINOv2 as a frozen feature network for Frechet distances (FD-DINOv2:
ViT-L/14).

Reference: Oquab et al., arXiv 2304.07193; Stein et al., arXiv 2306.04675 (FD-DINOv2). Names,
  layouts and arithmetic are those of github.com/facebookresearch/dinov2 at b8931f7.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.errors import UserError, suggest

# Full precision, or the features, and with them every distance, would depend on the accelerator.
_einsum = functools.partial(jnp.einsum, precision='highest')


class VisionTransformer(NamedTuple):
    """A vision transformer as pure functions.

    shapes() -> {name: shape} of all float32 arrays of a checkpoint, in torch's layouts.
    from_arrays({name: float32 numpy}) -> params; the blocks are stacked, so that their depth is one
      scan.
    init(key) -> params, random.
    apply(params, images float32 [B,H,W,3] less ImageNet's mean and over its std) -> class token
      float32 [B, dim]
    """

    shapes: Callable[..., Any]
    from_arrays: Callable[..., Any]
    init: Callable[..., Any]
    apply: Callable[..., Any]


class FeedForward(NamedTuple):
    """The half of a block that treats every token for itself.

    shapes(dim) -> {name: shape}
    apply(params, x[B,N,C]) -> same
    """

    shapes: Callable[..., Any]
    apply: Callable[..., Any]


def _affine_shapes(name, inputs, outputs):
    return {f'{name}.weight': (outputs, inputs), f'{name}.bias': (outputs,)}


def _affine(params, name, x):
    """W x + b, [...,inputs] -> [...,outputs]."""
    return _einsum('...i,oi->...o', x, params[f'{name}.weight']) + params[f'{name}.bias']


def _layer_norm(params, name, x):
    """(x - mean)/sqrt(var + 1e-6) weight + bias over the channels."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(variance + 1e-6) * params[f'{name}.weight'] + params[f'{name}.bias']


def _mlp_shapes(dim):
    return {**_affine_shapes('mlp.fc1', dim, 4 * dim), **_affine_shapes('mlp.fc2', 4 * dim, dim)}


def _mlp(params, x):
    """W2 gelu(W1 x), with the exact Gaussian error function."""
    return _affine(params, 'mlp.fc2', jax.nn.gelu(_affine(params, 'mlp.fc1', x), approximate=False))


def _swiglu_shapes(dim):
    # As many weights as the perceptron of width 4 dim has, rounded up to a multiple of 8.
    width = (4 * dim * 2 // 3 + 7) // 8 * 8
    return {**_affine_shapes('mlp.w12', dim, 2 * width), **_affine_shapes('mlp.w3', width, dim)}


def _swiglu(params, x):
    """W3 (silu(W1 x) * W2 x)."""
    gate, value = jnp.split(_affine(params, 'mlp.w12', x), 2, axis=-1)
    return _affine(params, 'mlp.w3', jax.nn.silu(gate) * value)


FEED_FORWARDS = {
    'mlp': FeedForward(_mlp_shapes, _mlp),
    'swiglu': FeedForward(_swiglu_shapes, _swiglu),
}


def _attention(params, x, heads):
    """W softmax(q k^T / sqrt(C)) v over the tokens, [B,N,heads*C] -> same; the channels of qkv are
    ordered (q, k, v), head, C."""
    qkv = _affine(params, 'attn.qkv', x)
    q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, x.shape[-1] // heads), 2, 0)
    logits = _einsum('bqhc,bkhc->bhqk', q / math.sqrt(q.shape[-1]), k)
    out = _einsum('bhqk,bkhc->bqhc', jax.nn.softmax(logits, axis=-1), v)
    return _affine(params, 'attn.proj', out.reshape(x.shape))


def _cubic(size, grid, offset):
    """Keys's cubic interpolation with a = -0.75 from `grid` points to `size`, with the border
    repeated: float64 [size, grid].

    Output i lies at (i + 1/2) grid/(size + offset) - 1/2. With an offset the positions end before
    the last point: DINO added it to guard the output's size against rounding, and PyTorch uses the
    scale for the positions too.
    """
    at = (np.arange(size) + 0.5) * grid / (size + offset) - 0.5
    taps = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    d = np.abs(at[:, None] - taps)
    weights = np.where(d <= 1, (1.25 * d - 2.25) * d**2 + 1, -0.75 * (((d - 5) * d + 8) * d - 4))
    matrix = np.zeros((size, grid))
    np.add.at(matrix, (np.arange(size)[:, None], taps.clip(0, grid - 1)), weights)
    return matrix


def _positions(pos_embed, height, width, grid, offset):
    """The embedding at height x width positions, made from that on the grid:
    [1,1+grid^2,C] -> [1,1+height*width,C]."""
    # The offset would move the positions on the training's own grid too; the reference leaves these
    # as they are.
    if (height, width) == (grid, grid):
        return pos_embed
    patches = pos_embed[0, 1:].reshape(grid, grid, -1)
    rows, columns = (_cubic(size, grid, offset).astype(np.float32) for size in (height, width))
    patches = _einsum('ha,wb,abc->hwc', rows, columns, patches)
    return jnp.concatenate([pos_embed[:, :1], patches.reshape(1, height * width, -1)], axis=1)


def vit(
    *,
    dim: int = 1024,
    depth: int = 24,
    heads: int = 16,
    feed_forward: str = 'mlp',
    patch: int = 14,
    grid: int = 37,
    offset: float = 0.1,
) -> VisionTransformer:
    """DINOv2's vision transformer without registers; by default ViT-L/14.

    | size | dim | depth | heads | feed_forward |
    |---|---|---|---|---|
    | S | 384 | 12 | 6 | mlp |
    | B | 768 | 12 | 12 | mlp |
    | L | 1024 | 24 | 16 | mlp |
    | g | 1536 | 40 | 24 | swiglu |

    Args:
      dim: channels, a multiple of `heads`.
      depth: blocks.
      heads: of the attention.
      feed_forward: a name of FEED_FORWARDS.
      patch: side of a patch in pixels.
      grid: positions a side in training, 37 at 518 pixels.
      offset: added to the number of positions where their embedding is interpolated, in [0, 1). 0.1
        is facebook's code, from its first commit (fc49f49) on, by which FD-DINOv2 is defined; 0 is
        transformers 5.23's Dinov2Model.

    Returns:
      VisionTransformer with the names of facebook's checkpoints dinov2_vit*14_pretrain.pth.

    Raises:
      ValueError: if heads do not divide dim, feed_forward is unknown, or the offset lies outside
        [0, 1).
    """
    if dim % heads:
        raise ValueError(
            f'dim={dim} is no multiple of heads={heads}; DINOv2 has 64 channels a head'
        )
    if feed_forward not in FEED_FORWARDS:
        raise ValueError(
            f'unknown feed_forward {feed_forward!r}' + suggest(feed_forward, FEED_FORWARDS)
        )
    if not 0 <= offset < 1:
        raise ValueError(f'offset={offset}: must lie in [0, 1); 0.1 is that of FD-DINOv2')
    feed_forward = FEED_FORWARDS[feed_forward]
    once = {
        'cls_token': (1, 1, dim),
        'pos_embed': (1, 1 + grid**2, dim),
        'patch_embed.proj.weight': (dim, 3, patch, patch),
        'patch_embed.proj.bias': (dim,),
        'norm.weight': (dim,),
        'norm.bias': (dim,),
    }
    block = {
        'norm1.weight': (dim,),
        'norm1.bias': (dim,),
        **_affine_shapes('attn.qkv', dim, 3 * dim),
        **_affine_shapes('attn.proj', dim, dim),
        'ls1.gamma': (dim,),
        'norm2.weight': (dim,),
        'norm2.bias': (dim,),
        **feed_forward.shapes(dim),
        'ls2.gamma': (dim,),
    }

    def shapes():
        """The mask token is in the checkpoint, yet used in DINOv2's own training only."""
        blocks = {
            f'blocks.{i}.{name}': shape for i in range(depth) for name, shape in block.items()
        }
        return {**once, 'mask_token': (1, dim), **blocks}

    def from_arrays(arrays):
        """Raises UserError: a name is missing or too many, a shape or type is another."""
        expected = shapes()
        for name in [*expected, *arrays]:
            if name not in arrays:
                raise UserError(
                    f'the weights lack {name!r}: they are not those of this vision transformer'
                )
            if name not in expected:
                hint = suggest(name, expected)
                raise UserError(
                    f'the weights hold {name!r}, which this vision transformer does not have{hint}'
                )
            found = arrays[name]
            if (found.shape, found.dtype) != (expected[name], np.float32):
                raise UserError(
                    f'weights {name!r} are {found.dtype} {found.shape}, '
                    f'and should be float32 {expected[name]}: take the checkpoint of this size as '
                    'it was published'
                )
        blocks = {
            name: jnp.asarray(np.stack([arrays[f'blocks.{i}.{name}'] for i in range(depth)]))
            for name in block
        }
        return {**{name: jnp.asarray(arrays[name]) for name in once}, 'blocks': blocks}

    def init(key):
        """Biases 0, norms and LayerScale 1, all others N(0, 0.02^2)."""

        def draw(key, name, shape):
            if name.endswith('bias'):
                return jnp.zeros(shape)
            if 'norm' in name or name.endswith('gamma'):
                return jnp.ones(shape)
            return 0.02 * jax.random.normal(key, shape)

        keys = iter(jax.random.split(key, len(once) + len(block)))
        params = {name: draw(next(keys), name, shape) for name, shape in once.items()}
        return {
            **params,
            'blocks': {
                name: draw(next(keys), name, (depth, *shape)) for name, shape in block.items()
            },
        }

    def block_apply(x, params):
        """x' = x + gamma1 attention(norm1(x)); x'' = x' + gamma2 feed_forward(norm2(x'))."""
        x = x + params['ls1.gamma'] * _attention(params, _layer_norm(params, 'norm1', x), heads)
        return x + params['ls2.gamma'] * feed_forward.apply(
            params, _layer_norm(params, 'norm2', x)
        ), None

    def apply(params, images):
        """norm(blocks([class token, patches] + positions))[0]; raises ValueError where the images
        do not fit."""
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.float32:
            raise ValueError(
                f'images are {images.dtype} {images.shape}: normalise them and give float32 '
                '(B, H, W, 3)'
            )
        batch, height, width = images.shape[0], images.shape[1] // patch, images.shape[2] // patch
        if (height * patch, width * patch) != images.shape[1:3]:
            raise ValueError(
                f'images are {images.shape[1:3]} pixels: resize them to multiples of {patch}, '
                'such as 224'
            )
        x = images.reshape(batch, height, patch, width, patch, 3)
        x = (
            _einsum('bhywxc,dcyx->bhwd', x, params['patch_embed.proj.weight'])
            + params['patch_embed.proj.bias']
        )
        x = jnp.concatenate(
            [jnp.broadcast_to(params['cls_token'], (batch, 1, dim)), x.reshape(batch, -1, dim)],
            axis=1,
        )
        x = x + _positions(params['pos_embed'], height, width, grid, offset)
        x, _ = jax.lax.scan(block_apply, x, params['blocks'])
        return _layer_norm(params, 'norm', x[:, 0])

    return VisionTransformer(shapes, from_arrays, init, apply)
