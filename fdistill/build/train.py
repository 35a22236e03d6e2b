"""Trains what a config describes: everything is made and checked before anything is written."""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fdistill import config as configs
from fdistill.build.evaluators import evaluator
from fdistill.build.experiment import Experiment, check_wanted, experiment, optimizers
from fdistill.build.hooks import hooks
from fdistill.build.run import digest_of
from fdistill.build.sections import load_data, plain_of, resolve, section_of
from fdistill.build.settings import comparable
from fdistill.config import call, told
from fdistill.data import pipeline
from fdistill.data.sources import Source
from fdistill.errors import UserError
from fdistill.files import CONFIG, disk, lock
from fdistill.training import loop, sharding
from fdistill.training.checkpoint import FOLDER
from fdistill.training.loop import Training
from fdistill.training.state import TrainState


class Ready(NamedTuple):
    """A config whose every part has been made and checked."""

    source: Source
    plain: dict[str, Any]
    built: Experiment
    optimizers: Mapping[str, optax.GradientTransformation]
    training: Training
    batches: Callable[[int], Iterator[Any]]
    frozen: Mapping[str, Any]
    seed: int


def origin(source: Source, frozen: Mapping[str, Any]) -> dict[str, str]:
    """{'data', 'images', and the name of each network that is not trained}: digests of what a run
    is made from, which do not depend on where it is stored.

    Args:
      source: 'data' has its labels and other conditions, 'images' its images as they are stored:
        their pixels may be decoded a little differently by another library. Without 'images' where
        they are computed, as the config says them all.
      frozen: {name: what identifies its weights}.
    """
    data = source.labels.tolist()
    if source.given:
        data = [data, {name: digest_of(np.asarray(v).tolist()) for name, v in source.given.items()}]
    parts = {'data': data, **({'images': source.stored} if source.stored else {}), **frozen}
    return {name: digest_of(part) for name, part in parts.items()}


def check_resumable(plain: Mapping[str, Any], workdir: str | pathlib.Path) -> None:
    """Raises UserError where the folder holds a run of another experiment, or has lost its
    checkpoints: to begin anew would overwrite what is left."""
    if not (pathlib.Path(workdir) / CONFIG).is_file():
        return
    if not (pathlib.Path(workdir) / FOLDER).is_dir():
        raise UserError(
            f'--workdir={workdir}: holds a run without its {FOLDER}/; bring them back from a copy, '
            'or give another folder to start anew'
        )
    before = configs.to_json(configs.read(workdir))
    # A run of 0.1 has no digests, so its places have to stay.
    places = 'origin' not in before
    old, new = comparable(before, places), comparable(plain, places)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise UserError(
                f'--workdir={workdir}: holds a run with config.{key}={old.get(key)!r}, now '
                f'{new.get(key)!r}; go on with the same config or give another folder'
            )
    for name, digest in before.get('origin', {}).items():
        if digest != plain['origin'].get(name):
            what = f'other {name}' if name in ('data', 'images') else f'other weights of its {name}'
            raise UserError(
                f'--workdir={workdir}: its run began with {what}; go on with the same or give '
                'another folder'
            )


def ready(
    config: Mapping[str, Any],
    workdir: str | pathlib.Path,
    mesh: Mesh | None = None,
    like: Ready | None = None,
) -> Ready:
    """Everything `loop.train` needs, checked before anything is written. What is frozen is on the
    mesh, or on the first device.

    `like` is the result for another config with the same data and teacher, which are then not
    loaded again.
    """
    source = like.source if like else load_data(config, 'train')
    plain = resolve(config, source)
    training = call(Training, plain_of(section_of(plain, 'training')), 'config.training')
    call(loop.check, {}, 'config.training', training=training, mesh=mesh)
    built = experiment(plain, training.microbatches)
    check_wanted(plain, built)
    roles = optimizers(plain, built.method)
    flip, seed = plain['data'].get('flip', False), plain.get('seed', 0)

    def batches(start):
        return pipeline.batches(
            source,
            training.batch_size,
            seed,
            start,
            flip,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    call(batches, {'start': 0}, 'config.data')
    evaluator(plain.get('evaluation', {}))
    if like:
        frozen, plain['origin'] = like.frozen, like.plain['origin']
    else:
        loaded = {name: load(mesh) for name, load in built.frozen.items()}
        frozen = {name: params for name, (params, _) in loaded.items()}
        plain['origin'] = origin(source, {name: known for name, (_, known) in loaded.items()})
    check_resumable(plain, workdir)
    return Ready(source, plain, built, roles, training, batches, frozen, seed)


def train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    quiet: bool = False,
    stop_at: int | None = None,
) -> TrainState:
    """Trains what a config describes; resumes where the workdir holds a checkpoint.

    Args:
      config: ConfigDict.
      workdir: run folder; nothing is written there before everything has been checked.
      quiet: no progress on stderr.
      stop_at: see `loop.train`.

    Returns:
      The final `TrainState`.

    Raises:
      UserError: on whatever the user can mend.
      NotFinite, Stopped: see `loop.train`.
    """
    disk.folder_for(workdir, '--workdir')
    if jax.process_index() == 0:
        lock.check(workdir)
    mesh = call(sharding.make_mesh, plain_of(config.get('mesh', {})), 'config.mesh')
    made = ready(config, workdir, mesh)
    if jax.process_count() > 1:
        sharding.check_agreement(digest_of(made.plain))
    # Not by `call`: what a method says of its losses when they are traced is told likewise.
    with told('config.training'):
        return loop.train(
            made.built.method,
            made.optimizers,
            made.frozen,
            made.batches,
            made.training,
            mesh=mesh,
            workdir=workdir,
            config=made.plain,
            seed=made.seed,
            hooks=hooks(made.plain, made.source, made.training, workdir, mesh),
            quiet=quiet,
            stop_at=stop_at,
        )
