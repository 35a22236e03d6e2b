"""Several teachers sampled as one (SuperDiff)."""

import pathlib
from collections.abc import Sequence

import jax

from fdistill import config as configs
from fdistill.build.experiment import experiment
from fdistill.build.loading import from_workdir, guided, has_solver
from fdistill.build.run import Run, as_condition
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion import samplers
from fdistill.diffusion.superposition import superpose
from fdistill.errors import UserError


def superposed(
    paths: Sequence[str | pathlib.Path],
    *,
    operator: str = 'or',
    temperature: float = 1.0,
    steps: int | None = None,
) -> Run:
    """The first of several teachers, with samples of all of them at once: `superposition.superpose`
    on the grid of the first.

    Args:
      paths: run folders of two or more teachers of samples of one shape; a condition goes to all.
      operator: 'or', a sample of one of them; 'and', one likely under all.
      temperature: of 'or', > 0.
      steps: levels of the grid, other than the first's own.

    Raises:
      UserError: if one of them is no teacher, or shapes or settings do not fit.
    """
    runs = [from_workdir(path, steps=steps if path == paths[0] else None) for path in paths]
    first, plains = runs[0], [configs.to_json(run.config) for run in runs]
    for path, run, plain in zip(paths, runs, plains):
        if not has_solver(plain):
            raise UserError(f'{path}: holds a student; --with is for teachers')
        if (run.shape, run.num_classes) != (first.shape, first.num_classes):
            raise UserError(
                f'--with={path}: makes samples of shape {run.shape} in {run.num_classes} classes, '
                f'{paths[0]} of {first.shape} in {first.num_classes}'
            )
    built = [experiment(plain) for plain in plains]
    models, evaluations = zip(*(guided(one, plain) for one, plain in zip(built, plains)))
    sigmas, params = built[0].parts['sigmas'], [run.params for run in runs]

    @jax.jit
    def solved(params, noise, condition):
        denoise = [denoisers.bind(model, own, condition) for model, own in zip(models, params)]
        x, key = sigmas[0] * noise, samplers.keys_of(noise)
        return superpose(denoise, x, sigmas, key, operator=operator, temperature=temperature)[0]

    def sample(noise, condition):
        with configs.told('--operator, --temperature'):
            made = solved(params, noise, as_condition(condition, first.num_classes))
        return first.decode(made)

    def generate(key, n, condition=None):
        return sample(*first.start(key, n, condition))

    nfe = sum(evaluations) * (len(sigmas) - 1)
    return first._replace(sample=sample, generate=generate, trajectory=None, nfe=nfe)
