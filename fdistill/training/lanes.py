"""Several runs that differ in their seeds and in numbers of their settings, trained as one program:
a lane each, vmapped."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdistill.errors import NotFinite
from fdistill.files import CONFIG, disk, lock
from fdistill.files.progress import Progress
from fdistill.training import checkpoint, loop, memory, writer
from fdistill.training.loop import Training
from fdistill.training.state import empty_metrics, init_state, measured
from fdistill.training.step import make_step


class Lane(NamedTuple):
    """One of the runs.

    seed: of the run.
    batches: start_step -> iterator.
    workdir: its folder.
    config: what is kept there.
    settings: {name: number}, in which the lanes differ.
    """

    seed: int
    batches: Callable[[int], Iterator[Any]]
    workdir: str | pathlib.Path
    config: Mapping[str, Any]
    settings: Mapping[str, float]


@jax.tree_util.register_pytree_node_class
class Number(np.lib.mixins.NDArrayOperatorsMixin):
    """A number that differs from lane to lane, where the program of one run has a Python float.

    Computed with Python's numbers, it stays one float64 per lane, so that 1 - b2 has the same
    digits as in a run alone. Computed with an array, it is the float32 of the lane being traced. A
    comparison must have the same answer for all lanes, because the program has one structure.
    Whatever else would need the number itself, as float(), int() or a hash, is refused by Python.

    Args:
      values: [lanes], numbers.
      lane: int32, traced, the index of the lane.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, values, lane):
        self._values, self._lane = np.asarray(values, np.float64), lane

    def __jax_array__(self):
        return jnp.asarray(self._values, self.dtype)[self._lane]

    # A jitted function, as most of jax.numpy are, is handed the array.
    def tree_flatten(self) -> tuple[tuple[jax.Array], None]:
        return (self.__jax_array__(),), None

    @classmethod
    def tree_unflatten(cls, _: None, arrays: tuple[jax.Array]) -> jax.Array:
        return arrays[0]

    def __array_ufunc__(self, function, method, *given, **options):
        if any(isinstance(value, jax.Array) for value in given):
            return getattr(jnp, function.__name__)(
                *(jnp.asarray(value) if value is self else value for value in given)
            )
        # The axis of an array would be taken for that of the lanes.
        if method != '__call__' or any(
            np.ndim(value) for value in given if not isinstance(value, Number)
        ):
            return NotImplemented
        return Number(
            function(*(value._values if isinstance(value, Number) else value for value in given)),
            self._lane,
        )

    def __bool__(self):
        if len(answers := set((self._values != 0).tolist())) > 1:
            raise ValueError(
                'a setting decides differently for different lanes; '
                'train them in programs of their own'
            )
        return answers.pop()


def _lane(tree, index):
    return jax.tree.map(lambda value: value[index], tree)


def train(
    make: Callable[[dict], Any],
    frozen: Any,
    lanes: Sequence[Lane],
    training: Training,
    *,
    quiet: bool = False,
) -> list[NotFinite | None]:
    """Trains all lanes to `training.steps` steps on one device; each run folder ends as
    `loop.train` would have left it.

    The numbers are those of one run after another, except for rounding: a vmapped product sums in
    another order, and a constant of a program may be folded into another where the number of a lane
    cannot. A lane that stops being finite fails alone. There are no previews or evaluations, and
    checkpoints only at the end: a group that was killed begins anew.

    Args:
      make: settings -> (method, optimizers, decay) as of `make_step`; called with the settings of
        one lane, {name: number}, and traced with those of all, {name: `Number`}.
      frozen: as of `loop.train`.
      lanes: `Lane`s of folders without a checkpoint, whose settings have the same names.
      training: what the lanes have in common; its average's half-life is that of `make`.
      quiet: no progress on stderr.

    Returns:
      For each lane None, or the NotFinite that ended it.

    Raises:
      ValueError: on settings out of range.
      MemoryError: when the device has no room for so many lanes; nothing has been written.
    """
    loop.check(training)
    if training.rollbacks:
        raise ValueError(
            f'rollbacks={training.rollbacks}: a lane cannot go back alone; set it to 0, or train '
            'the runs one by one'
        )
    if loop.watched(training):
        raise ValueError(
            f'diversity_below={training.diversity_below}, '
            f'saturation_above={training.saturation_above}: a lane cannot end alone; leave them '
            'out, or train the runs one by one'
        )
    steps, indices = training.steps, jnp.arange(len(lanes))
    keys = jax.vmap(jax.random.key)(jnp.asarray([lane.seed for lane in lanes], jnp.int32))
    settings = {name: [lane.settings[name] for lane in lanes] for name in lanes[0].settings}
    method = make(lanes[0].settings)[0]
    cycle = method.cycle

    def parts(index):
        return make({name: Number(values, index) for name, values in settings.items()})

    def stacked(streams):
        return jax.tree.map(lambda *values: np.stack(values), *map(next, streams))

    @functools.partial(jax.jit, inline=True)
    def fresh(frozen, batch, keys, indices):
        empty = jax.tree.map(lambda value: jnp.zeros(value.shape[1:], value.dtype), batch)

        def one(key, index):
            method, optimizers, _ = parts(index)
            return init_state(method, optimizers, key, empty, frozen)

        return jax.vmap(one)(keys, indices)

    @jax.jit
    def init(*given):
        return fresh(*given)._replace(**empty_metrics(names))

    def of_all(roles):
        def one(state, frozen, batch, key, index):
            step = make_step(
                *parts(index),
                max_skipped=training.max_skipped,
                spike_sigmas=training.spike_sigmas,
            )
            return step(state, frozen, batch, key, roles)

        return jax.vmap(one, in_axes=(0, None, 0, 0, 0))

    def program(roles):
        step = jax.jit(of_all(roles), donate_argnums=0)
        return step.lower(shapes, read, batch, keys, indices).compile()

    batch = stacked([lane.batches(0) for lane in lanes])
    shapes = jax.eval_shape(fresh, frozen, batch, keys, indices)
    read = {name: params for name, params in frozen.items() if name not in method.begins}
    everything = of_all(tuple(method.losses))
    after = jax.eval_shape(everything, shapes, read, batch, keys, indices)
    names = measured(after)
    shapes = shapes._replace(**names)
    programs = {roles: program(roles) for roles in dict.fromkeys(map(cycle, range(steps)))}
    # The teacher is there already.
    there = sum(value.nbytes for value in jax.tree.leaves(read))
    needed = max(map(memory.needed, programs.values())) - there
    if needed > (free := memory.free()):
        raise MemoryError(
            f'{len(lanes)} lanes need {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free'
        )
    streams, failed = [lane.batches(0) for lane in lanes], [None] * len(lanes)
    with contextlib.ExitStack() as stack:
        size = training.batch_size * len(lanes)
        progress = stack.enter_context(Progress(steps, 0, size, quiet=quiet))
        outs, logs = [], []
        for lane in lanes:
            stack.enter_context(lock.held(lane.workdir))
            out = stack.enter_context(writer.Writer(lane.workdir, training.wandb))
            out.truncate(0)
            out.config(lane.config)
            outs.append(out)
            logs.append(loop.log(out, training, progress))

        def advance(state, step):
            return programs[cycle(step)](state, read, stacked(streams), keys, indices)

        def log_all(state, done):
            names = ('metrics', 'skipped', 'skipped_in_a_row', 'spikes')
            small = jax.device_get({name: getattr(state, name) for name in names})
            for index, one in enumerate(logs):
                own = state._replace(**_lane(small, index))
                try:
                    if not failed[index]:
                        one(own, done)
                except NotFinite as error:
                    failed[index] = error
            return state._replace(metrics=empty_metrics(state.metrics))

        actions = [
            loop.Every(training.log_every, log_all),
            loop.Every(1, loop.pace(outs, progress)),
        ]
        state = loop.run(advance, init(frozen, batch, keys, indices), 0, steps, actions)
        for index, lane in enumerate(lanes):
            if not failed[index]:
                with checkpoint.Checkpoints(lane.workdir, training.keep) as checkpoints:
                    checkpoints.save(steps, _lane(state, index), lane.config)
                # Where this is, there are checkpoints: not before, for a group that is killed.
                disk.write_json(pathlib.Path(lane.workdir) / CONFIG, lane.config)
    return failed
