"""A residual MLP with FiLM conditioning, for points in the plane and for small images, and an MLP
discriminator head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdistill.networks import MOST_BLOCKS, MOST_WIDTH, Head, Network, label_of
from fdistill.networks.layers import check_numbers, features_of, number_features, octaves


class _Block(nn.Module):
    width: int
    dtype: jnp.dtype
    dropout: float

    @nn.compact
    def __call__(self, h, embedding, deterministic):
        scale, shift = jnp.split(
            nn.Dense(2 * self.width, dtype=self.dtype, name='film')(embedding), 2, axis=-1
        )
        y = nn.Dense(self.width, dtype=self.dtype, name='dense0')(nn.silu(h))
        y = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name='norm')(y)
        y = nn.silu(y * (1 + scale) + shift)
        y = nn.Dropout(self.dropout, deterministic=deterministic)(y)
        return h + nn.Dense(self.width, dtype=self.dtype, name='dense1')(y)


class _ResidualMLP(nn.Module):
    width: int
    blocks: int
    embedding: int
    fourier: int
    num_classes: int
    numbers: tuple[str, ...]
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, c_noise, given, deterministic):
        shape = x.shape
        x = x.reshape(shape[0], -1)
        condition = number_features(c_noise)
        if self.num_classes:
            label = jax.nn.one_hot(label_of(given, x), self.num_classes, dtype=x.dtype)
            condition = jnp.concatenate([condition, label], axis=-1)
        embedding = nn.Dense(self.embedding, dtype=self.dtype, name='embedding')(condition)
        for name in self.numbers:
            embedding += nn.Dense(
                self.embedding,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.zeros,
                name=f'number_{name}',
            )(features_of(given, (name,), c_noise)[name])
        embedding = nn.silu(embedding)
        inputs = jnp.concatenate([x, octaves(x, self.fourier)], axis=-1) if self.fourier else x
        h = nn.Dense(self.width, dtype=self.dtype, name='input')(inputs)
        features = []
        for i in range(self.blocks):
            h = _Block(self.width, self.dtype, self.dropout, name=f'block{i}')(
                h, embedding, deterministic
            )
            features.append(h.astype(jnp.float32))
        # Without the norm the output would grow with an input outside the data, and would no longer
        # pull a stray student back.
        h = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype, name='norm')(h)
        out = nn.Dense(
            x.shape[-1], dtype=self.dtype, kernel_init=nn.initializers.zeros, name='output'
        )(nn.silu(h))
        return out.reshape(shape).astype(jnp.float32 if self.dtype else out.dtype), tuple(features)


def mlp(
    *,
    num_classes: int = 0,
    width: int = 256,
    blocks: int = 3,
    embedding: int = 64,
    fourier: int = 0,
    dropout: float = 0.0,
    bfloat16: bool = False,
    numbers: tuple[str, ...] = (),
) -> Network:
    """A residual MLP whose blocks are modulated (FiLM, arXiv 1709.07871) by noise level, class and
    further numbers.

    Args:
      num_classes: labels 0..num_classes-1; 0 for none.
      width: of the residual stream, >= 1.
      blocks: residual blocks, in 1..MOST_BLOCKS; `features` of the network are their outputs.
      embedding: width of the conditioning vector.
      fourier: octaves of Fourier features of the input, for points in the plane; 0 for images.
      dropout: in [0, 1), active when a key is given.
      bfloat16: compute in bfloat16; parameters and output stay float32.
      numbers: further numbers of a condition that it embeds, as ('until', 'guidance'); each begins
        without effect, see `layers.features_of`.

    Raises:
      ValueError: on values out of range.
    """
    if numbers:
        check_numbers(numbers)
    counted = width >= 1 and 1 <= blocks <= MOST_BLOCKS and embedding >= 1 and fourier >= 0
    if not counted or not 0 <= dropout < 1:
        raise ValueError(
            f'mlp: width={width}, blocks={blocks}, embedding={embedding} must be >= 1, blocks '
            f'<= {MOST_BLOCKS}, fourier={fourier} >= 0, dropout={dropout} in [0, 1)'
        )
    module = _ResidualMLP(
        width,
        blocks,
        embedding,
        fourier,
        num_classes,
        tuple(numbers),
        dropout,
        jnp.bfloat16 if bfloat16 else None,
    )

    def init(key, x, c_noise, condition):
        return module.init(key, x, c_noise, condition, deterministic=True)['params']

    def apply(params, x, c_noise, condition, key=None):
        rngs = None if key is None else {'dropout': key}
        return module.apply(
            {'params': params}, x, c_noise, condition, deterministic=key is None, rngs=rngs
        )

    return Network(init, apply, (*(('label',) if num_classes else ()), *numbers))


class _MLPHead(nn.Module):
    width: int
    layers: int
    fourier: int
    num_classes: int

    @nn.compact
    def __call__(self, features, c_noise, label):
        flat = [f.reshape(f.shape[0], -1) for f in features]
        inputs = [
            *flat,
            *(octaves(f, self.fourier) for f in flat if self.fourier),
            number_features(c_noise),
        ]
        if self.num_classes:
            inputs.append(jax.nn.one_hot(label, self.num_classes))
        h = jnp.concatenate(inputs, axis=-1)
        for i in range(self.layers):
            h = nn.silu(nn.Dense(self.width, name=f'dense{i}')(h))
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name='output')(h)


def mlp_head(*, num_classes: int = 0, width: int = 64, layers: int = 3, fourier: int = 0) -> Head:
    """A discriminator: MLP on all given features, the noise level and the class; one logit, 0 at
    the start (ratio 1).

    Args:
      num_classes: labels 0..num_classes-1; 0 for none.
      width, layers: of the MLP, >= 1 and at most `MOST_WIDTH`, `MOST_BLOCKS`.
      fourier: octaves of Fourier features of the features, for raw points in the plane.

    Raises:
      ValueError: on values out of range.
    """
    if not 1 <= width <= MOST_WIDTH or not 1 <= layers <= MOST_BLOCKS or not 0 <= fourier < 64:
        raise ValueError(
            f'mlp_head: width={width}, layers={layers}, fourier={fourier} must be in '
            f'1..{MOST_WIDTH}, 1..{MOST_BLOCKS}, 0..63'
        )
    module = _MLPHead(width, layers, fourier, num_classes)

    def init(key, features, c_noise, condition):
        return module.init(key, features, c_noise, label_of(condition, c_noise))['params']

    def apply(params, features, c_noise, condition):
        return module.apply({'params': params}, features, c_noise, label_of(condition, c_noise))

    return Head(init, apply)
