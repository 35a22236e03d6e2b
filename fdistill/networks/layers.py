"""Layers of the EDM U-Nets in flax.linen, NHWC, the attention of all networks, and what they embed
of a number. They compute in the type of their input and keep float32 parameters.

Reference: Karras et al., arXiv 2206.00364; Song et al., arXiv 2011.13456; Dhariwal and Nichol,
  arXiv 2105.05233.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdistill.networks.convolution import convolve


class Initialization(NamedTuple):
    """How a layer's arrays are drawn: `kernel` is a flax initializer, `bias(fan_in)` gives one."""

    kernel: Callable
    bias: Callable


def _zero_bias(fan_in):
    return nn.initializers.zeros


def _uniform_bias(fan_in):
    """U(-1, 1)/sqrt(fan_in)."""

    def draw(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / math.sqrt(fan_in)

    return draw


def xavier(gain: float) -> Initialization:
    """Kernel gain U(-1, 1) sqrt(6/(fan_in + fan_out)), bias 0."""
    return Initialization(
        nn.initializers.variance_scaling(gain**2, 'fan_avg', 'uniform'), _zero_bias
    )


XAVIER = xavier(1.0)
# Kaiming with gain sqrt(1/3), which is U(-1, 1)/sqrt(fan_in) for kernel and bias alike.
KAIMING = Initialization(
    nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'), _uniform_bias
)
NORMAL = Initialization(nn.initializers.normal(1.0), _zero_bias)
ZEROS = Initialization(nn.initializers.zeros, _zero_bias)


def conv(
    x: jax.Array,
    features: int,
    size: int,
    init: Initialization,
    name: str,
    *,
    stride: int = 1,
    padding: int | str = 'SAME',
) -> jax.Array:
    """Convolution size x size, [B,H,W,C] -> [B,H',W',features]; `padding` in pixels on every side,
    or 'SAME'."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=padding,
        dtype=x.dtype,
        kernel_init=init.kernel,
        bias_init=init.bias(size * size * x.shape[-1]),
        conv_general_dilated=convolve,
        name=name,
    )(x)


def dense(
    x: jax.Array, features: int, init: Initialization, name: str, *, use_bias: bool = True
) -> jax.Array:
    """Linear map [B,C] -> [B,features]."""
    bias_init = init.bias(x.shape[-1])
    return nn.Dense(
        features, use_bias, dtype=x.dtype, kernel_init=init.kernel, bias_init=bias_init, name=name
    )(x)


def wide(x: jax.Array) -> jax.Array:
    """x in float32, or in float64 where it is that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def group_count(channels: int) -> int:
    """Groups of a GroupNorm: min(32, channels // 4), that is at least 4 channels a group.

    Raises:
        ValueError: the groups would not be of equal size.
    """
    groups = min(32, channels // 4)
    if groups < 1 or channels % groups:
        raise ValueError(
            f'{channels} channels cannot be normalised in min(32, channels // 4) = {groups} equal '
            'groups; use a multiple of 4 below 128 channels, a multiple of 32 above'
        )
    return groups


def group_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, eps: float
) -> jax.Array:
    """scale (x - mean) / sqrt(variance + eps) + bias, mean and variance of a sample's group of
    channels, in float32; [B,H,W,C] -> same.

    Channels are summed over the pixels first and grouped then: sums over an axis that is split in
    two, as in `nn.GroupNorm`, take several times as long on CPU.
    """
    of_group = x.shape[-1] // groups

    def mean(x):
        means = jnp.mean(x, axis=(1, 2)).reshape(x.shape[0], -1, of_group)
        return jnp.repeat(jnp.mean(means, axis=-1), of_group, axis=-1)[:, None, None]

    # Two passes: E[x^2] - E[x]^2 loses the digits that agreement with EDM needs where the mean
    # is large.
    y = wide(x)
    y = y - mean(y)
    return (y * (jax.lax.rsqrt(mean(y**2) + eps) * scale) + bias).astype(x.dtype)


class GroupNorm(nn.Module):
    """`group_norm` in `group_count` groups, with its scale and bias; [B,H,W,C] -> same."""

    eps: float

    @nn.compact
    def __call__(self, x):
        shape = x.shape[-1:]
        groups = group_count(shape[0])
        scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        return group_norm(x, scale, bias, groups, self.eps)


def norm(x: jax.Array, eps: float, name: str) -> jax.Array:
    """GroupNorm with float32 statistics, [B,H,W,C] -> same."""
    return GroupNorm(eps, name=name)(x)


def downsample(x: jax.Array, taps: Sequence[float], padding: int | None = None) -> jax.Array:
    """Filters with taps (x) taps / sum^2 and keeps every second pixel, [B,H,W,C] -> [B,H/2,W/2,C].

    Sums of strided slices, one axis after the other: the filter is constant, and XLA has no fast
    depthwise convolution on CPU.

    Args:
        taps: one-dimensional filter of even length.
        padding: zeros on every side; by default those that halve H and W.
    """
    padding = (len(taps) - 1) // 2 if padding is None else padding
    for axis in (1, 2):
        size = (x.shape[axis] + 2 * padding - len(taps)) // 2 + 1
        x = jnp.pad(x, [(padding, padding) if i == axis else (0, 0) for i in range(x.ndim)])
        x = sum(
            tap / sum(taps) * jax.lax.slice_in_dim(x, k, k + 2 * size - 1, 2, axis)
            for k, tap in enumerate(taps)
        )
    return x


def upsample(x: jax.Array, taps: Sequence[float]) -> jax.Array:
    """Puts zeros between the pixels and filters with 4 taps (x) taps / sum^2,
    [B,H,W,C] -> [B,2H,2W,C].

    Output 2m + s sees input m + (s + padding - k)/2 through tap k, hence one sum of shifted copies
    for each parity s.
    """
    padding = (len(taps) - 1) // 2
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, [(padding, padding) if i == axis else (0, 0) for i in range(x.ndim)])
        phases = []
        for s in (0, 1):
            offsets = {k: s + padding - k for k in range(len(taps)) if (s + padding - k) % 2 == 0}
            starts = {k: padding + offset // 2 for k, offset in offsets.items()}
            phases.append(
                sum(
                    2
                    * taps[k]
                    / sum(taps)
                    * jax.lax.slice_in_dim(padded, start, start + size, axis=axis)
                    for k, start in starts.items()
                )
            )
        shape = [2 * n if i == axis else n for i, n in enumerate(x.shape)]
        x = jnp.stack(phases, axis + 1).reshape(shape)
    return x


# Each from (x, taps) to x at the block's own resolution.
RESAMPLE = {'keep': lambda x, taps: x, 'down': downsample, 'up': upsample}


CHUNK = 256  # Queries and keys, at most, whose products `chunked` has in memory at a time.


def _chunks(x):
    """[B,N,...] -> [N/n,B,n,...], n the largest divisor of N that is at most `CHUNK`."""
    size = next(n for n in range(min(CHUNK, x.shape[1]), 0, -1) if x.shape[1] % n == 0)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _joined(x):
    """The way back, [N/n,B,n,...] -> [B,N,...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _product(of, a, b):
    """An einsum whose sums are float32 at least."""
    return jnp.einsum(of, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _scores(q, k):
    return _product('bqhc,bkhc->bqhk', q, k) / math.sqrt(q.shape[-1])


def _mix(weights, v):
    return _product('bqhk,bkhc->bqhc', weights.astype(v.dtype), v)


@jax.custom_jvp
def _softmax_mean(q, k, v):
    """(y, l): attention [B,N,heads,C] and the logarithm of its denominators [B,N,heads], one chunk
    of queries after another, for each one chunk of keys after another (arXiv 2112.05682)."""
    keys = _chunks(k), _chunks(v)

    def of_queries(q):
        def add(sums, keys):
            k, v = keys
            total, mixed, most = sums
            scores = _scores(q, k)
            higher = jnp.maximum(most, scores.max(-1))
            kept, weights = jnp.exp(most - higher), jnp.exp(scores - higher[..., None])
            total = kept * total + weights.sum(-1)
            return (total, kept[..., None] * mixed + _mix(weights, v), higher), None

        zero = jnp.zeros(q.shape, jnp.promote_types(q.dtype, jnp.float32))
        none = zero[..., 0]
        (total, mixed, most), _ = jax.lax.scan(add, (none, zero, none - jnp.inf), keys)
        return (mixed / total[..., None]).astype(v.dtype), most + jnp.log(total)

    y, logarithm = jax.lax.map(of_queries, _chunks(q))
    return _joined(y), _joined(logarithm)


@_softmax_mean.defjvp
def _softmax_mean_jvp(primals, tangents):
    """With s = q k^T / sqrt(C), p = softmax(s) = exp(s - l):

        t_l = p . t_s,    t_y = (p * t_s) v + p t_v - t_l y

    What is recomputed in a reverse pass, and therefore not kept, is all that has the size of a
    chunk of queries times one of keys.
    """
    (q, k, v), (t_q, t_k, t_v) = primals, tangents
    y, logarithm = _softmax_mean(q, k, v)
    keys = tuple(map(_chunks, (k, v, t_k, t_v)))

    def of_queries(queries):
        q, t_q, y, logarithm = queries

        @functools.partial(jax.checkpoint, prevent_cse=False)  # A scan keeps them apart anyway.
        def of_keys(keys):
            k, v, t_k, t_v = keys
            weights = jnp.exp(_scores(q, k) - logarithm[..., None])
            moved = weights * (_scores(t_q, k) + _scores(q, t_k))
            return moved.sum(-1), _mix(moved, v) + _mix(weights, t_v)

        def add(sums, keys):
            return jax.tree.map(jnp.add, sums, of_keys(keys)), None

        zeros = jax.tree.map(jnp.zeros_like, (logarithm, wide(y)))
        (mean, mixed), _ = jax.lax.scan(add, zeros, keys)
        return (mixed - mean[..., None] * y).astype(y.dtype), mean

    queries = tuple(map(_chunks, (q, t_q, y, logarithm)))
    t_y, t_logarithm = jax.lax.map(jax.checkpoint(of_queries, prevent_cse=False), queries)
    return (y, logarithm), (_joined(t_y), _joined(t_logarithm))


def _plain(q, k, v):
    # The other implementation, of cuDNN, has no derivative of its derivative.
    return jax.nn.dot_product_attention(q, k, v, implementation='xla')


# How attention is computed, which is the setting `attention` of `Compute`: all weights at once, or
# in chunks, with a derivative of its own: memory is linear in the tokens, also of forward mode and
# of reverse mode over it. Fused kernels have no forward mode.
ATTENTIONS = {'plain': _plain, 'chunked': lambda q, k, v: _softmax_mean(q, k, v)[0]}


def attention(q: jax.Array, k: jax.Array, v: jax.Array, kind: str = 'plain') -> jax.Array:
    """Softmax(q k^T / sqrt(C)) v over the tokens, [B,N,heads,C] each -> [B,N,heads,C], the weights
    being float32, `chunked` ones of float64 inputs float64.

    Args:
      q, k, v: [B,N,heads,C].
      kind: of `ATTENTIONS`.
    """
    return ATTENTIONS[kind](q, k, v)


def _plain_of_edm(q, k, v):
    logits = jnp.einsum('bqhc,bkhc->bhqk', wide(q), wide(k) / math.sqrt(q.shape[-1]))
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum('bhqk,bkhc->bqhc', weights, v)


def attend(qkv: jax.Array, heads: int, kind: str = 'plain') -> jax.Array:
    """Softmax(q k^T / sqrt(C)) v over all pixels, [B,H,W,3*heads*C] -> [B,H,W,heads*C].

    EDM's layout of channels: head, then C, then (q, k, v). The weights are computed in float32, or
    in float64 where that is the type of the inputs.

    Args:
      qkv: [B,H,W,3*heads*C].
      heads: >= 1.
      kind: of `ATTENTIONS`.
    """
    batch, height, width, channels = qkv.shape
    qkv = qkv.reshape(batch, height * width, heads, channels // (3 * heads), 3)
    compute = (ATTENTIONS | {'plain': _plain_of_edm})[kind]
    out = compute(qkv[..., 0], qkv[..., 1], qkv[..., 2])
    return out.reshape(batch, height, width, channels // 3)


def dropped(key: jax.Array | None, x: jax.Array, rate: float) -> jax.Array:
    """x with a share `rate` of its entries 0 and the others over 1 - rate; without a key x."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


class BlockStyle(NamedTuple):
    """What distinguishes the residual blocks of Song's U-Nets from those of Dhariwal's.

    Args:
        taps: filter of the resampling.
        eps: of the group norms.
        skip_scale: factor on every residual sum.
        adaptive_scale: the embedding scales and shifts after the second norm, else it is added
          before that norm.
        project_resampled: a skip that is resampled has a 1x1 convolution even where the width
          stays.
        init, init_zero, init_attention: of ordinary layers, of a branch's last layer, of q, k and
          v.
    """

    taps: tuple
    eps: float
    skip_scale: float
    adaptive_scale: bool
    project_resampled: bool
    init: Initialization
    init_zero: Initialization
    init_attention: Initialization


class UNetBlock(nn.Module):
    """Residual block with resampling and self-attention:
    (x[B,H,W,C], emb[B,E]) -> [B,H',W',features].

        h = conv1(dropout(silu(norm1(conv0(resample(silu(norm0(x))))) with emb)))
        x' = skip_scale (h + skip(x))
        x'' = skip_scale (x' + proj(attend(qkv(norm2(x')))))    with heads > 0
    """

    features: int
    style: BlockStyle
    resample: str = 'keep'
    heads: int = 0
    dropout: float = 0.0
    attention: str = 'plain'

    @nn.compact
    def __call__(self, x, emb):
        style, features = self.style, self.features
        resample = RESAMPLE[self.resample]

        h = resample(nn.silu(norm(x, style.eps, 'norm0')), style.taps)
        h = conv(h, features, 3, style.init, 'conv0')
        # The embedding is float32 up to here, whatever the type of the images.
        affine = dense(emb, features * (2 if style.adaptive_scale else 1), style.init, 'affine')
        affine = affine.astype(h.dtype)[:, None, None, :]
        if style.adaptive_scale:
            scale, shift = jnp.split(affine, 2, axis=-1)
            h = nn.silu(norm(h, style.eps, 'norm1') * (scale + 1) + shift)
        else:
            h = nn.silu(norm(h + affine, style.eps, 'norm1'))
        h = nn.Dropout(self.dropout, deterministic=False)(h)
        h = conv(h, features, 3, style.init_zero, 'conv1')

        skip = resample(x, style.taps)
        if x.shape[-1] != features or (style.project_resampled and self.resample != 'keep'):
            skip = conv(skip, features, 1, style.init, 'skip')
        # Not scale * (h + skip): XLA would compute the sums of all blocks before anew for each
        # reader, as what comes last is cheap and reads one array.
        x = style.skip_scale * h + style.skip_scale * skip

        if self.heads:
            qkv = conv(norm(x, style.eps, 'norm2'), 3 * features, 1, style.init_attention, 'qkv')
            h = attend(qkv, self.heads, self.attention)
            h = conv(h, features, 1, style.init_zero, 'proj')
            x = style.skip_scale * h + style.skip_scale * x
        return x


def octaves(values: jax.Array, count: int) -> jax.Array:
    """sin and cos of the values times pi/2 times 2^0 .. 2^(count - 1), [...,n] -> [...,2 count n];
    pi/2, so that the lowest period is that of data in [-2, 2]."""
    angles = values[..., None] * (jnp.pi / 2 * 2.0 ** jnp.arange(count))
    angles = angles.reshape(*values.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def number_features(value: jax.Array) -> jax.Array:
    """A number about as large as 1 and four octaves of it, [B] -> [B, 9]. Its derivative is no
    more than some 12 times as large, for the tangent of a flow map has it.

    c_noise = ln(sigma)/4, for one, lies in about [-1.6, 1.1], which four octaves resolve.
    """
    return jnp.concatenate([value[:, None], octaves(value[:, None], 4)], axis=-1)


NUMBER_FEATURES = 9  # that `number_features` has of a number.


def features_of(
    condition: Mapping[str, Any], numbers: Sequence[str], c_noise: jax.Array
) -> dict[str, jax.Array]:
    """{name: `number_features`} of the numbers of a condition, each 0 where the condition lacks it.

    Args:
      condition: {name: [B,...]}.
      numbers: names.
      c_noise: [B], whose type they get.
    """
    return {
        name: number_features(condition.get(name, jnp.zeros_like(c_noise)).astype(c_noise.dtype))
        for name in numbers
    }


def check_numbers(numbers: Sequence[str]) -> None:
    """Raises ValueError unless they are names, each once and of no other condition."""
    for name in numbers:
        if not name.isidentifier() or name in ('label', 'augment'):
            raise ValueError(
                f'numbers={tuple(numbers)}: {name!r} is no name of a number, as until or guidance'
            )
    if len(set(numbers)) < len(numbers):
        raise ValueError(f'numbers={tuple(numbers)}: name each once')


def positional_frequencies(channels: int, endpoint: bool) -> jax.Array:
    """10000^(-i/n) for i < n = channels/2, with `endpoint` 10000^(-i/(n - 1)), float32 [n]."""
    count = channels // 2
    return 10000.0 ** (-jnp.arange(count, dtype=jnp.float32) / (count - endpoint))


class FourierFrequencies(nn.Module):
    """2 pi times frequencies drawn once from N(0, 16^2), [channels/2].

    They are kept among the parameters because a checkpoint must hold them, yet they are constants:
    their gradient is zero.
    """

    channels: int

    @nn.compact
    def __call__(self):
        freqs = self.param('freqs', nn.initializers.normal(16.0), (self.channels // 2,))
        return 2 * math.pi * jax.lax.stop_gradient(freqs)
