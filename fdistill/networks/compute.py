"""How a network is computed: settings that the networks with many blocks have in common."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdistill.networks.layers import ATTENTIONS


class Compute(NamedTuple):
    """How a network is computed.

    bfloat16: compute in bfloat16; parameters, embedding, norms, attention weights and output stay
      float32.
    remat: what the backward pass computes again in place of keeping it: 'nothing'; 'elementwise',
      all in a block but its convolutions and products; 'blocks', each whole. False and True, as
      older configs have it, are the first and the last.
    attention: of `layers.ATTENTIONS`: 'plain', or 'chunked', whose memory is linear in the tokens,
      also where the network is differentiated forward, as flow maps are. It computes its products
      once more for that: it is for many tokens.
    """

    bfloat16: bool = False
    remat: bool | str = 'nothing'
    attention: str = 'plain'

    def type_for(self, x: jax.Array) -> jnp.dtype:
        """What activations are kept in for inputs x: bfloat16, or float32, or float64 where that is
        the type of x."""
        return jnp.bfloat16 if self.bfloat16 else jnp.promote_types(x.dtype, jnp.float32)


def _is_product(primitive, *_, **params):
    if 'call_jaxpr' in params:  # With a derivative of its own, as `convolution.convolve`.
        return any(_is_product(e.primitive, **e.params) for e in params['call_jaxpr'].eqns)
    return primitive in (jax.lax.conv_general_dilated_p, jax.lax.dot_general_p)


class Recompute(NamedTuple):
    """What a setting of `remat` makes of a block.

    module: flax module class -> the same, in `nn.remat`.
    function: function of arrays -> the same, in `jax.checkpoint`.
    """

    module: Callable
    function: Callable


def _unchanged(block):
    return block


# By setting, from most memory to least.
REMAT = {
    'nothing': Recompute(_unchanged, _unchanged),
    'elementwise': Recompute(
        functools.partial(nn.remat, policy=_is_product),
        functools.partial(jax.checkpoint, policy=_is_product),
    ),
    'blocks': Recompute(nn.remat, jax.checkpoint),
}
REMAT |= {False: REMAT['nothing'], True: REMAT['blocks']}


def check(compute: Compute) -> None:
    """Raises ValueError on an unknown setting."""
    if compute.remat not in REMAT:
        known = ', '.join(kind for kind in REMAT if isinstance(kind, str))
        raise ValueError(f'remat={compute.remat!r}: known are {known}')
    if compute.attention not in ATTENTIONS:
        raise ValueError(f'attention={compute.attention!r}: known are {", ".join(ATTENTIONS)}')
    if compute.attention == 'chunked' and compute.remat == 'elementwise':
        raise ValueError(
            "remat='elementwise': keeps the products of attention, which 'chunked' is not to keep; "
            "take 'nothing' or 'blocks'"
        )
