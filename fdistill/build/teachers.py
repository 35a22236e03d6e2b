"""Teachers: where a method's frozen network comes from."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fdistill import config as configs
from fdistill.build import published
from fdistill.build.models import load_ema, make_denoiser
from fdistill.config import parameters
from fdistill.data import sources
from fdistill.diffusion import denoiser as denoisers
from fdistill.diffusion import oracle as oracles
from fdistill.diffusion.denoiser import Denoiser
from fdistill.errors import UserError
from fdistill.methods import degrade
from fdistill.types import Continuous, Place


class Teacher(NamedTuple):
    """A frozen network and how to get its weights.

    model: `Denoiser`, guidance included.
    load(mesh) -> (params, digests); None where it has no parameters.
    """

    model: Denoiser
    load: Callable[[Mesh | None], tuple[Any, Any]] | None = None


def from_run(
    plain: Mapping[str, Any],
    *,
    workdir: Annotated[str, Place],
    network: Any,
    denoiser: Any,
    guidance: Annotated[float, Continuous(off=1)] = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Teacher:
    """The averaged weights of a run."""
    base = make_denoiser(network, denoiser, plain['image'], 'config.teacher.')

    def load(mesh):
        params, position = load_ema(base, workdir, mesh)
        return params, position['digests']['ema']

    return Teacher(denoisers.guide(base, guidance, guidance_interval), load)


def from_file(
    plain: Mapping[str, Any],
    *,
    weights: Annotated[str, Place],
    network: Any,
    denoiser: Any,
    guidance: Annotated[float, Continuous(off=1)] = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Teacher:
    """A published network, of `fdistill convert teacher`."""
    base = make_denoiser(network, denoiser, plain['image'], 'config.teacher.')

    def load(mesh):
        return published.load(base, weights, plain['image'], mesh)

    return Teacher(denoisers.guide(base, guidance, guidance_interval), load)


def from_oracle(
    plain: Mapping[str, Any],
    *,
    oracle: str,
    guidance: Annotated[float, Continuous(off=1)] = 1.0,
    guidance_interval: tuple[float, float] | None = None,
) -> Teacher:
    """A named mixture, of which everything is known."""
    base = mixture_of(oracle).denoiser(conditional=plain['image']['num_classes'] > 0)
    return Teacher(denoisers.guide(base, guidance, guidance_interval))


def mixture_of(name: str) -> oracles.GaussianMixture:
    """The named mixture of the data, as an oracle."""
    return oracles.mixture(*sources.mixture_parameters(name))


def along(
    plain: Mapping[str, Any],
    sigma_init: float,
    *,
    workdir: Annotated[str, Place],
    steps: tuple[int, ...],
) -> Teacher:
    """Checkpoints of a run of `backtracking.degrade`, in that order and stacked, of the teacher's
    network and guided as it is.

    Args:
      sigma_init: of the student that is to follow them back.
      workdir: folder of that run.
      steps: of its checkpoints, rising: the last is the most degraded.

    Raises:
      ValueError: on steps that do not rise.
    """
    if not steps or list(steps) != sorted({*steps}) or steps[0] < 1:
        raise ValueError(f'steps={steps}: name checkpoints of the run, rising, as (100, 200)')
    section = plain['teacher']
    of = section if 'network' in section else plain
    base = make_denoiser(of['network'], of.get('denoiser', {}), plain['image'], 'config.teacher.')

    def init(*given):
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(steps)), base.init(*given))

    def load(mesh):
        where = 'config.path.workdir'
        check_degraded(plain, configs.to_json(configs.read(workdir, where)), sigma_init)
        made = [load_ema(base, workdir, mesh, step) for step in steps]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for params, _ in made))
        return stacked, [position['digests']['ema'] for _, position in made]

    guidance = {name: section[name] for name in GUIDANCE if name in section}
    return Teacher(denoisers.guide(base, **guidance)._replace(init=init), load)


def check_degraded(plain: Mapping[str, Any], theirs: Mapping[str, Any], sigma_init: float) -> None:
    """Raises UserError where the run that the section `path` names is not of `degrade` to the
    samples of such a student, or of other data.

    Args:
      plain, theirs: resolved configs of the student and of that run.
      sigma_init: of the student.
    """
    at = f'config.path.workdir={plain["path"]["workdir"]}'
    method = theirs['method']
    level = method.get('sigma_init', parameters(degrade)['sigma_init'].default)
    if (method['name'], level) != ('degrade', sigma_init):
        of = f' at sigma_init={level}' if method['name'] == 'degrade' else ''
        raise UserError(
            f'{at}: holds a run of {method["name"]}{of}; give one of degrade at '
            f'sigma_init={sigma_init}, that of this student'
        )
    if theirs['image'] != plain['image']:
        raise UserError(f'{at}: was trained on {theirs["image"]}, not {plain["image"]}')


def check_path(plain: Mapping[str, Any]) -> None:
    """Raises UserError where the section `path` names a run that degraded other weights than those
    of this run's teacher.

    Args:
      plain: the resolved config with its `origin`.
    """
    if 'path' not in plain:
        return
    where, workdir = 'config.path.workdir', plain['path']['workdir']
    theirs = configs.to_json(configs.read(workdir, where)).get('origin', {})
    ours = plain['origin'].get('teacher')
    if ours != theirs.get('teacher', ours):
        raise UserError(
            f'{where}={workdir}: began with other weights of its teacher; give a run that degraded '
            'the one of config.teacher'
        )


GUIDANCE = ('guidance', 'guidance_interval')

# Key of the section `teacher` that says which teacher it is -> what makes it.
TEACHERS = {'workdir': from_run, 'weights': from_file, 'oracle': from_oracle}
