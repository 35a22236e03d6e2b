"""What is exported: a trained generator as pure functions, and where it comes from."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill import build
from fdistill import config as configs
from fdistill.build import Run
from fdistill.errors import UserError
from fdistill.export.loader import RANDOM
from fdistill.files import disk
from fdistill.weights import denoisers


class Exportable(NamedTuple):
    """A trained generator.

    run: where it lies in memory.
    plain: its config, as JSON keeps it.
    weights: {name: float32 array}, as in a file of `weights.denoisers`.
    licence: of the weights; None where nothing says it.
    derived_from: the published files that it was distilled from, of each {'name', 'sha256',
      'licence'}.
    evaluations: rows of `eval/*.json`, of this checkpoint.
    """

    run: Run
    plain: dict[str, Any]
    weights: dict[str, np.ndarray]
    licence: str | None
    derived_from: tuple[dict[str, str], ...]
    evaluations: list[dict[str, Any]]

    def start(self, seed: Any, batch: Any, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(noise[B,...] ~ N(0, 1), label[B]) with which `fdistill sample --seed` begins its batch
        number `batch`; label[B]: classes, -1 for none, `RANDOM`."""
        key = build.batch_key(seed, batch)
        noise, condition = self.run.start(key, label.shape[0])
        drawn = condition.get('label', jnp.full_like(label, -1))
        return noise, jnp.where(label == RANDOM, drawn, label)

    def sample(self, weights: Mapping[str, jax.Array], noise: jax.Array, label: jax.Array) -> Any:
        """float32 images [B,...] of noise[B,...] ~ N(0, 1) and label[B]."""
        params = build.as_params(weights, self.run.params)
        condition = {'label': label} if self.run.num_classes else {}
        return self.run.generator.sample(params, noise, condition)


def sources(plain: Mapping[str, Any], licence: str | None) -> tuple[dict[str, str], ...]:
    """The published files that a run was distilled from; through the run that is its teacher, too.

    Raises:
      UserError: the teacher is not there any more, and no licence is given.
    """
    teacher = plain.get('teacher', {})
    place = teacher.get('weights') or teacher.get('workdir')
    if place is None:
        return ()
    try:
        if 'workdir' in teacher:
            known = configs.to_json(configs.read(place, 'config.teacher.workdir'))
            return sources(known, licence)
        about = denoisers.about(place)
    except UserError as error:
        if licence:
            return (
                {'name': pathlib.PurePath(place).name, 'sha256': 'unknown', 'licence': licence},
            )
        raise UserError(
            f'{error}; or, as its licence cannot be read then, give --licence=NAME'
        ) from error
    own = {'name': about.get('source', pathlib.PurePath(place).name), 'licence': about['licence']}
    own['sha256'] = about.get('source_sha256') or disk.sha256(place)
    return (own, *about['derived_from'])


def of_run(
    workdir: str | pathlib.Path,
    *,
    licence: str | None = None,
    sampler: Any = None,
    steps: int | None = None,
) -> Exportable:
    """What a run folder holds, ready to be exported.

    Args:
      workdir: run folder.
      licence: of the weights, in place of that of what they were distilled from.
      sampler, steps: of a teacher, see `build.from_workdir`.

    Raises:
      UserError: there is no run, or its samples are conditioned on more than a class.
    """
    run = build.from_workdir(workdir, sampler=sampler, steps=steps)
    plain = configs.to_json(run.config)
    if given := plain['image'].get('given'):
        raise UserError(
            f'--workdir={workdir}: its samples are made of {", ".join(given)}; an exported model '
            'takes noise and a class alone'
        )
    derived_from = sources(plain, licence)
    known = ' AND '.join(sorted({one['licence'] for one in derived_from}))
    rows = []
    for file in sorted((disk.place(workdir) / 'eval').glob('*.json')):
        row = disk.read_json(file, dict)
        if row.get('details', {}).get('checkpoint') == run.digest:
            rows.append(row)
    return Exportable(
        run,
        plain,
        build.with_names(run.params),
        licence or known or None,
        derived_from,
        rows,
    )
