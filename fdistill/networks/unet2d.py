"""The U-Net of DDPM (Ho et al., arXiv 2006.11239) as diffusers publishes it, `UNet2DModel`.

Parameters are a flat dict of the published names in torch's layouts, so that reading and writing a
published folder changes no array. Names and arithmetic are those of diffusers 0.42.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fdistill.errors import suggest
from fdistill.networks import MOST_BLOCKS, MOST_WIDTH, Network, check_blocks, check_shape, label_of
from fdistill.networks.blocks2d import (
    attention,
    conv,
    doubled,
    draw,
    given,
    halved,
    linear,
    norm,
    resnet,
    shapes,
    sinusoid,
)
from fdistill.networks.compute import REMAT, Compute, check
from fdistill.networks.layers import (
    NUMBER_FEATURES,
    check_numbers,
    dropped,
    features_of,
    wide,
)

# Types of blocks, and whether each attends after every residual block.
DOWN = {'DownBlock2D': False, 'AttnDownBlock2D': True}
UP = {'UpBlock2D': False, 'AttnUpBlock2D': True}
MID = ('UNetMidBlock2D', None)
RESAMPLE = ('conv', 'resnet')
SHIFTS = ('default', 'scale_shift')
NUMBER = 'number_embedding'  # Before the name of a number: of the arrays that no publication has.


class Blocks(NamedTuple):
    """Which blocks there are; names and values are diffusers'.

    down_block_types: from the highest resolution to the lowest, of `DOWN`.
    up_block_types: from the lowest to the highest, of `UP`.
    mid_block_type: of `MID`; None: there is nothing between encoder and decoder.
    add_attention: the middle attends.
    downsample_type, upsample_type: of blocks that attend: a convolution, or a residual block around
      a mean or a repeat. All others have a convolution.
    downsample_padding: of that convolution: 1 on every side, or 0, which is one row and column
      after the last.
    """

    down_block_types: tuple[str, ...] = ('DownBlock2D', *['AttnDownBlock2D'] * 3)
    up_block_types: tuple[str, ...] = (*['AttnUpBlock2D'] * 3, 'UpBlock2D')
    mid_block_type: str | None = 'UNetMidBlock2D'
    add_attention: bool = True
    downsample_type: str = 'conv'
    upsample_type: str = 'conv'
    downsample_padding: int = 1


class Norms(NamedTuple):
    """How it normalises; names and values are diffusers'.

    norm_num_groups, norm_eps: of all group norms.
    attn_norm_num_groups: of the attention in the middle; None: as many, or, where the embedding
      scales and shifts, no norm at all.
    resnet_time_scale_shift: of `SHIFTS`: the embedding is added, or scales and shifts.
    """

    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    attn_norm_num_groups: int | None = None
    resnet_time_scale_shift: str = 'default'


class Time(NamedTuple):
    """The embedding of the noise, `blocks2d.sinusoid`; names and values are diffusers', but for
    numbers, which it has none of.

    time_embedding_dim: width behind it; None: four times the first of block_out_channels.
    numbers: further numbers of a condition, as ('until', 'guidance'), see `layers.features_of`.
      Each begins without effect.
    """

    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    time_embedding_dim: int | None = None
    numbers: tuple[str, ...] = ()


def unet2d(
    *,
    resolution: int,
    channels: int = 3,
    num_classes: int = 0,
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896),
    layers_per_block: int = 2,
    attention_head_dim: int | None = 8,
    center_input_sample: bool = False,
    dropout: float = 0.0,
    blocks: Blocks = Blocks(),
    norms: Norms = Norms(),
    time: Time = Time(),
    compute: Compute = Compute(),
) -> Network:
    """diffusers' `UNet2DModel`, whose c_noise is the time t of a table, 0 to 999.

    DDPM's on CIFAR-10, 35,746,307 parameters: dict(resolution=32, block_out_channels=(128, 256,
    256, 256), down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
    attention_head_dim=None, norm_eps=1e-6, downsample_padding=0, flip_sin_to_cos=False,
    freq_shift=1).

    Args:
      resolution: of the square images, a multiple of 2^(len(block_out_channels) - 1).
      channels: of the images.
      num_classes: classes K, 0 for none; label -1 is "no label" and adds nothing.
      block_out_channels: width of each resolution, from highest to lowest.
      layers_per_block: residual blocks of each resolution of the encoder; the decoder has one more.
      attention_head_dim: channels of a head, a divisor of the widths that attend; None: one head.
      center_input_sample: x -> 2x - 1 at the input.
      dropout: probability in [0, 1), active where `apply` is given a key.
      blocks, norms, time, compute: see `Blocks`, `Norms`, `Time`, `Compute`.

    Returns:
      `Network`; its params are {published name: float32 array}, and its features the last encoder
      activation of each resolution, float32, highest to lowest. Its output begins at zero.

    Raises:
      ValueError: an argument is out of range or of a kind that is not supported.
    """
    widths = tuple(block_out_channels)
    _check(resolution, channels, num_classes, widths, layers_per_block, dropout, blocks, norms)
    _check_attention(widths, attention_head_dim, blocks, norms)
    check(compute)
    if time.numbers:
        check_numbers(time.numbers)
    temb = 4 * widths[0] if time.time_embedding_dim is None else time.time_embedding_dim
    if not 1 <= temb <= MOST_WIDTH or not 0 <= time.freq_shift < widths[0] // 2:
        raise ValueError(
            f'time_embedding_dim={temb}, freq_shift={time.freq_shift}: must lie in 1..{MOST_WIDTH} '
            f'and 0..{widths[0] // 2 - 1}'
        )
    shift = norms.resnet_time_scale_shift == 'scale_shift'
    groups, eps = norms.norm_num_groups, norms.norm_eps
    # With a scale and a shift the middle has a norm only where its groups are said.
    mid_groups = norms.attn_norm_num_groups or (None if shift else groups)
    last = len(widths) - 1

    def attend(ask, name, h, groups=groups):
        head_dim = attention_head_dim or h.shape[-1]
        options = dict(head_dim=head_dim, groups=groups, eps=eps, kind=compute.attention)
        return attention(ask, name, h, **options)

    def embed(ask, x, t, condition):
        """linear_2(silu(linear_1(sinusoid(t)) + numbers)) + the class's row, float32 [B,E]."""
        emb = sinusoid(t, widths[0], time.flip_sin_to_cos, time.freq_shift)
        emb = linear(ask, 'time_embedding.linear_1', emb, temb)
        for name, number in features_of(condition, time.numbers, t).items():
            emb += number @ ask(f'{NUMBER}.{name}.weight', temb, NUMBER_FEATURES).T
        emb = linear(ask, 'time_embedding.linear_2', jax.nn.silu(emb), temb)
        if num_classes:
            # A product and no look-up: the gradient of one adds up in any order on a GPU.
            row = jax.nn.one_hot(label_of(condition, x), num_classes)
            table = ask('class_embedding.weight', num_classes, temb)
            emb = emb + jnp.matmul(row, table, precision='highest')
        return emb

    def forward(ask, x, t, condition, key=None):
        check_shape(x, resolution, resolution, channels)
        emb, count = embed(ask, x, t, condition), 0

        def run(name, h, features, attends='', resample=lambda x: x, mid=False):
            """A residual block and, by the name `attends`, what attends behind it."""
            nonlocal count
            own = None if key is None else jax.random.fold_in(key, count)
            count += 1

            def block(h, emb, own):
                def drop(h):
                    return dropped(own, h, dropout)

                options = dict(groups=groups, eps=eps, scale_shift=shift, resample=resample)
                h = resnet(ask, name, h, features, emb, drop=drop, **options)
                return attend(ask, attends, h, mid_groups if mid else groups) if attends else h

            return REMAT[compute.remat].function(block)(h, emb, own)

        def down(name, h, attends):
            if attends and blocks.downsample_type == 'resnet':
                return run(name, h, h.shape[-1], resample=halved)
            padding = (1, 1) if blocks.downsample_padding else (0, 1)
            return conv(ask, f'{name}.conv', h, h.shape[-1], stride=2, padding=padding)

        def up(name, h, attends):
            if attends and blocks.upsample_type == 'resnet':
                return run(name, h, h.shape[-1], resample=doubled)
            return conv(ask, f'{name}.conv', doubled(h), h.shape[-1])

        h = (2 * x - 1 if center_input_sample else x).astype(compute.type_for(x))
        h = conv(ask, 'conv_in', h, widths[0])
        skips, features = [h], []
        for i, width in enumerate(widths):
            name, attends = f'down_blocks.{i}', DOWN[blocks.down_block_types[i]]
            for j in range(layers_per_block):
                of = f'{name}.attentions.{j}' if attends else ''
                h = run(f'{name}.resnets.{j}', h, width, of)
                skips.append(h)
            features.append(h)
            if i < last:
                h = down(f'{name}.downsamplers.0', h, attends)
                skips.append(h)
        if blocks.mid_block_type:
            of = 'mid_block.attentions.0' if blocks.add_attention else ''
            h = run('mid_block.resnets.0', h, widths[-1], of, mid=True)
            h = run('mid_block.resnets.1', h, widths[-1])
        for i, width in enumerate(reversed(widths)):
            name, attends = f'up_blocks.{i}', UP[blocks.up_block_types[i]]
            for j in range(layers_per_block + 1):
                of = f'{name}.attentions.{j}' if attends else ''
                joined = jnp.concatenate([h, skips.pop()], axis=-1)
                h = run(f'{name}.resnets.{j}', joined, width, of)
            if i < last:
                h = up(f'{name}.upsamplers.0', h, attends)
        h = jax.nn.silu(norm(ask, 'conv_norm_out', h, groups, eps))
        # In float32: whatever is wrong with an estimate of noise is so times sigma with an image.
        out = conv(ask, 'conv_out', wide(h), channels)
        return out, tuple(map(wide, features))

    def init(key, x, c_noise, condition):
        wanted = shapes(forward, x, c_noise, condition)
        zeros = {name: jnp.zeros(wanted.pop(name)) for name in list(wanted) if NUMBER in name}
        return draw(key, wanted, zeros=('conv_out',)) | zeros

    @jax.jit
    def apply(params, x, c_noise, condition, key=None):
        return forward(given(params), x, c_noise, condition, key)

    return Network(init, apply, (*(('label',) if num_classes else ()), *time.numbers))


def _check(resolution, channels, num_classes, widths, layers, dropout, blocks, norms):
    if not widths or not all(1 <= width <= MOST_WIDTH for width in widths):
        raise ValueError(
            f'block_out_channels={widths}: must be one width in 1..{MOST_WIDTH} for each resolution'
        )
    for name, kinds, known in (
        ('down_block_types', blocks.down_block_types, DOWN),
        ('up_block_types', blocks.up_block_types, UP),
        ('mid_block_type', (blocks.mid_block_type,), MID),
        ('downsample_type', (blocks.downsample_type,), RESAMPLE),
        ('upsample_type', (blocks.upsample_type,), RESAMPLE),
        ('resnet_time_scale_shift', (norms.resnet_time_scale_shift,), SHIFTS),
        ('downsample_padding', (blocks.downsample_padding,), (0, 1)),
    ):
        for kind in kinds:
            if kind not in known:
                hint = suggest(kind, known) if isinstance(kind, str) else ''
                raise ValueError(
                    f'{name}={kind!r}: is not supported{hint}; known are '
                    f'{", ".join(map(str, known))}'
                )
    for name in ('down_block_types', 'up_block_types'):
        if len(getattr(blocks, name)) != len(widths):
            raise ValueError(
                f'{name}={getattr(blocks, name)}: must be one for each of '
                f'block_out_channels={widths}'
            )
    halvings = len(widths) - 1
    if resolution < 1 or resolution % 2**halvings:
        raise ValueError(
            f'resolution={resolution} cannot be halved {halvings} times for '
            f'block_out_channels={widths}; make it a multiple of {2**halvings} or take fewer widths'
        )
    for name, value, least, most in (
        ('channels', channels, 1, MOST_WIDTH),
        ('num_classes', num_classes, 0, 2**31 - 1),
        ('layers_per_block', layers, 1, MOST_BLOCKS),
    ):
        if not least <= value <= most:
            raise ValueError(f'{name}={value}: must lie in {least}..{most}')
    count = (2 * layers + 1) * len(widths) + 2
    check_blocks(count, f'layers_per_block={layers}, {len(widths)} block_out_channels')
    if not 0 <= dropout < 1:
        raise ValueError(f'dropout={dropout}: must lie in [0, 1)')
    if not norms.norm_eps > 0:
        raise ValueError(f'norm_eps={norms.norm_eps}: must be > 0')
    for width in widths:
        if norms.norm_num_groups < 1 or width % norms.norm_num_groups:
            raise ValueError(
                f'norm_num_groups={norms.norm_num_groups}: does not divide the {width} of '
                f'block_out_channels={widths}; take a divisor of all'
            )


def _check_attention(widths, head_dim, blocks, norms):
    attends = [width for width, kind in zip(widths, blocks.down_block_types) if DOWN[kind]]
    attends += [width for width, kind in zip(widths[::-1], blocks.up_block_types) if UP[kind]]
    if blocks.mid_block_type and blocks.add_attention:
        attends.append(widths[-1])
        groups = norms.attn_norm_num_groups
        if groups is not None and (groups < 1 or widths[-1] % groups):
            raise ValueError(
                f'attn_norm_num_groups={groups}: does not divide the {widths[-1]} channels of the '
                'middle; take a divisor'
            )
    for width in attends:
        if head_dim is not None and (head_dim < 1 or width % head_dim):
            raise ValueError(
                f'attention_head_dim={head_dim}: does not divide the {width} channels of a block '
                'that attends; take a divisor, or None for one head'
            )
