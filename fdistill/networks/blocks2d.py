"""What diffusers' networks of images have in common, on parameters that are a flat dict of the
published names in torch's layouts.

A forward pass asks for each array by name and shape, `Ask`. So the same function, which computes
with arrays that are there, says which there must be: `shapes`.

Reference: Ho et al., arXiv 2006.11239 (DDPM's blocks); Rombach et al., arXiv 2112.10752. Names,
  layouts and arithmetic are those of diffusers 0.42.1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.networks import layers
from fdistill.networks.convolution import convolve

Ask = Callable[..., jax.Array]  # (name, *shape) -> array


def given(params: Mapping[str, jax.Array]) -> Ask:
    """Answers with the arrays of a dict."""
    return lambda name, *shape: params[name]


def shapes(forward: Callable[..., Any], *inputs: Any) -> dict[str, tuple[int, ...]]:
    """{name: shape} of all that forward(ask, *inputs) asks for; nothing is computed.

    Args:
      forward: of a network.
      inputs: arrays or `jax.ShapeDtypeStruct`.
    """
    asked = {}

    def ask(name, *shape):
        asked[name] = shape
        return jnp.zeros(shape)

    jax.eval_shape(lambda *those: forward(ask, *those), *inputs)
    return asked


def draw(
    key: jax.Array, wanted: Mapping[str, tuple[int, ...]], zeros: tuple[str, ...] = ()
) -> dict[str, jax.Array]:
    """Parameters to begin with, as torch's modules have them.

    Convolutions and linear maps are U(-1, 1)/sqrt(fan_in), weight and bias alike; norms 1 and 0;
    tables of embeddings N(0, 1).

    Args:
      key: of `jax.random`.
      wanted: {name: shape} of `shapes`.
      zeros: layers that begin at zero.
    """

    def one(key, name, shape):
        layer, _, leaf = name.rpartition('.')
        weight = wanted.get(f'{layer}.weight', shape)
        if layer in zeros:
            return jnp.zeros(shape)
        if len(weight) == 1:
            return jnp.ones(shape) if leaf == 'weight' else jnp.zeros(shape)
        if f'{layer}.bias' not in wanted and len(weight) == 2:
            return jax.random.normal(key, shape)
        return jax.random.uniform(key, shape, minval=-1, maxval=1) / math.sqrt(
            math.prod(weight[1:])
        )

    keys = jax.random.split(key, len(wanted))
    return {name: one(own, name, shape) for own, (name, shape) in zip(keys, sorted(wanted.items()))}


def linear(ask: Ask, name: str, x: jax.Array, features: int) -> jax.Array:
    """W x + b, [...,C] -> [...,features]."""
    weight, bias = ask(f'{name}.weight', features, x.shape[-1]), ask(f'{name}.bias', features)
    return x @ weight.T.astype(x.dtype) + bias.astype(x.dtype)


def conv(
    ask: Ask,
    name: str,
    x: jax.Array,
    features: int,
    size: int = 3,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
) -> jax.Array:
    """Convolution size x size, [B,H,W,C] -> [B,H',W',features].

    Args:
      padding: zeros (before, after) on both axes; default: as many on all sides as keep H and W at
        stride 1.
    """
    weight = ask(f'{name}.weight', features, x.shape[-1], size, size).astype(x.dtype)
    kernel = jnp.transpose(weight, (2, 3, 1, 0))
    same, half = padding is None and stride == 1, (size // 2, size // 2)
    out = convolve(x, kernel, (stride, stride), 'SAME' if same else [padding or half] * 2)
    return out + ask(f'{name}.bias', features).astype(x.dtype)


def norm(ask: Ask, name: str, x: jax.Array, groups: int, eps: float) -> jax.Array:
    """`layers.group_norm`, [B,H,W,C] -> same."""
    channels = x.shape[-1]
    return layers.group_norm(
        x, ask(f'{name}.weight', channels), ask(f'{name}.bias', channels), groups, eps
    )


def sinusoid(t: jax.Array, dim: int, flip_sin_to_cos: bool, freq_shift: float) -> jax.Array:
    """[sin, cos](t f_i), f_i = 10000^(-i/(dim/2 - freq_shift)), [B] -> float32 [B, dim], or float64
    where t is.

    f is computed in float64 and rounded once: at t = 999 one unit in its last place is 6e-5 of a
    radian.

    Args:
      t: [B].
      dim: width; where it is odd, a zero is last.
      flip_sin_to_cos: [cos, sin] in place of [sin, cos].
      freq_shift: 0 or 1.
    """
    half = dim // 2
    frequencies = np.exp(-math.log(10000) * np.arange(half) / (half - freq_shift))
    angles = layers.wide(t)[:, None] * frequencies.astype(np.float32)
    parts = [jnp.sin(angles), jnp.cos(angles)]
    parts = parts[::-1] if flip_sin_to_cos else parts
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, dim % 2)))


def halved(x: jax.Array) -> jax.Array:
    """Means of 2 x 2 pixels, [B,H,W,C] -> [B,H/2,W/2,C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def doubled(x: jax.Array) -> jax.Array:
    """Each pixel four times, [B,H,W,C] -> [B,2H,2W,C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def attention(
    ask: Ask,
    name: str,
    x: jax.Array,
    *,
    head_dim: int,
    groups: int | None,
    eps: float,
    kind: str = 'plain',
) -> jax.Array:
    """x + W softmax(q k^T / sqrt(head_dim)) v over all pixels, q, k and v linear maps of norm(x),
    [B,H,W,C] -> same.

    Args:
      head_dim: channels of a head, a divisor of C.
      groups, eps: of the norm; groups None: there is none.
      kind: of `layers.ATTENTIONS`.
    """
    batch, height, width, channels = x.shape
    h = norm(ask, f'{name}.group_norm', x, groups, eps) if groups else x
    h = h.reshape(batch, height * width, channels)
    q, k, v = (
        linear(ask, f'{name}.to_{part}', h, channels).reshape(*h.shape[:2], -1, head_dim)
        for part in 'qkv'
    )
    h = layers.attention(q, k, v, kind).reshape(h.shape)
    return x + linear(ask, f'{name}.to_out.0', h, channels).reshape(x.shape)


def resnet(
    ask: Ask,
    name: str,
    x: jax.Array,
    features: int,
    emb: jax.Array | None = None,
    *,
    groups: int,
    eps: float,
    scale_shift: bool = False,
    resample: Callable[[jax.Array], jax.Array] = lambda x: x,
    drop: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """skip(x) + conv2(drop(silu(norm2(conv1(resample(silu(norm1(x)))) + W silu(emb))))),
    [B,H,W,C] -> [B,H',W',features].

    Args:
      emb: of the noise, [B,E]; None where there is none.
      groups, eps: of the norms.
      scale_shift: W silu(emb) = (scale, shift) makes norm2 (1 + scale) + shift.
      resample: of both branches.
      drop: dropout.
    """
    h = conv(
        ask,
        f'{name}.conv1',
        resample(jax.nn.silu(norm(ask, f'{name}.norm1', x, groups, eps))),
        features,
    )
    if emb is None:
        h = norm(ask, f'{name}.norm2', h, groups, eps)
    else:
        # The embedding is float32 up to here, whatever the type of the images.
        width = features * (2 if scale_shift else 1)
        moved = linear(ask, f'{name}.time_emb_proj', jax.nn.silu(emb), width)
        moved = moved.astype(h.dtype)[:, None, None]
        if scale_shift:
            scale, shift = jnp.split(moved, 2, axis=-1)
            h = norm(ask, f'{name}.norm2', h, groups, eps) * (1 + scale) + shift
        else:
            h = norm(ask, f'{name}.norm2', h + moved, groups, eps)
    h = conv(ask, f'{name}.conv2', drop(jax.nn.silu(h)), features)
    skip = resample(x)
    if x.shape[-1] != features:
        skip = conv(ask, f'{name}.conv_shortcut', skip, features, 1)
    return skip + h
