"""Trains what a config describes: everything is made and checked before anything is written."""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fdistill.build.evaluators import evaluator
from fdistill.build.experiment import Experiment, check_wanted, experiment, optimizers
from fdistill.build.hooks import hooks
from fdistill.build.models import fitting
from fdistill.build.resume import as_begun, check_resumable, origin, trained_before
from fdistill.build.run import digest_of
from fdistill.build.sections import load_data, plain_of, resolve, section_of
from fdistill.build.teachers import check_path
from fdistill.config import call, told
from fdistill.data import pipeline
from fdistill.data.sources import Source
from fdistill.files import disk, lock
from fdistill.training import loop, optim, sharding
from fdistill.training.loop import Training
from fdistill.training.state import TrainState


class Ready(NamedTuple):
    """A config whose every part has been made and checked."""

    source: Source
    plain: dict[str, Any]
    built: Experiment
    optimizers: Mapping[str, optax.GradientTransformation]
    training: Training
    batches: Callable[..., Iterator[Any]]
    frozen: Mapping[str, Any]
    seed: int


def ready(
    config: Mapping[str, Any],
    workdir: str | pathlib.Path,
    mesh: Mesh | None = None,
    like: Ready | None = None,
    change: bool = False,
) -> Ready:
    """Everything `loop.train` needs, checked before anything is written. What is frozen is on the
    mesh, or on the first device.

    `like` is the result for another config with the same data and teacher, which are then not
    loaded again; `change` is as of `check_resumable`.
    """
    source = like.source if like else load_data(config, 'train')
    plain = resolve(config, source)
    training = call(Training, plain_of(section_of(plain, 'training')), 'config.training')
    call(loop.check, {}, 'config.training', training=training, mesh=mesh)
    built = experiment(plain, training.microbatches)
    check_wanted(plain, built)
    call(fitting, {}, 'config.network', model=built.parts['student'], image=built.image)
    roles = optimizers(plain, built.method)
    flip, seed = plain['data'].get('flip', False), plain.get('seed', 0)

    def batches(start, rollbacks=0):
        again = rollbacks and int(np.random.SeedSequence([seed, rollbacks]).generate_state(1)[0])
        return pipeline.batches(
            source,
            training.batch_size,
            again or seed,
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
        check_path(plain)
    if changes := check_resumable(plain, workdir, change):
        plain['changes'] = changes
        begun = optimizers(as_begun(plain), built.method)
        roles = {role: optim.continued(begun[role], roles[role]) for role in roles}
    if names := {*plain.get('trained_on', ()), *trained_before(workdir)}:
        plain['trained_on'] = sorted(names)
    return Ready(source, plain, built, roles, training, batches, frozen, seed)


def train(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    quiet: bool = False,
    stop_at: int | None = None,
    change: bool = False,
) -> TrainState:
    """Trains what a config describes; resumes where the workdir holds a checkpoint.

    Args:
      config: ConfigDict.
      workdir: run folder; nothing is written there before everything has been checked.
      quiet: no progress on stderr.
      stop_at: see `loop.train`.
      change: go on with other settings of the optimizers than the run has; they are recorded in its
        config under `changes`.

    Returns:
      The final `TrainState`.

    Raises:
      UserError: on whatever the user can mend.
      NotFinite, Stopped: see `loop.train`.
    """
    workdir = disk.folder_for(disk.place(workdir), '--workdir')
    if jax.process_index() == 0:
        lock.check(workdir)
    settings = plain_of(config.get('mesh', {}))
    mesh = call(sharding.mesh_over, settings, 'config.mesh', those=jax.devices())
    made = ready(config, workdir, mesh, change=change)
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
