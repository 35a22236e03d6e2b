"""Networks behind one type. flax is imported in this package only."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fdistill.types import Condition

# No network has more: blocks in a row, of which each is traced, and channels of a layer.
MOST_BLOCKS = 1000
MOST_WIDTH = 2**16


def check_blocks(count: int, what: str) -> None:
    """Raises ValueError where a network would have more blocks in a row, all levels together.

    Args:
      count: of its blocks.
      what: makes them so many, in words.
    """
    if count > MOST_BLOCKS:
        raise ValueError(f'{what}: make {count} blocks in a row; at most {MOST_BLOCKS} are known')


def check_shape(x: jax.Array, *shape: int) -> None:
    """Raises ValueError unless x is [B, *shape]."""
    if x.shape[1:] != shape:
        raise ValueError(
            f'x has shape {x.shape}, the network was built for [B, {", ".join(map(str, shape))}]'
        )


class Network(NamedTuple):
    """A network as two pure functions; it knows neither the noise schedule nor the mesh.

    init(key, x[B,...], c_noise[B], condition) -> params
    apply(params, x, c_noise, condition, key=None) -> (out[B,...], features)

    `x` is preconditioned input, `c_noise` the noise conditioning (EDM: ln(sigma)/4), `condition` a
    dict of arrays [B, ...] whose names are among `takes`, and `key` switches dropout on. A name in
    `takes` that is not given means "none" of it, 0 of a number. `out` has the shape of `x` and is
    float32, or float64 where `x` is. `features` is a tuple of activations for discriminator heads.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    takes: tuple[str, ...] = ()


def label_of(condition: Condition, x: jax.Array) -> jax.Array:
    """The label of each sample, int32 [B]; -1, "no label", where the condition has none."""
    return condition.get('label', jnp.full(x.shape[0], -1, jnp.int32))


class Head(NamedTuple):
    """A discriminator on a network's features; a positive logit means real.

    init(key, features, c_noise[B], condition) -> params
    apply(params, features, c_noise, condition) -> logits[B, heads], float32
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


class Encoder(NamedTuple):
    """Frozen networks that see features in samples: what a distance of distributions is taken of,
    or of one sample to another.

    init(key, x[B,...], condition) -> params, of which the shapes are meant
    apply(params, x[B,...]) -> (features[B,d], ...), an array for each network, or for each layer of
      one; they carry gradient to x
    """

    init: Callable[..., Any]
    apply: Callable[..., tuple[jax.Array, ...]]


from fdistill.networks.dit import dit  # noqa: E402  They import the types above.
from fdistill.networks.edm2 import edm2  # noqa: E402
from fdistill.networks.gaussian import gaussian  # noqa: E402
from fdistill.networks.heads import channel_mean_head, conv_head, patch_head  # noqa: E402
from fdistill.networks.mlp import mlp, mlp_head  # noqa: E402
from fdistill.networks.unet import adm, ddpmpp, ncsnpp  # noqa: E402
from fdistill.networks.unet2d import unet2d  # noqa: E402

NETWORKS = {
    'mlp': mlp,
    'gaussian': gaussian,
    'ddpmpp': ddpmpp,
    'ncsnpp': ncsnpp,
    'adm': adm,
    'edm2': edm2,
    'dit': dit,
    'unet2d': unet2d,
}
HEADS = {'mlp': mlp_head, 'conv': conv_head, 'patch': patch_head, 'channel_mean': channel_mean_head}
