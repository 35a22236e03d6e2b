"""From a run folder, or from a file of weights, to a model."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from fdistill import config as configs
from fdistill.build import published
from fdistill.build.experiment import Experiment, experiment
from fdistill.build.latents import decoder, decoder_of
from fdistill.build.models import load_ema
from fdistill.build.rewarding import choosing
from fdistill.build.run import Run, assembled, digest_of
from fdistill.build.sections import of_file, plain_of, published_config
from fdistill.config import call, parameters
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion.denoiser import Denoiser
from fdistill.diffusion.flow_map import even_levels
from fdistill.errors import UserError
from fdistill.files import disk
from fdistill.methods import METHODS
from fdistill.methods import generator as generators
from fdistill.methods.generator import Corrections, Jumps

# Levels that a published denoiser is sampled at: EDM's for CIFAR-10 (arXiv 2206.00364, table 1),
# within those that it knows.
SIGMAS, STEPS = (0.002, 80.0), 18


def has_solver(config: Mapping[str, Any]) -> bool:
    """Whether what a config trains is sampled by a solver, which is any of `samplers.SAMPLERS`."""
    return 'sampler' in parameters(METHODS[config['method']['name']])


def is_flow_map(config: Mapping[str, Any]) -> bool:
    """Whether what a config trains is sampled by jumps, of any number (`generator.flow_map`)."""
    known = parameters(METHODS[config['method']['name']])
    return 'levels' in known and 'sigma_init' not in known


def guided(built: Experiment, config: Mapping[str, Any]) -> tuple[Denoiser, int]:
    """(The denoiser that the solver of a run steps with, its network guided as its method says;
    network evaluations in one of it)."""
    method = config['method']
    names = ('guidance', 'guidance_interval')
    model = denoisers.guide(built.student, **{n: method[n] for n in names if n in method})
    return model, 1 if model is built.student else 2


# What is said of a sampler for a model that has none.
ONE_STEP = 'a student takes neither --sampler nor --steps nor --guidance'


def _jump(section, image, sampler, steps, guidance, where):
    """Puts what is asked of a flow map into the section that has its `generator.Jumps`."""
    if sampler:
        raise UserError(f'{where}: holds a flow map, which jumps; it takes --steps, no --sampler')
    _check_condition(image, guidance)
    if guidance is not None:
        section['sample_guidance'] = guidance
    if steps is not None:
        highest = section.get('levels', Jumps().levels)[0]
        section['levels'] = call(even_levels, {}, '--steps', steps=steps, highest=highest)


def _check_condition(image, guidance):
    if guidance is not None and not (image.get('num_classes') or image.get('given')):
        raise UserError(f'--guidance={guidance}: its samples have no condition; leave it out')


def _solve(plain, sampler, steps, guidance):
    """Puts settings of the solver into the section `method` of a config."""
    method, image = plain['method'], plain['image']
    _check_condition(image, guidance)
    if isinstance(sampler, Mapping):
        sampler = dict(sampler)
        for name in Corrections._fields:
            if name in sampler:
                method[name] = sampler.pop(name)
    if sampler:
        method['sampler'] = sampler
    if guidance is not None:
        method['guidance'] = guidance
    if steps is not None:
        grid = method['grid']
        method['grid'] = ({'name': grid} if isinstance(grid, str) else grid) | {'steps': steps}


def solve(
    plain: dict[str, Any],
    where: str,
    sampler: Any = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> None:
    """Puts how samples are made into the config of a run, in place; arguments as of
    `from_workdir`, `where` what the run is called.

    Raises:
      UserError: it is sampled in another way.
    """
    if (sampler, steps, guidance) == (None, None, None):
        return
    if is_flow_map(plain):
        _jump(plain['method'], plain['image'], sampler, steps, guidance, where)
    elif not has_solver(plain):
        raise UserError(f'{where}: {ONE_STEP}')
    else:
        _solve(plain, sampler, steps, guidance)


def from_workdir(
    path: str | pathlib.Path,
    *,
    sampler: Any = None,
    steps: int | None = None,
    guidance: float | None = None,
    mesh: Mesh | None = None,
    step: int | str | None = None,
    vae: str | pathlib.Path | None = None,
    best_of: Mapping[str, Any] | None = None,
) -> Run:
    """A trained model.

    Args:
      path: run folder.
      sampler, steps: other than the run's own, for a model sampled by a solver; a key of
        `samplers.SAMPLERS`, or a section with its name and options, as
        {'name': 'ghvb', 'order': 3.8}; fields of `generator.Corrections` may stand among them. Of a
        flow map `steps` is the number of its jumps, see `generator.Jumps`.
      guidance: likewise its scale, see `denoiser.guide`; of a flow map that is told it.
      mesh: whose devices share a batch of `Run.sample`, which then takes and gives global arrays;
        default: the first device.
      step: of a checkpoint, or 'best', see `Training.keep_best`; default: the newest.
      vae: file of the autoencoder that decodes its latents; default: that of its data.
      best_of: each sample is the best of several, see `rewarding.choosing`.

    Raises:
      UserError: if there is no run or no checkpoint, or a student is asked for a sampler.
    """
    plain = configs.to_json(configs.read(path))
    solve(plain, f'--workdir={path}', sampler, steps, guidance)
    built = experiment(plain)
    decode = decoder(plain['image'], vae, mesh, '--vae') if vae else decoder_of(plain, mesh)
    params, position = load_ema(built.student, path, mesh, step)
    digest = digest_of(position['digests']['ema'])
    # Data that know their autoencoder have refused another.
    known = not vae or 'latents' in plain['image']
    return assembled(
        plain,
        built.student,
        choosing(built.method.generator, best_of, plain),
        params,
        mesh,
        path=path,
        step=position['next_step'],
        digest=digest if known else digest_of([digest, decode.digest]),
        decode=decode,
    )


def from_weights(
    path: str | pathlib.Path,
    *,
    sampler: Any = None,
    steps: int | None = None,
    guidance: float | None = None,
    mesh: Mesh | None = None,
    vae: str | pathlib.Path | None = None,
    best_of: Mapping[str, Any] | None = None,
) -> Run:
    """A model out of a file of weights, as `fdistill convert teacher` and `fdistill export` write.

    A denoiser is sampled on Karras's grid between `SIGMAS`, by default with Heun's method in
    `STEPS` steps. A student's file says itself how it makes samples; the config of the run has
    that, with what is asked here in it, as the section `generator`.

    Args:
      path: the .safetensors file.
      sampler, steps, guidance, mesh: as of `from_workdir`.
      vae: file of the autoencoder that decodes its latents; default: latents stay latents.
      best_of: as of `from_workdir`; a file knows no data, of which a classifier would be.

    Raises:
      UserError: if the file is missing, damaged, or of something else, or a student is asked for a
        sampler.
    """
    where, about = f'--weights={path}', of_file(path, '--weights')
    plain = published_config(about)
    if 'generator' in about:
        section, model = plain_of(about['generator']), published.make(plain, where)
        if 'sigma_init' not in section:
            _jump(section, plain['image'], sampler, steps, guidance, where)
            given = call(Jumps, section, where)
            levels, *more = given
            told = dict(zip(('guidance', 'interval'), more))
            generator = call(generators.flow_map, told, where, denoiser=model, levels=levels)
        elif (sampler, steps, guidance) != (None, None, None):
            raise UserError(f'{where}: {ONE_STEP}')
        else:
            given = call(generators.Steps, section, where)
            generator = call(generators.student, {}, where, denoiser=model, steps=given)
        plain['generator'] = given._asdict()
    else:
        low, high = published.make(plain, where).sigma_range
        ends = {'sigma_min': max(low, SIGMAS[0]), 'sigma_max': min(high, SIGMAS[1])}
        plain['method'] = {
            'name': 'pretrain',
            'sampler': 'heun',
            'law': {'name': 'loguniform', **ends},
            'grid': {'name': 'karras', 'steps': STEPS, **ends},
            # It was trained without a condition too, if guidance is to mean anything.
            'label_dropout': 0.1,
        }
        _solve(plain, sampler, steps, guidance)
        built = experiment(plain)
        model, generator = built.student, built.method.generator
    decode = decoder(plain['image'], vae, mesh, '--vae')
    params, digest = published.load(model, path, plain['image'], mesh)
    return assembled(
        plain,
        model,
        choosing(generator, best_of, plain),
        params,
        mesh,
        path=path,
        step=0,
        digest=digest_of([digest, decode.digest] if vae else digest),
        decode=decode,
    )


def opened(
    workdir: str | pathlib.Path | None, weights: str | pathlib.Path | None, **given: Any
) -> Run:
    """`from_workdir` or `from_weights`, whichever is given; UserError unless it is one of them."""
    folder_of(workdir, weights)
    return from_workdir(workdir, **given) if weights is None else from_weights(weights, **given)


def folder_of(
    workdir: str | pathlib.Path | None, weights: str | pathlib.Path | None
) -> pathlib.Path:
    """Where what is made of a model goes: its run folder, or the folder beside its weights that is
    called as they are, without the suffix.

    Raises:
      UserError: both or none are given.
    """
    if (workdir is None) == (weights is None):
        raise UserError('give either --workdir=DIR, a run, or --weights=FILE, converted weights')
    if weights is None:
        return disk.place(workdir)
    if not pathlib.Path(weights).name:
        raise UserError(f'--weights={str(weights)!r}: give the name of a file')
    return pathlib.Path(weights).with_suffix('')
