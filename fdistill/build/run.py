"""A trained model as functions, for notebooks, evaluations and reports."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fdistill import config as configs
from fdistill.build.latents import Decoder, decoder
from fdistill.build.sections import load_data, real
from fdistill.diffusion.denoiser import Denoiser
from fdistill.errors import UserError
from fdistill.methods.generator import Generator
from fdistill.training import sharding


class Run(NamedTuple):
    """A trained model.

    config: of the run; step: of the checkpoint.
    params: the averaged weights; generator: what samples by them, as pure functions.
    start(key, n, condition=None) -> (noise, condition): what `sample` begins with; condition as for
      `generate`.
    generate(key, n, condition=None) -> samples[n,...]. The condition is a label, int or int[n]; a
      dict {name: [n, ...]}; or None for random classes. None with other conditions takes those of
      random samples of the run's data, which is then read.
    sample(noise[B,...] ~ N(0, 1), condition) -> samples[B,...], jitted; the same noise gives the
      same samples.
    denoise(x[B,...], sigma[B], condition=None) -> x0[B,...]: the network as a denoiser; sigma and
      the numbers of a condition, as `until`, also one for all.
    trajectory(noise[B,...], condition) -> (samples, D[N,B,...]): also the network's estimate of x0
      at each level; None for a one-step student.
    nfe: network evaluations of one sample.
    shape, num_classes: of the data; digest: of the weights.
    decode(x[B,...]) -> what is to be seen of samples: of latents images, else x itself. What
      `sample` and `trajectory` give has been through it, `denoise` is of latents.
    decoded: shape of what is seen of a sample.
    """

    config: ConfigDict
    step: int
    params: Any
    generator: Generator
    start: Callable[..., Any]
    generate: Callable[..., Any]
    sample: Callable[..., Any]
    denoise: Callable[..., Any]
    trajectory: Callable[..., Any] | None
    nfe: int
    shape: tuple[int, ...]
    num_classes: int
    digest: str
    decode: Callable[..., Any]
    decoded: tuple[int, ...]


def digest_of(value: Any) -> str:
    """16 hex digits of the SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def as_condition(condition: Any, num_classes: int) -> dict[str, Any]:
    """A condition from what a user gives: a dict, or labels where there are classes."""
    if isinstance(condition, Mapping):
        return dict(condition)
    return {'label': condition} if num_classes else {}


def start(
    key: jax.Array,
    n: int,
    condition: Any,
    image: Mapping[str, Any],
    data: Callable[[], Any],
) -> tuple[jax.Array, dict[str, Any]]:
    """(unit noise [n, *shape], condition {name: [n, ...]}).

    Args:
      key, n: of the noise and of random conditions, their number.
      condition: see `Run.generate`.
      image: what the data is.
      data: () -> `Source`, from which conditions other than labels are drawn.
    """
    key_noise, key_label = jax.random.split(key)
    unit = jax.random.normal(key_noise, (n, *image['shape']))
    if image.get('given') and not isinstance(condition, Mapping):
        source = data()
        drawn = source.condition(
            np.asarray(jax.random.randint(key_label, (n,), 0, len(source.labels)))
        )
        own = as_condition(condition, image['num_classes']) if condition is not None else {}
        condition = drawn | own
    elif condition is None:
        condition = jax.random.randint(key_label, (n,), 0, max(image['num_classes'], 1))
    condition = as_condition(condition, image['num_classes'])
    if 'label' in condition:
        condition['label'] = jnp.broadcast_to(jnp.asarray(condition['label'], jnp.int32), (n,))
    return unit, condition


def assembled(
    plain: Mapping[str, Any],
    model: Denoiser,
    generator: Generator,
    params: Any,
    mesh: Mesh | None,
    *,
    path: str | pathlib.Path,
    step: int,
    digest: str,
    decode: Decoder | None = None,
) -> Run:
    """A `Run` of a network and its weights.

    Args:
      plain: resolved config; without a section `data` no conditions can be drawn from it.
      model, generator, params, mesh: of the network.
      path: what it came from, for messages.
      step, digest: of the weights.
      decode: what is seen of samples; default: they are seen as they are.
    """
    image, numbers = plain['image'], {*plain['network'].get('numbers', ())}
    decode = decode or decoder(image, None, mesh, '')
    jitted = jax.jit(generator.sample, out_shardings=mesh and sharding.batch_sharding(mesh))
    denoiser = jax.jit(lambda params, x, sigma, given: model.apply(params, x, sigma, given)[0])
    trajectory = generator.trajectory and jax.jit(generator.trajectory)

    def said(condition):
        made = as_condition(condition, image['num_classes'])
        for name in made.keys() - set(model.takes):
            takes = ', '.join(map(repr, model.takes)) or 'none'
            raise UserError(f'condition {name!r}: the model of {path} takes {takes}')
        return made

    def sample(noise, condition):
        return decode.images(jitted(params, noise, said(condition)))

    def begin(key, n, condition=None):
        return start(key, n, condition, image, lambda: load_data(real(plain), 'train'))

    def generate(key, n, condition=None):
        return sample(*begin(key, n, condition))

    def denoise(x, sigma, condition=None):
        def for_all(number):
            return jnp.broadcast_to(jnp.asarray(number, x.dtype), x.shape[:1])

        given = {} if condition is None else said(condition)
        given |= {name: for_all(given[name]) for name in numbers & given.keys()}
        return denoiser(params, x, for_all(sigma), given)

    def path_of(noise, condition):
        x0, estimates = trajectory(params, noise, said(condition))
        return decode.images(x0), jnp.stack([decode.images(level) for level in estimates])

    return Run(
        config=configs.from_json(plain),
        step=step,
        params=params,
        generator=generator,
        start=begin,
        generate=generate,
        sample=sample,
        denoise=denoise,
        trajectory=path_of if trajectory else None,
        nfe=generator.nfe,
        shape=tuple(image['shape']),
        num_classes=image['num_classes'],
        digest=digest,
        decode=decode.images,
        decoded=decode.shape,
    )
