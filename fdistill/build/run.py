"""From a run folder to a model, for notebooks, evaluations and reports."""

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
from fdistill.build.experiment import Experiment, experiment
from fdistill.build.models import load_ema
from fdistill.build.sections import load_data
from fdistill.config import parameters
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion.denoiser import Denoiser
from fdistill.errors import UserError
from fdistill.methods import METHODS
from fdistill.methods.generator import Corrections
from fdistill.training import sharding


class Run(NamedTuple):
    """A trained model.

    config: of the run.
    step: of the checkpoint.
    params: the averaged weights.
    start(key, n, condition=None) -> (noise, condition): what `sample` begins with; condition as for
      `generate`.
    generate(key, n, condition=None) -> samples[n,...]. The condition is a label, int or int[n]; a
      dict {name: [n, ...]}; or None for random classes. None with other conditions takes those of
      random samples of the run's data, which is then read.
    sample(noise[B,...] ~ N(0, 1), condition) -> samples[B,...], jitted; the same noise gives the
      same samples.
    denoise(x[B,...], sigma[B], condition=None) -> x0[B,...]: the network as a denoiser.
    trajectory(noise[B,...], condition) -> (samples, D[N,B,...]): also the network's estimate of x0
      at each level; None for a one-step student.
    nfe: network evaluations of one sample.
    shape, num_classes: of the data; digest: of the weights.
    """

    config: ConfigDict
    step: int
    params: Any
    start: Callable[..., Any]
    generate: Callable[..., Any]
    sample: Callable[..., Any]
    denoise: Callable[..., Any]
    trajectory: Callable[..., Any] | None
    nfe: int
    shape: tuple[int, ...]
    num_classes: int
    digest: str


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


def has_solver(config: Mapping[str, Any]) -> bool:
    """Whether what a config trains is sampled by a solver, which is any of `samplers.SAMPLERS`."""
    return 'sampler' in parameters(METHODS[config['method']['name']])


def guided(built: Experiment, config: Mapping[str, Any]) -> tuple[Denoiser, int]:
    """(The denoiser that the solver of a run steps with, its network guided as its method says;
    network evaluations in one of it)."""
    method = config['method']
    names = ('guidance', 'guidance_interval')
    model = denoisers.guide(built.student, **{n: method[n] for n in names if n in method})
    return model, 1 if model is built.student else 2


def from_workdir(
    path: str | pathlib.Path,
    *,
    sampler: Any = None,
    steps: int | None = None,
    mesh: Mesh | None = None,
    step: int | str | None = None,
) -> Run:
    """A trained model.

    Args:
      path: run folder.
      sampler, steps: other than the run's own, for a model sampled by a solver; a key of
        `samplers.SAMPLERS`, or a section with its name and options, as
        {'name': 'ghvb', 'order': 3.8}; fields of `generator.Corrections` may stand among them.
      mesh: whose devices share a batch of `Run.sample`, which then takes and gives global arrays;
        default: the first device.
      step: of a checkpoint, or 'best', see `Training.keep_best`; default: the newest.

    Raises:
      UserError: if there is no run or no checkpoint, or a student is asked for a sampler.
    """
    plain = configs.to_json(configs.read(path))
    if sampler is not None or steps is not None:
        if not has_solver(plain):
            raise UserError(f'--workdir={path}: a student takes neither --sampler nor --steps')
        if isinstance(sampler, Mapping):
            sampler = dict(sampler)
            for name in Corrections._fields:
                if name in sampler:
                    plain['method'][name] = sampler.pop(name)
        plain['method'] |= {'sampler': sampler} if sampler else {}
        if steps is not None:
            grid = plain['method']['grid']
            grid = {'name': grid} if isinstance(grid, str) else grid
            plain['method']['grid'] = grid | {'steps': steps}
    built = experiment(plain)
    model, generator = built.student, built.method.generator
    params, position = load_ema(model, path, mesh, step)
    jitted = jax.jit(generator.sample, out_shardings=mesh and sharding.batch_sharding(mesh))
    denoiser = jax.jit(lambda params, x, sigma, given: model.apply(params, x, sigma, given)[0])
    trajectory = generator.trajectory and jax.jit(generator.trajectory)

    def said(condition):
        made = as_condition(condition, built.num_classes)
        for name in made.keys() - set(model.takes):
            takes = ', '.join(map(repr, model.takes)) or 'none'
            raise UserError(f'condition {name!r}: the model of {path} takes {takes}')
        return made

    def sample(noise, condition):
        return jitted(params, noise, said(condition))

    def begin(key, n, condition=None):
        return start(key, n, condition, built.image, lambda: load_data(plain, 'train'))

    def generate(key, n, condition=None):
        return sample(*begin(key, n, condition))

    def denoise(x, sigma, condition=None):
        given = {} if condition is None else said(condition)
        sigma = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
        return denoiser(params, x, sigma, given)

    def path_of(noise, condition):
        return trajectory(params, noise, said(condition))

    return Run(
        config=configs.from_json(plain),
        step=position['next_step'],
        params=params,
        start=begin,
        generate=generate,
        sample=sample,
        denoise=denoise,
        trajectory=path_of if trajectory else None,
        nfe=generator.nfe,
        shape=built.shape,
        num_classes=built.num_classes,
        digest=digest_of(position['digests']['ema']),
    )
