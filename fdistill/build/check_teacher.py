"""Measures a teacher on data before money is spent on a student: `fdistill check-teacher`."""

import functools
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdistill import config as configs
from fdistill.build.experiment import experiment
from fdistill.build.latents import decoder
from fdistill.build.loading import SIGMAS, guided, has_solver, opened
from fdistill.build.sections import image_of, load_data, plain_of, real, section_of
from fdistill.config import call
from fdistill.data.sources import to_float
from fdistill.diffusion import noise, samplers
from fdistill.diffusion.denoiser import bind
from fdistill.diffusion.flow_map import straightness
from fdistill.errors import UserError
from fdistill.evaluation import evaluate as evaluation
from fdistill.evaluation import teacher as teachers
from fdistill.methods import generator as generators

LEVELS = 13  # of the noise
LOOKED = 256  # held-out samples that are denoised, at most
STEPS = (5, 18)  # of Heun's method; the last is measured
BATCH = 64  # samples at once
DECODED = 8  # latents at once
STRAIGHT = 50  # steps of the paths whose straightness is measured
POINTS = 2000  # in a picture; of images a batch


def check_teacher(
    config: Mapping[str, Any] | None,
    workdir: str | pathlib.Path | None = None,
    *,
    weights: str | pathlib.Path | None = None,
    samples: int = 1000,
    quiet: bool = False,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measures a teacher on the data of a config; writes nothing.

    Args:
      config: its section `data` is used; None: that of the run.
      workdir, weights: run folder of a teacher, or file of weights; one of them.
      samples: that are generated and measured, >= 4.
      quiet: no progress on stderr.

    Returns:
      ({'name', 'teacher', 'data', 'denoising': of `evaluation.teacher.measure`, 'samples',
      'cost'}, {title: samples [n, ...]} to be shown: of few and more steps from one noise, and real
      ones); 'samples' is None where the teacher's answers are not finite.

    Raises:
      UserError: a student, other data than the teacher's, or whatever else the user can mend.
    """
    call(evaluation.check, {'samples': samples}, '--samples')
    run = opened(workdir, weights)
    plain, name = configs.to_json(run.config), str(workdir if weights is None else weights)
    if not ('method' in plain and has_solver(plain)):
        raise UserError(f'{name}: holds a student; a teacher is a denoiser, sampled by a solver')
    if config is None:
        if weights is not None:
            raise UserError('--config: missing; give the config of the data to check weights on')
        config = plain
    config = real(config)
    train, held_out = (load_data(config, split) for split in ('train', 'held_out'))
    image = image_of(train)
    # What was published does not say whose latents it makes.
    latents = {'latents': image.get('latents')} if weights is not None else {}
    if {**latents, **plain['image']} != {**latents, **image}:
        raise UserError(f'{name}: was trained on {plain["image"]}, not {image}')

    built = experiment(plain)
    # The levels that it is sampled at.
    levels = built.parts['sigmas'][:-1]
    low, high = (min(levels), max(levels)) if len(levels) > 1 else SIGMAS
    fitted = _some(train, teachers.FITTED // math.prod(image['shape']))
    linear = teachers.linear(to_float(train.images[fitted], train.levels))
    denoise, cost = _compiled(run, built.student, held_out)
    measured = teachers.measure(
        _subject(run, built.student, held_out, min(samples, LOOKED), denoise),
        linear,
        np.geomspace(low, high, LEVELS),
        _sigma_data(plain, linear.std),
        progress=not quiet,
    )
    model, evaluations = guided(built, plain)
    straight = _straightness(run, model, held_out, high)

    @functools.cache
    def solver(steps):
        grid, heun = noise.karras_grid(steps, low, high), samplers.SAMPLERS['heun']
        made = generators.solver(model, heun, grid, evaluations=evaluations)
        return functools.partial(jax.jit(made.sample), run.params), made.nfe

    drawn, found = _draw(run, solver, held_out), None
    if measured['finite'] and all(np.isfinite(made).all() for made in drawn.values()):
        given = {'samples': samples, 'batch_size': BATCH, 'progress': not quiet}
        found = _measured(*solver(STEPS[-1]), linear, train, held_out, given)
    leaves = jax.tree.leaves(run.params)
    about = {'network': plain['network'], 'denoiser': plain.get('denoiser', {})}
    about |= {
        'step': run.step,
        'digest': run.digest,
        'parameters': sum(leaf.size for leaf in leaves),
        'dtypes': sorted({leaf.dtype.name for leaf in leaves}),
        'sigma_range': [float(low), float(high)],
        'straightness': straight,
    }
    data = {'name': train.name, **image, 'count': len(train.labels), 'std': linear.std}
    kind = 'variances' if linear.basis is None else 'covariance'
    data |= {'mean': float(linear.mean.mean()), 'linear': kind}
    return {
        'name': name,
        'teacher': about,
        'data': data,
        'denoising': measured,
        'samples': found,
        'cost': cost | {'evaluations': solver(STEPS[-1])[1]},
    }, _seen(drawn, image, plain_of(section_of(config, 'data')).get('vae'))


def _compiled(run, model, source):
    """(The network as `teachers.Denoise`, what an evaluation of it costs)."""
    condition = source.condition(np.zeros(BATCH, np.int32))
    batch = np.zeros((BATCH, *run.shape), np.float32), np.ones(BATCH, np.float32), condition
    denoise = jax.jit(lambda params, x, sigma, given: model.apply(params, x, sigma, given)[0])
    program = denoise.lower(run.params, *batch).compile()
    apply = functools.partial(program, run.params)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        apply(*batch).block_until_ready()
        seconds.append(time.perf_counter() - began)
    # Not every backend counts.
    flops = (program.cost_analysis() or {}).get('flops')
    cost = {'seconds': min(seconds) / BATCH, 'flops': flops and flops / BATCH}
    return teachers.in_blocks(apply, BATCH), cost | {'device': jax.devices()[0].device_kind}


def _some(source, count):
    """Indices of some samples, without regard to their order, which may be that of classes."""
    return np.random.default_rng(0).permutation(len(source.labels))[:count]


def _subject(run, model, source, count, denoise):
    """`teachers.Subject` of some samples of a split."""
    chosen = _some(source, count)
    condition, wrong = source.condition(chosen), source.condition(np.roll(chosen, 1))
    if 'label' in condition:
        # Any other class: two samples may be of one.
        shift = np.random.default_rng(1).integers(1, run.num_classes, len(chosen), np.int32)
        wrong['label'] = (condition['label'] + shift) % run.num_classes
    nothing = {name: np.asarray(v) for name, v in model.null(run.params, condition).items()}
    x = np.float32(to_float(source.images[chosen], source.levels))
    return teachers.Subject(denoise, x, condition, wrong, nothing)


def _sigma_data(plain, std):
    """Readings of EDM's preconditioning by other standard deviations: EDM's own, 1, the data's."""
    section = plain.get('denoiser', {})
    if section.get('name', 'edm') != 'edm':
        return {}
    told = section.get('sigma_data', 0.5)
    others = [of for of in (0.5, 1.0, std) if not 0.9 < of / told < 1.1]
    return {f'sigma_data of {of:.3g}': teachers.sigma_data(told, of) for of in others}


def _straightness(run, model, source, highest):
    """Mean over paths from some noise, and its standard error."""
    begun, _ = run.start(jax.random.key(0), BATCH, {})
    given = source.condition(np.resize(_some(source, BATCH), BATCH))

    @jax.jit
    def of(params, begun, given):
        return straightness(bind(model, params, given), begun, highest, STRAIGHT)

    found = np.asarray(of(run.params, begun, given))
    error = found.std(ddof=1) / math.sqrt(len(found))
    return {'mean': float(found.mean()), 'error': float(error)}


def _draw(run, solver, source):
    index = np.resize(_some(source, POINTS), BATCH if len(run.shape) == 3 else POINTS)
    begun, _ = run.start(jax.random.key(0), len(index), {})
    condition = source.condition(index)
    made = {f'Heun, {n} steps': np.asarray(solver(n)[0](begun, condition)) for n in STEPS}
    return made | {'held-out data': np.float32(to_float(source.images[index], source.levels))}


def _seen(drawn, image, vae):
    """What is to be seen of samples: of latents images, some at once."""
    images = decoder(image, vae, None, 'config.data.vae').images
    return {
        title: np.concatenate(
            [images(jnp.asarray(made[i : i + DECODED])) for i in range(0, len(made), DECODED)]
        )
        for title, made in drawn.items()
    }


def _measured(sample, nfe, linear, train, held_out, given):
    """Rows of `evaluation.evaluate`: of the teacher, of N(m, C), and of real data drawn again; and
    the values of the teacher's samples."""
    made = []

    def generate(unit, condition):
        made.append(np.asarray(sample(unit, condition)))
        return made[-1]

    against = evaluation.reference(train, held_out, progress=given['progress'])
    options = {'train': train, 'held_out': held_out, 'against': against}

    def row(generate, nfe):
        return call(evaluation.evaluate, given, 'samples', generate=generate, nfe=nfe, **options)

    teacher = row(generate, nfe)
    values = np.concatenate(made)
    real = evaluation.reference_rows(samples=given['samples'], progress=False, **options)
    return {
        'teacher': teacher,
        'gaussian': row(lambda unit, condition: linear.sample(unit), 0),
        'real': real['train'],
        'mean': float(values.mean(dtype=np.float64)),
        'std': float(values.std(dtype=np.float64)),
        # More than a fortieth of the range beyond white or black.
        'outside': float(np.mean(np.abs(values) > 1.05)) if train.levels else None,
    }
