"""Pairs of noise and what a teacher makes of it, for methods that learn the map from one to the
other: they come with the data, where `fdistill pairs` has made them, or are made as they are
needed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from fdistill.diffusion import samplers
from fdistill.diffusion.denoiser import Denoiser, column
from fdistill.methods import generator

CONDITION = 1  # of the key of a pair, the part that is not of its noise


class Pairing(NamedTuple):
    """Where pairs come from.

    draw(key, frozen, batch) -> (z[B,...] ~ N(0, 1), x0[B,...]), without gradient; the conditions of
      both are the batch's. x0 is where the ODE from sigma_max z ends, so that x0 + sigma z is the
      straight way from one to the other.
    teacher: `Denoiser` that makes them as they are needed, of frozen['teacher']; else None.
    """

    draw: Callable[..., Any]
    teacher: Denoiser | None = None


def noise_of(pair: Mapping[str, jax.Array], like: jax.Array) -> jax.Array:
    """The noise of recorded pairs: normal(fold_in(key(seed), index)), turned over left to right
    where the image is; [B,...].

    It is not stored, for it follows from two numbers, on any device, in any batch and whatever the
    precision.

    Args:
      pair: {'seed': uint32[B], 'index': uint32[B], 'mirrored': bool[B]}.
      like: [B,...], of whose shape and type it is; drawn in float32.
    """

    def one(seed, index):
        key = jax.random.fold_in(jax.random.key(seed), index)
        return jax.random.normal(key, like.shape[1:], jnp.float32)

    z = jax.vmap(one)(pair['seed'], pair['index']).astype(like.dtype)
    if like.ndim != 4:  # What has no left and right is never mirrored.
        return z
    return jnp.where(column(pair['mirrored'], z), z[:, :, ::-1], z)


def drawn_of(pair: Mapping[str, jax.Array], count: int) -> jax.Array:
    """What a pair that is made is given for a condition, independent of its noise: a class of so
    many, or the number of a sample of the data; int32 [B], below `count`.

    Args:
      pair: see `noise_of`.
      count: >= 1.
    """

    def one(seed, index):
        key = jax.random.fold_in(jax.random.key(seed), index)
        return jax.random.randint(jax.random.fold_in(key, CONDITION), (), 0, count, jnp.int32)

    return jax.vmap(one)(pair['seed'], pair['index'])


def recorded() -> Pairing:
    """Pairs of a data set of `fdistill pairs`, whose batches have `pair`, see `noise_of`."""

    def draw(key, frozen, batch):
        return noise_of(batch['pair'], batch['x']), batch['x']

    return Pairing(draw)


def online(teacher: Denoiser, sampler: samplers.Sampler, sigmas: np.ndarray) -> Pairing:
    """Pairs made as they are needed, on the conditions of a batch, of which x is not looked at.

    Args:
      teacher: frozen['teacher'], guidance included.
      sampler: of `samplers.SAMPLERS`.
      sigmas: [N + 1], grid of `noise.GRIDS`, falling to 0.
    """
    solver = generator.solver(teacher, sampler, sigmas)

    def draw(key, frozen, batch):
        z = generator.unit_noise(key, batch)
        made = solver.sample(frozen.get('teacher', {}), z, batch['condition'])
        return z, stop_gradient(made)

    return Pairing(draw, teacher)
