"""The autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752) as diffusers publishes it,
`AutoencoderKL`: what latents are made with, and what makes images of them. It is not trained here.

Parameters are a flat dict of the published names in torch's layouts. Names and arithmetic are those
of diffusers 0.42.1.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.networks import MOST_BLOCKS, MOST_WIDTH, check_blocks
from fdistill.networks.blocks2d import attention, conv, doubled, draw, given, norm, resnet, shapes

EPS = 1e-6  # of all its norms
MOST_LEVELS = 16  # A latent of 32768 pixels a side is none.
LOGVAR = (-30.0, 20.0)  # what the logarithm of a variance is clipped to


class Autoencoder(NamedTuple):
    """An autoencoder as pure functions.

    shapes() -> {name: shape} of all its float32 arrays.
    init(key) -> params.
    encode(params, images[B,H,W,C] in [-1, 1]) -> moments[B,H/f,W/f,2c]: mean and log variance of
      the latents, side by side.
    latents(moments, noise=None) -> z = (mean + exp(logvar/2) noise - shift) scale, float32
      [B,H/f,W/f,c], which diffusion models are trained on; without noise those of the mean.
    decode(params, z) -> images[B,H,W,C], not clipped.
    factor: f, pixels a side of a latent; channels: C; latent_channels: c.
    """

    shapes: Callable[[], Mapping[str, tuple[int, ...]]]
    init: Callable[[jax.Array], Any]
    encode: Callable[[Any, jax.Array], jax.Array]
    latents: Callable[..., jax.Array]
    decode: Callable[[Any, jax.Array], jax.Array]
    factor: int
    channels: int
    latent_channels: int


def autoencoder_kl(
    *,
    channels: int = 3,
    latent_channels: int = 4,
    block_out_channels: tuple[int, ...] = (64,),
    layers_per_block: int = 1,
    norm_num_groups: int = 32,
    scaling_factor: float = 0.18215,
    shift_factor: float | None = None,
    latents_mean: tuple[float, ...] | None = None,
    latents_std: tuple[float, ...] | None = None,
    use_quant_conv: bool = True,
    use_post_quant_conv: bool = True,
    mid_block_add_attention: bool = True,
) -> Autoencoder:
    """diffusers' `AutoencoderKL`; the arguments are its own, `channels` those of the images.

    Published, with block_out_channels=(128, 256, 512, 512), layers_per_block=2 and 83,653,863
    parameters: Stable Diffusion's.

    Args:
      channels, latent_channels: of images and latents.
      block_out_channels: width of each resolution, from highest to lowest; each but the last
        halves it.
      layers_per_block: residual blocks of each resolution of the encoder; the decoder has one more.
      norm_num_groups: of all group norms, a divisor of the widths.
      scaling_factor, shift_factor: z = (mean - shift) scale, so that latents have unit variance;
        None is 0.
      latents_mean, latents_std: a number a channel; shift is latents_mean then, and scale
        scaling_factor / latents_std.
      use_quant_conv, use_post_quant_conv: 1x1 convolutions behind the encoder and before the
        decoder.
      mid_block_add_attention: the middles attend.

    Raises:
      ValueError: an argument is out of range.
    """
    widths = tuple(block_out_channels)
    if not 1 <= len(widths) <= MOST_LEVELS or not all(1 <= w <= MOST_WIDTH for w in widths):
        raise ValueError(
            f'block_out_channels={widths!r:.200}: must be one width in 1..{MOST_WIDTH} for each of '
            f'at most {MOST_LEVELS} resolutions'
        )
    for name, value, most in (
        ('channels', channels, MOST_WIDTH),
        ('latent_channels', latent_channels, MOST_WIDTH),
        ('layers_per_block', layers_per_block, MOST_BLOCKS),
    ):
        if not 1 <= value <= most:
            raise ValueError(f'{name}={value}: must lie in 1..{most}')
    count = (2 * layers_per_block + 1) * len(widths) + 4
    check_blocks(count, f'layers_per_block={layers_per_block}, {len(widths)} block_out_channels')
    for width in widths:
        if norm_num_groups < 1 or width % norm_num_groups:
            raise ValueError(
                f'norm_num_groups={norm_num_groups}: does not divide the {width} of '
                f'block_out_channels={widths}; take a divisor of all'
            )
    if not scaling_factor > 0 or (latents_std and not min(latents_std) > 0):
        raise ValueError(f'scaling_factor={scaling_factor}, latents_std={latents_std}: must be > 0')
    if (latents_mean is None) != (latents_std is None):
        raise ValueError('latents_mean, latents_std: give both or none')
    for name, value in (('latents_mean', latents_mean), ('latents_std', latents_std)):
        if value is not None and len(value) != latent_channels:
            raise ValueError(
                f'{name} has {len(value)} numbers: need one for each of '
                f'latent_channels={latent_channels}'
            )
    factor, last = 2 ** (len(widths) - 1), len(widths) - 1
    shift = np.asarray(latents_mean or shift_factor or 0.0, np.float32)
    scale = np.float32(scaling_factor) / np.asarray(latents_std or 1.0, np.float32)
    block = functools.partial(resnet, groups=norm_num_groups, eps=EPS)

    def middle(ask, name, h):
        h = block(ask, f'{name}.resnets.0', h, widths[-1])
        if mid_block_add_attention:
            h = attention(
                ask,
                f'{name}.attentions.0',
                h,
                head_dim=widths[-1],
                groups=norm_num_groups,
                eps=EPS,
            )
        return block(ask, f'{name}.resnets.1', h, widths[-1])

    def output(ask, name, h, features):
        h = jax.nn.silu(norm(ask, f'{name}.conv_norm_out', h, norm_num_groups, EPS))
        return conv(ask, f'{name}.conv_out', h, features)

    def encoder(ask, x):
        if x.shape[1] % factor or x.shape[2] % factor or x.shape[3] != channels:
            raise ValueError(
                f'images are {x.shape[1:]}: the autoencoder takes multiples of {factor} pixels a '
                f'side and {channels} channels'
            )
        h = conv(ask, 'encoder.conv_in', x, widths[0])
        for i, width in enumerate(widths):
            for j in range(layers_per_block):
                h = block(ask, f'encoder.down_blocks.{i}.resnets.{j}', h, width)
            if i < last:
                name = f'encoder.down_blocks.{i}.downsamplers.0.conv'
                h = conv(ask, name, h, width, stride=2, padding=(0, 1))
        h = output(ask, 'encoder', middle(ask, 'encoder.mid_block', h), 2 * latent_channels)
        if use_quant_conv:
            h = conv(ask, 'quant_conv', h, 2 * latent_channels, 1)
        mean, logvar = jnp.split(h, 2, axis=-1)
        return jnp.concatenate([mean, logvar.clip(*LOGVAR)], axis=-1)

    def decoder(ask, h):
        if h.shape[-1] != latent_channels:
            raise ValueError(
                f'latents are {h.shape[1:]}: the autoencoder has {latent_channels} channels'
            )
        if use_post_quant_conv:
            h = conv(ask, 'post_quant_conv', h, latent_channels, 1)
        h = middle(ask, 'decoder.mid_block', conv(ask, 'decoder.conv_in', h, widths[-1]))
        for i, width in enumerate(reversed(widths)):
            for j in range(layers_per_block + 1):
                h = block(ask, f'decoder.up_blocks.{i}.resnets.{j}', h, width)
            if i < last:
                h = conv(ask, f'decoder.up_blocks.{i}.upsamplers.0.conv', doubled(h), width)
        return output(ask, 'decoder', h, channels)

    def wanted():
        images = jax.ShapeDtypeStruct((1, factor, factor, channels), jnp.float32)
        inside = jax.ShapeDtypeStruct((1, 1, 1, latent_channels), jnp.float32)
        return shapes(encoder, images) | shapes(decoder, inside)

    # Full precision: latents are data, and what is decoded is measured.
    @jax.jit
    def encode(params, images):
        with jax.default_matmul_precision('highest'):
            return encoder(given(params), images)

    def latents(moments, noise=None):
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        z = mean if noise is None else mean + jnp.exp(logvar / 2) * noise
        return (z - shift) * scale

    @jax.jit
    def decode(params, z):
        with jax.default_matmul_precision('highest'):
            return decoder(given(params), z / scale + shift)

    return Autoencoder(
        shapes=wanted,
        init=lambda key: draw(key, wanted()),
        encode=encode,
        latents=latents,
        decode=decode,
        factor=factor,
        channels=channels,
        latent_channels=latent_channels,
    )


AUTOENCODERS = {'autoencoder_kl': autoencoder_kl}
