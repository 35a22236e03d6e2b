"""What is exported: a generator as pure functions, and what there is to say about it."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from fdistill import build
from fdistill import config as configs
from fdistill.build import Run
from fdistill.config import parameters
from fdistill.errors import UserError
from fdistill.export.loader import RANDOM
from fdistill.files import disk
from fdistill.methods import METHODS
from fdistill.methods.generator import Jumps, Steps
from fdistill.networks.autoencoder import Autoencoder
from fdistill.types import misfit
from fdistill.weights import autoencoders, denoisers

DECODER = 'decoder/'  # before the names of its arrays


class Source(TypedDict):
    """A published file that a model was made from."""

    name: str
    sha256: str
    licence: str


class Exportable(NamedTuple):
    """A generator.

    run: where it lies in memory.
    sections: {'network', 'denoiser', 'image'} of a config, a `weights.denoisers.Model`; the second
      is named where the config leaves it out.
    method: section of what trained it; {} where it was trained elsewhere.
    name: of the data, or of the published file.
    steps: how a student makes samples; None of a denoiser, which a solver steps with.
    weights: {name: float32 array}, as in a file of `weights.denoisers`.
    decoder: (autoencoder, {name: float32 array}) that makes images of latents, or None.
    licence: of the weights; None where nothing says it.
    derived_from: the published files that it was made from, nearest first.
    evaluations: rows of `eval/*.json`, of these weights sampled as the run says.
    """

    run: Run
    sections: denoisers.Model
    method: dict[str, Any]
    name: str
    steps: Steps | Jumps | None
    weights: dict[str, np.ndarray]
    decoder: tuple[Autoencoder, dict[str, np.ndarray]] | None
    licence: str | None
    derived_from: tuple[Source, ...]
    evaluations: list[dict[str, Any]]

    def start(self, seed: Any, batch: Any, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(noise[B,...] ~ N(0, 1), label[B]) with which `fdistill sample --seed` begins its batch
        number `batch`; label[B]: classes, -1 for none, `RANDOM`."""
        noise, condition = self.run.start(build.batch_key(seed, batch), label.shape[0])
        drawn = condition.get('label', jnp.full_like(label, -1))
        return noise, jnp.where(label == RANDOM, drawn, label)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """{name: array} of all that `sample` takes: the weights, and those of the decoder."""
        _, decoder = self.decoder or (None, {})
        return self.weights | {f'{DECODER}{name}': array for name, array in decoder.items()}

    def sample(self, arrays: Mapping[str, jax.Array], noise: jax.Array, label: jax.Array) -> Any:
        """float32 samples, decoded ones where they are latents, of noise[B,...] ~ N(0, 1) and
        label[B]."""
        params = build.as_params(arrays, self.run.params)
        condition = {'label': label} if self.run.num_classes else {}
        made = self.run.generator.sample(params, noise, condition)
        if self.decoder is None:
            return made
        network, names = self.decoder
        return network.decode({name: arrays[f'{DECODER}{name}'] for name in names}, made)


def sources(plain: Mapping[str, Any], licence: str | None) -> tuple[Source, ...]:
    """The published files that a run is made of: its teacher and what its student started as, and
    what those are made of, where they are runs.

    Args:
      plain: config of the run.
      licence: of the weights, where the user says it.

    Raises:
      UserError: one of them is not there any more, and no licence is given.
    """
    found = []
    for part in ('teacher', 'start'):
        made = _sources(plain.get(part, {}), f'config.{part}', licence)
        found += [source for source in made if source not in found]
    return tuple(found)


def _sources(section, where, licence):
    place = section.get('weights') or section.get('workdir')
    if place is None:
        return ()
    try:
        if 'workdir' in section:
            return sources(configs.to_json(configs.read(place, f'{where}.workdir')), licence)
        return of_file(place, denoisers.about(place))
    except UserError as error:
        if licence:
            lost = {'name': pathlib.PurePath(place).name, 'sha256': 'unknown'}
            return (lost | {'licence': licence},)
        raise UserError(
            f'{error}; or, as its licence cannot be read then, give --licence=NAME'
        ) from error


def _itself(path, about):
    """The published file that a file of ours was made of."""
    name = about.get('source', pathlib.PurePath(path).name)
    digest = about.get('source_sha256') or disk.sha256(path)
    return {'name': name, 'sha256': digest, 'licence': about['licence']}


def of_file(path: str | pathlib.Path, about: Mapping[str, Any]) -> tuple[Source, ...]:
    """Where a file of weights comes from: the published file, then what that is from."""
    before = about['derived_from']
    if found := misfit(before, list[Source], 'derived_from'):
        raise UserError(f'{path}: its metadata is damaged ({found}); convert it again')
    return (_itself(path, about), *before)


def _of_run(workdir, run, licence):
    """The fields of a run folder's model that are not those of its memory."""
    plain = configs.to_json(run.config)
    rows = [disk.read_json(file) for file in sorted((disk.place(workdir) / 'eval').glob('*.json'))]
    method, steps = plain['method'], None
    if method != configs.to_json(configs.read(workdir))['method']:
        rows = []  # They are of another solver than what was asked for.
    if not build.has_solver(plain):
        known = parameters(METHODS[method['name']])
        kind = Jumps if build.is_flow_map(plain) else Steps
        given = {name: known[name].default for name in kind._fields if name in known}
        if given:  # Else of a generator of its own, as that of segments.
            own = {name: method[name] for name in given if name in method}
            steps = kind(**given | configs.with_tuples(own))
    return {
        'method': method,
        'name': _called(plain),
        'steps': steps,
        'derived_from': sources(plain, licence),
        'evaluations': [
            row for row in rows if row.get('details', {}).get('checkpoint') == run.digest
        ],
    }


def _called(plain):
    """The data that a run's samples are like: of pairs those of their teacher, if it is known."""
    with contextlib.suppress(UserError):
        plain = build.real(plain)
    return plain['data']['name']


def _steps(given):
    """How a student makes samples, by what its file says."""
    return (Steps if 'sigma_init' in given else Jumps)(**given)


def _of_weights(path, run, about):
    """The same, of a file of weights."""
    generator = run.config.get('generator')
    try:
        method = disk.from_json(about.get('method', '{}'), configs.Named)
    except ValueError as error:
        raise UserError(f'{path}: its metadata is damaged ({error}); convert it again') from error
    return {
        'method': method if 'name' in method else {},
        'name': about.get('data', about.get('source', pathlib.PurePath(path).stem)),
        'steps': generator and _steps(generator.to_dict()),
        'derived_from': of_file(path, about),
        'evaluations': [],
    }


def opened(
    workdir: str | pathlib.Path | None,
    weights: str | pathlib.Path | None = None,
    *,
    licence: str | None = None,
    **solver: Any,
) -> Exportable:
    """What a run folder or a file of weights holds, ready to be exported.

    Args:
      workdir, weights: run folder, or file of weights; one of them.
      licence: of the weights, in place of that of what they were made from.
      solver: sampler, steps and guidance of a denoiser, and what decodes latents; see
        `build.from_workdir`.

    Raises:
      UserError: there is none, or its samples are conditioned on more than a class.
    """
    run = build.opened(workdir, weights, **solver)
    plain = configs.to_json(run.config)
    if given := plain['image'].get('given'):
        raise UserError(
            f'{workdir or weights}: its samples are made of {", ".join(given)}; an exported model '
            'takes noise and a class alone'
        )
    if weights is None:
        known = _of_run(workdir, run, licence)
    else:
        known = _of_weights(weights, run, denoisers.about(weights))
    decoder, vae = None, solver.get('vae') or build.vae_of(plain)
    if vae is not None:
        network, arrays, about = autoencoders.load(vae)
        decoder = network, arrays
        known['derived_from'] += (_itself(vae, about),)
    licences = ' AND '.join(sorted({one['licence'] for one in known['derived_from']}))
    return Exportable(
        run=run,
        sections={'denoiser': {'name': 'edm'}}
        | {name: plain[name] for name in denoisers.Model.__annotations__ if name in plain},
        weights=build.with_names(run.params),
        decoder=decoder,
        licence=licence or licences or None,
        **known,
    )
