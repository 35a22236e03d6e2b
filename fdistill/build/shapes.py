"""What a run is given, keeps and evaluates, from its resolved config and shapes alone: nothing is
loaded, compiled or run."""

import collections
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fdistill.build.evaluators import evaluator
from fdistill.build.experiment import Experiment, check_wanted, experiment, optimizers
from fdistill.build.models import conditions
from fdistill.build.sections import plain_of, section_of
from fdistill.build.teachers import check_degraded
from fdistill.config import call, parameters, told
from fdistill.data import sources
from fdistill.errors import UserError
from fdistill.methods import METHODS
from fdistill.training import checkpoint, loop, sharding
from fdistill.training.count import Evaluations, evaluations, marked
from fdistill.training.loop import Training
from fdistill.training.state import init_state, with_metrics
from fdistill.training.step import make_step


class Shapes(NamedTuple):
    """A config whose every part has been made, of shapes alone.

    built, training, optimizers: of the config.
    frozen, batch: shapes and dtypes of what a step is given; the whole batch.
    """

    built: Experiment
    training: Training
    optimizers: Mapping[str, optax.GradientTransformation]
    frozen: Mapping[str, Any]
    batch: Mapping[str, Any]


def shapes(
    plain: Mapping[str, Any], seen: Callable[[str, Any], Any] = lambda name, part: part
) -> Shapes:
    """The `Shapes` of a resolved config.

    Args:
      plain: of `sections.resolve`.
      seen: of `experiment`.

    Raises:
      UserError: on whatever the user can mend.
    """
    training = call(Training, plain_of(section_of(plain, 'training')), 'config.training')
    call(loop.check, {}, 'config.training', training=training)
    built = experiment(plain, training.microbatches, seen)
    check_wanted(plain, built)
    size = training.batch_size
    batch = {
        'x': jax.ShapeDtypeStruct((size, *built.shape), jnp.float32),
        'condition': jax.eval_shape(lambda: conditions(built.image, size)),
    }
    frozen = {
        name: jax.eval_shape(
            built.parts['student' if name in built.method.begins else name].init,
            jax.random.key(0),
            *batch.values(),
        )
        for name in built.frozen
    }
    if plain['data'].get('name') == 'pairs':
        kinds = {'seed': jnp.uint32, 'index': jnp.uint32, 'mirrored': jnp.bool_}
        batch['pair'] = {name: jax.ShapeDtypeStruct((size,), kind) for name, kind in kinds.items()}
    return Shapes(built, training, optimizers(plain, built.method), frozen, batch)


GUIDED = ('teacher', 'path')  # parts that are guided as the section `teacher` says


class Foreseen(NamedTuple):
    """What a run will be.

    steps, batch_size: of the config.
    parameters: {role: numbers} that are trained.
    evaluations: {part: `Evaluations`} of the whole run, in samples. Of guidance both count.
    checkpoints: steps of those that are there at its end, see `loop.kept`.
    bytes: of them, before they are compressed.
    """

    steps: int
    batch_size: int
    parameters: Mapping[str, int]
    evaluations: Mapping[str, Evaluations]
    checkpoints: tuple[int, ...]
    bytes: int


def foresee(
    plain: Mapping[str, Any],
    path: Mapping[str, Any] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Foreseen:
    """What a run of a resolved config will be, for which each of its losses is traced.

    Args:
      plain: of `sections.resolve`.
      path: resolved config of the run that its section `path` names, if that is to come.
      devices: that are to train it, if they are known.

    Raises:
      UserError: on whatever the user can mend.
    """

    def seen(name, part):
        return part._replace(apply=marked(name, part.apply)) if hasattr(part, 'apply') else part

    made = shapes(plain, seen)
    evaluator(plain.get('evaluation', {}))
    if devices is not None:
        mesh = call(sharding.mesh_over, plain.get('mesh', {}), 'config.mesh', those=devices)
        call(loop.check, {}, 'config.training', training=made.training, mesh=mesh)
    if path is not None:
        _check_path(plain, path)
    method, training = made.built.method, made.training
    key = jax.eval_shape(lambda: jax.random.key(0))
    begin = functools.partial(init_state, method, made.optimizers)
    state = jax.eval_shape(begin, key, made.batch, made.frozen)
    step = make_step(
        method,
        made.optimizers,
        loop.decay(training),
        max_skipped=training.max_skipped,
        spike_sigmas=training.spike_sigmas,
    )
    read = {name: of for name, of in made.frozen.items() if name not in method.begins}
    total = collections.defaultdict(Evaluations)
    with told('config.training'):
        state = with_metrics(state, step, read, made.batch, key)
        for roles, times in collections.Counter(map(method.cycle, range(training.steps))).items():
            of_roles = functools.partial(step, roles=roles)
            for name, one in evaluations(of_roles, state, read, made.batch, key).items():
                guided = name in GUIDED and plain['teacher'].get('guidance', 1) != 1
                total[name] = total[name].plus(one, times * (1 + guided))
    kept = loop.kept(training)
    return Foreseen(
        training.steps,
        training.batch_size,
        {role: _sizes(params)[0] for role, params in state.params.items()},
        dict(total),
        kept,
        (len(kept) + (training.keep_best is not None)) * _sizes(checkpoint.items(state))[1],
    )


def _check_path(plain, theirs):
    """Raises UserError where a run to come will not have the checkpoints that a `path` names."""
    where, steps = 'config.path.steps', plain['path']['steps']
    setting = parameters(METHODS[plain['method']['name']])['sigma_init']
    check_degraded(plain, theirs, plain['method'].get('sigma_init', setting.default))
    there = loop.kept(call(Training, plain_of(section_of(theirs, 'training')), 'config.training'))
    if absent := sorted({*steps} - {*there}):
        raise UserError(
            f'{where}={steps}: that run will keep no checkpoint of step {absent[0]}, but of '
            f'{", ".join(map(str, there))}; name these, or set its training.checkpoint_every and '
            'training.keep'
        )


def _sizes(tree):
    """(Numbers, bytes) of arrays or their shapes."""
    leaves = jax.tree.leaves(tree)
    counts = [math.prod(leaf.shape) for leaf in leaves]
    return sum(counts), sum(n * leaf.dtype.itemsize for n, leaf in zip(counts, leaves))


def blank(image: Mapping[str, Any], count: int) -> sources.Source:
    """Black samples of a section `image`, one byte of memory: what of data is known before they are
    made."""
    given = {
        name: np.broadcast_to(np.float32(0), (count, *shape))
        for name, shape in image.get('given', {}).items()
    }
    latents = image.get('latents')
    decoded = latents and sources.Decoded(latents['autoencoder'], tuple(latents['shape']))
    black = np.broadcast_to(np.float32(0), (count, *image['shape']))
    labels, classes = np.broadcast_to(np.int32(0), (count,)), max(image['num_classes'], 1)
    return sources.Source(black, labels, classes, 0, 'pairs', given, decoded=decoded)
