"""The magnitude-preserving U-Net of EDM2 (Karras et al., arXiv 2312.02696, figure 21).

Parameters have the names, shapes and layouts of EDM2's own: a flat dict, convolutions
[out, in, h, w], linear maps [out, in], gains without axes. Weights are stored at any magnitude and
used at unit magnitude (equation 47). Training keeps them at unit magnitude too (equation 66), by
the setting `unit_weights` of an optimizer.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdistill.networks import Network, check_blocks, check_shape, label_of
from fdistill.networks.compute import REMAT, Compute, check
from fdistill.networks.convolution import convolve
from fdistill.networks.layers import (
    NUMBER_FEATURES,
    RESAMPLE,
    attention,
    check_numbers,
    dropped,
    features_of,
    wide,
)

TAPS = (1, 1)


class Style(NamedTuple):
    """The blocks of an EDM2 U-Net, and how it adds and joins.

    channels_per_head: of self-attention.
    res_balance, attn_balance: share of the residual and of the attention branch in a sum, in
      [0, 1].
    label_balance, concat_balance: share of the class in the embedding, and of the skip in what the
      decoder joins.
    clip_act: largest activation that a block gives, > 0; None: any.
    """

    channels_per_head: int = 64
    res_balance: float = 0.3
    attn_balance: float = 0.3
    label_balance: float = 0.5
    concat_balance: float = 0.5
    clip_act: float | None = 256.0


class Embedding(NamedTuple):
    """What is embedded, and how widely.

    channel_mult_noise: width of the noise's Fourier features over model_channels; default: that of
      the first resolution.
    channel_mult_emb: width of the embedding over model_channels; default: the largest width.
    numbers: further numbers of a condition, as ('until', 'guidance'), see `layers.features_of`.
      Each begins without effect, by a gain of 0; published files have none.
    """

    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    numbers: tuple[str, ...] = ()


class Block(NamedTuple):
    """A block of the plan.

    features, in_features: channels out and in.
    resample: key of `layers.RESAMPLE`.
    heads: of self-attention, 0 for none.
    encoder: of the encoder, else of the decoder.
    joins: whether it takes a skip.
    """

    name: str
    in_features: int
    features: int
    resample: str
    heads: int
    encoder: bool
    joins: bool = False


def unit(x: jax.Array, axes: Any, eps: float = 1e-4) -> jax.Array:
    """x over its magnitude, x / (eps + |x| / sqrt(n)), n entries over `axes` (equation 54).

    Args:
      x: any shape.
      axes: over which the magnitude is taken; n is their number of entries.
      eps: keeps zeros zero.
    """
    y = wide(x)
    total = jnp.sum(y**2, axis=axes, keepdims=True)
    entries = x.size // max(total.size, 1)
    # The root of 0 has no derivative; so small a sum is nothing beside eps.
    magnitude = jnp.sqrt(jnp.maximum(total, 1e-30) / entries)
    return (y / (eps + magnitude)).astype(x.dtype)


def mp_silu(x: jax.Array) -> jax.Array:
    """silu(x) / .596 (equation 81)."""
    return jax.nn.silu(x) / 0.596


def mp_sum(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (equation 88)."""
    return (a + t * (b - a)) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: jax.Array, b: jax.Array, t: float) -> jax.Array:
    """Channels of a, then of b, each weighted so that their shares of the magnitude are 1 - t and t
    (equation 103)."""
    na, nb = a.shape[-1], b.shape[-1]
    c = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    parts = (c / math.sqrt(na) * (1 - t) * a, c / math.sqrt(nb) * t * b)
    return jnp.concatenate(parts, axis=-1)


def _weight(w, gain=1.0):
    """What a layer multiplies with: rows of unit magnitude over the root of their entries
    (equation 47)."""
    axes = tuple(range(1, w.ndim))
    return unit(w, axes) * (gain / math.sqrt(math.prod(w.shape[1:])))


def _linear(w, x, gain=1.0):
    return jnp.einsum('bi,oi->bo', x, _weight(w, gain))


def _conv(w, x, gain=1.0):
    return convolve(x, jnp.transpose(_weight(w, gain).astype(x.dtype), (2, 3, 1, 0)))


def _attend(qkv, heads, kind):
    """Softmax(q k^T / sqrt(C)) v of pixel norms of q, k and v; channels: head, C, (q, k, v)."""
    batch, height, width, channels = qkv.shape
    qkv = qkv.reshape(batch, height * width, heads, channels // (3 * heads), 3)
    out = attention(*jnp.moveaxis(unit(qkv, 3), -1, 0), kind)
    return out.reshape(batch, height, width, channels // 3)


def _plan(resolution, widths, num_blocks, attn_resolutions, per_head):
    """(Blocks of the encoder, blocks of the decoder)."""

    def heads(features, attends):
        if attends and features % per_head:
            raise ValueError(
                f'channels_per_head={per_head}: {features} channels are no whole heads; give a '
                'divisor'
            )
        return features // per_head if attends else 0

    encoder, channels = [], widths[0]
    skips = [channels]
    for level, features in enumerate(widths):
        size = resolution >> level
        if level:
            name = f'enc.{size}x{size}_down'
            encoder.append(Block(name, channels, channels, 'down', 0, True))
            skips.append(channels)
        for index in range(num_blocks):
            name = f'enc.{size}x{size}_block{index}'
            own = heads(features, size in attn_resolutions)
            encoder.append(Block(name, channels, features, 'keep', own, True))
            skips.append(channels := features)
    decoder = []
    for level, features in reversed(list(enumerate(widths))):
        size = resolution >> level
        if level == len(widths) - 1:
            for index, own in enumerate((heads(channels, True), 0)):
                name = f'dec.{size}x{size}_in{index}'
                decoder.append(Block(name, channels, channels, 'keep', own, False))
        else:
            name = f'dec.{size}x{size}_up'
            decoder.append(Block(name, channels, channels, 'up', 0, False))
        for index in range(num_blocks + 1):
            name = f'dec.{size}x{size}_block{index}'
            own = heads(features, size in attn_resolutions)
            inside = channels + skips.pop()
            decoder.append(Block(name, inside, channels := features, 'keep', own, False, True))
    return encoder, decoder


def _shapes(block, embedding):
    """{name within a block: shape}."""
    inside, features = block.in_features, block.features
    first = features if block.encoder else inside
    found = {
        'emb_gain': (),
        'conv_res0.weight': (features, first, 3, 3),
        'emb_linear.weight': (features, embedding),
        'conv_res1.weight': (features, features, 3, 3),
    }
    if inside != features:
        found['conv_skip.weight'] = (features, inside, 1, 1)
    if block.heads:
        found['attn_qkv.weight'] = (3 * features, features, 1, 1)
        found['attn_proj.weight'] = (features, features, 1, 1)
    return found


def _run(block, style, dropout, kind, params, x, emb, key):
    """A block: (its params, x[B,H,W,C], emb[B,E], key or None) -> [B,H',W',features]."""
    x = RESAMPLE[block.resample](x, TAPS)
    skip = params.get('conv_skip.weight')
    if block.encoder:
        x = unit(x if skip is None else _conv(skip, x), -1)
    y = _conv(params['conv_res0.weight'], mp_silu(x))
    scale = _linear(params['emb_linear.weight'], emb, params['emb_gain']) + 1
    y = mp_silu(y * scale.astype(y.dtype)[:, None, None, :])
    y = _conv(params['conv_res1.weight'], dropped(key, y, dropout))
    if not block.encoder and skip is not None:
        x = _conv(skip, x)
    x = mp_sum(x, y, style.res_balance)
    if block.heads:
        y = _attend(_conv(params['attn_qkv.weight'], x), block.heads, kind)
        x = mp_sum(x, _conv(params['attn_proj.weight'], y), style.attn_balance)
    return x if style.clip_act is None else jnp.clip(x, -style.clip_act, style.clip_act)


def edm2(
    *,
    resolution: int,
    channels: int = 3,
    num_classes: int = 0,
    model_channels: int = 192,
    channel_mult: tuple[int, ...] = (1, 2, 3, 4),
    num_blocks: int = 3,
    attn_resolutions: tuple[int, ...] = (16, 8),
    dropout: float = 0.0,
    embedding: Embedding = Embedding(),
    style: Style = Style(),
    compute: Compute = Compute(),
) -> Network:
    """EDM2's U-Net: convolutions without bias or norm, whose weights and sums keep magnitudes.

    Published, by model_channels: XS 128, S 192 (280 M parameters), M 256, L 320, XL 384, XXL 448;
    dropout .1 from M on. ImageNet-64 with resolution=64, channels=3; ImageNet-512 in latents with
    resolution=64, channels=4; num_classes=1000, or 0.

    Args:
        resolution: of the square images, a multiple of 2^(len(channel_mult) - 1).
        channels: of the images.
        num_classes: classes K, 0 for none; label -1 is "no label".
        model_channels: base width.
        channel_mult: width of each resolution over model_channels, from highest to lowest.
        num_blocks: blocks for each resolution of the encoder; the decoder has one more.
        attn_resolutions: resolutions with self-attention; the lowest has it between encoder and
          decoder in any case.
        dropout: probability in [0, 1), active where `apply` is given a key.
        embedding, style, compute: see `Embedding`, `Style`, `Compute`.

    Returns:
        `Network`; its features are the last encoder activation of each resolution, float32, highest
        to lowest.

    Raises:
        ValueError: an argument is out of range, a resolution cannot be reached, or a width holds no
          whole head.
    """
    mult, attends = tuple(channel_mult), tuple(attn_resolutions)
    if not mult or min(mult) < 1 or resolution < 1 or resolution % 2 ** (len(mult) - 1):
        raise ValueError(
            f'resolution={resolution}, channel_mult={mult}: need factors >= 1 and a resolution '
            'that can be halved between them'
        )
    reached = [resolution >> level for level in range(len(mult))]
    if not set(attends) <= set(reached):
        raise ValueError(
            f'attn_resolutions={attends}: the network has the resolutions {reached}, choose among '
            'them'
        )
    for name, value, least in (
        ('channels', channels, 1),
        ('num_classes', num_classes, 0),
        ('model_channels', model_channels, 1),
        ('channel_mult_noise', embedding.channel_mult_noise or 1, 1),
        ('channel_mult_emb', embedding.channel_mult_emb or 1, 1),
        ('num_blocks', num_blocks, 1),
        ('channels_per_head', style.channels_per_head, 1),
    ):
        if value < least:
            raise ValueError(f'{name}={value}: must be >= {least}')
    check_blocks(2 * (num_blocks + 1) * len(mult), f'num_blocks={num_blocks}, {len(mult)} levels')
    if not 0 <= dropout < 1:
        raise ValueError(f'dropout={dropout}: must lie in [0, 1)')
    for name in ('res_balance', 'attn_balance', 'label_balance', 'concat_balance'):
        if not 0 <= getattr(style, name) <= 1:
            raise ValueError(f'{name}={getattr(style, name)}: must lie in [0, 1]')
    if style.clip_act is not None and not style.clip_act > 0:
        raise ValueError(f'clip_act={style.clip_act}: must be > 0, or None')
    check(compute)
    if embedding.numbers:
        check_numbers(embedding.numbers)
    widths, numbers = [model_channels * factor for factor in mult], tuple(embedding.numbers)
    noise = model_channels * (embedding.channel_mult_noise or mult[0])
    width = model_channels * (embedding.channel_mult_emb or max(mult))
    encoder, decoder = _plan(resolution, widths, num_blocks, attends, style.channels_per_head)
    stem = f'enc.{resolution}x{resolution}_conv.weight'
    shapes = {
        'out_gain': (),
        'emb_fourier.freqs': (noise,),
        'emb_fourier.phases': (noise,),
        'emb_noise.weight': (width, noise),
        **({'emb_label.weight': (width, num_classes)} if num_classes else {}),
        stem: (widths[0], channels + 1, 3, 3),
        'out_conv.weight': (channels, widths[0], 3, 3),
    }
    for block in encoder + decoder:
        own = _shapes(block, width)
        shapes |= {f'{block.name}.{name}': shape for name, shape in own.items()}

    def init(key, x, c_noise, condition):
        keys = jax.random.split(key, len(shapes))
        params = {
            name: jax.random.normal(own, shape) if shape else jnp.zeros(shape)
            for own, (name, shape) in zip(keys, sorted(shapes.items()))
        }
        phases = jax.random.uniform(jax.random.fold_in(key, 0), (noise,))
        constants = {'freqs': params['emb_fourier.freqs'], 'phases': phases}
        params |= {f'emb_fourier.{n}': 2 * math.pi * v for n, v in constants.items()}
        for i, name in enumerate(numbers, len(shapes)):
            own = jax.random.normal(jax.random.fold_in(key, i), (width, NUMBER_FEATURES))
            params |= {f'emb_number.{name}.weight': own, f'emb_number.{name}.gain': jnp.zeros(())}
        return params

    def embed(params, x, c_noise, condition):
        # Constants, kept among the parameters because a checkpoint must hold them.
        freqs, phases = (
            jax.lax.stop_gradient(params[f'emb_fourier.{name}']) for name in ('freqs', 'phases')
        )
        emb = math.sqrt(2) * jnp.cos(c_noise[:, None] * freqs + phases)
        emb = _linear(params['emb_noise.weight'], emb)
        for name, features in features_of(condition, numbers, c_noise).items():
            weight, gain = (params[f'emb_number.{name}.{part}'] for part in ('weight', 'gain'))
            emb += _linear(weight, features, gain)
        if num_classes:
            label = jax.nn.one_hot(label_of(condition, x), num_classes) * math.sqrt(num_classes)
            label = _linear(params['emb_label.weight'], label.astype(emb.dtype))
            emb = mp_sum(emb, label, style.label_balance)
        return mp_silu(emb)

    def run(block, params, h, emb, key):
        start = f'{block.name}.'
        own = {n.removeprefix(start): v for n, v in params.items() if n.startswith(start)}

        def of(own, h, emb, key):
            return _run(block, style, dropout, compute.attention, own, h, emb, key)

        return REMAT[compute.remat].function(of)(own, h, emb, key)

    @jax.jit
    def apply(params, x, c_noise, condition, key=None):
        check_shape(x, resolution, resolution, channels)
        blocks = len(encoder) + len(decoder)
        keys = [None] * blocks if key is None else list(jax.random.split(key, blocks))
        emb = embed(params, x, c_noise, condition)
        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        h = _conv(params[stem], h.astype(jnp.bfloat16 if compute.bfloat16 else x.dtype))
        skips, features = [h], []
        for block, own in zip(encoder, keys):
            if block.resample == 'down':
                features.append(h)
            h = run(block, params, h, emb, own)
            skips.append(h)
        features.append(h)
        for block, own in zip(decoder, keys[len(encoder) :]):
            if block.joins:
                h = mp_cat(h, skips.pop(), style.concat_balance)
            h = run(block, params, h, emb, own)
        out = _conv(params['out_conv.weight'], h, params['out_gain'])
        return out.astype(x.dtype), tuple(feature.astype(x.dtype) for feature in features)

    return Network(init, apply, (*(('label',) if num_classes else ()), *numbers))
