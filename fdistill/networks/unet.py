"""The U-Nets of EDM: DDPM++ and NCSN++ (Song et al., arXiv 2011.13456) and ADM (Dhariwal and
Nichol, arXiv 2105.05233).

Parameters correspond one to one to those of EDM's PyTorch networks (Karras et al., arXiv
2206.00364): `edm_name`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdistill.networks import MOST_BLOCKS, Network, check_shape, label_of
from fdistill.networks.compute import REMAT, Compute, check
from fdistill.networks.layers import (
    KAIMING,
    NORMAL,
    XAVIER,
    ZEROS,
    BlockStyle,
    FourierFrequencies,
    UNetBlock,
    check_numbers,
    conv,
    dense,
    downsample,
    features_of,
    group_count,
    norm,
    positional_frequencies,
    wide,
    xavier,
)


class Embedding(NamedTuple):
    """What is embedded beside noise, class and augmentation, and how widely.

    channel_mult_emb: width of the embedding over model_channels.
    numbers: further numbers of a condition, as ('until', 'guidance'), see `layers.features_of`.
      Each begins without effect; published files have none.
    """

    channel_mult_emb: int = 4
    numbers: tuple[str, ...] = ()


class Architecture(NamedTuple):
    """What distinguishes the three networks beyond widths and depths.

    Args:
        mapping: (c_noise[B], label[B,K] or None, augment[B,A] or None, {name: [B,9]} of numbers,
          noise_channels, emb_channels) -> emb[B,E].
        noise_multiplier: noise_channels / model_channels.
        style: of the residual blocks.
        residual_encoder: the image itself, convolved and shrunk, joins the encoder at every level.
        attend_always: the decoder attends in every block of an attention resolution, else in the
          last one only.
        widen_at_input: the first convolution already has the width of the first level, else
          model_channels.
        output: prefix of the names of the last norm and convolution; {0} is the resolution.
    """

    mapping: Callable
    noise_multiplier: int
    style: BlockStyle
    residual_encoder: bool
    attend_always: bool
    widen_at_input: bool
    output: str


def _with_numbers(h, numbers):
    """h + sum of W_n number_features(n), all W_n being 0 at the start."""
    for name, features in numbers.items():
        h = h + dense(features, h.shape[-1], ZEROS, f'map_number_{name}', use_bias=False)
    return h


def _song_mapping(frequencies, c_noise, label, augment, numbers, noise_channels, emb_channels):
    """emb = silu(W1 silu(W0 h)),
    h = [sin, cos](c_noise freqs) + sqrt(K) W_label label + W_augment augment + numbers."""
    angles = c_noise[:, None] * frequencies(noise_channels)
    h = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    if label is not None:
        h = h + dense(label * math.sqrt(label.shape[-1]), noise_channels, XAVIER, 'map_label')
    if augment is not None:
        h = h + dense(augment, noise_channels, XAVIER, 'map_augment', use_bias=False)
    h = _with_numbers(h, numbers)
    h = nn.silu(dense(h, emb_channels, XAVIER, 'map_layer0'))
    return nn.silu(dense(h, emb_channels, XAVIER, 'map_layer1'))


def _dhariwal_mapping(c_noise, label, augment, numbers, noise_channels, emb_channels):
    """emb = silu(W1 silu(W0 ([cos, sin](c_noise freqs) + W_augment augment + numbers))
    + W_label label)."""
    angles = c_noise[:, None] * positional_frequencies(noise_channels, endpoint=False)
    h = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    if augment is not None:
        h = h + dense(augment, noise_channels, ZEROS, 'map_augment', use_bias=False)
    h = _with_numbers(h, numbers)
    h = nn.silu(dense(h, emb_channels, KAIMING, 'map_layer0'))
    h = dense(h, emb_channels, KAIMING, 'map_layer1')
    if label is not None:
        h = h + dense(label, emb_channels, NORMAL, 'map_label', use_bias=False)
    return nn.silu(h)


_DDPMPP = Architecture(
    mapping=functools.partial(
        _song_mapping, lambda channels: positional_frequencies(channels, endpoint=True)
    ),
    noise_multiplier=1,
    style=BlockStyle(
        taps=(1, 1),
        eps=1e-6,
        skip_scale=math.sqrt(0.5),
        adaptive_scale=False,
        project_resampled=True,
        init=XAVIER,
        init_zero=xavier(1e-5),
        init_attention=xavier(math.sqrt(0.2)),
    ),
    residual_encoder=False,
    attend_always=False,
    widen_at_input=False,
    output='dec_{0}x{0}_aux',
)
_NCSNPP = _DDPMPP._replace(
    mapping=functools.partial(
        _song_mapping, lambda channels: FourierFrequencies(channels, name='map_noise')()
    ),
    noise_multiplier=2,
    style=_DDPMPP.style._replace(taps=(1, 3, 3, 1)),
    residual_encoder=True,
)
_ADM = Architecture(
    mapping=_dhariwal_mapping,
    noise_multiplier=1,
    style=BlockStyle(
        taps=(1, 1),
        eps=1e-5,
        skip_scale=1.0,
        adaptive_scale=True,
        project_resampled=False,
        init=KAIMING,
        init_zero=ZEROS,
        init_attention=KAIMING,
    ),
    residual_encoder=False,
    attend_always=True,
    widen_at_input=True,
    output='out',
)


class Block(NamedTuple):
    """One row of a plan: a block's name, its widths, and whether an encoder activation is appended
    to its input."""

    name: str
    in_features: int
    features: int
    resample: str = 'keep'
    heads: int = 0
    append: bool = False


class Plan(NamedTuple):
    """The blocks in the order they run; `stem` is the width of the first convolution."""

    stem: int
    encoder: tuple
    decoder: tuple


def _plan(
    architecture,
    *,
    resolution,
    model_channels,
    channel_mult,
    num_blocks,
    attn_resolutions,
    channels_per_head,
):
    """The list of blocks; channels_per_head None means a single head."""
    levels = [(resolution >> i, model_channels * mult) for i, mult in enumerate(channel_mult)]
    stem = levels[0][1] if architecture.widen_at_input else model_channels

    def heads(features, attends):
        if not attends:
            return 0
        count = 1 if channels_per_head is None else features // channels_per_head
        if count < 1 or features % count:
            raise ValueError(
                f'channels_per_head={channels_per_head} does not divide a block of {features} '
                'channels that attends; choose one that does'
            )
        return count

    encoder, width, skips = [], stem, [stem]
    for res, features in levels:
        if res != resolution:
            encoder.append(Block(f'enc_{res}x{res}_down', width, width, 'down'))
        for i in range(num_blocks):
            attends = res in attn_resolutions
            name = f'enc_{res}x{res}_block{i}'
            encoder.append(
                Block(name, features if i else width, features, 'keep', heads(features, attends))
            )
        width = features
    skips += [block.features for block in encoder]

    decoder = []
    for res, features in reversed(levels):
        if res == levels[-1][0]:
            decoder.append(Block(f'dec_{res}x{res}_in0', width, width, 'keep', heads(width, True)))
            decoder.append(Block(f'dec_{res}x{res}_in1', width, width))
        else:
            decoder.append(Block(f'dec_{res}x{res}_up', width, width, 'up'))
        for i in range(num_blocks + 1):
            attends = res in attn_resolutions and (architecture.attend_always or i == num_blocks)
            name = f'dec_{res}x{res}_block{i}'
            total = width + skips.pop()
            decoder.append(
                Block(name, total, features, 'keep', heads(features, attends), append=True)
            )
            width = features
    return Plan(stem, tuple(encoder), tuple(decoder))


class UNet(nn.Module):
    """Runs a plan: (x[B,R,R,C], c_noise[B], condition) -> (out[B,R,R,C], features), float32, or
    float64 where x is."""

    architecture: Architecture
    plan: Plan
    resolution: int
    channels: int
    num_classes: int
    augment_dim: int
    model_channels: int
    emb_channels: int
    numbers: tuple[str, ...]
    dropout: float
    compute: Compute

    @nn.compact
    def __call__(self, x, c_noise, condition, train):
        style = self.architecture.style
        emb = self._embed(x, c_noise, condition)
        block_type = REMAT[self.compute.remat].module(UNetBlock)

        def run(block, h):
            return block_type(
                block.features,
                style,
                block.resample,
                block.heads,
                self.dropout if train else 0.0,
                self.compute.attention,
                name=block.name,
            )(h, emb)

        image = x.astype(self.compute.type_for(x))
        h = conv(
            image, self.plan.stem, 3, style.init, f'enc_{self.resolution}x{self.resolution}_conv'
        )
        skips, features = [h], []
        for block in self.plan.encoder:
            if block.resample == 'down':
                features.append(h)
            h = run(block, h)
            if block.resample == 'down' and self.architecture.residual_encoder:
                # Here the filter follows the convolution, so that all padding is the convolution's.
                name = block.name.replace('down', 'aux_residual')
                padding = 1 + (len(style.taps) - 1) // 2
                image = conv(image, h.shape[-1], 3, style.init, name, padding=padding)
                h = image = (h + downsample(image, style.taps, padding=0)) * math.sqrt(0.5)
            skips.append(h)
        features.append(h)

        for block in self.plan.decoder:
            h = run(block, jnp.concatenate([h, skips.pop()], axis=-1) if block.append else h)
        name = self.architecture.output.format(self.resolution)
        h = nn.silu(norm(h, style.eps, f'{name}_norm'))
        out = conv(h, self.channels, 3, style.init_zero, f'{name}_conv')
        return wide(out), tuple(map(wide, features))

    def _embed(self, x, c_noise, condition):
        check_shape(x, self.resolution, self.resolution, self.channels)
        augment = condition.get('augment')
        if augment is not None and augment.shape[1:] != (self.augment_dim,):
            raise ValueError(
                f'augment has shape {augment.shape}, must be [B, augment_dim={self.augment_dim}] '
                'or None'
            )
        classes = self.num_classes
        label = jax.nn.one_hot(label_of(condition, x), classes) if classes else None
        if augment is None and self.augment_dim:
            augment = jnp.zeros((x.shape[0], self.augment_dim))
        numbers = features_of(condition, self.numbers, c_noise)
        noise_channels = self.model_channels * self.architecture.noise_multiplier
        return self.architecture.mapping(
            c_noise, label, augment, numbers, noise_channels, self.emb_channels
        )


def _network(
    architecture,
    *,
    resolution,
    channels,
    num_classes,
    augment_dim,
    model_channels,
    channel_mult,
    num_blocks,
    attn_resolutions,
    dropout,
    embedding,
    compute,
    channels_per_head=None,
):
    channel_mult, attn_resolutions = tuple(channel_mult), tuple(attn_resolutions)
    halvings = len(channel_mult) - 1
    if halvings < 0 or min(channel_mult) < 1:
        raise ValueError(
            f'channel_mult={channel_mult}: must be one factor >= 1 for each resolution'
        )
    if resolution < 1 or resolution % 2**halvings:
        raise ValueError(
            f'resolution={resolution} cannot be halved {halvings} times for '
            f'channel_mult={channel_mult}; make it a multiple of {2**halvings} or shorten '
            'channel_mult'
        )
    reached = [resolution >> i for i in range(halvings + 1)]
    if not set(attn_resolutions) <= set(reached):
        raise ValueError(
            f'attn_resolutions={attn_resolutions}: the network has the resolutions {reached}, '
            'choose among them'
        )
    for name, value, least in (
        ('channels', channels, 1),
        ('num_classes', num_classes, 0),
        ('augment_dim', augment_dim, 0),
        ('model_channels', model_channels, 4),
        ('channel_mult_emb', embedding.channel_mult_emb, 1),
        ('num_blocks', num_blocks, 1),
    ):
        if value < least:
            raise ValueError(f'{name}={value}: must be >= {least}')
    if num_blocks > MOST_BLOCKS:
        raise ValueError(f'num_blocks={num_blocks}: must be <= {MOST_BLOCKS}')
    if not 0 <= dropout < 1:
        raise ValueError(f'dropout={dropout}: must lie in [0, 1)')
    check(compute)
    if embedding.numbers:
        check_numbers(embedding.numbers)

    plan = _plan(
        architecture,
        resolution=resolution,
        model_channels=model_channels,
        channel_mult=channel_mult,
        num_blocks=num_blocks,
        attn_resolutions=attn_resolutions,
        channels_per_head=channels_per_head,
    )
    for block in plan.encoder + plan.decoder:
        group_count(block.in_features)
        group_count(block.features)
    module = UNet(
        architecture=architecture,
        plan=plan,
        resolution=resolution,
        channels=channels,
        num_classes=num_classes,
        augment_dim=augment_dim,
        model_channels=model_channels,
        emb_channels=model_channels * embedding.channel_mult_emb,
        numbers=tuple(embedding.numbers),
        dropout=dropout,
        compute=compute,
    )

    def init(key, x, c_noise, condition):
        return module.init(key, x, c_noise, condition, False)['params']

    takes = {'label': num_classes, 'augment': augment_dim}
    takes = (name for name, width in takes.items() if width)
    return Network(init, functools.partial(_apply, module), (*takes, *module.numbers))


@functools.partial(jax.jit, static_argnames='module')
def _apply(module, params, x, c_noise, condition, key=None):
    rngs = {} if key is None else {'dropout': key}
    return module.apply({'params': params}, x, c_noise, condition, key is not None, rngs=rngs)


def ddpmpp(
    *,
    resolution: int,
    channels: int = 3,
    num_classes: int = 0,
    augment_dim: int = 0,
    model_channels: int = 128,
    channel_mult: tuple[int, ...] = (2, 2, 2),
    num_blocks: int = 4,
    attn_resolutions: tuple[int, ...] = (16,),
    dropout: float = 0.1,
    embedding: Embedding = Embedding(),
    compute: Compute = Compute(),
) -> Network:
    """DDPM++: positional embedding of the noise, box filter, residual sums divided by sqrt(2), one
    attention head.

    Published (EDM), with 55,735,299 and 55,733,891 parameters on CIFAR-10 with and without classes:
        CIFAR-10: dict(resolution=32, num_classes=10, augment_dim=9, dropout=0.13), or num_classes=0
        FFHQ-64: dict(resolution=64, augment_dim=9, channel_mult=(1, 2, 2, 2), dropout=0.05)
        AFHQv2-64: dict(resolution=64, augment_dim=9, channel_mult=(1, 2, 2, 2), dropout=0.25)

    Args:
        resolution: of the square images, a multiple of 2^(len(channel_mult) - 1).
        channels: of the images.
        num_classes: classes K, 0 for none; label -1 is "no label".
        augment_dim: width A of the augmentation labels, 0 for none.
        model_channels: base width, best a multiple of 32.
        channel_mult: width of each resolution over model_channels, from highest to lowest.
        num_blocks: residual blocks for each resolution of the encoder; the decoder has one more.
        attn_resolutions: resolutions with self-attention; the lowest has it between encoder and
          decoder in any case.
        dropout: probability in [0, 1), active where `apply` is given a key.
        embedding, compute: see `Embedding`, `Compute`.

    Returns:
        `Network`; its features are the last encoder activation of each resolution, float32, highest
        to lowest.

    Raises:
        ValueError: an argument is out of range, a resolution cannot be reached, or a width cannot
          be normalised in groups.
    """
    return _network(_DDPMPP, **locals())


def ncsnpp(
    *,
    resolution: int,
    channels: int = 3,
    num_classes: int = 0,
    augment_dim: int = 0,
    model_channels: int = 128,
    channel_mult: tuple[int, ...] = (2, 2, 2),
    num_blocks: int = 4,
    attn_resolutions: tuple[int, ...] = (16,),
    dropout: float = 0.1,
    embedding: Embedding = Embedding(),
    compute: Compute = Compute(),
) -> Network:
    """NCSN++: as `ddpmpp`, with Fourier features of the noise, filter [1, 3, 3, 1] and the image at
    every level.

    Published (EDM): the settings of `ddpmpp`, with 56,400,643 and 56,397,827 parameters on CIFAR-10
    with and without classes, and 128 constant frequencies besides.

    Args, returns and raises: as `ddpmpp`. The frequencies (`map_noise`, `freqs`) are constants kept
    among the parameters: their gradient is zero, and weight decay must leave them out.
    """
    return _network(_NCSNPP, **locals())


def adm(
    *,
    resolution: int,
    channels: int = 3,
    num_classes: int = 0,
    augment_dim: int = 0,
    model_channels: int = 192,
    channel_mult: tuple[int, ...] = (1, 2, 3, 4),
    num_blocks: int = 3,
    attn_resolutions: tuple[int, ...] = (32, 16, 8),
    channels_per_head: int = 64,
    dropout: float = 0.1,
    embedding: Embedding = Embedding(),
    compute: Compute = Compute(),
) -> Network:
    """ADM: positional embedding that scales and shifts, multi-head attention, zero output at
    initialisation.

    Published (EDM), with 295,899,267 parameters:
        ImageNet-64: dict(resolution=64, num_classes=1000, dropout=0.1), trained there in float16

    Args, returns and raises: as `ddpmpp`, and
        channels_per_head: a block of C channels attends with C // channels_per_head heads; EDM's
          is 64.
    """
    return _network(_ADM, **locals())


_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'freqs': 'freqs'}


def edm_name(path: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """Where a parameter lies in EDM's state dict, and how to turn its axes.

    ours = edm[name].transpose(permutation): convolutions OIHW -> HWIO, linear maps [out, in] ->
    [in, out]. EDM's other entries, the `resample_filter` buffers, are constants here.

    Args:
        path: keys from the root of `params` to the array, e.g. ('enc_32x32_block0', 'conv0',
          'kernel').
    Returns:
        (name, permutation), e.g. ('enc.32x32_block0.conv0.weight', (2, 3, 1, 0)); EDM's `model.`
        goes before the name.
    """
    *modules, leaf = path
    name = '.'.join([*modules, _LEAVES[leaf]])
    for part in ('enc', 'dec'):
        name = name.replace(f'{part}_', f'{part}.', 1) if name.startswith(f'{part}_') else name
    if leaf != 'kernel':
        return name, (0,)
    is_linear = modules[-1] == 'affine' or modules[-1].startswith('map_')
    return name, (1, 0) if is_linear else (2, 3, 1, 0)
